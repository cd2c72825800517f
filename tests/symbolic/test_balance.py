"""Balance laws against exact rational arithmetic: the remainder is zero, not small; and a wrong law leaves one."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import product

import pytest
import sympy as sp

from noetherflow.symbolic.balance import CHARGE, CURRENT, Balance, derive_balance
from noetherflow.symbolic.pairings import Inner, NotLinear, Vector, along, inner, parts
from noetherflow.symbolic.rules import GRADIENT, STEP, THETA, Form, sgd_form

FORMS = {
    "plain": sgd_form(momentum=False, nesterov=False, maximize=False),
    "momentum": sgd_form(momentum=True, nesterov=False, maximize=False),
    "nesterov": sgd_form(momentum=True, nesterov=True, maximize=False),
    "maximize": sgd_form(momentum=True, nesterov=False, maximize=True),
}
SIZE = 3
Values = dict[sp.Symbol, list[Fraction]]


def rational(generator: random.Random) -> Fraction:
    return Fraction(generator.randint(-9, 9), generator.randint(1, 7))


def dot(x: list[Fraction], y: list[Fraction]) -> Fraction:
    return sum((a * b for a, b in zip(x, y, strict=True)), Fraction(0))


@dataclass
class Side:
    """One parameter group: its generator ξ(θ) = Aθ + a, its hyper-parameters, its state, in rational numbers."""

    form: Form
    matrix: list[list[Fraction]]
    shift: list[Fraction]
    hyper: dict[sp.Symbol, Fraction]
    vectors: Values

    def a(self, x: list[Fraction]) -> list[Fraction]:
        return [dot(row, x) for row in self.matrix]

    def along(self, x: list[Fraction]) -> Fraction:
        theta = self.vectors[THETA]
        return dot([m + s for m, s in zip(self.a(theta), self.shift, strict=True)], x)

    def charge(self) -> Fraction:
        theta = self.vectors[THETA]
        return dot(theta, self.a(theta)) / 2 + dot(self.shift, theta)

    def combine(self, expression: sp.Expr) -> list[Fraction]:
        out = [Fraction(0)] * SIZE
        for vector, coefficient in parts(expression).items():
            number = Fraction(str(coefficient.subs({s: sp.Rational(v.numerator, v.denominator) for s, v in self.hyper.items()})))
            out = [o + number * x for o, x in zip(out, self.vectors[vector], strict=True)]
        return out

    def step(self) -> None:
        """Apply the update equations as they stand."""
        for vector, expression in self.form.equations:
            self.vectors[vector] = self.combine(expression)

    def finish(self) -> None:
        rate = self.hyper[self.form.rate]
        self.vectors[THETA] = [t - rate * u for t, u in zip(self.vectors[THETA], self.vectors[STEP], strict=True)]
        for before, after in self.form.buffers:
            self.vectors[before] = self.vectors[after]


def side(form: Form, generator: random.Random, linear: bool, shared: Mapping[str, Fraction]) -> Side:
    rows = [[rational(generator) for _ in range(SIZE)] for _ in range(SIZE)]
    matrix = [[(rows[i][j] + rows[j][i]) * (not linear) for j in range(SIZE)] for i in range(SIZE)]
    shift = [rational(generator) * linear for _ in range(SIZE)]
    hyper = {symbol: shared.get(name, rational(generator) or Fraction(1, 3)) for name, symbol in form.hyperparameters}
    if hyper[form.rate] == 0:
        hyper[form.rate] = Fraction(1, 5)
    vectors: Values = {THETA: [rational(generator) for _ in range(SIZE)]}
    vectors |= {before: [rational(generator) for _ in range(SIZE)] for before, _ in form.buffers}
    return Side(form, matrix, shift, hyper, vectors)


def numbers(balance: Balance, sides: list[Side]) -> dict[sp.Expr, sp.Rational]:
    """Every symbol and pairing of a balance law, exactly."""
    out: dict[sp.Expr, Fraction] = {CURRENT: sum((s.along(s.vectors[GRADIENT]) for s in sides), Fraction(0))}
    for p, s in enumerate(sides):
        for symbol, value in s.hyper.items():
            out[symbol] = value
            out[sp.Symbol(f"{symbol.name}_{p}", real=True)] = value
        out[sp.Symbol(f"Q_{p}", real=True)] = s.charge()
        names = [v for v in s.vectors if v not in (THETA, GRADIENT)]
        for x, y in product(names, names):
            pair = (x, y) if len(sides) == 1 else tuple(Vector(f"{v.name}_{p}") for v in (x, y))
            out[Inner(*pair)] = dot(s.vectors[x], s.a(s.vectors[y]))
    return {k: sp.Rational(v.numerator, v.denominator) for k, v in out.items()}


def value(expression: sp.Expr, table: Mapping[sp.Expr, sp.Expr]) -> sp.Rational:
    by_name = {str(k): v for k, v in table.items()}
    pairs = {pairing: by_name[str(pairing)] for pairing in expression.atoms(Inner)}
    plain = expression.xreplace(pairs)
    return plain.xreplace({s: by_name[str(s)] for s in plain.free_symbols})


def remainders(balance: Balance, sides: list[Side], generator: random.Random, steps: int = 3) -> list[sp.Expr]:
    """Law minus truth for the charge and each momentum, over a few steps of the real rule."""
    out = []
    for _ in range(steps):
        for s in sides:
            s.vectors[GRADIENT] = [rational(generator) for _ in range(SIZE)]
        momenta = {
            k: sum(
                value(w, numbers(balance, sides)) * sp.Rational(str(s.along(s.vectors[s.form.buffers[0][0]])))
                for w, s in zip(ws, sides, strict=True)
                if w != 0
            )
            for k, ws in balance.momentum_weights.items()
        }
        weights = [value(w, numbers(balance, sides)) for w in balance.weights]
        charge = sum(w * sp.Rational(str(s.charge())) for w, s in zip(weights, sides, strict=True))
        for s in sides:
            s.step()
        table = numbers(balance, sides) | {CHARGE: charge} | momenta
        predicted = [value(e.rhs, table) for e in balance.equations]
        for s in sides:
            s.finish()
        out.append(predicted[0] - sum(w * sp.Rational(str(s.charge())) for w, s in zip(weights, sides, strict=True)))
        for equation, k in zip(predicted[1:], balance.momenta, strict=False):
            ws = balance.momentum_weights[k]
            after = sum(
                value(w, table) * sp.Rational(str(s.along(s.vectors[s.form.buffers[0][0]]))) for w, s in zip(ws, sides, strict=True)
            )
            out.append(equation - after)
    return out


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("name", FORMS)
def test_the_law_of_one_group_is_exact(name: str, linear: bool) -> None:
    generator = random.Random(1)
    balance = derive_balance((FORMS[name],), linear, True)
    assert balance.closed
    assert remainders(balance, [side(FORMS[name], generator, linear, {})], generator) == [0] * 3 * (1 + len(balance.momenta))


@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize(
    ("first", "second"), [("plain", "plain"), ("momentum", "momentum"), ("nesterov", "nesterov"), ("momentum", "plain")]
)
def test_the_law_across_groups_is_exact_and_its_weights_are_found(first: str, second: str, same: bool) -> None:
    if same and first != second:
        pytest.skip("different rules have no momentum in common")
    generator = random.Random(2)
    shared = {"momentum": Fraction(4, 5), "dampening": Fraction(1, 7 if first == "momentum" else 1)} if same else {}
    if same and first == "nesterov":
        shared["dampening"] = Fraction(0)
    balance = derive_balance((FORMS[first], FORMS[second]), False, same)
    assert balance.closed is (same or first == second == "plain")
    sides = [side(FORMS[n], generator, False, shared) for n in (first, second)]
    left = remainders(balance, sides, generator)
    assert left == [0] * len(left)


def test_for_gradient_descent_the_weights_are_the_metric() -> None:
    balance = derive_balance((FORMS["plain"], FORMS["plain"], FORMS["plain"]), False, True)
    eta = sp.symbols("eta_0 eta_1 eta_2", real=True)
    assert [sp.simplify(w - eta[0] / e) for w, e in zip(balance.weights, eta, strict=True)] == [0, 0, 0]


def test_a_wrong_sibling_of_the_law_leaves_a_remainder() -> None:
    generator = random.Random(3)
    balance = derive_balance((FORMS["momentum"],), False, True)
    for mechanism in balance.charge_terms:
        wrong = dict(balance.charge_terms)
        wrong[mechanism] = -wrong[mechanism]
        left = remainders(replace(balance, charge_terms=wrong), [side(FORMS["momentum"], generator, False, {})], generator)
        assert any(x != 0 for x in left), mechanism


def test_a_changed_update_equation_changes_the_law_and_the_new_law_is_exact() -> None:
    """Nothing is looked up: a rule nobody published gets its own law."""
    form = FORMS["momentum"]
    h, before, after = Vector("h"), Vector("b"), Vector("b'")
    mu, tau = dict(form.hyperparameters)["momentum"], dict(form.hyperparameters)["dampening"]
    odd = replace(form, name="odd", equations=((h, GRADIENT), (after, mu * before + (1 - tau) * h + THETA / 7), (STEP, after / 3 + h)))
    balance = derive_balance((odd,), False, True)
    assert balance.equations != derive_balance((form,), False, True).equations
    generator = random.Random(4)
    assert set(remainders(balance, [side(odd, generator, False, {})], generator)) == {0}
    assert any(x != 0 for x in remainders(derive_balance((form,), False, True), [side(odd, generator, False, {})], generator))


def test_the_terms_of_a_law_are_booked_by_mechanism() -> None:
    balance = derive_balance((FORMS["nesterov"],), False, True)
    assert set(balance.charge_terms) == {"discretization", "weight_decay", "explicit_breaking"}
    (terms,) = balance.momentum_terms.values()
    assert set(terms) == {"momentum", "weight_decay", "explicit_breaking"}
    assert r"\left\langle" in balance.latex()


def test_pairings_are_bilinear_and_symmetric() -> None:
    x, y, z = (Vector(n) for n in "xyz")
    c = sp.Symbol("c")
    assert sp.expand(inner(x + c * y, z) - inner(x, z) - c * inner(y, z)) == 0
    assert inner(x, y) == inner(y, x)
    assert sp.expand(along(c * x - y) - c * along(x) + along(y)) == 0
    with pytest.raises(NotLinear):
        parts(x * y)
    with pytest.raises(NotLinear):
        parts(x + 1)
