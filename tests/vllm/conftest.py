"""Everything here needs a real vLLM: marked so, and given time for servers to start."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.vllm.fixtures import new_vllm, vllm_pair, vllm_pooling_url, vllm_urls

__all__ = ["new_vllm", "vllm_pair", "vllm_pooling_url", "vllm_urls"]

HERE = Path(__file__).parent
TIME_LIMIT_S = 400


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.vllm)
            item.add_marker(pytest.mark.timeout(TIME_LIMIT_S))
