"""Indices that data choose: rows of a table, experts of a token.

Picking the rows of a table by an index is a product with a tensor that is one where the row is chosen and zero elsewhere,

    W[index[n], j] = sum over e of chosen[n, e] W[e, j] ,

and whatever is done for every n by itself (products, sums, functions of elements, normalisations along other indices) may be done for all
e first and the sum taken after, for every n has one e. So a picked tensor keeps e as an index of its own until the n are mixed: then the
sum closes it. Two tensors share e where the same tensor of indices chose it for the same n.

Source: own.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from noetherflow.symbolic.axes import Axis, AxisTable, Identity, Misaligned
from noetherflow.symbolic.graph import ArchitectureGraph, Size

# Operations that pick along an axis, and the slot of their indices.
PICKED_BY: Final[dict[str, str]] = {"embedding": "input", "index_select": "index", "gather": "index"}
# Operations that only rename or repeat what they read.
VIEWS: Final = frozenset({"identity", "reshape", "permute", "expand"})

Label = str | None
Place = tuple[Label, int]
"""A label, and which of the indices under it."""


@dataclass(frozen=True, slots=True)
class Pick:
    """An index e of a tensor that data choose, as a function of other indices n of it.

    Parameters
    ----------
    index : int
        Root of the tensor of indices that chose.
    order : Axis
        The indices of that tensor, one after another.
    where : Axis
        The same indices n in the tensor that keeps e.
    axis : Axis
        e itself.
    alone : bool
        No other tensor is picked by the same indices.
    node : str
        Where in the graph it was chosen, by a tensor that has the indices `order`; '' if that tensor has others too.
    """

    index: int
    order: Axis
    where: Axis
    axis: Axis
    alone: bool = False
    node: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Chosen:
    """How data chose an index that a tensor has no axis for: at every place of its own axes, by the entry of a tensor of indices.

    Parameters
    ----------
    node : str
        Where in the graph it is chosen, so that the tensor of indices is what this node picks by; '' if that is not known.
    by : tuple of (int, size, size)
        For each index of the tensor of indices, in order: the axis that it lies in, its size, and its stride in elements of that axis.
    """

    node: str
    by: tuple[tuple[int, Size, Size], ...]

    @classmethod
    def of(cls, table: AxisTable, pick: Pick, axes: Sequence[Axis]) -> Chosen:
        """That of an index which a tensor with the given axes keeps."""
        at: dict[Identity, tuple[int, Size, Size]] = {}
        for number, axis in enumerate(axes):
            factors = table.factors(axis)
            at.update({o.identity: (number, table.size((o,)), table.size(factors[i + 1 :])) for i, o in enumerate(factors)})
        return cls(pick.node, tuple(at[o.identity] for o in table.factors(pick.where)))


Labelled = tuple[Sequence[Pick], Sequence[Axis], Sequence[Label]]
"""What a tensor keeps, its axes, and their labels in an operation."""


@dataclass(frozen=True, slots=True)
class Shared:
    """One chosen index of the operands of an operation.

    Parameters
    ----------
    label : str
    places : tuple of Place
        Where the operation has the n.
    picks : mapping of int to Pick
        Number of an operand -> what it calls the index, for those that keep it.
    """

    label: str
    places: tuple[Place, ...]
    picks: Mapping[int, Pick]

    def within(self, labels: Container[Label]) -> bool:
        """Whether all that the choice depends on lies along some labels."""
        return all(label in labels for label, _ in self.places)

    def moved(self, table: AxisTable, axes: Mapping[Label, Axis]) -> Pick:
        """The index as a result keeps it, given the result's axes by label."""
        first = next(iter(self.picks.values()))
        where = tuple(table.factors(axes[label])[number] for label, number in self.places)
        return replace(first, where=where, axis=table.like(first.axis))


def places(table: AxisTable, pick: Pick, axes: Sequence[Axis], labels: Sequence[Label]) -> tuple[Place, ...]:
    """Where among labelled axes the indices lie that an index was chosen by.

    Raises
    ------
    Misaligned
        If the tensor has lost one of them.
    """
    at: dict[Identity, Place] = {}
    for label, axis in zip(labels, axes, strict=True):
        at.update({index.identity: (label, number) for number, index in enumerate(table.factors(axis))})
    wanted = [index.identity for index in table.factors(pick.where)]
    if not at.keys() >= set(wanted):
        raise Misaligned("a chosen index has lost what it was chosen by")
    return tuple(at[identity] for identity in wanted)


def shared_picks(table: AxisTable, operands: Sequence[Labelled]) -> list[Shared]:
    """The chosen indices of some operands: one for all that the same indices chose at the same places."""
    found: list[tuple[object, Shared]] = []
    for number, (picks, axes, labels) in enumerate(operands):
        for pick in picks:
            at = places(table, pick, axes, labels)
            key = (pick.index, tuple(index.identity for index in table.factors(pick.order)), at)
            fitting = (i for i, (other, shared) in enumerate(found) if other == key and number not in shared.picks)
            i = next((i for i in fitting if _joined(table, next(iter(found[i][1].picks.values())), pick)), None)
            if i is None:
                found.append((key, Shared(f"@{len(found)}", at, {number: pick})))
            else:
                found[i] = key, Shared(found[i][1].label, at, {**found[i][1].picks, number: pick})
    return [_placed(table, shared, operands) for _, shared in found]


def _placed(table: AxisTable, shared: Shared, operands: Sequence[Labelled]) -> Shared:
    """The same with its places as they are once all indices are joined: joining may have split some."""
    number, pick = next(iter(shared.picks.items()))
    _, axes, labels = operands[number]
    return Shared(shared.label, places(table, pick, axes, labels), shared.picks)


def labels_of(shared: Sequence[Shared], number: int, picks: Sequence[Pick]) -> Iterator[str]:
    """The labels of one operand's chosen indices, in its own order."""
    for pick in picks:
        yield next(s.label for s in shared if s.picks.get(number) == pick)


def _joined(table: AxisTable, first: Pick, second: Pick) -> bool:
    """Make two chosen indices one; false if the tables that they run along are of different sizes or structure."""
    if [table.find(o.atom) for o in table.factors(first.axis)] == [table.find(o.atom) for o in table.factors(second.axis)]:
        return True
    before = table.snapshot()
    try:
        table.unify(first.axis, second.axis)
    except Misaligned:
        table.restore(before)
        return False
    return True


def index_of(graph: ArchitectureGraph, node: str) -> str:
    """The node whose values a node picks by; '' if it picks by none of the graph."""
    return graph.inputs_of(node).get(PICKED_BY.get(graph.nodes[node]["operation"], ""), "") if node else ""


def index_source(graph: ArchitectureGraph, node: str) -> tuple[str, ...]:
    """What chooses at a node, looking through views, and those views, the last first; an empty name if nothing chooses there.

    Examples
    --------
    >>> graph = ArchitectureGraph()
    >>> _ = graph.add_parameter("e", (5, 3)), graph.add_operation("x", "input", shape=(4, 2), dtype="int64")
    >>> _ = graph.add_operation("flat", "reshape", {"input": "x"}, shape=(8,), dtype="int64")
    >>> _ = graph.add_operation("h", "embedding", {"input": "flat"}, {"weight": "e"}, shape=(8, 3))
    >>> index_source(graph, "h"), index_source(graph, "flat")
    (('x', 'flat'), ('',))
    """
    source, views = index_of(graph, node), []
    while source and graph.nodes[source]["operation"] in VIEWS and len(graph.inputs_of(source)) == 1:
        views.append(source)
        (source,) = graph.inputs_of(source).values()
    return source, *views
