"""What a finite group of input transformations gives: an equivariant gradient, and no infinitesimal restriction.

Let the loss be averaged over a finite group of orthogonal ρ, and let θ·ρ be the parameters with f(θ·ρ; x) = f(θ; ρ x) (one layer: W ρ).
Averaging over the group makes L(θ·ρ) = L(θ) for all θ; by the chain rule

    ∇L(θ·ρ) = ∇L(θ)·ρ .                                                                                      (1)

So where θ·ρ = θ, the gradient is fixed too: the fixed subspace is invariant under gradient flow, gradient descent, heavy ball and coupled
or decoupled decay, and what of the gradient is orthogonal to it vanishes there. A finite group has no generator, so no momentum vanishes
elsewhere. Source: own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

import torch
from torch import Tensor, nn

from noetherflow.bridge.absorbed_actions import Absorbed, absorbed
from noetherflow.bridge.augmentation_momenta import SHIFT, Loss, fan
from noetherflow.bridge.replay import loss_function
from noetherflow.errors import ModelError
from noetherflow.numeric.input_groups import FiniteGroup
from noetherflow.numeric.model_loss import loss_at
from noetherflow.numeric.rounding import confidence, unit_roundoff


@dataclass(frozen=True)
class AugmentationEquivariance:
    """Whether a gradient is carried along by a finite group.

    Attributes
    ----------
    group : str
    readers : tuple of str
        Parameters that absorb the action.
    elements : int
        Over how many the loss was averaged.
    defects, bounds : tuple of float
        For each generator ρ of the group: ‖∇L(θ·ρ) - ∇L(θ)·ρ‖ over all parameters, and what rounding may leave of it.
    size : float
        ‖∇L(θ)‖.
    """

    group: str
    readers: tuple[str, ...]
    elements: int
    defects: tuple[float, ...]
    bounds: tuple[float, ...]
    size: float

    @property
    def holds(self) -> bool:
        """Whether every defect is zero to rounding."""
        return all(d <= b for d, b in zip(self.defects, self.bounds, strict=True))

    def __str__(self) -> str:
        state = "equivariant to rounding" if self.holds else "not equivariant"
        return (
            f"{self.group}, absorbed by {', '.join(self.readers)}, {self.elements} elements: gradient {state}\n"
            f"  largest defect {max(self.defects):.1e} (rounding {max(self.bounds):.0e}) of a gradient of length {self.size:.2g}"
        )

    def _repr_html_(self) -> str:
        return f"<pre>{escape(str(self))}</pre>"


def augmentation_equivariance(
    model: nn.Module,
    batch: tuple[Tensor, Tensor],
    loss: Loss,
    group: FiniteGroup,
    *,
    elements: Sequence[int] | None = None,
    axis: int | None = None,
    seed: int = 0,
) -> AugmentationEquivariance:
    """Measure whether the gradient of a loss averaged over a finite group is equivariant, equation (1).

    Parameters
    ----------
    model, batch, loss, axis, seed
        As for `noetherflow.augmentation_momenta`.
    group : FiniteGroup
    elements : sequence of int, optional
        Average over these of the group's elements alone. By default over all: over fewer, (1) does not hold.

    Returns
    -------
    AugmentationEquivariance
        Exact to a rounding bound, as in `noetherflow.augmentation_momenta`.

    Raises
    ------
    ModelError
        As there; for a circle; for numbers that the group does not have; and for a network that absorbs rotations only through gains.
    RunError
        As there.

    Examples
    --------
    >>> import noetherflow as nf
    >>> model = nf.models.build("mlp", seed=0, widths=(5, 4, 2), activation="tanh").double()
    >>> x, y = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).double(), torch.tensor([0, 1, 1])
    >>> shifts = nf.input_groups.cyclic_shifts(5)
    >>> augmentation_equivariance(model, (x, y), "cross_entropy", shifts).holds
    True
    >>> augmentation_equivariance(model, (x, y), "cross_entropy", shifts, elements=[0, 1]).holds
    False
    """
    coarse = [name for name, p in model.named_parameters() if p.dtype != torch.float64]
    if coarse or batch[0].dtype != torch.float64:
        raise ModelError(f"Gradients are compared in float64; {coarse[:4] or 'the inputs'} are not. Use .double().", parameters=coarse)
    if not isinstance(group, FiniteGroup):
        raise ModelError(f"The average is over a finite group; got {type(group).__name__}. For a circle ask nf.augmentation_momenta.")
    site = absorbed(model, batch[0], group, axis)
    run = _Average(site, model, loss_function(loss), batch, group.elements, torch.Generator().manual_seed(seed))
    chosen = range(group.order) if elements is None else elements
    if not len(chosen) or any(not 0 <= k < group.order for k in chosen):
        raise ModelError(f"Elements are numbers from 0 to {group.order - 1}, one or more; got {list(chosen)[:6]}.", elements=chosen)
    parameters = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    here, spread = run.gradient(parameters, chosen)
    defects, bounds = [], []
    for generator in group.generators:
        there, further = run.gradient(site.moved(parameters, generator), chosen)
        carried = site.moved(here, generator)
        defects.append(_length({name: there[name] - carried[name] for name in there}))
        bounds.append(confidence(len(group.generators)) * unit_roundoff(torch.float64) * math.hypot(spread, further))
    return AugmentationEquivariance(group.name, site.action.readers, len(chosen), tuple(defects), tuple(bounds), _length(here))


@dataclass(frozen=True)
class _Average:
    site: Absorbed
    model: nn.Module
    loss: Callable[..., Tensor]
    batch: tuple[Tensor, Tensor]
    elements: Tensor
    drawn: torch.Generator

    def gradient(self, parameters: dict[str, Tensor], chosen: Sequence[int]) -> tuple[dict[str, Tensor], float]:
        """The gradient averaged over elements, and the length of its change under one rounding of each, in units of that rounding."""
        total = {name: torch.zeros_like(p) for name, p in parameters.items()}
        squared = 0.0
        for k in chosen:
            inputs = self.site.act(self.elements[k], self.batch[0])
            here = self._at(parameters, inputs)
            there = self._at({name: self._shifted(p, fan(p)) for name, p in parameters.items()}, self._shifted(inputs, inputs[0].numel()))
            squared += sum(float((there[name] - here[name]).square().sum()) for name in here) / SHIFT**2
            # partial sums round too: each entry once for every element
            squared += sum(float(g.square().sum()) for g in here.values()) * len(chosen)
            for name, g in here.items():
                total[name] += g / len(chosen)
        return total, math.sqrt(squared) / len(chosen)

    def _at(self, parameters: dict[str, Tensor], inputs: Tensor) -> dict[str, Tensor]:
        leaves = {name: p.clone().requires_grad_() for name, p in parameters.items()}
        value = loss_at(self.model, leaves, (inputs,), self.batch[1:], self.loss)
        slopes = torch.autograd.grad(value, list(leaves.values()), allow_unused=True, materialize_grads=True)
        return dict(zip(leaves, slopes, strict=True))

    def _shifted(self, tensor: Tensor, roundings: int) -> Tensor:
        noise = torch.randn(tensor.shape, generator=self.drawn, dtype=tensor.dtype)
        return tensor * (1 + SHIFT * math.sqrt(roundings) * noise)


def _length(tensors: dict[str, Tensor]) -> float:
    return math.sqrt(sum(float(t.square().sum()) for t in tensors.values()))
