"""The few primitives every operation is made of, as far as symmetry is concerned.

A gauge rule (`noetherflow.symbolic.gauge_table`) writes an operation as one or more of:

contract    a product of tensors, summed over the indices that do not reach the result (linear maps, convolutions, products, means)
add         a sum of tensors with broadcasting
apply       one function on every element: positively homogeneous of some degree, or not at all
normalize   invariant under a scale and/or a shift of its input along some axes
turn        a rotation, by data, of every pair of entries along an axis of size two
join        a tensor and the pieces it is cut into, or glued from
pin         nothing may change here (data, outputs, opaque operations)

The solvers (`scalings`, `shifts`, `algebras`) know the primitives only, so an operation is added without touching a solver.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import count, product

import sympy as sp

from noetherflow.symbolic.axes import Axis, AxisTable, Identity, Leaf, Misaligned, Segment
from noetherflow.symbolic.graph import Size

Label = str | None
Block = frozenset[tuple[Identity, int]]


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor seen by the solvers. Views of one tensor share `root`; a `fixed` tensor cannot change."""

    root: int
    axes: tuple[Axis, ...]
    fixed: bool = False
    parameter: str | None = None


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
    """out = f(x) on every element; f(c x) = c**degree f(x) for c > 0, or degree None; `linear` f(x) = factor * x."""

    node: str
    out: Term
    operand: Term
    degree: sp.Rational | None
    factor: sp.Rational | None = None


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


@dataclass
class Program:
    """A graph written in primitives, in the order of computation.

    `probabilities` are tensors that sum to one along an axis; `made` tells which tensor a node of the graph gives.
    """

    table: AxisTable = field(default_factory=AxisTable)
    steps: list[Primitive] = field(default_factory=list)
    parameters: dict[str, Value] = field(default_factory=dict)
    opaque: dict[str, str] = field(default_factory=dict)
    probabilities: dict[int, Axis] = field(default_factory=dict)
    made: dict[str, int] = field(default_factory=dict)
    _roots: Iterator[int] = field(default_factory=count)

    def value(self, axes: Sequence[Axis], *, fixed: bool = False, parameter: str | None = None) -> Value:
        """A new tensor with the given axes."""
        return Value(next(self._roots), tuple(axes), fixed, parameter)

    def fresh(self, shape: Sequence[Size], *, fixed: bool = False, parameter: str | None = None) -> Value:
        """A new tensor whose axes are new."""
        return self.value([self.table.new(size) for size in shape], fixed=fixed, parameter=parameter)

    def view(self, value: Value, axes: Sequence[Axis]) -> Value:
        """The same tensor with its axes rearranged."""
        return Value(value.root, tuple(axes), value.fixed, value.parameter)

    def reshape(self, value: Value, shape: Sequence[Size]) -> Value:
        """The same tensor, reshaped."""
        return self.view(value, self.table.regroup(value.axes, shape))

    def pin(self, node: str, value: Value) -> None:
        """Let nothing about a value change."""
        if not value.fixed:
            self.steps.append(Pin(node, value))

    def contract(
        self,
        node: str,
        operands: Sequence[tuple[Value, Sequence[Label]]],
        out: Sequence[Label],
        fresh: Mapping[str, Size] | None = None,
        *,
        linear: bool = True,
        uniform: bool = False,
        multiple: Fraction | None = None,
    ) -> Value:
        """Multiply operands and sum over the labels that `out` lacks; labels in `fresh` are new axes of the result.

        A product of entries has whole windows; where there is one operand and windows are whole, a constant stays what it is.
        """
        terms = [_term(value, labels) for value, labels in operands]
        known = self._unified(terms)
        axes = [self._out_axis(label, known, fresh or {}) for label in out]
        result = self.value(axes, fixed=all(t.value.fixed for t in terms))
        summing = any(label not in out for term in terms for label in term.labels if label is not None)
        whole = uniform or not (summing or fresh)
        multiple = Fraction(1) if multiple is None and whole else multiple
        self.steps.append(Contract(node, _term(result, out), tuple(terms), linear, whole, self._averaged(terms, out), multiple))
        return result

    def add(self, node: str, operands: Sequence[Value], coefficients: Sequence[int] | None = None) -> Value:
        """Add values with broadcasting, axes aligned from the right."""
        rank = max(len(v.axes) for v in operands)
        terms = [_term(v, _aligned(v, rank)) for v in operands]
        known = self._unified(terms)
        labels = [str(i) for i in range(rank)]
        result = self.value([self._out_axis(label, known, {}) for label in labels], fixed=all(v.fixed for v in operands))
        self.steps.append(Add(node, _term(result, labels), tuple(terms), tuple(coefficients or [1] * len(terms))))
        return result

    def apply(self, node: str, x: Value, degree: sp.Rational | None, factor: sp.Rational | None = None) -> Value:
        """One function on every element."""
        result = self.value(x.axes, fixed=x.fixed)
        if factor == 1 and x.root in self.probabilities:
            self.probabilities[result.root] = self.probabilities[x.root]
        labels = [str(i) for i in range(len(x.axes))]
        self.steps.append(Apply(node, _term(result, labels), _term(x, labels), degree, factor))
        return result

    def normalize(self, node: str, x: Value, over: Sequence[int], *, scale: bool, shift: bool, eps: float = 0.0) -> Value:
        """Normalise along axes `over`; the result can be neither scaled nor shifted, only rotated along them."""
        result = self.value(x.axes, fixed=x.fixed or not scale)
        labels = [str(i) for i in range(len(x.axes))]
        along = frozenset(str(i) for i in over)
        self.steps.append(Normalize(node, _term(result, labels), _term(x, labels), along, scale, shift, eps))
        return result

    def turn(self, node: str, x: Value, pair: int) -> Value:
        """Rotate every pair along axis `pair` by an angle that depends on all other indices."""
        result = self.value(x.axes, fixed=x.fixed)
        labels = [str(i) for i in range(len(x.axes))]
        self.steps.append(Turn(node, _term(result, labels), _term(x, labels), str(pair)))
        return result

    def concatenate(self, node: str, pieces: Sequence[Value], axis: int) -> Value:
        """Glue values along one axis."""
        for i in range(len(pieces[0].axes)):
            for piece in pieces[1:]:
                if i != axis:
                    self.table.unify(pieces[0].axes[i], piece.axes[i])
        axes = [self.table.like(a) for a in pieces[0].axes]
        axes[axis] = self.table.concatenated([p.axes[axis] for p in pieces])
        whole = self.value(axes, fixed=all(p.fixed for p in pieces))
        self.steps.append(Join(node, whole, axis, tuple(pieces), tuple(self.table.size(p.axes[axis]) for p in pieces), glued=True))
        return whole

    def piece(self, node: str, whole: Value, axis: int, start: int, length: int) -> Value:
        """The part [start, start + length) of a value along one axis."""
        size = self.table.size(whole.axes[axis])
        if not isinstance(size, int):
            raise Misaligned("a slice of symbolic size")
        sizes = [s for s in (start, length, size - start - length) if s]
        cuts = self.table.cut(whole.axes[axis], sizes)
        where = 1 if start else 0
        part = self.value([cuts[where] if i == axis else self.table.like(a) for i, a in enumerate(whole.axes)], fixed=whole.fixed)
        self.steps.append(Join(node, whole, axis, tuple(part if i == where else None for i in range(len(sizes))), tuple(sizes)))
        return part

    def _averaged(self, terms: Sequence[Term], out: Sequence[Label]) -> int | None:
        """The operand of a product that the other averages, with probabilities over all that is summed."""
        if len(terms) != 2:
            return None
        for number, term in enumerate(terms):
            along = self.probabilities.get(term.value.root)
            summed = {label for other in terms for label in other.labels if label is not None and label not in out}
            mine = {label for label, axis in zip(term.labels, term.value.axes, strict=True) if axis == along and label is not None}
            if along and mine == summed:
                return 1 - number
        return None

    def _unified(self, terms: Sequence[Term]) -> dict[str, Axis]:
        known: dict[str, Axis] = {}
        for term in terms:
            for label, axis in zip(term.labels, term.value.axes, strict=True):
                if label is None:
                    continue
                if label in known:
                    self.table.unify(known[label], axis)
                known.setdefault(label, axis)
        return known

    def _out_axis(self, label: Label, known: Mapping[str, Axis], fresh: Mapping[str, Size]) -> Axis:
        if label is None or label not in {**known, **fresh}:
            return ()  # every operand has size one there
        return self.table.like(known[label]) if label in known else self.table.new(fresh[label])


