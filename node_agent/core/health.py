"""Is an engine of any use? Its own /health stays green while it is frozen, draining or asleep; so progress counts.

Two clocks per engine: `idle_s`, with work at hand, since a token last came (what load reports tell), and a stricter
one since *anything* moved, which decides. A long prefill shows no token for a while, but its KV use grows; a frozen
engine shows the same page for ever. An engine frozen while it had no work keeps showing none, so the number of HTTP
requests its API server holds (`/load`) counts as work too.
"""

from __future__ import annotations

import msgspec

from node_agent.core.metrics import EngineMetrics


class HealthLimits(msgspec.Struct, frozen=True, kw_only=True):
    frozen_s: float = 30.0
    """Work at hand and nothing moved for so long: the engine is killed and started anew. 0: never."""
    silent_s: float = 30.0
    """No answer to any scrape for so long: the same. 0: never."""


class Vitals:
    """What was seen of one engine since it came up."""

    def __init__(self, limits: HealthLimits, now: float) -> None:
        self._limits = limits
        self._last: EngineMetrics | None = None
        self._token_at = self._moved_at = self._answered_at = now
        self._work = False

    def scraped(self, metrics: EngineMetrics, now: float, *, held_requests: int = 0) -> None:
        """`held_requests` as /load tells; 0 where the engine has no such page."""
        last, self._last, self._answered_at = self._last, metrics, now
        work = not metrics.asleep and (metrics.running + metrics.waiting + held_requests > 0)
        if last is None or _tokens(metrics) != _tokens(last) or not work or not self._work:
            self._token_at = now
        if last is None or metrics != last or not work or not self._work:
            self._moved_at = now
        self._work = work

    def blind(self, now: float) -> None:
        """It could not be asked, for a want of the agent's own: that speaks against no engine."""
        self._answered_at = self._moved_at = now

    def idle_s(self, now: float) -> float:
        return now - self._token_at if self._work else 0.0

    def verdict(self, now: float) -> str:
        """Why the engine must be killed; empty while there is no reason."""
        limits = self._limits
        if limits.silent_s and now - self._answered_at > limits.silent_s:
            return f"answered no scrape for {now - self._answered_at:.0f} s"
        if limits.frozen_s and self._work and now - self._moved_at > limits.frozen_s:
            return f"frozen: work at hand, but not one token for {self.idle_s(now):.0f} s"
        return ""


def _tokens(metrics: EngineMetrics) -> int:
    return metrics.generation_tokens + metrics.prompt_tokens
