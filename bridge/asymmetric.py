"""A twin of a network without its symmetries: a few weights are held where they are.

A change of parameters that a network does not see must move a held weight or be none. Let T be the matrix of all generators at the model's
point, one row each, entries of parameters as its columns. A set P of columns with rank T[:, P] = rank T leaves no continuous symmetry: what
vanishes on P vanishes. Rank T columns are enough, one held weight a generator, and LU factorisation with pivoting finds them.
Permutations and signs go with them where the values held are different and not zero; units of which this is not so are given more.

The twin has the same function at the start, the same architecture and D - |P| weights that learn: a negative control for every statement
that rests on a symmetry.

Source: own.
"""

from __future__ import annotations

import copy
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, product
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from noetherflow.bridge.trace import trace
from noetherflow.errors import ModelError
from noetherflow.symbolic.discrete import discrete_symmetries
from noetherflow.symbolic.discrete_factors import Factor, Permutations, Placed
from noetherflow.symbolic.gauge import symmetries
from noetherflow.symbolic.graph import ArchitectureGraph
from noetherflow.symbolic.symmetries import Symmetry

CANDIDATES: Final = 8
"""Entries drawn from what each generator moves; doubled until the rank stays."""
NEGLIGIBLE: Final = 1e-9
"""A pivot below this part of the largest is no pivot."""
LARGEST: Final = 3000

Block = tuple[Tensor, Tensor]  # of a parameter, units first: what is held, and values
Told = frozenset[tuple[int, int, float]]


@dataclass(frozen=True)
class Asymmetric:
    """A twin without symmetries.

    Attributes
    ----------
    model : nn.Module
        A copy; its parameters are ``parametrizations.<name>.original`` inside their layers, and what is held has no gradient.
    held : dict of str to Tensor
        Parameter -> True where a weight is held, by the name it has in the original.
    removed : int
        Independent continuous generators at this point, all of which are gone.
    order : int
        Of the group of permutations and signs that are gone.
    """

    model: nn.Module
    held: Mapping[str, Tensor]
    removed: int
    order: int

    @property
    def count(self) -> int:
        """How many weights are held."""
        return sum(int(mask.sum()) for mask in self.held.values())

    def __repr__(self) -> str:
        parts = ", ".join(f"{int(mask.sum())} of {mask.numel()} in {name}" for name, mask in self.held.items())
        return f"Twin without {self.removed} continuous generators: {self.count} weights held ({parts})"


class Held(nn.Module):
    """Some entries of a parameter replaced by constants."""

    mask: Tensor
    values: Tensor

    def __init__(self, mask: Tensor, values: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)
        self.register_buffer("values", values)

    def forward(self, parameter: Tensor) -> Tensor:
        """The constants where the mask is."""
        return torch.where(self.mask, self.values, parameter)


def without_symmetries(model: nn.Module, source: ArchitectureGraph | Tensor | tuple[Any, ...], *, seed: int = 0) -> Asymmetric:
    """Hold as few weights of a copy as remove all derived symmetries of its parameters.

    Parameters
    ----------
    model : nn.Module
        At a point in general position: not all weights of a unit zero. Not changed.
    source : ArchitectureGraph, or example inputs to trace
    seed : int
        Which entries are looked at.

    Returns
    -------
    Asymmetric

    Raises
    ------
    ModelError
        If there are more than 3,000 generators, or a parameter cannot be held (it belongs to no module by its name).

    Notes
    -----
    Directions that no entry shows at this point (generators that vanish here, as of a dead unit) cannot be removed and are not counted.

    Examples
    --------
    >>> import noetherflow as nf
    >>> model = nn.Sequential(nn.Linear(3, 8), nn.LeakyReLU(0.2), nn.Linear(8, 2)).double()
    >>> x = 4 * torch.randn(200, 3).double()
    >>> twin = without_symmetries(model, nf.trace(model, x))
    >>> twin.removed, twin.count, torch.equal(twin.model(x), model(x))
    (8, 8, True)
    >>> len(nf.symmetries(nf.trace(model, x))), len(nf.symmetries(nf.trace(twin.model, x)))
    (1, 0)
    """
    graph = source if isinstance(source, ArchitectureGraph) else trace(model, *(source if isinstance(source, tuple) else (source,)))
    held, removed = held_weights(model, symmetries(graph), seed)
    tensors = {name: p.detach() for name, p in model.named_parameters()}
    group = discrete_symmetries(graph)
    for factor in group:
        _hold_units(factor, tensors, held)
    chosen = {name: mask for name, mask in held.items() if bool(mask.any())}
    return Asymmetric(_pinned(model, chosen), chosen, removed, group.order)


def held_weights(model: nn.Module, families: Sequence[Symmetry], seed: int = 0) -> tuple[dict[str, Tensor], int]:
    """Which weights to hold so that no combination of some families is left: a mask for every parameter, and how many generators go.

    Raises
    ------
    ModelError
        As for `without_symmetries`.
    """
    tensors = {name: p.detach().to("cpu", torch.float64) for name, p in model.named_parameters()}
    held = {name: torch.zeros(t.shape, dtype=torch.bool) for name, t in tensors.items()}
    total = sum(int(f.dimension) for f in families)
    if total > LARGEST:
        raise ModelError(
            f"{total} generators are too many to remove together; the most is {LARGEST}. Use a smaller network.", generators=total
        )
    if not total:
        return held, 0
    rows = [_generator(f, k, tensors) for f in families for k in range(int(f.dimension))]
    drawn = torch.Generator().manual_seed(seed)
    count, found = CANDIDATES, list[tuple[str, int]]()
    while True:
        places = _candidates(rows, count, drawn)
        pivots = _pivots(rows, places)
        if len(pivots) == total or len(pivots) == len(found):
            break
        count, found = 2 * count, pivots
    for name, entry in pivots:
        held[name].view(-1)[entry] = True
    return held, len(pivots)


