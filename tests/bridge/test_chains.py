"""Chains of operations that are one: recognised in the ways models write them, and not where a sign, an axis or a table is another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.cases import Block
from support.evaluation import evaluate
from torch import Tensor, nn
from torch.nn import functional as F

from noetherflow.bridge.trace import trace
from noetherflow.symbolic.graph import ArchitectureGraph

EPS = 1e-3


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape, dtype=torch.float64))


def names(graph: ArchitectureGraph) -> list[str]:
    ends = ("input", "output", "constant", "identity")
    return [d["operation"] for d in (graph.nodes[n] for n in graph.topological_order()) if d["operation"] not in ends]


# --- normalisation


def root(x: Tensor, dims: Any = -1) -> Tensor:
    return torch.rsqrt(x.pow(2).mean(dims, keepdim=True) + EPS)


def by_hand(x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / torch.sqrt(centred.pow(2).mean(-1, keepdim=True) + EPS)


NORMS: dict[str, tuple[Callable[[Any, Tensor], Tensor], list[str], dict[str, Any]]] = {
    "as Llama": (lambda s, x: s.g * (x.double() * root(x.double())).to(x.dtype), ["rms_norm"], {"dims": 1, "eps": EPS}),
    "as Gemma": (lambda s, x: x * root(x) * (1.0 + s.g), ["rms_norm", "add", "multiply"], {"dims": 1, "eps": EPS}),
    "a quotient of squares": (lambda s, x: x / (EPS + (x * x).mean(-1, True)).sqrt(), ["rms_norm"], {"dims": 1, "eps": EPS}),
    "a power": (lambda s, x: x * ((x**2).mean(-1, True) + EPS) ** -0.5, ["rms_norm"], {"dims": 1, "eps": EPS}),
    "an axis put back": (lambda s, x: x * torch.rsqrt(x.square().mean(-1).unsqueeze(-1) + EPS), ["rms_norm"], {"dims": 1, "eps": EPS}),
    "two axes": (lambda s, x: s.g2 * (x * root(x, (-2, -1))), ["rms_norm"], {"dims": 2, "eps": EPS}),
    "without eps": (lambda s, x: x * torch.rsqrt(x.square().mean(-1, True)), ["rms_norm"], {"dims": 1, "eps": 0.0}),
    "of a parameter": (lambda s, x: x @ (s.w * root(s.w)), ["parameter", "rms_norm", "matmul"], {"dims": 1, "eps": EPS}),
    "centred": (lambda s, x: by_hand(x), ["layer_norm"], {"dims": 1, "eps": EPS}),
    "centred, with gain and shift": (lambda s, x: by_hand(x) * s.g + s.h, ["layer_norm"], {"dims": 1, "eps": EPS}),
    "by its variance": (
        lambda s, x: (x - x.mean(-1, keepdim=True)) * torch.rsqrt(x.var(-1, correction=0, keepdim=True) + EPS),
        ["layer_norm"],
        {"dims": 1, "eps": EPS},
    ),
    "unit length": (lambda s, x: F.normalize(x, dim=1, eps=EPS), ["unit_norm"], {"dim": 1, "eps": EPS}),
    "divided by its length": (lambda s, x: x / x.norm(dim=-1, keepdim=True), ["unit_norm"], {"dim": 2, "eps": 0.0}),
}


@pytest.mark.parametrize("name", list(NORMS))
def test_a_normalisation_is_recognised(name: str) -> None:
    function, expected, attributes = NORMS[name]
    model = Block(function, g=parameter(6), h=parameter(6), g2=parameter(4, 6), w=parameter(6, 3))
    x = torch.randn(2, 4, 6, dtype=torch.float64)
    graph = trace(model, x)
    assert names(graph) == expected
    (found,) = (d for _, d in graph.nodes(data=True) if d["operation"].endswith("_norm"))
    assert found["attributes"] == attributes
    torch.testing.assert_close(evaluate(graph, model, x)["output"], model(x), rtol=1e-12, atol=1e-12)


def test_gain_and_shift_belong_to_the_norm() -> None:
    model = Block(lambda s, x: by_hand(x) * s.g + s.h, g=parameter(6), h=parameter(6))
    graph = trace(model, torch.randn(2, 4, 6, dtype=torch.float64))
    (found,) = (d for _, d in graph.nodes(data=True) if d["operation"] == "layer_norm")
    assert found["parameters"] == {"weight": "g", "bias": "h"}


# Siblings: another axis, power, sum or tensor; an eps that learns; a mean that lost its axis and meets the wrong one.
NOT_NORMS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "a mean over another axis": lambda s, x: x * root(x, 1),
    "a mean over the first and last axes": lambda s, x: x * root(x, (0, 2)),
    "a mean over another axis, put last": lambda s, x: x * torch.rsqrt(x.pow(2).mean(1).unsqueeze(-1) + EPS),
    "a mean that lost its axis": lambda s, x: x * torch.rsqrt(x.pow(2).mean(-1) + EPS),
    "a mean of cubes": lambda s, x: x * torch.rsqrt(x.pow(3).mean(-1, True) + EPS),
    "a mean of values": lambda s, x: x * torch.rsqrt(x.mean(-1, True) + EPS),
    "a sum": lambda s, x: x * torch.rsqrt(x.pow(2).sum(-1, True) + EPS),
    "another root": lambda s, x: x * (x.pow(2).mean(-1, True) + EPS) ** -0.25,
    "a product with the root": lambda s, x: x * torch.sqrt(x.pow(2).mean(-1, True) + EPS),
    "the root of another tensor": lambda s, x: x * root(x.tanh()),
    "a product of two tensors": lambda s, x: x * torch.rsqrt((x * x.tanh()).mean(-1, True) + EPS),
    "an eps that learns": lambda s, x: x * torch.rsqrt(x.pow(2).mean(-1, True) + s.g.exp()),
    "an eps beside the root": lambda s, x: x / (torch.sqrt(x.pow(2).mean(-1, True)) + EPS),
    "a length of two axes": lambda s, x: x / torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True),
    "a length that lost its axis": lambda s, x: x / torch.linalg.vector_norm(x, dim=1),
    "a bounded length": lambda s, x: x / torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp(0.1, 9.0),
    "another dropout in the square": lambda s, x: F.dropout(x, 0.5) * root(F.dropout(x, 0.5)),
}


@pytest.mark.parametrize("name", list(NOT_NORMS))
def test_what_only_looks_like_a_normalisation_stays_its_operations(name: str) -> None:
    x = torch.randn(6, 6, 6, dtype=torch.float64)
    found = names(trace(Block(NOT_NORMS[name], g=parameter(1)), x))
    assert not {"rms_norm", "layer_norm", "unit_norm"} & set(found)


class Two(nn.Module):
    """A function of two inputs."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x * root(y)


