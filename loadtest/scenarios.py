"""The sixteen faults that failover benchmarks use, played to a router by two scripted engines.

    python -m loadtest.scenarios                                  # against Switchyard
    python -m loadtest.scenarios --only all --table table.md      # beside every peer that is installed, 15 minutes
    python -m loadtest.scenarios --only switchyard,nginx,litellm  # beside some (python -m loadtest.peers install)
    python -m loadtest.scenarios --url http://127.0.0.1:8000/v1 --key K --ports 9001,9002

With --url the engines listen on the two ports and the router at that address must have them as its upstreams.

pass: the client has just what it should have (one whole answer, or the engine's own word where no other engine could
do better). partial: an error, but an honest one. fail: an answer that looks complete and is not, is wrong, or never
ends. Each scene asks several times, because a router may happen to ask the healthy engine first; the worst counts.
"""

from __future__ import annotations

import argparse
import asyncio
import enum
import sys
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from time import monotonic
from typing import NamedTuple

import uvloop

from loadtest import answers
from loadtest.client import Client, Exchange
from loadtest.peers import roster
from loadtest.peers.contestant import Contestant, Site
from loadtest.processes import CannotStart, Processes, free_port
from loadtest.rig import start
from loadtest.scripted import DONE, EVENTS, MODEL, TEXT, Director, Engine, engines, event, well
from loadtest.scripted import Exchange as Attempt

LIMIT_S = 30.0
BETWEEN_S = 0.1
"""Rests between the requests of a scene, so that a router may have second thoughts."""


class Verdict(enum.StrEnum):
    PASS = "pass"
    PARTIAL = "partial"
    FAIL = "fail"


RANK = (Verdict.FAIL, Verdict.PARTIAL, Verdict.PASS)


class Told(NamedTuple):
    verdict: Verdict
    why: str = ""


class Stage(NamedTuple):
    engines: Sequence[Engine]
    director: Director
    client: Client


# How engines misbehave. Each plays one attempt.


async def busy(attempt: Attempt) -> None:
    await attempt.refuse(429, "too many requests", "rate_limit_error", "retry-after: 1")


async def broken(attempt: Attempt) -> None:
    await attempt.refuse(500, "it broke", "InternalServerError")


async def unavailable(attempt: Attempt) -> None:
    await attempt.refuse(503, "not now", "ServiceUnavailableError")


async def late(attempt: Attempt) -> None:
    await asyncio.sleep(2.0)
    await well(attempt)


async def cuts(attempt: Attempt) -> None:
    attempt.begin()
    await attempt.send(*EVENTS[:3])
    attempt.cut()


async def stalls(attempt: Attempt) -> None:
    attempt.begin()
    await attempt.send(*EVENTS[:3])
    await attempt.abandoned()


async def talks_nonsense(attempt: Attempt) -> None:
    await attempt.play(*EVENTS[:3], b'data: {"id":"chatcmpl-1","choices":[{"ind\n\n', *EVENTS[3:], DONE)


async def dies_in_band(attempt: Attempt) -> None:
    error = (
        b'data: {"error": {"message": "EngineCore encountered an issue", "type": "InternalServerError", "code": 500}}'
    )
    await attempt.play(*EVENTS[:3], error + b"\n\n", DONE)


async def says_nothing(attempt: Attempt) -> None:
    await attempt.play(DONE)


async def forgets_done(attempt: Attempt) -> None:
    await attempt.play(*EVENTS)


async def finds_it_too_long(attempt: Attempt) -> None:
    message = "This model's maximum context length is 4096 tokens."
    await attempt.refuse(400, message, "BadRequestError", code="context_length_exceeded")


async def filters(attempt: Attempt) -> None:
    await attempt.play(*EVENTS[:2], event(" ...", finish="content_filter"), DONE)


async def will_not_continue(attempt: Attempt) -> None:
    await attempt.refuse(400, "I do not continue what others began", "BadRequestError")


# What the client should have.


def whole(exchange: Exchange, stage: Stage) -> Told:
    """All of the answer, once, as one stream."""
    answer = answers.read(exchange.text())
    text = answer.texts.get(0, "")
    if exchange.error == "aborted":
        return Told(Verdict.FAIL, f"no end within {LIMIT_S:g} s, after {text!r}")
    if exchange.status == 200 and answer.complete and text == TEXT and not answer.oddities and not exchange.error:
        return Told(Verdict.PASS)
    if honest := _honest(exchange, answer):
        return Told(Verdict.PARTIAL, honest)
    if answer.done or exchange.finished:
        return Told(Verdict.FAIL, f"looks complete with {text!r}{_oddities(answer)}")
    return Told(Verdict.FAIL, f"{exchange.error or 'unfinished'} after {text!r}")


def engines_own_400(exchange: Exchange, stage: Stage) -> Told:
    """The same prompt is too long everywhere: passed on, and tried nowhere else."""
    if exchange.status != 400 or b"maximum context length" not in exchange.text():
        return Told(Verdict.FAIL, f"status {exchange.status}: {exchange.text()[:80]!r}")
    asked = len(stage.director.attempts)
    return Told(Verdict.PASS) if asked == 1 else Told(Verdict.PARTIAL, f"asked {asked} engines")


