"""Where a request ends: the router against a strict reader of RFC 9112, over a raw socket.

Two servers on one way that disagree about it let one client's bytes become another's request (smuggling). So for
ambiguous bytes the router sees what the strict reader sees, or refuses and closes; never more requests, never others.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import socket
from collections.abc import Sequence

import pytest

from tests.router import rfc9112
from tests.router.harness import Router, plays, router_with

SMUGGLED = b"GET /health HTTP/1.1\r\nHost: evil\r\n\r\n"
LAST = b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
ANSWERS = {b"/health": 200, b"/x": 404, b"http://y/x": 404}
LIMIT_S = 20.0
QUIET_S = 0.05
BODY = b"%d\r\n\r\n%b" % (len(SMUGGLED), SMUGGLED)
CHUNK = b"%x\r\n%b\r\n" % (len(SMUGGLED), SMUGGLED)


def post(*lines: bytes, version: bytes = b"HTTP/1.1", host: bytes = b"Host: x\r\n") -> bytes:
    return b"POST /x " + version + b"\r\n" + host + b"".join(line + b"\r\n" for line in lines)


def counted(line: bytes = b"Content-Length: ", **more: bytes) -> bytes:
    return post(**more) + line + BODY


def chunked(body: bytes) -> bytes:
    return post(b"Transfer-Encoding: chunked") + b"\r\n" + body


VALID = {
    "a counted body": counted(),
    "a counted body with blanks about the number": post(b"Content-Length: \t 2 \t") + b"\r\nab",
    "a chunked body": chunked(CHUNK + b"0\r\n\r\n"),
    "chunk extensions": chunked(b'2;a=b;c="d;\\"e"\r\nab\r\n0;f\r\n\r\n'),
    "chunk sizes with leading zeros": chunked(b"0002\r\nab\r\n000\r\n\r\n"),
    "trailers": chunked(b"2\r\nab\r\n0\r\nX: y\r\nAuthorization: Bearer z\r\n\r\n"),
    "a coding in capitals": post(b"Transfer-Encoding:\tCHUNKED") + b"\r\n" + CHUNK + b"0\r\n\r\n",
    "obs-text in a value": post(b"X: a\xffb", b"Content-Length: 2") + b"\r\nab",
    "a target in absolute form": b"POST http://y/x HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nab",
    "an empty line before": b"\r\n" + counted(),
    "an offer to upgrade": post(b"Connection: Upgrade", b"Upgrade: h2c") + b"Content-Length: " + BODY,
    "an offer to upgrade, chunked": post(b"Upgrade: x", b"Connection: Upgrade", b"Transfer-Encoding: chunked")
    + b"\r\n"
    + CHUNK
    + b"0\r\n\r\n",
    "HTTP/1.0": counted(version=b"HTTP/1.0"),
    "two bodies in a row": counted() + chunked(CHUNK + b"0\r\n\r\n"),
}
DOUBTFUL = {
    "length and coding": post(b"Content-Length: 4", b"Transfer-Encoding: chunked") + b"\r\n0\r\n\r\n" + SMUGGLED,
    "coding and length": post(b"Transfer-Encoding: chunked", b"Content-Length: 4") + b"\r\n0\r\n\r\n" + SMUGGLED,
    "two lengths": post(b"Content-Length: 0") + b"Content-Length: " + BODY,
    "two equal lengths": post(b"Content-Length: 2", b"Content-Length: 2") + b"\r\nab",
    "a list of lengths": post(b"Content-Length: 2, 2") + b"\r\nab",
    "a length with a plus": post(b"Content-Length: +2") + b"\r\nab",
    "a negative length": post(b"Content-Length: -2") + b"\r\nab",
    "a length in hex": post(b"Content-Length: 0x2") + b"\r\nab",
    "a length with an underscore": post(b"Content-Length: 1_0") + b"\r\nab",
    "a length with a blank": post(b"Content-Length: 1 0") + b"\r\nab",
    "an empty length": post(b"Content-Length:") + b"\r\n" + SMUGGLED,
    "a length beyond 64 bits": post(b"Content-Length: 18446744073709551618") + b"\r\nab",
    "a blank before the colon of a length": counted(b"Content-Length : "),
    "a blank before the colon of a coding": post(b"Transfer-Encoding : chunked") + b"\r\n" + CHUNK + b"0\r\n\r\n",
    "a folded coding": post(b"Transfer-Encoding:\r\n chunked") + b"\r\n" + CHUNK + b"0\r\n\r\n",
    "a folded header": post(b"X: a\r\n b", b"Content-Length: 2") + b"\r\nab",
    "a blank before the first header": b"POST /x HTTP/1.1\r\n Host: x\r\nContent-Length: 2\r\n\r\nab",
    "a coding nobody knows": post(b"Transfer-Encoding: xchunked") + b"\r\n" + CHUNK + b"0\r\n\r\n",
    "identity": post(b"Transfer-Encoding: identity") + b"Content-Length: " + BODY,
    "gzip then chunked": post(b"Transfer-Encoding: gzip, chunked") + b"\r\n" + CHUNK + b"0\r\n\r\n",
    "chunked then gzip": post(b"Transfer-Encoding: chunked, gzip") + b"\r\n" + CHUNK + b"0\r\n\r\n",
    "two codings": post(b"Transfer-Encoding: chunked", b"Transfer-Encoding: x") + b"\r\n0\r\n\r\n",
    "a quoted coding": post(b'Transfer-Encoding: "chunked"') + b"\r\n0\r\n\r\n",
    "a vertical tab before the coding": post(b"Transfer-Encoding: \x0bchunked") + b"\r\n0\r\n\r\n",
    "a coding in HTTP/1.0": post(b"Transfer-Encoding: chunked", version=b"HTTP/1.0") + b"\r\n0\r\n\r\n",
    "bare LF": counted().replace(b"\r\n", b"\n"),
    "a bare LF after a header": b"POST /x HTTP/1.1\r\nHost: x\nContent-Length: 2\r\n\r\nab",
    "a bare LF after the head": b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\nab",
    "a bare CR in a value": post(b"X: a\rContent-Length: 2") + b"\r\nab",
    "NUL in a value": post(b"X: a\0b") + b"\r\n",
    "a control character in a value": post(b"X: a\x01b") + b"\r\n",
    "obs-text in a name": post(b"X\xff: a") + b"\r\n",
    "a name of nothing": post(b": a") + b"\r\n",
    "a header without a colon": post(b"x") + b"\r\n",
    "a blank within a name": post(b"Content Length: 2") + b"\r\nab",
    "no host": counted(host=b""),
    "two hosts": counted(host=b"Host: x\r\nHost: y\r\n"),
    "CONNECT": b"CONNECT y:80 HTTP/1.1\r\nHost: y:80\r\n\r\n" + SMUGGLED,
    "the preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "HTTP/2.0 in letters": counted(version=b"HTTP/2.0"),
    "HTTP/1.2": counted(version=b"HTTP/1.2"),
    "HTTP/0.9": b"GET /x\r\n\r\n" + SMUGGLED,
    "a blank after the version": counted(version=b"HTTP/1.1 "),
    "a blank before the method": b" " + counted(),
    "tabs in the request line": b"GET\t/x\tHTTP/1.1\r\nHost: x\r\n\r\n",
    "obs-text in the target": b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n",
    "a fragment in the target": b"GET /x#y HTTP/1.1\r\nHost: x\r\n\r\n",
    "a chunk that is longer than it says": chunked(b"2\r\nabc\r\n0\r\n\r\n"),
    "a chunk without its end": chunked(b"2\r\nab0\r\n\r\n"),
    "a chunk size with 0x": chunked(b"0x2\r\nab\r\n0\r\n\r\n"),
    "a chunk size with a plus": chunked(b"+2\r\nab\r\n0\r\n\r\n"),
    "a negative chunk size": chunked(b"-2\r\nab\r\n0\r\n\r\n"),
    "no chunk size": chunked(b"\r\nab\r\n0\r\n\r\n"),
    "a blank before a chunk size": chunked(b" 2\r\nab\r\n0\r\n\r\n"),
    "a blank after a chunk size": chunked(b"2 \r\nab\r\n0\r\n\r\n"),
    "a chunk size beyond 64 bits": chunked(b"10000000000000002\r\nab\r\n0\r\n\r\n"),
    "a bare LF after a chunk size": chunked(b"2\nab\r\n0\r\n\r\n"),
    "a bare LF after an extension": chunked(b"2;x\nab\r\n0\r\n\r\n"),
    "a bare CR in an extension": chunked(b"2;x\ry\r\nab\r\n0\r\n\r\n"),
    "a bare LF after a chunk": chunked(b"2\r\nab\n0\r\n\r\n"),
    "a bare LF after the last chunk": chunked(b"2\r\nab\r\n0\n\n"),
    "a length in a trailer": chunked(b"0\r\nContent-Length: 5\r\n\r\n"),
    "a coding in a trailer": chunked(b"0\r\nTransfer-Encoding: chunked\r\n\r\n"),
}


async def exchange(
    router: Router, data: bytes, *, cuts: Sequence[int] = (), expected: int | None = None
) -> tuple[list[int], bool]:
    """The statuses that came back, and whether the router closed. `expected`: do not wait for more than these."""
    loop = asyncio.get_running_loop()
    got = b""
    with socket.socket() as client:
        client.setblocking(False)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            async with asyncio.timeout(LIMIT_S):
                await loop.sock_connect(client, ("127.0.0.1", router.port))
                for start, end in itertools.pairwise([0, *cuts, len(data)]):
                    await loop.sock_sendall(client, data[start:end])
                while expected is None or len(statuses(got)) < expected:
                    if not (more := await loop.sock_recv(client, 65536)):
                        return statuses(got), True
                    got += more
            async with asyncio.timeout(QUIET_S):  # any answer now is one too many
                while more := await loop.sock_recv(client, 65536):
                    got += more
                return statuses(got), True
        except ConnectionError:
            return statuses(got), True
        except TimeoutError:
            return statuses(got), False


def statuses(got: bytes) -> list[int]:
    """Of the whole answers."""
    found = []
    while b"\r\n\r\n" in got:
        head, _, rest = got.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        if len(rest) < length:
            break
        found.append(int(head.split(b" ", 2)[1]))
        got = rest[length:]
    return found


async def differs(router: Router, data: bytes, *, cuts: Sequence[int]) -> str:
    """What the router saw otherwise than the strict reader; empty when they agree or it refused."""
    seen = rfc9112.read(data)
    wanted = [ANSWERS.get(target, 404) for target in seen.targets]
    waits = seen.end in ("clean", "incomplete")
    got, closed = await exchange(router, data, cuts=cuts, expected=len(wanted) if waits else None)
    refused = closed and got and got[-1] in (400, 501, 505)
    agreed = got[:-1] if refused else got
    begun = [ANSWERS.get(target, 404) for target in seen.begun]
    if agreed != (wanted + begun)[: len(agreed)] or (not closed and not waits):
        return f"{got} closed={closed}, but {wanted} {seen.end} in {data!r}"
    if len(agreed) < len(wanted) and not closed:
        return f"{got} and then nothing, but {wanted} in {data!r}"
    return ""


@pytest.mark.parametrize("case", VALID)
async def test_a_request_that_is_valid_is_served_and_so_is_the_next(case: str) -> None:
    async with router_with(plays) as (router, _):
        data = VALID[case] + (LAST if case != "HTTP/1.0" else b"")
        wanted = [ANSWERS[target] for target in rfc9112.read(data).targets]
        assert (wanted, True) == await exchange(router, data)
        assert (wanted, True) == await exchange(router, data, cuts=range(1, len(data)))


async def test_a_request_that_can_be_read_in_two_ways_is_refused_and_the_connection_closed() -> None:
    async with router_with(plays) as (router, _):
        for case, data in DOUBTFUL.items():
            got, closed = await exchange(router, data + LAST)
            assert ("invalid", True) == (rfc9112.read(data + LAST).end, closed), case
            assert 200 not in got, (case, got)
            assert got in ([400], [404], [501], [505]), (case, got)


async def test_answers_to_earlier_requests_come_before_a_refusal() -> None:
    async with router_with(plays) as (router, _):
        first = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
        assert ([200, 200, 400], True) == await exchange(router, first * 2 + DOUBTFUL["two lengths"])
        assert ([200, 400], True) == await exchange(router, first + DOUBTFUL["a chunk without its end"])


@pytest.mark.parametrize("seed", range(3))
async def test_mutated_requests_are_seen_as_the_strict_reader_sees_them_or_refused(seed: int) -> None:
    rng = random.Random(seed)
    async with router_with(plays) as (router, _):
        for _ in range(120):
            data = bytearray(rng.choice([*VALID.values()]) + LAST)
            for _ in range(rng.randint(1, 3)):
                mutate(data, rng)
            cuts = sorted(rng.sample(range(1, len(data)), rng.randint(0, 3)))
            found = await differs(router, bytes(data), cuts=cuts)
            assert "" == found, found


def mutate(data: bytearray, rng: random.Random) -> None:
    """In the framing for the most part: that is where readers disagree."""
    odd = [b"\r", b"\n", b"\r\n", b" ", b"\t", b":", b"+", b"-", b";", b",", b"\0", b"\x0b", b"0", b"f", b"\xff", b'"']
    lines = [b"Content-Length: 3\r\n", b"Transfer-Encoding: chunked\r\n", b"X: y\r\n", b"Host: y\r\n"]
    at = rng.randrange(len(data))
    match rng.randrange(4):
        case 0:
            data[at:at] = rng.choice(odd)
        case 1:
            del data[at]
        case 2:
            data[at : at + 1] = rng.choice(odd)
        case _:
            ends = [i + 2 for i in range(len(data)) if data.startswith(b"\r\n", i)]
            data[(at := rng.choice(ends)) : at] = rng.choice(lines)
