"""Break each part of a whole house of real processes while streams run and new requests come.

The table in router/FAULTS.md is made by the same code: `python -m loadtest.faults`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from loadtest import clocks, network
from loadtest.answers import Answer
from loadtest.breaks import FAULTS
from loadtest.drains import rolling_drain
from loadtest.faults import STREAMS, TOKENS, Lived, live_through
from loadtest.house import House, Size, hosts, house
from loadtest.network import Network
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


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def clocked(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[House]:
    """Where wall clocks can be set."""
    if why := clocks.missing():
        pytest.skip(why)
    async with house(tmp_path_factory.mktemp("clocks"), Size(nodes=2, clocks=True)) as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def wired(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[House]:
    """Where each part has a host of its own, and packets between two of them can be lost."""
    if why := network.missing():
        pytest.skip(why)
    size = Size(nodes=2)
    with Network(hosts(size)) as wires:
        async with house(tmp_path_factory.mktemp("hosts"), size, network=wires) as made:
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
    assert 0 == lived.unmetered
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


@pytest.mark.slow
@pytest.mark.parametrize("what", ["router, disk full", "node, disk full", "registry, disk full"])
async def test_a_full_disk_costs_no_stream_no_request_and_no_usage_record(at: House, known: Known, what: str) -> None:
    undisturbed(await through(at, known, what))
    page = await at.metrics()
    assert (0, 0, 0) == tuple(page[f"switchyard_journal_{name}"] for name in ("blocked", "pending", "lost_total"))


@pytest.mark.slow
@pytest.mark.parametrize("what", ["router, no descriptors", "agent, no descriptors", "registry, no descriptors"])
async def test_a_part_without_descriptors_serves_on_with_those_it_has_and_recovers(
    at: House, known: Known, what: str
) -> None:
    undisturbed(await through(at, known, what))


@pytest.mark.slow
@pytest.mark.parametrize("what", [name for name, fault in FAULTS.items() if fault.clocks])
async def test_a_wall_clock_that_steps_by_an_hour_decides_nothing(clocked: House, known: Known, what: str) -> None:
    undisturbed(await through(clocked, known, what))


@pytest.mark.slow
@pytest.mark.parametrize("what", ["node cut off from registry", "router cut off from registry", "registry unplugged"])
async def test_whoever_loses_the_registry_by_lost_packets_serves_on(wired: House, known: Known, what: str) -> None:
    undisturbed(await through(wired, known, what, 6.0))


@pytest.mark.slow
@pytest.mark.parametrize("what", ["node cut off from router", "node unplugged"])
async def test_streams_of_a_host_that_is_silently_gone_go_on_elsewhere(wired: House, known: Known, what: str) -> None:
    lived = await through(wired, known, what, 6.0)
    undisturbed(lived)
    assert lived.resumed > 0
    assert lived.gap_s < DETECTION_S + SAFETY_S
    assert lived.trickle.slowest_s < DETECTION_S + SAFETY_S


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
    assert "" == lived.trickle.last.error
    assert lived.trickle.failing_s() < lived.recovery_s + 1.0 + SAFETY_S
