"""Everything breaks all along, and no client sees an error or misses a token. `python -m loadtest.chaos` tells more."""

from __future__ import annotations

from pathlib import Path

import pytest

from loadtest import network
from loadtest.chaos import Outcome, Plan, run


def unharmed(outcome: Outcome, plan: Plan) -> None:
    assert plan.streams == len(outcome.seen)
    assert [] == [seen.error for seen in outcome.errors]
    assert [] == [seen.differences for seen in outcome.unequal]
    assert {} == outcome.left
    assert [] == outcome.unready
    assert outcome.broken.total() > 0
    assert any('"resume"' in leg for leg in outcome.legs)


async def test_streams_survive_whatever_breaks_under_them(tmp_path: Path) -> None:
    plan = Plan(streams=60, replicas=2, concurrency=60, tokens=(60, 120))
    unharmed(await run(plan, tmp_path), plan)


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_a_thousand_streams_survive_whatever_breaks_under_them(tmp_path: Path) -> None:
    plan = Plan(partitions=not network.missing())
    unharmed(await run(plan, tmp_path), plan)
