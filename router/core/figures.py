"""From what is believed of a replica to the numbers of a decision, and the reason why it may have none.

Runs when something about the replica's node changed, not per candidate and decision. Decides nothing.
Source: routing.md sections 2.2 to 2.5; names as in `score.py`.
"""

from __future__ import annotations

from math import inf

from router.core.constants import Constants
from router.core.outlier import Standing
from router.core.replica import LOADABLE, ReplicaState
from router.core.score import kv_barrier_ms, kv_slope_ms
from wire.records import ModelState


def why_not(replica: ReplicaState) -> str:
    """Why it can serve neither now nor after a load; empty when it can."""
    if replica.node.draining:
        return "its node drains"
    state = replica.current
    if state is ModelState.READY or state in LOADABLE:
        return ""
    return {ModelState.ABSENT: "the model is not on the node", ModelState.DRAINING: "draining"}.get(state, state.value)


def barred(replica: ReplicaState, now: float) -> str:
    """Why health keeps it from being sent requests as long as others can serve; empty when it does not."""
    if replica.health.standing is Standing.SERVING:
        return ""
    match replica.health.at(now):
        case Standing.EJECTED:
            return "ejected after failures"
        case Standing.PROBATION if replica.ledger.entries:
            return "on probation, with its one request under way"
        case _:
            return ""


def figures_of(
    replica: ReplicaState, *, able: bool, elder_since: float, routers: int, now: float, constants: Constants
) -> list[float]:
    """The replica's column, in the order of `score.py`; `able` when nothing is to be said by `why_not`, `elder_since`
    when the first of the model's ready replicas became so."""
    cost, prior, ledger, node = replica.cost, replica.cost.prior, replica.ledger, replica.node
    decoding, backlog, context = ledger.totals(routers=routers, now=now)
    ready = replica.current is ModelState.READY
    waiting = len(ledger.queue)
    more, ahead = _neighbours(replica, routers=routers, now=now) if len(node.replicas) > 1 else (0.0, 0.0)
    step = prior.step_ms + prior.sequence_ms * decoding + prior.context_ms * context + more
    room = 1.0 / max(constants.min_step_tokens, _batch_tokens(replica) - decoding)
    prefill_ms = cost.prefill * prior.prefill_ms
    slowness = _slowness(replica, now, constants)
    ramp = 1.0
    if now - replica.ready_since < constants.slow_start_s:
        ramp = _ramp(now - replica.ready_since, now - elder_since, constants)
    speed = slowness * ramp
    per_token = 1.0 / replica.capacity_tokens()
    used = (context + backlog) * per_token
    network = node.rtt_ms.value + prior.overhead_ms
    load = 0.0 if ready else _load_ms(replica, now, constants)
    health = _health_ms(replica, now, constants)
    pace = slowness * cost.decode * (step + prior.sequence_ms)
    pace += slowness * prefill_ms * backlog * room  # a prefill ahead of us runs between our tokens
    step *= cost.step
    base = network + load + health + speed * (0.5 * step + ahead + backlog * prefill_ms)
    base += kv_barrier_ms(used, constants)
    report = replica.load
    return [
        base if able else inf,
        speed * step,
        speed * prefill_ms,
        speed * cost.prefill * prior.attention_ms,
        room,
        backlog * room,
        used,
        per_token,
        kv_slope_ms(used, per_token, constants),
        pace if able else inf,
        slowness * cost.decode * prior.context_ms,
        replica.hit.value,
        constants.harm_weight * slowness * prefill_ms * (decoding + waiting),
        1.0 if able and ready else 0.0,
        replica.uncertainty.value,
        network,
        load,
        health,
        speed,
        ramp,
        backlog,
        ahead,
        float(len(ledger.entries)),
        float(report.waiting if report is not None else waiting),
        float(report.running if report is not None else len(ledger.entries) - waiting),
        min(1.0, context * per_token),
        replica.latency_ms,
    ]


def _neighbours(replica: ReplicaState, *, routers: int, now: float) -> tuple[float, float]:
    """What all other models on the same GPU add."""
    step = prefill = 0.0
    for other in replica.node.replicas:
        if other is not replica and other.current is ModelState.READY:
            more, work = _beside(other, routers=routers, now=now)
            step, prefill = step + more, prefill + work
    return step, prefill


def _beside(other: ReplicaState, *, routers: int, now: float) -> tuple[float, float]:
    """What another model on the same GPU adds: to each step while it decodes, and its prefill."""
    decoding = other.ledger.decoding(routers=routers, now=now)
    backlog = other.ledger.backlog(routers=routers, now=now)
    if not decoding and not backlog:
        return 0.0, 0.0
    prior = other.cost.prior
    return prior.step_ms + prior.sequence_ms * decoding, other.cost.prefill * prior.prefill_ms * backlog


def _batch_tokens(replica: ReplicaState) -> float:
    return float(replica.record.max_batch_tokens) or replica.cost.prior.batch_tokens


def _slowness(replica: ReplicaState, now: float, constants: Constants) -> float:
    """What was learned, or more when a request has already waited longer than that explains."""
    learned = replica.node.slowness.at(now)
    oldest = replica.ledger.oldest_waiting()
    if oldest is None or oldest.expected_ms <= 0.0:
        return learned
    waited_ms = 1000.0 * (now - oldest.sent_at)
    return max(learned, constants.censored_share * waited_ms / oldest.expected_ms)


def _ramp(age_s: float, elder_s: float, constants: Constants) -> float:
    """How much slower than it is a newcomer looks beside the longest ready one. Where all are new, none is spared: that
    would only make loading yet another look good."""
    floor, whole = constants.slow_start_floor, constants.slow_start_s
    return max(1.0, min(1.0, max(floor, elder_s / whole)) / max(floor, age_s / whole))


def _load_ms(replica: ReplicaState, now: float, constants: Constants) -> float:
    """Time until it can run. Loads on one GPU follow each other; one that starts pays for the disturbance."""
    state = replica.current
    if state not in LOADABLE:
        return 0.0
    total = 1000.0 * replica.load_s(now)
    if state is ModelState.LOADING or replica.waking(now):
        return total
    total += constants.wake_hysteresis_ms
    for other in replica.node.replicas:
        if other is replica:
            continue
        if other.current is ModelState.LOADING or (other.current in LOADABLE and other.waking(now)):
            total += 1000.0 * other.load_s(now)
        elif other.current is ModelState.READY and now - other.used_at < constants.in_use_s:
            total += constants.evict_ms
    return total


def _health_ms(replica: ReplicaState, now: float, constants: Constants) -> float:
    """What failures, an agent's silence and an engine's stillness cost. They add up: a silent agent knows nothing newer
    of an engine that stood still when it last spoke."""
    total = replica.health.penalty_ms(now)
    load = replica.load
    if load is None:
        return total
    unanswered = bool(load.running or load.waiting) and replica.ledger.scrape_overdue(now)
    if replica.node.lost or unanswered or replica.ledger.silence_s(now):
        total += constants.suspect_ms
    # A frozen engine brings no token, or does not even answer its agent's scrape any more.
    still_s = max(load.idle_s, load.scraped_age_s)
    return total + 1000.0 * still_s if still_s > constants.stall_after_s else total
