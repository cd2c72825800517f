"""Teleportation: to a chosen point of a model's orbit, where the function is the same and its gradient is not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from noetherflow.bridge.given_charges import move_to_charges
from noetherflow.bridge.group_elements import Element, act_all, exponential, zeros
from noetherflow.bridge.orbits import Moved, Orbit, Source, orbit_of
from noetherflow.errors import ModelError
from noetherflow.numeric.model_loss import loss_at
from noetherflow.symbolic.symmetries import Symmetry

Objective = Callable[[Mapping[str, Tensor]], Tensor]
GROWTH, SHRINKAGE = 2.0, 0.5
SHORTEST = 1e-6  # of the radius: no step shorter than this is tried


def teleport(
    model: nn.Module,
    symmetries: Source,
    objective: Objective | Mapping[Symmetry, Tensor],
    *,
    maximize: bool = True,
    steps: int = 20,
    radius: float = 1.0,
    approximate: bool = False,
    inplace: bool = False,
) -> Moved:
    """Move a model along its orbit to where an objective is larger (or smaller); its function is unchanged.

    Symmetry teleportation (zhao2022symmetry) climbs the squared norm of the loss's gradient, which differs along an orbit although the loss
    does not: `squared_gradient` makes that objective. Gradient steps on the group coordinates a of θ(a) = exp(a) θ, by autograd through the
    action; a step that does not improve is shortened, so the objective never gets worse. Scales do not bound such objectives, hence the
    radius. Given charges instead of an objective, it goes to the point that has them (`noetherflow.bridge.given_charges`).

    Parameters
    ----------
    model, symmetries, approximate, inplace
        As for `noetherflow.rebalance`.
    objective : callable, or mapping of Symmetry to Tensor
        From all parameters by name (the model's dtypes, differentiable) to a scalar tensor. Or the charges that families of scales shall
        have, shape `sizes` each; the other arguments then do nothing, and other families do not act.
    maximize : bool
        Look for larger values (default) or smaller ones.
    steps : int
        Gradients taken.
    radius : float
        Largest absolute value of a coordinate: no scale changes by more than exp(radius) through any one family.

    Returns
    -------
    Moved
        ``.before`` and ``.after``: the objective at the two points (of charges, the largest deviation). Local: nothing says that no better
        point lies on the orbit.

    Raises
    ------
    ModelError
        If the parameters do not match, the objective is not a finite scalar, or charges cannot be reached.

    Examples
    --------
    >>> import noetherflow as nf
    >>> model = nf.models.MLP([3, 6, 2]).double()
    >>> x, y = torch.randn(8, 3).double(), torch.randn(8, 2).double()
    >>> slope = squared_gradient(model, nn.functional.mse_loss, x, y)
    >>> moved = teleport(model, nf.trace(model, x), slope, steps=10)
    >>> moved.after > 1.5 * moved.before, torch.allclose(moved.model(x), model(x))
    (True, True)
    """
    if not radius > 0 or steps < 0:
        raise ModelError(f"Teleportation needs a positive radius and no negative number of steps; got {radius} and {steps}.")
    orbit = orbit_of(model, symmetries, approximate=approximate)
    if isinstance(objective, Mapping):
        return move_to_charges(orbit, objective, inplace=inplace)
    climb = _Climb(orbit, objective, 1.0 if maximize else -1.0, radius)
    before = climb.best
    for _ in range(steps if orbit.families else 0):
        if not climb.step():
            break
    elements = climb.elements(climb.coordinates)
    moved = orbit.carried(elements, inplace=inplace)
    return Moved(moved, tuple(elements), climb.sign * before, climb.sign * climb.best, orbit.left)


class _Climb:
    """Projected gradient ascent inside a box of group coordinates."""

    def __init__(self, orbit: Orbit, objective: Objective, sign: float, radius: float) -> None:
        self.orbit, self.objective, self.sign, self.radius = orbit, objective, sign, radius
        self.start = orbit.tensors()
        self.own = {name: p.detach() for name, p in orbit.model.named_parameters()}
        device = next(iter(self.start.values())).device if self.start else torch.device("cpu")
        self.coordinates = [zeros(f, device) for f in orbit.families]
        self.length = radius / 4
        self.best = float(self.value(self.coordinates).detach())

    def elements(self, coordinates: Sequence[Tensor]) -> list[Element]:
        """The group elements at some coordinates."""
        return [exponential(f, c) for f, c in zip(self.orbit.families, coordinates, strict=True)]

    def value(self, coordinates: Sequence[Tensor]) -> Tensor:
        """The objective, to be made larger."""
        moved = act_all(self.elements(coordinates), self.start)
        cast = {name: t.to(self.own[name].device, self.own[name].dtype) for name, t in moved.items()}
        found: Any = self.objective({**self.own, **cast})
        if not isinstance(found, Tensor) or found.numel() != 1 or not bool(found.isfinite().all()):
            raise ModelError(f"The objective must be one finite number in a tensor; got {found!r:.80}.")
        return self.sign * found.sum()

    def step(self) -> bool:
        """One gradient, and the longest step along it that improves; whether there was one."""
        leaves = [c.clone().requires_grad_() for c in self.coordinates]
        value = self.value(leaves)
        if not value.requires_grad:
            raise ModelError("The objective does not depend on the parameters that symmetries move, or not differentiably.")
        slopes = torch.autograd.grad(value, leaves, allow_unused=True, materialize_grads=True)
        largest = max(float(s.abs().max()) for s in slopes)
        while largest > 0 and self.length > SHORTEST * self.radius:
            trial = [
                (c + self.length / largest * s).clamp(-self.radius, self.radius) for c, s in zip(self.coordinates, slopes, strict=True)
            ]
            reached = self._reached(trial)
            if reached > self.best:
                self.coordinates, self.best = trial, reached
                self.length = min(GROWTH * self.length, self.radius)
                return True
            self.length *= SHRINKAGE
        return False

    def _reached(self, coordinates: Sequence[Tensor]) -> float:
        try:
            return float(self.value(coordinates).detach())
        except ModelError:  # not finite there: too far
            return -torch.inf


def squared_gradient(model: nn.Module, loss: Callable[..., Tensor], inputs: Any, *targets: Any) -> Objective:
    """The objective of symmetry teleportation: ‖∇L‖² over all trainable parameters, on one batch.

    Parameters
    ----------
    model : nn.Module
    loss : callable
        Called as ``loss(output, *targets)``.
    inputs : Tensor or tuple
        What the forward pass takes.
    *targets
        What the loss takes besides the output.
    """
    trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    arguments = inputs if isinstance(inputs, tuple) else (inputs,)

    def objective(parameters: Mapping[str, Tensor]) -> Tensor:
        leaves = {name: p if p.requires_grad else p.detach().requires_grad_(name in trainable) for name, p in parameters.items()}
        value = loss_at(model, leaves, arguments, targets, loss)
        own = [leaves[name] for name in trainable]
        slopes = torch.autograd.grad(value, own, create_graph=True, allow_unused=True, materialize_grads=True)
        return torch.stack([s.square().sum() for s in slopes]).sum()

    return objective
