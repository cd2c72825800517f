"""Rules beyond gradient descent whose direction is not divided by a size: signs, orthogonal factors, the Fisher matrix, and other momenta.

    signSGD    u = sign(h)                       Signum with momentum: u = sign(m')
    Lion       u = sign(β1 m + (1 - β1) g) + λ θ,  m' = β2 m + (1 - β2) g
    Muon       u = orth(c) + λ θ,                  c = m' or (1 - μ) g + μ m'    (torch.optim.Muon; orth holds its factor of the step size)
    SGDW       b' = μ b + g,  u = b' + λ θ
    Nesterov   y = θ + μ b,  g = ∇f(y),  b' = μ b - η g,  θ' = θ + b'            (torch's convention names y what is θ here)
    natural    (F + ε) u = g, F = E[∇ℓ ∇ℓᵀ]:  u = (g - F u)/ε

In the last, F u = E[∇ℓ ⟨∇ℓ, u⟩] is a combination of gradients of samples, each of them invariant: no generator has a component along it.

Source: bernstein2018signsgd, chen2023symbolic, jordan2024muon, loshchilov2019decoupled, sutskever2013importance, amari1998natural.
"""

from __future__ import annotations

import sympy as sp

from noetherflow.errors import RuleError
from noetherflow.symbolic.forms import GRADIENT, STEP, THETA, Form, Group, Number, Rule
from noetherflow.symbolic.nonlinear import Orthogonal, Sign
from noetherflow.symbolic.pairings import Vector

ETA, DECAY, MU, BETA1, BETA2 = sp.symbols("eta lambda mu beta1 beta2", real=True)
DAMPING = sp.Symbol("epsilon", positive=True)
H, C, D = Vector("h"), Vector("c"), Vector("d")
M, M_AFTER = Vector("m"), Vector("m'")
B, B_AFTER = Vector("b"), Vector("b'")
FISHER = Vector("Fu", "F u")

Members = frozenset[int] | None
BOOKED = ((DECAY, "weight_decay"), (MU, "momentum"), (BETA1, "momentum"), (BETA2, "momentum"))


def sign_form(*, momentum: bool = False, maximize: bool = False) -> Form:
    """Signs of gradients with coupled decay; with momentum the sign is that of the running average."""
    h = (H, (-GRADIENT if maximize else GRADIENT) + DECAY * THETA)
    average = ((M_AFTER, MU * M + (1 - MU) * H),) if momentum else ()
    equations = (h, *average, (D, Sign(M_AFTER if momentum else H)), (STEP, sp.sympify(D)))
    known = {"lr": ETA, "weight_decay": DECAY} | ({"momentum": MU} if momentum else {})
    buffers = ((M, M_AFTER),) if momentum else ()
    return Form("Signum" if momentum else "signSGD", equations, buffers, ETA, tuple(known.items()), BOOKED)


def lion_form() -> Form:
    """Lion: the sign is of another average than the one that is kept."""
    equations = (
        (C, BETA1 * M + (1 - BETA1) * GRADIENT),
        (D, Sign(C)),
        (M_AFTER, BETA2 * M + (1 - BETA2) * GRADIENT),
        (STEP, D + DECAY * THETA),
    )
    known = {"lr": ETA, "weight_decay": DECAY, "beta1": BETA1, "beta2": BETA2}
    return Form("Lion", equations, ((M, M_AFTER),), ETA, tuple(known.items()), BOOKED)


def muon_form(*, nesterov: bool = True) -> Form:
    """Muon as torch.optim.Muon does it: a running average, its orthogonal factor, decoupled decay."""
    equations = (
        (M_AFTER, MU * M + (1 - MU) * GRADIENT),
        (C, (1 - MU) * GRADIENT + MU * M_AFTER if nesterov else sp.sympify(M_AFTER)),
        (D, Orthogonal(C)),
        (STEP, D + DECAY * THETA),
    )
    known = {"lr": ETA, "weight_decay": DECAY, "momentum": MU}
    return Form("Muon" + (" with Nesterov momentum" if nesterov else ""), equations, ((M, M_AFTER),), ETA, tuple(known.items()), BOOKED)


