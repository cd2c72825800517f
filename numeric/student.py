"""Student's t distribution, central and noncentral: what confidence intervals and their power need, without SciPy.

The central distribution is an incomplete beta function, evaluated by its continued fraction (Lentz's algorithm); the noncentral one is an
average of normal distributions over the chi distribution, evaluated by Gauss and Legendre's rule where that has its mass. Quantiles are
found by bisection, to the last digits. Tests compare all of it with SciPy.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Final

import numpy as np

from noetherflow.errors import RunError

__all__ = ["power_of_t", "student_cdf", "student_quantile"]

TINY: Final = 1e-300
NODES, WEIGHTS = np.polynomial.legendre.leggauss(200)


def student_cdf(t: float, freedom: float) -> float:
    """P(T ≤ t), to about 1e-13.

    Examples
    --------
    >>> student_cdf(0.0, 5.0), round(student_cdf(2.015048373, 5.0), 9)
    (0.5, 0.95)
    """
    if not freedom > 0:
        raise RunError(f"Student's distribution needs a positive number of degrees of freedom; got {freedom}.", freedom=freedom)
    tail = 0.5 * incomplete_beta(freedom / 2, 0.5, freedom / (freedom + t * t))
    return 1 - tail if t > 0 else tail


@lru_cache(maxsize=4096)
def student_quantile(probability: float, freedom: float) -> float:
    """The t with P(T ≤ t) = probability.

    Examples
    --------
    >>> round(student_quantile(0.975, 10), 6), round(student_quantile(0.025, 10), 6)
    (2.228139, -2.228139)
    """
    if not 0 < probability < 1:
        raise RunError(f"A quantile needs a probability between 0 and 1; got {probability}.", probability=probability)
    if probability < 0.5:
        return -student_quantile(1 - probability, freedom)
    return bisect(lambda t: student_cdf(t, freedom) - probability, 0.0)


def power_of_t(shift: float, critical: float, freedom: float) -> float:
    """P(|T| > critical): how often a two-sided t test rejects when the mean is `shift` standard errors away.

    Parameters
    ----------
    shift : float
        Noncentrality: the distance of the means over the standard error.
    critical : float
        The test's threshold.
    freedom : float

    Examples
    --------
    >>> round(power_of_t(0.0, student_quantile(0.995, 20), 20), 6)
    0.01
    """
    # T = (Z + shift) / s with s = sqrt(chi²/freedom): average over s, whose logarithm of density is smooth
    spread = 1 / math.sqrt(2 * freedom)
    low, high = max(1 - 12 * spread, 0.0), 1 + 14 * spread
    s = (high - low) / 2 * NODES + (high + low) / 2
    log_density = (freedom - 1) * np.log(s) - freedom * s**2 / 2
    weight = WEIGHTS * np.exp(log_density - log_density.max())
    rejected = np.array([_normal(shift - critical * x) + _normal(-shift - critical * x) for x in s])
    return float((weight * rejected).sum() / weight.sum())


def incomplete_beta(a: float, b: float, x: float) -> float:
    """The regularised incomplete beta function I_x(a, b).

    Examples
    --------
    >>> round(incomplete_beta(2.0, 3.0, 0.4), 12)
    0.5248
    """
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):
        return 1 - incomplete_beta(b, a, 1 - x)
    front = math.exp(a * math.log(x) + b * math.log1p(-x) - (math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)))
    return front * _continued_fraction(a, b, x) / a


def _continued_fraction(a: float, b: float, x: float) -> float:
    """Lentz's algorithm for the fraction of I_x(a, b); it converges for x < (a + 1) / (a + b + 2)."""
    c, d = 1.0, 1 / _nonzero(1 - (a + b) * x / (a + 1))
    value = d
    for m in range(1, 10_000):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d = 1 / _nonzero(1 + term * d)
            c = _nonzero(1 + term / c)
            value *= c * d
        if abs(c * d - 1) < 1e-16:
            break
    return value


def _nonzero(x: float) -> float:
    return x if abs(x) > TINY else TINY


def bisect(function: Callable[[float], float], low: float) -> float:
    """The root of an increasing function above `low`, to the last digits."""
    high = low + 1.0
    while function(high) < 0:
        low, high = high, 2 * high
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if function(middle) < 0 else (low, middle)
    return middle


def _normal(x: float) -> float:
    return math.erfc(-x / math.sqrt(2)) / 2
