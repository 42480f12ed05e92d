"""What a client makes of a stream, and small helpers to break one and go on. For the tests of resume."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import msgspec

from router.core.asked import Asked
from router.core.continuation import Plan, Way, plan
from router.core.events import DONE, data_of, event_of, examine, is_plain, split
from router.core.splice import Splice, closing
from router.core.transcript import Mark, Transcript


def documents(stream: bytes) -> list[dict[str, Any]]:
    """The JSON of a stream's events."""
    return [msgspec.json.decode(data) for event in split(stream) if (data := data_of(event)) not in (None, b"[DONE]")]


def assemble(stream: bytes) -> dict[str, Any]:
    """The answer a client has after these bytes: everything it can see of it, whatever pieces it came in."""
    choices: dict[int, dict[str, Any]] = {}
    heads, usages, roles = set(), [], []
    for chunk in documents(stream):
        heads.add((chunk["id"], chunk["object"], chunk["created"], chunk["model"]))
        usages += [chunk["usage"]] if chunk.get("usage") and not chunk["choices"] else []
        for said in chunk["choices"]:
            choice = choices.setdefault(said["index"], {"ids": [], "logprobs": {}, "calls": {}, "text": {}})
            assert "finish" not in choice, "nothing follows the end of a choice"
            delta = said.get("delta") or {"text": said.get("text")}
            roles += [said["index"]] if "role" in delta else []
            _hear(choice, delta)
            choice["ids"] += said.get("token_ids") or []
            for name, values in (said.get("logprobs") or {}).items():
                choice["logprobs"].setdefault(name, []).extend(values or [])
            if said.get("finish_reason"):
                choice["finish"] = (said["finish_reason"], said.get("stop_reason"))
    assert len(roles) == len(set(roles)), "a role is said once"
    return {
        "choices": choices,
        "heads": heads,
        "roles": sorted(roles),
        "usage": [(usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) for usage in usages],
        "done": stream.count(b"data: [DONE]\n\n"),
    }


def _hear(choice: dict[str, Any], delta: dict[str, Any]) -> None:
    for name, value in delta.items():
        if name == "tool_calls":
            for call in value:
                known = choice["calls"].setdefault(call["index"], {"id": [], "name": "", "arguments": ""})
                known["id"] += [call["id"]] if call.get("id") else []
                for field, text in (call.get("function") or {}).items():
                    known[field] += text or ""
        elif name != "role" and value:
            choice["text"][name] = choice["text"].get(name, "") + value


def comparable(answer: dict[str, Any]) -> dict[str, Any]:
    """Without what differs between two runs of a deterministic engine: last digits, ids of calls, the head."""
    choices = {}
    for index, choice in answer["choices"].items():
        calls = {i: {**call, "id": len(call["id"])} for i, call in choice["calls"].items()}
        logprobs = {
            name: [_rounded(value) for value in values] for name, values in choice["logprobs"].items() if values
        }
        choices[index] = {**choice, "calls": calls, "logprobs": logprobs}
    return {**answer, "choices": choices, "heads": len(answer["heads"])}


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 3)
    if isinstance(value, dict):
        return {name: _rounded(inner) for name, inner in value.items()}
    return [_rounded(inner) for inner in value] if isinstance(value, list) else value


def blocks_of(events: Sequence[bytes], rng: random.Random) -> Iterator[bytes]:
    """The events in blocks of one or a few, as reads bring them."""
    at = 0
    while at < len(events):
        size = rng.choice((1, 1, 2, 5))
        yield b"".join(events[at : at + size])
        at += size


