"""A graph as what completeness asks of it: a point, samples (inputs, pieces, cotangents), and the number ⟨w, F(θ; x)⟩ of each.

Every number is read off a hash of its label (`noetherflow.numeric.hashed`):

    parameter P                 SEED/P
    tensor T of all samples     SEED/LEVEL.PLACE/T          one after the other; input nodes by name, cotangents as w:NODE, free pieces as
                                                            g:NODE:SLOT
Where a function has pieces, a sample is a sum over six inputs, one after the other: the pieces of one input may close every path.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any, Final, Literal

import torch
from torch import Tensor
from torch.func import vmap

from noetherflow.bridge.constant_values import tensor_of
from noetherflow.bridge.evaluation import LOSSES, Unevaluable, evaluate, slots_of
from noetherflow.bridge.pieces import PIECES, Piece
from noetherflow.errors import GraphError
from noetherflow.numeric import hashed, modular
from noetherflow.numeric.brackets import Params
from noetherflow.numeric.majorants import Majorant
from noetherflow.symbolic.graph import ArchitectureGraph

Gates = Literal["realised", "free"]
TRIES: Final = 8
SUMMED: Final = 6


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
        Multiples of 1/64, as residues modulo it; real numbers if None.
    """

    graph: ArchitectureGraph
    seed: str
    gates: Gates = "realised"
    prime: int | None = None

    @cached_property
    def point(self) -> Params:
        """The trainable parameters: where the count is made."""
        return {name: self._numbers(f"{self.seed}/{name}", p.shape) for name, p in self.graph.parameters.items() if p.trainable}

    def numbers(self, name: str, shape: Sequence[int]) -> Tensor:
        """Coordinates of the point that are no parameters, under a name of their own."""
        return self._numbers(f"{self.seed}/{name}", shape)

    @cached_property
    def fixed(self) -> Params:
        """The frozen parameters: in general position too."""
        return {name: self._numbers(f"{self.seed}/{name}", p.shape) for name, p in self.graph.parameters.items() if not p.trainable}

    @cached_property
    def theta(self) -> Params:
        """The point as brackets take it: residues if there is a prime."""
        return {name: self._residues(p) for name, p in self.point.items()}

    @cached_property
    def seen(self) -> list[tuple[str, int | None]]:
        """What a loss sees: nodes, and the axis along which a cross-entropy ignores a common number."""
        return [end for node in self.graph if not self.graph.out_degree(node) for end in _seen_at(self.graph, node)]

    @cached_property
    def pieces(self) -> list[str]:
        """The nodes whose function is made of pieces."""
        return [n for n, data in self.graph.nodes(data=True) if data["operation"] in PIECES and data["operation"] != "dropout"]

    @cached_property
    def masks(self) -> list[str]:
        """The nodes that drop some entries."""
        return [n for n, data in self.graph.nodes(data=True) if data["operation"] == "dropout"]

    @property
    def summed(self) -> int:
        """Inputs that one sample sums over."""
        return SUMMED if self.pieces or self.masks else 1

    @cached_property
    def nodes_numbers(self) -> int:
        """Entries of all nodes' values, for one input."""
        return sum(prod(d["shape"]) for _, d in self.graph.nodes(data=True))

    def scalar(self, theta: Params, sample: dict[str, Any]) -> Tensor:
        """⟨w, F(θ; x)⟩, summed over a sample's inputs."""
        return vmap(self._one_scalar, in_dims=(None, 0))(theta, sample).sum()

    def _one_scalar(self, theta: Params, sample: dict[str, Any]) -> Tensor:
        fixed, constants = self.held
        values = evaluate(self.graph, theta | fixed, constants | sample["inputs"], sample["patterns"])
        return torch.stack([(values[node] * sample["cotangents"][node]).sum() for node, _ in self.seen]).sum()

    @cached_property
    def held(self) -> tuple[Params, Params]:
        """Frozen parameters, and the numbers that the graph holds, as residues if there is a prime."""
        constants = {n: tensor_of(d["attributes"], d["shape"]) for n, d in self.graph.nodes(data=True) if _is_known(d)}
        held = {n: self._residues(value) for n, value in constants.items()}
        return {name: self._residues(p) for name, p in self.fixed.items()}, held

    @property
    def constants(self) -> list[Tensor]:
        """The numbers that `scalar` reads beside its arguments."""
        return [x for part in self.held for x in part.values()]

    def samples(self, level: int, first: int, count: int) -> tuple[Any, int]:
        """Samples of nested brackets, numbered from `first` on, and the number to go on with.

        Returns
        -------
        nested tuples of dicts of tensors, each with `count` in front
            As `noetherflow.numeric.brackets.nested` takes them.
        int
        """
        parts, after = [], first
        assert self.held is not None  # made now: under arithmetic modulo a prime residues cannot be taken
        for place in range(level + 1):
            part, end = self._several(f"{level}.{place}", first, count)
            parts.append(part)
            after = max(after, end)
        sample: Any = parts[-1]
        for part in reversed(parts[:-1]):
            sample = (part, sample)
        return sample, after

    def _several(self, place: str, first: int, count: int) -> tuple[dict[str, Any], int]:
        found, number = not self.pieces or self.gates == "free" or self.prime is None, first
        kept: list[dict[str, Any]] = []
        while len(kept) < count:
            if number - first > TRIES * count:
                raise Unevaluable(
                    f"Fewer than one in {TRIES} random inputs decides every ReLU and maximum clearly, so their pieces cannot be read off.",
                    seed=self.seed,
                )
            wanted = count - len(kept)
            drawn = self._drawn(f"{self.seed}/{place}", number, wanted)
            number += wanted
            if found:
                return self._in_arithmetic(drawn), number
            held = (drawn["inputs"], drawn["patterns"])
            patterns = vmap(vmap(self.patterns, in_dims=(None, 0, 0)), in_dims=(None, 0, 0))(self.point, *held)
            whole = drawn | {"patterns": drawn["patterns"] | patterns}
            clear = vmap(vmap(self.clear, in_dims=(None, 0, 0)), in_dims=(None, 0, 0))(self.point, held[0], whole["patterns"])
            kept += [_picked(whole, i) for i in range(wanted) if bool(clear[i].all())]
        return self._in_arithmetic(_stacked(kept)), number

    def _in_arithmetic(self, sample: dict[str, Any]) -> dict[str, Any]:
        return {part: {name: self._residues(x) for name, x in values.items()} for part, values in sample.items()}

    def _residues(self, x: Tensor) -> Tensor:
        return modular.residues(x, self.prime) if self.prime and x.is_floating_point() else x

    def patterns(self, point: Params, inputs: Params, masks: Params) -> Params:
        """Which pieces hold at a point: in float64, on the true values of the constants."""
        found = {}
        for node, slots in self._slots(point | self.fixed, inputs, masks).items():
            piece, details = self._piece(node)
            found[node] = piece.pattern(slots, *details)
        return found

    def clear(self, point: Params, inputs: Params, patterns: Params) -> Tensor:
        """Whether all these pieces hold in exact arithmetic, too: no roundings, however much cancels, carry a number over a border."""
        parameters = point | self.fixed
        found, clear = self._slots(parameters, inputs, patterns), []
        with Majorant() as majorant:
            sizes = self._slots(parameters, inputs, patterns)
        for node, slots in found.items():
            piece, details = self._piece(node)
            clear.append(piece.clear(slots, *details, sizes=sizes[node], roundings=majorant.roundings))
        return torch.stack(clear).all()

    def _slots(self, parameters: Params, inputs: Params, patterns: Params) -> dict[str, Params]:
        """What the nodes with pieces read."""
        values = evaluate(self.graph, parameters, inputs, patterns)
        return {node: slots_of(self.graph, node, values, parameters) for node in self.pieces}

    def _piece(self, node: str) -> tuple[Piece, tuple[dict[str, Any], tuple[int, ...]]]:
        data = self.graph.nodes[node]
        above = {self.graph.nodes[n]["operation"] for n in self.graph.inputs_of(node).values()}
        return PIECES[data["operation"]], (data["attributes"] | {"from_relu": above == {"relu"}}, data["shape"])

    def _drawn(self, label: str, first: int, count: int) -> dict[str, dict[str, Tensor]]:
        cotangents = {node: self._cotangent(f"{label}/w:{node}", node, axis, first, count) for node, axis in self.seen}
        drawn = {node: self._mask(f"{label}/g:{node}", node, first, count) for node in self.masks}
        if self.gates == "free" and self.prime:
            drawn |= {node: self._free(f"{label}/g:{node}", node, first, count) for node in self.pieces}
        return {"inputs": self.inputs(label, first, count), "cotangents": cotangents, "patterns": drawn}

    def given(self, label: str, count: int) -> tuple[Params, Params]:
        """Inputs and masks of the first samples of a label, one behind the other."""
        drawn = self._drawn(label, 0, count)
        flat = [{n: x.flatten(0, 1) for n, x in drawn[part].items() if n not in self.pieces} for part in ("inputs", "patterns")]
        return flat[0], flat[1]

    def inputs(self, label: str, first: int, count: int) -> dict[str, Tensor]:
        """Random values of the graph's inputs, shape (count, summed, ...)."""
        nodes = [node for node, d in self.graph.nodes(data=True) if d["operation"] == "input"]
        return {node: self._input(f"{label}/{node}", node, first, count) for node in nodes}

    def _mask(self, label: str, node: str, first: int, count: int) -> Tensor:
        """What dropout lets through: any entry or not, whatever its probability."""
        shape = (count, self.summed, *self.graph.nodes[node]["shape"])
        return hashed.indices(label, shape, 2, first * prod(shape[1:])).to(torch.float64)

    def _free(self, label: str, node: str, first: int, count: int) -> Tensor:
        """The pieces that random slots would give."""
        data = self.graph.nodes[node]
        shapes = {slot: self.graph.nodes[producer]["shape"] for slot, producer in self.graph.inputs_of(node).items()}
        shapes |= {slot: self.graph.parameters[name].shape for slot, name in data["parameters"].items()}
        slots = {}
        for slot, shape in shapes.items():
            whole = (count, self.summed, *shape)
            slots[slot] = hashed.reals(f"{label}:{slot}", whole, 0.0, 6.0, first * prod(whole[1:]))
        piece = PIECES[data["operation"]]
        found: Tensor = vmap(vmap(lambda v: piece.pattern(v, data["attributes"], data["shape"])))(slots)
        return found

    def _numbers(self, label: str, shape: Sequence[Any], first: int = 0) -> Tensor:
        sizes = [int(size) for size in shape]
        return hashed.sixtyfourths(label, sizes, first) if self.prime else hashed.reals(label, sizes, 0.3, 1.3, first)

    def _input(self, label: str, node: str, first: int, count: int) -> Tensor:
        data = self.graph.nodes[node]
        shape = (count, self.summed, *data["shape"])
        first *= prod(shape[1:])
        if "float" in data["dtype"]:
            return self._numbers(label, shape, first)
        if data["dtype"] == "bool":
            return hashed.indices(label, shape, 2, first) > 0
        return hashed.indices(label, shape, self._rows, first)

    @cached_property
    def _rows(self) -> int:
        """What index inputs stay below: the rows of the smallest table that reads one, also through operations on indices."""
        nodes = self.graph.nodes
        todo = [n for n, d in nodes(data=True) if d["operation"] == "input" and "float" not in d["dtype"]]
        reached: set[str] = set()
        while todo:
            new = set(self.graph.successors(todo.pop())) - reached
            reached |= new
            todo += [n for n in new if "float" not in nodes[n]["dtype"]]
        tables = [nodes[n]["parameters"].get("weight") for n in reached if nodes[n]["operation"] == "embedding"]
        if not any(tables):
            raise Unevaluable("The graph has an input of integers, and no embedding that says how large they may be.")
        return min(int(self.graph.parameters[name].shape[0]) for name in tables if name)

    def _cotangent(self, label: str, node: str, axis: int | None, first: int, count: int) -> Tensor:
        shape = (count, self.summed, *self.graph.nodes[node]["shape"])
        w = self._numbers(label, shape, first * prod(shape[1:]))
        if axis is None:
            return w
        rest = w.narrow(axis + 2, 0, w.shape[axis + 2] - 1)
        return torch.cat([rest, -rest.sum(axis + 2, keepdim=True)], axis + 2)


def _is_known(data: dict[str, Any]) -> bool:
    return data["operation"] == "constant" and not data["attributes"].keys().isdisjoint(("value", "entries", "kind"))


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


def _picked(sample: dict[str, Any], i: int) -> dict[str, Any]:
    return {part: {name: x[i] for name, x in values.items()} for part, values in sample.items()}


def _stacked(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    if not samples:
        raise GraphError("No samples were asked for.")
    return {part: {name: torch.stack([s[part][name] for s in samples]) for name in samples[0][part]} for part in samples[0]}
