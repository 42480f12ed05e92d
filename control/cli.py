"""The command `switchyard`: the list of commands, and the only place that turns failures into sentences and exit codes.

Exit codes: 0 done, 1 failed, 2 misused, 130 interrupted. A command's module is imported when the command runs and not
before: `switchyard --help` imports nothing but argparse. With SWITCHYARD_DEBUG=1 a failure also shows its traceback.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from control.commands.base import Command

OK, FAILED, MISUSED, INTERRUPTED = 0, 1, 2, 130


class Entry(NamedTuple):
    where: str
    """Module below control.commands and the name of the Command in it."""
    summary: str


COMMANDS: Mapping[str, Mapping[str, Entry]] = {
    "start": {
        "up": Entry("up:UP", "everything on this machine, with a first answer; Ctrl-C stops it all"),
        "router": Entry("processes:ROUTER", "run a router"),
        "node-agent": Entry("processes:NODE_AGENT", "run the agent of a GPU host"),
        "control": Entry("processes:CONTROL", "run the control plane"),
    },
    "use": {
        "chat": Entry("chat:CHAT", "ask a model and watch the answer stream, with TTFT and tokens/s"),
        "why": Entry("requests:WHY", "why a request went where it went"),
        "usage": Entry("requests:USAGE", "requests and tokens by tenant and model, from the journal"),
    },
    "look": {
        "nodes": Entry("fleet:NODES", "the hosts, their state and what they serve"),
        "replicas": Entry("fleet:REPLICAS", "the engines, their state, generation and address"),
        "models": Entry("fleet:MODELS", "the models, their replicas by state and their policy"),
    },
    "operate": {
        "drain": Entry("replicas:DRAIN", "let a node or a replica finish its streams and take nothing new"),
        "undrain": Entry("replicas:UNDRAIN", "let it take requests again"),
        "load": Entry("replicas:LOAD", "start the engine of a replica"),
        "unload": Entry("replicas:UNLOAD", "stop the engine of a replica"),
        "sleep": Entry("replicas:SLEEP", "take a replica's weights off the GPU, keep its process"),
        "wake": Entry("replicas:WAKE", "bring a sleeping replica back"),
    },
    "policy": {
        "policy": Entry("policy:POLICY", "how a model is served: read it, and change it while routers run"),
        "whatif": Entry("whatif:WHATIF", "what another routing policy would have made of the last decisions"),
    },
    "access": {
        "keys": Entry("keys:KEYS", "create, list and revoke API keys"),
        "tenants": Entry("keys:TENANTS", "list or set who may use what"),
    },
}

EPILOG = """\
examples:
  switchyard up                                everything here, with simulated engines
  switchyard up --engine vllm                  the same with real vLLM
  switchyard chat "Why is the sky blue?"       ask the router that `up` started
  switchyard drain node-1 --limit 60s          empty a host before you touch it
  switchyard COMMAND --help                    flags and examples of one command

exit codes: 0 done, 1 failed, 2 misused"""


def main(argv: Sequence[str] | None = None, env: Mapping[str, str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    env = os.environ if env is None else env
    try:
        return _run(argv, env)
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has left, as `head` does: nobody is there to be told, and the interpreter
        # must not try to flush to it again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Exception as error:
        if env.get("SWITCHYARD_DEBUG"):
            raise
        return _explained(argv[0], error)


def overview() -> str:
    lines = ["usage: switchyard COMMAND [flags]", "", "An edge router for serverless LLM inference.", ""]
    for group, commands in COMMANDS.items():
        lines += [f"{group}:", *(f"  {name:<12}{entry.summary}" for name, entry in commands.items()), ""]
    return "\n".join([*lines, EPILOG])


def _run(argv: Sequence[str], env: Mapping[str, str]) -> int:
    match list(argv):
        case [] | ["-h" | "--help" | "help"]:
            print(overview(), flush=True)
            return OK if argv else MISUSED
        case ["-V" | "--version"]:
            print(f"switchyard {_version()}")
            return OK
        case ["help", name, *_]:
            return _command(name, ["--help"], env)
        case [name, *rest]:
            return _command(name, rest, env)
    raise AssertionError("unreachable: a list is empty or has a first item")


def _version() -> str:
    from importlib.metadata import version

    return version("switchyard-llm")


def _command(name: str, argv: Sequence[str], env: Mapping[str, str]) -> int:
    entry = next((commands[name] for commands in COMMANDS.values() if name in commands), None)
    if entry is None:
        return _unknown(name)
    module, _, attribute = entry.where.partition(":")
    command: Command = getattr(importlib.import_module(f"control.commands.{module}"), attribute)
    if command.passes_flags_on:
        return command.run(argparse.Namespace(rest=list(argv)), env)
    parser = argparse.ArgumentParser(
        prog=f"switchyard {name}",
        description=entry.summary[0].upper() + entry.summary[1:] + ".",
        epilog=f"examples:\n{command.examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    command.configure(parser)
    return command.run(parser.parse_args(argv), env)


def _unknown(name: str) -> int:
    from difflib import get_close_matches

    names = [name for commands in COMMANDS.values() for name in commands]
    close = get_close_matches(name, names, n=1)
    hint = f"did you mean `switchyard {close[0]}`?" if close else "`switchyard --help` lists the commands."
    print(f"switchyard: there is no command {name!r}; {hint}", file=sys.stderr)
    return MISUSED


def _explained(name: str, error: Exception) -> int:
    from control.errors import Failed, Misused
    from wire.registry import RegistryError
    from wire.settings import SettingsError

    cause = _first_cause(error)
    match cause:
        case Misused() | SettingsError():
            print(f"switchyard {name}: {cause}", file=sys.stderr)
            return MISUSED
        case Failed():
            print(f"switchyard {name}: {cause}", file=sys.stderr)
        case RegistryError():
            print(f"switchyard {name}: the registry did not do as asked: {cause}", file=sys.stderr)
        case OSError() if cause.filename:
            print(f"switchyard {name}: {cause.filename}: {cause.strerror}; see who owns it.", file=sys.stderr)
        case _:
            print(
                f"switchyard {name}: this is a defect of ours: {type(cause).__name__}: {cause}. "
                "Set SWITCHYARD_DEBUG=1 to see where it happened, and please report it.",
                file=sys.stderr,
            )
    return FAILED


def _first_cause(error: BaseException) -> BaseException:
    """What a task group was ended by; where several tasks failed, the first is why the others did."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


if __name__ == "__main__":
    sys.exit(main())
