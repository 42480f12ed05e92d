"""Virtual time: a trace through production dispatchers into simulated GPUs, one event after the other, seeded.

What is real: the dispatchers, with everything they learn. What is modelled: engines (batching model), loads, reports
with their interval and loss, crashes. What is left out: the network between processes, clients that give up.
Safety is checked while it runs and liveness when it has ended, in every run: see `Violation`.
Source: routing.md section 5 for the fleet.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from functools import partial

import msgspec

from loadtest.sim.node import Engine, Job, SimNode, sized
from loadtest.sim.rivals import FullInformation, ReadyOnly
from loadtest.sim.scenario import Scenario, jobs_of, shape_of
from loadtest.traces import BLOCK_TOKENS
from node_agent.engines.simulated.batching import Sequence
from router.core.classes import H100_8B, Cost
from router.core.dispatch import CoreDispatcher
from router.core.model import Fleet, Verdict
from router.core.policies import POLICIES, Policy
from wire.records import ModelPolicy, ModelState, Node, Replica

DRAIN_S = 3.0 * 3600.0
"""After the last arrival everything has so long to end: an overloaded policy takes its time."""
CHECK_ALL = 64
"""Routes between two looks at all routers."""


class Violation(AssertionError):  # noqa: N818 - reads as what it is where it is caught
    """What no fault excuses: a request lost, doubled or sent to an engine that cannot serve (safety), or one that
    never ended, or is still counted after all have ended (liveness)."""


class World:
    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._rng = random.Random(scenario.seed)
        self.engines: dict[str, Engine] = {}
        self.nodes: dict[str, SimNode] = {}
        self.jobs = jobs_of(scenario)
        self.end_of_trace = self.jobs[-1].arrived
        self._half = self.end_of_trace / 2
        self._build()
        seeds = random.Random(scenario.seed + 1000)
        self.routers = [
            CoreDispatcher(
                rng=random.Random(seeds.random()),
                constants=scenario.constants,
                costs=self._priors(),
                policies=self._rules(),
            )
            for _ in range(scenario.routers)
        ]
        self._fleet = self._first_fleet()
        for core in self.routers:
            core.apply(self._fleet, 0.0)
        self._held: dict[str, dict[int, Job]] = {}
        self._left = len(self.jobs)
        self._begun = self._routes = 0
        self.loads = 0
        self.asking: Job | None = None
        """The request that is being decided about, for rules that see everything."""

    def run(self) -> None:
        """Until every request has ended. Raises Violation."""
        for job in self.jobs:
            self.at(job.arrived, lambda job=job: self._arrive(job))  # type: ignore[misc]
        self.at(self.scenario.report_s, self._report_all)
        for _ in range(self.scenario.crashes):
            self.at(self._rng.random() * self.end_of_trace, self._crash)
        limit = self.end_of_trace + DRAIN_S
        while self._events and self._left and self.now < limit:
            self.now, _, action = heapq.heappop(self._events)
            action()
        self.check_liveness()

    def at(self, when: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._order), action))

    def replicas(self, model: str) -> list[Engine]:
        """In the order of the dispatchers' rows: nobody leaves."""
        return [node.engines[model] for node in self.nodes.values()]

    # The life of a request

    def _arrive(self, job: Job) -> None:
        self._begun += 1
        self._route(job)

    def _route(self, job: Job) -> None:
        if job.ended_at:
            raise Violation(f"request {job.number} is routed after its end, {self.scenario}")
        self._decide(job)
        self._routes += 1
        if self._routes % CHECK_ALL == 0:
            self.check_safety()

    def _decide(self, job: Job) -> None:
        core = self.routers[job.router]
        shape = shape_of(job)
        self.asking = job
        decision = core.pick(shape, exclude=job.tried, now=self.now)
        match decision.verdict:
            case Verdict.SEND:
                engine = self.engines[decision.replica]
                engine.coming[job.number] = job
                job.expected_ms = decision.expected_ttft_ms
                job.flight = core.begin(decision, shape, self.now)
                job.replica = decision.replica
                self._held.get(job.model, {}).pop(job.number, None)
                delay = engine.profile.api_request_ms / 1000.0
                self.at(self.now + delay, lambda: self._deliver(job, engine, engine.generation))
            case Verdict.WAKE:
                self._wake(self.engines[decision.replica])
                self._hold(job, decision.retry_after_s)
            case _:
                job.tried.clear()
                self._hold(job, decision.retry_after_s)

    def _deliver(self, job: Job, engine: Engine, generation: int) -> None:
        del engine.coming[job.number]
        if engine.state is not ModelState.READY or engine.generation != generation:
            engine.end_early(job, self.now)
            self._again(job)
        else:
            engine.receive(job, self.now)

    def _hold(self, job: Job, seconds: float) -> None:
        job.held = True
        self._held.setdefault(job.model, {})[job.number] = job

        def again() -> None:
            if job.number in self._held.get(job.model, {}):
                self._route(job)

        self.at(self.now + max(0.05, seconds), again)

    def _again(self, job: Job) -> None:
        job.retries += 1
        job.tried.add(job.replica)
        job.first_at = 0.0
        job.sequence = self._sequence(job.sequence.prompt_tokens, job.sequence.max_tokens, job.sequence.blocks, job)
        self._route(job)

    # What must hold

    def check_safety(self) -> None:
        """Nothing is counted twice, nothing that did not arrive is counted."""
        held = sum(len(jobs) for jobs in self._held.values())
        flying = sum(sum(core.in_flight().values()) for core in self.routers)
        ended = len(self.jobs) - self._left
        if held + flying + ended > self._begun:
            raise Violation(f"{held} held, {flying} in flight, {ended} ended of {self._begun}: {self.scenario}")
        for engine in self.engines.values():
            if engine.jobs and engine.state is not ModelState.READY:
                raise Violation(f"{engine.name} has requests and is {engine.state.value}: {self.scenario}")

    def check_liveness(self) -> None:
        lost = [job.number for job in self.jobs if not job.ended_at]
        counted = [core.in_flight() for core in self.routers if core.in_flight()]
        held = [number for jobs in self._held.values() for number in jobs]
        if lost or counted or held:
            raise Violation(f"never ended {lost}, still counted {counted}, still held {held}: {self.scenario}")

    # Engines

    def _stepped(self, engine: Engine, token: int) -> None:
        self._left -= len(engine.stepped(token, self.now))

    def _wake(self, engine: Engine) -> None:
        ready = engine.node.wake(engine, self.now)
        if ready:
            self._loading(engine, ready)

    def _loading(self, engine: Engine, ready: float) -> None:
        self.loads += 1
        self._news(engine.node)
        generation = engine.generation

        def loaded() -> None:
            if engine.generation == generation:
                engine.state = ModelState.READY
                engine.used_at = self.now
                self._news(engine.node)
                for job in list(self._held.get(engine.model, {}).values()):
                    self._route(job)

        self.at(ready, loaded)

    def _news(self, node: SimNode) -> None:
        """The registry tells every router, whatever becomes of reports; a report follows."""
        replicas = dict(self._fleet.replicas)
        for engine in node.engines.values():
            replicas[engine.name] = msgspec.structs.replace(
                replicas[engine.name], state=engine.state, generation=engine.generation
            )
        self._fleet = msgspec.structs.replace(self._fleet, revision=self._fleet.revision + 1, replicas=replicas)
        for core in self.routers:
            core.apply(self._fleet, self.now)
        self._report(node)

    def _crash(self) -> None:
        able = [e for e in self.engines.values() if e.state is ModelState.READY]
        engine = self._rng.choice(able)
        lost = engine.crash(self.now)
        engine.ready_at = self.now + self.scenario.on_disk_s
        self._loading(engine, engine.ready_at)
        for job in lost:
            self._again(job)

    def _report_all(self) -> None:
        for node in self.nodes.values():
            self._report(node)
        self.at(self.now + self.scenario.report_s, self._report_all)

    def _report(self, node: SimNode) -> None:
        for number, core in enumerate(self.routers):
            if self._rng.random() >= self.scenario.report_loss:
                core.report(node.report(number, self.now), self.now)

    # How it begins

    def _build(self) -> None:
        s = self.scenario
        for number in range(s.nodes):
            name = f"n{number}"
            self.nodes[name] = SimNode(
                name,
                slow=self._slow(number),
                at=lambda when, engine, token: self.at(when, lambda: self._stepped(engine, token)),
                slots=s.slots,
                load_s={ModelState.SLEEPING: s.sleeping_s, ModelState.ON_DISK: s.on_disk_s},
            )
        owner = [model for model, count in enumerate(s.warm) for _ in range(count)]
        sleepers = random.Random(7)
        cold = {len(s.warm) + n: set(sleepers.sample(range(s.nodes), min(2, s.nodes))) for n in range(s.cold)}
        block = BLOCK_TOKENS if s.trace.startswith("mooncake") else 128
        profile = sized(s.kv_tokens, block, s.batch_tokens)
        for number, node in enumerate(self.nodes.values()):
            for model in range(len(s.warm) + s.cold):
                state = ModelState.SLEEPING if number in cold.get(model, ()) else ModelState.ON_DISK
                if number < len(owner) and owner[number] == model:
                    state = ModelState.READY
                engine = Engine(f"{node.name}-m{model}", f"m{model}", state, profile, node)
                node.engines[engine.model] = self.engines[engine.name] = engine

    def _slow(self, number: int) -> Callable[[float], float]:
        before = self.scenario.slow.get(number, 1.0)
        after = before * self.scenario.degrade.get(number, 1.0)
        return lambda now: before if now < self._half else after

    def _rules(self) -> dict[str, Callable[[], Policy]]:
        rules: dict[str, Callable[[], Policy]] = {
            **POLICIES,
            FullInformation.name: lambda: FullInformation(self),
            ReadyOnly.name: ReadyOnly,
        }
        name = self.scenario.policy
        return {**rules, name: partial(rules[name], **self.scenario.tuned)}

    def _priors(self) -> dict[tuple[str, str], Cost]:
        s = self.scenario
        cost = msgspec.structs.replace(
            H100_8B, prefill_ms=H100_8B.prefill_ms * s.prior_prefill, step_ms=H100_8B.step_ms * s.prior_step
        )
        return {(engine.model, "h100-80g"): cost for engine in self.engines.values()}

    def _first_fleet(self) -> Fleet:
        s = self.scenario
        nodes = {n: Node(node=n, region="eu", address="sim:1", device_class="h100-80g") for n in self.nodes}
        replicas = {
            e.name: Replica(
                replica=e.name,
                node=e.node.name,
                region="eu",
                model=e.model,
                address="sim:2",
                state=e.state,
                generation=1,
                device_class="h100-80g",
                max_batch_tokens=s.batch_tokens,
                kv_capacity_tokens=s.kv_tokens,
            )
            for e in self.engines.values()
        }
        models = {e.model: ModelPolicy(model=e.model, routing=s.policy) for e in self.engines.values()}
        return Fleet(1, nodes, replicas, models, {}, s.routers)

    def _sequence(self, prompt: int, output: int, blocks: list[int], job: Job) -> Sequence:
        return Sequence(id=f"{job.number}.{job.retries}", prompt_tokens=prompt, max_tokens=output, blocks=list(blocks))
