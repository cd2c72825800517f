"""Mirrors: reflections R = I - 2 O Oᵀ of the parameters that leave a network's function unchanged, derived from its groups.

Every orthogonal involution S of a symmetry group is one: with P = (I - S) / 2 = O Oᵀ it is S = I - 2P. What it fixes is the subspace
Oᵀθ = 0, and what that means depends on the group:

    sign        of a unit (odd functions):      its weights are zero, the unit is silent          sparsity
    swap        of two units:                   their weights are equal, the units are identical  fewer different units
    reflection  I - 2eeᵀ inside GL(n) or O(n):  no weight along e, one direction of the layer less    low rank

On the subspace L(Rθ) = L(θ) for every sample gives R G = G: each sample's gradient stays in it, Oᵀ G = 0, and the Hessian has no entry
between it and its complement, Oᵀ H (I - O Oᵀ) = 0. The converse is false: a positive rescaling (ReLU) has no reflection in it, yet where
all of its weights are zero every gradient along them vanishes; L(w) = w² + w³ does not even have that.
Source: ziyin2024symmetry for the theorem; own for the involutions of the derived groups.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import comb, prod
from typing import Any, Final

import torch
from torch import Tensor

from noetherflow.errors import GraphError
from noetherflow.symbolic.discrete import DiscreteSymmetries, GroupElement, discrete_symmetries
from noetherflow.symbolic.discrete_factors import Factor, Permutations, Placed, ShiftedSigns, Signs, acted
from noetherflow.symbolic.gauge import symmetries
from noetherflow.symbolic.graph import ArchitectureGraph
from noetherflow.symbolic.symmetries import Symmetry

Tensors = Mapping[str, Tensor]

FIXED: Final[Mapping[str, str]] = {
    "sign": "silent: its weights are zero",
    "swap": "identical units",
    "reflection": "lower rank: nothing along the direction",
    "involution": "fixed by the group element",
}


@dataclass(frozen=True)
class Mirror:
    """A reflection R = I - 2 O Oᵀ of some parameters, with an orthonormal O of k columns, kept by its entries.

    Attributes
    ----------
    kind : 'sign', 'swap', 'reflection' or 'involution'
    name : str
    shapes : mapping of str to tuple of int
        The parameters that it moves.
    rows, columns : Tensor of int64, shape (entries,)
        Where O is not zero; rows count through the parameters of `shapes`, flattened one after the other.
    values : Tensor of float64, shape (entries,)
    codimension : int
        k, the number of conditions Oᵀθ = 0.
    turned : tuple of Mirror
        Of a reflection along e inside continuous rotations: those along the directions f orthogonal to e. A rotation of f into e leaves
        loss and norm as they are and moves Oᵀθ by O_fᵀθ: across the subspace, but along an orbit.
    """

    kind: str
    name: str
    shapes: Mapping[str, tuple[int, ...]]
    rows: Tensor
    columns: Tensor
    values: Tensor
    codimension: int
    turned: tuple[Mirror, ...] = field(default=(), repr=False)

    @property
    def coordinatewise(self) -> bool:
        """Whether R permutes entries and changes signs only: then rules that act entry by entry (Adam, sign descent) stay inside, too."""
        many = self.columns.bincount()[self.columns]  # entries of each column: one ±1, or two ±√½
        even = (self.values.square() * many - 1).abs() < 1e-12
        return bool((even & (many <= 2)).all())

    def coordinates(self, params: Tensors) -> Tensor:
        """Oᵀθ, shape (k,); differentiable."""
        flat = torch.cat([params[name].reshape(-1) for name in self.shapes])
        picked = self.values.to(flat.dtype) * flat[self.rows]
        return torch.zeros(self.codimension, dtype=flat.dtype).index_add(0, self.columns, picked)

    def lift(self, coordinates: Tensor) -> dict[str, Tensor]:
        """O a: for each parameter that moves, a tensor of its shape."""
        sizes = [prod(shape) for shape in self.shapes.values()]
        picked = self.values.to(coordinates.dtype) * coordinates[self.columns]
        flat = torch.zeros(sum(sizes), dtype=coordinates.dtype).index_add(0, self.rows, picked)
        return {n: part.reshape(s) for (n, s), part in zip(self.shapes.items(), torch.split(flat, sizes), strict=True)}

    def distance(self, params: Tensors) -> Tensor:
        """|Oᵀθ|, the order parameter: zero exactly on the subspace."""
        found: Tensor = self.coordinates(params).norm()
        return found

    def projected(self, params: Tensors) -> dict[str, Tensor]:
        """The nearest point of the subspace, (I - O Oᵀ) θ; all of `params`, those that move new."""
        return self._minus(params, 1.0)

    def reflected(self, params: Tensors) -> dict[str, Tensor]:
        """R θ: the network's function is unchanged; all of `params`, those that move new."""
        return self._minus(params, 2.0)

    def _minus(self, params: Tensors, times: float) -> dict[str, Tensor]:
        away = self.lift(self.coordinates(params))
        return {name: t - times * away[name] if name in away else t for name, t in params.items()}

    def __repr__(self) -> str:
        return f"Mirror({self.name}; {self.codimension} conditions: {FIXED[self.kind]})"


