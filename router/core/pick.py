"""Among scored replicas, the one to take: ties drawn, now and then the second best, the health rule of last resort.

Source: routing.md sections 2.3 (exploration), 2.4 (ties) and 2.6.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from math import inf

from router.core.affinity import Match
from router.core.ask import Ask
from router.core.found import Choice, Found
from router.core.group import Group
from router.core.policies.base import Policy, Rng
from router.core.policies.contenders import Contenders
from router.core.policies.expected_time import ExpectedTime
from router.core.score import READY

BY_TIME = ExpectedTime()


def find(
    group: Group, ask: Ask, match: Match, policy: Policy, exclude: Collection[str], adapter: str, rng: Rng, now: float
) -> Found | None:
    """By the model's policy among those that are ready; by time where all must be loaded first and the policy knows
    only ready ones; and without regard to health before nobody is found."""
    for heed_health in (True, False) if group.barred else (True,):
        field = contenders(group, ask, match, exclude, adapter, heed_health, rng, now)
        for rule in (policy,) if policy.loads else (policy, BY_TIME):
            made = rule.score(field, rng)
            if isinstance(made, list):
                score = made
            else:
                score = made.tolist()
                field.drop_arrays()
            choice = choose(score, field, rule, rng)
            if choice is not None:
                state = group.replicas[field.row(choice.place)]
                assert state is not None
                return Found(group, field, choice, rule, state)
    return None


def choose(score: list[float], field: Contenders, policy: Policy, rng: Rng) -> Choice | None:
    """None when no number is finite. Changes the scores."""
    constants, columns, in_ms = field.constants, field.columns, policy.in_ms
    least = min(score)
    if least == inf:
        return None
    slack = constants.tie_fraction * least
    if slack < constants.tie_ms:
        slack = constants.tie_ms
    limit = least + slack if in_ms else least
    equal = [place for place, value in enumerate(score) if value <= limit]
    count = len(equal)
    if count > 1:
        equal = [place for place in equal if columns[place][READY] > 0.0] or equal
        count = len(equal)
    best = equal[int(rng.random() * count)] if count > 1 else equal[0]
    score[best] = inf
    other = min(score)
    second = score.index(other) if other < inf else -1
    explored = (
        second >= 0
        and in_ms
        and rng.random() < constants.explore
        and columns[best][READY] > 0.0 < columns[second][READY]
        and other <= least + constants.explore_ms
    )
    return Choice(second, best, count, True) if explored else Choice(best, second, count, False)


def contenders(
    group: Group,
    ask: Ask,
    match: Match,
    exclude: Collection[str],
    adapter: str,
    heed_health: bool,
    rng: Rng,
    now: float,
) -> Contenders:
    """All replicas of the model, or the promising ones of many."""
    if not group.large:
        rows = None
        columns = group.columns.copy()  # of now, for the record
        matched = group.index.spread(match, len(columns)) if match else None
        extra = group.adapter_ms(adapter) if adapter else None
    else:
        rows, matched = candidate_rows(group, ask, match, rng)
        group.refresh_these(rows, now)
        columns = [group.columns[row] for row in rows]
        extra = [group.adapter_ms(adapter)[row] for row in rows] if adapter else None
    return Contenders(
        columns=columns,
        ask=ask,
        rows=rows,
        matched_bytes=matched,
        extra_ms=extra,
        out=_out(group, rows, exclude, heed_health) if exclude or group.barred else (),
        constants=group.constants,
    )


def candidate_rows(group: Group, ask: Ask, match: Match, rng: Rng) -> tuple[list[int], list[float]]:
    """Of those who hold most of the prompt, those who have least to do and a few strangers, the ones that look best at
    first sight, with the bytes that each holds: at a cost that does not grow with the fleet."""
    constants, index = group.constants, group.index
    ahead, per_token = group.ahead, group.per_token
    size, chance = len(group.replicas), rng.random()
    # Of sets of more than a quarter of the fleet (two bits a replica), some are among those with least to do.
    held, unread = index.most(match, constants.holders, too_many=size / 2, chance=chance)
    others = dict.fromkeys(group.shortlist.cheapest(constants.shortlist, chance))
    for _ in range(constants.strangers):
        others[int(rng.random() * size)] = None
    more = [row for row in others if row not in held]
    rows, matched = [*held, *more], [*held.values(), *index.matched(unread, more)]
    prompt, per_byte = ask.prompt_tokens, ask.per_byte
    sights = [
        ahead[row] + per_token[row] * (prompt - bytes_ * per_byte) for row, bytes_ in zip(rows, matched, strict=True)
    ]
    best = sorted(range(len(rows)), key=sights.__getitem__)[: constants.scored]
    return [rows[place] for place in best], [matched[place] for place in best]


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
    serving = sum(column[READY] > 0.0 for column in group.columns) if group.barred else 0
    return len(group.barred) > group.constants.panic_share * serving


def _out(group: Group, rows: list[int] | None, exclude: Collection[str], heed_health: bool) -> list[int]:
    barred = group.barred if heed_health and not panic(group) else ()
    if rows is None:
        tried = [row for row, name in enumerate(group.names) if name in exclude] if exclude else []
        return [*tried, *barred]
    return [place for place, row in enumerate(rows) if row in barred or group.names[row] in exclude]
