"""Modified equations against Taylor expansions of explicit flows, exact spectra and the exact discrete law; no float anywhere."""

from __future__ import annotations

from dataclasses import replace
from functools import reduce

import pytest
import sympy as sp

from noetherflow.errors import RuleError
from noetherflow.symbolic.balance import CHARGE
from noetherflow.symbolic.differentials import Differential, Series, grafted
from noetherflow.symbolic.modified import ModifiedEquation, modified_equation
from noetherflow.symbolic.modified_charges import charge_motion, pairing
from noetherflow.symbolic.pairings import Inner, NotLinear, Vector, parts
from noetherflow.symbolic.rules import GRADIENT, STEP, THETA, Form, sgd_form

ETA, DECAY, MU, TAU, Z = sp.symbols("eta lambda mu tau z", real=True)
NU = sp.Symbol("nu", real=True)
G = Differential()
PLAIN = sgd_form(momentum=False, nesterov=False, maximize=False)
HEAVY_BALL = sgd_form(momentum=True, nesterov=False, maximize=False)
NESTEROV = sgd_form(momentum=True, nesterov=True, maximize=False)


def quasi_hyperbolic() -> Form:
    """A rule the package has never heard of: b' = μb + (1 - μ)h, u = (1 - ν)h + νb'."""
    equations = dict(HEAVY_BALL.equations)
    h, after = equations, Vector("b'")
    (h,) = (v for v in equations if v.name == "h")
    changed = {h: equations[h], after: MU * Vector("b") + (1 - MU) * h, STEP: (1 - NU) * h + NU * after}
    hyper = (("lr", ETA), ("weight_decay", DECAY), ("momentum", MU), ("nu", NU))
    return replace(HEAVY_BALL, name="quasi-hyperbolic", equations=tuple(changed.items()), hyperparameters=hyper)


FORMS = {"plain": PLAIN, "heavy ball": HEAVY_BALL, "nesterov": NESTEROV, "quasi-hyperbolic": quasi_hyperbolic()}
NUMBERS = {"weight_decay": sp.Rational(2, 7), "momentum": sp.Rational(3, 5), "dampening": sp.Rational(1, 4), "nu": sp.Rational(2, 3)}


def numbers_of(form: Form) -> dict[str, sp.Rational]:
    """Values for every hyper-parameter but the step size (Nesterov allows no dampening)."""
    known = {name: NUMBERS[name] for name, _ in form.hyperparameters if name != "lr"}
    return known | ({"dampening": sp.S.Zero} if form is NESTEROV else {})


# --- an explicit world: two variables, a polynomial loss, derivatives by SymPy

X = sp.Matrix(sp.symbols("x y"))
LOSS = X[0] ** 3 * X[1] / 3 + X[0] ** 2 / 2 - X[0] * X[1] ** 2 + 2 * X[1] / 5 + X[1] ** 4 / 7
AT = {X[0]: sp.Rational(1, 2), X[1]: sp.Rational(-2, 3)}


def explicit(tree: sp.Expr, leaves: dict[sp.Expr, sp.Matrix]) -> sp.Matrix:
    """An elementary differential of LOSS, by differentiating along fixed directions."""
    if tree in leaves:
        return leaves[tree]
    directions = [explicit(argument, leaves) for argument in tree.args]
    frozen = [sp.Matrix(sp.symbols(f"v{i}_:2")) for i in range(len(directions))]
    scalar = reduce(lambda s, v: (sp.Matrix([s]).jacobian(X) * v)[0], frozen, LOSS)
    table = {symbol: value for v, d in zip(frozen, directions, strict=True) for symbol, value in zip(v, d, strict=True)}
    return sp.Matrix([sp.expand(sp.diff(scalar, x).subs(table, simultaneous=True)) for x in X])


def explicit_sum(terms: tuple[sp.Expr, ...], leaves: dict[sp.Expr, sp.Matrix]) -> sp.Matrix:
    """Σ η^j terms[j], in x, y, η."""
    trees = {tree for term in terms for tree in term.atoms(Differential, Vector)}
    total = sp.zeros(2, 1)
    for power, term in enumerate(terms):
        for tree in trees:
            coefficient = sp.expand(term).coeff(tree)
            total += ETA**power * coefficient * explicit(tree, leaves) if coefficient != 0 else sp.zeros(2, 1)
    return total


