"""What one client may take: time, header lines, requests on a connection; and the same router over TLS."""

from __future__ import annotations

import asyncio
import json
import ssl
from pathlib import Path

import httpx
import pytest

from tests.router.harness import ANSWER, DONE, KEY, Router, chat_body, plays, router_with
from tests.wire.certificates import Authority
from wire.tls import TlsFiles

LIMIT_S = 10.0
GET = b"GET /health HTTP/1.1\r\nHost: x\r\n"


async def answer_to(router: Router, *parts: bytes, pause_s: float = 0.0) -> bytes:
    """All that comes until the router closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", router.port)
    for part in parts:
        writer.write(part)
        await asyncio.sleep(pause_s)
    try:
        return await asyncio.wait_for(reader.read(-1), LIMIT_S)
    finally:
        writer.close()


async def test_a_head_or_a_body_that_comes_too_slowly_ends_the_connection_with_a_408() -> None:
    async with router_with(plays, request_limit_s=0.2) as (router, _):
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + KEY.encode()
        for parts in (
            [GET, b"X: 1\r\n", b"X: 2\r\n", b"X: 3\r\n"],
            [head + b"\r\nContent-Length: 9\r\n\r\n", b"{", b"}"],
            [head + b"\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\n{\r\n"],
        ):
            assert (await answer_to(router, *parts, pause_s=0.05)).startswith(b"HTTP/1.1 408 ")
        assert [] == [p for p in router.app.server.protocols if p.streams]


async def test_a_connection_that_never_sends_is_closed() -> None:
    async with router_with(plays, request_limit_s=0.2) as (router, _):
        assert (await answer_to(router)).startswith(b"HTTP/1.1 408 ")


async def test_a_connection_that_is_idle_between_requests_is_closed_without_a_word() -> None:
    async with router_with(plays, keep_alive_limit_s=1.0) as (router, _):
        got = await answer_to(router, GET + b"\r\n")
        assert (1, False) == (got.count(b"HTTP/1.1 "), b"408" in got)


async def test_more_header_lines_than_the_limit_are_refused() -> None:
    async with router_with(plays, headers_limit=10) as (router, _):
        got = await answer_to(router, GET + b"X: 1\r\n" * 9 + b"Connection: close\r\n\r\n")
        assert got.startswith(b"HTTP/1.1 431 ")
        got = await answer_to(router, GET + b"X: 1\r\n" * 8 + b"Connection: close\r\n\r\n")
        assert got.startswith(b"HTTP/1.1 200 ")


async def test_a_head_over_the_limit_is_refused_also_when_it_comes_in_one_piece() -> None:
    async with router_with(plays) as (router, _):
        got = await answer_to(router, GET + b"X: " + b"y" * 40_000 + b"\r\n\r\n")
        assert got.startswith(b"HTTP/1.1 431 ")


async def test_the_last_request_of_a_connection_is_told_that_it_closes() -> None:
    async with router_with(plays, connection_requests_limit=3) as (router, _):
        got = await answer_to(router, (GET + b"\r\n") * 4)
        assert (3, 1) == (got.count(b"HTTP/1.1 200 "), got.lower().count(b"connection: close"))


async def test_a_trailer_adds_no_header() -> None:
    async with router_with(plays) as (router, engines):
        head = (
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
        )
        got = await answer_to(router, head + b"2\r\n{}\r\n0\r\nAuthorization: Bearer " + KEY.encode() + b"\r\n\r\n")
        assert got.startswith(b"HTTP/1.1 401 ")
        assert [] == engines[0].exchanges


async def test_a_body_behind_an_offer_to_upgrade_reaches_the_engine() -> None:
    """Java's HttpClient offers h2c with every request in the clear."""
    async with router_with(plays) as (router, _):
        headers = {"connection": "Upgrade, HTTP2-Settings", "upgrade": "h2c", "http2-settings": "AAEAAEAA"}
        answer = await router.chat(stream=False, headers=headers)
        assert (200, "one two three") == (answer.status_code, answer.json()["choices"][0]["message"]["content"])


async def test_a_target_with_a_query_or_in_absolute_form_is_served_as_one_without() -> None:
    async with router_with(plays) as (router, _):
        for stream in (True, False):
            plain = await router.chat(stream=stream)
            body = chat_body(stream=stream)
            asked = await router.client.post("/v1/chat/completions?api-version=1", json=body)
            assert plain.content == asked.content
        data = json.dumps(chat_body(stream=False)).encode()
        head = (
            b"POST http://x/v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %b\r\n"
            b"Connection: close\r\nContent-Length: %d\r\n\r\n" % (KEY.encode(), len(data))
        )
        got = await answer_to(router, head + data)
        assert (True, True) == (got.startswith(b"HTTP/1.1 200 "), b"one two three" in got)


async def test_of_two_keys_in_one_request_the_first_counts() -> None:
    async with router_with(plays) as (router, _):
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 2\r\n"
        good, bad = b"Authorization: Bearer %b\r\n" % KEY.encode(), b"Authorization: Bearer x\r\n"
        assert (await answer_to(router, head + bad + good + b"\r\n{}")).startswith(b"HTTP/1.1 401 ")
        assert (await answer_to(router, head + good + bad + b"\r\n{}")).startswith(b"HTTP/1.1 400 ")


async def test_a_body_that_comes_in_many_pieces_is_whole() -> None:
    async with router_with(plays) as (router, _):
        data = json.dumps(chat_body(stream=False)).encode()
        head = (
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %b\r\n"
            b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n" % KEY.encode()
        )
        pieces = b"".join(b"1\r\n%c\r\n" % byte for byte in data)
        got = await answer_to(router, head + pieces[:301], pieces[301:] + b"0\r\n\r\n", pause_s=0.01)
        assert (True, True) == (got.startswith(b"HTTP/1.1 200 "), b"one two three" in got)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


async def test_streams_and_whole_answers_come_over_tls_and_plain_text_does_not(authority: Authority) -> None:
    cert, key = authority.issue("router")
    async with router_with(plays, tls=TlsFiles(cert=cert, key=key)) as (router, _):
        trust = ssl.create_default_context(cafile=str(authority.ca))
        headers = {"authorization": f"Bearer {KEY}"}
        async with httpx.AsyncClient(base_url=f"https://127.0.0.1:{router.port}", headers=headers, verify=trust) as tls:
            for _ in range(2):  # the second on the connection of the first
                answer = await tls.post("/v1/chat/completions", json=chat_body())
                assert b"".join([*ANSWER[:3], DONE]) == answer.content
            whole = await tls.post("/v1/chat/completions", json=chat_body(stream=False))
            assert "one two three" == whole.json()["choices"][0]["message"]["content"]
        assert "https" == router.app.url.partition(":")[0]
        with pytest.raises(httpx.TransportError):
            await router.client.get("/health")


async def test_a_client_without_a_certificate_is_turned_away_where_one_is_asked_for(authority: Authority) -> None:
    cert, key = authority.issue("router")
    async with router_with(plays, tls=TlsFiles(ca=str(authority.ca), cert=cert, key=key)) as (router, _):
        trust = ssl.create_default_context(cafile=str(authority.ca))
        async with httpx.AsyncClient(base_url=f"https://127.0.0.1:{router.port}", verify=trust) as stranger:
            with pytest.raises(httpx.TransportError):
                await stranger.get("/health")
        trust.load_cert_chain(*authority.issue("client"))
        async with httpx.AsyncClient(base_url=f"https://127.0.0.1:{router.port}", verify=trust) as known:
            assert 200 == (await known.get("/health")).status_code
