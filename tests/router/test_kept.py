"""Clients whose connection breaks and who come back to their stream, through the whole router on real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import re
import socket
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest

from tests.router.harness import (
    ANSWER,
    DONE,
    KEY,
    MODEL,
    Engine,
    Exchange,
    Router,
    Script,
    chat_body,
    chat_event,
    plays,
    router_with,
    until,
)
from tests.router.test_clients import request_bytes
from wire.records import ApiKey, Tenant

SHOWN = [*ANSWER[:3], DONE]
"""The events a client gets; the usage is ours."""
WINDOW_S = 20.0
PARTS = 5_000
"""Of 1 kB each."""
OTHER_KEY = "sk-sy-other"
STRANGERS_KEY = "sk-sy-stranger"


OPENED: list[asyncio.StreamWriter] = []
"""Connections of clients, closed with the router."""


class Gated:
    """An engine that sends so many events, and the rest when told."""

    def __init__(self, *, first: int, events: list[bytes] = ANSWER) -> None:
        self.go = asyncio.Event()
        self._first = first
        self._events = events

    async def __call__(self, exchange: Exchange) -> None:
        await exchange.stream(self._events[: self._first], end=False)
        await self.go.wait()
        with contextlib.suppress(ConnectionError):
            for data in self._events[self._first :]:
                await exchange.send(data)
            exchange.writer.write(b"0\r\n\r\n")


class Client:
    """One connection of a client that speaks HTTP/1.0: its body is what comes until the connection closes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.head = b""
        self.body = b""

    async def answered(self) -> Client:
        self.head = await self._reader.readuntil(b"\r\n\r\n")
        return self

    @property
    def status(self) -> int:
        return int(self.head.split(b" ", 2)[1])

    @property
    def handle(self) -> str:
        return re.search(rb"(?im)^x-switchyard-resume: (.*?)\r$", self.head)[1].decode()  # type: ignore[index]

    @property
    def whole_events(self) -> bytes:
        """What an SSE reader would have dispatched."""
        return self.body[: self.body.rfind(b"\n\n") + 2] if b"\n\n" in self.body else b""

    @property
    def last_id(self) -> str:
        return re.findall(rb"(?m)^id: (.*)$", self.whole_events)[-1].decode()

    async def read(self, events: int) -> Client:
        while self.body.count(b"\n\n") < events:
            self.body += await asyncio.wait_for(self._reader.readuntil(b"\n\n"), 10)
        return self

    async def rest(self) -> bytes:
        """To the end of the connection."""
        self.body += await asyncio.wait_for(self._reader.read(-1), 10)
        self._writer.close()
        return self.body

    def leave(self) -> None:
        self._writer.transport.abort()


async def connect(router: Router, last_event_id: str = "", *, limit_s: float = 10.0, **asked: Any) -> Client:
    async with asyncio.timeout(limit_s):
        return await (await ask(router, last_event_id, **asked)).answered()


async def ask(
    router: Router,
    last_event_id: str = "",
    *,
    key: str = KEY,
    path: str = "/v1/chat/completions",
    body: dict[str, object] | None = None,
) -> Client:
    reader, writer = await asyncio.open_connection("127.0.0.1", router.port)
    sent = json.dumps(body or chat_body()).encode()
    head = f"POST {path} HTTP/1.0\r\nauthorization: Bearer {key}\r\ncontent-length: {len(sent)}\r\n"
    if last_event_id:
        head += f"last-event-id: {last_event_id}\r\n"
    writer.write(f"{head}x-request-id: r-1\r\n\r\n".encode() + sent)
    OPENED.append(writer)
    return Client(reader, writer)


@contextlib.asynccontextmanager
async def keeping(
    *scripts: Script, window_s: float = WINDOW_S, limit_bytes: int = 1 << 18, **settings: object
) -> AsyncIterator[tuple[Router, list[Engine]]]:
    """A router whose tenant has the switch, with a second key, and another tenant that has it too."""
    async with router_with(*scripts, **settings) as (router, engines):
        switch = {"resume_buffer_s": window_s, "resume_buffer_bytes": limit_bytes}
        await router.put(Tenant(tenant="acme", **switch), Tenant(tenant="other", **switch))  # type: ignore[arg-type]
        for key, tenant in ((OTHER_KEY, "acme"), (STRANGERS_KEY, "other")):
            await router.put(ApiKey(sha256=hashlib.sha256(key.encode()).hexdigest(), tenant=tenant))
        await until(lambda: len(router.app.watch.view.keys) == 3)
        try:
            yield router, engines
        finally:
            while OPENED:
                OPENED.pop().close()


