"""A stream that broke and went on equals the one that never broke: every kind of request, real engines, a real router.

The same by hand, with as many breaks as wanted, and with a table: equivalence.py."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.recordings.record import stops
from tests.vllm.equivalence import Kill, cut_all, kill_all, wrong
from tests.vllm.house import House
from tests.vllm.kinds import kinds
from tests.vllm.servers import VllmServer
from tests.vllm.trial import AS_IT_SHOULD_BE

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(400)]

Pair = tuple[VllmServer, VllmServer]


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    made = House().start()
    yield made
    made.close()


async def test_answers_of_every_kind_cut_anywhere_come_out_as_unbroken_ones(house: House, vllm_pair: Pair) -> None:
    rows = await cut_all(house, vllm_pair, kinds(*stops(vllm_pair[0])), count=3, seed=3)
    assert [] == wrong(rows)
    assert sum(row.verdicts["exact"] for row in rows.values()) > 100
    assert {"ids", "replay"} == {way for row in rows.values() for way in row.ways}


@pytest.mark.parametrize("how", list(Kill))
async def test_streams_of_all_kinds_outlive_the_engine_they_came_from(house: House, vllm_pair: Pair, how: Kill) -> None:
    rows = await kill_all(house, vllm_pair, kinds(*stops(vllm_pair[0])), kills=[how], seed=len(how))
    assert [] == wrong(rows)
    assert 6 <= sum(sum(row.verdicts[name] for name in AS_IT_SHOULD_BE) for row in rows.values())
