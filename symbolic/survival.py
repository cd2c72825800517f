"""Which charges survive a metric: the one-form Mξ is closed and integrated, or it stays a constraint on velocities, with its curvature.

A family of generators with free coefficients survives as a whole, or in a part: of a matrix family those with symmetric X, or with
diagonal X alone. The parts are tried from the largest down, by curvature; nothing is looked up. Where each generator moves one entry alone,
the constraint is d θ'_e = 0 with some d > 0; a coefficient may depend on the state, and 1/d closes the one-form under any diagonal metric.

Source: own (Poincaré's lemma on entries); marcotte2024keep for mirror flows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import sympy as sp

from noetherflow.errors import RuleError
from noetherflow.symbolic.actions import Action
from noetherflow.symbolic.axes import multiply
from noetherflow.symbolic.charges import charge_count
from noetherflow.symbolic.graph import Size
from noetherflow.symbolic.metrics import Metric
from noetherflow.symbolic.one_forms import Component, Curvature, Rewrite, curvatures
from noetherflow.symbolic.symmetries import Symmetry

X: Final = sp.IndexedBase("X")


@dataclass(frozen=True)
class Charge:
    """A family's charges under a metric.

    Attributes
    ----------
    symmetry : Symmetry
    metric : Metric
    expression : sympy.Expr
        Q in the family's indices; for a matrix family the matrix Q[i, i_2] of the generators X[i, i_2], or Q[i] of the diagonal ones.
    generators : str
        'all', 'symmetric' or 'diagonal': which of the family's generators have one.
    count : Size
        How many generators that are.
    """

    symmetry: Symmetry
    metric: Metric
    expression: sp.Expr
    generators: str
    count: Size

    def __str__(self) -> str:
        part = "" if self.generators == "all" else f"{self.generators} X: "
        return f"charge: {part}{written(self.expression)}"


@dataclass(frozen=True)
class Constraint:
    """A family without charges under a metric: ⟨Mξ, θ'⟩ = 0 binds velocities, and no function of the state is conserved by it.

    Attributes
    ----------
    symmetry : Symmetry
    metric : Metric
    curvature : mapping of (entry, entry) to sympy.Expr
        ∂ω[e]/∂e' - ∂ω[e']/∂e, where it does not vanish for all generators of the family.
    """

    symmetry: Symmetry
    metric: Metric
    curvature: Curvature

    def __str__(self) -> str:
        return "constraint"


def survives(symmetry: Symmetry, metric: Metric) -> Charge | Constraint:
    """The charges of a family under a metric, or the curvature that forbids them.

    Parameters
    ----------
    symmetry : Symmetry
    metric : Metric

    Returns
    -------
    Charge or Constraint
        Exact; decided on indexed entries, for whatever sizes.

    Examples
    --------
    >>> from noetherflow.symbolic.gauge import symmetries
    >>> from noetherflow.symbolic.graph import ArchitectureGraph
    >>> from noetherflow.symbolic.metrics import Adam, ENTROPY, Euclidean, Mirror
    >>> graph = ArchitectureGraph()
    >>> w, u = graph.add_parameter("w", (4, 2)), graph.add_parameter("u", (3, 4))
    >>> x = graph.add_operation("x", "input", shape=(8, 2))
    >>> h = graph.add_operation("h", "linear", {"input": x}, {"weight": "w"}, shape=(8, 4))
    >>> a = graph.add_operation("a", "relu", {"input": h}, shape=(8, 4))
    >>> y = graph.add_operation("y", "linear", {"input": a}, {"weight": "u"}, shape=(8, 3))
    >>> end = graph.add_operation("end", "output", {"0": y})
    >>> (rescale,) = symmetries(graph)
    >>> for metric in (Euclidean(), Mirror(ENTROPY), Adam()):
    ...     print(survives(rescale, metric))
    charge: Σ_j w[i, j]²/2 - Σ_j u[j, i]²/2
    charge: Σ_j w[i, j] - Σ_j u[j, i]
    constraint
    """
    found: Curvature = {}
    for part in _parts(symmetry):
        form = _lowered(symmetry, metric, part.components)
        others = [*_passive(symmetry, part.components), *(state for component in part.components for state in metric.states(component))]
        curls = curvatures(form, others, part.rewrite)
        if not curls:
            return Charge(symmetry, metric, _integrated(symmetry, form, part.name), part.name, _count(symmetry, part.name))
        found = found or curls
    if _one_entry_each(symmetry):
        return Charge(symmetry, metric, _integrated(symmetry, _components(symmetry), "all"), "all", symmetry.dimension)
    return Constraint(symmetry, metric, found)


@dataclass(frozen=True)
class _Part:
    """Generators of a family with something in common: components in the order of its actions, and what is known of the coefficients."""

    name: str
    components: Sequence[Component]
    rewrite: Rewrite = sp.expand


def _parts(symmetry: Symmetry) -> list[_Part]:
    """The family and, for matrices, what is in it, from the largest down."""
    whole = _components(symmetry)
    if symmetry.rotation:
        return [_Part("all", whole, lambda e: _ordered(e, -1))]
    if not symmetry.matrix:
        return [_Part("all", whole)]
    diagonal = [_diagonal(symmetry, action) for action in symmetry.actions]
    return [_Part("all", whole), _Part("symmetric", whole, lambda e: _ordered(e, 1)), _Part("diagonal", diagonal)]


def _components(symmetry: Symmetry) -> list[Component]:
    return [symmetry.action_symbols(action) for action in symmetry.actions]


def _ordered(expression: sp.Expr, sign: int) -> sp.Expr:
    """X[i, z] for X[z, i] of symmetric (sign 1) or antisymmetric (-1) matrices, with the letters in one order."""
    table = {}
    for x in (x for x in expression.atoms(sp.Indexed) if x.base == X):
        *spectators, i, j = x.indices
        if str(j) < str(i):
            table[x] = sign * X[(*spectators, j, i)]
    return sp.expand(expression.xreplace(table))


def _diagonal(symmetry: Symmetry, action: Action) -> Component:
    """X = diag(a)."""
    entry, _ = symmetry.action_symbols(action)
    own = tuple(entry.indices[place] for place in action.places)
    return entry, (1 if action.weight > 0 else -1) * sp.IndexedBase("a")[own] * entry


def _passive(symmetry: Symmetry, components: Sequence[Component]) -> list[sp.Expr]:
    """Entries of parameters that the generator depends on without moving them."""
    factors = [f for action in symmetry.actions for f in (*action.factors, *(action.image.factors if action.image else ()))]
    moved = {getattr(entry, "base", entry) for entry, _ in components}
    names = sorted({f.symbol for f in factors} - moved, key=str)
    letters = sp.symbols("e_:8", integer=True)
    ranks = {x.base: len(x.indices) for _, value in components for x in value.atoms(sp.Indexed)}
    return [name[letters[: ranks[name]]] if isinstance(name, sp.IndexedBase) else name for name in names]


def _lowered(symmetry: Symmetry, metric: Metric, components: Sequence[Component]) -> list[Component]:
    actions = zip(symmetry.actions, components, strict=True)
    return [(component[0], metric.lower(symmetry, action, component)) for action, component in actions]


def _one_entry_each(symmetry: Symmetry) -> bool:
    """Whether each generator moves one entry of one parameter, so that any diagonal metric only multiplies its constraint."""
    (action, *more) = symmetry.actions
    return not more and action.form in ("scale", "shift") and not action.factors and len(action.places) == len(action.patch.indices)


def _count(symmetry: Symmetry, generators: str) -> Size:
    if generators == "all":
        return symmetry.dimension
    return charge_count(symmetry) if generators == "symmetric" else multiply(symmetry.sizes)


def _integrated(symmetry: Symmetry, form: Sequence[Component], generators: str) -> sp.Expr:
    """∫ ω along rays through the origin, or entry by entry where a component depends on its own entry alone."""
    terms = []
    for action, (entry, value) in zip(symmetry.actions, form, strict=True):
        terms.append(_gram(symmetry, action, entry, value) if generators == "symmetric" else _summed(symmetry, action, entry, value))
    return sp.Add(*terms)


def _summed(symmetry: Symmetry, action: Action, entry: sp.Expr, value: sp.Expr) -> sp.Expr:
    """Σ ∫ ω[e] de over the entries that one coefficient moves."""
    coefficients = [s for s in value.atoms(sp.Indexed, sp.Symbol) if getattr(s, "base", s) in (sp.IndexedBase("a"), sp.Symbol("a"))]
    x = sp.Dummy("x", positive=True)
    density = antiderivative(value.xreplace(dict.fromkeys(coefficients, sp.S.One)).xreplace({entry: x}), x).xreplace({x: entry})
    return _over_entries(symmetry, action, entry, density)


def _gram(symmetry: Symmetry, action: Action, entry: sp.Expr, value: sp.Expr) -> sp.Expr:
    """½ M P[i, ...] P[i_2, ...], from Mξ = c Σ X[i, z] P[z]: c is what multiplies the sum."""
    total = next(iter(value.atoms(sp.Sum)))
    place = entry.indices[action.places[-1]]
    second = sp.Symbol(f"{place}_2", integer=True)
    return _over_entries(symmetry, action, entry, value.coeff(total) * entry * entry.xreplace({place: second}) / 2)


def _over_entries(symmetry: Symmetry, action: Action, entry: sp.Expr, density: sp.Expr) -> sp.Expr:
    """The sum over the indices of an entry that are not the family's."""
    if not isinstance(entry, sp.Indexed):
        return density
    own = {entry.indices[place] for place in action.places}
    ranges = [(i, 0, index.size - 1) for i, index in zip(entry.indices, action.patch.indices, strict=True) if i not in own]
    return sp.Sum(density, *ranges) if ranges else density


