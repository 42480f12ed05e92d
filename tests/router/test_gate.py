"""The gate alone, with a fleet whose pressure the test sets: what must hold in whatever order things happen."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from typing import cast

from router.call import Call
from router.core.admission import Admission, Limits
from router.core.errors import Code, Refused
from router.core.limits import Patience
from router.core.model import Decision, Dispatcher, Fleet, Shape, Verdict
from router.fleet.view import View
from router.gate import Gate
from router.metrics import Instruments
from wire.records import Tenant

PRESSED_MS = 3000.0


class Engines:
    """What a gate asks of a dispatcher; each request that is sent adds to what is ahead."""

    def __init__(self) -> None:
        self.ahead = PRESSED_MS
        self.sent: list[str] = []
        self.notes: list[str] = []

    def pool(self, model: str, *, embedding: bool) -> tuple[str, bool]:
        return model, embedding

    def ahead_ms(self, pool: tuple[str, bool], now: float) -> float:
        return self.ahead

    def work_tokens(self, decision: Decision, shape: Shape) -> float:
        return 100.0

    def note(self, request_id: str, what: str, now: float) -> None:
        self.notes.append(what)


class House:
    def __init__(self, clients: asyncio.TaskGroup, **limits: object) -> None:
        self.clients = clients
        self.tasks: list[asyncio.Task[None]] = []
        self.refused: dict[str, Refused] = {}
        self.engines = Engines()
        self.instruments = Instruments()
        self.fleet = Fleet(tenants={"t": Tenant(tenant="t")})
        admission = Admission(rng=random.Random(1), limits=Limits(**limits))  # type: ignore[arg-type]
        self.gate = Gate(
            admission, cast(Dispatcher, self.engines), view=lambda: View(fleet=self.fleet), instruments=self.instruments
        )

    async def request(self, name: str, *, priority: int = 0) -> None:
        """As the walk does: enter, and send at once when let in."""
        call = a_call(name, priority)
        decision = Decision(verdict=Verdict.SEND, expected_ttft_ms=self.engines.ahead)
        now = asyncio.get_running_loop().time()
        if not self.gate.calm(call, decision, now):
            try:
                await self.gate.enter(call, decision)
            except Refused as refused:
                self.refused[name] = refused
                return
        self.engines.sent.append(name)
        self.engines.ahead += 1500.0

    def start(self, name: str, *, priority: int = 0) -> asyncio.Task[None]:
        self.tasks.append(self.clients.create_task(self.request(name, priority=priority)))
        return self.tasks[-1]


@contextlib.asynccontextmanager
async def house_with(**limits: object) -> AsyncIterator[House]:
    """Whoever still waits at the end leaves, and then nothing may be left."""
    async with asyncio.TaskGroup() as clients:
        house = House(clients, **limits)
        yield house
        for task in house.tasks:
            task.cancel()
        await steps()
    assert (0, {}) == (house.gate.waiting, house.gate.lengths())


def a_call(name: str, priority: int = 0) -> Call:
    call = Call(
        request_id=name,
        endpoint="chat",
        path="/v1/chat/completions",
        headers={},
        arrived=0.0,
        arrived_unix_ns=0,
        trace_id=1,
        span_id=1,
    )
    call.model, call.tenant = "m", "t"
    call.shape = Shape(request_id=name, model="m", tenant="t", priority=priority)
    return call


async def steps(number: int = 5) -> None:
    """Let everything that can happen without time happen."""
    for _ in range(number):
        await asyncio.sleep(0)


async def test_a_client_that_leaves_in_the_step_in_which_its_turn_comes_makes_way_for_the_next() -> None:
    async with house_with() as house:
        first = house.start("first")
        house.start("second")
        await steps()
        assert 2 == house.gate.waiting
        house.engines.ahead = 0.0
        house.gate.stir()
        asyncio.get_running_loop().call_soon(first.cancel)  # runs right after the release, before the task itself
        await steps()
        assert (True, ["second"]) == (first.cancelled(), house.engines.sent)


async def test_a_client_that_leaves_before_its_turn_comes_in_the_same_step_is_passed_over() -> None:
    async with house_with() as house:
        first = house.start("first")
        house.start("second")
        await steps()
        house.engines.ahead = 0.0
        first.cancel()
        house.gate.stir()
        await steps()
        assert (["second"], 0) == (house.engines.sent, house.gate.waiting)


async def test_one_goes_after_the_other_until_the_pressure_is_back() -> None:
    async with house_with() as house:
        for number in range(5):
            house.start(f"r{number}")
        await steps()
        house.engines.ahead = 0.0
        house.gate.stir()
        house.gate.stir()
        await steps(30)
        assert (["r0", "r1"], {"m": 3}) == (house.engines.sent, house.gate.lengths())


async def test_one_that_is_pushed_out_is_told_so_and_one_that_left_meanwhile_harms_nobody() -> None:
    async with house_with(queue=2) as house:
        stays = house.start("stays")
        house.start("pushed")
        await steps()
        house.start("better", priority=1)
        await steps()
        refused = house.refused["pushed"]
        assert (Code.OVERLOADED, 1) == (refused.code, house.instruments.refused["m", "pushed_out"])
        assert "made room for another request: 2 may wait" in refused.message
        house.start("best", priority=2)
        asyncio.get_running_loop().call_soon(stays.cancel)  # it is pushed out, and leaves before it is told
        await steps()
        assert (True, 2) == (stays.cancelled(), house.gate.waiting)


async def test_what_can_be_done_without_is_shed_with_a_time_to_come_back() -> None:
    async with house_with(wait_s=4.0) as house:
        for number in range(30):
            house.start(f"b{number}", priority=-1)
        await steps()
        refused = list(house.refused.values())
        assert {"not sent: the expected wait of 3.0 s is 75% of what requests may wait"} == {
            note.partition(",")[0] for note in house.engines.notes if "shed" in note
        }
        assert all(one.retry_after_s >= 3.0 for one in refused)
        assert 0 < len(refused) == house.instruments.refused["m", "shed"]


async def test_the_sweep_lets_go_who_may_and_sends_away_who_waited_too_long() -> None:
    async with house_with(wait_s=50.0) as house:
        house.start("old")
        house.start("young")
        await steps()
        now = asyncio.get_running_loop().time()
        house.gate.sweep(now + 10.0)
        await steps()
        assert 2 == house.gate.waiting
        house.engines.ahead = 1000.0
        house.gate.sweep(now + 10.0)
        await steps()
        assert (["old"], 1) == (house.engines.sent, house.gate.waiting)
        house.gate.sweep(now + 51.0)
        await steps()
        assert Code.QUEUE_TIMEOUT is house.refused["young"].code
        assert "may wait 50 s (admission_wait_s)" in house.refused["young"].message


async def test_when_the_router_leaves_for_good_nobody_waits_any_more() -> None:
    async with house_with() as house:
        house.start("waiting")
        await steps()
        house.gate.end_all()
        house.start("late")
        await steps()
        assert {"waiting": Code.DRAINING, "late": Code.DRAINING} == {n: r.code for n, r in house.refused.items()}
        assert (0, []) == (house.gate.waiting, house.engines.sent)


async def test_without_pressure_nothing_is_asked_and_a_named_limit_is_compared_with_what_is_expected() -> None:
    async with house_with() as house:
        call = a_call("r")
        now = asyncio.get_running_loop().time()
        calm, slow = (Decision(verdict=Verdict.SEND, expected_ttft_ms=ms) for ms in (100.0, 2000.0))
        assert (True, False) == (house.gate.calm(call, calm, now), house.gate.calm(call, slow, now))
        for limit_s, is_calm in ((0.2, True), (0.05, False)):
            call.patience = Patience(first_token_until=now + limit_s)
            assert is_calm is house.gate.calm(call, calm, now)
