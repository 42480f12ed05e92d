import pytest

from control import access
from control.core import apikeys
from control.errors import Failed
from wire.memory import MemoryRegistry
from wire.records import ApiKey, Tenant

KEY = apikeys.make(bytes(32))
RECORD = ApiKey(sha256=apikeys.digest(KEY), tenant="acme")


async def test_a_tenant_is_made_once_and_left_alone_without_changes() -> None:
    registry = MemoryRegistry()
    assert "tenant acme was made" == await access.ensure_tenant(registry, Tenant(tenant="acme", priority=3), changes={})
    assert "" == await access.ensure_tenant(registry, Tenant(tenant="acme"), changes={})
    assert [Tenant(tenant="acme", priority=3)] == await access.list_tenants(registry)


async def test_only_what_was_named_is_changed_in_a_tenant() -> None:
    registry = MemoryRegistry()
    await access.ensure_tenant(registry, Tenant(tenant="acme", models=("a",), priority=3), changes={})
    told = await access.ensure_tenant(registry, Tenant(tenant="acme"), changes={"priority": 9})
    assert "tenant acme was changed, for all its keys: priority: 3 -> 9" == told
    told = await access.ensure_tenant(registry, Tenant(tenant="acme"), changes={"models": ("b", "c")})
    assert "tenant acme was changed, for all its keys: models: a -> b, c" == told
    await access.ensure_tenant(registry, Tenant(tenant="acme"), changes={"models": ("a",)})
    assert [Tenant(tenant="acme", models=("a",), priority=9)] == await access.list_tenants(registry)


async def test_a_key_is_listed_without_the_key_and_revoked_once() -> None:
    registry = MemoryRegistry()
    await access.add_key(registry, RECORD)
    assert [RECORD] == await access.list_keys(registry)
    record, was_active = await access.revoke_key(registry, apikeys.short(RECORD.sha256))
    assert (True, True) == (record.revoked, was_active)
    record, was_active = await access.revoke_key(registry, KEY)
    assert (True, False) == (record.revoked, was_active)


async def test_an_id_that_names_several_keys_revokes_none() -> None:
    registry = MemoryRegistry()
    for end in "ab":
        await access.add_key(registry, ApiKey(sha256="f" * 63 + end, tenant="acme"))
    with pytest.raises(Failed, match="names 2 keys"):
        await access.revoke_key(registry, "ffffff")
    assert [False, False] == [record.revoked for record in await access.list_keys(registry)]


async def test_a_key_that_is_not_there_is_not_repeated_in_the_error() -> None:
    with pytest.raises(Failed, match="that key is not in this registry") as failure:
        await access.revoke_key(MemoryRegistry(), KEY)
    assert KEY not in str(failure.value)


async def test_a_record_of_a_newer_version_hides_no_other() -> None:
    registry = MemoryRegistry()
    await access.add_key(registry, RECORD)
    await registry.put("/switchyard/v1/keys/newer", b'{"sha256": "x", "tenant": "t", "v": 99}')
    assert [RECORD] == await access.list_keys(registry)


@pytest.mark.parametrize(
    ("record", "state"),
    [
        (ApiKey(sha256="a", tenant="acme"), "active"),
        (ApiKey(sha256="a", tenant="acme", revoked=True), "revoked"),
        (ApiKey(sha256="a", tenant="acme", expires_unix_ns=100), "expired"),
        (ApiKey(sha256="a", tenant="acme", expires_unix_ns=101), "active"),
        (ApiKey(sha256="a", tenant="nobody"), "no tenant"),
    ],
)
def test_the_state_of_a_key_is_one_word(record: ApiKey, state: str) -> None:
    assert state == access.state_of(record, now_unix_ns=100, known_tenants=lambda tenant: tenant == "acme")
