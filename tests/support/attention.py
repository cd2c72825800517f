"""Attention in its variants, and rotary positions, written in plain torch."""

from __future__ import annotations

from typing import Final

import torch
from support.blocks import rms_norm
from torch import Tensor, nn
from torch.nn import functional as F

FREQUENCY: Final = 0.7
CAP: Final = 2.0

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