def good(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """What the relay takes of them: up to the first trouble or the end."""
    for block in blocks:
        if is_plain(block):
            yield block
            continue
        seen = examine(block)
        if seen.good:
            yield seen.good
        if seen.trouble or seen.done:
            return


def carry(
    asked: Asked,
    first: Sequence[bytes],
    leg: Callable[[Plan, Transcript], Sequence[bytes]],
    *,
    rng: random.Random,
    sent: bytes = b"",
    **known: Any,
) -> tuple[bytes, list[Plan]]:
    """Deliver `first`, then legs as planned until the answer is whole or refused: what a pipeline does, in small."""
    transcript = Transcript(asked)
    delivered = list(good(blocks_of(first, rng)))
    transcript.fold(delivered)
    plans: list[Plan] = []
    while not transcript.done and len(plans) < 20:
        made = plan(asked, transcript, sent=sent, **known)
        plans.append(made)
        if made.way is Way.REFUSE:
            break
        if made.way is Way.FINISH:
            new = [closing(transcript)]
        else:
            splice = Splice(made, transcript, asked)
            new = [out for block in good(blocks_of(leg(made, transcript), rng)) if (out := splice.feed(block))]
        transcript.fold(new)
        delivered += new
    return b"".join(delivered), plans


def continued(whole: Sequence[bytes], made: Plan, transcript: Transcript, rng: random.Random) -> list[bytes]:
    """What an engine would send for a plan by ids: the rest of the whole answer, as completion events, in other pieces.

    Faithful as far as recorded continuations are: the same tokens, and the same text where none was held back."""
    streams = []
    for number, index in enumerate(made.choices):
        start = transcript.choices[index].mark if index in transcript.choices else Mark()
        pieces = [piece | {"index": number} for piece in _rest(whole, index, start)]
        streams.append([(at + rng.random(), number, piece) for at, piece in enumerate(_bundled(pieces, rng))])
    mixed = [piece for _, _, piece in sorted((one for stream in streams for one in stream), key=lambda one: one[:2])]
    usage = {
        "prompt_tokens": made.prefill_tokens,
        "total_tokens": 0,
        "completion_tokens": sum(len(piece["token_ids"]) for piece in mixed),
    }
    head = {"id": "cmpl-9", "object": "text_completion", "created": 9, "model": "tiny"}
    events = [event_of(head | {"choices": [piece]}) for piece in mixed]
    return [*events, event_of(head | {"choices": [], "usage": usage, "system_fingerprint": "f"}), DONE]


def _rest(whole: Sequence[bytes], index: int, start: Mark) -> Iterator[dict[str, Any]]:
    """A completion's choices for what the whole answer says of a choice after `start`."""
    ids = 0
    for chunk in documents(b"".join(whole)):
        for said in chunk["choices"]:
            if said["index"] != index or not (said.get("token_ids") or said["finish_reason"]):
                continue
            ids += len(said["token_ids"] or [])
            if ids > start.ids or (said["finish_reason"] and not said["token_ids"]):
                assert ids - len(said["token_ids"]) >= start.ids, "marks lie between events"
                text = said.get("text") or (said.get("delta") or {}).get("content") or ""
                yield said | {"text": text, "logprobs": _as_lists(said.get("logprobs"), start.offset)}


def _as_lists(logprobs: dict[str, Any] | None, offset: int) -> dict[str, Any] | None:
    if logprobs is None:
        return None
    if "content" in logprobs:
        entries = logprobs["content"]
        return {
            "text_offset": [0] * len(entries),
            "token_logprobs": [entry["logprob"] for entry in entries],
            "tokens": [entry["token"] for entry in entries],
            "top_logprobs": [{entry["token"]: entry["logprob"]} for entry in entries],
        }
    return logprobs | {"text_offset": [at - offset for at in logprobs["text_offset"]]}


def _bundled(pieces: Iterable[dict[str, Any]], rng: random.Random) -> list[dict[str, Any]]:
    """Neighbours joined here and there, as a busy engine joins them."""
    joined: list[dict[str, Any]] = []
    for piece in pieces:
        if joined and rng.random() < 0.3:
            last = joined.pop()
            logprobs = last["logprobs"] and {
                name: values + piece["logprobs"][name] for name, values in last["logprobs"].items()
            }
            joined.append(
                piece
                | {
                    "text": last["text"] + piece["text"],
                    "token_ids": last["token_ids"] + piece["token_ids"],
                    "logprobs": logprobs,
                }
            )
        else:
            joined.append(piece)
    return joined
