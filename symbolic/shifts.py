"""Which tensors may be shifted: constants that cancel between addends or that a normalisation or a loss does not see.

Two kinds, both exact for every batch:

constant    a shift t_T of each tensor, the same for all data: contract carries none (save a plain mean or maximum), add sums them,
            a normalisation absorbs what is constant along the normalised indices. Solved like the scales, one linear system per index set.
            (a bias before BatchNorm; two shifts added to the same stream; the class bias before a softmax)
by data     W -> W + 1 v^T shifts W x by a multiple of the ones vector that depends on the data, which softmax ignores.
            Found by carrying the ignored directions back from what absorbs them to the linear maps that produce them.

Source: kunin2021neural, section 3 (translation symmetry) for the softmax case; own for the rest.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

from noetherflow.symbolic.axes import AxisTable, Identity
from noetherflow.symbolic.equations import Statement, each, equal_pieces, pinned, stated, summed, unchanged
from noetherflow.symbolic.linear_systems import Atoms, Systems, Unknown, Vector
from noetherflow.symbolic.primitives import Add, Apply, Contract, Join, Normalize, Pin, Program, Term, cells
from noetherflow.symbolic.scalings import constant_along

Pattern = frozenset[Identity]


def shift_equations(program: Program, wanted: frozenset[Atoms]) -> Systems:
    """All equations on constant shifts of a program."""
    rules: dict[type, Statement] = {Contract: _contract, Add: _add, Apply: _apply, Normalize: _normalize, Join: equal_pieces, Pin: pinned}
    return stated(program, wanted, rules)


def _contract(systems: Systems, table: AxisTable, step: Contract) -> None:
    if len(step.operands) > 1 or not step.uniform:
        unchanged(systems, table, step.out, *step.operands)
        return
    operand = next(iter(step.operands))
    kept = {label for label in operand.labels if label is not None} & set(step.out.labels)
    for key, chosen, (out, x) in each(systems, table, (step.out, *step.operands)):
        if all(label in kept for label, _ in chosen):
            systems.state(key, summed([(out, 1), (x, -1)]))
        else:
            systems.state(key, {out: 1})
            systems.state(key, {x: 1})


def _add(systems: Systems, table: AxisTable, step: Add) -> None:
    for key, _, (out, *operands) in each(systems, table, (step.out, *step.operands)):
        systems.state(key, summed([(out, 1), *((u, -c) for u, c in zip(operands, step.coefficients, strict=True))]))


def _apply(systems: Systems, table: AxisTable, step: Apply) -> None:
    if step.factor is None:
        unchanged(systems, table, step.out, step.operand)
        return
    factor = Fraction(int(step.factor.p), int(step.factor.q))
    for key, _, (out, x) in each(systems, table, (step.out, step.operand)):
        systems.state(key, summed([(out, 1), (x, -factor)]))


def _normalize(systems: Systems, table: AxisTable, step: Normalize) -> None:
    constant_along(systems, table, step, free=step.shift)


# --- shifts that depend on the data


def data_shifts(program: Program) -> Iterator[tuple[Atoms, Vector]]:
    """(index set, {part of a weight: 1}) for every weight whose output may be shifted by data along directions that nothing sees."""
    ignored = _ignored_directions(program)
    for value in program.parameters.values():
        if value.fixed:
            continue
        patterns = _producible(program, value.root, ignored)
        segments = program.table.segments(tuple(o for axis in value.axes for o in axis))
        for segment in segments:
            own = {leaf.identity for leaf in segment.leaves}
            fitting = sorted((p for p in patterns if p and p <= own), key=len)
            if fitting:
                free = [leaf for leaf in segment.leaves if leaf.identity not in fitting[0]]
                unknown = Unknown(value.root, segment.choices, frozenset(leaf.identity for leaf in free))
                yield tuple(sorted(leaf.atom for leaf in free)), {unknown: Fraction(1)}


def _ignored_directions(program: Program) -> dict[int, set[Pattern]]:
    """For every tensor the patterns P such that a shift constant along P, and arbitrary along all else, changes nothing."""
    anything: set[Pattern] = {frozenset()}
    ignored: dict[int, set[Pattern]] = {}
    for step in reversed(program.steps):
        for root, patterns in _seen_by(program.table, step, ignored):
            ignored[root] = {a | b for a in ignored.get(root, anything) for b in patterns}
    return ignored


def _seen_by(table: AxisTable, step: object, ignored: dict[int, set[Pattern]]) -> Iterator[tuple[int, set[Pattern]]]:
    match step:
        case Normalize():
            labels = {label for label in step.operand.labels if label in step.over} if step.shift else set()
            whole = all(len(table.segments(step.operand.value.axes[step.operand.labels.index(label)])) == 1 for label in labels)
            yield step.operand.value.root, {_identities(table, step.operand, labels)} if labels and whole else set()
        case Add():
            for term in step.operands:
                yield term.value.root, _carried(table, step.out, term, ignored.get(step.out.value.root, set()), frozenset())
        case Apply() if step.factor is not None:
            yield step.operand.value.root, _carried(table, step.out, step.operand, ignored.get(step.out.value.root, set()), frozenset())
        case Contract() if len(step.operands) == 1 and step.uniform:
            term = step.operands[0]
            summed_labels = {label for label in term.labels if label is not None and label not in step.out.labels}
            along = frozenset() if step.linear else _identities(table, term, summed_labels)
            yield term.value.root, _carried(table, step.out, term, ignored.get(step.out.value.root, set()), along)
        case Contract():
            yield from ((term.value.root, set()) for term in step.operands)
        case Join():
            yield from ((v.root, set()) for v in (step.whole, *step.pieces) if v is not None)
        case Pin():
            yield step.value.root, set()
        case Apply():
            yield step.operand.value.root, set()


def _identities(table: AxisTable, term: Term, labels: set[str]) -> Pattern:
    (cell, *_) = next(cells(table, [term]))
    return frozenset(leaf.identity for (label, _), leaf in cell.leaves.items() if label in labels)


def _carried(table: AxisTable, out: Term, term: Term, patterns: set[Pattern], along: Pattern) -> set[Pattern]:
    (first, *more) = list(cells(table, [out, term]))
    if more:
        return set()  # summands of an axis shift separately: not carried
    where = {leaf.identity: position for position, leaf in first[0].leaves.items()}
    mine = first[1].leaves
    carried = set()
    for pattern in patterns:
        places = [where.get(identity) for identity in pattern]
        lost = [p for p in places if p is not None and p not in mine and _summed_over(out, term, p)]
        if None not in places and not lost:
            carried.add(frozenset(mine[p].identity for p in places if p in mine) | along)
    return carried


def _summed_over(out: Term, term: Term, place: tuple[str, int]) -> bool:
    """Whether an index of the result is a position that `term` reaches through a window rather than by broadcasting."""
    return place[0] in out.labels and place[0] not in term.labels and any(label not in out.labels for label in term.labels if label)


def _producible(program: Program, root: int, ignored: dict[int, set[Pattern]]) -> set[Pattern]:
    """Patterns, in the leaves of a weight, that every use of the weight can shift unseen."""
    found: set[Pattern] | None = None
    for step in program.steps:
        if not any(term.value.root == root for term in _terms(step)):
            continue
        patterns = _weight_patterns(program.table, step, root, ignored) if isinstance(step, Contract) else set()
        found = patterns if found is None else {a | b for a in found for b in patterns}
    return found or set()


def _terms(step: object) -> tuple[Term, ...]:
    match step:
        case Contract() | Add():
            return (step.out, *step.operands)
        case Apply() | Normalize():
            return (step.out, step.operand)
        case Pin():
            return (Term(step.value, ()),)
        case Join():
            return tuple(Term(v, ()) for v in (step.whole, *step.pieces) if v is not None)
    return ()


def _weight_patterns(table: AxisTable, step: Contract, root: int, ignored: dict[int, set[Pattern]]) -> set[Pattern]:
    weights = [term for term in step.operands if term.value.root == root]
    if len(step.operands) != 2 or len(weights) != 1 or not step.linear:
        return set()
    other = {label for term in step.operands if term.value.root != root for label in term.labels}
    patterns: set[Pattern] = set()
    rows = list(cells(table, [step.out, weights[0]]))
    for out, weight in rows:
        where = {leaf.identity: position for position, leaf in out.leaves.items()}
        for pattern in ignored.get(step.out.value.root, set()):
            places = [where.get(identity) for identity in pattern]
            if all(p is not None and p in weight.leaves and p[0] not in other for p in places):
                patterns.add(frozenset(weight.leaves[p].identity for p in places if p is not None))
    return patterns
