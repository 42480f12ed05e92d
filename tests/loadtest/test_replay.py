"""What a replay sends and how it judges; and a few seconds of it against a real router and a live fleet."""

from __future__ import annotations

import argparse
import asyncio
import math
from pathlib import Path

import msgspec
import pytest

from loadtest import replay, replay_bound, replay_round, verdict
from loadtest.client import Exchange
from loadtest.fleet import PLANS, Agent, Member, NodeSpec
from loadtest.verdict import Load, Told
from wire.memory import MemoryRegistry
from wire.records import ModelState, Replica, decode, prefix

LOAD = Load(trace="mooncake-conv", plan="mixed", speed=2.0, seconds=30.0, offset_s=600.0, scale=0.1, seed=1)
LIMIT_S = 20.0


def _exchange(*, events: int = 12, first_s: float = 0.2, last_s: float = 0.6, complete: bool = True) -> Exchange:
    exchange = Exchange(recorder=None, keep=False)
    exchange.status = 200
    if events:
        exchange.on_body(b"data: {}\n\n" * (events - 1) + (b"data: [DONE]\n\n" if complete else b"data: {}\n\n"))
    exchange.first_event_s = first_s if events else -1.0
    exchange.sent_at, exchange.last_event_at = 100.0, 100.0 + last_s
    exchange.end("" if complete else "connection lost")
    return exchange


STATS = {"queries": 100.0, "hits": 25.0, "asleep": 1.0, "behind_s": 0.0}


def test_the_same_load_gives_the_same_requests_and_a_session_keeps_its_model() -> None:
    due = replay_round.requests(LOAD, "sk")
    assert due == replay_round.requests(LOAD, "sk")
    assert set(PLANS["mixed"].shares) >= {one.model for one in due}
    assert all(0 <= one.at_s < LOAD.seconds for one in due)
    twice_as_fast = replay_round.requests(msgspec.structs.replace(LOAD, speed=4.0, seconds=15.0), "sk")
    assert [one.request for one in due] == [one.request for one in twice_as_fast]


def test_what_no_router_can_beat_is_a_prefill_of_ones_own_and_of_a_sleeping_model_what_is_left_of_one_wake() -> None:
    due, least = replay_round.requests(LOAD, "sk"), replay_bound.least_ttft_s(LOAD)
    assert len(due) == len(least)
    woken_at = {"sim-c": next(one.at_s for one in due if one.model == "sim-c")}
    for one, least_s in zip(due, least, strict=True):
        wake_left_s = max(0.0, woken_at.get(one.model, -9.0) + PLANS["mixed"].wake_s - one.at_s)
        assert wake_left_s < least_s
        if one.model in ("sim-a", "sim-b"):
            assert least_s < 1.0
    assert sum(least) < sum(replay_bound.least_ttft_s(msgspec.structs.replace(LOAD, scale=0.2)))


async def test_an_answer_that_never_came_whole_is_infinitely_late() -> None:
    sent = [(0.0, _exchange()), (0.0, _exchange(complete=False)), (0.0, _exchange(events=0, complete=False))]
    told = verdict.summed(sent, [STATS], [], cpu_s=0.003, cold=2)
    assert 2 == told.unanswered
    assert math.isinf(told.ttft_p99_s)
    assert {"status 200, 12 events, connection lost": 1, "status 200, 0 events, connection lost": 1} == told.failures
    assert 1.0 == pytest.approx(told.router_cpu_ms)


async def test_being_sent_late_counts_against_the_time_to_first_token() -> None:
    told = verdict.summed([(0.5, _exchange(first_s=0.2))], [STATS], [], cpu_s=0.0, cold=2)
    assert 0.7 == pytest.approx(told.ttft_p50_s)


async def test_goodput_wants_both_objectives() -> None:
    assert verdict.met(0.2, _exchange())
    assert not verdict.met(2.5, _exchange())
    assert not verdict.met(0.2, _exchange(last_s=0.2 + 10 * 0.06))


async def test_wakes_and_hits_come_from_the_engines() -> None:
    told = verdict.summed([(0.0, _exchange())], [STATS, STATS], [0.5, 1.5], cpu_s=0.0, cold=5)
    assert (3, 0.25, 1.0) == (told.wakes, told.hits, told.imbalance)


def test_the_table_shows_medians_over_rounds() -> None:
    rounds = [changed(ttft_p99_s=p99) for p99 in (1.0, 9.0, 2.0)]
    assert "| switchyard | 10 | 0 | 0.10 | 0.50 | 2.00 [1.00, 9.00] | 0.900 |" in verdict.table(
        {"switchyard": rounds}, LOAD
    )