@dataclass(frozen=True)
class MirrorFamily:
    """The mirrors of one factor of a network's group.

    Attributes
    ----------
    kind : 'sign', 'swap' or 'reflection'
    factor : Permutations or Signs
    shapes : mapping of str to tuple of int
        Of the parameters that are moved.
    everywhere : bool
        Reflections along every direction, not only along coordinates.
    """

    kind: str
    factor: Factor
    shapes: Mapping[str, tuple[int, ...]]
    everywhere: bool = False

    @property
    def sizes(self) -> tuple[int, ...]:
        """What `mirror` is indexed by; the last is the number of units (for swaps and reflections)."""
        return (*self.factor.sizes, self._length) if self.kind == "reflection" and isinstance(self.factor, Signs) else self.factor.sizes

    @property
    def count(self) -> int:
        """Number of mirrors (along coordinates), not counting products of them."""
        if self.kind == "swap":
            return prod(self.sizes[:-1]) * comb(self.sizes[-1], 2)
        return self.factor.bits if self.kind == "sign" and isinstance(self.factor, Signs) else prod(self.sizes)

    @property
    def _length(self) -> int:
        placed = self.factor.actions[0]
        return int(placed.patch.indices[placed.places[-1]].size)

    def mirror(self, *at: int | Tensor) -> Mirror:
        """One mirror of the family.

        Parameters
        ----------
        at : int
            The indices of a unit for a sign, of two units for a swap (other indices first); for a reflection the last may be a direction:
            a tensor of the last size, of any length but zero.

        Raises
        ------
        GraphError
            For indices that the family does not have.
        """
        wanted = len(self.sizes) + (self.kind == "swap")
        if len(at) != wanted:
            raise GraphError(f"A {self.kind} of sizes {self.sizes} is chosen by {wanted} indices; got {len(at)}.", at=at)
        if at and isinstance(at[-1], Tensor):
            return self._along([int(i) for i in at[:-1]], at[-1])
        place = [int(i) for i in at]
        limits = (*self.sizes, self.sizes[-1]) if self.kind == "swap" else self.sizes
        if any(not 0 <= i < n for i, n in zip(place, limits, strict=True)) or (self.kind == "swap" and place[-1] == place[-2]):
            raise GraphError(f"There is no {self.kind} at {tuple(place)}: sizes are {self.sizes}, and two units must differ.", at=at)
        if self.kind == "reflection" and isinstance(self.factor, Signs):
            return self._along(place[:-1], torch.eye(self._length, dtype=torch.float64)[place[-1]])
        values = list(self.factor.identity)
        flat = _flat(place[: len(self.sizes)], self.sizes)
        if isinstance(self.factor, Permutations):
            other = flat - place[-2] + place[-1]
            values[flat], values[other] = values[other], values[flat]
        else:
            if not self.factor.free()[flat]:
                raise GraphError(f"The sign at {tuple(place)} is no symmetry by itself: signs of this family are + where an index is zero.")
            values[flat] = 1
        moved = acted(self.factor, tuple(values), _numbered(self.shapes))
        return _involution(self.kind, f"{self.kind} {tuple(place)} of {_named(self.shapes)}", self.shapes, moved)

    def _along(self, spectators: Sequence[int], direction: Tensor) -> Mirror:
        e = direction.to(torch.float64)
        if self.kind != "reflection" or tuple(e.shape) != (self._length,) or not float(e.norm()):
            raise GraphError(
                f"A direction is for reflections, of shape ({self._length},) and not zero; got {tuple(e.shape)} for a {self.kind}."
            )
        if not self.everywhere and int((e != 0).sum()) > 1:
            raise GraphError("Gains or centred norms allow reflections along coordinates only. Give an index, not a direction.")
        mirror = self._reflection(spectators, e / e.norm())
        if not self.everywhere:
            return mirror
        others = torch.linalg.svd(e[None]).Vh[1:]
        return replace(mirror, turned=tuple(self._reflection(spectators, f) for f in others))

    def _reflection(self, spectators: Sequence[int], e: Tensor) -> Mirror:
        numbers, places, entries, count = _numbered(self.shapes), [], [], 0
        for placed in self.factor.actions:
            lines = _lines(placed, numbers[placed.parameter], spectators)
            places.append(lines.reshape(-1))
            entries.append((count + torch.arange(len(lines))).repeat_interleave(len(e)))
            count += len(lines)
        rows, columns = torch.cat(places).long() - 1, torch.cat(entries)
        kept = e.repeat(count) != 0
        name = f"reflection {tuple(spectators)} of {_named(self.shapes)}"
        return Mirror("reflection", name, dict(self.shapes), rows[kept], columns[kept], e.repeat(count)[kept], count)

    def __repr__(self) -> str:
        many = "along every direction" if self.everywhere else f"{self.count:,} of them"
        return f"{self.kind} {self.sizes} of {_named(self.shapes)}: {many}; fixes what is {FIXED[self.kind]}"


