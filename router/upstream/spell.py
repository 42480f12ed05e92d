"""Asks an engine to spell token ids (`/detokenize`): needed, rarely, to continue a stream whose tokens were bundled."""

from __future__ import annotations

import asyncio
import ssl

import httpx
import msgspec

from wire.records import Replica

SPELL_LIMIT_S = 1.0


class _Spelled(msgspec.Struct):
    prompt: str


class Speller:
    """One small httpx client: this is not the way of tokens."""

    def __init__(self, *, tls: ssl.SSLContext | None = None) -> None:
        self._client = httpx.AsyncClient(timeout=SPELL_LIMIT_S, verify=tls or True, trust_env=False)

    async def spell(self, replicas: list[Replica], model: str, ids: list[int]) -> str | None:
        """The text of ids, by the first replica that tells; None when none does. Who does not is taken from the list,
        so that nobody waits for it twice."""
        while replicas:
            scheme = "https" if replicas[0].tls else "http"
            url, asked = f"{scheme}://{replicas[0].address}/detokenize", {"model": model, "tokens": ids}
            try:
                async with asyncio.timeout(SPELL_LIMIT_S):  # httpx's own limit is between bytes
                    answer = await self._client.post(url, json=asked)
                return msgspec.json.decode(answer.content, type=_Spelled).prompt
            except (httpx.HTTPError, msgspec.DecodeError, TimeoutError):
                replicas.pop(0)
        return None

    async def close(self) -> None:
        await self._client.aclose()
