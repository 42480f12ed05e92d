"""A registry and a router as processes, for engines that the test runs itself: no agent, no load reports, and nobody to
tell the router that an engine died. It finds out by what happens to its streams."""

from __future__ import annotations

import time

import httpx

from tests.e2e.stack import CHAT_MODEL, Stack
from wire.connect import RegistrySettings, connect
from wire.records import ModelState, Replica, encode, key

START_LIMIT_S = 60.0


class House(Stack):
    def __init__(self) -> None:
        super().__init__([], start_limit_s=START_LIMIT_S)

    def start(self) -> House:
        try:
            self._start_registry()
            self.key = self._make_key()
            self._run("router", "router", self._router_settings())
            self._wait_until_it_answers()
        except BaseException as error:
            error.add_note(self.story())
            self.close()
            raise
        return self

    async def engines(self, addresses: dict[str, str]) -> None:
        """Register just these replicas, by name; whatever else was registered goes."""
        registry = connect(RegistrySettings(endpoints=(self.registry,)))
        try:
            known = {replica.replica: replica for replica in await self._replicas(CHAT_MODEL)}
            for name, address in addresses.items():
                record = _replica(name, address)
                await registry.put(key(record), encode(record))
                known.pop(record.replica, None)
            for gone in known.values():
                await registry.delete(key(gone))
        finally:
            await registry.close()

    def _wait_until_it_answers(self) -> None:
        until = time.monotonic() + START_LIMIT_S
        while True:
            try:
                if httpx.get(f"{self.router_url}/health", timeout=5).status_code < 600:
                    return
            except httpx.TransportError:
                self._still_trying(until)


def _replica(name: str, address: str) -> Replica:
    return Replica(
        replica=f"{name}.0",
        node=name,
        region="local",
        model=CHAT_MODEL,
        address=address,
        state=ModelState.READY,
        generation=1,
        token_ids=True,
        max_num_seqs=16,
        max_model_len=2048,
    )
