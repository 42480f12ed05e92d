import pytest
from hypothesis import given
from hypothesis import strategies as st

from control.core.sse import Answer, Broken, told

ROLE = b'data: {"choices": [{"delta": {"role": "assistant"}}]}\n\n'
HELLO = b'data: {"choices": [{"delta": {"content": "Hel"}}]}\n\n'
LO = b'data: {"choices": [{"delta": {"content": "lo \xc3\xa9"}}]}\n\n'
STOP = b'data: {"choices": [{"delta": {}, "finish_reason": "stop"}]}\n\n'
USAGE = b'data: {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 9}}\n\n'
DONE = b"data: [DONE]\n\n"
WHOLE = ROLE + HELLO + b": a comment\n\n" + LO + STOP + USAGE + DONE


@given(st.lists(st.integers(0, len(WHOLE)), max_size=8))
def test_the_text_is_the_same_however_the_bytes_arrive(cuts: list[int]) -> None:
    answer, text, begin = Answer(0.0), "", 0
    for cut in (*sorted(cuts), len(WHOLE)):
        text += answer.feed(WHOLE[begin:cut], now=1.0)
        begin = cut
    assert "Hello é" == text
    assert 9 == answer.figures().tokens


def test_the_first_token_is_the_first_text_and_speed_is_that_of_the_rest() -> None:
    answer = Answer(asked_at=10.0)
    answer.feed(ROLE, now=10.5)
    answer.feed(HELLO, now=11.0)
    answer.feed(LO, now=15.0)
    answer.feed(STOP + USAGE + DONE, now=15.1)
    figures = answer.figures()
    assert pytest.approx(1.0) == figures.ttft_s
    assert pytest.approx(2.0) == figures.tokens_per_s
    assert "tiny: first token after 1.0 s, 9 tokens at 2 tokens/s" == told("tiny", figures)


def test_an_engine_that_tells_no_usage_has_its_events_counted() -> None:
    answer = Answer(0.0)
    answer.feed(HELLO + LO + STOP + DONE, now=1.0)
    assert 2 == answer.figures().tokens


@pytest.mark.parametrize("end", [b"", STOP, DONE], ids=["cut", "no [DONE]", "no finish_reason"])
def test_an_answer_that_ends_early_is_broken(end: bytes) -> None:
    answer = Answer(0.0)
    answer.feed(HELLO + end, now=1.0)
    with pytest.raises(Broken, match="broke off"):
        answer.figures()


def test_an_error_in_the_stream_is_told_in_its_own_words() -> None:
    with pytest.raises(Broken, match="the engine is gone"):
        Answer(0.0).feed(b'data: {"error": {"message": "the engine is gone", "code": 502}}\n\n', now=1.0)


def test_an_event_that_is_not_json_is_broken() -> None:
    with pytest.raises(Broken, match="not JSON"):
        Answer(0.0).feed(b"data: {oops\n\n", now=1.0)


def test_lines_that_end_with_carriage_returns_are_read_too() -> None:
    answer = Answer(0.0)
    data = (HELLO + STOP + DONE).replace(b"\n", b"\r\n")
    assert "Hel" == "".join(answer.feed(data[i : i + 1], now=1.0) for i in range(len(data)))
    assert "stop" == answer.figures().finish


def test_an_answer_cut_by_its_token_limit_says_so() -> None:
    answer = Answer(0.0)
    answer.feed(HELLO + STOP.replace(b"stop", b"length") + DONE, now=1.0)
    assert told("m", answer.figures()).endswith("ended by length")
