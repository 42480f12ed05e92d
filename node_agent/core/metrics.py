"""Read what we need from an engine's /metrics, and nothing else: a page has a thousand lines, we want a dozen.

Strict where a missing figure would be a lie (running and waiting requests), lenient where an engine may not have it.
Figures of several engine cores behind one server (`engine="0"`, `engine="1"`) are added up; KV use is their mean.

A sleeping engine shows 0 running and 0 waiting and lets requests hang, so its sleep state is read as a figure of its
own. Names as of vLLM 0.32.
"""

from __future__ import annotations

import msgspec


class UnreadableMetrics(ValueError):  # noqa: N818 - reads as what it is where it is caught
    """The page lacks what every engine must show, or shows no number where one must be."""


class EngineMetrics(msgspec.Struct, frozen=True, kw_only=True):
    running: int
    waiting: int
    kv_use: float = 0.0
    kv_capacity_tokens: int = 0
    block_tokens: int = 0
    prefix_queries_tokens: int = 0
    prefix_hits_tokens: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    asleep: bool = False
    adapters: tuple[str, ...] = ()
    """LoRA adapters running or waiting now, as the newest line says."""


_PREFIX = b"vllm:"
_SUMS = {
    b"num_requests_running": "running",
    b"num_requests_waiting": "waiting",
    b"prefix_cache_queries_total": "prefix_queries_tokens",
    b"prefix_cache_hits_total": "prefix_hits_tokens",
    b"prompt_tokens_total": "prompt_tokens",
    b"generation_tokens_total": "generation_tokens",
}
_OTHERS = frozenset({b"kv_cache_usage_perc", b"cache_config_info", b"engine_sleep_state", b"lora_requests_info"})


def parse(page: bytes) -> EngineMetrics:
    sums: dict[str, float] = {}
    kv_use: list[float] = []
    awake: list[bool] = []
    cache: dict[str, str] = {}
    newest_lora = (-1.0, {"running_lora_adapters": "", "waiting_lora_adapters": ""})
    for line in page.split(b"\n"):
        if not line.startswith(_PREFIX):
            continue
        name = line[len(_PREFIX) :].split(b"{", 1)[0].split(b" ", 1)[0]
        if name in _SUMS:
            field = _SUMS[name]
            sums[field] = sums.get(field, 0.0) + _value(line)
        elif name not in _OTHERS:
            continue
        elif name == b"kv_cache_usage_perc":
            kv_use.append(_value(line))
        elif name == b"cache_config_info":
            cache = labels(line)
        elif name == b"engine_sleep_state":
            if labels(line).get("sleep_state") == "awake":
                awake.append(_value(line) > 0)
        else:
            newest_lora = max(newest_lora, (_value(line), labels(line)), key=lambda pair: pair[0])
    for needed in ("running", "waiting"):
        if needed not in sums:
            raise UnreadableMetrics(f"/metrics has no vllm:num_requests_{needed}: is this an inference engine?")
    return EngineMetrics(
        **{field: int(value) for field, value in sums.items()},
        kv_use=sum(kv_use) / len(kv_use) if kv_use else 0.0,
        kv_capacity_tokens=_capacity(cache) * max(1, len(kv_use)),
        block_tokens=_whole(cache.get("block_size")),
        asleep=bool(awake) and not any(awake),
        adapters=_adapters(newest_lora[1]),
    )


def labels(line: bytes) -> dict[str, str]:
    """Labels of one line; their values may hold commas, braces and escaped quotes."""
    text = line.decode("utf-8", "replace")
    found: dict[str, str] = {}
    at = text.find("{") + 1
    while at > 0 and text[at : at + 1] not in ("}", ""):
        equals = text.find('="', at)
        if equals < 0:
            break
        end = equals + 2
        while end < len(text) and text[end] != '"':
            end += 2 if text[end] == "\\" else 1
        raw = text[equals + 2 : end]
        found[text[at:equals].strip(", ")] = raw.replace('\\"', '"').replace("\\n", "\n").replace("\\\\", "\\")
        at = end + 1
        while text[at : at + 1] in (",", " ") and text[at : at + 1]:
            at += 1
    return found


def _value(line: bytes) -> float:
    """The number after the labels; a time stamp may follow it."""
    tail = line[line.rfind(b"}") + 1 :] if b"}" in line else line.split(b" ", 1)[-1]
    words = tail.split()
    try:
        value = float(words[0])
    except (IndexError, ValueError) as error:
        raise UnreadableMetrics(f"no number in {line[:120]!r}") from error
    if value != value or value in (float("inf"), float("-inf")):
        raise UnreadableMetrics(f"no finite number in {line[:120]!r}")
    return value


def _capacity(cache: dict[str, str]) -> int:
    told = _whole(cache.get("kv_cache_size_tokens"))
    return told or _whole(cache.get("num_gpu_blocks")) * _whole(cache.get("block_size"))


def _whole(text: str | None) -> int:
    """0 for a label that is missing or says `None`."""
    return int(text) if text is not None and text.isdecimal() else 0


def _adapters(lora: dict[str, str]) -> tuple[str, ...]:
    names = f"{lora.get('running_lora_adapters', '')},{lora.get('waiting_lora_adapters', '')}".split(",")
    return tuple(sorted({name.strip() for name in names if name.strip()}))
