"""How the sixteen scenes are judged and summed up. That we pass them: tests/integration/test_failover_scenarios.py."""

from __future__ import annotations

import pytest

from loadtest.client import Exchange
from loadtest.scenarios import Stage, Told, Verdict, summary, whole
from loadtest.scripted import DONE, EVENTS, Director

ERROR = b'data: {"error":{"message":"it broke","type":"server_error"}}\n\n'


@pytest.mark.parametrize(
    ("blocks", "error", "verdict"),
    [
        ([*EVENTS, DONE], "", Verdict.PASS),
        (EVENTS[:3], "connection lost", Verdict.PARTIAL),
        ([*EVENTS[:3], ERROR], "", Verdict.PARTIAL),
        (EVENTS, "", Verdict.PARTIAL),
        ([*EVENTS[:3], ERROR, DONE], "", Verdict.FAIL),
        ([*EVENTS[:3], DONE], "", Verdict.FAIL),
        ([*EVENTS[:3], *EVENTS, DONE], "", Verdict.FAIL),
        ([DONE], "", Verdict.FAIL),
        (EVENTS[:3], "aborted", Verdict.FAIL),
    ],
    ids=["whole", "broken", "error event", "no DONE", "error and DONE", "cut", "doubled", "empty", "never ends"],
)
async def test_an_error_is_honest_where_the_client_can_tell_and_looking_complete_is_not(
    blocks: list[bytes], error: str, verdict: Verdict
) -> None:
    exchange = Exchange(recorder=None, keep=True)
    exchange.status = 200
    for block in blocks:
        exchange.on_body(block)
    exchange.end(error)
    assert verdict is whole(exchange, Stage([], Director(), None)).verdict  # type: ignore[arg-type]  # nobody asks


def test_the_summary_counts_each_verdict_and_names_what_failed() -> None:
    told = {
        "500": Told(Verdict.PASS),
        "stall": Told(Verdict.FAIL),
        "503": Told(Verdict.PARTIAL),
        "cut": Told(Verdict.FAIL),
    }
    lines = summary({"peer": told, "ours": {"500": Told(Verdict.PASS)}}).splitlines()
    assert ["| peer | 1 | 1 | 2 | stall, cut |", "| ours | 1 | 0 | 0 | none |"] == lines[2:]
