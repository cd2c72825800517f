"""Which changes of a tensor nothing downstream sees, though they may depend on the data.

Softmax and cross-entropy ignore a shift that is the same for all classes, LayerNorm one that is the same for all features, however it
depends on the sample. Such an ignored direction is a *pattern*: a set of indices P, meaning every shift that is constant along P and
arbitrary along all else. Patterns are carried back from what absorbs them, through sums, slices and products, to the tensors that a
parameter can shift: a weight W -> W + 1 v^T, the bias of the keys. Where an axis is glued from pieces (a class token and patches), what is
ignored must be the same for all pieces: a `Mark` in the pattern of each piece says so.

Source: kunin2021neural, section 3 (translation symmetry) for the softmax case; own for the rest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from noetherflow.symbolic.axes import AxisTable, Identity
from noetherflow.symbolic.primitives import (
    Add,
    Apply,
    Block,
    Cell,
    Contract,
    Join,
    Normalize,
    Pin,
    Primitive,
    Program,
    Term,
    Turn,
    cells,
    join_cells,
)


@dataclass(frozen=True, slots=True)
class Mark:
    """A shift is ignored if it is the same for all `count` pieces of an axis; this is piece `index`, which is the summand `here`."""

    name: str
    index: int
    count: int
    here: Block


Pattern = frozenset[Identity | Mark]
Ignored = dict[tuple[int, Block], set[Pattern]]
ANYTHING: set[Pattern] = {frozenset()}


def ignored_directions(program: Program) -> Ignored:
    """For every block of every tensor the patterns that all its consumers ignore."""
    ignored: Ignored = {}
    for step in reversed(program.steps):
        for where, patterns in _seen_by(program.table, step, ignored):
            ignored[where] = {a | b for a in ignored.get(where, ANYTHING) for b in patterns}
    return ignored


def operand_patterns(step: Contract, row: Sequence[Cell], number: int, ignored: Ignored) -> set[Pattern]:
    """Patterns, in the indices of one operand of a contraction, that pass it and are ignored behind it.

    A product with operands that know nothing of an index is constant along it if this operand is; so is a maximum over windows. What is
    constant along all that is averaged passes an average as it is.
    """
    out, mine = row[0], row[1 + number]
    term, others = step.operands[number], [o for i, o in enumerate(step.operands) if i != number]
    if not step.linear and not step.uniform:
        return set()
    summed = {label for label in term.labels if label not in step.out.labels}
    extra: Pattern = frozenset() if step.linear else _along(mine, summed)
    averaged = number == step.averaged and mine.split.isdisjoint(summed)
    found = set()
    for pattern in ignored.get((step.out.value.root, out.block), set()):
        places = _places(out, pattern)
        if averaged and not _marks(pattern):
            found.add(frozenset(mine.leaves[p].identity for p in places if p in mine.leaves) | _along(mine, summed))
        missing = [place for place in places if place not in mine.leaves]
        if any(label in other.labels for label, _ in places for other in others):
            continue
        marks = _moved_marks(out, mine, pattern)
        if marks is None or any(label in other.labels for mark in _marks(pattern) for label in _glued(out, mark) for other in others):
            continue
        if not missing or (not others and step.uniform and not any(_windowed(step.out, term, place) for place in missing)):
            found.add(frozenset(mine.leaves[p].identity for p in places if p in mine.leaves) | extra | marks)
    return found


def unmarked(patterns: Iterable[Pattern]) -> set[frozenset[Identity]]:
    """The patterns that ask nothing of other pieces."""
    return {frozenset(i for i in p if not isinstance(i, Mark)) for p in patterns if not _marks(p)}


def marked(patterns: Iterable[Pattern]) -> Iterator[tuple[Mark, frozenset[Identity]]]:
    """The mark, and the rest, of each pattern that asks one thing of other pieces."""
    for pattern in patterns:
        marks = _marks(pattern)
        if len(marks) == 1:
            yield marks[0], frozenset(i for i in pattern if not isinstance(i, Mark))


def _marks(pattern: Pattern) -> list[Mark]:
    return [index for index in pattern if isinstance(index, Mark)]


def _glued(cell: Cell, mark: Mark) -> list[str]:
    """The label along which a marked piece lies."""
    return [label for label, summand in cell.summands.items() if summand == mark.here]


def _moved_marks(out: Cell, mine: Cell, pattern: Pattern) -> frozenset[Mark] | None:
    """The marks of a pattern of one tensor on another; None where one cannot be followed."""
    moved = set()
    for mark in _marks(pattern):
        labels = _glued(out, mark)
        if len(labels) != 1 or labels[0] not in mine.summands:
            return None
        moved.add(replace(mark, here=mine.summands[labels[0]]))
    return frozenset(moved)


def _seen_by(table: AxisTable, step: Primitive, ignored: Ignored) -> Iterator[tuple[tuple[int, Block], set[Pattern]]]:
    match step:
        case Normalize():
            yield from _absorbed(table, step)
        case Add():
            for row in cells(table, (step.out, *step.operands)):
                behind = ignored.get((step.out.value.root, row[0].block), set())
                yield from ((_where(t, cell), _carried(row[0], cell, behind)) for t, cell in zip(step.operands, row[1:], strict=True))
        case Apply():
            for out, x in cells(table, (step.out, step.operand)):
                behind = ignored.get((step.out.value.root, out.block), set()) if step.factor is not None else set()
                yield _where(step.operand, x), _carried(out, x, behind)
        case Contract():
            for row in cells(table, (step.out, *step.operands)):
                for number, (term, cell) in enumerate(zip(step.operands, row[1:], strict=True)):
                    yield _where(term, cell), operand_patterns(step, row, number, ignored)
        case Join():
            for whole, cell, piece in join_cells(table, step):
                source, target = (
                    ((piece.root, cell), (step.whole.root, whole)) if step.glued else ((step.whole.root, whole), (piece.root, cell))
                )
                behind = {p for p in ignored.get((target[0], target[1].block), set()) if not _marks(p)}  # pieces go ways of their own
                yield (source[0], source[1].block), _carried(target[1], source[1], behind)
        case Turn():
            yield from _nothing(table, step.operand)
        case Pin():
            yield from _nothing(table, Term(step.value, tuple(str(i) if axis else None for i, axis in enumerate(step.value.axes))))


def _nothing(table: AxisTable, term: Term) -> Iterator[tuple[tuple[int, Block], set[Pattern]]]:
    yield from ((_where(term, cell), set()) for (cell,) in cells(table, (term,)))


def _absorbed(table: AxisTable, step: Normalize) -> Iterator[tuple[tuple[int, Block], set[Pattern]]]:
    term = step.operand
    over: set[str | None] = {label for label in term.labels if label in step.over}
    pieces = {label: len(table.segments(axis)) for label, axis in zip(term.labels, term.value.axes, strict=True) if label in over}
    glued = [label for label, count in pieces.items() if count > 1 and label is not None]
    seen: Counter[str] = Counter()
    for (cell,) in cells(table, (term,)):
        found: set[Pattern] = {_along(cell, over)} if step.shift and over and len(glued) < 2 else set()
        for label in glued:
            here = cell.summands[label]
            name = str((term.value.root, step.out.value.root, sorted(map(str, cell.block - here))))
            mark = Mark(name, seen[name], pieces[label], here)
            seen[name] += 1
            found = {pattern | {mark} for pattern in found}
        yield _where(term, cell), found


def _where(term: Term, cell: Cell) -> tuple[int, Block]:
    return term.value.root, cell.block


def _along(cell: Cell, labels: set[str | None]) -> Pattern:
    return frozenset(leaf.identity for (label, _), leaf in cell.leaves.items() if label in labels)


def _places(cell: Cell, pattern: Pattern) -> list[tuple[str, int]]:
    return [place for place, leaf in cell.leaves.items() if leaf.identity in pattern]


def _carried(out: Cell, mine: Cell, patterns: set[Pattern]) -> set[Pattern]:
    """Patterns of a result as patterns of an operand that is added to it; what an operand lacks it is constant along."""
    found = set()
    for pattern in patterns:
        marks = _moved_marks(out, mine, pattern)
        if marks is not None:
            found.add(frozenset(mine.leaves[p].identity for p in _places(out, pattern) if p in mine.leaves) | marks)
    return found


def _windowed(out: Term, term: Term, place: tuple[str, int]) -> bool:
    """Whether an index of the result is a position that the operand reaches through a window rather than by broadcasting."""
    return place[0] not in term.labels and any(label not in out.labels for label in term.labels if label)
