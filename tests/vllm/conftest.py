"""The servers' fixtures. Modules that use them say so with `pytestmark`: marker `vllm`, and time for servers."""

from __future__ import annotations

from tests.vllm.fixtures import new_vllm, vllm_pair, vllm_pooling_url, vllm_urls

__all__ = ["new_vllm", "vllm_pair", "vllm_pooling_url", "vllm_urls"]
