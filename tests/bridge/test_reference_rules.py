"""Laws of rules that torch.optim does not have, on textbook steps; and the charge under a rule's own metric, on torch's optimizers too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import sympy as sp
from support.law_runs import metric_residual, problem, residuals
from support.reference_rules import SGDW, Lion, NaturalGradient, NesterovAhead, Reference, SignSGD, Signum, Torch
from support.rule_cases import RULES

from noetherflow.symbolic.forms import Form
from noetherflow.symbolic.metric_balance import derive_metric_balance
from noetherflow.symbolic.pairings import Inner
from noetherflow.symbolic.rules import sgd_form
from noetherflow.symbolic.rules_adaptive import V_AFTER, V
from noetherflow.symbolic.rules_directed import lion_form, lookahead_form, muon_form, natural_form, sgdw_form, sign_form

COMMON = {"lr": 0.02, "weight_decay": 0.03}
NUMBERS = COMMON | {"momentum": 0.8, "beta1": 0.9, "beta2": 0.99}
CASES: dict[str, tuple[Callable[[], Reference], Form]] = {
    "signSGD": (lambda: SignSGD(COMMON), sign_form()),
    "Signum": (lambda: Signum(NUMBERS), sign_form(momentum=True)),
    "Lion": (lambda: Lion(NUMBERS), lion_form()),
    "SGDW": (lambda: SGDW(NUMBERS), sgdw_form()),
    "Nesterov ahead": (lambda: NesterovAhead(NUMBERS), lookahead_form()),
    "natural gradient": (lambda: NaturalGradient({"lr": 0.02, "damping": 0.05}), natural_form()),
    "natural gradient with decay": (
        lambda: NaturalGradient({"lr": 0.02, "damping": 0.05, "weight_decay": 0.1}),
        natural_form(decoupled=True),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_law_holds_to_rounding_on_the_textbooks_step(name: str) -> None:
    make, form = CASES[name]
    found = residuals(make(), form)
    assert set(found) == ({"Q", "K"} if form.buffers else {"Q"})
    assert all(value <= 1e-13 for value in found.values()), found


@pytest.mark.parametrize(
    ("name", "believed"),
    [
        ("signSGD", {"weight_decay": 0.0}),
        ("Signum", {"momentum": 0.801}),
        ("Lion", {"beta1": 0.99, "beta2": 0.9}),
        ("Lion", {"weight_decay": 0.0}),
        ("SGDW", {"weight_decay": 0.0}),
        ("Nesterov ahead", {"momentum": 0.801}),
        ("natural gradient with decay", {"weight_decay": 0.0}),
    ],
)
def test_wrong_numbers_are_rejected(name: str, believed: dict[str, float]) -> None:
    make, form = CASES[name]
    assert max(residuals(make(), form, believed=believed).values()) > 1e-6


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("SGDW", sgd_form(momentum=True, nesterov=False, maximize=False)),  # decay inside the momentum
        ("SGDW", sgdw_form(nesterov=True)),
        ("Signum", sign_form()),
    ],
)
def test_laws_of_other_rules_are_rejected(name: str, wrong: Form) -> None:
    reference = CASES[name][0]()
    reference.values = {**reference.values, "dampening": 0.0}
    assert max(residuals(reference, wrong).values()) > 1e-6


def test_the_gradient_ahead_is_no_gradient_here() -> None:
    """Invariance holds where the gradient is taken: the same equations with g at θ give another law, and a false one."""
    form = lookahead_form()
    here = Form(form.name, form.equations, form.buffers, form.rate, form.hyperparameters, form.mechanisms)
    assert max(residuals(CASES["Nesterov ahead"][0](), here).values()) > 1e-6


def test_natural_gradient_by_layers_breaks_the_charges_that_the_whole_one_keeps() -> None:
    _, _, params = problem()
    names = list(params)
    numbers = {"lr": 0.02, "damping": 0.05}
    by_layers = NaturalGradient(numbers, blocks=(tuple(names[:2]), tuple(names[2:])))
    assert residuals(NaturalGradient(numbers), natural_form())["Q"] <= 1e-13
    assert residuals(by_layers, natural_form())["Q"] > 1e-6


# --- under the rule's own metric


OWN = [
    "adam",
    "adam, coupled decay",
    "adamw",
    "amsgrad",
    "nadam, decoupled",
    "rmsprop",
    "rmsprop, centred with momentum",
    "adagrad",
    "adadelta",
]


@pytest.mark.parametrize("name", OWN)
def test_the_charge_under_its_own_metric_on_the_real_optimizer(name: str) -> None:
    reference = Torch({}, make=RULES[name])
    form = reference.form(problem()[2])
    laws = {linear: derive_metric_balance(form, linear) for linear in (False, True)}
    assert metric_residual(reference, form, laws) <= 1e-12  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["signSGD", "Signum", "Lion"])
def test_signs_have_the_magnitude_for_their_metric(name: str) -> None:
    make, form = CASES[name]
    laws = {linear: derive_metric_balance(form, linear) for linear in (False, True)}
    assert metric_residual(make(), form, laws) <= 1e-12  # type: ignore[arg-type]


@pytest.mark.parametrize("what", ["eps left out", "last step's average", "no momentum", "sign"])
def test_wrong_siblings_under_the_metric_are_rejected(what: str) -> None:
    reference = Torch({}, make=RULES["adam, no momentum" if "eps" in what else "adam, coupled decay"])  # the first has an eps that shows
    form = reference.form(problem()[2])
    table = dict(form.hyperparameters)
    wrong = {}
    for linear in (False, True):
        law = derive_metric_balance(form, linear)
        assert law is not None
        k = sp.Symbol("K", real=True)
        wrong[linear] = {
            "eps left out": replace(law, metric=law.metric.xreplace({table["eps"]: sp.S.Zero})),
            "last step's average": replace(law, metric=law.metric.xreplace({V_AFTER: V})),
            "no momentum": replace(law, charge=law.charge.xreplace({k: sp.S.Zero})),
            "sign": replace(law, charge=law.charge.xreplace({q: -q for q in law.charge.atoms(Inner)} or {k: -k})),
        }[what]
    assert metric_residual(reference, form, wrong) > 1e-9


def test_no_metric_is_made_up() -> None:
    for form in (muon_form(), sgdw_form(), lookahead_form(), natural_form()):
        assert derive_metric_balance(form, False) is None