def test_two_inputs_and_two_buffers_are_two_tensors() -> None:
    x = torch.randn(4, 6, dtype=torch.float64)
    assert "rms_norm" not in names(trace(Two(), x, x.clone()))
    for second, expected in (("a", True), ("b", False)):
        model = Block(lambda s, x, second=second: (x * s.a) * root(x * getattr(s, second)))
        model.register_buffer("a", torch.randn(6, dtype=torch.float64))
        model.register_buffer("b", torch.randn(6, dtype=torch.float64))
        assert ("rms_norm" in names(trace(model, x))) is expected


# RMS of what was centred along another axis, or by another tensor's mean, is not LayerNorm; a gain of another size is not its own
NEARLY: dict[str, tuple[Callable[[Any, Tensor], Tensor], list[str]]] = {
    "centred along another axis": (
        lambda s, x: (y := x - x.mean(1, keepdim=True)) * root(y),
        ["mean", "subtract", "rms_norm"],
    ),
    "centred by another mean": (
        lambda s, x: (y := x - x.tanh().mean(-1, keepdim=True)) * root(y),
        ["tanh", "mean", "subtract", "rms_norm"],
    ),
    "added to its mean": (lambda s, x: (y := x + x.mean(-1, keepdim=True)) * root(y), ["mean", "add", "rms_norm"]),
    "a single gain": (lambda s, x: x * root(x) * s.one, ["rms_norm", "multiply"]),
    "a gain along another axis": (lambda s, x: x * root(x) * s.column, ["rms_norm", "multiply"]),
    "a norm that is read twice": (lambda s, x: (y := x * root(x)) * s.g + y, ["rms_norm", "multiply", "add"]),
    "a shifted RMS norm": (lambda s, x: x * root(x) * s.g + s.g, ["rms_norm", "add"]),
}