def truncated(vector: sp.Matrix, length: int) -> sp.Matrix:
    """Powers of η below `length`, at the rational point."""
    return vector.applyfunc(lambda e: sum(sp.expand(e).coeff(ETA, n).subs(AT) * ETA**n for n in range(length)))


def flowed(quantity: sp.Matrix, field: sp.Matrix, length: int) -> sp.Matrix:
    """A quantity where the flow of the field carries (x, y) in the time η: its Taylor series along the field."""
    total = term = quantity
    for n in range(1, length):
        term = (term.jacobian(X) * field * ETA / n).applyfunc(lambda e: sum(sp.expand(e).coeff(ETA, m) * ETA**m for m in range(length)))
        total += term
    return total


def state_after(
    form: Form, values: dict[str, sp.Rational], theta: sp.Matrix, gradient: sp.Matrix, buffer: sp.Matrix
) -> tuple[sp.Matrix, sp.Matrix]:
    """One step of a rule, equation by equation."""
    table = {dict(form.hyperparameters)[name]: value for name, value in values.items()}
    state = {THETA: theta, GRADIENT: gradient} | {before: buffer for before, _ in form.buffers}
    for vector, expression in form.equations:
        state[vector] = sum((c.subs(table) * state[v] for v, c in parts(expression).items()), start=sp.zeros(2, 1))
    return theta - ETA * state[STEP], state[form.buffers[0][1]] if form.buffers else buffer


def defects(equation: ModifiedEquation, form: Form, values: dict[str, sp.Rational]) -> list[sp.Matrix]:
    """What the flow over η differs by from one step, in θ and in the buffer: exact series in η at a rational point."""
    length = equation.order
    leaves = {THETA: X}
    field = explicit_sum(equation.field, leaves)
    gradient = explicit(G, leaves)
    befores = [b for b, _ in form.buffers]
    buffer = explicit_sum(equation.buffer(befores[0]), leaves) if befores else sp.zeros(2, 1)
    theta_after, buffer_after = state_after(form, values, X, gradient, buffer)
    out = [truncated(flowed(X, field, length + 1) - theta_after, length + 1)]
    return out + ([truncated(flowed(buffer, field, length) - buffer_after, length)] if befores else [])


@pytest.mark.parametrize("name", FORMS)
def test_the_flow_over_one_step_is_the_step(name: str) -> None:
    """Taylor's series of an explicit polynomial flow, in exact arithmetic: θ to η^p, the buffer to η^(p-1)."""
    form = FORMS[name]
    values = numbers_of(form)
    equation = modified_equation(form, 3, **values)
    assert all(defect.is_zero_matrix for defect in defects(equation, form, values))


@pytest.mark.parametrize("factor", [sp.Rational(1001, 1000), -1, 0])
def test_a_wrong_coefficient_leaves_a_defect(factor: sp.Rational) -> None:
    equation = modified_equation(PLAIN, 3, weight_decay=0)
    key = (2, Differential(G, G))
    terms = equation.series.terms | {key: equation.series.terms[key] * sp.QQ(factor.p, factor.q) if factor else sp.QQ.zero}
    wrong = replace(equation, series=replace(equation.series, terms=terms))
    (defect,) = defects(wrong, PLAIN, {"weight_decay": sp.S.Zero})
    assert not defect.is_zero_matrix
    assert all(entry.coeff(ETA, n) == 0 for entry in defect for n in range(3)), "and none before its own power"


@pytest.mark.parametrize(
    "pair", [("heavy ball", "nesterov"), ("nesterov", "quasi-hyperbolic"), ("quasi-hyperbolic", "heavy ball")], ids="-".join
)
def test_the_equation_of_one_rule_is_not_that_of_another(pair: tuple[str, str]) -> None:
    own, other = (FORMS[name] for name in pair)
    equation = modified_equation(own, 2, **numbers_of(own))
    values = numbers_of(other) | {"dampening": sp.S.Zero}
    known = {name for name, _ in other.hyperparameters}
    assert not defects(equation, other, {n: v for n, v in values.items() if n in known})[0].is_zero_matrix


# --- quadratic losses: the modified equation is a logarithm


