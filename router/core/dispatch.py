"""Where a request goes: the one object the shell asks.

Finds the contenders for a request, lets the model's policy score them, and turns the winner into a verdict. The rule is
in `score.py`, the choice in `pick.py`, waiting and waking in `hold.py`, what is believed in `belief.py`. One per router
process, one thread, no I/O. Source: routing.md section 2.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from router.core import hold, verdicts
from router.core.affinity import chain
from router.core.ask import Ask
from router.core.belief import Belief
from router.core.checks import Accuracy
from router.core.classes import Cost
from router.core.constants import Constants
from router.core.difference import Difference, Question
from router.core.explain import Chapter, Records, candidates, chapters, story, tell
from router.core.flight import CoreFlight
from router.core.found import Found
from router.core.group import Group
from router.core.learn import Lengths
from router.core.model import Candidate, Decision, Fleet, LoadReport, Shape, Verdict
from router.core.pick import find, why_out
from router.core.picked import Picked
from router.core.policies import DEFAULT, POLICIES, Policy
from router.core.policies.base import Rng
from router.core.policies.contenders import Contenders
from router.core.pressure import ahead_ms
from router.core.record import Record, Told
from router.core.score import CONTEXT, TOKEN
from router.core.stall import Heard
from router.core.whatif import whatif
from wire.records import ModelState

READY = ModelState.READY
OUTPUT_WORK = 2.0
"""An output token weighs as much as so many of the prompt, where tenants take turns [VTC]."""
INDEX_CHECK = 64
"""Sends between two looks at the size of all prefix indexes."""


class CoreDispatcher:
    """See `model.Dispatcher`; more is offered than it asks for: peers, round trips, why, whatif, accuracy."""

    def __init__(
        self,
        *,
        rng: Rng,
        constants: Constants | None = None,
        costs: dict[tuple[str, str], Cost] | None = None,
        policies: Mapping[str, Callable[[], Policy]] = POLICIES,
    ) -> None:
        """`costs` are priors by (model, device class), for fleets that were measured; `policies` by the name that a
        model's policy record uses."""
        self._rng = rng
        self._constants = constants or Constants()
        self._belief = Belief(self._constants, costs or {})
        self._lengths = Lengths(self._constants)
        self._rules = policies
        self._policies: dict[tuple[str, str], Policy] = {}
        """By model and name, with what they count."""
        self._chosen: dict[str, Policy] = {}
        """By model, as long as the fleet's records are the same."""
        self._records = Records(self._constants.records)
        self._peers: dict[str, tuple[str, float, float]] = {}
        """Region, expected ms and when it was said, of the best other region by model."""
        self._sends = 0

    # News

    def apply(self, fleet: Fleet, now: float) -> None:
        self._belief.apply(fleet, now)
        self._chosen.clear()

    def report(self, report: LoadReport, now: float) -> None:
        self._belief.report(report, now)

    def node_lost(self, node: str, now: float) -> None:
        self._belief.node_lost(node, now)

    def observe_rtt(self, node: str, rtt_s: float) -> None:
        """Of a heartbeat, or of any small exchange with the node."""
        self._belief.observe_rtt(node, rtt_s)

    def peer(self, region: str, model: str, expected_ms: float, now: float) -> None:
        """Another region's best time to the first token, as its routers publish it, the way there included."""
        known = self._peers.get(model)
        better = known is None or known[0] == region or expected_ms < known[1]
        if better or now - known[2] > self._constants.spill_fade_s:  # type: ignore[index]
            self._peers[model] = (region, expected_ms, now)

    # Decisions

    def pick(self, shape: Shape, *, exclude: Collection[str] = (), now: float) -> Decision:
        keys = chain(shape.model, shape.prompt)
        found = self._find(shape, shape.model, keys, exclude, now)
        if found is not None and found.state.current is READY and not self._peers:
            return self._send(shape, found, keys, exclude, now)
        if found is None and not self._belief.known(shape.model):
            return Decision(verdict=Verdict.UNKNOWN_MODEL, reason=f"there is no model {shape.model!r} in this region")
        own = hold.here(found.state, found.expected_ms, now) if found else None
        instead = None if own and own.verdict is Verdict.SEND else self._find_fallback(shape, exclude, now)
        fallback = hold.Way(Verdict.SEND, instead.expected_ms) if instead else None
        way = hold.least(own, spill=self._spill(shape.model, now), fallback=fallback, constants=self._constants)
        if way is None:
            group = self._group(shape.model, shape.embedding)
            if group is None and self._group(shape.model, not shape.embedding) is not None:
                return verdicts.misfit(shape)
            return verdicts.nobody(shape, group, exclude, self._constants)
        if way.verdict is Verdict.SPILL:
            reason = f"region {way.where} is expected to answer in {way.expected_ms:.0f} ms"
            return Decision(verdict=Verdict.SPILL, region=way.where, expected_ttft_ms=way.expected_ms, reason=reason)
        if instead is not None and way is fallback:
            return self._send(shape, instead, [], exclude, now)
        assert found is not None
        return (
            self._send(shape, found, keys, exclude, now)
            if way.verdict is Verdict.SEND
            else self._wait(shape, found, way, exclude, now)
        )

    def substitute(self, shape: Shape, *, exclude: Collection[str] = (), now: float) -> Decision | None:
        """A ready replica of the model that policy names instead, where the client allows it."""
        found = self._find_fallback(shape, exclude, now)
        return self._send(shape, found, [], exclude, now) if found else None

    def begin(self, decision: Decision, shape: Shape, now: float) -> CoreFlight:
        if not isinstance(decision, Picked):
            raise TypeError("only a decision of `pick` with the verdict SEND can be begun")
        decision.group.index.insert(decision.state.row, decision.plan.keys)
        decision.plan.keys = []  # the record keeps the plan, and the keys are only needed here
        self._sends += 1
        if self._sends % INDEX_CHECK == 0:
            self._belief.bound_indexes()
        record = self._records.last(shape.request_id)
        self._records.make_room()
        return CoreFlight(decision, shape, self._lengths, record, self._belief.changed, now)

    # Admission

    def pool(self, model: str, *, embedding: bool) -> tuple[str, bool]:
        """Those that wait for the same replicas have the same pool (admission.Pool)."""
        return self._belief.base(model), embedding

    def ahead_ms(self, pool: tuple[str, bool], now: float) -> float:
        """Expected wait behind others, where it is shortest (pressure.py); 0 where nobody could serve."""
        group = self._belief.groups.get(pool)
        return ahead_ms(group, now) if group else 0.0

    def work_tokens(self, decision: Decision, shape: Shape) -> float:
        """What the request costs those that queue with it: prompt tokens to compute, and twice the expected output."""
        output = self._lengths.expected(shape.model, shape.tenant, limit=shape.max_tokens)
        return decision.uncached_tokens + OUTPUT_WORK * max(1, shape.choices) * (0.0 if shape.embedding else output)

    def note(self, request_id: str, what: str, now: float) -> None:
        """Beside the last decision about the request, for `why`."""
        record = self._records.last(request_id)
        if record is not None:
            record.notes = (*record.notes, (now, what))

    # Questions

    def explain(self, shape: Shape, *, now: float) -> list[Candidate]:
        group = self._group(shape.model, shape.embedding)
        if group is None:
            return []
        for state in group.present:
            group.refresh(state, now)
        rows = range(len(group))
        match = group.index.match(chain(shape.model, shape.prompt))
        field = Contenders(
            columns=group.columns,
            ask=self._ask(group, shape, now),
            rows=None,
            matched_bytes=group.index.matched(match, rows),
            extra_ms=group.adapter_ms(shape.model) if shape.model != group.model else None,
            out=(),
            constants=self._constants,
        )
        record = Record(
            at=now,
            model=shape.model,
            decision=Decision(verdict=Verdict.NONE),
            field=field,
            names_by_row=group.names,
            excluded=why_out(group, rows, ()),
        )
        return candidates(record, self._constants)

    def why(self, request_id: str) -> list[Told]:
        """Every decision about a request that is remembered, with candidates, terms and what happened."""
        return tell(self._records.of(request_id), self._constants)

    def chapters(self, request_id: str) -> list[Chapter]:
        """The same in words, for a story that somebody else tells."""
        return chapters(self._records.of(request_id), self._constants)

    def story(self, request_id: str) -> str:
        """The same for people."""
        return story(self._records.of(request_id), self._constants)

    def remembered(self, about: Callable[[str], bool] = lambda request_id: True) -> list[tuple[str, Record]]:
        """Decisions about requests with certain ids, with these."""
        return [(request, record) for request, record in self._records.everything() if about(request)]

    def whatif(self, asked: Question, records: list[tuple[str, Record]] | None = None) -> Difference:
        """What another policy or other constants would have made of these decisions; of all when none are given.
        About 0.1 ms each, so for a thread: it touches nothing that a decision changes."""
        records = self.remembered() if records is None else records
        return whatif(records, asked, constants=self._constants, rng=self._rng)

    def heard(self, replica: str, now: float) -> Heard | None:
        """What its agent last said of it, None while nobody speaks for it."""
        return self._belief.heard(replica, now)

    def decode_ms(self, decision: Decision, shape: Shape) -> float:
        """From the first token to the last, for an answer of the usual length; 0 for decisions not to send."""
        if not isinstance(decision, Picked) or decision.state.row < 0 or shape.embedding:
            return 0.0
        column = decision.group.columns[decision.state.row]
        output = self._lengths.expected(shape.model, shape.tenant, limit=shape.max_tokens)
        return output * (column[TOKEN] + column[CONTEXT] * (decision.plan.prompt_tokens + output / 2.0))

    def accuracy(self) -> dict[str, Accuracy]:
        """Of the predictions, by base model."""
        return {group.model: group.checks.snapshot() for group in self._belief.groups.values()}

    def sent(self, node: str) -> dict[str, int]:
        return self._belief.sent(node)

    def in_flight(self) -> dict[str, int]:
        return self._belief.in_flight()

    # Inside a decision

    def _group(self, model: str, embedding: bool) -> Group | None:
        return self._belief.groups.get((self._belief.base(model), embedding))

    def _find(self, shape: Shape, model: str, keys: list[int], exclude: Collection[str], now: float) -> Found | None:
        group = self._group(model, shape.embedding)
        if group is None:
            return None
        if group.large:
            group.refresh_one(now)
        else:
            group.refresh_due(now)
        policy = self._policy(model)
        match = group.index.match(keys) if policy.uses_prefix else []
        adapter = model if model != group.model else ""
        ask = self._ask(group, shape, now)
        return find(group, ask, match, policy, exclude, adapter, self._rng, now)

    def _find_fallback(self, shape: Shape, exclude: Collection[str], now: float) -> Found | None:
        policy = self._belief.fleet.models.get(shape.model)
        if policy is None or not policy.fallback or not shape.fallback_allowed:
            return None
        found = self._find(shape, policy.fallback, chain(policy.fallback, shape.prompt), exclude, now)
        return found if found and hold.here(found.state, 0.0, now).verdict is Verdict.SEND else None

    def _ask(self, group: Group, shape: Shape, now: float) -> Ask:
        per_byte = group.per_byte.value
        prompt_tokens = len(shape.prompt) * per_byte + shape.delivered_tokens
        if prompt_tokens < 1.0:
            prompt_tokens = 1.0
        return Ask(
            prompt_tokens=prompt_tokens,
            output_tokens=0.0
            if shape.embedding
            else self._lengths.expected(shape.model, shape.tenant, limit=shape.max_tokens),
            per_byte=per_byte,
            limit_ms=max(1.0, 1000.0 * (shape.deadline - now)) if shape.deadline else 0.0,
            small=group.small(prompt_tokens),
        )

    def _policy(self, model: str) -> Policy:
        policy = self._chosen.get(model)
        if policy is None:
            record = self._belief.fleet.models.get(model)
            name = record.routing if record is not None and record.routing in self._rules else DEFAULT
            policy = self._policies.get((model, name)) or self._rules[name]()
            self._chosen[model] = self._policies[model, name] = policy
        return policy

    def _spill(self, model: str, now: float) -> hold.Way | None:
        known = self._peers.get(model)
        if known is None or now - known[2] > self._constants.spill_fade_s:
            return None
        return hold.Way(Verdict.SPILL, known[1], known[0])

    def _send(self, shape: Shape, found: Found, keys: list[int], exclude: Collection[str], now: float) -> Picked:
        substitute = found.group.model != self._belief.base(shape.model)
        decision = verdicts.send(found, keys, substitute=substitute)
        self._note(shape, found, decision, exclude, now)
        return decision

    def _wait(self, shape: Shape, found: Found, way: hold.Way, exclude: Collection[str], now: float) -> Decision:
        decision = verdicts.wait(found, way, self._constants)
        if way.verdict is Verdict.WAKE:
            found.state.ask_wake(now)
            self._belief.refresh(found.state.node, now)
        self._note(shape, found, decision, exclude, now)
        return decision

    def _note(self, shape: Shape, found: Found, decision: Decision, exclude: Collection[str], now: float) -> None:
        record = verdicts.record(found, decision, model=shape.model, exclude=exclude, now=now)
        self._records.add(shape.request_id, record)
