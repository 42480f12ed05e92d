"""Is a replica fit to be sent requests: serving, ejected, or on probation after an ejection.

Ejected for consecutive failures, or for a success rate far below that of the model's other replicas. A failure also
costs time: a penalty that doubles with each and halves every ten seconds, so that a replica that fails fast never looks
like one that answers fast. Does not decide what happens when all are ejected (pick.py: never a 503 without a try).
Sources: Envoy outlier detection and panic threshold; routing.md section 1.1.
"""

from __future__ import annotations

import enum

from router.core.constants import Constants
from router.core.model import Ending


class Standing(enum.StrEnum):
    SERVING = "serving"
    EJECTED = "ejected"
    PROBATION = "probation"


SERVING = Standing.SERVING
CANCELLED, FAILED, REFUSED = Ending.CANCELLED, Ending.FAILED, Ending.REFUSED


class Health:
    __slots__ = (
        "_constants",
        "_ejections",
        "_penalty_at",
        "_penalty_ms",
        "_until",
        "failures",
        "outcomes",
        "proven",
        "standing",
        "success",
    )

    def __init__(self, constants: Constants) -> None:
        self._constants = constants
        self.standing = Standing.SERVING
        self.failures = 0
        """In a row."""
        self.outcomes = 0
        self.success = 1.0
        self.proven = 0
        """Successes since probation began."""
        self._ejections = 0
        self._until = 0.0
        self._penalty_ms = 0.0
        self._penalty_at = 0.0

    @property
    def calm(self) -> bool:
        """Whether time alone changes nothing here."""
        return not self._penalty_ms and self.standing is SERVING

    @property
    def penalised(self) -> bool:
        """Whether anything is left to be asked for with `penalty_ms`."""
        return self._penalty_ms > 0.0

    def penalty_ms(self, now: float) -> float:
        if not self._penalty_ms:
            return 0.0
        left = self._penalty_ms * 0.5 ** ((now - self._penalty_at) / self._constants.failure_half_life_s)
        return left if left > 1.0 else 0.0

    def at(self, now: float) -> Standing:
        """The standing, after time has turned an ejection into a probation."""
        if self.standing is Standing.EJECTED and now >= self._until:
            self.standing, self.proven, self.failures = Standing.PROBATION, 0, 0
        return self.standing

    def outcome(self, ending: Ending, now: float, *, mean_success: float) -> None:
        """`mean_success` is that of the model's replicas, this one included. Cancelled requests tell nothing."""
        constants = self._constants
        if ending is FAILED:
            self._penalty(constants.failure_ms + self.penalty_ms(now), now)
            self._failed(now, mean_success)
        elif ending is REFUSED:
            self._penalty(constants.refusal_ms, now)
        elif ending is not CANCELLED:
            self._succeeded(now)

    def _failed(self, now: float, mean_success: float) -> None:
        constants = self._constants
        self.failures += 1
        self._count(0.0)
        worse = self.outcomes >= constants.eject_outcomes and self.success < mean_success - constants.eject_share
        if self.at(now) is Standing.PROBATION or self.failures >= constants.eject_failures or worse:
            self._eject(now)

    def _succeeded(self, now: float) -> None:
        self.failures = 0
        self._count(1.0)
        if self.calm:
            return
        self._penalty_ms, self._penalty_at = self.penalty_ms(now) / 2.0, now
        if self.at(now) is Standing.PROBATION:
            self.proven += 1
            if self.proven >= self._constants.probation_successes:
                self.standing, self._ejections, self.outcomes, self.success = Standing.SERVING, 0, 0, 1.0

    def _eject(self, now: float) -> None:
        constants = self._constants
        if self.at(now) is Standing.EJECTED:  # requests sent before the ejection fail after it
            return
        self.standing = Standing.EJECTED
        self._until = now + min(constants.eject_s * 2.0**self._ejections, constants.eject_ceiling_s)
        self._ejections = min(self._ejections + 1, 16)

    def _count(self, success: float) -> None:
        self.outcomes += 1
        self.success += self._constants.outcome_rate * (success - self.success)

    def _penalty(self, added_ms: float, now: float) -> None:
        total = self.penalty_ms(now) + added_ms
        self._penalty_ms = min(total, self._constants.failure_ceiling_ms)
        self._penalty_at = now
