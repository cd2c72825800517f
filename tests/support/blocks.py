"""Layers of today's architectures, small: attention in its variants, gates, norms and residual blocks, written in plain torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

EPS: Final = 1e-30  # of every norm: its scale laws are exact. torch refuses 0 in some places.
FREQUENCY: Final = 0.7
CAP: Final = 2.0
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


class WeightNorm(nn.Module):
    """A linear map whose rows (or columns) have learned lengths."""

    def __init__(self, width: int, out: int, dim: int) -> None:
        super().__init__()
        self.direction = nn.Parameter(torch.randn(out, width))
        self.magnitude = nn.Parameter(1.0 + torch.rand((out, 1) if dim == 0 else (1, width)))
        self.bias, self.dim = nn.Parameter(torch.randn(out)), dim

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, torch._weight_norm(self.direction, self.magnitude, self.dim), self.bias)


# --- rotary positions


def turned(x: Tensor, pairing: str) -> Tensor:
    """Every pair (x_0, x_1) as (-x_1, x_0): entries half a head apart, or neighbours."""
    if pairing == "halves":
        half = x.shape[-1] // 2
        return torch.cat([-x[..., half:], x[..., :half]], -1)
    first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([-second, first], -1).flatten(-2)


def rotary(x: Tensor, pairing: str = "halves") -> Tensor:
    """Rotate the pairs of the last axis by angles that grow with the position, the axis before it; all frequencies differ."""
    positions, size = x.shape[-2:]
    angles = torch.arange(positions, dtype=x.dtype)[:, None] * FREQUENCY ** torch.arange(size // 2, dtype=x.dtype)
    both = torch.cat([angles, angles], -1) if pairing == "halves" else angles.repeat_interleave(2, -1)
    return x * both.cos() + turned(x, pairing) * both.sin()


# --- attention


class Attention(nn.Module):
    """Attention over the axis before the last.

    Parameters
    ----------
    width, heads, size
        Of the stream, their number, and of one head.
    shared
        Heads of keys and values, if fewer than `heads`.
    bias
        Of all four maps.
    rope
        None, "halves" or "interleaved".
    norm
        Of queries and keys: None, "plain" or "gain".
    scores
        What becomes of q k: "fused" (torch's own attention), or "softmax", "sigmoid", "softcap", "linear", "relative", "alibi" written out.
    """

    def __init__(
        self,
        width: int,
        heads: int = 2,
        size: int = 2,
        *,
        shared: int | None = None,
        bias: bool = False,
        rope: str | None = None,
        norm: str | None = None,
        scores: str = "fused",
        causal: bool = True,
        positions: int = 0,
    ) -> None:
        super().__init__()
        few = shared or heads
        self.heads, self.few, self.size, self.rope, self.scores, self.causal = heads, few, size, rope, scores, causal
        self.q, self.o = nn.Linear(width, heads * size, bias=bias), nn.Linear(heads * size, width, bias=bias)
        self.k, self.v = (nn.Linear(width, few * size, bias=bias) for _ in range(2))
        self.q_norm, self.k_norm = (rms_norm(size, gain=norm == "gain") if norm else nn.Identity() for _ in range(2))
        if scores == "relative":
            self.relative = nn.Parameter(torch.randn(heads, positions, positions))

    def forward(self, x: Tensor) -> Tensor:
        """Shape (..., position, width), as the input."""
        q = self.q_norm(self.q(x).unflatten(-1, (self.heads, self.size))).transpose(-2, -3)
        k = self.k_norm(self.k(x).unflatten(-1, (self.few, self.size))).transpose(-2, -3)
        v = self.v(x).unflatten(-1, (self.few, self.size)).transpose(-2, -3)
        if self.rope:
            q, k = rotary(q, self.rope), rotary(k, self.rope)
        y = self._fused(q, k, v) if self.scores == "fused" else self._weights(q @ k.transpose(-1, -2)) @ v
        return self.o(y.transpose(-2, -3).flatten(-2))

    def _fused(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=self.causal, enable_gqa=self.heads != self.few)

    def _weights(self, scores: Tensor) -> Tensor:
        allowed = torch.ones(scores.shape[-2:], dtype=torch.bool).tril() if self.causal else torch.ones(scores.shape[-2:], dtype=torch.bool)
        match self.scores:
            case "linear":
                return scores.masked_fill(~allowed, 0.0)
            case "sigmoid":
                return scores.sigmoid().masked_fill(~allowed, 0.0)
            case "softcap":
                scores = CAP * (scores / CAP).tanh()
            case "relative":
                scores = scores + self.relative
            case "alibi":
                place = torch.arange(scores.shape[-1], dtype=scores.dtype)
                scores = scores - 0.5 * (place[:, None] - place).abs()
        return scores.masked_fill(~allowed, -torch.inf).softmax(-1)


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


class FusedAttention(nn.Module):
    """Queries, keys and values from one linear map, taken apart as timm does."""

    def __init__(self, width: int, heads: int, size: int) -> None:
        super().__init__()
        self.heads, self.size = heads, size
        self.qkv, self.proj = nn.Linear(width, 3 * heads * size), nn.Linear(heads * size, width)

    def forward(self, x: Tensor) -> Tensor:
        """Shape (batch, position, width)."""
        batch, positions, _ = x.shape
        q, k, v = self.qkv(x).reshape(batch, positions, 3, self.heads, self.size).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).reshape(batch, positions, -1))


class LatentAttention(nn.Module):
    """Keys and values from a latent vector that is narrower than they are (MLA, without its rotary part)."""

    def __init__(self, width: int, latent: int, heads: int, size: int) -> None:
        super().__init__()
        self.heads, self.size = heads, size
        self.down, self.q = nn.Linear(width, latent, bias=False), nn.Linear(width, heads * size, bias=False)
        self.k, self.v = (nn.Linear(latent, heads * size, bias=False) for _ in range(2))
        self.o = nn.Linear(heads * size, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Shape (batch, position, width)."""
        latent = self.down(x)
        q, k, v = (y.unflatten(-1, (self.heads, self.size)).transpose(1, 2) for y in (self.q(x), self.k(latent), self.v(latent)))
        return self.o(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))


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


