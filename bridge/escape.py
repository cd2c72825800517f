"""Escape from a symmetric run: how a small transverse perturbation grows, predicted from the symmetric run alone, and measured.

A step is a map Φ of the state z = (θ, buffers) that commutes with the symmetry. On the run z_t of a symmetric start, a perturbation across
the fixed subspace obeys the tangent map

    δ_{t+1} = DΦ_t(z_t) δ_t,        for gradient descent δ_{t+1} = (1 - η H⊥(θ_t)) δ_t,                          (own)

    with momentum: β' = μ β + (1 - τ)(H⊥ + λ) δ,   δ' = δ - η β'

and stays across. DΦ is taken of the rule's own equations (`noetherflow.symbolic.forms`), so Adam's second moments are differentiated too.
What is left out is of second order in δ: relative to δ, an error of order ε¹. Where the group has two elements the transverse part is an
odd function of ε (the reflection exchanges ε and -ε), and the error is of order ε².
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from html import escape as escaped
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import vjp

from noetherflow.bridge.fixed_subspace import FixedSubspace
from noetherflow.bridge.optimizers import reader_of
from noetherflow.bridge.replay import loss_function
from noetherflow.bridge.step_maps import step_map
from noetherflow.bridge.trace import Loss, first_tensor
from noetherflow.bridge.transverse import ON_IT, objective
from noetherflow.errors import ModelError, RuleError, RunError
from noetherflow.numeric.curvature import slope_and_product
from noetherflow.numeric.model_loss import check_loss
from noetherflow.numeric.order import FEWEST, Order, fit_order
from noetherflow.numeric.progress import shown
from noetherflow.symbolic.forms import THETA

Batch = tuple[Any, Any]
MakeOptimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


@dataclass(frozen=True, slots=True, eq=False)
class Escape:
    """How perturbations across a fixed subspace grow along a symmetric run.

    Attributes
    ----------
    growth : Tensor, shape (steps + 1,)
        Predicted ‖δ_t‖ / ‖δ_0‖.
    tangent : Tensor, shape (D,)
        Predicted δ at the end, for the direction normalised at the start.
    leak : float
        Largest part of δ_t along the subspace, relative: rounding if the step commutes with the symmetry.
    mismatch : float
        Largest difference of a step from the optimizer's own, relative to the parameters.
    sizes : tuple of float
        Norms ε of the perturbations that were run.
    measured : Tensor, shape (sizes, steps + 1)
        ‖(1 - P) θ_t‖ / ε of the perturbed runs.
    errors : tuple of float
        ‖(1 - P) θ_T / ε - δ_T‖ / ‖δ_T‖ at the end.
    """

    growth: Tensor
    tangent: Tensor
    leak: float
    mismatch: float
    sizes: tuple[float, ...]
    measured: Tensor
    errors: tuple[float, ...]

    @property
    def order(self) -> Order | None:
        """Fitted order of the error in ε; None for fewer than four sizes."""
        return fit_order(self.sizes, self.errors) if len(self.sizes) >= FEWEST else None

    def __str__(self) -> str:
        lines = [f"Escape over {len(self.growth) - 1} steps: predicted growth {float(self.growth[-1]):.6g}"]
        for size, run, error in zip(self.sizes, self.measured, self.errors, strict=True):
            lines.append(f"  ε = {size:.1e}: measured {float(run[-1]):.6g}, relative error {error:.2e}")
        return "\n".join(lines + ([f"  order in ε: {self.order}"] if self.order else []))

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return f"<pre>{escaped(str(self))}</pre>"


def escape(
    model: nn.Module,
    make_optimizer: MakeOptimizer,
    batches: Iterable[Batch],
    *,
    loss: Loss = "cross_entropy",
    subspace: FixedSubspace,
    direction: Tensor,
    sizes: Sequence[float] = (),
) -> Escape:
    """Predict how a perturbation across a fixed subspace grows along the symmetric run, and run perturbed copies beside it.

    Parameters
    ----------
    model : nn.Module
        In float64, at a point of the subspace; not changed.
    make_optimizer : callable
        Parameters -> an optimizer with one group, whose rule is a function of entries (SGD, Adam, RMSprop, ...).
    batches : iterable of (inputs, target)
    loss : str, nn.Module or callable
    subspace : FixedSubspace
    direction : Tensor, shape (D,)
        Of the perturbation; its part along the subspace is dropped, and it is normalised.
    sizes : sequence of float
        Norms ε of perturbations to run; four or more for an order.

    Returns
    -------
    Escape
        The growth of an infinitesimal perturbation, exact to rounding; of a finite one, to the order that ``.order`` fits.

    Raises
    ------
    ModelError
        If the parameters are not in float64, or not on the subspace.
    RuleError
        If the optimizer has several groups or its step is no function of entries.
    RunError
        If the direction has no transverse part, the loss fails on the data, is not finite or is random (dropout), or the tangent is not
        finite (a rule that is not differentiable there).

    Examples
    --------
    >>> import noetherflow as nf
    >>> from noetherflow.symbolic.discrete_elements import swap
    >>> model, x = nf.models.MLP([3, 2, 2], "tanh").double(), torch.randn(5, 3).double()
    >>> _ = [nn.init.constant_(p, 0.1) for p in model.parameters()]
    >>> group = nf.discrete_symmetries(nf.trace(model, x))
    >>> there = nf.fixed_subspace(group, swap(group, 0, 0, 1), model)
    >>> found = escape(model, lambda p: torch.optim.SGD(p, lr=0.1), [(x, torch.ones(5, 2).double())] * 9, loss="mse",
    ...                subspace=there, direction=torch.arange(14.0).double())
    >>> len(found.growth), found.leak < 1e-12, found.mismatch < 1e-12
    (10, True, True)
    """
    _check(model, subspace)
    across = direction.to(torch.float64) - subspace.vectors.project(direction.to(torch.float64))
    if float(across.norm()) <= 1e-12 * float(direction.norm()):  # rounding of the projection
        raise RunError("The direction lies in the fixed subspace. Give one with a part across it.")
    across = across / across.norm()
    listed, start = list(batches), subspace.flat(model)
    for inputs, target in listed[:1]:
        check_loss(partial(objective(model, subspace, inputs, target, loss), start))
    tangent = _Tangent(copy.deepcopy(model), make_optimizer, loss, subspace, across)
    growth = [1.0, *(tangent.step(inputs, target) for inputs, target in shown(listed, "tangent run", len(listed)))]
    runs = [_perturbed(model, make_optimizer, listed, loss, subspace, start + size * across) for size in sizes]
    errors = [float((run[-1] / size - tangent.delta).norm() / tangent.delta.norm()) for size, run in zip(sizes, runs, strict=True)]
    measured = [torch.stack([part.norm() for part in run]) / size for size, run in zip(sizes, runs, strict=True)]
    return Escape(
        torch.tensor(growth, dtype=torch.float64),
        tangent.delta,
        tangent.leak,
        tangent.mismatch,
        tuple(sizes),
        torch.stack(measured) if measured else torch.zeros(0, len(growth)),
        tuple(errors),
    )


class _Tangent:
    """The symmetric run, by the rule's form, beside the optimizer's own; and a tangent vector along it."""

    def __init__(self, model: nn.Module, make: MakeOptimizer, loss: Loss, subspace: FixedSubspace, delta: Tensor) -> None:
        self._model, self._loss, self._subspace = model, loss, subspace
        self._optimizer = make(model.parameters())
        if len(self._optimizer.param_groups) != 1:
            raise RuleError(f"The optimizer has {len(self._optimizer.param_groups)} parameter groups. Give one group.")
        self._reader, self._options = reader_of(self._optimizer), self._optimizer.param_groups[0]
        self._map = step_map(self._reader.form(self._options))
        self._state = self._map.start(subspace.flat(model))
        self._moving = self._map.start(delta)
        self.leak = self.mismatch = 0.0

    @property
    def delta(self) -> Tensor:
        return self._moving[THETA.name]

    def step(self, inputs: Any, target: Any) -> float:
        """One step of both; the norm of the tangent."""
        numbers = self._reader.values(self._options, self._optimizer.state.get(self._options["params"][0], {}))
        value = objective(self._model, self._subspace, inputs, target, self._loss)
        gradient, bent = slope_and_product(value, self._state[THETA.name], self.delta)
        state, turned = (self._state, gradient), (self._moving, bent)
        self._state, self._moving = _pushed(lambda before, g: self._map(before, g, numbers), state, turned)
        if not bool(self.delta.isfinite().all()):
            raise RunError("The tangent of the step is not finite: the rule is not differentiable at an entry whose gradient is zero.")
        _train(self._model, self._optimizer, loss_function(self._loss), inputs, target)
        there, theta = self._subspace.flat(self._model), self._state[THETA.name]
        self.mismatch = max(self.mismatch, float((there - theta).abs().max() / theta.abs().max()))
        leaked = self._subspace.vectors.project(self.delta)
        self.leak = max(self.leak, float(leaked.norm() / self.delta.norm()))
        return float(self.delta.norm())


def _pulled(function: Callable[..., Any], *point: Any) -> tuple[Any, Callable[..., Any]]:
    found: Any = vjp(function, *point)  # torch's type allows for a third part
    return found[0], found[1]


def _pushed(function: Callable[..., Any], point: tuple[Any, ...], tangent: tuple[Any, ...]) -> tuple[Any, Any]:
    """The value and the derivative along a tangent, by reverse mode twice: u -> DFᵀu is linear, and its transpose is DF."""
    value, pull = _pulled(function, *point)
    _, push = _pulled(pull, {name: torch.zeros_like(part) for name, part in value.items()})
    return value, push(tangent)[0]


def _check(model: nn.Module, subspace: FixedSubspace) -> None:
    if {p.dtype for p in model.parameters()} != {torch.float64}:
        raise ModelError("Small perturbations are followed in float64. Give model.double(), and inputs likewise.")
    if subspace.breaking(model) > ON_IT:
        raise ModelError(
            f"The start is not on the fixed subspace: Δ = {subspace.breaking(model):.3g}. Project it first (subspace.project)."
        )


def _train(model: nn.Module, optimizer: torch.optim.Optimizer, loss: Callable[..., Tensor], inputs: Any, target: Any) -> None:
    given = inputs if isinstance(inputs, tuple) else (inputs,)
    optimizer.zero_grad()
    loss(first_tensor(model(*given)), *(() if target is None else (target,))).backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def _perturbed(
    model: nn.Module, make: MakeOptimizer, batches: Sequence[Batch], loss: Loss, subspace: FixedSubspace, start: Tensor
) -> list[Tensor]:
    """Transverse parts along a run from elsewhere."""
    other = copy.deepcopy(model)
    other.load_state_dict(subspace.unflat(start), strict=False)
    optimizer, function = make(other.parameters()), loss_function(loss)
    parts = [start - subspace.vectors.project(start)]
    for inputs, target in batches:
        _train(other, optimizer, function, inputs, target)
        theta = subspace.flat(other)
        parts.append(theta - subspace.vectors.project(theta))
    return parts
