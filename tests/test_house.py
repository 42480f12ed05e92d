"""Rules of the house that no linter knows. They fail here, so that nobody has to remember them."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from control.settings import ControlSettings
from hatch_build import HOT
from node_agent.settings import NodeAgentSettings
from router.core.errors import Cause, Code, error_json, row
from router.settings import RouterSettings
from wire.settings import Settings, fields

ROOT = Path(__file__).parent.parent
ROOMS = ("router", "node_agent", "control", "loadtest", "proto")
MODULES = sorted(
    path for room in ROOMS for path in (ROOT / room).rglob("*.py") if not re.search(r"_pb2(_grpc)?\.py$", path.name)
)
MODULE_LINES_LIMIT = 400
FUNCTION_LINES_LIMIT = 60


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_a_module_says_what_it_is_for_and_stays_small(path: Path) -> None:
    text = path.read_text()
    tree = ast.parse(text)
    assert MODULE_LINES_LIMIT >= len(text.splitlines())
    assert not tree.body or ast.get_docstring(tree)
    functions = (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))
    too_long = [f.name for f in functions if (f.end_lineno or 0) - f.lineno + 1 > FUNCTION_LINES_LIMIT]
    assert [] == too_long


@pytest.mark.parametrize(
    ("settings", "room"),
    [(RouterSettings, "router"), (NodeAgentSettings, "node_agent"), (ControlSettings, "control")],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_setting_is_read_somewhere(settings: type[Settings], room: str) -> None:
    source = "\n".join(p.read_text() for p in MODULES if name(p).startswith(room))
    names = {field.path[0] for field in fields(settings)}
    assert set() == {n for n in names if not re.search(rf"(settings|self)\.{n}\b", source)}


@pytest.mark.parametrize("settings", [RouterSettings, NodeAgentSettings, ControlSettings], ids=lambda s: s.__name__)
def test_every_setting_says_what_it_is(settings: type[Settings]) -> None:
    assert [] == [field.path for field in fields(settings) if not field.description]


@pytest.mark.parametrize("code", Code)
def test_every_code_has_a_row_that_makes_sense(code: Code) -> None:
    entry = row(code)
    assert (entry.status == 200) == (code is Code.OK)
    assert entry.cause is Cause.UPSTREAM or code is Code.MOVED or not entry.retry
    assert entry.retry or not entry.blame
    assert code is Code.OK or b'"error":{"message":"x","type":"' in error_json(code, "x")


@pytest.mark.parametrize("module", HOT)
def test_a_compiled_module_defines_no_struct(module: str) -> None:
    bases = [
        ast.unparse(base)
        for node in ast.walk(ast.parse((ROOT / module).read_text()))
        if isinstance(node, ast.ClassDef)
        for base in node.bases
    ]
    assert [] == [base for base in bases if "Struct" in base]


WALL_CLOCK = {
    "router/app.py": "names this process and dates its record",
    "router/downstream/routes.py": "dates a request; whether a key has expired",
    "router/pipeline.py": "whether a key has expired",
    "node_agent/app.py": "dates the node's record",
    "node_agent/engines/keeper.py": "dates the state file",
    "node_agent/engines/simulated/replica.py": "`created` of an answer",
    "control/admin.py": "ages that people read",
    "control/up.py": "dates a key",
    "control/commands/requests.py": "`--since`",
    "control/commands/fleet.py": "ages that people read",
    "control/commands/keys.py": "dates and expiry of keys",
    "proto/wire/embedded.py": "a first revision above that of a former life",
}
"""Who may ask what time it is, and for what. No lease, limit, deadline, rate or order hangs on it."""


def test_only_these_modules_read_the_wall_clock() -> None:
    rooms = ("router", "node_agent", "control", "proto")
    read = re.compile(r"\btime\.(time|time_ns|localtime|gmtime)\(|\bdatetime\.(now|utcnow|today)\(|CLOCK_REALTIME")
    asking = {name(path) for path in MODULES if name(path).startswith(rooms) and read.search(path.read_text())}
    assert set(WALL_CLOCK) == asking


def test_no_document_names_a_machine_of_ours() -> None:
    documents = [*ROOT.glob("*.md"), *(p for room in (*ROOMS, "tests") for p in (ROOT / room).rglob("*.md"))]
    ours = (f"{ROOT}/", f"{Path.home()}/")
    assert [] == [name(p) for p in documents if any(path in p.read_text() for path in ours)]
