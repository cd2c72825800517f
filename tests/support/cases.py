"""One table of small architectures: what is derived of each, and what the measured rank of its function says there is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from noetherflow.numeric.models import MLP, TiedMLP

EPS = 1e-30  # of BatchNorm: its scale laws are exact


@dataclass(frozen=True, slots=True)
class Case:
    """A small architecture.

    Parameters
    ----------
    name
    build
        Makes the module, in training mode.
    shape
        Of one sample.
    dimension
        Generators that are derived.
    missing
        Directions of the measured defect that are not derived, and `why`.
    loss
        None or "cross_entropy".
    excess
        Generators that move nothing at any one point, because a group acts there with a stabiliser (wide linear networks).
    tokens
        Size of the vocabulary, if the inputs are tokens.
    """

    name: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    dimension: int
    missing: int = 0
    why: str = ""
    loss: str | None = None
    batch: int = 12
    excess: int = 0
    tokens: int = 0

    def inputs(self, size: float = 1.0) -> Tensor:
        """A random batch."""
        shape = (self.batch, *self.shape)
        return torch.randint(self.tokens, shape) if self.tokens else size * torch.randn(shape)


class Block(nn.Module):
    """A module written as one function of itself and its input."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor], **parts: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.function = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        """Whatever the function says."""
        return self.function(self, x)


def conv(i: int, o: int, kernel: int = 3, *, bias: bool = True, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(i, o, kernel, bias=bias, **options)


def norm(channels: int, *, affine: bool = True) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=EPS, affine=affine)


def head(channels: int, classes: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)]


def dense_net() -> nn.Module:
    return Block(
        lambda s, x: s.last(F.relu(s.norm(torch.cat([u := s.first(x), s.second(F.relu(u))], 1))).mean((2, 3))),
        first=conv(2, 3),
        second=conv(3, 2, padding=1),
        norm=norm(5),
        last=nn.Linear(5, 3),
    )


def residual() -> nn.Module:
    return Block(
        lambda s, x: s.last(F.relu((u := F.relu(s.first(x))) + s.outer(F.relu(s.inner(u))))),
        first=nn.Linear(3, 4),
        inner=nn.Linear(4, 5),
        outer=nn.Linear(5, 4),
        last=nn.Linear(4, 2),
    )


def downsample_block() -> nn.Module:
    return Block(
        lambda s, x: s.last(F.relu(s.norm2(s.conv2(F.relu(s.norm1(s.conv1(x))))) + s.norm3(s.conv3(x))).mean((2, 3))),
        conv1=conv(2, 3, bias=False, padding=1),
        norm1=norm(3),
        conv2=conv(3, 4, bias=False, padding=1),
        norm2=norm(4),
        conv3=conv(2, 4, 1, bias=False),
        norm3=norm(4),
        last=nn.Linear(4, 3),
    )


def gated(gate: Callable[[Tensor], Tensor], *, bias: bool = False) -> nn.Module:
    return Block(
        lambda s, x: s.down(gate(s.gate(x)) * s.up(x)),
        gate=nn.Linear(5, 3, bias=bias),
        up=nn.Linear(5, 3, bias=bias),
        down=nn.Linear(3, 4, bias=bias),
    )


def shared_by_transposition() -> nn.Module:
    return Block(lambda s, x: F.linear(torch.relu(F.linear(x, s.w)), s.w.t()), w=nn.Parameter(torch.randn(4, 3)))


def shared_twice() -> nn.Module:
    return Block(
        lambda s, x: s.last(s.inner(s.inner(s.first(x)))),
        first=nn.Linear(4, 3, bias=False),
        inner=nn.Linear(3, 3, bias=False),
        last=nn.Linear(3, 4, bias=False),
    )


def attention() -> nn.Module:
    return Block(
        lambda s, x: s.o((s.q(x) @ s.k(x).transpose(1, 2)).softmax(-1) @ s.v(x)),
        q=nn.Linear(4, 2, bias=False),
        k=nn.Linear(4, 2),
        v=nn.Linear(4, 2, bias=False),
        o=nn.Linear(2, 4),
    )


def two_heads() -> nn.Module:
    return Block(
        lambda s, x: torch.cat([s.a(h := F.relu(s.first(x))), s.b(h)], 1),
        first=nn.Linear(3, 4),
        a=nn.Linear(4, 2),
        b=nn.Linear(4, 3),
    )


def grouped() -> nn.Module:
    return nn.Sequential(conv(4, 4, groups=2), nn.ReLU(), conv(4, 4, 2, groups=4), nn.Flatten(), nn.Linear(16, 2))


def frozen_middle() -> nn.Module:
    model = MLP([3, 4, 4, 2])
    model.layers[1].weight.requires_grad_(False)
    return model


CASES: Final[tuple[Case, ...]] = (
    Case("relu_mlp", partial(MLP, [3, 5, 4, 2]), (3,), 9),
    Case("relu_mlp_without_bias", partial(MLP, [3, 5, 4, 2], bias=False), (3,), 9),
    Case("relu_mlp_cross_entropy", partial(MLP, [3, 5, 4, 3]), (3,), 9 + 4 + 1, loss="cross_entropy"),
    Case("leaky_relu_mlp", partial(MLP, [3, 5, 2], "leaky_relu"), (3,), 5),
    Case("tanh_mlp", partial(MLP, [3, 5, 2], "tanh"), (3,), 0),
    Case("tied_relu_mlp", partial(TiedMLP, 3, 4, 2), (3,), 4),
    Case("frozen_middle", frozen_middle, (3,), 1),
    Case("linear_pair", partial(MLP, [4, 2, 3], "linear", bias=False), (4,), 4),
    Case("deep_linear", partial(MLP, [4, 3, 3, 4], "linear", bias=False), (4,), 18),
    Case("wide_linear", partial(MLP, [2, 5, 2], "linear", bias=False), (2,), 25, excess=9),
    Case("linear_pair_with_bias", partial(MLP, [4, 2, 3], "linear"), (4,), 4 + 2),
    Case("linear_pair_cross_entropy", partial(MLP, [4, 2, 4], "linear", bias=False), (4,), 4 + 2, loss="cross_entropy"),
    Case("linear_shared_twice", shared_twice, (4,), 10, 8, "first <- (inner + d)^-2 inner^2 first: not affine"),
    Case(
        "dropout_between_linear", lambda: nn.Sequential(nn.Linear(4, 3, bias=False), nn.Dropout(0.4), nn.Linear(3, 2, bias=False)), (4,), 3
    ),
    Case("conv_relu_pool_conv", lambda: nn.Sequential(conv(2, 3), nn.ReLU(), nn.MaxPool2d(2), conv(3, 2, 2), nn.Flatten()), (2, 7, 7), 3),
    Case(
        "conv_pool_conv",
        lambda: nn.Sequential(conv(2, 3, bias=False), nn.AvgPool2d(2), conv(3, 4, 2, bias=False), nn.Flatten()),
        (2, 7, 7),
        9,
    ),
    Case("grouped_conv", grouped, (4, 5, 5), 8 + 4),
    Case("conv_bn_relu_conv", lambda: nn.Sequential(conv(2, 3), norm(3), nn.ReLU(), conv(3, 2, 2), nn.Flatten()), (2, 5, 5), 9),
    Case(
        "bn_without_affine", lambda: nn.Sequential(conv(2, 3), norm(3, affine=False), nn.ReLU(), conv(3, 2, 2), nn.Flatten()), (2, 5, 5), 6
    ),
    Case("bn_pool_linear", lambda: nn.Sequential(conv(2, 3, bias=False), norm(3), *head(3, 2)), (2, 5, 5), 3 + 3 + 3),
    Case("dense_net", dense_net, (2, 6, 6), 12),
    Case("residual_relu", residual, (3,), 9),
    Case("downsample_block", downsample_block, (2, 5, 5), 22),
    Case("bilinear_product", partial(gated, lambda v: v), (5,), 6),
    Case("relu_gate", partial(gated, torch.relu, bias=True), (5,), 6),
    Case("swiglu", partial(gated, F.silu), (5,), 3),
    Case("tied_by_transposition", shared_by_transposition, (3,), 0),
    Case("attention", attention, (5, 4), 8 + 2),
    Case("two_heads_cross_entropy", two_heads, (3,), 4 + 1, 4, "a shift by data of two weights at once", "cross_entropy"),
)
