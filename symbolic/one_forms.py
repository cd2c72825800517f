"""One-forms on parameters, entry by entry: derivatives of indexed expressions, curvature, and closedness.

A one-form has a component ω[e] for each entry e of each parameter, an indexed expression. It is closed, and then the differential of a
function, exactly if ∂ω[e]/∂e' = ∂ω[e']/∂e for all pairs of entries, also of different parameters. Derivatives with respect to an entry are
sums of Kronecker deltas; what multiplies a delta is compared where the delta does not vanish. Source: own (Poincaré's lemma).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations_with_replacement
from typing import Final, TypeAlias

import sympy as sp

Component: TypeAlias = tuple[sp.Expr, sp.Expr]
Curvature: TypeAlias = Mapping[tuple[sp.Expr, sp.Expr], sp.Expr]
Rewrite: TypeAlias = Callable[[sp.Expr], sp.Expr]
OTHER: Final = "_2"


def derivative(expression: sp.Expr, entry: sp.Expr) -> sp.Expr:
    """∂expression/∂entry with Kronecker deltas; a summed index that meets the entry takes its value.

    Examples
    --------
    >>> P, X, (i, j, z) = sp.IndexedBase("P"), sp.IndexedBase("X"), sp.symbols("i j z", integer=True)
    >>> derivative(sp.Sum(X[i, z] * P[z], (z, 0, 3)) * P[i], P[j])
    KroneckerDelta(i, j)*Sum(P[z]*X[i, z], (z, 0, 3)) + P[i]*X[i, j]
    """
    out = sp.S.Zero
    for term in sp.Add.make_args(sp.expand(expression)):
        factors = sp.Mul.make_args(term)
        sums = [f for f in factors if isinstance(f, sp.Sum)]
        plain = sp.Mul(*(f for f in factors if not isinstance(f, sp.Sum)))
        out += sp.Mul(*sums) * _plain_derivative(plain, entry)
        for k, total in enumerate(sums):
            rest = sp.Mul(plain, *sums[:k], *sums[k + 1 :])
            out += rest * _sum_derivative(total, entry)
    return sp.expand(out)


def _plain_derivative(expression: sp.Expr, entry: sp.Expr) -> sp.Expr:
    return sp.Add(*(slope * _deltas(held, entry) for held, slope in _slopes(expression, entry)))


def _sum_derivative(total: sp.Sum, entry: sp.Expr) -> sp.Expr:
    out, dummies = sp.S.Zero, set(total.variables)
    for held, slope in _slopes(total.function, entry):
        met = {h: e for h, e in zip(held.indices, entry.indices, strict=True) if h in dummies} if isinstance(held, sp.Indexed) else {}
        left = [limit for limit in total.limits if limit[0] not in met]
        inside = slope.xreplace(met) * _deltas(held, entry, except_for=frozenset(met))
        out += sp.Sum(inside, *left) if left else inside
    return out


def _slopes(expression: sp.Expr, entry: sp.Expr) -> Iterator[tuple[sp.Expr, sp.Expr]]:
    """Each occurrence of the entry's parameter, with the derivative by it."""
    if not isinstance(entry, sp.Indexed):
        yield entry, sp.diff(expression, entry)
        return
    for held in sorted((x for x in expression.atoms(sp.Indexed) if x.base == entry.base), key=str):
        mark = sp.Dummy(positive=True)
        yield held, sp.diff(expression.xreplace({held: mark}), mark).xreplace({mark: held})


def _deltas(held: sp.Expr, entry: sp.Expr, except_for: frozenset[sp.Expr] = frozenset()) -> sp.Expr:
    if not isinstance(held, sp.Indexed):
        return sp.S.One
    return sp.Mul(*(sp.KroneckerDelta(h, e) for h, e in zip(held.indices, entry.indices, strict=True) if h not in except_for))


def renamed(component: Component) -> Component:
    """The same component at another entry: its indices get another name."""
    entry, value = component
    letters = {letter: sp.Symbol(letter.name + OTHER, integer=True) for letter in getattr(entry, "indices", ())}
    return entry.xreplace(letters), value.xreplace(letters)


def curvature(first: Component, second: Component) -> sp.Expr:
    """∂ω[e]/∂e' - ∂ω[e']/∂e of two components, the second at another entry; zero where and only where they agree."""
    (e, value), (there, other) = first, renamed(second)
    return on_support(derivative(value, there) - derivative(other, e))


def curvatures(form: Sequence[Component], others: Sequence[sp.Expr] = (), rewrite: Rewrite = sp.expand) -> Curvature:
    """All pairs of components whose curvature does not vanish; empty exactly if the form is closed.

    Parameters
    ----------
    form : sequence of (entry, component)
    others : sequence of entries
        What components depend on besides: parameters that do not move, a running average of squared gradients. The form has no component
        along these, so any dependence on them is curvature.
    rewrite : callable of expression to expression
        What is known of the coefficients (that a matrix is symmetric), used before anything is called zero.
    """
    out = {}
    for first, second in combinations_with_replacement(form, 2):
        curl = rewrite(curvature(first, second))
        if curl != 0:
            out[first[0], renamed(second)[0]] = curl
    for component in form:
        for other in others:
            slope = rewrite(curvature(component, (other, sp.S.Zero)))
            if slope != 0:
                out[component[0], renamed((other, sp.S.Zero))[0]] = slope
    return out


def on_support(expression: sp.Expr) -> sp.Expr:
    """A sum of terms with deltas, each where its deltas do not vanish (there two indices are one), equal ones added up."""
    grouped: dict[sp.Expr, sp.Expr] = {}
    for term in sp.Add.make_args(sp.expand(expression)):
        deltas = sorted((f for f in sp.Mul.make_args(term) if isinstance(f, sp.KroneckerDelta)), key=str)
        rest = sp.Mul(*(f for f in sp.Mul.make_args(term) if not isinstance(f, sp.KroneckerDelta)))
        equal = {index: _first(delta) for delta in deltas for index in delta.args if index != _first(delta)}
        key = sp.Mul(*deltas)
        grouped[key] = grouped.get(key, sp.S.Zero) + rest.xreplace(equal)
    return sp.Add(*(sp.cancel(value) * key for key, value in grouped.items()))


def _first(delta: sp.KroneckerDelta) -> sp.Expr:
    """Of a delta's two indices the one that stands for both: not the renamed one."""
    return min(delta.args, key=lambda index: (str(index).endswith(OTHER), str(index)))
