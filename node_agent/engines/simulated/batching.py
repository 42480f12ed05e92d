"""What a continuously batching engine does with its requests, step by step: pure, with time as an argument.

A step decodes one token for every sequence whose prompt is done, then fills what is left of the batch-token budget
with prefill: admitted prompts first, then new ones, first come first served. It lasts

    a0 + a1 * decoding + a2 * their KV tokens + b1 * prefilled + b2 * prefilled * context      (see profiles.py)

times the slow factor. The step that completes a prompt yields its first token. A sequence is admitted when KV memory
has room for its whole prompt; when a decoding sequence finds no room for its next block, the newest sequence is
preempted: it gives its blocks back, returns to the head of the queue and later computes everything again.

It does not model speculative decoding, swap, or one step overlapping with another. It does not know texts: a
sequence that ends before `max_tokens` is ended by its owner with `cancel`.

Fast-forward: `step(now, limit=k)` merges up to k steps in which nothing happens but decoding. Nothing of them is
applied until the next call, and an `add` or `cancel` in between takes back those that had not begun: a simulator
asks once per stretch and re-reads `ends_at` of the step it holds after every call.

Sources: vLLM's V1 scheduler for the order of things; the cost terms as in profiles.py.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable

import msgspec

from node_agent.engines.simulated.kv import BlockPool
from node_agent.engines.simulated.profiles import Profile


class Sequence(msgspec.Struct, kw_only=True, eq=False):
    """One answer in the making. The caller gives the first five fields, the batch keeps the rest."""

    id: str
    prompt_tokens: int
    max_tokens: int
    blocks: list[int] = []
    """Chained hashes of the full blocks of the prompt; the owner may append those of generated blocks."""
    adapter: str = ""

    arrived: float = 0.0
    admitted: float = -1.0
    """Start of the first step that worked on it; -1 before."""
    first_at: float = 0.0
    """End of the step of its first token, for the owner to note."""
    computed: int = 0
    """Tokens whose KV is in memory."""
    generated: int = 0
    cached_tokens: int = 0
    """Of the prompt, found in the prefix cache at admission."""
    preemptions: int = 0
    named: int = 0
    """How many of its blocks have a name in the pool, from the start."""
    owned: int = 0
    """All its blocks, named and private."""
    order: int = -1
    here: bool = False
    """In the batch: waiting or running."""

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.generated


class Step(msgspec.Struct, kw_only=True, eq=False):
    """What one step, or a stretch of quiet ones, yields when it ends."""

    started: float
    duration_s: float = 0.0
    steps: int = 1
    decoded: list[Sequence] = []
    """Each got `steps` tokens."""
    first: list[Sequence] = []
    """Each completed its prefill and got one token: the first, or after a preemption the next."""
    finished: list[Sequence] = []
    """Of those, the ones that reached `max_tokens`; they have left the batch."""
    preempted: list[Sequence] = []
    prefilled_tokens: int = 0

    @property
    def ends_at(self) -> float:
        return self.started + self.duration_s

    def tokens(self) -> dict[str, int]:
        """New tokens by id of the sequence."""
        return {s.id: self.steps for s in self.decoded} | {s.id: 1 for s in self.first}


class Counters(msgspec.Struct, frozen=True, kw_only=True):
    """As vLLM reports them; totals grow for ever."""

    running: int
    waiting: int
    kv_use: float
    prefix_queries_tokens: int
    prefix_hits_tokens: int
    preemptions: int
    prompt_tokens: int
    generation_tokens: int


class Unservable(ValueError):  # noqa: N818 - reads as what it is where it is caught
    """A sequence that could never run, even alone."""


def _full_speed(_: float) -> float:
    return 1.0


class Batch:
    """One engine. Not thread-safe, like the engine's own loop."""

    def __init__(self, profile: Profile, *, slow: Callable[[float], float] = _full_speed) -> None:
        self.profile = profile
        self.slow = slow
        self.models_on_gpu = 1
        """Active models on the same GPU, this one included: each adds its base step."""
        self.pool = BlockPool(profile.kv_capacity_tokens // profile.block_tokens)
        self.waiting: deque[Sequence] = deque()
        self.prefilling: dict[str, Sequence] = {}
        self.decoding: dict[str, Sequence] = {}
        self.adapters: dict[str, int] = {}
        """Running sequences by LoRA adapter."""
        self._order = 0
        self._stretch: Step | None = None
        self._stretch_kv = 0
        self._prefix_queries = self._prefix_hits = 0
        self._preemptions = self._prompt_tokens = self._generation_tokens = 0

    # What a caller does

    def add(self, sequence: Sequence, now: float) -> None:
        """Queue it. Raises Unservable."""
        most = sequence.prompt_tokens + sequence.max_tokens
        if sequence.prompt_tokens < 1 or sequence.max_tokens < 1:
            raise Unservable("a sequence needs a prompt and an answer of at least one token")
        if self._blocks_for(most) > self.pool.capacity:
            raise Unservable(f"{most} tokens do not fit into KV memory of {self.profile.kv_capacity_tokens}")
        self._cut(now)
        sequence.arrived = now
        sequence.here = True
        self.waiting.append(sequence)

    def cancel(self, sequence: Sequence, now: float) -> bool:
        """Drop a sequence that is no longer wanted, wherever it is; False when it is not here."""
        if not sequence.here:
            return False
        sequence.here = False
        self._cut(now)
        if self._stretch and sequence.id in self.decoding:
            self._credit(sequence, self._stretch.steps)
        for place in (self.decoding, self.prefilling):
            if place.pop(sequence.id, None) is not None:
                self._release(sequence)
                return True
        self.waiting.remove(sequence)
        return True

    def step(self, now: float, *, limit: int = 1) -> Step | None:
        """Do the next step, or up to `limit` quiet ones at once; None when there is nothing to do."""
        self._settle()
        if not (self.decoding or self.prefilling or self.waiting):
            return None
        if limit > 1 and (quiet := self._quiet_steps(limit)) > 1:
            return self._begin_stretch(now, quiet)
        return self._one_step(now)

    @property
    def busy(self) -> bool:
        return bool(self.decoding or self.prefilling or self.waiting)

    def counters(self) -> Counters:
        """In the middle of a stretch: as they were at its beginning."""
        return Counters(
            running=len(self.decoding) + len(self.prefilling),
            waiting=len(self.waiting),
            kv_use=self.pool.used / self.pool.capacity,
            prefix_queries_tokens=self._prefix_queries,
            prefix_hits_tokens=self._prefix_hits,
            preemptions=self._preemptions,
            prompt_tokens=self._prompt_tokens,
            generation_tokens=self._generation_tokens,
        )

    def waiting_uncached_tokens(self) -> int:
        """Prompt tokens that are yet to be computed, those in the prefix cache not counted."""
        block = self.profile.block_tokens
        queued = sum(
            max(1, s.tokens - block * self.pool.match(s.blocks, (s.tokens - 1) // block)) for s in self.waiting
        )
        return queued + sum(s.tokens - s.computed for s in self.prefilling.values())

    # One step

    def _one_step(self, now: float) -> Step:
        step = Step(started=now, decoded=[], first=[], finished=[], preempted=[])
        kv_tokens = self._decode(step)
        cost_ms = self._prefill(step, self.profile.max_batch_tokens - len(step.decoded))
        step.duration_s = self._decode_s(now, len(step.decoded), kv_tokens) + cost_ms * self._factor(now) / 1000
        step.finished = [s for s in (*step.decoded, *step.first) if s.generated >= s.max_tokens]
        for s in step.finished:
            del self.decoding[s.id]
            s.here = False
            self._release(s)
        return step

    def _decode(self, step: Step) -> int:
        """One token for each; returns the KV tokens that were read."""
        block, kv_tokens = self.profile.block_tokens, 0
        for s in [s for s in self.decoding.values() if s.computed >= s.owned * block]:
            if s.id in self.decoding:
                self._grow(s, step)
        step.decoded = list(self.decoding.values())
        for s in step.decoded:
            kv_tokens += s.computed
            s.computed += 1
            s.generated += 1
        self._generation_tokens += len(step.decoded)
        return kv_tokens

    def _grow(self, sequence: Sequence, step: Step) -> None:
        """One more block, preempting the newest until there is room; that may be the sequence itself."""
        while not self.pool.take(1):
            newest = max((*self.decoding.values(), *self.prefilling.values()), key=lambda s: s.order)
            self._preempt(newest, step)
            if newest is sequence:
                return
        sequence.owned += 1

    def _preempt(self, sequence: Sequence, step: Step) -> None:
        self.decoding.pop(sequence.id, None)
        self.prefilling.pop(sequence.id, None)
        self._release(sequence)
        sequence.computed = 0
        sequence.preemptions += 1
        self._preemptions += 1
        self.waiting.appendleft(sequence)
        step.preempted.append(sequence)

    def _prefill(self, step: Step, budget: int) -> float:
        """Chunks within the budget, first come first served; returns their cost in ms at full speed."""
        cost_ms = 0.0
        for s in list(self.prefilling.values()):
            if budget <= 0:
                break
            budget, cost_ms = self._chunk(s, step, budget, cost_ms)
        while budget > 0 and self.waiting and not step.preempted and self._admit(self.waiting[0], step.started):
            budget, cost_ms = self._chunk(self.waiting.popleft(), step, budget, cost_ms)
        return cost_ms

    def _chunk(self, s: Sequence, step: Step, budget: int, cost_ms: float) -> tuple[int, float]:
        p = self.profile
        chunk = min(budget, s.tokens - s.computed)
        cost_ms += p.prefill_token_ms * chunk + p.attention_token2_ms * chunk * (s.computed + chunk / 2)
        s.computed += chunk
        step.prefilled_tokens += chunk
        self._name_blocks(s)
        if s.computed < s.tokens:
            self.prefilling[s.id] = s
        else:
            self.prefilling.pop(s.id, None)
            if s.generated == 0:
                self._prompt_tokens += s.prompt_tokens
            s.generated += 1
            self._generation_tokens += 1
            self.decoding[s.id] = s
            step.first.append(s)
        return budget - chunk, cost_ms

    def _admit(self, s: Sequence, now: float) -> bool:
        """Give it the blocks of its whole prompt, as far as possible from the prefix cache."""
        block = self.profile.block_tokens
        if len(self.decoding) + len(self.prefilling) >= self.profile.max_num_seqs:
            return False
        # The last token is always computed: its output is the first token of the answer.
        hits = self.pool.match(s.blocks, (s.tokens - 1) // block)
        owned = self._blocks_for(s.tokens)
        if not self.pool.fits(s.blocks[:hits], owned - hits):
            return False
        self.pool.hold(s.blocks[:hits])
        self.pool.take(owned - hits)
        s.named, s.owned, s.computed = hits, owned, hits * block
        if s.admitted < 0:
            s.admitted, s.cached_tokens = now, s.computed
            self._prefix_queries += s.tokens
            self._prefix_hits += s.computed
        s.order, self._order = self._order, self._order + 1
        if s.adapter:
            self.adapters[s.adapter] = self.adapters.get(s.adapter, 0) + 1
        return True

    # Stretches of quiet steps

    def _quiet_steps(self, limit: int) -> int:
        """How many steps can pass in which every running sequence decodes and nothing else happens."""
        if self.prefilling or not self.decoding or (self.waiting and self._could_admit(self.waiting[0])):
            return 1
        quiet = min(limit, min(s.max_tokens - s.generated for s in self.decoding.values()) - 1)
        whole_rounds = self.pool.free // len(self.decoding) - 1
        return min(quiet, whole_rounds * self.profile.block_tokens)

    def _could_admit(self, s: Sequence) -> bool:
        if len(self.decoding) + len(self.prefilling) >= self.profile.max_num_seqs:
            return False
        hits = self.pool.match(s.blocks, (s.tokens - 1) // self.profile.block_tokens)
        return self.pool.fits(s.blocks[:hits], self._blocks_for(s.tokens) - hits)

    def _begin_stretch(self, now: float, steps: int) -> Step:
        self._stretch_kv = sum(s.computed for s in self.decoding.values())
        self._stretch = Step(started=now, steps=steps, decoded=list(self.decoding.values()))
        self._stretch.duration_s = self._stretch_s(self._stretch, steps)
        return self._stretch

    def _stretch_s(self, stretch: Step, steps: int) -> float:
        """The slow factor is taken at the beginning: keep `limit` small when it changes often."""
        n = len(stretch.decoded)
        growth_ms = self.profile.kv_token_us / 1000 * n * steps * (steps - 1) / 2
        one_s = self._decode_s(stretch.started, n, self._stretch_kv)
        return steps * one_s + growth_ms * self._factor(stretch.started) / 1000

    def _cut(self, now: float) -> None:
        """Somebody intervenes: steps of the stretch that have not begun will not happen that way."""
        if (stretch := self._stretch) is None:
            return
        low, high = 1, stretch.steps
        while low < high:
            middle = (low + high) // 2
            if stretch.started + self._stretch_s(stretch, middle) >= now:
                high = middle
            else:
                low = middle + 1
        stretch.steps = low
        stretch.duration_s = self._stretch_s(stretch, low)

    def _settle(self) -> None:
        """Apply the stretch that has passed."""
        if (stretch := self._stretch) is None:
            return
        self._stretch = None
        for s in stretch.decoded:
            if s.id in self.decoding:
                self._credit(s, stretch.steps)

    def _credit(self, s: Sequence, steps: int) -> None:
        s.computed += steps
        s.generated += steps
        self._generation_tokens += steps
        more = self._blocks_for(s.computed) - s.owned
        if more > 0:
            self.pool.take(more)
            s.owned += more

    # Common

    def _factor(self, now: float) -> float:
        return self.slow(now) * (1 + self.profile.adapter_share * len(self.adapters))

    def _decode_s(self, now: float, decoding: int, kv_tokens: int) -> float:
        p = self.profile
        ms = p.base_step_ms * self.models_on_gpu + p.sequence_ms * decoding + p.kv_token_us / 1000 * kv_tokens
        return ms * self._factor(now) / 1000

    def _blocks_for(self, tokens: int) -> int:
        return math.ceil(tokens / self.profile.block_tokens)

    def _name_blocks(self, s: Sequence) -> None:
        """Full blocks whose hash is known can be found by others from now on."""
        full = min(len(s.blocks), s.computed // self.profile.block_tokens)
        if full > s.named:
            self.pool.publish(s.blocks[s.named : full])
            s.named = full

    def _release(self, s: Sequence) -> None:
        self._name_blocks(s)
        self.pool.release(s.blocks[: s.named], s.owned - s.named)
        s.named = s.owned = 0
        if s.adapter:
            self.adapters[s.adapter] -= 1
            if not self.adapters[s.adapter]:
                del self.adapters[s.adapter]
