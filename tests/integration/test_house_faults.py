"""Kill or stop each part of a whole house of real processes while streams run and new requests come.

The table in router/FAULTS.md is made by the same code: `python -m loadtest.faults`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from loadtest.answers import Answer
from loadtest.drains import rolling_drain
from loadtest.faults import STREAMS, TOKENS, Lived, live_through
from loadtest.house import House, Size, house
from loadtest.witness import Wish, references, wishes

pytestmark = pytest.mark.asyncio(loop_scope="module")

DETECTION_S = 3.0
"""From the last sign of life of an engine until the router gives it up."""
SAFETY_S = 10.0
"""Beyond it, on a machine that does much else."""

Known = tuple[list[Wish], list[Answer]]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def known(tmp_path_factory: pytest.TempPathFactory) -> Known:
    wished = wishes(STREAMS, seed=1, tokens=TOKENS)
    return wished, await references(tmp_path_factory.mktemp("references"), wished)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def at(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[House]:
    async with house(tmp_path_factory.mktemp("house"), Size(nodes=2)) as made:
        yield made


async def through(at: House, known: Known, fault: str, away_s: float = 3.0) -> Lived:
    lived = await live_through(at, fault, wished=known[0], right=known[1], away_s=away_s)
    assert {} == lived.left
    assert set(at.replica_names()) == set(lived.after)
    return lived


def undisturbed(lived: Lived) -> None:
    """No client noticed, and no engine was touched."""
    assert [] == [(seen.error, seen.differences) for seen in lived.broken]
    assert [] == lived.trickle.errors
    assert {name: r.generation for name, r in lived.before.items()} == {
        name: r.generation for name, r in lived.after.items()
    }
    assert {name: r.address for name, r in lived.before.items()} == {name: r.address for name, r in lived.after.items()}


async def test_streams_of_a_killed_engine_go_on_elsewhere_and_new_requests_never_notice(
    at: House, known: Known
) -> None:
    lived = await through(at, known, "engine, kill -9")
    assert [] == [(seen.error, seen.differences) for seen in lived.broken]
    assert [] == lived.trickle.errors
    assert lived.resumed > 0
    restarts = {name: lived.after[name].generation - lived.before[name].generation for name in lived.before}
    assert [0, 1] == sorted(restarts.values())


async def test_streams_of_a_stopped_engine_go_on_elsewhere_within_seconds(at: House, known: Known) -> None:
    lived = await through(at, known, "engine, SIGSTOP")
    undisturbed(lived)
    assert lived.resumed > 0
    assert lived.gap_s < DETECTION_S + SAFETY_S
    assert lived.trickle.slowest_s < DETECTION_S + SAFETY_S


async def test_the_loss_of_an_agent_touches_no_engine_no_stream_and_no_new_request(at: House, known: Known) -> None:
    undisturbed(await through(at, known, "agent, kill -9"))


async def test_the_loss_of_the_registry_touches_nothing_at_all(at: House, known: Known) -> None:
    undisturbed(await through(at, known, "registry, kill -9"))


@pytest.mark.slow
@pytest.mark.parametrize("part", ["agent", "registry", "router"])
async def test_what_stands_still_for_a_while_costs_no_stream_and_no_request(at: House, known: Known, part: str) -> None:
    undisturbed(await through(at, known, f"{part}, SIGSTOP", 4.0))


@pytest.mark.slow
async def test_the_loss_of_the_registry_for_half_a_minute_touches_nothing_at_all(at: House, known: Known) -> None:
    undisturbed(await through(at, known, "registry, kill -9", 30.0))


@pytest.mark.slow
async def test_the_loss_of_an_agent_for_as_long_as_its_engines_wait_for_it_touches_nothing(
    at: House, known: Known
) -> None:
    undisturbed(await through(at, known, "agent, kill -9", 15.0))


async def test_every_node_in_turn_is_drained_at_once_and_no_client_notices(at: House, known: Known) -> None:
    drained = await rolling_drain(at, wished=known[0], right=known[1])
    assert {} == drained.said
    assert {} == drained.running
    assert {} == drained.left
    assert [] == [(seen.error, seen.differences) for seen in drained.broken]
    assert [] == drained.trickle.errors
    assert drained.moved > 0
    assert drained.gap_s < SAFETY_S


async def test_a_killed_router_leaves_no_stream_that_looks_complete_and_nothing_counted(
    at: House, known: Known
) -> None:
    lived = await through(at, known, "router, kill -9")
    assert [seen.error for seen in lived.streams] == ["connection lost: closed by the server"] * STREAMS
    assert "" == lived.trickle.tries[-1].error
    assert lived.trickle.failing_s() < lived.recovery_s + 1.0 + SAFETY_S
