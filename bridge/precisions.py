"""The element types that a model computes in, node by node, and the coarsest one that a law meets.

A model casts: routers and normalisations take float32 inside a model of float64, or one of bfloat16. A law is as exact as the coarsest type
between the parameters it moves, through all that moves with them, to where that compensates or is normalised away; what is computed
elsewhere is part of the gradient that comes in, for which the law holds whatever it is.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

import torch

from noetherflow.numeric.rounding import unit_roundoff
from noetherflow.symbolic.graph import ArchitectureGraph
from noetherflow.symbolic.laws import Law
from noetherflow.symbolic.momenta import MomentumLaw

INSIDE = "computed_in"  # attributes of a node that stands for several operations, where they are coarser than its own type
NORMALISED = "normalized_in"


def note_inside(graph: ArchitectureGraph, node: str, gathered: Iterable[str], normalizing: Iterable[str]) -> None:
    """Note the coarsest types of the operations that a node now stands for, where they are coarser than its own."""
    own = _coarsest([graph.nodes[node]["dtype"]])
    inside = _coarsest(dtype for n in gathered for dtype in (graph.nodes[n]["dtype"], graph.nodes[n]["attributes"].get(INSIDE, "")))
    parts = [graph.nodes[n] for n in (*gathered, *normalizing)]
    names = [*(d["attributes"].get(NORMALISED, "") for d in parts), *(graph.nodes[n]["dtype"] for n in normalizing)]
    names += [graph.nodes[n]["attributes"].get(INSIDE, "") for n in normalizing]
    for attribute, found in ((INSIDE, inside), (NORMALISED, _coarsest(names))):
        if found is not None and own is not None and unit_roundoff(found) > unit_roundoff(own):
            graph.nodes[node]["attributes"][attribute] = str(found).removeprefix("torch.")


def dtype_inside(graph: ArchitectureGraph, node: str, *, normalizing: bool) -> torch.dtype | None:
    """The coarsest type that a node computes in: in its normalisation, or in all else; None if it has no floating-point one.

    Examples
    --------
    >>> graph = ArchitectureGraph()
    >>> _ = graph.add_operation("x", "input", shape=(2, 3))
    >>> _ = graph.add_operation("norm", "rms_norm", {"input": "x"}, shape=(2, 3), dtype="float64", normalized_in="float32")
    >>> dtype_inside(graph, "norm", normalizing=False), dtype_inside(graph, "norm", normalizing=True)
    (torch.float64, torch.float32)
    """
    data = graph.nodes[node]
    names = [data["dtype"], data["attributes"].get(INSIDE, "")]
    return _coarsest([*names, data["attributes"].get(NORMALISED, "")] if normalizing else names)


@dataclass(frozen=True, slots=True)
class Met:
    """The coarsest types that a law meets.

    Parameters
    ----------
    passed : torch.dtype
        Wherever rounding is bounded by the sizes of gradients.
    absorbed : torch.dtype
        In the normalisations at which it is measured what rounding acts on.
    """

    passed: torch.dtype = torch.float64
    absorbed: torch.dtype = torch.float64

    def with_all(self, *everywhere: torch.dtype) -> Met:
        """The same where everything is computed in these types besides."""
        return Met(*(max(own, *everywhere, key=unit_roundoff) for own in (self.passed, self.absorbed)))


def types_met(graph: ArchitectureGraph, laws: Iterable[Law | MomentumLaw], measured: Collection[str]) -> dict[int, Met]:
    """Number of a symmetry -> the types that its law meets; those of the whole graph where its reach is not known.

    Parameters
    ----------
    graph : ArchitectureGraph
    laws : iterable of Law or MomentumLaw
    measured : collection of str
        Normalisations at which it is measured what rounding acts on.
    """
    everywhere = coarsest_type(graph)
    out = {}
    for law in laws:
        reach = law.symmetry.reach
        told = reach.absorbed & {site.node for site in law.symmetry.absorbers if site.node in measured}
        passed = [*_inside(graph, reach.passed, normalizing=False), *_inside(graph, reach.absorbed - told, normalizing=True)]
        known = max(passed, key=unit_roundoff, default=torch.float64) if reach.passed else everywhere
        out[law.symmetry.number] = Met(known, max([known, *_inside(graph, told, normalizing=True)], key=unit_roundoff))
    return out


def coarsest_type(graph: ArchitectureGraph) -> torch.dtype:
    """The coarsest type that any node of a graph computes in."""
    return max(_inside(graph, graph, normalizing=True), key=unit_roundoff, default=torch.float64)


def _inside(graph: ArchitectureGraph, nodes: Iterable[str], *, normalizing: bool) -> list[torch.dtype]:
    found = (dtype_inside(graph, node, normalizing=normalizing) for node in nodes)
    return [dtype for dtype in found if dtype is not None]


def _coarsest(names: Iterable[str]) -> torch.dtype | None:
    found = [dtype for dtype in (getattr(torch, name, None) for name in names if name) if isinstance(dtype, torch.dtype)]
    return max((dtype for dtype in found if dtype.is_floating_point), key=unit_roundoff, default=None)
