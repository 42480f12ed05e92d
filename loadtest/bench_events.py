"""What one event costs the router's core, and what a delivered token costs its memory.

    .venv/bin/python -m loadtest.bench_events [--rounds 40]

Times are CPU time, the best of many short rounds, as `python -m timeit` gives them: the least disturbed one. The
alternatives that were not taken are measured beside, so that the choice can be made again on another machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import sys
import time
import timeit
from collections.abc import Callable

from uvicorn.server import ServerState

from router.call import Attempt
from router.core.asked import Asked, cut_for, prepare, read
from router.core.backlog import Backlog
from router.core.continuation import plan
from router.core.events import Splitter, examine, is_plain
from router.core.model import Decision, Verdict
from router.core.run import Run
from router.core.splice import Splice
from router.core.transcript import Transcript
from router.downstream.direct import DirectStream
from router.downstream.light import Flow
from router.relay import Limits, Relay
from router.resume import Story
from router.upstream.connection import EngineConnection
from wire.records import Replica

PATH = "/v1/chat/completions"
BODY = json.dumps({"model": "m", "messages": [], "stream": True, "seed": 1}).encode()
HEAD = (
    b'data: {"id":"chatcmpl-0b1f3a52-7d5e-4f0e-9a39-6f2d1f0c7a11","object":"chat.completion.chunk",'
    b'"created":1795302374,"model":"meta-llama/Llama-3.1-8B-Instruct","choices":[{"index":0,'
)
OPENING = HEAD + b'"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]}\n\n'
EVENT = HEAD + b'"delta":{"content":" Exception"},"logprobs":null,"finish_reason":null,"token_ids":[1808]}]}\n\n'
TOKENS = 1024

_IDS = re.compile(rb',"(?:prompt_)?token_ids":\[[^\]]*\]')


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m loadtest.bench_events", description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=40)
    rounds = parser.parse_args().rounds
    asked = read(PATH, BODY)
    print(f"one event of {len(EVENT)} bytes, ns")
    whole_way = "event, read to write"
    print(f"  {whole_way:<34}{1000.0 * costs_us(rounds)[whole_way]:8.0f}")
    for name, call in hot(asked).items():
        print(f"  {name:<34}{best(call, rounds):8.0f}")
    print(f"behind the hot path, of {TOKENS} events, ns an event")
    for name, call in cold(asked).items():
        print(f"  {name:<34}{best(call, max(1, rounds // 4), number=1) / TOKENS:8.0f}")
    for name, size in kept(asked).items():
        print(f"  {name:<34}{size:8.1f}")
    return 0


def hot(asked: Asked) -> dict[str, Callable[[], object]]:
    splitter, cut = Splitter(), cut_for(asked, token_ids=True)
    splitter.feed(OPENING)
    pair = EVENT + EVENT
    run = Run(cut_ids=True)
    run.learn(EVENT)
    backlog = Backlog("0123abcd.0123456789abcdef", limit_bytes=256 * 1024)
    return {
        "Splitter.feed, a whole event": lambda: splitter.feed(EVENT),
        "Run.take": lambda: run.take(EVENT),
        "Cut.quick": lambda: cut.quick(EVENT),
        "is_plain": lambda: is_plain(EVENT),
        "examine, two events at once": lambda: examine(pair),
        "Cut.any, two events at once": lambda: cut.any(pair),
        "Backlog.add, kept streams only": lambda: backlog.add(EVENT),
        "not taken: re.sub for the cut": lambda: _IDS.sub(b"", EVENT),
        "not taken: find for the cut": lambda: EVENT.find(b',"token_ids":['),
        "not taken: four `in` tests": lambda: any(
            word in EVENT for word in (b'"error"', b'"usage"', b'"abort"', b"[DONE]")
        ),
        "not taken: json.loads": lambda: json.loads(EVENT[6:]),
    }


def cold(asked: Asked) -> dict[str, Callable[[], object]]:
    events = [bytes(bytearray(EVENT)) for _ in range(TOKENS)]

    def fold() -> Transcript:
        transcript = Transcript(asked)
        transcript.fold([OPENING, *events])
        return transcript

    def replay(delivered: int) -> None:
        transcript = Transcript(asked)
        transcript.fold([OPENING, *events[:delivered]])
        splice = Splice(plan(asked, transcript, sent=prepare(asked, token_ids=True)), transcript, asked)
        for event in events:
            splice.feed(event)

    return {
        "Transcript.fold": fold,
        "Splice.feed, behind the seam": lambda: replay(1),
        "Splice.feed, before it (with fold)": lambda: replay(TOKENS),
    }


class _Wire(asyncio.Transport):
    """Takes everything at once: what is measured is ours."""

    def write(self, data: object) -> None: ...

    def writelines(self, list_of_data: object) -> None: ...

    def is_closing(self) -> bool:
        return False


class _Course:
    """Of an attempt that nobody watches."""

    def starts(self, relay: Relay) -> None: ...

    def started(self, relay: Relay) -> None: ...

    def progressed(self, tokens: int, now: float) -> None: ...

    def limits(self, relay: Relay) -> tuple[float, float]:
        return 1e9, 60.0

    def patience_s(self, relay: Relay, now: float) -> float:
        return 60.0


class _Connection:
    """What a client's stream uses of its connection."""

    def __init__(self) -> None:
        self.transport = _Wire()
        self.flow = Flow(self.transport)
        self.server_state = ServerState()
        self.loop = asyncio.get_running_loop()

    def on_response_complete(self) -> None: ...


