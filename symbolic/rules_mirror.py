"""Mirror descent as a learning rule: a step of gradient descent in the dual coordinates z = φ'(θ) of a separable potential.

    h = g + λ θ,     φ'(θ') = φ'(θ) - η h,     u = (θ - θ')/η

The step is solved for θ' by SymPy from the potential; entropy gives exponentiated gradients, θ' = θ exp(-η h), for positive parameters;
hypentropy, φ' = arsinh(θ/β), a step for parameters of either sign that is between gradient descent (large β) and exponentiated gradients.

Source: nemirovski1983problem for mirror descent, kivinen1997exponentiated for exponentiated gradients, ghai2020exponentiated for
hypentropy; the laws are derived (`mirror_balance`).
"""

from __future__ import annotations

from functools import lru_cache

import sympy as sp

from noetherflow.symbolic.forms import GRADIENT, STEP, THETA, Form, Group, Number, Rule
from noetherflow.symbolic.metrics import ARGUMENT, ENTROPY
from noetherflow.symbolic.mirror_steps import RATE, SLOPE, euler_step, mirror_step
from noetherflow.symbolic.pairings import Vector

H = Vector("h")
DECAY = sp.Symbol("lambda", real=True)


def hypentropy(width: Number = sp.Symbol("beta", positive=True)) -> sp.Expr:  # noqa: B008  # a symbol is immutable
    """φ = x arsinh(x/β) - √(x² + β²).

    Examples
    --------
    >>> sp.simplify(sp.diff(hypentropy(2), ARGUMENT))
    asinh(x/2)
    """
    return ARGUMENT * sp.asinh(ARGUMENT / width) - sp.sqrt(ARGUMENT**2 + sp.sympify(width) ** 2)


@lru_cache(maxsize=32)
def mirror_form(potential: sp.Expr, *, plain: bool = False) -> Form:
    """The equations of mirror descent; with `plain`, of the Euler step of the same flow, θ' = θ - η h/φ''(θ).

    Raises
    ------
    RuleError
        If SymPy finds no single step for the potential.

    Examples
    --------
    >>> dict(mirror_form(ENTROPY).equations)[STEP]
    (theta - theta*exp(-eta*h))/eta
    """
    after = euler_step(potential) if plain else mirror_step(potential)
    step = (THETA - after.xreplace({ARGUMENT: THETA, SLOPE: H})) / RATE
    return Form(
        name="mirror descent" + (" by plain steps" if plain else ""),
        equations=((H, GRADIENT + DECAY * THETA), (STEP, step)),
        buffers=(),
        rate=RATE,
        hyperparameters=(("lr", RATE), ("weight_decay", DECAY)),
        mechanisms=((DECAY, "weight_decay"),),
        potential=potential,
    )


def MirrorDescent(
    potential: sp.Expr = ENTROPY,
    lr: Number = RATE,
    weight_decay: Number = 0,
    *,
    plain: bool = False,
    members: frozenset[int] | None = None,
) -> Rule:
    """Mirror descent with a separable potential; a decay is coupled.

    Parameters
    ----------
    potential : sympy.Expr
        Convex, in `noetherflow.symbolic.metrics.ARGUMENT`; entropy by default (positive parameters).
    lr, weight_decay : number or symbol
    plain : bool
        The Euler step θ' = θ - η h/φ''(θ) instead of the exact one; for entropy the multiplicative step θ (1 - η h).

    Raises
    ------
    RuleError
        If SymPy finds no single step for the potential.

    Examples
    --------
    >>> MirrorDescent(lr=0.1).groups[0].form.name
    'mirror descent'
    """
    form = mirror_form(sp.sympify(potential), plain=plain)
    return Rule((Group(form, {"lr": lr, "weight_decay": weight_decay}, members),))
