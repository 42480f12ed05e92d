"""Runs Locust headless and prints one table: `make loadtest`.

    python -m loadtest.locust_run                                     against `switchyard up` on a free port
    python -m loadtest.locust_run --host http://127.0.0.1:8000 --key KEY --seconds 60 --users 50

Locust has a process of its own, because gevent patches the standard library. Exit code 0: no request failed; 1: some
did, or nothing was asked; 2: the run could not start.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import msgspec

from loadtest.processes import CannotStart, Processes

LOCUSTFILE = Path(__file__).with_name("locustfile.py")
QUANTILES = (0.5, 0.95, 0.99)
_READY = "Switchyard is up at "


class Target(msgspec.Struct, frozen=True):
    url: str
    """Without /v1."""
    key: str
    chat_model: str
    embedding_model: str


class Entry(msgspec.Struct, frozen=True):
    """One line of Locust's statistics (`--json-file`)."""

    name: str
    method: str
    num_requests: int
    num_failures: int
    response_times: dict[str, int]
    """Rounded to two digits by Locust: how many took so many ms."""
    total_content_length: int


class Row(msgspec.Struct, frozen=True):
    kind: str
    requests: int
    failures: int
    total_ms: tuple[float, ...]
    ttft_ms: tuple[float, ...]
    itl_ms: tuple[float, ...]
    tokens: int


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    try:
        with Processes() as processes, tempfile.TemporaryDirectory(prefix="loadtest-") as at:
            target = _target(args.host, args.key, args.model) if args.host else _up(processes, Path(at), args)
            print(f"{args.users} users for {args.seconds} s against {target.url} ({target.chat_model})", flush=True)
            entries = _locust(target, args, Path(at))
    except (CannotStart, OSError) as error:
        print(f"loadtest: {error}", file=sys.stderr)
        return 2
    found = rows(entries)
    print(table(found, seconds=args.seconds))
    return 0 if found and not any(row.failures for row in found) else 1


def rows(entries: Sequence[Entry]) -> list[Row]:
    """One per kind of request: the request itself and the metrics that the locustfile reports beside it."""
    by_key = {(entry.method, entry.name): entry for entry in entries}

    def spread(method: str, name: str) -> tuple[float, ...]:
        entry = by_key.get((method, name))
        return tuple(quantile(entry.response_times, q) for q in QUANTILES) if entry is not None else ()

    return [
        Row(
            kind=name,
            requests=entry.num_requests,
            failures=entry.num_failures,
            total_ms=spread("request", name),
            ttft_ms=spread("TTFT", name),
            itl_ms=spread("ITL", name),
            tokens=by_key["tokens", name].total_content_length if ("tokens", name) in by_key else 0,
        )
        for (method, name), entry in sorted(by_key.items())
        if method == "request"
    ]


def quantile(counts: dict[str, int], q: float) -> float:
    """Of values told as how often each came; NaN of nothing."""
    ordered = sorted((float(value), count) for value, count in counts.items())
    wanted = q * sum(counts.values())
    seen = 0
    for value, count in ordered:
        seen += count
        if seen >= wanted:
            return value
    return float("nan")


def table(found: Sequence[Row], *, seconds: float) -> str:
    head = ("kind", "requests", "failed", "per s", "total ms", "TTFT ms", "ITL ms", "tokens/s")
    lines = [
        (
            row.kind,
            str(row.requests),
            str(row.failures),
            f"{row.requests / seconds:.1f}",
            _spread(row.total_ms),
            _spread(row.ttft_ms),
            _spread(row.itl_ms),
            f"{row.tokens / seconds:.0f}" if row.tokens else "",
        )
        for row in found
    ]
    widths = [max(len(line[column]) for line in [head, *lines]) for column in range(len(head))]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in [head, *lines]]
    return "\n".join(["", *(line.rstrip() for line in text), "", "times are p50 / p95 / p99"])


def _spread(values: tuple[float, ...]) -> str:
    return " / ".join(f"{value:.0f}" for value in values)


def _target(url: str, key: str, model: str = "") -> Target:
    """What is served there: the first chat model unless one was named, and one for embeddings."""
    url = url.rstrip("/").removesuffix("/v1")
    request = urllib.request.Request(f"{url}/v1/models", headers={"authorization": f"Bearer {key}"})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            names = [model["id"] for model in msgspec.json.decode(answer.read())["data"]]
    except urllib.error.HTTPError as error:
        raise CannotStart(f"{url}/v1/models answered {error.code}; give a valid --key") from error
    chat = model or next((name for name in names if "embed" not in name), "")
    if not chat:
        raise CannotStart(f"{url} serves no chat model, only {', '.join(names) or 'nothing'}")
    return Target(url, key, chat, next((name for name in names if "embed" in name), ""))


def _up(processes: Processes, at: Path, args: argparse.Namespace) -> Target:
    """`switchyard up` with simulated engines, in a directory of its own; stopped with the rest."""
    program = shutil.which("switchyard", path=str(Path(sys.executable).parent)) or "switchyard"
    command = [program, "up", "--port", "0", "--data-dir", str(at / "up"), "--replicas", str(args.replicas)]
    up = processes.start(command, name="up", directory=at)
    up.await_line(_READY, limit_s=120)
    run = msgspec.json.decode((at / "up" / "up.json").read_bytes())
    key = (at / "up" / "development-key").read_text().strip()
    return _target(run["router_url"], key)


def _locust(target: Target, args: argparse.Namespace, at: Path) -> list[Entry]:
    out = at / "locust"
    command = [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--headless", "--only-summary"]
    command += ["--host", target.url, "--api-key", target.key, "--model", target.chat_model]
    command += ["--embedding-model", target.embedding_model, "--seed", str(args.seed), "--trace", args.trace]
    command += ["-u", str(args.users), "-r", str(args.users), "-t", f"{args.seconds}s", "--stop-timeout", "30"]
    command += ["--json-file", str(out), "--loglevel", "WARNING"]
    outcome = subprocess.run(command, capture_output=True, text=True, check=False, timeout=args.seconds + 120)
    found = sorted(at.glob("locust*"))
    if not found:
        raise CannotStart(f"Locust did not run: {outcome.stderr[-800:]}")
    entries = msgspec.json.decode(found[0].read_bytes(), type=list[Entry])
    if any(entry.num_failures for entry in entries):
        print(_errors(outcome.stdout), file=sys.stderr)
    return entries


def _errors(text: str) -> str:
    """Locust's own list of what failed, from its summary."""
    _, found, rest = text.partition("Error report")
    return (found + rest).strip()[:2000]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m loadtest.locust_run", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--host", default="", help="a running router; default: start `switchyard up`")
    parser.add_argument("--key", default="", help="API key for --host")
    parser.add_argument("--model", default="", help="chat model at --host; default: the first")
    parser.add_argument("--users", type=int, default=20)
    parser.add_argument("--seconds", type=int, default=20)
    parser.add_argument("--replicas", type=int, default=4, help="simulated replicas of the chat model")
    parser.add_argument("--trace", default="azure-conv", help="where lengths are drawn from")
    parser.add_argument("--seed", type=int, default=1)
    return parser


if __name__ == "__main__":
    sys.exit(main())
