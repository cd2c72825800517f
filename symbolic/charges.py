"""Noether charges: the function whose gradient is the generator, under a metric that is constant on each parameter group.

A generator ξ gives, under gradient flow with metric M, the constraint ⟨ξ, M θ'⟩ = 0. It integrates to a charge exactly if the one-form Mξ
is closed (its Jacobian is symmetric); then

    Q(θ) = ∫₀¹ ⟨M ξ(tθ), θ⟩ dt.

Both steps are done by SymPy on the generator's entries; no charge is typed in. Source: own (Poincaré's lemma); marcotte2024keep for
metrics.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import sympy as sp

from noetherflow.symbolic.actions import Action
from noetherflow.symbolic.alike import once_for_all_alike
from noetherflow.symbolic.axes import multiply
from noetherflow.symbolic.graph import Size
from noetherflow.symbolic.symmetries import Symmetry

ONE = sp.S.One


def curvature(symmetry: Symmetry, action: Action) -> sp.Expr:
    """∂ξ[e]/∂P[e'] - ∂ξ[e']/∂P[e] for two entries e, e' of one parameter: zero for every e, e' exactly if a charge exists."""
    entry, change = symmetry.action_symbols(action)
    if not isinstance(entry, sp.Indexed):
        return sp.S.Zero
    other = {letter: sp.Symbol(f"{letter}_2", integer=True) for letter in entry.indices}
    there, back = entry.xreplace(other), change.xreplace(other)
    difference = sp.expand(_derivative(change, there) - _derivative(back, entry))
    return sp.Add(*(_on_support(term, other) for term in sp.Add.make_args(difference)))


def _derivative(change: sp.Expr, entry: sp.Indexed) -> sp.Expr:
    """∂change/∂entry with Kronecker deltas; a summed index that meets the entry takes its value."""
    out = sp.S.Zero
    for term in sp.Add.make_args(sp.expand(change)):
        factor, body = term.as_coeff_Mul()
        inside, dummies = (body.function, body.variables) if isinstance(body, sp.Sum) else (body, ())
        for held in (x for x in inside.atoms(sp.Indexed) if x.base == entry.base):
            mark = sp.Dummy()
            slope = sp.diff(inside.xreplace({held: mark}), mark).xreplace({mark: held})
            pairs = list(zip(held.indices, entry.indices, strict=True))
            deltas = sp.Mul(*(sp.KroneckerDelta(m, t) for m, t in pairs if m not in dummies))
            out += factor * slope.xreplace({m: t for m, t in pairs if m in dummies}) * deltas
    return out


def _on_support(term: sp.Expr, other: Mapping[sp.Symbol, sp.Symbol]) -> sp.Expr:
    """A term where its deltas do not vanish: their two indices are one."""
    back = {there: here for here, there in other.items()}
    deltas = [f for f in sp.Mul.make_args(term) if isinstance(f, sp.KroneckerDelta)]
    rest = sp.Mul(*(f for f in sp.Mul.make_args(term) if not isinstance(f, sp.KroneckerDelta)))
    equal = {i: back[i] for d in deltas for i in d.args if i in back and back[i] in d.args}
    return rest.xreplace(equal) * sp.Mul(*deltas)


@once_for_all_alike
def is_closed(symmetry: Symmetry) -> bool:
    """Whether every generator of a family has a charge. For a matrix family: those with a symmetric matrix do.

    The change of one parameter may depend on another (a gain, a weight that a shift passes). No family has the term that would make up for
    it, ∂ξ[P]/∂R = ∂ξ[R]/∂P, so any such dependence is curvature; were such a family to come, this would deny it a charge, never invent one.
    """
    return all(_symmetric_part_closed(symmetry, action) and not depends_on_others(symmetry, action) for action in symmetry.actions)


def depends_on_others(symmetry: Symmetry, action: Action) -> bool:
    """Whether the change of one parameter has a derivative by another."""
    entry, change = symmetry.action_symbols(action)
    own = getattr(entry, "base", entry)
    others = {factor.symbol for factor in (*action.factors, *(action.image.factors if action.image else ()))} - {own}
    marks = {x: sp.Dummy() for x in change.atoms(sp.Indexed, sp.Symbol) if getattr(x, "base", x) in others}
    return any(sp.diff(change.xreplace(marks), mark) != 0 for mark in marks.values())


def _symmetric_part_closed(symmetry: Symmetry, action: Action) -> bool:
    curl = curvature(symmetry, action)
    if not symmetry.matrix:
        return bool(curl == 0)
    for x in curl.atoms(sp.Indexed):
        if x.base == sp.IndexedBase("X"):
            *spectators, i, j = x.indices
            lower, upper = sorted((i, j), key=str)
            curl = curl.xreplace({x: x.base[(*spectators, lower, upper)]})
    return bool(sp.simplify(curl) == 0)


def density(symmetry: Symmetry, action: Action) -> sp.Expr:
    """The integrand's sum over one entry: ∫₀¹ ξ(tP) P dt."""
    entry, change = symmetry.action_symbols(action)
    t = sp.Symbol("t", positive=True)
    scaled = change.replace(lambda e: isinstance(e, sp.Indexed) and e.base == getattr(entry, "base", None), lambda e: t * e)
    scaled = scaled.subs(entry, t * entry) if isinstance(entry, sp.Symbol) else scaled
    return sp.integrate(sp.expand(scaled.doit() if not symmetry.matrix else scaled) * entry, (t, 0, 1))


