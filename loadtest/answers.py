"""What a client makes of a streamed answer, and what must never be in one: for tests that break engines on purpose.

Reads the whole stream at its end. Two answers to the same request are equal when text, ends and counts are; a stream
that was broken and continued must also look like one: one id, one role per choice, one usage, `[DONE]` once and last.
"""

from __future__ import annotations

from typing import Any

import msgspec


class Answer(msgspec.Struct, kw_only=True):
    texts: dict[int, str] = {}
    """By choice."""
    ends: dict[int, str] = {}
    prompt_tokens: int = 0
    output_tokens: int = 0
    error: str = ""
    """Of an event in the stream."""
    done: bool = False
    oddities: list[str] = []
    """What no single engine would have sent."""

    @property
    def complete(self) -> bool:
        return self.done and not self.error and bool(self.ends)

    def differences(self, other: Answer, *, texts: bool = True) -> list[str]:
        """From what it should be; empty when they are equal. Without `texts` only ends and counts are compared."""
        found = []
        for index in sorted({*self.texts, *other.texts}) if texts else ():
            mine, right = self.texts.get(index, ""), other.texts.get(index, "")
            if mine != right:
                found.append(f"choice {index}: {_where(mine, right)}")
        names = ("ends", "prompt_tokens", "output_tokens")
        pairs = [(name, getattr(self, name), getattr(other, name)) for name in names]
        return found + [f"{name}: {mine} instead of {right}" for name, mine, right in pairs if mine != right]


def read(stream: bytes) -> Answer:
    answer = Answer()
    ids: set[str] = set()
    roles: dict[int, int] = {}
    usages = 0
    for event in stream.split(b"\n\n"):
        if not event.startswith(b"data: "):
            continue
        if answer.done:
            answer.oddities.append("something comes after [DONE]")
        if event == b"data: [DONE]":
            answer.done = True
            continue
        try:
            said = msgspec.json.decode(event[6:])
        except msgspec.DecodeError:
            answer.oddities.append(f"an event that is no JSON: {event[:80]!r}")
            continue
        if "error" in said:
            answer.error = str(said["error"].get("message") or said["error"])
            continue
        ids.add(said["id"])
        usages += bool(said.get("usage"))
        _take(answer, said, roles)
    if len(ids) > 1:
        answer.oddities.append(f"{len(ids)} ids")
    if usages > 1:
        answer.oddities.append(f"{usages} usages")
    if any(n > 1 for n in roles.values()):
        answer.oddities.append("a role twice")
    return answer


def _take(answer: Answer, said: dict[str, Any], roles: dict[int, int]) -> None:
    if usage := said.get("usage"):
        answer.prompt_tokens, answer.output_tokens = usage["prompt_tokens"], usage["completion_tokens"]
    for choice in said.get("choices") or ():
        index = choice["index"]
        delta = choice.get("delta") or {}
        roles[index] = roles.get(index, 0) + ("role" in delta and delta["role"] is not None)
        text = choice.get("text") or delta.get("content") or ""
        if index in answer.ends and text:
            answer.oddities.append(f"text after the end of choice {index}")
        answer.texts[index] = answer.texts.get(index, "") + text
        if choice.get("finish_reason"):
            answer.ends[index] = choice["finish_reason"]


def _where(mine: str, right: str) -> str:
    same = next((i for i, (a, b) in enumerate(zip(mine, right, strict=False)) if a != b), min(len(mine), len(right)))
    return f"after {same} characters {mine[same : same + 40]!r} instead of {right[same : same + 40]!r}"
