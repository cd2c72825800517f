"""Weights under a rule with decoupled decay in continuous time: the published equation of motion, derived from the update equation.

At times t_n = n η^p the update θ' - θ = -η (λ θ + d) says of a smooth θ(t), by Taylor's theorem,

    λ θ + Σ_k η^(pk - 1)/k! d^kθ/dt^k = -d ;

with two terms it is that of gould2024continuous, λθ + η^(p-1) θ' + ½ η^(2p-1) θ'' = -u. Its slow root agrees with that of the update to
one power of η more than the equation without inertia; the other root, near -2/η, is an artefact of the truncation, and a motion must start
without it.

Source: gould2024continuous for two terms; own for any number, the roots, and the error that each has.
"""

from __future__ import annotations

import sympy as sp

from noetherflow.errors import RuleError
from noetherflow.symbolic.flows import TIME
from noetherflow.symbolic.forms import STEP, THETA, Form
from noetherflow.symbolic.pairings import parts

POWER = sp.Symbol("p", positive=True)
RATE_OF_DECAY = sp.Symbol("r", real=True)
WEIGHT, UPDATE = sp.Function("theta")(TIME), sp.Function("u")(TIME)


def weight_equation(form: Form, terms: int = 2, power: sp.Expr = POWER) -> sp.Eq:
    """The equation of motion of the weights, truncated after so many derivatives.

    Parameters
    ----------
    form : Form
        Whose step is λ θ + d, d one vector: that is u(t).
    terms : int
    power : sympy.Expr
        p of t = n η^p.

    Raises
    ------
    RuleError
        If the step is not so.

    Examples
    --------
    >>> from noetherflow.symbolic.rules_adaptive import adam_form
    >>> weight_equation(adam_form(decoupled=True), power=sp.S.One).lhs
    eta*Derivative(theta(t), (t, 2))/2 + lambda*theta(t) + Derivative(theta(t), t)
    """
    rate, decay = form.rate, _decay(form)
    moved = sp.Add(*(rate ** (power * k) / sp.factorial(k) * WEIGHT.diff(TIME, k) for k in range(1, terms + 1)))
    left = sp.Add(*(sp.powsimp(sp.expand(term / rate)) for term in moved.args or (moved,))) if terms > 1 else sp.powsimp(moved / rate)
    return sp.Eq(decay * WEIGHT + left, -UPDATE, evaluate=False)


def slow_root(form: Form, terms: int) -> sp.Expr:
    """The rate r of a motion e^(rt) of the truncated equation with u = 0, at p = 1, that is -λ as η → 0.

    Examples
    --------
    >>> from noetherflow.symbolic.rules_adaptive import adam_form
    >>> slow_root(adam_form(decoupled=True), 1)
    -lambda
    """
    equation = weight_equation(form, terms, sp.S.One)
    characteristic = equation.lhs.subs(WEIGHT, sp.exp(RATE_OF_DECAY * TIME)).doit() * sp.exp(-RATE_OF_DECAY * TIME)
    roots = sp.solve(sp.expand(sp.simplify(characteristic)), RATE_OF_DECAY)
    (slow,) = [root for root in roots if sp.simplify(sp.limit(root, form.rate, 0, "+") + _decay(form)) == 0]
    return slow


def exact_root(form: Form) -> sp.Expr:
    """The same of the update itself: θ' = (1 - ηλ) θ decays as e^(rt) with r = ln(1 - ηλ)/η."""
    return sp.log(1 - form.rate * _decay(form)) / form.rate


def _decay(form: Form) -> sp.Expr:
    combination = parts(dict(form.equations)[STEP])
    decay = combination.pop(THETA, None)
    if decay is None or list(combination.values()) != [1]:
        raise RuleError(
            f"The step of {form.name} is {dict(form.equations)[STEP]}, not λ θ + d: its decay is not decoupled.",
            form=form.name,
        )
    return decay
