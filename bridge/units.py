"""The units that one factor of permutations exchanges, as rows: what each one writes and reads, their distances and overlaps.

Row i holds every entry that carries the index i. If each entry carries it once, exchanging i and j moves the parameters by

    ‖θ - (i j) θ‖² = 2 ‖ψ_i - ψ_j‖²                                                                             (own)

so distances of units say which swaps leave the parameters unchanged. Where signs of single units are symmetries as well, the distance is
the least over them. A weight whose two axes are permuted together (a recurrent matrix) carries the index twice: its swaps are made, and
signs are not divided out there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, product
from math import prod

import torch
from torch import Tensor

from noetherflow.symbolic.discrete_factors import Permutations, Placed, Signs, acted

Tensors = Mapping[str, Tensor]
Grams = list[tuple[Placed, Tensor]]


def rows(placed: Placed, tensors: Tensors) -> Tensor:
    """A block with the factor's indices first and all others flat behind them, shape (copies, N, entries)."""
    block = placed.patch.view(tensors[placed.parameter])
    moved = block.movedim(placed.places, tuple(range(len(placed.places))))
    entries = prod(moved.shape[len(placed.places) :])
    found: Tensor = moved.reshape(-1, block.shape[placed.places[-1]], entries)
    return found


def signs_of_units(factor: Permutations, group: Sequence[object]) -> list[Signs]:
    """Factors of signs that act along the permuted index, one sign for each unit."""
    own = {(p.parameter, p.patch, p.places) for p in factor.actions}
    found = [f for f in group if isinstance(f, Signs) and f.sizes == factor.sizes and not f.based and not f.reflected]
    return [f for f in found if {(p.parameter, p.patch, p.places) for p in f.actions} <= own]


def grams(factor: Permutations, tensors: Tensors) -> Grams:
    """Inner products of units, block by block, shape (copies, N, N)."""
    found = [(placed, rows(placed, tensors)) for placed in factor.actions]
    return [(placed, r @ r.mT) for placed, r in found]


def gram(parts: Grams) -> Tensor:
    """Inner products of units, all blocks together."""
    return torch.stack([part for _, part in parts]).sum(0)


def overlaps(parts: Grams) -> Tensor:
    """Cosines between units, shape (copies, N, N); 0 where a unit vanishes."""
    whole = gram(parts)
    norms = whole.diagonal(dim1=-2, dim2=-1).clamp(min=0).sqrt()
    sizes = norms[..., :, None] * norms[..., None, :]
    return torch.where(sizes > 0, whole / sizes.where(sizes > 0, torch.ones_like(sizes)), torch.zeros_like(sizes))


def distances(factor: Permutations, tensors: Tensors, signs: Sequence[Signs] = ()) -> Tensor:
    """‖θ - (i j) θ‖ / √2 of every swap, least over signs of the units, shape (copies, N, N)."""
    if _carried_twice(factor):
        return _by_swapping(factor, tensors)
    apart = [torch.stack(parts).square().sum(0) for parts in _apart(factor, tensors, signs, 2.0)]
    found = torch.stack(apart).amin(0).sqrt()
    return found * (1 - torch.eye(found.shape[-1]).to(found))


def same(factor: Permutations, tensors: Tensors, signs: Sequence[Signs] = ()) -> Tensor:
    """Which swaps leave every entry as it is, to the last bit, up to signs of the units; shape (copies, N, N)."""
    if _carried_twice(factor):
        return _by_swapping(factor, tensors) == 0
    equal = [torch.stack(parts).amax(0) == 0 for parts in _apart(factor, tensors, signs, float("inf"))]
    return torch.stack(equal).any(0) | torch.eye(equal[0].shape[-1], dtype=torch.bool, device=equal[0].device)


def _apart(factor: Permutations, tensors: Tensors, signs: Sequence[Signs], norm: float) -> Iterator[list[Tensor]]:
    """Distances between units in each block, for every choice of which signs of the second unit are changed."""
    for chosen in product((False, True), repeat=len(signs)):
        turned = [_place(p) for change, f in zip(chosen, signs, strict=True) if change for p in f.actions]
        yield [_between(rows(p, tensors), turned.count(_place(p)) % 2 == 1, norm) for p in factor.actions]


def _between(units: Tensor, turned: bool, norm: float) -> Tensor:
    return torch.cdist(units, -units if turned else units, p=norm, compute_mode="donot_use_mm_for_euclid_dist")


def _place(placed: Placed) -> tuple[object, ...]:
    return (placed.parameter, placed.patch, placed.places)


def _carried_twice(factor: Permutations) -> bool:
    carriers = [(p.parameter, p.patch) for p in factor.actions]
    return len(set(carriers)) < len(carriers)


def _by_swapping(factor: Permutations, tensors: Tensors) -> Tensor:
    n = factor.sizes[-1]
    found = torch.zeros(factor.copies, n, n, dtype=torch.float64)
    moved = {p.parameter: tensors[p.parameter] for p in factor.actions}
    for copy in range(factor.copies):
        for i, j in combinations(range(n), 2):
            values, start = list(factor.identity), copy * n
            values[start + i], values[start + j] = j, i
            after = acted(factor, tuple(values), moved)
            square = sum(float((after[name] - tensor).square().sum()) for name, tensor in moved.items())
            found[copy, i, j] = found[copy, j, i] = (square / 2) ** 0.5
    return found


def cells(near: Tensor) -> list[list[int]]:
    """Classes of units that are near to one another, directly or through others; `near` has shape (N, N)."""
    left, found = set(range(len(near))), []
    while left:
        cell, new = set[int](), {min(left)}
        while new:
            cell |= new
            new = {int(j) for i in new for j in near[i].nonzero().flatten()} - cell
        found.append(sorted(cell))
        left -= cell
    return found
