"""What a router process is told at its start. Policy that changes at run time lies in the registry."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from wire.connect import RegistrySettings
from wire.settings import LogLevel, Settings
from wire.tls import TlsFiles


class RouterSettings(Settings, frozen=True, kw_only=True):
    host: Annotated[str, Meta(description="address to listen on for clients")] = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535, description="TCP port for clients; 0: any free one")] = 8000
    advertise_url: Annotated[
        str, Meta(description="URL under which others reach this router; default: host and port")
    ] = ""
    workers: Annotated[int, Meta(ge=1, le=256, description="processes that serve the port; one per core")] = 1
    region: Annotated[str, Meta(description="region whose nodes this router uses")] = "local"
    router_id: Annotated[str, Meta(description="name in the registry and in records; default: host name and port")] = ""
    data_dir: Annotated[str, Meta(description="directory of the usage journal")] = ".switchyard/router"
    tls: Annotated[TlsFiles, Meta(description="certificate shown to clients")] = TlsFiles()
    registry: RegistrySettings = RegistrySettings()
    agent_tls: Annotated[TlsFiles, Meta(description="certificates for gRPC to node agents")] = TlsFiles()
    engine_tls: Annotated[TlsFiles, Meta(description="certificates for HTTPS to engines")] = TlsFiles()
    engine_api_key_file: Annotated[str, Meta(description="file with the key that engines ask for (vLLM --api-key)")] = (
        ""
    )

    body_limit_bytes: Annotated[int, Meta(ge=1024, description="largest request body")] = 16 * 1024 * 1024
    answer_limit_bytes: Annotated[int, Meta(ge=1024, description="largest non-streamed answer")] = 256 * 1024 * 1024
    event_limit_bytes: Annotated[int, Meta(ge=1024, description="largest single event of a stream")] = 8 * 1024 * 1024
    connections_limit: Annotated[int, Meta(ge=1, description="client connections at once, in each worker")] = 20_000
    keep_alive_limit_s: Annotated[float, Meta(gt=0, description="idle client connections are closed after")] = 75.0
    client_loss_limit_s: Annotated[
        float, Meta(ge=2, description="a client that takes nothing, or whose host is silent, for so long is gone")
    ] = 60.0
    connection_requests_limit: Annotated[int, Meta(ge=1, description="requests served on one client connection")] = 1000
    headers_limit: Annotated[int, Meta(ge=1, description="header lines of a request")] = 100
    request_limit_s: Annotated[float, Meta(gt=0, description="time for a client to send a whole request")] = 60.0

    connect_limit_s: Annotated[float, Meta(gt=0, description="time for a connection to an engine")] = 3.0
    attempts_limit: Annotated[
        int,
        Meta(
            ge=1, description="replicas asked for one request before the first byte; as many more may say they are busy"
        ),
    ] = 4
    resume_limit_s: Annotated[float, Meta(ge=0, description="a broken stream is continued if that works within")] = 60.0
    kept_limit_bytes: Annotated[
        int, Meta(ge=0, description="of all streams kept for clients that may come back; beyond it none more are")
    ] = 256 * 1024 * 1024
    hold_limit_s: Annotated[float, Meta(ge=0, description="a request waits this long for a model that is loading")] = (
        300.0
    )
    admission_begin_s: Annotated[
        float,
        Meta(ge=0, description="requests wait here while each engine of their model has so much work ahead; 0: never"),
    ] = 2.0
    admission_wait_s: Annotated[
        float, Meta(gt=0, description="longest wait here, where neither client nor the model's admission class says")
    ] = 60.0
    admission_queue: Annotated[
        int, Meta(ge=1, description="requests that wait per model, in each worker; as many may wait for its load")
    ] = 1000
    admission_tenant_share: Annotated[
        float, Meta(gt=0, le=1, description="part of a full queue above which a tenant makes room for others")
    ] = 0.5
    admission_ageing_s: Annotated[float, Meta(gt=0, description="so long a wait is worth one step of priority")] = 10.0
    retry_ratio: Annotated[float, Meta(ge=0, le=1, description="retries allowed per request, on average")] = 0.2
    hedge_ratio: Annotated[
        float, Meta(ge=0, le=1, description="late first tokens hedged per request, on average, where policy allows any")
    ] = 0.02
    retry_floor_per_s: Annotated[float, Meta(ge=0, description="retries always allowed")] = 10.0

    drain_notice_s: Annotated[
        float, Meta(ge=0, description="still serving after leaving the registry, so that news travels")
    ] = 2.0
    drain_limit_s: Annotated[float, Meta(ge=0, description="streams may run on after the listener is closed")] = 60.0
    lease_ttl_s: Annotated[int, Meta(ge=2, description="life of the router's record after its last keep-alive")] = 10

    otlp_endpoint: Annotated[
        str, Meta(description="OTLP/HTTP receiver such as http://127.0.0.1:4318; empty: no spans")
    ] = ""
    trace_ratio: Annotated[
        float,
        Meta(ge=0, le=1, description="share of ordinary requests traced; errors, retries and slow ones always are"),
    ] = 0.1
    trace_limit_per_s: Annotated[
        float, Meta(ge=1, description="of those at most so many a second, for each worker")
    ] = 20.0
    trace_slow_s: Annotated[float, Meta(ge=0, description="requests slower than this are always traced")] = 10.0
    log_level: Annotated[LogLevel, Meta(description="debug, info, warning or error")] = LogLevel.INFO
    log_requests: Annotated[bool, Meta(description="one log line per request (never its content)")] = False
