"""Whatever happens to an engine and whatever is asked of it, in any order: what never is, and what always comes."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from node_agent.core.events import (
    CameUp,
    Event,
    Exited,
    Goal,
    Hold,
    Instruction,
    Kill,
    PutToSleep,
    Release,
    Sick,
    Slept,
    Start,
    Stop,
    Streams,
    Tick,
    WakeUp,
    Want,
    Woke,
)
from node_agent.core.lifecycle import Lifecycle, Limits
from wire.records import ModelState

LIMITS = Limits(crash_limit=4, crash_window_s=60, start_limit_s=20, stop_limit_s=10)


class World:
    """An engine that does what it is told, late or never, and checks what it is told."""

    def __init__(self) -> None:
        self.now = 100.0
        self.life = Lifecycle(goal=Goal.READY, limits=LIMITS, now=self.now)
        self.running = 0
        self.newest = 0
        self.up = self.asleep = False
        self.ordered: list[Instruction] = []
        self.streams = 0

    def tell(self, event: Event) -> None:
        for instruction in self.life.handle(event, self.now):
            self.obey(instruction)
        self.check()

    def obey(self, instruction: Instruction) -> None:
        match instruction:
            case Start(generation):
                assert not self.running, "two engines of one replica"
                assert generation > self.newest, "a generation came twice"
                self.running = self.newest = generation
                self.up = self.asleep = False
            case Stop(generation) | Kill(generation) | PutToSleep(generation) | WakeUp(generation):
                assert generation == self.running, "told an engine that is not there"
                self.ordered.append(instruction)

    def check(self) -> None:
        if self.life.state in (ModelState.READY, ModelState.SLEEPING):
            assert self.running, "promised an engine that is not there"
            assert self.up
        if self.life.state is ModelState.READY:
            assert not self.asleep, "a sleeping engine lets requests hang"
        if self.life.due is not None:
            assert self.life.due <= self.now + LIMITS.start_limit_s + LIMITS.stop_limit_s + LIMITS.backoff_cap_s + 60

    def engine_answers(self, well: bool) -> None:
        """The engine does the first thing it was told."""
        if not self.ordered or not self.running:
            self.ordered.clear()
            return
        match self.ordered.pop(0):
            case Stop() | Kill():
                self.exits("as told")
            case PutToSleep(generation):
                self.asleep = well
                self.tell(Slept(generation, "" if well else "refused"))
            case WakeUp(generation):
                self.asleep = not well
                self.tell(Woke(generation, "" if well else "refused"))

    def exits(self, reason: str) -> None:
        if self.running:
            generation, self.running = self.running, 0
            self.ordered.clear()
            self.tell(Exited(generation, reason))

    def comes_up(self) -> None:
        if self.running:
            self.up = True
            self.tell(CameUp(self.running, asleep=self.asleep))

    def passes(self, seconds: float) -> None:
        self.now += seconds
        self.tell(Tick())

    def scrape(self, count: int) -> None:
        if self.up and self.running:
            self.tell(Streams(self.running, 0 if self.asleep else count, self.now))


STEPS = st.one_of(
    st.builds(
        lambda goal, limit: lambda w: w.tell(Want(goal, 1, limit)), st.sampled_from(Goal), st.sampled_from([0, 5])
    ),
    st.builds(lambda stop, limit: lambda w: w.tell(Hold(limit, stop)), st.booleans(), st.sampled_from([0, 5])),
    st.just(lambda w: w.tell(Release())),
    st.builds(lambda s: lambda w: w.passes(s), st.sampled_from([0.1, 1, 7, 40])),
    st.builds(lambda n: lambda w: w.scrape(n), st.integers(0, 2)),
    st.just(lambda w: w.comes_up()),
    st.just(lambda w: w.exits("crashed")),
    st.builds(lambda well: lambda w: w.engine_answers(well), st.booleans()),
    st.just(lambda w: w.running and w.tell(Sick(w.running, "frozen"))),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(STEPS, max_size=60), st.sampled_from(Goal))
def test_safe_in_every_order_and_there_in_the_end(steps: list, goal: Goal) -> None:
    world = World()
    world.tell(Tick())
    for step in steps:
        step(world)
    # Faults stop, the engine does as it is told: what is wanted comes, or has been given up for good reason.
    world.tell(Release())
    world.tell(Want(goal, 1, 5))
    for _ in range(40):
        world.comes_up() if not world.up else world.scrape(0)
        world.engine_answers(True)
        world.passes(1)
    expected = {Goal.READY: "ready", Goal.SLEEPING: "sleeping", Goal.ON_DISK: "on_disk"}[goal]
    assert expected == world.life.state
