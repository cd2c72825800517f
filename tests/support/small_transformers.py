"""Whole models of today's architectures, small: transformers for language and for images."""

from __future__ import annotations

from collections.abc import Callable

import torch
from support.attention import FusedAttention
from support.blocks import FeedForward, layer_norm
from torch import Tensor, nn


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