@pytest.mark.parametrize("name", ["plain", "heavy ball", "nesterov"])
def test_on_a_quadratic_loss_it_is_the_logarithm_of_the_slow_root(name: str) -> None:
    """With f'' constant, F = ln z(ηH)/η θ for the eigenvalue z of the rule's step that tends to 1."""
    form = FORMS[name]
    h = sp.Symbol("h")
    fast = {"plain": 1 - ETA * h, "heavy ball": None, "nesterov": None}[name]
    step = {
        "heavy ball": Z**2 - (1 + MU - ETA * h) * Z + MU,
        "nesterov": Z**2 - (1 + MU) * (1 - ETA * h) * Z + MU * (1 - ETA * h),
    }
    if fast is None:
        roots = [root for root in sp.solve(step[name], Z) if sp.limit(root.subs(MU, sp.Rational(1, 3)), ETA, 0) == 1]
        fast = roots[0]
    expected = sp.series(sp.log(fast.subs(MU, sp.Rational(1, 3))), ETA, 0, 5).removeO()
    values = {
        n: v for n, v in {"weight_decay": 0, "momentum": sp.Rational(1, 3), "dampening": 0}.items() if n in dict(form.hyperparameters)
    }
    equation = modified_equation(form, 4, **values)
    chain, found = G, sp.S.Zero
    for power, term in enumerate(equation.field):
        found += sp.expand(term).coeff(chain) * h ** (power + 1) * ETA ** (power + 1)
        chain = Differential(chain)
    assert sp.simplify(sp.expand(found) - sp.expand(expected)) == 0


def test_a_translation_charge_decays_at_the_logarithm_of_its_factor() -> None:
    motion = charge_motion(modified_equation(PLAIN, 4), linear=True)
    total = sum(ETA ** (j + 1) * term for j, term in enumerate(motion))
    assert sp.expand(total - CHARGE * sp.series(sp.log(1 - ETA * DECAY), ETA, 0, 5).removeO()) == 0


# --- the published terms


def test_the_first_terms_are_the_published_ones() -> None:
    """Of miyagawa2022toward and kunin2021neural: with f = g + λθ, -f - η/2 (H + λ)f."""
    equation = modified_equation(PLAIN, 2)
    f, hf = G + DECAY * THETA, Differential(G) + DECAY * Differential(THETA)
    assert sp.expand(equation.field[0] + f) == 0
    assert sp.expand(equation.field[1] + (hf + DECAY * f) / 2) == 0


def test_momentum_multiplies_the_first_correction_by_one_plus_over_one_minus_cubed() -> None:
    equation = modified_equation(HEAVY_BALL, 2, weight_decay=0, dampening=0)
    assert sp.cancel(sp.expand(equation.field[1]).coeff(Differential(G)) + (1 + MU) / (2 * (1 - MU) ** 3)) == 0


# --- the start of a run: one step of the rule and the flow move Π alike


@pytest.mark.parametrize("name", FORMS)
def test_from_rest_the_shadow_moves_with_the_flow(name: str) -> None:
    """Π(θ, b) with b free, in exact arithmetic: Π(θ', b') = flow(Π(θ, b)) to η^(p-1)."""
    form = FORMS[name]
    values = numbers_of(form)
    length = 3
    equation = modified_equation(form, length, **values)
    buffer = {before: sp.Matrix([sp.Rational(1, 3), sp.Rational(-4, 5)]) for before, _ in form.buffers}
    shadow = tuple(equation._shadow.expression(j) for j in range(length))
    assert length > 1
    assert shadow[0] == THETA

    def at(theta: sp.Matrix, b: sp.Matrix) -> sp.Matrix:
        leaves = {THETA: X} | dict.fromkeys(buffer, b)
        inside = explicit_sum(shadow, leaves)
        place = dict(zip(X, theta, strict=True))
        return inside.subs(place, simultaneous=True)

    first = next(iter(buffer.values()), sp.zeros(2, 1))
    theta, b = state_after(form, values, X, explicit(G, {THETA: X}), first)
    flow = flowed(X, explicit_sum(equation.field, {THETA: X}), length)
    before = at(X, first)
    carried = flow.subs(dict(zip(X, before, strict=True)), simultaneous=True)
    assert truncated(at(theta, b) - carried, length).is_zero_matrix
    if form.buffers:
        assert not truncated(theta - flow, length).is_zero_matrix, "without Π it is not so"


# --- charges


