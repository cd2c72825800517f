"""Nothing is looked up: change one update equation of a rule, any rule, and the law that is derived changes to what the new rule obeys."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import sympy as sp
from support.rational import Side, remainders

import noetherflow as nf
from noetherflow.symbolic import rules, rules_adaptive, rules_directed, rules_mirror
from noetherflow.symbolic.forms import STEP, THETA, Form, Rule
from noetherflow.symbolic.graph import ArchitectureGraph
from noetherflow.symbolic.metrics import ARGUMENT
from noetherflow.symbolic.mirror_steps import SLOPE
from noetherflow.symbolic.pairings import Vector

MU = sp.Symbol("mu", real=True)
RULES: dict[str, tuple[ModuleType, str, Callable[[], Rule]]] = {
    "SGD": (rules, "sgd_form", rules.SGD),
    "SGD with momentum": (rules, "sgd_form", lambda: rules.SGD(momentum=MU)),
    "SGD with Nesterov momentum": (rules, "sgd_form", lambda: rules.SGD(momentum=MU, nesterov=True)),
    "Adam": (rules_adaptive, "adam_form", rules.Adam),
    "AdamW": (rules_adaptive, "adam_form", rules.AdamW),
    "AMSGrad": (rules_adaptive, "adam_form", rules.AMSGrad),
    "NAdam": (rules_adaptive, "nadam_form", rules.NAdam),
    "RMSprop": (rules_adaptive, "rmsprop_form", rules.RMSprop),
    "RMSprop, centred with momentum": (rules_adaptive, "rmsprop_form", lambda: rules.RMSprop(momentum=MU, centered=True)),
    "Adagrad": (rules_adaptive, "adagrad_form", rules.Adagrad),
    "Adadelta": (rules_adaptive, "adadelta_form", rules.Adadelta),
    "signSGD": (rules_directed, "sign_form", rules.SignSGD),
    "Signum": (rules_directed, "sign_form", lambda: rules.SignSGD(momentum=MU)),
    "Lion": (rules_directed, "lion_form", rules.Lion),
    "Muon": (rules_directed, "muon_form", rules.Muon),
    "SGDW": (rules_directed, "sgdw_form", lambda: rules.SGDW(momentum=MU)),
    "Nesterov, gradient ahead": (rules_directed, "lookahead_form", rules.NesterovLookahead),
    "natural gradient": (rules_directed, "natural_form", rules.NaturalGradient),
}


def network() -> ArchitectureGraph:
    graph = nf.ArchitectureGraph()
    graph.add_parameter("w1", (5, 3))
    graph.add_parameter("w2", (2, 5))
    graph.add_operation("x", "input", shape=(8, 3))
    graph.add_operation("h", "linear", {"input": "x"}, {"weight": "w1"}, shape=(8, 5))
    graph.add_operation("a", "relu", {"input": "h"}, shape=(8, 5))
    graph.add_operation("y", "linear", {"input": "a"}, {"weight": "w2"}, shape=(8, 2))
    return graph


def law_of(rule: Rule) -> Any:
    (law,) = nf.derive(network(), rule)
    return law


def changed(form: Form, vector: Vector, change: Callable[[sp.Expr], sp.Expr]) -> Form:
    return replace(form, equations=tuple((v, change(e) if v == vector else e) for v, e in form.equations))


def linear_buffers(form: Form) -> list[Vector]:
    """Buffers that the law needs: those whose change must show in it."""
    law = law_of(Rule((rules.Group(form, {}),)))
    return [dict(form.buffers)[law.balance.buffer_of(k, 0)] for k in law.balance.momenta]


def test_every_rule_is_changed() -> None:
    made = {
        name for name in rules.__all__ if callable(getattr(rules, name)) and name[0].isupper() and name not in ("Form", "Group", "Rule")
    }
    assert made - {"NesterovLookahead", "NaturalGradient", "SignSGD", "MirrorDescent", "Number"} <= set(RULES)


@pytest.mark.parametrize("name", RULES)
def test_a_changed_update_equation_changes_the_law(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, function, rule = RULES[name]
    before, made = law_of(rule()), getattr(module, function)
    own = rule().groups[0].form
    for vector in (STEP, *linear_buffers(own)):
        # a part of θ and a factor: a decay that nobody asked for, and another step size or average
        monkeypatch.setattr(
            module, function, lambda vector=vector, **options: changed(made(**options), vector, lambda e: 3 * e + THETA / 7)
        )
        after = law_of(rule())
        monkeypatch.setattr(module, function, made)
        odd = after.rule.groups[0].form
        assert odd != own
        assert after.balance.equations != before.balance.equations, vector
        side = Side.random(odd, random.Random(5), linear=False)
        assert set(remainders(after.balance, [side], steps=2)) == {0}, vector
        assert any(remainders(before.balance, [side], steps=2)), "the old law is not that of the new rule"


@pytest.mark.parametrize("plain", [False, True])
def test_a_changed_mirror_step_changes_its_law(plain: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    before, made = law_of(rules.MirrorDescent(plain=plain)), rules_mirror.mirror_form
    monkeypatch.setattr(rules_mirror, "mirror_form", lambda *a, **o: changed(made(*a, **o), STEP, lambda e: 3 * e + THETA / 7))
    after = law_of(rules.MirrorDescent(plain=plain))
    assert after.balance.terms["explicit_breaking"] == 3 * before.balance.terms["explicit_breaking"]
    form = after.rule.groups[0].form
    step = dict(form.equations)[STEP]
    point = {THETA: 0.7, Vector("h"): -1.3, form.rate: 0.1}
    theta, h, eta = point.values()
    moved = theta - eta * float(step.xreplace(point))
    truth = moved - theta + 3 * eta * theta * h  # of the charge Σ c θ of entropy, less its first order
    of = [float(law.balance.remainder.subs({ARGUMENT: theta, SLOPE: h, form.rate: eta})) for law in (after, before)]
    assert of[0] == pytest.approx(truth, rel=1e-12)
    assert abs(of[1] - truth) > 1e-3