def filtered(exchange: Exchange, stage: Stage) -> Told:
    """A decision of the engine's, not a failure: the client is to see it."""
    answer = answers.read(exchange.text())
    asked = len(stage.director.attempts)
    if answer.ends != {0: "content_filter"} or not answer.done:
        return Told(Verdict.FAIL, f"ended with {answer.ends}")
    return Told(Verdict.PASS) if asked == 1 else Told(Verdict.PARTIAL, f"asked {asked} engines")


def whole_or_honest(exchange: Exchange, stage: Stage) -> Told:
    """Where nobody can continue, an error event and no `[DONE]` is all that can be had."""
    told = whole(exchange, stage)
    in_band = answers.read(exchange.text()).error
    return Told(Verdict.PASS) if told.verdict is Verdict.PARTIAL and in_band else told


def _honest(exchange: Exchange, answer: answers.Answer) -> str:
    """How the client can tell that it has not got the answer, "" if it cannot."""
    if exchange.status >= 400:
        return f"status {exchange.status}"
    if answer.error and not answer.done:
        return "an error event"
    if exchange.error and not answer.done:
        return f"a broken connection after {len(answer.texts.get(0, ''))} characters"
    if not answer.done and exchange.status == 200:
        return "no [DONE]" if 0 not in answer.ends or answer.texts.get(0) == TEXT else ""
    return ""


def _oddities(answer: answers.Answer) -> str:
    said = [*answer.oddities, *([f"an error and [DONE]: {answer.error}"] if answer.error else [])]
    return f" ({'; '.join(said)})" if said else ""


class Scene(NamedTuple):
    name: str
    set_up: Callable[[Stage], Awaitable[None]]
    judge: Callable[[Exchange, Stage], Told] = whole
    requests: int = 3


def first_meets(*scripts: Callable[[Attempt], Awaitable[None]]) -> Callable[[Stage], Awaitable[None]]:
    """The first attempt of each request meets the first script, and so on; then all is well."""

    async def set_up(stage: Stage) -> None:
        stage.director.begin(*scripts, well)

    return set_up


async def _is_busy(stage: Stage) -> None:
    """One engine asks to be left alone; the other has room."""
    stage.director.begin(by_engine={0: busy})


async def _refuses(stage: Stage) -> None:
    stage.director.begin()
    await stage.engines[0].stop()


async def _does_not_answer(stage: Stage) -> None:
    stage.director.begin()
    await stage.engines[0].fall_silent()


async def _flaps(stage: Stage) -> None:
    """The first engine fails every second time, in other ways each time."""
    turns = [0]
    ways = (broken, well, cuts, well, unavailable, well, dies_in_band, well)

    async def flap(attempt: Attempt) -> None:
        turns[0] += 1
        await ways[turns[0] % len(ways)](attempt)

    stage.director.begin(by_engine={0: flap})


SCENES = (
    Scene("429 with Retry-After", _is_busy, requests=6),
    Scene("500", first_meets(broken)),
    Scene("503", first_meets(unavailable)),
    Scene("connect refused", _refuses, requests=6),
    Scene("connect timeout", _does_not_answer, requests=4),
    Scene("slow first token", first_meets(late), requests=1),
    Scene("cut mid-stream", first_meets(cuts)),
    Scene("stall", first_meets(stalls), requests=1),
    Scene("malformed event", first_meets(talks_nonsense)),
    Scene("in-band error", first_meets(dies_in_band)),
    Scene("empty stream", first_meets(says_nothing)),
    Scene("missing [DONE]", first_meets(forgets_done)),
    Scene("context-length 400", first_meets(finds_it_too_long), engines_own_400),
    Scene("content filter", first_meets(filters), filtered),
    Scene("fallback refusing continuation", first_meets(cuts, will_not_continue), whole_or_honest),
    Scene("flapping primary", _flaps, requests=12),
)
BY_NAME = {scene.name: scene for scene in SCENES}


async def play(scene: Scene, stage: Stage) -> Told:
    """The worst of its requests. The engines are well again afterwards."""
    worst = Told(Verdict.PASS)
    try:
        await scene.set_up(stage)
        for _ in range(scene.requests):
            stage.director.next_request()
            told = scene.judge(await _ask(stage.client), stage)
            worst = min(worst, told, key=lambda t: RANK.index(t.verdict))
            await asyncio.sleep(BETWEEN_S)
    finally:
        stage.director.begin()
        for engine in stage.engines:
            await engine.recover()
    return worst


async def _ask(client: Client) -> Exchange:
    messages = [{"role": "user", "content": "Say it."}]
    body = {"model": MODEL, "messages": messages, "stream": True, "temperature": 0, "max_tokens": 32}
    exchange = await client.open(client.encode("/v1/chat/completions", body), keep=True)
    try:
        async with asyncio.timeout(LIMIT_S):
            await exchange.ended()
    except TimeoutError:
        pass
    finally:
        exchange.abort()
    return exchange


