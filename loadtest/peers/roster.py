"""All contestants, in the order of the table."""

from __future__ import annotations

from loadtest.peers import llm_routers, proxies, python_proxies, switchyard
from loadtest.peers.contestant import Contestant

ALL: tuple[Contestant, ...] = (
    *switchyard.CONTESTANTS,
    python_proxies.CONTESTANTS[0],
    *proxies.CONTESTANTS,
    *llm_routers.CONTESTANTS,
    *python_proxies.CONTESTANTS[1:],
)


def named(names: list[str]) -> list[Contestant]:
    """The contestants asked for, in the order of the table. Raises KeyError for a name there is not."""
    known = {contestant.name for contestant in ALL}
    if unknown := [name for name in names if name not in known]:
        raise KeyError(f"no contestant {', '.join(unknown)}; there are {', '.join(c.name for c in ALL)}")
    return [contestant for contestant in ALL if not names or contestant.name in names]
