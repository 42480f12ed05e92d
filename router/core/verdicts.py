"""The winner of a decision in the words of `model.Decision`, with the plan that the learners compare with, and its
record for `why`. Decides nothing.
"""

from __future__ import annotations

from collections.abc import Collection

from router.core.constants import Constants
from router.core.found import Found
from router.core.group import Group
from router.core.hold import Way
from router.core.model import Decision, Shape, Verdict
from router.core.pick import why_out
from router.core.picked import Picked, Plan
from router.core.record import Record
from router.core.score import LOAD, NETWORK, SPEED, UNCERTAINTY, engine_parts_ms, uncached_at

SEND = Verdict.SEND


def send(found: Found, keys: list[int], *, substitute: bool) -> Picked:
    group, field, choice, state = found.group, found.field, found.choice, found.state
    ask, column, matched_bytes = field.ask, field.columns[choice.place], field.matched_at(choice.place)
    prompt, name = ask.prompt_tokens, found.policy.name
    fresh = uncached_at(column, ask, matched_bytes)
    steps_ms, prefill_ms = engine_parts_ms(column, ask, fresh)
    # What only orders replicas (full memory, health) is no time, and in no prediction.
    expected_ms = column[NETWORK] + column[LOAD] + column[SPEED] * (steps_ms + prefill_ms)
    if field.extra_ms is not None:
        expected_ms += field.extra_ms[choice.place]
    p90_ms = group.checks.p90_ms(expected_ms, column[UNCERTAINTY])
    plan = Plan(
        keys=keys,
        prompt_tokens=prompt,
        uncached=fresh,
        matched_tokens=matched_bytes * ask.per_byte,
        steps_ms=steps_ms,
        prefill_ms=prefill_ms,
        network_ms=column[NETWORK],
        expected_ms=expected_ms,
        p90_ms=p90_ms,
    )
    how = "the second best, to see whether it still is" if choice.explored else f"the best by {name}"
    equal = f", drawn from {choice.near} equal ones" if choice.near > 1 else ""
    instead = f", instead of the model asked for: {group.model}" if substitute else ""
    return Picked(
        verdict=SEND,
        replica=state.record.replica,
        policy=name,
        expected_ttft_ms=expected_ms,
        expected_p90_ms=p90_ms,
        uncached_tokens=int(fresh),
        prompt_tokens=int(prompt),
        runner_up=group.names[field.row(choice.runner_up)] if choice.runner_up >= 0 else "",
        reason=f"{how} of {len(group.replicas)}{equal}{instead}",
        explored=choice.explored,
        model=group.model if substitute else "",
        state=state,
        group=group,
        plan=plan,
    )


def wait(found: Found, way: Way, constants: Constants) -> Decision:
    """Hold for a load under way, or begin one."""
    state = found.state.current.value
    name = found.state.record.replica
    doing = "asked to wake" if way.verdict is Verdict.WAKE else "to be waited for"
    return Decision(
        verdict=way.verdict,
        replica=name,
        policy=found.policy.name,
        expected_ttft_ms=way.expected_ms,
        expected_p90_ms=found.group.checks.p90_ms(way.expected_ms, constants.uncertainty_prior),
        prompt_tokens=int(found.field.ask.prompt_tokens),
        reason=f"{name} is {state} and {doing}: a first token is expected in {way.expected_ms / 1000.0:.1f} s",
        retry_after_s=min(constants.hold_poll_s, max(0.05, way.expected_ms / 1000.0)),
    )


def misfit(shape: Shape) -> Decision:
    """The model is here, for another kind of request."""
    serves, asked_for = ("chat or completions", "embeddings")[:: 1 if shape.embedding else -1]
    return Decision(verdict=Verdict.MISFIT, reason=f"{shape.model!r} serves {serves}, not {asked_for}")


def nobody(shape: Shape, group: Group | None, exclude: Collection[str], constants: Constants) -> Decision:
    if group is None:
        what = "embeddings" if shape.embedding else "chat or completions"
        reason = f"no replica of {shape.model!r} serves {what}"
    else:
        whys = sorted(set(why_out(group, range(len(group)), exclude).values()))
        reason = f"no replica of {shape.model!r} can serve: {', '.join(whys) or 'none has the adapter'}"
    return Decision(verdict=Verdict.NONE, reason=reason, retry_after_s=constants.retry_after_s)


def record(found: Found, decision: Decision, *, model: str, exclude: Collection[str], now: float) -> Record:
    """All that was compared, as references; what is told of it is chosen when somebody asks."""
    group, field = found.group, found.field
    excluded = {}
    if group.unable or field.out:
        excluded = why_out(group, field.rows or range(len(group)), exclude)
        excluded.pop(decision.replica, None)
    return Record(at=now, model=model, decision=decision, field=field, names_by_row=group.names, excluded=excluded)
