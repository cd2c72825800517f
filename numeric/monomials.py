"""Monomials up to a degree, as what a search for polynomial laws needs of them: their gradients at a point."""

from __future__ import annotations

from collections import Counter
from itertools import combinations_with_replacement

import torch
from torch import Tensor

from noetherflow.numeric.modular import reduced


class Monomials:
    """All monomials of degrees 1 to `degree`, by degree and then in lexical order of their variables.

    Parameters
    ----------
    variables : int
        D.
    degree : int

    Attributes
    ----------
    factors : list of tuple of int
        The variables of each monomial, in order, each as often as its power.

    Examples
    --------
    >>> Monomials(2, 2).factors
    [(0,), (1,), (0, 0), (0, 1), (1, 1)]
    """

    def __init__(self, variables: int, degree: int) -> None:
        self.variables = variables
        self._of_degree = [list(combinations_with_replacement(range(variables), d)) for d in range(1, degree + 1)]
        self.factors = [m for of_one in self._of_degree for m in of_one]

    def __len__(self) -> int:
        return len(self.factors)

    def powers(self, number: int) -> tuple[tuple[int, int], ...]:
        """(variable, power) of one monomial.

        >>> Monomials(3, 3).powers(12)
        ((0, 1), (1, 2))
        """
        return tuple(sorted(Counter(self.factors[number]).items()))

    def gradients(self, point: Tensor, prime: int) -> Tensor:
        """Gradients at a point of residues modulo a prime, shape (monomials, D): exact.

        >>> Monomials(2, 2).gradients(torch.tensor([2.0, 5.0], dtype=torch.float64), 101).tolist()
        [[1.0, 0.0], [0.0, 1.0], [4.0, 0.0], [5.0, 2.0], [0.0, 10.0]]
        """
        return torch.cat([self._gradients(torch.tensor(of_one), point, prime) for of_one in self._of_degree])

    def _gradients(self, factors: Tensor, point: Tensor, prime: int) -> Tensor:
        """The product rule: for every factor, the product of the others."""
        out = torch.zeros(len(factors), self.variables, dtype=torch.float64)
        degree = factors.shape[1]
        for left_out in range(degree):
            others = torch.ones(len(factors), dtype=torch.float64)
            for kept in range(degree):
                if kept != left_out:
                    others = reduced(others * point[factors[:, kept]], prime)
            out.scatter_add_(1, factors[:, left_out : left_out + 1], others.unsqueeze(1))
        return reduced(out, prime)
