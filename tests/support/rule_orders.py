"""Orders: how fast what a law leaves out in continuous time falls with the step size, for every rule and family.

At fixed time t = η · steps the flow of a charge, `law.flow` with the sources measured along the run, misses by O(η). Where a rule has no
flow to tend to at fixed time (Adagrad's sum of squares grows with the number of steps, a centred variance vanishes as gradients become
steady), the number of steps is fixed instead: the order is one higher, but with momentum, which does not come to rest in so few steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import sympy as sp
import torch
from support.law_runs import Charge
from support.reference_rules import SGDW, Lion, NesterovAhead, SignSGD, Signum, Torch
from support.rule_cases import alone
from support.rule_siblings import evaluate, hyper, sources, summed
from support.rule_table import CASES, Case, Run, charges, from_rest
from torch import optim

from noetherflow.numeric.order import Order, fit_order
from noetherflow.symbolic.balance import CHARGE, Balance
from noetherflow.symbolic.flows import counted
from noetherflow.symbolic.metric_laws import MetricLaw
from noetherflow.symbolic.mirror_balance import MirrorBalance
from noetherflow.symbolic.mirror_steps import RATE
from noetherflow.symbolic.rules_directed import lion_form, lookahead_form, sgdw_form, sign_form

OCTAVES: Final = 4
FIRST: Final = 24
SLOW: Final = 40


@dataclass(frozen=True)
class Setting:
    """How a rule's order is measured: its run, the time, the number of steps at first, or (`steps`) the number that is fixed instead."""

    case: Case
    time: float
    steps: int = 0
    first: int = FIRST


def _quick(kind: type[torch.optim.Optimizer], **options: object) -> Case:
    return Case(lambda: Torch({}, make=alone(kind, lr=1e-3, weight_decay=0.5, **options)))


QUICK: Final = {"lr": 0.0, "weight_decay": 0.5, "momentum": 0.5, "beta1": 0.5, "beta2": 0.5}
SETTINGS: Final[dict[str, Setting]] = {
    **{name: Setting(case, 0.2) for name, case in CASES.items() if name.startswith("mirror")},
    "SGD": Setting(_quick(optim.SGD), 0.2),
    "SGD, ascending": Setting(_quick(optim.SGD, maximize=True), 0.2),
    "SGD, momentum": Setting(_quick(optim.SGD, momentum=0.5), 0.4, first=SLOW),
    "SGD, dampened": Setting(_quick(optim.SGD, momentum=0.5, dampening=0.3), 0.4, first=SLOW),
    "SGD, Nesterov": Setting(_quick(optim.SGD, momentum=0.5, nesterov=True), 0.4, first=SLOW),
    "SGDW": Setting(Case(lambda: SGDW(QUICK), sgdw_form()), 0.4, first=SLOW),
    "Nesterov, gradient ahead": Setting(Case(lambda: NesterovAhead(QUICK), lookahead_form()), 0.4, first=SLOW),
    "Adam": Setting(_quick(optim.Adam, betas=(0.5, 0.5), eps=1e-3), 0.02),
    "AdamW": Setting(_quick(optim.AdamW, betas=(0.5, 0.5), eps=1e-3), 0.02),
    "AMSGrad": Setting(_quick(optim.AdamW, betas=(0.5, 0.5), eps=1e-3, amsgrad=True), 0.02),
    "NAdam": Setting(_quick(optim.NAdam, betas=(0.5, 0.5), eps=1e-3), 0.02),
    "RMSprop": Setting(_quick(optim.RMSprop, alpha=0.5, eps=1e-3), 0.02),
    "RMSprop, centred, momentum": Setting(_quick(optim.RMSprop, alpha=0.5, centered=True, momentum=0.5), 1e-4, 6),
    "Adagrad": Setting(_quick(optim.Adagrad), 0.02, 6),
    "Adadelta": Setting(_quick(optim.Adadelta, rho=0.5, eps=0.1), 0.2),
    "Lion": Setting(Case(lambda: Lion(QUICK), lion_form()), 0.02),
    "signSGD": Setting(Case(lambda: SignSGD(QUICK), sign_form()), 0.02),
    "Signum": Setting(Case(lambda: Signum(QUICK), sign_form(momentum=True)), 0.02),
    "Muon": Setting(_quick(optim.Muon, momentum=0.5), 0.02),
    "natural gradient": Setting(CASES["natural gradient"], 0.02),
}