def along(expression: sp.Expr, equation: ModifiedEquation, length: int) -> sp.Expr:
    """d/dt of a polynomial in η, Q and pairings, along the flow, by the product rule."""
    rate = sum(ETA**j * term for j, term in enumerate(charge_motion(equation, linear=False)))
    out = sp.diff(expression, CHARGE) * rate
    for pair in expression.atoms(Inner):
        for x, y in (pair.args, pair.args[::-1]):
            for power, term in enumerate(equation.field):
                for tree in term.atoms(Differential) | ({THETA} & term.free_symbols):
                    coefficient = sp.expand(term).coeff(tree)
                    moved = sum(count * pairing(new, y) for new, count in grafted(x, tree))
                    out += sp.diff(expression, pair) * ETA**power * coefficient * moved
    return sum(sp.expand(out).coeff(ETA, n) * ETA**n for n in range(length))


@pytest.mark.parametrize("order", [2, 3, 4])
def test_the_flow_carries_a_charge_as_the_exact_discrete_law_does(order: int) -> None:
    """Q' = (1 - ηλ)² Q + η² ½⟨g, Ag⟩, from the continuous side: pairings of every higher differential cancel."""
    equation = modified_equation(PLAIN, order)
    total = term = CHARGE
    for n in range(1, order + 1):
        term = sp.expand(along(term, equation, order + 1) * ETA / n)
        total += term
    total = sum(sp.expand(total).coeff(ETA, n) * ETA**n for n in range(order + 1))
    exact = (1 - ETA * DECAY) ** 2 * CHARGE + ETA**2 * Inner(G, G) / 2
    assert sp.expand(total - exact) == 0


def test_a_charge_forgets_the_gradient_to_first_order_and_its_second_is_that_of_the_paper() -> None:
    zeroth, first, *_ = charge_motion(modified_equation(PLAIN, 2), linear=False)
    assert sp.expand(zeroth + 2 * DECAY * CHARGE) == 0
    assert sp.expand(first + DECAY**2 * CHARGE - Inner(G, G) / 2) == 0


# --- edges


def test_trees_are_counted_once() -> None:
    """Rooted trees with n nodes: 1, 1, 2, 4, 9."""
    series = modified_equation(PLAIN, 5, weight_decay=0).series
    assert [sum(1 for n, _ in series.terms if n == power) for power in range(5)] == [1, 1, 2, 4, 9]


def test_a_changed_update_equation_changes_the_equation(monkeypatch: pytest.MonkeyPatch) -> None:
    doubled = tuple((v, 2 * e if v == STEP else e) for v, e in PLAIN.equations)
    usual = modified_equation(PLAIN, 2, weight_decay=0)
    other = modified_equation(replace(PLAIN, equations=doubled), 2, weight_decay=0)
    assert [sp.cancel(b / a) for a, b in zip(usual.field, other.field, strict=True)] == [2, 4]


def test_numbers_may_be_put_in_before_or_after() -> None:
    before = modified_equation(HEAVY_BALL, 3, momentum=0.9, weight_decay=0, dampening=0)
    after = modified_equation(HEAVY_BALL, 3)
    table = {MU: sp.Rational(9, 10), DECAY: 0, TAU: 0}
    assert all(sp.expand(a.subs(table) - b) == 0 for a, b in zip(after.field, before.field, strict=True))


@pytest.mark.parametrize("order", [0, -1, 1.5])
def test_an_order_is_a_positive_integer(order: float) -> None:
    with pytest.raises(RuleError, match="positive number of terms"):
        modified_equation(PLAIN, order)  # type: ignore[arg-type]


def test_unknown_values_and_buffers_without_end_are_refused() -> None:
    with pytest.raises(RuleError, match=r"\['momentum'\]"):
        modified_equation(PLAIN, 2, momentum=0.9)
    with pytest.raises(RuleError, match="never forgets"):
        modified_equation(HEAVY_BALL, 2, momentum=1)


def test_a_step_that_is_not_linear_is_refused() -> None:
    squared = tuple((v, e**2 if v == STEP else e) for v, e in PLAIN.equations)
    with pytest.raises(NotLinear):
        modified_equation(replace(PLAIN, equations=squared), 2)


def test_a_series_keeps_no_zeros() -> None:
    one = Series.of(sp.QQ, 2, {(0, G): 1, (1, G): 2, (5, G): 3})
    assert (one - one).terms == {}
    assert set(one.terms) == {(0, G), (1, G)}
