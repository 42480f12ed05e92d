"""Which fault a request meets: chance, counts, time."""

from __future__ import annotations

import random

import pytest

from node_agent.engines.simulated.faults import Fault, Faults, Kind


def faults() -> Faults:
    return Faults(random.Random(1))


def test_without_faults_nobody_meets_one():
    assert faults().draw(0.0) is None


def test_a_fault_with_a_count_is_met_by_so_many_requests():
    table = faults()
    table.add(Fault(kind=Kind.CUT, remaining=2), 0.0)
    assert [Kind.CUT, Kind.CUT, None] == [f and f.kind for f in (table.draw(0.0) for _ in range(3))]
    assert [] == table.active(0.0)


def test_a_fault_with_a_duration_ends_by_itself():
    table = faults()
    table.add(Fault(kind=Kind.STALL, duration_s=5), 10.0)
    assert table.draw(14.9) is not None
    assert table.draw(15.0) is None


def test_chance_is_seeded_and_as_probable_as_it_says():
    table = faults()
    table.add(Fault(kind=Kind.CUT, probability=0.3), 0.0)
    met = [table.draw(0.0) is not None for _ in range(1000)]
    again = faults()
    again.add(Fault(kind=Kind.CUT, probability=0.3), 0.0)
    assert met == [again.draw(0.0) is not None for _ in range(1000)]
    assert 250 < sum(met) < 350
    assert sum(met) == table.active(0.0)[0].met


def test_the_oldest_fault_that_applies_is_met():
    table = faults()
    table.add(Fault(kind=Kind.CUT, remaining=1), 0.0)
    table.add(Fault(kind=Kind.STALL), 0.0)
    assert [Kind.CUT, Kind.STALL] == [f and f.kind for f in (table.draw(0.0), table.draw(0.0))]


def test_slow_factors_multiply_and_are_not_met_by_requests():
    table = faults()
    table.add(Fault(kind=Kind.SLOW, factor=2), 0.0)
    table.add(Fault(kind=Kind.SLOW, factor=3, duration_s=1), 0.0)
    assert (6, 2) == (table.slow_factor(0.5), table.slow_factor(1.5))
    assert table.draw(0.0) is None


def test_a_frozen_engine_thaws_when_the_fault_is_removed():
    table = faults()
    fault = table.add(Fault(kind=Kind.FREEZE), 0.0)
    assert table.frozen(0.0)
    assert table.remove(fault.id)
    assert not table.remove(fault.id)
    assert not table.frozen(0.0)


@pytest.mark.parametrize("kind", [Kind.REFUSE, Kind.CRASH])
def test_a_fault_that_closes_the_port_needs_an_end(kind):
    with pytest.raises(ValueError, match="duration_s"):
        faults().add(Fault(kind=kind), 0.0)
