"""Streams that break behind an event of several tokens, whose text may be held back: another engine spells them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec

from router.upstream.spell import Speller
from tests.router.harness import DONE, MODEL, Engine, Exchange, Script, event, running_router
from tests.wire.certificates import Authority
from wire.records import ModelState, Replica
from wire.tls import TlsFiles

BODY = {"model": MODEL, "prompt": [1], "max_tokens": 4, "temperature": 1, "stream": True}
SPELLING = {2: "a ", 3: "b ", 4: "c ", 5: "d "}


def said(*ids: int, text: str, end: str = "null") -> bytes:
    return event(
        f'{{"id":"cmpl-1","object":"text_completion","created":1,"model":"tiny","choices":[{{"index":0,"text":"{text}",'
        f'"logprobs":null,"finish_reason":{end},"stop_reason":null,'
        f'"prompt_token_ids":{"[1]" if 2 in ids else "null"},"token_ids":{list(ids)}}}]}}'
    )


async def breaks(exchange: Exchange) -> None:
    await exchange.stream([said(2, 3, 4, text="a b ")], end=False)
    exchange.cut()


async def spells(exchange: Exchange) -> None:
    asked = msgspec.json.decode(exchange.body)
    if "tokens" in asked:
        await exchange.answer(200, msgspec.json.encode({"prompt": _spelled(asked["tokens"])}))
    elif asked["prompt"] == [1, 2, 3]:
        await exchange.stream([said(4, text="c "), said(5, text="d ", end='"length"'), DONE])
    else:
        await exchange.answer(400, b'{"error":{"message":"what ids?"}}')


def _spelled(ids: list[int]) -> str:
    """The last id of the bundle is half a character as long as nothing follows."""
    *before, last = ids
    return "".join(SPELLING[token] for token in before) + ("\ufffd" if last == 4 else SPELLING[last])


async def test_an_engine_that_comes_later_is_asked_what_was_held_back_before_it_goes_on() -> None:
    async with running_router() as router, Engine(breaks) as one, Engine(spells) as other:
        await router.add_engine(one, token_ids=True)
        async with router.client.stream("POST", "/v1/completions", json=BODY) as answer:
            parts = answer.aiter_raw()
            got = await anext(parts)
            await router.add_engine(other, token_ids=True)
            async for part in parts:
                got += part
        texts = [msgspec.json.decode(one[6:])["choices"][0]["text"] for one in got.split(b"\n\n")[:-2]]
        assert ["a b ", "c ", "d "] == texts
        assert got.endswith(DONE)


async def test_a_stream_ends_honestly_where_no_engine_spells() -> None:
    async def silent(exchange: Exchange) -> None:
        await exchange.answer(404, b'{"detail":"Not Found"}')

    async with running_router() as router, Engine(breaks) as one:
        await router.add_engine(one, token_ids=True)
        async with router.client.stream("POST", "/v1/completions", json=BODY) as answer:
            parts = answer.aiter_raw()
            got = await anext(parts)
            one.script = silent
            async for part in parts:
                got += part
        assert b'"error"' in got
        assert b"bundled several tokens" in got
        assert not got.endswith(DONE)


async def codes_of_a_drain(left: Script, beside: Script) -> list[str]:
    """How the attempts ended of a stream whose replica is drained while it runs; the stream must end well."""
    async with running_router() as router, Engine(left) as one, Engine(beside) as other:
        first = await router.add_engine(one, token_ids=True)
        async with router.client.stream("POST", "/v1/completions", json=BODY) as answer:
            parts = answer.aiter_raw()
            got = await anext(parts)
            await router.add_engine(other, token_ids=True)
            await router.put(msgspec.structs.replace(first, state=ModelState.DRAINING, moving=True))
            async for part in parts:
                got += part
        assert got.endswith(DONE)
        (record,) = router.records()
        return [attempt.code for attempt in record.attempts]


async def test_a_stream_of_bundles_leaves_a_drained_replica_once_an_engine_has_shown_that_it_spells() -> None:
    async def goes_on_and_on(exchange: Exchange) -> None:
        if b'"tokens"' in exchange.body:
            await spells(exchange)
            return
        await exchange.stream([said(2, 3, 4, text="a b ")], end=False)
        await exchange.client_left()

    assert ["moved", "ok"] == await codes_of_a_drain(goes_on_and_on, spells)


async def test_a_stream_of_bundles_that_nobody_can_spell_is_not_cut_for_a_drain() -> None:
    release = asyncio.Event()

    async def unspoken(exchange: Exchange) -> None:
        if b'"tokens"' in exchange.body:
            await exchange.answer(404, b'{"detail":"Not Found"}')
            release.set()
            return
        await exchange.stream([said(2, 3, 4, text="a b ")], end=False)
        await release.wait()
        await exchange.send(said(5, text="d ", end='"length"'))
        await exchange.send(DONE)
        exchange.writer.write(b"0\r\n\r\n")

    assert ["ok"] == await codes_of_a_drain(unspoken, unspoken)


async def test_an_engine_behind_tls_spells_too(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    cert, key = authority.issue("engine")
    files = TlsFiles(ca=str(authority.ca), cert=cert, key=key)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b'HTTP/1.1 200 OK\r\ncontent-length: 14\r\nconnection: close\r\n\r\n{"prompt":"a"}')
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0, ssl=files.server_context()) as server:
        port = server.sockets[0].getsockname()[1]
        replica = Replica(
            replica="n.0",
            node="n",
            region="local",
            model=MODEL,
            address=f"127.0.0.1:{port}",
            state=ModelState.READY,
            generation=1,
            tls=True,
        )
        speller = Speller(tls=files.client_context())
        assert "a" == await speller.spell([replica], MODEL, [2])
        await speller.close()
