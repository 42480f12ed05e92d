"""Pages as vLLM 0.32 writes them, and pages that no engine should write."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node_agent.core.metrics import EngineMetrics, UnreadableMetrics, labels, parse

PAGE = b"""# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="tiny"} 3.0
vllm:num_requests_waiting{engine="0",model_name="tiny"} 2.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="tiny",reason="capacity"} 2.0
vllm:kv_cache_usage_perc{engine="0",model_name="tiny"} 0.25
vllm:prefix_cache_queries_total{engine="0",model_name="tiny"} 1000.0
vllm:prefix_cache_queries_created{engine="0",model_name="tiny"} 1.7953e+09
vllm:prefix_cache_hits_total{engine="0",model_name="tiny"} 640.0
vllm:external_prefix_cache_hits_total{engine="0",model_name="tiny"} 99.0
vllm:prompt_tokens_total{engine="0",model_name="tiny"} 1234.0
vllm:prompt_tokens_by_source_total{engine="0",model_name="tiny",source="local_compute"} 594.0
vllm:generation_tokens_total{engine="0",model_name="tiny"} 1.2345e+04
vllm:time_to_first_token_seconds_bucket{engine="0",le="0.001",model_name="tiny"} 0.0
vllm:engine_sleep_state{engine="0",model_name="tiny",sleep_state="awake"} 1.0
vllm:engine_sleep_state{engine="0",model_name="tiny",sleep_state="weights_offloaded"} 0.0
vllm:engine_sleep_state{engine="0",model_name="tiny",sleep_state="discard_all"} 0.0
vllm:cache_config_info{block_size="32",engine="0",kv_cache_size_tokens="65536",num_gpu_blocks="2048"} 1
vllm:lora_requests_info{max_lora="1",running_lora_adapters="old",waiting_lora_adapters=""} 1.795302374e+09
vllm:lora_requests_info{max_lora="1",running_lora_adapters="ad1",waiting_lora_adapters="ad2,ad1"} 1.795302375e+09
process_resident_memory_bytes 5.0e+08
"""


def test_a_page_of_vllm_is_read() -> None:
    expected = EngineMetrics(
        running=3,
        waiting=2,
        kv_use=0.25,
        kv_capacity_tokens=65536,
        block_tokens=32,
        prefix_queries_tokens=1000,
        prefix_hits_tokens=640,
        prompt_tokens=1234,
        generation_tokens=12345,
        asleep=False,
        adapters=("ad1", "ad2"),
    )
    assert expected == parse(PAGE)


def test_a_sleeping_engine_is_known_by_its_own_figure() -> None:
    asleep = PAGE.replace(b'sleep_state="awake"} 1.0', b'sleep_state="awake"} 0.0')
    assert parse(asleep).asleep
    assert not parse(PAGE).asleep


def test_figures_of_several_engine_cores_are_added_up() -> None:
    second = PAGE.replace(b'engine="0"', b'engine="1"').replace(
        b'usage_perc{engine="1",model_name="tiny"} 0.25', b'usage_perc{engine="1",model_name="tiny"} 0.75'
    )
    both = parse(PAGE + second)
    assert (6, 4, 0.5, 24690, 131072) == (
        both.running,
        both.waiting,
        both.kv_use,
        both.generation_tokens,
        both.kv_capacity_tokens,
    )


def test_capacity_follows_from_blocks_where_tokens_are_not_told() -> None:
    assert (
        65536 == parse(PAGE.replace(b'kv_cache_size_tokens="65536"', b'kv_cache_size_tokens="None"')).kv_capacity_tokens
    )


@pytest.mark.parametrize("name", ["running", "waiting"])
def test_a_page_without_what_every_engine_shows_is_refused(name: str) -> None:
    page = b"\n".join(line for line in PAGE.split(b"\n") if f"num_requests_{name}{{".encode() not in line)
    with pytest.raises(UnreadableMetrics, match=f"num_requests_{name}"):
        parse(page)


@pytest.mark.parametrize("value", [b"many", b"NaN", b"+Inf", b""])
def test_a_figure_that_is_no_number_is_refused(value: bytes) -> None:
    with pytest.raises(UnreadableMetrics, match="number"):
        parse(PAGE.replace(b'num_requests_running{engine="0",model_name="tiny"} 3.0', b"num_requests_running " + value))


def test_a_pooling_server_without_caches_is_read_too() -> None:
    assert EngineMetrics(running=1, waiting=0) == parse(
        b"vllm:num_requests_running 1\nvllm:num_requests_waiting 0 1795\n"
    )


@given(
    st.dictionaries(
        st.from_regex(r"[a-z_]+", fullmatch=True),
        st.text(st.characters(codec="utf-8", exclude_characters="\n\\")),
        max_size=4,
    )
)
def test_labels_may_hold_anything(given: dict[str, str]) -> None:
    written = ",".join('{}="{}"'.format(name, value.replace('"', '\\"')) for name, value in given.items())
    assert given == labels(b"vllm:x{" + written.encode() + b"} 1.0")


@given(st.binary())
def test_no_bytes_make_it_fail_otherwise_than_by_saying_so(page: bytes) -> None:
    with contextlib.suppress(UnreadableMetrics):
        assert parse(PAGE + page + b"\nvllm:" + page).running >= 3


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**15))
def test_what_is_written_is_what_is_read(running: int, waiting: int, tokens: int) -> None:
    page = f'vllm:num_requests_running {running}\nvllm:num_requests_waiting{{a="}} 9"}} {waiting}.0\n'
    page += f'vllm:generation_tokens_total{{engine="0"}} {tokens}.0\n'
    read = parse(page.encode())
    assert (running, waiting, tokens) == (read.running, read.waiting, read.generation_tokens)
