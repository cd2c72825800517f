"""How far rounding alone can move a charge in one step: the standard deviations that a bound is made of.

With unit roundoff u of the parameters and ξ the generator, per charge and step:

- the update θ' = fl(θ - ηv) rounds each entry by at most u|θ'|: σ² = u² Σ ξ²θ'²; where it is smaller than that, the same way at every step
  (`repeated_variance`)
- a gradient entry sums M products in the accumulation dtype (roundoff a): σ² = M a² g² for each; the passes between the two sides of a
  symmetry round activations a few times (`PASSES`), and so does the buffer: σ² = PASSES u² g²; ξ pairs these up: Σ ξ²(...)
- the gradient of a table that indices pick is a sum over all that picked a row, added up one by one. On a CPU these sums are made in the
  table's own type, half precision too: N additions round the partial sums, σ² = N u² g², and once these are 1/u times what is added, it is
  lost, always in the same sense: N - 1/u times at most u g (`scattered_variance`)
- a scale or shift that a normalisation absorbs cancels over its whole batch: `norm_noise` says what rounding acts on there
- the evaluation itself, in float64

Sums Σ ξ²x² of fourth order are known exactly every `REFRESH` steps; in between their ratio to (Σξθ)(Σx²) is kept, the largest seen.
Source: higham2019probabilistic for independent roundings; own for the sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Final

import torch
from torch import Tensor

from noetherflow.bridge.precisions import Met
from noetherflow.numeric.rounding import accumulation, unit_roundoff
from noetherflow.symbolic.graph import ArchitectureGraph
from noetherflow.symbolic.picks import PICKED_BY

PASSES: Final = 16.0
REFRESH: Final = 25
DOUBLE: Final = 2.0**-53


@dataclass(frozen=True)
class Precision:
    """Roundoffs of one group of parameters, and the lengths of the sums that make their gradients.

    Attributes
    ----------
    unit : float
        Of the parameters' dtype.
    passes, accumulated : Tensor, shape (charges,)
        Of activations, and of the dtype that products are summed in.
    inside, summed : Tensor, shape (charges,)
        The same in the normalisations that absorb the change.
    lengths : Tensor, shape (charges,)
        Longest sum of products behind each charge.
    scattered : Tensor, shape (charges,)
        Longest sum that is added up in the type of what is added, half precision too.
    """

    unit: float
    passes: Tensor
    accumulated: Tensor
    inside: Tensor
    summed: Tensor
    lengths: Tensor
    scattered: Tensor

    @classmethod
    def of(cls, dtype: torch.dtype, met: Sequence[Met], lengths: Tensor, scattered: Tensor) -> Precision:
        """Precision of parameters of `dtype` whose passes meet these types, for each charge."""
        coarser = [own.with_all(dtype) for own in met]
        passed, absorbed = [own.passed for own in coarser], [own.absorbed for own in coarser]
        kinds = (passed, map(accumulation, passed), absorbed, map(accumulation, absorbed))
        passes, accumulated, inside, summed = (lengths.new_tensor([unit_roundoff(kind) for kind in each]) for each in kinds)
        return cls(unit_roundoff(dtype), passes, accumulated, inside, summed, lengths, scattered)

    @property
    def per_entry(self) -> Tensor:
        """Variance of the rounding of one gradient entry, over its square."""
        sums = self.lengths * self.accumulated**2 + PASSES * self.passes**2
        return sums + torch.where(self.accumulated < self.passes, scattered_variance(self.scattered, self.passes), 0.0)


def gradient_variance(precision: Precision, fourth: Tensor, weight: Tensor, vanishing: Tensor) -> Tensor:
    """Variance of the rounding error of ⟨ξ, g⟩.

    Parameters
    ----------
    precision : Precision
    fourth : Tensor
        Σ ξ²g².
    weight : Tensor
        Σ θ² of the parameters behind each charge.
    vanishing : Tensor, shape (3, charges)
        What a normalisation that absorbs the change adds (`norm_noise`): squares of sums, of elements, and of sums per Σ θ².
    """
    sums, elements, per_weight = vanishing
    absorbed = precision.summed**2 * sums + precision.inside**2 * elements + precision.accumulated**2 * weight * per_weight
    found: Tensor = precision.per_entry * fourth + PASSES * absorbed
    return found


def scattered_variance(count: Tensor, unit: Tensor) -> Tensor:
    """Variance of the rounding of sums that are added up term by term in a type of roundoff `unit`, over their squares.

    Examples
    --------
    >>> (scattered_variance(torch.tensor([16.0, 512.0]), torch.tensor([2.0**-8, 2.0**-8])) * 2.0**16).tolist()
    [16.0, 66048.0]
    """
    lost = (count - 1 / unit).clamp(min=0)
    return (count + lost * lost) * unit**2


def update_variance(unit: float, fourth: Tensor, size: Tensor) -> Tensor:
    """Variance of the rounding error that one update puts on a charge, the float64 arithmetic of its prediction included.

    Parameters
    ----------
    unit : float
    fourth : Tensor
        Σ ξ²θ².
    size : Tensor
        Σ |ξ||θ|-like size of the charge.
    """
    return unit**2 * fourth + (4 * DOUBLE * size) ** 2


def repeated_variance(rounded: Tensor, stepped: Tensor, momentum: float) -> Tensor:
    """Variance of the part of an update's rounding that is the same in the next step, so that over steps deviations add up, not variances.

    θ is a number of its type, so fl(θ - ηv) errs by no more than η|v|: what is too small is lost again and again. Else the error is spread
    evenly up to u|θ|, of variance u²θ²/3, and repeats itself while ηv changes by less than u|θ| from one step to the next. A buffer of
    gradients that are new in every step changes by √(1 - μ²) of itself, so that is where η|v| is below u|θ| / √(1 - μ²): of entries that
    are spread about zero, a part of √(Σu²θ² / Ση²v²) / √(1 - μ²), and all where that exceeds one.

    Parameters
    ----------
    rounded : Tensor
        u² Σ ξ²θ².
    stepped : Tensor
        η² Σ ξ²v².
    momentum : float
        μ.

    Examples
    --------
    >>> repeated_variance(torch.tensor([3.0, 3.0]), torch.tensor([0.5, 3.0e8]), 0.6)
    tensor([5.0000e-01, 1.2500e-04])
    """
    changing = max(1 - momentum * momentum, DOUBLE) ** 0.5
    part = (rounded / stepped.clamp(min=torch.finfo(torch.float64).tiny)).sqrt() / changing
    found: Tensor = part.clamp(max=1.0) * torch.minimum(rounded / 3, stepped)
    return found


def gradient_lengths(graph: ArchitectureGraph) -> dict[str, int]:
    """For each parameter, how many products a gradient entry sums at most: the elements of the result over those of its own output axis."""
    out: dict[str, int] = {}
    for name, parameter in graph.parameters.items():
        for node, _ in graph.uses_of(name):
            sizes = [s for s in graph.nodes[node]["shape"] if isinstance(s, int)]
            own = parameter.shape[0] if parameter.shape and isinstance(parameter.shape[0], int) else 1
            out[name] = max(out.get(name, 1), prod(sizes) // max(own, 1) if sizes else 1)
    return out


def scattered_lengths(graph: ArchitectureGraph, device: torch.device) -> dict[str, int]:
    """For each parameter that indices pick from, how many additions a gradient entry takes at most; none where a device sums in float32."""
    out: dict[str, int] = {}
    for name in graph.parameters if device.type == "cpu" else ():
        for node, slot in graph.uses_of(name):
            index = PICKED_BY.get(graph.nodes[node]["operation"], slot)
            if index != slot:
                chosen = graph.inputs_of(node).get(index)
                sizes = [s for s in (graph.nodes[chosen]["shape"] if chosen else ()) if isinstance(s, int)]
                out[name] = out.get(name, 0) + prod(sizes)
    return out
