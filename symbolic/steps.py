"""The primitives as records, and what the solvers see of them: cells (`noetherflow.symbolic.primitives` says what each one means)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import product

import sympy as sp

from noetherflow.symbolic.axes import Axis, AxisTable, Identity, Leaf, Misaligned, Segment
from noetherflow.symbolic.graph import Size
from noetherflow.symbolic.picks import Label, Pick

Block = frozenset[tuple[Identity, int]]


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor seen by the solvers. Views of one tensor share `root`; a `fixed` tensor cannot change.

    `picks` are the indices that data chose and that it keeps; in a primitive they are its last axes.
    """

    root: int
    axes: tuple[Axis, ...]
    fixed: bool = False
    parameter: str | None = None
    picks: tuple[Pick, ...] = ()


@dataclass(frozen=True, slots=True)
class Term:
    """A value with one label per axis; axes with equal labels share an index, None marks an axis of size one."""

    value: Value
    labels: tuple[Label, ...]


@dataclass(frozen=True, slots=True)
class Contract:
    """out = sum over labels absent from `out` of the product of the operands.

    `linear` is false where the sum stands for a maximum. `uniform` says that windows are whole: what is constant over the summed labels of
    one operand meets the sum of all the others. `averaged` is the operand that the others average: their product sums to one. `multiple`
    is what a constant becomes where there is one operand only: itself (a mean, a maximum, rows of a table) or n times itself (a sum).
    """

    node: str
    out: Term
    operands: tuple[Term, ...]
    linear: bool = True
    uniform: bool = False
    averaged: int | None = None
    multiple: Fraction | None = None

    def constant(self, number: int) -> Fraction | None:
        """By how much a constant operand, the same for all summed labels, is multiplied; None if what it meets is not a known number."""
        if len(self.operands) == 1:
            return self.multiple
        return Fraction(1) if number == self.averaged else None


@dataclass(frozen=True, slots=True)
class Add:
    """out = sum of coefficient * operand, with broadcasting."""

    node: str
    out: Term
    operands: tuple[Term, ...]
    coefficients: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Apply:
    """out = f(x) on every element; f(c x) = c**degree f(x) for c > 0, or degree None; `linear` f(x) = factor * x.

    `odd` says that f(-x) = -f(x) for a function inside an operation; that of an operation on elements is known by its name.
    """

    node: str
    out: Term
    operand: Term
    degree: sp.Rational | None
    factor: sp.Rational | None = None
    odd: bool = False


@dataclass(frozen=True, slots=True)
class Normalize:
    """out is unchanged by scaling (if `scale`) and shifting (if `shift`) x by amounts constant along the labels `over`.

    With `eps` not zero the scale is broken explicitly, by a current with a closed form (`noetherflow.symbolic.currents`).
    """

    node: str
    out: Term
    operand: Term
    over: frozenset[str]
    scale: bool
    shift: bool
    eps: float = 0.0


@dataclass(frozen=True, slots=True)
class Turn:
    """Every pair (x_0, x_1) along `pair`, an axis of size two, is rotated by an angle that data give."""

    node: str
    out: Term
    operand: Term
    pair: str


@dataclass(frozen=True, slots=True)
class Join:
    """`whole` along `axis` is the disjoint sum of the pieces, in order; a piece that nobody made is None.

    `glued` says that the whole is made of the pieces, rather than the pieces cut from the whole.
    """

    node: str
    whole: Value
    axis: int
    pieces: tuple[Value | None, ...]
    sizes: tuple[Size, ...]
    glued: bool = False


@dataclass(frozen=True, slots=True)
class Pin:
    """Nothing about this value may change."""

    node: str
    value: Value


Primitive = Contract | Add | Apply | Normalize | Turn | Join | Pin


def read_by(step: Primitive) -> Iterator[int]:
    """The tensors that a primitive reads, once for every time it does."""
    match step:
        case Contract() | Add():
            yield from (term.value.root for term in step.operands)
        case Join():
            yield step.whole.root
            yield from (piece.root for piece in step.pieces if piece is not None)
        case Pin():
            yield step.value.root
        case _:
            yield step.operand.value.root


