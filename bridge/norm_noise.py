"""How much rounding a batch normalisation's backward pass puts on the identities of its input's scale and shift.

Scaling or shifting the input x of a channel changes nothing, so Σ x ∂L/∂x and Σ ∂L/∂x vanish (up to eps): exactly the sums that floating
point gets wrong by their summands' size. With p = (gain / deviation) ∂L/∂y, x̂ = (x - mean) / deviation and M values in the channel

    ∂L/∂x = p - (Σp + x̂ Σ p x̂) / M ,

- the two sums are made once; an error of Σp reaches Σ ∂L/∂x whole and Σ x ∂L/∂x times the mean; one of Σ p x̂ reaches the latter times the
  deviation. Adding up M terms errs by √M roundoffs of the partial sums' size, which is the root square of the terms if their signs are
  random and much more where an image's background pulls one way: the largest partial sum is measured. Equal terms in a row (background
  again) round alike, so their errors add up instead of averaging out: runs of lengths r give Σ r² in place of M.
- the gradient of the weight w that makes x = w·z sums the products ∂L/∂x z, whose partial sums do not cancel as those of ∂L/∂x x may.
- every element's own rounding pairs up with x, and values that are equal (background pixels) round alike: at worst √M times as much.

Returned per channel: Σ of squares that multiply the squared roundoff of summation (M included), and those of single elements.
Source: own; higham2019probabilistic for the √M.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class NormNoise:
    """Squares per channel, float64, for ⟨ξ, g⟩ of a unit scale and of a unit shift of the input.

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

    def parts(self) -> tuple[Tensor, ...]:
        """All squares."""
        return self.scale_sums, self.scale_elements, self.shift_sums, self.shift_elements, self.weight_sums


def norm_noise(inputs: Tensor, output_gradient: Tensor, input_gradient: Tensor, slope: Tensor) -> NormNoise:
    """Measure the sizes that rounding acts on; reads the three activations once.

    Parameters
    ----------
    inputs : Tensor, shape (batch, channels, ...)
    output_gradient, input_gradient : Tensor
        ∂L/∂y and ∂L/∂x, same shape.
    slope : Tensor, shape (channels,)
        gain / deviation, float64.

    Examples
    --------
    >>> x = torch.tensor([[1.0], [3.0]])
    >>> norm_noise(x, torch.tensor([[1.0], [1.0]]), torch.zeros(2, 1), torch.ones(1, dtype=torch.float64)).shift_sums
    tensor([8.], dtype=torch.float64)
    """
    dims = [d for d in range(inputs.dim()) if d != 1]
    shape = [1, -1, *[1] * (inputs.dim() - 2)]
    x, dx = inputs.detach().double(), input_gradient.detach().double()
    p = output_gradient.detach().double() * slope.reshape(shape)
    mean, count = x.mean(dims), _roundings(inputs)
    centred = p * (x - mean.reshape(shape))
    of_p, of_centred, own, paired = (_partial(t) for t in (p, centred, dx, dx * x))
    return NormNoise(
        scale_sums=count * (of_centred + mean**2 * of_p + paired),
        scale_elements=((p * x) ** 2).sum(dims) + ((dx * x) ** 2).sum(dims),
        shift_sums=count * (of_p + own),
        shift_elements=(p * p).sum(dims) + (dx * dx).sum(dims),
        weight_sums=count * own,
    )


def _roundings(inputs: Tensor) -> float:
    """Σ r² over runs of r equal values in memory order, per channel: the number of values if no two neighbours are equal."""
    rows = inputs.detach().transpose(0, 1).reshape(inputs.shape[1], -1)
    new = torch.ones_like(rows, dtype=torch.bool)
    new[:, 1:] = rows[:, 1:] != rows[:, :-1]
    starts = new.reshape(-1).nonzero().reshape(-1).double()
    lengths = torch.diff(starts, append=starts.new_tensor([rows.numel()]))
    return float((lengths * lengths).sum()) / rows.shape[0]


def _partial(terms: Tensor) -> Tensor:
    """Per channel: the square of the largest partial sum, and at least the sum of squares."""
    rows = terms.transpose(0, 1).reshape(terms.shape[1], -1)
    return torch.maximum(rows.cumsum(1).abs().amax(1) ** 2, (rows * rows).sum(1))
