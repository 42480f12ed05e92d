"""From what is believed of a replica to the numbers of a decision, and the reason why it may have none.

Runs when something about the replica's node changed, not per candidate and decision. Decides nothing.
Source: routing.md sections 2.2 to 2.5; names as in `score.py`.
"""

from __future__ import annotations

from math import inf

from router.core.constants import Constants
from router.core.entry import Entry
from router.core.outlier import Standing
from router.core.outlook import Outlook
from router.core.replica import LOADABLE, ReplicaState
from router.core.score import Column, kv_price_ms
from wire.records import ModelState

READY = ModelState.READY


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
    match replica.health.at(now):
        case Standing.EJECTED:
            return "ejected after failures"
        case Standing.PROBATION if replica.ledger.entries:
            return "on probation, with its one request under way"
        case _:
            return ""


def outlook_of(replica: ReplicaState, *, able: bool, elder_since: float, now: float, constants: Constants) -> Outlook:
    """`able` when nothing is to be said by `why_not`, `elder_since` when the first of the model's ready replicas became
    so."""
    ready = replica.current is READY
    age_s = now - replica.ready_since
    new = age_s < constants.slow_start_s
    return Outlook(
        until=-inf if new or not ready or not replica.health.calm else _quiet_until(replica, now),
        able=able,
        ready=able and ready,
        ramp=_ramp(age_s, now - elder_since, constants) if new else 1.0,
        load_ms=0.0 if ready else _load_ms(replica, now, constants),
        health_ms=_health_ms(replica, now, constants),
    )


def figures_of(replica: ReplicaState, routers: int, now: float, constants: Constants) -> Column:
    """The replica's column, in the order of `score.py`."""
    cost, ledger, node, report, outlook = replica.cost, replica.ledger, replica.node, replica.load, replica.outlook
    prior, ramp, sequence_ms = cost.prior, outlook.ramp, cost.prior.sequence_ms
    decoding, backlog, context = ledger.totals(routers, now)
    waiting, entries = len(ledger.queue), len(ledger.entries)
    more, ahead = _neighbours(replica, routers, now) if len(node.replicas) > 1 else (0.0, 0.0)
    step = prior.step_ms + sequence_ms * decoding + prior.context_ms * context + more
    free = replica.batch_tokens - decoding
    if free < constants.min_step_tokens:
        free = constants.min_step_tokens
    room = 1.0 / free
    prefill_ms = cost.prefill * prior.prefill_ms
    slowness = node.slowness.at(now)
    if waiting:
        shown = _shown(next(iter(ledger.queue.values())), now, constants)
        if shown > slowness:
            slowness = shown
    speed = slowness * ramp
    per_token = replica.token_kv
    used = (context + backlog) * per_token
    network = node.rtt_ms.value + prior.overhead_ms
    decode, slow_prefill = slowness * cost.decode, slowness * prefill_ms
    steps_ahead = backlog * room
    pace = decode * (step + sequence_ms) + slow_prefill * steps_ahead  # a prefill ahead of us runs between our tokens
    step *= cost.step
    barrier, slope = kv_price_ms(used, per_token, constants)
    base = network + outlook.load_ms + outlook.health_ms + speed * (0.5 * step + ahead + backlog * prefill_ms) + barrier
    return (
        base if outlook.able else inf,
        speed * step,
        speed * prefill_ms,
        speed * cost.prefill * prior.attention_ms,
        room,
        steps_ahead,
        used,
        per_token,
        slope,
        pace if outlook.able else inf,
        decode * prior.context_ms,
        replica.hit.value,
        constants.harm_weight * slow_prefill * (decoding + waiting),
        1.0 if outlook.ready else 0.0,
        replica.uncertainty.value,
        network,
        outlook.load_ms,
        outlook.health_ms,
        speed,
        ramp,
        backlog,
        ahead,
        entries,
        waiting if report is None else report.waiting,
        entries - waiting if report is None else report.running,
        min(1.0, context * per_token),
        replica.latency_ms,
    )


def _quiet_until(replica: ReplicaState, now: float) -> float:
    """When a healthy replica's report, if it has one, will be overdue; -inf when it is. An idle engine is scraped less
    often than its agent speaks."""
    load, ledger = replica.load, replica.ledger
    if load is None:
        return inf
    until = ledger.overdue_at if load.running or load.waiting else ledger.silent_at
    return until if now <= until else -inf


def _neighbours(replica: ReplicaState, routers: int, now: float) -> tuple[float, float]:
    """What all other models on the same GPU add."""
    step = prefill = 0.0
    for other in replica.node.replicas:
        if other is not replica and other.current is READY:
            more, work = _beside(other, routers, now)
            step, prefill = step + more, prefill + work
    return step, prefill


def _beside(other: ReplicaState, routers: int, now: float) -> tuple[float, float]:
    """What another model on the same GPU adds: to each step while it decodes, and its prefill."""
    decoding = other.ledger.decoding(routers=routers, now=now)
    backlog = other.ledger.backlog(routers=routers, now=now)
    if not decoding and not backlog:
        return 0.0, 0.0
    prior = other.cost.prior
    return prior.step_ms + prior.sequence_ms * decoding, other.cost.prefill * prior.prefill_ms * backlog


def _shown(oldest: Entry, now: float, constants: Constants) -> float:
    """How slow a node is at least, where a request has waited so long already."""
    expected_ms = oldest.expected_ms
    return constants.censored_share * 1000.0 * (now - oldest.sent_at) / expected_ms if expected_ms else 0.0


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
    health, load, ledger = replica.health, replica.load, replica.ledger
    total = health.penalty_ms(now) if health.penalised else 0.0
    if load is None:
        return total
    late = ledger.scrape_overdue(now) and (bool(load.running or load.waiting) or ledger.silent(now))
    if late or replica.node.lost:  # figures are never newer than the report that brought them
        total += constants.suspect_ms
    # A frozen engine brings no token, or does not even answer its agent's scrape any more.
    still_s = max(load.scraped_age_s, load.idle_s)
    return total + 1000.0 * still_s if still_s > constants.stall_after_s else total
