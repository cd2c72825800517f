"""What chose the indices that charges lie along, as it happens: the tensors that embeddings are called with.

A scale of every row of a table is a law, and the normalisation behind has no axis for the row: it has the tokens, one for each sample and
position. Which rows they were is what the embedding was called with, in the same forward pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from noetherflow.bridge.origins import call_of, calls_of
from noetherflow.bridge.placing import Placing
from noetherflow.symbolic.graph import ArchitectureGraph


@dataclass
class Choices:
    """Hooks on the embeddings whose indices are needed.

    Parameters
    ----------
    model : nn.Module
    known : mapping of str to (str, int)
        Node that picks -> the embedding that it is, and which of its calls in a forward pass.
    """

    model: nn.Module
    known: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    _latest: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    _count: dict[str, int] = field(default_factory=dict)
    _handles: list[Any] = field(default_factory=list)

    @classmethod
    def of(cls, model: nn.Module, graph: ArchitectureGraph, nodes: Iterable[str]) -> Choices:
        """Those of the nodes that modules make."""
        own = {module: path for path, module in model.named_modules()}
        everywhere = dict(model.named_modules(remove_duplicate=False))
        known = {}
        for node in nodes:
            module = everywhere.get(graph.nodes[node]["module"])
            calls = calls_of(graph, [path for path, other in everywhere.items() if other is module])
            if type(module) is nn.Embedding and call_of(graph, node) in calls:
                known[node] = own[module], calls.index(call_of(graph, node))
        return cls(model, known)

    def problem(self, placing: Placing) -> str:
        """Why it is not known what chose, or '' (also where nothing needs to be)."""
        told = placing.chosen_at in self.known or not placing.picked
        return placing.problem or ("" if told else "its charges lie along an index that data choose, and no nn.Embedding shows it")

    def attach(self) -> None:
        """Put the hooks on."""
        if self.known:
            self._handles.append(self.model.register_forward_pre_hook(self._start))
        for path in {path for path, _ in self.known.values()}:
            module = self.model.get_submodule(path)
            self._handles.append(module.register_forward_pre_hook(partial(self._called, path), with_kwargs=True))

    def detach(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def latest(self, placings: Iterable[Placing]) -> dict[Placing, Tensor]:
        """The indices that each placing needs, of the forward pass that is going on."""
        found = {placing: self.known[placing.chosen_at] for placing in placings if placing.chosen_at in self.known}
        return {placing: self._latest[call] for placing, call in found.items() if call in self._latest}

    def _start(self, module: nn.Module, inputs: Any) -> None:
        if torch.is_grad_enabled():
            self._count.clear()
            self._latest.clear()

    def _called(self, path: str, module: nn.Module, inputs: tuple[Any, ...], options: Mapping[str, Any]) -> None:
        index = next((t for t in (*inputs, *options.values()) if isinstance(t, Tensor)), None)
        if index is not None and torch.is_grad_enabled():
            number = self._count.get(path, 0)
            self._count[path] = number + 1
            self._latest[path, number] = index.detach().clone()  # the caller may go on to overwrite it
