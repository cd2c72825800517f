"""A graph as what completeness asks of it: a point, samples (inputs, pieces, cotangents), and the number ⟨w, F(θ; x)⟩ of each.

Every number is read off a hash of its label (`noetherflow.numeric.hashed`):

    parameter P                 SEED/P
    tensor T of sample i        SEED/LEVEL.PLACE/i/T        input nodes by name, cotangents as w:NODE, free pieces as g:NODE:SLOT
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Literal

import torch
from torch import Tensor
from torch.func import vmap

from noetherflow.bridge.evaluation import LOSSES, Unevaluable, evaluate, slots_of
from noetherflow.bridge.pieces import PIECES
from noetherflow.errors import GraphError
from noetherflow.numeric import hashed, modular
from noetherflow.numeric.brackets import Params
from noetherflow.symbolic.graph import ArchitectureGraph

Gates = Literal["realised", "free"]
TRIES: Final = 8


@dataclass(frozen=True)
class Sampling:
    """Points and samples of one graph.

    Parameters
    ----------
    graph : ArchitectureGraph
        With integer sizes.
    seed : str
    gates : 'realised' or 'free'
        Which pieces of ReLUs and maxima hold in a sample: those that its input and the point give, or any.
    prime : int or None
        Integers modulo it; real numbers if None.
    """

    graph: ArchitectureGraph
    seed: str
    gates: Gates = "realised"
    prime: int | None = None

    @cached_property
    def point(self) -> Params:
        """The trainable parameters."""
        return {name: self._numbers(f"{self.seed}/{name}", p.shape) for name, p in self.graph.parameters.items() if p.trainable}

    @cached_property
    def fixed(self) -> Params:
        """The frozen parameters: in general position too."""
        return {name: self._numbers(f"{self.seed}/{name}", p.shape) for name, p in self.graph.parameters.items() if not p.trainable}

    @cached_property
    def constants(self) -> dict[str, Tensor]:
        """Numbers that the graph holds, as residues if there is a prime."""
        found = {}
        for node, data in self.graph.nodes(data=True):
            if data["operation"] == "constant" and "value" in data["attributes"]:
                value = torch.tensor(data["attributes"]["value"], dtype=torch.float64)
                found[node] = modular.residues(value, self.prime) if self.prime else value
        return found

    @cached_property
    def seen(self) -> list[tuple[str, int | None]]:
        """What a loss sees: nodes, and the axis along which a cross-entropy ignores a common number."""
        return [end for node in self.graph if not self.graph.out_degree(node) for end in _seen_at(self.graph, node)]

    @cached_property
    def pieces(self) -> list[str]:
        """The nodes whose function is made of pieces."""
        return [n for n, data in self.graph.nodes(data=True) if data["operation"] in PIECES]

    def scalar(self, theta: Params, sample: dict[str, Any]) -> Tensor:
        """⟨w, F(θ; x)⟩."""
        patterns = {node: sample["patterns"][node] for node in self.pieces} if "patterns" in sample else None
        values = evaluate(self.graph, theta | self.fixed, self.constants | sample["inputs"], patterns)
        return torch.stack([(values[node] * sample["cotangents"][node]).sum() for node, _ in self.seen]).sum()

    def samples(self, level: int, first: int, count: int) -> tuple[Any, int]:
        """Samples of nested brackets, numbered from `first` on, and the number to go on with.

        Returns
        -------
        nested tuples of dicts of tensors, each with `count` in front
            As `noetherflow.numeric.brackets.nested` takes them.
        int
        """
        parts, after = [], first
        for place in range(level + 1):
            part, end = self._several(f"{level}.{place}", first, count)
            parts.append(part)
            after = max(after, end)
        sample = parts[-1]
        for part in reversed(parts[:-1]):
            sample = (part, sample)
        return sample, after

    def _several(self, place: str, first: int, count: int) -> tuple[dict[str, Any], int]:
        if not self.pieces or self.gates == "free" or self.prime is None:
            return _stacked([self._one(place, first + i) for i in range(count)]), first + count
        kept: list[dict[str, Any]] = []
        number = first
        while len(kept) < count:
            if number - first >= TRIES * count:
                raise Unevaluable(
                    f"Fewer than one in {TRIES} random inputs decides every ReLU and maximum clearly, so their pieces cannot be read off.",
                    seed=self.seed,
                )
            wanted = count - len(kept)
            drawn = [self._one(place, number + i) for i in range(wanted)]
            patterns, clear = vmap(self._patterns)(_stacked(drawn)["inputs"])
            kept += [d | {"patterns": {n: p[i] for n, p in patterns.items()}} for i, d in enumerate(drawn) if clear[i]]
            number += wanted
        return _stacked(kept), number

    def _patterns(self, inputs: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        """Which pieces hold at the point, and whether all are clear: in float64, on the true values of the constants."""
        parameters = self.point | self.fixed
        values = evaluate(self.graph, parameters, inputs)
        found, clear = {}, []
        for node in self.pieces:
            data, slots = self.graph.nodes[node], slots_of(self.graph, node, values, parameters)
            piece, details = PIECES[data["operation"]], (data["attributes"], data["shape"])
            found[node] = piece.pattern(slots, *details)
            clear.append(piece.clear(slots, *details))
        return found, torch.stack(clear).all()

    def _one(self, place: str, number: int) -> dict[str, Any]:
        label = f"{self.seed}/{place}/{number}"
        inputs = {node: self._input(f"{label}/{node}", node) for node, d in self.graph.nodes(data=True) if d["operation"] == "input"}
        cotangents = {node: self._cotangent(f"{label}/w:{node}", node, axis) for node, axis in self.seen}
        sample: dict[str, Any] = {"inputs": inputs, "cotangents": cotangents}
        if self.pieces and self.gates == "free":
            sample["patterns"] = {node: self._free(f"{label}/g:{node}", node) for node in self.pieces}
        return sample

    def _free(self, label: str, node: str) -> Tensor:
        """The pieces that random slots would give."""
        data = self.graph.nodes[node]
        shapes = {slot: self.graph.nodes[producer]["shape"] for slot, producer in self.graph.inputs_of(node).items()}
        shapes |= {slot: self.graph.parameters[name].shape for slot, name in data["parameters"].items()}
        slots = {slot: hashed.reals(f"{label}:{slot}", shape, 0.0, 6.0) for slot, shape in shapes.items()}
        return PIECES[data["operation"]].pattern(slots, data["attributes"], data["shape"])

    def _numbers(self, label: str, shape: Sequence[Any]) -> Tensor:
        sizes = [int(size) for size in shape]
        return hashed.integers(label, sizes) if self.prime else hashed.reals(label, sizes, 0.3, 1.3)

    def _input(self, label: str, node: str) -> Tensor:
        data = self.graph.nodes[node]
        if "float" in data["dtype"]:
            return self._numbers(label, data["shape"])
        if data["dtype"] == "bool":
            return hashed.indices(label, data["shape"], 2) > 0
        return hashed.indices(label, data["shape"], self._rows)

    @cached_property
    def _rows(self) -> int:
        """What index inputs stay below: the rows of the smallest table that is read."""
        graph = self.graph
        tables = [graph.parameters[p].shape[0] for n, d in graph.nodes(data=True) if d["operation"] == "embedding" for p in d["parameters"].values()]
        if not tables:
            raise Unevaluable("The graph has an input of integers, and no embedding that says how large they may be.")
        return min(int(t) for t in tables)

    def _cotangent(self, label: str, node: str, axis: int | None) -> Tensor:
        w = self._numbers(label, self.graph.nodes[node]["shape"])
        if axis is None:
            return w
        rest = w.narrow(axis, 0, w.shape[axis] - 1)
        return torch.cat([rest, -rest.sum(axis, keepdim=True)], axis)


def _seen_at(graph: ArchitectureGraph, node: str) -> list[tuple[str, int | None]]:
    data, inputs = graph.nodes[node], graph.inputs_of(node)
    if data["operation"] == "output":
        return [(n, None) for n in dict.fromkeys(inputs.values()) if "float" in graph.nodes[n]["dtype"]]
    if data["operation"] not in LOSSES:
        return [(node, None)]
    if data["operation"] == "mean_square":
        return [(inputs["input"], None)]
    rank = len(graph.nodes[inputs["input"]]["shape"])
    return [(inputs["input"], data["attributes"].get("axis", 1 if rank > 2 else -1) % rank)]


def _stacked(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    if not samples:
        raise GraphError("No samples were asked for.")
    return {part: {name: torch.stack([s[part][name] for s in samples]) for name in samples[0][part]} for part in samples[0]}
