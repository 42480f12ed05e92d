import pytest
from hypothesis import given
from hypothesis import strategies as st

from control.core import durations


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30s", 30),
        ("5m", 300),
        ("1h30m", 5400),
        ("250ms", 0.25),
        ("1.5s", 1.5),
        ("2d", 172800),
        ("45", 45),
        ("1h 5m", 3900),
    ],
)
def test_a_duration_is_read_as_people_write_it(text: str, seconds: float) -> None:
    assert seconds == pytest.approx(durations.parse(text))


@pytest.mark.parametrize("text", ["", "soon", "5 minutes", "-3s", "5x", "s", "1.2.3s"])
def test_what_is_no_duration_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="write it like 30s"):
        durations.parse(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0421, "42 ms"),
        (1.25, "1.2 s"),
        (59.9, "59.9 s"),
        (60, "1m 00s"),
        (184.9, "3m 04s"),
        (3661, "1h 01m"),
        (90000, "1d 01h"),
        (-1, "-"),
    ],
)
def test_a_duration_is_shown_with_two_units_at_most(seconds: float, text: str) -> None:
    assert text == durations.show(seconds)


@given(st.integers(1, 59), st.integers(1, 59))
def test_minutes_and_seconds_add_up(minutes: int, seconds: int) -> None:
    assert minutes * 60 + seconds == durations.parse(f"{minutes}m{seconds}s")
