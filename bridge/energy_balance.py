"""Train, and hold every step's change of the loss to the energy balance derived from the optimizer's update equations.

The derivation (`noetherflow.symbolic.energy`) splits f(θ') - f(θ) into first-order terms, one for each mechanism, and the curvature
with all higher orders. Measured are ∇f, the buffers and the curvature along the step; never the change itself. Where the network has kinks,
as with ReLU, their part is booked: the work of the gradient along the step, less what a smooth function would have.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, Final

import sympy as sp
import torch
from torch import Tensor, nn

from noetherflow.bridge.optimizers import Reader, reader_of
from noetherflow.bridge.replay import loss_function
from noetherflow.bridge.trace import Loss
from noetherflow.errors import RuleError, RunError
from noetherflow.numeric.energy_report import KINKS, EnergyRecord, EnergyReport
from noetherflow.numeric.model_loss import check_loss, evaluating, loss_at
from noetherflow.numeric.progress import shown
from noetherflow.numeric.rounding import confidence, unit_roundoff
from noetherflow.numeric.segments import segment
from noetherflow.numeric.tangent_kernel import double_state
from noetherflow.symbolic.energy import CURVATURE, NOISE, SLOPE, Curvature, Dot, loss_step, mechanical_step
from noetherflow.symbolic.forms import STEP, THETA, Form
from noetherflow.symbolic.pairings import Vector

Tensors = Mapping[str, Tensor]
LONGEST: Final = 100_000
"""Steps that false alarms are kept rare for where their number is not known."""


def energy_balance(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[tuple[Tensor, Tensor]],
    steps: int | None = None,
    loss: Loss = "cross_entropy",
    *,
    population: tuple[Tensor, Tensor] | None = None,
) -> EnergyReport:
    """Train a model and hold every change of the loss to f(θ') - f(θ) = -η ⟨∇f, u⟩ + ½ η² ⟨u, H̄ u⟩ (+ kinks).

    Parameters
    ----------
    model : nn.Module
        Trained in place. Without dropout; batch norms are allowed (f is then the loss of the batch as it is normalised).
    optimizer : torch.optim.Optimizer
        Any that `noetherflow.rule_of` reads. What is not linear in the gradient (Adam's quotient) is measured and booked as "direction".
    batches : iterable of (inputs, targets)
    steps : int, optional
        Until the batches end if absent.
    loss : str or callable
        "cross_entropy", "mse", or called as ``loss(output, targets)``.
    population : (inputs, targets), optional
        f is the loss of these; what the batch's gradient differs by is booked as "noise". If absent f is the loss of each step's own batch.

    Returns
    -------
    EnergyReport
        For smooth networks exact to a bound of roundings; with kinks to that and the estimated error of the integral across them, about
        as many digits as there are nodes (`noetherflow.numeric.segments`).

    Raises
    ------
    RunError
        If there are too few batches; if the loss is unknown, fails on the data, is not finite at the start, or is no function of the
        parameters (dropout); if the optimizer is another model's, or nothing is trainable.

    Examples
    --------
    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9, weight_decay=0.01)
    >>> batches = [(torch.randn(8, 3).double(), torch.randint(0, 2, (8,))) for _ in range(5)]
    >>> report = energy_balance(model, optimizer, batches)
    >>> report.holds, report.mechanisms
    (True, ('gradient', 'noise', 'weight_decay', 'momentum', 'curvature', 'kinks'))
    """
    function = loss_function(loss)
    reader = reader_of(optimizer)
    names = {id(p): n for n, p in model.named_parameters()}
    strange = sum(id(p) not in names for group in optimizer.param_groups for p in group["params"])
    if strange or not any(p.requires_grad for p in model.parameters()):
        raise RunError(
            f"The optimizer has {strange} parameters that are not the model's. Give the optimizer of this model."
            if strange
            else "The model has no trainable parameter, so its loss does not change. Set requires_grad on some."
        )
    sure = confidence(2 * (steps or LONGEST))
    records: list[EnergyRecord] = []
    for step, batch in enumerate(shown(islice(batches, steps), "training and balancing", total=steps)):
        run = _Step(model, optimizer, reader, names, function, batch, population or batch)
        if step == 0:
            point, constants = double_state(model)
            check_loss(partial(run.f(constants), point))
        records.append(run.taken(step, sure))
    if not records or len(records) < (steps or 0):
        raise RunError(f"The batches ended after {len(records)} of {steps or 'one or more'} steps. Give more of them, or fewer steps.")
    return EnergyReport(tuple(records), " and ".join(dict.fromkeys(reader.form(o).name for o in optimizer.param_groups)))


@dataclass(frozen=True)
class _Step:
    """One optimizer step, before it is taken."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    reader: Reader
    names: Mapping[int, str]
    function: Callable[..., Tensor]
    batch: tuple[Tensor, Tensor]
    population: tuple[Tensor, Tensor]

    def f(self, constants: Tensors) -> Callable[[Tensors], Tensor]:
        """The loss as a function of parameters, in float64; running statistics stay what they are."""
        x, y = (t.double() if t.is_floating_point() else t for t in self.population)

        def loss(parameters: Tensors) -> Tensor:
            kept = {name: t.clone() for name, t in constants.items()}
            return loss_at(self.model, {**parameters, **kept}, (x,), (y,), self.function)

        return loss

    def taken(self, step: int, sure: float) -> EnergyRecord:
        """Take the step and book what it did."""
        model, optimizer = self.model, self.optimizer
        before, constants = double_state(model)
        f = self.f(constants)
        value, slope, spread = self._gradient(f, before)
        optimizer.zero_grad()
        with evaluating(self.batch):
            self.function(model(self.batch[0]), self.batch[1]).backward()  # type: ignore[no-untyped-call]
        groups = [self._group(options, before, slope) for options in optimizer.param_groups]
        optimizer.step()
        after, _ = double_state(model)
        for group in groups:
            group.see_after(self.reader, optimizer, before, after)
        value_after, slope_after, spread_after = self._gradient(f, after)
        change = {name: after[name] - before[name] for name in before}
        size, own = _norm(slope) * _norm(change), next(model.parameters()).dtype
        terms, wide = _shape(before)
        moved = _norm({n: p * slope[n] for n, p in before.items()})
        ends = spread + spread_after + moved + _norm({n: p * slope_after[n] for n, p in after.items()})
        rounding = sure * math.sqrt(terms * wide) * unit_roundoff(torch.float64) * (ends + size)
        rounding += sure * math.sqrt(terms * wide) * unit_roundoff(own) * (moved + size) * (own != torch.float64)
        line = segment(f, before, change, accuracy=rounding)
        parts: dict[str, float] = {}
        for group in groups:
            for name, part in group.parts().items():
                parts[name] = parts.get(name, 0.0) + part
        parts |= {CURVATURE: line.curvature, KINKS: line.kinks}
        mechanical = groups[0].mechanical(line.curvature + line.kinks) if len(groups) == 1 and self.population is self.batch else None
        shift, pieces = mechanical or (None, {})
        measured = value_after - value
        total = None if shift is None else measured + shift
        return EnergyRecord(step, value, measured, parts, rounding, line.quadrature, total, pieces)

    def _gradient(self, f: Callable[[Tensors], Tensor], point: Tensors) -> tuple[float, dict[str, Tensor], float]:
        """f, ∇f, and what roundings of the outputs act on: f + Σ |output · ∂f/∂output|."""
        leaves = {name: p.clone().requires_grad_() for name, p in point.items()}
        seen: list[Tensor] = []

        def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if not isinstance(output, Tensor):
                raise RunError(f"The model must return one tensor; it returned {type(output).__name__}. Wrap it so that it does.")
            seen.append(output)

        hook = self.model.register_forward_hook(keep)
        try:
            value = f(leaves)
        finally:
            hook.remove()
        *gradients, pulled = torch.autograd.grad(value, [*leaves.values(), seen[-1]], materialize_grads=True)
        slope = dict(zip(leaves, gradients, strict=True))
        return float(value.detach()), slope, float((seen[-1].detach() * pulled).abs().sum() + value.detach().abs())

    def _group(self, options: Mapping[str, Any], before: Tensors, slope: Tensors) -> _Group:
        form = self.reader.form(options)
        moving = [p for p in options["params"] if p.grad is not None]
        state = self.optimizer.state[moving[0]] if moving else {}
        values = self.reader.values(options, state)
        numbers = {symbol: sp.Float(values[name], 17) for name, symbol in form.hyperparameters}
        members = tuple(self.names[id(p)] for p in moving)
        buffers: dict[Vector, Tensors] = {}
        for vector, _ in form.buffers:
            found = {self.names[id(p)]: self.reader.buffers(self.optimizer.state[p]).get(vector.name) for p in moving}
            buffers[vector] = {n: (torch.zeros_like(before[n]) if b is None else b.detach().double().clone()) for n, b in found.items()}
        seen = {self.names[id(p)]: p.grad.detach().double().clone() for p in moving if p.grad is not None}
        vectors: dict[Vector, Tensors] = {
            SLOPE: {n: slope[n] for n in members},
            NOISE: {n: seen[n] - slope[n] for n in members},
            THETA: {n: before[n] for n in members},
            **buffers,
        }
        return _Group(form, numbers, moving, members, vectors)


@dataclass
class _Group:
    """One parameter group: its form, its numbers at this step, and its vectors."""

    form: Form
    numbers: dict[sp.Symbol, sp.Float]
    moving: list[nn.Parameter]
    members: tuple[str, ...]
    vectors: dict[Vector, Tensors]

    def see_after(self, reader: Reader, optimizer: torch.optim.Optimizer, before: Tensors, after: Tensors) -> None:
        """Vectors that the step has made: the step itself, and buffers."""
        rate = float(self.numbers[self.form.rate])
        self.vectors[STEP] = {n: (before[n] - after[n]) / rate if rate else torch.zeros_like(before[n]) for n in self.members}
        for old, new in self.form.buffers:
            found = {n: reader.buffers(optimizer.state[p]).get(old.name) for n, p in zip(self.members, self.moving, strict=True)}
            self.vectors[new] = {n: (torch.zeros_like(before[n]) if b is None else b.detach().double().clone()) for n, b in found.items()}

    def parts(self) -> dict[str, float]:
        """First-order parts; a direction that is no combination of vectors is what the measured step has besides."""
        derived = loss_step(self.form).terms
        unknown = {name for name, term in derived.items() if not self._known(term)}
        out = {name: self._value(term) for name, term in derived.items() if name != CURVATURE and name not in unknown}
        if unknown:
            whole = -float(self.numbers[self.form.rate]) * _dot(self.vectors[SLOPE], self.vectors[STEP])
            out[min(unknown - {CURVATURE})] = whole - sum(out.values())
        return out

    def mechanical(self, curvature: float) -> tuple[float, dict[str, float]] | None:
        """(E' - f') - (E - f), and the parts of E' - E; None for a rule without mechanical energy."""
        try:
            derived = mechanical_step(self.form)
        except RuleError:
            return None
        ahead = dict(self.form.buffers) | {THETA: THETA}
        rate = float(self.numbers[self.form.rate])
        later = {n: p - rate * self.vectors[STEP][n] for n, p in self.vectors[THETA].items()}
        old, new = self._value(derived.stored), 0.0
        kept = self.vectors[THETA]
        moved = derived.stored.xreplace({v: w for v, w in ahead.items() if v != THETA})
        self.vectors[THETA] = later
        new = self._value(moved)
        self.vectors[THETA] = kept
        parts = {name: self._value(term.replace(Curvature, lambda _: sp.S.Zero)) for name, term in derived.terms.items()}
        parts[CURVATURE] += curvature
        return new - old, parts

    def _known(self, term: sp.Expr) -> bool:
        return all(self._vector(v) is not None for pair in term.atoms(Dot) for v in pair.args)

    def _vector(self, vector: Vector) -> Tensors | None:
        if vector in self.vectors:
            return self.vectors[vector]
        for old, new in self.form.buffers:
            if vector.name == f"{new.name} - {old.name}":
                return {n: self.vectors[new][n] - self.vectors[old][n] for n in self.members}
        return None

    def _value(self, term: sp.Expr) -> float:
        """A term at this step's numbers, in Python's floats."""
        dots = {pair: sp.Float(_dot(*(self._vector(v) or {} for v in pair.args)), 17) for pair in term.atoms(Dot)}
        return float(term.xreplace(dots).xreplace(self.numbers))


def _dot(x: Tensors, y: Tensors) -> float:
    return float(sum((x[n] * y[n]).sum() for n in x))


def _norm(x: Tensors) -> float:
    return math.sqrt(sum(float(t.square().sum()) for t in x.values()))


def _shape(parameters: Tensors) -> tuple[int, int]:
    """Number of tensors that act one after the other at most, and the longest sum that one of them is in."""
    return len(parameters), max(p.numel() // max(len(p), 1) if p.dim() else 1 for p in parameters.values())
