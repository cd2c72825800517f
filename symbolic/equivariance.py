"""Which symmetries a learning rule respects: the orthogonal actions ρ on the parameters that its step commutes with, read off its form.

The gradient of an invariant loss obeys g(ρθ) = ρ g(θ) for orthogonal ρ. So a step commutes with ρ if its equations do, as functions of
θ, g and the buffers, where every buffer is carried along by an action of its own:

    linear equations     any orthogonal ρ; buffers go along as θ does
    functions of entries permutations of entries; changes of sign if θ' - θ is odd, each buffer being odd (like θ) or even (like g²)
    orthogonal factors   ρ on whole rows and columns of a matrix: orth(ρ C) = ρ orth(C)

A function F(x, y, ...) of entries that is not linear commutes with no rotation of two entries by every angle: on vectors along one axis,
F(c x) = c F(x) and F(c x - s y) = c F(x) - s F(y) for all c² + s² = 1 are what linear means. All of this needs the entries that ρ exchanges
to have the same hyper-parameters; entries of one tensor do.

Then the points that a group of such ρ fixes stay fixed: ρθ = θ gives ρθ' = θ'. The same holds for every batch, hence for stochastic
gradients; it needs buffers that are fixed at the start, as zero is.
Source: ziyin2024symmetry for gradient descent; own for the condition on the rule.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product

import sympy as sp

from noetherflow.symbolic.discrete_factors import Factor, Permutations
from noetherflow.symbolic.forms import STEP, Form, Rule
from noetherflow.symbolic.nonlinear import Magnitude, Orthogonal, Sign, structure
from noetherflow.symbolic.pairings import Vector

Parities = Mapping[Vector, int]


@dataclass(frozen=True, slots=True)
class Equivariance:
    """The actions that a rule's step commutes with.

    Attributes
    ----------
    name : str
        Of the rule.
    rotations, permutations, signs : bool
        Any rotation among entries; any permutation of entries; any change of signs.
    whole_axes : bool
        All of this only for rows and columns of matrices as wholes.
    parities : mapping of Vector to int
        What a change of sign makes of each buffer: -1 changes it as θ, +1 leaves it. Empty if signs are not respected.
    """

    name: str
    rotations: bool
    permutations: bool
    signs: bool
    whole_axes: bool
    parities: Mapping[Vector, int]

    def respects(self, factor: Factor) -> bool:
        """Whether the step commutes with every element of a factor of a discrete group."""
        if self.whole_axes and not all(_along_one_axis(factor)):
            return False
        return self.permutations if isinstance(factor, Permutations) else self.signs

    def __str__(self) -> str:
        kinds = [kind for kind in ("rotations", "permutations", "signs") if getattr(self, kind)]
        where = " of whole rows and columns" if self.whole_axes else ""
        return f"{self.name} commutes with {', '.join(kinds) or 'nothing that is known'}{where if kinds else ''}"


def equivariance(rule: Rule | Form) -> Equivariance:
    """Derive which orthogonal actions a rule's step commutes with, from its update equations.

    Parameters
    ----------
    rule : Rule or Form
        Of a rule with several groups, what all of their forms respect; exchanged parameters must be of one group.

    Returns
    -------
    Equivariance
        What is said to be respected is proved. What is not said may be respected at single points or for single elements.

    Examples
    --------
    >>> from noetherflow.symbolic import rules
    >>> print(equivariance(rules.SGD(momentum=0.9)))
    SGD with momentum commutes with rotations, permutations, signs
    >>> print(equivariance(rules.AdamW()))
    AdamW commutes with permutations, signs
    >>> print(equivariance(rules.MirrorDescent()))
    mirror descent commutes with permutations
    """
    if isinstance(rule, Form):
        return _of_form(rule)
    found = [_of_form(group.form) for group in rule.groups]
    return Equivariance(
        name=", ".join(dict.fromkeys(f.name for f in found)),
        rotations=all(f.rotations for f in found),
        permutations=all(f.permutations for f in found),
        signs=all(f.signs for f in found),
        whole_axes=any(f.whole_axes for f in found),
        parities={vector: parity for f in found for vector, parity in f.parities.items()},
    )


def _of_form(form: Form) -> Equivariance:
    matrices = any(expression.has(Orthogonal) for _, expression in form.equations)
    linear = _all_linear(form)
    parities = next(_parities(form), None)
    return Equivariance(form.name, linear, True, parities is not None, matrices, parities or {})


def _all_linear(form: Form) -> bool:
    """Linear in θ, g, the invariant combinations of gradients and the buffers, up to orthogonal factors."""
    opened = tuple((vector, expression.replace(Orthogonal, lambda inner: inner)) for vector, expression in form.equations)
    plain = Form(form.name, opened, form.buffers, form.rate, form.hyperparameters, form.mechanisms, form.invariant)
    return not structure(plain).atoms


def _parities(form: Form) -> Iterator[Parities]:
    """Parities of the buffers under which every equation has the parity that it must have; the point of the gradient is odd."""
    befores = [before for before, _ in form.buffers]
    outcomes = {STEP: _opened(form, STEP), **{after: _opened(form, after) for _, after in form.buffers}}
    for signs in product((-1, 1), repeat=len(befores)):
        given = dict(zip(befores, signs, strict=True))
        wanted = {STEP: -1, **{after: given[before] for before, after in form.buffers}}
        if all(_has_parity(outcomes[v], parity, given) for v, parity in wanted.items()) and _has_parity(form.point, -1, given):
            yield given


def _opened(form: Form, vector: Vector) -> sp.Expr:
    """A made vector in terms of θ, g and what there was before the step."""
    table = dict(form.equations)
    out = sp.sympify(table[vector])
    while inner := [v for v in out.free_symbols if v in table]:
        out = out.xreplace({v: table[v] for v in inner})
    return out


def _has_parity(expression: sp.Expr, parity: int, given: Mapping[Vector, int]) -> bool:
    odd = {v for v in expression.free_symbols if isinstance(v, Vector) and given.get(v, -1) < 0}
    flipped = _signs_out(expression.xreplace({v: -v for v in odd}))
    return bool(sp.simplify(flipped - parity * _signs_out(expression)) == 0)


def _signs_out(expression: sp.Expr) -> sp.Expr:
    """Signs pulled out of odd functions and out of absolute values."""

    def positive(inner: sp.Expr) -> tuple[int, sp.Expr]:
        expanded = sp.expand(inner)
        return (-1, -expanded) if expanded.could_extract_minus_sign() else (1, expanded)

    def odd(function: type[sp.Function], inner: sp.Expr) -> sp.Expr:
        sign, rest = positive(inner)
        return sign * function(rest)

    out = expression.replace(Sign, lambda inner: odd(Sign, inner)).replace(Orthogonal, lambda inner: odd(Orthogonal, inner))
    return out.replace(Magnitude, lambda inner: Magnitude(positive(inner)[1]))


def _along_one_axis(factor: Factor) -> Iterator[bool]:
    """For each block whether the factor's indices lie in one axis of it, and it starts where the other axes do."""
    for placed in factor.actions:
        axes = {placed.patch.indices[place].axis for place in placed.places}
        yield len(axes) < 2 and not any(offset for axis, offset in enumerate(placed.patch.offsets) if axis not in axes)
