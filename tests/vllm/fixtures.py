"""Fixtures over real vLLM servers, started once for the whole test run by whoever asks first.

Import them in a conftest: `from tests.vllm.fixtures import vllm_pair, vllm_pooling_url, vllm_urls`. Every conftest that
does gets the same servers, because they belong to the run and not to a fixture.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.vllm.servers import GENERATE, POOLING, REMEDY, VllmServer, available, start_all


class Fleet:
    """The servers of this test run, by name; one that died under a test is replaced when asked for again."""

    def __init__(self) -> None:
        self._servers: dict[str, VllmServer] = {}

    def get(self, *wanted: tuple[str, tuple[str, ...]]) -> tuple[VllmServer, ...]:
        missing = []
        for name, flags in wanted:
            server = self._servers.get(name)
            if server is None or not server.alive():
                if server is not None:
                    server.stop()
                self._servers[name] = VllmServer(flags)
                missing.append(self._servers[name])
        start_all(*missing)
        return tuple(self._servers[name] for name, _ in wanted)

    def close(self) -> None:
        for server in self._servers.values():
            server.stop()
        self._servers.clear()


FLEET = pytest.StashKey[Fleet]()


def _fleet(config: pytest.Config) -> Fleet:
    if not available():
        pytest.skip(REMEDY)
    if FLEET not in config.stash:
        config.stash[FLEET] = Fleet()
        config.add_cleanup(config.stash[FLEET].close)
    return config.stash[FLEET]


@pytest.fixture
def vllm_pair(request: pytest.FixtureRequest) -> tuple[VllmServer, VllmServer]:
    """Two equal generating servers. A test may kill them: the next one that asks gets living ones."""
    first, second = _fleet(request.config).get(("a", GENERATE), ("b", GENERATE))
    return first, second


@pytest.fixture
def vllm_urls(vllm_pair: tuple[VllmServer, VllmServer]) -> tuple[str, str]:
    return vllm_pair[0].url, vllm_pair[1].url


@pytest.fixture
def vllm_pooling_url(request: pytest.FixtureRequest) -> str:
    """A server that answers /v1/embeddings, with the same tiny model."""
    (server,) = _fleet(request.config).get(("pooling", POOLING))
    return server.url


@pytest.fixture
def new_vllm(request: pytest.FixtureRequest) -> Callable[..., VllmServer]:
    """Starts a server of this test's own, with flags of its own; it ends with the test."""
    _fleet(request.config)

    def start(*flags: str) -> VllmServer:
        server = VllmServer(flags or GENERATE)
        request.addfinalizer(server.stop)
        return server.start().wait_ready()

    return start