def derived(law: Balance | MirrorBalance) -> int:
    """The order that the law itself gives: the lowest power of η that its flow leaves out, less the one that the number of steps takes."""
    if isinstance(law, MirrorBalance):
        left = (n for n in range(1, 6) if sp.simplify(sp.diff(law.remainder, RATE, n).subs(RATE, 0)) != 0)
        return next(left, 2) - 1
    left_out = counted(law, law.charge_terms.get("discretization", sp.S.Zero))
    rate = law.forms[0].rate
    return min((int(sp.degree(t, rate)) for t in sp.Add.make_args(sp.expand(left_out)) if t != 0), default=2) - 1


def misses(run: Run, law: object, c: Charge) -> float:
    """Measured charge minus that of the flow at the end of a run, the flow's sources taken as constant over a step."""
    if isinstance(law, MetricLaw):
        return _mirror_miss(run, law, c)
    rhs = law.flow.rhs.replace(lambda e: isinstance(e, sp.core.function.AppliedUndef), lambda e: CHARGE)  # type: ignore[attr-defined]
    slope, rate = sp.diff(rhs, CHARGE), run.steps[0].numbers["lr"]
    q = c.value(run.steps[0].theta)
    for step in run.steps:
        known = hyper(run, step) | sources(law.balance, c, step)  # type: ignore[attr-defined]
        at_zero, loss = evaluate([rhs.subs(CHARGE, 0), slope], c, step, known, {})
        kept = float(sp.exp(loss * rate))
        q = kept * q + (at_zero * rate if loss == 0 else at_zero * (kept - 1) / loss)
    return c.value(run.steps[-1].after) - q


def _mirror_miss(run: Run, law: MetricLaw, c: Charge) -> float:
    """What the flow leaves out is the sum of the remainders: ∫ of the flow itself is known as far as it is measured."""
    rest = sp.lambdify([sp.Symbol("x", positive=True), sp.Symbol("g", real=True), RATE], law.balance.remainder, "numpy")  # type: ignore[union-attr]
    total = 0.0
    for step in run.steps:
        h, rate = step.vectors["h"], step.numbers["lr"]
        total += summed(c, law.balance, step.theta, lambda x, n, h=h, rate=rate: rest(x, h[n].numpy(), rate) + 0 * x)
    return total


def orders(name: str) -> dict[str, tuple[int, Order | None]]:
    """Family -> (derived order, measured slope; None where nothing is left out), over four octaves of the step size.

    The error is that of three generators together: one alone may cross its prediction.
    """
    setting = SETTINGS[name]
    rates = [setting.time / (setting.first * 2**i) for i in range(OCTAVES)]
    runs = [from_rest(setting.case, setting.steps or setting.first * 2**i, rate) for i, rate in enumerate(rates)]
    out: dict[str, tuple[int, Order | None]] = {}
    for law in runs[0].laws:
        generators = getattr(law.outcome, "generators", "all") if isinstance(law, MetricLaw) else "symmetric"
        drawn = charges(law.symmetry, generators, 3)
        errors = [math.hypot(*(misses(run, law, c) for c in drawn)) for run in runs]
        nothing = max(errors) <= 1e-13 * max(c.size(runs[0].steps[0].theta) for c in drawn)
        order = derived(law.balance) + (bool(setting.steps) and not getattr(law.balance, "momenta", ()))
        out[law.symmetry.kind] = (order, None if nothing else fit_order(rates, errors))
    return out