async def carrying(asked: Asked) -> EngineConnection:
    """An engine's connection in the middle of a stream: what it reads goes to a client on a wire that takes all."""
    client = DirectStream(_Connection(), headers={}, keep_alive=True)  # type: ignore[arg-type]
    client.start(200, [])
    replica = Replica(replica="r", node="n", region="l", model="m", address="h:1")
    relay = Relay(
        Attempt(replica=replica, decision=Decision(verdict=Verdict.SEND), span_id=1, started=0.0),
        client,
        editor=Story(asked, token_ids=True, seed=None).first_leg(),
        choices=1,
        course=_Course(),
        limits=Limits(answer_bytes=1 << 20, event_bytes=1 << 20),
        loop=asyncio.get_running_loop(),
    )
    connection = EngineConnection("h:1")
    connection.connection_made(_Wire())
    relay.attach(connection)
    connection.send(b"", b"", relay)
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    for data in (head, chunked(OPENING), chunked(EVENT)):
        connection.data_received(data)
    return connection


def chunked(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def costs_us(rounds: int = 20) -> dict[str, float]:
    """What bench_ratios.py watches."""
    asked = read(PATH, BODY)

    async def carried() -> float:
        connection, data = await carrying(asked), chunked(EVENT)
        return best(lambda: connection.data_received(data), rounds)

    names = {"Run.take": "usual event", "Cut.quick": "other event", "examine, two events at once": "two events"}
    functions = hot(asked)
    found = {said: best(functions[name], rounds) / 1000.0 for name, said in names.items()}
    return found | {
        "event, read to write": asyncio.run(carried()) / 1000.0,
        "event folded": best(cold(asked)["Transcript.fold"], rounds, number=1) / TOKENS / 1000.0,
    }


def kept(asked: Asked) -> dict[str, float]:
    """Bytes held by a transcript for each delivered token, and by the raw events it was folded from."""
    transcript = Transcript(asked)
    transcript.fold([OPENING, *([EVENT] * TOKENS)])
    choice = transcript.choices[0]
    size = sys.getsizeof(choice.ids) + sum(sys.getsizeof(text) for text in choice.channels.values())
    said = len(choice.text_of("content"))
    return {
        "kept bytes a token, folded": size / TOKENS,
        "  of which its own text": said / TOKENS,
        "kept bytes a token, in a run": sum(len(part) for part in (b" Exception", b"1808,")),
        "kept bytes a token, raw event": sys.getsizeof(bytes(bytearray(EVENT))) + 8,
    }


def best(call: Callable[[], object], rounds: int, *, number: int = 1_000) -> float:
    return min(timeit.repeat(call, timer=time.process_time, number=number, repeat=rounds)) / number * 1e9


if __name__ == "__main__":
    sys.exit(main())
