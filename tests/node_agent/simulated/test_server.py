"""The simulated engine over its own port: answers, streams, back pressure, disconnects, sleep, adapters, metrics."""

from __future__ import annotations

import asyncio
import base64
import json
import struct

import msgspec
import pytest

from node_agent.engines.simulated.profiles import PROFILES, resized

from .support import INSTANT, chat, completion, engine, ids_of, text_of, until

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"


async def test_a_chat_streams_and_answers_whole_with_the_same_text():
    async with engine() as e:
        whole = (await e.post(CHAT, chat())).json()
        events = await e.events(CHAT, chat())
        assert whole["choices"][0]["message"]["content"] == text_of(events)
        assert ["[DONE]", "stop"] == [events[-1], events[-2]["choices"][0]["finish_reason"]]


async def test_the_same_prompt_has_the_same_answer_on_another_replica_of_the_model():
    async with engine(seed=1) as one, engine(seed=2) as two, engine(model="other") as three:
        bodies = [chat(), chat(), chat(model="other")]
        texts = [text_of(await e.events(CHAT, b)) for e, b in zip((one, two, three), bodies, strict=True)]
        assert texts[0] == texts[1] != texts[2]


async def test_an_interrupted_greedy_chat_is_resumed_from_ids_exactly():
    async with engine() as one, engine() as two:
        events = await one.events(CHAT, chat(return_token_ids=True, max_tokens=80, ignore_eos=True))
        prompt, said = events[0]["prompt_token_ids"], ids_of(events)
        for cut in (1, 17, 79):
            rest = completion(prompt + said[:cut], max_tokens=80 - cut, ignore_eos=True, return_token_ids=True)
            assert said[cut:] == ids_of(await two.events(TEXT, rest))


async def test_tokens_behind_the_first_come_in_bundles_where_that_is_wanted():
    async with engine() as e, engine(stream_interval=4) as bundling:
        asked = completion([100, 200], max_tokens=11, ignore_eos=True, return_token_ids=True)
        single, bundles = await e.events(TEXT, asked), await bundling.events(TEXT, asked)
        assert (ids_of(single), text_of(single)) == (ids_of(bundles), text_of(bundles))
        counts = [len(choice["token_ids"]) for event in bundles[:-1] for choice in event["choices"]]
        assert [1, 4, 4, 2] == counts


async def test_sampling_repeats_with_a_seed_and_only_with_a_seed():
    async with engine() as e:
        seeded = [text_of(await e.events(CHAT, chat(temperature=1, seed=5, max_tokens=40))) for _ in range(2)]
        free = [text_of(await e.events(CHAT, chat(temperature=1, max_tokens=40))) for _ in range(2)]
        assert seeded[0] == seeded[1]
        assert free[0] != free[1]


async def test_usage_comes_last_and_only_when_asked_for():
    async with engine() as e:
        asked = await e.events(CHAT, chat(max_tokens=5, stream_options={"include_usage": True}))
        plain = await e.events(CHAT, chat(max_tokens=5))
        usage = asked[-2]
        assert ([], 5) == (usage["choices"], usage["usage"]["completion_tokens"])
        assert usage["usage"]["total_tokens"] == usage["usage"]["prompt_tokens"] + 5
        assert not any("usage" in event for event in plain[:-1])


async def test_running_usage_counts_every_token():
    async with engine() as e:
        options = {"include_usage": True, "continuous_usage_stats": True}
        events = await e.events(CHAT, chat(max_tokens=4, ignore_eos=True, stream_options=options))
        assert [0, 1, 2, 3, 4, 4] == [event["usage"]["completion_tokens"] for event in events[:-1]]
        plain = await e.events(TEXT, completion(max_tokens=4, ignore_eos=True, stream_options=options))
        assert [1, 2, 3, 4, 4] == [event["usage"]["completion_tokens"] for event in plain[:-1]]


async def test_a_repeated_prompt_is_found_in_the_prefix_cache():
    async with engine() as e:
        usages = [(await e.post(CHAT, chat("word " * 60, max_tokens=2))).json()["usage"] for _ in range(2)]
        blocks = usages[0]["prompt_tokens"] // 16
        assert [0, 16 * blocks] == [usage["prompt_tokens_details"]["cached_tokens"] for usage in usages]


