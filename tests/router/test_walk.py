"""One request through the whole router, on real sockets."""

from __future__ import annotations

import asyncio
import json

import httpx
import msgspec
import pytest

from tests.router.harness import (
    ANSWER,
    DONE,
    KEY,
    USAGE,
    WHOLE,
    Engine,
    Exchange,
    chat_body,
    chat_event,
    event,
    plays,
    router_with,
    running_router,
    until,
)
from wire.records import ApiKey, ModelPolicy, ModelState, Task, Tenant, key

SHOWN = b"".join([*ANSWER[:3], DONE])


def error_of(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


async def test_a_stream_reaches_the_client_as_the_engine_sent_it_without_the_usage_it_did_not_ask_for() -> None:
    async with router_with(plays) as (router, engines):
        answer = await router.chat()
        assert 200 == answer.status_code
        assert "text/event-stream; charset=utf-8" == answer.headers["content-type"]
        assert SHOWN == answer.content
        assert b'"stream_options":{"include_usage":true}' in engines[0].exchanges[0].body


async def test_a_client_that_asks_for_usage_gets_it() -> None:
    async with router_with(plays) as (router, _):
        answer = await router.chat(stream_options={"include_usage": True})
        assert b"".join(ANSWER) == answer.content


async def test_a_whole_answer_reaches_the_client_unchanged() -> None:
    async with router_with(plays) as (router, _):
        answer = await router.chat(stream=False)
        assert WHOLE == answer.content
        assert [(5, 3, "engine")] == [(r.prompt_tokens, r.output_tokens, r.token_source) for r in router.records()]


async def test_fields_the_router_does_not_know_pass_through_untouched() -> None:
    async with router_with(plays) as (router, engines):
        await router.chat(stream=False, vllm_xargs={"a": [1, 2.50]}, cache_salt="é")
        sent = json.loads(engines[0].exchanges[0].body)
        assert ({"a": [1, 2.5]}, "é") == (sent["vllm_xargs"], sent["cache_salt"])


async def test_request_id_and_trace_reach_the_engine_and_the_key_does_not() -> None:
    async with router_with(plays) as (router, engines):
        trace = "0af7651916cd43dd8448eb211c80319c"
        headers = {"x-request-id": "abc-1", "traceparent": f"00-{trace}-b7ad6b7169203331-01", "tracestate": "x=1"}
        answer = await router.chat(headers=headers)
        asked = engines[0].exchanges[0]
        assert ("abc-1", "abc-1") == (answer.headers["x-request-id"], asked.header("x-request-id"))
        assert f"00-{trace}-" == asked.header("traceparent")[:36]
        assert "b7ad6b7169203331" not in asked.header("traceparent")
        assert "x=1" == asked.header("tracestate")
        assert KEY.encode() not in asked.head


async def test_a_request_id_that_could_break_a_header_or_a_log_is_replaced() -> None:
    async with router_with(plays) as (router, _):
        answer = await router.chat(headers={"x-request-id": "a b; c"})
        assert answer.headers["x-request-id"].startswith("req-")


@pytest.mark.parametrize("authorization", ["", "Bearer wrong", "Basic abc", "Bearer " + "x" * 600])
async def test_a_request_without_a_known_key_is_refused_before_its_body_is_read(authorization: str) -> None:
    async with router_with(plays) as (router, engines):
        answer = await router.chat(headers={"authorization": authorization})
        assert (401, "invalid_api_key") == error_of(answer)
        assert [] == engines[0].exchanges


async def test_a_revoked_an_expired_and_a_disabled_key_are_refused() -> None:
    async with router_with(plays) as (router, _):
        own = next(iter(router.app.watch.view.keys.values()))
        for change in ({"revoked": True}, {"expires_unix_ns": 1}):
            changed = msgspec.structs.replace(own, **change)
            await router.put(changed)
            await until(lambda changed=changed: router.app.watch.view.keys[own.sha256] == changed)  # type: ignore[misc]
            assert (401, "invalid_api_key") == error_of(await router.chat())
        await router.put(own, Tenant(tenant="acme", disabled=True))
        await until(lambda: router.app.watch.view.fleet.tenants["acme"].disabled)
        assert (401, "invalid_api_key") == error_of(await router.chat())


async def test_models_lists_only_what_the_tenant_may_use_and_the_rest_does_not_exist_for_it() -> None:
    async with router_with(plays) as (router, engines):
        await router.add_engine(engines[0], name="other.0", model="secret")
        await router.put(Tenant(tenant="acme", models=("tiny",)))
        await until(lambda: router.app.watch.view.fleet.tenants["acme"].models == ("tiny",))
        listed = (await router.client.get("/v1/models")).json()
        assert ["tiny"] == [m["id"] for m in listed["data"]]
        assert 200 == (await router.client.get("/v1/models/tiny")).status_code
        assert (404, "model_not_found") == error_of(await router.client.get("/v1/models/secret"))
        assert (404, "model_not_found") == error_of(await router.chat(model="secret"))
        assert (404, "model_not_found") == error_of(await router.chat(model="nowhere"))


async def test_a_model_whose_last_replica_just_vanished_is_unavailable_and_not_unknown() -> None:
    async with router_with(plays) as (router, engines):
        await router.add_engine(engines[0], name="other.0", model="secret")
        await router.put(Tenant(tenant="acme", models=("tiny",)))
        for gone in router.app.watch.view.fleet.replicas.values():
            await router.registry.delete(key(gone))
        await until(lambda: not router.app.watch.view.models)
        answer = await router.chat()
        assert (503, "no_replica") == error_of(answer)
        assert "5" == answer.headers["retry-after"]
        assert "The last replica of 'tiny' left the registry" in answer.text
        assert (404, "model_not_found") == error_of(await router.chat(model="secret"))


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"{", "not valid JSON"),
        (b"[]", "body"),
        (b"{}", "`model` is missing"),
        (b'{"model":1}', "model"),
        (b'{"model":"tiny","stream":"maybe"}', "stream"),
        (b'{"model":"tiny","n":{}}', "n"),
        (b'\xff\xfe{"model":"tiny"}', "not valid JSON"),
    ],
)
async def test_a_body_that_cannot_be_meant_is_a_400_that_says_why(body: bytes, said: str) -> None:
    async with router_with(plays) as (router, engines):
        answer = await router.client.post("/v1/chat/completions", content=body)
        assert (400, "invalid_request") == error_of(answer)
        assert said in answer.json()["error"]["message"]
        assert [] == engines[0].exchanges


