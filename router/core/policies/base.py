"""What a policy is given and what it gives back: a number per contender, least wins, infinite is out.

Eligibility, ties, exploration and what follows from a winner that must be loaded first are the same for all policies
and not their business. Policies may throw dice (`rng`) and keep counters of their own, one instance per model.
"""

from __future__ import annotations

from typing import Protocol

from router.core.policies.contenders import Contenders
from router.core.score import Array


class Rng(Protocol):
    def random(self) -> float:
        """Uniform in [0, 1)."""
        ...


class Policy(Protocol):
    name: str
    loads: bool
    """Whether replicas that must be loaded first compete; else they are used only when none is ready."""
    uses_prefix: bool
    in_ms: bool
    """Whether the numbers are milliseconds, so that near ones are ties and the second best may be explored."""

    def score(self, contenders: Contenders, rng: Rng) -> Array | list[float]:
        """May be changed by who asked."""
        ...
