"""One row for every operation: how torch computes it, for the oracle to judge the rule by, and by how much the rule falls short."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from support.attention import rotary
from support.blocks import weight_norm
from torch import Tensor
from torch.nn import functional as F

EPS: Final = 1e-30


@dataclass(frozen=True, slots=True)
class Row:
    """One operation: how torch computes it, and by how much its rule is known to fall short of the truth (`why`)."""

    operation: str
    function: Callable[..., Tensor]
    shapes: dict[str, tuple[int, ...]]
    attributes: dict[str, Any] = field(default_factory=dict)
    scales_missing: int = 0
    shifts_missing: int = 0
    matrices_missing: int | None = None  # None: not asked, the operation changes its channels
    axis: int = 1  # of the channels
    why: str = ""

    @property
    def result(self) -> tuple[int, ...]:
        """Shape of the result."""
        return tuple(self.function(*(torch.randn(shape, dtype=torch.float64) for shape in self.shapes.values())).shape)


def mask(*shape: int) -> Tensor:
    return 0.5 + torch.rand(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def batch_norm(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    return F.batch_norm(x, None, None, weight, bias, training=True, eps=EPS)


def frozen_norm(x: Tensor, weight: Tensor | None = None) -> Tensor:
    mean, variance = torch.tensor([0.3, -0.7, 0.5], dtype=torch.float64), torch.tensor([1.3, 0.7, 2.0], dtype=torch.float64)
    return F.batch_norm(x, mean, variance, weight, None, training=False)


def layer_norm(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], weight, bias, EPS)


def rms_norm(x: Tensor, weight: Tensor | None = None) -> Tensor:
    return F.rms_norm(x, x.shape[-1:], weight, EPS)


def group_norm(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    return F.group_norm(x, 2, weight, bias, EPS)


def attention(**options: Any) -> Callable[..., Tensor]:
    return lambda q, k, v, mask=None: F.scaled_dot_product_attention(q, k, v, mask, **options)


def interleaved(x: Tensor) -> Tensor:
    return rotary(x, "interleaved")


def lstm(x: Tensor, w: Tensor, u: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """The states of one layer, shape (time, batch, hidden), from zero."""
    h, memory, out = torch.zeros(x.shape[1], u.shape[1]), torch.zeros(x.shape[1], u.shape[1]), []
    for step in x:
        i, f, g, o = (F.linear(step, w, b) + F.linear(h, u, c)).chunk(4, -1)
        memory = f.sigmoid() * memory + i.sigmoid() * g.tanh()
        h = o.sigmoid() * memory.tanh()
        out.append(h)
    return torch.stack(out)


def gru(x: Tensor, w: Tensor, u: Tensor, b: Tensor, c: Tensor) -> Tensor:
    h, out = torch.zeros(x.shape[1], u.shape[1]), []
    for step in x:
        (r, z, n), (s, y, m) = F.linear(step, w, b).chunk(3, -1), F.linear(h, u, c).chunk(3, -1)
        update = (z + y).sigmoid()
        h = (1 - update) * (n + (r + s).sigmoid() * m).tanh() + update * h
        out.append(h)
    return torch.stack(out)


def plain(x: Tensor, w: Tensor, u: Tensor, b: Tensor, c: Tensor) -> Tensor:
    h, out = torch.zeros(x.shape[1], u.shape[1]), []
    for step in x:
        h = (F.linear(step, w, b) + F.linear(h, u, c)).tanh()
        out.append(h)
    return torch.stack(out)


FLAT, IMAGE = (2, 3), (2, 3, 4)
LINEAR = "a linear operation passes every shift that is summed away; the rule carries those that are constant along what is summed"
GEOMETRIC = "a scale that grows geometrically along the positions, undone along the kernel: not a function of an index class"
UNREAD = "entries that nothing reads are counted once, as shifts"
NOT_CARRIED = "the rule carries no shift through it"
ONE_MASK = "for one choice of entries; not for all"
ONE_BATCH = "for one batch of rows that are read; not for all"
ALIKE = "positions are moved about: what is the same for all of them is carried"
UNTURNED = "no shift is carried, though the operation is linear; the first position is turned by zero, so its pairs bear two scales"
LOWERED = "minus infinity, which has no scale; a number so low that it stands for it has one"
TARGET = torch.tensor([1, 0, 2])
TOKENS = torch.tensor([[0, 2, 1], [2, 3, 3]])
CHOICE = torch.tensor([[True, False, True], [False, True, False]])
PICKED = torch.tensor([[True, False, True], [False, True, True], [True, True, False]])
HEAD, KEYS = (1, 3, 2), (1, 4, 2)
RECURRENT = {"input": (2, 1, 2), "weight_ih": (8, 2), "weight_hh": (8, 2), "bias_ih": (8,), "bias_hh": (8,)}
PLAIN = {"input": (2, 1, 2), "weight_ih": (2, 2), "weight_hh": (2, 2), "bias_ih": (2,), "bias_hh": (2,)}
GATED = {"input": (2, 1, 2), "weight_ih": (6, 2), "weight_hh": (6, 2), "bias_ih": (6,), "bias_hh": (6,)}

ROWS: Final[tuple[Row, ...]] = (
    Row("linear", F.linear, {"input": FLAT, "weight": (4, 3), "bias": (4,)}),
    Row("linear", F.linear, {"input": IMAGE, "weight": (2, 4)}),
    Row("convolution", F.conv1d, {"input": (2, 2, 4), "weight": (3, 2, 2), "bias": (3,)}),
    Row("convolution", lambda x, w: F.conv1d(x, w, groups=2), {"input": (2, 4, 3), "weight": (4, 2, 2)}, {"groups": 2}, 2, why=GEOMETRIC),
    Row(
        "convolution",
        lambda x, w: F.conv1d(x, w, groups=3, padding=1),
        {"input": (*FLAT, 3), "weight": (6, 1, 2)},
        {"groups": 3},
        3,
        why=GEOMETRIC,
    ),
    Row("transposed_convolution", F.conv_transpose1d, {"input": (2, 2, 3), "weight": (2, 3, 2), "bias": (3,)}),
    Row(
        "transposed_convolution",
        lambda x, w: F.conv_transpose1d(x, w, groups=2),
        {"input": (2, 2, 3), "weight": (2, 2, 2)},
        {"groups": 2},
        2,
        why=GEOMETRIC,
    ),
    Row("add", torch.add, {"input": FLAT, "other": FLAT}),
    Row("add", torch.add, {"input": IMAGE, "other": (3, 1)}),
    Row("subtract", torch.sub, {"input": FLAT, "other": (3,)}),
    Row("multiply", torch.mul, {"input": FLAT, "other": FLAT}),
    Row("multiply", torch.mul, {"input": FLAT, "other": (2, 1)}),
    Row("matmul", torch.matmul, {"input": (2, 3, 2), "other": (2, 2, 3)}),
    Row("matmul", torch.matmul, {"input": (2, 3, 2), "other": (2, 3)}),
    Row("matmul", torch.matmul, {"input": (3, 2), "other": (2,)}),
    Row("matmul", torch.matmul, {"input": (2,), "other": (3, 2, 2)}),
    Row("matmul", torch.matmul, {"input": (3,), "other": (3,)}),
    Row("divide", torch.div, {"input": FLAT, "other": FLAT}),
    Row("divide", torch.div, {"input": FLAT, "other": (2, 1)}),
    Row("einsum", lambda x, w: torch.einsum("bi,oi->bo", x, w), {"0": FLAT, "1": (2, 3)}, {"equation": "bi,oi->bo"}),
    Row("einsum", lambda q, k: torch.einsum("bqe,bke->bqk", q, k), {"0": HEAD, "1": KEYS}, {"equation": "bqe,bke->bqk"}),
    Row(
        "einsum",
        lambda x, y, w: torch.einsum("bi,bj,oij->bo", x, y, w),
        {"0": (2, 2), "1": (2, 2), "2": (3, 2, 2)},
        {"equation": "bi,bj,oij->bo"},
    ),
    Row("embedding", lambda w: F.embedding(TOKENS, w), {"weight": (4, 3)}, {}, 9, 9, why=ONE_BATCH),
    Row("embedding", lambda w: F.embedding(TOKENS, w, 0), {"weight": (4, 3)}, {"padding_idx": 0}, 12, 12, why=ONE_BATCH),
    Row("index_select", lambda x: x[:, TOKENS[0]], {"input": (2, 4)}, {"dim": 1}, 6, 6, why=ONE_BATCH),
    Row("index_select", lambda x: x[TOKENS], {"input": (4, 3)}, {"dim": 0}, 9, 9, 0, why=ONE_BATCH),
    Row("gather", lambda x: x.gather(1, TOKENS), {"input": (2, 4)}, {"dim": 1}, 6, 6, why=ONE_BATCH),
    Row("negate", torch.neg, {"input": FLAT}, matrices_missing=0),
    Row("scale", lambda x: 0.7 * x, {"input": FLAT}, {"factor": 0.7}, matrices_missing=0),
    Row("sum", lambda x: x.sum(2), {"input": IMAGE}, {"dims": [2]}, shifts_missing=18, matrices_missing=0, why=LINEAR),
    Row("mean", lambda x: x.mean(2), {"input": IMAGE}, {"dims": [2]}, shifts_missing=18, matrices_missing=0, why=LINEAR),
    Row(
        "mean",
        lambda x: x.mean((0, 2), keepdim=True),
        {"input": IMAGE},
        {"dims": [0, 2]},
        shifts_missing=21,
        matrices_missing=0,
        why=LINEAR,
    ),
    Row("relu", torch.relu, {"input": FLAT}, matrices_missing=0),
    Row("leaky_relu", F.leaky_relu, {"input": FLAT}, matrices_missing=0),
    Row("prelu", F.prelu, {"input": FLAT, "weight": (1,)}),
    Row("prelu", F.prelu, {"input": FLAT, "weight": (3,)}),
    Row("absolute", torch.abs, {"input": FLAT}, matrices_missing=0),
    Row("power", lambda x: x**3, {"input": FLAT}, {"exponent": 3}, matrices_missing=0),
    Row(
        "dropout",
        lambda x: x * mask(*FLAT),
        {"input": FLAT},
        {"p": 0.5},
        shifts_missing=6,
        matrices_missing=0,
        why="for one mask; not for all",
    ),
    Row("dropout", lambda x: 1.0 * x, {"input": FLAT}, {"p": 0}, matrices_missing=0),
    Row("masked", lambda x: x.masked_fill(CHOICE, 0.0), {"input": FLAT}, {"value": 0.0}, 0, 6, why=ONE_MASK),
    Row("masked", lambda x: x.masked_fill(CHOICE, -1e9), {"input": FLAT}, {"value": -1e9}, 6, why=LOWERED),
    Row("masked", lambda x: x.masked_fill(CHOICE, 0.5), {"input": FLAT}, {"value": 0.5}, 6, 6, why=ONE_MASK),
    Row("maximum", torch.maximum, {"input": FLAT, "other": FLAT}, {}, 0, 6, 0, why=NOT_CARRIED),
    Row("minimum", torch.minimum, {"input": FLAT, "other": FLAT}, {}, 0, 6, 0, why=NOT_CARRIED),
    Row("select", lambda x, y: torch.where(PICKED, x, y), {"input": (3, 3), "other": (3, 3)}, {}, 9, 18, 0, why=ONE_MASK),
    Row("exponential", torch.exp, {"input": FLAT}, matrices_missing=0),
    Row("logarithm", lambda x: x.abs().log(), {"input": FLAT}, matrices_missing=0),
    Row("sine", torch.sin, {"input": FLAT}, matrices_missing=0),
    Row("cosine", torch.cos, {"input": FLAT}, matrices_missing=0),
    Row("error_function", torch.erf, {"input": FLAT}, matrices_missing=0),
    Row("hard_sigmoid", F.hardsigmoid, {"input": FLAT}, matrices_missing=0),
    Row("hard_swish", F.hardswish, {"input": FLAT}, matrices_missing=0),
    Row("elu", F.elu, {"input": FLAT}, matrices_missing=0),
    Row("mish", F.mish, {"input": FLAT}, matrices_missing=0),
    Row("clamp", lambda x: x.clamp(-1.0, 2.0), {"input": FLAT}, {"min": -1.0, "max": 2.0}, matrices_missing=0),
    Row("relu6", F.relu6, {"input": FLAT}, matrices_missing=0),
    Row("tanh", torch.tanh, {"input": FLAT}, matrices_missing=0),
    Row("gelu", F.gelu, {"input": FLAT}, matrices_missing=0),
    Row("silu", F.silu, {"input": FLAT}, matrices_missing=0),
    Row("sigmoid", torch.sigmoid, {"input": FLAT}, matrices_missing=0),
    Row("softplus", F.softplus, {"input": FLAT}, matrices_missing=0),
    Row("max_pool", lambda x: F.max_pool1d(x, 2, 1), {"input": IMAGE}, {"dims": 1}, matrices_missing=0),
    Row("max_pool", lambda x: F.max_pool1d(x, 2, 1, padding=1), {"input": IMAGE}, {"dims": 1}, matrices_missing=0),
    Row("average_pool", lambda x: F.avg_pool1d(x, 2, 1), {"input": IMAGE}, {"dims": 1}, shifts_missing=18, matrices_missing=0, why=LINEAR),
    Row(
        "average_pool",
        lambda x: F.avg_pool1d(x, 2, 1, padding=1),
        {"input": IMAGE},
        {"dims": 1, "uniform": False},
        shifts_missing=24,
        matrices_missing=0,
        why=NOT_CARRIED,
    ),
    Row(
        "adaptive_average_pool",
        lambda x: F.adaptive_avg_pool1d(x, 3),
        {"input": IMAGE},
        {"dims": 1},
        shifts_missing=18,
        matrices_missing=0,
        why=LINEAR,
    ),
    Row("adaptive_max_pool", lambda x: F.adaptive_max_pool1d(x, 3), {"input": IMAGE}, {"dims": 1}, matrices_missing=0),
    Row("rearrange", lambda x: x.roll(1, 2), {"input": IMAGE}, {"dims": [2], "uniform": True}, 18, 18, 0, why=ALIKE),
    Row("rearrange", lambda x: x.flip(2), {"input": IMAGE}, {"dims": [2], "uniform": True}, 18, 18, 0, why=ALIKE),
    Row("rearrange", lambda x: F.pad(x, (1, 0)), {"input": IMAGE}, {"dims": [2], "uniform": False}, 18, 24, 0, why=ALIKE),
    Row("batch_norm", batch_norm, {"input": (4, 3), "weight": (3,), "bias": (3,)}, {"eps": EPS}),
    Row("batch_norm", batch_norm, {"input": (4, 3)}, {"eps": EPS}, matrices_missing=0),
    Row("batch_norm", batch_norm, {"input": IMAGE, "weight": (3,)}, {"eps": EPS}),
    Row("batch_norm", frozen_norm, {"input": (4, 3), "weight": (3,)}, {"training": False}),
    Row("batch_norm", frozen_norm, {"input": (4, 3)}, {"training": False}, shifts_missing=12, matrices_missing=6, why=NOT_CARRIED),
    Row("layer_norm", layer_norm, {"input": (2, 4), "weight": (4,), "bias": (4,)}, {"eps": EPS}),
    Row("layer_norm", layer_norm, {"input": (2, 4)}, {"eps": EPS}, matrices_missing=0),
    Row("layer_norm", layer_norm, {"input": (2, 3, 4)}, {"eps": EPS}, matrices_missing=0, axis=2),
    Row("rms_norm", rms_norm, {"input": (2, 4), "weight": (4,)}, {"eps": EPS}),
    Row("rms_norm", rms_norm, {"input": (2, 4)}, {"eps": EPS}, matrices_missing=0),
    Row("group_norm", group_norm, {"input": (2, 6), "weight": (6,), "bias": (6,)}, {"eps": EPS, "groups": 2}),
    Row("group_norm", group_norm, {"input": (2, 4, 3)}, {"eps": EPS, "groups": 2}, matrices_missing=0),
    Row("group_norm", group_norm, {"input": (2, 8)}, {"eps": EPS, "groups": 2}, matrices_missing=0),
    Row("instance_norm", lambda x: F.instance_norm(x, eps=EPS), {"input": IMAGE}, {"eps": EPS}, matrices_missing=0),
    Row("unit_norm", lambda x: F.normalize(x, dim=1, eps=EPS), {"input": FLAT}, {"dim": 1}, matrices_missing=0),
    Row("weight_norm", lambda v, g: weight_norm(v, g, 0), {"direction": (4, 3), "magnitude": (4, 1)}, {"dim": 0}),
    Row("weight_norm", lambda v, g: weight_norm(v, g, 1), {"direction": (4, 3), "magnitude": (1, 3)}, {"dim": 1}),
    Row("attention", attention(), {"query": HEAD, "key": KEYS, "value": KEYS}, matrices_missing=0, axis=2),
    Row(
        "attention",
        attention(is_causal=True),
        {"query": KEYS, "key": KEYS, "value": KEYS},
        {"causal": True},
        2,
        2,
        0,
        axis=2,
        why="the first position attends to nothing but itself: its query is not read",
    ),
    Row(
        "attention",
        attention(enable_gqa=True),
        {"query": (1, 4, 2, 2), "key": (1, 2, 3, 2), "value": (1, 2, 3, 2)},
        {"grouped": True},
    ),
    Row("attention", attention(), {"query": HEAD, "key": KEYS, "value": KEYS, "mask": (3, 4)}),
    Row("rotary", rotary, {"input": (1, 3, 4)}, {"pairing": "halves"}, 2, 12, 0, axis=2, why=UNTURNED),
    Row("rotary", interleaved, {"input": (1, 3, 4)}, {"pairing": "interleaved"}, 2, 12, 0, axis=2, why=UNTURNED),
    Row("lstm_layer", lstm, RECURRENT),
    Row("gru_layer", gru, GATED),
    Row("rnn_layer", plain, PLAIN),
    Row("softmax", lambda x: x.softmax(1), {"input": FLAT}, {"dim": 1}, matrices_missing=0),
    Row("softmax", lambda x: x.softmax(2), {"input": IMAGE}, {"dim": -1}, matrices_missing=0),
    Row("log_softmax", lambda x: x.log_softmax(1), {"input": FLAT}, {"dim": 1}, matrices_missing=0),
    Row("identity", lambda x: x * 1.0, {"input": FLAT}, matrices_missing=0),
    Row("reshape", lambda x: x.reshape(2, 12), {"input": IMAGE}),
    Row("reshape", lambda x: x.reshape(2, 2, 6), {"input": (2, 12)}),
    Row("permute", lambda x: x.permute(2, 0, 1), {"input": IMAGE}, {"dims": [2, 0, 1]}),
    Row("expand", lambda x: x.expand(2, 4, 3), {"input": (2, 1, 3)}),
    Row("slice", lambda x: x[:, 1:3], {"input": (2, 4)}, {"dim": 1, "start": 1, "length": 2}, 4, why=UNREAD),
    Row("concatenate", lambda x, y: torch.cat([x, y], 1), {"0": FLAT, "1": (2, 2)}, {"dim": 1}),
    Row("concatenate", lambda x, y: torch.cat([x, y], 0), {"0": FLAT, "1": (1, 3)}, {"dim": 0}),
    Row("cross_entropy", lambda x: F.cross_entropy(x, TARGET).reshape(1), {"input": (3, 4)}),
    Row("cross_entropy", lambda x: F.cross_entropy(x, TARGET % 2, label_smoothing=0.1).reshape(1), {"input": (3, 4)}),
    Row("mean_square", lambda x: F.mse_loss(x, torch.ones_like(x)).reshape(1), {"input": FLAT}),
)
