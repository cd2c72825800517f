"""Weight tying as explicit breaking: the symmetries of the network whose uses of a parameter are parameters of their own.

Let a symmetry of that untied network move the first use of a shared parameter by ξ_1 and another by ξ_u. In the tied network it is taken to
move the parameter by ξ_1, and all else as before. Since Σ_u ⟨ξ_u, g_u⟩ and the rest vanish together, g_u the gradient by one use, and the
tied gradient is the sum of all g_u,

    ⟨ξ, ∇L⟩ = J = Σ_u ⟨ξ_1 - ξ_u, g_u⟩ ,

which vanishes where all uses move alike. Source: own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from noetherflow.symbolic.actions import Action
from noetherflow.symbolic.gauge import symmetries
from noetherflow.symbolic.graph import ArchitectureGraph
from noetherflow.symbolic.symmetries import Symmetry


@dataclass(frozen=True, slots=True)
class Use:
    """A use of a shared parameter, other than the first, as a parameter of its own.

    Parameters
    ----------
    name : str
        Of the parameter of its own.
    parameter, node : str
        What is used, and where.
    """

    name: str
    parameter: str
    node: str


@dataclass(frozen=True)
class UntiedSymmetry:
    """A family that a network would have if the uses of its shared parameters were parameters of their own.

    Attributes
    ----------
    symmetry : Symmetry
        Of the untied network; the first use of a shared parameter has the parameter's name.
    uses : tuple of Use
        All other uses of shared parameters in the network.
    """

    symmetry: Symmetry
    uses: tuple[Use, ...]

    @property
    def moved(self) -> tuple[Use, ...]:
        """The uses at which it moves, or does not move along, what it moves elsewhere."""
        return tuple(use for use in self.uses if not {use.name, use.parameter}.isdisjoint(self.symmetry.parameters))


def untied(graph: ArchitectureGraph) -> tuple[ArchitectureGraph, tuple[Use, ...]]:
    """The same graph with a parameter for every node that reads one, and the uses that were split off.

    Examples
    --------
    >>> graph = ArchitectureGraph()
    >>> _ = graph.add_parameter("w", (3, 3)), graph.add_operation("x", "input", shape=(8, 3))
    >>> _ = graph.add_operation("h", "linear", {"input": "x"}, {"weight": "w"}, shape=(8, 3))
    >>> _ = graph.add_operation("y", "linear", {"input": "h"}, {"weight": "w"}, shape=(8, 3))
    >>> [use.name for use in untied(graph)[1]]
    ['w at y']
    """
    out, uses = ArchitectureGraph(), []
    first: dict[str, str] = {}
    for p in graph.parameters.values():
        out.add_parameter(p.name, p.shape, p.dtype, p.trainable)
    for node in graph.topological_order():
        data = graph.nodes[node]
        held = {}
        for slot, name in data["parameters"].items():
            own = first.setdefault(name, node) == node
            held[slot] = name if own else f"{name} at {node}"
            if not own and held[slot] not in out.parameters:
                p = graph.parameters[name]
                out.add_parameter(held[slot], p.shape, p.dtype, p.trainable)
                uses.append(Use(held[slot], name, node))
        kept = {key: data[key] for key in ("shape", "dtype", "module")}
        out.add_operation(node, data["operation"], graph.inputs_of(node), held, **kept, **data["attributes"])
    return out, tuple(uses)


def untied_symmetries(graph: ArchitectureGraph) -> tuple[UntiedSymmetry, ...]:
    """The families that exist but for weight tying; those that move all uses alike are exact and not repeated.

    Examples
    --------
    >>> graph = ArchitectureGraph()
    >>> _ = graph.add_parameter("e", (7, 3)), graph.add_operation("x", "input", shape=(8,), dtype="int64")
    >>> _ = graph.add_operation("h", "embedding", {"input": "x"}, {"weight": "e"}, shape=(8, 3))
    >>> _ = graph.add_operation("y", "linear", {"input": "h"}, {"weight": "e"}, shape=(8, 7))
    >>> [(f.symmetry.kind, f.symmetry.parameters) for f in untied_symmetries(graph)]
    [('linear', ('e', 'e at y'))]
    """
    split, uses = untied(graph)
    if not uses:
        return ()
    found = []
    for family in symmetries(split):
        one = UntiedSymmetry(replace(family, number=len(found)), uses)
        if any(not _alike(family, use) for use in one.moved):
            found.append(one)
    return tuple(found)


def _alike(family: Symmetry, use: Use) -> bool:
    """Whether a family does the same at a use as at the first."""
    first, there = (
        {replace(action, parameter="") for action in family.actions if action.parameter == name} for name in (use.parameter, use.name)
    )
    return first == there
