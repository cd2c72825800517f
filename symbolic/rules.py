"""Learning rules as data: what `noetherflow.rules` offers.

A rule is a list of update equations in state vectors (`noetherflow.symbolic.forms`); nothing in the derivation knows which rule it is. To
add one, write its equations (`Form`), say which hyper-parameter is which mechanism, and give the numbers a constructor.
"""

from __future__ import annotations

from typing import Any

import sympy as sp

from noetherflow.errors import RuleError
from noetherflow.symbolic.forms import GRADIENT, STEP, THETA, Form, Group, Number, Rule
from noetherflow.symbolic.pairings import Vector
from noetherflow.symbolic.rules_adaptive import Adadelta, Adagrad, Adam, AdamW, AMSGrad, NAdam, RMSprop
from noetherflow.symbolic.rules_directed import SGDW, Lion, Muon, NaturalGradient, NesterovLookahead, SignSGD
from noetherflow.symbolic.rules_mirror import MirrorDescent, hypentropy

__all__ = [
    "GRADIENT",
    "SGD",
    "SGDW",
    "STEP",
    "THETA",
    "AMSGrad",
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "Form",
    "Group",
    "Lion",
    "MirrorDescent",
    "Muon",
    "NAdam",
    "NaturalGradient",
    "NesterovLookahead",
    "Number",
    "RMSprop",
    "Rule",
    "SignSGD",
    "hypentropy",
    "sgd_form",
]

# --- SGD as torch.optim.SGD does it:  h = ±g + λθ;  b' = μb + (1 - τ)h, and b' = h on the step that makes the buffer (τ = 0 there);
# u = h + μb' (Nesterov), b' (momentum), h (neither).


def sgd_form(*, momentum: bool, nesterov: bool, maximize: bool) -> Form:
    """The equations of torch.optim.SGD for a choice of options."""
    eta, decay, mu, tau = sp.symbols("eta lambda mu tau", real=True)
    h, before, after = Vector("h"), Vector("b"), Vector("b'")
    gradient = -GRADIENT if maximize else GRADIENT
    equations: list[tuple[Vector, sp.Expr]] = [(h, gradient + decay * THETA)]
    if momentum:
        equations.append((after, mu * before + (1 - tau) * h))
    equations.append((STEP, h + mu * after if nesterov else after if momentum else h))
    known = {"lr": eta, "weight_decay": decay} | ({"momentum": mu, "dampening": tau} if momentum else {})
    return Form(
        name="SGD" + (" with Nesterov momentum" if nesterov else " with momentum" if momentum else ""),
        equations=tuple(equations),
        buffers=((before, after),) if momentum else (),
        rate=eta,
        hyperparameters=tuple(known.items()),
        mechanisms=((decay, "weight_decay"), (mu, "momentum"), (tau, "momentum")),
    )


def SGD(
    lr: Number = sp.Symbol("eta", positive=True),  # noqa: B008  # a symbol is immutable
    momentum: Number = 0,
    dampening: Number = 0,
    weight_decay: Number = 0,
    *,
    nesterov: bool = False,
    maximize: bool = False,
    members: frozenset[int] | None = None,
) -> Rule:
    """PyTorch's SGD with all its options; values may be numbers or SymPy symbols.

    Raises
    ------
    RuleError
        For Nesterov momentum without momentum or with dampening, as torch does.
    """
    if nesterov and (momentum == 0 or dampening != 0):
        raise RuleError(
            "Nesterov momentum needs momentum > 0 and dampening = 0, as in torch.optim.SGD.", momentum=momentum, dampening=dampening
        )
    form = sgd_form(momentum=momentum != 0, nesterov=nesterov, maximize=maximize)
    given: dict[str, Any] = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "dampening": dampening}
    return Rule((Group(form, {name: given[name] for name, _ in form.hyperparameters}, members),))