def charge(symmetry: Symmetry, weights: Mapping[str, sp.Expr] | None = None) -> sp.Expr:
    """The family's charges as one indexed SymPy expression.

    Parameters
    ----------
    symmetry : Symmetry
    weights : mapping of str to expression, optional
        Metric weight of each parameter (1 if absent).

    Returns
    -------
    sympy.Expr
        In the free indices of the family. A matrix family gives the matrix Q[i, j] of the charges of the symmetric generators.
    """
    parts = []
    for action in symmetry.actions:
        weight = (weights or {}).get(action.parameter, ONE)
        parts.append(weight * (_gram(symmetry, action) if symmetry.matrix else _summed(symmetry, action)))
    return sp.Add(*parts)


def _summed(symmetry: Symmetry, action: Action) -> sp.Expr:
    entry, _ = symmetry.action_symbols(action)
    whole = density(symmetry, action)
    own = {name for name, _ in symmetry.indices}
    coefficient = [s for s in whole.atoms(sp.Indexed) if s.base == sp.IndexedBase("a")] + [
        s for s in whole.free_symbols if s == sp.Symbol("a")
    ]
    per_unit = whole.subs(dict.fromkeys(coefficient, 1))
    if not isinstance(entry, sp.Indexed):
        return per_unit
    ranges = [
        (letter, 0, index.size - 1) for letter, index in zip(entry.indices, action.patch.indices, strict=True) if letter.name not in own
    ]
    return sp.Sum(per_unit, *ranges) if ranges else per_unit


def _gram(symmetry: Symmetry, action: Action) -> sp.Expr:
    entry, _ = symmetry.action_symbols(action)
    place, second = action.places[-1], sp.Symbol(f"{symmetry.indices[-1][0]}_2", integer=True)
    own = {entry.indices[p] for p in action.places}
    other = entry.base[tuple(second if d == place else letter for d, letter in enumerate(entry.indices))]
    ranges = [(letter, 0, index.size - 1) for letter, index in zip(entry.indices, action.patch.indices, strict=True) if letter not in own]
    product = action.weight * entry * other / 2
    return sp.Sum(product, *ranges) if ranges else product


def charge_count(symmetry: Symmetry) -> Size:
    """Number of independent charges at a generic point: the symmetric part of a matrix family, else one per generator (none if not closed).

    A symmetric matrix that acts on fewer rows and columns than its size does not see all of itself: with c = n - (all columns that n meets)
    left over, c (c + 1) / 2 of its charges are functions of the others (marcotte2023abide, for two layers). Symbolic sizes are taken
    to be small enough that nothing is left over.
    """
    if not is_closed(symmetry):
        return 0
    if symmetry.matrix:
        *spectators, n = symmetry.sizes
        left = symmetry.unseen(+1, -1)
        return multiply([*spectators, _triangle(n) - _triangle(left)])
    return symmetry.dimension


def _triangle(n: Size) -> Size:
    return n * (n + 1) // 2 if isinstance(n, int) else n * (n + 1) / 2


def is_linear(symmetry: Symmetry) -> bool:
    """Whether the charges are linear in the parameters (all actions are shifts)."""
    return all(action.form == "shift" for action in symmetry.actions)


def formula(symmetry: Symmetry, limit: int = 4) -> str:
    """The charge in LaTeX, as norms: short enough for a table."""
    terms: Sequence[str] = [_norm(symmetry, action) for action in symmetry.actions[:limit]]
    more = r" + \cdots" if len(symmetry.actions) > limit else ""
    return " ".join(terms).removeprefix("+ ") + more


def _norm(symmetry: Symmetry, action: Action) -> str:
    letters = [name for name, _ in symmetry.indices]
    index = ["\\cdot"] * len(action.patch.indices)
    for place, letter in zip(action.places, letters, strict=True):
        index[place] = letter
    name = rf"\mathtt{{{action.parameter.replace('_', chr(92) + '_')}}}_{{{','.join(index)}}}"
    sign = "+" if action.weight > 0 else "-"
    size = "" if abs(action.weight) == 1 else sp.latex(abs(action.weight))
    if action.form == "shift":
        return f"{sign} {size}" + (rf"\sum {name}" if len(action.places) < len(action.patch.indices) else name)
    if action.form == "matrix":
        pair = rf"{name}\,{name}^\top"
        return rf"{sign} {size}\tfrac12 {pair}"
    return rf"{sign} {size}\tfrac12\|{name}\|^2"
