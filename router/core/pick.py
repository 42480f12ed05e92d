"""Among scored replicas, the one to take: ties drawn, now and then the second best, the health rule of last resort.

Source: routing.md sections 2.3 (exploration), 2.4 (ties) and 2.6.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from math import inf
from typing import NamedTuple

import numpy as np

from router.core.affinity import Match
from router.core.constants import Constants
from router.core.group import Group
from router.core.policies.base import Contenders, Policy, Rng
from router.core.policies.expected_time import ExpectedTime
from router.core.replica import ReplicaState
from router.core.score import READY, Array, Ask

BY_TIME = ExpectedTime()


class Choice(NamedTuple):
    place: int
    runner_up: int
    """-1 when there is no other that can serve."""
    near: int
    """How many were equal to the best, itself included."""
    explored: bool


class Found(NamedTuple):
    """The best replica of one model, with all that was compared."""

    group: Group
    field: Contenders
    score: Array
    choice: Choice
    policy: Policy
    state: ReplicaState
    expected_ms: float


def find(
    group: Group, ask: Ask, match: Match, policy: Policy, *, exclude: Collection[str], adapter: str, rng: Rng
) -> Found | None:
    """By the model's policy among those that are ready; by time where all must be loaded first and the policy knows
    only ready ones; and without regard to health before nobody is found."""
    for heed_health in (True, False) if group.barred else (True,):
        field = contenders(group, ask, match, exclude=exclude, adapter=adapter, heed_health=heed_health, rng=rng)
        for rule in (policy,) if policy.loads else (policy, BY_TIME):
            score = rule.score(field, rng)
            choice = choose(score, field.figures[READY], rule, rng=rng, constants=group.constants)
            if choice is not None:
                state = group.replicas[field.row(choice.place)]
                assert state is not None
                return Found(group, field, score, choice, rule, state, float(field.ttft[choice.place]))
    return None


def choose(score: Array, ready: Array, policy: Policy, *, rng: Rng, constants: Constants) -> Choice | None:
    """None when no number is finite."""
    best = int(score.argmin())
    least = float(score[best])
    if least == inf:
        return None
    slack = max(constants.tie_ms, constants.tie_fraction * least) if policy.in_ms else 0.0
    near = 1
    equal = (score <= least + slack).nonzero()[0]
    if len(equal) > 1:
        served = equal[ready[equal] > 0.0]
        equal = served if len(served) else equal
        near = len(equal)
        best = int(equal[int(rng.random() * near)])
    second = _second(score, best)
    explored = (
        second >= 0
        and policy.in_ms
        and rng.random() < constants.explore
        and min(ready[best], ready[second]) > 0.0
        and score[second] <= least + constants.explore_ms
    )
    return Choice(second, best, near, True) if explored else Choice(best, second, near, False)


def _second(score: Array, best: int) -> int:
    kept = score[best]
    score[best] = inf
    second = int(score.argmin())
    other = score[second] < inf
    score[best] = kept
    return second if other else -1


def contenders(
    group: Group,
    ask: Ask,
    match: Match,
    *,
    exclude: Collection[str],
    adapter: str,
    heed_health: bool,
    rng: Rng,
) -> Contenders:
    """All replicas of the model, or the promising ones of very many."""
    rows = candidate_rows(group, match, rng=rng) if group.large else None
    figures = group.figures if rows is None else list(group.columns(rows))
    matched: Array | None = None
    if match:
        if rows is None:
            matched = np.zeros(len(figures[0]))
            group.index.spread(match, matched)
        else:
            matched = group.index.matched(match, np.array(rows))
    extra: Array | None = None
    if adapter:
        extra = group.adapter_ms(adapter)
        extra = extra if rows is None else extra[rows]
    out = _out(group, rows, exclude=exclude, heed_health=heed_health)
    return Contenders(
        figures, ask, rows=rows, matched_bytes=matched, extra_ms=extra, out=out, constants=group.constants
    )


def candidate_rows(group: Group, match: Match, *, rng: Rng) -> list[int]:
    """Who holds most of the prompt, who has least to do, and a few strangers."""
    constants = group.constants
    rows: dict[int, None] = {}
    for _, bits in reversed(match):
        if len(rows) >= constants.holders:
            break
        rows.update(dict.fromkeys(group.index.rows(bits, constants.holders - len(rows))))
    rows.update(dict.fromkeys(group.shortlist.cheapest(constants.shortlist, rng.random())))
    size = len(group)
    rows.update(dict.fromkeys([int(rng.random() * size) for _ in range(constants.strangers)]))
    return list(rows)


def why_out(group: Group, rows: Iterable[int], exclude: Collection[str]) -> dict[str, str]:
    """Why replicas are left out of a decision; those that are not are left out of the answer."""
    barred = {} if panic(group) else group.barred
    found = {}
    for row in rows:
        name = group.names[row]
        why = "tried already" if name in exclude else group.unable.get(row, "") or barred.get(row, "")
        if why:
            found[name] = why
    return found


def panic(group: Group) -> bool:
    """So many replicas are barred that sending only to the others would flatten them."""
    serving = int((group.figures[READY] > 0.0).sum()) if group.barred else 0
    return len(group.barred) > group.constants.panic_share * serving


def _out(group: Group, rows: list[int] | None, *, exclude: Collection[str], heed_health: bool) -> list[int]:
    if not exclude and not (group.barred and heed_health):
        return []
    barred = group.barred if heed_health and not panic(group) else ()
    if rows is None:
        tried = [row for row, name in enumerate(group.names) if name in exclude] if exclude else []
        return [*tried, *barred]
    return [place for place, row in enumerate(rows) if row in barred or group.names[row] in exclude]