def data(body: bytes) -> bytes:
    """The events without their ids and comments."""
    return re.sub(rb"(?m)^(id: .*|:.*)\n", b"", body)


async def unheard(router: Router) -> None:
    """Return when the router knows that the client is gone."""
    await until(lambda: any(kept.unheard for kept in router.app.kept))


async def all_over(router: Router) -> None:
    """Return when every walk has ended and every window has closed."""
    await until(lambda: sum(router.counts().values()) == 0)
    router.app.kept.sweep(asyncio.get_running_loop().time() + 2 * WINDOW_S)
    assert (0, 0) == (len(router.app.kept), router.app.kept.size)


async def test_a_stream_that_can_be_resumed_has_an_id_in_each_event_and_the_same_data() -> None:
    async with keeping(plays) as (router, _):
        client = await connect(router)
        body = await client.rest()
        numbers = [f"{client.handle}/{n}".encode() for n in (1, 2, 3, 4)]
        assert (b"".join(SHOWN), numbers) == (data(body), re.findall(rb"(?m)^id: (.*)$", body))
        await all_over(router)


async def test_a_tenant_without_the_switch_gets_no_ids_and_no_handle() -> None:
    async with keeping(plays, window_s=0.0) as (router, _):
        client = await connect(router)
        assert (b"".join(SHOWN), False) == (await client.rest(), b"x-switchyard-resume" in client.head)


async def test_whoever_breaks_off_after_any_event_gets_the_rest_and_one_record_tells_it() -> None:
    events = [*(chat_event(f" {n}") for n in range(4)), *ANSWER[2:]]
    shown = b"".join([*events[:5], DONE])
    cases = [(sent, read) for sent in range(1, 5) for read in range(1, sent + 1)]
    async with keeping(plays) as (router, engines):
        for sent, read in cases:
            engines[0].script = engine = Gated(first=sent, events=events)
            first = await (await connect(router)).read(read)
            first.leave()
            await unheard(router)
            engine.go.set()
            back = await connect(router, f"{first.handle}/{read}")
            assert shown == data(first.body + await back.rest())
        await all_over(router)
        told = [(record.code, record.status, record.output_tokens, len(record.attempts)) for record in router.records()]
        assert [("ok", 200, 3, 1)] * len(cases) == told


async def test_a_cut_anywhere_in_the_bytes_loses_nothing_and_repeats_nothing() -> None:
    async with keeping(plays) as (router, _):
        whole = await (await connect(router)).rest()
        for at in range(0, len(whole), 23):
            first = await connect(router)
            first.body = await first._reader.readexactly(at)
            first.leave()
            seen = first.whole_events
            back = await connect(router, first.last_id if seen else f"{first.handle}/0")
            assert b"".join(SHOWN) == data(seen + await back.rest())
        await all_over(router)
        assert {"ok"} == {record.code for record in router.records()}


async def test_a_client_may_come_back_twice() -> None:
    engine = Gated(first=1)
    async with keeping(engine) as (router, _):
        first = await (await connect(router)).read(1)
        first.leave()
        await unheard(router)
        second = await connect(router, first.last_id)
        second.leave()
        await unheard(router)
        engine.go.set()
        third = await connect(router, first.last_id)
        assert b"".join(SHOWN) == data(first.body + await third.rest())
        assert 2 == router.app.kept.returned
        await all_over(router)


async def test_the_end_of_an_answer_can_be_fetched_within_the_window_by_whoever_lost_it() -> None:
    async with keeping(plays) as (router, _):
        first = await connect(router)
        await first.rest()
        await until(lambda: len(router.records()) == 1)
        back = [await connect(router, f"{first.handle}/{n}") for n in (2, 4)]
        assert [b"".join(SHOWN[2:]), b""] == [data(await one.rest()) for one in back]
        await all_over(router)
        assert 1 == len(router.records())