def antiderivative(integrand: sp.Expr, x: sp.Symbol) -> sp.Expr:
    """∫ integrand dx, also of x φ'' with an undefined φ (by parts: x φ' - φ, the dual potential); its derivative is checked.

    Raises
    ------
    RuleError
        If no antiderivative is found.

    Examples
    --------
    >>> x, phi = sp.Symbol("x", positive=True), sp.Function("phi")
    >>> antiderivative(x * phi(x).diff(x, 2), x)
    x*Derivative(phi(x), x) - phi(x)
    """
    out = sp.Add(*(_by_parts(term, x) for term in sp.Add.make_args(sp.expand(integrand))))
    if out.has(sp.Integral) or sp.simplify(sp.diff(out, x) - integrand) != 0:
        raise RuleError(f"No antiderivative of {integrand} was found; give the metric a simpler potential.", integrand=integrand)
    return out


def _by_parts(term: sp.Expr, x: sp.Symbol) -> sp.Expr:
    unknown = next(iter(term.atoms(sp.Derivative)), None)
    if unknown is None:
        return sp.integrate(term, x)
    (_, times), *_ = unknown.variable_count
    once, rest = sp.diff(unknown.expr, x, times - 1), sp.cancel(term / unknown)
    left = sp.expand(sp.diff(rest, x) * once)
    return rest * once - (_by_parts(left, x) if left != 0 else sp.S.Zero)


