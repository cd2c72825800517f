"""Growth of a small quantity under random factors: the Lyapunov exponent of SGD along one transverse direction.

Near a mirror's subspace a step with the mini-batch B multiplies the amplitude by 1 - η (h_B + λ). It dies out almost surely where
E ln|1 - η (h_B + λ)| < 0, which is not where the mean factor is below one: noise that changes no sign helps collapse (Jensen); to second
order the exponent is -η (E h + λ) - ½η² E (h + λ)².
Source: ziyin2024symmetry (the criterion); own (exact means over a finite set of mini-batches).
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import ArrayLike

from noetherflow.errors import RunError

__all__ = ["critical_rate", "growth", "growth_samples"]

FINENESS: Final = 1.01  # from one step size that is tried to the next
LONGEST: Final = 2000


def growth_samples(curvatures: ArrayLike, rate: float, decay: float = 0.0) -> np.ndarray:
    """ln|1 - η (h + λ)| of each mini-batch.

    Examples
    --------
    >>> growth_samples([1.0, -1.0], 0.5).round(3).tolist()
    [-0.693, 0.405]
    """
    with np.errstate(divide="ignore"):  # a factor of exactly zero ends the amplitude: minus infinity
        found: np.ndarray = np.log(np.abs(1 - rate * (np.asarray(curvatures, dtype=float) + decay)))
    return found


def growth(curvatures: ArrayLike, rate: float, decay: float = 0.0) -> float:
    """E ln|1 - η (h + λ)| for mini-batches that are equally likely: exact for the set of all of them, an estimate for drawn ones.

    Parameters
    ----------
    curvatures : array, shape (batches,)
        h of each, without decay.
    rate : float
        η.
    decay : float
        λ.

    Examples
    --------
    >>> growth([1.0, -1.1], 0.5) < 0 < growth([1.0, -1.1], 0.05)  # a mean curvature of -0.05 repels, large steps attract
    True
    """
    return float(growth_samples(curvatures, rate, decay).mean())


def critical_rate(curvatures: ArrayLike, decay: float = 0.0) -> float:
    """The smallest step size at which noise makes a repelling subspace attractive: the first zero of `growth`, to rounding.

    Zero if small steps are attracted already (a mean curvature with decay that is positive).

    Raises
    ------
    RunError
        If there is none: noise too weak, for instance curvatures that are all equal.

    Examples
    --------
    >>> h = np.random.default_rng(0).normal(-0.02, 1.0, 4000)
    >>> bool(abs(critical_rate(h) / (-2 * h.mean() / (h**2).mean()) - 1) < 0.01)
    True
    """
    h = np.asarray(curvatures, dtype=float)
    if h.mean() + decay >= 0:
        return 0.0
    high = -(h.mean() + decay) / np.square(h + decay).mean()
    for _ in range(LONGEST):
        if growth(h, high, decay) < 0:
            break
        high *= FINENESS
    else:
        raise RunError(f"No step size makes the subspace attractive: mean {h.mean():.3g}, standard deviation {h.std():.3g} of curvatures.")
    low = high / FINENESS
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if growth(h, middle, decay) < 0 else (middle, high)
    return float(high)
