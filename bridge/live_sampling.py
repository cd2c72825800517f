"""Samples of a live module, for networks whose graph does not hold all that they compute with: masks, tables, indices picked by data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.func import functional_call, replace_all_batch_norm_modules_
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from noetherflow.bridge.evaluation import Unevaluable
from noetherflow.bridge.evaluation_blocks import BLOCKS
from noetherflow.bridge.sampling import Sampling
from noetherflow.numeric import hashed
from noetherflow.numeric.brackets import Params
from noetherflow.symbolic.graph import ArchitectureGraph

EPS: Final = ("eps", "variance_epsilon")
SMALL: Final = 1e-30  # torch refuses zero in some places


@dataclass(frozen=True)
class LiveSampling(Sampling):
    """Samples in float64 whose outputs the module itself computes.

    Parameters
    ----------
    module : nn.Module
        A copy in float64; its dropout is off, its batch normalisation keeps no running statistics.
    example : tuple
        Inputs; tensors of numbers are drawn anew, tensors of indices too where a table says below what.
    kwargs : mapping
        Given as they are.
    """

    module: nn.Module = field(default_factory=nn.Identity)
    example: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def summed(self) -> int:
        """Several, for the module may hold functions made of pieces."""
        return 6

    def samples(self, level: int, first: int, count: int) -> tuple[Any, int]:
        """As of a graph, without patterns."""
        sample: Any = None
        for place in reversed(range(level + 1)):
            label = f"{self.seed}/{level}.{place}"
            drawn = {
                "inputs": {str(i): self._given(f"{label}/{i}", x, first, count) for i, x in enumerate(self.example) if _is_drawn(x)},
                "cotangents": {node: self._cotangent(f"{label}/w:{node}", node, axis, first, count) for node, axis in self.seen},
            }
            sample = drawn if sample is None else (drawn, sample)
        return sample, first + count

    def _given(self, label: str, like: Tensor, first: int, count: int) -> Tensor:
        shape = (count, self.summed, *like.shape)
        if like.is_floating_point():
            return self._numbers(label, shape, first * prod(shape[1:]))
        return hashed.indices(label, shape, self._rows, first * prod(shape[1:]))

    @cached_property
    def _buffers(self) -> Params:
        return dict(self.module.named_buffers())

    def _one_scalar(self, theta: Params, sample: dict[str, Any]) -> Tensor:
        given = [sample["inputs"].get(str(i), x) for i, x in enumerate(self.example)]
        with sdpa_kernel(SDPBackend.MATH), WrittenOut():  # the other kernels of attention have no second derivative
            output = functional_call(self.module, theta | self.fixed | self._buffers, tuple(given), dict(self.kwargs))
        found = _matched(output, [tuple(self.graph.nodes[node]["shape"]) for node, _ in self.seen])
        return torch.stack([(y * sample["cotangents"][n]).sum() for (n, _), y in zip(self.seen, found, strict=True)]).sum()


class WrittenOut(TorchFunctionMode):
    """Layer normalisation in elementary operations: torch's own formulas for its higher derivatives lose digits."""

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        """One call, replaced if it is a layer normalisation."""
        if func is torch.nn.functional.layer_norm:
            return _layer_norm(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _layer_norm(x: Tensor, shape: Sequence[int], weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    slots = {name: value for name, value in (("input", x), ("weight", weight), ("bias", bias)) if value is not None}
    return BLOCKS["layer_norm"](slots, {"dims": len(shape), "eps": eps}, tuple(x.shape))


def live_copy(module: nn.Module, *, without_eps: bool) -> nn.Module:
    """The module in float64, with nothing in it that is drawn or kept from batch to batch; if asked, its norms' eps are next to zero."""
    copy = deepcopy(module).double()
    if copy.training:
        replace_all_batch_norm_modules_(copy)
    for part in copy.modules():
        if "Dropout" in type(part).__name__:
            part.eval()
        for name in EPS if without_eps and "Norm" in type(part).__name__ else ():
            if isinstance(getattr(part, name, None), float):
                setattr(part, name, SMALL)
    return copy


def live_samplings(
    graph: ArchitectureGraph, seeds: Sequence[str], module: nn.Module, example: Sequence[Any], kwargs: Any, *, without_eps: bool
) -> list[LiveSampling]:
    """One for each seed."""
    copy = live_copy(module, without_eps=without_eps)
    return [LiveSampling(graph, seed, module=copy, example=tuple(example), kwargs=dict(kwargs or {})) for seed in seeds]


def _is_drawn(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype != torch.bool


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        yield from _tensors(list(output.values()))
    elif isinstance(output, list | tuple):
        for member in output:
            yield from _tensors(member)


def _matched(output: Any, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    """The outputs that a loss sees, by their shapes, in order."""
    remaining = [y for y in _tensors(output) if y.is_floating_point()]
    found = []
    for shape in shapes:
        fitting = next((i for i, y in enumerate(remaining) if tuple(y.shape) == shape), None)
        if fitting is None:
            raise Unevaluable(f"The module returns {[tuple(y.shape) for y in remaining]}; its graph has outputs of shapes {list(shapes)}.")
        found.append(remaining.pop(fitting))
    return found
