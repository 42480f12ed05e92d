"""What a message of a watch stream means."""

from __future__ import annotations

import pytest

from wire.etcd_calls import HistoryLost
from wire.etcd_v3 import etcd_pb2 as pb
from wire.etcd_watch import Cursor, WatchRefused
from wire.registry import Change, Changes, Entry

CLUSTER = 5


def put(revision: int, key: bytes = b"a") -> pb.Event:
    return pb.Event(type=pb.Event.PUT, kv=pb.KeyValue(key=key, value=b"v", mod_revision=revision))


def delete(revision: int, key: bytes = b"a") -> pb.Event:
    return pb.Event(type=pb.Event.DELETE, kv=pb.KeyValue(key=key, mod_revision=revision))


def message(*events: pb.Event, header: int = 100, cluster: int = CLUSTER, fragment: bool = False) -> pb.WatchResponse:
    return pb.WatchResponse(header=pb.Header(revision=header, cluster_id=cluster), events=events, fragment=fragment)


def created(header: int, *, cluster: int = CLUSTER) -> pb.WatchResponse:
    return pb.WatchResponse(header=pb.Header(revision=header, cluster_id=cluster), created=True)


@pytest.fixture
def cursor() -> Cursor:
    """After a snapshot of revision 10."""
    return Cursor(revision=10, cluster=CLUSTER)


def test_events_become_changes_of_the_last_events_revision(cursor: Cursor) -> None:
    changes = cursor.feed(message(put(11), delete(12)))
    assert Changes(12, (Change("a", Entry("a", b"v", 11)), Change("a", None))) == changes


def test_a_watch_resumes_after_the_last_event_and_not_after_the_header(cursor: Cursor) -> None:
    cursor.feed(message(put(11), header=20_052))
    assert 12 == cursor.next_revision


def test_a_progress_answer_moves_nothing(cursor: Cursor) -> None:
    assert cursor.feed(message(header=500)) is None
    assert 11 == cursor.next_revision


def test_events_that_were_told_before_the_break_are_left_out(cursor: Cursor) -> None:
    cursor.feed(message(put(11), put(12)))
    cursor.opened()
    assert Changes(13, (Change("b", Entry("b", b"v", 13)),)) == cursor.feed(message(put(12), put(13, b"b")))


def test_parts_of_a_message_are_told_together_and_forgotten_when_the_stream_breaks(cursor: Cursor) -> None:
    assert cursor.feed(message(put(11), fragment=True)) is None
    assert 11 == cursor.next_revision
    cursor.opened()
    assert cursor.feed(message(put(11), fragment=True)) is None
    changes = cursor.feed(message(put(11, b"b")))
    assert changes is not None
    assert (["a", "b"], 12) == ([c.key for c in changes.changes], cursor.next_revision)


def test_compacted_history_means_starting_over(cursor: Cursor) -> None:
    with pytest.raises(HistoryLost):
        cursor.feed(pb.WatchResponse(canceled=True, compact_revision=50))


def test_any_other_cancellation_is_a_refusal_with_its_reason(cursor: Cursor) -> None:
    with pytest.raises(WatchRefused, match="permission denied"):
        cursor.feed(pb.WatchResponse(created=True, canceled=True, cancel_reason="permission denied"))


def test_another_cluster_or_a_store_that_went_back_means_starting_over(cursor: Cursor) -> None:
    assert cursor.feed(created(10)) is None
    with pytest.raises(HistoryLost, match="another cluster"):
        cursor.feed(created(10, cluster=6))
    with pytest.raises(HistoryLost, match="at revision 9"):
        cursor.feed(created(9))


def test_a_key_that_is_not_text_breaks_nothing(cursor: Cursor) -> None:
    changes = cursor.feed(message(put(11, b"\xff\xfe")))
    assert changes is not None
    assert b"\xff\xfe" == changes.changes[0].key.encode(errors="surrogateescape")
