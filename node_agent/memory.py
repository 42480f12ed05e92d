"""What an agent must not forget over a restart: the last generation of each replica, how long starts have taken, and
what people have drained.

One small JSON file, replaced whole. Lost, generations begin again at 1: routers then take the engine for a new one,
which it is, but may take a late report of the old one for news. So it is written before an engine is started.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from node_agent.core.estimate import Estimate
from node_agent.core.events import Hold


class Kept(msgspec.Struct):
    generations: dict[str, int] = {}
    learned_s: dict[str, float] = {}
    draining: bool = False
    held: dict[str, Hold] = {}


class Memory:
    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            kept = msgspec.json.decode(path.read_bytes(), type=Kept)
        except (OSError, msgspec.DecodeError):
            kept = Kept()
        self._generations = kept.generations
        self.estimate = Estimate(kept.learned_s)
        self.draining = kept.draining
        """The whole node."""
        self.held = kept.held
        """Drained replicas, by name."""

    def generation(self, replica: str) -> int:
        return self._generations.get(replica, 0)

    def started(self, replica: str, generation: int) -> bool:
        """False when it could not be kept."""
        self._generations[replica] = generation
        return self._write()

    def took(self, key: str, seconds: float) -> None:
        self.estimate.observe(key, seconds)
        self._write()

    def drained(self, held: dict[str, Hold], *, draining: bool) -> bool:
        """False when it could not be kept."""
        self.held, self.draining = held, draining
        return self._write()

    def _write(self) -> bool:
        fresh = self._path.with_suffix(".new")
        try:
            kept = Kept(self._generations, self.estimate.learned, self.draining, self.held)
            fresh.write_bytes(msgspec.json.encode(kept))
            os.replace(fresh, self._path)
        except OSError:
            # A full disk must not take an engine down; what is lost is said above.
            return False
        return True
