"""What another policy or other constants would have made of the decisions that are remembered.

Each decision to send is replayed alone, from the figures it was made from: what another choice would have changed for
the requests after it is not known here, that is for the simulation. Decides nothing.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
import numpy as np

from router.core.constants import Constants
from router.core.difference import Difference, Example, Question, largest
from router.core.model import Verdict
from router.core.policies import POLICIES
from router.core.policies.base import Policy, Rng
from router.core.policies.contenders import Contenders
from router.core.record import Record
from router.core.score import BASE, KV_SLOPE, KV_TOKEN, KV_USED, READY, Column, kv_barrier_ms, kv_price_ms

REPLAYED = ("excess_tpot_weight", "kv_barrier_ms", "kv_full", "tie_ms", "tie_fraction")
"""Constants whose effect can be told from what is remembered; others were folded into the figures before."""


def question(policy: str, constants: Iterable[tuple[str, str]], *, model: str = "") -> Question:
    """From text. Raise ValueError with a sentence."""
    if policy not in POLICIES:
        raise ValueError(f"there is no policy {policy!r}; there are {', '.join(POLICIES)}")
    found: dict[str, float] = {}
    for name, value in constants:
        if name not in REPLAYED:
            raise ValueError(f"{name!r} cannot be replayed; {', '.join(REPLAYED)} can")
        try:
            found[name] = float(value)
        except ValueError:
            found[name] = -1.0
        if not 0.0 <= found[name] < (1.0 if name == "kv_full" else float("inf")):
            raise ValueError(f"{name}: {value!r} will not do")
    return Question(policy=policy, constants=found, model=model)


def whatif(records: Iterable[tuple[str, Record]], asked: Question, *, constants: Constants, rng: Rng) -> Difference:
    """`records` with their request's id, `constants` as they were. Explorations are left out: they were no mistake."""
    rule = POLICIES[asked.policy]()
    other = msgspec.structs.replace(constants, **asked.constants)
    decisions = changed = 0
    before = after = 0.0
    examples: list[Example] = []
    for request, record in records:
        decision = record.decision
        if decision.verdict is not Verdict.SEND or decision.explored or asked.model not in ("", record.model):
            continue
        places = _replayed(record, rule, constants=constants, other=other, rng=rng)
        if places is None:
            continue
        was, would, instead = places
        decisions += 1
        before, after = before + was, after + would
        if instead:
            changed += 1
            examples.append(Example(request, record.model, decision.replica, instead, was, would))
    count = max(1, decisions)
    return Difference(
        decisions=decisions,
        changed=changed,
        expected_ms=before / count,
        instead_ms=after / count,
        examples=largest(examples),
    )


def _replayed(
    record: Record, rule: Policy, *, constants: Constants, other: Constants, rng: Rng
) -> tuple[float, float, str] | None:
    """Expected ms where it went, and where it would have gone, and the name of that when it is another and better by
    more than a tie; None for a decision that the policy could not have made."""
    names = list(record.names)
    seen = record.field
    columns = seen.columns
    if (constants.kv_barrier_ms, constants.kv_full) != (other.kv_barrier_ms, other.kv_full):
        columns = [_with_barrier(column, constants, other) for column in columns]
    field = Contenders(
        columns=columns,
        ask=seen.ask,
        rows=None,
        matched_bytes=seen.matched_bytes,
        extra_ms=seen.extra_ms,
        out=[place for place, name in enumerate(names) if name in record.excluded],
        constants=other,
    )
    score = rule.score(field, rng)
    best = int(np.argmin(score))
    chosen = names.index(record.decision.replica)
    if not np.isfinite(score[best]) or not columns[chosen][READY]:
        return None
    least = float(score[best])
    slack = max(other.tie_ms, other.tie_fraction * least) if rule.in_ms else 0.0
    was = field.ttft_at(chosen)
    if score[chosen] <= least + slack:
        return was, was, ""
    return was, field.ttft_at(best), names[best]


def _with_barrier(column: Column, constants: Constants, other: Constants) -> Column:
    """The figures with another price of full memory folded in."""
    new = list(column)
    used = column[KV_USED]
    barrier, new[KV_SLOPE] = kv_price_ms(used, column[KV_TOKEN], other)
    new[BASE] += barrier - kv_barrier_ms(used, constants)
    return tuple(new)
