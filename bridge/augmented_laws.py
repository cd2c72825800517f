"""How many conservation laws gradient flow has for every data set that a group of input transformations leaves unchanged.

A data set with the symmetry is a union of orbits, so its loss is a sum of losses L(θ; x, y) = mean over ρ of ℓ(f(θ; ρ x), ρ' y), one for
each orbit. A function is conserved for all such data exactly if it is constant along the gradients of these, and along their brackets:
there are D - dim Lie{∇L(·; x, y)}(θ) independent ones near a generic θ (marcotte2023abide, section 2, with orbits for samples). What is
more than without the group is what the data's symmetry adds. The reason is a distribution: ∇L is orthogonal to the group's orbits, a
velocity restriction for each generator, and such restrictions have integrals exactly as far as they are not undone by brackets.

Source: own; the count is that of marcotte2023abide.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.func import grad, vmap

from noetherflow.bridge.augmentation_momenta import Loss
from noetherflow.bridge.replay import loss_function
from noetherflow.errors import ModelError
from noetherflow.numeric import brackets
from noetherflow.numeric.input_groups import closed
from noetherflow.numeric.lie_rank import FloatSpace, Growth, grow
from noetherflow.numeric.model_loss import output_at

LARGEST: Final = 200
CLEAR: Final = 1e6
"""A spectral gap below this is no clear rank (as in `noetherflow.numeric.functional_rank`)."""


@dataclass(frozen=True)
class AugmentedLaws:
    """Counts of laws, with and without the symmetry of the data.

    Attributes
    ----------
    parameters : int
        D.
    lie_dimension, lie_dimension_of_all : int
        Of the gradients of losses on symmetric data, and on all data.
    gap : float
        The smaller spectral gap of the two ranks.
    group, loss : str
    """

    parameters: int
    lie_dimension: int
    lie_dimension_of_all: int
    gap: float
    group: str
    loss: str

    @property
    def laws(self) -> int:
        """Independent laws on symmetric data."""
        return self.parameters - self.lie_dimension

    @property
    def without(self) -> int:
        """Independent laws on all data."""
        return self.parameters - self.lie_dimension_of_all

    @property
    def added(self) -> int:
        """What the symmetry of the data adds."""
        return self.laws - self.without

    def __str__(self) -> str:
        return (
            f"{self.laws} laws under {self.loss} on data with {self.group}: {self.added} more than on all data\n"
            f"  {self.parameters} parameters, Lie algebras of dimension {self.lie_dimension} and {self.lie_dimension_of_all}, "
            f"gap {self.gap:.0e}"
        )

    def _repr_html_(self) -> str:
        return f"<pre>{escape(str(self))}</pre>"


def augmented_laws(
    model: nn.Module,
    elements: Tensor,
    loss: Loss = "mse",
    *,
    targets: Tensor | None = None,
    group: str = "the group",
    seed: int = 0,
) -> AugmentedLaws:
    """Count the conservation laws of gradient flow for all data sets that a finite set of input transformations leaves unchanged.

    Parameters
    ----------
    model : nn.Module
        Small and smooth, from vectors to vectors; its weights do not matter.
    elements : Tensor, shape (order, d, d)
        Of a finite group (``group.elements``), or equispaced ones of a circle: as good as the circle once their aliasing error is rounding.
    loss : "mse", "cross_entropy" or callable
        As ``loss(output, target)`` of one example; targets are drawn at random (probabilities for cross-entropy).
    targets : Tensor, shape (order, o, o), optional
        How targets move along. By default they stay.
    group : str
        Its name, for the report.
    seed : int

    Returns
    -------
    AugmentedLaws
        Sampled in float64 at one random point: ranks are lower bounds, so counts are upper bounds; with probability one exact where a
        whole level of brackets brought nothing.

    Raises
    ------
    ModelError
        Too many parameters, no clear rank, or elements that are no group.
    RunError
        The model does not take vectors of the elements' size, or the loss is unknown.

    Examples
    --------
    One linear unit behind three pixels that may be permuted at will, and its readout:

    >>> from noetherflow.numeric.input_groups import generated
    >>> places = torch.eye(3, dtype=torch.float64)
    >>> permutations = generated(places[[1, 0, 2]], places[[1, 2, 0]])
    >>> model = nn.Sequential(nn.Linear(3, 1, bias=False), nn.Linear(1, 1, bias=False)).double()
    >>> found = augmented_laws(model, permutations.elements)
    >>> found.without, found.added
    (1, 1)
    """
    shapes = {name: p.shape for name, p in model.named_parameters() if p.requires_grad}
    count = sum(math.prod(shape) for shape in shapes.values())
    if not 0 < count <= LARGEST:
        raise ModelError(f"Laws on symmetric data are counted for 1 to {LARGEST} parameters; the model has {count}. Make it narrower.")
    if elements.dim() != 3 or elements.shape[1] != elements.shape[2] or not closed(elements.double()):
        raise ModelError(
            f"Elements of a group are wanted, of shape (order, d, d), with every product among them; got shape {tuple(elements.shape)}. "
            "Give the elements of nf.input_groups.generated(...), or equispaced ones of a circle."
        )
    if targets is not None and (targets.dim() != 3 or len(targets) != len(elements)):
        raise ModelError(f"Targets move by one matrix for each element; got shape {tuple(targets.shape)} for {len(elements)} elements.")
    counting = _Counting(model, loss_function(loss), loss == "cross_entropy", shapes, seed)
    alone = torch.eye(elements.shape[-1], dtype=torch.float64)[None]
    symmetric, of_all = counting.rank(elements.double(), targets), counting.rank(alone, None if targets is None else targets[:1])
    name = loss if isinstance(loss, str) else getattr(loss, "__name__", "the loss")
    return AugmentedLaws(count, symmetric[0].rank, of_all[0].rank, min(symmetric[1], of_all[1]), group, name)


@dataclass(frozen=True)
class _Counting:
    model: nn.Module
    loss: Callable[..., Tensor]
    probabilities: bool
    shapes: dict[str, torch.Size]
    seed: int

    def rank(self, elements: Tensor, targets: Tensor | None) -> tuple[Growth, float]:
        """Dimension of the Lie algebra at a random point, and the gap there."""
        drawn = torch.Generator().manual_seed(self.seed)
        theta = {name: torch.randn(shape, generator=drawn, dtype=torch.float64) for name, shape in self.shapes.items()}
        outputs = self._outputs(theta, torch.zeros(1, elements.shape[-1], dtype=torch.float64)).shape[-1]
        scalar = self._averaged(elements, targets)
        count = sum(p.numel() for p in theta.values())

        def draw(level: int, first: int, rows: int) -> tuple[Tensor, int]:
            def sample() -> tuple[Tensor, Tensor]:
                x, y = (torch.randn(rows, size, generator=drawn, dtype=torch.float64) for size in (elements.shape[-1], outputs))
                return x, torch.softmax(y, 1) if self.probabilities else y

            samples: Any = sample()
            for _ in range(level):
                samples = (sample(), samples)
            return brackets.rows(grad(scalar), theta, level, samples, brackets.symmetric_derivative(grad(scalar))), first + rows

        space = FloatSpace(count)
        growth = grow(draw, space, count, spare=4, at_once=64)
        if space.gap < CLEAR:
            raise ModelError(f"The rank of the brackets is not clear (gap {space.gap:.0e}). Try another seed.", gap=space.gap)
        return growth, space.gap

    def _averaged(self, elements: Tensor, targets: Tensor | None) -> brackets.Scalar:
        def scalar(theta: dict[str, Tensor], sample: Any) -> Tensor:
            x, y = sample
            outputs = self._outputs(theta, elements @ x)
            aims = y.expand(len(elements), -1) if targets is None else targets @ y
            return vmap(self.loss)(outputs, aims).mean()

        return scalar

    def _outputs(self, theta: dict[str, Tensor], inputs: Tensor) -> Tensor:
        outputs: Tensor = output_at(self.model, theta, (inputs,))
        return outputs
