"""What this router believes of one replica and of its node: the registry's record, the last report, what was learned.

A node is kept once: engines on one GPU share its slowness and slow each other down. Whether the model is present
belongs to the replica. Decides nothing; `figures.py` turns this into the numbers of a decision.
Sources: routing.md sections 2.4 (whom to believe), 2.5 (states), 2.8 (what is lost with which signal).
"""

from __future__ import annotations

from math import exp, inf

from router.core.constants import RTT_REGION_MS, Constants
from router.core.learn import ClassCost, LoadTime, Mean, Slowness
from router.core.ledger import Ledger
from router.core.model import ReplicaLoad
from router.core.outlier import Health
from router.core.outlook import UNSEEN
from wire.records import ModelState, Node, Replica

LOADABLE = frozenset({ModelState.LOADING, ModelState.SLEEPING, ModelState.ON_DISK})
DRAINING = ModelState.DRAINING
PEAK_DECAY_S = 10.0


class NodeState:
    __slots__ = ("answered_at", "lost", "name", "record", "replicas", "rtt_ms", "slowness")

    def __init__(self, name: str, record: Node | None, constants: Constants) -> None:
        self.name = name
        self.record = record
        self.replicas: list[ReplicaState] = []
        self.slowness = Slowness(constants)
        self.rtt_ms = Mean(RTT_REGION_MS[True], 0.125)
        self.lost = False
        """Its agent's stream broke, and has not come back."""
        self.answered_at = -inf
        """Last first token from any engine of it: proof of life that needs no agent."""

    @property
    def draining(self) -> bool:
        return self.record is not None and self.record.draining


class ReplicaState:
    __slots__ = (
        "_latency_at",
        "asked_at",
        "batch_tokens",
        "constants",
        "cost",
        "current",
        "generation",
        "health",
        "hit",
        "latency_ms",
        "ledger",
        "load",
        "loads",
        "node",
        "outlook",
        "ready_since",
        "record",
        "record_at",
        "row",
        "since",
        "stale",
        "token_kv",
        "unanswered_asks",
        "uncertainty",
        "used_at",
    )

    def __init__(
        self, record: Replica, node: NodeState, cost: ClassCost, constants: Constants, *, sent: int, now: float
    ):
        self.record = record
        self.record_at = now
        """When the registry's word about the state changed."""
        self.node = node
        self.cost = cost
        self.constants = constants
        self.outlook = UNSEEN
        """As of the last look (figures.py)."""
        self.row = -1
        self.stale: set[int] = set()
        """Rows of its group whose figures are out of date; the group's own."""
        self.generation = record.generation
        self.load: ReplicaLoad | None = None
        self.batch_tokens = self.token_kv = 0.0
        """Prompt tokens that a step takes; share of the KV memory that one token takes."""
        self._sized()
        self.current = record.state
        """The state as of the last look; a change is news (see `look`)."""
        self.since = now
        self.ready_since = -inf
        """When it became ready before our eyes: those that were so already need no slow start."""
        self.ledger = Ledger(constants, sent=sent, born=now)
        self.health = Health(constants)
        self.hit = Mean(1.0, constants.hit_rate)
        self.uncertainty = Mean(constants.uncertainty_prior, constants.uncertainty_rate)
        self.latency_ms = 1000.0
        self._latency_at = now
        self.asked_at = -inf
        """When a wake was last asked for; -inf when it has been answered."""
        self.unanswered_asks = 0
        self.used_at = -inf
        prior = {ModelState.SLEEPING: constants.sleeping_s, ModelState.ON_DISK: constants.on_disk_s}
        self.loads = {state: LoadTime(seconds, constants.load_rate) for state, seconds in prior.items()}
        self.loads[ModelState.LOADING] = LoadTime(constants.loading_s, constants.load_rate)

    def state(self, now: float) -> ModelState:
        """Of record and report the one that is news; either may say draining."""
        load, record = self.load, self.record
        if load is None or record.state is DRAINING:
            return record.state
        if self.record_at > self.ledger.reported_at and self.ledger.silent(now):
            return record.state
        return load.state

    def renew(self, record: Replica, now: float) -> None:
        if record.state is not self.record.state:
            self.record_at = now
        self.record = record
        self._sized()

    def hear(self, load: ReplicaLoad, now: float) -> None:
        """Its agent's report."""
        if self.load is None or self.load.kv_capacity_tokens != load.kv_capacity_tokens:
            self.load = load
            self._sized()
        self.load = load
        self.ledger.reconcile(load, now)

    def look(self, now: float) -> tuple[ModelState, ModelState]:
        """Notice a change of state: (before, now). What a load took is learned here."""
        before, state = self.current, self.state(now)
        if state is before:
            return before, state
        if state is ModelState.READY:
            if before in LOADABLE:
                self._loaded(before, now)
            self.ready_since = now
            self.asked_at, self.unanswered_asks = -inf, 0
        if state is not ModelState.LOADING or before not in LOADABLE:
            self.since = now
        else:
            self.since = self.asked_at if self.asked_at > self.since else now
            self.loads[ModelState.LOADING] = self.loads[before]
        self.current = state
        return before, state

    def unsettle(self) -> None:
        """Something happened that is more than a request."""
        self.outlook = UNSEEN

    def restart(self, generation: int) -> None:
        """A new engine: what was cached, reported and held against the old one is void. Our own requests end by
        themselves."""
        self.generation = generation
        self.health = Health(self.constants)
        self.hit = Mean(1.0, self.constants.hit_rate)
        self.ledger.forget_others()
        self.load = None
        self._sized()

    def ask_wake(self, now: float) -> None:
        self.asked_at = now

    def load_s(self, now: float) -> float:
        """Expected seconds until it can serve, in a state that can be loaded."""
        state = self.current
        if state is ModelState.LOADING:
            if self.load is not None and self.load.load_remaining_s > 0.0:
                return max(0.0, self.load.load_remaining_s - (now - self.ledger.reported_at))
            return self.loads[state].remaining_s(now - self.since)
        whole = self.loads[state].mean_s * 2.0 ** min(self.unanswered_asks, 6)
        if self.waking(now):
            return max(self.constants.report_interval_s, whole - (now - self.asked_at))
        return whole

    def waking(self, now: float) -> bool:
        """Asleep, asked for and not yet answered: to be waited for like one that loads. An ask nobody answers is
        forgotten after twice the time a load takes, and then counts against the replica."""
        if self.asked_at == -inf:
            return False
        if now - self.asked_at <= max(10.0, 2.0 * self.loads[self.current].mean_s):
            return True
        self.asked_at = -inf
        self.unanswered_asks += 1
        return False

    def first_token(self, elapsed_ms: float, now: float) -> None:
        self.node.answered_at = now
        if elapsed_ms >= self.latency_ms:
            self.latency_ms = elapsed_ms
        else:
            keep = exp(-max(0.0, now - self._latency_at) / PEAK_DECAY_S)
            self.latency_ms = self.latency_ms * keep + elapsed_ms * (1.0 - keep)
        self._latency_at = now

    def capacity_tokens(self) -> float:
        reported = self.load.kv_capacity_tokens if self.load is not None else 0
        return float(reported or self.record.kv_capacity_tokens) or self.cost.prior.kv_tokens

    def _sized(self) -> None:
        self.batch_tokens = float(self.record.max_batch_tokens) or self.cost.prior.batch_tokens
        self.token_kv = 1.0 / self.capacity_tokens()

    def _loaded(self, before: ModelState, now: float) -> None:
        began = max(self.since, self.asked_at)
        if before is ModelState.LOADING or self.asked_at > -inf:
            self.loads[before].learn(now - began)
