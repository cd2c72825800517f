"""Indices that a network chooses by size: the best k of some scores, read for permutations of what is chosen.

The indices of the largest scores are C[n, k, e], one where expert e is the k-th of n and zero elsewhere, and a table that is read by them
is summed with C:

    W[index[n, k], j] = sum over e of C[n, k, e] W[e, j] .

C depends on all scores of n and goes along with them: permuted scores choose the permuted experts, in the same order, unless scores tie. So
C is normalised scores as far as permutations are concerned, and the experts may be interchanged together with what makes their scores. That
holds as long as the indices are used for nothing else than picking: numbers of experts that are read in another way tell them apart.

Source: own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from noetherflow.symbolic.axes import Misaligned
from noetherflow.symbolic.gauge_table import Call, Rule
from noetherflow.symbolic.graph import ArchitectureGraph
from noetherflow.symbolic.picks import PICKED_BY, VIEWS
from noetherflow.symbolic.primitives import Program, Value

# What also reads indices as what they choose: a tensor that is one at the chosen place.
ONE_HOT: Final = "aten.one_hot"


def choosing_rules(graph: ArchitectureGraph) -> dict[str, Rule]:
    """Node -> rule, for choices by size whose indices only pick, and for what is made of them."""
    found: dict[str, Rule] = {}
    for node, data in graph.nodes(data=True):
        gives = data["attributes"].get("gives")
        if gives == "values":
            found[node] = _values
        elif gives == "indices" and all(readable for _, readable in readers(graph, node)):
            found[node] = _indices
            found |= {reader: _one_hot for reader, _ in readers(graph, node) if graph.nodes[reader]["operation"] == ONE_HOT}
    return found


def readers(graph: ArchitectureGraph, node: str) -> Iterator[tuple[str, bool]]:
    """What reads a tensor of indices, looking through views, and whether it reads no more than what they choose."""
    for reader in graph.successors(node):
        operation, slots = graph.nodes[reader]["operation"], [s for s, source in graph.inputs_of(reader).items() if source == node]
        if operation in VIEWS:
            yield from readers(graph, reader)
        else:
            yield reader, operation == ONE_HOT or slots == [PICKED_BY.get(operation)]


def hold_misread(program: Program, graph: ArchitectureGraph) -> None:
    """Let nothing about a choice change that something reads by another way than its rule's."""
    for node, data in graph.nodes(data=True):
        index = program.values.get(node)
        if data["attributes"].get("gives") != "indices" or index is None or index.root not in program.one_hots:
            continue
        alive = [reader for reader, _ in readers(graph, node) if reader in program.values]
        if any(program.chosen_by.get(reader) != index.root or reader in program.unread for reader in alive):
            program.pin(node, program.one_hots[index.root])


def _indices(program: Program, call: Call) -> Value:
    return _choice(program, call)


def _values(program: Program, call: Call) -> Value:
    index, x, dim = _choice(program, call), call["0"], call.get("dim")
    labels = [str(i) for i in range(len(x.axes))]
    out = [*labels[:dim], *(["k"] if len(call.shape) == len(labels) else []), *labels[dim + 1 :]]
    return program.pick(call.node, x, labels, labels[dim], index, out, out)


def _one_hot(program: Program, call: Call) -> Value:
    index = call["0"]
    chosen = program.one_hots.get(index.root)
    if chosen is None or program.table.size(chosen.axes[-1]) != call.shape[-1]:
        raise Misaligned("indices of another number of values")
    program.chosen_by[call.node] = index.root
    return program.view(chosen, [*index.axes, chosen.axes[-1]])


def _choice(program: Program, call: Call) -> Value:
    """The tensor of indices, the same one for all results of equal choices; what it chooses is in `program.one_hots`."""
    x, dim = call["0"], call.get("dim")
    key = (x.root, x.axes, x.picks, dim, call.get("largest"), call.shape)
    if key not in program.choices:
        index = program.fresh(call.shape, fixed=True)
        if not x.fixed:
            chosen = _chosen(program, call)
            index = program.value(chosen.axes[:-1], fixed=True)
            program.one_hots[index.root] = chosen
        program.choices[key] = index
    return program.choices[key]


def _chosen(program: Program, call: Call) -> Value:
    """C, with the axes of the indices and, last, that of what is chosen from."""
    x, dim = call["0"], call.get("dim")
    for pick in x.picks:
        x = program.close(call.node, x, pick)
    compared = program.normalize(call.node, x, [dim], scale=False, shift=False)
    labels = [str(i) for i in range(len(x.axes))]
    ranks = [program.table.new(call.shape[dim])] if len(call.shape) == len(labels) else []  # the best is told from the second best
    places = ["k"] * len(ranks)
    out = [*labels[:dim], *places, *labels[dim + 1 :], labels[dim]]
    return program.contract(call.node, [(compared, labels), (program.value(ranks, fixed=True), places)], out)
