"""Which tensors may be shifted: constants that cancel between addends, or that nothing downstream sees.

A shift t_T of each tensor, the same for all data, leaves the network unchanged if

    contract    the shift of the result is that of the operand which the others average (a mean, a table row, softmax probabilities), or
                n times it (a sum of n); a constant that meets weights becomes its image W v, which a bias can take back (c -> c - W v);
                whatever is ignored behind the product is free (W -> W + 1 v^T before a softmax, the bias of the keys); a weight that
                reads an empty direction shifts the result by itself (W -> W + v (1/g)^T behind a norm with gain and bias)
    add         shifts add up
    apply       a linear function carries it, no other does
    normalize   absorbs what is constant along the normalised indices

Solved like the scales, one linear system per index set; images are further unknowns of the same system.

Source: kunin2021neural, section 3 (translation symmetry) for the softmax case; own for the rest.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from noetherflow.symbolic.annihilated import READ, Reader, Readers
from noetherflow.symbolic.axes import AxisTable, Identity, multiply
from noetherflow.symbolic.equations import Chosen, Statement, each, equal_pieces, pinned, stated, summed, unchanged, unknown_of
from noetherflow.symbolic.ignored import Ignored, Pattern, marked, operand_patterns, unmarked
from noetherflow.symbolic.images import Images
from noetherflow.symbolic.linear_systems import Atoms, Systems, Unknown
from noetherflow.symbolic.primitives import Add, Apply, Cell, Contract, Join, Normalize, Pin, Program, Turn, cells
from noetherflow.symbolic.scalings import constant_along

COMMON = -1
"""Root of the unknowns that say what all pieces of a glued axis have in common."""
Reads = dict[Atoms, dict[Unknown, Reader]]
Total = dict[tuple[Atoms, Chosen], list[tuple[Unknown | None, int | Fraction]]]


def shift_equations(program: Program, wanted: frozenset[Atoms], ignored: Ignored, readers: Readers) -> tuple[Systems, Images, Reads]:
    """All equations on constant shifts of a program; the images through weights, and the shifts by readers, among their unknowns."""
    movable = {value.root for value in program.parameters.values() if not value.fixed}
    shifts = _Shifts(ignored, readers, Images(program), movable)
    rules: dict[type, Statement] = {
        Contract: shifts.contract,
        Add: shifts.add,
        Apply: shifts.apply,
        Normalize: shifts.normalize,
        Turn: shifts.turn,
        Join: shifts.join,
        Pin: shifts.pin,
    }
    return stated(program, wanted, rules), shifts.images, shifts.reads


@dataclass
class _Shifts:
    """What each primitive states about shifts.

    `movable` are the tensors that a shift of a parameter may reach without meeting a weight; all others stay, whatever is stated.
    """

    ignored: Ignored
    readers: Readers
    images: Images
    movable: set[int]
    reads: Reads = field(default_factory=lambda: defaultdict(dict))

    def contract(self, systems: Systems, table: AxisTable, step: Contract) -> None:
        rows = list(cells(table, (step.out, *step.operands)))
        seen = [[operand_patterns(step, row, number, self.ignored) for number in range(len(step.operands))] for row in rows]
        pieces = [_in_all_pieces(patterns) for patterns in zip(*seen, strict=True)]
        for row, found in zip(rows, seen, strict=True):
            total: Total = {where: [] for where in systems.positions(row)}
            for number in range(len(step.operands)):
                patterns = unmarked(found[number])
                together = [(mark.name, rest) for mark, rest in marked(found[number]) if mark.name in pieces[number]]
                self._operand(systems, step, row, number, patterns, together, total)
                self._read(systems, step, row, number, patterns, total)
                self.images.contract(systems, step, row, number, patterns)
            for (key, chosen), parts in total.items():
                out = unknown_of(systems, step.out.value, row[0], chosen)
                systems.state(key, summed([(out, 1), *((u, -c) for u, c in parts)]))
        self.images.average(systems, step, rows)

    def _operand(
        self,
        systems: Systems,
        step: Contract,
        row: Sequence[Cell],
        number: int,
        patterns: set[frozenset[Identity]],
        together: Sequence[tuple[str, frozenset[Identity]]],
        total: Total,
    ) -> None:
        term, cell = step.operands[number], row[1 + number]
        multiple = step.constant(number)
        for (key, chosen), parts in total.items():
            x = unknown_of(systems, term.value, cell, chosen) if term.value.root in self.movable else None
            if x is None or any(not pattern & x.indices for pattern in patterns):
                continue
            common = [name for name, pattern in together if not pattern & x.indices]
            if multiple is not None and all(label in step.out.labels for label, _ in chosen):
                parts.append((x, multiple))
                self.movable.add(step.out.value.root)
            elif common:  # the same for all pieces of a glued axis
                systems.state(key, summed([(x, 1), (_shared(systems, common[0], cell, chosen), -1)]))
            elif not self.images.begin(systems, key, chosen, step, row, number, x):
                systems.state(key, {x: 1})

    def _read(
        self, systems: Systems, step: Contract, row: Sequence[Cell], number: int, patterns: set[frozenset[Identity]], total: Total
    ) -> None:
        """A weight that reads an empty direction adds a constant; what of it nothing downstream sees is a shift of the weight already.

        The constant is s times the coefficients if s is one number (the family takes its factor elsewhere), and else their image by s.
        """
        root, cell = step.operands[number].value.root, row[1 + number]
        reader = self.readers.get((root, cell.block))
        if reader is None or not reader.empty.biases:
            return
        free = {place: leaf for place, leaf in cell.leaves.items() if leaf.identity not in reader.empty.along}
        summed_too = {place: leaf.size for place, leaf in free.items() if place not in row[0].leaves}
        times = multiply(list(summed_too.values()))
        for (key, chosen), parts in total.items():
            indices = frozenset(free[place].identity for place in chosen & free.keys())
            if not chosen <= free.keys() or not all(pattern & indices for pattern in patterns) or not isinstance(times, int):
                continue
            unknown = Unknown(root, cell.block, indices | {READ})
            if not reader.empty.one_number:
                if self.images.read(systems, key, step, row, cell, reader, unknown):
                    self.reads[key][unknown] = reader
                continue
            self.reads[key][unknown] = reader
            if not chosen & summed_too.keys():  # else its mean over what is summed vanishes
                parts.append((unknown, times))
                self.movable.add(step.out.value.root)

    def add(self, systems: Systems, table: AxisTable, step: Add) -> None:
        self._reach(step.out.value.root, *(term.value.root for term in step.operands))
        for key, _, (out, *operands) in each(systems, table, (step.out, *step.operands)):
            systems.state(key, summed([(out, 1), *((u, -c) for u, c in zip(operands, step.coefficients, strict=True))]))
        self.images.add(systems, table, step)

    def apply(self, systems: Systems, table: AxisTable, step: Apply) -> None:
        if step.factor is None:
            unchanged(systems, table, step.out, step.operand)
        else:
            self._reach(step.out.value.root, step.operand.value.root)
            factor = Fraction(int(step.factor.p), int(step.factor.q))
            for key, _, (out, x) in each(systems, table, (step.out, step.operand)):
                systems.state(key, summed([(out, 1), (x, -factor)]))
        for out_cell, cell in cells(table, (step.out, step.operand)):
            self.images.carry(systems, step.operand.value.root, cell, step.out.value.root, out_cell, step.factor)

    def normalize(self, systems: Systems, table: AxisTable, step: Normalize) -> None:
        unchanged(systems, table, step.out)
        constant_along(systems, table, step, free=step.shift)
        self.images.normalize(systems, table, step)

    def turn(self, systems: Systems, table: AxisTable, step: Turn) -> None:
        unchanged(systems, table, step.out, step.operand)
        self.images.stop(systems, table, step.operand)

    def join(self, systems: Systems, table: AxisTable, step: Join) -> None:
        members = [value.root for value in (step.whole, *step.pieces) if value is not None]
        for member in members:
            self._reach(member, *members)
        equal_pieces(systems, table, step)
        self.images.join(systems, table, step)

    def pin(self, systems: Systems, table: AxisTable, step: Pin) -> None:
        pinned(systems, table, step)
        self.images.pin(systems, table, step)

    def _reach(self, target: int, *sources: int) -> None:
        if self.movable.intersection(sources):
            self.movable.add(target)


def _in_all_pieces(patterns: Sequence[set[Pattern]]) -> set[str]:
    """What every piece of a glued axis ignores if it is the same for all, by the marks of all cells of one operand."""
    held: dict[str, set[int]] = defaultdict(set)
    counts: dict[str, int] = {}
    for found in patterns:
        for mark, _ in marked(found):
            held[mark.name].add(mark.index)
            counts[mark.name] = mark.count
    return {name for name, indices in held.items() if len(indices) == counts[name]}


def _shared(systems: Systems, name: str, cell: Cell, chosen: Chosen) -> Unknown:
    """What all pieces of a glued axis shift by, with indices of its own: one for each label that the shift depends on."""
    indices: dict[Identity, int] = {(name, *place): cell.leaves[place].atom for place in chosen}
    systems.atoms.update(indices)
    return Unknown(COMMON, frozenset(), frozenset({(name,), *indices}))
