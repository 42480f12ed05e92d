"""What first tokens say of a node's speed, whoever waits for whom: one as fast as its class is taken for that."""

from __future__ import annotations

import random

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from router.core.classes import H100_8B
from router.core.dispatch import CoreDispatcher
from router.core.model import Ending, Flight
from tests.router.core.fleets import fleet, replica, shape

COST = msgspec.structs.replace(H100_8B, attention_ms=0.0)
STEPS = st.integers(1, 8)
GAPS = st.floats(0.0, 0.6)
small = settings(max_examples=60, deadline=None)


def alone_s(steps: int) -> float:
    return steps * (COST.step_ms + COST.batch_tokens * COST.prefill_ms) / 1000.0


def believed(work: list[tuple[int, float]]) -> tuple[float, float]:
    """Slowness of the node and factor of its class's prefill, after it served these prompts one after the other, each
    so many steps long and sent so many seconds after the one before."""
    core = CoreDispatcher(rng=random.Random(1), costs={("m", "h100-80g"): COST})
    core.apply(fleet(replica("a", device_class="h100-80g")), 0.0)
    events: list[tuple[float, int, int]] = []
    sent_at = free_at = 0.0
    for number, (steps, gap_s) in enumerate(work):
        sent_at += gap_s
        free_at = max(free_at, sent_at + COST.overhead_ms / 1000.0) + alone_s(steps)
        events += [(sent_at, number, steps), (free_at, number, 0)]
    flights: dict[int, Flight] = {}
    for now, number, steps in sorted(events):
        if steps:
            prompt = number.to_bytes(8, "little") * int(steps * COST.batch_tokens / 2.0)
            asked = shape(prompt=prompt, max_tokens=1)
            flights[number] = core.begin(core.pick(asked, now=now), asked, now)
        else:
            flights[number].first_token(now)
            flights[number].end(Ending.COMPLETE, now)
    found = core._belief.groups["m", False].replicas[0]
    assert found is not None
    return found.node.slowness.at(free_at), found.cost.prefill


@small
@given(st.lists(st.tuples(STEPS, GAPS), min_size=1, max_size=30))
def test_a_node_as_fast_as_its_class_is_taken_for_that_however_requests_queue(work: list[tuple[int, float]]) -> None:
    slowness, prefill = believed(work)
    assert 0.9 < slowness < 1.1
    assert 0.9 < prefill < 1.1


@small
@given(st.integers(3, 20), st.floats(0.1, 0.95))
def test_a_short_prompt_behind_one_that_is_nearly_done_does_not_make_a_node_look_fast(times: int, share: float) -> None:
    slowness, prefill = believed([(8, 1.0), (1, share * alone_s(8))] * times)
    assert 0.9 < slowness < 1.1
    assert 0.9 < prefill < 1.1
