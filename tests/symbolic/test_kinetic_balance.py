"""Balance laws of rules that are not linear in the gradient, against exact rational arithmetic; and wrong siblings of each."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

import pytest
import sympy as sp
from support.rational import Side, remainders

import noetherflow as nf
from noetherflow.errors import RuleError
from noetherflow.symbolic import rules_adaptive
from noetherflow.symbolic.balance import CHARGE, CURRENT, Balance, derive_balance
from noetherflow.symbolic.flows import gradient_flow
from noetherflow.symbolic.kinetic_balance import GAIN, derive_kinetic_balance
from noetherflow.symbolic.nonlinear import Larger, Orthogonal, Sign, companion, is_linear, structure
from noetherflow.symbolic.pairings import Inner, Vector
from noetherflow.symbolic.rules import GRADIENT, STEP, THETA, Form, sgd_form
from noetherflow.symbolic.rules_adaptive import adadelta_form, adagrad_form, adam_form, nadam_form, rmsprop_form
from noetherflow.symbolic.rules_directed import lion_form, lookahead_form, muon_form, natural_form, sgdw_form, sign_form

FORMS: dict[str, Form] = {
    "adam": adam_form(),
    "adamw": adam_form(decoupled=True),
    "amsgrad, ascending": adam_form(amsgrad=True, maximize=True),
    "nadam": nadam_form(),
    "nadamw": nadam_form(decoupled=True),
    "rmsprop": rmsprop_form(),
    "rmsprop, centred": rmsprop_form(centered=True),
    "rmsprop, centred with momentum": rmsprop_form(centered=True, momentum=True),
    "adagrad": adagrad_form(),
    "adadelta": adadelta_form(),
    "signsgd": sign_form(),
    "signum": sign_form(momentum=True),
    "lion": lion_form(),
    "muon": muon_form(),
    "muon, plain": muon_form(nesterov=False),
    "sgdw": sgdw_form(),
    "sgdw, nesterov": sgdw_form(nesterov=True),
    "nesterov, ahead": lookahead_form(),
    "natural gradient": natural_form(),
    "natural gradient with decay": natural_form(decoupled=True),
    "sgd": sgd_form(momentum=True, nesterov=True, maximize=False),
}


def left_over(name: str, balance: Balance | None = None, *, linear: bool = False, seed: int = 1, **options: object) -> list[sp.Rational]:
    side = Side.random(FORMS[name], random.Random(seed), linear=linear)
    law = balance or derive_kinetic_balance((FORMS[name],), linear)
    return remainders(law, [side], **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("name", FORMS)
def test_the_law_is_exact_whatever_the_nonlinear_parts_do(name: str, linear: bool) -> None:
    found = left_over(name, linear=linear)
    assert found == [0] * len(found)
    assert left_over(name, linear=linear, gain=Fraction(-7, 3)) == found, "the gain is anyone's choice"


@pytest.mark.parametrize("name", FORMS)
def test_a_wrong_generator_is_rejected_at_any_gain_but_zero(name: str) -> None:
    """What a wrong generator changes is ⟨ξ, g⟩, which the law takes for zero."""
    assert any(left_over(name, believed=lambda current: Fraction(0)))
    if not is_linear(FORMS[name]) and structure(FORMS[name]).atoms:
        at_zero = left_over(name, believed=lambda current: Fraction(0), gain=Fraction(0), steps=1)
        assert at_zero[0] == 0, "with nothing predicted the law of the charge would say nothing"


@pytest.mark.parametrize("name", FORMS)
def test_wrong_siblings_leave_a_remainder(name: str) -> None:
    law = derive_kinetic_balance((FORMS[name],), False)
    for mechanism, part in law.charge_terms.items():
        assert any(left_over(name, replace(law, charge_terms={**law.charge_terms, mechanism: -part}))), f"sign of {mechanism}"
        assert any(left_over(name, replace(law, charge_terms={**law.charge_terms, mechanism: sp.S.Zero}))), f"no {mechanism}"
    for k in law.momenta:
        wrong = replace(law, momentum_factor={**law.momentum_factor, k: law.momentum_factor[k] * sp.Rational(101, 100)})
        assert any(left_over(name, wrong)), "a momentum that forgets otherwise"
        for mechanism, part in law.momentum_terms[k].items():
            terms = {**law.momentum_terms[k], mechanism: -part}
            assert any(left_over(name, replace(law, momentum_terms={**law.momentum_terms, k: terms}))), f"sign of {mechanism} in K"


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("momentum", [False, True])
@pytest.mark.parametrize("nesterov", [False, True])
def test_for_linear_rules_it_is_the_law_of_balance(linear: bool, momentum: bool, nesterov: bool) -> None:
    form = sgd_form(momentum=momentum, nesterov=nesterov and momentum, maximize=False)
    here, there = derive_kinetic_balance((form,), linear), derive_balance((form,), linear, True)
    written_out = here.equations
    if not momentum:  # here λθ is kept apart from g; u = g + λθ expands to the same
        return
    assert [sp.expand(a.rhs - b.rhs) for a, b in zip(written_out, there.equations, strict=True)] == [0] * (1 + momentum)


def test_the_formulas_of_adam_with_decoupled_decay() -> None:
    law = derive_kinetic_balance((adam_form(decoupled=True),), False)
    eta, decay, beta = sp.symbols("eta lambda beta1", real=True)
    k, s = sp.symbols("K S", real=True)
    d, m = Vector("d"), Vector("m'")
    kept = 1 - eta * decay
    along_d = GAIN * (beta * k + (1 - beta) * CURRENT) + s
    assert sp.expand(law.equations[0].rhs - (kept**2 * CHARGE - eta * kept * along_d + eta**2 * Inner(d, d) / 2)) == 0
    assert sp.expand(law.equations[1].rhs - (kept * (beta * k + (1 - beta) * CURRENT) - eta * Inner(d, m))) == 0


@pytest.mark.parametrize(("first", "second"), [("adam", "adamw"), ("rmsprop", "rmsprop"), ("muon", "muon"), ("nadam", "nadamw")])
@pytest.mark.parametrize("linear", [False, True])
def test_the_law_across_groups_is_exact(first: str, second: str, linear: bool) -> None:
    forms = FORMS[first], FORMS[second]
    law = derive_kinetic_balance(forms, linear)
    assert law.weights == (1, 1)
    assert not law.closed
    sides = [Side.random(form, random.Random(seed), linear=linear) for seed, form in enumerate(forms)]
    assert remainders(law, sides) == [0] * 3
    assert any(remainders(law, sides, believed=lambda current: Fraction(0)))


def test_a_linear_rule_and_one_that_is_not_have_no_law_in_common() -> None:
    with pytest.raises(RuleError, match=r"across Adam and SGD.*one kind"):
        derive_kinetic_balance((FORMS["adam"], FORMS["sgd"]), False)


def test_a_rule_that_follows_nothing_linear_is_refused() -> None:
    d = Vector("d")
    form = replace(FORMS["signsgd"], name="odd", equations=((d, GRADIENT**2), (STEP, sp.sympify(d))))
    with pytest.raises(RuleError, match="No law of odd can be checked"):
        derive_kinetic_balance((form,), False)


def patched(form: Form, vector: str, change: Callable[[sp.Expr], sp.Expr]) -> Form:
    return replace(form, equations=tuple((v, change(e) if v.name == vector else e) for v, e in form.equations))


def test_a_monkeypatched_update_equation_changes_the_law_it_derives(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = nf.ArchitectureGraph()
    graph.add_parameter("w1", (5, 3))
    graph.add_parameter("w2", (2, 5))
    graph.add_operation("x", "input", shape=(8, 3))
    graph.add_operation("h", "linear", {"input": "x"}, {"weight": "w1"}, shape=(8, 5))
    graph.add_operation("a", "relu", {"input": "h"}, shape=(8, 5))
    graph.add_operation("y", "linear", {"input": "a"}, {"weight": "w2"}, shape=(8, 2))
    (before,) = nf.derive(graph, nf.rules.Adam())
    beta = sp.Symbol("beta1", real=True)
    odd = patched(adam_form(), "m'", lambda e: e + beta**2 * THETA)
    monkeypatch.setattr(rules_adaptive, "adam_form", lambda **options: odd)
    (after,) = nf.derive(graph, nf.rules.Adam())
    change = sp.expand(after.balance.equations[1].rhs - before.balance.equations[1].rhs)
    assert change == 2 * beta**2 * CHARGE
    side = Side.random(odd, random.Random(5), linear=False)
    assert set(remainders(after.balance, [side])) == {0}
    assert any(remainders(before.balance, [side]))


@pytest.mark.parametrize("name", ["adam", "rmsprop", "lion", "muon"])
def test_each_changed_coefficient_changes_the_law(name: str) -> None:
    """Nothing is looked up: scaling any equation that the law needs gives another law, which is exact."""
    form = FORMS[name]
    needed = [v for v, _ in form.equations if v in structure(form).linear]
    for vector in needed:
        odd = patched(form, vector.name, lambda e: 3 * e)
        law = derive_kinetic_balance((odd,), False)
        side = Side.random(odd, random.Random(6), linear=False)
        assert set(remainders(law, [side])) == {0}, vector
        if vector.name != "h":  # what h is enters through the value of J
            assert law.equations != derive_kinetic_balance((form,), False).equations, vector


def test_companions_are_what_is_linear_in_an_expression() -> None:
    m, v, g, c = Vector("m"), Vector("v"), Vector("g"), sp.Symbol("c")
    known = {m, g}
    assert companion(c * m / (sp.sqrt(v) + c), known) == c * m
    assert companion((m + 2 * g) / v, known) == m + 2 * g
    assert companion(Sign(m + g), known) == m + g
    assert companion(Orthogonal(m), known) == m
    assert companion(m * g, known) == 0, "two linear factors: neither is followed"
    assert companion(Larger(m, g), known) == 0
    assert companion(m**2 + v + g, known) == g


def test_a_buffer_is_linear_only_if_its_equation_is() -> None:
    assert [b.name for b, _ in structure(FORMS["adam"]).buffers] == ["m"]
    assert [b.name for b, _ in structure(FORMS["rmsprop, centred with momentum"]).buffers] == ["m", "b"]
    assert structure(FORMS["adadelta"]).buffers == ()
    assert [name for name, form in FORMS.items() if is_linear(form)] == ["sgdw", "sgdw, nesterov", "sgd"]


def test_terms_are_booked_by_mechanism() -> None:
    law = derive_kinetic_balance((adam_form(decoupled=True),), False)
    assert set(law.charge_terms) == {"discretization", "weight_decay", "kinetic_symmetry_breaking", "explicit_breaking"}
    assert set(law.momentum_terms[law.momenta[0]]) == {"momentum", "explicit_breaking"}


def test_the_flow_is_the_limit_of_the_law() -> None:
    q = sp.Function("Q")(sp.Symbol("t", nonnegative=True))
    flow = gradient_flow(derive_kinetic_balance((adam_form(decoupled=True),), False)).rhs
    decay, s = sp.symbols("lambda S", real=True)
    assert sp.expand(flow - (-2 * decay * q - GAIN * CURRENT - s)) == 0
