"""Settings of a process: a frozen msgspec struct, read once at the start from defaults, a TOML file, the environment
and flags, each overruling the one before. Policy that changes at run time is not a setting: it lies in the registry.

    class RouterSettings(Settings, frozen=True, kw_only=True):
        port: Annotated[int, Meta(ge=0, le=65535, description="TCP port for clients")] = 8000

    settings, origins = read(RouterSettings, section="router", flags=vars(parser.parse_args()), env=os.environ)

reads `[router] port = ...` of the file named by --config or SWITCHYARD_CONFIG, then SWITCHYARD_ROUTER_PORT, then
--port. Nested structs become --tls-cert, SWITCHYARD_ROUTER_TLS_CERT and `[router.tls] cert = ...`. Tuples of strings
are comma separated in flags and in the environment.
"""

from __future__ import annotations

import argparse
import difflib
import enum
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import msgspec
from msgspec import inspect

ENV_PREFIX = "SWITCHYARD"


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of every settings struct: unknown names are errors, because a misspelt setting does nothing."""


S = TypeVar("S", bound=Settings)


class LogLevel(enum.StrEnum):
    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class SettingsError(ValueError):
    """What is wrong, where it was said, and what would be right, in one sentence."""


class Field(msgspec.Struct, frozen=True):
    """One leaf of a settings struct."""

    path: tuple[str, ...]
    default: Any
    type: inspect.Type
    description: str

    @property
    def flag(self) -> str:
        return "--" + "-".join(self.path).replace("_", "-")

    def variable(self, section: str) -> str:
        return "_".join((ENV_PREFIX, section, *self.path)).upper().replace("-", "_")


def fields(cls: type[msgspec.Struct], at: tuple[str, ...] = ()) -> Iterator[Field]:
    """The leaves of a settings struct in the order they were declared; lists of structs are for the file only."""
    get_type_hints(cls, include_extras=True)
    struct = inspect.type_info(cls)
    assert isinstance(struct, inspect.StructType)
    for field in struct.fields:
        kind, description = _unwrap(field.type)
        default = field.default_factory() if field.default_factory is not msgspec.NODEFAULT else field.default
        if isinstance(kind, inspect.StructType):
            yield from fields(kind.cls, (*at, field.name))
        elif not _holds_structs(kind):
            yield Field((*at, field.name), default, kind, description)


def add_flags(parser: argparse.ArgumentParser, cls: type[Settings], *, section: str) -> None:
    """A flag per setting, with its description, unit, default and environment variable in --help."""
    parser.add_argument("--config", metavar="FILE", help=f"TOML file; settings are read from its [{section}] table")
    parser.add_argument("--print-settings", action="store_true", help="print each setting with its origin, then exit")
    group = parser.add_argument_group("settings")
    for field in fields(cls):
        shown = "required" if field.default is msgspec.NODEFAULT else f"default: {_show(field.default)}"
        note = f"{field.description} ({shown}; env {field.variable(section)})".replace("%", "%%").strip()
        group.add_argument(field.flag, dest=".".join(field.path), metavar=field.path[-1].upper(), help=note)


def read(cls: type[S], *, section: str, flags: Mapping[str, Any], env: Mapping[str, str]) -> tuple[S, dict[str, str]]:
    """Return the settings and where each came from (`default`, `file`, a variable's or a flag's name).

    `flags` are the parsed arguments by dotted name (`vars(parser.parse_args())`); None means not given.
    Raises SettingsError."""
    path = flags.get("config") or env.get(f"{ENV_PREFIX}_CONFIG")
    tree = _table(Path(path), section) if path else {}
    origins = {".".join(f.path): "file" for f in fields(cls) if _get(tree, f.path) is not None}
    for field in fields(cls):
        name = ".".join(field.path)
        for origin, text in (
            (field.variable(section), env.get(field.variable(section))),
            (field.flag, flags.get(name)),
        ):
            if text is not None:
                _set(tree, field.path, _parse(field, text, origin))
                origins[name] = origin
    try:
        settings = msgspec.convert(tree, cls, strict=False)
    except msgspec.ValidationError as error:
        raise SettingsError(f"[{section}] {_explain(str(error), origins, list(fields(cls)), section)}") from error
    return settings, {".".join(f.path): origins.get(".".join(f.path), "default") for f in fields(cls)}


def render(settings: Settings, origins: Mapping[str, str], *, section: str) -> str:
    """The settings as a TOML table that could be saved and used, each line with its origin."""
    lines = [f"[{section}]"]
    for field in fields(type(settings)):
        value: Any = settings
        for part in field.path:
            value = getattr(value, part)
        name = ".".join(field.path)
        lines.append(f"{name} = {_show(value)}".ljust(48) + f" # {origins.get(name, 'default')}")
    return "\n".join(lines)


def _unwrap(kind: inspect.Type) -> tuple[inspect.Type, str]:
    description = ""
    while isinstance(kind, inspect.Metadata):
        description = (kind.extra_json_schema or {}).get("description", "") or description
        kind = kind.type
    if isinstance(kind, inspect.UnionType):
        inner = [t for t in kind.types if not isinstance(t, inspect.NoneType)]
        if len(inner) == 1:
            found, more = _unwrap(inner[0])
            return found, more or description
    return kind, description


def _holds_structs(kind: inspect.Type) -> bool:
    item = getattr(kind, "item_type", None) or getattr(kind, "value_type", None)
    return isinstance(kind, inspect.DictType) or (item is not None and isinstance(_unwrap(item)[0], inspect.StructType))


def _parse(field: Field, text: Any, origin: str) -> Any:
    if isinstance(field.type, inspect.VarTupleType | inspect.ListType | inspect.TupleType):
        return [part.strip() for part in str(text).split(",") if part.strip()]
    if isinstance(field.type, inspect.BoolType):
        if str(text).lower() not in ("true", "false", "1", "0", "yes", "no", "on", "off"):
            raise SettingsError(f"{origin} is {text!r}; say true or false")
        return str(text).lower() in ("true", "1", "yes", "on")
    return text


def _table(path: Path, section: str) -> dict[str, Any]:
    try:
        tree = tomllib.loads(path.read_text())
    except OSError as error:
        raise SettingsError(f"cannot read the settings file {path}: {error.strerror}") from error
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{path} is not valid TOML: {error}") from error
    table = tree.get(section, {})
    if not isinstance(table, dict):
        raise SettingsError(f"{path}: {section!r} must be a table, written as [{section}]")
    return table


def _get(tree: Mapping[str, Any], path: Sequence[str]) -> Any:
    for part in path:
        if not isinstance(tree, Mapping) or part not in tree:
            return None
        tree = tree[part]
    return tree


def _set(tree: dict[str, Any], path: Sequence[str], value: Any) -> None:
    for part in path[:-1]:
        tree = tree.setdefault(part, {})
        if not isinstance(tree, dict):
            raise SettingsError(f"{part!r} in the settings file must be a table, because it has settings of its own")
    tree[path[-1]] = value


def _show(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple | list):
        return "[" + ", ".join(_show(v) for v in value) + "]"
    if value is None:
        return '""'
    return str(value) if isinstance(value, int | float) else f'"{value}"'


def _explain(message: str, origins: Mapping[str, str], known: Sequence[Field], section: str) -> str:
    """msgspec says ``Expected `int` <= 65535 - at `$.port```; say which setting, who set it and, if nobody, how to."""
    what, _, at = message.partition(" - at `$")
    at = at.rstrip("`").lstrip(".").partition("[")[0]
    if missing := _quoted(what, "missing required field"):
        name = _join(at, missing)
        ways = [f"give {f.flag} or {f.variable(section)}, or " for f in known if ".".join(f.path) == name]
        return f"{name}: required; {''.join(ways)}write it in the file"
    if unknown := _quoted(what, "contains unknown field"):
        near = difflib.get_close_matches(_join(at, unknown), [".".join(f.path) for f in known], n=1)
        return f"{_join(at, unknown)}: no such setting{f', but there is {near[0]}' if near else ''} (from file)"
    if what.startswith("Invalid enum value"):
        what += "".join(f"; it is one of {', '.join(_choices(f))}" for f in known if ".".join(f.path) == at)
    if "matching regex" in what:
        what += "".join(f": {f.description}" for f in known if ".".join(f.path) == at and f.description)
    given = [f"{name} from {origin}" for name, origin in origins.items() if not at or f"{name}.".startswith(f"{at}.")]
    return f"{at + ': ' if at else ''}{what} ({', '.join(given) or 'from file'})"


def _choices(field: Field) -> list[str]:
    return [str(choice.value) for choice in field.type.cls] if isinstance(field.type, inspect.EnumType) else []


def _quoted(message: str, after: str) -> str:
    """The name in backquotes that follows some words; empty if the message has no such words."""
    _, found, rest = message.partition(f"{after} `")
    return rest.partition("`")[0] if found else ""


def _join(at: str, name: str) -> str:
    return f"{at}.{name}" if at else name
