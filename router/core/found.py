"""What a search among the replicas of one model found."""

from __future__ import annotations

import msgspec

from router.core.group import Group
from router.core.policies.base import Policy
from router.core.policies.contenders import Contenders
from router.core.replica import ReplicaState


class Choice(msgspec.Struct, eq=False, gc=False):
    place: int
    runner_up: int
    """-1 when there is no other that can serve."""
    near: int
    """How many were equal to the best, itself included."""
    explored: bool


class Found(msgspec.Struct, eq=False):
    """The best replica of one model, with all that was compared."""

    group: Group
    field: Contenders
    choice: Choice
    policy: Policy
    state: ReplicaState

    @property
    def expected_ms(self) -> float:
        """With all that makes a replica less welcome."""
        return self.field.ttft_at(self.choice.place)
