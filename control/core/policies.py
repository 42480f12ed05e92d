"""A model's policy as people read and write it: fields in words, `key=value` into changes. Pure."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from typing import Any

import msgspec

from wire.records import ROUTING, AdmissionClass, ModelPolicy

MEANINGS = {
    "routing": f"how a replica is chosen: {', '.join(ROUTING)}",
    "adapter_of": "for a LoRA adapter: the base model whose replicas serve it",
    "fallback": "model that answers when none of this one's replicas is ready and the client allows it",
    "admission": f"how requests wait under pressure: {', '.join(AdmissionClass)}",
    "first_token_limit_s": "a replica is given up when its first token takes longer",
    "between_tokens_limit_s": "a stream is given up there when it is silent for longer",
    "total_limit_s": "a request ends after so long, whatever it does",
    "hedge": "ask a second replica when a first token is late",
    "resume_buffer_s": "a stream goes on so long after its client's connection broke; 0: not at all",
    "resume_buffer_bytes": "what of such a stream is kept at most",
}


class Row(msgspec.Struct, frozen=True):
    key: str
    value: str
    default: str
    """Empty where the value is the default."""
    meaning: str


def rows(policy: ModelPolicy) -> list[Row]:
    found = []
    for field in _fields():
        value = getattr(policy, field.name)
        default = "" if value == field.default else _show(field.default)
        found.append(Row(field.name, _show(value), default, MEANINGS.get(field.name, "")))
    return found


def changes(model: str, sets: Iterable[str], unsets: Iterable[str]) -> dict[str, Any]:
    """From `key=value` and keys to go back to their defaults. Raise ValueError with a sentence."""
    found: dict[str, Any] = {}
    for text in sets:
        name, sign, value = text.partition("=")
        if not sign:
            raise ValueError(f"{text!r} is no change; write it like hedge=true")
        found[name.strip()] = _value(_field(name.strip()), value.strip())
    for name in unsets:
        found[name] = _field(name).default
    for name in ("fallback", "adapter_of"):
        if found.get(name) == model:
            raise ValueError(f"{name}: {model} cannot be its own")
    return found


def described(before: ModelPolicy | None, after: ModelPolicy) -> list[str]:
    """What changed, a line each."""
    old = before or ModelPolicy(model=after.model)
    return [
        f"{field.name}: {_show(getattr(old, field.name)) or 'none'} -> {_show(getattr(after, field.name)) or 'none'}"
        for field in _fields()
        if getattr(old, field.name) != getattr(after, field.name)
    ]


def _fields() -> list[msgspec.structs.FieldInfo]:
    return [field for field in msgspec.structs.fields(ModelPolicy) if field.name not in ("v", "model")]


def _field(name: str) -> msgspec.structs.FieldInfo:
    found = {field.name: field for field in _fields()}
    if name not in found:
        raise ValueError(f"a policy has no {name!r}; it has {', '.join(found)}")
    return found[name]


def _value(field: msgspec.structs.FieldInfo, text: str) -> Any:
    try:
        value = msgspec.convert(text, field.type, strict=False)
    except msgspec.ValidationError as error:
        raise ValueError(f"{field.name}: {text!r} will not do: {_wanted(field)}") from error
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if number and not 0.0 <= value < float("inf"):
        raise ValueError(f"{field.name}: {text!r} will not do: {_wanted(field)}")
    if field.name.endswith("_limit_s") and not value:
        raise ValueError(f"{field.name}: a limit of 0 would end every request")
    if field.name == "routing" and value not in ROUTING:
        raise ValueError(f"routing: {text!r} will not do: it is one of {', '.join(ROUTING)}")
    return value


def _wanted(field: msgspec.structs.FieldInfo) -> str:
    if isinstance(field.type, type) and issubclass(field.type, enum.Enum):
        return f"it is one of {', '.join(field.type)}"
    return {bool: "it is true or false", float: "it is a number of at least 0", int: "it is a whole number"}[field.type]


def _show(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)
