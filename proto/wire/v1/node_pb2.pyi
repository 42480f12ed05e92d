from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ModelState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MODEL_STATE_UNSPECIFIED: _ClassVar[ModelState]
    ABSENT: _ClassVar[ModelState]
    ON_DISK: _ClassVar[ModelState]
    LOADING: _ClassVar[ModelState]
    READY: _ClassVar[ModelState]
    SLEEPING: _ClassVar[ModelState]
    DRAINING: _ClassVar[ModelState]
    FAILED: _ClassVar[ModelState]
MODEL_STATE_UNSPECIFIED: ModelState
ABSENT: ModelState
ON_DISK: ModelState
LOADING: ModelState
READY: ModelState
SLEEPING: ModelState
DRAINING: ModelState
FAILED: ModelState

class SentCounts(_message.Message):
    __slots__ = ("router_id", "sent")
    class SentEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    ROUTER_ID_FIELD_NUMBER: _ClassVar[int]
    SENT_FIELD_NUMBER: _ClassVar[int]
    router_id: str
    sent: _containers.ScalarMap[str, int]
    def __init__(self, router_id: _Optional[str] = ..., sent: _Optional[_Mapping[str, int]] = ...) -> None: ...

class LoadReport(_message.Message):
    __slots__ = ("node", "sequence", "epoch", "replicas")
    NODE_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    node: str
    sequence: int
    epoch: int
    replicas: _containers.RepeatedCompositeFieldContainer[ReplicaLoad]
    def __init__(self, node: _Optional[str] = ..., sequence: _Optional[int] = ..., epoch: _Optional[int] = ..., replicas: _Optional[_Iterable[_Union[ReplicaLoad, _Mapping]]] = ...) -> None: ...

class ReplicaLoad(_message.Message):
    __slots__ = ("replica", "generation", "state", "load_remaining_s", "running", "waiting", "waiting_uncached_tokens", "kv_use", "kv_capacity_tokens", "prefix_queries_tokens", "prefix_hits_tokens", "prompt_tokens", "generation_tokens", "idle_s", "scraped_age_s", "seen", "adapters")
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    LOAD_REMAINING_S_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    WAITING_UNCACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    KV_USE_FIELD_NUMBER: _ClassVar[int]
    KV_CAPACITY_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PREFIX_QUERIES_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PREFIX_HITS_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    GENERATION_TOKENS_FIELD_NUMBER: _ClassVar[int]
    IDLE_S_FIELD_NUMBER: _ClassVar[int]
    SCRAPED_AGE_S_FIELD_NUMBER: _ClassVar[int]
    SEEN_FIELD_NUMBER: _ClassVar[int]
    ADAPTERS_FIELD_NUMBER: _ClassVar[int]
    replica: str
    generation: int
    state: ModelState
    load_remaining_s: float
    running: int
    waiting: int
    waiting_uncached_tokens: float
    kv_use: float
    kv_capacity_tokens: int
    prefix_queries_tokens: int
    prefix_hits_tokens: int
    prompt_tokens: int
    generation_tokens: int
    idle_s: float
    scraped_age_s: float
    seen: int
    adapters: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, replica: _Optional[str] = ..., generation: _Optional[int] = ..., state: _Optional[_Union[ModelState, str]] = ..., load_remaining_s: _Optional[float] = ..., running: _Optional[int] = ..., waiting: _Optional[int] = ..., waiting_uncached_tokens: _Optional[float] = ..., kv_use: _Optional[float] = ..., kv_capacity_tokens: _Optional[int] = ..., prefix_queries_tokens: _Optional[int] = ..., prefix_hits_tokens: _Optional[int] = ..., prompt_tokens: _Optional[int] = ..., generation_tokens: _Optional[int] = ..., idle_s: _Optional[float] = ..., scraped_age_s: _Optional[float] = ..., seen: _Optional[int] = ..., adapters: _Optional[_Iterable[str]] = ...) -> None: ...

class ReplicaCommand(_message.Message):
    __slots__ = ("replica",)
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    replica: str
    def __init__(self, replica: _Optional[str] = ...) -> None: ...

class SleepCommand(_message.Message):
    __slots__ = ("replica", "level")
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    replica: str
    level: int
    def __init__(self, replica: _Optional[str] = ..., level: _Optional[int] = ...) -> None: ...

class DrainCommand(_message.Message):
    __slots__ = ("replica", "limit_s", "stop")
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    LIMIT_S_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    replica: str
    limit_s: float
    stop: bool
    def __init__(self, replica: _Optional[str] = ..., limit_s: _Optional[float] = ..., stop: bool = ...) -> None: ...

class UndrainCommand(_message.Message):
    __slots__ = ("replica",)
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    replica: str
    def __init__(self, replica: _Optional[str] = ...) -> None: ...

class Progress(_message.Message):
    __slots__ = ("replica", "phase", "detail", "fraction", "done", "error")
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    FRACTION_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    replica: str
    phase: str
    detail: str
    fraction: float
    done: bool
    error: str
    def __init__(self, replica: _Optional[str] = ..., phase: _Optional[str] = ..., detail: _Optional[str] = ..., fraction: _Optional[float] = ..., done: bool = ..., error: _Optional[str] = ...) -> None: ...

class ListRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListResponse(_message.Message):
    __slots__ = ("node", "draining", "replicas")
    NODE_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    node: str
    draining: bool
    replicas: _containers.RepeatedCompositeFieldContainer[ReplicaStatus]
    def __init__(self, node: _Optional[str] = ..., draining: bool = ..., replicas: _Optional[_Iterable[_Union[ReplicaStatus, _Mapping]]] = ...) -> None: ...

class ReplicaStatus(_message.Message):
    __slots__ = ("replica", "model", "state", "generation", "address", "pid", "since_s", "restarts", "detail", "log_path")
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    SINCE_S_FIELD_NUMBER: _ClassVar[int]
    RESTARTS_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    LOG_PATH_FIELD_NUMBER: _ClassVar[int]
    replica: str
    model: str
    state: ModelState
    generation: int
    address: str
    pid: int
    since_s: float
    restarts: int
    detail: str
    log_path: str
    def __init__(self, replica: _Optional[str] = ..., model: _Optional[str] = ..., state: _Optional[_Union[ModelState, str]] = ..., generation: _Optional[int] = ..., address: _Optional[str] = ..., pid: _Optional[int] = ..., since_s: _Optional[float] = ..., restarts: _Optional[int] = ..., detail: _Optional[str] = ..., log_path: _Optional[str] = ...) -> None: ...
