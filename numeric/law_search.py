"""Polynomial laws of vector fields, by the null space of one linear system modulo a prime.

A polynomial h = Σ c_m m is constant along fields V if Σ_m c_m ⟨∇m(θ), V(θ)⟩ = 0 at every θ: linear in c. At random points each field
gives one equation on the coefficients. Scaled to coprime integers, a law with rational coefficients is a solution modulo every prime, and
not zero: so there are never more independent polynomial laws than solutions, and *no solution proves that there is no law*, whatever
points and prime were drawn. A solution becomes a law when it is shown to hold identically (`noetherflow.bridge.polynomial_laws`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

from torch import Tensor

from noetherflow.errors import ModelError
from noetherflow.numeric.elimination import Echelon, fraction, product, rank
from noetherflow.numeric.modular import residues
from noetherflow.numeric.monomials import Monomials

LARGEST: Final = 20_000
"""Monomials beyond which the elimination would take hours."""
STILL: Final = 3
"""Points that must bring no new equation before the search takes the rest for solutions."""

Draw = Callable[[int], tuple[Tensor, Tensor]]
"""Number of a point -> (the point, shape (D,); fields there, shape (fields, D)): residues."""


@dataclass(frozen=True)
class Solutions:
    """Polynomials that every drawn field leaves constant.

    Attributes
    ----------
    monomials : Monomials
    basis : Tensor, shape (solutions, monomials)
        Residues, in reduced form.
    points : int
        How many were drawn.
    independent : int
        Rank of the solutions' gradients at a further point: how many of them are functions of no others, at least.
    """

    monomials: Monomials
    basis: Tensor
    points: int
    independent: int

    def coefficients(self, number: int, prime: int) -> dict[int, Fraction] | None:
        """One solution's coefficients as small fractions, by monomial; None if some have no small fraction for their residue."""
        found = {int(m): fraction(float(self.basis[number, m]), prime) for m in self.basis[number].nonzero().flatten()}
        return None if None in found.values() else {m: c for m, c in found.items() if c is not None}


def search(draw: Draw, variables: int, degree: int, prime: int) -> Solutions:
    """Solve for the polynomials up to a degree that are constant along fields.

    Parameters
    ----------
    draw : callable
        Points and fields there; the same number gives the same.
    variables : int
        D.
    degree : int
        At least 1.
    prime : int

    Returns
    -------
    Solutions
        Never fewer than there are independent laws with rational coefficients. Exact but for the draw: unlucky points leave too many.

    Raises
    ------
    ModelError
        If there are more than `LARGEST` monomials.

    Examples
    --------
    The rotation (x, y) -> (-y, x) conserves x^2 + y^2.

    >>> import torch
    >>> def draw(number):
    ...     x, y = number**2 + 2.0, 1.0 - 5.0 * number
    ...     return torch.tensor([x, y], dtype=torch.float64), torch.tensor([[-y, x]], dtype=torch.float64)
    >>> found = search(draw, 2, 2, 4194301)
    >>> found.coefficients(0, 4194301)
    {2: Fraction(1, 1), 4: Fraction(1, 1)}
    """
    monomials = Monomials(variables, degree) if _count(variables, degree) <= LARGEST else _too_many(variables, degree)
    space, still, number = Echelon(len(monomials), prime), 0, 0
    while still < STILL and space.rank < len(monomials):
        point, fields = draw(number)
        equations = product(fields, monomials.gradients(point, prime).T.contiguous(), prime)
        still = 0 if space.add(equations) else still + 1
        number += 1
    null = Echelon(len(monomials), prime)
    null.add(space.null_space())
    point, _ = draw(number)
    gradients = product(null.rows, monomials.gradients(residues(point, prime), prime), prime)
    return Solutions(monomials, null.rows, number, rank(gradients, prime) if len(gradients) else 0)


def _count(variables: int, degree: int) -> int:
    count = 1
    for d in range(1, degree + 1):
        count = count * (variables + d) // d
    return count - 1


def _too_many(variables: int, degree: int) -> Monomials:
    raise ModelError(
        f"{_count(variables, degree):,} monomials of degree {degree} in {variables} variables are more than {LARGEST:,}. "
        "Search a smaller degree or a narrower network.",
        variables=variables,
        degree=degree,
    )