async def test_the_end_of_a_walk_waits_for_a_client_that_is_away_and_its_record_too() -> None:
    engine = Gated(first=1)
    async with keeping(engine) as (router, engines):
        first = await (await connect(router)).read(1)
        first.leave()
        await unheard(router)
        engine.go.set()
        await until(lambda: engines[0].exchanges != [] and router.app.pool.busy_count == 0)
        assert ([], 1) == (router.records(), router.app.instruments.open_calls)
        assert b"".join(SHOWN[1:]) == data(await (await connect(router, first.last_id)).rest())
        assert ["ok"] == [record.code for record in router.records()]
        await all_over(router)


async def test_nobody_came_back_in_time_so_the_engine_is_cancelled_and_only_what_was_delivered_is_charged() -> None:
    go = asyncio.Event()

    async def goes_on(exchange: Exchange) -> None:
        await exchange.stream(ANSWER[:2], end=False)
        await go.wait()
        for n in range(18):
            await exchange.send(chat_event(f"t{n}"))
        await exchange.client_left()

    async with keeping(goes_on) as (router, engines):
        first = await (await connect(router)).read(2)
        first.leave()
        await unheard(router)
        go.set()
        await until(lambda: any(kept.backlog.count == 20 for kept in router.app.kept))
        router.app.kept.sweep(asyncio.get_running_loop().time() + WINDOW_S)
        await until(lambda: engines[0].open == 0)
        await until(lambda: len(router.records()) == 1)
        (record,) = router.records()
        assert ("client_gone", 2, 20) == (record.code, record.output_tokens, record.attempts[0].output_tokens)
        assert 1 == router.app.kept.expired
        late = await connect(router, first.last_id)
        assert (404, True) == (late.status, b"stream_unknown" in await late.rest())
        await all_over(router)


async def test_a_client_that_leaves_before_the_first_byte_has_nothing_to_come_back_to() -> None:
    async def never(exchange: Exchange) -> None:
        await exchange.client_left()

    async with keeping(never) as (router, engines):
        client = await ask(router)
        await until(lambda: len(engines[0].exchanges) == 1)
        client.leave()
        await until(lambda: engines[0].open == 0)
        await all_over(router)
        assert ["client_gone"] == [record.code for record in router.records()]


@pytest.mark.parametrize(
    ("asked", "status", "code"),
    [
        ({"key": STRANGERS_KEY}, 404, "stream_unknown"),
        ({"key": OTHER_KEY}, 404, "stream_unknown"),
        ({"path": "/v1/completions"}, 404, "stream_unknown"),
        ({"key": "sk-sy-nobody"}, 401, "invalid_api_key"),
        ({"last_event_id": "{process}.0123456789abcdef/1"}, 404, "stream_unknown"),
        ({"last_event_id": "00000000.0123456789abcdef/1"}, 404, "stream_unknown"),
        ({"last_event_id": "{handle}/9"}, 400, "invalid_request"),
        ({"last_event_id": "nonsense"}, 400, "invalid_request"),
    ],
    ids=["tenant", "key", "path", "no key", "handle", "router", "ahead", "nonsense"],
)
async def test_who_does_not_fit_is_told_so_and_gets_neither_the_stream_nor_a_new_answer(
    asked: dict[str, str], status: int, code: str
) -> None:
    engine = Gated(first=2)
    async with keeping(engine) as (router, engines):
        first = await (await connect(router)).read(2)
        wanted = asked.get("last_event_id", "{handle}/1")
        wanted = wanted.format(handle=first.handle, process=router.app.kept.process)
        other = await connect(router, wanted, **{k: v for k, v in asked.items() if k != "last_event_id"})
        error = json.loads(await other.rest())["error"]
        assert (status, code, 1) == (other.status, error["code"], len(engines[0].exchanges))
        engine.go.set()
        assert b"".join(SHOWN) == data(await first.rest())
        await all_over(router)
        assert 1 == len(router.records())


async def test_without_the_switch_a_last_event_id_is_refused_and_starts_no_generation() -> None:
    async with keeping(plays, window_s=0.0) as (router, engines):
        client = await connect(router, f"{router.app.kept.process}.0123456789abcdef/1")
        assert (404, []) == (client.status, engines[0].exchanges)
        assert "send the request again without Last-Event-ID" in json.loads(await client.rest())["error"]["message"]


