"""HTTP to one engine, in vLLM's words: health, metrics, sleep, wake, adapters. Never in the path of a token.

Every call has a time limit and raises `EngineSilent` when there is no answer, so that callers have one thing to catch.
"""

from __future__ import annotations

import errno
from typing import Any

import httpx
import msgspec

from node_agent.core.metrics import EngineMetrics, UnreadableMetrics, parse

EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL})
SLEEP_LIMIT_S = 120.0
"""Sleeping copies weights to host memory, waking copies them back."""


class EngineSilent(Exception):  # noqa: N818 - reads as what it is where it is caught
    """No answer, or none that can be used; the text says which."""


class Blind(EngineSilent):
    """It could not even be asked: this host is short of descriptors, ports or memory. Says nothing of the engine."""


class EngineFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine tells of itself once it is up."""

    max_model_len: int = 0
    adapters: tuple[str, ...] = ()


class EngineClient:
    """One engine at `base_url`; the connections belong to the shared httpx client."""

    def __init__(self, http: httpx.AsyncClient, base_url: str, *, timeout_s: float) -> None:
        self._http, self._base, self._timeout_s = http, base_url, timeout_s

    async def health(self) -> int:
        """HTTP status of /health."""
        return (await self._call("GET", "/health")).status_code

    async def metrics(self) -> EngineMetrics:
        answer = await self._call("GET", "/metrics")
        if answer.status_code != 200:
            raise EngineSilent(f"/metrics answered {answer.status_code}")
        try:
            return parse(answer.content)
        except UnreadableMetrics as error:
            raise EngineSilent(str(error)) from error

    async def held_requests(self) -> int:
        """Requests the API server holds, whatever its engine core does; 0 where it does not say."""
        answer = await self._call("GET", "/load")
        load = _json(answer).get("server_load", 0) if answer.status_code == 200 else 0
        return load if isinstance(load, int) else 0

    async def facts(self, model: str) -> EngineFacts:
        data = _json(await self._call("GET", "/v1/models")).get("data") or []
        cards = [card for card in data if isinstance(card, dict)]
        own = next((card for card in cards if card.get("id") == model), {})
        return EngineFacts(
            max_model_len=own.get("max_model_len") or 0,
            adapters=tuple(sorted(str(card["id"]) for card in cards if card.get("parent"))),
        )

    async def sleep(self, level: int) -> None:
        await self._must("POST", f"/sleep?level={level}&mode=abort")

    async def wake(self) -> None:
        await self._must("POST", "/wake_up")

    async def _must(self, method: str, path: str) -> None:
        answer = await self._call(method, path, timeout_s=SLEEP_LIMIT_S)
        if answer.status_code == 404:
            raise EngineSilent(f"the engine has no {path.split('?')[0]}: set sleep = true for this model")
        if answer.status_code != 200:
            raise EngineSilent(f"{path} answered {answer.status_code}: {answer.text[:200]}")

    async def _call(self, method: str, path: str, *, timeout_s: float = 0.0) -> httpx.Response:
        try:
            return await self._http.request(method, self._base + path, timeout=timeout_s or self._timeout_s)
        except httpx.HTTPError as error:
            kind = Blind if _ours(error) else EngineSilent
            raise kind(f"{path}: {error or type(error).__name__}") from error


def _ours(error: BaseException | None) -> bool:
    """Whether the lowest cause, under the layers of httpx, is a want of this host's own."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in EXHAUSTED:
            return True
        causes = error.exceptions if isinstance(error, BaseExceptionGroup) else (error.__cause__ or error.__context__,)
        error = causes[0]
    return False


def _json(answer: httpx.Response) -> dict[str, Any]:
    try:
        value = msgspec.json.decode(answer.content)
    except msgspec.DecodeError:
        return {}
    return value if isinstance(value, dict) else {}