# --- whole models


class Transformer(nn.Module):
    """Embeddings, layers of attention and feed-forward, a head.

    Parameters
    ----------
    attention, feed, norm
        Make one of them.
    layout
        "pre": x + f(norm(x)); "post": norm(x + f(x)); "parallel": x + attention(norm(x)) + feed(norm(x)).
    positions
        Learned ones, if not 0.
    """

    def __init__(
        self,
        attention: Callable[[], nn.Module],
        feed: Callable[[], nn.Module],
        norm: Callable[[], nn.Module],
        *,
        vocabulary: int = 13,
        width: int = 4,
        layers: int = 1,
        layout: str = "pre",
        positions: int = 0,
        tied: bool = False,
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.layout = layout
        self.tokens, self.head = nn.Embedding(vocabulary, width), nn.Linear(width, vocabulary, bias=bias)
        self.positions = nn.Embedding(positions, width) if positions else None
        self.attentions, self.feeds = (nn.ModuleList(make() for _ in range(layers)) for make in (attention, feed))
        self.norms = nn.ModuleList(norm() for _ in range({"pre": 2, "post": 2, "parallel": 1}[layout] * layers))
        self.last = nn.Identity() if layout == "post" else norm()
        if tied:
            self.head.weight = self.tokens.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits, shape (batch, position, vocabulary)."""
        x = self.tokens(tokens)
        if self.positions is not None:
            x = x + self.positions(torch.arange(tokens.shape[1]))
        for number, (attention, feed) in enumerate(zip(self.attentions, self.feeds, strict=True)):
            x = self._layer(x, attention, feed, number)
        return self.head(self.last(x))

    def _layer(self, x: Tensor, attention: nn.Module, feed: nn.Module, number: int) -> Tensor:
        if self.layout == "parallel":
            y = self.norms[number](x)
            return x + attention(y) + feed(y)
        first, second = self.norms[2 * number], self.norms[2 * number + 1]
        if self.layout == "post":
            x = first(x + attention(x))
            return second(x + feed(x))
        x = x + attention(first(x))
        return x + feed(second(x))


class VisionTransformer(nn.Module):
    """Patches, learned positions, one layer of attention and feed-forward, a head on the mean over positions; a class token or none."""

    def __init__(self, *, token: bool) -> None:
        super().__init__()
        width = 4
        self.patches = nn.Conv2d(2, width, 2, stride=2)
        self.token = nn.Parameter(torch.randn(1, 1, width)) if token else None
        self.positions = nn.Parameter(torch.randn(1, 4 + token, width))
        self.attention, self.feed = FusedAttention(width, 2, 2), FeedForward(width, 3)
        self.norms = nn.ModuleList(layer_norm(width) for _ in range(3))
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Logits, shape (batch, class)."""
        x = self.patches(x).flatten(2).transpose(1, 2)
        if self.token is not None:
            x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
        x = x + self.positions
        x = x + self.attention(self.norms[0](x))
        x = self.norms[2](x + self.feed(self.norms[1](x)))
        return self.head(x.mean(1))


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