# --- what the solvers see of a primitive: one cell for every choice of summands


@dataclass(frozen=True, slots=True)
class Cell:
    """One block of a term: which block it is, the leaves behind every (label, position), and the labels that have other blocks too.

    `summands` tells for each label of the term that has other blocks which of them this is.
    """

    block: Block
    leaves: dict[tuple[str, int], Leaf]
    summands: dict[str, Block]
    split: frozenset[str] = frozenset()


def cells(table: AxisTable, terms: Sequence[Term]) -> list[list[Cell]]:
    """For every choice of summands of every label: the cell of each term.

    All solvers ask for the same ones, so they are kept until the table changes.

    Raises
    ------
    Misaligned
        If terms disagree about the summands of a label.
    """
    known = table.kept(tuple(map(id, terms)))
    if known is None:
        known = table.keep(tuple(map(id, terms)), (terms, list(_cells(table, terms))))  # with the terms, lest another take their identity
    rows: list[list[Cell]] = known[1]
    return rows


def _cells(table: AxisTable, terms: Sequence[Term]) -> Iterator[list[Cell]]:
    found = [{label: table.segments(axis) for label, axis in zip(t.labels, t.value.axes, strict=True) if label is not None} for t in terms]
    counts: dict[str, int] = {}
    for segments in found:
        for label, parts in segments.items():
            if counts.setdefault(label, len(parts)) != len(parts):
                raise Misaligned(f"label {label} has {counts[label]} summands here and {len(parts)} there")
    labels, split = sorted(counts), frozenset(label for label, number in counts.items() if number > 1)
    for choice in product(*(range(counts[label]) for label in labels)):
        chosen = dict(zip(labels, choice, strict=True))
        yield [_cell({label: parts[chosen[label]] for label, parts in segments.items()}, split) for segments in found]


def _cell(segments: Mapping[str, Segment], split: frozenset[str] = frozenset()) -> Cell:
    block: Block = frozenset()
    leaves: dict[tuple[str, int], Leaf] = {}
    for label, segment in segments.items():
        block |= segment.choices
        leaves.update({(label, i): leaf for i, leaf in enumerate(segment.leaves)})
    return Cell(block, leaves, {label: segment.choices for label, segment in segments.items() if segment.choices}, split)


def join_cells(table: AxisTable, step: Join) -> Iterator[tuple[Cell, Cell, Value]]:
    """Triples (cell of the whole, the same cell of its piece, that piece), for the pieces that are in the program."""
    starts = [sum(step.sizes[:j], start=0) for j in range(len(step.sizes))]
    others = [table.segments(axis) for i, axis in enumerate(step.whole.axes) if i != step.axis]
    for segment in table.segments(step.whole.axes[step.axis]):
        j = _containing(segment.offset, starts)
        piece = step.pieces[j]
        if piece is None:
            continue
        matching = _at(table.segments(piece.axes[step.axis]), segment.offset - starts[j])
        for choice in product(*(range(len(parts)) for parts in others)):
            whole = _placed(segment, [parts[c] for parts, c in zip(others, choice, strict=True)])
            rest = [table.segments(axis)[c] for axis, c in zip(_without(piece.axes, step.axis), choice, strict=True)]
            yield whole, _placed(matching, rest), piece


def _containing(offset: Size, starts: Sequence[Size]) -> int:
    return max(j for j, start in enumerate(starts) if _reaches(offset, start))


def _reaches(offset: Size, start: Size) -> bool:
    if isinstance(offset, int) and isinstance(start, int):
        return offset >= start
    return sp.Ge(offset, start) is sp.true  # a symbolic comparison may be undecided


def _at(segments: Sequence[Segment], offset: Size) -> Segment:
    for segment in segments:
        if segment.offset == offset:
            return segment
    raise Misaligned("a piece is cut differently from its whole")


def _without(axes: Sequence[Axis], position: int) -> list[Axis]:
    return [axis for i, axis in enumerate(axes) if i != position]


def _placed(along: Segment, rest: Sequence[Segment]) -> Cell:
    return _cell({"along": along, **{str(i): segment for i, segment in enumerate(rest)}})
