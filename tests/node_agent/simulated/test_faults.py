"""Each fault as a client meets it, over the wire."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest

from node_agent.engines.simulated.profiles import PROFILES

from .support import chat, completion, engine, ids_of, text_of, until

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


async def raw(e, body) -> bytes:
    """All that a bare client reads until the connection ends."""
    reader, _ = await e.connect(CHAT, body)
    async with asyncio.timeout(10):
        return await reader.read()


def data_events(stream: bytes) -> int:
    return stream.count(b'"delta":{"content":')


@pytest.mark.parametrize("after", [0, 1, 7])
async def test_cut_closes_after_so_many_tokens(after):
    async with engine() as e:
        await e.fault("cut", after_tokens=after, remaining=1)
        stream = await raw(e, chat(stream=True, ignore_eos=True, max_tokens=20))
        assert (after, False, False) == (data_events(stream), b"[DONE]" in stream, stream.endswith(b"0\r\n\r\n"))
        whole = await e.events(CHAT, chat(max_tokens=3))
        assert "[DONE]" == whole[-1]
        stats = await e.stats()
        assert (1, 1, 0) == (stats["aborted"], stats["finished"], stats["active"])


async def test_reset_ends_the_connection_hard():
    async with engine() as e:
        await e.fault("reset", after_tokens=3)
        with pytest.raises(ConnectionResetError):
            await raw(e, chat(stream=True))


async def test_a_whole_answer_can_be_cut_too():
    async with engine() as e:
        await e.fault("cut", after_tokens=3)
        with pytest.raises(httpx.RemoteProtocolError):
            await e.post(CHAT, chat())


async def test_stall_keeps_the_connection_open_and_silent_until_the_client_leaves():
    async with engine() as e:
        await e.fault("stall", after_tokens=4)
        reader, writer = await e.connect(CHAT, chat(stream=True, max_tokens=50, ignore_eos=True))
        await until(lambda: 1 == e.replica.stats.active and not e.replica.batch.busy)
        assert 4 == data_events(await reader.read(100_000))
        assert 1 == e.replica.stats.active
        writer.close()
        await until(lambda: 0 == e.replica.stats.active)
        assert 1 == e.replica.stats.aborted


@pytest.mark.parametrize(
    ("status", "type_"), [(429, "RateLimitError"), (500, "InternalServerError"), (503, "Service Unavailable")]
)
async def test_an_error_status_has_vllms_body(status, type_):
    async with engine() as e:
        await e.fault("error", status=status, retry_after_s=7, remaining=1)
        response = await e.post(CHAT, chat())
        assert (status, "7") == (response.status_code, response.headers["retry-after"])
        assert (status, type_) == (response.json()["error"]["code"], response.json()["error"]["type"])
        assert 200 == (await e.post(CHAT, chat())).status_code
        stats = await e.stats()
        assert (1, 1) == (stats["refused"], stats["accepted"])


async def test_faults_meet_embeddings_too():
    async with engine(task="embed") as e:
        await e.fault("error", status=503)
        assert 503 == (await e.post("/v1/embeddings", {"input": "x"})).status_code


async def test_hang_reads_and_never_answers():
    async with engine() as e:
        await e.fault("hang", remaining=1)
        reader, _ = await e.connect(CHAT, chat())
        await until(lambda: 1 == e.replica.stats.refused)
        assert 200 == (await e.post(CHAT, chat())).status_code
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(1), 0.05)


async def test_a_slow_first_token_is_only_late():
    async with engine() as e:
        plain = await e.events(CHAT, chat())
        await e.fault("delay", delay_s=0.2)
        began = e.replica.now()
        assert text_of(plain) == text_of(await e.events(CHAT, chat()))
        assert e.replica.now() - began >= 0.19


async def test_a_malformed_event_does_not_end_the_stream():
    async with engine() as e:
        await e.fault("malformed", after_tokens=2)
        reader, _ = await e.connect(CHAT, chat(stream=True, max_tokens=5, ignore_eos=True))
        stream = await reader.readuntil(b"0\r\n\r\n")
        events = [part.split(b"\n\n")[0] for part in stream.split(b"data: ")[1:]]
        broken = []
        for event in events[:-1]:
            try:
                json.loads(event)
            except ValueError:
                broken.append(event)
        assert (1, 5, b"[DONE]") == (len(broken), data_events(stream), events[-1])


async def test_a_dead_engine_core_says_so_in_the_stream_and_ends_it_cleanly():
    async with engine() as e:
        await e.fault("engine_dead", after_tokens=2)
        events = await e.events(CHAT, chat())
        assert ("[DONE]", 500) == (events[-1], events[-2]["error"]["code"])
        assert "InternalServerError" == events[-2]["error"]["type"]
        assert 500 == (await e.post(CHAT, chat())).status_code
        assert 2 == (await e.stats())["failed"]


@pytest.mark.parametrize(("kind", "reason"), [("abort", "abort"), ("content_filter", "content_filter")])
async def test_an_answer_can_end_for_an_unusual_reason(kind, reason):
    async with engine() as e:
        await e.fault(kind, after_tokens=3)
        for path, body in (
            (CHAT, chat(return_token_ids=True)),
            (TEXT, completion(return_token_ids=True, ignore_eos=True)),
        ):
            events = await e.events(path, body)
            assert [reason, "[DONE]"] == [events[-2]["choices"][0]["finish_reason"], events[-1]]
            assert 3 == len(ids_of(events))
        whole = (await e.post(CHAT, chat())).json()
        assert (reason, 3) == (whole["choices"][0]["finish_reason"], whole["usage"]["completion_tokens"])


async def test_an_empty_stream_is_only_done():
    async with engine() as e:
        await e.fault("empty")
        assert ["[DONE]"] == await e.events(CHAT, chat())


async def test_done_can_be_missing_from_an_otherwise_good_stream():
    async with engine() as e:
        await e.fault("no_done")
        events = await e.events(CHAT, chat(max_tokens=3, ignore_eos=True))
        assert "length" == events[-1]["choices"][0]["finish_reason"]


async def test_a_context_length_error_can_be_had_for_any_prompt():
    async with engine() as e:
        await e.fault("context_length")
        response = await e.post(CHAT, chat())
        assert (400, "input_tokens") == (response.status_code, response.json()["error"]["param"])


async def test_refused_connections_come_back_by_themselves():
    async with engine() as e:
        await e.fault("refuse", duration_s=0.2)

        async def refused() -> bool:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", e.host.port)
            except ConnectionRefusedError:
                return True
            writer.close()
            await writer.wait_closed()
            return False

        async def accepted() -> bool:
            return not await refused()

        await until(refused)
        assert 200 == (await e.client.get("/health")).status_code
        await until(accepted)


async def test_a_crash_cuts_everything_and_forgets_everything():
    async with engine(profile=PROFILES["paced"]) as e:
        reader, _ = await e.connect(CHAT, chat(stream=True, max_tokens=1000, ignore_eos=True))
        await until(lambda: e.replica.batch.counters().generation_tokens > 2)
        before = e.replica.batch
        await e.fault("crash", duration_s=0.1)
        stream = await reader.read()
        assert not stream.endswith(b"0\r\n\r\n")
        assert before is not e.replica.batch

        async def back() -> bool:
            try:
                return 0 == (await e.stats())["accepted"]
            except httpx.TransportError:
                return False

        await until(back)
        assert 1 == (await e.stats())["connections"]


async def test_a_frozen_engine_is_healthy_and_silent_until_it_thaws():
    async with engine() as e:
        plain = await e.events(CHAT, chat())
        await e.fault("freeze", id="ice")
        stream = asyncio.gather(e.events(CHAT, chat()))
        await until(lambda: 1 == e.replica.batch.counters().waiting)
        assert 200 == (await e.client.get("/health")).status_code
        assert 200 == (await e.client.delete("/sim/faults/ice")).status_code
        [events] = await stream
        assert text_of(plain) == text_of(events)


async def test_a_slow_engine_says_the_same_later():
    async with engine(profile=PROFILES["paced"]) as e:
        await e.fault("slow", factor=3)
        began = e.replica.now()
        await e.events(CHAT, chat(max_tokens=5, ignore_eos=True))
        assert e.replica.now() - began >= 0.29


async def test_faults_are_listed_counted_and_cleared():
    async with engine() as e:
        await e.fault("cut", after_tokens=2, probability=0.5)
        await e.fault("error", status=503, remaining=3)
        assert ["cut", "error"] == [f["kind"] for f in (await e.get("/sim/faults"))["faults"]]
        assert {"faults": []} == (await e.client.delete("/sim/faults")).json()
        assert {"faults": []} == await e.get("/sim/faults")
        assert 404 == (await e.client.delete("/sim/faults/f1")).status_code


@pytest.mark.parametrize(
    "body", [{"kind": "nothing"}, {"kind": "refuse"}, {"kind": "cut", "after": 3}, {"kind": "cut", "probability": 2}]
)
async def test_a_fault_that_makes_no_sense_is_refused(body):
    async with engine() as e:
        assert 400 == (await e.post("/sim/faults", body)).status_code


async def test_request_fields_can_not_order_a_fault():
    async with engine() as e:
        response = await e.post(CHAT, chat(fault="cut", sim={"kind": "cut"}))
        assert 200 == response.status_code