class Mirrors(Sequence[MirrorFamily]):
    """All mirrors of a network, family by family.

    Attributes
    ----------
    group : DiscreteSymmetries
        That they are taken from.
    """

    def __init__(self, families: Sequence[MirrorFamily], group: DiscreteSymmetries, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._families, self.group, self._shapes = tuple(families), group, dict(shapes)

    def __getitem__(self, item: Any) -> Any:
        return self._families[item]

    def __len__(self) -> int:
        return len(self._families)

    def __iter__(self) -> Iterator[MirrorFamily]:
        return iter(self._families)

    def of_kind(self, kind: str) -> tuple[MirrorFamily, ...]:
        """The families of one kind."""
        return tuple(f for f in self._families if f.kind == kind)

    def of(self, element: GroupElement) -> Mirror:
        """The mirror of any group element that is its own inverse, products of several among them.

        Raises
        ------
        GraphError
            If it is not its own inverse, or the identity; or if it shifts biases (signs of units with a sigmoid): it is no reflection then.
        """
        if self.group.shifts(element):
            raise GraphError("The element shifts a bias, where a sigmoid changes sign: it changes norms, and is no reflection.")
        moved = self.group.transform(_numbered(self._shapes), element)
        shapes = {n: s for n, s in self._shapes.items() if bool((moved[n] != _numbered(self._shapes)[n]).any())}
        again = self.group.transform(moved, element)
        if not shapes or any(bool((again[n] != t).any()) for n, t in _numbered(self._shapes).items()):
            raise GraphError("Only an element that is its own inverse, and not the identity, is a mirror.")
        renumbered = self.group.transform({**_numbered(self._shapes), **_numbered(shapes)}, element)
        return _involution("involution", f"involution of {_named(shapes)}", shapes, renumbered)

    def __repr__(self) -> str:
        return "\n".join([f"{len(self)} families of mirrors", *(f"  {f}" for f in self._families)])


def mirrors(graph: ArchitectureGraph) -> Mirrors:
    """Derive the reflections of a network's parameters that leave its function unchanged, from its groups.

    Sound: each is a symmetry of the function, hence of every sample's loss. Not claimed: that there are no others. Signs of units with a
    sigmoid, which also shift a bias, change norms and are none.

    Parameters
    ----------
    graph : ArchitectureGraph
        From ``nf.trace``.

    Returns
    -------
    Mirrors
        A sequence of families: signs, swaps, and reflections along directions of a linear layer. ``family.mirror(...)`` gives one,
        ``mirrors.of(element)`` that of any element of ``nf.discrete_symmetries`` which is its own inverse.

    Raises
    ------
    GraphError
        If the graph is empty, has a cycle, or has symbolic sizes.

    Notes
    -----
    Running statistics are no parameters and are not moved. Of a network traced in training mode, where norms go by the batch, a mirror may
    flip or exchange what their statistics belong to: the function in training mode is unchanged, that in eval mode only after the
    statistics have been estimated anew (`noetherflow.merge` with batches). Traced in eval mode, the network does not have such mirrors.

    Positive rescalings of ReLU units hold no reflection. The point where all weights of such a unit vanish is a fixed point of every
    gradient all the same, by continuity: L(w, 0) = L(αw, 0) → L(0, 0), so L is constant along w there, and likewise along u.
    Source: ziyin2024symmetry (mirrors); own (their derivation).

    Examples
    --------
    >>> import noetherflow as nf
    >>> found = mirrors(nf.trace(nf.models.MLP([3, 4, 2], "tanh"), torch.zeros(5, 3)))
    >>> [(family.kind, family.count) for family in found]
    [('swap', 6), ('sign', 4)]
    >>> found[1].mirror(2).codimension  # three weights in, a bias, two weights out
    6
    """
    group = discrete_symmetries(graph)
    shapes = {name: tuple(int(n) for n in p.shape) for name, p in graph.parameters.items()}
    turning = [s for s in symmetries(graph) if not s.breaking and (s.matrix or _plain_rotation(s))]
    families = [_family(factor, shapes, turning) for factor in group if not isinstance(factor, ShiftedSigns)]  # no reflections
    return Mirrors([f for f in families if f.count], group, shapes)


def _family(factor: Factor, shapes: Mapping[str, tuple[int, ...]], turning: Sequence[Symmetry]) -> MirrorFamily:
    own = {placed.parameter: shapes[placed.parameter] for placed in factor.actions}
    if isinstance(factor, Permutations):
        return MirrorFamily("swap", factor, own)
    everywhere = factor.reflected and any(_blocks(factor) == _blocks(s) for s in turning)
    return MirrorFamily("reflection" if factor.reflected else "sign", factor, own, everywhere)


def _plain_rotation(symmetry: Symmetry) -> bool:
    """Rotations that no gain or mean stands in the way of: every direction is like every other."""
    return symmetry.kind == "rotation" and not symmetry.centred and not any(a.factors for a in symmetry.actions)


def _blocks(source: Factor | Symmetry) -> set[tuple[str, Any, int]]:
    """What is acted on, and along which index."""
    return {(a.parameter, a.patch, a.places[-1]) for a in source.actions}


def _numbered(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Every entry's number, from one on, as a tensor that signs and permutations can act on."""
    out, start = {}, 1
    for name, shape in shapes.items():
        out[name] = torch.arange(start, start + prod(shape), dtype=torch.float64).reshape(shape)
        start += prod(shape)
    return out


def _involution(kind: str, name: str, shapes: Mapping[str, tuple[int, ...]], moved: Tensors) -> Mirror:
    """O of a signed permutation: e_i where i changes sign, (e_i ∓ e_j) / √2 where i and ±j change places."""
    here = torch.cat([t.reshape(-1) for t in _numbered(shapes).values()])
    there = torch.cat([moved[n].reshape(-1) for n in shapes])
    turned = (there == -here).nonzero().flatten()
    first = (there.abs() > here).nonzero().flatten()
    second, sign = there.abs()[first].long() - 1, there[first].sign()
    count = len(turned) + len(first)
    pairs = torch.arange(len(turned), count)
    half = torch.full((len(first),), 0.5**0.5, dtype=torch.float64)
    rows = torch.cat([turned, first, second])
    columns = torch.cat([torch.arange(len(turned)), pairs, pairs])
    values = torch.cat([torch.ones(len(turned), dtype=torch.float64), half, -sign * half])
    return Mirror(kind, name, dict(shapes), rows, columns, values, count)


def _lines(placed: Placed, numbers: Tensor, spectators: Sequence[int]) -> Tensor:
    """Numbers of the entries along the reflected index, shape (lines, n), where the other indices of the factor have given values."""
    block = placed.patch.view(numbers).movedim(placed.places[-1], -1)
    at: list[Any] = [slice(None)] * block.dim()
    for place, value in zip(placed.places[:-1], spectators, strict=True):
        at[place - (place > placed.places[-1])] = value
    lines: Tensor = block[tuple(at)].reshape(-1, block.shape[-1])
    return lines


def _flat(place: Sequence[int], sizes: Sequence[int]) -> int:
    flat = 0
    for i, n in zip(place, sizes, strict=True):
        flat = flat * n + i
    return flat


def _named(shapes: Mapping[str, Any]) -> str:
    names = list(shapes)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} others" if len(names) > 3 else "")
