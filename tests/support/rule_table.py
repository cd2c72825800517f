"""The table of learning rules by families: on a small network that has every family, each law beside a real run, and its wrong siblings.

Nothing here is a result: a cell is what `nf.derive` says of a rule and a family, evaluated along a run of the optimizer (of torch.optim, or
the textbook's step where torch has none). `python benchmarks/rule_table.py` writes the whole table; the tests make it thinner.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Final

import sympy as sp
import torch
from support.law_runs import Charge, combinations_of, made
from support.reference_rules import (
    SGDW,
    ExponentiatedGradient,
    Hypentropy,
    Lion,
    NaturalGradient,
    NesterovAhead,
    Params,
    Reference,
    SignSGD,
    Signum,
    Torch,
)
from support.rule_cases import MATRIX_RULES, RULES, alone
from torch import Tensor, nn, optim
from torch.func import functional_call, grad, vmap

import noetherflow as nf
from noetherflow.bridge.combinations import Program, buffer_name
from noetherflow.symbolic.forms import Form, Group, Rule
from noetherflow.symbolic.laws import Laws
from noetherflow.symbolic.metric_balance import own_metric
from noetherflow.symbolic.metrics import ENTROPY, Held
from noetherflow.symbolic.nonlinear import structure
from noetherflow.symbolic.rules import hypentropy
from noetherflow.symbolic.rules_directed import lion_form, lookahead_form, natural_form, sgdw_form, sign_form
from noetherflow.symbolic.rules_mirror import mirror_form
from noetherflow.symbolic.symmetries import Symmetries, Symmetry

FAMILIES: Final = ("scale", "rescale", "linear", "translation", "rotation")
COMMON: Final = {"lr": 0.02, "weight_decay": 0.03}
NUMBERS: Final = COMMON | {"momentum": 0.8, "beta1": 0.9, "beta2": 0.99}
STEPS: Final = 6


@dataclass(frozen=True)
class Case:
    """A rule: how its run is made, and its equations (None: those that the bridge reads off the optimizer)."""

    make: Callable[[], Reference]
    form: Form | None = None
    positive: bool = False


def _torch(make: Any) -> Case:
    return Case(lambda: Torch({}, make=make))


SGD: Final[dict[str, dict[str, Any]]] = {
    "SGD": {"weight_decay": 0.03},
    "SGD, ascending": {"weight_decay": 0.03, "maximize": True},
    "SGD, momentum": {"momentum": 0.8, "weight_decay": 0.03},
    "SGD, dampened": {"momentum": 0.8, "dampening": 0.3, "weight_decay": 0.03},
    "SGD, Nesterov": {"momentum": 0.8, "nesterov": True, "weight_decay": 0.03},
}
CASES: Final[dict[str, Case]] = {
    **{name: _torch(alone(optim.SGD, lr=0.02, **options)) for name, options in SGD.items()},
    "SGDW": Case(lambda: SGDW(NUMBERS), sgdw_form()),
    "Nesterov, gradient ahead": Case(lambda: NesterovAhead(NUMBERS), lookahead_form()),
    "Adam": _torch(RULES["adam, coupled decay"]),
    "AdamW": _torch(RULES["adamw"]),
    "AMSGrad": _torch(alone(optim.AdamW, lr=1e-3, amsgrad=True, weight_decay=0.1)),
    "NAdam": _torch(RULES["nadam"]),
    "RMSprop": _torch(RULES["rmsprop"]),
    "RMSprop, centred, momentum": _torch(RULES["rmsprop, centred with momentum"]),
    "Adagrad": _torch(RULES["adagrad"]),
    "Adadelta": _torch(alone(optim.Adadelta, weight_decay=1e-2, eps=1e-3)),
    "Lion": Case(lambda: Lion(NUMBERS), lion_form()),
    "signSGD": Case(lambda: SignSGD(COMMON), sign_form()),
    "Signum": Case(lambda: Signum(NUMBERS), sign_form(momentum=True)),
    "Muon": _torch(MATRIX_RULES["muon"]),
    "natural gradient": Case(lambda: NaturalGradient({"lr": 0.02, "damping": 0.05, "weight_decay": 0.1}), natural_form(decoupled=True)),
    "mirror descent, entropy": Case(lambda: ExponentiatedGradient(COMMON), mirror_form(ENTROPY), positive=True),
    "mirror descent, hypentropy": Case(lambda: Hypentropy(COMMON), mirror_form(hypentropy(sp.Rational(1, 2)))),
}


@lru_cache(maxsize=2)
def network(*, positive: bool = False) -> tuple[nn.Module, Symmetries, Params]:
    """Scale and rotation behind a norm without a gain, rescale, GL(5), and what cross-entropy ignores; weights only, as Muon wants them."""
    torch.manual_seed(0)
    norm = nn.RMSNorm(4, eps=1e-60, elementwise_affine=False)  # eps = 0, which torch's kernel does not take
    layers = [nn.Linear(5, 4, bias=False), norm, nn.Linear(4, 6, bias=False), nn.ReLU(), nn.Linear(6, 5, bias=False)]
    model = nn.Sequential(*layers, nn.Linear(5, 3, bias=False)).double()
    start = {n: (p.detach().abs() + 0.05 if positive else p.detach().clone()) for n, p in model.named_parameters()}
    return model, nf.symmetries(nf.trace(model, torch.zeros(12, 5).double(), loss="cross_entropy")), start


@dataclass(frozen=True)
class Step:
    """One step of a run: everything as it was before it, but `after` and the buffers that it made."""

    theta: Params
    vectors: dict[str, Params]
    numbers: Mapping[str, float]
    after: Params
    buffers: dict[str, Params]
    metric: Params | None


@dataclass(frozen=True)
class Run:
    """A rule on the network."""

    form: Form
    steps: tuple[Step, ...]
    positive: bool

    @property
    def rule(self) -> Rule:
        return Rule((Group(self.form, dict(self.form.hyperparameters)),))

    @cached_property
    def laws(self) -> Laws:
        """Under the Euclidean metric, for mirror descent under its own."""
        return laws_of(self.rule, positive=self.positive)

    @cached_property
    def own(self) -> Laws | None:
        """Under the diagonal that the rule divides by; None if it divides by none."""
        return laws_of(self.rule, Held(), positive=self.positive) if own_metric(self.form) is not None else None


def laws_of(rule: Rule, metric: Any = None, *, positive: bool = False) -> Laws:
    model, found, _ = network(positive=positive)
    return nf.derive(nf.trace(model, torch.zeros(12, 5).double(), loss="cross_entropy"), rule, metric=metric, found=found)


def run(name: str, steps: int = STEPS) -> Run:
    """Two steps to wake the buffers, a kick so that momenta are not those of a run from rest, then the steps that are recorded."""
    case = CASES[name]
    model, _, theta = network(positive=case.positive)
    reference = case.make()
    form = case.form or reference.form(theta)  # type: ignore[attr-defined]
    out: list[Step] = []
    for number, (mean, samples_of) in enumerate(batches(model, steps + 2)):
        if number == 2:
            _kick(reference, form, theta)
        at = reference.point(theta)
        out.append(recorded(reference, form, theta, mean(at), samples_of(at)))
        theta = out[-1].after
    return Run(form, tuple(out[2:]), case.positive)


def from_rest(case: Case, steps: int, rate: float) -> Run:
    """A run on one batch from the start, with a step size of its own."""
    model, _, theta = network(positive=case.positive)
    reference = case.make()
    form = case.form or reference.form(theta)  # type: ignore[attr-defined]
    reference.at_rate(rate)
    out: list[Step] = []
    for mean, samples_of in batches(model, steps, fixed=True):
        at = reference.point(theta)
        out.append(recorded(reference, form, theta, mean(at), samples_of(at)))
        theta = out[-1].after
    return Run(form, tuple(out), case.positive)


def _kick(reference: Reference, form: Form, theta: Params) -> None:
    """Averages lose a part of each entry: they are those of no run from rest, and no variance becomes negative."""
    generator = torch.Generator().manual_seed(2)
    for before, _ in structure(form).buffers:
        held = reference.buffer(before.name, theta)
        reference.kick(before.name, {n: -0.7 * torch.rand(b.shape, generator=generator, dtype=b.dtype) * b for n, b in held.items()})


def recorded(reference: Reference, form: Form, theta: Params, g: Params, samples: Params) -> Step:
    numbers = dict(reference.numbers())
    tensors = {"theta": theta, "gradient": g} | reference.given(theta, g, samples)
    tensors |= {buffer_name(b.name): {n: x.clone() for n, x in reference.buffer(b.name, theta).items()} for b, _ in form.buffers}
    vectors, metric = made(form, numbers, tensors), own_metric(form)
    held = None if metric is None else _metric(form, metric, numbers, tensors)
    after = reference.step(theta, g, samples)
    vectors["Delta"] = {n: after[n] - p for n, p in theta.items()}
    made_now = {b.name: {n: x.clone() for n, x in reference.buffer(b.name, theta).items()} for b, _ in form.buffers}
    return Step(theta, vectors | {a.name: made_now[b.name] for b, a in form.buffers}, numbers, after, made_now, held)


def _metric(form: Form, metric: Any, numbers: Mapping[str, float], tensors: dict[str, Params]) -> Params:
    known = {symbol: numbers[name] for name, symbol in form.hyperparameters}
    program = Program.of(dict(form.equations), metric, combinations_of(form)._tensors).bound(known, frozenset(tensors))
    return {n: program.function({name: x[n] for name, x in tensors.items()}) for n in tensors["theta"]}


def batches(model: nn.Module, steps: int, *, fixed: bool = False) -> Iterator[tuple[Any, Any]]:
    """Functions that give the mean gradient and the samples' gradients of one batch after the other."""
    generator = torch.Generator().manual_seed(1)

    def loss(params: Params, x: Tensor, y: Tensor) -> Tensor:
        return nn.functional.cross_entropy(functional_call(model, params, (x,)), y)

    def drawn() -> tuple[Tensor, Tensor]:
        return torch.randn(12, 5, generator=generator, dtype=torch.float64), torch.randint(0, 3, (12,), generator=generator)

    first = drawn()
    for number in range(steps):
        x, y = first if fixed or not number else drawn()
        yield (
            lambda at, x=x, y=y: grad(loss)(at, x, y),
            lambda at, x=x, y=y: vmap(grad(lambda p, a, b: loss(p, a[None], b[None])), (None, 0, 0))(at, x, y),
        )


def charges(symmetry: Symmetry, generators: str, count: int = 2) -> list[Charge]:
    """Generators of a family, drawn once: symmetric matrices, diagonal ones, or any coefficients."""
    generator = torch.Generator().manual_seed(7)
    out = []
    for _ in range(count):
        direction = torch.randn(symmetry.dimension, generator=generator, dtype=torch.float64)
        if symmetry.matrix:
            n = int(symmetry.sizes[-1])
            matrix = direction.reshape(n, n)
            direction = (torch.diag(matrix.diagonal()) if generators == "diagonal" else matrix + matrix.T).reshape(-1)
        out.append(Charge(symmetry, direction))
    return out
