"""Adam's exact bound: against rational sums, attained, and never exceeded; the two thresholds; the weights in continuous time."""

from __future__ import annotations

import math
import random

import pytest
import sympy as sp
import torch

from noetherflow.errors import RuleError
from noetherflow.numeric.order import fit_order
from noetherflow.symbolic.adam_bounds import (
    BETA,
    GAMMA,
    LAG,
    SPAN,
    WINDOW,
    correction,
    growth,
    kernel_rates,
    published_rates,
    squared_bound,
    worst_gradient,
)
from noetherflow.symbolic.adam_flow import POWER, UPDATE, WEIGHT, exact_root, slow_root, weight_equation
from noetherflow.symbolic.flows import TIME
from noetherflow.symbolic.rules_adaptive import adam_form

R = sp.Rational
PAIRS = [(R(9, 10), R(999, 1000)), (R(1, 2), R(3, 10)), (R(1, 2), R(1, 4)), (R(9, 10), R(1, 2))]


def ratio(beta: sp.Expr, gamma: sp.Expr, gradients: list[sp.Expr]) -> sp.Expr:
    """m²/v after the gradients, oldest first."""
    m, v = sp.S.Zero, sp.S.Zero
    for g in gradients:
        m, v = beta * m + (1 - beta) * g, gamma * v + (1 - gamma) * g**2
    return m**2 / v


@pytest.mark.parametrize(("beta", "gamma"), PAIRS)
@pytest.mark.parametrize("steps", [1, 2, 6])
def test_the_bound_is_attained_and_never_exceeded(beta: sp.Expr, gamma: sp.Expr, steps: int) -> None:
    bound = squared_bound(sp.Integer(steps), beta, gamma)
    worst = [worst_gradient(beta, gamma).subs(LAG, j) for j in reversed(range(steps))]
    assert sp.nsimplify(ratio(beta, gamma, worst) - bound) == 0
    drawn = random.Random(steps)
    for _ in range(20):
        assert ratio(beta, gamma, [R(drawn.randint(1, 99) * drawn.choice((-1, 1)), 50) for _ in range(steps)]) <= bound
    if steps > 1:
        nudged = [worst[0] * R(11, 10), *worst[1:]]
        assert ratio(beta, gamma, nudged) < bound


def test_the_first_update_is_one_step() -> None:
    first = squared_bound(sp.Integer(1), R(9, 10), R(4, 5)) * correction(sp.Integer(1), R(9, 10), R(4, 5)) ** 2
    assert sp.nsimplify(first) == 1


def test_the_discrete_threshold_is_beta_squared() -> None:
    assert sp.solve(growth() - 1, GAMMA) == [BETA**2]
    inside, outside = (squared_bound(WINDOW, R(1, 2), g) for g in (R(3, 10), R(1, 5)))
    assert abs(float(inside.subs(WINDOW, 400) - inside.subs(WINDOW, 200))) < 1e-10
    assert float(outside.subs(WINDOW, 400)) > 1e9


def test_the_published_region_is_smaller_and_the_kernels_own_is_exact() -> None:
    (published,) = sp.solve(published_rates().margin, GAMMA)
    assert sp.simplify(published - BETA**2 - BETA * (1 - BETA) ** 2 / (2 - BETA)) == 0
    assert sp.solve(kernel_rates().margin, GAMMA) == [BETA**2]


def test_the_continuous_bound_is_its_integral() -> None:
    at = {BETA: R(9, 10), GAMMA: R(99, 100)}
    rates = published_rates()
    s = sp.Symbol("s", nonnegative=True)
    k, q = float(rates.momentum.subs(at)), float(rates.square.subs(at))
    integral = sp.Integral(k**2 / q * sp.exp(-(2 * k - q) * s), (s, 0, 7)).evalf()
    assert abs(float(rates.squared_bound().subs(at).subs(SPAN, 7)) - float(integral)) < 1e-10


# --- the weights in continuous time


def test_the_published_equation_of_motion_comes_out() -> None:
    """λθ + η^(p-1) θ' + ½ η^(2p-1) θ'' = -u (gould2024continuous)."""
    form = adam_form(decoupled=True)
    eta, decay = form.rate, dict(form.hyperparameters)["weight_decay"]
    published = decay * WEIGHT + eta ** (POWER - 1) * WEIGHT.diff(TIME) + eta ** (2 * POWER - 1) * WEIGHT.diff(TIME, 2) / 2
    equation = weight_equation(form)
    assert sp.simplify(equation.lhs - published) == 0
    assert equation.rhs == -UPDATE
    with pytest.raises(RuleError, match="not decoupled"):
        weight_equation(adam_form())


def test_each_term_makes_the_decay_right_to_one_power_more() -> None:
    form = adam_form(decoupled=True)
    exact = exact_root(form)
    for terms in (1, 2):
        gap = sp.series(slow_root(form, terms) - exact, form.rate, 0, 3).removeO()
        assert sp.degree(gap.subs(dict(form.hyperparameters)["weight_decay"], 2), form.rate) >= terms
        assert gap.coeff(form.rate, terms) != 0
        assert all(gap.coeff(form.rate, k) == 0 for k in range(terms))


def test_torchs_weights_are_predicted_to_the_order_of_the_equation() -> None:
    """One weight, gradients of one sign, empty averages: u = 1, and the weight runs to -1/λ along the slow root."""
    form, decay, time = adam_form(decoupled=True), 0.5, 2.0
    rates = [0.1 / 2**i for i in range(4)]
    for terms in (1, 2):
        root = slow_root(form, terms).subs(dict(form.hyperparameters)["weight_decay"], decay)
        errors = []
        for rate in rates:
            weight = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
            optimizer = torch.optim.AdamW([weight], lr=rate, betas=(0.0, 0.5), eps=0.0, weight_decay=decay)
            for _ in range(round(time / rate)):
                weight.grad = torch.ones_like(weight)
                optimizer.step()
            predicted = (1 + 1 / decay) * math.exp(float(root.subs(form.rate, rate)) * time) - 1 / decay
            errors.append(abs(float(weight.detach()) - predicted))
        assert abs(fit_order(rates, errors).slope - terms) < 0.1
