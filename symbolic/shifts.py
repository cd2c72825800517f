"""Which tensors may be shifted: constants that cancel between addends, or that nothing downstream sees.

A shift t_T of each tensor, the same for all data, leaves the network unchanged if

    contract    the shift of the result is that of the operand which the others average (a mean, a table row, softmax probabilities);
                a constant that meets a weight becomes its image W v, which a bias can take back (c -> c - W v);
                whatever is ignored behind the product is free (W -> W + 1 v^T before a softmax, the bias of the keys)
    add         shifts add up
    apply       a linear function carries it, no other does
    normalize   absorbs what is constant along the normalised indices

Solved like the scales, one linear system per index set; images are further unknowns of the same system.

Source: kunin2021neural, section 3 (translation symmetry) for the softmax case; own for the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from noetherflow.symbolic.axes import AxisTable, Identity
from noetherflow.symbolic.equations import Chosen, Statement, each, equal_pieces, pinned, stated, summed, unchanged, unknown_of
from noetherflow.symbolic.ignored import Ignored, operand_patterns
from noetherflow.symbolic.images import Images
from noetherflow.symbolic.linear_systems import Atoms, Systems, Unknown
from noetherflow.symbolic.primitives import Add, Apply, Cell, Contract, Join, Normalize, Pin, Program, Turn, cells
from noetherflow.symbolic.scalings import constant_along

Total = dict[tuple[Atoms, Chosen], list[tuple[Unknown | None, int | Fraction]]]


def shift_equations(program: Program, wanted: frozenset[Atoms], ignored: Ignored) -> tuple[Systems, Images]:
    """All equations on constant shifts of a program, and the images through weights among their unknowns."""
    movable = {value.root for value in program.parameters.values() if not value.fixed}
    shifts = _Shifts(ignored, Images(program), movable)
    rules: dict[type, Statement] = {
        Contract: shifts.contract,
        Add: shifts.add,
        Apply: shifts.apply,
        Normalize: shifts.normalize,
        Turn: shifts.turn,
        Join: shifts.join,
        Pin: shifts.pin,
    }
    return stated(program, wanted, rules), shifts.images


@dataclass
class _Shifts:
    """What each primitive states about shifts.

    `movable` are the tensors that a shift of a parameter may reach without meeting a weight; all others stay, whatever is stated.
    """

    ignored: Ignored
    images: Images
    movable: set[int]

    def contract(self, systems: Systems, table: AxisTable, step: Contract) -> None:
        rows = list(cells(table, (step.out, *step.operands)))
        for row in rows:
            total: Total = {where: [] for where in systems.positions(row)}
            for number in range(len(step.operands)):
                patterns = operand_patterns(step, row, number, self.ignored)
                self._operand(systems, step, row, number, patterns, total)
                self.images.contract(systems, step, row, number, patterns)
            for (key, chosen), parts in total.items():
                out = unknown_of(systems, step.out.value, row[0], chosen)
                systems.state(key, summed([(out, 1), *((u, -c) for u, c in parts)]))
        self.images.average(systems, step, rows)

    def _operand(
        self, systems: Systems, step: Contract, row: Sequence[Cell], number: int, patterns: set[frozenset[Identity]], total: Total
    ) -> None:
        term, cell = step.operands[number], row[1 + number]
        averaged = number == step.averaged or (len(step.operands) == 1 and step.uniform)
        for (key, chosen), parts in total.items():
            x = unknown_of(systems, term.value, cell, chosen) if term.value.root in self.movable else None
            if x is None or any(not pattern & x.indices for pattern in patterns):
                continue
            if averaged and all(label in step.out.labels for label, _ in chosen):
                parts.append((x, 1))
                self.movable.add(step.out.value.root)
            elif not self.images.begin(systems, key, chosen, step, row, number, x):
                systems.state(key, {x: 1})

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
