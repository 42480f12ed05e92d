"""Ask a router the way any client would: over HTTP, streaming. The control plane's only door to httpx.

Failures come back as one sentence with the remedy; the router's own message is kept, because it knows best.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any, Self

import httpx
import msgspec

from control.core.sse import Answer, Broken, Figures
from control.errors import Failed

FIRST_BYTE_LIMIT_S = 600.0
CONNECT_LIMIT_S = 5.0
PROBE_LIMIT_S = 2.0
PROBE_EVERY_S = 0.05

Message = dict[str, str]


class NotFound(Failed):
    """The router answered, and there is no such thing."""


class Router:
    """`base_url` ends with /v1, as the openai SDK has it. Use as an async context manager."""

    def __init__(self, base_url: str, key: str) -> None:
        self._base_url = base_url.rstrip("/")
        timeout = httpx.Timeout(FIRST_BYTE_LIMIT_S, connect=CONNECT_LIMIT_S)
        headers = {"authorization": f"Bearer {key}"} if key else {}
        # trust_env off: a proxy of the environment has no business between a person and a router next door.
        self._client = httpx.AsyncClient(headers=headers, timeout=timeout, trust_env=_is_remote(base_url))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def models(self) -> list[str]:
        """Names of the models this key may use."""
        body = msgspec.json.decode(await self._get("/models"))
        return [str(model["id"]) for model in body.get("data", ())]

    async def why(self, request_id: str) -> str:
        root = self._base_url.removesuffix("/v1")
        try:
            return (await self._get(f"{root}/admin/why/{request_id}")).decode(errors="replace")
        except NotFound as error:
            raise Failed(
                f"the router at {root} has no record of request {request_id}: "
                "it has not ended yet, never came here, is another tenant's, or was longer ago than is remembered."
            ) from error

    async def whatif(self, *, policy: str, model: str, constants: Sequence[str]) -> bytes:
        """The router's answer as it came: JSON."""
        root = self._base_url.removesuffix("/v1")
        query = httpx.QueryParams([("policy", policy), ("model", model), *(("set", text) for text in constants)])
        return await self._get(f"{root}/admin/whatif?{query}")

    async def chat(
        self, *, model: str, messages: Sequence[Message], on_text: Callable[[str], None], max_tokens: int = 0
    ) -> Figures:
        """`on_text` sees each piece as it arrives. Raise Failed when the answer is not whole."""
        body: dict[str, Any] = {
            "model": model,
            "messages": list(messages),
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if max_tokens:
            body["max_tokens"] = max_tokens
        answer = Answer(asked_at=time.perf_counter())
        try:
            async with self._client.stream("POST", f"{self._base_url}/chat/completions", json=body) as response:
                if response.status_code != httpx.codes.OK:
                    raise Failed(_refused(response, await response.aread()))
                async for data in response.aiter_bytes():
                    if text := answer.feed(data, time.perf_counter()):
                        on_text(text)
            return answer.figures()
        except Broken as error:
            raise Failed(f"{error}; ask again, and see `switchyard nodes` if it stays so.") from error
        except httpx.HTTPError as error:
            raise Failed(self._unreachable(error)) from error

    async def _get(self, path: str) -> bytes:
        url = path if path.startswith("http") else self._base_url + path
        try:
            response = await self._client.get(url)
        except httpx.HTTPError as error:
            raise Failed(self._unreachable(error)) from error
        if response.status_code == httpx.codes.NOT_FOUND:
            raise NotFound(_refused(response, response.content))
        if response.status_code != httpx.codes.OK:
            raise Failed(_refused(response, response.content))
        return response.content

    def _unreachable(self, error: httpx.HTTPError) -> str:
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            return f"no router answers at {self._base_url}; start one with `switchyard up`, or name it with --base-url."
        return f"the connection to {self._base_url} failed ({type(error).__name__}: {error}); ask again."


async def wait_until_answers(url: str) -> None:
    """Until it answers 200; who waits sets the limit."""
    async with httpx.AsyncClient(timeout=PROBE_LIMIT_S, trust_env=False) as client:
        while not await _answers(client, url):
            await asyncio.sleep(PROBE_EVERY_S)


async def _answers(client: httpx.AsyncClient, url: str) -> bool:
    try:
        return (await client.get(url)).status_code == httpx.codes.OK
    except httpx.HTTPError:
        return False


def _is_remote(base_url: str) -> bool:
    return httpx.URL(base_url).host not in ("127.0.0.1", "localhost", "::1")


def _refused(response: httpx.Response, body: bytes) -> str:
    remedy = {
        httpx.codes.UNAUTHORIZED: " Make a key with `switchyard keys create` and pass it with --api-key.",
        httpx.codes.NOT_FOUND: " `switchyard models` shows what there is.",
        httpx.codes.SERVICE_UNAVAILABLE: " `switchyard nodes` shows what is ready.",
    }.get(httpx.codes(response.status_code), "")
    message = _message(body)
    return f"the router answered {response.status_code}: {message}{'' if message.endswith('.') else '.'}{remedy}"


def _message(body: bytes) -> str:
    """The sentence in an error of OpenAI's shape, or the start of whatever came."""
    try:
        error = msgspec.json.decode(body)["error"]
        return str(error["message"] if isinstance(error, dict) else error).rstrip()
    except (msgspec.DecodeError, KeyError, TypeError):
        return body[:200].decode(errors="replace").strip() or "no reason given."
