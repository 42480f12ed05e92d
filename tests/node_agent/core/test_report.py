"""Pacing, what counts as news, and `seen`: the count that keeps routers from counting twice or not at all."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from node_agent.core.report import SETTLE_S, Load, Pacing, SentBook, differs, resident
from wire.records import ModelState


def scraped(book: SentBook, replica: str, began: float) -> None:
    book.scraped(replica, book.scrape_begins(replica, began))


def test_a_count_is_confirmed_by_the_first_scrape_that_began_well_after_it() -> None:
    book = SentBook()
    assert {"a"} == book.told("r1", {"a": 3}, 10.0)
    scraped(book, "a", 10.0 + SETTLE_S / 2)
    assert 0 == book.seen("r1", "a")
    assert book.unsettled("a")
    scraped(book, "a", 10.0 + SETTLE_S)
    assert 3 == book.seen("r1", "a")
    assert not book.unsettled("a")


def test_a_count_that_arrives_during_a_scrape_is_not_in_it() -> None:
    book = SentBook()
    book.told("r1", {"a": 1}, 0.0)
    mark = book.scrape_begins("a", 1.0)
    book.told("r1", {"a": 9}, 1.01)
    book.scraped("a", mark)
    assert 1 == book.seen("r1", "a")
    scraped(book, "a", 2.0)
    assert 9 == book.seen("r1", "a")


def test_routers_and_replicas_are_counted_apart() -> None:
    book = SentBook()
    book.told("r1", {"a": 1, "b": 2}, 0.0)
    book.told("r2", {"a": 5}, 0.0)
    scraped(book, "a", 1.0)
    assert [1, 0, 5, 0] == [book.seen(r, m) for r in ("r1", "r2") for m in ("a", "b")]


def test_only_growth_is_news() -> None:
    book = SentBook()
    assert {"a"} == book.told("r1", {"a": 1, "b": 0}, 0.0)
    assert set() == book.told("r1", {"a": 1, "b": 0}, 0.0)


def test_a_router_that_has_left_is_forgotten() -> None:
    book = SentBook()
    book.told("r1", {"a": 1}, 0.0)
    scraped(book, "a", 1.0)
    book.forget("r1")
    assert 0 == book.seen("r1", "a")
    assert {} == book.scrape_begins("a", 2.0)


def test_a_count_that_falls_is_a_new_life_of_the_router() -> None:
    book = SentBook()
    book.told("r1", {"a": 100}, 0.0)
    scraped(book, "a", 1.0)
    book.told("r1", {"a": 2}, 2.0)
    scraped(book, "a", 3.0)
    assert 2 == book.seen("r1", "a")


def test_a_confirmation_is_news_for_the_next_report() -> None:
    book = SentBook()
    book.told("r1", {"a": 1}, 0.0)
    scraped(book, "a", 1.0)
    assert book.news
    book.news = False
    scraped(book, "a", 2.0)
    assert not book.news


ACTS = st.lists(st.tuples(st.booleans(), st.floats(0.001, 0.2), st.integers(0, 3)), max_size=60)


@given(ACTS)
def test_seen_never_exceeds_what_had_settled_and_catches_up_when_things_calm_down(acts: list) -> None:
    book, now, count, told = SentBook(), 0.0, 0, [(0.0, 0)]
    for is_scrape, passes, more in acts:
        now += passes
        if is_scrape:
            scraped(book, "a", now)
            settled = max(n for at, n in told if at <= now - SETTLE_S or n == 0)
            assert book.seen("r", "a") <= settled
        else:
            count += more
            book.told("r", {"a": count}, now)
            told.append((now, count))
    for _ in range(2):
        now += 1.0
        scraped(book, "a", now)
    assert count == book.seen("r", "a")


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), max_size=50))
def test_reports_are_never_closer_than_least_nor_farther_than_most(acts: list[tuple[float, bool]]) -> None:
    pacing, last = Pacing(), 0.0
    for _, changed in acts:
        due = pacing.due(last, changed=changed)
        assert pacing.least_s <= due - last + 1e-9
        assert due - last <= pacing.most_s + 1e-9
        last = due


def test_a_change_is_news_and_a_clock_that_runs_on_is_not() -> None:
    load = Load(replica="a", state=ModelState.READY, running=1)
    assert differs(None, load)
    assert not differs(load, msgspec.structs.replace(load, idle_s=9.0, scraped_at=9.0, load_remaining_s=9.0))
    for change in ({"running": 2}, {"state": ModelState.DRAINING}, {"generation": 2}, {"kv_use": 0.5}):
        assert differs(load, msgspec.structs.replace(load, **change))


def test_adapters_stay_resident_until_others_need_their_place() -> None:
    assert ("b", "a") == resident(("a",), ("b",), 2)
    assert ("c", "b") == resident(("b", "a"), ("c",), 2)
    assert ("a",) == resident(("a",), (), 1)
