"""Shipped traces are what their README says, and texts made from them share what the trace shares."""

from __future__ import annotations

import random
import statistics
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest import traces, traffic
from loadtest.traces import Arrival


@pytest.mark.parametrize(("name", "count", "median"), [("azure-conv", 19_366, 1_020), ("mooncake-conv", 12_031, 6_909)])
def test_a_trace_has_the_requests_and_lengths_that_were_published(name: str, count: int, median: int) -> None:
    arrivals = traces.load(name)
    assert count == len(arrivals)
    assert median == statistics.median(arrival.prompt_tokens for arrival in arrivals)
    assert sorted(arrivals, key=lambda a: a.at_s) == arrivals


def test_mooncakes_three_second_steps_are_spread_the_same_for_the_same_seed() -> None:
    first, again, other = (traces.load("mooncake-conv", seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    assert len({arrival.at_s for arrival in first}) > 12_000


def test_an_unknown_trace_is_named_with_those_there_are() -> None:
    with pytest.raises(ValueError, match="azure-conv, mooncake-conv"):
        traces.load("nothing")


_arrivals = st.lists(
    st.builds(
        Arrival,
        st.integers(0, 10_000_000).map(lambda ms: ms / 1000),
        st.integers(0, 100_000),
        st.integers(0, 10_000),
        st.lists(st.integers(0, 200_000), max_size=20).map(tuple),
    ),
    max_size=20,
)


@given(_arrivals)
def test_what_is_packed_is_loaded_again(arrivals: list[Arrival]) -> None:
    lines = [traces.line(arrival) for arrival in arrivals]
    assert arrivals == [traces.parse(line) for line in lines]


def test_packing_the_shipped_trace_again_gives_the_same_bytes(tmp_path: Path) -> None:
    again = traces.pack("azure-conv", traces.load("azure-conv"), at=tmp_path)
    assert (traces.HERE / "azure-conv.csv.gz").read_bytes() == again.read_bytes()


def _prompt(arrival: Arrival, number: int = 0, scale: float = 1.0) -> str:
    content = traffic.replayed(arrival, "m", number=number, scale=scale)["messages"][0]["content"]
    assert isinstance(content, str)
    return content


@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_a_replayed_prompt_has_the_length_of_the_trace(scale: float) -> None:
    for number, arrival in enumerate(traces.load("mooncake-conv")[:40]):
        wanted = round(arrival.prompt_tokens * scale)
        assert abs(wanted - len(_prompt(arrival, number, scale).split())) <= 1


def test_equal_blocks_give_an_equal_beginning_and_others_do_not() -> None:
    first, second, third = (
        _prompt(Arrival(0, 1536, 1, blocks)).split() for blocks in ((0, 7, 8), (0, 7, 9), (0, 5, 6))
    )
    assert first[:1024] == second[:1024]
    assert first[1024:] != second[1024:]
    assert first[:512] == third[:512]
    assert first[512:1024] != third[512:1024]


def test_requests_without_blocks_share_nothing() -> None:
    assert _prompt(Arrival(0, 50, 1), 1) != _prompt(Arrival(0, 50, 1), 2)


def test_a_conversation_sends_its_past_and_then_begins_anew() -> None:
    rng = random.Random(5)
    talk = traffic.Conversation("m", traffic.Lengths("azure-conv", rng, max_prompt=300), rng, turns=2)
    previous: list[dict[str, str]] = []
    continued = 0
    for _ in range(12):
        body = talk.next_chat()
        if len(body["messages"]) > 2:
            continued += 1
            assert [*previous, {"role": "assistant", "content": "yes"}] == body["messages"][:-1]
        previous = body["messages"]
        talk.answered("yes")
    assert 0 < continued < 12


def test_the_same_seed_says_the_same() -> None:
    def said(seed: int) -> list[dict[str, object]]:
        rng = random.Random(seed)
        talk = traffic.Conversation("m", traffic.Lengths("azure-conv", rng), rng)
        return [talk.next_chat() for _ in range(3)]

    assert said(1) == said(1)
    assert said(1) != said(2)
