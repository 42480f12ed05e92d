"""What a router tells of itself at /metrics beside what it counts per request: sizes, ages, totals of its parts."""

from __future__ import annotations

from router.fleet.news import News
from router.fleet.reports import LoadWatch
from router.fleet.watch import RegistryWatch
from router.journal import Journal
from router.kept.table import KeptStreams
from router.metrics import Instruments
from router.upstream.pool import EnginePool
from router.workers.tally import Gauge, Joined

EACH, TOTAL = Joined.EACH, Joined.TOTAL


def gauges(
    *,
    instruments: Instruments,
    news: News,
    clients: int,
    pool: EnginePool,
    kept: KeptStreams,
    watch: RegistryWatch,
    loads: LoadWatch,
    journal: Journal,
    now: float,
) -> dict[str, Gauge]:
    """By metric name. `clients` is the number of their connections, `now` the loop's time in seconds."""
    age_s = now - watch.changed_at if watch.changed_at else 0.0
    return {
        "switchyard_open_requests": Gauge("Requests being served", instruments.open_calls),
        "switchyard_held_requests": Gauge("Requests waiting for a model to be ready", news.waiting),
        "switchyard_client_connections": Gauge("Client connections", clients),
        "switchyard_engine_connections_busy": Gauge("Engine connections in use", pool.busy_count),
        "switchyard_engine_connections_idle": Gauge("Engine connections kept for reuse", pool.idle_count),
        "switchyard_kept_streams": Gauge("Streams whose clients may come back", len(kept)),
        "switchyard_kept_bytes": Gauge("Bytes kept for them", kept.size),
        "switchyard_kept_returned_total": Gauge("Clients that came back to a stream", kept.returned, TOTAL),
        "switchyard_kept_expired_total": Gauge("Streams ended: nobody came back", kept.expired, TOTAL),
        "switchyard_kept_refused_total": Gauge("Clients that could not come back", kept.refused, TOTAL),
        "switchyard_kept_no_room_total": Gauge("Streams not kept: kept_limit_bytes", kept.unkept, TOTAL),
        "switchyard_registry_connected": Gauge("1 while the registry's watch is up", float(watch.connected), EACH),
        "switchyard_view_revision": Gauge("Registry revision of the view", watch.view.fleet.revision, EACH),
        "switchyard_view_age_seconds": Gauge("Since the last change of the view", age_s, EACH),
        "switchyard_nodes_reporting": Gauge("Nodes whose load stream is up", len(loads.connected), EACH),
        "switchyard_journal_records_total": Gauge("Usage records written", journal.written, TOTAL),
        "switchyard_journal_pending": Gauge("Usage records waiting for the disk", journal.pending),
        "switchyard_journal_blocked": Gauge("1 while usage records cannot be written", float(journal.blocked), EACH),
        "switchyard_journal_lost_total": Gauge("Usage records dropped: the disk was full", journal.lost, TOTAL),
    }
