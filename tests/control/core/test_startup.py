from hypothesis import given
from hypothesis import strategies as st

from control.core.startup import Row, line, plain


def _no_paint(_state: str, text: str) -> str:
    return text


def test_time_counts_from_the_first_moving_state_to_the_first_resting_one() -> None:
    row = Row("node-1")
    row.move("starting", "", 10.0)
    row.move("loading", "1 loading", 11.0)
    row.move("ready", "2 ready", 12.5)
    assert 2.5 == row.took_s
    assert "node-1  ready     2 ready (2.5 s)" == plain(row, name_width=6)


def test_a_row_that_rests_keeps_its_time_when_its_detail_changes() -> None:
    row = Row("node-1")
    row.move("starting", "", 0.0)
    row.move("ready", "", 1.0)
    row.move("ready", "more", 9.0)
    assert 1.0 == row.took_s


def test_a_moving_row_shows_the_seconds_so_far() -> None:
    row = Row("router")
    row.move("starting", "soon", 1.0)
    assert "router    starting    2.0 s  soon" in line(row, now=3.0, name_width=8, width=60, paint=_no_paint)


@given(st.text("abc é…", max_size=200), st.integers(40, 120), st.floats(0, 1e6))
def test_a_line_never_wraps(detail: str, width: int, now: float) -> None:
    row = Row("registry")
    row.move("starting", detail, 0.0)
    assert width >= len(line(row, now=now, name_width=8, width=width, paint=_no_paint))