async def test_a_body_over_the_limit_is_a_413_declared_or_not() -> None:
    async with router_with(plays, body_limit_bytes=2000) as (router, _):
        big = json.dumps({"model": "tiny", "messages": "x" * 3000}).encode()

        async def chunks():  # type: ignore[no-untyped-def]
            for at in range(0, len(big), 500):
                yield big[at : at + 500]

        assert (413, "too_large") == error_of(await router.client.post("/v1/chat/completions", content=big))
        assert (413, "too_large") == error_of(await router.client.post("/v1/chat/completions", content=chunks()))
        assert 200 == (await router.chat()).status_code


async def test_other_paths_and_methods_get_errors_of_openais_shape() -> None:
    async with router_with(plays) as (router, _):
        assert (404, "not_found") == error_of(await router.client.post("/v1/audio/speech"))
        assert (404, "not_found") == error_of(await router.client.get("/nothing"))
        refused = await router.client.get("/v1/chat/completions", headers={"x-request-id": "mine"})
        assert (405, "method_not_allowed") == error_of(refused)
        assert ("POST", "mine") == (refused.headers["allow"], refused.headers["x-request-id"])


async def test_the_engines_own_400_is_passed_on_and_tried_nowhere_else() -> None:
    said = b'{"error":{"message":"too long","type":"BadRequestError","param":"input_tokens","code":400}}'

    async def rejects(exchange: Exchange) -> None:
        await exchange.answer(400, said)

    async with router_with(rejects, rejects) as (router, engines):
        answer = await router.chat()
        assert (400, said) == (answer.status_code, answer.content)
        assert 1 == sum(len(e.exchanges) for e in engines)
        assert ["engine_rejected"] == [r.code for r in router.records()]


async def refuses(exchange: Exchange) -> None:
    exchange.cut()


async def errs(exchange: Exchange) -> None:
    await exchange.answer(500, b'{"error":{"message":"boom","type":"x","param":null,"code":500}}')


async def busy(exchange: Exchange) -> None:
    await exchange.answer(503, b'{"error":{"message":"busy","type":"x","param":null,"code":503}}', "retry-after: 7")


async def error_event(exchange: Exchange) -> None:
    await exchange.stream([event('{"error": {"message": "EngineCore died", "code": 500}}'), DONE])


async def empty(exchange: Exchange) -> None:
    await exchange.stream([DONE])


async def malformed(exchange: Exchange) -> None:
    await exchange.stream([event("{nonsense")])


