"""How a broken stream goes on: by token ids, by replay, by its end alone, or not at all, and why.

By ids: one prefill of the prompt's and the delivered ids, then new tokens. Equal to the unbroken answer when nothing
but those ids decides the next token (greedy, no penalties, grammar or stop strings); for an answer sampled without a
seed it is a fair continuation, drawn as the engine itself would have drawn it. By replay: the same request again, and
what was delivered compared and dropped. Equal wherever the engine is deterministic, but tokens are decoded twice.

What neither can do is refused with its reason. Nothing is sent from here. RESUME.md has the measurements.
"""

from __future__ import annotations

import enum
from array import array
from typing import Any

import msgspec

from router.core.asked import Asked, Endpoint, members_of
from router.core.chunks import NULL
from router.core.obstacles import CARRIED, obstacle
from router.core.transcript import MAIN, Choice, Transcript


class Way(enum.StrEnum):
    IDS = "ids"
    REPLAY = "replay"
    FINISH = "finish"
    """The client has the whole answer; only the usage and `[DONE]` are missing."""
    REFUSE = "refuse"


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """What a token costs on the replica that would go on."""

    prefill_ms: float = 0.05
    decode_ms: float = 20.0


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    way: Way
    reason: str
    """A sentence for people."""
    endpoint: Endpoint = Endpoint.OTHER
    """Where the body goes; nowhere for FINISH and REFUSE."""
    body: bytes = b""
    choices: tuple[int, ...] = ()
    """The client's choices that this leg goes on with, in the order the engine will number them."""
    exact: bool = True
    """Whether the whole will equal the unbroken answer; False: a fair continuation of a sampled one."""
    prefill_tokens: int = 0
    """The prompts of this leg, delivered ids included."""
    redone_tokens: int = 0
    """Tokens to be generated again and dropped."""
    expected_ms: float = 0.0
    """Until the first new token, on an idle replica."""


def plan(
    asked: Asked,
    transcript: Transcript,
    *,
    sent: bytes,
    seeded: bool = False,
    ids_supported: bool = True,
    settled: bool = False,
    pace: Pace | None = None,
) -> Plan:
    """The next leg of a stream that broke. All delivered blocks must have been folded.

    `sent` is the body of the first attempt, `seeded` whether the router put a seed of its own into it. That the next
    engine is configured as the last is not asked: what it replays is compared. With `settled` it is told
    whether there would be a plan if an engine had spelled what came in bundles (spelling.py)."""
    if not asked.resumable:
        return Plan(way=Way.REFUSE, reason="only streams of chat and completions can be continued")
    if transcript.finished:
        return Plan(way=Way.FINISH, reason="every choice came to its end; only the end of the stream is missing")
    pace = pace or Pace()
    replay = _replay(asked, transcript, sent, pace)
    if not transcript.begun and not transcript.opaque:
        return msgspec.structs.replace(replay, reason="no token was delivered yet")
    against_replay = _against_replay(asked, transcript, seeded=seeded)
    against_ids = obstacle(asked) if ids_supported else "the engine takes no token ids"
    if seeded and not asked.greedy:  # a leg drawn anew would be fair, but no later leg could replay it
        against_ids = against_ids or "our seed starts its dice again"
    against_ids = against_ids or _against_ids_now(asked, transcript, settled=settled)
    if against_ids and against_replay:
        return Plan(way=Way.REFUSE, reason=f"by ids: {against_ids}; by replay: {against_replay}")
    if against_ids:
        return msgspec.structs.replace(replay, reason=f"not by ids: {against_ids}")
    ids = _ids(asked, transcript, pace)
    if against_replay:
        return msgspec.structs.replace(ids, reason=f"not by replay: {against_replay}")
    return min(ids, replay, key=lambda candidate: candidate.expected_ms)