async def test_many_who_wait_for_a_sleeping_model_wake_it_once_and_the_registry_hears_of_it() -> None:
    plan = msgspec.structs.replace(PLANS["uniform"], wake_s=0.05)
    spec = NodeSpec(name="n", warm=(), cold=("m",))
    registry = MemoryRegistry()
    member = Member(spec, 0, "m", plan, asleep=True)
    agent = Agent(spec, [member], registry)
    await agent.register("127.0.0.1:1")
    async with asyncio.timeout(LIMIT_S), asyncio.TaskGroup() as group:
        host = group.create_task(member.host.run())
        await asyncio.gather(*(agent.wake(member) for _ in range(3)))
        host.cancel()
    listed = await registry.list(prefix(Replica))
    assert 1 == member.wakes
    assert ModelState.READY is decode(Replica, listed.entries[0].value).state
    assert member.engine.sleep_level is None


def test_the_mixed_plan_has_what_it_promises() -> None:
    nodes = PLANS["mixed"].nodes
    assert [2, 1, 3] == [
        sum(node.slowness == 2.0 for node in nodes),
        sum(node.degrades_to == 4.0 for node in nodes),
        sum(bool(node.cold) for node in nodes),
    ]
    assert 1.0 == pytest.approx(sum(PLANS["mixed"].shares.values()))


TOLD = Told(
    requests=10,
    unanswered=0,
    ttft_p50_s=0.1,
    ttft_p95_s=0.5,
    ttft_p99_s=1.0,
    goodput=0.9,
    imbalance=0.3,
    wakes=2,
    hits=0.1,
    router_cpu_ms=3.0,
    late_s=0.0,
    behind_s=0.0,
    failures={},
)


def changed(**more: object) -> Told:
    return msgspec.structs.replace(TOLD, **more)


def arguments(*words: str) -> argparse.Namespace:
    args = replay._parser().parse_args(words)
    args.only = args.only.split(",") if args.only else list(replay.DEFAULT)
    return args


def test_the_budget_is_divided_among_the_rounds() -> None:
    rounds = replay.rounds_of(arguments("--budget", "35"))
    spent = sum(one.load.seconds + replay.AROUND_S for one in rounds)
    assert 2 * 2 * len(replay.DEFAULT) == len(rounds)
    assert 35 * 60 == pytest.approx(spent, rel=0.02)
    assert len(rounds) == len({(one.contestant, one.load.trace, one.load.plan) for one in rounds})


def test_contestants_of_a_cell_run_side_by_side_with_the_same_load() -> None:
    rounds = replay.rounds_of(arguments("--rounds", "2", "--only", "switchyard,litellm", "--traces", "azure-conv"))
    assert ["switchyard", "litellm"] * 4 == [one.contestant for one in rounds]
    assert all(one.load == other.load for one, other in zip(rounds[::2], rounds[1::2], strict=True))
    assert 4 == len({one.load.plan + str(one.load.seed) for one in rounds})


def test_an_interrupted_table_goes_on_and_remembers_what_never_came(tmp_path: Path) -> None:
    one = replay.rounds_of(arguments("--only", "switchyard"))[0]
    path = tmp_path / "rounds.jsonl"
    never = changed(ttft_p99_s=math.inf)
    replay.Store(path).add(replay.Kept("switchyard", one.load, never))
    again = replay.Store(path)
    assert never == again.of(one)
    assert again.of(msgspec.structs.replace(one, contestant="litellm")) is None
    assert again.of(msgspec.structs.replace(one, load=msgspec.structs.replace(one.load, seconds=1.0))) is None


def test_a_document_has_a_table_for_each_cell_and_compares_with_the_best_peer() -> None:
    rounds = replay.rounds_of(arguments("--only", "switchyard,litellm,nginx", "--plans", "mixed"))
    store = replay.Store(None)
    p99 = {"switchyard": 1.0, "litellm": 4.0, "nginx": 2.0}
    for one in rounds:
        store.add(replay.Kept(one.contestant, one.load, changed(ttft_p99_s=p99[one.contestant])))
    text = replay.document(rounds, store)
    assert 2 == text.count("| router |")
    assert 2 == text.count("p99 1.00 s against 2.00 s of the best peer in it (nginx), 0.50 of it")


def test_a_round_on_a_machine_that_was_too_busy_is_void_and_left_out_of_the_medians() -> None:
    rounds = [changed(), changed(behind_s=9.0, ttft_p99_s=50.0), changed()]
    assert [False, True, False] == [told.void for told in rounds]
    assert "| a (1 of 3 rounds void) | 10 | 0 | 0.10 | 0.50 | 1.00 [1.00, 1.00] |" in verdict.table({"a": rounds}, LOAD)


def test_without_a_peer_nothing_is_compared() -> None:
    assert "" == verdict.against_the_best({"switchyard": [TOLD]}, "switchyard")


@pytest.mark.slow
async def test_a_few_seconds_of_a_trace_are_answered_by_a_live_fleet(tmp_path: Path) -> None:
    load = msgspec.structs.replace(LOAD, seconds=4.0, max_output=30, plan="uniform")
    told = await replay_round.one_round(replay_round.CONTESTANTS["switchyard"], load, tmp_path)
    assert len(replay_round.requests(load, "sk")) == told.requests
    assert {} == told.failures
    assert told.router_cpu_ms > 0
