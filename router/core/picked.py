"""A decision to send, and what was expected of it."""

from __future__ import annotations

import msgspec

from router.core.group import Group
from router.core.model import Decision
from router.core.replica import ReplicaState


class Plan(msgspec.Struct, kw_only=True, eq=False):
    """What was expected of the attempt, in the words the learners need."""

    keys: list[int]
    """Of the prompt's blocks; gone once the attempt has begun."""
    prompt_tokens: float
    uncached: float
    matched_tokens: float
    steps_ms: float
    prefill_ms: float
    """For slowness 1, with what the class has learned."""
    network_ms: float
    expected_ms: float
    p90_ms: float


class Picked(Decision, kw_only=True):
    """A decision to send, with what `begin` needs, so that nothing is computed twice."""

    state: ReplicaState
    group: Group
    plan: Plan
