"""Weight tying as explicit breaking: the symmetries of the network whose uses of a parameter are parameters of their own.

Let a symmetry of that untied network move the uses of a shared parameter by ξ_u, the first of those that move by ξ_1. In the tied network
it is taken to move the parameter by ξ_1, and all else as before. Since Σ_u ⟨ξ_u, g_u⟩ and the rest vanish together, g_u the gradient by one
use, and the tied gradient is the sum of all g_u,

    ⟨ξ, ∇L⟩ = J = Σ_u ⟨ξ_1 - ξ_u, g_u⟩ ,

which vanishes where all uses move alike. Source: own.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace

from noetherflow.symbolic.actions import Action
from noetherflow.symbolic.gauge import symmetries
from noetherflow.symbolic.graph import ArchitectureGraph
from noetherflow.symbolic.symmetries import Symmetry


@dataclass(frozen=True, slots=True)
class Use:
    """A use of a shared parameter as a parameter of its own.

    Parameters
    ----------
    name : str
        Of the parameter of its own; the first use keeps that of the shared one.
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
        Of the untied network.
    uses : tuple of Use
        Of all shared parameters in the network, in the order of computation.
    """

    symmetry: Symmetry
    uses: tuple[Use, ...]

    @property
    def leading(self) -> dict[str, str]:
        """Shared parameter that moves -> the use as which it moves in the tied network: the first of those that move."""
        out: dict[str, str] = {}
        for use in self.uses:
            if use.name in self.symmetry.parameters:
                out.setdefault(use.parameter, use.name)
        return out

    @property
    def differing(self) -> tuple[Use, ...]:
        """The uses that move in another way than the leading one."""
        leading, actions = self.leading, self.symmetry.actions

        def done(name: str) -> set[Action]:
            return {replace(action, parameter="") for action in actions if action.parameter == name}

        return tuple(use for use in self.uses if use.parameter in leading and done(use.name) != done(leading[use.parameter]))


def untied(graph: ArchitectureGraph) -> tuple[ArchitectureGraph, tuple[Use, ...]]:
    """The same graph with a parameter for every node that reads one, and the uses of the shared ones.

    Examples
    --------
    >>> graph = ArchitectureGraph()
    >>> _ = graph.add_parameter("w", (3, 3)), graph.add_operation("x", "input", shape=(8, 3))
    >>> _ = graph.add_operation("h", "linear", {"input": "x"}, {"weight": "w"}, shape=(8, 3))
    >>> _ = graph.add_operation("y", "linear", {"input": "h"}, {"weight": "w"}, shape=(8, 3))
    >>> [use.name for use in untied(graph)[1]]
    ['w', 'w at y']
    """
    out = ArchitectureGraph()
    uses: dict[str, list[Use]] = defaultdict(list)
    for p in graph.parameters.values():
        out.add_parameter(p.name, p.shape, p.dtype, p.trainable)
    for node in graph.topological_order():
        data = graph.nodes[node]
        held = {}
        for slot, name in data["parameters"].items():
            if not uses[name] or uses[name][-1].node != node:
                uses[name].append(Use(f"{name} at {node}" if uses[name] else name, name, node))
            held[slot] = uses[name][-1].name
            if held[slot] not in out.parameters:
                p = graph.parameters[name]
                out.add_parameter(held[slot], p.shape, p.dtype, p.trainable)
        kept = {key: data[key] for key in ("shape", "dtype", "module")}
        out.add_operation(node, data["operation"], graph.inputs_of(node), held, **kept, **data["attributes"])
    return out, tuple(use for some in uses.values() if len(some) > 1 for use in some)


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
    found = [UntiedSymmetry(family, uses) for family in symmetries(split)]
    return tuple(one for one in found if one.differing)
