"""Verdicts on seeded ensembles: judgements that cannot pass for lack of data.

That an interval holds a prediction says little when it is wide. So a judgement names its wrong siblings, the nearest statements that are
false: it *holds* only if the interval holds the prediction, every sibling is rejected by the same samples, and the ensemble is large enough
that rejecting it was no luck (the power of the test). Where data are too few it is *undecided* and says how many runs would do.

Intervals are those of `noetherflow.numeric.intervals`, whose names are offered here too: samples must be independent, one for each run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike

from noetherflow.errors import RunError
from noetherflow.numeric.intervals import CONFIDENCE, Interval, checked, critical_value, decay_rates, mean_interval, ratio_interval, share
from noetherflow.numeric.student import power_of_t, student_quantile

__all__ = ["Interval", "Verdict", "decay_rates", "judge", "mean_interval", "ratio_interval", "sample_size"]

POWER: Final = 0.95
MOST_RUNS: Final = 10**9


@dataclass(frozen=True, slots=True)
class Verdict:
    """A judgement of a prediction by an ensemble.

    Attributes
    ----------
    interval : Interval
        Of the samples' distance to the prediction.
    rejected : mapping of str to bool
        Each wrong sibling: whether its distance to the samples is significant.
    power : mapping of str to float
        Each wrong sibling: the probability that an ensemble of this size rejects it if the prediction is true.
    needed : mapping of str to int
        Each wrong sibling whose power is too low: the number of runs at which it would do.
    """

    interval: Interval
    rejected: Mapping[str, bool]
    power: Mapping[str, float]
    needed: Mapping[str, int]

    @property
    def status(self) -> str:
        """'holds', 'fails' (the interval excludes the prediction), or 'undecided' (a sibling is not, or not reliably, rejected)."""
        if not self.interval.holds(0.0):
            return "fails"
        return "holds" if all(self.rejected.values()) and not self.needed else "undecided"

    @property
    def holds(self) -> bool:
        """Whether the prediction holds and every wrong sibling is out."""
        return self.status == "holds"

    def __str__(self) -> str:
        siblings = [
            f"{name}: {'rejected' if self.rejected[name] else 'NOT rejected'}, power {self.power[name]:.3f}"
            + (f", needs {self.needed[name]} runs" if name in self.needed else "")
            for name in self.rejected
        ]
        return f"{self.status}: measured - predicted = {self.interval}; " + "; ".join(siblings)


def judge(
    samples: ArrayLike,
    prediction: ArrayLike,
    siblings: Mapping[str, ArrayLike],
    *,
    confidence: float = CONFIDENCE,
    power: float = POWER,
    resolution: ArrayLike = 0.0,
) -> Verdict:
    """Judge a predicted mean by independent samples, together with wrong siblings that must be rejected by the same samples.

    Parameters
    ----------
    samples : array, shape (runs, ...)
    prediction : array
        Broadcasts to the samples: one value, one a quantity, or one for each run (where every run has its own prediction).
    siblings : mapping of str to array
        Wrong predictions; at least one. With several quantities, one that is significant rejects.
    confidence : float
        Of the intervals that hold the prediction, and of the rejections.
    power : float
        Least probability that a sibling is rejected if the prediction is true.
    resolution : array
        What rounding may move a sample by.

    Returns
    -------
    Verdict

    Raises
    ------
    RunError
        If no sibling is given, or a sibling is the prediction itself, or as for `mean_interval`.

    Examples
    --------
    >>> samples = np.random.default_rng(0).normal(1.0, 0.5, size=200)
    >>> print(judge(samples, 1.0, {"twice": 2.0}).status, judge(samples, 2.0, {"half": 1.0}).status)
    holds fails
    >>> few = judge(samples[:6], 1.0, {"a little more": 1.02})
    >>> few.status, few.needed["a little more"] > 500
    ('undecided', True)
    """
    if not siblings:
        raise RunError("A judgement needs a wrong sibling that the samples must reject, or a wide interval would pass. Give one or more.")
    x = checked(samples)
    distance = mean_interval(x - np.asarray(prediction), confidence, resolution=resolution)
    critical = critical_value(x, confidence)
    error = np.maximum(distance.error, np.asarray(resolution) / critical)
    rejected: dict[str, bool] = {}
    powers: dict[str, float] = {}
    needed: dict[str, int] = {}
    for name, wrong in siblings.items():
        gap = (np.asarray(wrong) - np.asarray(prediction) + np.zeros_like(x)).mean(axis=0)
        if not np.any(gap):
            raise RunError(f"The wrong sibling '{name}' predicts what the prediction does, so nothing can reject it.", sibling=name)
        rejected[name] = not mean_interval(x - np.asarray(wrong), confidence, resolution=resolution).holds(0.0)
        # the quantity that tells the two apart best
        with np.errstate(divide="ignore", invalid="ignore"):
            shift = float(np.nanmax(np.abs(gap) / error))
        powers[name] = 1.0 if math.isinf(shift) else power_of_t(shift, critical, len(x) - 1)
        if powers[name] < power:
            needed[name] = _needed(shift / math.sqrt(len(x)), 1 - share(x, confidence), power)
    return Verdict(distance, rejected, powers, needed)


def sample_size(distance: float, deviation: float, confidence: float = CONFIDENCE, power: float = POWER) -> int:
    """How many runs tell two means apart: the least number at which a two-sided t test rejects the wrong one with the given power.

    Parameters
    ----------
    distance : float
        Between the means.
    deviation : float
        Standard deviation of one sample.
    confidence, power : float

    Examples
    --------
    >>> sample_size(1.0, 1.0), sample_size(0.1, 1.0)
    (22, 1785)
    """
    if not (math.isfinite(distance) and distance != 0 and math.isfinite(deviation) and deviation >= 0):
        raise RunError(f"No number of runs tells means apart at distance {distance} with deviation {deviation}.", distance=distance)
    return 2 if deviation == 0 else _needed(abs(distance) / deviation, confidence, power)


def _needed(shift_of_one: float, confidence: float, power: float) -> int:
    """Least number of runs with the given power, for means that are `shift_of_one` deviations apart; found by doubling and bisection."""

    def enough(n: int) -> bool:
        return power_of_t(shift_of_one * math.sqrt(n), student_quantile((1 + confidence) / 2, n - 1), n - 1) >= power

    high = 2
    while not enough(high):
        if high > MOST_RUNS:
            return high
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
