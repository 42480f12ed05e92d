"""Contracts are held against the real thing too: real vLLM comes from the fixtures of tests/vllm."""

from __future__ import annotations

from tests.vllm.fixtures import vllm_pair, vllm_urls

__all__ = ["vllm_pair", "vllm_urls"]
