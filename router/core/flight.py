"""One attempt in flight: counted in the ledger from `begin` to `end`, and a lesson to the learners at each step.

Decides nothing. Source: routing.md section 2.3 for what is learned from what.
"""

from __future__ import annotations

from collections.abc import Callable
from math import log

from router.core.entry import Entry
from router.core.learn import Lengths, bounded
from router.core.model import Ending, Shape
from router.core.picked import Picked
from router.core.record import Event, Record
from router.core.replica import ReplicaState
from router.core.score import CONTEXT, TOKEN

COMPLETE, CANCELLED, FAILED = Ending.COMPLETE, Ending.CANCELLED, Ending.FAILED
MIN_HIT_TOKENS = 64.0


class CoreFlight:
    __slots__ = (
        "_changed",
        "_class",
        "_entry",
        "_group",
        "_lengths",
        "_plan",
        "_record",
        "_replica",
        "_shape",
        "_tokens_at",
    )

    def __init__(
        self,
        decision: Picked,
        shape: Shape,
        lengths: Lengths,
        record: Record | None,
        changed: Callable[[ReplicaState], None],
        now: float,
    ) -> None:
        replica, plan = decision.state, decision.plan
        self._replica, self._group, self._shape, self._plan = replica, decision.group, shape, plan
        self._lengths, self._record, self._changed = lengths, record, changed
        self._class = (replica.cost.step, replica.cost.prefill)
        self._tokens_at = 0.0
        self._entry: Entry = replica.ledger.send(
            uncached=plan.uncached, context=plan.prompt_tokens, sequences=max(1, shape.choices), now=now
        )
        self._entry.expected_ms = plan.steps_ms + plan.prefill_ms
        replica.used_at = now
        changed(replica)

    def first_token(self, now: float) -> None:
        entry, plan, replica = self._entry, self._plan, self._replica
        if entry.started or entry.index not in replica.ledger.entries:
            return
        replica.ledger.start(entry, now)
        self._tokens_at = now
        elapsed_ms = 1000.0 * (now - entry.sent_at)
        replica.first_token(elapsed_ms, now)
        self._group.checks.learn(predicted_ms=plan.expected_ms, p90_ms=plan.p90_ms, observed_ms=elapsed_ms)
        replica.uncertainty.learn(min(3.0, abs(log(max(elapsed_ms, 0.001) / plan.expected_ms))))
        self._learn_speed(elapsed_ms, now, censored=False)
        self._note(Event(now, replica.record.replica, took_ms=elapsed_ms))
        self._changed(replica)

    def progress(self, tokens: int, now: float) -> None:
        entry, replica = self._entry, self._replica
        if tokens <= 0 or not entry.started or entry.index not in replica.ledger.entries:
            return
        replica.ledger.progress(entry, tokens)
        elapsed_ms = 1000.0 * (now - self._tokens_at)
        self._tokens_at = now
        if replica.row < 0 or entry.sequences > 1:
            return
        column = self._group.columns[replica.row]
        pace = column[TOKEN] + column[CONTEXT] * entry.context
        if pace < float("inf"):
            replica.cost.pace(predicted_ms=pace / replica.cost.decode, observed_ms=elapsed_ms / tokens)

    def end(
        self, ending: Ending, now: float, *, prompt_tokens: int = 0, cached_tokens: int = -1, output_tokens: int = 0
    ) -> None:
        entry, replica, group = self._entry, self._replica, self._group
        if not replica.ledger.end(entry, now):
            return
        if ending is CANCELLED and not entry.started:
            self._learn_speed(1000.0 * (now - entry.sent_at), now, censored=True)
        replica.health.outcome(ending, now, mean_success=group.success.value)
        if not replica.health.calm:
            replica.unsettle()
        if ending is FAILED or ending is COMPLETE:
            group.success.learn(1.0 if ending is COMPLETE else 0.0)
        if ending is COMPLETE:
            self._learn_counts(prompt_tokens, cached_tokens, output_tokens)
        self._note(Event(now, replica.record.replica, ending))
        self._changed(replica)

    def _learn_speed(self, elapsed_ms: float, now: float, *, censored: bool) -> None:
        plan, replica = self._plan, self._replica
        predicted = plan.steps_ms + plan.prefill_ms
        # The prediction holds the whole first prompt of the queue, so the time already spent on it belongs to it too.
        engine_ms = max(elapsed_ms - plan.network_ms, 0.3 * elapsed_ms) + 1000.0 * self._entry.head_start_s
        if not censored:
            step, prefill = self._class
            replica.cost.first_token(
                step_ms=plan.steps_ms / step,
                prefill_ms=plan.prefill_ms / prefill,
                observed_ms=engine_ms,
                slowness=replica.node.slowness.at(now),
            )
        replica.node.slowness.learn(engine_ms / predicted, now, censored=censored)

    def _learn_counts(self, prompt_tokens: int, cached_tokens: int, output_tokens: int) -> None:
        plan, shape = self._plan, self._shape
        if prompt_tokens > 0 and len(shape.prompt) >= 64 and not shape.delivered_tokens:
            self._group.per_byte.learn(bounded(prompt_tokens / len(shape.prompt), 0.05, 1.5))
        if cached_tokens >= 0 and plan.matched_tokens >= MIN_HIT_TOKENS:
            ceiling = self._replica.constants.hit_ceiling
            self._replica.hit.learn(min(ceiling, cached_tokens / plan.matched_tokens))
        if output_tokens > 0:
            self._lengths.learn(shape.model, shape.tenant, output_tokens)

    def _note(self, event: Event) -> None:
        if self._record is not None:
            self._record.happened = (*self._record.happened, event)
