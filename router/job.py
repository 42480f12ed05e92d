"""What one attempt is to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import msgspec

from router.call import Attempt
from router.core.limits import Patience
from router.core.model import Decision
from router.resume import FirstLeg, SplicedLeg, Story, WholeLeg
from wire.records import ModelPolicy, Replica

if TYPE_CHECKING:
    from router.relay import Relay


class Rival(Protocol):
    """One of two attempts that race for the first token (race.py)."""

    def entered(self, relay: Relay) -> None: ...

    def leads(self) -> None:
        """Its first event has come and goes to the client next."""
        ...

    def look(self, relay: Relay, now: float) -> None:
        """At each sweep."""
        ...


class Job(msgspec.Struct, kw_only=True):
    decision: Decision
    replica: Replica
    policy: ModelPolicy
    patience: Patience
    kind: str
    path: str
    body: Callable[[], bytes]
    """Asked when it is sent, so that it is not kept while the answer streams."""
    editor: FirstLeg | SplicedLeg | WholeLeg
    story: Story | None
    """Of a stream; None where the answer comes whole."""
    choices: int
    goes_on: Callable[[Story, Replica], bool]
    """Whether a stream from this replica could go on elsewhere now."""
    rival: Rival | None = None

    def movable(self) -> bool:
        return self.story is not None and self.goes_on(self.story, self.replica)

    def silence_limits_s(self, attempt: Attempt) -> tuple[float, float]:
        """How long the engine may be silent now: by the client's headers, and by the model's policy."""
        if attempt.first_token:
            return self.patience.between_tokens_s, self.policy.between_tokens_limit_s
        return self.patience.first_token_until - attempt.started, self.policy.first_token_limit_s
