"""Writing families as symmetries: unknowns of the solvers become actions on blocks of parameters."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import product

import sympy as sp

from noetherflow.symbolic.actions import INDEX_LETTERS, Action, Factor, Form, Image, Index, Patch
from noetherflow.symbolic.algebras import Algebra, Carrier, Dressing
from noetherflow.symbolic.annihilated import Added, Dressed, Reader
from noetherflow.symbolic.axes import Axis, Identity, Segment, multiply
from noetherflow.symbolic.empty_columns import Columns
from noetherflow.symbolic.families import Family
from noetherflow.symbolic.graph import ArchitectureGraph, Size
from noetherflow.symbolic.images import Images, is_image
from noetherflow.symbolic.linear_systems import Atoms, Unknown, Vector
from noetherflow.symbolic.picks import Chosen
from noetherflow.symbolic.primitives import Block, Normalize, Program, Value
from noetherflow.symbolic.reaches import Reaches
from noetherflow.symbolic.symmetries import Absorber, Reach, Symmetry

Located = tuple[list[Identity], Patch]


@dataclass(frozen=True, slots=True)
class Seen:
    """Where a family acts on a tensor.

    Parameters
    ----------
    patch : Patch
    places : tuple of int
        For each index of the family, the dimension of the patch that carries it.
    sizes : tuple of Size
        Of the axes.
    picked : tuple of Chosen
        The indices that data chose (the expert, the token) where the family tells them apart: then their axes follow the tensor's own.
    """

    patch: Patch
    places: tuple[int, ...]
    sizes: tuple[Size, ...]
    picked: tuple[Chosen, ...] = ()

    @property
    def volume(self) -> sp.Expr:
        """Number of entries of the block."""
        return sp.sympify(multiply([index.size for index in self.patch.indices]))

    def along_axes(self, count: int, chosen: tuple[Chosen, ...]) -> Seen:
        """The same seen along the first axes, the tensor's own; as it is where an index of the family lies along another."""
        indices = tuple(index for index in self.patch.indices if index.axis < count)
        if any(self.patch.indices[place].axis >= count for place in self.places):
            return replace(self, picked=chosen)
        return Seen(Patch(self.patch.offsets[:count], indices), self.places, self.sizes[:count])


