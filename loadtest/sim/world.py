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
from array import array
from collections.abc import Callable
from functools import lru_cache, partial
from math import inf

import msgspec

from loadtest.sim.node import Engine, Job, SimNode, sized
from loadtest.sim.rivals import FullInformation, ReadyOnly
from loadtest.traces import BLOCK_TOKENS, Arrival, load
from node_agent.engines.simulated.batching import Sequence
from router.core.classes import H100_8B, Cost
from router.core.constants import Constants
from router.core.dispatch import CoreDispatcher
from router.core.model import Fleet, Shape, Verdict
from router.core.policies import POLICIES, Policy
from wire.records import ModelPolicy, ModelState, Node, Replica

BYTES_PER_TOKEN = 4
WINDOWS = 5
"""Seeds begin at so many places of the trace, in turn."""
DRAIN_S = 3.0 * 3600.0
"""After the last arrival everything has so long to end: an overloaded policy takes its time."""
CHECK_ALL = 64
"""Routes between two looks at all routers."""
WARM = (6, 4, 3, 3)
"""Nodes that begin with each of the four warm models."""


class Scenario(msgspec.Struct, frozen=True, kw_only=True):
    trace: str = "mooncake-conv"
    speed: float = 1.8
    """Times of the trace are divided by it."""
    requests: int = 2500
    policy: str = "expected_time"
    tuned: dict[str, float] = {}
    """Arguments of the policy, instead of its own constants."""
    seed: int = 1
    nodes: int = 16
    warm: tuple[int, ...] = WARM
    cold: int = 4
    """Models that sleep on two nodes and lie on the disks of the others."""
    slots: int = 2
    slow: dict[int, float] = msgspec.field(default_factory=lambda: {3: 2.0, 11: 2.0})
    degrade: dict[int, float] = msgspec.field(default_factory=lambda: {6: 4.0})
    """Nodes that become slower at half time."""
    sleeping_s: float = 3.0
    on_disk_s: float = 40.0
    routers: int = 1
    sticky: bool = True
    """Requests of a session come to the same router."""
    report_s: float = 1.0
    report_loss: float = 0.0
    crashes: int = 0
    """Engines killed at random moments, back after `on_disk_s`."""
    kv_tokens: int = 299_000
    batch_tokens: int = 2048
    prior_prefill: float = 1.0
    """How wrong the router's first idea of the device is."""
    prior_step: float = 1.0
    constants: Constants = Constants()


