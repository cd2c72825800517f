"""Modified equations against Taylor expansions of explicit flows, exact spectra and the exact discrete law; no float anywhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import reduce
from itertools import product
from typing import Any

import pytest
import sympy as sp
from sympy.polys.rings import ring

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


# --- an explicit world: θ = (x, y), b = (u, v), a polynomial loss; polynomials in x, y, u, v, η with rational coefficients

RING, X, Y, E, U, V = ring("x,y,eta,u,v", sp.QQ)
AXES, BUFFER = (X, Y), (U, V)
LOSS = AXES[0] ** 3 * AXES[1] / 3 + AXES[0] ** 2 / 2 - AXES[0] * AXES[1] ** 2 + AXES[1] / 5 + AXES[1] ** 3 / 7
Field = tuple[Any, ...]
NOWHERE: Field = (RING.zero, RING.zero)


def kept(polynomial: Any, length: int) -> Any:
    """Without powers of η from `length` on."""
    return RING.from_dict({powers: value for powers, value in polynomial.items() if powers[2] < length})


def total(*terms: tuple[Any, Field], length: int) -> Field:
    """Σ c v of vectors."""
    return tuple(kept(sum((c * v[i] for c, v in terms), start=RING.zero), length) for i in range(2))


def explicit(tree: sp.Expr, leaves: Mapping[sp.Expr, Field], length: int) -> Field:
    """An elementary differential of LOSS, from its partial derivatives."""
    if tree in leaves:
        return leaves[tree]
    directions = [explicit(argument, leaves, length) for argument in tree.args]
    out = []
    for axis in AXES:
        entry = RING.zero
        for chosen in product(range(2), repeat=len(directions)):
            derivative = reduce(lambda p, i: p.diff(AXES[i]), chosen, LOSS.diff(axis))
            entry += kept(
                reduce(lambda p, pair: kept(p * pair[0][pair[1]], length), zip(directions, chosen, strict=True), derivative), length
            )
        out.append(entry)
    return tuple(out)


def explicit_sum(terms: Sequence[sp.Expr], leaves: Mapping[sp.Expr, Field], length: int) -> Field:
    """Σ η^j terms[j] as polynomials."""
    parts_found = []
    for power, term in enumerate(terms):
        for tree in sorted(term.atoms(Differential, Vector), key=sp.default_sort_key):
            coefficient = sp.expand(term).coeff(tree)
            if coefficient != 0:
                parts_found.append((E**power * sp.QQ.from_sympy(coefficient), explicit(tree, leaves, length)))
    return total(*parts_found, length=length)


def flowed(start: Field, field: Field, length: int) -> Field:
    """Vectors where the flow of the field carries (x, y) in the time η: their Taylor series along the field."""
    out = term = start
    for n in range(1, length):
        moved = ([kept(v.diff(x) * f, length) for x, f in zip(AXES, field, strict=True)] for v in term)
        term = tuple(kept(sum(m, start=RING.zero) * E / n, length) for m in moved)
        out = total((1, out), (1, term), length=length)
    return out


def step_of(form: Form, values: Mapping[str, sp.Rational], buffer: Field, length: int) -> tuple[Field, Field]:
    """One step of a rule from (x, y), equation by equation: θ' and the buffer."""
    table = {dict(form.hyperparameters)[name]: value for name, value in values.items()}
    state = {THETA: AXES, GRADIENT: tuple(LOSS.diff(x) for x in AXES)} | {before: buffer for before, _ in form.buffers}
    for vector, expression in form.equations:
        made = ((sp.QQ.from_sympy(sp.sympify(c.subs(table))), state[v]) for v, c in parts(expression).items())
        state[vector] = total(*made, length=length)
    after = state[form.buffers[0][1]] if form.buffers else buffer
    return total((1, state[THETA]), (-E, state[STEP]), length=length), after


def defects(equation: ModifiedEquation, form: Form, values: Mapping[str, sp.Rational]) -> list[Field]:
    """What the flow over η differs by from one step, in θ and in the buffer: θ up to η^p, the buffer up to η^(p-1)."""
    length, leaves = equation.order, {THETA: AXES}
    field = explicit_sum(equation.field, leaves, length)
    befores = [b for b, _ in form.buffers]
    buffer = explicit_sum(equation.buffer(befores[0]), leaves, length) if befores else NOWHERE
    theta_after, buffer_after = step_of(form, values, buffer, length + 1)
    out = [total((1, flowed(AXES, field, length + 1)), (-1, theta_after), length=length + 1)]
    return out + ([total((1, flowed(buffer, field, length)), (-1, buffer_after), length=length)] if befores else [])


@pytest.mark.parametrize("name", FORMS)
def test_the_flow_over_one_step_is_the_step(name: str) -> None:
    """Taylor's series of an explicit polynomial flow, in exact arithmetic: θ to η^p, the buffer to η^(p-1)."""
    form = FORMS[name]
    values = numbers_of(form)
    equation = modified_equation(form, 3, **values)
    assert all(defect == NOWHERE for defect in defects(equation, form, values))


