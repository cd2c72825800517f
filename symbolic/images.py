"""Shifts that pass a weight: a constant v in front of W arrives behind it as its image W v, and a bias can take it back.

(b <- b + v, c <- c - W v): the bias of a linear pair, of the values of an attention, of a normalisation in front of linear maps. Behind two
weights it is W2 W1 v, behind a gain g it is g v. Such a family is affine and has no charge, but it is a symmetry and must be counted. An
image is an unknown like any other shift, in the linear system of the index set that v depends on; this file says how primitives relate
images.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import sympy as sp

from noetherflow.symbolic.annihilated import Reader
from noetherflow.symbolic.axes import AxisTable, Identity
from noetherflow.symbolic.equations import Chosen, summed
from noetherflow.symbolic.graph import Size
from noetherflow.symbolic.linear_systems import Atoms, Systems, Unknown, Vector
from noetherflow.symbolic.primitives import Add, Block, Cell, Contract, Join, Normalize, Pin, Program, Term, cells, join_cells, read_by
from noetherflow.symbolic.repeated import originals

IMAGE = "image"


MAX_FACTORS = 3
"""Weights that a constant is followed through; behind more of them it is given up."""


@dataclass(frozen=True, slots=True)
class Image:
    """What a constant becomes behind weights: Σ of the constant times blocks of weights, over all dimensions that the holder lacks.

    Parameters
    ----------
    factors : tuple of (root, block, dimensions, power)
        The weights in order; for each index of a block the dimension of the product that it runs along.
    sizes : tuple of Size
        Of the dimensions.
    arguments : tuple of (atom, dimension)
        Indices of the constant.
    """

    factors: tuple[tuple[int, Block, tuple[tuple[Identity, int], ...], int], ...]
    sizes: tuple[Size, ...]
    arguments: tuple[tuple[int, int], ...]

    @property
    def tag(self) -> Identity:
        """What marks the image among the indices of an unknown."""
        factors = [(root, sorted(map(str, block)), sorted(map(str, along)), power) for root, block, along, power in self.factors]
        return (IMAGE, str(factors), str(self.arguments))

    @property
    def weights(self) -> frozenset[int]:
        """Roots of the weights it passed."""
        return frozenset(root for root, _, _, _ in self.factors)


@dataclass
class _Held:
    """An image on a block of a tensor: the dimensions that its indices run along, and the systems in which it is unknown."""

    places: Mapping[Identity, int]
    keys: set[Atoms] = field(default_factory=set)


class Images:
    """The images on all tensors of a program, met in the order of computation."""

    def __init__(self, program: Program) -> None:
        self.known: dict[Identity, Image] = {}
        self.targets: dict[Atoms, list[Unknown]] = defaultdict(list)
        self.indices: dict[Unknown, Mapping[Identity, int]] = {}
        self._held: dict[tuple[int, Block], dict[Identity, _Held]] = defaultdict(dict)
        self._uses = Counter(root for step in program.steps for root in read_by(step))
        self._originals = originals(program.table, program.steps)

    def begin(self, systems: Systems, key: Atoms, chosen: Chosen, step: Contract, row: Sequence[Cell], number: int, x: Unknown) -> bool:
        """State that a constant `x` meets a weight; False if it does not, or the image could not be named."""
        weight = self._weight(step, row, number)
        if weight is None or not chosen <= weight[1].leaves.keys():
            return False
        (root, cell), labels = weight, step.operands[number].labels
        dimensions = {leaf.identity: d for d, leaf in enumerate(cell.leaves.values())}
        arguments = tuple((leaf.atom, dimensions[leaf.identity]) for (label, _), leaf in cell.leaves.items() if label in labels)
        if len({atom for atom, _ in arguments}) != len(arguments):
            return False  # which index of the constant meets which of the weight's could not be told
        sizes = tuple(leaf.size for leaf in cell.leaves.values())
        image = Image(((root, cell.block, tuple(dimensions.items()), 1),), sizes, arguments)
        kept = {row[0].leaves[p].identity: dimensions[leaf.identity] for p, leaf in cell.leaves.items() if p in row[0].leaves}
        self._arrive(systems, image, kept, {key}, step.out.value.root, row[0], x)
        return True

    def read(self, systems: Systems, key: Atoms, step: Contract, row: Sequence[Cell], weight: Cell, reader: Reader, x: Unknown) -> bool:
        """State that coefficients `x` of a reader add to its result their image by s, the sum of biases over gains that it reads."""
        dimensions = {leaf.identity: d for d, leaf in enumerate(weight.leaves.values())}
        free = [leaf for leaf in weight.leaves.values() if leaf.identity not in reader.empty.along]
        arguments = tuple((leaf.atom, dimensions[leaf.identity]) for leaf in free)
        if len({atom for atom, _ in arguments}) != len(arguments):
            return False
        sizes = tuple(leaf.size for leaf in weight.leaves.values())
        kept = {row[0].leaves[p].identity: dimensions[leaf.identity] for p, leaf in weight.leaves.items() if p in row[0].leaves}
        for added in reader.empty.biases:
            dressed = [*((gain, -1) for gain in reader.empty.gains[: added.behind]), (added.bias, 1)]
            factors = tuple((r, b, tuple((own, dimensions[there]) for own, there in along), power) for (r, b, along), power in dressed)
            self._arrive(systems, Image(factors, sizes, arguments), kept, {key}, step.out.value.root, row[0], x, added.multiple)
        return True

    def contract(self, systems: Systems, step: Contract, row: Sequence[Cell], number: int, patterns: set[frozenset[Identity]]) -> None:
        """Images in front of a product: an average or a sum lets them through, what ignores them leaves them free, a weight joins them."""
        term, cell = step.operands[number], row[1 + number]
        multiple = step.constant(number)
        for tag, held in self._on(term.value.root, cell):
            if any(not pattern & held.places.keys() for pattern in patterns):
                continue
            if multiple is not None or not self._extend(systems, tag, held, step, row, number):
                factor = None if multiple is None else sp.Rational(multiple.numerator, multiple.denominator)
                self._pass(systems, tag, held, (term.value.root, cell), (step.out.value.root, row[0]), factor)

    def _extend(self, systems: Systems, tag: Identity, held: _Held, step: Contract, row: Sequence[Cell], number: int) -> bool:
        """State that an image meets a further weight; False if it does not."""
        image, weight, out, mine = self.known[tag], self._weight(step, row, number), row[0], row[1 + number]
        places = {place: held.places[leaf.identity] for place, leaf in mine.leaves.items() if leaf.identity in held.places}
        if weight is None or len(image.factors) == MAX_FACTORS or weight[0] in image.weights:
            return False
        root, cell = weight
        if not all(place in cell.leaves or place in out.leaves for place in places):
            return False
        sizes = list(image.sizes)
        dimensions: dict[Identity, int] = {}
        for place, leaf in cell.leaves.items():
            dimensions[leaf.identity] = places[place] if place in places else len(sizes)
            sizes += [] if place in places else [leaf.size]
        longer = Image((*image.factors, (root, cell.block, tuple(dimensions.items()), 1)), tuple(sizes), image.arguments)
        known = {place: dimensions[leaf.identity] for place, leaf in cell.leaves.items()}
        kept = {leaf.identity: (places | known)[place] for place, leaf in out.leaves.items() if place in places or place in known}
        here = _unknown(step.operands[number].value.root, mine.block, tag)
        self._arrive(systems, longer, kept, held.keys, step.out.value.root, out, here)
        return True

    def _weight(self, step: Contract, row: Sequence[Cell], number: int) -> tuple[int, Cell] | None:
        """The parameter that an operand meets in a product, root and cell; None if it meets anything else."""
        if len(step.operands) != 2 or not (step.linear and step.uniform) or step.out.value.fixed:
            return None
        met, cell = step.operands[1 - number].value, row[2 - number]
        if met.root == step.operands[number].value.root:
            return None
        original = self._originals.get((met.root, cell.block))
        if original is not None:
            return original.root, original.seen(cell)
        return None if met.parameter is None else (met.root, cell)

    def _arrive(
        self,
        systems: Systems,
        image: Image,
        places: Mapping[Identity, int],
        keys: set[Atoms],
        root: int,
        out: Cell,
        x: Unknown,
        multiple: Fraction = Fraction(1),
    ) -> None:
        """State that behind a weight, x is there as an image."""
        self.known[image.tag] = image
        self._put(root, out.block, image.tag, places, keys)
        for key in keys:
            systems.state(key, summed([(_unknown(root, out.block, image.tag), 1), (x, -multiple)]))

    def length(self, unknown: Unknown) -> int:
        """How many weights an image has passed: what passed fewer can often be had from what is given up first."""
        return max((len(self.known[index].factors) for index in unknown.indices if is_image(index)), default=0)

    def average(self, systems: Systems, step: Contract, rows: Sequence[Sequence[Cell]]) -> None:
        """What is averaged must bear an image wherever it is averaged: the mean of a shifted and an unshifted part is neither."""
        number = 0 if len(step.operands) == 1 else step.averaged
        if number is None or step.constant(number) is None:
            return
        root = step.operands[number].value.root
        for row in rows:
            for tag, held in self._on(step.out.value.root, row[0]):
                if tag not in self._held.get((root, row[1 + number].block), {}):
                    self._stop(systems, tag, held, step.out.value.root, row[0])

    def carry(self, systems: Systems, root: int, cell: Cell, out_root: int, out: Cell, factor: sp.Rational | None) -> None:
        """Images in front of a function of every element."""
        for tag, held in self._on(root, cell):
            self._pass(systems, tag, held, (root, cell), (out_root, out), factor)

    def join(self, systems: Systems, table: AxisTable, step: Join) -> None:
        """Images on a tensor that is cut, or on pieces that are glued."""
        for whole, cell, piece in join_cells(table, step):
            sides = [(step.whole.root, whole), (piece.root, cell)]
            source, target = reversed(sides) if step.glued else sides
            self.carry(systems, *source, *target, sp.S.One)

    def normalize(self, systems: Systems, table: AxisTable, step: Normalize) -> None:
        """A normalisation that centres does not see what is constant along its indices."""
        term = step.operand
        over = {label for label in term.labels if label in step.over}
        whole = all(len(table.segments(term.value.axes[term.labels.index(label)])) == 1 for label in over)
        for (cell,) in cells(table, (term,)):
            along = {leaf.identity for (label, _), leaf in cell.leaves.items() if label in over}
            for tag, held in self._on(term.value.root, cell):
                if not (step.shift and whole and not along & held.places.keys()):
                    self._stop(systems, tag, held, term.value.root, cell)

    def stop(self, systems: Systems, table: AxisTable, term: Term) -> None:
        """Nothing passes."""
        for (cell,) in cells(table, (term,)):
            for tag, held in self._on(term.value.root, cell):
                self._stop(systems, tag, held, term.value.root, cell)

    def pin(self, systems: Systems, table: AxisTable, step: Pin) -> None:
        """Nothing changes."""
        self.stop(systems, table, Term(step.value, tuple(str(i) if axis else None for i, axis in enumerate(step.value.axes))))

    def add(self, systems: Systems, table: AxisTable, step: Add) -> None:
        """Images add up; a bias with their indices, read nowhere else, can take them back."""
        rows = list(cells(table, (step.out, *step.operands)))
        for row in rows:  # first of all rows: what a bias takes back in one of them it adds in the others
            self._let_biases_join(systems, step, row)
        for row in rows:
            self._sum(systems, step, row)

    def _let_biases_join(self, systems: Systems, step: Add, row: Sequence[Cell]) -> None:
        out, *operands = row
        for tag, held in self._summed(step, row).items():
            for term, cell in zip(step.operands, operands, strict=True):
                original = self._originals.get((term.value.root, cell.block))
                bias = (term.value.root, cell) if original is None else (original.root, original.seen(cell))
                known = term.value.parameter and not term.value.fixed
                once = self._uses[term.value.root] == 1 == self._uses[bias[0]]
                free = (known or original is not None) and once and bias[0] not in self.known[tag].weights
                if free and {out.leaves[p].identity for p in bias[1].leaves} == held.places.keys():
                    self._join(systems, tag, held, out, bias, (term.value.root, cell))

    def _join(self, systems: Systems, tag: Identity, held: _Held, out: Cell, bias: tuple[int, Cell], here: tuple[int, Cell]) -> None:
        """A bias may take back an image, added as it is or repeated."""
        root, block = bias[0], bias[1].block
        unknown, repeated = _unknown(root, block, tag), _unknown(here[0], here[1].block, tag)
        places = {place: held.places[out.leaves[place].identity] for place in bias[1].leaves}
        self.indices[unknown] = {leaf.identity: places[place] for place, leaf in bias[1].leaves.items()}
        self._put(root, block, tag, self.indices[unknown], held.keys)
        if repeated != unknown:
            along = {leaf.identity: places[place] for place, leaf in here[1].leaves.items() if place in places}
            self._put(here[0], here[1].block, tag, along, held.keys)
        for key in held.keys:
            self.targets[key].append(unknown)
            if repeated != unknown:
                systems.state(key, {repeated: 1, unknown: -1})

    def _sum(self, systems: Systems, step: Add, row: Sequence[Cell]) -> None:
        out, *operands = row
        members = [(t.value.root, cell, c) for t, cell, c in zip(step.operands, operands, step.coefficients, strict=True)]
        for tag, held in self._summed(step, row).items():
            parts = [(_unknown(root, cell.block, tag), -c) for root, cell, c in members if tag in self._held.get((root, cell.block), {})]
            for key in held.keys:
                systems.state(key, summed([(_unknown(step.out.value.root, out.block, tag), 1), *parts]))
            for root, cell, _ in members:
                mine = self._held.get((root, cell.block), {}).get(tag)
                if mine is not None and _moved(mine, cell, out) != held.places:
                    self._stop(systems, tag, mine, root, cell)
            self._put(step.out.value.root, out.block, tag, held.places, held.keys)

    def _summed(self, step: Add, row: Sequence[Cell]) -> dict[Identity, _Held]:
        """The images on the addends, with the indices that the result has."""
        out, *operands = row
        found: dict[Identity, _Held] = {}
        for term, cell in zip(step.operands, operands, strict=True):
            for tag, held in self._on(term.value.root, cell):
                first = found.setdefault(tag, _Held(_moved(held, cell, out) or {}))
                first.keys |= held.keys
        return found

    def _pass(
        self, systems: Systems, tag: Identity, held: _Held, source: tuple[int, Cell], target: tuple[int, Cell], factor: sp.Rational | None
    ) -> None:
        places = _moved(held, source[1], target[1])
        if factor is None or places is None:
            self._stop(systems, tag, held, *source)
            return
        self._put(target[0], target[1].block, tag, places, held.keys)
        there, here = _unknown(target[0], target[1].block, tag), _unknown(source[0], source[1].block, tag)
        for key in held.keys:
            systems.state(key, summed([(there, 1), (here, -Fraction(int(factor.p), int(factor.q)))]))

    def _stop(self, systems: Systems, tag: Identity, held: _Held, root: int, cell: Cell) -> None:
        for key in held.keys:
            systems.state(key, {_unknown(root, cell.block, tag): 1})

    def _put(self, root: int, block: Block, tag: Identity, places: Mapping[Identity, int], keys: set[Atoms]) -> None:
        self._held[root, block].setdefault(tag, _Held(places)).keys.update(keys)

    def _on(self, root: int, cell: Cell) -> Iterator[tuple[Identity, _Held]]:
        yield from list(self._held.get((root, cell.block), {}).items())


def is_image(index: Identity) -> bool:
    """Whether an index of an unknown is not an index, but the mark of an image."""
    return index[0] == IMAGE


def images_in(vector: Vector) -> set[Identity]:
    """Marks of all images in a solution."""
    return {index for unknown, c in vector.items() if c for index in unknown.indices if is_image(index)}


def _unknown(root: int, block: Block, tag: Identity) -> Unknown:
    return Unknown(root, block, frozenset({tag}))


def _moved(held: _Held, source: Cell, target: Cell) -> dict[Identity, int] | None:
    """The indices of an image as those of another tensor; None if one of them is lost."""
    out = {}
    for place, leaf in source.leaves.items():
        if leaf.identity in held.places:
            if place not in target.leaves:
                return None
            out[target.leaves[place].identity] = held.places[leaf.identity]
    return out if len(out) == len(held.places) else None