@dataclass
class Writer:
    """Writes the families of one program."""

    program: Program
    graph: ArchitectureGraph
    images: Images

    def __post_init__(self) -> None:
        parameters = self.program.parameters.items()
        self._names = {value.root: name for name, value in parameters}
        self._reaches = Reaches(self.program)
        self._order = {name: i for i, name in enumerate(self.graph.parameters)}
        self._patches = {(value.root, block): located for _, value in parameters for block, located in self._blocks(value)}
        self._normalizations: dict[int, list[Normalize]] = defaultdict(list)
        for step in self.program.steps:
            if isinstance(step, Normalize) and not step.operand.value.fixed:
                self._normalizations[step.operand.value.root].append(step)

    def scale(self, family: Family, algebra: Algebra | None) -> Symmetry:
        """A family of scales: diagonal, or the matrices whose diagonal it is."""
        atoms = family.atoms if algebra is None else (*algebra.spectators, algebra.atom)
        actions = self._actions(family, atoms, "scale" if algebra is None else "matrix")
        signs = {action.weight > 0 for action in actions}
        kind = "linear" if algebra is not None else ("rescale" if len(signs) == 2 else "scale")
        return self._symmetry(kind, family, atoms, actions, self._reaches.of_scale(family.vector))

    def shift(self, family: Family, reads: Mapping[Unknown, Reader]) -> Symmetry:
        """A family of shifts; `reads` are those of a weight along a direction that a normalisation leaves empty."""
        reading = {u: reads[u] for u, c in family.vector.items() if c and u in reads}
        if reading:
            actions = self._sorted(list(self._read(family, reading)))
            return self._symmetry("affine", family, family.atoms, actions, self._reaches.of_shift(family.vector))
        actions = self._actions(family, family.atoms, "shift")
        whole = len(actions) == 1 and len(actions[0].patch.indices) == len(actions[0].places)
        images, reach = any(action.form == "image" for action in actions), self._reaches.of_shift(family.vector)
        return self._symmetry("affine" if images else "null" if whole else "translation", family, family.atoms, actions, reach)

    def rotation(self, algebra: Algebra) -> Symmetry:
        """The rotations along an index."""
        atoms = (*algebra.spectators, algebra.atom)
        turned = [(c, dressing) for c, (_, dressing) in algebra.members.items() if c.root in self._names]
        actions = self._sorted([self._turned(carrier, dressing, atoms) for carrier, dressing in turned])
        kind, reach = "complex" if algebra.pairs else "rotation", self._reaches.of_tensors(algebra.roots)
        return Symmetry(kind, self._indices(atoms), actions, centred=algebra.centred, reach=reach)

    def columns(self, columns: Columns) -> Symmetry:
        """What all readers of an empty direction do together with the biases that they read."""
        actions = []
        for carrier, (sign, dressing) in columns.members.items():
            if carrier.root in self._names:
                turned = self._turned(carrier, _inverse(dressing) if sign < 0 else dressing, (columns.atom,))
                actions.append(replace(turned, form="column", weight=sp.Integer(sign)))
        return Symmetry("affine", self._indices((columns.atom,)), self._sorted(actions))

    def reader(self, reader: Reader) -> Symmetry:
        """What a weight may do along a direction that a normalisation leaves empty, where no bias was added on the way."""
        identities, patch = self._patches[reader.weight]
        free = tuple(d for d, identity in enumerate(identities) if identity not in reader.empty.along)
        gains = tuple(self._factor(gain, identities, -1) for gain in reader.empty.gains)
        seen = frozenset(i for i, d in enumerate(free) if identities[d] in reader.seen)
        name = self._names[reader.weight[0]]
        action = Action(name, patch, free, sp.S.One, "shift", gains)
        indices = self._indices(tuple(patch.indices[d].atom for d in free))
        reach = self._reaches.behind(self.graph, name)
        return Symmetry("affine" if gains else "translation", indices, (action,), zero_mean=seen, reach=reach)

    def _factor(self, dressed: Dressed, identities: Sequence[Identity], power: int, start: int = 0) -> Factor:
        """A gain or a bias, along the dimensions that identities have from `start` on."""
        root, block, indices = dressed
        own, patch = self._patches[root, block]
        there = dict(indices)
        return Factor(self._names[root], patch, tuple(start + identities.index(there[identity]) for identity in own), power)

    # A reader with the coefficients v adds s v to its result, s = <1/g, c> over the gains and biases of what it reads. All else that a
    # family moves takes the factor s; where two readers answer each other, each takes the factor of the other.

    def _read(self, family: Family, reading: Mapping[Unknown, Reader]) -> Iterator[Action]:
        for unknown, coefficient in family.vector.items():
            if unknown.root in self._names and coefficient:
                others = [reader for u, reader in reading.items() if u != unknown and reader.empty.one_number]
                for chosen in product(*(reader.empty.biases for reader in others)):
                    yield self._multiplied(unknown, coefficient, family.atoms, reading.get(unknown), list(zip(others, chosen, strict=True)))

    def _multiplied(
        self, unknown: Unknown, coefficient: Fraction, atoms: Atoms, reader: Reader | None, by: Sequence[tuple[Reader, Added]]
    ) -> Action:
        """One action of a family with readers, times one summand of the number s of each of some readers."""
        identities, patch = self._patches[unknown.root, unknown.block]
        action = self._action(unknown, coefficient, atoms, "shift")
        if reader is not None:
            action = replace(action, factors=tuple(self._factor(gain, identities, -1) for gain in reader.empty.gains))
        if not by:
            return action
        whole = tuple(range(len(patch.indices)))
        image = action.image or Image(action.factors, tuple(i.size for i in patch.indices), action.places, whole)
        for other, added in by:
            image = self._summand(image, other, added)
        weight = action.weight * sp.prod([_rational(added.multiple) for _, added in by])
        return Action(action.parameter, patch, (), weight, "image", image=image)

    def _summand(self, image: Image, reader: Reader, added: Added) -> Image:
        """An image times one summand of a reader's s, which is a sum over dimensions of its own."""
        identities, patch = self._patches[reader.weight]
        along = [identity for identity in identities if identity in reader.empty.along]
        start, sizes = len(image.sizes), tuple(patch.indices[identities.index(identity)].size for identity in along)
        gains = (self._factor(gain, along, -1, start) for gain in reader.empty.gains[: added.behind])
        return replace(image, factors=(*image.factors, *gains, self._factor(added.bias, along, 1, start)), sizes=(*image.sizes, *sizes))

    def axis_classes(self) -> dict[str, tuple[int, ...]]:
        """A class number for each axis of each parameter; an axis that is a product or a sum of indices counts as its first."""
        out = {}
        for name, value in self.program.parameters.items():
            firsts = [self.program.table.segments(axis)[0].leaves for axis in value.axes]
            out[name] = tuple(leaves[0].atom if leaves else -1 for leaves in firsts)
        return out

    def _symmetry(self, kind: str, family: Family, atoms: Atoms, actions: tuple[Action, ...], reach: Reach) -> Symmetry:
        zero_mean = frozenset(range(len(atoms))) if family.zero_mean else frozenset()
        return Symmetry(kind, self._indices(atoms), actions, tuple(self._absorbers(family, atoms)), zero_mean, reach=reach)

    def _indices(self, atoms: Atoms) -> tuple[tuple[str, object], ...]:
        return tuple(zip(INDEX_LETTERS, [self.program.table.atom_size(a) for a in atoms], strict=False))

    def _actions(self, family: Family, atoms: Atoms, form: Form) -> tuple[Action, ...]:
        moving = [(u, c) for u, c in family.vector.items() if u.root in self._names and c]
        return self._sorted([self._action(u, c, atoms, form) for u, c in moving])

    def _sorted(self, actions: Sequence[Action]) -> tuple[Action, ...]:
        return tuple(sorted(actions, key=lambda a: (self._order[a.parameter], str(a.patch.offsets), a.places)))

    def _action(self, unknown: Unknown, coefficient: Fraction, atoms: Atoms, form: Form) -> Action:
        identities, patch = self._patches[unknown.root, unknown.block]
        name, weight = self._names[unknown.root], _rational(coefficient)
        tag = next((index for index in unknown.indices if is_image(index)), None)
        if tag is not None:
            return Action(name, patch, (), weight, "image", image=self._image(unknown, tag, identities, atoms))
        return Action(name, patch, _places(_dims(identities, unknown.indices), patch, atoms), weight, form)

    def _image(self, unknown: Unknown, tag: Identity, identities: Sequence[Identity], atoms: Atoms) -> Image:
        image, places = self.images.known[tag], self.images.indices[unknown]
        arguments = dict(image.arguments)
        kept = tuple(places[identity] for identity in identities)
        return Image(tuple(self._passed(*factor) for factor in image.factors), image.sizes, tuple(arguments[a] for a in atoms), kept)

    def _passed(self, root: int, block: Block, dimensions: tuple[tuple[Identity, int], ...], power: int) -> Factor:
        identities, patch = self._patches[root, block]
        along = dict(dimensions)
        return Factor(self._names[root], patch, tuple(along[identity] for identity in identities), power)

    def _turned(self, carrier: Carrier, dressing: Dressing, atoms: Atoms) -> Action:
        identities, patch = self._patches[carrier.root, carrier.block]
        spectators = _places(_dims(identities, carrier.spectators), patch, atoms[:-1])
        places = (*spectators, identities.index(carrier.index))
        at = dict(zip(atoms, places, strict=True))
        gains = tuple(self._gain(root, block, at, power) for (root, block), power in sorted(dressing, key=str))
        return Action(self._names[carrier.root], patch, places, sp.S.One, "rotation", gains)

    def _gain(self, root: int, block: Block, at: Mapping[int, int], power: int) -> Factor:
        _, patch = self._patches[root, block]
        return Factor(self._names[root], patch, tuple(at[index.atom] for index in patch.indices), power)

    def _blocks(self, value: Value) -> Iterator[tuple[Block, Located]]:
        per_axis = [self.program.table.segments(axis) for axis in value.axes]
        for segment in self.program.table.segments(tuple(o for axis in value.axes for o in axis)):
            yield segment.choices, _patch([next(s for s in parts if s.choices <= segment.choices) for parts in per_axis])

    def _absorbers(self, family: Family, atoms: tuple[int, ...]) -> Iterator[Absorber]:
        changed = {unknown.root for unknown, c in family.vector.items() if c and unknown.root in self._normalizations}
        for root in sorted(changed):  # tensors are numbered in the order of computation
            for step in self._normalizations[root]:
                yield from dict.fromkeys(self._absorbed_at(step, family.vector, atoms))  # summands along the batch absorb as one

    def _absorbed_at(self, step: Normalize, vector: Vector, atoms: tuple[int, ...]) -> Iterator[Absorber]:
        value, module = step.operand.value, self.graph.nodes[step.node]["module"]
        kept = [axis for i, axis in enumerate(value.axes) if str(i) not in step.over]
        for coefficient, seen in self.changes(value, kept, vector, atoms):
            yield Absorber(step.node, module, coefficient, step.eps, seen.patch, seen.places, seen.sizes, seen.picked)

    def changes(self, value: Value, axes: Sequence[Axis], vector: Vector, atoms: Sequence[int]) -> Iterator[tuple[sp.Rational, Seen]]:
        """What a family does to a tensor, seen along some of its axes (those of indices that data chose come last, and all of them)."""
        sizes, own = tuple(self.program.table.size(axis) for axis in axes), axes[: len(axes) - len(value.picks)]
        picked = tuple(Chosen.of(self.program.table, pick, own) for pick in value.picks)
        found: dict[tuple[sp.Rational, Seen], set[Seen]] = defaultdict(set)  # summands along other axes are seen as one
        for unknown, coefficient in vector.items():
            if unknown.root == value.root and coefficient and not any(map(is_image, unknown.indices)):
                chosen = [next(s for s in self.program.table.segments(axis) if s.choices <= unknown.block) for axis in axes]
                identities, patch = _patch(chosen)
                seen = Seen(patch, _places(_dims(identities, unknown.indices), patch, atoms), sizes)
                found[_rational(coefficient), seen.along_axes(len(own), picked)].add(seen)
        for (coefficient, plain), parts in found.items():
            if plain.picked or sum((part.volume for part in parts), start=sp.S.Zero) != plain.volume * multiply(sizes[len(plain.sizes) :]):
                yield from ((coefficient, replace(part, picked=picked)) for part in sorted(parts, key=str))
            else:
                yield coefficient, plain


def _inverse(dressing: Dressing) -> Dressing:
    """Gains of what is contracted, as those of what it is contracted with."""
    return frozenset((gain, -power) for gain, power in dressing)


def _patch(chosen: Sequence[Segment]) -> Located:
    """The block that one segment of each axis makes, with the identities of its indices."""
    indices = tuple(Index(a, leaf.size, leaf.stride, leaf.atom) for a, s in enumerate(chosen) for leaf in s.leaves)
    return [leaf.identity for s in chosen for leaf in s.leaves], Patch(tuple(s.offset for s in chosen), indices)


def _dims(identities: Sequence[Identity], chosen: frozenset[Identity]) -> list[int]:
    return [d for d, identity in enumerate(identities) if identity in chosen]


def _places(dims: list[int], patch: Patch, atoms: Sequence[int]) -> tuple[int, ...]:
    """For each atom of a family the dimension of a patch that carries it; where one atom occurs twice, in the patch's order."""
    free = list(dims)
    for atom in atoms:
        free.append(free.pop(next(i for i, d in enumerate(free) if patch.indices[d].atom == atom)))
    return tuple(free)


def _rational(value: Fraction) -> sp.Rational:
    return sp.Rational(value.numerator, value.denominator)
