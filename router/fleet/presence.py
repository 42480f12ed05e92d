"""Keeps this router's own record in the registry under a lease, and takes it out first when the router shuts down."""

from __future__ import annotations

import asyncio
import logging

from wire.records import Router, encode, key
from wire.registry import LeaseLost, Registry, RegistryError, RegistryUnavailable

log = logging.getLogger(__name__)

AGAIN_S = 1.0


class Presence:
    def __init__(self, registry: Registry, record: Router, *, ttl_s: int) -> None:
        self._registry = registry
        self._record = record
        self._ttl_s = ttl_s
        self._lease = 0

    async def run(self) -> None:
        """Register, renew, and register again after a lost lease, until cancelled. The registry may come and go."""
        while True:
            try:
                self._lease = await self._registry.grant(self._ttl_s)
                await self._registry.put(key(self._record), encode(self._record), lease=self._lease)
                await self._registry.keep_alive(self._lease, self._ttl_s)
            except LeaseLost:
                log.info("the router's lease was lost; registering again")
            except (RegistryUnavailable, RegistryError) as error:
                log.info("cannot register yet: %s", error)
                await asyncio.sleep(AGAIN_S)

    async def leave(self) -> None:
        """Out of the registry now; without a registry the lease runs out by itself."""
        try:
            if self._lease:
                await self._registry.revoke(self._lease)
        except RegistryError as error:
            log.info("could not leave the registry (%s); the record ends with its lease", error)
