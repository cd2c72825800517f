"""Group elements of families of symmetries, and their action on tensors: composable and differentiable, unlike `Symmetry.transform`.

A family's coordinates are an array over its indices: logarithms of scales, shifts, or matrices X. Three maps are all that orbits need:

    act      exp(coordinates) on tensors: P -> exp(w a) P,  P -> P + w a,  P -> g P (weight 1) or g^-T P (weight -1)
    tangent  the generator ξ(θ) = J(θ) a as a linear map of the coordinates
    pairing  its adjoint J(θ)ᵀ y: for y = θ twice the charges
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from noetherflow.symbolic.actions import Action, Patch
from noetherflow.symbolic.symmetries import Symmetry

Tensors = Mapping[str, Tensor]
Coordinates = list[Tensor]


@dataclass(frozen=True, slots=True)
class Element:
    """A group element of one family.

    Parameters
    ----------
    family : Symmetry
    value : Tensor
        Logarithms of scales or shifts, shape `family.sizes`; for a matrix family the matrices, shape (*sizes, sizes[-1]).
    inverse : Tensor, optional
        Of a matrix family: carried along, so that an ill-conditioned matrix is never inverted.
    """

    family: Symmetry
    value: Tensor
    inverse: Tensor | None = None

    def after(self, first: Element) -> Element:
        """The product of two elements of one family: `first` acts, then this one."""
        if self.inverse is None or first.inverse is None:
            return Element(self.family, self.value + first.value)
        return Element(self.family, self.value @ first.value, first.inverse @ self.inverse)

    def act(self, tensors: Tensors) -> dict[str, Tensor]:
        """Tensors by name, those that move replaced; gradients flow to tensors and element."""
        out = dict(tensors)
        for action in self.family.actions:
            whole = out[action.parameter]
            out[action.parameter] = _replaced(action.patch, whole, self._moved(action, action.patch.view(whole)))
        return out

    def _moved(self, action: Action, block: Tensor) -> Tensor:
        weight = float(action.weight)
        if self.inverse is not None:
            return applied(action, self.value if weight > 0 else self.inverse.mT, block)
        change: Tensor = weight * action.spread(self.value)
        return block + change if action.form == "shift" else change.exp() * block


def exponential(family: Symmetry, coordinates: Tensor) -> Element:
    """The element with the given coordinates."""
    if not family.matrix:
        return Element(family, coordinates)
    return Element(family, torch.linalg.matrix_exp(coordinates), torch.linalg.matrix_exp(-coordinates))


def zeros(family: Symmetry, device: torch.device) -> Tensor:
    """Coordinates of the identity, in float64."""
    sizes = [int(n) for n in family.sizes]
    return torch.zeros([*sizes, sizes[-1]] if family.matrix else sizes, dtype=torch.float64, device=device)


def act_all(elements: Iterable[Element], tensors: Tensors) -> dict[str, Tensor]:
    """Act with one element after the other."""
    out = dict(tensors)
    for element in elements:
        out = element.act(out)
    return out


def tangent(families: Sequence[Symmetry], tensors: Tensors, coordinates: Sequence[Tensor]) -> dict[str, Tensor]:
    """ξ(θ) of all families together: parameter -> change, same shape."""
    out = {name: torch.zeros_like(tensors[name]) for family in families for name in family.parameters}
    for family, a in zip(families, coordinates, strict=True):
        for action in family.actions:
            change = _change(action, action.patch.view(tensors[action.parameter]), a)
            action.patch.view(out[action.parameter]).add_(change)
    return out


def _change(action: Action, block: Tensor, a: Tensor) -> Tensor:
    weight = float(action.weight)
    if action.form == "matrix":
        return applied(action, a if weight > 0 else -a.mT, block)
    spread: Tensor = weight * action.spread(a)
    return spread if action.form == "shift" else spread * block


def pairing(family: Symmetry, tensors: Tensors, others: Tensors, *, power: int = 1) -> Tensor:
    """Σ weight^power · ⟨ξ(θ), y⟩ for every generator of a family: the adjoint of `tangent` (at power 1).

    With y = θ and power 1 it is twice the charge (the charge itself for shifts). Power 2 gives masses with squared weights.
    """
    out: Tensor | float = 0.0
    for action in family.actions:
        x, y = action.patch.view(tensors[action.parameter]), action.patch.view(others[action.parameter])
        out = out + float(action.weight) ** power * _paired(action, x, y)
    assert isinstance(out, Tensor)
    return out


def _paired(action: Action, x: Tensor, y: Tensor) -> Tensor:
    if action.form == "matrix":
        a, b = lead(action, x), lead(action, y)
        return b @ a.mT if action.weight > 0 else a @ b.mT
    product = (y if action.form == "shift" else x * y).expand([int(index.size) for index in action.patch.indices])
    free = [d for d in range(product.dim()) if d not in action.places]
    summed = product.sum(free) if free else product
    order = sorted(range(len(action.places)), key=action.places.__getitem__)
    return summed.permute([order.index(k) for k in range(len(order))]) if order else summed


def lead(action: Action, block: Tensor) -> Tensor:
    """A block as matrices, shape (spectators..., n, all the rest), rows along the family's last index."""
    dims = [*action.places, *(d for d in range(block.dim()) if d not in action.places)]
    moved = block.permute(dims)
    return moved.reshape([*moved.shape[: len(action.places)], -1])


def applied(action: Action, matrix: Tensor, block: Tensor) -> Tensor:
    """Matrices, shape (spectators..., n, n), times a block along the family's last index."""
    dims = [*action.places, *(d for d in range(block.dim()) if d not in action.places)]
    shape = [block.shape[d] for d in dims]
    return (matrix @ lead(action, block)).reshape(shape).permute([dims.index(d) for d in range(block.dim())])


def projected(family: Symmetry, coordinates: Tensor) -> Tensor:
    """The nearest coordinates that the family has: zero mean along each index, or symmetric matrices (the others rotate)."""
    if family.matrix:
        return (coordinates + coordinates.mT) / 2
    for axis in sorted(family.zero_mean):
        coordinates = coordinates - coordinates.mean(axis, keepdim=True)
    return coordinates


def _replaced(patch: Patch, whole: Tensor, block: Tensor) -> Tensor:
    """A tensor with one block put in, as a new tensor."""
    if patch.covers(whole):
        return block
    out = whole.clone()
    patch.view(out).copy_(block)
    return out
