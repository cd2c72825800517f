"""Which module makes each normalisation that laws need, and how it can be captured there.

as a module       torch's own, and any module that only normalises (and applies a gain): from its input and its output
as a function     in a module that does other things as well: by listening to the functions that it calls

Listening costs a little at every function such a module calls, so no other module is listened to.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import networkx as nx
import torch
from torch import nn

from noetherflow.bridge.choices import Choices
from noetherflow.bridge.expected_norms import Expected
from noetherflow.bridge.norm_layout import NORMALIZATIONS, Layout
from noetherflow.bridge.norm_modules import Normalization, is_torch_norm
from noetherflow.bridge.origins import call_of, calls_of, origin_of
from noetherflow.bridge.placing import Placing
from noetherflow.symbolic.graph import ArchitectureGraph
from noetherflow.symbolic.laws import Law

MOVES: Final = frozenset({"identity", "permute", "constant", "parameter"})
"""What may stand before or behind the normalisation in a module that only normalises."""
GAINS: Final = frozenset({"multiply", "add", "scale"})
"""What may make a gain out of parameters."""


@dataclass(frozen=True)
class NormPlaces:
    """The normalisations of a model that laws need.

    Attributes
    ----------
    nodes : frozenset of str
        Of the graph; of what is not among them no module is known.
    modules : dict of str to list of Normalization
        Module that is a normalisation -> its calls in one forward pass, in order.
    functions : dict of str to list of list of Expected
        Module that normalises by functions -> for each of its calls, what it normalises, in order.
    choices : Choices
        What chooses the indices that charges lie along.
    """

    nodes: frozenset[str]
    modules: dict[str, list[Normalization]]
    functions: dict[str, list[list[Expected]]]
    choices: Choices

    @classmethod
    def of(cls, model: nn.Module, graph: ArchitectureGraph, laws: Iterable[Law]) -> NormPlaces:
        """Find them."""
        return _Finder(model, graph).places(laws)


class _Finder:
    def __init__(self, model: nn.Module, graph: ArchitectureGraph) -> None:
        self.model, self.graph = model, graph
        own = {module: path for path, module in model.named_modules()}
        self.paths = {path: own[module] for path, module in model.named_modules(remove_duplicate=False)}  # a shared module has one here
        self.parameters = dict(model.named_parameters(remove_duplicate=False))
        norms = [node for node in graph if graph.nodes[node]["operation"] in NORMALIZATIONS]
        self.origins = {node: origin_of(graph, node) for node in norms}
        self.norms = sorted(norms, key=lambda node: self.origins[node].position)

    def places(self, laws: Iterable[Law]) -> NormPlaces:
        placings: dict[str, dict[Placing, None]] = {}
        wanted = [Placing.of(site) for law in laws for site in law.symmetry.absorbers]
        choices = Choices.of(self.model, self.graph, {placing.chosen_at: None for placing in wanted if placing.chosen_at})
        for placing in wanted:
            if placing.node in self.origins and self.path(placing.node) is not None and not choices.problem(placing):
                placings.setdefault(placing.node, {})[placing] = None
        made = {node: self.normalization(node, tuple(placings.get(node, ()))) for node in self.norms if self.path(node) is not None}
        needed = dict.fromkeys(made[node].path for node in placings)
        modules = {path: [norm for norm in made.values() if norm.path == path] for path in needed if self.is_alone(path)}
        functions = {path: self.by_call(path, made) for path in needed if path not in modules}
        return NormPlaces(frozenset(placings), modules, functions, choices)

    def path(self, node: str) -> str | None:
        return self.paths.get(self.origins[node].module)

    def normalization(self, node: str, placings: tuple[Placing, ...]) -> Normalization:
        data = self.graph.nodes[node]
        eps = float(data["attributes"].get("eps", 0.0))
        return Normalization(node, self.path(node) or "", Layout.of(self.graph, node), eps, data["parameters"].get("bias"), placings)

    # --- modules that only normalise

    def is_alone(self, path: str) -> bool:
        """Whether a module normalises its input and does nothing else."""
        if is_torch_norm(self.model.get_submodule(path)):
            return True
        inside = [node for node, data in self.graph.nodes(data=True) if self.paths.get(data["module"]) == path and _is_made(data)]
        norms = [node for node in inside if node in self.origins]
        return len(norms) == len(self.calls(path)) and all(self._only_normalises(node, frozenset(inside)) for node in inside)

    def _only_normalises(self, node: str, inside: frozenset[str]) -> bool:
        """Whether an operation moves what is normalised, gives it a gain that parameters make, or makes that gain."""
        operation, producers = self.graph.nodes[node]["operation"], list(self.graph.predecessors(node))
        if node in self.origins or operation in MOVES:
            return True
        if operation == "multiply":
            return inside.issuperset(producers)
        of_parameters = not self.origins.keys() & nx.ancestors(self.graph, node)
        return operation in GAINS and of_parameters and all(n in inside or not _is_made(self.graph.nodes[n]) for n in producers)

    # --- modules that normalise by functions

    def by_call(self, path: str, made: Mapping[str, Normalization]) -> list[list[Expected]]:
        trained = self._trained()
        out: dict[str, list[Expected]] = {key: [] for key in self.calls(path)}
        for node, norm in made.items():
            if norm.path == path and node in trained:
                origin = self.origins[node]
                dtype = getattr(torch, self.graph.nodes[node]["dtype"])
                out.setdefault(call_of(self.graph, origin.node), []).append(Expected.of(self.graph, norm, origin, self.parameters, dtype))
        return list(out.values())

    def calls(self, path: str) -> Sequence[str]:
        return calls_of(self.graph, [name for name, own in self.paths.items() if own == path])

    def _trained(self) -> frozenset[str]:
        """Nodes whose values have gradients."""
        found: set[str] = set()
        for node in self.graph.topological_order():
            own = any(self.graph.parameters[name].trainable for name in self.graph.nodes[node]["parameters"].values())
            if own or not found.isdisjoint(self.graph.predecessors(node)):
                found.add(node)
        return frozenset(found)


def _is_made(data: Mapping[str, object]) -> bool:
    return data["operation"] not in ("input", "constant", "output")
