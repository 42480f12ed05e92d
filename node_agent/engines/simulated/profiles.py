"""The figures of the batching model, one profile per model and kind of GPU: data, no behaviour.

The two GPU profiles are published or derived figures, not measurements of ours: trust the shape of what they give,
and differences above ten percent. Sources per field, as named in SOURCES:

* steps: coefficients that the BLIS simulator fitted to vLLM on H100 (inference-sim/inference-sim, `defaults.yaml`)
* prefill: 2 x parameters / (0.45 x 989 TFLOP/s), BLIS `hardware_config.json`. BLIS's own fitted prefill coefficient
  is below what the hardware can do and is not used
* attention: 4 x heads x head_dim x layers / (0.45 x peak), a roofline; per GPU with heads / 4 for TP4
* kv: 0.9 x 80 GiB - weights - 5.5 GiB activations, at 128 KiB (8B) and 320 KiB (70B) a token
"""

from __future__ import annotations

import msgspec

SOURCES = {
    "base_step_ms": "BLIS coefficients on H100",
    "sequence_ms": "BLIS",
    "kv_token_us": "BLIS",
    "prefill_token_ms": "roofline at MFU 0.45",
    "attention_token2_ms": "roofline at MFU 0.45",
    "adapter_share": "BLIS: 2, 3.5, 6 % of a step per adapter at rank 8, 16, 32",
    "api_request_ms": "BLIS alpha: tokenising, templates, HTTP",
    "kv_capacity_tokens": "GPU memory less weights and activations",
    "max_batch_tokens": "vLLM's older default; 8192 on a V1 server with 70 GB or more",
    "max_num_seqs": "vLLM",
}


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """Milliseconds, microseconds and tokens as the names say."""

    name: str
    base_step_ms: float
    """a0: a step that only reads the weights."""
    sequence_ms: float = 0.0
    """a1: more per decoding sequence."""
    kv_token_us: float = 0.0
    """a2: more per token of KV cache that decoding sequences read."""
    prefill_token_ms: float = 0.0
    """b1: more per prompt token computed in the step."""
    attention_token2_ms: float = 0.0
    """b2: more per prompt token and token of context before it."""
    adapter_share: float = 0.035
    """Share of a step that each distinct LoRA adapter in the batch adds."""
    api_request_ms: float = 0.0
    """Between a request's last byte and the engine's queue."""
    kv_capacity_tokens: int = 65_536
    block_tokens: int = 16
    max_batch_tokens: int = 2048
    """C: tokens computed in one step, a decoding sequence counting as one."""
    max_num_seqs: int = 256
    max_model_len: int = 32_768


PROFILES: dict[str, Profile] = {
    p.name: p
    for p in (
        Profile(
            name="llama-3.1-8b-h100",
            base_step_ms=6.9,
            sequence_ms=0.0046,
            kv_token_us=0.076,
            prefill_token_ms=0.036,
            attention_token2_ms=1.2e-6,
            api_request_ms=15.6,
            kv_capacity_tokens=421_000,
            max_batch_tokens=2048,
            max_num_seqs=256,
            max_model_len=131_072,
        ),
        Profile(
            name="llama-3.1-70b-tp4-h100",
            base_step_ms=16.6,
            sequence_ms=0.0054,
            kv_token_us=0.048,
            prefill_token_ms=0.080,
            attention_token2_ms=1.5e-6,
            api_request_ms=15.6,
            kv_capacity_tokens=433_000,
            max_batch_tokens=2048,
            max_num_seqs=256,
            max_model_len=131_072,
        ),
        # No physics: for tests of everything that is not time. A step still happens after every other event of the
        # loop, so that order is kept.
        Profile(
            name="instant",
            base_step_ms=0.0,
            kv_capacity_tokens=4_000_000,
            max_batch_tokens=1_000_000,
            max_num_seqs=20_000,
            max_model_len=32_768,
        ),
        # A token per stream every 20 ms whatever the load: for benchmarks of what stands in front of the engine.
        Profile(
            name="paced",
            base_step_ms=20.0,
            kv_capacity_tokens=40_000_000,
            max_batch_tokens=1_000_000,
            max_num_seqs=20_000,
            max_model_len=32_768,
        ),
    )
}


def resized(profile: Profile, **changes: int) -> Profile:
    """Other sizes, such that any answer that max_model_len allows fits into memory: otherwise it could never end."""
    profile = msgspec.structs.replace(profile, **changes)
    room = profile.kv_capacity_tokens // profile.block_tokens * profile.block_tokens
    return msgspec.structs.replace(profile, max_model_len=min(profile.max_model_len, room))
