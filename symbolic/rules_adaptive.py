"""Rules that divide by a running size of the gradient: Adam, AdamW, AMSGrad, NAdam, RMSprop, Adagrad, Adadelta, as torch.optim does them.

Decay λ is coupled (h = g + λ θ) or decoupled (θ' = (1 - η λ) θ - η d, so u = d + λ θ). ε stands outside of the root but in Adadelta.
Corrections of the running averages' start, 1 - β^t and their like, are hyper-parameters: numbers that change from step to step.

Source: kingma2015adam, loshchilov2019decoupled, reddi2018convergence, dozat2016incorporating, tieleman2012rmsprop, duchi2011adaptive,
zeiler2012adadelta; the order of operations is torch's.
"""

from __future__ import annotations

import sympy as sp

from noetherflow.symbolic.forms import GRADIENT, STEP, THETA, Form, Group, Number, Rule
from noetherflow.symbolic.nonlinear import Larger
from noetherflow.symbolic.pairings import Vector

ETA, DECAY, EPS = sp.symbols("eta lambda epsilon", real=True)
BETA1, BETA2, ALPHA, RHO, MU = sp.symbols("beta1 beta2 alpha rho mu", real=True)
C1, C2 = sp.symbols("c1 c2", positive=True)
H, D = Vector("h"), Vector("d")
M, M_AFTER = Vector("m"), Vector("m'")
V, V_AFTER = Vector("v"), Vector("v'")
W, W_AFTER = Vector("w", r"\hat v"), Vector("w'", r"\hat v'")
A, A_AFTER = Vector("a"), Vector("a'")
B, B_AFTER = Vector("b"), Vector("b'")

Members = frozenset[int] | None
Equations = tuple[tuple[Vector, sp.Expr], ...]


def _gradient(*, maximize: bool, coupled: bool) -> tuple[Vector, sp.Expr]:
    return H, (-GRADIENT if maximize else GRADIENT) + (DECAY * THETA if coupled else 0)


def _step(direction: Vector, *, decoupled: bool) -> tuple[Vector, sp.Expr]:
    return STEP, direction + (DECAY * THETA if decoupled else 0)


def adam_form(*, decoupled: bool = False, amsgrad: bool = False, maximize: bool = False) -> Form:
    """Adam; AdamW with `decoupled`. ε is added to the root of the corrected average."""
    size = W_AFTER if amsgrad else V_AFTER
    equations: Equations = (
        _gradient(maximize=maximize, coupled=not decoupled),
        (M_AFTER, BETA1 * M + (1 - BETA1) * H),
        (V_AFTER, BETA2 * V + (1 - BETA2) * H**2),
        *(((W_AFTER, Larger(W, V_AFTER)),) if amsgrad else ()),
        (D, M_AFTER / C1 / (sp.sqrt(size) / sp.sqrt(C2) + EPS)),
        _step(D, decoupled=decoupled),
    )
    known = {"lr": ETA, "weight_decay": DECAY, "beta1": BETA1, "beta2": BETA2, "eps": EPS, "correction1": C1, "correction2": C2}
    return Form(
        ("AdamW" if decoupled else "Adam") + (" with AMSGrad" if amsgrad else ""),
        equations,
        ((M, M_AFTER), (V, V_AFTER), *(((W, W_AFTER),) if amsgrad else ())),
        ETA,
        tuple(known.items()),
        ((DECAY, "weight_decay"), (BETA1, "momentum")),
    )


def nadam_form(*, decoupled: bool = False, maximize: bool = False) -> Form:
    """NAdam: a h + b m' in place of m' / c1, with a = (1 - μ_t)/(1 - Πμ) and b = μ_{t+1}/(1 - Πμ μ_{t+1})."""
    a, b = sp.symbols("a_t b_t", real=True)
    equations: Equations = (
        _gradient(maximize=maximize, coupled=not decoupled),
        (M_AFTER, BETA1 * M + (1 - BETA1) * H),
        (V_AFTER, BETA2 * V + (1 - BETA2) * H**2),
        (D, (a * H + b * M_AFTER) / (sp.sqrt(V_AFTER / C2) + EPS)),
        _step(D, decoupled=decoupled),
    )
    known = {"lr": ETA, "weight_decay": DECAY, "beta1": BETA1, "beta2": BETA2, "eps": EPS, "correction2": C2}
    known |= {"gradient_weight": a, "momentum_weight": b}
    buffers = ((M, M_AFTER), (V, V_AFTER))
    return Form("NAdam", equations, buffers, ETA, tuple(known.items()), ((DECAY, "weight_decay"), (BETA1, "momentum")))


def rmsprop_form(*, centered: bool = False, momentum: bool = False, maximize: bool = False) -> Form:
    """RMSprop: divided by the root of v', or of v' - m'² (centred); momentum gathers what is divided already."""
    size = V_AFTER - M_AFTER**2 if centered else V_AFTER
    equations: Equations = (
        _gradient(maximize=maximize, coupled=True),
        (V_AFTER, ALPHA * V + (1 - ALPHA) * H**2),
        *(((M_AFTER, ALPHA * M + (1 - ALPHA) * H),) if centered else ()),
        (D, H / (sp.sqrt(size) + EPS)),
        *(((B_AFTER, MU * B + D),) if momentum else ()),
        (STEP, B_AFTER if momentum else D),
    )
    known = {"lr": ETA, "weight_decay": DECAY, "alpha": ALPHA, "eps": EPS} | ({"momentum": MU} if momentum else {})
    return Form(
        "RMSprop" + (", centred" if centered else "") + (" with momentum" if momentum else ""),
        equations,
        ((V, V_AFTER), *(((M, M_AFTER),) if centered else ()), *(((B, B_AFTER),) if momentum else ())),
        ETA,
        tuple(known.items()),
        ((DECAY, "weight_decay"), (MU, "momentum")),
    )


