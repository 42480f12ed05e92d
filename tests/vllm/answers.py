"""Whether two streamed answers are the same to a client: everything it can see of them, whatever pieces they came in.

Allowed to differ is what differs between two runs of one engine: the id of the answer and of its tool calls, the time,
and the last digits of log probabilities, which depend on what else the engine computes.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec

from router.core.events import data_of, split
from tests.router.core.answers import assemble, comparable

LOGPROB_TOLERANCE = 1e-3


class Ended(msgspec.Struct, frozen=True):
    """How an answer ended that is not whole."""

    how: str
    detail: str = ""


def read(stream: bytes) -> dict[str, Any] | Ended:
    """What a client made of a stream, or how it ended early."""
    events = [data for event in split(stream) if (data := data_of(event)) is not None]
    for data in events:
        if data != b"[DONE]" and (error := msgspec.json.decode(data).get("error")):
            if events[-1] == b"[DONE]":
                return Ended("a lie", "an error, and [DONE] behind it")
            return Ended("an honest error", error["message"])
    if not events or events[-1] != b"[DONE]":
        return Ended("truncated", f"after {len(events)} events, no error and no [DONE]")
    try:
        answer = assemble(stream)
    except AssertionError as error:
        return Ended("malformed", str(error).splitlines()[0])
    answer = comparable(answer)
    for choice in answer["choices"].values():
        choice["logprobs"] = {}
    return answer | {"logprobs": _logprobs(stream), "prompts": _prompts(stream)}


def difference(expected: Any, got: Any, at: str = "") -> str:
    """Where the two differ first, "" if nowhere."""
    if isinstance(expected, float) and isinstance(got, float | int):
        same = math.isclose(expected, got, rel_tol=0.0, abs_tol=LOGPROB_TOLERANCE)
        return "" if same else f"{at}: {expected!r} became {got!r}"
    if isinstance(expected, dict) and isinstance(got, dict):
        if list(map(str, sorted(expected, key=str))) != list(map(str, sorted(got, key=str))):
            return f"{at}: {_short(sorted(expected, key=str))} became {_short(sorted(got, key=str))}"
        return next((found for key in expected if (found := difference(expected[key], got[key], f"{at}.{key}"))), "")
    if isinstance(expected, list) and isinstance(got, list):
        for number, (one, other) in enumerate(zip(expected, got, strict=False)):
            if found := difference(one, other, f"{at}[{number}]"):
                return found
        return "" if len(expected) == len(got) else f"{at}: {len(expected)} entries became {len(got)}"
    return "" if expected == got else f"{at}: {_short(expected)} became {_short(got)}"


def unfair(answer: dict[str, Any], expected: dict[str, Any]) -> str:
    """What is wrong with an answer that chance may have made another than `expected`, "" if nothing is."""
    same_form = difference(_form(expected), _form(answer))
    if same_form:
        return same_form
    for index, choice in answer["choices"].items():
        entries = {name: len(values) for name, values in answer["logprobs"].get(index, {}).items()}
        if choice["ids"] and any(count != len(choice["ids"]) for count in entries.values()):
            return f"choice {index} has {len(choice['ids'])} ids and {entries} logprobs"
    return ""


def _form(answer: dict[str, Any]) -> dict[str, Any]:
    """What is the same in every answer to a request that only its limit ends."""
    choices = {
        index: {"ids": len(choice["ids"]), "finish": choice.get("finish"), "kinds": sorted(choice["text"])}
        for index, choice in answer["choices"].items()
    }
    counts = {
        index: {name: len(values) for name, values in lists.items()} for index, lists in answer["logprobs"].items()
    }
    kept = ("heads", "roles", "usage", "done", "prompts")
    return {name: answer[name] for name in kept} | {"choices": choices, "logprobs": counts}


def _chunks(stream: bytes) -> list[dict[str, Any]]:
    return [msgspec.json.decode(data) for event in split(stream) if (data := data_of(event)) not in (None, b"[DONE]")]


def _logprobs(stream: bytes) -> dict[int, dict[str, list[Any]]]:
    """As they came, unrounded, by choice."""
    found: dict[int, dict[str, list[Any]]] = {}
    for chunk in _chunks(stream):
        for said in chunk["choices"]:
            for name, values in (said.get("logprobs") or {}).items():
                found.setdefault(said["index"], {}).setdefault(name, []).extend(values or [])
    return found


def _prompts(stream: bytes) -> list[list[int]]:
    """The prompt's ids, as often as they were sent."""
    chunks = _chunks(stream)
    found = [chunk.get("prompt_token_ids") for chunk in chunks]
    found += [said.get("prompt_token_ids") for chunk in chunks for said in chunk["choices"]]
    return [ids for ids in found if ids]


def _short(value: Any) -> str:
    said = repr(value)
    return said if len(said) <= 160 else f"{said[:90]} ... {said[-60:]}"
