"""Intervals: means, ratios of means and rates of decay over independent runs, with Student's confidence intervals.

Samples are independent: one number (or one row of charges) for each run, never successive times of one run. For several quantities at once
each gets its share of the error (Bonferroni), so that all intervals hold together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from noetherflow.errors import RunError
from noetherflow.numeric.student import student_quantile

__all__ = ["CONFIDENCE", "Interval", "decay_rates", "mean_interval", "ratio_interval"]

CONFIDENCE: Final = 0.99

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
    x = checked(samples)
    error = np.asarray(x.std(axis=0, ddof=1) / math.sqrt(len(x)))
    half = np.maximum(critical_value(x, confidence) * error, resolution)
    return Interval(np.asarray(x.mean(axis=0)), error, half, confidence, len(x))


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
    a, b = checked(above), checked(below)
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


def checked(samples: ArrayLike) -> Floats:
    """Samples as an array, or an error that says what is wrong with them."""
    x = np.asarray(samples, dtype=float)
    if x.ndim < 1 or len(x) < 2:
        raise RunError(f"An interval needs two or more samples along the first axis; got shape {x.shape}.", shape=x.shape)
    if not np.all(np.isfinite(x)):
        bad = int((~np.isfinite(x.reshape(len(x), -1))).any(axis=1).sum())
        raise RunError(
            f"{bad} of {len(x)} samples are not finite: these runs diverged. Take a smaller step size; do not drop them.", bad=bad
        )
    return x


def share(x: Floats, confidence: float) -> float:
    """Probability of error of each quantity."""
    if not 0 < confidence < 1:
        raise RunError(f"A confidence lies between 0 and 1; got {confidence}.", confidence=confidence)
    return (1 - confidence) / max(1, int(np.prod(x.shape[1:])))


def critical_value(x: Floats, confidence: float) -> float:
    """How many standard errors an interval reaches to either side."""
    return student_quantile(1 - share(x, confidence) / 2, len(x) - 1)


def _shown(values: Any) -> str:
    array = np.asarray(values)
    return f"{float(array):.4g}" if array.ndim == 0 else np.array2string(array, precision=4, threshold=6)