def sgdw_form(*, momentum: bool = True, nesterov: bool = False) -> Form:
    """SGD with decoupled decay."""
    gathered = GRADIENT + MU * B_AFTER if nesterov else sp.sympify(B_AFTER if momentum else GRADIENT)
    equations = (*(((B_AFTER, MU * B + GRADIENT),) if momentum else ()), (STEP, gathered + DECAY * THETA))
    known = {"lr": ETA, "weight_decay": DECAY} | ({"momentum": MU} if momentum else {})
    return Form("SGDW", equations, ((B, B_AFTER),) if momentum else (), ETA, tuple(known.items()), BOOKED)


def lookahead_form() -> Form:
    """Nesterov's momentum with the gradient taken where the momentum alone would lead; the step size is inside the buffer."""
    equations = ((H, GRADIENT + DECAY * THETA + DECAY * MU * B), (B_AFTER, MU * B - ETA * H), (STEP, -B_AFTER / ETA))
    known = {"lr": ETA, "weight_decay": DECAY, "momentum": MU}
    name = "SGD with Nesterov momentum, gradient ahead"
    return Form(name, equations, ((B, B_AFTER),), ETA, tuple(known.items()), BOOKED, point=THETA + MU * B)


def natural_form(*, decoupled: bool = False) -> Form:
    """Natural gradient, damped by ε: (F + ε) u = g (+ ε λ θ decoupled)."""
    direction = (GRADIENT - FISHER) / DAMPING
    equations = ((STEP, direction + DECAY * THETA if decoupled else direction),)
    known = {"lr": ETA, "damping": DAMPING} | ({"weight_decay": DECAY} if decoupled else {})
    return Form("natural gradient", equations, (), ETA, tuple(known.items()), BOOKED, invariant=(FISHER,))


def _rule(form: Form, values: dict[str, Number], members: Members) -> Rule:
    return Rule((Group(form, {name: values[name] for name, _ in form.hyperparameters}, members),))


def SignSGD(lr: Number = ETA, momentum: Number = 0, weight_decay: Number = 0, *, maximize: bool = False, members: Members = None) -> Rule:
    """Sign descent, or Signum with momentum."""
    form = sign_form(momentum=momentum != 0, maximize=maximize)
    return _rule(form, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}, members)


def Lion(lr: Number = ETA, betas: tuple[Number, Number] = (BETA1, BETA2), weight_decay: Number = 0, *, members: Members = None) -> Rule:
    """Lion.

    Examples
    --------
    >>> Lion(lr=0.001).groups[0].form.step()
    lambda*theta + Sign(-beta1*g + beta1*m + g)
    """
    return _rule(lion_form(), {"lr": lr, "beta1": betas[0], "beta2": betas[1], "weight_decay": weight_decay}, members)


def Muon(lr: Number = ETA, momentum: Number = MU, weight_decay: Number = DECAY, *, nesterov: bool = True, members: Members = None) -> Rule:
    """Muon."""
    return _rule(muon_form(nesterov=nesterov), {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}, members)


def SGDW(lr: Number = ETA, momentum: Number = 0, weight_decay: Number = DECAY, *, nesterov: bool = False, members: Members = None) -> Rule:
    """SGD with decoupled decay.

    Raises
    ------
    RuleError
        For Nesterov momentum without momentum.
    """
    if nesterov and momentum == 0:
        raise RuleError("Nesterov momentum needs momentum > 0.", momentum=momentum)
    form = sgdw_form(momentum=momentum != 0, nesterov=nesterov)
    return _rule(form, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}, members)


def NesterovLookahead(lr: Number = ETA, momentum: Number = MU, weight_decay: Number = 0, *, members: Members = None) -> Rule:
    """Nesterov's momentum with the gradient (and the decay) taken at θ + μ b."""
    return _rule(lookahead_form(), {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}, members)


def NaturalGradient(lr: Number = ETA, damping: Number = DAMPING, weight_decay: Number = 0, *, members: Members = None) -> Rule:
    """Natural gradient with damping (Gauss-Newton and Levenberg-Marquardt likewise); a decay is decoupled."""
    form = natural_form(decoupled=weight_decay != 0)
    return _rule(form, {"lr": lr, "damping": damping, "weight_decay": weight_decay}, members)
