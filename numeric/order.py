"""The order of an error: the slope of its logarithm against the logarithm of the step size, with its standard error.

A bound on one error says little; that errors fall as the step size to a known power, over several octaves, says that everything below that
power is right. The slope is fitted by least squares; its standard error is that of the scatter about the line.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from noetherflow.errors import RunError

FEWEST: Final = 4


@dataclass(frozen=True, slots=True)
class Order:
    """A fitted power law, error ≈ factor · step^slope.

    Attributes
    ----------
    slope : float
        The order.
    uncertainty : float
        Its standard error (zero for points that lie on a line).
    factor : float
    """

    slope: float
    uncertainty: float
    factor: float

    def __str__(self) -> str:
        return f"{self.slope:.3f} ± {self.uncertainty:.3f}"


def fit_order(step_sizes: Sequence[float], errors: Sequence[float]) -> Order:
    """Fit the order of errors at several step sizes.

    Parameters
    ----------
    step_sizes : sequence of float
        At least four different ones.
    errors : sequence of float
        One for each; positive.

    Returns
    -------
    Order

    Raises
    ------
    RunError
        For fewer than four step sizes, unequal lengths, or values without a logarithm (an error of exactly zero has no order).

    Examples
    --------
    >>> steps = [0.1, 0.05, 0.025, 0.0125]
    >>> fitted = fit_order(steps, [3 * h**2 for h in steps])
    >>> round(fitted.slope, 12), round(fitted.factor, 12)
    (2.0, 3.0)
    """
    if len(set(step_sizes)) < FEWEST or len(step_sizes) != len(errors):
        raise RunError(
            f"An order needs errors at {FEWEST} or more different step sizes; got {len(set(step_sizes))} step sizes "
            f"and {len(errors)} errors. Halve the step size a few times.",
            step_sizes=tuple(step_sizes),
            errors=tuple(errors),
        )
    if not all(math.isfinite(x) and x > 0 for x in (*step_sizes, *errors)):
        raise RunError(
            f"An order is fitted to logarithms: step sizes and errors must be positive and finite; got {list(step_sizes)} and "
            f"{list(errors)}.",
            step_sizes=tuple(step_sizes),
            errors=tuple(errors),
        )
    x, y = np.log(np.asarray(step_sizes, dtype=float)), np.log(np.asarray(errors, dtype=float))
    centred = x - x.mean()
    spread = float(centred @ centred)
    slope = float(centred @ y) / spread
    residual = y - y.mean() - slope * centred
    scatter = math.sqrt(float(residual @ residual) / (len(x) - 2))
    return Order(slope, scatter / math.sqrt(spread), math.exp(float(y.mean() - slope * x.mean())))
