"""Where in the program that a user wrote a normalisation of the graph is made: which module, which of its calls, and in which order.

The graph tells what is computed; whoever looks at a run needs to know when. A gain or a shift that stands behind a normalisation belongs to
its node in the graph, and may be applied by another module: its origin is where the normalised values themselves are made.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from noetherflow.symbolic.graph import ArchitectureGraph


@dataclass(frozen=True, slots=True)
class Origin:
    """Where the normalised values of a node are made.

    Parameters
    ----------
    node : str
        The operation that made them, as it was exported.
    module : str
        Dotted path of the module whose forward pass calls it.
    position : int
        Among all operations, in the order in which they are called.
    parameters : mapping of str to str
        Those that this operation takes itself.
    written : bool
        Whether it is a chain of operations, the last of which is `node`, rather than one.
    """

    node: str
    module: str
    position: int
    parameters: Mapping[str, str]
    written: bool


def origin_of(graph: ArchitectureGraph, node: str) -> Origin:
    """The origin of a normalisation; in a graph that was not traced, the node itself."""
    data = graph.nodes[node]
    known: dict[str, Origin] = graph.graph.get("origins", {})
    return known.get(node) or Origin(node, data["module"], -1, data["parameters"], written=False)


def note_calls(graph: ArchitectureGraph, stack: Mapping[str, str]) -> None:
    """Note the calls that an operation was made in (a key for each, and the path of its module) in the order of their first operations."""
    calls: dict[str, str] = graph.graph.setdefault("calls", {})
    for key, path in stack.items():
        calls.setdefault(key, path)


def note_call_of(graph: ArchitectureGraph, node: str, stack: Mapping[str, str]) -> None:
    """Note which call of a module makes a node."""
    graph.graph.setdefault("call_of", {})[node] = next(reversed(list(stack)), "")


def calls_of(graph: ArchitectureGraph, paths: Iterable[str]) -> list[str]:
    """All calls of one module in a forward pass, in order; it may have several paths.

    Examples
    --------
    >>> graph = ArchitectureGraph()
    >>> for stack in ({"m": ""}, {"m": "", "m.a": "a"}, {"m": "", "m.b": "b"}, {"m": "", "m.a@1": "a"}):
    ...     note_calls(graph, stack)
    >>> calls_of(graph, ["a"])
    ['m.a', 'm.a@1']
    """
    chosen, calls = frozenset(paths), graph.graph.get("calls", {})
    return [key for key, path in calls.items() if path in chosen]


def call_of(graph: ArchitectureGraph, node: str) -> str:
    """The call that made a node, '' if that is not known."""
    known: dict[str, str] = graph.graph.get("call_of", {})
    return known.get(node, "")
