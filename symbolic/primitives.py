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

An index that data chose (`noetherflow.symbolic.picks`) is hidden from the rules: in the primitives it is one more axis, behind the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import count

import sympy as sp

from noetherflow.symbolic.axes import Axis, AxisTable, Misaligned
from noetherflow.symbolic.graph import Size
from noetherflow.symbolic.picks import Label, Pick, Shared, labels_of, places, shared_picks
from noetherflow.symbolic.steps import (
    Add,
    Apply,
    Block,
    Cell,
    Contract,
    Join,
    Normalize,
    Pin,
    Primitive,
    Term,
    Turn,
    Value,
    cells,
    join_cells,
    read_by,
)

__all__ = (
    "Add",
    "Apply",
    "Block",
    "Cell",
    "Contract",
    "Join",
    "Label",
    "Normalize",
    "Pin",
    "Primitive",
    "Program",
    "Term",
    "Turn",
    "Value",
    "cells",
    "join_cells",
    "read_by",
)

Operand = tuple[Value, Sequence[Label]]
"""A tensor and the labels of its axes."""


@dataclass
class Program:
    """A graph written in primitives, in the order of computation.

    `probabilities` are tensors that sum to one along an axis; `alone` are nodes whose tensor of indices no other node picks by; `made`
    tells which tensor a node of the graph gives, `values` with which axes; `unread` are nodes whose result has axes of its own, because
    they have no rule or their sizes do not fit it. `discrete` says that it is read for permutations, which a softmax hands on: else what it
    makes is fixed. Of indices that the network itself chooses (`noetherflow.symbolic.choosing`), `choices` are the tensors of them by what
    chose, `one_hots` what is one at the chosen place, and `chosen_by` says by which tensor a node picks.
    """

    table: AxisTable = field(default_factory=AxisTable)
    steps: list[Primitive] = field(default_factory=list)
    parameters: dict[str, Value] = field(default_factory=dict)
    opaque: dict[str, str] = field(default_factory=dict)
    probabilities: dict[int, Axis] = field(default_factory=dict)
    alone: frozenset[str] = frozenset()
    made: dict[str, int] = field(default_factory=dict)
    values: dict[str, Value] = field(default_factory=dict)
    unread: set[str] = field(default_factory=set)
    discrete: bool = False
    choices: dict[object, Value] = field(default_factory=dict)
    one_hots: dict[int, Value] = field(default_factory=dict)
    chosen_by: dict[str, int] = field(default_factory=dict)
    _roots: Iterator[int] = field(default_factory=count)
    _spread: dict[int, tuple[Value, dict[Axis, Axis]]] = field(default_factory=dict)  # data that repeat others, and along which axes not
    _closed: dict[tuple[int, Pick], tuple[int, Contract]] = field(default_factory=dict)  # the steps that sum chosen indices

    def value(self, axes: Sequence[Axis], *, fixed: bool = False, parameter: str | None = None, picks: Sequence[Pick] = ()) -> Value:
        """A new tensor with the given axes."""
        return Value(next(self._roots), tuple(axes), fixed, parameter, () if fixed else tuple(picks))

    def fresh(self, shape: Sequence[Size], *, fixed: bool = False, parameter: str | None = None) -> Value:
        """A new tensor whose axes are new."""
        return self.value([self.table.new(size) for size in shape], fixed=fixed, parameter=parameter)

    def view(self, value: Value, axes: Sequence[Axis]) -> Value:
        """The same tensor with its axes rearranged."""
        return replace(value, axes=tuple(axes))

    def reshape(self, value: Value, shape: Sequence[Size]) -> Value:
        """The same tensor, reshaped."""
        return self.view(value, self.table.regroup(value.axes, shape))

    def pin(self, node: str, value: Value) -> None:
        """Let nothing about a value change; of what the network chose, only what it is, not what it would be for another choice."""
        for pick in value.picks:
            value = self.close(node, value, pick) if pick.index in self.one_hots else value
        if not value.fixed:
            self.steps.append(Pin(node, _whole(value)))

    def contract(
        self,
        node: str,
        operands: Sequence[Operand],
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
        known = self._unified(operands)
        operands = self._closed_singly(node, operands, out, together=linear)
        axes = [self._out_axis(label, known, fresh or {}) for label in out]
        terms, summed, chosen, picks = self._chosen(operands, dict(zip(out, axes, strict=True)))
        result = self.value(axes, fixed=all(t.value.fixed for t in terms), picks=picks)
        if result.fixed and len(terms) == 1 and set(operands[0][1]) <= {*out}:
            value, labels = operands[0]
            kept = {axes[out.index(label)]: axis for label, axis in zip(labels, value.axes, strict=True) if axis}
            self._spread[result.root] = value, kept
        one_hot = [self._one_hot(node, s, known) for s in summed]
        term = _term(result, out, chosen)
        terms = (*terms, *one_hot)
        summing = any(label not in term.labels for t in terms for label in t.labels if label is not None)
        whole = uniform or not (summing or fresh)
        multiple = Fraction(1) if multiple is None and whole else multiple
        self.steps.append(Contract(node, term, terms, linear, whole, self._averaged(terms, term.labels), multiple))
        return result

    def add(self, node: str, operands: Sequence[Value], coefficients: Sequence[int] | None = None) -> Value:
        """Add values with broadcasting, axes aligned from the right."""
        rank = max(len(v.axes) for v in operands)
        labelled = self._closed_alone(node, [(v, _aligned(v, rank)) for v in operands])
        known = self._unified(labelled)
        labels: list[Label] = [str(i) for i in range(rank)]
        axes = [self._out_axis(label, known, {}) for label in labels]
        terms, _, chosen, picks = self._chosen(labelled, dict(zip(labels, axes, strict=True)))
        result = self.value(axes, fixed=all(v.fixed for v in operands), picks=picks)
        self.steps.append(Add(node, _term(result, labels, chosen), terms, tuple(coefficients or [1] * len(terms))))
        return result

    def apply(self, node: str, x: Value, degree: sp.Rational | None, factor: sp.Rational | None = None, *, odd: bool = False) -> Value:
        """One function on every element."""
        if x.fixed and factor == 1:
            return x
        for pick in x.picks if degree is None and factor is None and not self.discrete else ():
            x = self.close(node, x, pick)  # no scale or shift passes, whatever was chosen; a permutation does
        result = self.value(x.axes, fixed=x.fixed, picks=x.picks)
        if factor == 1 and x.root in self.probabilities:
            self.probabilities[result.root] = self.probabilities[x.root]
        out, operand = _alike(result, x)
        self.steps.append(Apply(node, out, operand, degree, factor, odd))
        return result

    def normalize(self, node: str, x: Value, over: Sequence[int], *, scale: bool, shift: bool, eps: float = 0.0) -> Value:
        """Normalise along axes `over`; the result can be neither scaled nor shifted, only rotated along them."""
        kept = [str(i) for i in range(len(x.axes)) if i not in over]
        x = self._closed_outside(node, x, [str(i) for i in range(len(x.axes))], kept)
        result = self.value(x.axes, fixed=x.fixed or not (scale or self.discrete), picks=x.picks)
        along = frozenset(str(i) for i in over)
        out, operand = _alike(result, x)
        self.steps.append(Normalize(node, out, operand, along, scale, shift, eps))
        return result

    def turn(self, node: str, x: Value, pair: int) -> Value:
        """Rotate every pair along axis `pair` by an angle that depends on all other indices."""
        result = self.value(x.axes, fixed=x.fixed, picks=x.picks)
        out, operand = _alike(result, x)
        self.steps.append(Turn(node, out, operand, str(pair)))
        return result

    def concatenate(self, node: str, pieces: Sequence[Value], axis: int) -> Value:
        """Glue values along one axis."""
        for i in range(len(pieces[0].axes)):
            for piece in pieces[1:]:
                if i != axis:
                    self.table.unify(pieces[0].axes[i], piece.axes[i])
        pieces, shared = self._kept_by_all(node, pieces, axis)
        axes = [self.table.like(a) for a in pieces[0].axes]
        axes[axis] = self.table.concatenated([p.axes[axis] for p in pieces])
        by_label: dict[Label, Axis] = {str(i): a for i, a in enumerate(axes)}
        picks = [s.moved(self.table, by_label) for s in shared]
        whole = self.value(axes, fixed=all(p.fixed for p in pieces), picks=picks)
        sizes = tuple(self.table.size(p.axes[axis]) for p in pieces)
        self.steps.append(Join(node, _whole(whole), axis, tuple(map(_whole, pieces)), sizes, glued=True))
        return whole

    def piece(self, node: str, whole: Value, axis: int, start: int, length: int) -> Value:
        """The part [start, start + length) of a value along one axis."""
        size = self.table.size(whole.axes[axis])
        if not isinstance(size, int):
            raise Misaligned("a slice of symbolic size")
        sizes = [s for s in (start, length, size - start - length) if s]
        cuts = self.table.cut(whole.axes[axis], sizes)
        where = 1 if start else 0
        (whole,), shared = self._kept_by_all(node, [whole], axis)
        axes = [cuts[where] if i == axis else self.table.like(a) for i, a in enumerate(whole.axes)]
        by_label: dict[Label, Axis] = {str(i): a for i, a in enumerate(axes)}
        part = self.value(axes, fixed=whole.fixed, picks=[s.moved(self.table, by_label) for s in shared])
        pieces = tuple(_whole(part) if i == where else None for i in range(len(sizes)))
        self.steps.append(Join(node, _whole(whole), axis, pieces, tuple(sizes)))
        return part

    # --- indices that data choose

    def pick(
        self, node: str, table: Value, labels: Sequence[str], chosen: str, index: Value, by: Sequence[str], out: Sequence[str]
    ) -> Value:
        """What a tensor of indices takes out of the axis `chosen` of a table: T[index[n], ...] for every n.

        Parameters
        ----------
        node : str
        table : Value
        labels : sequence of str
            Of the table's axes.
        chosen : str
            The label that the indices run along.
        index : Value
            The tensor of indices: data.
        by : sequence of str
            Labels of its axes: n.
        out : sequence of str
            Labels of the result: all of n, and of the table's but `chosen`.

        Returns
        -------
        Value
            That keeps the chosen index.
        """
        table = self._closed_outside(node, table, labels, [label for label in labels if label != chosen])
        known = dict(zip(labels, table.axes, strict=True))
        sizes = {label: self.table.size(axis) for label, axis in zip(by, index.axes, strict=True)}
        rest = {label: axis for label, axis in known.items() if label != chosen}
        axes: dict[Label, Axis] = {label: self._out_axis(label, rest, sizes) for label in out}
        shared = self._shared([(table, labels)])
        picks = [s.moved(self.table, axes) for s in shared]
        if known[chosen]:
            root, order, at = self._source(index, by)
            where = tuple(o for label in at for o in axes[label])
            if root in self.one_hots:
                self.table.unify(order, where)
                self.table.unify(self.one_hots[root].axes[-1], known[chosen])
                self.chosen_by[node] = root
                if table.fixed:
                    self.pin(node, self.one_hots[root])  # rows that do not go along tell apart what is chosen
            by_all = node if len(at) == len(by) else ""
            picks.append(Pick(root, order, where, self.table.like(known[chosen]), node in self.alone, by_all))
        result = self.value([axes[label] for label in out], fixed=table.fixed, picks=picks)
        hidden = [s.label for s in shared]
        term = _term(table, labels, hidden)
        self.steps.append(
            Contract(node, _term(result, out, [*hidden, chosen][: len(result.picks)]), (term,), uniform=True, multiple=Fraction(1))
        )
        return result

    def _source(self, index: Value, by: Sequence[str]) -> tuple[int, Axis, list[str]]:
        """What chose: root and axes of the tensor of indices (of what is repeated in it), and the labels of those axes."""
        if index.root in self._spread:
            source, axes = self._spread[index.root]
            kept = [(label, axes[axis]) for label, axis in zip(by, index.axes, strict=True) if axis in axes]
            if len(kept) == len(axes):
                return self._source(self.view(source, [axis for _, axis in kept]), [label for label, _ in kept])
        return index.root, tuple(o for axis in index.axes for o in axis), list(by)

    def close(self, node: str, value: Value, pick: Pick) -> Value:
        """The sum over an index that data chose: the value as it is, no longer known for every choice."""
        position, step = self._closed.get((value.root, pick), (len(self.steps), None))
        if step is None or position >= len(self.steps) or self.steps[position] is not step:  # none yet, or taken back with its operation
            step = self._closing(node, value, pick)
            self._closed[value.root, pick] = len(self.steps), step
            self.steps.append(step)
        return Value(step.out.value.root, value.axes, value.fixed, None, tuple(p for p in value.picks if p != pick))

    def _closing(self, node: str, value: Value, pick: Pick) -> Contract:
        """A product with what is one at the chosen index and zero elsewhere, every index an axis of its own."""
        parts = [(o,) for axis in value.axes for o in self.table.factors(axis)]
        labels: list[Label] = [str(i) for i in range(len(parts))]
        at = places(self.table, pick, parts, labels)
        order = [(o,) for o in self.table.factors(pick.order)]
        one_hot = self._at_chosen(pick, order if pick.index in self.one_hots else [parts[int(str(label))] for label, _ in at])
        self.probabilities[one_hot.root] = one_hot.axes[-1]
        hidden = ["@" if p == pick else f"@{i}" for i, p in enumerate(value.picks)]
        kept = tuple(p for p in value.picks if p != pick)
        out = _term(self.value(parts, picks=kept), labels, [label for label in hidden if label != "@"])
        terms = _term(self.view(value, parts), labels, hidden), Term(one_hot, (*(label for label, _ in at), "@"))
        return Contract(node, out, terms, uniform=True, averaged=0)

    def _closed_singly(self, node: str, operands: Sequence[Operand], kept: Sequence[Label], *, together: bool) -> list[Operand]:
        """Operands of a product without the chosen indices that depend on what is summed; those of several may be summed together."""
        closed = list(operands)
        for s in self._shared(operands):
            if not s.within(kept) and not (together and len(s.picks) > 1):
                for i, pick in s.picks.items():
                    closed[i] = self.close(node, closed[i][0], pick), closed[i][1]
        return closed

    def _one_hot(self, node: str, shared: Shared, axes: Mapping[str, Axis]) -> Term:
        """What is one at a chosen index and zero elsewhere."""
        labels, pick = list(dict.fromkeys(str(label) for label, _ in shared.places)), next(iter(shared.picks.values()))
        wanted = [(label, i) for label in labels for i in range(len(self.table.factors(axes[label])))]
        if pick.index in self.one_hots and set(wanted) == set(shared.places):
            at = dict(zip(shared.places, self.table.factors(pick.order), strict=True))
            parts = [tuple(at[place] for place in wanted if place[0] == label) for label in labels]
            return Term(self._at_chosen(pick, parts), (*labels, shared.label))
        if pick.index in self.one_hots:
            self.pin(node, self.one_hots[pick.index])  # chosen by a part of an axis, which no term can have alone
        return Term(self.value([*(axes[label] for label in labels), pick.axis], fixed=True), (*labels, shared.label))

    def _at_chosen(self, pick: Pick, by: Sequence[Axis]) -> Value:
        """What is one at a chosen index and zero elsewhere, with what it was chosen by: fixed, unless the network itself chose."""
        if pick.index not in self.one_hots:
            return self.value([*by, pick.axis], fixed=True)
        chosen = self.one_hots[pick.index]
        return self.view(chosen, [*by, chosen.axes[-1]])

    def _closed_outside(self, node: str, value: Value, labels: Sequence[Label], kept: Sequence[Label]) -> Value:
        """A value without the chosen indices that depend on what is not kept."""
        for pick in value.picks:
            if any(label not in kept for label, _ in places(self.table, pick, value.axes, labels)):
                value = self.close(node, value, pick)
        return value

    def _closed_alone(self, node: str, operands: Sequence[tuple[Value, list[Label]]]) -> list[tuple[Value, list[Label]]]:
        """Addends without the chosen indices that some of them lack and that no other tensor can be picked by.

        A scale does not pass such a sum, and a shift has nobody to undo it.
        """
        shared = self._shared(operands)
        moving = {i for i, (value, _) in enumerate(operands) if not value.fixed}
        closed = list(operands)
        for s in shared:
            for i, pick in s.picks.items() if not s.picks.keys() >= moving else ():
                if pick.alone:
                    closed[i] = self.close(node, closed[i][0], pick), closed[i][1]
        return closed

    def _kept_by_all(self, node: str, values: Sequence[Value], axis: int) -> tuple[list[Value], list[Shared]]:
        """Values with only those chosen indices that all of them keep, none of which depends on one axis."""
        labels: list[Label] = [str(i) for i in range(len(values[0].axes))]
        others = [label for label in labels if label != str(axis)]
        values = [self._closed_outside(node, value, labels, others) for value in values]
        found = self._shared([(value, labels) for value in values])
        shared = [s for s in found if len(s.picks) == len(values)]
        kept = [tuple(s.picks[i] for s in shared) for i in range(len(values))]
        for i, value in enumerate(values):
            for pick in value.picks:
                if pick not in kept[i]:
                    values[i] = self.close(node, values[i], pick)
        return [replace(value, picks=picks) for value, picks in zip(values, kept, strict=True)], shared

    def _chosen(
        self, operands: Sequence[Operand], axes: Mapping[Label, Axis]
    ) -> tuple[tuple[Term, ...], list[Shared], list[str], list[Pick]]:
        """Terms with the indices that data chose; those of them that are summed, the labels of the others, and what a result keeps."""
        shared = self._shared(operands)
        terms = [_term(value, labels, [*labels_of(shared, i, value.picks)]) for i, (value, labels) in enumerate(operands)]
        kept = [s for s in shared if s.within(axes)]
        return tuple(terms), [s for s in shared if s not in kept], [s.label for s in kept], [s.moved(self.table, axes) for s in kept]

    def _shared(self, operands: Sequence[Operand]) -> list[Shared]:
        return shared_picks(self.table, [(value.picks, value.axes, labels) for value, labels in operands])

    # --- pieces that operations share

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

    def _unified(self, operands: Sequence[Operand]) -> dict[str, Axis]:
        known: dict[str, Axis] = {}
        for value, labels in operands:
            for label, axis in zip(labels, value.axes, strict=True):
                if label is None or axis == ():
                    continue
                if label in known:
                    self.table.unify(known[label], axis)
                known.setdefault(label, axis)
        return known

    def _out_axis(self, label: Label, known: Mapping[str, Axis], fresh: Mapping[str, Size]) -> Axis:
        if label is None or label not in {**known, **fresh}:
            return ()  # every operand has size one there
        return self.table.like(known[label]) if label in known else self.table.new(fresh[label])


def _term(value: Value, labels: Sequence[Label], chosen: Sequence[str] = ()) -> Term:
    """A value with labels of its axes, and of the indices that data chose."""
    return Term(_whole(value), (*(None if axis == () else label for label, axis in zip(labels, value.axes, strict=True)), *chosen))


def _whole(value: Value) -> Value:
    """A value as the solvers see it: the indices that data chose are its last axes."""
    return replace(value, axes=(*value.axes, *(pick.axis for pick in value.picks))) if value.picks else value


def _alike(result: Value, x: Value) -> tuple[Term, Term]:
    """A result and the value it has all axes in common with."""
    labels, chosen = [str(i) for i in range(len(x.axes))], [f"@{i}" for i in range(len(x.picks))]
    return _term(result, labels, chosen[: len(result.picks)]), _term(x, labels, chosen)


def _aligned(value: Value, rank: int) -> list[Label]:
    missing = rank - len(value.axes)
    return [str(i + missing) if axis != () else None for i, axis in enumerate(value.axes)]
