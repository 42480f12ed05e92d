from __future__ import annotations

import pytest

from router.core.constants import Constants
from router.core.entry import Entry
from router.core.ledger import Ledger
from tests.router.core.fleets import load


def send(ledger: Ledger, tokens: float = 100.0, *, now: float = 0.0, sequences: int = 1) -> Entry:
    return ledger.send(uncached=tokens, context=tokens, sequences=sequences, now=now)


def figures(ledger: Ledger, now: float, routers: int = 1) -> tuple[float, float]:
    return ledger.backlog(routers=routers, now=now), ledger.decoding(routers=routers, now=now)


def test_a_request_waits_then_decodes_then_is_gone() -> None:
    ledger = Ledger(Constants())
    entry = send(ledger, 100.0)
    assert (100.0, 0.0) == figures(ledger, 0.0)
    assert entry is ledger.oldest_waiting()
    ledger.start(entry, 0.1)
    ledger.start(entry, 0.2)
    assert (0.0, 1.0) == figures(ledger, 0.2)
    assert ledger.oldest_waiting() is None
    ledger.progress(entry, 10)
    assert 110.0 == ledger.kv_tokens(routers=1, now=0.2)
    assert ledger.end(entry, 0.3)
    assert not ledger.end(entry, 0.4)
    ledger.progress(entry, 10)
    ledger.start(entry, 0.5)
    assert (0.0, 0.0) == figures(ledger, 0.5)
    assert 0.0 == ledger.kv_tokens(routers=1, now=0.5)
    assert 1 == ledger.sent


def test_a_request_that_ends_before_its_first_token_takes_its_tokens_along() -> None:
    ledger = Ledger(Constants())
    first, second = send(ledger, 100.0), send(ledger, 50.0)
    ledger.progress(first, 5)
    assert ledger.end(first, 0.1)
    assert 50.0 == ledger.backlog(routers=1, now=0.1)
    assert second is ledger.oldest_waiting()


def test_who_comes_while_the_first_of_the_queue_is_worked_on_knows_since_when() -> None:
    ledger = Ledger(Constants())
    first = send(ledger, now=1.0)
    second = send(ledger, now=1.5)
    assert (0.0, 0.5) == (first.head_start_s, second.head_start_s)
    ledger.start(first, 2.0)
    assert 0.25 == send(ledger, now=2.25).head_start_s
    ledger.end(second, 2.5)
    assert 0.25 == send(ledger, now=2.75).head_start_s


def test_one_that_is_cancelled_behind_the_first_changes_nothing_for_it() -> None:
    ledger = Ledger(Constants())
    send(ledger, now=1.0)
    ledger.end(send(ledger, now=1.1), 1.2)
    assert 0.5 == send(ledger, now=1.5).head_start_s


def test_while_others_wait_there_too_nobody_knows_whom_the_engine_is_working_on() -> None:
    ledger = Ledger(Constants())
    send(ledger, 100.0, now=1.0)
    ledger.reconcile(load("a", waiting=2, waiting_uncached_tokens=500.0, seen=1), 1.5)
    assert 0.25 == send(ledger, now=1.75).head_start_s


def test_a_report_that_contains_our_requests_adds_only_those_of_others() -> None:
    ledger = Ledger(Constants())
    send(ledger, 100.0)
    send(ledger, 100.0)
    ledger.reconcile(load("a", waiting=3, waiting_uncached_tokens=450.0, seen=2), 0.1)
    assert 450.0 == ledger.backlog(routers=1, now=0.1)
    assert 1.0 == ledger.decoding(routers=1, now=0.1)


def test_a_request_the_report_has_not_seen_is_added_to_it() -> None:
    ledger = Ledger(Constants())
    send(ledger, 100.0)
    send(ledger, 70.0)
    ledger.reconcile(load("a", waiting=2, waiting_uncached_tokens=450.0, seen=1), 0.1)
    assert 450.0 + 70.0 == ledger.backlog(routers=1, now=0.1)


def test_a_first_token_after_the_report_takes_its_tokens_off() -> None:
    ledger = Ledger(Constants())
    entry = send(ledger, 100.0)
    ledger.reconcile(load("a", waiting=2, waiting_uncached_tokens=450.0, seen=1), 0.1)
    ledger.start(entry, 0.15)
    assert 350.0 == ledger.backlog(routers=1, now=0.15)