def _generator(family: Symmetry, number: int, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One generator at the point, of length one."""
    direction = torch.zeros(int(family.dimension), dtype=torch.float64)
    direction[number] = 1.0
    found = {name: t.flatten() for name, t in family.tangent(tensors, direction).items()}
    length = torch.stack([t.square().sum() for t in found.values()]).sum().sqrt()
    return {name: t / length if length > 0 else t for name, t in found.items()}


def _candidates(rows: Sequence[Mapping[str, Tensor]], count: int, drawn: torch.Generator) -> list[tuple[str, int]]:
    """Some entries that each generator moves."""
    places: dict[tuple[str, int], None] = {}
    for row in rows:
        moved = [(name, int(k)) for name, t in row.items() for k in t.abs().gt(NEGLIGIBLE).nonzero()]
        for k in torch.randperm(len(moved), generator=drawn)[:count].tolist():
            places[moved[k]] = None
    return list(places)


def _pivots(rows: Sequence[Mapping[str, Tensor]], places: Sequence[tuple[str, int]]) -> list[tuple[str, int]]:
    """Entries on which independent generators are independent."""
    if not places:
        return []
    names = sorted({name for name, _ in places})
    chosen = {name: torch.tensor([k for other, k in places if other == name]) for name in names}
    order = [(name, int(k)) for name in names for k in chosen[name]]
    columns = [
        torch.cat([row[name][chosen[name]] if name in row else torch.zeros(len(chosen[name]), dtype=torch.float64) for name in names])
        for row in rows
    ]
    factors, swaps = torch.linalg.lu_factor(torch.stack(columns, dim=1))
    for k, swapped in enumerate(swaps.tolist()):  # the interchanges of rows, counted from one
        order[k], order[swapped - 1] = order[swapped - 1], order[k]
    sizes = factors.diagonal().abs()
    return [order[k] for k in (sizes > NEGLIGIBLE * sizes.max()).nonzero().flatten().tolist()]


def _hold_units(factor: Factor, tensors: Mapping[str, Tensor], held: Mapping[str, Tensor]) -> None:
    """Mark more weights of a unit that a factor moves, the largest first, until what is held of it is not all zero and, where units are
    exchanged, not what is held of another (as of gains that all start at one).
    """
    blocks = [(_by_unit(factor, a, held), _by_unit(factor, a, tensors)) for a in factor.actions]
    taken: set[Told] = set()
    for unit in product(*(range(int(n)) for n in factor.sizes)):
        told = _told(blocks, unit)
        for mask, place in _largest(blocks, unit):
            if told and not (isinstance(factor, Permutations) and told in taken):
                break
            mask[(*unit, *place)] = True
            told = _told(blocks, unit)
        taken.add(told)


def _told(blocks: Sequence[Block], unit: tuple[int, ...]) -> Told:
    """What is held of a unit: which weights, and at which values."""
    held = [(mask[unit].flatten(), values[unit].flatten()) for mask, values in blocks]
    return frozenset((k, int(i), float(v[i])) for k, (m, v) in enumerate(held) for i in (m & (v != 0)).nonzero())


def _largest(blocks: Sequence[Block], unit: tuple[int, ...]) -> Iterator[tuple[Tensor, tuple[int, ...]]]:
    """The weights of a unit that are not held, each as a block's mask and a place in it, by falling size."""
    sizes = torch.cat([values[unit].abs().masked_fill(mask[unit], -1).flatten() for mask, values in blocks])
    starts = [0, *accumulate(mask[unit].numel() for mask, _ in blocks)]
    for flat in sizes.argsort(descending=True).tolist():
        if sizes[flat] < 0:
            return
        k = bisect_right(starts, flat) - 1
        mask = blocks[k][0]
        yield mask, tuple(int(i) for i in torch.unravel_index(torch.tensor(flat - starts[k]), mask[unit].shape))


def _by_unit(factor: Factor, placed: Placed, tensors: Mapping[str, Tensor]) -> Tensor:
    """A view of a block with the factor's indices first."""
    block: Tensor = placed.patch.view(tensors[placed.parameter])
    own = placed.places[: len(factor.sizes)]
    return block.permute([*own, *(d for d in range(block.dim()) if d not in own)])


def _pinned(model: nn.Module, held: Mapping[str, Tensor]) -> nn.Module:
    twin = copy.deepcopy(model)
    values = {name: p.detach() for name, p in model.named_parameters()}
    places = {id(p): name for name, p in twin.named_parameters()}
    for path, module in list(twin.named_modules()):
        for name, parameter in list(module.named_parameters(recurse=False)):
            mask = held.get(places[id(parameter)])
            if mask is None:
                continue
            if not hasattr(module, name):
                raise ModelError(f"Weights of {path}.{name} cannot be held: the module has no such attribute.", parameter=f"{path}.{name}")
            own = values[places[id(parameter)]].clone()
            parametrize.register_parametrization(module, name, Held(mask.to(own.device), own))
    return twin
