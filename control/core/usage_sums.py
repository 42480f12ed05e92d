"""Sum the usage journal by tenant and model. A sum for people, not a bill: the ledger prices, this only adds."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from wire.usage import UsageRecord


class Sum(msgspec.Struct, kw_only=True):
    tenant: str
    model: str
    requests: int = 0
    failed: int = 0
    """Ended with a status of 400 or more."""
    retried: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0


def by_tenant_and_model(records: Iterable[UsageRecord], *, since_unix_ns: int = 0) -> list[Sum]:
    """A record that is there twice counts once: its event id says so."""
    sums: dict[tuple[str, str], Sum] = {}
    seen: set[str] = set()
    for record in records:
        if record.event_id in seen or record.arrived_unix_ns < since_unix_ns:
            continue
        seen.add(record.event_id)
        add(sums.setdefault((record.tenant, record.model), Sum(tenant=record.tenant, model=record.model)), record)
    return [sums[key] for key in sorted(sums)]


def add(total: Sum, record: UsageRecord) -> None:
    total.requests += 1
    total.failed += record.status >= 400
    total.retried += len(record.attempts) > 1
    total.prompt_tokens += record.prompt_tokens
    total.cached_tokens += max(0, record.cached_tokens)
    total.output_tokens += record.output_tokens
