"""Layers whose weights indices choose: experts that a router picks for every sample, tables that tokens read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
from support.blocks import EPS, FeedForward
from torch import Tensor, nn
from torch.nn import functional as F


class Routed(nn.Module):
    """The best experts of a router, their weights stacked: Σ_k p_k down[e_k](act(up[e_k] x)).

    Parameters
    ----------
    width, hidden, experts : int
    top
        How many experts are picked; the probabilities of more than one are normalised.
    activation
    gated
        down(act(gate x) * up x).
    bias
    shared
        Width of an expert that all samples have.
    picks
        Weights and indices -> the weights picked; the second for what is read behind the activation.
    """

    def __init__(
        self,
        width: int,
        hidden: int,
        experts: int,
        top: int,
        activation: Callable[[Tensor], Tensor] = F.relu,
        *,
        gated: bool = False,
        bias: bool = False,
        shared: int = 0,
        picks: str = "index",
    ) -> None:
        super().__init__()
        self.top, self.activation, self.picks = top, activation, picks
        self.router = nn.Linear(width, experts, bias=False)
        self.up, self.down = nn.Parameter(torch.randn(experts, hidden, width)), nn.Parameter(torch.randn(experts, width, hidden))
        self.gate = nn.Parameter(torch.randn(experts, hidden, width)) if gated else None
        self.up_bias, self.down_bias = (nn.Parameter(torch.randn(experts, n)) if bias else None for n in (hidden, width))
        self.shared = FeedForward(width, shared, F.relu, bias=False) if shared else None

    def forward(self, x: Tensor) -> Tensor:
        """Shape (batch, width)."""
        weights, chosen = self.router(x).softmax(-1).topk(self.top, -1)
        if self.top > 1:
            weights = weights / weights.sum(-1, keepdim=True)
        pick, again = PICKS[self.picks]
        h = torch.einsum("nd,nkhd->nkh", x, pick(self.up, chosen))
        if self.up_bias is not None:
            h = h + pick(self.up_bias, chosen)
        gate = 1.0 if self.gate is None else self.activation(torch.einsum("nd,nkhd->nkh", x, pick(self.gate, chosen)))
        h = self.activation(h) if self.gate is None else gate * h
        y = torch.einsum("nkh,nkdh->nkd", h, again(self.down, chosen))
        if self.down_bias is not None:
            y = y + again(self.down_bias, chosen)
        y = (y * weights.unsqueeze(-1)).sum(1)
        return y if self.shared is None else y + self.shared(x)


Pick = Callable[[Tensor, Tensor], Tensor]


def _flat(weight: Tensor, chosen: Tensor) -> Tensor:
    return weight.index_select(0, chosen.reshape(-1)).reshape(*chosen.shape, *weight.shape[1:])


def _gathered(weight: Tensor, chosen: Tensor) -> Tensor:
    index = chosen.reshape(-1, *[1] * (weight.dim() - 1)).expand(-1, *weight.shape[1:])
    return weight.gather(0, index).reshape(*chosen.shape, *weight.shape[1:])


def _embedded(weight: Tensor, chosen: Tensor) -> Tensor:
    return F.embedding(chosen, weight.reshape(weight.shape[0], -1)).reshape(*chosen.shape, *weight.shape[1:])


def _plain(weight: Tensor, chosen: Tensor) -> Tensor:
    return weight[chosen]


# How weights are picked in front of the activation, and how behind it.
PICKS: Final[dict[str, tuple[Pick, Pick]]] = {
    "index": (_plain, _plain),
    "select": (_flat, _flat),
    "gather": (_gathered, _gathered),
    "embedding": (_embedded, _embedded),
    "several": (_plain, _flat),
    # others, in another order: nothing that depends on the expert cancels
    "turned": (_plain, lambda weight, chosen: weight[chosen.flip(-1)]),
    "next": (_plain, lambda weight, chosen: weight[(chosen + 1) % len(weight)]),
    "sorted": (_plain, lambda weight, chosen: weight[chosen.sort(-1).values]),
}


class Tables(nn.Module):
    """Tables that tokens read, joined by a function of the tables and the tokens."""

    def __init__(self, function: Callable[[Any, Tensor], Tensor], vocabulary: int, width: int, tables: int, *, head: int = 0) -> None:
        super().__init__()
        self.function = function
        self.tables = nn.ModuleList(nn.Embedding(vocabulary, width) for _ in range(tables))
        self.head = nn.Linear(width, head, bias=False) if head else nn.Identity()

    def forward(self, tokens: Tensor) -> Tensor:
        """Shape (batch, position, width or head)."""
        return self.head(self.function(self.tables, tokens))


TABLES: Final[dict[str, Callable[[Any, Tensor], Tensor]]] = {
    "product": lambda t, x: t[0](x) * t[1](x),
    "sum": lambda t, x: t[0](x) + t[1](x.reshape(-1)).reshape(*x.shape, -1),
    "square": lambda t, x: t[0](x) * t[0](x),
    "neighbours": lambda t, x: t[0](x[:, 1:]) * t[1](x[:, :-1]),
    "mean": lambda t, x: (t[0](x) * t[1](x)).mean(1, keepdim=True) * t[2](x),
    "normed": lambda t, x: F.layer_norm(t[0](x), (t[0].embedding_dim,), eps=EPS),
}