async def test_what_was_dropped_for_want_of_room_is_said_to_be_gone() -> None:
    many = [chat_event(f"t{n}") for n in range(100)]
    engine = Gated(first=100, events=[*many, *ANSWER[2:]])
    async with keeping(engine, limit_bytes=4000) as (router, _):
        first = await (await connect(router)).read(100)
        back = await connect(router, f"{first.handle}/3")
        error = json.loads(await back.rest())["error"]
        assert (410, "stream_gone") == (back.status, error["code"])
        assert 4000 >= next(iter(router.app.kept)).backlog.size
        engine.go.set()
        assert data(await first.rest()).endswith(DONE)
        await all_over(router)


async def test_while_nobody_listens_the_engine_waits_at_the_bound_and_goes_on_for_who_comes_back() -> None:
    part = chat_event("x" * 1000)
    go = asyncio.Event()
    sent = 0

    async def floods(exchange: Exchange) -> None:
        nonlocal sent
        await exchange.stream([part], end=False)
        await go.wait()
        for _ in range(PARTS - 1):
            await exchange.send(part)
            sent += len(part)
        for last in ANSWER[2:]:
            await exchange.send(last)
        exchange.writer.write(b"0\r\n\r\n")

    async with keeping(floods, limit_bytes=100_000) as (router, _):
        first = await (await connect(router)).read(1)
        first.leave()
        await unheard(router)
        go.set()
        kept = next(iter(router.app.kept))
        await until(lambda: kept.backlog.full)
        held = -1
        while held != sent:  # the engine has come to a stand, or the kernel has taken all
            held = sent
            await asyncio.sleep(0.2)
        assert 1_000_000 > kept.backlog.size  # of more than 5 MB
        number = kept.backlog.count - len(kept.backlog)
        back = await connect(router, f"{kept.handle}/{number}")
        got = await back.rest()
        assert (PARTS + 2 - number, True) == (got.count(b"\nid: ") + got.startswith(b"id: "), data(got).endswith(DONE))
        await all_over(router)


async def test_a_connection_that_does_not_read_is_reset_when_its_client_comes_back_on_another() -> None:
    part = chat_event("x" * 4000)
    events = [*[part] * 4_000, *ANSWER[2:]]

    async def floods(exchange: Exchange) -> None:
        with contextlib.suppress(ConnectionError):
            await exchange.stream(events)

    async with keeping(floods, limit_bytes=100_000_000) as (router, _):
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(("127.0.0.1", router.port))
            client.sendall(request_bytes())
            await until(lambda: any(p.transport.get_write_buffer_size() for p in router.app.server.protocols))
            handle = next(iter(router.app.kept)).handle
            body = await (await connect(router, f"{handle}/0")).rest()
            assert b"".join([*events[:-2], DONE]) == data(body)
            await until(lambda: len(router.app.server.protocols) == 0)
        await all_over(router)


async def test_a_client_and_then_its_engine_break_and_the_client_still_sees_one_stream() -> None:
    gate = Gated(first=2, events=ANSWER[:2])

    async def dies(exchange: Exchange) -> None:
        await exchange.stream(ANSWER[:2], end=False)
        await gate.go.wait()
        exchange.cut()

    async with keeping(dies) as (router, engines):
        first = await (await connect(router, body={**chat_body(), "temperature": 0})).read(1)
        first.leave()
        await unheard(router)
        engines[0].script = plays
        gate.go.set()
        await until(lambda: len(engines[0].exchanges) == 2)
        back = await connect(router, f"{first.handle}/1")
        assert b"".join(SHOWN) == data(first.body[: first.body.find(b"\n\n") + 2] + await back.rest())
        await all_over(router)
        (record,) = router.records()
        assert ("ok", ["first", "resume"], 3) == (record.code, [a.kind for a in record.attempts], record.output_tokens)


async def test_of_two_that_listen_the_later_one_goes_on_and_the_other_is_told() -> None:
    engine = Gated(first=2)
    async with keeping(engine) as (router, _):
        first = await (await connect(router)).read(2)
        second = await (await connect(router, f"{first.handle}/1")).read(1)
        told = await first.rest()
        assert (True, False) == (b'"code":"superseded"' in told, b"[DONE]" in told)
        engine.go.set()
        assert b"".join(SHOWN[1:]) == data(await second.rest())
        await all_over(router)
        assert ["ok"] == [record.code for record in router.records()]


