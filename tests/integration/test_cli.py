"""The command line as people use it: real processes against a real (embedded) registry."""

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from control.registry_server import embedded_command
from wire.connect import RegistrySettings, connect
from wire.records import ModelState, Node, Replica, encode, key

LIMIT_S = 30


class Cli:
    def __init__(self, endpoint: str, directory: Path) -> None:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("SWITCHYARD_", "OPENAI_"))}
        self.env = kept | {"SWITCHYARD_CLI_REGISTRY_ENDPOINTS": endpoint}
        self.directory = directory

    def __call__(self, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "control.cli", *args],
            cwd=self.directory,
            env=self.env | env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = subprocess.Popen(embedded_command(port=0), stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        yield server.stdout.readline().rpartition(" ")[2].strip()
    finally:
        server.terminate()
        server.wait(LIMIT_S)
        server.stdout.close()


@pytest.fixture
def cli(endpoint: str, tmp_path: Path) -> Cli:
    return Cli(endpoint, tmp_path)


def test_a_key_is_shown_once_when_it_is_made_and_never_again(cli: Cli) -> None:
    made = cli("keys", "create", "--tenant", "acme", "--label", "laptop", "--models", "a,b", "--priority", "5")
    assert 0 == made.returncode, made.stderr
    made_key = made.stdout.strip()
    assert re.fullmatch(r"sk-sy-[A-Za-z0-9_-]{43}", made_key)
    assert "shown this once" in made.stderr
    for listing in (cli("keys", "list"), cli("keys", "list", "--json"), cli("tenants", "list")):
        assert 0 == listing.returncode, listing.stderr
        assert "acme" in listing.stdout
        assert made_key not in listing.stdout + listing.stderr
        assert made_key[6:] not in listing.stdout + listing.stderr
    (tenant,) = [t for t in json.loads(cli("tenants", "list", "--json").stdout) if t["tenant"] == "acme"]
    assert (["a", "b"], 5) == (tenant["models"], tenant["priority"])


def test_the_resume_of_broken_clients_is_set_with_a_key_or_for_a_tenant_and_changes_nothing_else(cli: Cli) -> None:
    assert 0 == cli("keys", "create", "--tenant", "keeper", "--resume", "30s", "--priority", "5").returncode
    assert "was changed" in cli("tenants", "set", "keeper", "--resume", "1m", "--resume-bytes", "65536").stdout
    tenant = next(t for t in json.loads(cli("tenants", "list", "--json").stdout) if t["tenant"] == "keeper")
    assert {"tenant": "keeper", "priority": 5, "resume_buffer_s": 60.0, "resume_buffer_bytes": 65536} == tenant


def test_a_tenant_is_disabled_and_taken_again_and_its_share_is_set(cli: Cli) -> None:
    assert 0 == cli("tenants", "set", "shared", "--weight", "2").returncode
    told = cli("tenants", "set", "shared", "--disabled", "yes", "--weight", "3").stdout
    assert "tenant shared was changed, for all its keys: weight: 2.0 -> 3.0; disabled: False -> True" in told
    assert "disabled: True -> False" in cli("tenants", "set", "shared", "--disabled", "no").stdout
    assert 2 == cli("tenants", "set", "shared", "--weight", "0").returncode


def test_a_revoked_key_is_listed_as_revoked(cli: Cli) -> None:
    made_key = cli("keys", "create", "--tenant", "revoked-tenant").stdout.strip()
    (record,) = [r for r in json.loads(cli("keys", "list", "--json").stdout) if r["tenant"] == "revoked-tenant"]
    revoked = cli("keys", "revoke", record["sha256"][:12])
    assert 0 == revoked.returncode, revoked.stderr
    assert "is revoked" in revoked.stdout
    line = next(line for line in cli("keys", "list").stdout.splitlines() if "revoked-tenant" in line)
    assert " revoked " in line
    assert "was revoked before" in cli("keys", "revoke", made_key).stdout


async def _put(endpoint: str, *records: Node | Replica) -> None:
    registry = connect(RegistrySettings(endpoints=(endpoint,)))
    try:
        for record in records:
            await registry.put(key(record), encode(record))
    finally:
        await registry.close()


def test_nodes_and_models_are_shown_as_tables_and_as_json(cli: Cli, endpoint: str) -> None:
    node = Node(node="node-9", region="local", address="127.0.0.1:1", device_class="h100")
    replica = Replica(
        replica="node-9.m.0", node="node-9", region="local", model="m", address="127.0.0.1:2", state=ModelState.READY
    )
    asyncio.run(_put(endpoint, node, replica))
    table = cli("nodes").stdout.splitlines()
    assert ["NODE", "REGION", "CLASS", "STATE", "REPLICAS", "MODELS", "AGE", "AGENT"] == table[0].split()
    assert ["node-9", "local", "h100", "ready", "1", "ready", "m", "-", "127.0.0.1:1"] == table[1].split()
    assert "1 ready" == json.loads(cli("nodes", "--json").stdout)[0]["replicas"]
    assert ["m", "generate", "1", "ready"] == cli("models").stdout.splitlines()[1].split()[:4]
    assert "node-9.m.0" in cli("replicas").stdout
    lost = cli("drain", "node-9")
    assert 1 == lost.returncode
    assert "the agent at 127.0.0.1:1 does not answer" in lost.stderr


def test_a_policy_is_read_changed_and_removed(cli: Cli) -> None:
    fresh = cli("policy", "m")
    assert 0 == fresh.returncode, fresh.stderr
    assert "no policy of m is written: these are the defaults" in fresh.stderr
    changed = cli("policy", "m", "--set", "hedge=true", "--set", "admission=batch", "--set", "fallback=none-such")
    assert 0 == changed.returncode, changed.stderr
    assert ["fallback: none -> none-such", "admission: standard -> batch", "hedge: false -> true"] == sorted(
        changed.stdout.splitlines(), key=lambda line: "fah".index(line[0])
    )
    assert "no replica serves none-such now" in changed.stderr
    (shown,) = json.loads(cli("policy", "m", "--json").stdout)
    assert (True, "batch", "none-such") == (shown["hedge"], shown["admission"], shown["fallback"])
    assert "admission: batch -> standard" in cli("policy", "m", "--unset", "admission").stdout
    assert "says so already" in cli("policy", "m", "--set", "hedge=true").stdout
    assert "is removed; the defaults hold" in cli("policy", "m", "--reset").stdout


MISTAKES = [
    (("frobnicate",), 2, "there is no command 'frobnicate'"),
    (("drian", "x"), 2, "did you mean `switchyard drain`?"),
    (("nodes", "--bogus"), 2, "unrecognized arguments"),
    (("keys",), 2, "required"),
    (("keys", "create", "--expires", "soon"), 2, "write it like 30s"),
    (("keys", "create", "--tenant", "a/b"), 2, "cannot be a name"),
    (("keys", "create", "--resume", "long"), 2, "--resume"),
    (("tenants", "set", "acme"), 2, "say what to change"),
    (("keys", "revoke", "zzz"), 2, "names no key"),
    (("keys", "revoke", "aaaaaaaaaaaa"), 1, "is not in this registry"),
    (("drain", "nowhere"), 1, "knows no node 'nowhere'"),
    (("wake", "nowhere"), 1, "knows no replica 'nowhere'"),
    (
        ("nodes", "--registry-endpoints", "127.0.0.1:1", "--registry-timeout-s", "0.5"),
        1,
        "start one with `switchyard up`",
    ),
    (("nodes", "--registry-endpoints", "nonsense"), 2, "registry.endpoints"),
    (("chat", "hello"), 1, "no `switchyard up` runs"),
    (("chat", "--base-url", "http://127.0.0.1:1/v1", "--model", "m", "hello"), 1, "no router answers"),
    (("usage",), 1, "there is no usage journal"),
    (("policy",), 2, "model"),
    (("policy", "m", "--set", "hedge"), 2, "write it like hedge=true"),
    (("policy", "m", "--set", "speed=9"), 2, "a policy has no 'speed'; it has routing"),
    (("policy", "m", "--reset", "--unset", "hedge"), 2, "cannot be combined"),
    (("whatif", "--set", "tie_ms"), 2, "write it like tie_ms=0"),
    (("whatif", "--base-url", "http://127.0.0.1:1/v1"), 1, "no router answers"),
    (("up", "--nodes", "0"), 2, "nodes"),
    (("up", "--data-dir", "/dev/null/here"), 1, "/dev/null/here"),
    (("up", "--etcd-binary", "/no/such/etcd", "--port", "0"), 1, "/no/such/etcd"),
]


@pytest.mark.parametrize(("args", "code", "sentence"), MISTAKES, ids=[" ".join(m[0]) for m in MISTAKES])
def test_a_mistake_is_a_sentence_with_the_remedy_and_no_traceback(
    cli: Cli, args: tuple[str, ...], code: int, sentence: str
) -> None:
    done = cli(*args)
    assert sentence in done.stderr
    assert code == done.returncode
    assert "Traceback" not in done.stderr


def test_the_traceback_is_there_for_those_who_ask(cli: Cli) -> None:
    assert "Traceback" in cli("chat", "hello", SWITCHYARD_DEBUG="1").stderr


def test_every_command_has_help_with_an_example(cli: Cli) -> None:
    overview = cli("--help")
    assert 0 == overview.returncode
    names = re.findall(r"^  ([a-z-]+)  +\S", overview.stdout.split("examples:")[0], re.MULTILINE)
    assert {"up", "router", "node-agent", "control", "nodes", "models", "keys", "drain", "chat"} <= set(names)
    for name in names:
        shown = cli(name, "--help")
        assert 0 == shown.returncode, (name, shown.stderr)
        assert "\nexample" in shown.stdout, name


@pytest.mark.parametrize(
    ("name", "section"), [("router", "router"), ("node-agent", "node_agent"), ("control", "control")]
)
def test_the_processes_print_their_settings_with_their_origins(cli: Cli, name: str, section: str) -> None:
    shown = cli(name, "--port", "4321", "--print-settings")
    assert 0 == shown.returncode, shown.stderr
    assert f"[{section}]" == shown.stdout.splitlines()[0]
    assert re.search(r"^port = 4321 +# --port$", shown.stdout, re.MULTILINE)


def test_help_imports_nothing_heavy() -> None:
    code = "import sys; from control.cli import main; main(['--help']); print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=LIMIT_S, check=True)
    loaded = done.stdout.splitlines()[-1]
    assert not {name for name in ("grpc", "httpx", "asyncio", "msgspec") if f"'{name}'" in loaded}


def test_a_setting_comes_from_a_file_the_environment_or_a_flag_and_the_closest_wins(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "switchyard.toml"
    file.write_text('[up]\nnodes = 3\nport = 8001\nregion = "from-file"\n')
    shown = cli(
        "up",
        "--config",
        str(file),
        "--port",
        "8003",
        "--print-settings",
        SWITCHYARD_UP_NODES="4",
        SWITCHYARD_UP_PORT="8002",
    )
    assert 0 == shown.returncode, shown.stderr
    settings = {line.split(" = ")[0]: line.split(" = ")[1] for line in shown.stdout.splitlines() if " = " in line}
    assert ["4", "SWITCHYARD_UP_NODES"] == [part.strip() for part in settings["nodes"].split("#")]
    assert ["8003", "--port"] == [part.strip() for part in settings["port"].split("#")]
    assert ['"from-file"', "file"] == [part.strip() for part in settings["region"].split("#")]


def test_a_reader_that_leaves_early_is_no_error(cli: Cli) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "control.cli", "--help"]
    done = subprocess.run(
        command, env=cli.env, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=LIMIT_S, check=False
    )
    os.close(writer)
    assert "" == done.stderr
