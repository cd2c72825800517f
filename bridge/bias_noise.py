"""What rounding acts on where a bias's gradient vanishes identically: the bias of the keys under softmax attention, say.

Its gradient is a sum, over samples and positions, of gradients that cancel; what floating point leaves of it says nothing about the size of
the summands. They are looked up where the bias is used: in the graph that autograd keeps of the module's forward pass, at the node that
reads the bias, whose incoming gradient they are. Adding up M of them errs by √M roundoffs of the partial sums' size, and each is rounded
itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate
from typing import Any, Final

import torch
from torch import Tensor, nn

from noetherflow.bridge.norm_noise import partial_squares

VIEWS: Final = ("View", "UnsafeView", "Reshape", "Unsqueeze", "Squeeze", "Alias", "ToCopy", "Clone")
FURTHER: Final = 200
"""Nodes that are looked at behind a bias that is used in pieces, for the places where the pieces are used."""


@dataclass
class _Record:
    """Sums over the backward passes since the last step, per entry of a bias."""

    squares: Tensor | None = None
    reference: float = 0.0


@dataclass
class BiasNoise:
    """Hooks on the modules that use biases without a gradient.

    Parameters
    ----------
    model : nn.Module
    uses : mapping of str to sequence of str
        Module -> the biases that it uses.
    measuring : bool
        Whether sizes are measured in the coming step; otherwise they go with the gradient's mean square.
    """

    model: nn.Module
    uses: Mapping[str, Sequence[str]]
    measuring: bool = True
    records: dict[str, _Record] = field(default_factory=dict)
    _per_reference: dict[str, Tensor] = field(default_factory=dict)
    _handles: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._biases = {name: self.model.get_parameter(name) for names in self.uses.values() for name in names}

    def attach(self) -> None:
        """Put the hooks on."""
        for path, names in self.uses.items():
            module = self.model.get_submodule(path)
            self._handles.append(module.register_forward_hook(partial(self._forward, names)))

    def detach(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def clear(self) -> None:
        """A step is over."""
        self.records.clear()

    def squares(self, name: str) -> Tensor | None:
        """Squares that rounding acts on, before clipping: those of sums and of elements, shape (2, entries of the bias)."""
        record = self.records.get(name)
        if record is None:
            return None
        if record.squares is not None and record.reference > 0:
            now = record.squares / record.reference
            known = self._per_reference.get(name)
            self._per_reference[name] = now if known is None else torch.maximum(known, now)
        known = self._per_reference.get(name)
        return record.squares if known is None else known * record.reference

    def _forward(self, names: Sequence[str], module: nn.Module, inputs: Any, output: Any) -> None:
        result = next((t for t in _tensors(output) if t.grad_fn is not None), None)
        if result is None:
            return
        for name in names:
            for node, start in users(result.grad_fn, self._biases[name]):
                node.register_prehook(partial(self._backward, name, node.name(), start, self.measuring))

    def _backward(self, name: str, kind: str, start: int, measured: bool, gradients: Sequence[Tensor | None]) -> None:
        if gradients[0] is None:
            return
        with torch.no_grad():
            gradient, record = gradients[0].detach(), self.records.setdefault(name, _Record())
            record.reference += float(gradient.square().mean(dtype=torch.float64))
            if measured:
                rows = gradient.movedim(1 if kind.startswith("Convolution") else -1, 0).flatten(1).double()
                size = self._biases[name].numel()
                squares = rows.new_zeros(2, size)
                squares[:, start : start + len(rows)] = torch.stack([rows.shape[1] * partial_squares(rows), rows.square().sum(1)])
                record.squares = squares if record.squares is None else record.squares + squares


def users(root: Any, parameter: Tensor) -> Iterator[tuple[Any, int]]:
    """The nodes behind `root` that read a parameter, nearest first, with where the piece of it that they read starts.

    Examples
    --------
    >>> layer = nn.Linear(3, 2)
    >>> [(node.name(), start) for node, start in users(layer(torch.ones(4, 3)).grad_fn, layer.bias)]
    [('AddmmBackward0', 0)]
    """
    readers: dict[Any, list[tuple[Any, int]]] = {}
    found, left, queue = None, -1, [root]
    for node in queue:
        for child, number in node.next_functions:
            if child is None:
                continue
            if child not in readers:
                queue.append(child)
            readers.setdefault(child, []).append((node, number))
            if found is None and getattr(child, "variable", None) is parameter:
                found = child
                left = FURTHER if any(_splits(reader) for reader, _ in readers[child]) else 0
        left -= 1
        if found is not None and left < 0:
            break
    if found is not None:
        yield from _climb(readers, found, 0)


def _climb(readers: Mapping[Any, Sequence[tuple[Any, int]]], node: Any, start: int, piece: int | None = None) -> Iterator[tuple[Any, int]]:
    """From a node up to those that do more than show another view of it; `piece` is the one of its results that is followed."""
    for reader, number in readers.get(node, ()):
        if piece is not None and number != piece:
            continue
        if _splits(reader):
            starts = [0, *accumulate(_split_sizes(reader))]
            for following in {number for _, number in readers.get(reader, ())}:
                yield from _climb(readers, reader, start + starts[following], following)
        elif reader.name().startswith(VIEWS):
            yield from _climb(readers, reader, start)
        else:
            yield reader, start


def _splits(node: Any) -> bool:
    return bool(node.name().startswith("Split"))


def _split_sizes(node: Any) -> list[int]:
    sizes = getattr(node, "_saved_split_sizes", None)
    return list(sizes) if sizes is not None else [node._saved_split_size] * 64


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    members = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    for member in members:
        yield from _tensors(member)
