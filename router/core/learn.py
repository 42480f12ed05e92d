"""What is learned from answers, each thing bounded and forgetful; nothing here survives a restart.

A restart costs little (the priors carry the first decisions, and slowness is learned within a few first tokens), and
what was true of a node before a restart of unknown length may be false after it. Decides nothing.
Source: routing.md section 2.3 for the quantities, rates and bounds.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from math import exp, log

from router.core.classes import Cost
from router.core.constants import Constants

FAR = 2.0
"""An error by more than this factor is travelled, not fitted."""


def bounded(value: float, low: float, high: float) -> float:
    """Between both, at a fifth of the cost of min(max()) where it is so already."""
    if low <= value <= high:
        return value
    return min(max(value, low), high)


class Slowness:
    """How many times slower one node is than its class: up at once, down slowly, forgiven when idle."""

    __slots__ = ("_at", "_constants", "_log")

    def __init__(self, constants: Constants) -> None:
        self._constants = constants
        self._log = 0.0
        self._at = 0.0

    def at(self, now: float) -> float:
        return exp(self._faded(now)) if self._log else 1.0

    def learn(self, ratio: float, now: float, *, censored: bool = False) -> None:
        """`ratio` is observed over predicted for slowness 1. A censored one can only say "at least"."""
        constants = self._constants
        seen = log(bounded(ratio, constants.slowness_floor, constants.slowness_ceiling))
        value = self._faded(now)
        if censored and seen <= value:
            return
        rate = constants.slowness_up if seen > value else constants.slowness_down
        self._log = value + rate * (seen - value)
        self._at = now

    def _faded(self, now: float) -> float:
        """Its logarithm."""
        idle_s = now - self._at
        return self._log * exp(-idle_s / self._constants.slowness_decay_s) if idle_s > 0.0 else self._log


class ClassCost:
    """Two factors on the prior of a (model, device class): its steps and its prefill, by recursive least squares.

    Fitted on relative errors, so that long prompts do not decide alone. Far from the truth both factors move together
    by a part of the error first: least squares trusts its past too much to travel. What all nodes of the class have in
    common belongs here, so an observation is corrected only for how much slower its node is than the others. Decode has
    a factor of its own, from the pace of tokens."""

    __slots__ = ("_a", "_b", "_c", "_common", "_constants", "decode", "observations", "prefill", "prior", "step")

    def __init__(self, prior: Cost, constants: Constants) -> None:
        self.prior = prior
        self._constants = constants
        self.step = self.prefill = self.decode = 1.0
        spread = 0.05 if prior.known else 0.5
        self._a, self._b, self._c = spread, 0.0, spread
        """Covariance [[a, b], [b, c]] of the two factors."""
        self._common = 0.0
        """Log of the slowness that the nodes of the class show on average."""
        self.observations = 0

    def first_token(self, *, step_ms: float, prefill_ms: float, observed_ms: float, slowness: float = 1.0) -> None:
        """`step_ms` and `prefill_ms` are the parts of the prediction by the prior alone."""
        predicted = self.step * step_ms + self.prefill * prefill_ms
        if predicted <= 0.0 or observed_ms <= 0.0:
            return
        self.observations += 1
        self._common += 0.05 * (log(slowness) - self._common)
        observed = observed_ms * exp(self._common) / slowness
        ratio = bounded(observed / predicted, 1.0 / FAR**2, FAR**2)
        if not 1.0 / FAR <= ratio <= FAR:
            self.step, self.prefill = self._bounded(self.step * ratio**0.2), self._bounded(self.prefill * ratio**0.2)
            return
        x, y = step_ms / observed, prefill_ms / observed
        px, py = self._a * x + self._b * y, self._b * x + self._c * y
        forget = self._constants.class_forget
        gain = 1.0 / (forget + 0.1 + x * px + y * py)
        error = 1.0 - (self.step * x + self.prefill * y)
        self.step = self._bounded(self.step + px * gain * error)
        self.prefill = self._bounded(self.prefill + py * gain * error)
        self._a = min((self._a - px * px * gain) / forget, 10.0)
        self._b = (self._b - px * py * gain) / forget
        self._c = min((self._c - py * py * gain) / forget, 10.0)

    def pace(self, *, predicted_ms: float, observed_ms: float) -> None:
        """One token took `observed_ms` where the prior and slowness said `predicted_ms`."""
        if predicted_ms > 0.0 and observed_ms > 0.0:
            ratio = bounded(observed_ms / predicted_ms, self.decode / 3.0, self.decode * 3.0)
            self.decode = self._bounded(self.decode + 0.05 * (ratio - self.decode))

    def _bounded(self, factor: float) -> float:
        known = self.prior.known
        bound = self._constants.class_bound_known if known else self._constants.class_bound_unknown
        return bounded(factor, 1.0 / bound, bound)


class Mean:
    """An exponentially weighted mean that starts at a prior."""

    __slots__ = ("_rate", "value")

    def __init__(self, prior: float, rate: float) -> None:
        self.value, self._rate = prior, rate

    def learn(self, sample: float) -> None:
        self.value += self._rate * (sample - self.value)


class Lengths:
    """Expected output tokens of a (model, tenant); the least recently used pair is forgotten first."""

    def __init__(self, constants: Constants) -> None:
        self._constants = constants
        self._means: OrderedDict[tuple[str, str], Mean] = OrderedDict()

    def expected(self, model: str, tenant: str, *, limit: int) -> float:
        mean = self._means.get((model, tenant))
        value = mean.value if mean is not None else self._constants.length_prior_tokens
        return float(limit) if 0 < limit < value else value

    def learn(self, model: str, tenant: str, tokens: int) -> None:
        key = (model, tenant)
        if key not in self._means:
            self._means[key] = Mean(self._constants.length_prior_tokens, self._constants.length_rate)
            if len(self._means) > self._constants.length_keys:
                self._means.popitem(last=False)
        self._means.move_to_end(key)
        self._means[key].learn(float(tokens))


class LoadTime:
    """How long one replica takes from one state to ready: mean, and the worst of the last five as its p90."""

    __slots__ = ("_last", "_mean")

    def __init__(self, prior_s: float, rate: float) -> None:
        self._mean = Mean(prior_s, rate)
        self._last: deque[float] = deque(maxlen=5)

    def learn(self, seconds: float) -> None:
        self._mean.learn(seconds)
        self._last.append(seconds)

    def remaining_s(self, elapsed_s: float) -> float:
        """What is left after `elapsed_s`. Late, the expectation grows with the age: it has told us nothing else."""
        return max(self._mean.value - elapsed_s, 0.5 * elapsed_s if elapsed_s > self._mean.value else 0.0)

    @property
    def mean_s(self) -> float:
        return self._mean.value

    @property
    def p90_s(self) -> float:
        return max(self._last, default=1.5 * self._mean.value)
