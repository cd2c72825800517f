"""Random networks: straight-line programs in which every step reads any of the values made before it.

A `Step` is a kind and four small numbers. `Assembled` tries the steps in turn on a small batch and leaves out those that do not fit, so
that every list of steps is a network and hypothesis can shrink it. Values may be read again, cut, glued, multiplied and overwritten.
Here are plain layers and functions; blocks of today's architectures are steps too, in `support.assembled_blocks`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

EPS = 1e-30  # so small that the laws of BatchNorm are exact
LARGEST = 400  # elements per sample beyond which a step is left out
BATCH = 4


@dataclass(frozen=True, slots=True)
class Step:
    """One step: what it does, which value it reads (counted from the last), and three numbers it reads its choices from."""

    kind: str
    at: int = 0
    a: int = 0
    b: int = 0
    c: int = 0


class DoesNotFit(Exception):
    """A step cannot be done on the values there are."""


Run = Callable[[list[Tensor]], Tensor]
Maker = Callable[["Assembled", list[Tensor], Step], Run]
MAKERS: Final[dict[str, Maker]] = {}


def makes(*kinds: str) -> Callable[[Maker], Maker]:
    """Register how steps of these kinds are made."""

    def register(maker: Maker) -> Maker:
        MAKERS.update(dict.fromkeys(kinds, maker))
        return maker

    return register


class Assembled(nn.Module):
    """The network of a list of steps.

    Parameters
    ----------
    steps
        What to do; those that do not fit are left out.
    shape
        Of one sample.
    frozen
        Every how many parameters one is frozen; 0 for none.
    outputs
        How many of the last values are returned.
    """

    def __init__(self, steps: tuple[Step, ...], shape: tuple[int, ...], frozen: int = 0, outputs: int = 1) -> None:
        super().__init__()
        self.parts = nn.ModuleList()
        self.weights = nn.ParameterList()
        self.runs: list[Run] = []
        self.outputs = outputs
        values = [torch.randn(BATCH, *shape)]
        for step in steps:
            self._try(step, values)
        for number, parameter in enumerate(self.parameters()):
            parameter.requires_grad_(not frozen or number % frozen != 0)

    def _try(self, step: Step, values: list[Tensor]) -> None:
        try:
            run = MAKERS[step.kind](self, values, step)
            made = run([v.clone() for v in values])
            if not made.dim() or not made.is_floating_point() or made.numel() > LARGEST * BATCH or not made.numel():
                raise DoesNotFit
        except (DoesNotFit, RuntimeError, ValueError, IndexError):
            return  # what it registered stays, unused
        self.runs.append(run)
        values.append(made.detach())

    def keep(self, part: nn.Module) -> int:
        """Register a layer; returns its number."""
        self.parts.append(part)
        return len(self.parts) - 1

    def weight(self, *shape: int) -> int:
        """Register a parameter; returns its number."""
        self.weights.append(nn.Parameter(torch.randn(shape) / max(1, shape[-1]) ** 0.5))
        return len(self.weights) - 1

    def forward(self, x: Tensor) -> Any:
        """The last value, or a tuple of the last ones."""
        values = [x * 1.0]  # a copy, so that steps may write into it
        for run in self.runs:
            values.append(run(values))
        return values[-1] if self.outputs == 1 else tuple(values[-self.outputs :])


def read(values: list[Tensor], step: Step) -> tuple[int, Tensor]:
    """Number and value that a step reads."""
    number = len(values) - 1 - step.at % len(values)
    return number, values[number]


def shared(network: Assembled, step: Step, kind: type[nn.Module], part: nn.Module) -> int:
    """The number of a layer: an equal one that exists, for every third choice of `c`, else a new one."""
    for number, other in enumerate(network.parts):
        if step.c % 3 == 2 and type(other) is kind and repr(other) == repr(part):
            return number
    return network.keep(part)


def part_run(network: Assembled, number: int, place: int) -> Run:
    """A run of one layer on one value."""
    return lambda values: network.parts[number](values[place])


# --- layers


@makes("linear")
def _linear(network: Assembled, values: list[Tensor], step: Step) -> Run:
    place, x = read(values, step)
    if x.dim() < 2:
        raise DoesNotFit
    part = nn.Linear(x.shape[-1], 1 + step.a % 4, bias=step.b % 2 == 0)
    return part_run(network, shared(network, step, nn.Linear, part), place)


@makes("convolution", "transposed")
def _convolution(network: Assembled, values: list[Tensor], step: Step) -> Run:
    place, x = read(values, step)
    dims = x.dim() - 2
    if dims not in (1, 2, 3):
        raise DoesNotFit
    kinds = (
        (nn.Conv1d, nn.Conv2d, nn.Conv3d) if step.kind == "convolution" else (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    )
    channels = x.shape[1]
    groups = (1, channels, 2 if channels % 2 == 0 else 1)[step.a % 3]
    out = groups * (1 + step.a // 3 % 2)
    kernel = 1 + step.b % min(3, *x.shape[2:]) if min(x.shape[2:]) > 0 else 1
    part = kinds[dims - 1](channels, out, kernel, stride=1 + step.c // 3 % 2, padding=step.b // 3 % 2, groups=groups, bias=step.c % 2 == 0)
    return part_run(network, shared(network, step, kinds[dims - 1], part), place)


@makes("batch_norm")
def _batch_norm(network: Assembled, values: list[Tensor], step: Step) -> Run:
    place, x = read(values, step)
    if not 2 <= x.dim() <= 5:
        raise DoesNotFit
    kind = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[x.dim() - 2]
    part = kind(x.shape[1], eps=EPS, affine=step.a % 3 != 0)
    if step.b % 5 == 4:
        part.eval()
    return part_run(network, shared(network, step, kind, part), place)


ACTIVATIONS: Final[tuple[Callable[[], nn.Module], ...]] = (
    nn.ReLU,
    nn.LeakyReLU,
    nn.PReLU,
    nn.Identity,
    nn.Tanh,
    nn.ReLU6,
    nn.GELU,
    nn.SiLU,
    nn.Sigmoid,
    nn.Softplus,
    nn.Hardtanh,
    nn.ELU,
)


@makes("activation")
def _activation(network: Assembled, values: list[Tensor], step: Step) -> Run:
    place, _ = read(values, step)
    kind = ACTIVATIONS[(step.a if step.b % 2 else step.a % 4) % len(ACTIVATIONS)]
    return part_run(network, network.keep(kind()), place)


@makes("dropout")
def _dropout(network: Assembled, values: list[Tensor], step: Step) -> Run:
    place, x = read(values, step)
    kinds = (nn.Dropout, nn.Dropout, nn.AlphaDropout, nn.Dropout2d if x.dim() == 4 else nn.Dropout)
    part = kinds[step.a % 4]((0.0, 0.4, 0.4)[step.b % 3])
    part.train(step.c % 3 != 0)
    return part_run(network, network.keep(part), place)


@makes("pool")
def _pool(network: Assembled, values: list[Tensor], step: Step) -> Run:
    place, x = read(values, step)
    dims = x.dim() - 2
    if dims not in (1, 2, 3):
        raise DoesNotFit
    padding = step.b % 2
    part = (
        (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)[dims - 1](2, stride=1 + step.b // 2 % 2, padding=padding),
        (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)[dims - 1](2, padding=padding, count_include_pad=step.c % 2 == 0),
        (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)[dims - 1](1 + step.b % 2),
        (nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d)[dims - 1](1 + step.b % 2),
    )[step.a % 4]
    return part_run(network, network.keep(part), place)


# --- functions of one value


@makes("function")
def _function(network: Assembled, values: list[Tensor], step: Step) -> Run:
    place, x = read(values, step)
    axis = step.b % x.dim()
    functions: tuple[Callable[[Tensor], Tensor], ...] = (
        lambda v: v.softmax(axis),
        lambda v: v.log_softmax(axis),
        lambda v: v.sum(axis, keepdim=step.c % 2 == 0),
        lambda v: v.mean(axis, keepdim=step.c % 2 == 0),
        torch.abs,
        torch.square,
        torch.neg,
        lambda v: 0.7 * v,
        lambda v: v / -3.0,
        lambda v: v + 0.3,
        lambda v: v**3,
        lambda v: v.detach(),
        lambda v: 1.0 - v,
        lambda v: v.cumsum(axis),
    )
    chosen = functions[step.a % len(functions)]
    return lambda values: chosen(values[place])


@makes("shape")
def _shape(network: Assembled, values: list[Tensor], step: Step) -> Run:
    place, x = read(values, step)
    i, j = step.b % x.dim(), step.c % x.dim()
    half = (*x.shape[:i], 2, x.shape[i] // 2, *x.shape[i + 1 :])
    other = (*x.shape[:i], x.shape[i] // 2, 2, *x.shape[i + 1 :])
    functions: tuple[Callable[[Tensor], Tensor], ...] = (
        lambda v: v.flatten(1),
        lambda v: v.flatten(max(0, v.dim() - 2)),
        lambda v: v.reshape(half),
        lambda v: v.reshape(other),
        lambda v: v.transpose(i, j),
        lambda v: v.unsqueeze(i),
        lambda v: v.squeeze(),
        lambda v: v.unsqueeze(-1).expand(*v.shape, 2),
        lambda v: v.flip(i),
        lambda v: v.contiguous(),
    )
    chosen = functions[step.a % len(functions)]
    return lambda values: chosen(values[place])


@makes("part")
def _part(network: Assembled, values: list[Tensor], step: Step) -> Run:
    place, x = read(values, step)
    axis = step.b % x.dim()
    size = x.shape[axis]
    start = step.c % size
    functions: tuple[Callable[[Tensor], Tensor], ...] = (
        lambda v: v.narrow(axis, start, size - start),
        lambda v: v.transpose(0, axis)[start:].transpose(0, axis),
        lambda v: v.select(axis, start),
        lambda v: v.chunk(2, axis)[-1],
        lambda v: v.split(max(1, size - 1), axis)[0],
        lambda v: v.unbind(axis)[start],
        lambda v: v.transpose(0, axis)[:: 1 + step.c % 2].transpose(0, axis),
    )
    chosen = functions[step.a % len(functions)]
    return lambda values: chosen(values[place])


# --- functions of two values


@makes("pair")
def _pair(network: Assembled, values: list[Tensor], step: Step) -> Run:
    place, x = read(values, step)
    second = len(values) - 1 - step.b % len(values)
    axis = step.c % x.dim()
    functions: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (
        torch.add,
        torch.mul,
        lambda u, v: torch.cat([u, v], axis),
        torch.sub,
        lambda u, v: u @ v,
        lambda u, v: u @ v.transpose(-1, -2),
        lambda u, v: u * v.mean(axis, keepdim=True),
        lambda u, v: torch.cat([u, v, u], axis),
        lambda u, v: u.unsqueeze(-1) * v.unsqueeze(-2),
        lambda u, v: u + v.sum(axis, keepdim=True),
        lambda u, v: u / (1.0 + v.square()),
    )
    chosen = functions[step.a % len(functions)]
    return lambda values: chosen(values[place], values[second])


# --- parameters outside layers


@makes("parameter")
def _parameter(network: Assembled, values: list[Tensor], step: Step) -> Run:
    place, x = read(values, step)
    tail = x.shape[-1 - step.b % max(1, x.dim() - 1) :] if x.dim() > 1 else x.shape
    wide = step.a % 7 in (3, 4, 5, 6)
    own = (3 if step.a % 7 == 5 else x.shape[-1], x.shape[-1]) if wide else tuple(tail)
    fitting = [n for n, w in enumerate(network.weights) if tuple(w.shape) == own]
    number = fitting[0] if fitting and step.c % 2 else network.weight(*own)
    functions: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (
        lambda v, w: v * w,
        lambda v, w: v + w,
        lambda v, w: v + w.tanh(),
        F.linear,
        lambda v, w: v @ w,
        lambda v, w: F.linear(F.linear(v, w).relu(), w.t()),
        lambda v, w: F.linear(v, w[: 1 + step.b % w.shape[0]], w[0, : 1 + step.b % w.shape[0]]),
    )
    chosen = functions[step.a % 7]
    return lambda values: chosen(values[place], network.weights[number])


# --- writing into values


@makes("in_place")
def _in_place(network: Assembled, values: list[Tensor], step: Step) -> Run:
    place, x = read(values, step)
    axis, start = step.b % x.dim(), step.c % x.shape[step.b % x.dim()]
    functions: tuple[Callable[[Tensor], Any], ...] = (
        lambda v: v.relu_(),
        lambda v: v.mul_(0.5),
        lambda v: v.select(axis, start).relu_(),
        lambda v: v.select(axis, start).tanh_(),
        lambda v: v.view(-1).tanh_(),
        lambda v: v.narrow(axis, start, 1).fill_(0.3),
        lambda v: v.add_(0.2),
        lambda v: F.dropout(v, 0.4, step.c % 2 == 0, inplace=True),
        lambda v: F.leaky_relu(v, inplace=True),
        lambda v: v.transpose(0, axis)[0].copy_(v.transpose(0, axis)[-1]),
    )
    chosen = functions[step.a % len(functions)]

    def run(values: list[Tensor]) -> Tensor:
        chosen(values[place])
        return values[place]

    return run
