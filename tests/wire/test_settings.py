"""Where a setting may be said, which place wins, and what a wrong one is told."""

from __future__ import annotations

import argparse
import tomllib
from pathlib import Path
from typing import Annotated, Any

import msgspec
import pytest
from msgspec import Meta

from wire.settings import LogLevel, Settings, SettingsError, add_flags, fields, read, render


class Tls(Settings, frozen=True, kw_only=True):
    cert: str = ""
    key: str = ""

    def __post_init__(self) -> None:
        if bool(self.cert) != bool(self.key):
            raise ValueError("cert and key belong together")


class Route(msgspec.Struct, frozen=True):
    to: str


class Example(Settings, frozen=True, kw_only=True):
    name: str
    port: Annotated[int, Meta(ge=0, le=65535, description="TCP port, 100 % ours")] = 8000
    drain_limit_s: float = 30.0
    quiet: bool = False
    level: LogLevel = LogLevel.INFO
    peer: Annotated[str, Meta(pattern=r"^[^/]+:[0-9]+$", description="host:port of the other side")] = "a:1"
    tags: tuple[Annotated[str, Meta(min_length=2)], ...] = ()
    tls: Tls = Tls()
    routes: tuple[Route, ...] = ()
    """Lists of structs are for the file only."""


def parse(*argv: str, env: dict[str, str] | None = None) -> tuple[Example, dict[str, str]]:
    parser = argparse.ArgumentParser()
    add_flags(parser, Example, section="example")
    return read(Example, section="example", flags=vars(parser.parse_args(argv)), env=env or {})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "switchyard.toml"
    path.write_text(
        '[example]\nname = "f"\nport = 1\ntags = ["ab", "cd"]\ntls = {cert = "c", key = "k"}\nroutes = [{to = "x"}]\n'
    )
    return path


def test_defaults_file_environment_and_flags_overrule_each_other_in_this_order(file: Path) -> None:
    env = {"SWITCHYARD_CONFIG": str(file), "SWITCHYARD_EXAMPLE_PORT": "2", "SWITCHYARD_EXAMPLE_QUIET": "yes"}
    settings, origins = parse("--quiet", "off", "--tls-cert", "mine", env=env)
    assert Example(name="f", port=2, tags=("ab", "cd"), tls=Tls(cert="mine", key="k"), routes=(Route("x"),)) == settings
    assert {
        "name": "file",
        "port": "SWITCHYARD_EXAMPLE_PORT",
        "drain_limit_s": "default",
        "quiet": "--quiet",
        "level": "default",
        "peer": "default",
        "tags": "file",
        "tls.cert": "--tls-cert",
        "tls.key": "file",
    } == origins


def test_the_config_flag_wins_over_the_variable(file: Path, tmp_path: Path) -> None:
    assert 1 == parse("--config", str(file), env={"SWITCHYARD_CONFIG": str(tmp_path / "absent")})[0].port


def test_lists_are_comma_separated_in_text() -> None:
    assert ("ab", "cd") == parse("--name", "x", "--tags", " ab,cd ,")[0].tags


def test_what_is_printed_can_be_read_back(tmp_path: Path) -> None:
    settings, origins = parse("--name", "x", "--tags", "ab,cd", "--tls-cert", "c", "--tls-key", "k", "--quiet", "true")
    text = render(settings, origins, section="example")
    assert "# --name" in text
    path = tmp_path / "printed.toml"
    path.write_text(text)
    assert settings == parse("--config", str(path))[0]
    assert {"example"} == set(tomllib.loads(text))


def test_every_setting_is_in_the_help_with_its_default_and_variable(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser(formatter_class=lambda prog: argparse.HelpFormatter(prog, width=400))
    add_flags(parser, Example, section="example")
    text = parser.format_help()
    assert "TCP port, 100 % ours (default: 8000; env SWITCHYARD_EXAMPLE_PORT)" in text
    assert "(required; env SWITCHYARD_EXAMPLE_NAME)" in text
    for field in fields(Example):
        assert field.flag in text
        assert field.variable("example") in text


@pytest.mark.parametrize(
    ("toml", "env", "argv", "parts"),
    [
        ("port = 70000", {}, (), ("port:", "65535", "from file")),
        ("", {"PORT": "many"}, (), ("port:", "int", "from SWITCHYARD_EXAMPLE_PORT")),
        ("", {}, ("--port", "-1"), ("port:", "from --port")),
        ("", {}, ("--drain-limit-s", "soon"), ("drain_limit_s:", "from --drain-limit-s")),
        ("", {"QUIET": "perhaps"}, (), ("SWITCHYARD_EXAMPLE_QUIET", "'perhaps'", "true or false")),
        ("", {}, ("--tags", "ab,c"), ("tags:", "length", "from --tags")),
        ("tags = [1]", {}, (), ("tags:", "str", "from file")),
        ("", {"TLS_CERT": "c"}, (), ("tls:", "belong together", "tls.cert from SWITCHYARD_EXAMPLE_TLS_CERT")),
        ("prot = 1", {}, (), ("prot: no such setting, but there is port", "file")),
        ("colour = 1", {}, (), ("colour: no such setting (from file)",)),
        ("", {}, ("--peer", "nonsense"), ("peer:", "host:port of the other side", "from --peer")),
        ("", {}, ("--level", "loud"), ("level:", "'loud'", "one of debug, info, warning, error", "from --level")),
        ("tls = {certificate = 'c'}", {}, (), ("tls.certificate: no such setting", "file")),
        ("routes = [{}]", {}, (), ("routes.to: required", "file")),
        ("routes = [{to = 1}]", {}, (), ("routes:", "str", "from file")),
        ("tls = 1", {"TLS_CERT": "c"}, (), ("'tls'", "settings file", "table")),
    ],
)
def test_a_wrong_setting_is_told_with_its_name_and_who_said_it(
    tmp_path: Path, toml: str, env: dict[str, str], argv: tuple[str, ...], parts: tuple[str, ...]
) -> None:
    path = tmp_path / "s.toml"
    path.write_text(f'[example]\nname = "x"\n{toml}\n')
    variables = {f"SWITCHYARD_EXAMPLE_{name}": value for name, value in env.items()}
    with pytest.raises(SettingsError) as error:
        parse("--config", str(path), *argv, env=variables)
    assert [] == [part for part in parts if part not in str(error.value)]


def test_a_required_setting_that_nobody_gave_is_told_with_the_ways_to_give_it() -> None:
    with pytest.raises(SettingsError, match=r"name: required; give --name or SWITCHYARD_EXAMPLE_NAME"):
        parse()


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "cannot read"), ("[example", "not valid TOML"), ("example = 1", "written as \\[example\\]")],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path: Path, content: str | None, words: str) -> None:
    path = tmp_path / "s.toml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SettingsError, match=words) as error:
        parse("--config", str(path))
    assert "s.toml" in str(error.value)


def test_settings_refuse_unknown_names_wherever_they_are_made() -> None:
    unknown: Any = {"name": "x", "nmae": "y"}
    with pytest.raises(msgspec.ValidationError, match="unknown field"):
        msgspec.convert(unknown, Example)
