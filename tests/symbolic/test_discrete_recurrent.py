"""Units of recurrent layers: N! 2^N for each layer and direction, and nothing where their initial states or the order of time differ."""

from __future__ import annotations

import copy
from dataclasses import replace
from math import factorial
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import noetherflow as nf
from noetherflow.symbolic.discrete_factors import acted

WIDTH = 4
UNITS = factorial(WIDTH) * 2**WIDTH
EXACT = 1e-13  # outputs are of size one: a few hundred roundings of 1e-16


class Recurrent(nn.Module):
    """A recurrent layer, what comes before it, and a reader; its initial state in several ways."""

    given: Tensor

    def __init__(self, kind: type[nn.RNNBase], state: str = "none", positions: bool = False, **options: Any) -> None:
        super().__init__()
        self.layer, self.state = kind(3, WIDTH, batch_first=True, **options), state
        self.read = nn.Linear(WIDTH * (2 if options.get("bidirectional") else 1), 2)
        self.positions = nn.Parameter(torch.randn(5, 3)) if positions else None
        self.register_buffer("given", torch.randn(1, 6, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        """Shape (batch, 2)."""
        if self.positions is not None:
            x = x + self.positions
        start = self.start(x)
        pair = (start, start) if isinstance(self.layer, nn.LSTM) else start
        out = self.layer(x)[0] if start is None else self.layer(x, pair)[0]
        return self.read(out.mean(1))

    def start(self, x: Tensor) -> Tensor | None:
        """The initial state."""
        if self.state == "buffer":
            return self.given
        start = None if self.state == "none" else x.new_zeros(1, 6, WIDTH)
        if start is not None and self.state == "written":
            start[0].add_(self.given[0])
        return start


def built(kind: type[nn.RNNBase], **options: Any) -> tuple[nn.Module, Tensor, Any]:
    torch.manual_seed(0)
    model, x = Recurrent(kind, **options).double(), torch.randn(6, 5, 3, dtype=torch.float64)
    return model, x, nf.discrete_symmetries(nf.trace(model, x))


def change(model: nn.Module, x: Tensor, point: dict[str, Tensor]) -> float:
    return float((torch.func.functional_call(model, point, (x,)) - model(x)).detach().abs().max())


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize(
    ("options", "layers"),
    [
        ({}, 1),
        ({"num_layers": 2}, 2),
        ({"bidirectional": True}, 2),
        ({"bias": False}, 1),
        ({"state": "zeros"}, 1),
        ({"positions": True}, 1),  # the five positions are not interchanged, although their mean is read
    ],
)
def test_units_of_every_layer_and_direction_are_permuted_and_change_sign(kind: type[nn.RNNBase], options: Any, layers: int) -> None:
    model, x, found = built(kind, **options)
    assert found.order == UNITS**layers
    point = {n: p.detach() for n, p in model.named_parameters()}
    for seed in range(3):
        assert change(model, x, found.transform(point, found.random(seed))) < EXACT
    for factor in found:
        values = next(v for v in map(factor.random, map(Random, range(9))) if v != factor.identity)
        for left in factor.actions:  # one gate's rows, or one reader, that stay behind
            part = replace(factor, actions=tuple(p for p in factor.actions if p is not left))
            assert change(model, x, acted(part, values, point)) > 1e-6, left


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize("state", ["buffer", "written"])
def test_an_initial_state_that_is_not_zero_tells_units_apart(kind: type[nn.RNNBase], state: str) -> None:
    model, x, found = built(kind, state=state)
    assert found.order == 1
    _, _, wrong = built(kind)  # what would hold from zero
    point = {n: p.detach() for n, p in model.named_parameters()}
    assert change(model, x, wrong.transform(point, wrong.random(1))) > 1e-6


def test_the_signs_of_all_gates_together_are_no_symmetry() -> None:
    """Sigmoid is not odd: only the gate behind tanh changes sign, rows of the others stay."""
    model, x, found = built(nn.LSTM)
    point = {n: p.detach() for n, p in model.named_parameters()}
    wrong = {n: -p if n.startswith("layer") and "hh" not in n else p for n, p in point.items()}
    assert [f.kind for f in found] == ["permutation", "sign"]
    assert change(model, x, wrong) > 1e-3


def test_alignment_carries_a_recurrent_network_back() -> None:
    model, x, found = built(nn.LSTM, num_layers=2)
    other = copy.deepcopy(model)
    other.load_state_dict(found.transform(dict(model.named_parameters()), found.random(4)), strict=False)
    back = nf.align(model, other, x)
    assert back.before > 1
    assert back.after < 1e-12
