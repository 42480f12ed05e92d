"""Tenants and API keys in the registry: who may use what. The router only reads what is written here.

Changes are compare-and-put, so that two people at work never undo each other's change unseen.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import msgspec

from control.core import apikeys
from control.errors import Failed
from wire.records import ApiKey, Record, Tenant, UnreadableRecord, decode, encode, key, prefix
from wire.registry import Registry

R = TypeVar("R", bound=Record)

ATTEMPTS = 5


async def ensure_tenant(registry: Registry, tenant: Tenant, *, changes: dict[str, object]) -> str:
    """Make the tenant, or change what `changes` names in the one that is there. Return what happened, for people."""
    for _ in range(ATTEMPTS):
        entry = await registry.get(key(tenant))
        before = decode(Tenant, entry.value) if entry else None
        after = msgspec.structs.replace(before, **changes) if before else tenant
        if after == before:
            return ""
        if await registry.put_if(key(tenant), encode(after), revision=entry.revision if entry else 0) is not None:
            return f"tenant {tenant.tenant} was made" if before is None else _changed(before, after)
    raise Failed(f"tenant {tenant.tenant} is being changed by others just now; try again.")


async def add_key(registry: Registry, record: ApiKey) -> None:
    await registry.put(key(record), encode(record))


async def revoke_key(registry: Registry, name: str) -> tuple[ApiKey, bool]:
    """The revoked key and whether it was still active. `name` is a key, an id or a hash. Raise Failed."""
    start = apikeys.named_by(name)
    for _ in range(ATTEMPTS):
        found = [(e, r) for e, r in await _records(registry, ApiKey) if r.sha256.startswith(start)]
        if len(found) != 1:
            raise Failed(_not_one(name if not apikeys.is_key(name) else "that key", len(found)))
        (revision, record) = found[0]
        if record.revoked:
            return record, False
        revoked = msgspec.structs.replace(record, revoked=True)
        if await registry.put_if(key(record), encode(revoked), revision=revision) is not None:
            return revoked, True
    raise Failed("the key is being changed by others just now; try again.")


async def list_keys(registry: Registry) -> list[ApiKey]:
    return sorted((r for _, r in await _records(registry, ApiKey)), key=lambda r: (r.tenant, r.created_unix_ns))


async def list_tenants(registry: Registry) -> list[Tenant]:
    return sorted((r for _, r in await _records(registry, Tenant)), key=lambda r: r.tenant)


def state_of(record: ApiKey, *, now_unix_ns: int, known_tenants: Callable[[str], bool]) -> str:
    if record.revoked:
        return "revoked"
    if record.expires_unix_ns and record.expires_unix_ns <= now_unix_ns:
        return "expired"
    return "active" if known_tenants(record.tenant) else "no tenant"


async def _records(registry: Registry, kind: type[R]) -> list[tuple[int, R]]:
    """Readable records with their revisions; a record of a newer version is left alone."""
    found = []
    for entry in (await registry.list(prefix(kind))).entries:
        try:
            found.append((entry.revision, decode(kind, entry.value)))
        except UnreadableRecord:
            continue
    return found


def _changed(before: Tenant, after: Tenant) -> str:
    """With what it was and is: a key that is made for a tenant may change what all its other keys may do."""
    told = [
        f"{field}: {_shown(getattr(before, field))} -> {_shown(getattr(after, field))}"
        for field in Tenant.__struct_fields__
        if getattr(before, field) != getattr(after, field)
    ]
    return f"tenant {after.tenant} was changed, for all its keys: {'; '.join(told)}"


def _shown(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _not_one(name: str, found: int) -> str:
    if found:
        return f"{name} names {found} keys; give more of the id that `switchyard keys list` shows."
    return f"{name} is not in this registry; `switchyard keys list` shows the keys it has."