async def test_a_walk_whose_first_connection_was_taken_over_ends_when_the_other_has_left_too() -> None:
    engine = Gated(first=2)
    async with keeping(engine) as (router, _):
        first = await (await connect(router)).read(2)
        second = await (await connect(router, f"{first.handle}/1")).read(1)
        first.leave()
        second.leave()
        await unheard(router)
        router.app.kept.sweep(asyncio.get_running_loop().time() + 2 * WINDOW_S)
        await all_over(router)
        assert ["client_gone"] == [record.code for record in router.records()]


async def test_a_router_that_leaves_ends_the_walks_nobody_listens_to() -> None:
    engine = Gated(first=2)
    async with contextlib.AsyncExitStack() as stack:
        router, _ = await stack.enter_async_context(keeping(engine, drain_limit_s=0.2))
        first = await (await connect(router)).read(2)
        first.leave()
        await unheard(router)
        router.app.shutdown.ask()
        await until(lambda: len(router.records()) == 1)
        assert ["client_gone"] == [record.code for record in router.records()]
        assert 0 == sum(router.counts().values())


async def test_an_error_before_the_first_byte_is_answered_as_to_anyone() -> None:
    async def refuses(exchange: Exchange) -> None:
        await exchange.answer(400, b'{"error":{"message":"too long","code":400}}')

    async with keeping(refuses) as (router, _):
        client = await connect(router)
        assert (400, True) == (client.status, b"too long" in await client.rest())
        assert 0 == len(router.app.kept)


async def test_beyond_the_routers_own_limit_the_oldest_finished_streams_go_first_and_new_ones_are_not_kept() -> None:
    engine = Gated(first=2)
    async with keeping(engine, kept_limit_bytes=100) as (router, engines):
        running = await (await connect(router)).read(2)
        router.app.kept.sweep(0.0)
        engines[0].script = plays
        client = await connect(router)
        assert (b"".join(SHOWN), False) == (await client.rest(), b"x-switchyard-resume" in client.head)
        engine.go.set()
        assert b"".join(SHOWN) == data(await running.rest())
        router.app.kept.sweep(0.0)
        assert (0, 1) == (len(router.app.kept), router.app.kept.unkept)


async def test_the_openai_sdk_comes_back_with_one_extra_header_and_minds_no_comment_of_the_engine() -> None:
    engine = Gated(first=3, events=[ANSWER[0], b": still here\n\n", *ANSWER[1:]])
    async with keeping(engine) as (router, _):
        base_url = f"http://127.0.0.1:{router.port}/v1"
        async with openai.AsyncOpenAI(base_url=base_url, api_key=KEY, max_retries=0, timeout=20) as client:
            ask = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "stream": True}
            raw = await client.chat.completions.with_raw_response.create(**ask)
            handle, texts = raw.headers["x-switchyard-resume"], []
            stream = raw.parse()
            async for chunk in stream:
                texts.append(chunk.choices[0].delta.content)
                if len(texts) == 2:
                    break
            await stream.close()
            await unheard(router)
            engine.go.set()
            back = {"last-event-id": f"{handle}/{len(texts)}"}
            rest = await client.chat.completions.create(**ask, extra_headers=back)
            texts += [chunk.choices[0].delta.content async for chunk in rest]
            assert ["one", " two", " three"] == texts
            with pytest.raises(openai.NotFoundError, match="without Last-Event-ID"):
                await client.chat.completions.create(**ask, extra_headers={"last-event-id": "old/1"})


async def test_why_and_metrics_tell_of_the_return() -> None:
    engine = Gated(first=2)
    async with keeping(engine) as (router, _):
        first = await (await connect(router)).read(2)
        first.leave()
        await unheard(router)
        engine.go.set()
        await (await connect(router, f"{first.handle}/1")).rest()
        await (await connect(router, f"{first.handle}/2")).rest()
        story = (await router.client.get("/admin/why/r-1")).text
        assert ["at event 1", "at event 2"] == re.findall(r"its client came back.* (at event \d)", story)
        metrics = (await router.client.get("/metrics")).text
        assert "switchyard_kept_returned_total 2.0" in metrics
        assert "switchyard_kept_streams 1.0" in metrics


async def test_the_other_requests_of_a_tenant_with_the_switch_are_as_they_were() -> None:
    async with keeping(plays) as (router, _):
        answer = await router.chat(stream=False)
        assert (200, False, 0) == (answer.status_code, "x-switchyard-resume" in answer.headers, len(router.app.kept))
        assert MODEL == answer.json()["model"]