def _against_ids_now(asked: Asked, transcript: Transcript, *, settled: bool) -> str:
    """What in the delivered part forbids going on by ids, "" if nothing does."""
    if transcript.opaque or transcript.unreadable:
        return "something was delivered that we cannot read"
    for index in _open(asked, transcript):
        choice = transcript.choices.get(index, Choice())
        if not _prompt_of(asked, transcript, index):
            return "the ids of the prompt never came"
        if choice.texts and not choice.ids:
            return "the engine named no ids"
        if choice.channels.keys() - set(MAIN) and not choice.mark.text:
            return "reasoning is still open, which only the engine's own parser can follow"
        if not (asked.greedy or settled) and len(choice.main) > choice.mark.text:
            return "the last event bundled several tokens, and whether text of theirs is held back is not known"
        if not asked.greedy and len(choice.ids) > choice.mark.ids and (asked.wants_ids or asked.wants_logprobs):
            return "tokens were delivered whose text is held back, and sampled anew they would differ"
        if asked.limit is not None and asked.limit <= choice.mark.ids:
            return "no token is left to generate"
    return ""


def _against_replay(asked: Asked, transcript: Transcript, *, seeded: bool) -> str:
    if transcript.opaque or transcript.unreadable:
        return "something was delivered that we cannot compare"
    if not asked.greedy and asked.seed is None and not seeded:
        return "an answer sampled without a seed comes out differently every time"
    return ""


def _replay(asked: Asked, transcript: Transcript, sent: bytes, pace: Pace) -> Plan:
    redone = max((max(len(choice.ids), choice.texts) for choice in transcript.choices.values()), default=0)
    return Plan(
        way=Way.REPLAY,
        reason="the same request again, delivered tokens compared and dropped",
        endpoint=asked.endpoint,
        body=sent,
        choices=tuple(range(asked.choices)),
        prefill_tokens=transcript.prompt_tokens,
        redone_tokens=redone,
        expected_ms=transcript.prompt_tokens * pace.prefill_ms + (redone + 1) * pace.decode_ms,
    )


def _ids(asked: Asked, transcript: Transcript, pace: Pace) -> Plan:
    """One request with a prompt per choice. It has one max_tokens for all, so choices that have others wait."""
    choices = transcript.choices
    first, *others = _open(asked, transcript)
    limits = _limits(asked, choices.get(first, Choice()))
    together = [first, *(i for i in others if _limits(asked, choices.get(i, Choice())) == limits)]
    prompts: list[list[int]] = []
    redone = 0
    for index in together:
        choice = choices.get(index, Choice())
        prompts.append([*_prompt_of(asked, transcript, index), *choice.ids[: choice.mark.ids]])
        redone = max(redone, len(choice.ids) - choice.mark.ids)
    prefill = sum(map(len, prompts))
    return Plan(
        way=Way.IDS,
        reason="from the ids of the prompt and of what was delivered",
        endpoint=Endpoint.COMPLETIONS,
        body=_ids_body(asked, prompts, limits),
        choices=tuple(together),
        exact=asked.greedy,
        prefill_tokens=prefill,
        redone_tokens=redone,
        expected_ms=prefill * pace.prefill_ms + (redone + 1) * pace.decode_ms,
    )


def _ids_body(asked: Asked, prompts: list[list[int]], limits: tuple[int | None, int]) -> bytes:
    members = members_of(asked.body)
    body: dict[str, Any] = {name: members[name] for name in members if name in CARRIED and members[name] != NULL}
    body["prompt"] = prompts if len(prompts) > 1 else prompts[0]
    body |= {"stream": True, "stream_options": {"include_usage": True}, "return_token_ids": True}
    body["max_tokens"] = limits[0]
    if limits[1]:
        body["min_tokens"] = limits[1]
    if asked.wants_logprobs:
        body["logprobs"] = 0 if asked.endpoint is Endpoint.CHAT else int(asked.params.logprobs or 0)
    return msgspec.json.encode(body)


def _limits(asked: Asked, choice: Choice) -> tuple[int | None, int]:
    """max_tokens and min_tokens that are left to a choice."""
    done = choice.mark.ids
    left = None if asked.limit is None else asked.limit - done
    return left, max(0, (asked.params.min_tokens or 0) - done)


def _open(asked: Asked, transcript: Transcript) -> list[int]:
    ended = {index for index, choice in transcript.choices.items() if choice.finish}
    return [index for index in range(asked.choices) if index not in ended]


def _prompt_of(asked: Asked, transcript: Transcript, index: int) -> array[int]:
    """The prompt's ids of a choice; n choices share a prompt, and any of them may have brought it."""
    n = max(1, asked.params.n or 1)
    family = range(index // n * n, index // n * n + n)
    named = (transcript.choices[i].prompt_ids for i in family if i in transcript.choices)
    return next((ids for ids in named if ids), array("I"))
