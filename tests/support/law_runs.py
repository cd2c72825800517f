"""Laws held against small float64 runs step by step, straight from the symbolic side: slow, plain, and without the bridge's plans."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

import sympy as sp
import torch
from support.reference_rules import Params, Reference
from support.rule_cases import perceptron
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

import noetherflow as nf
from noetherflow.bridge.combinations import Combinations, Entrywise, Program, buffer_name
from noetherflow.bridge.printing import Compiled, compile_expressions
from noetherflow.symbolic.balance import CHARGE, CURRENT, Balance
from noetherflow.symbolic.charges import is_linear
from noetherflow.symbolic.forms import Form
from noetherflow.symbolic.kinetic_balance import GAIN, derive_kinetic_balance
from noetherflow.symbolic.metric_balance import METRIC_CHARGE, METRIC_MOMENTUM, MetricBalance
from noetherflow.symbolic.pairings import Inner
from noetherflow.symbolic.symmetries import Symmetry

Vectors = dict[str, Params]


@dataclass(frozen=True)
class Charge:
    """One generator of one family."""

    symmetry: Symmetry
    direction: Tensor

    @property
    def linear(self) -> bool:
        return is_linear(self.symmetry)

    def xi(self, at: Params) -> Params:
        return self.symmetry.tangent(at, self.direction)

    def along(self, at: Params, x: Params, metric: Params | None = None) -> float:
        return sum(float((c * x[n] * (1.0 if metric is None else metric[n])).sum()) for n, c in self.xi(at).items())

    def inner(self, x: Params, y: Params, metric: Params | None = None) -> float:
        return 0.0 if self.linear else self.along(x, y, metric)

    def value(self, at: Params, metric: Params | None = None) -> float:
        return self.along(at, at, metric) * (1.0 if self.linear else 0.5)

    def size(self, at: Params, metric: Params | None = None) -> float:
        return sum(float((c * at[n] * (1.0 if metric is None else metric[n])).abs().sum()) for n, c in self.xi(at).items())


def problem() -> tuple[nn.Module, list[Charge], Params]:
    """A network with rescale and translation families, two charges of each, and a start."""
    torch.manual_seed(0)
    model = perceptron().double()
    graph = nf.trace(model, torch.zeros(12, 5).double(), loss="cross_entropy")
    charges = []
    for symmetry in nf.symmetries(graph):
        for i in range(min(2, int(symmetry.dimension))):
            direction = torch.zeros(symmetry.dimension, dtype=torch.float64)
            direction[i] = 1.0
            charges.append(Charge(symmetry, direction))
    return model, charges, {n: p.detach().clone() for n, p in model.named_parameters()}


def gradients(model: nn.Module, steps: int) -> Iterator[tuple[object, object]]:
    """Functions that give the mean gradient and the samples' gradients of one batch after the other."""
    generator = torch.Generator().manual_seed(1)

    def loss(params: Params, x: Tensor, y: Tensor) -> Tensor:
        return nn.functional.cross_entropy(functional_call(model, params, (x,)), y)

    for _ in range(steps):
        x = torch.randn(12, 5, generator=generator, dtype=torch.float64)
        y = torch.randint(0, 3, (12,), generator=generator)
        yield (
            lambda at, x=x, y=y: grad(loss)(at, x, y),
            lambda at, x=x, y=y: vmap(grad(lambda p, a, b: loss(p, a[None], b[None])), (None, 0, 0))(at, x, y),
        )


combinations_of = lru_cache(maxsize=32)(Combinations)


def made(form: Form, numbers: Mapping[str, float], tensors: Vectors) -> Vectors:
    """All vectors of a form's step from θ, g, buffers and what is given, followed by the bridge's own programs."""
    out: Vectors = {}
    found = combinations_of(form).numbers(numbers, present=frozenset(tensors))
    combinations = {name: how for name, how in found.items() if not name.startswith("rounding of")}
    for n in tensors["theta"]:
        own = {name: x[n] for name, x in tensors.items()}
        for name, how in combinations.items():
            value = how.function(own) if isinstance(how, Entrywise) else sum(c * own[part] for part, c in how.items())
            out.setdefault(name, {})[n] = value
    return tensors | {"g": tensors["gradient"]} | out | {name.removeprefix("buffer "): x for name, x in tensors.items()}