@pytest.mark.parametrize("name", list(NEARLY))
def test_only_what_belongs_to_a_norm_is_taken_into_it(name: str) -> None:
    function, expected = NEARLY[name]
    model = Block(function, g=parameter(6), one=parameter(), column=parameter(6, 1))
    x = torch.randn(2, 6, 6, dtype=torch.float64)
    graph = trace(model, x)
    assert names(graph) == expected
    torch.testing.assert_close(evaluate(graph, model, x)["output"], model(x), rtol=1e-12, atol=1e-12)


# --- rotations

HALF = 3  # of a head of six entries


class Rotated(nn.Module):
    """A gain, so that what is turned depends on a parameter, then a rotation by given angles (positions, half)."""

    def __init__(self, function: Callable[[Any, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.function, self.gain, self.phase = function, parameter(6), parameter(HALF)
        angle = torch.randn(5, HALF, dtype=torch.float64)
        self.register_buffer("doubled", torch.cat([angle, angle], -1).cos())
        self.register_buffer("single", torch.cat([angle, 2 * angle], -1).cos())

    def forward(self, x: Tensor, angle: Tensor) -> Tensor:
        return self.function(self, x * self.gain, angle)


def rotate_half(x: Tensor) -> Tensor:
    return torch.cat((-x[..., HALF:], x[..., :HALF]), -1)


def rotate_pairs(x: Tensor) -> Tensor:
    return torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2)


def wide(angle: Tensor) -> tuple[Tensor, Tensor]:
    both = torch.cat((angle, angle), -1)
    return both.cos(), both.sin()


def paired(angle: Tensor) -> tuple[Tensor, Tensor]:
    return angle.cos().repeat_interleave(2, -1), angle.sin().repeat_interleave(2, -1)


def whole(x: Tensor, tables: tuple[Tensor, Tensor], turn: Callable[[Tensor], Tensor] = rotate_half) -> Tensor:
    return x * tables[0] + turn(x) * tables[1]


def split(first: Tensor, second: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
    cosine, sine = angle.cos(), angle.sin()
    return first * cosine - second * sine, second * cosine + first * sine


def real_pairs(s: Any, x: Tensor, angle: Tensor) -> Tensor:
    first, second = x.reshape(*x.shape[:-1], -1, 2).unbind(-1)
    return whole(x, paired(angle), lambda _: torch.stack([-second, first], -1).flatten(3))


def complex_pairs(s: Any, x: Tensor, angle: Tensor) -> Tensor:
    numbers = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(numbers * torch.polar(torch.ones_like(angle), angle)).flatten(3)


def scaled_tables(s: Any, x: Tensor, angle: Tensor) -> Tensor:
    cosine, sine = (table[None, None].expand(2, 1, 5, 6) * 1.5 for table in wide(angle))
    return x * cosine + rotate_half(x) * sine


# name -> (function, pairing, the sense in which it turns)
ROTATIONS: dict[str, tuple[Callable[[Any, Tensor, Tensor], Tensor], str, int]] = {
    "as transformers": (lambda s, x, a: whole(x, wide(a)), "halves", 1),
    "the other sense": (lambda s, x, a: whole(x, wide(a), lambda y: torch.cat((y[..., HALF:], -y[..., :HALF]), -1)), "halves", -1),
    "a difference": (lambda s, x, a: x * wide(a)[0] - rotate_half(x) * wide(a)[1], "halves", -1),
    "terms the other way round": (lambda s, x, a: wide(a)[1] * rotate_half(x) + wide(a)[0] * x, "halves", 1),
    "tiled tables": (lambda s, x, a: whole(x, (a.cos().repeat(1, 2), a.sin().repeat(1, 2))), "halves", 1),
    "tables with a factor": (scaled_tables, "halves", 1),
    "halves apart": (lambda s, x, a: torch.cat(split(*x.chunk(2, -1), a), -1), "halves", 1),
    "halves apart, the other sense": (lambda s, x, a: torch.cat(split(*x.chunk(2, -1), -a), -1), "halves", 1),
    "rows of halves": (lambda s, x, a: torch.stack(split(*x.unflatten(-1, (2, HALF)).unbind(-2), a), -2).flatten(-2), "halves", 1),
    "as GPT-J": (lambda s, x, a: whole(x, paired(a), rotate_pairs), "interleaved", 1),
    "pairs stacked in tables": (
        lambda s, x, a: whole(x, (torch.stack((a, a), -1).flatten(-2).cos(), torch.stack((a, a), -1).flatten(-2).sin()), rotate_pairs),
        "interleaved",
        1,
    ),
    "views of pairs": (real_pairs, "interleaved", 1),
    "neighbours apart": (lambda s, x, a: torch.stack(split(x[..., ::2], x[..., 1::2], a), -1).flatten(-2), "interleaved", 1),
}


@pytest.mark.parametrize("name", list(ROTATIONS))
def test_a_rotation_is_recognised(name: str) -> None:
    function, pairing, sense = ROTATIONS[name]
    model, x, angle = Rotated(function), torch.randn(2, 4, 5, 6, dtype=torch.float64), torch.randn(5, HALF, dtype=torch.float64)
    graph = trace(model, x, angle)
    (found,) = (d for _, d in graph.nodes(data=True) if d["operation"] == "rotary")
    assert found["attributes"] == {"pairing": pairing}
    assert {"multiply", "rotary"} >= {d["operation"] for n, d in graph.nodes(data=True) if d["shape"] == (2, 4, 5, 6)} - {
        "input",
        "identity",
    }
    torch.testing.assert_close(evaluate(graph, model, x, sense * angle)["output"], model(x, angle), rtol=1e-12, atol=1e-12)


def test_complex_pairs_are_a_rotation() -> None:
    x, angle = torch.randn(2, 4, 5, 6, dtype=torch.float64), torch.randn(5, HALF, dtype=torch.float64)
    graph = trace(Rotated(complex_pairs), x, angle)
    assert [n for n in names(graph) if "." not in n] == ["multiply", "rotary"]
    assert not [d for _, d in graph.nodes(data=True) if "." in d["operation"] and d["parameters"]]


def test_part_of_a_head_is_turned() -> None:
    def partly(s: Any, x: Tensor, a: Tensor) -> Tensor:
        turned, kept = x[..., :4], x[..., 4:]
        both = torch.cat((a[:, :2], a[:, :2]), -1)
        half = torch.cat((-turned[..., 2:], turned[..., :2]), -1)
        return torch.cat((turned * both.cos() + half * both.sin(), kept), -1)

    model, x, angle = Rotated(partly), torch.randn(2, 4, 5, 6, dtype=torch.float64), torch.randn(5, HALF, dtype=torch.float64)
    graph = trace(model, x, angle)
    assert names(graph).count("rotary") == 1
    torch.testing.assert_close(evaluate(graph, model, x, angle)["output"], model(x, angle), rtol=1e-12, atol=1e-12)


def test_a_table_that_is_a_buffer_is_looked_at() -> None:
    x, angle = torch.randn(2, 4, 5, 6, dtype=torch.float64), torch.randn(5, HALF, dtype=torch.float64)
    for table, expected in (("doubled", 1), ("single", 0)):
        model = Rotated(lambda s, y, a, table=table: whole(y, (getattr(s, table), wide(a)[1])))
        assert names(trace(model, x, angle)).count("rotary") == expected


# Siblings: one sign, one table, one part or one pairing that is another.
NOT_ROTATIONS: dict[str, Callable[[Any, Tensor, Tensor], Tensor]] = {
    "a cosine that does not repeat": lambda s, x, a: whole(x, (torch.cat((a, 2 * a), -1).cos(), wide(a)[1])),
    "a sine that does not repeat": lambda s, x, a: whole(x, (wide(a)[0], torch.cat((a, a + 1), -1).sin())),
    "tables tiled three times": lambda s, x, a: whole(x, (a[:, :2].cos().repeat(1, 3), a[:, :2].sin().repeat(1, 3))),
    "no sign": lambda s, x, a: whole(x, wide(a), lambda y: torch.cat((y[..., HALF:], y[..., :HALF]), -1)),
    "both signs": lambda s, x, a: whole(x, wide(a), lambda y: torch.cat((-y[..., HALF:], -y[..., :HALF]), -1)),
    "halves that stay": lambda s, x, a: whole(x, wide(a), lambda y: torch.cat((-y[..., :HALF], y[..., HALF:]), -1)),
    "neighbours that stay": lambda s, x, a: whole(x, paired(a), lambda y: torch.stack((-y[..., ::2], y[..., 1::2]), -1).flatten(-2)),
    "uneven parts": lambda s, x, a: whole(x, wide(a), lambda y: torch.cat((-y[..., 2:], y[..., :2]), -1)),
    "another tensor's half": lambda s, x, a: whole(x, wide(a), lambda y: rotate_half(y.tanh())),
    "tables of the other pairing": lambda s, x, a: whole(x, paired(a)),
    "pairs with tables of halves": lambda s, x, a: whole(x, wide(a), rotate_pairs),
    "a sine that learns": lambda s, x, a: whole(x, wide(a + s.phase)),
    "a reflection": lambda s, x, a: torch.cat(((p := split(*x.chunk(2, -1), a))[0], -p[1]), -1),
    "a shear": lambda s, x, a: torch.cat(
        (x[..., :HALF] * a.cos() - x[..., HALF:] * a.sin(), x[..., HALF:] * a.cos() - x[..., :HALF] * a.sin()), -1
    ),
    "two angles": lambda s, x, a: torch.cat((split(*x.chunk(2, -1), a)[0], split(*x.chunk(2, -1), 2 * a)[1]), -1),
    "a cosine and its double": lambda s, x, a: torch.cat(
        (x[..., :HALF] * a.cos() - x[..., HALF:] * a.sin(), x[..., HALF:] * (2 * a.cos()) + x[..., :HALF] * a.sin()), -1
    ),
    "complex, times what learns": lambda s, x, a: torch.view_as_real(
        torch.view_as_complex(x.reshape(2, 4, 5, HALF, 2)) * torch.view_as_complex(torch.stack((a * s.phase, a), -1))
    ).flatten(3),
    "positions in the place of entries": lambda s, x, a: whole(
        x.mT, (wide(a)[0].mT[:, :1], wide(a)[1].mT[:, :1]), lambda y: torch.cat((-y[..., HALF:, :], y[..., :HALF, :]), -2)
    ),
}


@pytest.mark.parametrize("name", list(NOT_ROTATIONS))
def test_what_is_no_rotation_stays_its_operations(name: str) -> None:
    x, angle = torch.randn(2, 4, 5, 6, dtype=torch.float64), torch.randn(5, HALF, dtype=torch.float64)
    assert "rotary" not in names(trace(Rotated(NOT_ROTATIONS[name]), x, angle))


# --- attention and GELU written out


def heads(s: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = (x @ w for w in (s.q, s.k, s.v))
    return q, k, v


def attended(s: Any, x: Tensor, **change: Any) -> Tensor:
    """softmax(0.4 q kᵀ + mask) v, with parts that a test may replace."""
    q, k, v = heads(s, x)
    turned = change.get("turned", k.mT)
    scores = change.get("scale", lambda y: y * 0.4)(q @ turned)
    scores = change.get("mask", lambda y: y)(scores)
    weights = scores.softmax(change.get("dim", -1))
    return change.get("after", lambda p: p)(weights) @ v


WRITTEN: dict[str, tuple[Callable[[Any, Tensor], Tensor], str, set[str], dict[str, Any]]] = {
    "attention": (attended, "attention", {"query", "key", "value"}, {"causal": False, "dropout": 0.0, "scale": 0.4, "grouped": False}),
    "scores divided": (lambda s, x: attended(s, x, scale=lambda y: y / 2), "attention", {"query", "key", "value"}, {"scale": 0.5}),
    "scores as they are": (lambda s, x: attended(s, x, scale=lambda y: y), "attention", {"query", "key", "value"}, {"scale": 1.0}),
    "masked": (lambda s, x: attended(s, x, mask=lambda y: y + x[:, :, :5, :5].exp()), "attention", {"query", "key", "value", "mask"}, {}),
    "biased by a parameter's function": (
        lambda s, x: attended(s, x, mask=lambda y: s.bias.exp() + y),
        "attention",
        {"query", "key", "value", "mask"},
        {"scale": 0.4},
    ),
    "gelu": (lambda s, x: F.gelu(x), "gelu", {"input"}, {"approximate": "none"}),
    "gelu by tanh": (lambda s, x: F.gelu(x, approximate="tanh"), "gelu", {"input"}, {"approximate": "tanh"}),
    "gelu as GPT-2": (
        lambda s, x: 0.5 * x * (1.0 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3.0))),
        "gelu",
        {"input"},
        {"approximate": "tanh"},
    ),
}


@pytest.mark.parametrize("name", list(WRITTEN))
def test_attention_and_gelu_written_out_are_recognised(name: str) -> None:
    function, operation, slots, attributes = WRITTEN[name]
    model = Block(function, q=parameter(6, 4), k=parameter(6, 4), v=parameter(6, 3), bias=parameter(3, 5, 5))
    x = torch.randn(2, 3, 5, 6, dtype=torch.float64)
    graph = trace(model, x)
    ((node, found),) = ((n, d) for n, d in graph.nodes(data=True) if d["operation"] == operation)
    assert set(graph.inputs_of(node)) == slots
    assert attributes.items() <= found["attributes"].items()
    assert "softmax" not in names(graph)
    assert "tanh" not in names(graph)
    torch.testing.assert_close(evaluate(graph, model, x)["output"], model(x), rtol=1e-12, atol=1e-12)


SHIFTED: dict[str, tuple[Callable[[Any, Tensor], Tensor], list[str]]] = {
    "the largest": (lambda s, x: (x - x.max(-1, keepdim=True).values).softmax(-1), ["softmax"]),
    "any, in logarithms": (lambda s, x: (x - x[..., :1].exp()).log_softmax(-1), ["log_softmax"]),
    "of another axis": (lambda s, x: (x - x.mean(1, keepdim=True)).softmax(-1), ["mean", "subtract", "softmax"]),
    "with fewer axes": (lambda s, x: (x - x[0, 0, 0].tanh()).softmax(1), ["slice", "reshape"] * 3 + ["tanh", "subtract", "softmax"]),
    "the other way round": (lambda s, x: (x[..., :1] - x).softmax(-1), ["slice", "subtract", "softmax"]),
}


@pytest.mark.parametrize("name", list(SHIFTED))
def test_what_softmax_does_not_see_is_left_out(name: str) -> None:
    function, expected = SHIFTED[name]
    model, x = Block(function), torch.randn(2, 3, 5, 6, dtype=torch.float64)
    graph = trace(model, x)
    assert names(graph) == expected
    torch.testing.assert_close(evaluate(graph, model, x)["output"], model(x), rtol=1e-12, atol=1e-12)


def test_dropout_of_attention_written_out_is_its_own() -> None:
    model = Block(lambda s, x: attended(s, x, after=lambda p: F.dropout(p, 0.25)), q=parameter(6, 4), k=parameter(6, 4), v=parameter(6, 3))
    graph = trace(model, torch.randn(2, 3, 5, 6, dtype=torch.float64))
    (found,) = (d for _, d in graph.nodes(data=True) if d["operation"] == "attention")
    assert found["attributes"]["dropout"] == 0.25


NOT_WRITTEN: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "probabilities over the queries": lambda s, x: attended(s, x, dim=-2),
    "keys that are not turned": lambda s, x: attended(s, x, turned=heads(s, x)[1].reshape(3, 3, 4, 5)),
    "keys turned otherwise": lambda s, x: attended(s, x, turned=heads(s, x)[1].permute(1, 0, 3, 2)),
    "keys shared by the heads": lambda s, x: attended(s, x, turned=heads(s, x)[1][:, :1].mT),
    "bounded scores": lambda s, x: attended(s, x, mask=torch.tanh),
    "two masks": lambda s, x: attended(s, x, mask=lambda y: y + s.bias.exp() + s.bias.sin()),
    "probabilities times a number": lambda s, x: attended(s, x, after=lambda p: p * 2.0),
    "probabilities less one": lambda s, x: attended(s, x, after=lambda p: p - 1.0),
    "gelu with another constant": lambda s, x: 0.5 * x * (1.0 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.05 * x**3))),
    "gelu with another root": lambda s, x: 0.5 * x * (1.0 + torch.tanh(0.8 * (x + 0.044715 * x**3))),
    "gelu of a square": lambda s, x: 0.5 * x * (1.0 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**2))),
    "gelu of two tensors": lambda s, x: 0.5 * x.sin() * (1.0 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3))),
}


@pytest.mark.parametrize("name", list(NOT_WRITTEN))
def test_what_only_looks_like_attention_or_gelu_stays_its_operations(name: str) -> None:
    model = Block(NOT_WRITTEN[name], q=parameter(6, 4), k=parameter(6, 4), v=parameter(6, 3), bias=parameter(3, 5, 5))
    x = torch.randn(3, 3, 5, 6, dtype=torch.float64)
    graph = trace(model, x)
    assert not {"attention", "gelu"} & set(names(graph))
    torch.testing.assert_close(evaluate(graph, model, x)["output"], model(x), rtol=1e-12, atol=1e-12)
