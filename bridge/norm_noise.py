"""How much rounding a normalisation's backward pass puts on the identities of its input's scale and shift.

Scaling or shifting the values x of one statistic (a channel of BatchNorm, a sample and position of LayerNorm) changes nothing, so Σ x ∂L/∂x
and Σ ∂L/∂x vanish (up to eps): exactly the sums that floating point gets wrong by their summands' size. With p = (gain / deviation) ∂L/∂y,
x̂ = (x - mean) / deviation and M values (without Σp, and mean 0, for RMSNorm, which does not centre)

    ∂L/∂x = p - (Σp + x̂ Σ p x̂) / M ,

- the two sums are made once; an error of Σp reaches Σ ∂L/∂x whole and Σ x ∂L/∂x times the mean; one of Σ p x̂ reaches the latter times the
  deviation. Adding up M terms errs by √M roundoffs of the partial sums' size, which is the root square of the terms if their signs are
  random and much more where an image's background pulls one way: the largest partial sum is measured. Equal terms in a row (background
  again) round alike, so their errors add up instead of averaging out: runs of lengths r give Σ r² in place of M.
- the gradient of the weight w that makes x = w·z sums the products ∂L/∂x z, whose partial sums do not cancel as those of ∂L/∂x x may.
- every element's own rounding pairs up with x, and values that are equal (background pixels) round alike: at worst √M times as much.

Returned per statistic: Σ of squares that multiply the squared roundoff of summation (M included), and those of single elements.
Source: own; higham2019probabilistic for the √M.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from noetherflow.bridge.norm_layout import Layout


@dataclass(frozen=True)
class NormNoise:
    """Squares per statistic (or per charge, once summed), float64, for ⟨ξ, g⟩ of a unit scale and of a unit shift of the input.

    Attributes
    ----------
    scale_sums, shift_sums : Tensor
        Times the squared roundoff of summation.
    scale_elements, shift_elements : Tensor
        Times the squared roundoff of activations.
    weight_sums : Tensor
        Times the squared roundoff of summation, the weight's squared norm and the mean square of what it multiplies.
    """

    scale_sums: Tensor
    scale_elements: Tensor
    shift_sums: Tensor
    shift_elements: Tensor
    weight_sums: Tensor

    def __add__(self, other: NormNoise) -> NormNoise:
        return NormNoise(*(a + b for a, b in zip(self.parts(), other.parts(), strict=True)))

    def scaled(self, factor: Tensor | float) -> NormNoise:
        """Every square times a factor."""
        return NormNoise(*(a * factor for a in self.parts()))

    def larger(self, other: NormNoise) -> NormNoise:
        """The larger of each."""
        return NormNoise(*(torch.maximum(a, b) for a, b in zip(self.parts(), other.parts(), strict=True)))

    def mapped(self, function: Callable[[Tensor], Tensor]) -> NormNoise:
        """A function of each."""
        return NormNoise(*(function(a) for a in self.parts()))

    def parts(self) -> tuple[Tensor, ...]:
        """All squares."""
        return self.scale_sums, self.scale_elements, self.shift_sums, self.shift_elements, self.weight_sums


def norm_noise(layout: Layout, inputs: Tensor, normalized_gradient: Tensor, eps: float) -> NormNoise:
    """Measure the sizes that rounding acts on; reads the two activations once.

    Parameters
    ----------
    layout : Layout
    inputs : Tensor
        x, of any shape that the layout reads.
    normalized_gradient : Tensor
        The gradient at the normalised tensor (gain times ∂L/∂y), same shape.
    eps : float

    Returns
    -------
    NormNoise
        Every entry of shape (statistics...).

    Examples
    --------
    >>> x = torch.tensor([[1.0], [3.0]])
    >>> norm_noise(Layout("batch_norm", 2), x, torch.tensor([[1.0], [1.0]]), 0.0).shift_sums
    tensor([8.], dtype=torch.float64)
    """
    x, gradient = (layout.rows(t.detach()).double() for t in (inputs, normalized_gradient))
    mean = x.mean(-1, keepdim=True) if layout.centred else torch.zeros_like(x[..., :1])
    centred = x - mean
    inverse = (centred.square().mean(-1, keepdim=True) + eps).rsqrt()
    p, unit = gradient * inverse, centred * inverse
    dx = p - unit * (p * unit).mean(-1, keepdim=True)
    dx = dx - p.mean(-1, keepdim=True) if layout.centred else dx
    of_p, of_centred, own, paired = (partial_squares(t) for t in (p, p * centred, dx, dx * x))
    count = _roundings(x)
    return NormNoise(
        scale_sums=count * (of_centred + mean.squeeze(-1) ** 2 * of_p + paired),
        scale_elements=((p * x) ** 2).sum(-1) + ((dx * x) ** 2).sum(-1),
        shift_sums=count * (of_p + own),
        shift_elements=(p * p).sum(-1) + (dx * dx).sum(-1),
        weight_sums=_of_weights(layout, inputs, x, dx),
    )


def _of_weights(layout: Layout, inputs: Tensor, x: Tensor, dx: Tensor) -> Tensor:
    count = layout.channel_count(inputs)
    partial = partial_squares(layout.channels(dx, count))
    return layout.per_row(_roundings(layout.channels(x, count)) * partial, dx)


def _roundings(rows: Tensor) -> float:
    """Σ r² over runs of r equal values in memory order, per row: the number of values if no two neighbours are equal."""
    rows = rows.reshape(-1, rows.shape[-1])
    new = torch.ones_like(rows, dtype=torch.bool)
    new[:, 1:] = rows[:, 1:] != rows[:, :-1]
    starts = new.reshape(-1).nonzero().reshape(-1).double()
    lengths = torch.diff(starts, append=starts.new_tensor([rows.numel()]))
    return float((lengths * lengths).sum()) / rows.shape[0]


def partial_squares(rows: Tensor) -> Tensor:
    """Per row: the square of the largest partial sum, and at least the sum of squares."""
    return torch.maximum(rows.cumsum(-1).abs().amax(-1) ** 2, (rows * rows).sum(-1))
