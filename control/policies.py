"""Model policies in the registry. Routers watch them: a change holds for the next request.

Changes are compare-and-put, so that two people at work never undo each other's change unseen.
"""

from __future__ import annotations

from typing import Any

import msgspec

from control.errors import Failed
from wire.records import ModelPolicy, UnreadableRecord, decode, encode, key
from wire.registry import Entry, Registry

ATTEMPTS = 5


async def read(registry: Registry, model: str) -> ModelPolicy | None:
    """None where nobody has written one: then the defaults hold."""
    return _decoded(model, await registry.get(key(ModelPolicy(model=model))))


async def change(registry: Registry, model: str, changes: dict[str, Any]) -> tuple[ModelPolicy | None, ModelPolicy]:
    """Before and after. Raise Failed when others keep changing it, or a newer version wrote it."""
    place = key(ModelPolicy(model=model))
    for _ in range(ATTEMPTS):
        entry = await registry.get(place)
        before = _decoded(model, entry)
        after = msgspec.structs.replace(before or ModelPolicy(model=model), **changes)
        if after == before:
            return before, after
        if await registry.put_if(place, encode(after), revision=entry.revision if entry else 0) is not None:
            return before, after
    raise Failed(f"the policy of {model} is being changed by others just now; try again.")


async def remove(registry: Registry, model: str) -> bool:
    """True if there was one."""
    return await registry.delete(key(ModelPolicy(model=model)))


def _decoded(model: str, entry: Entry | None) -> ModelPolicy | None:
    try:
        return decode(ModelPolicy, entry.value) if entry else None
    except UnreadableRecord as error:
        raise Failed(f"the policy of {model} cannot be read: {error}; `--reset` removes it.") from error
