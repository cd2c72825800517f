"""Laws of a run, whatever kind they are, as one number each: how far the law is from the run; and the wrong siblings of each.

A law's residual is the largest distance from the run over its steps, predictions carried from the start and fed with second-order pairings
and sources only, relative to the size of what is summed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import sympy as sp
import torch
from support.law_runs import Charge
from support.reference_rules import Params
from support.rule_table import FAMILIES, Run, Step, charges

from noetherflow.symbolic.angular import ANGULAR, MomentumBalance, Wedge
from noetherflow.symbolic.balance import CHARGE, CURRENT, Balance
from noetherflow.symbolic.kinetic_balance import GAIN
from noetherflow.symbolic.metric_balance import METRIC_CHARGE, METRIC_MOMENTUM, MetricBalance, MetricConstraint
from noetherflow.symbolic.metric_laws import MetricLaw
from noetherflow.symbolic.metrics import ARGUMENT
from noetherflow.symbolic.mirror_balance import REMAINDER, MirrorBalance
from noetherflow.symbolic.mirror_steps import SLOPE
from noetherflow.symbolic.pairings import Along, Inner

ROUNDING = 1e-12
Numbers = dict[sp.Expr, float]


@dataclass(frozen=True)
class Mistaken(Charge):
    """A generator that is no symmetry: the true one with a factor on one weight, or on one row where only one weight moves."""

    factor: float = 1.1

    def xi(self, at: Params) -> Params:
        true = super().xi(at)
        first = next(iter(true))
        factor = torch.ones(true[first].shape[0], dtype=torch.float64)
        factor[0 if len(true) == 1 else slice(None)] = self.factor
        return true | {first: true[first] * factor[:, None]}


@dataclass(frozen=True)
class Finding:
    """One law of one family beside a run: residual and motion, both relative to the size of the sums."""

    residual: float
    motion: float


def larger(worst: float, x: float) -> float:
    """The larger one; what is no number is larger than all."""
    return worst if x <= worst else x if x == x else math.inf


# --- what a law's symbols are in one step


def evaluate(expressions: list[sp.Expr], c: Charge, step: Step, known: Numbers, symbols: Numbers) -> list[float]:
    """Numbers of expressions in scalars and pairings of one step."""
    out = []
    for expression in expressions:
        pairs: Numbers = {}
        for pair in expression.atoms(Inner):
            pairs[pair] = c.inner(step.vectors[pair.args[0].name], step.vectors[pair.args[1].name])
        for pair in expression.atoms(Wedge):
            pairs[pair] = c.along(step.vectors[pair.args[0].name], step.vectors[pair.args[1].name])
        pairs |= {a: c.along(step.theta, step.theta) for a in expression.atoms(Along)}
        out.append(_value(expression, {**known, **symbols, **pairs}))
    return out


def _value(expression: sp.Expr, table: Mapping[sp.Expr, float]) -> float:
    arguments, function = _compiled(expression)
    return float(function(*(table[a] for a in arguments)))


@lru_cache(maxsize=4096)
def _compiled(expression: sp.Expr) -> tuple[tuple[sp.Expr, ...], Callable[..., Any]]:
    atoms = [*expression.atoms(Inner, Wedge, Along)]
    inside = {a: sp.Dummy() for a in atoms}
    plain = expression.xreplace(inside)
    free = sorted(plain.free_symbols - set(inside.values()), key=str)
    return (*free, *atoms), sp.lambdify([*free, *inside.values()], plain, "math")


def hyper(run: Run, step: Step) -> Numbers:
    return {symbol: step.numbers[name] for name, symbol in run.form.hyperparameters} | {CURRENT: 0.0}


def _sizes(c: Charge, at: Params, x: Params) -> float:
    return sum(float((v * x[n]).abs().sum()) for n, v in c.xi(at).items())


# --- one law beside a run


def euclidean(run: Run, c: Charge, law: Balance) -> Finding:
    first = run.steps[0]
    state: Numbers = {CHARGE: c.value(first.theta)}
    state |= {k: c.along(first.theta, first.vectors[f"buffer {law.buffer_of(k, 0).name}"]) for k in law.momenta}
    residual = motion = 0.0
    for step in run.steps:
        known = hyper(run, step) | sources(law, c, step)
        state = dict(zip((CHARGE, *law.momenta), evaluate([e.rhs for e in law.equations], c, step, known, state), strict=True))
        size = c.size(step.after)
        residual = larger(residual, abs(state[CHARGE] - c.value(step.after)) / size)
        motion = larger(motion, abs(c.value(step.after) - c.value(first.theta)) / size)
        for k in law.momenta:
            b = step.buffers[law.buffer_of(k, 0).name]
            residual = larger(residual, abs(state[k] - c.along(step.after, b)) / _sizes(c, step.after, b))
    return Finding(residual, motion)


def sources(law: Balance, c: Charge, step: Step) -> Numbers:
    out: Numbers = {}
    for source in law.breaking:
        d, followed = step.vectors[source.vector.name], step.vectors[f"followed by {source.vector.name}"]
        moved = c.xi(step.theta)
        gain = sum(float((d[n] * followed[n]).sum()) for n in moved) / sum(float((followed[n] ** 2).sum()) for n in moved)
        out |= {GAIN: gain, source.symbol: c.along(step.theta, d) - gain * c.along(step.theta, followed)}
    return out


def angular(run: Run, c: Charge, law: MomentumBalance) -> Finding:
    (buffer,) = law.buffers
    first = run.steps[0]
    residual = motion = 0.0
    start = carried = c.along(first.theta, first.vectors[f"buffer {buffer[0].name}"]) if buffer else 0.0
    for step in run.steps:
        (carried,) = evaluate([law.equations[0].rhs], c, step, hyper(run, step), {ANGULAR: carried})
        at, x = (step.after, step.buffers[buffer[0].name]) if buffer else (step.theta, step.vectors["Delta"])
        true, size = c.along(at, x), _sizes(c, at, x)
        residual, motion = larger(residual, abs(true - carried) / size), larger(motion, abs(true - start) / size)
    return Finding(residual, motion)


def held(run: Run, c: Charge, law: MetricBalance) -> Finding:
    first = run.steps[0]
    names = [METRIC_CHARGE, *([METRIC_MOMENTUM] if law.momentum is not None else []), *_momenta(law)]
    state: Numbers = {METRIC_CHARGE: c.value(first.theta, first.metric)}
    state |= {k: c.along(first.theta, first.vectors[f"buffer {_buffer(run, law, k)}"]) for k in _momenta(law)}
    if law.momentum is not None:
        state[METRIC_MOMENTUM] = c.along(first.theta, first.vectors["buffer b"], first.metric)
    before, start, drift, residual, motion = first.metric, state[METRIC_CHARGE], 0.0, 0.0, 0.0
    for step in run.steps:
        moved = c.value(step.theta, step.metric) - c.value(step.theta, before)
        state[METRIC_CHARGE], drift = state[METRIC_CHARGE] + moved, drift + moved
        if law.momentum is not None:
            b = step.vectors["buffer b"]
            state[METRIC_MOMENTUM] += c.along(step.theta, b, step.metric) - c.along(step.theta, b, before)
        weighted = {f"M {n}": {p: step.metric[p] * x for p, x in v.items()} for n, v in step.vectors.items() if step.metric}
        known = hyper(run, step) | {CHARGE: c.value(step.theta)}
        wanted = [law.charge, *([law.momentum] if law.momentum is not None else []), *(e.rhs for e in law.momenta)]
        state = dict(zip(names, evaluate(wanted, c, replace(step, vectors=step.vectors | weighted), known, state), strict=True))
        true, size, before = c.value(step.after, step.metric), c.size(step.after, step.metric), step.metric
        residual = larger(residual, abs(state[METRIC_CHARGE] - true) / size)
        motion = larger(motion, abs(true - start - drift) / size)
    return Finding(residual, motion)


def _momenta(law: MetricBalance) -> list[sp.Symbol]:
    return [sp.Symbol(str(e.lhs)[:-1], real=True) for e in law.momenta]


def _buffer(run: Run, law: MetricBalance, momentum: sp.Symbol) -> str:
    linear = [b.name for b, _ in run.form.buffers if b.name in ("m", "b")]
    return momentum.name.removeprefix("K_") if "_" in momentum.name else linear[0]


def constraint(run: Run, c: Charge, law: MetricConstraint) -> Finding:
    worst = size = 0.0
    for step in run.steps:
        k = {sp.Symbol("K", real=True): c.along(step.theta, step.vectors.get("buffer m", step.theta))}
        (predicted,) = evaluate([law.along], c, step, hyper(run, step), k)
        d = step.vectors[law.direction.name]
        true = c.along(step.theta, d, step.metric)
        size = sum(float((v * d[n] * (step.metric or {})[n]).abs().sum()) for n, v in c.xi(step.theta).items())
        worst = larger(worst, abs(true - predicted) / size)
    return Finding(worst, 0.0)


def mirror(run: Run, c: Charge, law: MirrorBalance) -> Finding:
    q, slope, rest = (sp.lambdify([ARGUMENT, SLOPE, law.form.rate], e, "numpy") for e in (law.density, law.density, law.remainder))
    residual = motion = 0.0
    carried = start = summed(c, law, run.steps[0].theta, lambda x, n: q(x, 0, 0))
    for step in run.steps:
        rate = step.numbers["lr"]
        h = step.vectors[law.followed.name]
        rest_now = {REMAINDER: summed(c, law, step.theta, lambda x, n, h=h, rate=rate: rest(x, h[n].numpy(), rate) + 0 * x)}
        table = hyper(run, step) | rest_now | {CHARGE: carried}
        (carried,) = evaluate([law.equations[0].rhs], c, step, table, {})
        after = step.after
        if law.kind == "constraint":
            true = summed(c, law, step.theta, lambda x, n, after=after: slope(after[n].numpy(), 0, 0) - slope(x, 0, 0))
            size = summed(c, law, step.theta, lambda x, n, after=after: slope(after[n].numpy(), 0, 0) - slope(x, 0, 0), absolute=True)
        else:
            true, size = (summed(c, law, after, lambda x, n: q(x, 0, 0), absolute=a) for a in (False, True))
            motion = larger(motion, abs(true - start) / size)
        residual = larger(residual, abs(carried - true) / size)
    return Finding(residual, motion)


def summed(c: Charge, law: MirrorBalance, at: Params, density: Callable[..., Any], *, absolute: bool = False) -> float:
    """Σ c_e q(θ_e), or Σ ξ_e(θ) q_e for a constraint."""
    ones = {n: torch.ones_like(p) for n, p in at.items()}
    total = 0.0
    for n, weight in (c.xi(at) if law.kind == "constraint" else c.xi(ones)).items():
        terms = weight.numpy() * density(at[n].numpy(), n)
        total += float(np.abs(terms).sum() if absolute else terms.sum())
    return total


# --- all laws of a rule


def laws_of_family(run: Run, kind: str) -> Iterator[tuple[str, Any, str, Callable[..., Finding]]]:
    """(which metric, law, generators, how it is held to a run) for one kind of family; nothing where the rule leaves it without a law."""
    for where, laws in (("Euclidean", run.laws), ("own", run.own)):
        if laws is None:
            continue
        for law in (*laws, *laws.constraints):
            if law.symmetry.kind == kind:
                part = getattr(law.outcome, "generators", "all") if isinstance(law, MetricLaw) else "symmetric"
                yield "own" if isinstance(law, MetricLaw) else where, law, part, JUDGES[type(law.balance)]
        if where == "Euclidean":
            yield from (("Euclidean", law, "all", angular) for law in laws.momenta if law.symmetry.kind == kind == "rotation")


JUDGES: dict[type, Callable[..., Finding]] = {
    Balance: euclidean,
    MetricBalance: held,
    MetricConstraint: constraint,
    MirrorBalance: mirror,
}


@dataclass(frozen=True)
class Cell:
    """One family under one metric: the law's finding, and each wrong sibling's residual."""

    family: str
    metric: str
    finding: Finding
    siblings: Mapping[str, float]

    @property
    def holds(self) -> bool:
        return self.finding.residual <= ROUNDING

    @property
    def rejected(self) -> int:
        return sum(residual > 1e3 * max(self.finding.residual, ROUNDING) for residual in self.siblings.values())


def cells(run: Run, families: tuple[str, ...] = FAMILIES) -> Iterator[Cell]:
    for kind in families:
        for metric, law, generators, judge in laws_of_family(run, kind):
            found = [judge(run, c, law.balance) for c in charges(law.symmetry, generators)]
            best = Finding(max(f.residual for f in found), max(f.motion for f in found))
            c = charges(law.symmetry, generators)[0]
            wrong = {f"generator x {f}": judge(run, Mistaken(c.symmetry, c.direction, f), law.balance).residual for f in (1.1, 0.0)}
            wrong |= {name: judge(run, c, sibling).residual for name, sibling in siblings(law.balance)}
            yield Cell(kind, metric, best, wrong)


def siblings(balance: Any) -> Iterator[tuple[str, Any]]:
    """Wrong laws: every mechanism's part left out and with the other sign, a momentum that forgets a little faster."""
    if isinstance(balance, MetricBalance):
        yield from _of_metric_balance(balance)
        return
    if isinstance(balance, MetricConstraint):
        if (remembered := balance.along.xreplace({CURRENT: sp.S.Zero})) != 0:
            yield "no momentum", replace(balance, along=balance.along - remembered)
        return
    name = "charge_terms" if isinstance(balance, Balance) else "terms"
    for mechanism, part in getattr(balance, name).items():
        if mechanism != "explicit_breaking":  # there is none in this network
            for what, factor in (("no", 0), ("sign of", -1)):
                yield f"{what} {mechanism}", replace(balance, **{name: {**getattr(balance, name), mechanism: factor * part}})
    if isinstance(balance, Balance):
        for k in balance.momenta:
            yield f"{k} forgets", replace(balance, momentum_factor={**balance.momentum_factor, k: balance.momentum_factor[k] * 0.99})


def _of_metric_balance(balance: MetricBalance) -> Iterator[tuple[str, MetricBalance]]:
    for mechanism, part in balance.terms.items():
        if mechanism not in ("explicit_breaking", "metric"):
            for what, factor in (("no", -1), ("sign of", -2)):
                yield f"{what} {mechanism}", replace(balance, charge=balance.charge + factor * part)