def adagrad_form(*, maximize: bool = False) -> Form:
    """Adagrad; its own decay of the step size is part of the number η."""
    equations: Equations = (
        _gradient(maximize=maximize, coupled=True),
        (V_AFTER, V + H**2),
        (D, H / (sp.sqrt(V_AFTER) + EPS)),
        (STEP, sp.sympify(D)),
    )
    known = {"lr": ETA, "weight_decay": DECAY, "eps": EPS}
    return Form("Adagrad", equations, ((V, V_AFTER),), ETA, tuple(known.items()), ((DECAY, "weight_decay"),))


def adadelta_form(*, maximize: bool = False) -> Form:
    """Adadelta: √(a + ε) / √(v' + ε) times the gradient, with running averages v of h² and a of the steps' d²."""
    equations: Equations = (
        _gradient(maximize=maximize, coupled=True),
        (V_AFTER, RHO * V + (1 - RHO) * H**2),
        (D, H * sp.sqrt(A + EPS) / sp.sqrt(V_AFTER + EPS)),
        (A_AFTER, RHO * A + (1 - RHO) * D**2),
        (STEP, sp.sympify(D)),
    )
    known = {"lr": ETA, "weight_decay": DECAY, "rho": RHO, "eps": EPS}
    return Form("Adadelta", equations, ((V, V_AFTER), (A, A_AFTER)), ETA, tuple(known.items()), ((DECAY, "weight_decay"),))


def _rule(form: Form, values: dict[str, Number], members: Members) -> Rule:
    return Rule((Group(form, {name: values.get(name, symbol) for name, symbol in form.hyperparameters}, members),))


def Adam(
    lr: Number = ETA,
    betas: tuple[Number, Number] = (BETA1, BETA2),
    eps: Number = EPS,
    weight_decay: Number = 0,
    *,
    amsgrad: bool = False,
    maximize: bool = False,
    decoupled: bool = False,
    members: Members = None,
) -> Rule:
    """Adam with coupled decay; values may be numbers or SymPy symbols, corrections of the start stay symbols c1, c2.

    Examples
    --------
    >>> Adam(lr=0.001).groups[0].form.buffers
    ((m, m'), (v, v'))
    """
    form = adam_form(decoupled=decoupled, amsgrad=amsgrad, maximize=maximize)
    return _rule(form, {"lr": lr, "beta1": betas[0], "beta2": betas[1], "eps": eps, "weight_decay": weight_decay}, members)


def AdamW(
    lr: Number = ETA,
    betas: tuple[Number, Number] = (BETA1, BETA2),
    eps: Number = EPS,
    weight_decay: Number = DECAY,
    *,
    amsgrad: bool = False,
    maximize: bool = False,
    members: Members = None,
) -> Rule:
    """Adam with decoupled decay."""
    return Adam(lr, betas, eps, weight_decay, amsgrad=amsgrad, maximize=maximize, decoupled=True, members=members)


def AMSGrad(
    lr: Number = ETA,
    betas: tuple[Number, Number] = (BETA1, BETA2),
    eps: Number = EPS,
    weight_decay: Number = 0,
    *,
    members: Members = None,
) -> Rule:
    """Adam that divides by the largest average so far."""
    return Adam(lr, betas, eps, weight_decay, amsgrad=True, members=members)


def NAdam(
    lr: Number = ETA,
    betas: tuple[Number, Number] = (BETA1, BETA2),
    eps: Number = EPS,
    weight_decay: Number = 0,
    *,
    decoupled: bool = False,
    maximize: bool = False,
    members: Members = None,
) -> Rule:
    """Adam with Nesterov momentum; the weights a_t and b_t, which torch makes of its schedule of momenta, stay symbols."""
    form = nadam_form(decoupled=decoupled, maximize=maximize)
    return _rule(form, {"lr": lr, "beta1": betas[0], "beta2": betas[1], "eps": eps, "weight_decay": weight_decay}, members)


def RMSprop(
    lr: Number = ETA,
    alpha: Number = ALPHA,
    eps: Number = EPS,
    weight_decay: Number = 0,
    momentum: Number = 0,
    *,
    centered: bool = False,
    maximize: bool = False,
    members: Members = None,
) -> Rule:
    """RMSprop with all its options."""
    form = rmsprop_form(centered=centered, momentum=momentum != 0, maximize=maximize)
    return _rule(form, {"lr": lr, "alpha": alpha, "eps": eps, "weight_decay": weight_decay, "momentum": momentum}, members)


def Adagrad(lr: Number = ETA, weight_decay: Number = 0, eps: Number = EPS, *, maximize: bool = False, members: Members = None) -> Rule:
    """Adagrad."""
    return _rule(adagrad_form(maximize=maximize), {"lr": lr, "weight_decay": weight_decay, "eps": eps}, members)


def Adadelta(
    lr: Number = ETA, rho: Number = RHO, eps: Number = EPS, weight_decay: Number = 0, *, maximize: bool = False, members: Members = None
) -> Rule:
    """Adadelta."""
    return _rule(adadelta_form(maximize=maximize), {"lr": lr, "rho": rho, "eps": eps, "weight_decay": weight_decay}, members)
