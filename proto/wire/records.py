"""What lies in the registry: one struct per kind of record, and the layout of the keys.

Records are JSON, so that `etcdctl get` shows a person what a process believes. Every record carries the version of
its own layout; unknown fields are ignored, so that a newer process may add some. A record of a newer *version* is
refused by `decode`, because its meaning may have changed: the reader skips it and says so.

Load is never here (see node.proto): a record changes in seconds or slower.
"""

from __future__ import annotations

import enum
from typing import ClassVar, TypeVar

import msgspec

ROOT = "/switchyard/v1/"


class ModelState(enum.StrEnum):
    """Where a model stands on a node; the same words as `ModelState` in node.proto."""

    ABSENT = "absent"
    ON_DISK = "on_disk"
    LOADING = "loading"
    READY = "ready"
    SLEEPING = "sleeping"
    DRAINING = "draining"
    FAILED = "failed"


class Task(enum.StrEnum):
    """What an engine was started for; a pooling server has no chat, a generating one no embeddings."""

    GENERATE = "generate"
    EMBED = "embed"


class AdmissionClass(enum.StrEnum):
    """How requests of a model wait where their clients name no limit, once the replicas are under pressure."""

    INTERACTIVE = "interactive"
    """Refused when a first token would have to wait longer than 10 s."""
    STANDARD = "standard"
    """As long as the router's setting `admission_wait_s` says."""
    BATCH = "batch"
    """Up to 10 minutes, behind the others of its tenants' priority, and shed first."""
    NONE = "none"
    """Never held back, shed or refused by the router: engines queue."""


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A value in the registry. `VERSION` grows only when old readers would misread a new record."""

    VERSION: ClassVar[int] = 1
    KIND: ClassVar[str] = ""

    v: int = 1


class Region(Record, frozen=True, kw_only=True):
    KIND: ClassVar[str] = "regions"

    region: str
    title: str = ""
    router_urls: tuple[str, ...] = ()
    """Where routers of other regions reach this one."""


class Node(Record, frozen=True, kw_only=True):
    """A GPU host, put by its agent under the agent's lease. Absent means: no agent has spoken for a lease time."""

    KIND: ClassVar[str] = "nodes"

    node: str
    region: str
    address: str
    """host:port of the agent's gRPC server."""
    device_class: str = "unknown"
    """Hosts of one class are expected to be equally fast, such as `h100-80g` or `cpu`."""
    draining: bool = False
    started_unix_ns: int = 0
    version: str = ""


class Replica(Record, frozen=True, kw_only=True):
    """One engine that can serve one base model (and its LoRA adapters) on one node, under the agent's lease."""

    KIND: ClassVar[str] = "replicas"

    replica: str
    """Unique in the region: node id, slash-free, plus a slot name."""
    node: str
    region: str
    model: str
    """The name that clients use."""
    address: str
    """host:port of the engine's HTTP server; requests go straight there."""
    tls: bool = False
    state: ModelState = ModelState.ABSENT
    generation: int = 0
    """Grows with every start of the engine: caches, streams and learned speed of an older one are void."""
    task: Task = Task.GENERATE
    moving: bool = False
    """Drained at once: routers continue its running streams elsewhere instead of letting them end."""
    adapters: tuple[str, ...] = ()
    """Names of LoRA adapters this replica can serve."""
    device_class: str = "unknown"
    max_num_seqs: int = 0
    """Limits of the engine; 0 when unknown."""
    max_batch_tokens: int = 0
    max_model_len: int = 0
    kv_capacity_tokens: int = 0
    prefix_block_tokens: int = 0
    token_ids: bool = False
    """The engine can return and accept token ids, which an exact resume needs."""


class Router(Record, frozen=True, kw_only=True):
    """A running router process, under its own lease; leaves first when it shuts down."""

    KIND: ClassVar[str] = "routers"

    router: str
    region: str
    url: str
    started_unix_ns: int = 0
    version: str = ""


