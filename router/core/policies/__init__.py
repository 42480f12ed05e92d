"""Ways to choose, behind one interface: the default rule and the baselines it has to beat.

Chosen per model by `ModelPolicy.routing`; an unknown name is the default rule, because a misspelt policy must not stop
requests. See `base.py` for the interface.
"""

from __future__ import annotations

from collections.abc import Callable

from router.core.policies.base import Policy
from router.core.policies.baselines import LeastInFlight, PeakEwma, PowerOfTwo, Random, RoundRobin
from router.core.policies.expected_time import ExpectedTime
from router.core.policies.published import CacheAware, LlmdWeights, Lmetric

POLICIES: dict[str, Callable[[], Policy]] = {
    "expected_time": ExpectedTime,
    "random": Random,
    "round_robin": RoundRobin,
    "least_in_flight": LeastInFlight,
    "p2c": PowerOfTwo,
    "peak_ewma_p2c": PeakEwma,
    "sglang_cache_aware": CacheAware,
    "llmd_weights": LlmdWeights,
    "lmetric": Lmetric,
}
DEFAULT = "expected_time"

__all__ = ["DEFAULT", "POLICIES", "Policy"]
