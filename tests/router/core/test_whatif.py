"""Remembered decisions under another policy or other constants."""

from __future__ import annotations

import pytest

from router.core.constants import Constants
from router.core.difference import Difference, Example, Question, together
from router.core.dispatch import CoreDispatcher
from router.core.model import Shape
from router.core.policies import DEFAULT
from router.core.whatif import question
from tests.router.core.fleets import dispatcher, load, replica, report, shape
from wire.records import ModelState


def asked(request_id: str, size: int = 400, model: str = "m") -> Shape:
    return Shape(request_id=request_id, model=model, prompt=b"x" * size)


def busy_and_idle() -> CoreDispatcher:
    core = dispatcher(replica("a"), replica("b"))
    core.report(report(load("a", waiting=9, waiting_uncached_tokens=50_000.0, running=3)), 0.0)
    for n in range(30):
        core.pick(asked(f"q{n}"), now=0.0)
    core.pick(shape("m"), exclude={"b"}, now=0.0)
    return core


def test_under_the_same_rule_nothing_changes() -> None:
    found = busy_and_idle().whatif(Question(policy=DEFAULT))
    assert (31, 0, []) == (found.decisions, found.changed, found.examples)
    assert found.expected_ms == found.instead_ms


def test_a_choice_among_equals_or_to_explore_is_no_difference() -> None:
    core = dispatcher(replica("a"), replica("b"), replica("c"))
    for n in range(30):
        core.pick(asked(f"q{n}"), now=0.0)
    assert (30, 0) == (core.whatif(Question(policy=DEFAULT)).decisions, core.whatif(Question(policy=DEFAULT)).changed)
    curious = dispatcher(replica("a"), replica("b"), constants=Constants(explore=1.0))
    curious.pick(asked("q"), now=0.0)
    assert 0 == curious.whatif(Question(policy=DEFAULT)).decisions


def test_another_policy_is_shown_with_what_it_would_have_cost() -> None:
    found = busy_and_idle().whatif(Question(policy="round_robin"))
    assert 14 <= found.changed <= 16
    assert found.instead_ms > 10 * found.expected_ms / 2
    assert 10 == len(found.examples)
    first = found.examples[0]
    assert ("m", "b", "a", True) == (first.model, first.chosen, first.instead, first.instead_ms > first.chosen_ms)
    differences = [abs(e.instead_ms - e.chosen_ms) for e in found.examples]
    assert sorted(differences, reverse=True) == differences


def test_another_price_of_full_memory_is_folded_into_what_was_remembered() -> None:
    core = dispatcher(replica("a"), replica("b"))
    core.report(report(load("a", kv_use=0.6, kv_capacity_tokens=50_000, running=1)), 0.0)
    core.report(report(load("b", waiting=1, waiting_uncached_tokens=2000.0)), 0.0)
    decision = core.pick(asked("q"), now=0.0)
    assert "b" == decision.replica
    free = core.whatif(Question(policy=DEFAULT, constants={"kv_barrier_ms": 0.0}))
    assert [("b", "a")] == [(e.chosen, e.instead) for e in free.examples]
    assert 0 == core.whatif(Question(policy=DEFAULT, constants={"kv_full": 0.97})).changed
    assert 0 == core.whatif(Question(policy=DEFAULT, constants={"kv_barrier_ms": 1e6})).changed


def test_decisions_can_be_asked_about_by_model_and_by_request() -> None:
    core = busy_and_idle()
    assert 0 == core.whatif(Question(policy=DEFAULT, model="other")).decisions
    assert 31 == core.whatif(Question(policy=DEFAULT, model="m")).decisions
    assert 1 == core.whatif(Question(policy=DEFAULT), core.remembered(lambda request: request == "q7")).decisions


def test_what_was_not_sent_is_left_out() -> None:
    core = dispatcher(replica("a", ModelState.SLEEPING))
    core.pick(asked("q"), now=0.0)
    assert Difference() == core.whatif(Question(policy="random"))


def test_decisions_that_the_policy_could_not_have_made_are_left_out() -> None:
    core = dispatcher(replica("a"), replica("b"))
    core.pick(asked("q"), exclude={"a"}, now=0.0)
    (record,) = core._records.of("q")
    record.excluded["b"] = "for the test"
    assert 0 == core.whatif(Question(policy=DEFAULT)).decisions


def test_differences_of_several_routers_add_up() -> None:
    small, large = (Example(str(ms), "m", "a", "b", 0.0, ms) for ms in (5.0, 50.0))
    one = Difference(decisions=1, changed=1, expected_ms=100.0, instead_ms=105.0, examples=[small])
    three = Difference(decisions=3, changed=1, expected_ms=20.0, instead_ms=21.0, examples=[large])
    both = together([one, three])
    assert (4, 2, 40.0, 42.0, [large, small]) == (
        both.decisions,
        both.changed,
        both.expected_ms,
        both.instead_ms,
        both.examples,
    )
    assert Difference() == together([])


def test_a_question_is_read_from_text() -> None:
    assert Question(policy="lmetric", constants={"tie_ms": 0.5}, model="m") == question(
        "lmetric", [("tie_ms", "0.5")], model="m"
    )


@pytest.mark.parametrize(
    ("policy", "name", "value", "said"),
    [
        ("best", "tie_ms", "1", "there is no policy 'best'; there are expected_time"),
        ("lmetric", "slow_start_s", "1", "'slow_start_s' cannot be replayed; excess_tpot_weight"),
        ("lmetric", "tie_ms", "much", "tie_ms: 'much' will not do"),
        ("lmetric", "tie_ms", "-1", "tie_ms: '-1' will not do"),
        ("lmetric", "tie_ms", "nan", "tie_ms: 'nan' will not do"),
        ("lmetric", "kv_full", "1", "kv_full: '1' will not do"),
    ],
)
def test_a_question_that_makes_no_sense_is_answered_with_a_sentence(
    policy: str, name: str, value: str, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        question(policy, [(name, value)])
