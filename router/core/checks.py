"""Are the predictions true? Bias, spread and coverage of predicted against observed time to first token, per model.

Coverage also corrects: `width` widens the p90 until nine in ten observations lie under it. Shown as metrics by the
shell. Decides nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import exp, log

import msgspec

from router.core.constants import Constants
from router.core.learn import bounded


class Accuracy(msgspec.Struct, frozen=True, kw_only=True):
    """For one model; ratios are observed over predicted, means fade over about 50 requests."""

    observations: int
    bias: float
    """Geometric mean of observed / predicted: 1 is right, 2 is twice as slow as said."""
    spread: float
    """Mean of |log(observed / predicted)|; 0.1 is about ten per cent."""
    p90_coverage: float
    """Share of observations under the predicted p90; 0.9 is right."""


class Checks:
    __slots__ = ("_bias", "_constants", "_covered", "_observations", "_spread", "width")

    def __init__(self, constants: Constants) -> None:
        self._constants = constants
        self._bias = 0.0
        self._spread = constants.uncertainty_prior
        self._covered = 0.9
        self._observations = 0
        self.width = 1.6
        """p90 = predicted x exp(width x uncertainty): 1.28 sigma of a log-normal whose mean deviation is known."""

    def learn(self, *, predicted_ms: float, p90_ms: float, observed_ms: float) -> None:
        if predicted_ms <= 0.0 or observed_ms <= 0.0:
            return
        self._observations += 1
        rate = self._constants.coverage_rate
        ratio = log(observed_ms / predicted_ms)
        covered = 1.0 if observed_ms <= p90_ms else 0.0
        self._bias += rate * (ratio - self._bias)
        self._spread += rate * (abs(ratio) - self._spread)
        self._covered += rate * (covered - self._covered)
        self.width = bounded(self.width + 2.0 * rate * (0.9 - covered), 0.2, 10.0)

    def p90_ms(self, predicted_ms: float, uncertainty: float) -> float:
        return predicted_ms * exp(self.width * uncertainty)

    def snapshot(self) -> Accuracy:
        return Accuracy(
            observations=self._observations,
            bias=exp(self._bias),
            spread=self._spread,
            p90_coverage=self._covered,
        )


def joined(parts: Iterable[Mapping[str, Accuracy]]) -> dict[str, Accuracy]:
    """Of several routers by model, each weighted by its observations."""
    found: dict[str, Accuracy] = {}
    for part in parts:
        for model, more in part.items():
            found[model] = _mean(found[model], more) if model in found else more
    return found


def _mean(one: Accuracy, other: Accuracy) -> Accuracy:
    total = one.observations + other.observations
    share = other.observations / total if total else 0.5

    def between(a: float, b: float) -> float:
        return a + share * (b - a)

    return Accuracy(
        observations=total,
        bias=exp(between(log(one.bias), log(other.bias))),
        spread=between(one.spread, other.spread),
        p90_coverage=between(one.p90_coverage, other.p90_coverage),
    )
