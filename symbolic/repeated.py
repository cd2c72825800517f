"""Parameters that are repeated before they are used: the same weight for every sample, the weight of every expert for the sample it serves.

A product with one factor and nothing summed repeats that factor along indices that it lacks. Picking rows by data is of that kind too
(`picks`): for every choice e the row is T[e], whatever the sample. What passes a weight, or what a bias takes back, is the same whether the
parameter itself is met or one that was repeated, as long as nothing depends on where.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from noetherflow.symbolic.axes import AxisTable, Identity, Leaf
from noetherflow.symbolic.steps import Block, Cell, Contract, Primitive, cells


@dataclass(frozen=True, slots=True)
class Original:
    """The block of a parameter that a block of a tensor repeats.

    Parameters
    ----------
    root : int
        Of the parameter.
    block : Block
    leaves : mapping of Identity to Leaf
        Index of the tensor -> that of the parameter, for those that the parameter has.
    """

    root: int
    block: Block
    leaves: Mapping[Identity, Leaf]

    def seen(self, cell: Cell) -> Cell:
        """The parameter's block where the tensor's is met: at the same places, without those along which it is repeated."""
        found = {place: self.leaves[leaf.identity] for place, leaf in cell.leaves.items() if leaf.identity in self.leaves}
        return replace(cell, block=self.block, leaves=found)


def originals(table: AxisTable, steps: list[Primitive]) -> dict[tuple[int, Block], Original]:
    """For every block of a tensor that repeats a trainable parameter, that parameter's."""
    found: dict[tuple[int, Block], Original] = {}
    for step in steps:
        if isinstance(step, Contract) and _repeats(step):
            found.update(_blocks(table, step))
    return found


def _repeats(step: Contract) -> bool:
    first = step.operands[0]
    kept = {label for label in first.labels if label is not None} <= set(step.out.labels)
    whole = step.linear and step.uniform and step.multiple == 1 and len(step.operands) == 1
    return whole and kept and first.value.parameter is not None and not first.value.fixed


def _blocks(table: AxisTable, step: Contract) -> Iterator[tuple[tuple[int, Block], Original]]:
    for out, mine in cells(table, (step.out, step.operands[0])):
        leaves = {out.leaves[place].identity: leaf for place, leaf in mine.leaves.items()}
        yield (step.out.value.root, out.block), Original(step.operands[0].value.root, mine.block, leaves)
