"""The table of cases, continued: blocks of today's architectures, alone and combined, and what the measured rank of each says there is."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final

import torch
from support.attention import Attention, LatentAttention
from support.blocks import (
    EPS,
    NOISE,
    ConvNeXt,
    DynamicTanh,
    Experts,
    FeedForward,
    Gated,
    Lora,
    Recurrent,
    SqueezeExcitation,
    StackedExperts,
    Unrolled,
    WeightNorm,
    layer_norm,
    rms_norm,
)
from support.cases import Block, Case, conv, head
from support.routed import TABLES, Routed, Tables
from support.small_transformers import Transformer, VisionTransformer
from torch import nn
from torch.nn import functional as F

VOCABULARY: Final = 13


def llama(layers: int = 1, *, gain: bool = True, norm: str | None = None, **options: Any) -> nn.Module:
    """RoPE, two query heads on one of keys and values, RMSNorm, SwiGLU."""
    attention = partial(Attention, 4, 2, 2, shared=1, rope="halves", norm=norm)
    return Transformer(attention, partial(Gated, 4, 3), partial(rms_norm, 4, gain=gain), layers=layers, **options)


def gpt2(**options: Any) -> nn.Module:
    """LayerNorm, biases, learned positions, GELU."""
    return Transformer(partial(Attention, 4, 2, 2, bias=True), partial(FeedForward, 4, 3), partial(layer_norm, 4), positions=4, **options)


def post_norm(norm: Callable[..., nn.Module], *, bias: bool) -> nn.Module:
    return Transformer(partial(Attention, 4, 2, 2, bias=bias), partial(FeedForward, 4, 2), partial(norm, 4), layout="post", bias=True)


def palm() -> nn.Module:
    """Attention and gated feed-forward side by side, no bias anywhere."""
    attention = partial(Attention, 4, 2, 2, shared=1, rope="interleaved")
    return Transformer(attention, partial(Gated, 4, 2), partial(layer_norm, 4, bias=False), layout="parallel")


def gptj() -> nn.Module:
    """Attention without biases and feed-forward with them side by side."""
    attention = partial(Attention, 4, 2, 2, rope="interleaved")
    return Transformer(attention, partial(FeedForward, 4, 2), partial(layer_norm, 4), layout="parallel", bias=True)


def relu_stack() -> nn.Module:
    """Two layers behind norms without gains: one scale for all that write into the stream."""
    feed = partial(FeedForward, 4, 3, F.relu, bias=False)
    return Transformer(partial(Attention, 4, 2, 2), feed, partial(rms_norm, 4, gain=False), layers=2)


def convnext() -> nn.Module:
    return nn.Sequential(conv(2, 3, 2), ConvNeXt(3, 4), *head(3, 4))


def group_net(*activation: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(3, 6), nn.GroupNorm(2, 6, eps=EPS), *activation, nn.Linear(6, 5))


def group_convnet(*activation: nn.Module) -> nn.Module:
    return nn.Sequential(conv(2, 4, 2), nn.GroupNorm(2, 4, eps=EPS), *activation, conv(4, 5, 2), nn.Flatten())


def instance_convnet() -> nn.Module:
    norm = nn.InstanceNorm1d(3, eps=EPS, affine=True)
    return nn.Sequential(nn.Conv1d(2, 3, 2), norm, nn.ReLU(), nn.Conv1d(3, 2, 2), nn.Flatten())


def squeezed() -> nn.Module:
    return nn.Sequential(conv(2, 4, 2), nn.ReLU(), SqueezeExcitation(4, 3), conv(4, 3, 2), nn.Flatten())


def low_rank(dropout: float = 0.0) -> nn.Module:
    return nn.Sequential(Lora(4, 2, dropout), nn.ReLU(), Lora(4, 2, dropout))


def weight_normed(dim: int, last: Callable[..., nn.Module] = nn.Linear) -> nn.Module:
    return nn.Sequential(WeightNorm(3, 4, dim), nn.ReLU(), last(4, 2))


def logit_scale() -> nn.Module:
    return Block(
        lambda s, x: s.scale * s.last(F.relu(s.first(x))),
        first=nn.Linear(3, 4),
        last=nn.Linear(4, 5, bias=False),
        scale=nn.Parameter(torch.tensor([1.3])),
    )


PRODUCT = "the product P of two tables is a table to its reader: P <- P X, so A <- A + (P X - P) / B, not affine"
COMPUTED = "indices computed from others: that e -> e + 1 is one to one is not known, so what depends on e is not undone at e + 1"
POST = "x <- x + 1 (u x) in front of a norm that the readers beside it undo, where x is made by a gain: one u"

ATTENTION: Final = partial(Case, shape=(5, 4))
TOKENS: Final = partial(Case, shape=(4,), tokens=VOCABULARY)
FEW_TOKENS: Final = partial(Case, shape=(4,), tokens=7)


def routed(*options: Any, **more: Any) -> Callable[[], nn.Module]:
    """Three experts of two hidden units on four features."""
    return partial(Routed, 4, 2, 3, *options, **more)


def tables(name: str, count: int = 2, *, out: int = 0) -> Callable[[], nn.Module]:
    return partial(Tables, TABLES[name], 7, 3, count, head=out)


BLOCK_CASES: Final[tuple[Case, ...]] = (
    # attention, alone
    ATTENTION("attention_fused", partial(Attention, 4), dimension=4 * 4),
    ATTENTION("attention_with_biases", partial(Attention, 4, bias=True), dimension=4 * 4 + 4 + 4),
    ATTENTION("attention_grouped", partial(Attention, 4, 4, shared=2), dimension=4 * 4),
    ATTENTION("attention_multi_query", partial(Attention, 4, shared=1), dimension=2 * 4),
    ATTENTION("attention_latent", partial(LatentAttention, 4, 2, 2, 2), dimension=4 + 4 * 4),
    ATTENTION("attention_normed", partial(Attention, 4, norm="plain"), dimension=2 * 4 + 2 * (2 + 1)),
    ATTENTION("attention_normed_with_gains", partial(Attention, 4, norm="gain"), dimension=2 * 4 + 2 * 2 + 2),
    ATTENTION("attention_rotary", partial(Attention, 4, 2, 4, rope="halves"), dimension=2 * 16 + 4 + 4),
    ATTENTION("attention_rotary_interleaved", partial(Attention, 4, 2, 4, rope="interleaved"), dimension=2 * 16 + 4 + 4),
    ATTENTION("attention_rotary_with_biases", partial(Attention, 4, 2, 4, rope="halves", bias=True), dimension=2 * 16 + 4 + 4 + 8),
    ATTENTION("attention_rotary_normed", partial(Attention, 4, 2, 4, rope="halves", norm="gain"), dimension=2 * 16 + 4 + 2),
    ATTENTION("attention_written_out", partial(Attention, 4, scores="softmax", bias=True), dimension=16 + 4 + 4),
    ATTENTION("attention_sigmoid", partial(Attention, 4, scores="sigmoid", bias=True), dimension=16),
    ATTENTION("attention_capped", partial(Attention, 4, scores="softcap", bias=True), dimension=16 + 4),
    ATTENTION("attention_alibi", partial(Attention, 4, scores="alibi"), dimension=16),
    ATTENTION("attention_relative", partial(Attention, 4, scores="relative", positions=5, causal=False), dimension=16 + 10),
    ATTENTION(
        "attention_relative_causal",
        partial(Attention, 4, scores="relative", positions=5),
        dimension=16 + 10,
        missing=20,
        why="entries of the table that the causal mask hides are read by nobody",
    ),
    ATTENTION("attention_linear", partial(Attention, 4, scores="linear"), dimension=16 + 2),
    # language models
    TOKENS("llama", llama, dimension=28),
    TOKENS("llama_tied", partial(llama, tied=True), dimension=18),
    TOKENS("llama_cross_entropy", llama, dimension=28 + 4, loss="cross_entropy"),
    TOKENS("llama_normed_queries", partial(llama, norm="gain"), dimension=30),
    TOKENS("llama_without_gains", partial(llama, gain=False), dimension=16),
    TOKENS("llama_without_gains_tied", partial(llama, gain=False, tied=True), dimension=15),
    TOKENS("llama_of_two_layers", partial(llama, 2), dimension=45),
    TOKENS("gpt2", gpt2, dimension=96),
    TOKENS("gpt2_tied", partial(gpt2, tied=True), dimension=69),
    TOKENS("gpt2_cross_entropy", gpt2, dimension=96 + 4, loss="cross_entropy"),
    TOKENS("gpt2_tied_cross_entropy", partial(gpt2, tied=True), dimension=69 + 4, loss="cross_entropy"),
    TOKENS("post_norm_layer_norm", partial(post_norm, layer_norm, bias=True), dimension=69, missing=1, why=POST),
    TOKENS("post_norm_rms_norm", partial(post_norm, rms_norm, bias=False), dimension=22),
    TOKENS("parallel_without_biases", palm, dimension=64),
    TOKENS("parallel_with_biases", gptj, dimension=71),
    TOKENS("relu_stack_without_gains", relu_stack, dimension=45),
    Case("lstm", partial(Recurrent, nn.LSTM, 9, 3, 2), (4,), 9 + 3 + 8, tokens=9),
    Case("gru", partial(Recurrent, nn.GRU, 9, 3, 2), (4,), 9 + 3 + 4, tokens=9),
    Case("rnn", partial(Recurrent, nn.RNN, 9, 2, 3), (4,), 4 + 2 + 3, tokens=9),
    # images
    Case("vision_transformer", partial(VisionTransformer, token=False), (2, 4, 4), 95),
    Case("vision_transformer_with_class_token", partial(VisionTransformer, token=True), (2, 4, 4), 100),
    Case("convnext", convnext, (2, 6, 6), 21),
    Case("squeeze_and_excitation", squeezed, (2, 4, 4), 4),
    Case("group_norm", partial(group_net, nn.ReLU()), (3,), 16),
    Case("group_norm_linear", group_net, (3,), 34),
    Case("group_norm_convolution", partial(group_convnet, nn.ReLU()), (2, 5, 5), 8),
    Case("group_norm_convolution_linear", group_convnet, (2, 5, 5), 12),
    Case("instance_norm", instance_convnet, (2, 7), 9),
    # feed-forward layers
    Case("geglu", partial(Gated, 4, 3, F.gelu, bias=True), (4,), 3),
    Case("reglu", partial(Gated, 4, 3, F.relu), (4,), 6),
    Case("low_rank_on_frozen", low_rank, (4,), 2 * 4),
    Case("low_rank_on_frozen_dropout", partial(low_rank, NOISE), (4,), 2 * 4),
    Case("weight_norm_of_rows", partial(weight_normed, 0), (3,), 4 + 4),
    Case("weight_norm_of_columns", partial(weight_normed, 1), (3,), 3 + 1, 3, "W <- D W, its columns' lengths along: not affine"),
    Case(
        "weight_norm_twice",
        partial(weight_normed, 0, lambda i, o: WeightNorm(i, o, 0)),
        (3,),
        4 + 2 + 1,
        3,
        "v <- v D, g <- g |v D| / |v| behind a unit: not affine",
    ),
    Case("dynamic_tanh", lambda: nn.Sequential(nn.Linear(3, 4, bias=False), DynamicTanh(4), nn.Linear(4, 3)), (3,), 1 + 4 + 4),
    Case("experts", partial(Experts, 4, 2, 3), (4,), 6 + 4),
    Case("experts_stacked", partial(StackedExperts, 4, 2, 3), (4,), 10),
    # weights that indices choose: 3 * 2 hidden units, and the router's shift, which its softmax does not see
    Case("routed_top_1", routed(1), (4,), 6 + 4),
    Case("routed_top_1_gated", routed(1, F.silu, gated=True), (4,), 6 + 4),
    Case("routed_top_2_with_biases", routed(2, bias=True), (4,), 6 + 4),
    Case("routed_top_2_gated_with_biases", routed(2, F.silu, gated=True, bias=True), (4,), 6 + 4),
    Case("routed_gelu", routed(2, F.gelu), (4,), 4),
    Case("routed_beside_a_shared_expert", routed(2, shared=2), (4,), 6 + 4 + 2),
    Case("routed_linear", routed(2, nn.Identity()), (4,), 3 * 4 + 4),
    Case("routed_linear_with_biases", routed(2, nn.Identity(), bias=True), (4,), 3 * 4 + 6 + 4),
    Case("routed_by_index_select", routed(2, picks="select"), (4,), 6 + 4),
    Case("routed_by_gather", routed(2, picks="gather"), (4,), 6 + 4),
    Case("routed_by_embedding", routed(2, picks="embedding"), (4,), 6 + 4),
    Case("routed_by_views_of_one_index", routed(2, picks="several"), (4,), 6 + 4),
    Case("routed_to_others_behind", routed(2, picks="turned"), (4,), 2 + 4),
    Case("routed_to_sorted_behind", routed(2, picks="sorted"), (4,), 2 + 4),
    Case("routed_to_the_next_behind", routed(2, picks="next"), (4,), 2 + 4, 4, COMPUTED),
    FEW_TOKENS("tables_multiplied", tables("product"), dimension=7 * 3),
    FEW_TOKENS("tables_multiplied_with_head", tables("product", out=5), dimension=7 * 3 + 3, missing=6, why=PRODUCT),
    FEW_TOKENS("tables_added", tables("sum", out=5), dimension=7 * 3 + 9),
    FEW_TOKENS("table_squared", tables("square", 1), dimension=0),
    FEW_TOKENS("tables_of_neighbours", tables("neighbours"), dimension=3),
    FEW_TOKENS("tables_averaged", tables("mean", 3), dimension=7 * 3 + 3),
    FEW_TOKENS("table_normed", tables("normed", 1, out=5), dimension=7 + 7 + 1 + 5),
    Case("linear_recurrence", partial(Unrolled, 3, 3, lambda h: h), (3, 3), 9),
    Case("relu_recurrence", partial(Unrolled, 3, 3, F.relu), (3, 3), 3),
    Case("logit_scale_cross_entropy", logit_scale, (3,), 4 + 1 + 4, loss="cross_entropy"),
)
