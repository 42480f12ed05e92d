from typing import Any

from control.core.usage_sums import by_tenant_and_model
from wire.usage import AttemptUsage, UsageRecord


def record(event_id: str, **changes: Any) -> UsageRecord:
    fields: dict[str, Any] = {
        "event_id": event_id,
        "request_id": event_id,
        "region": "local",
        "router": "r",
        "tenant": "acme",
        "key": "k",
        "model": "m",
        "endpoint": "/v1/chat/completions",
        "stream": True,
        "arrived_unix_ns": 100,
        "duration_s": 1.0,
        "ttft_s": 0.1,
        "held_s": 0.0,
        "code": "ok",
        "status": 200,
        "prompt_tokens": 10,
        "cached_tokens": 4,
        "output_tokens": 5,
        "token_source": "engine",
        "attempts": [],
    }
    return UsageRecord(**(fields | changes))


def attempt(replica: str) -> AttemptUsage:
    return AttemptUsage(
        replica=replica, node="n", generation=1, kind="complete", code="", started_s=0.0, duration_s=1.0
    )


def test_tokens_are_summed_by_tenant_and_model() -> None:
    sums = by_tenant_and_model([record("1"), record("2", output_tokens=7), record("3", tenant="zoo")])
    assert [("acme", 2, 20, 8, 12), ("zoo", 1, 10, 4, 5)] == [
        (s.tenant, s.requests, s.prompt_tokens, s.cached_tokens, s.output_tokens) for s in sums
    ]


def test_a_record_that_is_there_twice_counts_once() -> None:
    assert 1 == by_tenant_and_model([record("1"), record("1")])[0].requests


def test_failures_and_retries_are_counted() -> None:
    attempts = [attempt("a"), attempt("b")]
    (total,) = by_tenant_and_model([record("1", status=503), record("2", attempts=attempts)])
    assert (2, 1, 1) == (total.requests, total.failed, total.retried)


def test_requests_before_the_time_asked_for_are_left_out() -> None:
    assert [] == by_tenant_and_model([record("1")], since_unix_ns=101)


def test_unknown_cached_tokens_do_not_count_against_the_known() -> None:
    assert 4 == by_tenant_and_model([record("1"), record("2", cached_tokens=-1)])[0].cached_tokens