async def test_the_next_turn_finds_the_last_answer_in_the_cache():
    async with engine() as e:
        first = (await e.post(CHAT, chat("Begin", max_tokens=200))).json()
        said = first["choices"][0]["message"]["content"]
        turns = [
            {"role": "user", "content": "Begin"},
            {"role": "assistant", "content": said},
            {"role": "user", "content": "On"},
        ]
        usage = (await e.post(CHAT, chat(messages=turns, max_tokens=2))).json()["usage"]
        known = first["usage"]["total_tokens"] - 1
        assert known // 16 * 16 == usage["prompt_tokens_details"]["cached_tokens"]


async def test_several_choices_and_several_prompts_are_numbered_through():
    async with engine() as e:
        body = completion(["One", "Two"], n=2, max_tokens=3, temperature=1, seed=1)
        whole = (await e.post(TEXT, body)).json()
        assert [0, 1, 2, 3] == [c["index"] for c in whole["choices"]]
        events = await e.events(TEXT, body)
        texts = dict.fromkeys(range(4), "")
        for event in events[:-1]:
            texts[event["choices"][0]["index"]] += event["choices"][0]["text"]
        assert [c["text"] for c in whole["choices"]] == list(texts.values())


async def test_several_choices_of_a_chat_are_streamed_side_by_side():
    async with engine() as e:
        body = chat(n=3, temperature=1, seed=1, max_tokens=10, ignore_eos=True)
        events = await e.events(CHAT, body)
        whole = (await e.post(CHAT, body)).json()["choices"]
        texts = dict.fromkeys(range(3), "")
        for event in events[:-1]:
            choice = event["choices"][0]
            texts[choice["index"]] += choice["delta"].get("content", "")
        assert [c["message"]["content"] for c in whole] == list(texts.values())
        assert 3 == len(set(texts.values()))


async def test_echo_repeats_the_prompt_but_not_together_with_ids():
    async with engine() as e:
        echoed = (await e.post(TEXT, completion("Say this", echo=True, max_tokens=2))).json()
        with_ids = (await e.post(TEXT, completion("Say this", echo=True, max_tokens=2, return_token_ids=True))).json()
        streamed = await e.events(TEXT, completion("Say this", echo=True, max_tokens=2))
        assert echoed["choices"][0]["text"].startswith("Say this")
        assert echoed["choices"][0]["text"] == text_of(streamed)
        assert not with_ids["choices"][0]["text"].startswith("Say this")


async def test_a_final_message_can_be_continued_and_echoed():
    async with engine() as e:
        turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "So far"}]
        more = {"messages": turns, "continue_final_message": True, "add_generation_prompt": False, "max_tokens": 3}
        events = await e.events(CHAT, chat(**more, echo=True))
        assert "So far" == events[1]["choices"][0]["delta"]["content"]
        refused = await e.post(CHAT, chat(messages=turns, continue_final_message=True))
        assert 400 == refused.status_code


async def test_logprobs_of_both_endpoints():
    async with engine() as e:
        talk = (await e.post(CHAT, chat(max_tokens=3, logprobs=True, top_logprobs=2))).json()["choices"][0]
        entries = talk["logprobs"]["content"]
        assert talk["message"]["content"] == "".join(entry["token"] for entry in entries)
        assert all(2 == len(entry["top_logprobs"]) and entry["logprob"] <= 0 for entry in entries)
        text = (await e.post(TEXT, completion(max_tokens=3, logprobs=1))).json()["choices"][0]
        assert text["text"] == "".join(text["logprobs"]["tokens"])
        assert [0, *text["logprobs"]["text_offset"][1:]] == text["logprobs"]["text_offset"]


async def test_a_streamed_tool_call_has_valid_arguments():
    tool = {"type": "function", "function": {"name": "f", "parameters": {"properties": {"city": {"type": "string"}}}}}
    async with engine() as e:
        events = await e.events(CHAT, chat(tools=[tool]))
        calls = [c for ev in events[:-1] for c in ev["choices"][0]["delta"].get("tool_calls", [])]
        assert ["f"] == [c["function"]["name"] for c in calls if "name" in c["function"]]
        assert {"city"} == set(json.loads("".join(c["function"].get("arguments", "") for c in calls)))
        assert "tool_calls" == events[-2]["choices"][0]["finish_reason"]
        whole = (await e.post(CHAT, chat(tools=[tool]))).json()["choices"][0]
        assert {"city"} == set(json.loads(whole["message"]["tool_calls"][0]["function"]["arguments"]))
        with_ids = await e.events(CHAT, chat(tools=[tool], return_token_ids=True))
        assert any({} == ev["choices"][0]["delta"] for ev in with_ids[:-2])


