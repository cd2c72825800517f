"""Actions on the inputs of a module as actions on its parameters: infinitesimal, and by group elements."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from noetherflow.bridge.trace import trace
from noetherflow.errors import ModelError
from noetherflow.numeric.input_groups import Circle, FiniteGroup
from noetherflow.numeric.rounding import confidence, unit_roundoff
from noetherflow.symbolic.graph import ArchitectureGraph
from noetherflow.symbolic.input_actions import FRAME, InputAction, input_actions
from noetherflow.symbolic.symmetries import Symmetry


@dataclass(frozen=True)
class Absorbed:
    """An action on inputs, and what absorbs it.

    Attributes
    ----------
    graph : ArchitectureGraph
        Of the module, without a loss.
    action : InputAction
    group : Circle or FiniteGroup
    frame : Tensor
        The identity, in the shape of the frame.
    axis : int or None
        The axis of the inputs that is acted on; None for all numbers of an example.
    direction : Tensor or None
        Coefficients of the framed symmetry at which the frame moves by a circle's generator.
    """

    graph: ArchitectureGraph
    action: InputAction
    group: Circle | FiniteGroup
    frame: Tensor
    axis: int | None
    direction: Tensor | None

    def act(self, matrix: Tensor, inputs: Tensor) -> Tensor:
        """A matrix on inputs."""
        if self.axis is None:
            return (inputs.flatten(1) @ matrix.T).reshape(inputs.shape)
        return torch.movedim(torch.movedim(inputs, self.axis, -1) @ matrix.T, -1, self.axis)

    def generator(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """ξ_Ω of `noetherflow.symbolic.input_actions` at a point: f(θ; e^{sΩ} x) = f(e^{sξ} θ; x). For circles."""
        if self.direction is None:
            raise ModelError(f"A finite group ({self.group.name}) has no generator; ask for its equivariance.")
        change = self.action.symmetry.tangent({**parameters, FRAME: self.frame}, self.direction)
        return {name: -change[name] for name in self.action.readers}

    def response(self, parameters: Mapping[str, Tensor], gradients: Mapping[str, Tensor], drawn: torch.Generator, draws: int = 8) -> float:
        """Standard deviation of ⟨ξ_Ω, gradients⟩ per unit of independent errors in the entries of Ω, from some draws of these."""
        found = []
        for _ in range(draws):
            noise = torch.randn(int(self.action.symmetry.dimension), generator=drawn, dtype=torch.float64)
            change = self.action.symmetry.tangent({**parameters, FRAME: self.frame}, noise)
            found.append(sum(float((change[name] * g).sum()) for name, g in gradients.items()))
        return math.sqrt(sum(x * x for x in found) / draws)

    def moved(self, parameters: Mapping[str, Tensor], element: Tensor) -> dict[str, Tensor]:
        """Parameters θ' with f(θ'; x) = f(θ; ρ x): what reads an index i of the inputs is multiplied by ρ along it."""
        out = dict(parameters)
        for name in self.action.readers:
            out[name] = parameters[name].detach().clone()
        for action in self.action.symmetry.actions:
            if action.parameter == FRAME:
                continue
            if action.factors or action.image or len(action.places) != 1:
                raise ModelError(f"'{action.parameter}' absorbs the action through gains; elements of a finite group are not written out.")
            block, place = action.patch.view(out[action.parameter]), action.places[-1]
            block.copy_(torch.movedim(torch.movedim(block.clone(), place, -1) @ element, -1, place))
        return out


def absorbed(model: nn.Module, inputs: Tensor, group: Circle | FiniteGroup, axis: int | None = None) -> Absorbed:
    """Which parameters of a module absorb a group that acts on its inputs.

    Raises
    ------
    ModelError
        The sizes do not fit, or nothing absorbs the group.
    """
    if not inputs.dim() or not len(inputs):
        raise ModelError(f"A batch of one sample or more is needed; got inputs of shape {tuple(inputs.shape)}.", shape=tuple(inputs.shape))
    graph = trace(model, inputs)
    found = input_actions(graph, axis)
    last = int(found[0].size) if found else None
    if last is not None and last != group.size:
        raise ModelError(
            f"The network reads {last} numbers along this axis; '{group.name}' acts on {group.size}. Give a group of that size, or the "
            "axis that it mixes (1 for the channels of images). A convolution absorbs what commutes with sliding: mixtures of channels.",
            reads=last,
            acts=group.size,
        )
    if axis is None and inputs[0].numel() != group.size:
        axis = inputs.dim() - 1
    for action in found:
        frame = torch.eye(group.size, dtype=torch.float64).reshape(_shape(action))
        fits, direction = _direction(action, group, frame)
        if fits:
            return Absorbed(graph, action, group, frame, axis, direction)
    raise ModelError(
        f"Nothing in the network absorbs '{group.name}': {'; '.join(map(str, found)) or 'what reads its inputs is not linear'}. "
        "A residual path around the first layer, or an activation before it, lets no action through.",
        actions=found,
    )


def _shape(action: InputAction) -> list[int]:
    """The frame's shape: a matrix, or a convolution of one pixel."""
    framing = next(a for a in action.symmetry.actions if a.parameter == FRAME)
    size, rank = int(action.size), len(framing.patch.offsets)
    return [size, size] + [1] * (rank - 2)


def _direction(action: InputAction, group: Circle | FiniteGroup, frame: Tensor) -> tuple[bool, Tensor | None]:
    """Whether a family holds a group, and for a circle at which coefficients."""
    if isinstance(group, FiniteGroup):
        return action.algebra == "matrices", None
    direction = _pulled_back(action.symmetry, frame, group.generator.reshape(frame.shape))
    return direction is not None, direction


def _pulled_back(symmetry: Symmetry, frame: Tensor, wanted: Tensor) -> Tensor | None:
    """Coefficients at which the frame moves by a given matrix; None if there are none.

    What the coefficients do to the frame is an isometry up to a factor (matrices, antisymmetric ones, diagonals), so its adjoint finds
    them, and the test of what comes out is a proof.
    """
    parameters: dict[str, Any] = {name: frame.new_ones(1) for name in symmetry.parameters} | {FRAME: frame}
    own = tuple(a for a in symmetry.actions if a.parameter == FRAME)
    free = torch.zeros(int(symmetry.dimension), dtype=frame.dtype, requires_grad=True)
    coefficients = symmetry.coefficients(free)
    changes = [(a.patch.view(wanted), a.change(parameters, a.patch.view(frame), coefficients)) for a in own]
    pairing = torch.stack([(there * here).sum() for there, here in changes]).sum()
    (adjoint,) = torch.autograd.grad(pairing, free)
    made = torch.zeros_like(frame)
    for a in own:
        a.patch.view(made).add_(a.change(parameters, a.patch.view(frame), symmetry.coefficients(adjoint)))
    size = float(made.square().sum())
    if size == 0:
        return None
    factor = float((made * wanted).sum()) / size
    tolerance = confidence(wanted.numel()) * unit_roundoff(frame.dtype) * len(frame) ** 0.5 * float(wanted.abs().max())
    return factor * adjoint if float((factor * made - wanted).abs().max()) <= tolerance else None
