r"""Ranks of matrices of balls: a lower bound that holds for every matrix in them.

If ‖I − C M‖ < 1 in a norm that belongs to vectors, C M has an inverse (Neumann), so M has one. With C the float64 inverse of M's middle
and the left-hand side enclosed in balls, this proves that every matrix in M is regular: a matrix with such an r × r minor has rank r at
least. Nothing is assumed of C. If some matrix in M is singular, the enclosure holds its norm too, which is at least 1: a rank that is too
high cannot be proved.

Source: rump1999fast; the argument is Neumann's series.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from noetherflow.numeric.balls import Ball, product


def chosen(blocks: Sequence[tuple[Tensor, int]]) -> tuple[list[list[int]], list[int]]:
    """Rows and columns of a minor that is far from singular, by Gauss elimination with complete pivoting in float64.

    Parameters
    ----------
    blocks : sequence of (Tensor of shape (m, n), int)
        Rows, and how many of them the minor shall have.

    Returns
    -------
    list of list of int
        The rows of each block.
    list of int
        The columns.

    Examples
    --------
    >>> chosen([(torch.tensor([[0.0, 2.0], [0.0, 1.0]]), 1), (torch.tensor([[3.0, 3.0]]), 1)])
    ([[0], [0]], [1, 0])
    """
    rest = torch.cat([torch.nn.functional.normalize(rows) for rows, _ in blocks])
    found: list[list[int]] = []
    columns: list[int] = []
    start = 0
    for rows, count in blocks:
        found.append([])
        for _ in range(count):
            here = rest[start : start + len(rows)].abs()
            row, column = divmod(int(here.argmax()), rest.shape[1])
            pivot = rest[start + row].clone()
            rest = rest - torch.outer(rest[:, column] / pivot[column], pivot)
            rest[:, column] = 0.0
            rest[start + row] = 0.0
            found[-1].append(row)
            columns.append(column)
        start += len(rows)
    return found, columns


def contraction(minor: Ball) -> float:
    """An upper bound of the largest row sum of |I − C M|: below 1, every matrix in the ball is regular.

    Parameters
    ----------
    minor : Ball, shape (r, r)

    Examples
    --------
    >>> m = torch.tensor([[2.0, 1.0], [1.0, 3.0]], dtype=torch.float64)
    >>> contraction(Ball.exact(m)) < 1e-14, contraction(Ball(m, torch.full_like(m, 2.0))) < 1
    (True, False)
    """
    size = len(minor.middle)
    if size == 0:
        return 0.0
    inverse, failed = torch.linalg.inv_ex(minor.middle)
    if failed:
        return torch.inf
    left = product(Ball.exact(inverse), minor) - Ball.exact(torch.eye(size, dtype=torch.float64))
    bound = float(Ball.exact(left.magnitude).sum([1]).magnitude.max())
    return bound if bound == bound else torch.inf  # not a number: the inverse overflowed