@pytest.mark.parametrize("factor", [sp.Rational(1001, 1000), sp.Integer(-1), sp.Integer(0)], ids=str)
def test_a_wrong_coefficient_leaves_a_defect(factor: sp.Rational) -> None:
    equation = modified_equation(PLAIN, 3, weight_decay=0)
    key = (2, Differential(G, G))
    terms = equation.series.terms | {key: equation.series.terms[key] * sp.QQ(factor.p, factor.q) if factor else sp.QQ.zero}
    wrong = replace(equation, series=replace(equation.series, terms=terms))
    (defect,) = defects(wrong, PLAIN, {"weight_decay": sp.S.Zero})
    assert defect != NOWHERE
    assert all(kept(entry, 3) == 0 for entry in defect), "and none before its own power"


@pytest.mark.parametrize(
    "pair", [("heavy ball", "nesterov"), ("nesterov", "quasi-hyperbolic"), ("quasi-hyperbolic", "heavy ball")], ids="-".join
)
def test_the_equation_of_one_rule_is_not_that_of_another(pair: tuple[str, str]) -> None:
    own, other = (FORMS[name] for name in pair)
    equation = modified_equation(own, 2, **numbers_of(own))
    values = numbers_of(other) | {"dampening": sp.S.Zero}
    known = {name for name, _ in other.hyperparameters}
    assert defects(equation, other, {n: v for n, v in values.items() if n in known})[0] != NOWHERE


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
    shadow = tuple(equation._shadow.expression(j) for j in range(length))
    leaves = {THETA: AXES} | {before: BUFFER for before, _ in form.buffers}
    theta, buffer = step_of(form, values, BUFFER, length)
    flow = flowed(AXES, explicit_sum(equation.field, leaves, length), length)
    at = explicit_sum(shadow, leaves, length)
    moved = tuple(p.compose(list(zip((*AXES, *BUFFER), (*theta, *buffer), strict=True))) for p in at)
    carried = tuple(p.compose(list(zip(AXES, at, strict=True))) for p in flow)
    assert total((1, moved), (-1, carried), length=length) == NOWHERE
    if form.buffers:
        assert total((1, theta), (-1, flow), length=length) != NOWHERE, "without Π it is not so"


# --- charges


def along(expression: sp.Expr, equation: ModifiedEquation, length: int) -> sp.Expr:
    """d/dt of a polynomial in η, Q and pairings, along the flow, by the product rule."""
    rate = sum(ETA**j * term for j, term in enumerate(charge_motion(equation, linear=False)))
    out = sp.diff(expression, CHARGE) * rate
    for pair in sorted(expression.atoms(Inner), key=sp.default_sort_key):
        for x, y in (pair.args, pair.args[::-1]):
            for power, term in enumerate(equation.field):
                for tree in term.atoms(Differential) | ({THETA} & term.free_symbols):
                    coefficient = sp.expand(term).coeff(tree)
                    moved = sum(count * pairing(new, y) for new, count in grafted(x, tree))
                    out += sp.expand(expression).coeff(pair) * ETA**power * coefficient * moved
    return sum(sp.expand(out).coeff(ETA, n) * ETA**n for n in range(length))


@pytest.mark.parametrize(("order", "values"), [(3, {}), (4, {"weight_decay": 0})], ids=["decay", "no decay"])
def test_the_flow_carries_a_charge_as_the_exact_discrete_law_does(order: int, values: dict[str, int]) -> None:
    """Q' = (1 - ηλ)² Q + η² ½⟨g, Ag⟩, from the continuous side: pairings of every higher differential cancel."""
    equation = modified_equation(PLAIN, order, **values)
    total = term = CHARGE
    for n in range(1, order + 1):
        term = sp.expand(along(term, equation, order + 1) * ETA / n)
        total += term
    total = sum(sp.expand(total).coeff(ETA, n) * ETA**n for n in range(order + 1))
    decay = DECAY.subs({DECAY: sp.Integer(0)} if values else {})
    exact = (1 - ETA * decay) ** 2 * CHARGE + ETA**2 * Inner(G, G) / 2
    assert sp.expand(total - exact) == 0


def test_a_charge_forgets_the_gradient_to_first_order_and_its_second_is_that_of_the_paper() -> None:
    zeroth, first, *_ = charge_motion(modified_equation(PLAIN, 2), linear=False)
    assert sp.expand(zeroth + 2 * DECAY * CHARGE) == 0
    assert sp.expand(first + DECAY**2 * CHARGE - Inner(G, G) / 2) == 0


# --- edges


def test_trees_are_counted_once() -> None:
    """Rooted trees with n nodes: 1, 1, 2, 4, 9."""
    series = modified_equation(HEAVY_BALL, 5, weight_decay=0, dampening=0, momentum=0.5).series
    assert [sum(1 for n, _ in series.terms if n == power) for power in range(5)] == [1, 1, 2, 4, 9]


def test_bushes_of_gradient_descent_have_bernoulli_numbers() -> None:
    """∇^{k+1}f [g, ..., g] has the coefficient -B_k / k! (hairer2006geometric, IX.9); the third vanishes."""
    equation = modified_equation(PLAIN, 5, weight_decay=0)
    for k in range(1, 5):
        bush = sp.expand(equation.field[k]).coeff(Differential(*[G] * k))
        assert abs(bush) == abs(sp.bernoulli(k)) / sp.factorial(k)


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
