"""What no router can beat in a replay, request by request: how near it the others come says more than who is nearest.

Each request has a node of full speed to itself, everything that any earlier request of its model had in common with it
is cached there, and each sleeping model is woken once, by its first request.
"""

from __future__ import annotations

from loadtest import traces
from loadtest.fleet import PLANS
from loadtest.measures import quantile
from loadtest.replay_round import MAX_PROMPT, chosen
from loadtest.verdict import Load
from node_agent.engines.simulated.profiles import PROFILES


def least_ttft_s(load: Load) -> list[float]:
    """Seconds to the first token, in the order of arrival."""
    plan = PLANS[load.plan]
    profile = PROFILES[load.profile or plan.profile]
    warm = {model for node in plan.nodes for model in node.warm}
    block_tokens = max(1, round(traces.BLOCK_TOKENS * load.scale))
    ready_at = dict.fromkeys(warm, 0.0)
    cached: dict[str, set[int]] = {}
    least = []
    for at_s, _, arrival, model in chosen(load):
        prompt = min(MAX_PROMPT, max(1, round(arrival.prompt_tokens * load.scale)))
        seen = cached.setdefault(model, set())
        hits = next((n for n, block in enumerate(arrival.blocks) if block not in seen), len(arrival.blocks))
        seen.update(arrival.blocks)
        fresh = prompt - block_tokens * min(hits, (prompt - 1) // block_tokens)
        steps = -(-fresh // profile.max_batch_tokens)
        work_ms = profile.api_request_ms + steps * profile.base_step_ms
        work_ms += fresh * (profile.prefill_token_ms + profile.attention_token2_ms * (prompt - fresh / 2))
        wait_s = max(0.0, ready_at.setdefault(model, at_s + plan.wake_s) - at_s)
        least.append(wait_s + work_ms / 1000.0)
    return least


def sentence(load: Load) -> str:
    least = least_ttft_s(load)
    p50, p95, p99 = (quantile(least, share) for share in (0.5, 0.95, 0.99))
    return f"No router can beat p50 {p50:.2f}, p95 {p95:.2f} and p99 {p99:.2f} s (replay_bound.py)."
