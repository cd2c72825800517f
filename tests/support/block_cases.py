"""The table of cases, continued: blocks of today's architectures, alone and combined, and what the measured rank of each says there is."""

from __future__ import annotations

from functools import partial
from typing import Any, Final

import torch
from support.blocks import (
    EPS,
    NOISE,
    Attention,
    ConvNeXt,
    DynamicTanh,
    Experts,
    FeedForward,
    Gated,
    LatentAttention,
    Lora,
    SqueezeExcitation,
    Transformer,
    VisionTransformer,
    WeightNorm,

    layer_norm,
    rms_norm,
)
from support.cases import Block, Case, conv, head
from torch import Tensor, nn
from torch.nn import functional as F

VOCABULARY: Final = 13


def llama(layers: int = 1, *, gain: bool = True, norm: str | None = None, **options: Any) -> nn.Module:
    """RoPE, two query heads on one of keys and values, RMSNorm, SwiGLU."""
    attention = partial(Attention, 4, 2, 2, shared=1, rope="halves", norm=norm)
    return Transformer(attention, partial(Gated, 4, 3), partial(rms_norm, 4, gain=gain), layers=layers, **options)


def gpt2(**options: Any) -> nn.Module:
    """LayerNorm, biases, learned positions, GELU."""
    return Transformer(partial(Attention, 4, 2, 2, bias=True), partial(FeedForward, 4, 3), partial(layer_norm, 4), positions=4, **options)
