"""What happens to a constant on its way: sums multiply it, averages leave it, weights make an image of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.cases import Block
from support.invariance import Probe, independent_directions, violations
from torch import Tensor, nn
from torch.nn import functional as F

from noetherflow.bridge.trace import trace
from noetherflow.numeric.functional_rank import functional_rank
from noetherflow.symbolic.gauge import symmetries

Function = Callable[[Any, Tensor], Tensor]


def norm() -> nn.Module:
    layer = nn.LayerNorm(4, eps=1e-30)
    with torch.no_grad():
        layer.weight.add_(torch.rand(4))
        layer.bias.add_(torch.randn(4))
    return layer


def parts(**more: nn.Module | nn.Parameter) -> dict[str, Any]:
    return {"a": nn.Linear(3, 4), "n": norm(), "b": nn.Linear(4, 5), **more}


def weight_and_bias() -> dict[str, Any]:
    return {"a": nn.Linear(3, 4), "n": norm(), "w": nn.Parameter(torch.randn(5, 4)), "c": nn.Parameter(torch.randn(5))}


def normed() -> dict[str, Any]:
    return {"a": nn.Linear(3, 4), "n": norm(), "w": nn.Parameter(torch.randn(5, 4))}


def two_normed() -> dict[str, Any]:
    return {**normed(), "d": nn.Linear(3, 4), "m": norm(), "v": nn.Parameter(torch.randn(5, 4))}


def gains() -> dict[str, Any]:
    return {"a": nn.Linear(3, 4), **{name: nn.Parameter(torch.rand(4) + 0.5) for name in "ghk"}, "b": nn.Linear(4, 5)}


def linear_maps() -> dict[str, Any]:
    return {
        "a": nn.Linear(3, 3),
        "v": nn.Parameter(torch.randn(3, 3)),
        "w": nn.Parameter(torch.randn(5, 3)),
        "c": nn.Parameter(torch.randn(5)),
    }


# name, function, parts, directions
CASES: tuple[tuple[str, Function, Callable[[], dict[str, Any]], int], ...] = (
    ("mean_over_positions", lambda s, x: s.b(s.n(s.a(x)).mean(1)), parts, 21),
    ("sum_over_positions", lambda s, x: s.b(s.n(s.a(x)).sum(1)), parts, 21),
    ("scaled", lambda s, x: s.b(0.5 * s.n(s.a(x))), parts, 21),
    ("a_gain_for_every_position", lambda s, x: s.b(s.g * s.n(s.a(x))), lambda: parts(g=nn.Parameter(torch.randn(2, 1))), 17),
    ("a_product_that_sums_positions", lambda s, x: torch.einsum("bni,oi->bo", s.n(s.a(x)), s.w) + s.c, weight_and_bias, 21),
    ("a_reader_without_bias", lambda s, x: F.linear(s.n(s.a(x)), s.w), normed, 3 + 1 + 1 + 4 + 3 + 4),
    ("readers_that_answer_each_other", lambda s, x: (F.linear(s.n(s.a(x)), s.w) + F.linear(s.m(s.d(x)), s.v)).relu(), two_normed, 37),
    ("a_gain_between", lambda s, x: s.b((s.a(x) * s.g).relu() * s.h + s.k), gains, 16),
    ("weights_in_a_row", lambda s, x: F.linear(F.linear(s.a(x), s.v), s.w) + s.c, linear_maps, 3 * 3 + 3 * 3 + 3),
)


@pytest.mark.parametrize(("name", "function", "made", "there"), CASES, ids=[case[0] for case in CASES])
def test_a_constant_is_followed(name: str, function: Function, made: Callable[[], Any], there: int) -> None:
    torch.set_default_dtype(torch.float64)
    model = Block(function, **made())
    probe = Probe(model, torch.randn(8, 2, 3))
    found = symmetries(trace(model, probe.inputs))
    assert violations(probe, found) == []
    assert independent_directions(probe, found, points=1) == found.dimension == there
    measured = functional_rank(model, (torch.randn(8, 2, 3) for _ in range(24)))
    assert (measured.defect, measured.gap > 1e6) == (there, True)


def test_a_reader_that_a_loss_also_ignores_is_counted_once() -> None:
    """Rows of the head that read an empty direction, and class shifts: what is both belongs to one family only."""
    torch.set_default_dtype(torch.float64)
    model = Block(lambda s, x: s.head(s.n(s.a(x)).flatten(1)), a=nn.Linear(3, 4), n=norm(), head=nn.Linear(8, 5))
    probe = Probe(model, torch.randn(8, 2, 3), "cross_entropy")
    found = symmetries(trace(model, probe.inputs, loss="cross_entropy"))
    assert violations(probe, found) == []
    assert independent_directions(probe, found, points=1) == found.dimension == 33


# Positions that are glued from two sources, one of them with what the other lacks: what holds for one half must hold for the other.
HALVES: tuple[tuple[str, Function, Callable[[], dict[str, Any]], set[tuple[str, ...]]], ...] = (
    ("one_half_normed", lambda s, x: s.b(torch.cat([s.n(h := s.a(x)), h], 1)), parts, {("a.bias", "b.bias")}),
    (
        "both_halves_normed",
        lambda s, x: s.b(torch.cat([s.n(h := s.a(x)), s.n(h.flip(1))], 1)),
        parts,
        {("n.bias", "b.bias"), ("b.weight", "b.bias")},
    ),
    ("the_mean_of_a_normed_half", lambda s, x: s.b(torch.cat([s.n(h := s.a(x)), h], 1).mean(1)), parts, {("b.weight", "b.bias")}),
    (
        "one_half_behind_a_weight",
        lambda s, x: (torch.cat([F.linear(h := s.a(x), s.w), h[..., :5]], 1) + s.c).relu(),
        lambda: {"a": nn.Linear(3, 5), "w": nn.Parameter(torch.randn(5, 5)), "c": nn.Parameter(torch.randn(5))},
        {("a.bias", "c")},
    ),
    (
        "the_other_half_behind_a_weight",
        lambda s, x: (torch.cat([h := s.a(x), F.linear(h, s.w)], 1) + s.c).relu(),
        lambda: {"a": nn.Linear(3, 5), "w": nn.Parameter(torch.randn(5, 5)), "c": nn.Parameter(torch.randn(5))},
        {("a.bias", "c")},
    ),
)


@pytest.mark.parametrize(("name", "function", "made", "pairs"), HALVES, ids=[case[0] for case in HALVES])
def test_glued_positions_are_followed_together(name: str, function: Function, made: Callable[[], Any], pairs: set[tuple[str, ...]]) -> None:
    torch.set_default_dtype(torch.float64)
    model = Block(function, **made())
    probe = Probe(model, torch.randn(8, 2, 3))
    found = symmetries(trace(model, probe.inputs))
    assert violations(probe, found) == []
    affine = {tuple(s.parameters) for s in found if s.kind == "affine"}
    assert (pairs <= affine) == name.startswith("both")


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_the_bias_of_the_values_passes_probabilities_that_sum_to_one(dropout: float) -> None:
    torch.set_default_dtype(torch.float64)
    layers = {name: nn.Linear(4, 4) for name in "qkvo"}
    model = Block(
        lambda s, x: s.o(nn.functional.dropout((s.q(x) @ s.k(x).mT).softmax(-1), dropout) @ s.v(x)),
        **layers,
    )
    probe = Probe(model, torch.randn(6, 3, 4))
    found = symmetries(trace(model, probe.inputs))
    assert violations(probe, found) == []
    assert any(set(s.parameters) == {"v.bias", "o.bias"} for s in found) == (dropout == 0.0)


@pytest.mark.parametrize("by_frequency", [False, True])
def test_rows_whose_gradients_are_weighted_by_their_frequency_obey_no_law(by_frequency: bool) -> None:
    torch.set_default_dtype(torch.float64)
    rows = torch.tensor([0, 1, 1, 2, 2, 2, 3, 4])
    model = Block(
        lambda s, x: s.b(s.e(rows) + s.p),
        e=nn.Embedding(5, 4, scale_grad_by_freq=by_frequency),
        p=nn.Parameter(torch.randn(4)),
        b=nn.Linear(4, 5),
    )
    probe = Probe(model, torch.randn(8, 3))
    found = symmetries(trace(model, probe.inputs))
    assert violations(probe, found) == []
    assert any("e.weight" in s.parameters for s in found) == (not by_frequency)


def test_an_index_that_a_parameter_chooses_is_opaque() -> None:
    torch.set_default_dtype(torch.float64)
    model = Block(lambda s, x: s.b(h := s.a(x))[..., h.sum(0).argmax()], a=nn.Linear(3, 4), b=nn.Linear(4, 5))
    probe = Probe(model, torch.randn(8, 3))
    found = symmetries(trace(model, probe.inputs))
    assert found.opaque
    assert violations(probe, found) == []


def test_images_that_cancel_by_themselves_are_no_family_of_their_own() -> None:
    """b <- b + W a, w1 <- w1 - W a is the translation b <- b + t, w1 <- w1 - t with t = W a."""
    torch.set_default_dtype(torch.float64)
    made = {"w0": nn.Parameter(torch.randn(3)), "l": nn.Linear(3, 4), "w1": nn.Parameter(torch.randn(4))}
    model = Block(lambda s, x: s.l(x + s.w0) + s.w1, **made)
    probe = Probe(model, torch.randn(8, 3), "cross_entropy")
    found = symmetries(trace(model, probe.inputs, loss="cross_entropy"))
    assert violations(probe, found) == []
    assert independent_directions(probe, found, points=1) == found.dimension
    measured = functional_rank(model, (torch.randn(8, 3) for _ in range(12)), readout=lambda y: y[:, 1:] - y[:, :1])
    assert (measured.defect, measured.gap > 1e6) == (found.dimension, True)
