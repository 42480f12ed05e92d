"""Tables and plots say what was measured, in ratios to nginx, and mark what the harness limited."""

from __future__ import annotations

import xml.etree.ElementTree as ET

from loadtest import report
from loadtest.compare import main, medians
from loadtest.peers import roster

FIGURES = {
    "cpu_us_per_event": 24.0,
    "relay_ms_p50": 0.1,
    "relay_ms_p99": 0.4,
    "relay_ms_p999": 1.2,
    "first_event_ms_p50": 0.5,
    "first_event_ms_p99": 1.0,
    "cpu_us_per_plain": 20.0,
    "plain_per_s": 40_000.0,
    "idle_mib": 12.0,
    "kib_per_stream_1000": 18.0,
    "ceiling_events_per_s": 90_000.0,
    "ceiling_cpu_share": 1.0,
    "ceiling_cpu_us_per_event": 11.0,
    "lone_first_event_ms_p50": 0.2,
    "dense_relay_ms_p50": 0.1,
    "errors": 0.0,
}
SLOWER = {**FIGURES, "cpu_us_per_event": 36.0, "first_event_ms_p99": 4.0, "ceiling_cpu_share": 0.5}


def _result(*rounds: dict[str, dict[str, float]]) -> report.Result:
    return report.Result(
        machine="test", command="python -m x", about={"smg": "Rust"}, rounds=list(rounds), medians=medians(rounds)
    )


def test_medians_are_taken_over_the_rounds_that_have_a_figure() -> None:
    rounds = [{"nginx": {**FIGURES, "cpu_us_per_event": us}} for us in (20.0, 50.0, 24.0)]
    found = medians([*rounds, {}])
    assert 24.0 == found["nginx"]["cpu_us_per_event"]


def test_the_harnesss_own_time_is_taken_off_first_events() -> None:
    found = medians([{"direct": FIGURES, "smg": SLOWER}])
    assert 3.0 == found["smg"]["added_first_event_ms_p99"]
    assert 0.0 == found["direct"]["added_first_event_ms_p99"]


def test_errors_of_all_rounds_are_added_up() -> None:
    found = medians([{"smg": {**FIGURES, "errors": 2.0}}, {"smg": {**FIGURES, "errors": 3.0}}, {"smg": FIGURES}])
    assert 5.0 == found["smg"]["errors"]


def test_the_table_gives_ratios_to_nginx_and_marks_what_the_harness_limited() -> None:
    text = report.markdown(_result({"nginx": FIGURES, "smg": SLOWER}))
    assert "| smg | 36.0 (1.50) | 0.10 / 0.40 / 1.20 |" in text
    assert "| >90000 (11.0) |" in text
    assert "| 90000 (11.0) |" in text


def test_a_router_that_waits_for_acknowledgements_is_named() -> None:
    waiting = {**FIGURES, "lone_first_event_ms_p50": 44.0}
    assert "to the engine" in report.markdown(_result({"sglang-router": waiting}))


def test_a_figure_that_was_not_measured_is_not_invented() -> None:
    partial = {name: value for name, value in FIGURES.items() if name != "kib_per_stream_1000"}
    assert "n/a" in report.markdown(_result({"litellm": partial}))


def test_the_plot_is_well_formed_and_holds_every_router_but_the_harness() -> None:
    root = ET.fromstring(  # noqa: S314 - our own text
        report.svg(_result({"direct": FIGURES, "nginx": FIGURES, "smg": SLOWER}))
    )
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert 4 == texts.count("smg")
    assert 0 == texts.count("direct")


def test_an_unknown_contestant_is_refused_with_the_known_ones() -> None:
    assert 2 == main(["--only", "traefik"])


def test_the_roster_keeps_its_order_whatever_the_order_asked_for() -> None:
    assert ["switchyard", "nginx", "smg"] == [one.name for one in roster.named(["smg", "nginx", "switchyard"])]
    assert len(roster.ALL) == len({one.name for one in roster.ALL})


def test_a_question_without_an_answer_leaves_the_other_figures() -> None:
    partial = {name: value for name, value in FIGURES.items() if not name.startswith("first_event")}
    found = medians([{"litellm": partial, "nginx": FIGURES}])
    assert 24.0 == found["litellm"]["cpu_us_per_event"]
    assert "added_first_event_ms_p99" not in found["litellm"]
    assert "| litellm | 24.0 (1.00) | 0.10 / 0.40 / 1.20 | n/a / n/a |" in report.markdown(
        _result({"litellm": partial, "nginx": FIGURES})
    )


def test_figures_from_a_busy_machine_are_called_disturbed() -> None:
    busy = {**FIGURES, "others_share": 0.4}
    assert "Not on an idle machine" in report.markdown(_result({"nginx": FIGURES, "smg": busy}))
    assert "Not on an idle machine" not in report.markdown(_result({"nginx": FIGURES, "smg": SLOWER}))
