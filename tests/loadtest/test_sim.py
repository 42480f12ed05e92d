"""The virtual-time fleet: safe while things break, live after they stop, the same for the same seed."""

from __future__ import annotations

from math import isfinite

import pytest

from loadtest.sim.__main__ import goodput, quantile, simulate
from loadtest.sim.world import Scenario, World

SMALL = Scenario(requests=150, nodes=6, warm=(2, 2), cold=1, slow={1: 2.0}, degrade={2: 4.0}, speed=1.0)


def changed(**more: object) -> Scenario:
    fields = {name: getattr(SMALL, name) for name in Scenario.__struct_fields__} | more
    return Scenario(**fields)


def run(scenario: Scenario) -> World:
    """Check safety after every event, and liveness at the end."""
    world = World(scenario)
    route = world._route

    def checked(job: object) -> None:
        route(job)  # type: ignore[arg-type]
        held = sum(len(jobs) for jobs in world._held.values())
        flying = sum(sum(core.in_flight().values()) for core in world.routers)
        ended = sum(bool(job.ended_at) for job in world.jobs)
        begun = sum(job.arrived <= world.now for job in world.jobs)
        assert held + flying + ended <= begun
        assert flying <= begun - ended

    world._route = checked  # type: ignore[method-assign]
    world.run()
    assert 0 == world.outcome().unfinished
    assert [{}] * scenario.routers == [core.in_flight() for core in world.routers]
    return world


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"policy": "least_in_flight"},
        {"routers": 3, "sticky": False, "report_loss": 0.5},
        {"crashes": 4},
        {"crashes": 3, "report_loss": 1.0},
    ],
)
def test_every_request_ends_and_nothing_stays_in_flight(more: dict[str, object]) -> None:
    world = run(changed(**more))
    assert all(isfinite(t) for t in world.outcome().ttft)
    if more.get("crashes"):
        assert world.outcome().retried > 0


def test_a_seed_reproduces_everything() -> None:
    one, other = simulate(changed(crashes=2)), simulate(changed(crashes=2))
    assert one == other
    assert one != simulate(changed(crashes=2, seed=2))


def test_azure_requests_share_nothing() -> None:
    outcome = simulate(changed(trace="azure-conv", speed=2.0))
    assert 0.0 == outcome.hit
    assert 0.0 < goodput(outcome) <= 1.0
    assert quantile(outcome.bound, 0.5) <= quantile(outcome.ttft, 0.5)
