from __future__ import annotations

import pytest

from router.core.checks import Accuracy, Checks, joined
from router.core.classes import H100_8B, Cost, prior
from router.core.constants import Constants
from router.core.learn import ClassCost, Lengths, LoadTime, Slowness

CONSTANTS = Constants()


def test_slowness_is_believed_fast_and_forgotten_slowly() -> None:
    slowness = Slowness(CONSTANTS)
    for _ in range(8):
        slowness.learn(4.0, 0.0)
    assert 3.5 < slowness.at(0.0) < 4.0
    risen = slowness.at(0.0)
    slowness.learn(1.0, 0.0)
    assert 0.8 * risen < slowness.at(0.0) < risen


def test_an_idle_node_is_forgiven() -> None:
    slowness = Slowness(CONSTANTS)
    slowness.learn(20.0, 0.0)
    assert 1.0 == pytest.approx(slowness.at(1000.0))


def test_slowness_is_bounded() -> None:
    slowness = Slowness(CONSTANTS)
    for _ in range(100):
        slowness.learn(1e9, 0.0)
    assert 20.0 == pytest.approx(slowness.at(0.0))
    for _ in range(200):
        slowness.learn(0.0, 0.0)
    assert 0.1 == pytest.approx(slowness.at(0.0))


def test_a_request_given_up_early_says_only_at_least() -> None:
    slowness = Slowness(CONSTANTS)
    slowness.learn(0.5, 0.0, censored=True)
    assert 1.0 == slowness.at(0.0)
    slowness.learn(4.0, 0.0, censored=True)
    assert slowness.at(0.0) > 1.3


def test_a_class_learns_its_steps_and_its_prefill_apart() -> None:
    learned = ClassCost(H100_8B, CONSTANTS)
    for tokens in (100, 8000, 500, 2000, 16_000, 50) * 80:
        step, prefill = 10.0 * (1 + tokens // 2048), 0.036 * tokens
        learned.first_token(step_ms=step, prefill_ms=prefill, observed_ms=1.5 * step + 0.6 * prefill)
    assert 1.5 == pytest.approx(learned.step, rel=0.1)
    assert 0.6 == pytest.approx(learned.prefill, rel=0.1)
    assert 480 == learned.observations


def test_a_known_class_stays_near_its_prior_and_an_unknown_one_may_be_far() -> None:
    known, unknown = ClassCost(H100_8B, CONSTANTS), ClassCost(Cost(), CONSTANTS)
    for learned in (known, unknown):
        for tokens in (100, 1000) * 200:
            learned.first_token(step_ms=7.0, prefill_ms=0.036 * tokens, observed_ms=100 * (7.0 + 0.036 * tokens))
    assert 4.0 >= max(known.step, known.prefill)
    assert unknown.step > 50.0


def test_nonsense_teaches_nothing() -> None:
    learned = ClassCost(H100_8B, CONSTANTS)
    learned.first_token(step_ms=0.0, prefill_ms=0.0, observed_ms=10.0)
    learned.first_token(step_ms=1.0, prefill_ms=0.0, observed_ms=0.0)
    learned.pace(predicted_ms=0.0, observed_ms=1.0)
    assert (1.0, 1.0, 1.0, 0) == (learned.step, learned.prefill, learned.decode, learned.observations)


def test_the_pace_of_tokens_is_learned() -> None:
    learned = ClassCost(H100_8B, CONSTANTS)
    for _ in range(200):
        learned.pace(predicted_ms=10.0, observed_ms=20.0)
    assert 2.0 == pytest.approx(learned.decode, rel=0.01)


def test_priors_come_from_the_pair_then_the_class_then_anywhere() -> None:
    mine = Cost(step_ms=1.0)
    assert mine is prior("m", "h100-80g", {("m", "h100-80g"): mine})
    assert H100_8B is prior("other", "h100-80g", {("m", "h100-80g"): mine})
    assert Cost() == prior("m", "abacus")


def test_lengths_are_learned_per_tenant_and_limited_by_the_request() -> None:
    lengths = Lengths(CONSTANTS)
    for _ in range(500):
        lengths.learn("m", "long", 1000)
    assert 990 < lengths.expected("m", "long", limit=0) <= 1000
    assert 10.0 == lengths.expected("m", "long", limit=10)
    assert 256.0 == lengths.expected("m", "new", limit=0)


def test_lengths_forget_the_pair_not_used_for_longest() -> None:
    lengths = Lengths(Constants(length_keys=2))
    for tenant in ("a", "b", "a", "c"):
        lengths.learn("m", tenant, 1000)
    assert 256.0 == lengths.expected("m", "b", limit=0)
    assert lengths.expected("m", "a", limit=0) > 256.0


def test_load_times_are_learned_and_a_late_load_is_expected_to_stay_late() -> None:
    time = LoadTime(40.0, 0.3)
    assert 60.0 == time.p90_s
    for _ in range(30):
        time.learn(10.0)
    time.learn(12.0)
    assert 10.6 == pytest.approx(time.mean_s, rel=0.01)
    assert 12.0 == time.p90_s
    assert 6.6 == pytest.approx(time.remaining_s(4.0), rel=0.01)
    assert 20.0 == time.remaining_s(40.0)


def test_predictions_are_checked() -> None:
    checks = Checks(CONSTANTS)
    for n in range(1000):
        observed = 200.0 if n % 10 else 100.0
        checks.learn(predicted_ms=100.0, p90_ms=checks.p90_ms(100.0, 0.3), observed_ms=observed)
    checks.learn(predicted_ms=0.0, p90_ms=1.0, observed_ms=1.0)
    found = checks.snapshot()
    assert 1000 == found.observations
    assert 1.6 < found.bias < 2.0
    assert 0.4 < found.spread < 0.8
    assert 0.75 < found.p90_coverage < 1.0


def test_what_several_routers_saw_is_weighted_by_how_much_they_saw() -> None:
    much = Accuracy(observations=30, bias=1.0, spread=0.1, p90_coverage=0.9)
    little = Accuracy(observations=10, bias=16.0, spread=0.5, p90_coverage=0.5)
    nothing = Accuracy(observations=0, bias=1.0, spread=0.3, p90_coverage=0.9)
    found = joined([{"m": much}, {"m": little, "only": little}, {"none": nothing}, {"none": nothing}])
    assert (40, little, nothing) == (found["m"].observations, found["only"], found["none"])
    assert (2.0, 0.2, 0.8) == pytest.approx((found["m"].bias, found["m"].spread, found["m"].p90_coverage))


def test_the_p90_widens_until_it_covers() -> None:
    checks = Checks(CONSTANTS)
    for n in range(3000):
        observed = 100.0 * (1.0 + (n * 7 % 10) / 3.0)
        checks.learn(predicted_ms=100.0, p90_ms=checks.p90_ms(100.0, 0.3), observed_ms=observed)
    assert 350.0 < checks.p90_ms(100.0, 0.3) < 480.0