ROUTING = (
    "expected_time",
    "random",
    "round_robin",
    "least_in_flight",
    "p2c",
    "peak_ewma_p2c",
    "sglang_cache_aware",
    "llmd_weights",
    "lmetric",
)
"""Names for `ModelPolicy.routing` that routers know; any other means the first."""


class ModelPolicy(Record, frozen=True, kw_only=True):
    """How a model is served. Written by people or the control plane, without a lease."""

    KIND: ClassVar[str] = "models"

    model: str
    routing: str = "expected_time"
    """One of ROUTING."""
    adapter_of: str = ""
    """For a LoRA adapter: the base model whose replicas serve it."""
    fallback: str = ""
    """Another model to answer with when none is warm and the client allows it."""
    admission: AdmissionClass = AdmissionClass.STANDARD
    first_token_limit_s: float = 600.0
    between_tokens_limit_s: float = 60.0
    total_limit_s: float = 3600.0
    hedge: bool = False
    """A second replica may be asked when a first token is late."""


class Tenant(Record, frozen=True, kw_only=True):
    KIND: ClassVar[str] = "tenants"

    tenant: str
    models: tuple[str, ...] = ("*",)
    """Models the tenant may use; `*` is all."""
    priority: int = 0
    weight: float = 1.0
    """Share of the tenant where tenants queue for the same replicas."""
    resume_buffer_s: float = 0.0
    """How long a stream goes on after its client's connection broke, for the client to come back; 0: not at all."""
    resume_buffer_bytes: int = 256 * 1024
    """What of such a stream is kept at most: about 800 events, half of them while somebody listens."""
    disabled: bool = False


class ApiKey(Record, frozen=True, kw_only=True):
    """A key lies here only as its SHA-256, which is also its name; the key itself is shown once, when made."""

    KIND: ClassVar[str] = "keys"

    sha256: str
    tenant: str
    label: str = ""
    created_unix_ns: int = 0
    expires_unix_ns: int = 0
    """0: never."""
    revoked: bool = False


R = TypeVar("R", bound=Record)

_encoder = msgspec.json.Encoder()


class UnreadableRecord(ValueError):  # noqa: N818 - reads as what it is where it is caught
    """A value in the registry that this process cannot use; the caller skips it and says so once."""


def encode(record: Record) -> bytes:
    return _encoder.encode(record)


def decode(kind: type[R], value: bytes) -> R:
    """Raise UnreadableRecord for bytes that are no such record, or one of a newer version."""
    try:
        record = msgspec.json.decode(value, type=kind)
    except msgspec.DecodeError as error:
        raise UnreadableRecord(f"not a {kind.__name__}: {error}") from error
    if record.v > kind.VERSION:
        raise UnreadableRecord(f"{kind.__name__} of version {record.v}; this process knows {kind.VERSION}")
    return record


def prefix(kind: type[Record], region: str = "") -> str:
    """All records of a kind, or of a kind in one region: nodes, replicas and routers are kept by region."""
    return f"{ROOT}{kind.KIND}/" + (f"{region}/" if region else "")


def key(record: Record) -> str:
    """The one place that says where a record lies."""
    match record:
        case Region():
            return f"{prefix(Region)}{record.region}"
        case Node():
            return f"{prefix(Node, record.region)}{record.node}"
        case Replica():
            return f"{prefix(Replica, record.region)}{record.replica}"
        case Router():
            return f"{prefix(Router, record.region)}{record.router}"
        case ModelPolicy():
            return f"{prefix(ModelPolicy)}{record.model}"
        case Tenant():
            return f"{prefix(Tenant)}{record.tenant}"
        case ApiKey():
            return f"{prefix(ApiKey)}{record.sha256}"
        case _:
            raise TypeError(f"no place in the registry for {type(record).__name__}")


KINDS: dict[str, type[Record]] = {k.KIND: k for k in (Region, Node, Replica, Router, ModelPolicy, Tenant, ApiKey)}


def kind_of(key_: str) -> type[Record] | None:
    """The kind of record that lies under a key, None for a key that is not ours."""
    if not key_.startswith(ROOT):
        return None
    return KINDS.get(key_[len(ROOT) :].split("/", 1)[0])
