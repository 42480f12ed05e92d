"""Rules of other LLM routers, from their documents: SGLang's cache-aware, llm-d's weights, LMETRIC.

For comparison, with their published defaults as arguments, so that a comparison can tune them. They use our prefix
index and our ledger, which is more than some of them have. Source: routing.md section 1.2.
"""

from __future__ import annotations

import numpy as np

from router.core.policies.base import Rng
from router.core.policies.contenders import Contenders
from router.core.score import IN_FLIGHT, KV_SHARE, QUEUE, WAITING, Array


class CacheAware:
    """Least load when out of balance by both thresholds, else the longest match if it is long enough, else the one
    with the smallest tree (here: the least in flight)."""

    name = "sglang_cache_aware"
    loads = False
    uses_prefix = True
    in_ms = False

    def __init__(self, *, absolute: float = 32.0, relative: float = 1.1, match: float = 0.5) -> None:
        self.absolute, self.relative, self.match = absolute, relative, match

    def score(self, contenders: Contenders, rng: Rng) -> Array:
        load = contenders.figures[IN_FLIGHT] + contenders.ready
        able = load[np.isfinite(load)]
        if not len(able):
            return load
        most, least = float(able.max()), float(able.min())
        if most - least > self.absolute and most > self.relative * least:
            return load
        matched = contenders.matched_tokens
        longest = float((matched - contenders.ready).max())
        if longest > self.match * contenders.ask.prompt_tokens:
            return np.where(matched >= longest, load, np.inf)
        return load


class LlmdWeights:
    """Weighted scores in [0, 1]: queue and KV use by min-max, share of the prompt cached."""

    name = "llmd_weights"
    loads = False
    uses_prefix = True
    in_ms = False

    def __init__(self, *, queue: float = 2.0, kv: float = 2.0, prefix: float = 3.0) -> None:
        self.queue, self.kv, self.prefix = queue, kv, prefix

    def score(self, contenders: Contenders, rng: Rng) -> Array:
        able = np.isfinite(contenders.ready)
        waiting = contenders.figures[WAITING]
        span = waiting[able] if able.any() else np.zeros(1)
        queue = (span.max() - waiting) / max(1.0, float(span.max() - span.min()))
        cached = contenders.matched_tokens / max(1.0, contenders.ask.prompt_tokens)
        good = self.queue * np.where(able, queue, 0.0) + self.prefix * cached
        good += self.kv * (1.0 - np.where(able, contenders.figures[KV_SHARE], 1.0))
        return contenders.ready - good


class Lmetric:
    """Uncached tokens ahead and ours, times the size of the batch and one more."""

    name = "lmetric"
    loads = False
    uses_prefix = True
    in_ms = False

    def score(self, contenders: Contenders, rng: Rng) -> Array:
        tokens = np.where(np.isfinite(contenders.ready), contenders.figures[QUEUE], 0.0) + contenders.fresh
        return tokens * (contenders.figures[IN_FLIGHT] + 1.0) + contenders.ready
