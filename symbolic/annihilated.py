"""Directions that a centring normalisation leaves empty: what reads it cannot tell what its weight does there.

The entries z_j of a LayerNorm sum to zero, so W -> W + v 1^T changes nothing; behind a gain y = g z it is W -> W + v (1/g)^T, and behind a
bias y = g z + c the result shifts by s v, s = <1/g, c>: a constant, which biases may take back like any other (`shifts`). The empty
direction is carried forward, from the normalisation to the linear maps that read it. With a gain the family is rational and has no charge.

Source: own (the sum of the normalised entries is zero, written in what the reader sees).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from noetherflow.symbolic.axes import AxisTable, Identity
from noetherflow.symbolic.ignored import Ignored, operand_patterns, unmarked
from noetherflow.symbolic.primitives import Add, Apply, Block, Cell, Contract, Join, Normalize, Program, Term, cells, join_cells, read_by

# A block of a parameter, with its indices as those of the tensor that carries the direction.
Dressed = tuple[int, Block, tuple[tuple[Identity, Identity], ...]]
READ = ("read",)
"""Marks the unknown by which a reader shifts its result, among the indices of unknowns."""


@dataclass(frozen=True, slots=True)
class Added:
    """A bias on the way, the number of gains in front of it, and what multiplied it since."""

    bias: Dressed
    behind: int
    multiple: Fraction = Fraction(1)


@dataclass(frozen=True, slots=True)
class Empty:
    """A tensor block y with sum over `along` of (y - biases) / gains equal to zero.

    Attributes
    ----------
    along : frozenset of Identity
    gains : tuple of Dressed
    biases : tuple of Added
    """

    along: frozenset[Identity]
    gains: tuple[Dressed, ...] = ()
    biases: tuple[Added, ...] = ()

    def times(self, multiple: Fraction) -> Empty:
        """That of a multiple of the tensor."""
        return replace(self, biases=tuple(replace(added, multiple=multiple * added.multiple) for added in self.biases))

    @property
    def dressing(self) -> Iterator[Dressed]:
        """All gains and biases."""
        yield from self.gains
        yield from (added.bias for added in self.biases)

    @property
    def one_number(self) -> bool:
        """Whether s = <1/g, c> depends on no index."""
        return all(theirs in self.along for _, _, indices in self.dressing for _, theirs in indices)


@dataclass(frozen=True, slots=True)
class Reader:
    """A weight that reads an empty direction.

    `weight` is (root, block). `seen` are indices of the weight along which a constant is a symmetry by itself.
    """

    weight: tuple[int, Block]
    empty: Empty
    seen: frozenset[Identity]


Readers = dict[tuple[int, Block], Reader]


def readers(program: Program, ignored: Ignored) -> Readers:
    """Every reader of an empty direction, by its weight; `ignored` is what nothing downstream sees."""
    search = _Search(program, ignored)
    for step in program.steps:
        search.follow(step)
    return {reader.weight: reader for reader in search.found}


class _Search:
    def __init__(self, program: Program, ignored: Ignored) -> None:
        self.found: list[Reader] = []
        self.table: AxisTable = program.table
        self._empty: dict[tuple[int, Block], Empty] = {}
        self._uses = Counter(root for step in program.steps for root in read_by(step))
        self._ignored = ignored

    def follow(self, step: object) -> None:
        """Carry empty directions through one primitive, and note who reads them."""
        match step:
            case Normalize() if step.scale and step.shift and not step.operand.value.fixed:
                self._begin(step)
            case Contract() if step.linear:
                rows = list(cells(self.table, (step.out, *step.operands)))
                for number in range(len(step.operands)):
                    self._contract(step, rows, number)
                    self.found.extend(self._readers(step, rows, number))
            case Add():
                for row in cells(self.table, (step.out, *step.operands)):
                    self._add(step, row)
            case Apply() if step.factor is not None:
                factor = Fraction(int(step.factor.p), int(step.factor.q))
                for out, x in cells(self.table, (step.out, step.operand)):
                    self._pass((step.operand.value.root, x), (step.out.value.root, out), factor)
            case Join():
                for whole, cell, piece in join_cells(self.table, step):
                    sides = [(step.whole.root, whole), (piece.root, cell)]
                    source, target = reversed(sides) if step.glued else sides
                    self._pass(source, target)

    def _begin(self, step: Normalize) -> None:
        over = {label for label in step.out.labels if label in step.over}
        whole = all(len(self.table.segments(step.out.value.axes[step.out.labels.index(label)])) == 1 for label in over)
        for (out,) in cells(self.table, (step.out,)):
            along = frozenset(leaf.identity for (label, _), leaf in out.leaves.items() if label in over)
            if whole and along:
                self._empty[step.out.value.root, out.block] = Empty(along)

    def _contract(self, step: Contract, rows: Sequence[Sequence[Cell]], number: int) -> None:
        """A block of the result is empty if all blocks that are summed into it are, in the same direction."""
        found: dict[Block, list[Empty | None]] = defaultdict(list)
        for row in rows:
            found[row[0].block].append(self._passed(step, row, number))
        for block, (first, *others) in found.items():
            if first is not None and all(other == first for other in others):
                self._empty[step.out.value.root, block] = first

    def _passed(self, step: Contract, row: Sequence[Cell], number: int) -> Empty | None:
        out, mine, term = row[0], row[1 + number], step.operands[number]
        empty = self._empty.get((term.value.root, mine.block))
        if empty is None:
            return None
        along = {place for place, leaf in mine.leaves.items() if leaf.identity in empty.along}
        if len(step.operands) == 1 or not any(cell.leaves.keys() & along for i, cell in enumerate(row[1:]) if i != number):
            multiple = step.constant(number)
            moved = _moved(empty, mine, out)
            return moved if moved is None or not empty.biases else moved.times(multiple) if multiple is not None else None
        other, theirs = step.operands[1 - number], row[2 - number]
        if len(step.operands) == 2 and other.value.parameter and theirs.leaves.keys() <= out.leaves.keys() & mine.leaves.keys():
            gain = (other.value.root, theirs.block, _indices(theirs, mine))
            return _moved(replace(empty, gains=(*empty.gains, gain)), mine, out)
        return None

    def _add(self, step: Add, row: Sequence[Cell]) -> None:
        """Tensors that are empty in the same direction, behind the same gains, and biases, add up to one that is."""
        out, *operands = row
        carrying: list[Empty | None] = []
        added: list[Added | None] = []
        for term, cell, coefficient in zip(step.operands, operands, step.coefficients, strict=True):
            empty = self._empty.get((term.value.root, cell.block))
            if empty is not None:
                moved = _moved(empty, cell, out)
                carrying.append(moved.times(Fraction(coefficient)) if moved is not None else None)
            else:
                added.append(_bias(term, cell, out, coefficient))
        whole = [empty for empty in carrying if empty is not None]
        biases = [bias for bias in added if bias is not None]
        alike = len({(empty.along, empty.gains) for empty in whole}) == 1
        if alike and len(whole) == len(carrying) and len(biases) == len(added):
            own = (replace(bias, behind=len(whole[0].gains)) for bias in biases)
            every = (*(bias for empty in whole for bias in empty.biases), *own)
            self._empty[step.out.value.root, out.block] = replace(whole[0], biases=every)

    def _pass(self, source: tuple[int, Cell], target: tuple[int, Cell], factor: Fraction = Fraction(1)) -> None:
        empty = self._empty.get((source[0], source[1].block))
        moved = _moved(empty, source[1], target[1]) if empty is not None else None
        if moved is not None:
            self._empty[target[0], target[1].block] = moved.times(factor)

    def _readers(self, step: Contract, rows: Sequence[Sequence[Cell]], number: int) -> Iterator[Reader]:
        """Blocks of a weight that meet the same empty direction wherever they are used."""
        if len(step.operands) != 2:
            return
        value, found = step.operands[1 - number].value, defaultdict(list)
        if value.parameter is not None and not value.fixed and self._uses[value.root] == 1:
            for row in rows:
                found[row[2 - number].block].append(self._reader(step, row, number))
        for first, *others in found.values():
            if first is not None and all(other == first for other in others):
                yield first

    def _reader(self, step: Contract, row: Sequence[Cell], number: int) -> Reader | None:
        out, mine, theirs = row[0], row[1 + number], row[2 - number]
        empty = self._empty.get((step.operands[number].value.root, mine.block))
        if empty is None or (empty.biases and not step.uniform):
            return None
        along = {place for place, leaf in mine.leaves.items() if leaf.identity in empty.along}
        moved = {leaf.identity: theirs.leaves[place].identity for place, leaf in mine.leaves.items() if place in theirs.leaves}
        if along & out.leaves.keys() or not all(identity in moved for identity in _needed(empty)):
            return None
        patterns = unmarked(operand_patterns(step, row, 1 - number, self._ignored))
        weight = step.operands[1 - number].value.root, theirs.block
        return Reader(weight, _renamed(empty, moved), frozenset().union(*patterns))


def _bias(term: Term, cell: Cell, out: Cell, coefficient: int) -> Added | None:
    """A parameter that is added, as far as its indices are those of the sum."""
    if term.value.parameter is None or not cell.leaves.keys() <= out.leaves.keys():
        return None
    return Added((term.value.root, cell.block, _indices(cell, out)), 0, Fraction(coefficient))


def _needed(empty: Empty) -> Iterator[Identity]:
    yield from empty.along
    for _, _, indices in empty.dressing:
        yield from (theirs for _, theirs in indices)


def _moved(empty: Empty, source: Cell, target: Cell) -> Empty | None:
    """The same direction in the indices of another tensor; None if it lacks one of them."""
    moved = {leaf.identity: target.leaves[place].identity for place, leaf in source.leaves.items() if place in target.leaves}
    return _renamed(empty, moved) if all(identity in moved for identity in _needed(empty)) else None


def _renamed(empty: Empty, moved: dict[Identity, Identity]) -> Empty:
    def dressed(d: Dressed) -> Dressed:
        return d[0], d[1], tuple((own, moved[theirs]) for own, theirs in d[2])

    biases = tuple(replace(added, bias=dressed(added.bias)) for added in empty.biases)
    return Empty(frozenset(moved[i] for i in empty.along), tuple(map(dressed, empty.gains)), biases)


def _indices(own: Cell, there: Cell) -> tuple[tuple[Identity, Identity], ...]:
    return tuple((leaf.identity, there.leaves[place].identity) for place, leaf in own.leaves.items())
