"""How far rounding alone can move a charge in one step: the standard deviations that a bound is made of.

With unit roundoff u of the parameters and ξ the generator, per charge and step:

- the update θ' = fl(θ - ηu) rounds each entry by at most u|θ'|: σ² = u² Σ ξ²θ'²
- a gradient entry sums M products in the accumulation dtype (roundoff a): σ² = M a² g² for each; the passes between the two sides of a
  symmetry round activations a few times (`PASSES`), and so does the buffer: σ² = PASSES u² g²; ξ pairs these up: Σ ξ²(...)
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
    """

    unit: float
    passes: Tensor
    accumulated: Tensor
    inside: Tensor
    summed: Tensor
    lengths: Tensor

    @classmethod
    def of(cls, dtype: torch.dtype, met: Sequence[Met], lengths: Tensor) -> Precision:
        """Precision of parameters of `dtype` whose passes meet these types, for each charge."""
        coarser = [own.with_all(dtype) for own in met]
        passed, absorbed = [own.passed for own in coarser], [own.absorbed for own in coarser]
        kinds = (passed, map(accumulation, passed), absorbed, map(accumulation, absorbed))
        passes, accumulated, inside, summed = (lengths.new_tensor([unit_roundoff(kind) for kind in each]) for each in kinds)
        return cls(unit_roundoff(dtype), passes, accumulated, inside, summed, lengths)


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
    per_entry = precision.lengths * precision.accumulated**2 + PASSES * precision.passes**2
    sums, elements, per_weight = vanishing
    absorbed = precision.summed**2 * sums + precision.inside**2 * elements + precision.accumulated**2 * weight * per_weight
    found: Tensor = per_entry * fourth + PASSES * absorbed
    return found


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


def gradient_lengths(graph: ArchitectureGraph) -> dict[str, int]:
    """For each parameter, how many products a gradient entry sums at most: the elements of the result over those of its own output axis."""
    out: dict[str, int] = {}
    for name, parameter in graph.parameters.items():
        for node, _ in graph.uses_of(name):
            sizes = [s for s in graph.nodes[node]["shape"] if isinstance(s, int)]
            own = parameter.shape[0] if parameter.shape and isinstance(parameter.shape[0], int) else 1
            out[name] = max(out.get(name, 1), prod(sizes) // max(own, 1) if sizes else 1)
    return out
