"""Steps of random networks that are blocks of today's architectures: norms, attention, gates, residual branches, recurrent layers.

They are registered beside the plain steps of `support.assembled`. What a norm divides by must not be rounding: `smallest_variance` tells.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
from support.assembled import Assembled, DoesNotFit, Run, Step, makes, part_run, read, shared
from support.attention import Attention, rotary
from support.blocks import EPS, Gated, Unit, WeightNorm, WrittenNorm, layer_norm, rms_norm
from torch import Tensor, nn
from torch.nn import functional as F

BLOCKS: Final = ("norm", "attention", "gated", "residual", "weight_norm", "rotary", "chosen", "moved", "recurrent", "product", "glued")


# A block as wide as its input may bear GL(width): a few points of parameter space must suffice to tell its generators apart.
WIDEST: Final = 8


class Residual(nn.Module):
    """x + branch(norm(x)), or norm(x + branch(x))."""

    def __init__(self, norm: nn.Module, branch: nn.Module, *, post: bool) -> None:
        super().__init__()
        self.norm, self.branch, self.post = norm, branch, post

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.branch(x)) if self.post else x + self.branch(self.norm(x))


class States(nn.Module):
    """The sequence of states of an LSTM or a GRU."""

    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0]


# --- norms


def _any_norm(x: Tensor, step: Step) -> nn.Module:
    width, affine = x.shape[-1], step.b % 3 != 0
    kinds: tuple[Callable[[], nn.Module], ...] = (
        lambda: layer_norm(width, elementwise_affine=affine),
        lambda: rms_norm(width, gain=affine),
        lambda: layer_norm(width, bias=False),
        lambda: nn.LayerNorm(x.shape[-2:], eps=EPS, elementwise_affine=affine),
        lambda: nn.GroupNorm(2 if x.shape[1] % 2 == 0 else 1, x.shape[1], eps=EPS, affine=affine),
        lambda: nn.InstanceNorm1d(x.shape[1], eps=EPS, affine=affine),
        Unit,
        lambda: WrittenNorm(step.c % x.dim()),
    )
    chosen = step.a % len(kinds)
    if x.dim() < 2 or (chosen == 5 and x.dim() != 3):
        raise DoesNotFit
    return kinds[chosen]()


@makes("norm")
def _norm(network: Assembled, values: list[Tensor], step: Step) -> Run:
    place, x = read(values, step)
    part = _any_norm(x, step)
    return part_run(network, shared(network, step, type(part), part), place)


@makes("weight_norm")
def _weight_norm(network: Assembled, values: list[Tensor], step: Step) -> Run:
    place, x = read(values, step)
    part = WeightNorm(x.shape[-1], 1 + step.a % 4, step.b % 2)
    return part_run(network, network.keep(part), place)


def smallest_variance(model: nn.Module, run: Callable[[], Any]) -> float:
    """The smallest variance (or mean square, of norms that do not centre) that any norm of a model divides by in a run."""
    found: list[float] = []
    handles = [m.register_forward_pre_hook(lambda module, inputs: found.append(_variance(module, inputs[0]))) for m in model.modules()]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return min(found, default=torch.inf)


def _variance(module: nn.Module, x: Tensor) -> float:
    """What a module divides by, squared; infinity if it is no norm."""
    x = x.detach()
    match module:
        case nn.BatchNorm1d() | nn.BatchNorm2d() | nn.BatchNorm3d() if module.training:
            return float(x.var([d for d in range(x.dim()) if d != 1], correction=0).min())
        case nn.LayerNorm():
            return float(x.flatten(x.dim() - len(module.normalized_shape)).var(-1, correction=0).min())
        case nn.GroupNorm():
            return float(x.reshape(len(x), module.num_groups, -1).var(-1, correction=0).min())
        case nn.InstanceNorm1d():
            return float(x.var(-1, correction=0).min())
        case nn.RMSNorm() | Unit():
            return float(x.square().mean(-1).min())
        case WrittenNorm():
            return float(x.square().mean(module.axis).min())
        case _:
            return torch.inf


# --- attention and rotary positions


def _any_attention(x: Tensor, step: Step) -> Attention:
    heads = 1 + step.a % 2
    rope = (None, None, None, "halves", "interleaved")[step.b % 5]
    scores = ("fused", "softmax", "fused", "sigmoid", "relative", "linear")[step.a // 2 % 6]
    return Attention(
        x.shape[-1],
        heads,
        (2, 1, 3)[step.b // 5 % 3] if rope is None else 2 + 2 * (step.b // 5 % 2),
        shared=1 if step.c % 4 == 1 and scores == "fused" else None,
        bias=step.b % 2 == 0,
        rope=rope,
        norm=(None, None, "plain", "gain")[step.c // 4 % 4],
        scores=scores,
        causal=step.a // 12 == 0,
        positions=x.shape[-2],
    )


@makes("attention")
def _attention(network: Assembled, values: list[Tensor], step: Step) -> Run:
    place, x = read(values, step)
    if x.dim() < 3 or x.shape[-1] > WIDEST:
        raise DoesNotFit
    return part_run(network, network.keep(_any_attention(x, step)), place)


@makes("rotary")
def _rotary(network: Assembled, values: list[Tensor], step: Step) -> Run:
    place, x = read(values, step)
    if x.dim() < 3 or x.shape[-1] % 2:
        raise DoesNotFit
    return lambda values: rotary(values[place], ("halves", "interleaved")[step.a % 2])


# --- gates, residual branches, recurrent layers

GATES: Final = (F.silu, torch.relu, torch.sigmoid, F.gelu, torch.tanh, torch.square)


@makes("gated")
def _gated(network: Assembled, values: list[Tensor], step: Step) -> Run:
    place, x = read(values, step)
    part = Gated(x.shape[-1], 1 + step.b % 3, GATES[step.a % len(GATES)], bias=step.c % 2 == 0, out=1 + step.b // 3 % 4)
    return part_run(network, network.keep(part), place)


@makes("residual")
def _residual(network: Assembled, values: list[Tensor], step: Step) -> Run:
    place, x = read(values, step)
    width, hidden, bias = x.shape[-1], 1 + step.b % 3, step.c % 2 == 0
    if width > WIDEST:
        raise DoesNotFit
    norms = (nn.Identity, lambda: rms_norm(width), lambda: layer_norm(width), lambda: rms_norm(width, gain=False))
    middle = (nn.ReLU, nn.GELU, nn.Identity)[step.a // 4 % 3]
    branches: tuple[Callable[[], nn.Module], ...] = (
        lambda: nn.Sequential(nn.Linear(width, hidden, bias=bias), middle(), nn.Linear(hidden, width, bias=bias)),
        lambda: Gated(width, hidden, bias=bias),
        lambda: _any_attention(x, Step("attention", 0, step.b, step.c, step.a)) if x.dim() > 2 else nn.Linear(width, width, bias=bias),
    )
    part = Residual(norms[step.a % 4](), branches[step.b // 3 % 3](), post=step.c % 5 == 4)
    return part_run(network, network.keep(part), place)


@makes("recurrent")
def _recurrent(network: Assembled, values: list[Tensor], step: Step) -> Run:
    place, x = read(values, step)
    if x.dim() != 3:
        raise DoesNotFit
    kind = (nn.LSTM, nn.GRU)[step.a % 2]
    layer = kind(x.shape[-1], 1 + step.b % 2, bias=step.c % 2 == 0, batch_first=step.c % 3 != 0, bidirectional=step.c % 5 == 4)
    return part_run(network, network.keep(States(layer)), place)


# --- choices, movements, products


@makes("chosen")
def _chosen(network: Assembled, values: list[Tensor], step: Step) -> Run:
    place, x = read(values, step)
    second = len(values) - 1 - step.b % len(values)
    generator = torch.Generator().manual_seed(step.c)
    mask = torch.rand(x.shape[-1], generator=generator) < 0.5
    functions: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (
        torch.maximum,
        torch.minimum,
        lambda u, v: torch.where(mask, u, v),
        lambda u, v: u.masked_fill(mask, 0.0),
        lambda u, v: torch.where(mask, u, 0.4),
        lambda u, v: u.masked_fill(mask.cumsum(0) > 1, -torch.inf).softmax(-1),
        lambda u, v: torch.where(u.detach() > 0, u, v),
        lambda u, v: u.tril(),
    )
    chosen = functions[step.a % len(functions)]
    return lambda values: chosen(values[place], values[second])


@makes("moved")
def _moved(network: Assembled, values: list[Tensor], step: Step) -> Run:
    place, x = read(values, step)
    axis = step.b % x.dim()
    ends = (0, 0) * (x.dim() - 1 - axis) + (step.c % 2, 1)
    order = torch.randperm(x.shape[axis], generator=torch.Generator().manual_seed(step.c))
    functions: tuple[Callable[[Tensor], Tensor], ...] = (
        lambda v: v.roll(1, axis),
        lambda v: v.flip(axis),
        lambda v: F.pad(v, ends),
        lambda v: v.repeat_interleave(2, axis),
        lambda v: v.index_select(axis, order),
        lambda v: torch.cat([v, v], axis),
        lambda v: v.clamp(-1.0, 1.0),
        lambda v: (0.1 * v).exp(),
    )
    chosen = functions[step.a % len(functions)]
    return lambda values: chosen(values[place])


@makes("product")
def _product(network: Assembled, values: list[Tensor], step: Step) -> Run:
    place, _ = read(values, step)
    second = len(values) - 1 - step.b % len(values)
    equations = ("...i,...i->...", "...i,...j->...ij", "n...i,n...j->nij", "...i,...i->...i", "...ij,...kj->...ik")
    equation = equations[step.a % len(equations)]
    return lambda values: torch.einsum(equation, values[place], values[second])


@makes("glued")
def _glued(network: Assembled, values: list[Tensor], step: Step) -> Run:
    """Two values side by side along the positions, as they are, averaged, or shifted by a parameter."""
    place, x = read(values, step)
    fitting = [n for n, v in enumerate(values) if x.dim() == v.dim() > 2 and (v.shape[:-2], v.shape[-1]) == (x.shape[:-2], x.shape[-1])]
    if not fitting:
        raise DoesNotFit
    second, number = fitting[step.b % len(fitting)], network.weight(x.shape[-1])
    functions: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (
        lambda y, w: y,
        lambda y, w: y + w,
        lambda y, w: y.mean(-2) + w,
        lambda y, w: F.scaled_dot_product_attention(y.detach(), y.detach(), y) + w,
    )
    chosen = functions[step.a % len(functions)]
    return lambda values: chosen(torch.cat([values[place], values[second]], -2), network.weights[number])
