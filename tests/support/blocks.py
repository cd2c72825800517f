"""Layers of today's architectures, small: norms, gates, experts, recurrences, blocks of convolutional nets, written in plain torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

EPS: Final = 1e-30  # of every norm: its scale laws are exact. torch refuses 0 in some places.
NOISE: Final = 0.4  # of dropout


def layer_norm(width: int, **options: Any) -> nn.LayerNorm:
    return nn.LayerNorm(width, eps=EPS, **options)


def rms_norm(width: int, *, gain: bool = True) -> nn.RMSNorm:
    return nn.RMSNorm(width, eps=EPS, elementwise_affine=gain)


# --- norms without a class in torch


class WrittenNorm(nn.Module):
    """RMSNorm along one axis, written out."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis

    def forward(self, x: Tensor) -> Tensor:
        return x * (x.square().mean(self.axis, keepdim=True) + EPS).rsqrt()


class Unit(nn.Module):
    """x / |x| along the last axis."""

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1, eps=EPS)


def weight_norm(direction: Tensor, magnitude: Tensor, dim: int) -> Tensor:
    """magnitude * direction / |direction|, the norm over all axes but one."""
    return torch._weight_norm(direction, magnitude, dim)  # pyright: ignore[reportPrivateImportUsage]  # what torch's parametrization calls


class WeightNorm(nn.Module):
    """A linear map whose rows (or columns) have learned lengths."""

    def __init__(self, width: int, out: int, dim: int) -> None:
        super().__init__()
        self.direction = nn.Parameter(torch.randn(out, width))
        self.magnitude = nn.Parameter(1.0 + torch.rand((out, 1) if dim == 0 else (1, width)))
        self.bias, self.dim = nn.Parameter(torch.randn(out)), dim

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, weight_norm(self.direction, self.magnitude, self.dim), self.bias)


# --- gates and other feed-forward layers


class Gated(nn.Module):
    """down(gate(g x) * u x)."""

    def __init__(self, width: int, hidden: int, gate: Callable[[Tensor], Tensor] = F.silu, *, bias: bool = False, out: int = 0) -> None:
        super().__init__()
        self.activation = gate
        self.gate, self.up = (nn.Linear(width, hidden, bias=bias) for _ in range(2))
        self.down = nn.Linear(hidden, out or width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Shape (..., out)."""
        return self.down(self.activation(self.gate(x)) * self.up(x))


class FeedForward(nn.Module):
    """Linear, activation, linear."""

    def __init__(self, width: int, hidden: int, activation: Callable[[Tensor], Tensor] = F.gelu, *, bias: bool = True) -> None:
        super().__init__()
        self.activation = activation
        self.first, self.second = nn.Linear(width, hidden, bias=bias), nn.Linear(hidden, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Shape (..., width)."""
        return self.second(self.activation(self.first(x)))


class Lora(nn.Module):
    """A frozen linear map and a trainable one of low rank."""

    def __init__(self, width: int, rank: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.frozen = nn.Linear(width, width)
        self.frozen.requires_grad_(False)
        self.dropout = nn.Dropout(dropout)
        self.a, self.b = nn.Parameter(torch.randn(rank, width)), nn.Parameter(torch.randn(width, rank))

    def forward(self, x: Tensor) -> Tensor:
        """Shape (..., width)."""
        return self.frozen(x) + F.linear(F.linear(self.dropout(x), self.a), self.b)


class SqueezeExcitation(nn.Module):
    """Channels times a gate that their means decide."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(channels, hidden, 1), nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Shape (batch, channel, height, width)."""
        return x * self.second(F.silu(self.first(x.mean((2, 3), keepdim=True)))).sigmoid()


class ConvNeXt(nn.Module):
    """A depthwise convolution, a norm over channels, two linear maps, a gain on the branch: x + gain * branch(x)."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.norm, self.feed = layer_norm(channels), FeedForward(channels, hidden)
        self.gain = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Shape (batch, channel, height, width)."""
        y = self.feed(self.norm(self.depthwise(x).permute(0, 2, 3, 1)))
        return x + (self.gain * y).permute(0, 3, 1, 2)


class DynamicTanh(nn.Module):
    """gain * tanh(alpha x) + shift."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.alpha, self.gain = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(width))
        self.shift = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """Shape (..., width)."""
        return self.gain * (self.alpha * x).tanh() + self.shift


class Experts(nn.Module):
    """All experts, weighted by the softmax of a router."""

    def __init__(self, width: int, hidden: int, experts: int) -> None:
        super().__init__()
        self.router = nn.Linear(width, experts, bias=False)
        self.up, self.down = nn.Parameter(torch.randn(experts, hidden, width)), nn.Parameter(torch.randn(experts, width, hidden))

    def forward(self, x: Tensor) -> Tensor:
        """Shape (batch, width)."""
        hidden = torch.einsum("bd,ehd->beh", x, self.up).relu()
        return torch.einsum("beh,edh,be->bd", hidden, self.down, self.router(x).softmax(-1))


class StackedExperts(nn.Module):
    """The same with one module for each expert, their outputs stacked."""

    def __init__(self, width: int, hidden: int, experts: int) -> None:
        super().__init__()
        self.router = nn.Linear(width, experts, bias=False)
        self.experts = nn.ModuleList(FeedForward(width, hidden, F.relu, bias=False) for _ in range(experts))

    def forward(self, x: Tensor) -> Tensor:
        """Shape (batch, width)."""
        y = torch.stack([expert(x) for expert in self.experts], -1)
        return (y * self.router(x).softmax(-1).unsqueeze(-2)).sum(-1)


# --- recurrences


class Unrolled(nn.Module):
    """A recurrent net of three steps written out, its last state read: h <- activation(a h + b x)."""

    def __init__(self, width: int, hidden: int, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.activation = activation
        self.a, self.b, self.c = nn.Linear(hidden, hidden, bias=False), nn.Linear(width, hidden, bias=False), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Shape (batch, width), of inputs (batch, 3, width)."""
        h = self.activation(self.b(x[:, 0]))
        for t in (1, 2):
            h = self.activation(self.a(h) + self.b(x[:, t]))
        return self.c(h)


class Recurrent(nn.Module):
    """Embeddings, an LSTM or a GRU, a head on every state."""

    def __init__(self, kind: type[nn.RNNBase], vocabulary: int, width: int, hidden: int) -> None:
        super().__init__()
        self.tokens, self.layer = nn.Embedding(vocabulary, width), kind(width, hidden, batch_first=True)
        self.head = nn.Linear(hidden, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits, shape (batch, position, vocabulary)."""
        return self.head(self.layer(self.tokens(tokens))[0])
