"""What admission goes by: the wait behind others, where it is shortest."""

from __future__ import annotations

from router.core.constants import Constants
from router.core.dispatch import CoreDispatcher
from router.core.model import Ending
from tests.router.core.fleets import dispatcher, load, replica, report, shape
from wire.records import ModelPolicy, ModelState, Task

POOL = ("m", False)


def waiting(core: CoreDispatcher, name: str, tokens: float, *, sequence: int = 0) -> None:
    core.report(report(load(name, waiting=1, waiting_uncached_tokens=tokens), sequence=sequence), 0.0)


def test_an_idle_fleet_makes_nobody_wait() -> None:
    core = dispatcher(replica("a"))
    assert 0.0 == core.ahead_ms(POOL, 0.0)


def test_more_tokens_ahead_mean_a_longer_wait() -> None:
    core = dispatcher(replica("a"))
    waits = []
    for sequence, tokens in enumerate((1000.0, 10_000.0, 100_000.0)):
        waiting(core, "a", tokens, sequence=sequence)
        waits.append(core.ahead_ms(POOL, 0.0))
    assert sorted(set(waits)) == waits
    assert 0.0 < waits[0]


def test_the_least_burdened_replica_counts_because_a_request_could_go_there() -> None:
    core = dispatcher(replica("a"), replica("b"))
    waiting(core, "a", 100_000.0)
    assert 0.0 == core.ahead_ms(POOL, 0.0)


def test_our_own_requests_without_a_token_are_ahead_of_the_next_one() -> None:
    core = dispatcher(replica("a"))
    asked = shape(prompt=bytes(40_000))
    flight = core.begin(core.pick(asked, now=0.0), asked, 0.0)
    before = core.ahead_ms(POOL, 0.0)
    flight.first_token(0.1)
    assert (True, 0.0) == (before > 0.0, core.ahead_ms(POOL, 0.1))


def test_replicas_that_would_have_to_be_loaded_are_not_under_pressure_and_help_nobody() -> None:
    core = dispatcher(replica("a"), replica("b", ModelState.SLEEPING))
    waiting(core, "a", 100_000.0)
    assert core.ahead_ms(POOL, 0.0) > 0.0
    assert 0.0 == dispatcher(replica("b", ModelState.SLEEPING)).ahead_ms(POOL, 0.0)
    assert 0.0 == core.ahead_ms(("nobody", False), 0.0)


def test_a_replica_that_is_ejected_is_idle_in_vain_unless_it_is_the_only_one() -> None:
    core = dispatcher(replica("a"), replica("b"), constants=Constants(explore=0.0, panic_share=0.5))
    for _ in range(5):
        asked = shape()
        core.begin(core.pick(asked, exclude={"b"}, now=0.0), asked, 0.0).end(Ending.FAILED, 0.0)
    waiting(core, "b", 100_000.0)
    assert core.ahead_ms(POOL, 0.0) > 0.0
    alone = dispatcher(replica("a"))
    for _ in range(5):
        asked = shape()
        alone.begin(alone.pick(asked, now=0.0), asked, 0.0).end(Ending.FAILED, 0.0)
    assert 0.0 == alone.ahead_ms(POOL, 0.0)


def test_adapters_wait_with_their_base_model_and_embeddings_apart() -> None:
    core = dispatcher(replica("a"), models=(ModelPolicy(model="lora", adapter_of="m"),))
    assert POOL == core.pool("lora", embedding=False) == core.pool("m", embedding=False)
    assert ("m", True) == core.pool("m", embedding=True)


def test_the_work_of_a_request_counts_its_prompt_once_and_its_answers_twice() -> None:
    core = dispatcher(replica("a"), replica("e", task=Task.EMBED))
    asked = shape(prompt=bytes(4000), max_tokens=100, choices=2)
    assert 1400.0 == core.work_tokens(core.pick(asked, now=0.0), asked)
    embed = shape(prompt=bytes(4000), embedding=True)
    assert 1000.0 == core.work_tokens(core.pick(embed, now=0.0), embed)


def test_what_is_noted_stands_beside_the_last_decision() -> None:
    core = dispatcher(replica("a"))
    core.note("never", "nothing", 0.0)
    asked = shape()
    core.pick(asked, now=0.0)
    core.note(asked.request_id, "not sent: it waits", 0.0)
    assert "not sent: it waits" in core.story(asked.request_id)
    assert [] == core.why("never")
