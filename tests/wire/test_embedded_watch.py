"""What the embedded registry says on a watch stream, and in which order."""

from __future__ import annotations

import asyncio

from wire.embedded_watch import PROGRESS_ID, WatchStream
from wire.etcd_v3 import etcd_pb2 as pb
from wire.store import ALL, Delete, Put, Store


def stream(store: Store) -> WatchStream:
    return WatchStream(store, pb.Header(cluster_id=1, member_id=1, raft_term=1))


def create(key: bytes = b"\x00", end: bytes = ALL, *, revision: int = 0, prev_kv: bool = False) -> pb.WatchRequest:
    asked = pb.WatchCreateRequest(key=key, range_end=end, start_revision=revision, prev_kv=prev_kv)
    return pb.WatchRequest(create_request=asked)


PROGRESS = pb.WatchRequest(progress_request=pb.WatchProgressRequest())


async def test_an_answer_about_progress_comes_after_the_events_before_it() -> None:
    store = Store()
    watch = stream(store)
    watch.take(create())
    store.apply([Put(b"a")])
    watch.take(PROGRESS)
    first, second, third = watch.say(), watch.say(), watch.say()
    assert [(0, True, 0), (0, False, 1)] == [(r.watch_id, r.created, len(r.events)) for r in first]
    assert [(PROGRESS_ID, store.revision)] == [(r.watch_id, r.header.revision) for r in second]
    assert [] == third


async def test_a_watch_from_lost_history_is_created_and_cancelled_with_the_revision_to_go_on_from() -> None:
    store = Store(history=1)
    for _ in range(5):
        store.apply([Put(b"a")])
    watch = stream(store)
    watch.take(create(revision=2))
    said = watch.say()
    assert [(True, False), (False, True)] == [(r.created, r.canceled) for r in said]
    assert store.compacted == said[-1].compact_revision


async def test_a_watch_that_falls_behind_is_cancelled_and_others_go_on() -> None:
    store = Store(history=2)
    watch = stream(store)
    watch.take(create())
    watch.take(create(b"z", b""))
    assert 2 == len(watch.say())
    for n in range(4):
        store.apply([Put(b"a%d" % n)])
    (gone,) = watch.say()
    assert (0, True, store.compacted) == (gone.watch_id, gone.canceled, gone.compact_revision)
    store.apply([Put(b"z")])
    (told,) = watch.say()
    assert (1, b"z") == (told.watch_id, told.events[0].kv.key)


async def test_a_cancelled_watch_is_confirmed_and_silent() -> None:
    store = Store()
    watch = stream(store)
    watch.take(create())
    watch.take(pb.WatchRequest(cancel_request=pb.WatchCancelRequest(watch_id=0)))
    watch.take(pb.WatchRequest(cancel_request=pb.WatchCancelRequest(watch_id=9)))
    store.apply([Put(b"a")])
    assert [(True, False), (False, True)] == [(r.created, r.canceled) for r in watch.say()]
    assert [] == watch.say()


async def test_the_former_value_is_told_to_those_who_ask() -> None:
    store = Store()
    store.apply([Put(b"a", b"1")])
    watch = stream(store)
    watch.take(create(prev_kv=True))
    watch.take(create())
    watch.say()
    store.apply([Delete(b"a")])
    asked, did_not_ask = watch.say()
    assert (pb.Event.DELETE, b"1") == (asked.events[0].type, asked.events[0].prev_kv.value)
    assert not did_not_ask.events[0].HasField("prev_kv")


async def test_nothing_wakes_for_a_stream_that_ended() -> None:
    async def no_requests() -> object:
        return
        yield

    store = Store(history=1)
    watch = stream(store)
    watch.take(create())
    async with asyncio.timeout(10):
        await watch.serve(no_requests(), _NoContext())  # type: ignore[arg-type]
    assert {} == store._watchers


class _NoContext:
    async def write(self, _: pb.WatchResponse) -> None:
        await asyncio.sleep(3600)
