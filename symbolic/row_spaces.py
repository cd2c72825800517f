r"""Laws that the symmetry of data adds: the row space of a first layer on a subspace that the group mixes.

Let the loss depend on the part W (h × n) of a first layer that reads a subspace V of the inputs through W Wᵀ alone. Then ∇L = Λ W with
some h × h matrix Λ, and under gradient flow dW/dt = A W: every maximal minor of W has the same rate, tr A. So their ratios are conserved,
the row space of W, which is h (n - h) further laws if n > h. They are rational, and exact at any step size: W' = (1 - η Λ) W, with momentum
from rest and weight decay too.

When does it depend on W Wᵀ alone?
  - For any network and any loss, if the data are averaged over all orthogonal maps of V, and nothing else reads V: what O(n) leaves
    unchanged of W is a function of W Wᵀ. For one unit and a circle (h = 1, n = 2) too.
  - For a linear network with mean-square loss, if V is one irreducible representation of real type that occurs once and not in the targets:
    only second moments count, and by Schur's lemma those on V are c · 1, those with the rest zero. A small group (permutations) will do.
  - For networks of degree p in the inputs with mean-square loss, if moments up to order 2 p are those of a sphere (orbits are designs).

Source: own; gluch2021noether for the velocity restriction that these integrate.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

import sympy as sp

from noetherflow.errors import GraphError


def minor_rates(units: int, inputs: int) -> set[sp.Expr]:
    """d/dt ln of each maximal minor of W along dW/dt = A W, for a general A: one element, tr A.

    Parameters
    ----------
    units, inputs : int
        h and n, with h at most n.

    Examples
    --------
    >>> minor_rates(2, 3)
    {A[0, 0] + A[1, 1]}
    """
    a, w = sp.MatrixSymbol("A", units, units).as_explicit(), sp.MatrixSymbol("W", units, inputs).as_explicit()
    return {sp.simplify(_rate(minor, w, a * w) / minor) for minor in minors(w)}


def minors(w: sp.Matrix) -> list[sp.Expr]:
    """The maximal minors of a matrix with no more rows than columns.

    Raises
    ------
    GraphError
        More rows than columns: then the row space is everything, and no law.
    """
    units, inputs = w.shape
    if units > inputs:
        raise GraphError(f"{units} units that read {inputs} numbers span them all: there is no law of the row space.")
    return [w[:, list(columns)].det() for columns in combinations(range(inputs), units)]


def added_laws(units: int, inputs: int) -> int:
    """Laws of the row space, h (n - h), none if the units span it: the dimension of the Grassmannian.

    >>> [added_laws(h, 3) for h in (1, 2, 3, 4)]
    [2, 2, 0, 0]
    """
    return units * (inputs - units) if units < inputs else 0


def linear_flow(units: int, fixed: int, mixed: int, seconds: Mapping[str, sp.Expr] | None = None) -> dict[sp.Symbol, sp.Expr]:
    """Gradient flow of ½ E (v W x - y)² where the group fixes the first `fixed` inputs and mixes the others irreducibly.

    The second moments are those that the group leaves possible: any on what it fixes, c · 1 on what it mixes, targets correlated with what
    it fixes. They are symbols C[i, j], c, S[i], unless numbers are given by name.

    Returns
    -------
    dict of Symbol to expression
        The velocity of each entry of W and v, as `noetherflow.polynomial_laws` takes it.

    Examples
    --------
    >>> flow = linear_flow(1, 0, 2)
    >>> [(str(w), str(velocity)) for w, velocity in flow.items()][:1]
    [('W[0, 0]', '-W[0, 0]*c*v[0]**2')]
    """
    w = sp.Matrix(units, fixed + mixed, lambda i, j: sp.Symbol(f"W[{i}, {j}]"))
    v = sp.Matrix(1, units, lambda _, j: sp.Symbol(f"v[{j}]"))
    moments = sp.Matrix(fixed, fixed, lambda i, j: sp.Symbol(f"C[{min(i, j)}, {max(i, j)}]"))
    whole = sp.diag(moments, sp.Symbol("c") * sp.eye(mixed)) if fixed else sp.Symbol("c") * sp.eye(mixed)
    crossed = sp.Matrix(1, fixed + mixed, lambda _, j: sp.Symbol(f"S[{j}]") if j < fixed else 0)
    error = v * w * whole - crossed
    velocity = dict(zip([*w, *v], [*(-v.T * error), *(-error * w.T)], strict=True))
    numbers = {sp.Symbol(name): value for name, value in (seconds or {}).items()}
    return {entry: sp.expand(change.subs(numbers)) for entry, change in velocity.items()}


def _rate(function: sp.Expr, w: sp.Matrix, velocity: sp.Matrix) -> sp.Expr:
    return sp.expand(sum(sp.diff(function, entry) * change for entry, change in zip(w, velocity, strict=True)))
