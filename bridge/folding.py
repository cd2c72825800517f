"""Leave out of a graph what no result depends on, and fold into constants what depends on neither a parameter nor a user's numbers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Final

import networkx as nx

from noetherflow.symbolic.graph import ArchitectureGraph
from noetherflow.symbolic.picks import index_source

# Of indices and masks that the user gives, these are kept as they are: the picture still shows where the input goes.
VIEWS: Final = frozenset({"identity", "reshape", "permute", "expand", "slice"})


def moving_nodes(graph: ArchitectureGraph) -> set[str]:
    """The nodes that depend on a parameter."""
    return _below(graph, (n for n, data in graph.nodes(data=True) if data["parameters"]))


def fold(graph: ArchitectureGraph) -> None:
    """Fold arithmetic on data into constants.

    What is computed from floating-point inputs stays, and so do inputs, ends, and views by which different tensors are picked by one tensor
    of indices.
    """
    ends = {n for n in graph if not graph.out_degree(n)}
    kept = ends | moving_nodes(graph) | _below(graph, (n for n, data in graph.nodes(data=True) if _is_float_input(data)))
    views = _views_of_one_index(graph)
    for node in graph.topological_order():
        data = graph.nodes[node]
        if data["operation"] == "input" or node in views or (data["operation"] in VIEWS and set(graph.predecessors(node)) <= kept):
            kept.add(node)
        if node not in kept and data["operation"] != "constant":
            graph.remove_edges_from(list(graph.in_edges(node, keys=True)))
            data.update(operation="constant", attributes={})


def prune(graph: ArchitectureGraph, ends: Iterable[str]) -> None:
    """Drop the nodes that none of the ends depends on."""
    ends = list(ends)
    alive = set(ends).union(*(nx.ancestors(graph, end) for end in ends))
    graph.remove_nodes_from([n for n in graph if n not in alive])


def _views_of_one_index(graph: ArchitectureGraph) -> set[str]:
    ways: dict[str, set[tuple[str, ...]]] = defaultdict(set)
    for node in graph:
        source, *views = index_source(graph, node)
        ways[source].add(tuple(views))
    return {view for source, found in ways.items() if source and len(found) > 1 for views in found for view in views}


def _below(graph: ArchitectureGraph, sources: Iterable[str]) -> set[str]:
    sources = list(sources)
    found, todo = set(sources), sources
    while todo:
        new = [n for n in graph.successors(todo.pop()) if n not in found]
        found.update(new)
        todo += new
    return found


def _is_float_input(data: dict[str, object]) -> bool:
    return data["operation"] == "input" and "float" in str(data["dtype"])
