"""Rounding: what a floating-point run may differ from exact arithmetic, as a standard deviation and a bound.

Rounding errors of different operations are taken as independent with mean zero, each at most one unit roundoff of its result; their sum
then stays below ``confidence(n) · σ`` in all n places it is looked at, except with the stated probability (higham2019probabilistic,
Theorem 2.4, by Hoeffding's inequality). A worst-case bound would grow linearly with the number of steps and hide every defect.
"""

from __future__ import annotations

import math
from typing import Final

import torch

FAILURE_PROBABILITY: Final = 1e-6


def unit_roundoff(dtype: torch.dtype) -> float:
    """Largest relative error of rounding to a dtype: half the distance from 1 to the next number.

    Examples
    --------
    >>> unit_roundoff(torch.float64) == 2.0**-53, unit_roundoff(torch.bfloat16) == 2.0**-8 / 1
    (True, True)
    """
    return float(torch.finfo(dtype).eps) / 2


def confidence(places: int, failure_probability: float = FAILURE_PROBABILITY) -> float:
    """Number of standard deviations that none of `places` sums of independent rounding errors exceeds, but with a small probability.

    Parameters
    ----------
    places : int
        How many sums are looked at (charges times steps).
    failure_probability : float
        Of any of them exceeding it.

    Examples
    --------
    >>> round(confidence(10**6), 2)
    7.53
    """
    return math.sqrt(2 * math.log(2 * max(places, 1) / failure_probability))


def accumulation(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which matrix products of a dtype are summed (half precision is summed in float32)."""
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype
