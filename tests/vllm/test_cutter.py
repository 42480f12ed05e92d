"""The proxy that breaks answers breaks them where it was told; and the judge of answers sees what is wrong."""

from __future__ import annotations

import httpx
import pytest

from tests.router.harness import ANSWER, DONE, USAGE, Engine, chat_body, chat_event, plays
from tests.vllm.answers import Ended, difference, read, unfair
from tests.vllm.cutter import DIED, GARBLED, Cut, Cuts, Cutter, How

OPENED = chat_event("one").replace(b'"delta":{', b'"delta":{"role":"assistant",')
WHOLE = b"".join([OPENED, *ANSWER[1:]])


async def asked(cuts: Cuts, *, stream: bool = True) -> bytes:
    """What a client gets through the proxy, however it ends."""
    got = bytearray()
    async with Engine(plays) as engine, Cutter(engine.port, cuts) as proxy, httpx.AsyncClient() as client:
        url, headers = f"http://{proxy.address}/v1/chat/completions", {"x-request-id": "r"}
        try:
            async with client.stream("POST", url, json=chat_body(stream=stream), headers=headers) as answer:
                async for piece in answer.aiter_raw():
                    got += piece
        except httpx.TransportError:
            pass
    return bytes(got)


@pytest.mark.parametrize(
    ("how", "last"),
    [
        (How.CLOSED, b""),
        (How.HALF, ANSWER[2][: len(ANSWER[2]) // 2 - 9]),
        (How.ERROR, DIED + DONE),
        (How.GARBLED, GARBLED + DONE),
    ],
)
async def test_an_answer_is_cut_after_the_events_it_was_told(how: How, last: bytes) -> None:
    cuts = Cuts({"r": [Cut(2, how)]})
    got = await asked(cuts)
    assert got.startswith(b"".join(ANSWER[:2]) + last)
    assert 1 == cuts.done["r"]
    assert DONE not in got.removesuffix(last)


async def test_what_is_not_to_be_cut_passes_as_it_is() -> None:
    for cuts in (Cuts(), Cuts({"r": [Cut(50, How.HALF)]}), Cuts({"r": [Cut(50, How.RESET)]})):
        assert b"".join(ANSWER) == await asked(cuts)
        assert 0 == cuts.done["r"]
        assert ["/v1/chat/completions"] == [leg.path for leg in cuts.legs["r"]]


async def test_an_answer_that_is_reset_never_looks_whole() -> None:
    assert DONE not in await asked(Cuts({"r": [Cut(2, How.RESET)]}))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (WHOLE.replace(b" two", b" zwei"), "content"),
        (WHOLE.replace(ANSWER[1], ANSWER[1] * 2), "content"),
        (WHOLE.replace(ANSWER[1], b""), "content"),
        (WHOLE.replace(b'"stop"', b'"length"'), "finish"),
        (WHOLE.replace(USAGE, USAGE * 2), "usage"),
        (WHOLE.replace(b'"completion_tokens":3', b'"completion_tokens":4'), "usage"),
        (WHOLE.replace(b"chatcmpl-1", b"chatcmpl-2", 1), "heads"),
        (WHOLE + DONE, "done"),
    ],
)
def test_whatever_a_client_could_see_is_seen(changed: bytes, said: str) -> None:
    expected, got = read(WHOLE), read(changed)
    assert not isinstance(expected, Ended)
    assert not isinstance(got, Ended)
    assert said in difference(expected, got)
    assert "" == difference(expected, read(WHOLE))


def test_how_an_answer_ended_early_is_told() -> None:
    error = b'data: {"error":{"message":"no"}}\n\n'
    ends = [read(stream) for stream in (b"".join(ANSWER[:2]), ANSWER[0] + error, ANSWER[0] + error + DONE)]
    assert ["truncated", "an honest error", "a lie"] == [end.how for end in ends if isinstance(end, Ended)]
    twice = read(OPENED + WHOLE)
    assert isinstance(twice, Ended)
    assert ("malformed", "a role is said once") == (twice.how, twice.detail.splitlines()[0])


def test_a_fair_answer_may_say_other_things_but_not_more() -> None:
    expected = read(WHOLE)
    assert not isinstance(expected, Ended)
    for stream, fair in (
        (WHOLE.replace(b" two", b" zwei"), True),
        (WHOLE.replace(b'_tokens":3', b'_tokens":4'), False),
    ):
        got = read(stream)
        assert not isinstance(got, Ended)
        assert fair is not bool(unfair(got, expected))
