"""Where a request goes: one replica, or hold, wake, or the reason why nobody can serve it.

Simple picking: the least expected wait among ready replicas, from reports and own counts. Decides nothing about
admission, retries or what is relayed. Sources: routing.md, section 2.4 (own counts reconciled with reports by `seen`).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

import msgspec

from router.core.model import Candidate, Decision, Ending, Fleet, LoadReport, ReplicaLoad, Shape, Verdict
from wire.records import ModelState, Replica, Task

STEP_MS = 10.0
PREFILL_MS_PER_TOKEN = 0.05
BYTES_PER_TOKEN = 4.0
LOAD_S = {ModelState.LOADING: 20.0, ModelState.SLEEPING: 3.0, ModelState.ON_DISK: 40.0}


class Rng(Protocol):
    def random(self) -> float: ...


class Constants(msgspec.Struct, frozen=True, kw_only=True):
    tie_ms: float = 5.0
    tie_fraction: float = 0.02
    retry_after_s: float = 5.0


class _Count:
    """What this router has under way on one replica."""

    __slots__ = ("flights", "load", "sent", "waiting_tokens")

    def __init__(self) -> None:
        self.flights: set[_Flight] = set()
        self.sent = 0
        self.waiting_tokens = 0.0
        self.load: ReplicaLoad | None = None


class _Flight:
    __slots__ = ("_count", "_tokens", "index")

    def __init__(self, count: _Count, tokens: float) -> None:
        count.sent += 1
        self.index = count.sent
        self._count, self._tokens = count, tokens
        count.flights.add(self)
        count.waiting_tokens += tokens

    def first_token(self, now: float) -> None:
        self._count.waiting_tokens -= self._tokens
        self._tokens = 0.0

    def progress(self, tokens: int, now: float) -> None:
        pass

    def end(
        self, ending: Ending, now: float, *, prompt_tokens: int = 0, cached_tokens: int = -1, output_tokens: int = 0
    ) -> None:
        self.first_token(now)
        self._count.flights.discard(self)


class CoreDispatcher:
    def __init__(self, *, rng: Rng, constants: Constants | None = None) -> None:
        self._rng = rng
        self._constants = constants or Constants()
        self._fleet = Fleet()
        self._by_model: dict[str, list[Replica]] = {}
        self._counts: dict[str, _Count] = {}
        self._epochs: dict[str, tuple[int, int]] = {}

    def apply(self, fleet: Fleet, now: float) -> None:
        self._fleet = fleet
        self._by_model = {}
        for replica in fleet.replicas.values():
            for name in (replica.model, *replica.adapters):
                self._by_model.setdefault(name, []).append(replica)

    def report(self, report: LoadReport, now: float) -> None:
        at = (report.epoch, report.sequence)
        if at <= self._epochs.get(report.node, (0, -1)):
            return
        self._epochs[report.node] = at
        for load in report.replicas:
            self._count(load.replica).load = load

    def node_lost(self, node: str, now: float) -> None:
        self._epochs.pop(node, None)
        for replica in self._fleet.replicas.values():
            if replica.node == node:
                self._count(replica.replica).load = None

    def pick(self, shape: Shape, *, exclude: Collection[str] = (), now: float) -> Decision:
        replicas = self._of(shape.model)
        if not replicas and shape.model not in self._fleet.models:
            return Decision(verdict=Verdict.UNKNOWN_MODEL, reason=f"no model {shape.model!r} in this region")
        able = [r for r in replicas if not self._why_not(r, shape, exclude)]
        ready = [(self._wait_ms(r, shape), r.replica) for r in able if self._state(r) is ModelState.READY]
        if ready:
            return self._choose(ready, shape)
        loads = [(self._load_s(r), r.replica, self._state(r)) for r in able]
        if not loads:
            return Decision(
                verdict=Verdict.NONE,
                reason=f"no replica of {shape.model!r} can take the request",
                retry_after_s=self._constants.retry_after_s,
            )
        seconds, name, state = min(loads)
        if any(s is ModelState.LOADING for _, _, s in loads):
            return Decision(verdict=Verdict.HOLD, reason="the model is loading", retry_after_s=seconds)
        return Decision(verdict=Verdict.WAKE, replica=name, reason=f"the model is {state.value}", retry_after_s=seconds)

    def begin(self, decision: Decision, shape: Shape, now: float) -> _Flight:
        return _Flight(self._count(decision.replica), len(shape.prompt) / BYTES_PER_TOKEN)

    def explain(self, shape: Shape, *, now: float) -> list[Candidate]:
        found = []
        for replica in self._of(shape.model):
            why = self._why_not(replica, shape, ())
            wait = self._wait_ms(replica, shape)
            load = 1000.0 * self._load_s(replica)
            terms = {"wait": wait, "load": load}
            found.append(Candidate(replica=replica.replica, expected_ms=wait + load, terms=terms, excluded=why))
        return sorted(found, key=lambda c: (bool(c.excluded), c.expected_ms))

    def sent(self, node: str) -> dict[str, int]:
        replicas = self._fleet.replicas.values()
        return {r.replica: self._count(r.replica).sent for r in replicas if r.node == node}

    def in_flight(self) -> dict[str, int]:
        return {name: len(count.flights) for name, count in self._counts.items() if count.flights}

    def _choose(self, ready: list[tuple[float, str]], shape: Shape) -> Decision:
        ready.sort()
        best = ready[0][0]
        limit = best + max(self._constants.tie_ms, best * self._constants.tie_fraction)
        ties = [item for item in ready if item[0] <= limit]
        wait, name = ties[int(self._rng.random() * len(ties))]
        tokens = int(len(shape.prompt) / BYTES_PER_TOKEN)
        return Decision(
            verdict=Verdict.SEND,
            replica=name,
            policy="expected_time",
            expected_ttft_ms=wait,
            expected_p90_ms=2 * wait,
            uncached_tokens=tokens,
            prompt_tokens=tokens,
            runner_up=next((n for _, n in ready if n != name), ""),
            reason=f"least expected wait of {len(ready)} ready replicas",
        )

    def _of(self, model: str) -> list[Replica]:
        found = self._by_model.get(model, [])
        policy = self._fleet.models.get(model)
        if policy is not None and policy.adapter_of:
            base = [r for r in self._by_model.get(policy.adapter_of, []) if not r.adapters or model in r.adapters]
            return found or base
        return found

    def _why_not(self, replica: Replica, shape: Shape, exclude: Collection[str]) -> str:
        if replica.replica in exclude:
            return "tried already"
        if (replica.task is Task.EMBED) is not shape.embedding:
            return f"serves {replica.task.value}"
        node = self._fleet.nodes.get(replica.node)
        if node is not None and node.draining:
            return "node drains"
        state = self._state(replica)
        return "" if state is ModelState.READY or state in LOAD_S else state.value

    def _state(self, replica: Replica) -> ModelState:
        load = self._count(replica.replica).load
        return load.state if load is not None and load.generation >= replica.generation else replica.state

    def _wait_ms(self, replica: Replica, shape: Shape) -> float:
        count = self._count(replica.replica)
        running = len(count.flights)
        if count.load is not None:
            unseen = sum(1 for f in count.flights if f.index > count.load.seen)
            running = max(running, count.load.running + count.load.waiting + unseen)
        tokens = count.waiting_tokens + len(shape.prompt) / BYTES_PER_TOKEN
        return STEP_MS * (1 + running) + PREFILL_MS_PER_TOKEN * tokens

    def _load_s(self, replica: Replica) -> float:
        state = self._state(replica)
        load = self._count(replica.replica).load
        if state is ModelState.LOADING and load is not None and load.load_remaining_s > 0:
            return load.load_remaining_s
        return LOAD_S.get(state, 0.0)

    def _count(self, replica: str) -> _Count:
        if replica not in self._counts:
            self._counts[replica] = _Count()
        return self._counts[replica]
