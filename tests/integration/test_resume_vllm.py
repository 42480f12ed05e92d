"""Answers broken at many events and continued by a real engine with the bodies that our plans ask for."""

from __future__ import annotations

import random
from collections import Counter

import msgspec
import pytest

from router.core.asked import prepare, read
from router.core.continuation import Plan, Way
from router.core.events import event_of
from router.core.spelling import settle, unsettled
from router.core.transcript import Transcript
from tests.recordings.cases import CHAT, GREEDY, MESSAGES, PROMPT, TEXT
from tests.recordings.exchange import exchange
from tests.recordings.library import Answer
from tests.router.core.answers import assemble, carry, comparable
from tests.vllm import fixtures
from tests.vllm.servers import REMEDY, VllmServer, available

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600), pytest.mark.skipif(not available(), reason=REMEDY)]

M = {"model": "tiny", "messages": MESSAGES, "stream": True}
T = {"model": "tiny", "prompt": PROMPT, "stream": True}
CASES = {
    "chat": (CHAT, M | GREEDY | {"max_tokens": 60}),
    "chat-logprobs": (CHAT, M | GREEDY | {"max_tokens": 40, "logprobs": True}),
    "chat-min-tokens": (CHAT, M | {"temperature": 0, "max_tokens": 40, "min_tokens": 30}),
    "chat-bias": (CHAT, M | GREEDY | {"max_tokens": 40, "logit_bias": {"407": -100}}),
    "text": (TEXT, T | GREEDY | {"max_tokens": 60}),
    "text-logprobs-0": (TEXT, T | GREEDY | {"max_tokens": 40, "logprobs": 0}),
    "text-logprobs-5": (TEXT, T | GREEDY | {"max_tokens": 40, "logprobs": 5}),
    "text-stop-token": (TEXT, T | GREEDY | {"max_tokens": 40, "skip_special_tokens": False, "stop_token_ids": [517]}),
}
SAMPLED = {"temperature": 1, "max_tokens": 30, "ignore_eos": True}


servers = fixtures.vllm_pair
"""The engine that breaks, and the one that goes on."""


def ask(server: VllmServer, endpoint: str, body: bytes) -> list[bytes]:
    done = exchange(server.port, endpoint, body.decode())
    assert 200 == done.status, bytes(done.wire)
    return Answer(bytes(done.wire)).events()


@pytest.mark.parametrize("name", CASES)
def test_a_greedy_answer_continued_by_another_engine_equals_the_unbroken_one(servers, name):
    endpoint, body = CASES[name]
    asked = read(endpoint, msgspec.json.encode(body))
    sent = prepare(asked, token_ids=True)
    whole = ask(servers[0], endpoint, sent)
    expected = comparable(assemble(b"".join(whole)))
    ways: Counter[Way] = Counter()

    def leg(made: Plan, _: Transcript) -> list[bytes]:
        ways[made.way] += 1
        return ask(servers[1], made.endpoint, made.body)

    for at in range(0, len(whole), 3 if len(whole) > 30 else 1):  # a busy engine puts many tokens into an event
        stream, plans = carry(asked, whole[:at], leg, rng=random.Random(at), sent=sent)
        assert expected == comparable(assemble(stream)), f"broken after {at} events: {plans}"
    assert ways[Way.IDS] >= min(6, len(whole) // 2)


@pytest.mark.parametrize(
    ("endpoint", "body", "n"),
    [(CHAT, M | SAMPLED | {"n": 2}, 2), (TEXT, T | SAMPLED | {"n": 3}, 3)],
    ids=["chat", "text"],
)
def test_sampled_choices_go_on_to_just_their_tokens_and_one_end(servers, endpoint, body, n):
    asked = read(endpoint, msgspec.json.encode(body))
    sent = prepare(asked, token_ids=True)
    whole = ask(servers[0], endpoint, sent)

    def leg(made: Plan, _: Transcript) -> list[bytes]:
        return ask(servers[1], made.endpoint, made.body)

    for at in range(2 * n, len(whole) - 2, 5):
        stream, plans = carry(asked, whole[:at], leg, rng=random.Random(at), sent=sent)
        if plans[-1].way is Way.REFUSE:
            assert "bundled" in plans[-1].reason
            continue
        answer = assemble(stream)
        assert (1, n, {"length"}) == (
            answer["done"],
            len(answer["choices"]),
            {choice["finish"][0] for choice in answer["choices"].values()},
        )
        assert [n * 30] == [completion for _, completion, _ in answer["usage"]]


async def test_the_engine_spells_what_a_bundle_delivered(servers):
    asked = read(TEXT, msgspec.json.encode(T | SAMPLED | {"seed": 6}))
    fields = {"prompt": PROMPT, **SAMPLED, "max_tokens": 6, "seed": 6, "stream": False, "return_token_ids": True}
    whole = exchange(servers[0].port, TEXT, {"model": "tiny", **fields})
    (document,) = Answer(bytes(whole.wire)).documents()
    document["choices"][0]["finish_reason"] = None
    transcript = Transcript(asked)
    transcript.fold([event_of({name: document[name] for name in ("id", "object", "created", "model", "choices")})])

    async def spell(ids: list[int]) -> str:
        done = exchange(servers[1].port, "/detokenize", {"model": "tiny", "tokens": ids})
        return msgspec.json.decode(Answer(bytes(done.wire)).body)["prompt"]

    (choice,) = unsettled(transcript)
    await settle(choice, spell)
    assert ([], 6) == (unsettled(transcript), choice.mark.ids)