async def test_a_response_format_is_kept():
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    async with engine() as e:
        assert {"n"} == set(json.loads(text_of(await e.events(CHAT, chat(response_format=form)))))


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        (CHAT, chat(model="nope"), 404, "model"),
        (CHAT, chat(messages=[]), 400, None),
        (CHAT, chat("x" * 5000), 400, "input_tokens"),
        (TEXT, completion([1, 2, 999_999_999]), 400, None),
        (TEXT, completion([]), 400, "prompt"),
        (TEXT, completion(max_tokens=3, min_tokens=9), 400, "min_tokens"),
        (TEXT, completion(max_tokens=0), 400, "max_tokens"),
        (TEXT, completion(n=0), 400, "n"),
        (TEXT, completion(temperature=-1), 400, "temperature"),
        (TEXT, completion([1, "a"]), 400, "prompt"),
        (TEXT, {"prompt": 5}, 400, "body.prompt"),
        (CHAT, {"messages": 5}, 400, "body.messages"),
        (TEXT, completion(n=2), 400, None),
    ],
)
async def test_what_is_wrong_is_refused_in_vllms_shape(path, body, status, param):
    async with engine(profile=resized(INSTANT, max_model_len=1000)) as e:
        response = await e.post(path, body)
        error = response.json()["error"]
        assert (status, status, param) == (response.status_code, error["code"], error["param"])
        assert {"message", "type", "param", "code"} == set(error)
        assert 0 == (await e.stats())["accepted"]


async def test_bodies_that_are_not_json_paths_that_are_not_and_wrong_methods():
    async with engine() as e:
        assert 400 == (await e.client.post(CHAT, content=b"{nope")).status_code
        unknown = await e.client.get("/v1/nothing")
        assert (404, {"detail": "Not Found"}) == (unknown.status_code, unknown.json())
        assert 405 == (await e.client.get(CHAT)).status_code
        assert 404 == (await e.post("/v1/embeddings", {"input": "x"})).status_code


async def test_bytes_that_are_not_http_get_a_400_and_a_close():
    async with engine() as e:
        reader, _ = await e.send(b"\x16\x03\x01 hello\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 400 ")


async def test_request_ids_become_part_of_the_answers_id_and_are_echoed_when_told_to():
    async with engine() as e, engine(request_id_headers=True) as echoing:
        headers = {"x-request-id": "abc"}
        first = await e.client.post(CHAT, json=chat(max_tokens=1), headers=headers)
        assert ("chatcmpl-abc", False) == (first.json()["id"], "x-request-id" in first.headers)
        second = await echoing.client.post(TEXT, json=completion(max_tokens=1), headers=headers)
        assert ("cmpl-abc", "abc") == (second.json()["id"], second.headers["x-request-id"])
        assert (await echoing.client.get("/health")).headers["x-request-id"]
        by_body = await e.post(TEXT, completion(max_tokens=1, request_id="body-id"))
        assert "cmpl-body-id" == by_body.json()["id"]


async def test_two_requests_at_once_may_carry_the_same_id():
    async with engine(profile=PROFILES["paced"]) as e:
        bodies = [chat(max_tokens=5, request_id="same") for _ in range(3)]
        answers = await asyncio.gather(*(e.post(CHAT, body) for body in bodies))
        assert 3 == len({a.json()["id"] for a in answers})
        assert 1 == len({a.json()["choices"][0]["message"]["content"] for a in answers})


async def test_a_client_that_leaves_ends_its_request_within_a_step():
    async with engine(profile=PROFILES["paced"]) as e:
        for streamed in (True, False):
            _, writer = await e.connect(CHAT, chat(stream=streamed, max_tokens=5000))
            await until(lambda: 1 == e.replica.batch.counters().running)
            writer.close()
            await until(lambda: 0 == e.replica.stats.active)
            assert 0 == e.replica.batch.pool.used
        stats = await e.stats()
        assert (2, 2, 0) == (stats["accepted"], stats["aborted"], stats["finished"])
        assert dict.fromkeys(e.replica.metrics.finished, 0) == e.replica.metrics.finished


async def test_a_client_that_leaves_before_its_request_is_queued_never_reaches_the_engine():
    async with engine(profile=msgspec.structs.replace(INSTANT, api_request_ms=10_000.0)) as e:
        _, writer = await e.connect(CHAT, chat(stream=True))
        await until(lambda: 1 == e.replica.stats.active)
        writer.close()
        await until(lambda: 1 == e.replica.stats.aborted)
        assert 0 == e.replica.batch.counters().waiting


