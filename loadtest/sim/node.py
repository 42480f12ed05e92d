"""A GPU of the simulated fleet: engines of several models over the batching model, their loads, sleeps and reports.

Virtual time: everything happens when the world says so. Holds two models at a time; a third pushes out the one unused
for longest. Decides nothing about requests.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import msgspec

from node_agent.engines.simulated.batching import Batch, Sequence, Step
from node_agent.engines.simulated.profiles import PROFILES, Profile
from router.core.model import Ending, Flight, LoadReport, ReplicaLoad
from wire.records import ModelState

FAST_FORWARD = 16
"""Quiet steps merged into one event: up to about a tenth of a second."""


class Job(msgspec.Struct, kw_only=True, eq=False):
    """A request as the world follows it."""

    number: int
    model: str
    arrived: float
    sequence: Sequence
    router: int
    flight: Flight | None = None
    replica: str = ""
    expected_ms: float = 0.0
    first_at: float = 0.0
    ended_at: float = 0.0
    held: bool = False
    retries: int = 0
    tried: set[str] = msgspec.field(default_factory=set)


def sized(capacity: int, block_tokens: int, batch_tokens: int) -> Profile:
    return msgspec.structs.replace(
        PROFILES["llama-3.1-8b-h100"],
        kv_capacity_tokens=capacity,
        block_tokens=block_tokens,
        max_batch_tokens=batch_tokens,
    )


class Engine:
    """One model on one GPU."""

    def __init__(self, name: str, model: str, state: ModelState, profile: Profile, node: SimNode) -> None:
        self.name, self.model, self.state, self.node = name, model, state, node
        self.profile = profile
        self.batch = Batch(profile, slow=node.slow)
        self.jobs: dict[str, Job] = {}
        self.coming: dict[int, Job] = {}
        """Sent, and not there yet."""
        self.step: Step | None = None
        self.token = 0
        """Grows when what was planned is void."""
        self.ready_at = 0.0
        self.used_at = 0.0
        self.generation = 1
        self.received: dict[int, int] = {}
        """Requests by router."""
        self.busy_s = 0.0

    def receive(self, job: Job, now: float) -> None:
        self.received[job.router] = self.received.get(job.router, 0) + 1
        self.used_at = now
        self.jobs[job.sequence.id] = job
        self.batch.add(job.sequence, now)
        self.node.count_active()
        self.plan(now)

    def plan(self, now: float) -> None:
        """Begin the next step, or look again when one that is under way was cut short."""
        if self.step is None:
            self.step = self.batch.step(now, limit=FAST_FORWARD)
        if self.step is not None:
            self.token += 1
            self.node.at(self.step.ends_at, self, self.token)

    def stepped(self, token: int, now: float) -> list[Job]:
        """The step that was planned ends; returns the jobs that ended with it."""
        if token != self.token or self.step is None:
            return []
        step, self.step = self.step, None
        self.busy_s += step.duration_s
        for sequence in step.first:
            job = self.jobs[sequence.id]
            if not job.first_at:
                job.first_at = now
                if job.flight is not None:
                    job.flight.first_token(now)
        ended = [self.jobs.pop(sequence.id) for sequence in step.finished]
        for job in ended:
            self.end(job, Ending.COMPLETE, now)
        self.used_at = now
        self.node.count_active()
        self.plan(now)
        return ended

    def end(self, job: Job, ending: Ending, now: float) -> None:
        job.ended_at = now
        if job.flight is not None:
            s = job.sequence
            job.flight.end(
                ending, now, prompt_tokens=s.prompt_tokens, cached_tokens=s.cached_tokens, output_tokens=s.generated
            )

    def end_early(self, job: Job, now: float) -> None:
        """It came when the engine had gone."""
        self.end(job, Ending.FAILED, now)
        job.ended_at = 0.0

    def crash(self, now: float) -> list[Job]:
        """Everything in it is lost; the agent will start it again."""
        lost = list(self.jobs.values())
        self.jobs.clear()
        for job in lost:
            self.end_early(job, now)
        self._fresh()
        self.generation += 1
        self.state = ModelState.LOADING
        return lost

    def put_out(self) -> None:
        """Slept by the agent for another model; only without requests."""
        self._fresh()
        self.state = ModelState.SLEEPING

    def _fresh(self) -> None:
        self.batch = Batch(self.profile, slow=self.node.slow)
        self.step = None
        self.token += 1

    def report(self, router: int, now: float) -> ReplicaLoad:
        counters = self.batch.counters()
        return ReplicaLoad(
            replica=self.name,
            generation=self.generation,
            state=self.state,
            load_remaining_s=max(0.0, self.ready_at - now) if self.state is ModelState.LOADING else 0.0,
            running=counters.running,
            waiting=counters.waiting,
            waiting_uncached_tokens=float(self.batch.waiting_uncached_tokens()),
            kv_use=counters.kv_use,
            kv_capacity_tokens=self.profile.kv_capacity_tokens,
            seen=self.received.get(router, 0),
        )


class SimNode:
    def __init__(
        self,
        name: str,
        *,
        slow: Callable[[float], float],
        at: Callable[[float, Engine, int], None],
        slots: int,
        load_s: dict[ModelState, float],
    ) -> None:
        self.name, self.slow, self.at, self.slots = name, slow, at, slots
        self.load_s = load_s
        """Until it is ready, from each state that can be loaded."""
        self.engines: dict[str, Engine] = {}
        self._sequence = itertools.count(1)

    def count_active(self) -> None:
        """Engines on one GPU share it: each one at work adds its base step to the others."""
        active = sum(engine.batch.busy for engine in self.engines.values())
        for engine in self.engines.values():
            engine.batch.models_on_gpu = max(1, active)

    def wake(self, engine: Engine, now: float) -> float:
        """Start a load, one at a time; returns when it will be ready, 0 when none was started."""
        if engine.state not in self.load_s:
            return 0.0
        present = [e for e in self.engines.values() if e.state in (ModelState.READY, ModelState.LOADING)]
        if any(e.state is ModelState.LOADING for e in present):
            return 0.0
        if len(present) >= self.slots:
            idle = [e for e in present if not e.jobs]
            if not idle:
                return 0.0
            min(idle, key=lambda e: e.used_at).put_out()
        engine.ready_at = now + self.load_s[engine.state]
        engine.state = ModelState.LOADING
        return engine.ready_at

    def report(self, router: int, now: float) -> LoadReport:
        replicas = tuple(engine.report(router, now) for engine in self.engines.values())
        return LoadReport(node=self.name, epoch=1, sequence=next(self._sequence), replicas=replicas)
