from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from node_agent.core.health import HealthLimits, Vitals
from node_agent.core.metrics import EngineMetrics

LIMITS = HealthLimits(frozen_s=30, silent_s=20)


def page(running: int = 1, tokens: int = 0, *, kv_use: float = 0.1, asleep: bool = False) -> EngineMetrics:
    return EngineMetrics(running=running, waiting=0, generation_tokens=tokens, kv_use=kv_use, asleep=asleep)


def watched(pages: list[EngineMetrics], *, step_s: float = 1.0, held_requests: int = 0) -> tuple[Vitals, float]:
    vitals, now = Vitals(LIMITS, 0.0), 0.0
    for one in pages:
        vitals.scraped(one, now, held_requests=held_requests)
        now += step_s
    return vitals, now - step_s


def test_an_engine_whose_tokens_grow_is_well() -> None:
    vitals, now = watched([page(tokens=n) for n in range(100)])
    assert "" == vitals.verdict(now)
    assert 0 == vitals.idle_s(now)


def test_a_frozen_engine_shows_the_same_page_with_work_at_hand() -> None:
    vitals, now = watched([page(tokens=7)] * 31)
    assert 30 == vitals.idle_s(now)
    assert "" == vitals.verdict(now)
    vitals.scraped(page(tokens=7), now + 1)
    assert "frozen" in vitals.verdict(now + 1)


def test_an_idle_engine_is_never_frozen() -> None:
    vitals, now = watched([page(running=0)] * 1000)
    assert 0 == vitals.idle_s(now)
    assert "" == vitals.verdict(now)


def test_work_that_comes_after_a_long_rest_starts_the_clock() -> None:
    vitals, now = watched([page(running=0)] * 100 + [page(running=1)] * 2)
    assert 1 == vitals.idle_s(now)


def test_a_long_prefill_has_no_tokens_but_is_not_frozen() -> None:
    vitals, now = watched([page(kv_use=n / 1000) for n in range(100)])
    assert 99 == vitals.idle_s(now)
    assert "" == vitals.verdict(now)


def test_a_sleeping_engine_may_hold_requests_without_being_frozen() -> None:
    vitals, now = watched([page(running=0, asleep=True)] * 100, held_requests=3)
    assert "" == vitals.verdict(now)


def test_an_engine_frozen_while_idle_is_known_by_the_requests_its_server_holds() -> None:
    vitals, now = watched([page(running=0)] * 40, held_requests=1)
    assert "frozen" in vitals.verdict(now)


def test_an_engine_that_answers_no_scrape_is_given_up() -> None:
    vitals, now = watched([page(running=0)])
    assert "" == vitals.verdict(now + 20)
    assert "answered no scrape for 21 s" == vitals.verdict(now + 21)


def test_a_look_that_was_not_possible_speaks_against_no_engine() -> None:
    vitals, now = watched([page(tokens=7)] * 25)
    for _ in range(100):
        now += 1
        vitals.blind(now)
        assert "" == vitals.verdict(now)
    vitals.scraped(page(tokens=7), now + 30)
    assert "" == vitals.verdict(now + 30)
    vitals.scraped(page(tokens=7), now + 31)
    assert "frozen" in vitals.verdict(now + 31)


def test_limits_of_zero_switch_it_off() -> None:
    vitals = Vitals(HealthLimits(frozen_s=0, silent_s=0), 0.0)
    vitals.scraped(page(), 0.0)
    vitals.scraped(page(), 1e6)
    assert "" == vitals.verdict(2e6)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), min_size=1, max_size=50))
def test_idle_time_never_exceeds_the_time_since_tokens_grew_or_work_began(looks: list[tuple[int, int]]) -> None:
    vitals, tokens, quiet_since = Vitals(LIMITS, 0.0), 0, 0.0
    for now, (running, more) in enumerate(looks):
        tokens += more
        vitals.scraped(page(running, tokens), float(now))
        if more or not running:
            quiet_since = float(now)
        assert vitals.idle_s(now) <= now - quiet_since
