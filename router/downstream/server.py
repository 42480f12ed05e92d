"""uvicorn inside our own task tree, and the order in which a router leaves.

uvicorn alone begins a shutdown with "stop listening". Ours: fail readiness, leave the registry, go on serving while
the news travels, stop listening, let streams end up to a limit, end what is left with an error event.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import ssl
from collections.abc import Awaitable, Callable
from functools import partial
from types import FrameType

import uvicorn

from router.descriptors import clients, raise_limit
from router.downstream.protocol import RouterProtocol, Rules
from router.downstream.routes import Front
from router.settings import RouterSettings

log = logging.getLogger(__name__)

POLL_S = 0.05
DATE_S = 1.0
"""The Date header says a new second so often."""
FORCED_EXIT_S = 5.0
"""For connections to close after the last stream was ended."""


class RouterServer(uvicorn.Server):
    """Signals begin our shutdown instead of uvicorn's; the second one ends at once."""

    def __init__(self, config: uvicorn.Config, rules: Rules, *, on_signal: Callable[[], None]) -> None:
        super().__init__(config)
        self._rules = rules
        self._on_signal = on_signal
        self._signals = 0
        self._ending = asyncio.Event()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._signals += 1
        log.info("%s: %s", signal.Signals(sig).name, "leaving" if self._signals == 1 else "leaving at once")
        if self._signals > 1:
            self.leave_at_once()
        self._on_signal()

    def leave_at_once(self) -> None:
        self.force_exit = True
        self.end()

    def end(self) -> None:
        """Stop listening, and return when the answers under way have ended."""
        self.should_exit = True
        self._ending.set()

    async def main_loop(self) -> None:
        """As uvicorn's, which looks ten times a second whether it is to end; here that is told."""
        while not await self.on_tick(0):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(DATE_S):
                    await self._ending.wait()

    def stop_listening(self) -> None:
        """Only that: connections go on being served."""
        for server in getattr(self, "servers", ()):
            server.close()

    def close_after_answers(self) -> None:
        """Each connection ends with its next answer, so that few are left to be cut between two requests."""
        self._rules.requests_limit = 0

    def close(self) -> None:
        """Close what is still open; nothing is, unless the process is going down in disorder."""
        for server in getattr(self, "servers", ()):
            server.close()
        for connection in list(self.protocols):
            connection.transport.abort()

    def protocol(self) -> RouterProtocol:
        """For a connection that came by another way than the sockets uvicorn knows."""
        return RouterProtocol(self._rules, config=self.config, server_state=self.server_state, app_state={})

    @property
    def protocols(self) -> set[RouterProtocol]:
        return self.server_state.connections  # type: ignore[return-value]


def make_server(app: Front, settings: RouterSettings, *, on_signal: Callable[[], None]) -> RouterServer:
    rules = Rules(
        app.direct,
        connections_limit=clients(settings.connections_limit, descriptors=raise_limit()),
        requests_limit=settings.connection_requests_limit,
        headers_limit=settings.headers_limit,
        request_limit_s=settings.request_limit_s,
    )
    config = uvicorn.Config(
        app,
        interface="asgi3",
        http=partial(RouterProtocol, rules),  # type: ignore[arg-type]  # called as the class would be
        ws="none",
        lifespan="off",
        loop="none",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=4096,
        timeout_keep_alive=int(settings.keep_alive_limit_s),
        timeout_graceful_shutdown=int(settings.drain_limit_s + FORCED_EXIT_S) + 1,
    )
    config.load()
    config.ssl = server_context(settings)
    return RouterServer(config, rules, on_signal=on_signal)


def server_context(settings: RouterSettings) -> ssl.SSLContext | None:
    return settings.tls.server_context()


class Shutdown:
    """The order of leaving, as steps that are given to it. `draining` is what readiness looks at.

    A router that retires has a successor on the same port: it stays ready and stops listening at once."""

    def __init__(self, *, notice_s: float, limit_s: float) -> None:
        self._notice_s = notice_s
        self._limit_s = limit_s
        self._retires = False
        self.asked = asyncio.Event()
        self.draining = False

    def ask(self) -> None:
        self.asked.set()

    def retire(self) -> None:
        self._retires = True
        self.asked.set()

    async def run(
        self,
        server: RouterServer,
        *,
        leave: Callable[[], Awaitable[None]],
        open_calls: Callable[[], int],
        end_streams: Callable[[], None],
    ) -> None:
        """Wait until asked, then leave in order. Returns when the server may be waited for."""
        await self.asked.wait()
        self.draining = not self._retires
        if self._retires:
            server.stop_listening()
        server.close_after_answers()
        await leave()
        if not server.force_exit:
            await asyncio.sleep(self._notice_s)
        server.end()
        clock = asyncio.get_running_loop().time
        until = clock() + self._limit_s
        while open_calls() and clock() < until and not server.force_exit:
            await asyncio.sleep(POLL_S)
        if open_calls():
            log.warning("%d requests did not end within %.0f s; ending them", open_calls(), self._limit_s)
            end_streams()