@pytest.mark.parametrize("fault", [refuses, errs, busy, error_event, empty, malformed], ids=lambda f: f.__name__)
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
async def test_before_the_first_byte_a_failed_attempt_goes_to_another_replica(fault, stream: bool) -> None:  # type: ignore[no-untyped-def]
    async with router_with(fault, plays) as (router, engines):
        for _ in range(8):  # ties are broken by chance: some of these meet the faulty engine first
            answer = await router.chat(stream=stream)
            assert (200, SHOWN if stream else WHOLE) == (answer.status_code, answer.content)
        assert len(engines[0].exchanges) >= 1 or len(engines[1].exchanges) == 8
        assert {"ok"} == {r.code for r in router.records()}
        assert 0 == sum(router.counts().values())


async def test_when_every_replica_fails_the_client_is_told_why_the_last_one_did() -> None:
    async with router_with(busy, busy) as (router, engines):
        answer = await router.chat()
        assert (503, "engine_busy") == error_of(answer)
        assert "7" == answer.headers["retry-after"]
        assert 2 == sum(len(e.exchanges) for e in engines)
        assert [2] == [len(r.attempts) for r in router.records()]


async def test_no_replica_of_a_known_model_is_a_503_with_retry_after() -> None:
    async with running_router(hold_limit_s=0.0) as router, Engine(plays) as engine:
        await router.add_engine(engine, state=ModelState.FAILED)
        answer = await router.chat()
        assert (503, "no_replica") == error_of(answer)
        assert int(answer.headers["retry-after"]) >= 1


async def test_a_request_for_a_loading_model_is_held_until_it_is_ready() -> None:
    async with running_router() as router, Engine(plays) as engine:
        replica = await router.add_engine(engine, state=ModelState.LOADING)
        async with asyncio.TaskGroup() as group:
            asked = group.create_task(router.chat())
            await until(lambda: router.app.news.waiting == 1)
            await router.put(msgspec.structs.replace(replica, state=ModelState.READY))
        assert SHOWN == asked.result().content
        assert router.records()[0].held_s > 0


async def test_a_stream_that_breaks_ends_with_one_error_event_and_no_done() -> None:
    async def breaks(exchange: Exchange) -> None:
        await exchange.stream(ANSWER[:2], end=False)
        exchange.cut()

    async with router_with(breaks, resume_limit_s=0.2) as (router, _):
        answer = await router.chat()
        assert answer.content.startswith(b"".join(ANSWER[:2]) + b'data: {"error":')
        assert 1 == answer.content.count(b'"error"')
        assert b"[DONE]" not in answer.content
        record = router.records()[0]
        assert ("engine_broke", 2, "estimated") == (record.code, record.output_tokens, record.token_source)


async def test_a_stream_that_nobody_asked_for_and_that_breaks_is_not_followed_by_another_answer() -> None:
    async def streams_and_breaks(exchange: Exchange) -> None:
        await exchange.stream(ANSWER[:1], end=False)
        exchange.cut()

    async with router_with(streams_and_breaks, streams_and_breaks) as (router, engines):
        answer = await router.chat(stream=False)
        assert (1, 1) == (answer.content.count(b'"one"'), answer.content.count(b'"error"'))
        assert 1 == sum(len(e.exchanges) for e in engines)


async def test_a_stream_that_lost_only_its_done_is_complete() -> None:
    async def no_done(exchange: Exchange) -> None:
        await exchange.stream(ANSWER[:4])

    async with router_with(no_done) as (router, _):
        assert SHOWN == (await router.chat()).content


async def test_a_kept_connection_that_the_engine_closed_is_replaced_at_no_ones_cost() -> None:
    async def closes_after(exchange: Exchange) -> None:
        await exchange.stream(ANSWER)
        await exchange.writer.drain()
        exchange.writer.close()

    async with router_with(closes_after) as (router, engines):
        for _ in range(5):
            assert SHOWN == (await router.chat()).content
        assert 5 == engines[0].connections
        assert [1] * 5 == [len(r.attempts) for r in router.records()]


async def test_connections_to_engines_are_kept_and_used_again() -> None:
    async with router_with(plays) as (router, engines):
        for _ in range(5):
            await router.chat()
        assert (1, 5) == (engines[0].connections, len(engines[0].exchanges))


async def test_continuous_usage_does_not_hold_the_stream_back() -> None:
    running = ANSWER[0].replace(b'"finish_reason":null}]', b'"finish_reason":null}],"usage":{"prompt_tokens":5}')

    async def shows_first(exchange: Exchange) -> None:
        exchange.start_stream()
        await exchange.send(running)
        await exchange.client_left()

    async with router_with(shows_first) as (router, _):
        options = {"include_usage": True, "continuous_usage_stats": True}
        request = {**chat_body(), "stream_options": options}
        async with router.client.stream("POST", "/v1/chat/completions", json=request) as answer:
            assert running == await anext(answer.aiter_raw())


