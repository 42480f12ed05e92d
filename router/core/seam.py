"""The seam of one choice: what the client has of it, and what of a new leg's events lies beyond.

A new leg begins before the end of what was delivered: a replay at the first token, a continuation by ids where the last
text was whole. What it repeats is compared, piece by piece, and taken away; an event that lies across the end is cut
there. Each kind of content (every text channel, token ids, logprob entries) has its own cursor, because a replay may be
cut into other events than the answer it repeats. An event that goes beyond the end in one kind while another still
lacks something was not made by the same tokens.

Logprobs are counted, not compared: their last digits depend on what else the engine computes.
"""

from __future__ import annotations

from array import array
from typing import Any

from router.core.chunks import calls_of
from router.core.transcript import MAIN, Choice, Mark


class Diverged(Exception):  # noqa: N818 - reads as what it is where it is caught
    """The new leg differs from what the client has. Nothing of it may be shown."""


class Cursor:
    """How far a new leg has repeated one kind of content."""

    __slots__ = ("_at", "_end", "_had")

    def __init__(self, had: bytearray | array[int], start: int) -> None:
        self._had = had
        self._at = start
        self._end = len(had)

    @property
    def covered(self) -> bool:
        return self._at >= self._end

    def beyond(self, new: Any) -> Any:
        """The part of `new` that the client does not have; raise Diverged where the rest is not what it has."""
        old = min(len(new), self._end - self._at)
        if self._had[self._at : self._at + old] != new[:old]:
            raise Diverged(f"the new leg differs {self._at} units after the start of what was delivered")
        self._at += old
        return new[old:]


class Seam:
    """All cursors of one choice. `start` is where a leg by ids begins; None for a replay, which begins at nothing."""

    __slots__ = (
        "_behind",
        "_entries",
        "_finish",
        "_ids",
        "_role",
        "_texts",
        "_tools",
        "compares_ids",
        "finished",
        "offset",
    )

    def __init__(self, choice: Choice, start: Mark | None = None) -> None:
        texts = choice.channels.items()
        if start is not None:  # its engine knows one text only
            texts = {name: text for name, text in texts if name in MAIN}.items()
        start = start or Mark()
        self._texts = {channel: Cursor(text, start.text) for channel, text in texts}
        self._ids = Cursor(choice.ids, start.ids)
        self._entries = choice.entries - start.entries
        self._role = choice.role
        self._tools = set(choice.tool_ids)
        self._finish = choice.finish
        self._behind = False
        self.finished = bool(choice.finish)
        self.offset = start.offset
        """Added to the offsets in a completion's logprobs."""
        self.compares_ids = bool(choice.ids) or not choice.texts
        """False when the client's part came from an engine that names no ids: the rest then goes without."""

    @property
    def covered(self) -> bool:
        if not self._behind:
            texts = all(cursor.covered for cursor in self._texts.values())
            self._behind = texts and self._ids.covered and self._entries <= 0
        return self._behind

    @property
    def passes(self) -> bool:
        """Whether an event of one id and its text is all new to the client, and nothing of it need be looked at."""
        return self.covered and not self.finished and self.compares_ids

    def cut(self, said: dict[str, Any]) -> dict[str, Any] | None:
        """What of a choice's event is new to the client, None if nothing is; raise Diverged."""
        old = not self.covered
        if self._finish:
            self._compare_ended(said)
            return None
        new = self._cut(said)
        brings = self._brings(new)
        if brings and not self.covered:
            raise Diverged("the new leg goes on although part of what was delivered is missing in it")
        self.finished = self.finished or bool(new.get("finish_reason"))
        return new if brings or not (old or self._is_role(said)) else None

    def _compare_ended(self, said: dict[str, Any]) -> None:
        finish = said.get("finish_reason")
        if self._brings(self._cut(said) | {"finish_reason": None}):
            raise Diverged("the new leg goes on after what was a choice's end")
        if finish and (finish != self._finish or not self.covered):
            raise Diverged(f"the choice ended with {self._finish!r}, the new leg with {finish!r}")

    def _cut(self, said: dict[str, Any]) -> dict[str, Any]:
        new = dict(said)
        if isinstance(said.get("text"), str):
            new["text"] = self._text("text", said["text"])
        if said.get("delta") is not None:
            new["delta"] = self._cut_delta(said["delta"])
        if said.get("token_ids"):
            new["token_ids"] = self._ids.beyond(array("I", said["token_ids"])).tolist()
            if not self.compares_ids:
                del new["token_ids"]
        if said.get("logprobs"):
            new["logprobs"] = self._cut_logprobs(said["logprobs"])
        return new

    def _cut_delta(self, delta: dict[str, Any]) -> dict[str, Any]:
        new: dict[str, Any] = {}
        for name, value in delta.items():
            if name == "role":
                if not self._role:
                    new[name] = value
            elif isinstance(value, str):
                new[name] = self._text(name, value)
            elif name == "tool_calls" and value:
                if calls := [call for call in map(self._cut_call, value) if call]:
                    new[name] = calls
            elif name == "function_call" and value:
                new[name] = self._cut_function(name, value)
            else:
                new[name] = value
        return new

    def _cut_call(self, call: dict[str, Any]) -> dict[str, Any] | None:
        """A piece of a tool call without what the client has; ids are made up per run, so the first one stays."""
        (piece,) = calls_of([call])
        known = piece.index in self._tools or f"tool_calls.{piece.index}.name" in self._texts
        new = {name: value for name, value in call.items() if not known or name not in ("id", "type")}
        if piece.function is not None:
            new["function"] = self._cut_function(f"tool_calls.{piece.index}", call["function"])
        return new if not known or any((new.get("function") or {}).values()) else None

    def _cut_function(self, channel: str, function: dict[str, Any]) -> dict[str, Any]:
        cut = {
            name: self._text(f"{channel}.{name}", value) if isinstance(value, str) else value
            for name, value in function.items()
        }
        had = f"{channel}.name" in self._texts
        return {name: value for name, value in cut.items() if name != "name" or value or not had}

    def _text(self, channel: str, text: str) -> str:
        cursor = self._texts.get(channel)
        return text if cursor is None else bytes(cursor.beyond(text.encode())).decode()

    def _cut_logprobs(self, logprobs: dict[str, Any]) -> dict[str, Any] | None:
        """Drop as many entries as the client has of them; every list of a completion's logprobs is one per token."""
        lists = {name: value for name, value in logprobs.items() if isinstance(value, list)}
        count = max(map(len, lists.values()), default=0)
        old = min(count, self._entries)
        self._entries -= old
        if old and old == count:
            return None
        new = {name: value[old:] for name, value in lists.items()}
        if "text_offset" in new:
            new["text_offset"] = [offset + self.offset for offset in new["text_offset"]]
        return logprobs | new

    def _brings(self, new: dict[str, Any]) -> bool:
        """Whether anything is left for the client."""
        delta = {name: value for name, value in (new.get("delta") or {}).items() if name != "role" or not self._role}
        if "function_call" in delta:
            delta["function_call"] = any((delta["function_call"] or {}).values())
        return bool(
            any(delta.values())
            or new.get("text")
            or new.get("token_ids")
            or new.get("logprobs")
            or new.get("finish_reason")
        )

    def _is_role(self, said: dict[str, Any]) -> bool:
        """Whether the event only opens a choice that the client has opened already."""
        return bool(self._role and "role" in (said.get("delta") or {}))