def written(expression: sp.Expr) -> str:
    """A charge on one line: Σ_j for sums, squares as ², φ' for derivatives.

    Examples
    --------
    >>> w, (i, j) = sp.IndexedBase("w"), sp.symbols("i j", integer=True)
    >>> written(w[i, 0] - sp.Sum(w[i, j] ** 2, (j, 0, 3)) / 2)
    'w[i, 0] - Σ_j w[i, j]²/2'
    """
    shown = sorted((_term(term) for term in sp.Add.make_args(expression)), key=lambda pair: (-pair[0], "Σ" in pair[1], pair[1]))
    head = ("-" if shown[0][0] < 0 else "") + shown[0][1]
    return head + "".join(f" {'+' if sign > 0 else '-'} {text}" for sign, text in shown[1:])


def _term(term: sp.Expr) -> tuple[int, str]:
    """Sign and text."""
    total = next(iter(term.atoms(sp.Sum)), None)
    inside = sp.expand(term / total * total.function) if total is not None else term
    sign = -1 if inside.could_extract_minus_sign() else 1
    for held in inside.atoms(sp.Derivative):
        (variable, times), *_ = held.variable_count
        inside = inside.xreplace({held: sp.Function(held.expr.func.__name__ + "'" * times)(variable)})
    text = sp.sstr(sign * inside).replace("**2", "²")
    if total is None:
        return sign, text
    letters = ",".join(str(variable) for variable in total.variables)
    return sign, f"Σ_{letters} " + (f"({text})" if inside.is_Add else text)
