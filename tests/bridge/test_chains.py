"""Chains of operations that are one: recognised in the ways models write them, and not where an axis, a power or a constant is another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.cases import Block
from support.evaluation import evaluate, parameter, steps
from torch import Tensor, nn
from torch.nn import functional as F

from noetherflow.bridge.trace import trace

EPS = 1e-3


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
    assert steps(graph) == expected
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
    found = steps(trace(Block(NOT_NORMS[name], g=parameter(1)), x))
    assert not {"rms_norm", "layer_norm", "unit_norm"} & set(found)


class Two(nn.Module):
    """A function of two inputs."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x * root(y)


def test_two_inputs_and_two_buffers_are_two_tensors() -> None:
    x = torch.randn(4, 6, dtype=torch.float64)
    assert "rms_norm" not in steps(trace(Two(), x, x.clone()))
    for second, expected in (("a", True), ("b", False)):
        model = Block(lambda s, x, second=second: (x * s.a) * root(x * getattr(s, second)))
        model.register_buffer("a", torch.randn(6, dtype=torch.float64))
        model.register_buffer("b", torch.randn(6, dtype=torch.float64))
        assert ("rms_norm" in steps(trace(model, x))) is expected


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
    assert steps(graph) == expected
    torch.testing.assert_close(evaluate(graph, model, x)["output"], model(x), rtol=1e-12, atol=1e-12)


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
    assert "softmax" not in steps(graph)
    assert "tanh" not in steps(graph)
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
    assert steps(graph) == expected
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
    assert not {"attention", "gelu"} & set(steps(graph))
    torch.testing.assert_close(evaluate(graph, model, x)["output"], model(x), rtol=1e-12, atol=1e-12)
