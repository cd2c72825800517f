"""Groups that permute the entries of a vector and change their signs: what they leave fixed, without listing their elements.

The entries (e, +) and (e, -) are the points of a graph with an edge for what each generator makes of each. A connected component without
its own negative is an orbit: the fixed vectors have one number for it, with signs. Where (e, +) and (e, -) are connected, some element
changes the sign of the entry, which is zero in every fixed vector. So fixed spaces of groups of any order cost a few passes over the
entries of their generators.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class SignedPermutation:
    """(ρθ)_e = sign_e θ_index(e).

    Attributes
    ----------
    index : Tensor of int64, shape (D,)
    sign : Tensor, shape (D,)
        Entries 1 and -1.
    """

    index: Tensor
    sign: Tensor

    def __call__(self, vector: Tensor) -> Tensor:
        """The vector after the action, along its last axis."""
        return self.sign * vector[..., self.index]

    @classmethod
    def acting(cls, numbered: Tensor) -> SignedPermutation:
        """From what an action makes of the vector (1, 2, ..., D)."""
        return cls(numbered.abs().round().long() - 1, numbered.sign())


@dataclass(frozen=True, slots=True, eq=False)
class FixedVectors:
    """The vectors that a group of signed permutations fixes.

    Attributes
    ----------
    first : Tensor of int64, shape (D,)
        The first entry of each entry's orbit.
    sign : Tensor, shape (D,)
        Of the entry relative to the first one; 0 where it must vanish.
    """

    first: Tensor
    sign: Tensor

    @property
    def dimension(self) -> int:
        """Of the fixed space."""
        return len(set(self.first[self.sign != 0].tolist()))

    def project(self, vector: Tensor) -> Tensor:
        """The nearest fixed vector, shape (..., D): the average over the group. A fixed vector comes back to the last bit."""
        signed = self.sign * vector
        start = signed[..., self.first]  # differences to it are zero at fixed vectors, so no sum rounds
        counts = torch.zeros_like(self.sign).index_add_(0, self.first, torch.ones_like(self.sign))
        gaps = torch.zeros_like(signed).index_add_(-1, self.first, signed - start)
        return self.sign * (start + (gaps / counts.clamp(min=1))[..., self.first])

    def fixes(self, vector: Tensor) -> bool:
        """Whether a vector is fixed, to the last bit."""
        return bool((vector == self.sign * vector[self.first]).all())

    def transverse(self) -> Tensor:
        """Orthonormal rows, shape (D - dimension, D), that span the complement of the fixed space: contrasts within orbits."""
        rows = []
        for orbit in self._orbits():
            sign = self.sign[orbit]
            contrasts = torch.eye(len(orbit)).to(sign) if bool((sign == 0).any()) else _helmert(len(orbit)).to(sign) * sign
            block = torch.zeros(len(contrasts), len(self.sign)).to(sign)
            block[:, orbit] = contrasts
            rows.append(block)
        return torch.cat(rows) if rows else torch.zeros(0, len(self.sign)).to(self.sign)

    def _orbits(self) -> list[Tensor]:
        """Entries of each orbit that has more than one entry, or must vanish."""
        order = self.first.argsort(stable=True)
        counts = torch.bincount(self.first)
        parts = torch.split(order, counts[counts > 0].tolist())
        return [part for part in parts if len(part) > 1 or self.sign[part[0]] == 0]


def fixed_vectors(generators: Sequence[SignedPermutation], size: int) -> FixedVectors:
    """The vectors of a given size that all generators fix.

    Examples
    --------
    >>> swapped = SignedPermutation.acting(torch.tensor([2.0, 1.0, -3.0, 4.0]))
    >>> found = fixed_vectors([swapped], 4)
    >>> found.dimension, found.project(torch.tensor([1.0, 3.0, 5.0, 7.0])).tolist()
    (2, [2.0, 2.0, 0.0, 7.0])
    """
    entries = torch.arange(size)
    pairs = [torch.zeros(2, 0, dtype=torch.long)]
    for g in generators:
        turned = size * (g.sign < 0).long()  # (e, +) is number e, (e, -) number e + size
        pairs += [torch.stack([entries, g.index + turned]), torch.stack([entries + size, g.index + size - turned])]
    label = _components(2 * size, torch.cat(pairs, 1))
    plus, minus = label[:size], label[size:]
    sign = torch.where(plus == minus, 0.0, torch.where(plus < minus, 1.0, -1.0)).to(torch.float64)
    return FixedVectors(torch.minimum(plus, minus), sign)


def _components(points: int, edges: Tensor) -> Tensor:
    """The smallest point that each point is connected to."""
    label = torch.arange(points)
    while True:
        low = torch.minimum(label[edges[0]], label[edges[1]])
        lower = label.clone()
        for end in edges:  # the point itself, and the one that it points to, go to the lower of the two
            lower = lower.scatter_reduce(0, end, low, "amin").scatter_reduce(0, label[end], low, "amin")
        lower = lower[lower]
        if torch.equal(lower, label):
            return label
        label = lower


def _helmert(count: int) -> Tensor:
    """Orthonormal contrasts of `count` numbers, shape (count - 1, count)."""
    rows = torch.ones(count, count, dtype=torch.float64).tril()[:-1]
    rows = rows - torch.diag(torch.arange(1.0, count, dtype=torch.float64), 1)[:-1]
    out: Tensor = rows / rows.norm(dim=1, keepdim=True)
    return out
