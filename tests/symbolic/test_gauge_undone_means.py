"""What a centring normalisation does not see of its input, where other readers of that input undo it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.blocks import EPS
from support.cases import Block
from support.invariance import Probe, independent_directions, violations
from torch import Tensor, nn
from torch.nn import functional as F

from noetherflow.bridge.trace import trace
from noetherflow.numeric.functional_rank import functional_rank
from noetherflow.symbolic.gauge import symmetries
from noetherflow.symbolic.symmetries import Symmetries, Symmetry

Function = Callable[[Any, Tensor], Tensor]
WIDTH = 4


@pytest.fixture(autouse=True)
def _double() -> None:
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)


def residual(s: Any, t: Tensor) -> Tensor:
    x = s.e(t)
    return s.head(s.norm(x + s.b(torch.tanh(s.a(x)))))


def read_twice(s: Any, t: Tensor) -> Tensor:
    x = s.e(t)
    return s.head(s.norm(x + s.b(torch.tanh(s.a(x)) * s.c(x))))


def with_positions(s: Any, t: Tensor) -> Tensor:
    x = s.e(t) + s.p
    return s.head(s.norm(x + s.b(torch.tanh(s.a(x)))))


def beside_the_norm(s: Any, t: Tensor) -> Tensor:
    x = s.e(t)
    return s.head(s.norm(x)) + s.d(torch.tanh(s.a(x)))


def read_as_it_is(s: Any, t: Tensor) -> Tensor:
    x = s.e(t)
    return s.head(s.norm(x + s.b(torch.tanh(s.a(x))))) + x.tanh().sum(-1, keepdim=True)


def added_behind(s: Any, t: Tensor) -> Tensor:
    x = s.e(t)
    y = x + s.b(torch.tanh(s.a(x)))
    return s.head(s.norm(y)) + y.tanh().sum(-1, keepdim=True)


def multiplied(s: Any, t: Tensor) -> Tensor:
    x = s.e(t)
    return s.head(s.norm(x * s.g + s.b(torch.tanh(s.a(x)))))


def through_a_gain(s: Any, t: Tensor) -> Tensor:
    x = s.e(t)
    return s.head(s.norm(x + s.b(torch.tanh(s.a(x * s.g)))))


def normed_in_front(s: Any, t: Tensor) -> Tensor:
    x = s.first(s.e(t))
    return s.head(s.norm(x + s.b(torch.tanh(s.a(x)))))


# How many vectors u there are.
NETS: dict[str, tuple[Function, int]] = {
    "a residual stream": (residual, WIDTH),
    "two readers": (read_twice, WIDTH),
    "two that make it": (with_positions, WIDTH),
    "a reader beside the norm": (beside_the_norm, WIDTH),
    "read by a function of every element": (read_as_it_is, 0),
    "the sum is read, too": (added_behind, 0),
    "multiplied on its way": (multiplied, WIDTH),
    "a gain before the reader": (through_a_gain, WIDTH),
    "a norm in front": (normed_in_front, 0),
}


def net(function: Function, norm: nn.Module | None = None, **more: Any) -> nn.Module:
    parts = {
        "a": nn.Linear(WIDTH, 3),
        "b": nn.Linear(3, WIDTH),
        "c": nn.Linear(WIDTH, 3),
        "d": nn.Linear(3, 5),
        "head": nn.Linear(WIDTH, 5),
    }
    vectors = {"g": torch.rand(WIDTH) + 0.5, "p": torch.randn(3, WIDTH)}
    used = {**parts, **{name: nn.Parameter(v) for name, v in vectors.items()}}
    names = {name for name in function.__code__.co_names if name in used}
    first = {"first": nn.LayerNorm(WIDTH, eps=EPS, elementwise_affine=False)} if "first" in function.__code__.co_names else {}
    made = {name: used[name] for name in used if name in names}
    norm = norm or nn.LayerNorm(WIDTH, eps=EPS, elementwise_affine=False)
    return Block(function, e=nn.Linear(6, WIDTH, bias=False), norm=norm, **first, **made, **more)


def inputs() -> Tensor:
    return torch.randn(8, 3, 6)


def undoing(found: Symmetries) -> list[Symmetry]:
    """Families whose readers take what makes the stream gets, transposed."""
    return [s for s in found if any(a.form == "column" and a.parameter == "e.weight" for a in s.actions)]


@pytest.mark.parametrize("name", NETS)
def test_every_vector_is_found_and_nothing_else_is_claimed(name: str) -> None:
    function, count = NETS[name]
    model = net(function)
    probe = Probe(model, inputs())
    found = symmetries(trace(model, probe.inputs))
    assert violations(probe, found) == []
    assert [s.dimension for s in undoing(found)] == ([count] if count else [])
    assert independent_directions(probe, found) == found.dimension
    measured = functional_rank(net(function), [inputs() for _ in range(12)])
    assert (measured.defect, measured.gap > 1e6) == (found.dimension, True)


def test_a_norm_that_does_not_centre_sees_it() -> None:
    model = net(residual, nn.RMSNorm(WIDTH, eps=EPS, elementwise_affine=False))
    found = symmetries(trace(model, inputs()))
    assert undoing(found) == []


def test_a_frozen_reader_cannot_undo_it() -> None:
    model = net(residual)
    model.a.weight.requires_grad_(False)
    probe = Probe(model, inputs())
    found = symmetries(trace(model, probe.inputs))
    assert (undoing(found), violations(probe, found)) == ([], [])


def test_what_makes_the_stream_and_is_also_read_does_not_move() -> None:
    model = net(lambda s, t: F.linear(s.norm((x := s.e(t)) + s.b(torch.tanh(s.a(x)))), s.e.weight.t()))
    model.a, model.b = nn.Linear(WIDTH, 3), nn.Linear(3, WIDTH)
    probe = Probe(model, inputs())
    found = symmetries(trace(model, probe.inputs))
    assert (undoing(found), violations(probe, found)) == ([], [])


def test_the_claim_is_rejected_where_the_norm_does_not_centre() -> None:
    """Negative control."""
    claimed = undoing(symmetries(trace(net(residual), inputs())))
    assert len(claimed) == 1
    other = net(residual, nn.RMSNorm(WIDTH, eps=EPS, elementwise_affine=False))
    assert len(violations(Probe(other, inputs()), Symmetries(claimed, {}, {}))) == 2


def test_such_a_family_has_no_charge() -> None:
    (family,) = undoing(symmetries(trace(net(residual), inputs())))
    assert family.kind == "affine"
    assert set(family.parameters) == {"e.weight", "a.weight"}