@pytest.mark.parametrize("size", [0, 100, 5_000, 50_000, 900_000])
async def test_a_prompt_of_any_size_is_placed(size: int) -> None:
    async with router_with(plays) as (router, _):
        messages = [{"role": "user", "content": "x" * size}]
        assert 200 == (await router.chat(messages=messages)).status_code


async def test_a_model_asked_for_what_it_does_not_serve_is_a_mistake_and_no_outage() -> None:
    async with router_with(plays) as (router, engines):
        await router.add_engine(engines[0], name="e.0", model="embedder", task=Task.EMBED)
        answer = await router.chat(model="embedder")
        error = answer.json()["error"]
        assert (400, "model", False) == (answer.status_code, error["param"], "retry-after" in answer.headers)
        assert "The model 'embedder' serves embeddings, not chat or completions." == error["message"]


@pytest.mark.parametrize(("value", "shown"), [("1", True), ("true", True), ("0", False), ("false", False), ("", False)])
async def test_a_header_that_switches_something_on_can_say_no(value: str, shown: bool) -> None:
    async with router_with(plays) as (router, _):
        answer = await router.chat(headers={"x-switchyard-explain": value})
        assert shown == ("x-switchyard-decision" in answer.headers)


async def test_a_draining_router_finishes_its_streams_and_takes_no_new_ones() -> None:
    go_on = asyncio.Event()

    async def waits(exchange: Exchange) -> None:
        exchange.start_stream()
        await exchange.send(ANSWER[0])
        await go_on.wait()
        for data in ANSWER[1:]:
            await exchange.send(data)
        exchange.writer.write(b"0\r\n\r\n")

    async with router_with(waits, drain_limit_s=20.0) as (router, _):
        async with router.client.stream("POST", "/v1/chat/completions", json=chat_body()) as answer:
            parts = answer.aiter_raw()
            got = await anext(parts)
            router.app.shutdown.ask()
            await until(lambda: router.app.server.should_exit)
            assert 503 == (await _ready_of(router.port))
            go_on.set()
            async for part in parts:
                got += part
        assert SHOWN == got


async def _ready_of(port: int) -> int:
    """Readiness as a probe would see it: a closed listener counts as 503."""
    try:
        async with httpx.AsyncClient() as client:
            return (await client.get(f"http://127.0.0.1:{port}/ready")).status_code
    except httpx.ConnectError:
        return 503


async def test_streams_that_outlive_the_drain_limit_end_with_an_error_event() -> None:
    async def endless(exchange: Exchange) -> None:
        exchange.start_stream()
        await exchange.send(ANSWER[0])
        await exchange.client_left()

    async with router_with(endless, drain_limit_s=0.1) as (router, _):
        async with router.client.stream("POST", "/v1/chat/completions", json=chat_body()) as answer:
            parts = answer.aiter_raw()
            got = await anext(parts)
            router.app.shutdown.ask()
            async for part in parts:
                got += part
        assert b'"code":"draining"' in got
        assert b"[DONE]" not in got


async def test_an_adapter_named_by_policy_is_served_by_its_base_model() -> None:
    async with router_with(plays) as (router, engines):
        await router.put(ModelPolicy(model="tiny-lora", adapter_of="tiny"))
        await until(lambda: "tiny-lora" in router.app.watch.view.models)
        assert 200 == (await router.chat(model="tiny-lora")).status_code
        assert 1 == len(engines[0].exchanges)


async def test_metrics_count_what_happened() -> None:
    async with router_with(plays) as (router, _):
        await router.chat()
        await router.chat(model="nowhere")
        text = (await router.client.get("/metrics")).text
        assert 'switchyard_requests_total{code="ok",endpoint="chat",model="tiny"} 1.0' in text
        assert 'switchyard_requests_total{code="model_unknown",endpoint="chat",model=""} 1.0' in text
        assert 'switchyard_tokens_total{kind="output",model="tiny"} 3.0' in text


async def test_keys_are_looked_up_by_hash_only() -> None:
    async with router_with(plays) as (router, _):
        assert all(isinstance(k, ApiKey) and KEY not in str(k) for k in router.app.watch.view.keys.values())


def test_the_usage_event_is_what_the_engine_really_sends() -> None:
    assert b'"choices":[],' in USAGE
    assert chat_event("x").endswith(b'"finish_reason":null}]}\n\n')
