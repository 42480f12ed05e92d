"""Records real vLLM again: starts its servers, sends every case, writes streams/*.gz and index.json.

    .venv/bin/python -m tests.recordings.record

Needs the engine environment (python -m node_agent.engines.install). Ids and dates differ from run to run; token ids,
texts and event shapes do not.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from typing import Any

import httpx
import msgspec

from tests.recordings.cases import (
    CHAT,
    ERRORS,
    GREEDY,
    IDS,
    INTERRUPTED,
    PLAIN,
    REASONING,
    TEXT,
    USAGE,
    Case,
    streams,
    unicode_by_bias,
)
from tests.recordings.exchange import SILENCE_S, Exchange, exchange
from tests.recordings.library import INDEX, STREAMS, Answer, Recording, text_of
from tests.vllm.servers import GENERATE, VllmServer, start_all, tiny_model

EVENTS_BEFORE_TROUBLE = 60
CHAT_ONLY = ("messages", "tools", "tool_choice", "top_logprobs", "n")
SMALL_QUEUE = ["--max-num-seqs=2", "--max-num-queued-reqs=1"]


class Recorder:
    """Keeps what was recorded and writes it at the end."""

    def __init__(self) -> None:
        self.made: dict[str, tuple[Recording, bytes]] = {}
        self._lock = threading.Lock()

    def keep(self, case: Case, server: str, done: Exchange, **links: Any) -> Recording:
        kept = Recording(
            name=case.name,
            about=case.about,
            tags=case.tags,
            server=server,
            endpoint=done.endpoint,
            body=done.body,
            request_headers=done.headers,
            status=done.status,
            ending=done.ending,
            reads=tuple(done.reads),
            **links,
        )
        with self._lock:
            assert case.name not in self.made, case.name
            self.made[case.name] = (kept, bytes(done.wire))
        return kept

    def answer(self, name: str) -> Answer:
        return Answer(self.made[name][1])

    def write(self) -> int:
        shutil.rmtree(STREAMS, ignore_errors=True)
        STREAMS.mkdir()
        for name, (_, wire) in self.made.items():
            (STREAMS / f"{name}.gz").write_bytes(gzip.compress(wire, 9, mtime=0))
        index = [self.made[name][0] for name in sorted(self.made)]
        INDEX.write_bytes(b"[\n" + b",\n".join(msgspec.json.encode(one) for one in index) + b"\n]\n")
        return sum(file.stat().st_size for file in (INDEX, *STREAMS.iterdir()))


def main() -> int:
    recorder = Recorder()
    with running(a=GENERATE, b=GENERATE) as servers:
        a, b = servers["a"], servers["b"]
        _say("streams, and how they continue")
        record_streams(recorder, a, b)
        for case in (*PLAIN, *ERRORS):
            send(recorder, a, "a", case)
        with running(reasoning=[*GENERATE, "--reasoning-parser=qwen3"], queue=SMALL_QUEUE) as more:
            _say("reasoning, full queue")
            record_reasoning(recorder, more["reasoning"])
            record_queue_full(recorder, more["queue"])
        with running(hasty=[*GENERATE, "--shutdown-timeout=0"], c=GENERATE, d=GENERATE) as more:
            _say("troubles")
            record_troubles(recorder, servers | more)
    _say(f"{len(recorder.made)} recordings, {recorder.write() / 1e3:.0f} kB")
    return 0


@contextmanager
def running(**flags: Sequence[str]) -> Iterator[dict[str, VllmServer]]:
    servers = {name: VllmServer(more) for name, more in flags.items()}
    try:
        start_all(*servers.values())
        yield servers
    finally:
        for server in servers.values():
            server.stop()


def send(recorder: Recorder, server: VllmServer, name: str, case: Case, **links: Any) -> Recording:
    done = exchange(server.port, case.endpoint, case.request(), headers={"x-request-id": case.name})
    return recorder.keep(case, name, done, **links)


def record_streams(recorder: Recorder, a: VllmServer, b: VllmServer) -> None:
    """Every stream on `a`; then again on `b`, and continued on `b` by token ids where that is exact."""
    for case in (*streams(*stops(a)), *unicode_by_bias(_lead_bytes())):
        send(recorder, a, "a", case)
        if case.resume:
            again = replace(case, name=f"{case.name}-replay", tags=(*case.tags, "replay"))
            send(recorder, b, "b", again, continues=case.name)
        if case.resume == "ids":
            for choice in recorder.answer(case.name).indices():
                for after in _cuts(recorder.answer(case.name), choice):
                    continue_by_ids(recorder, b, case, choice, after)


def continue_by_ids(recorder: Recorder, server: VllmServer, case: Case, choice: int, after: int) -> None:
    answer = recorder.answer(case.name)
    fields = {name: value for name, value in case.fields.items() if name not in CHAT_ONLY}
    if "logprobs" in fields:
        fields["logprobs"] = case.fields.get("top_logprobs", fields["logprobs"])
    fields["prompt"] = answer.prompt_token_ids(choice) + answer.token_ids(choice)[:after]
    fields["max_tokens"] = case.fields["max_tokens"] - after
    suffix = f"-c{choice}" if len(answer.indices()) > 1 else ""
    continued = Case(
        f"{case.name}{suffix}-after-{after}",
        f"{case.about}: continued by token ids after {after} tokens",
        TEXT,
        fields,
        (*case.tags, "continuation"),
    )
    send(recorder, server, "b", continued, continues=case.name, after=after, choice=choice)


def record_reasoning(recorder: Recorder, server: VllmServer) -> None:
    for case in REASONING:
        send(recorder, server, "reasoning", case)
        again = replace(case, name=f"{case.name}-replay", tags=(*case.tags, "replay"))
        send(recorder, server, "reasoning", again, continues=case.name)


def record_queue_full(recorder: Recorder, server: VllmServer) -> None:
    """Two run, one waits, the next is refused."""
    long = Case("held", "", TEXT, {"max_tokens": 1500, "temperature": 0, "ignore_eos": True, "stream": True}).request()
    with ThreadPoolExecutor(3) as pool:
        held = [pool.submit(exchange, server.port, TEXT, long) for _ in range(3)]
        time.sleep(0.7)
        for name, more in (("text-queue-full", {}), ("text-queue-full-stream", USAGE)):
            case = Case(
                name, "Completions: the engine's queue is full: 503", TEXT, {"max_tokens": 4, **more}, ("error",)
            )
            send(recorder, server, "queue", case)
        for one in held:
            one.result()


def record_troubles(recorder: Recorder, servers: Mapping[str, VllmServer]) -> None:
    """What a client sees of a stop, a kill and a freeze. The last one ends server `a`."""
    a, b, c, d, hasty = (servers[name] for name in ("a", "b", "c", "d", "hasty"))
    core_of_a, core_of_c = a.core_pid(), c.core_pid()
    for case in _interrupted("reference", "not disturbed"):
        send(recorder, b, "b", replace(case, tags=(*case.tags, "reference")))
    troubles: list[tuple[str, str, str, Callable[[], object]]] = [
        ("frozen-api", "the API server stopped for a second", "a", lambda: _freeze(a.pid)),
        ("frozen-core", "the engine core stopped for a second", "a", lambda: _freeze(core_of_a)),
        ("slept", "/sleep while it runs", "a", lambda: _post(a, "/sleep?level=1")),
        ("core-killed", "the engine core killed", "c", lambda: os.kill(core_of_c, signal.SIGKILL)),
        ("api-killed", "the API server killed", "d", lambda: os.kill(d.pid, signal.SIGKILL)),
        ("terminated", "SIGTERM with no time to drain", "hasty", lambda: os.kill(hasty.pid, signal.SIGTERM)),
    ]
    for name, what, server, strike in troubles:
        _say(name)
        Trouble(recorder, name, what, server, servers[server].port).record(strike, b)
        if name == "slept":
            _post(a, "/wake_up")
    _say("silent")
    Trouble(recorder, "silent", "the engine core stopped for good", "a", a.port, silence_s=2.0).record(
        lambda: os.kill(core_of_a, signal.SIGSTOP), b
    )
    os.kill(core_of_a, signal.SIGCONT)
    _say("drained")
    Trouble(recorder, "drained", "SIGTERM with 30 s to drain", "a", a.port).record(
        lambda: os.kill(a.pid, signal.SIGTERM), b
    )


class Trouble:
    """Runs the interrupted cases together and strikes when every stream has sent enough."""

    def __init__(
        self, recorder: Recorder, name: str, what: str, server: str, port: int, *, silence_s: float = SILENCE_S
    ) -> None:
        self._recorder = recorder
        self._server = server
        self._port = port
        self._silence_s = silence_s
        self._cases = _interrupted(name, what)
        self._lock = threading.Lock()
        self._on_their_way: set[str] = set()
        self._time_to_strike = threading.Event()

    def record(self, strike: Callable[[], object], other: VllmServer) -> None:
        with ThreadPoolExecutor(len(self._cases)) as pool:
            running = [pool.submit(self._run, case) for case in self._cases]
            if self._time_to_strike.wait(60):
                strike()
            done = [one.result() for one in running]
        for case, seen in zip(self._cases, done, strict=True):
            self._recorder.keep(case, self._server, seen)
            self._continue(case, other)

    def _run(self, case: Case) -> Exchange:
        return exchange(
            self._port,
            case.endpoint,
            case.request(),
            headers={"x-request-id": case.name},
            silence_s=self._silence_s,
            watch=lambda seen: self._watch(case, seen),
        )

    def _watch(self, case: Case, seen: Exchange) -> None:
        if "stream" in case.fields and seen.wire.count(b"data: ") >= EVENTS_BEFORE_TROUBLE:
            with self._lock:
                self._on_their_way.add(case.name)
                if len(self._on_their_way) == sum("stream" in one.fields for one in self._cases):
                    self._time_to_strike.set()

    def _continue(self, case: Case, other: VllmServer) -> None:
        delivered = len(self._recorder.answer(case.name).token_ids())
        if case.fields["temperature"] == 0 and 0 < delivered < case.fields["max_tokens"]:
            continue_by_ids(self._recorder, other, case, 0, delivered)


def _interrupted(name: str, what: str) -> list[Case]:
    return [replace(one, name=one.name.format(name), about=one.about.format(what)) for one in INTERRUPTED]


def _freeze(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)
    time.sleep(1)
    os.kill(pid, signal.SIGCONT)


def _post(server: VllmServer, path: str, body: object = None) -> dict[str, Any]:
    answer = httpx.post(f"{server.url}{path}", json=body, timeout=60)
    answer.raise_for_status()
    decoded: dict[str, Any] = answer.json()
    return decoded


def stops(server: VllmServer) -> tuple[str, str, int]:
    """Stop strings over the seam of two tokens of the greedy answers, and a token of the chat's.

    Asked for whole, with a log probability for each token: a busy engine puts several tokens into one event.
    """
    fields = GREEDY | IDS | {"max_tokens": 40}
    chat = _post(server, CHAT, Case("probe", "", CHAT, fields | {"logprobs": True}).request())["choices"][0]
    text = _post(server, TEXT, Case("probe", "", TEXT, fields | {"logprobs": 1}).request())["choices"][0]
    chat_seam = _seam([one["token"] for one in chat["logprobs"]["content"]])
    return chat_seam, _seam(text["logprobs"]["tokens"]), chat["token_ids"][22]


def _seam(tokens: Sequence[str]) -> str:
    """The last two letters of a token and the first two of the next, about the middle of an answer."""
    one, other = next(pair for pair in pairwise(tokens[20:]) if all(t.isascii() and len(t) > 3 for t in pair))
    return one[-2:] + other[:2]


def _lead_bytes() -> list[int]:
    """Tokens of a single byte from 0xA1 up (those letters stand for themselves): parts of characters."""
    vocabulary = json.loads((tiny_model() / "tokenizer.json").read_text())["model"]["vocab"]
    return sorted(vocabulary[letter] for letter in vocabulary if len(letter) == 1 and 0xA1 <= ord(letter) <= 0xFF)


def _cuts(answer: Answer, choice: int) -> list[int]:
    """After how many tokens to continue: the first, the middle, the last but one, and where text is held back."""
    at, held = 0, []
    for part in answer.choices(choice):
        at += len(part.get("token_ids") or ())
        if part.get("token_ids") and not text_of(part):
            held.append(at)
    total = at
    return sorted({cut for cut in (1, total // 2, total - 1, *held[:1], *held[-1:]) if 0 < cut < total})


def _say(line: str) -> None:
    print(f"recordings: {line}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