def residuals(
    reference: Reference, form: Form, *, steps: int = 8, believed: Mapping[str, float] | None = None, law: Balance | None = None
) -> dict[str, float]:
    """Largest relative distance of the law's Q and K, carried from the start, from the run's; `believed`: numbers the law is given."""
    model, charges, theta = problem()
    laws = {linear: law or derive_kinetic_balance((form,), linear) for linear in (False, True)}
    state = {id(c): {CHARGE: c.value(theta)} | dict.fromkeys(laws[c.linear].momenta, 0.0) for c in charges}
    worst: dict[str, float] = {}
    for mean, samples_of in gradients(model, steps):
        at = reference.point(theta)
        g, samples = mean(at), samples_of(at)  # type: ignore[operator]
        numbers = dict(reference.numbers()) | (believed or {})
        tensors = {"theta": theta, "gradient": g} | reference.given(theta, g, samples)
        tensors |= {buffer_name(b.name): dict(reference.buffer(b.name, theta)) for b, _ in form.buffers}
        vectors = made(form, numbers, tensors)
        after = reference.step(theta, g, samples)
        for c in charges:
            known, balance = state[id(c)], laws[c.linear]
            scalars = {symbol: numbers[name] for name, symbol in form.hyperparameters} | {CURRENT: 0.0} | known
            predicted = _evaluated(balance, scalars, c, theta, vectors)
            state[id(c)] = dict(zip((CHARGE, *balance.momenta), predicted, strict=True))
            worst["Q"] = max(worst.get("Q", 0.0), abs(predicted[0] - c.value(after)) / c.size(after))
            for k, p in zip(balance.momenta, predicted[1:], strict=True):
                buffer = reference.buffer(balance.buffer_of(k, 0).name, theta)
                size = sum(float((x * buffer[n]).abs().sum()) for n, x in c.xi(after).items())
                worst["K"] = max(worst.get("K", 0.0), abs(p - c.along(after, buffer)) / size)
        theta = after
    return worst


def _evaluated(balance: Balance, scalars: dict[sp.Expr, float], c: Charge, theta: Params, vectors: Vectors) -> list[float]:
    for source in balance.breaking:
        d, followed = vectors[source.vector.name], vectors[f"followed by {source.vector.name}"]
        square = sum(float((followed[n] ** 2).sum()) for n in c.xi(theta))
        gain = sum(float((d[n] * followed[n]).sum()) for n in c.xi(theta)) / square
        scalars |= {GAIN: gain, source.symbol: c.along(theta, d) - gain * c.along(theta, followed)}
    return _numbers([e.rhs for e in balance.equations], scalars, c, vectors)


def _numbers(expressions: list[sp.Expr], scalars: Mapping[sp.Expr, float], c: Charge, vectors: Vectors) -> list[float]:
    pairings = {q for e in expressions for q in e.atoms(Inner)}
    values = {**scalars, **{q: c.inner(vectors[q.args[0].name], vectors[q.args[1].name]) for q in pairings}}
    return [float(x) for x in _compiled(tuple(expressions))(values).values()]


@lru_cache(maxsize=64)
def _compiled(expressions: tuple[sp.Expr, ...]) -> Compiled:
    return compile_expressions({(str(i),): e for i, e in enumerate(expressions)})


def metric_residual(reference: Reference, form: Form, laws: Mapping[bool, MetricBalance], steps: int = 8) -> float:
    """Largest relative distance of the charge under the rule's metric from its law; the metric's drift is measured, no gradient is."""
    model, charges, theta = problem()
    program = Program.of(dict(form.equations), laws[False].metric, combinations_of(form)._tensors)
    state: dict[int, dict[sp.Expr, float]] = {}
    worst, before = 0.0, None
    for mean, samples_of in gradients(model, steps):
        g, samples = mean(theta), samples_of(theta)  # type: ignore[operator]
        numbers = reference.numbers()
        tensors = {"theta": theta, "gradient": g} | {buffer_name(b.name): dict(reference.buffer(b.name, theta)) for b, _ in form.buffers}
        vectors = made(form, numbers, tensors)
        known = {symbol: numbers[name] for name, symbol in form.hyperparameters}
        metric = {n: program.bound(known, frozenset(tensors)).function({name: x[n] for name, x in tensors.items()}) for n in theta}
        vectors |= {f"M {name}": {n: metric[n] * x for n, x in own.items()} for name, own in list(vectors.items())}
        after = reference.step(theta, g, samples)
        for c in charges:
            law = laws[c.linear]
            own = state.setdefault(
                id(c), {METRIC_CHARGE: c.value(theta, metric)} | {sp.Symbol(str(e.lhs)[:-1], real=True): 0.0 for e in law.momenta}
            )
            if before is not None:  # the drift of the metric: measured
                own[METRIC_CHARGE] += c.value(theta, metric) - c.value(theta, before)
            gathered = law.momentum is not None
            if gathered:
                own.setdefault(METRIC_MOMENTUM, 0.0)
                if before is not None:
                    buffer = tensors[buffer_name("b")]
                    own[METRIC_MOMENTUM] += c.along(theta, buffer, metric) - c.along(theta, buffer, before)
            scalars = known | {CURRENT: 0.0, CHARGE: c.value(theta)} | own
            wanted = [law.charge, *([law.momentum] if gathered else []), *(e.rhs for e in law.momenta)]
            predicted = _numbers(wanted, scalars, c, vectors)
            names = [METRIC_CHARGE, *([METRIC_MOMENTUM] if gathered else []), *(sp.Symbol(str(e.lhs)[:-1], real=True) for e in law.momenta)]
            state[id(c)] = dict(zip(names, predicted, strict=True))
            worst = max(worst, abs(predicted[0] - c.value(after, metric)) / c.size(after, metric))
        theta, before = after, metric
    return worst
