"""Linear assignment: one column for every row at the least total cost.

Shortest augmenting paths with dual prices (Kuhn 1955, Munkres 1957; in the form of Jonker and Volgenant 1987): exact, O(n^3), the inner
loop in NumPy.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from noetherflow.errors import NoetherflowError


def assignment(cost: NDArray[np.floating[Any]]) -> NDArray[np.intp]:
    """Assign a column to every row.

    Parameters
    ----------
    cost : array of shape (n, n)
        Finite.

    Returns
    -------
    array of shape (n,)
        Column of each row; all different, with the least sum of costs. Ties are broken the same way every time.

    Examples
    --------
    >>> assignment(np.array([[4.0, 1.0, 3.0], [2.0, 0.0, 5.0], [3.0, 2.0, 2.0]])).tolist()
    [1, 0, 2]
    """
    costs = np.asarray(cost, dtype=np.float64)
    if costs.ndim != 2 or costs.shape[0] != costs.shape[1] or not np.isfinite(costs).all():
        raise NoetherflowError(
            f"An assignment needs a square matrix of finite costs; got shape {costs.shape}. Check for nan in the models."
        )
    n = len(costs)
    rows, columns = np.zeros(n), np.zeros(n)  # dual prices
    row_of = np.full(n, -1, dtype=np.intp)
    for row in range(n):
        _augment(costs, row, rows, columns, row_of)
    out = np.empty(n, dtype=np.intp)
    out[row_of] = np.arange(n)
    return out


def _augment(
    costs: NDArray[np.float64], start: int, rows: NDArray[np.float64], columns: NDArray[np.float64], row_of: NDArray[np.intp]
) -> None:
    """Find the shortest way from a free row to a free column; change prices and the assignment along it."""
    n = len(costs)
    shortest, before, done = np.full(n, np.inf), np.full(n, -1, dtype=np.intp), np.zeros(n, dtype=bool)
    row, length, last = start, 0.0, -1
    seen = []
    while True:
        seen.append(row)
        reach = length + costs[row] - rows[row] - columns
        closer = ~done & (reach < shortest)
        shortest[closer], before[closer] = reach[closer], row
        last = int(np.where(done, np.inf, shortest).argmin())
        length = float(shortest[last])
        done[last] = True
        if row_of[last] < 0:
            break
        row = int(row_of[last])
    rows[start] += length
    for passed in seen[1:]:
        rows[passed] += length - shortest[np.flatnonzero(row_of == passed)[0]]
    columns[done] -= length - shortest[done]
    _shift(row_of, before, start, last)


def _shift(row_of: NDArray[np.intp], before: NDArray[np.intp], start: int, last: int) -> None:
    """Hand every column on the way to the row before it."""
    column = last
    while True:
        row = int(before[column])
        row_of[column], previous = row, _column_of(row_of, row, column)
        if row == start:
            return
        column = previous


def _column_of(row_of: NDArray[np.intp], row: int, but: int) -> int:
    found = [int(c) for c in np.flatnonzero(row_of == row) if c != but]
    return found[0] if found else -1