async def test_a_slow_reader_is_waited_for_and_gets_every_token_in_fewer_events():
    tokens = 30_000
    async with engine() as e:
        expected = text_of(await e.events(CHAT, chat(max_tokens=tokens, ignore_eos=True)))
        body = chat(stream=True, max_tokens=tokens, ignore_eos=True)
        reader, writer = await e.connect(CHAT, body, receive_bytes=4096)
        await until(lambda: 2 == e.replica.stats.accepted and not e.replica.batch.busy)
        connection = next(c for c in e.replica.connections if c.paused)
        assert connection.transport is not None
        assert connection.transport.get_write_buffer_size() < 1_000_000
        raw = b""
        while not raw.endswith(b"0\r\n\r\n"):
            raw += await reader.read(1 << 16)
        writer.close()
        events = [json.loads(part.split(b"\n\n")[0]) for part in raw.split(b"data: ")[1:-1]]
        assert expected == text_of(events)
        assert len(events) < tokens


async def test_requests_on_one_connection_are_answered_in_order():
    async with engine() as e:
        reader, writer = await e.connect(TEXT, completion(max_tokens=50, request_id="one"))
        writer.write(b"GET /version HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        raw = await reader.read()
        assert 0 < raw.index(b"cmpl-one") < raw.index(b'{"version":')
        writer.close()


async def test_over_the_queue_limit_vllms_503_is_the_answer():
    profile = resized(PROFILES["paced"], max_num_seqs=1)
    async with engine(profile=profile, max_num_queued_reqs=1) as e:
        writers = []
        for i in range(2):
            writers.append((await e.connect(CHAT, chat(stream=True, max_tokens=1000)))[1])
            await until(lambda i=i: i + 1 == e.replica.stats.accepted and 1 == e.replica.batch.counters().running)
        refused = await e.post(CHAT, chat())
        assert (503, "Service Unavailable") == (refused.status_code, refused.json()["error"]["type"])
        assert (
            'admission_rejections_total{model_name="sim",reason="max_num_queued_reqs"} 1.0'
            in (await e.client.get("/metrics")).text
        )
        for writer in writers:
            writer.close()


async def test_a_sleeping_engine_looks_idle_and_answers_when_woken():
    async with engine() as e:
        assert {"status": "sleeping", "level": 1} == (await e.client.post("/sleep?level=1")).json()
        asked = asyncio.gather(e.post(CHAT, chat(max_tokens=3)), e.events(CHAT, chat(max_tokens=3)))
        await until(lambda: 2 == e.replica.stats.active)
        metrics = (await e.client.get("/metrics")).text
        assert 'vllm:num_requests_waiting{engine="0",model_name="sim"} 0.0' in metrics
        assert 'sleep_state="weights_offloaded"} 1.0' in metrics
        assert [{"is_sleeping": True}, {"server_load": 2}] == [await e.get("/is_sleeping"), await e.get("/load")]
        assert 200 == (await e.client.get("/health")).status_code
        assert {"status": "awake", "tags": None} == (await e.client.post("/wake_up")).json()
        whole, events = await asked
        assert whole.json()["choices"][0]["message"]["content"] == text_of(events)


async def test_falling_asleep_ends_freezes_or_waits_for_what_runs():
    async with engine(profile=PROFILES["paced"]) as e:
        stream = asyncio.gather(e.events(CHAT, chat(max_tokens=500)))
        await until(lambda: e.replica.batch.counters().generation_tokens > 2)
        await e.client.post("/sleep?mode=abort")
        [events] = await stream
        assert ["abort", "[DONE]"] == [events[-2]["choices"][0]["finish_reason"], events[-1]]
        await e.client.post("/wake_up")

        stream = asyncio.gather(e.events(CHAT, chat(max_tokens=10, ignore_eos=True)))
        await until(lambda: 1 == e.replica.batch.counters().running)
        await e.client.post("/sleep?mode=keep&level=0")
        await e.client.post("/wake_up")
        [events] = await stream
        assert "length" == events[-2]["choices"][0]["finish_reason"]

        stream = asyncio.gather(e.events(CHAT, chat(max_tokens=10, ignore_eos=True)))
        await until(lambda: 1 == e.replica.batch.counters().running)
        await e.client.post("/sleep?mode=wait")
        assert 0 == e.replica.stats.active
        [events] = await stream
        assert "length" == events[-2]["choices"][0]["finish_reason"]
        assert 400 == (await e.client.post("/sleep?mode=deep")).status_code


async def test_adapters_come_and_go_and_change_the_answer():
    async with engine() as e:
        load = {"lora_name": "ad1", "lora_path": "/adapters/ad1"}
        assert 404 == (await e.post(CHAT, chat(model="ad1"))).status_code
        loaded = await e.post("/v1/load_lora_adapter", load)
        assert "Success: LoRA adapter 'ad1' added successfully." == loaded.text
        assert 400 == (await e.post("/v1/load_lora_adapter", load)).status_code
        assert 404 == (await e.post("/v1/load_lora_adapter", {"lora_name": "b", "lora_path": "/nonexist"})).status_code
        cards = (await e.get("/v1/models"))["data"]
        assert [("sim", None), ("ad1", "sim")] == [(c["id"], c["parent"]) for c in cards]
        base, adapted = [text_of(await e.events(CHAT, chat(model=m))) for m in ("sim", "ad1")]
        assert base != adapted
        assert "vllm:lora_requests_info" in (await e.client.get("/metrics")).text
        assert 200 == (await e.post("/v1/unload_lora_adapter", {"lora_name": "ad1"})).status_code
        assert 404 == (await e.post("/v1/unload_lora_adapter", {"lora_name": "ad1"})).status_code


async def test_texts_and_ids_are_turned_into_each_other():
    async with engine() as e:
        made = (await e.post("/tokenize", {"model": "sim", "prompt": "Hello yard"})).json()
        assert (len(made["tokens"]), None) == (made["count"], made["token_strs"])
        back = await e.post("/detokenize", {"model": "sim", "tokens": made["tokens"]})
        assert {"prompt": "Hello yard"} == back.json()
        of_chat = (await e.post("/tokenize", chat("Hello"))).json()
        first = (await e.events(CHAT, chat("Hello", max_tokens=1, return_token_ids=True)))[0]
        assert first["prompt_token_ids"] == of_chat["tokens"]


async def test_a_pooling_engine_embeds_and_does_not_talk():
    async with engine(task="embed") as e:
        body = {"model": "sim", "input": ["cat on a mat", "cat on the mat", "quarterly revenue"]}
        vectors = [d["embedding"] for d in (await e.post("/v1/embeddings", body)).json()["data"]]
        near, far = (sum(a * b for a, b in zip(vectors[0], v, strict=True)) for v in vectors[1:])
        assert near > far
        assert sum(v * v for v in vectors[0]) == pytest.approx(1)
        packed = (await e.post("/v1/embeddings", {**body, "encoding_format": "base64"})).json()["data"][0]["embedding"]
        assert vectors[0] == pytest.approx(struct.unpack(f"<{len(vectors[0])}f", base64.b64decode(packed)), abs=1e-6)
        assert 404 == (await e.post(CHAT, chat())).status_code
        stats = await e.stats()
        assert (2, 2, 0) == (stats["accepted"], stats["finished"], stats["active"])


async def test_metrics_count_what_happened():
    async with engine() as e:
        await e.events(CHAT, chat(max_tokens=7, ignore_eos=True))
        await e.post(CHAT, chat())
        lines = dict(
            line.rsplit(" ", 1) for line in (await e.client.get("/metrics")).text.splitlines() if line[0] != "#"
        )
        label = '{engine="0",model_name="sim"}'
        assert "0.0" == lines[f"vllm:num_requests_running{label}"]
        tokens = float(lines[f"vllm:generation_tokens_total{label}"])
        assert tokens == (await e.stats())["tokens_sent"] > 7
        assert "2.0" == lines[f"vllm:time_to_first_token_seconds_count{label}"]
        assert str(tokens - 2) == lines[f"vllm:inter_token_latency_seconds_count{label}"]
        ended = 'vllm:request_success_total{engine="0",model_name="sim",finished_reason='
        assert ["1.0", "1.0"] == [lines[f'{ended}"length"}}'], lines[f'{ended}"stop"}}']]
        assert "2.0" == lines['http_requests_total{handler="/v1/chat/completions",method="POST",status="2xx"}']


async def test_a_busy_gpu_profile_keeps_its_pace():
    """Not a benchmark: it must not be faster than the model says; slower is the machine's fault."""
    async with engine(profile=PROFILES["paced"]) as e:
        began = e.replica.now()
        await e.events(CHAT, chat(max_tokens=10, ignore_eos=True))
        assert e.replica.now() - began >= 0.19
