"""The replicas of one base model, as columns of figures and an index of prefixes; what is learned of the model.

Keeps figures fresh: those of replicas to which something happened before the next look at them, the others within a
third of a second. Rows are handed out for the life of a replica, so that the index can speak of rows. The table for
numpy is written only when somebody asks for it. Decides nothing.
Source: routing.md section 2.6.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Iterable
from math import inf

import numpy as np

from router.core.affinity import PrefixIndex
from router.core.checks import Checks
from router.core.constants import Constants
from router.core.figures import READY, barred, figures_of, outlook_of, why_not
from router.core.learn import Mean
from router.core.outlier import SERVING
from router.core.replica import ReplicaState
from router.core.score import (
    BASE,
    FIGURES,
    HARM,
    KV_TOKEN,
    RAMP,
    SLOW_PREFILL,
    SLOW_STEP,
    SMALL_KV,
    SPEED,
    STEPS_AHEAD,
    TOKEN,
    Array,
    Column,
)
from router.core.shortlist import Shortlist
from wire.records import ModelState

KEEPS_CACHE = frozenset({ModelState.READY, ModelState.DRAINING})
TYPICAL_TOKENS = 512.0
"""Prompt for which the shortlist is ordered."""
EMPTY = np.zeros((FIGURES, 1))
EMPTY[[BASE, TOKEN]] = np.inf
EMPTY[[RAMP, SPEED]] = 1.0
NOBODY: Column = tuple(EMPTY[:, 0].tolist())
SMALL = 16
"""Up to so many replicas all overdue rows are refreshed in one decision."""


class Group:
    def __init__(self, model: str, *, embedding: bool, constants: Constants) -> None:
        self.model = model
        self.embedding = embedding
        self.constants = constants
        self.replicas: list[ReplicaState | None] = []
        """By row; None where a replica has left."""
        self.names: list[str] = []
        self.index = PrefixIndex()
        self.shortlist = Shortlist()
        self.checks = Checks(constants)
        self.per_byte = Mean(constants.tokens_per_byte_prior, constants.bytes_per_token_rate)
        self.success = Mean(1.0, 0.02)
        self.barred: dict[int, str] = {}
        """Rows that health keeps out as long as others can serve, with the reason."""
        self.unable: dict[int, str] = {}
        """Rows that cannot serve at all, with the reason."""
        self.routers = 1
        self.large = False
        """More replicas than are all scored."""
        self.columns: list[Column] = []
        """Figures by row."""
        self.ahead = array("d")
        """Of a large group by row, for a score at first sight: ms for those ahead."""
        self.per_token = array("d")
        """The same for each prompt token to compute."""
        self._touched: set[int] = set()
        """Rows to whose replicas something happened: their figures are made anew before they are used."""
        self._table = np.repeat(EMPTY, SMALL, axis=1)
        self._views: list[Array] = []
        """Of the table, one per figure, as long as there are rows."""
        self._unwritten: set[int] = set()
        """Rows whose figures are not in the table yet."""
        self._kv_token = 1e-9
        """The largest share of anybody's KV memory that one token took."""
        self._ages: OrderedDict[int, float] = OrderedDict()
        """When each row was last refreshed, oldest first."""
        self._next_due = 0.0
        """None of them is overdue before."""
        self._elder_since: float | None = None
        self._adapters: dict[str, list[float]] = {}

    def __len__(self) -> int:
        return len(self.replicas)

    @property
    def present(self) -> list[ReplicaState]:
        return [replica for replica in self.replicas if replica is not None]

    @property
    def figures(self) -> list[Array]:
        """One array per figure, by row."""
        for row in self._unwritten:
            self._table[:, row] = self.columns[row]
        self._unwritten.clear()
        return self._views

    def small(self, prompt_tokens: float) -> bool:
        return prompt_tokens * self._kv_token <= SMALL_KV

    def join(self, replica: ReplicaState) -> None:
        if None in self.replicas:
            row = self.replicas.index(None)
            self.replicas[row] = replica
        else:
            row = len(self.replicas)
            self.replicas.append(replica)
            self.large = row >= self.constants.scan_limit
            self.columns.append(NOBODY)
            self.ahead.append(inf)
            self.per_token.append(0.0)
            if row >= self._table.shape[1]:
                self._table = np.concatenate((self._table, np.repeat(EMPTY, row, axis=1)), axis=1)
            self._views = [self._table[figure, : row + 1] for figure in range(FIGURES)]
        replica.row, replica.stale = row, self._touched
        self._elder_since = None
        self._rename()
        self._forget_cache(replica)
        self._adapters.clear()

    def leave(self, replica: ReplicaState) -> None:
        row = replica.row
        self.replicas[row] = None
        self._rename()
        self.columns[row] = NOBODY
        self._unwritten.add(row)
        self.ahead[row] = inf
        self.index.remove(row)
        self.shortlist.drop(row)
        self.barred.pop(row, None)
        self.unable.pop(row, None)
        self._ages.pop(row, None)
        self._touched.discard(row)
        self._elder_since = None
        self._adapters.clear()

    def refresh(self, replica: ReplicaState, now: float) -> None:
        """After news of it, or of its node."""
        replica.unsettle()
        self._refresh_row(replica.row, now)

    def refresh_due(self, now: float) -> None:
        """Bring rows up to date that were touched or are overdue: time passes for a silent replica too."""
        while self._touched:
            self._refresh_row(self._touched.pop(), now)
        if now >= self._next_due:
            for _ in range(len(self.replicas) if len(self.replicas) <= SMALL else 1):
                if not self._refresh_oldest(now):
                    return

    def refresh_one(self, now: float) -> None:
        """Of a large group one row that is overdue: who is looked at is brought up to date by `refresh_these`, the
        others once their agents report, and this is for the silent ones."""
        if now >= self._next_due:
            self._refresh_oldest(now)

    def refresh_these(self, rows: Iterable[int], now: float) -> None:
        """Those among them that were touched."""
        for row in self._touched.intersection(rows):
            self._refresh_row(row, now)

    def restart(self, replica: ReplicaState, generation: int) -> None:
        replica.restart(generation)
        self._forget_cache(replica)

    def adapter_ms(self, adapter: str) -> list[float]:
        """What using an adapter adds on each replica: nothing where it is resident, infinite where it is not served."""
        known = self._adapters.get(adapter)
        if known is None or len(known) != len(self.replicas):
            known = [self._adapter_ms(replica, adapter) for replica in self.replicas]
            self._adapters[adapter] = known
        return known

    def adapters_changed(self) -> None:
        self._adapters.clear()

    def _elder(self) -> float:
        """When the longest ready replica became so; looked up anew when one joined, left or changed its state."""
        ready = (one.ready_since for one in self.replicas if one is not None and one.current is ModelState.READY)
        self._elder_since = min(ready, default=inf)
        return self._elder_since

    def _refresh_oldest(self, now: float) -> bool:
        """The row that was not refreshed for the longest time, if that is too long."""
        row, at = next(iter(self._ages.items()), (-1, now))
        if at > now - self.constants.refresh_s:
            self._next_due = at + self.constants.refresh_s
            return False
        self._refresh_row(row, now)
        return True

    def _refresh_row(self, row: int, now: float) -> None:
        """What a request changed, and the rest if there may be news in it."""
        replica = self.replicas[row]
        assert replica is not None
        if now > replica.outlook.until:
            self._look(replica, now)
        column = self.columns[row] = figures_of(replica, self.routers, now, self.constants)
        self._touched.discard(row)
        self._unwritten.add(row)
        self._ages[row] = now
        self._ages.move_to_end(row)
        if column[KV_TOKEN] > self._kv_token:
            self._kv_token = column[KV_TOKEN]
        if self.large:
            per_token = column[SLOW_PREFILL] + column[HARM]
            ahead = column[BASE] + column[SLOW_STEP] * column[STEPS_AHEAD]
            self.ahead[row], self.per_token[row] = ahead, per_token
            self.shortlist.put(row, ahead + per_token * TYPICAL_TOKENS)

    def _look(self, replica: ReplicaState, now: float) -> None:
        before, state = replica.look(now)
        if before is not state:
            self._elder_since = None
            self._adapters.clear()
            if before in KEEPS_CACHE and state not in KEEPS_CACHE:
                self._forget_cache(replica)
        row = replica.row
        unable = "" if state is READY and not replica.node.draining else why_not(replica)
        replica.outlook = outlook_of(
            replica,
            able=not unable,
            elder_since=self._elder_since if self._elder_since is not None else self._elder(),
            now=now,
            constants=self.constants,
        )
        out = "" if replica.health.standing is SERVING else barred(replica, now)
        if out or self.barred:
            _note(self.barred, row, out)
        if unable or self.unable:
            _note(self.unable, row, unable)

    def _rename(self) -> None:
        """Names by row, in a new list: records of decisions keep the one they were made with."""
        self.names = [replica.record.replica if replica else "" for replica in self.replicas]

    def _forget_cache(self, replica: ReplicaState) -> None:
        bytes_ = replica.capacity_tokens() / max(self.per_byte.value, 0.01)
        self.index.add(replica.row, capacity_bytes=int(min(bytes_, self.constants.prefix_bytes_per_replica)))

    def _adapter_ms(self, replica: ReplicaState | None, adapter: str) -> float:
        if replica is None:
            return np.inf
        if replica.load is not None and adapter in replica.load.adapters:
            return 0.0
        if adapter in replica.record.adapters or not replica.record.adapters:
            return self.constants.adapter_load_ms
        return np.inf


def _note(reasons: dict[int, str], row: int, why: str) -> None:
    if why:
        reasons[row] = why
    else:
        reasons.pop(row, None)