# Against whom.


async def against(contestant: Contestant, directory: Path) -> dict[str, Told]:
    async with engines() as (made, director):
        with Processes() as processes:
            site = Site(port=free_port(), engines=tuple(e.address for e in made), model=MODEL, directory=directory)
            launch = contestant.launch(site)
            for helper in launch.helpers:
                await asyncio.to_thread(start, processes, helper, directory)
            if launch.router is not None:
                await asyncio.to_thread(start, processes, launch.router, directory)
            client = Client("127.0.0.1", launch.port, api_key=launch.api_key)
            try:
                await _ready(client)
                return await _all(Stage(made, director, client))
            finally:
                client.close()


async def at_url(url: str, key: str, ports: Sequence[int]) -> dict[str, Told]:
    host, _, port = url.partition("://")[2].partition("/")[0].partition(":")
    async with AsyncExitStack() as stack:
        director = Director()
        made = [Engine(number, director) for number in range(len(ports))]
        for engine, chosen in zip(made, ports, strict=True):
            engine.port = chosen
            await engine.start()
            stack.push_async_callback(engine.stop)
        client = Client(host, int(port or 80), api_key=key)
        stack.callback(client.close)
        await _ready(client)
        return await _all(Stage(made, director, client))


async def _all(stage: Stage) -> dict[str, Told]:
    found = {}
    for scene in SCENES:
        found[scene.name] = told = await play(scene, stage)
        print(f"{scene.name:<32} {told.verdict} {told.why}", file=sys.stderr, flush=True)
        await _ready(stage.client)  # so that one scene's end is not the next one's trouble
    return found


async def _ready(client: Client, limit_s: float = 90.0) -> None:
    deadline = monotonic() + limit_s
    while True:
        exchange = await _ask(client)
        if exchange.complete:
            return
        if monotonic() > deadline:
            raise CannotStart(f"no whole answer within {limit_s:g} s, the last: {exchange.status} {exchange.error}")
        await asyncio.sleep(0.2)


def table(found: dict[str, dict[str, Told]]) -> str:
    names = list(found)
    lines = ["| scenario | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for scene in SCENES:
        cells = [_cell(found[name].get(scene.name)) for name in names]
        lines += [f"| {scene.name} | " + " | ".join(cells) + " |"]
    totals = (sum(told.verdict is Verdict.PASS for told in found[name].values()) for name in names)
    return "\n".join([*lines, "| **pass** | " + " | ".join(f"{n} of {len(SCENES)}" for n in totals) + " |"])


def summary(found: dict[str, dict[str, Told]]) -> str:
    """How often each verdict, and which scenes were not passed, a line per contestant."""
    lines = ["| router | pass | partial | fail | fails at |", "|---|---|---|---|---|"]
    for name, told in found.items():
        counts = [sum(one.verdict is verdict for one in told.values()) for verdict in (Verdict.PASS, Verdict.PARTIAL)]
        failed = [scene for scene, one in told.items() if one.verdict is Verdict.FAIL]
        lines.append(f"| {name} | {counts[0]} | {counts[1]} | {len(failed)} | {', '.join(failed) or 'none'} |")
    return "\n".join(lines)


def _cell(told: Told | None) -> str:
    if told is None:
        return "not played"
    return told.verdict if told.verdict is Verdict.PASS else f"{told.verdict}: {told.why.replace('|', '/')}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m loadtest.scenarios", description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--only", default="switchyard", help="contestants, comma separated; `all` for all that are here"
    )
    parser.add_argument("--table", type=Path, help="write both tables there too")
    parser.add_argument("--url", default="", help="of a router that runs already")
    parser.add_argument("--key", default="", help="API key for it")
    parser.add_argument("--ports", default="9001,9002", help="where it finds the two engines")
    args = parser.parse_args(argv)
    found: dict[str, dict[str, Told]] = {}
    if args.url:
        found[args.url] = uvloop.run(at_url(args.url, args.key, [int(port) for port in args.ports.split(",")]))
    else:
        for contestant in roster.named([] if args.only == "all" else args.only.split(",")):
            if contestant.name == "direct":
                continue  # nothing to test
            if missing := contestant.missing():
                print(f"{contestant.name}: left out, {missing}", file=sys.stderr)
                continue
            with tempfile.TemporaryDirectory(prefix="scenarios-") as at:
                print(f"-- {contestant.name}", file=sys.stderr, flush=True)
                try:
                    found[contestant.name] = uvloop.run(against(contestant, Path(at)))
                except CannotStart as error:
                    print(f"{contestant.name}: left out, {error}", file=sys.stderr)
    tables = f"{summary(found)}\n\n{table(found)}\n"
    print(tables)
    if args.table:
        args.table.write_text(tables)
    ours = found.get("switchyard", {})
    return 0 if all(told.verdict is Verdict.PASS for told in ours.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
