"""Texts that must have a form: JSON for a schema, and tool calls as a Hermes-style parser would cut them up.

Pure. The value is chosen by a number, so the same prompt and seed give the same JSON. It knows the schema words that
people use (type, properties, required, items, enum, const, anyOf, oneOf, allOf, $ref, bounds, lengths); it does not
know `pattern`, `format` other than dates, `not`, or `if`.
"""

from __future__ import annotations

from typing import Any

import msgspec

from node_agent.engines.simulated.requests import ChatBody, CompletionBody, Function
from node_agent.engines.simulated.tokens import encode

_WORDS = ("amber", "bridge", "cedar", "delta", "ember", "fjord", "garnet", "harbour")
_DEEP = 5
"""Below this, only what a schema requires is made, so that recursive schemas end."""


class ToolView(msgspec.Struct, kw_only=True):
    """Where a call's arguments lie in the text that the model says."""

    id: str
    name: str
    before: int
    arguments: int
    named: bool = False
    """The client named the function; vLLM then says `stop` where a call of the model's choice says `tool_calls`."""
    forced: bool = False
    """A call was demanded."""
    shown: int = 0
    """Characters of the text that were seen."""
    told: bool = False
    """The name was shown."""
    carried: str = ""

    @property
    def finish(self) -> str:
        return "stop" if self.named else "tool_calls"

    def see(self, text: str, *, last: bool) -> tuple[bool, str]:
        """Whether the name shows with this text, and the arguments in it: those that come with the name wait for the
        next text, if there is one."""
        start, self.shown = self.shown, self.shown + len(text)
        low, high = max(start, self.before), min(self.shown, self.before + self.arguments)
        arguments = self.carried + (text[low - start : high - start] if high > low else "")
        names = not self.told and self.shown >= self.before
        self.told = self.told or names
        self.carried = arguments if names and not last else ""
        return names, "" if self.carried else arguments


def scripted(body: ChatBody | CompletionBody, number: int) -> tuple[list[int], ToolView | None]:
    """Token ids that the answer must consist of, empty when it is free; and the tool call in it."""
    if isinstance(body, ChatBody) and (function := _called(body, number)):
        arguments = _json(make(function.parameters or {"type": "object"}, number))
        named = isinstance(body.tool_choice, dict)
        # With a named function the grammar leaves nothing to say but the arguments.
        before = "" if named else f'<tool_call>\n{{"name": {_json(function.name)}, "arguments": '
        view = ToolView(
            id=f"chatcmpl-tool-{number:016x}",
            name=function.name,
            before=len(before),
            arguments=len(arguments),
            named=named,
            forced=named or body.tool_choice == "required",
        )
        return encode(arguments if named else f"{before}{arguments}}}\n</tool_call>"), view
    form = body.response_format or {}
    if form.get("type") == "json_object":
        return encode(_json({"answer": " ".join(_pick(number, i) for i in range(5)), "count": number % 100})), None
    if form.get("type") == "json_schema":
        schema = (form.get("json_schema") or {}).get("schema") or {}
        return encode(_json(make(schema, number))), None
    return [], None


def _called(body: ChatBody, number: int) -> Function | None:
    """With "auto" the model calls a tool when the last word is the user's, and talks about a tool's answer."""
    choice = body.tool_choice if body.tool_choice is not None else "auto"
    if not body.tools or choice == "none":
        return None
    functions = [tool.function for tool in body.tools]
    if isinstance(choice, dict):
        name = (choice.get("function") or {}).get("name")
        return next((f for f in functions if f.name == name), None)
    if choice == "auto" and (not body.messages or body.messages[-1].role != "user"):
        return None
    return functions[number % len(functions)]


def make(schema: dict[str, Any] | bool, number: int) -> Any:
    """A value that the schema allows."""
    root = schema if isinstance(schema, dict) else {}
    return _Maker(root, number).value(root, 0)


class _Maker:
    def __init__(self, root: dict[str, Any], number: int) -> None:
        self.root = root
        self.number = number

    def _next(self, below: int) -> int:
        self.number = (self.number * 6364136223846793005 + 1442695040888963407) & ((1 << 64) - 1)
        return (self.number >> 33) % below

    def value(self, schema: Any, depth: int) -> Any:
        if not isinstance(schema, dict):
            return _WORDS[self._next(len(_WORDS))]
        schema = self._resolved(schema)
        if "const" in schema:
            return schema["const"]
        if schema.get("enum"):
            return schema["enum"][self._next(len(schema["enum"]))]
        for word in ("anyOf", "oneOf"):
            if schema.get(word):
                options = schema[word]
                # The last option of a deep choice tends to be null or a leaf.
                chosen = options[-1] if depth > _DEEP else options[self._next(len(options))]
                return self.value(chosen, depth + 1)
        return self._typed(schema, depth)

    def _resolved(self, schema: dict[str, Any]) -> dict[str, Any]:
        while "$ref" in schema:
            target: Any = self.root
            for part in str(schema["$ref"]).lstrip("#/").split("/"):
                target = target.get(part, {}) if part else target
            schema = {**target, **{k: v for k, v in schema.items() if k != "$ref"}}
        for part in schema.get("allOf") or ():
            more = self._resolved(part)
            properties = {**schema.get("properties", {}), **more.get("properties", {})}
            required = [*schema.get("required", []), *more.get("required", [])]
            schema = {**more, **schema, "properties": properties, "required": required}
        return schema

    def _typed(self, schema: dict[str, Any], depth: int) -> Any:
        kind = schema.get("type")
        if isinstance(kind, list):
            kind = kind[-1] if depth > _DEEP else kind[0]
        if kind is None:
            kind = "object" if schema.get("properties") else "array" if "items" in schema else "string"
        match kind:
            case "object":
                return self._object(schema, depth)
            case "array":
                least, most = schema.get("minItems", 0), schema.get("maxItems", 3)
                count = least if depth > _DEEP else max(least, min(most, 1 + self._next(2)))
                return [self.value(schema.get("items", {}), depth + 1) for _ in range(count)]
            case "integer":
                return self._number(schema)
            case "number":
                return float(self._number(schema))
            case "boolean":
                return bool(self._next(2))
            case "null":
                return None
            case _:
                return self._string(schema)

    def _object(self, schema: dict[str, Any], depth: int) -> dict[str, Any]:
        required = schema.get("required", [])
        made = {
            name: self.value(inner, depth + 1)
            for name, inner in schema.get("properties", {}).items()
            if depth <= _DEEP or name in required
        }
        return made | {name: self.value({}, depth + 1) for name in required if name not in made}

    def _number(self, schema: dict[str, Any]) -> int:
        low = schema.get("minimum", schema.get("exclusiveMinimum", -1) + 1)
        high = schema.get("maximum", schema.get("exclusiveMaximum", low + 101) - 1)
        step = schema.get("multipleOf", 1)
        first = -(-low // step)
        return int((first + self._next(max(1, int(high // step - first) + 1))) * step)

    def _string(self, schema: dict[str, Any]) -> str:
        if schema.get("format") == "date":
            return f"2026-{1 + self._next(12):02}-{1 + self._next(28):02}"
        if schema.get("format") == "date-time":
            return f"2026-{1 + self._next(12):02}-{1 + self._next(28):02}T12:00:00Z"
        text = _WORDS[self._next(len(_WORDS))]
        while len(text) < schema.get("minLength", 0):
            text += " " + _WORDS[self._next(len(_WORDS))]
        return text[: schema.get("maxLength", len(text))]


def _pick(number: int, at: int) -> str:
    return _WORDS[(number >> (3 * at)) % len(_WORDS)]


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()
