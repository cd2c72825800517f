"""Verdicts on seeded ensembles: intervals for means, and judgements that cannot pass for lack of data.

That an interval holds a prediction says little when it is wide. So a judgement names its wrong siblings, the nearest statements that are
false: it *holds* only if the interval holds the prediction, every sibling is rejected by the same samples, and the ensemble is large enough
that rejecting it was no luck (the power of the test). Where data are too few it is *undecided* and says how many runs would do.

Samples are independent: one number (or one row of charges) for each run, never successive times of one run. Intervals are Student's; for
several charges at once each gets its share of the error (Bonferroni), so that all hold together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from noetherflow.errors import RunError
from noetherflow.numeric.student import power_of_t, student_quantile

__all__ = ["Interval", "Verdict", "decay_rates", "judge", "mean_interval", "ratio_interval", "sample_size"]

CONFIDENCE: Final = 0.99
POWER: Final = 0.95
MOST_RUNS: Final = 10**9

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean with its confidence interval, for one quantity or several together.

    Attributes
    ----------
    mean, error : ndarray
        Mean and its standard error, one entry a quantity (shape () for one).
    half : ndarray
        Half the width of the interval.
    confidence : float
        Probability that all quantities lie in their intervals (at least).
    count : int
        Number of samples.
    """

    mean: Floats
    error: Floats
    half: Floats
    confidence: float
    count: int

    @property
    def low(self) -> Floats:
        """Lower ends."""
        return np.asarray(self.mean - self.half)

    @property
    def high(self) -> Floats:
        """Upper ends."""
        return np.asarray(self.mean + self.half)

    def holds(self, value: ArrayLike) -> bool:
        """Whether every quantity's interval holds its value."""
        return bool(np.all(np.abs(np.asarray(value) - self.mean) <= self.half))

    def __str__(self) -> str:
        return f"{_shown(self.mean)} ± {_shown(self.half)} ({100 * self.confidence:.4g} %, {self.count} runs)"


def mean_interval(samples: ArrayLike, confidence: float = CONFIDENCE, *, resolution: ArrayLike = 0.0) -> Interval:
    """The mean of independent samples with Student's confidence interval.

    Parameters
    ----------
    samples : array, shape (runs, ...)
        What follows the first axis are several quantities; their intervals hold together (Bonferroni).
    confidence : float
    resolution : array
        What rounding may move a sample by: no interval is narrower, also where all samples are equal.

    Returns
    -------
    Interval
        Exact for normally distributed samples, asymptotic in the number of runs otherwise.

    Raises
    ------
    RunError
        For fewer than two samples, or values that are not finite (a run that diverged has no mean).

    Examples
    --------
    >>> found = mean_interval([1.0, 2.0, 3.0, 4.0])
    >>> round(float(found.mean), 6), round(float(found.half), 4), found.holds(3.0), found.holds(8.0)
    (2.5, 3.7703, True, False)
    """
    x = _checked(samples)
    error = np.asarray(x.std(axis=0, ddof=1) / math.sqrt(len(x)))
    half = np.maximum(_critical(x, confidence) * error, resolution)
    return Interval(np.asarray(x.mean(axis=0)), error, half, confidence, len(x))


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
    x = _checked(samples)
    distance = mean_interval(x - np.asarray(prediction), confidence, resolution=resolution)
    critical = _critical(x, confidence)
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
            needed[name] = _needed(shift / math.sqrt(len(x)), 1 - _share(x, confidence), power)
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


def ratio_interval(above: ArrayLike, below: ArrayLike, confidence: float = CONFIDENCE) -> Interval:
    """The ratio of two means over the same runs, by the jackknife.

    Parameters
    ----------
    above, below : array, shape (runs, ...)

    Returns
    -------
    Interval
        Asymptotic in the number of runs.

    Examples
    --------
    >>> x = np.random.default_rng(1).normal(2.0, 0.1, size=100)
    >>> round(float(ratio_interval(3 * x, x).mean), 9)
    3.0
    """
    a, b = _checked(above), _checked(below)
    if a.shape != b.shape:
        raise RunError(f"A ratio of means needs the same runs above and below; got shapes {a.shape} and {b.shape}.")
    n, whole = len(a), np.asarray(a.mean(axis=0) / b.mean(axis=0))
    left_out = (a.sum(axis=0) - a) / (b.sum(axis=0) - b)
    pseudo = n * whole - (n - 1) * left_out
    return mean_interval(pseudo, confidence)


def decay_rates(times: ArrayLike, values: ArrayLike, *, after: float = 0.0) -> Floats:
    """Each run's rate of exponential decay: minus the slope of ln|value| over time, by least squares.

    Parameters
    ----------
    times : array, shape (times,)
    values : array, shape (runs, times, ...)
        Not zero.
    after : float
        Leave out what is earlier.

    Returns
    -------
    ndarray, shape (runs, ...)
        One sample a run, for `mean_interval` and `judge`. The mean of these rates is that of ln|value|, which by Jensen's inequality is not
        the rate of the mean value.

    Raises
    ------
    RunError
        For fewer than three times, or a value that has no logarithm.

    Examples
    --------
    >>> times = np.arange(20)
    >>> decay_rates(times, np.exp(-0.3 * times)[None]).round(12).tolist()
    [0.3]
    """
    t, y = np.asarray(times, dtype=float), np.asarray(values, dtype=float)
    kept = t >= after
    t, y = t[kept], y[:, kept] if y.ndim > 1 else y
    if y.ndim < 2 or y.shape[1] != len(t) or len(t) < 3:
        raise RunError(f"Rates need values of shape (runs, times, ...) at three or more times; got {y.shape} at {len(t)} times.")
    if not np.all(np.isfinite(y)) or np.any(y == 0):
        raise RunError("A rate is fitted to logarithms: values must be finite and not zero. Leave out what has decayed to rounding.")
    centred = t - t.mean()
    logarithms = np.log(np.abs(y))
    slopes: Floats = np.tensordot(centred, logarithms - logarithms.mean(axis=1, keepdims=True), axes=(0, 1)) / (centred @ centred)
    return -slopes


def _checked(samples: ArrayLike) -> Floats:
    x = np.asarray(samples, dtype=float)
    if x.ndim < 1 or len(x) < 2:
        raise RunError(f"An interval needs two or more samples along the first axis; got shape {x.shape}.", shape=x.shape)
    if not np.all(np.isfinite(x)):
        bad = int((~np.isfinite(x.reshape(len(x), -1))).any(axis=1).sum())
        raise RunError(
            f"{bad} of {len(x)} samples are not finite: these runs diverged. Take a smaller step size; do not drop them.", bad=bad
        )
    return x


def _share(x: Floats, confidence: float) -> float:
    """Probability of error of each quantity."""
    if not 0 < confidence < 1:
        raise RunError(f"A confidence lies between 0 and 1; got {confidence}.", confidence=confidence)
    return (1 - confidence) / max(1, int(np.prod(x.shape[1:])))


def _critical(x: Floats, confidence: float) -> float:
    return student_quantile(1 - _share(x, confidence) / 2, len(x) - 1)


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


def _shown(values: Any) -> str:
    array = np.asarray(values)
    return f"{float(array):.4g}" if array.ndim == 0 else np.array2string(array, precision=4, threshold=6)
