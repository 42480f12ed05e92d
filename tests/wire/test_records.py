"""Records survive the trip through the registry, newer ones are refused, and each has a place of its own."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire.records import (
    KINDS,
    ROOT,
    ApiKey,
    ModelPolicy,
    Node,
    Record,
    Region,
    Replica,
    Router,
    Tenant,
    UnreadableRecord,
    decode,
    encode,
    key,
    kind_of,
    prefix,
)

NAMES = st.text("abz019-._", min_size=1, max_size=12)
# A model's name may hold slashes ("org/model"); it comes last in its key.
MODELS = st.text("abz019-._/:", min_size=1, max_size=20)
RECORDS: st.SearchStrategy[Record] = st.one_of(
    st.builds(Region, region=NAMES),
    st.builds(Node, node=NAMES, region=NAMES, address=NAMES),
    st.builds(Replica, replica=NAMES, node=st.just("n"), region=NAMES, model=MODELS, address=st.just("h:1")),
    st.builds(Router, router=NAMES, region=NAMES, url=st.just("http://h")),
    st.builds(ModelPolicy, model=MODELS),
    st.builds(Tenant, tenant=NAMES),
    st.builds(ApiKey, sha256=NAMES, tenant=NAMES),
)


def identity(record: Record) -> tuple[Any, ...]:
    """What makes a record this one: its kind, where it is kept by region, and its name."""
    name = {"keys": "sha256"}.get(record.KIND, record.KIND.rstrip("s"))
    regional = isinstance(record, Node | Replica | Router)
    return record.KIND, getattr(record, "region", "") if regional else "", getattr(record, name)


@given(RECORDS)
def test_a_record_read_back_is_the_record_that_was_written(record: Record) -> None:
    assert record == decode(type(record), encode(record))


@given(RECORDS, RECORDS)
def test_two_records_share_a_key_only_if_they_are_the_same_thing(one: Record, other: Record) -> None:
    assert (identity(one) == identity(other)) == (key(one) == key(other))


@given(RECORDS)
def test_a_key_tells_its_kind_and_lies_under_its_prefix(record: Record) -> None:
    assert type(record) is kind_of(key(record))
    assert key(record).startswith(prefix(type(record)))
    if isinstance(record, Node | Replica | Router):
        assert f"{prefix(type(record), record.region)}{identity(record)[2]}" == key(record)


def test_regions_with_names_that_begin_alike_do_not_mix() -> None:
    assert not key(Node(node="n", region="eu-west", address="")).startswith(prefix(Node, "eu"))


def test_every_kind_of_record_has_a_place_and_a_kind_of_its_own() -> None:
    assert set(Record.__subclasses__()) == set(KINDS.values())
    assert all(kind.KIND == name for name, kind in KINDS.items())


def test_keys_that_are_not_ours_have_no_kind() -> None:
    assert kind_of("/other/nodes/a") is None
    assert kind_of(f"{ROOT}unheard-of/a") is None


def test_a_record_without_a_place_is_a_mistake_of_the_program() -> None:
    with pytest.raises(TypeError, match="no place"):
        key(Record())


@pytest.mark.parametrize("kind", KINDS.values())
def test_a_record_of_a_newer_version_is_refused(kind: type[Record]) -> None:
    record = {"v": kind.VERSION + 1, "region": "r", "node": "n", "address": "a", "replica": "r", "model": "m"}
    record |= {"router": "r", "url": "u", "tenant": "t", "sha256": "s"}
    with pytest.raises(UnreadableRecord, match=f"{kind.__name__} of version {kind.VERSION + 1}"):
        decode(kind, json.dumps(record).encode())


def test_fields_that_a_newer_process_added_are_ignored() -> None:
    assert Tenant(tenant="t") == decode(Tenant, b'{"tenant": "t", "colour": "green"}')


@pytest.mark.parametrize("value", [b"", b"\xff", b"[]", b"{}", b'{"tenant": 1}', b'{"tenant": "t", "weight": "x"}'])
def test_bytes_that_are_no_such_record_are_refused_with_its_name(value: bytes) -> None:
    with pytest.raises(UnreadableRecord, match="not a Tenant"):
        decode(Tenant, value)


def test_a_record_is_text_that_a_person_can_read() -> None:
    assert {"tenant": "t", "priority": 2} == json.loads(encode(Tenant(tenant="t", priority=2)))
