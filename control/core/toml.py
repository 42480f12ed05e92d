"""Write the small part of TOML that settings files use: tables, arrays of tables, scalars and lists of scalars.

The standard library reads TOML and does not write it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def dumps(tree: Mapping[str, Any]) -> str:
    return "\n".join(_table(tree, ())).strip() + "\n"


def _table(table: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[str]:
    plain = {k: v for k, v in table.items() if not isinstance(v, Mapping) and not _is_tables(v)}
    if path and (plain or not table):
        yield f"\n[{'.'.join(path)}]"
    yield from (f"{_key(k)} = {_value(v)}" for k, v in plain.items())
    for name, value in table.items():
        if isinstance(value, Mapping):
            yield from _table(value, (*path, _key(name)))
        elif _is_tables(value):
            for item in value:
                yield f"\n[[{'.'.join((*path, _key(name)))}]]"
                yield from _item(item, (*path, _key(name)))


def _item(table: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[str]:
    yield from (f"{_key(k)} = {_value(v)}" for k, v in table.items() if not isinstance(v, Mapping))
    for name, value in table.items():
        if isinstance(value, Mapping):
            yield from _table(value, (*path, _key(name)))


def _is_tables(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(v, Mapping) for v in value)


def _key(name: str) -> str:
    return name if name.replace("_", "").replace("-", "").isalnum() and name.isascii() else _string(name)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_value(v) for v in value) + "]"
    return _string(str(value))


def _string(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c >= " " and c != "\x7f" else f"\\u{ord(c):04x}" for c in escaped) + '"'
