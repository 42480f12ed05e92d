"""One simulated engine in real time: drives the batching model by the loop's clock and hands its tokens to the calls.

A step's tokens go out when the step ends, all at once, as in a real engine. A step begins when the one before should
have ended, so that the millisecond grain of the loop's timers does not add up; when the process itself is too busy
to keep up by more than a quarter of a second, the lost time is dropped and counted in `behind_s`, and measurements
made then measure this machine.

Knows no paths and no wire format. Not in here: listening (host.py), what a request asks (routes.py).
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable

import msgspec

from node_agent.engines.simulated.batching import Batch, Counters, Sequence, Step
from node_agent.engines.simulated.calls import Call
from node_agent.engines.simulated.faults import Faults
from node_agent.engines.simulated.http import Connection
from node_agent.engines.simulated.metrics import FINISH_REASONS, Metrics
from node_agent.engines.simulated.profiles import PROFILES, Profile
from node_agent.engines.simulated.tokens import MASK, encode, prefix_hashes

_BEHIND_LIMIT_S = 0.25
_FROZEN_POLL_S = 0.02


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """What one replica was started with; names as on the command line."""

    model: str = "sim-8b"
    profile: Profile = PROFILES["llama-3.1-8b-h100"]
    host: str = "127.0.0.1"
    port: int = 0
    task: str = "generate"
    seed: int = 0
    time_scale: float = 1.0
    load_time_s: float = 0.0
    wake_time_s: float = 0.0
    lora_load_time_s: float = 0.0
    shutdown_timeout_s: float = 0.0
    max_num_queued_reqs: int | None = None
    stream_interval: int = 1
    """Tokens in an event, behind the first."""
    request_id_headers: bool = False
    """Echo x-request-id on every answer, or make one up."""


class Stats(msgspec.Struct, kw_only=True):
    """Exact counts for tests, of requests that generate."""

    accepted: int = 0
    active: int = 0
    finished: int = 0
    aborted: int = 0
    """The client went away first."""
    failed: int = 0
    """Ended by the engine: errors, aborts, crashes."""
    refused: int = 0
    """Answered with an error status instead."""
    tokens_sent: int = 0
    connections: int = 0
    steps: int = 0
    behind_s: float = 0.0


class Replica:
    def __init__(self, config: Config, loop: asyncio.AbstractEventLoop, down: Callable[[float | None], None]) -> None:
        """`down` is called with a number of seconds when connections are to be refused, None for ever."""
        if (
            config.profile.max_model_len
            > config.profile.kv_capacity_tokens // config.profile.block_tokens * config.profile.block_tokens
        ):
            raise ValueError("max_model_len does not fit into KV memory; profiles.resized sees to that")
        self.config = config
        self.loop = loop
        self.down = down
        self.rng = random.Random(config.seed)
        self.faults = Faults(random.Random(config.seed + 1))
        self.connections: set[Connection] = set()
        self.adapters: dict[str, str] = {}
        self.draining = False
        self._reset()

    def _reset(self) -> None:
        """A fresh process: nothing of a former one is left but its faults."""
        self.started_unix_s = self.unix_s()
        self.batch = Batch(self.config.profile, slow=self.faults.slow_factor)
        self.metrics = Metrics(self.started_unix_s)
        self.stats = Stats()
        self.calls: dict[str, Call] = {}
        self.sleep_level: int | None = None
        self._of: dict[str, Call] = {}
        self._parked: list[Call] = []
        self._timer: asyncio.Handle | None = None

    def salt_of(self, model: str) -> int:
        """The same name is the same model, on every replica."""
        return prefix_hashes(encode(model), 0, 16)[0] & MASK

    def unix_s(self) -> int:
        return time.time_ns() // 1_000_000_000

    def now(self) -> float:
        return self.loop.time()

    def counters(self) -> Counters:
        """A sleeping engine reports nothing running and nothing waiting, whatever it was sent."""
        counters = self.batch.counters()
        return msgspec.structs.replace(counters, running=0, waiting=0) if self.sleep_level is not None else counters

    def queue_is_full(self, more: int) -> bool:
        limit = self.config.max_num_queued_reqs
        return limit is not None and len(self.batch.waiting) + more > limit

    # Calls

    def submit(self, call: Call, *, extra_s: float = 0.0) -> None:
        """Accept it: it is over when the client goes, the answer ends or the engine does."""
        self.stats.accepted += 1
        self.stats.active += 1
        self.calls[call.id] = call
        call.begin()
        delay_s = self.config.profile.api_request_ms * self.config.time_scale / 1000 + extra_s
        if delay_s > 0:
            self.loop.call_later(delay_s, self.enqueue, call)
        else:
            self.enqueue(call)

    def enqueue(self, call: Call) -> None:
        """Into the engine's queue."""
        if call.id not in self.calls:
            return
        if self.sleep_level is not None:
            self._parked.append(call)
            return
        for choice in call.choices:
            self._of[choice.sequence.id] = call
            self.batch.add(choice.sequence, self.now())
        self._kick()

    def over(self, call: Call, reason: str) -> None:
        """A call ended: told by the call itself, once."""
        if self.calls.pop(call.id, None) is None:
            return
        for choice in call.choices:
            self._of.pop(choice.sequence.id, None)
            self.batch.cancel(choice.sequence, self.now())
        self.stats.active -= 1
        self.stats.tokens_sent += call.usage.completion
        if reason == "gone":
            self.stats.aborted += 1
        elif reason:
            self.stats.failed += 1
        else:
            self.stats.finished += 1

    # Life

    def sleep(self, level: int, mode: str) -> None:
        """Mode `abort` ends what runs, any other freezes it after the step in progress."""
        self.sleep_level = level
        if mode == "abort":
            self._abort_all()
        if level > 0:
            self.batch.pool.forget()

    def wake(self) -> None:
        self.sleep_level = None
        parked, self._parked = self._parked, []
        for call in parked:
            self.enqueue(call)
        self._kick()

    def crash(self, duration_s: float) -> None:
        """As kill -9: connections end in the middle, state is gone, the port refuses."""
        self.down(duration_s)
        for connection in list(self.connections):
            connection.close()
        if self._timer is not None:
            self._timer.cancel()
        connections = self.connections
        self._reset()
        self.stats.connections = len(connections)

    def _abort_all(self) -> None:
        for call in list(self.calls.values()):
            call.end("abort")

    def stop(self) -> None:
        """No more time to drain: what runs ends as aborted, as vLLM's better outcome does."""
        self._abort_all()
        for connection in list(self.connections):
            connection.close()

    # The engine's loop

    def _kick(self) -> None:
        if self._timer is None and self.batch.busy and self.sleep_level is None:
            self._timer = self.loop.call_soon(self._begin, None)

    def _begin(self, ideal: float | None) -> None:
        """Start a step at the time the last one ended, or now."""
        self._timer = None
        if self.sleep_level is not None:
            return
        real = self.now()
        if self.faults.frozen(real):
            self._timer = self.loop.call_later(_FROZEN_POLL_S, self._begin, None)
            return
        now = real if ideal is None else ideal
        if real - now > _BEHIND_LIMIT_S:
            self.stats.behind_s += real - now
            now = real
        step = self.batch.step(now)
        if step is None:
            return
        step.duration_s *= self.config.time_scale
        if step.ends_at <= real:
            self._timer = self.loop.call_soon(self._end, step)
        else:
            self._timer = self.loop.call_at(step.ends_at, self._end, step)

    def _end(self, step: Step) -> None:
        self.stats.steps += 1
        now, of = step.ends_at, self._of
        for sequence in step.first:
            call = of.get(sequence.id)
            if call is not None:
                if sequence.generated == 1:
                    self._observe_first(sequence, now)
                self._after(sequence, call.token(sequence.id), now)
        if step.decoded:
            self.metrics.itl.observe(step.duration_s, len(step.decoded))
            for sequence in step.decoded:
                call = of.get(sequence.id)
                if call is not None and (finish := call.token(sequence.id)) is not None:
                    self._after(sequence, finish, now)
        self._begin(step.ends_at)

    def _after(self, sequence: Sequence, finish: str | None, now: float) -> None:
        """An answer ended, perhaps before the batch's limit."""
        if finish is None:
            return
        self._of.pop(sequence.id, None)
        self.batch.cancel(sequence, now)
        if finish in FINISH_REASONS:
            self.metrics.finished[finish] += 1
        first_at = sequence.first_at
        self.metrics.e2e.observe(now - sequence.arrived)
        self.metrics.inference.observe(now - sequence.admitted)
        self.metrics.decode.observe(now - first_at)
        if sequence.generated > 1:
            self.metrics.tpot.observe((now - first_at) / (sequence.generated - 1))

    def _observe_first(self, sequence: Sequence, now: float) -> None:
        sequence.first_at = now
        self.metrics.ttft.observe(now - sequence.arrived)
        self.metrics.queue.observe(sequence.admitted - sequence.arrived)
        self.metrics.prefill.observe(now - sequence.admitted)
