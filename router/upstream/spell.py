"""Asks an engine to spell token ids (`/detokenize`): needed, rarely, to continue a stream cut in mid-character."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import httpx
import msgspec

from wire.records import Replica

SPELL_LIMIT_S = 2.0


class _Spelled(msgspec.Struct):
    prompt: str


class Speller:
    """One small httpx client: this is not the way of tokens."""

    def __init__(self, *, authorization: str = "") -> None:
        headers = {"authorization": authorization} if authorization else {}
        self._client = httpx.AsyncClient(timeout=SPELL_LIMIT_S, headers=headers, trust_env=False)

    async def spell(self, replicas: Sequence[Replica], model: str, ids: Mapping[int, list[int]]) -> dict[int, str]:
        """Text by choice, of those that an engine could spell; empty when none answers."""
        spelled: dict[int, str] = {}
        for replica in replicas[:2]:
            try:
                async with asyncio.timeout(SPELL_LIMIT_S):  # httpx's own limit is between bytes
                    for choice, tokens in ids.items():
                        scheme = "https" if replica.tls else "http"
                        answer = await self._client.post(
                            f"{scheme}://{replica.address}/detokenize", json={"model": model, "tokens": tokens}
                        )
                        spelled[choice] = msgspec.json.decode(answer.content, type=_Spelled).prompt
                return spelled
            except (httpx.HTTPError, msgspec.DecodeError, TimeoutError):
                continue
        return spelled

    async def close(self) -> None:
        await self._client.aclose()
