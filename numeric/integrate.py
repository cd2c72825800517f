"""Integration of smooth ordinary differential equations on flat vectors of parameters, to an error that does not show.

One step of the midpoint rule in n substeps has an error in even powers of 1/n only (Gragg); over n = 2, 4, 6, 8 it is extrapolated to
1/n = 0, which leaves O(h^8) for 24 evaluations. Right-hand sides are expensive here (several passes through a network), so a high order
pays.
Source: hairer2006geometric, chapter II, for the symmetry of the rule; the extrapolation is Neville's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from torch import Tensor

from noetherflow.errors import RunError

SUBSTEPS: Final = (2, 4, 6, 8)
Velocity = Callable[[Tensor], Tensor]


def integrate(velocity: Velocity, start: Tensor, time: float, steps: int) -> Tensor:
    """Where the flow of a vector field carries a point in a given time.

    Parameters
    ----------
    velocity : callable of Tensor to Tensor
    start : Tensor, shape (D,)
    time : float
    steps : int
        Number of equal steps h; the error is O(h^8) for smooth fields, until rounding.

    Returns
    -------
    Tensor, shape (D,)

    Raises
    ------
    RunError
        If `steps` is not positive.

    Examples
    --------
    >>> import torch
    >>> end = integrate(lambda x: -x, torch.ones(1, dtype=torch.float64), 1.0, 4)
    >>> abs(float(end) - 0.36787944117144233) < 1e-11
    True
    """
    if steps < 1:
        raise RunError(f"An integration needs at least one step; got steps={steps}.", steps=steps)
    x = start
    for _ in range(steps):
        x = _extrapolated(velocity, x, time / steps)
    return x


def _extrapolated(velocity: Velocity, start: Tensor, h: float) -> Tensor:
    """Neville's scheme in 1/n²."""
    column = [_midpoint(velocity, start, h, n) for n in SUBSTEPS]
    for k in range(1, len(SUBSTEPS)):
        ratios = [(SUBSTEPS[i + k] / SUBSTEPS[i]) ** 2 for i in range(len(column) - 1)]
        column = [finer + (finer - coarser) / (r - 1) for coarser, finer, r in zip(column, column[1:], ratios, strict=False)]
    return column[0]


def _midpoint(velocity: Velocity, start: Tensor, h: float, n: int) -> Tensor:
    """Gragg's rule: an explicit midpoint rule, its last value averaged so that it stays even in 1/n."""
    part = h / n
    before, now = start, start + part * velocity(start)
    for _ in range(n - 1):
        before, now = now, before + 2 * part * velocity(now)
    return (before + now + part * velocity(now)) / 2
