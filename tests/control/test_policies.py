import pytest

from control import policies
from control.errors import Failed
from wire.memory import MemoryRegistry
from wire.records import ModelPolicy, key


async def test_a_policy_is_made_by_its_first_change_and_keeps_what_is_not_named() -> None:
    registry = MemoryRegistry()
    assert await policies.read(registry, "m") is None
    assert (None, ModelPolicy(model="m", hedge=True)) == await policies.change(registry, "m", {"hedge": True})
    before, after = await policies.change(registry, "m", {"fallback": "small"})
    assert ModelPolicy(model="m", hedge=True) == before
    assert ModelPolicy(model="m", hedge=True, fallback="small") == after == await policies.read(registry, "m")


async def test_a_change_that_changes_nothing_writes_nothing() -> None:
    registry = MemoryRegistry()
    await policies.change(registry, "m", {"hedge": True})
    entry = await registry.get(key(ModelPolicy(model="m")))
    before, after = await policies.change(registry, "m", {"hedge": True})
    assert (before, entry) == (after, await registry.get(key(ModelPolicy(model="m"))))


async def test_a_policy_of_a_newer_version_is_not_overwritten_and_can_be_removed() -> None:
    registry = MemoryRegistry()
    await registry.put(key(ModelPolicy(model="m")), b'{"v":9,"model":"m"}')
    with pytest.raises(Failed, match="`--reset` removes it"):
        await policies.change(registry, "m", {"hedge": True})
    assert (True, False) == (await policies.remove(registry, "m"), await policies.remove(registry, "m"))


async def test_two_who_change_different_things_at_once_both_have_their_way() -> None:
    class Rival(MemoryRegistry):
        """Another writer is there first, once."""

        rivals = 1

        async def put_if(self, key: str, value: bytes, *, revision: int, lease: int = 0) -> int | None:
            if self.rivals:
                self.rivals -= 1
                await policies.change(self, "m", {"fallback": "small"})
            return await super().put_if(key, value, revision=revision, lease=lease)

    registry = Rival()
    _, after = await policies.change(registry, "m", {"hedge": True})
    assert ModelPolicy(model="m", hedge=True, fallback="small") == after


async def test_a_policy_that_others_change_without_end_is_given_up() -> None:
    class Busy(MemoryRegistry):
        async def put_if(self, key: str, value: bytes, *, revision: int, lease: int = 0) -> int | None:
            return None

    with pytest.raises(Failed, match="being changed by others"):
        await policies.change(Busy(), "m", {"hedge": True})
