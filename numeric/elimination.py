"""Gauss elimination modulo a prime: ranks, reduced bases, null spaces, and residues read as small fractions.

Matrices are float64 tensors of balanced residues. Rows are halved recursively, so that nearly all work is matrix products, summed in pieces
short enough to be exact.
"""

from __future__ import annotations

from fractions import Fraction
from math import isqrt
from typing import Final

import torch
from torch import Tensor

from noetherflow.numeric.modular import length_limit, reduced

ROWS_AT_ONCE: Final = 24


def product(a: Tensor, b: Tensor, prime: int) -> Tensor:
    """The matrix product modulo p of residues, shape (m, n): exact for any length.

    >>> product(torch.tensor([[5.0, 6.0]], dtype=torch.float64), torch.tensor([[5.0], [6.0]], dtype=torch.float64), 7)
    tensor([[-2.]], dtype=torch.float64)
    """
    step = length_limit(prime) - 1
    total = reduced(a[:, :step] @ b[:step], prime)
    for start in range(step, a.shape[1], step):
        total = reduced(total + reduced(a[:, start : start + step] @ b[start : start + step], prime), prime)
    return total


class Echelon:
    """A row space modulo p in reduced form, to which rows are added.

    Parameters
    ----------
    columns : int
    prime : int

    Attributes
    ----------
    rows : Tensor, shape (rank, columns)
        Row i has a one in column ``pivots[i]``, where all others have zero.
    pivots : list of int

    Examples
    --------
    >>> space = Echelon(3, 7)
    >>> space.add(torch.tensor([[1.0, 2.0, 3.0], [2.0, 4.0, 6.0], [0.0, 1.0, 1.0]], dtype=torch.float64)), space.pivots
    (2, [0, 1])
    """

    def __init__(self, columns: int, prime: int) -> None:
        self.prime = prime
        self.rows = torch.zeros(0, columns, dtype=torch.float64)
        self.pivots: list[int] = []

    @property
    def rank(self) -> int:
        """Dimension of the row space."""
        return len(self.pivots)

    def add(self, rows: Tensor) -> int:
        """Add rows of residues, shape (m, columns); returns how many dimensions they bring."""
        new, pivots = _reduced_rows(self.modulo(rows), self.prime)
        if pivots:
            self.rows = torch.cat([_without(self.rows, new, pivots, self.prime), new])
            self.pivots += pivots
        return len(pivots)

    def modulo(self, rows: Tensor) -> Tensor:
        """Rows with zeros in the pivot columns, equal to those given up to this row space."""
        return _without(rows, self.rows, self.pivots, self.prime)

    def null_space(self) -> Tensor:
        """A basis of what every row maps to zero, shape (columns - rank, columns)."""
        columns = self.rows.shape[1]
        taken = set(self.pivots)
        free = [c for c in range(columns) if c not in taken]
        basis = torch.zeros(len(free), columns, dtype=torch.float64)
        basis[range(len(free)), free] = 1.0
        basis[:, self.pivots] = -self.rows[:, free].T
        return basis


def rank(matrix: Tensor, prime: int) -> int:
    """Rank modulo p of a matrix of residues: a lower bound of its rank over the rationals, whatever the prime.

    >>> rank(torch.tensor([[1.0, 2.0], [2.0, 4.0]], dtype=torch.float64), 7)
    1
    """
    return len(_reduced_rows(matrix, prime)[1])


def _without(rows: Tensor, basis: Tensor, pivots: list[int], prime: int) -> Tensor:
    if not pivots or not len(rows):
        return rows.clone()
    return reduced(rows - product(rows[:, pivots], basis, prime), prime)


def _reduced_rows(rows: Tensor, prime: int) -> tuple[Tensor, list[int]]:
    """The same row space in reduced form, and its pivots. Half the rows first; each half is then cleared by the other."""
    if len(rows) <= ROWS_AT_ONCE:
        return _few_rows(rows.clone(), prime)
    half = len(rows) // 2
    first, pivots = _reduced_rows(rows[:half], prime)
    second, more = _reduced_rows(_without(rows[half:], first, pivots, prime), prime)
    return torch.cat([_without(first, second, more, prime), second]), pivots + more


def _few_rows(rows: Tensor, prime: int) -> tuple[Tensor, list[int]]:
    pivots, kept = [], []
    for i in range(len(rows)):
        nonzero = rows[i].nonzero()
        if not len(nonzero):
            continue
        pivot = int(nonzero[0])
        inverse = pow(int(rows[i, pivot]) % prime, -1, prime)
        rows[i] = reduced(rows[i] * (inverse if inverse <= prime // 2 else inverse - prime), prime)
        column = rows[:, pivot].clone()
        column[i] = 0.0
        rows = reduced(rows - torch.outer(column, rows[i]), prime)
        pivots.append(pivot)
        kept.append(i)
    return rows[kept], pivots


def fraction(residue: float, prime: int) -> Fraction | None:
    """The fraction with the smallest numerator and denominator that has this residue; None if none is below sqrt(p / 2).

    Source: Wang's rational reconstruction (half of Euclid's algorithm).

    >>> fraction(-3.0, 4194301), fraction(1048576.0, 4194301)
    (Fraction(-3, 1), Fraction(3, 4))
    """
    bound = isqrt(prime // 2)
    r0, r1, t0, t1 = prime, int(residue) % prime, 0, 1
    while r1 > bound:
        quotient = r0 // r1
        r0, r1, t0, t1 = r1, r0 - quotient * r1, t1, t0 - quotient * t1
    return Fraction(r1, t1) if 0 < abs(t1) <= bound else None
