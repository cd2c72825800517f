"""The element of a discrete group that brings one set of tensors nearest to another: weights matched, class by class.

1. signatures    rows are compared by the sorted magnitudes of their entries, which no permutation or sign of other indices changes; for a
                 tensor and its image under a group element the assignment is exact, unless rows tie
2. signs         first where one class decides alone, then what depends on those
3. inner products, coordinate by coordinate: one linear assignment for each class with all others as they are, until nothing is gained

The third is the weight matching of ainsworth2023git; it finds a local optimum, for which the first is the start.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor

from noetherflow.bridge.group_elements import Element, Tensors
from noetherflow.bridge.procrustes import gap, rotated
from noetherflow.numeric.assignment import assignment
from noetherflow.symbolic.actions import Patch
from noetherflow.symbolic.discrete_factors import Factor, Permutations, Placed, Signs, Transpositions, Values, acted
from noetherflow.symbolic.symmetries import Symmetry

SWEEPS = 30
GAIN = 1e-12  # a sweep that gains less than this share of the squared distance is the last

Step = tuple[Factor, Values]
Costs = Callable[[Permutations, Tensors, Tensors], Tensor]


@dataclass(frozen=True)
class Way:
    """Steps, elements of discrete factors and rotations one after another, and what they make of tensors."""

    steps: tuple[Step | Element, ...]
    tensors: Tensors

    def after(self, factor: Factor, values: Values) -> Way:
        """One step more, unless it moves nothing."""
        if values == factor.identity:
            return self
        return Way((*self.steps, (factor, values)), acted(factor, values, self.tensors))


def matched(
    factors: Sequence[Factor], families: Sequence[Symmetry], fixed: Tensors, moving: Tensors, restarts: int = 0
) -> tuple[tuple[Step | Element, ...], dict[str, Tensor]]:
    """Steps that bring tensors near to fixed ones, and what they make of them.

    Parameters
    ----------
    factors : sequence of Permutations or Signs
    families : sequence of Symmetry
        Linear ones, of which the tensors are balanced: rotations are left.
    fixed, moving : mapping of str to Tensor
        In float64.
    restarts : int
        Further starts of the coordinate descent: random permutations, the same every time.
    """
    permutations = sorted((f for f in factors if isinstance(f, Permutations)), key=lambda f: len(f.sizes))
    signs = [f for f in factors if isinstance(f, Signs)]
    signed = [f for f in permutations if any(_places(f) == _places(other) for other in signs)]

    def settled(way: Way) -> Way:
        way = _signed(signs, fixed, way)
        turns, tensors = rotated(families, fixed, way.tensors)
        return Way((*way.steps, *turns), tensors)

    def descended(way: Way) -> Way:
        for _ in range(SWEEPS if factors else 0):
            before = gap(fixed, way.tensors)
            for factor in permutations:
                costs = _magnitudes if factor in signed else _correlations
                found = settled(way.after(factor, _assigned(factor, fixed, way.tensors, costs)))
                way = min(way, found, key=lambda w: gap(fixed, w.tensors))
            if before - gap(fixed, way.tensors) <= GAIN * before:
                break
        return way

    starts = [settled(Way((), moving))]
    if permutations:
        starts.append(settled(_by_signature(permutations, fixed, moving)))
        starts += [settled(_at_random(permutations, moving, Random(seed))) for seed in range(restarts)]
    first = min(starts[:2], key=lambda way: gap(fixed, way.tensors))
    best = min(map(descended, (first, *starts[2:])), key=lambda way: gap(fixed, way.tensors))
    return best.steps, dict(best.tensors)


# --- permutations


def _by_signature(permutations: Sequence[Permutations], fixed: Tensors, moving: Tensors) -> Way:
    way = Way((), moving)
    for factor in permutations:
        way = way.after(factor, _assigned(factor, fixed, way.tensors, _signature_distances))
    return way


def _at_random(permutations: Sequence[Permutations], moving: Tensors, random: Random) -> Way:
    way = Way((), moving)
    for factor in permutations:
        way = way.after(factor, factor.random(random))
    return way


def _assigned(factor: Permutations, fixed: Tensors, moving: Tensors, costs: Costs) -> Values:
    n = factor.sizes[-1]
    total = costs(factor, fixed, moving).reshape(-1, n, n)
    if isinstance(factor, Transpositions):
        return tuple(i for cost in total for i in _swapped(cost, n))
    return tuple(int(i) for cost in total for i in assignment(cost.cpu().numpy()))


def _swapped(cost: Tensor, n: int) -> Values:
    swap = bool(cost[0, 1] + cost[1, 0] < cost[0, 0] + cost[1, 1])
    return (1, 0, *range(2, n)) if swap else tuple(range(n))


def _rows(placed: Placed, tensors: Tensors) -> Tensor:
    """The block with the factor's indices first and all others flat behind them."""
    block = placed.patch.view(tensors[placed.parameter])
    moved = block.movedim(placed.places, tuple(range(len(placed.places))))
    rows: Tensor = moved.reshape(*moved.shape[: len(placed.places)], -1)
    return rows


def _places(factor: Factor) -> frozenset[tuple[str, Patch, int]]:
    return frozenset((p.parameter, p.patch, p.places[-1]) for p in factor.actions if p.places)


def _signature_distances(factor: Permutations, fixed: Tensors, moving: Tensors) -> Tensor:
    total: Tensor = torch.zeros(())
    for placed in factor.actions:
        a, b = (_rows(placed, tensors).abs().sort(-1).values for tensors in (fixed, moving))
        total = total + torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").square()
    return total


def _correlations(factor: Permutations, fixed: Tensors, moving: Tensors) -> Tensor:
    total: Tensor = torch.zeros(())
    for placed in factor.actions:
        total = total - _rows(placed, fixed) @ _rows(placed, moving).mT
    return total


def _magnitudes(factor: Permutations, fixed: Tensors, moving: Tensors) -> Tensor:
    """Where all that is permuted may also change sign, unit by unit: the sign is chosen after."""
    return -_correlations(factor, fixed, moving).abs()


# --- signs


def _signed(signs: Sequence[Signs], fixed: Tensors, way: Way) -> Way:
    """Choose all signs: those first that some tensor decides which no other undecided factor moves."""
    undecided = list(signs)
    while undecided:
        factor, placed = _next(undecided)
        undecided.remove(factor)
        way = way.after(factor, _chosen(factor, placed, fixed, way.tensors))
    return way


def _next(undecided: Sequence[Signs]) -> tuple[Signs, tuple[Placed, ...]]:
    for factor in undecided:
        others = {p.parameter for f in undecided if f is not factor for p in f.actions}
        alone = tuple(p for p in factor.actions if p.parameter not in others)
        if alone:
            return factor, alone
    return undecided[0], undecided[0].actions


def _chosen(factor: Signs, placed: Sequence[Placed], fixed: Tensors, moving: Tensors) -> Values:
    """A sign is minus where that brings the entries with its index nearer."""
    gains = torch.zeros(factor.sizes, dtype=torch.float64)
    for p in placed:
        product = (_rows(p, fixed) * _rows(p, moving)).sum(-1).cpu()
        gains = gains + (product[..., 0] if factor.reflected else product)
    free = torch.tensor(factor.free(), dtype=torch.bool).reshape(factor.sizes)
    return tuple(int(bit) for bit in ((gains < 0) & free).flatten())
