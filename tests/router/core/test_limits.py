"""Time limits that a client names in headers."""

from __future__ import annotations

from math import inf

import pytest

from router.core.limits import BETWEEN_TOKENS, FIRST_TOKEN, TOTAL, BadLimit, Patience, read


def test_without_headers_the_client_has_all_the_time_there_is() -> None:
    assert Patience() == read({}, arrived=5.0)


def test_first_token_and_total_count_from_arrival() -> None:
    patience = read({FIRST_TOKEN: b"2.5", BETWEEN_TOKENS: b"3", TOTAL: b"60"}, arrived=100.0)
    assert Patience(first_token_until=102.5, between_tokens_s=3.0, total_until=160.0) == patience


def test_one_limit_says_nothing_about_the_others() -> None:
    assert Patience(first_token_until=inf, between_tokens_s=1.0, total_until=inf) == read(
        {BETWEEN_TOKENS: b"1"}, arrived=9.0
    )


@pytest.mark.parametrize(
    "value", [b"", b"0", b"0.0", b"-1", b"+1", b"1e3", b"nan", b"inf", b"1_0", b" 1", b"soon", b"1,5"]
)
@pytest.mark.parametrize("name", [FIRST_TOKEN, BETWEEN_TOKENS, TOTAL])
def test_what_is_no_time_is_refused_by_the_name_of_its_header(name: bytes, value: bytes) -> None:
    with pytest.raises(BadLimit, match="must be a number of seconds above 0") as caught:
        read({name: value}, arrived=0.0)
    assert name.decode() == caught.value.name