def test_what_started_between_the_scrape_and_the_report_is_not_taken_for_somebody_elses() -> None:
    ledger = Ledger(Constants())
    waiting, decoding, given_up = send(ledger, 100.0), send(ledger, 30.0), send(ledger, 7.0, sequences=2)
    ledger.start(decoding, 0.01)
    ledger.start(waiting, 0.10)
    ledger.end(decoding, 0.11)
    ledger.end(given_up, 0.12)
    figures_of_scrape = load("a", running=1, waiting=3, waiting_uncached_tokens=107.0, seen=3, scraped_age_s=0.2)
    ledger.reconcile(figures_of_scrape, 0.25)
    assert (0.0, 1.0) == figures(ledger, 0.25)


def test_an_engine_that_tells_only_how_many_wait_is_taken_to_have_typical_prompts() -> None:
    ledger = Ledger(Constants())
    ledger.end(send(ledger, 200.0), 0.0)
    ledger.reconcile(load("a", waiting=3, seen=1), 5.0)
    assert 600.0 == ledger.backlog(routers=1, now=5.0)


def test_old_reports_fade_and_other_routers_are_taken_to_do_as_we_do() -> None:
    ledger = Ledger(Constants())
    ledger.reconcile(load("a", waiting=1, waiting_uncached_tokens=1000.0), 0.0)
    send(ledger, 100.0)
    assert 1100.0 + 2 * 100.0 == ledger.backlog(routers=3, now=0.75)
    assert 100.0 + 1200.0 * 0.9 == pytest.approx(ledger.backlog(routers=3, now=1.75))
    ledger.forget_others()
    assert 100.0 + 200.0 * 0.9 == pytest.approx(ledger.backlog(routers=3, now=1.75))
    assert 100.0 == pytest.approx(ledger.backlog(routers=3, now=300.0))


def test_memory_in_use_by_others_is_what_the_report_says_beyond_ours() -> None:
    ledger = Ledger(Constants())
    entry = send(ledger, 100.0)
    ledger.start(entry, 0.0)
    ledger.reconcile(load("a", kv_use=0.5, kv_capacity_tokens=1000, running=3, seen=1), 0.1)
    assert 500.0 == ledger.kv_tokens(routers=1, now=0.1)


def test_changes_are_remembered_only_as_long_as_a_report_may_miss_them() -> None:
    ledger = Ledger(Constants())
    for n in range(100):
        ledger.end(send(ledger, now=float(n)), float(n))
    assert len(ledger._changes) <= 2


def test_between_reports_other_routers_are_taken_to_send_as_we_do() -> None:
    ledger = Ledger(Constants())
    first = send(ledger, 500.0)
    ledger.reconcile(load("a", waiting=3, waiting_uncached_tokens=1500.0, seen=1), 0.1)
    assert 1500.0 == ledger.backlog(routers=8, now=0.1)
    send(ledger, 200.0)
    assert 1500.0 + 8 * 200.0 == ledger.backlog(routers=8, now=0.2)
    assert 1500.0 + 200.0 == ledger.backlog(routers=1, now=0.2)
    ledger.start(first, 0.2)
    assert 1000.0 + 200.0 == ledger.backlog(routers=8, now=0.2)


@pytest.mark.parametrize("routers", [1, 3])
@pytest.mark.parametrize("now", [0.1, 5.0])
def test_one_look_at_a_ledger_says_the_same_as_three(routers: int, now: float) -> None:
    ledger = Ledger(Constants())
    ledger.send(uncached=700.0, context=900.0, sequences=1, now=0.0)
    report = load("a", waiting=3, running=4, waiting_uncached_tokens=1500.0, kv_use=0.5, kv_capacity_tokens=10_000)
    ledger.reconcile(report, 0.0)
    ledger.start(ledger.send(uncached=50.0, context=60.0, sequences=2, now=0.0), 0.1)
    one_by_one = (ledger.decoding, ledger.backlog, ledger.kv_tokens)
    assert ledger.totals(routers, now) == tuple(look(routers=routers, now=now) for look in one_by_one)


def test_what_started_after_a_report_was_made_is_not_taken_for_ours_in_it() -> None:
    ledger = Ledger(Constants())
    ledger.send(uncached=700.0, context=900.0, sequences=1, now=0.0)
    ledger.start(ledger.send(uncached=50.0, context=60.0, sequences=2, now=0.0), 0.1)
    ledger.reconcile(load("a", waiting=2, waiting_uncached_tokens=800.0, seen=1), 0.2)
    assert 100.0 == ledger.other_tokens
    assert 1.0 == ledger.other_sequences