def _term(value: Value, labels: Sequence[Label]) -> Term:
    return Term(value, tuple(None if axis == () else label for label, axis in zip(labels, value.axes, strict=True)))


def _aligned(value: Value, rank: int) -> list[Label]:
    missing = rank - len(value.axes)
    return [str(i + missing) if axis != () else None for i, axis in enumerate(value.axes)]


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
    """One block of a term: which block it is, the leaves behind every (label, position), and the summand of each label that has some."""

    block: Block
    leaves: dict[tuple[str, int], Leaf]
    summands: dict[str, Block]


def cells(table: AxisTable, terms: Sequence[Term]) -> Iterator[list[Cell]]:
    """For every choice of summands of every label: the cell of each term.

    Raises
    ------
    Misaligned
        If terms disagree about the summands of a label.
    """
    found = [{label: table.segments(axis) for label, axis in zip(t.labels, t.value.axes, strict=True) if label is not None} for t in terms]
    counts: dict[str, int] = {}
    for segments in found:
        for label, parts in segments.items():
            if counts.setdefault(label, len(parts)) != len(parts):
                raise Misaligned(f"label {label} has {counts[label]} summands here and {len(parts)} there")
    labels = sorted(counts)
    for choice in product(*(range(counts[label]) for label in labels)):
        chosen = dict(zip(labels, choice, strict=True))
        yield [_cell({label: parts[chosen[label]] for label, parts in segments.items()}) for segments in found]


def _cell(segments: Mapping[str, Segment]) -> Cell:
    block: Block = frozenset()
    leaves: dict[tuple[str, int], Leaf] = {}
    for label, segment in segments.items():
        block |= segment.choices
        leaves.update({(label, i): leaf for i, leaf in enumerate(segment.leaves)})
    return Cell(block, leaves, {label: segment.choices for label, segment in segments.items() if segment.choices})


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