class Outcome(msgspec.Struct, kw_only=True):
    """All times in ms; requests of the first tenth are left out."""

    ttft: list[float]
    warm_ttft: list[float]
    bound: list[float]
    tpot: list[float]
    hit: float
    loads: int
    held: int
    retried: int
    accuracy: tuple[float, float, float]
    """Bias, spread and p90 coverage of the first router's predictions, over its models."""
    busy_cv: float


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
        self.jobs = self._jobs()
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
        shape = self._shape(job)
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

    def _jobs(self) -> list[Job]:
        s = self.scenario
        arrivals = _arrivals(s.trace, s.seed)
        first = (s.seed - 1) % WINDOWS * max(0, len(arrivals) - s.requests) // (WINDOWS - 1)
        arrivals = arrivals[first : first + s.requests]
        rng = random.Random(s.seed)
        count = len(s.warm) + s.cold
        weights = [1.0 / (k + 1) for k in range(count)]
        by_session: dict[int, tuple[int, int]] = {}
        jobs = []
        for number, arrival in enumerate(arrivals):
            session = arrival.blocks[1] if len(arrival.blocks) > 1 else -1 - number
            if session not in by_session:
                by_session[session] = (rng.choices(range(count), weights)[0], rng.randrange(s.routers))
            model, router = by_session[session]
            jobs.append(
                Job(
                    number=number,
                    model=f"m{model}",
                    arrived=(arrival.at_s - arrivals[0].at_s) / s.speed,
                    sequence=_sequence(arrival, number),
                    router=router if s.sticky else rng.randrange(s.routers),
                )
            )
        return jobs

    def _sequence(self, prompt: int, output: int, blocks: list[int], job: Job) -> Sequence:
        return Sequence(id=f"{job.number}.{job.retries}", prompt_tokens=prompt, max_tokens=output, blocks=list(blocks))

    def _shape(self, job: Job) -> Shape:
        s = job.sequence
        return Shape(
            request_id=str(job.number),
            model=job.model,
            prompt=_prompt(s.blocks[: s.prompt_tokens // BLOCK_TOKENS], s.prompt_tokens, job.number),
            max_tokens=0,
        )

    def _bounds(self) -> list[float]:
        """Of each request what no router can beat, in ms: its own prefill alone on a node that is not slow, everything
        that any earlier request of the model had in common with it cached, each cold model woken once."""
        s = self.scenario
        profile = next(iter(self.engines.values())).profile
        known: dict[str, set[int]] = {}
        awake_at = {f"m{n}": 0.0 for n in range(len(s.warm))}
        bounds = []
        for job in self.jobs:
            prompt, blocks = job.sequence.prompt_tokens, job.sequence.blocks
            seen = known.setdefault(job.model, set())
            hits = next((n for n, block in enumerate(blocks) if block not in seen), len(blocks))
            seen.update(blocks)
            fresh = max(1, prompt - BLOCK_TOKENS * min(hits, (prompt - 1) // BLOCK_TOKENS))
            ready = awake_at.setdefault(job.model, job.arrived + s.sleeping_s)
            steps = -(-fresh // profile.max_batch_tokens)
            own = profile.prefill_token_ms * fresh + steps * profile.base_step_ms + profile.api_request_ms
            bounds.append(1000.0 * max(0.0, ready - job.arrived) + own)
        return bounds

    def outcome(self) -> Outcome:
        counted = self.jobs[len(self.jobs) // 10 :]
        done = [job for job in counted if job.ended_at and job.first_at]
        ttft = [1000.0 * (job.first_at - job.arrived) if job.first_at else inf for job in counted]
        warm = {f"m{n}" for n in range(len(self.scenario.warm))}
        bounds = self._bounds()
        cached = sum(job.sequence.cached_tokens for job in done)
        accuracy = [a for a in self.routers[0].accuracy().values() if a.observations]
        weight = max(1, sum(a.observations for a in accuracy))
        busy = [sum(e.busy_s for e in node.engines.values()) for node in self.nodes.values()]
        mean = sum(busy) / len(busy)
        return Outcome(
            ttft=ttft,
            warm_ttft=[t for t, job in zip(ttft, counted, strict=True) if job.model in warm],
            bound=bounds[len(self.jobs) // 10 :],
            tpot=[
                1000.0 * (job.ended_at - job.first_at) / max(1, job.sequence.generated - 1)
                if job.ended_at and job.first_at
                else inf
                for job in counted
            ],
            hit=cached / max(1, sum(job.sequence.prompt_tokens for job in done)),
            loads=self.loads,
            held=sum(job.held for job in counted),
            retried=sum(job.retries for job in counted),
            accuracy=(
                sum(a.bias * a.observations for a in accuracy) / weight,
                sum(a.spread * a.observations for a in accuracy) / weight,
                sum(a.p90_coverage * a.observations for a in accuracy) / weight,
            ),
            busy_cv=(sum((b - mean) ** 2 for b in busy) / len(busy)) ** 0.5 / mean if mean else 0.0,
        )


@lru_cache(maxsize=4)
def _arrivals(trace: str, seed: int) -> list[Arrival]:
    return load(trace, seed=seed)


def _sequence(arrival: Arrival, number: int) -> Sequence:
    full = arrival.prompt_tokens // BLOCK_TOKENS
    return Sequence(
        id=f"{number}.0",
        prompt_tokens=max(1, arrival.prompt_tokens),
        max_tokens=max(1, arrival.output_tokens),
        blocks=list(arrival.blocks[:full]),
    )


def _prompt(blocks: list[int], tokens: int, number: int) -> bytes:
    """Bytes that are equal exactly as far as the blocks are."""
    words = array("q", [block for block in blocks for _ in range(BLOCK_TOKENS * BYTES_PER_TOKEN // 8)]).tobytes()
    rest = max(0, tokens * BYTES_PER_TOKEN - len(words))
    return words + array("q", [-1 - number]).tobytes() * (rest // 8 + 1)
