"""Integration of ordinary differential equations on flat vectors of parameters: the classical Runge-Kutta method of fourth order."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from noetherflow.errors import RunError


def runge_kutta(velocity: Callable[[Tensor], Tensor], start: Tensor, time: float, substeps: int) -> Tensor:
    """Where the flow of a vector field carries a point in a given time.

    Parameters
    ----------
    velocity : callable of Tensor to Tensor
    start : Tensor, shape (D,)
    time : float
    substeps : int
        Number of equal steps h; the error is O(h^4).

    Returns
    -------
    Tensor, shape (D,)

    Raises
    ------
    RunError
        If `substeps` is not positive.

    Examples
    --------
    >>> import torch
    >>> end = runge_kutta(lambda x: -x, torch.ones(1, dtype=torch.float64), 1.0, 100)
    >>> abs(float(end) - 0.36787944117144233) < 1e-10
    True
    """
    if substeps < 1:
        raise RunError(f"An integration needs at least one step; got substeps={substeps}.", substeps=substeps)
    h, x = time / substeps, start
    for _ in range(substeps):
        a = velocity(x)
        b = velocity(x + h / 2 * a)
        c = velocity(x + h / 2 * b)
        d = velocity(x + h * c)
        x = x + h / 6 * (a + 2 * b + 2 * c + d)
    return x
