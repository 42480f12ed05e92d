"""What is in flight on one replica: our own requests exactly, those of other routers as far as reports tell.

    backlog = own waiting tokens + max(0, reported - own that the report already contains)

which is `max(own, reported + sent since - started since)` of routing.md section 2.4, kept as one number of others so
that it needs no work between reports. `seen` of a report says how many of our sends it contains; it is the only clock
that the two sides share. Never negative, never counted twice. Decides nothing; knows no other replica.
"""

from __future__ import annotations

from collections import deque

from router.core.constants import Constants
from router.core.entry import Entry
from router.core.model import ReplicaLoad

RECENT_S = 1.0
"""Starts and ends younger than a report's figures are remembered so long."""
DISORDER_S = 0.1
"""A start or an end may be told so much later than another that came after it."""


class Ledger:
    __slots__ = (
        "_changes",
        "_fresh_s",
        "constants",
        "context",
        "entries",
        "front_at",
        "other_context",
        "other_sequences",
        "other_tokens",
        "own_reported",
        "queue",
        "reported_at",
        "scraped_at",
        "seen",
        "sent",
        "sequences",
        "typical",
        "waiting_sequences",
        "waiting_tokens",
    )

    def __init__(self, constants: Constants, *, sent: int = 0, born: float = 0.0) -> None:
        self.constants = constants
        self._fresh_s = constants.stale_after_intervals * constants.report_interval_s
        self.entries: dict[int, Entry] = {}
        """By index, so oldest first."""
        self.queue: dict[int, Entry] = {}
        """Those without a token yet."""
        self.front_at = born
        """Since when the engine is at work on the first of the queue, if there is one."""
        self.sent = sent
        self.waiting_tokens = 0.0
        self.waiting_sequences = 0
        self.sequences = 0
        """Ours that decode."""
        self.context = 0.0
        """KV tokens of ours that decode."""
        self.other_tokens = self.other_sequences = self.other_context = 0.0
        self.own_reported = 0.0
        """Tokens of ours among those that waited when the last report was made."""
        self.reported_at = self.scraped_at = born
        """When the last report came and when its figures were read, or when this router first knew of the replica."""
        self.seen = 0
        self.typical = 0.0
        """Mean uncached tokens of a request here, for engines that report only how many wait."""
        self._changes: deque[tuple[float, int, float, int]] = deque()
        """(when, index, tokens no longer waiting, sequences gone)."""

    def send(self, *, uncached: float, context: float, sequences: int, now: float) -> Entry:
        self.sent += 1
        entry = Entry(self.sent, uncached, context, sequences, now)
        if self.queue:
            entry.head_start_s = now - self.front_at
        else:
            self.front_at = now
        self.entries[entry.index] = self.queue[entry.index] = entry
        self.waiting_tokens += uncached
        self.waiting_sequences += sequences
        self.typical += (uncached - self.typical) * (0.05 if self.typical else 1.0)
        return entry

    def start(self, entry: Entry, now: float) -> None:
        if entry.started or entry.index not in self.entries:
            return
        entry.started = True
        self._stop_waiting(entry, now)
        self.sequences += entry.sequences
        self.context += entry.context

    def progress(self, entry: Entry, tokens: int) -> None:
        if entry.started and entry.index in self.entries:
            entry.context += tokens
            self.context += tokens

    def end(self, entry: Entry, now: float) -> bool:
        """False when it had ended before."""
        if self.entries.pop(entry.index, None) is None:
            return False
        if entry.started:
            self.sequences -= entry.sequences
            left = self.context - entry.context
            self.context = left if self.sequences and left > 0.0 else 0.0
            self._note(now, entry.index, 0.0, entry.sequences)
        else:
            self._stop_waiting(entry, now)
        return True

    def reconcile(self, load: ReplicaLoad, now: float) -> None:
        """Take from the report what is not ours."""
        since = now - load.scraped_age_s
        self.seen = seen = load.seen
        own_tokens, own_sequences = self.waiting_tokens, self.sequences + self.waiting_sequences
        for entry in reversed(self.entries.values()):  # newest first: only what the report cannot know is looked at
            if entry.index <= seen:
                break
            own_sequences -= entry.sequences
            if not entry.started:
                own_tokens -= entry.uncached
        for when, index, tokens, sequences in reversed(self._changes):
            if when <= since - DISORDER_S:
                break
            if when > since and index <= seen:
                own_tokens += tokens
                own_sequences += sequences
        own_tokens = max(0.0, own_tokens)
        reported = load.waiting_uncached_tokens
        if reported < 0:
            reported = load.waiting * self.typical
        self.own_reported = own_tokens
        self.other_tokens = max(0.0, reported - own_tokens)
        if self.other_tokens:  # until now it may have been at work on theirs
            self.front_at = now
        self.other_sequences = max(0.0, float(load.running + load.waiting - own_sequences))
        self.other_context = max(0.0, load.kv_use * load.kv_capacity_tokens - self.context)
        self.reported_at, self.scraped_at = now, since
        self._forget(now)

    def forget_others(self) -> None:
        """The engine was started anew: nothing that was reported is in it."""
        self.other_tokens = self.other_sequences = self.other_context = self.own_reported = 0.0
        self._changes.clear()

    def totals(self, routers: int, now: float) -> tuple[float, float, float]:
        """Sequences that decode, tokens that wait and KV tokens, of all routers: the three below in one look."""
        tokens, sequences, context = self.other_tokens, self.other_sequences, self.other_context
        if routers > 1:
            tokens = self._other_tokens(routers)
        if now - self.reported_at > self._fresh_s and (routers > 1 or tokens or sequences or context):
            tokens = self._others(tokens, self.waiting_tokens, routers, now)
            sequences = self._others(sequences, self.sequences, routers, now)
            context = self._others(context, self.context, routers, now)
        return self.sequences + sequences, self.waiting_tokens + tokens, self.context + context

    def backlog(self, *, routers: int, now: float) -> float:
        return self.waiting_tokens + self._others(self._other_tokens(routers), self.waiting_tokens, routers, now)

    def decoding(self, *, routers: int, now: float) -> float:
        return self.sequences + self._others(self.other_sequences, self.sequences, routers, now)

    def kv_tokens(self, *, routers: int, now: float) -> float:
        return self.context + self._others(self.other_context, self.context, routers, now)

    def oldest_waiting(self) -> Entry | None:
        """Ours that has waited longest for its first token: evidence of slowness before it ends."""
        return next(iter(self.queue.values()), None)

    def silent(self, now: float) -> bool:
        """Whether the agent's report is overdue."""
        return now - self.reported_at > self._fresh_s

    @property
    def silent_at(self) -> float:
        """When the agent's report will be overdue."""
        return self.reported_at + self._fresh_s

    @property
    def overdue_at(self) -> float:
        """When its figures will be older than those of an engine that works should be."""
        return self.scraped_at + self._fresh_s

    def silence_s(self, now: float) -> float:
        """Seconds by which the agent's report is overdue, 0 while it is in time. Its figures may be older: an idle
        engine is scraped less often than its agent speaks."""
        return max(0.0, now - self.reported_at - self._fresh_s)

    def scrape_overdue(self, now: float) -> bool:
        """Whether the figures are older than those of an engine that works should be."""
        return now - self.scraped_at > self._fresh_s

    def _other_tokens(self, routers: int) -> float:
        """As reported, and as many more from each other router as have come from us since: all of them read the same
        report, and what looks empty to one looks empty to all."""
        return self.other_tokens + (routers - 1) * max(0.0, self.waiting_tokens - self.own_reported)

    def _others(self, reported: float, own: float, routers: int, now: float) -> float:
        """Reported figures while fresh; then they fade, and before that other routers are taken to do as we do."""
        silence = self.silence_s(now)
        if not silence:
            return reported
        fade: float = self.constants.stale_fade_per_s**silence
        return max(reported, own * (routers - 1)) * fade

    def _stop_waiting(self, entry: Entry, now: float) -> None:
        if entry.started or entry is self.oldest_waiting():
            self.front_at = now
        del self.queue[entry.index]
        self.waiting_sequences -= entry.sequences
        left = self.waiting_tokens - entry.uncached
        self.waiting_tokens = left if self.queue and left > 0.0 else 0.0
        self._note(now, entry.index, entry.uncached, 0 if entry.started else entry.sequences)

    def _note(self, now: float, index: int, tokens: float, sequences: int) -> None:
        self._changes.append((now, index, tokens, sequences))
        self._forget(now)

    def _forget(self, now: float) -> None:
        changes, since = self._changes, now - RECENT_S
        while changes and changes[0][0] < since:
            changes.popleft()
