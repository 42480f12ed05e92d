"""When is a silent engine given up? From the stream's own pace and what the load reports say, not from a fixed time.

Silence alone proves little: an engine prefills somebody's long prompt, a stream was preempted, a parser holds text
back. Silence of an engine that by its own figures makes no token for anyone proves much. So the patience with a stream
depends on the sign its engine gives, and the model's policy is the cap of them all.

Being wrong costs a second prefill elsewhere, and nothing where the stream could not go on anyway: the caller asks only
for streams that can. Sources: routing.md section 2.8; /health of a frozen vLLM stays green, so it is no sign.
"""

from __future__ import annotations

import enum

import msgspec

LEAST_S = 1.5
"""No stream is given up sooner: reports come every 250 ms and need two to say anything."""
OWN_INTERVALS = 20.0
"""Of the stream's own mean time between events, with an engine that stands still or has nobody to speak for it."""
NAMED_S = 3.0
NAMED_INTERVALS = 50.0
"""With an engine that goes on for others while nobody waits there, and that was asked to name every token: no parser
can be holding this stream's text back, and it has not been preempted, so it is lost."""
ALIVE_S = 10.0
ALIVE_INTERVALS = 100.0
"""With an engine that goes on for others while nobody waits there."""
QUEUED_S = 20.0
QUEUED_INTERVALS = 200.0
"""With an engine that goes on for others while requests wait: this one may have been preempted and comes back."""
FIRST_S = 3.0
FIRST_EXPECTATIONS = 4.0
"""Of the time that was expected at worst for the first token: a long prefill shows no token to anybody."""
ADMITTED_S = 15.0
ADMITTED_EXPECTATIONS = 10.0
"""With an engine where nobody waits: it must have begun with this request long ago."""
PREFILL_LIMIT_S = 10.0
"""A frozen engine's prefills never end: more patience than this they are not given."""
REPORT_LIMIT_S = 1.0
"""A report older than four intervals says nothing about now."""
PRIOR_INTERVAL_S = 0.1
"""Of a stream that is too young to have shown its pace."""
LOST_S = 0.5
"""Figures this much younger than the stream's last event, that show no request at all, do not contain it any more."""


class Sign(enum.StrEnum):
    ALIVE = "alive"
    """Makes tokens, for others at least."""
    QUEUED = "queued"
    """The same, and requests wait for room."""
    STILL = "still"
    """Work at hand and no token, or no answer even to a scrape, or no trace of our request in its figures."""
    GONE = "gone"
    """Another engine has taken its place: whatever the old one still owed will not come."""
    SILENT = "silent"
    """Nobody speaks for it: its agent is gone, or late."""
    LEFT = "left"
    """The same, and its lease has run out: most likely the whole node is gone."""


class Heard(msgspec.Struct, frozen=True, kw_only=True):
    """The latest report of a replica, told at the moment of the question."""

    left: bool = False
    """It is not in the registry any more; nothing else is known then."""
    generation: int = 0
    age_s: float = 0.0
    """Since the report came."""
    scraped_age_s: float = 0.0
    """Since the engine said what is in it."""
    idle_s: float = 0.0
    """With work at hand, since a token came for anyone, as far as is known."""
    running: int = 0
    waiting: int = 0
    prefill_s: float = 0.0
    """Expected time of the prefills under way there, during which no stream may get a token."""


def sign(heard: Heard | None, *, generation: int, silent_s: float) -> Sign:
    """What the report says about an engine from which a request has heard nothing for `silent_s`; `generation` is that
    of the engine it was sent to, 0 if unknown."""
    if heard is not None and heard.left:
        return Sign.LEFT
    if heard is None or heard.age_s > REPORT_LIMIT_S:
        return Sign.SILENT
    if generation and heard.generation > generation:
        return Sign.GONE
    if max(heard.scraped_age_s, heard.idle_s) > LEAST_S + min(heard.prefill_s, PREFILL_LIMIT_S):
        return Sign.STILL
    if not heard.running and not heard.waiting and heard.scraped_age_s < silent_s - LOST_S:
        return Sign.STILL
    return Sign.QUEUED if heard.waiting else Sign.ALIVE


def interval_s(events: int, elapsed_s: float) -> float:
    """Mean time between the events of a stream whose last came `elapsed_s` after its first."""
    return elapsed_s / (events - 1) if events > 2 else PRIOR_INTERVAL_S


def stream_limit_s(sign: Sign, *, interval_s: float, cap_s: float, named: bool = False) -> float:
    """How long a stream with this mean interval between events may be silent; `named`: the engine was asked for the
    ids of its tokens, so that each makes an event."""
    match sign:
        case Sign.ALIVE if named:
            limit_s = max(NAMED_S, NAMED_INTERVALS * interval_s)
        case Sign.ALIVE:
            limit_s = max(ALIVE_S, ALIVE_INTERVALS * interval_s)
        case Sign.QUEUED:
            limit_s = max(QUEUED_S, QUEUED_INTERVALS * interval_s)
        case Sign.GONE:
            limit_s = LEAST_S
        case _:  # it stands still, is silent or left
            limit_s = max(LEAST_S, OWN_INTERVALS * interval_s)
    return min(cap_s, limit_s)


def first_limit_s(sign: Sign, *, expected_s: float, cap_s: float, streams: bool = True) -> float:
    """How long the first token may be awaited; `streams`: it shows when it comes. A late agent is no reason to leave
    its engine, and where requests wait this one may be among them."""
    match sign:
        case Sign.ALIVE if streams:
            return min(cap_s, max(ADMITTED_S, ADMITTED_EXPECTATIONS * expected_s))
        case Sign.STILL | Sign.LEFT:
            return min(cap_s, max(FIRST_S, FIRST_EXPECTATIONS * expected_s))
        case Sign.GONE:
            return min(cap_s, LEAST_S)
        case _:
            return cap_s
