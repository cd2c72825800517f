"""A softmax along an axis that is glued from pieces ignores what is the same for all pieces, and nothing less."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.cases import Block
from support.invariance import Probe, independent_directions, violations
from torch import Tensor, nn

from noetherflow.bridge.trace import trace
from noetherflow.numeric.functional_rank import functional_rank
from noetherflow.symbolic.gauge import symmetries

Function = Callable[[Any, Tensor], Tensor]


def parts() -> dict[str, Any]:
    maps = {name: nn.Linear(4, 4, bias=False) for name in ("q", "k", "v", "other")}
    return maps | {"b": nn.Parameter(torch.randn(4)), "token": nn.Parameter(torch.randn(1, 1, 4))}


def attended(s: Any, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    return (queries @ keys.mT).softmax(-1) @ values


def one_bias(s: Any, x: Tensor) -> Tensor:
    x = torch.cat([s.token.expand(len(x), 1, 4), x], 1)
    return attended(s, s.q(x), s.k(x) + s.b, s.v(x))


def one_bias_scaled(s: Any, x: Tensor) -> Tensor:
    x = torch.cat([s.token.expand(len(x), 1, 4), x], 1)
    return attended(s, s.q(x), 0.5 * (s.k(x) + s.b), s.v(x))


def a_bias_for_one_piece(s: Any, x: Tensor) -> Tensor:
    token = s.token.expand(len(x), 1, 4)
    return attended(s, s.q(x), torch.cat([s.k(token) + s.b, s.k(x)], 1), s.v(torch.cat([token, x], 1)))


def pieces_scaled_apart(s: Any, x: Tensor) -> Tensor:
    token = s.token.expand(len(x), 1, 4)
    return attended(s, s.q(x), torch.cat([2.0 * (s.k(token) + s.b), s.k(x) + s.b], 1), s.v(torch.cat([token, x], 1)))


def queries_of_their_own(s: Any, x: Tensor) -> Tensor:
    scores = torch.cat([s.q(x) @ (s.k(x) + s.b).mT, s.other(x) @ (s.k(x) + s.b).mT], -1)
    return scores.softmax(-1) @ s.v(torch.cat([x, x.flip(1)], 1))


def weighted_pieces(s: Any, x: Tensor) -> Tensor:
    x = torch.cat([s.token.expand(len(x), 1, 4), x], 1)
    scores = s.q(x) @ (s.k(x) + s.b).mT
    return (scores * torch.arange(1.0, 1.0 + scores.shape[-1], dtype=x.dtype)).softmax(-1) @ s.v(x)


# name, function, whether the bias of the keys may be anything, unused parameters
CASES: tuple[tuple[str, Function, bool, int], ...] = (
    ("one_bias", one_bias, True, 16),
    ("one_bias_scaled", one_bias_scaled, True, 16),
    ("a_bias_for_one_piece", a_bias_for_one_piece, False, 16),
    ("pieces_scaled_apart", pieces_scaled_apart, False, 16),
    ("queries_of_their_own", queries_of_their_own, False, 4),
    ("weighted_pieces", weighted_pieces, False, 16),
)


@pytest.mark.parametrize(("name", "function", "free", "unused"), CASES, ids=[case[0] for case in CASES])
def test_the_bias_of_the_keys_is_free_if_all_pieces_share_it(name: str, function: Function, free: bool, unused: int) -> None:
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(3)
    model = Block(function, **parts())
    probe = Probe(model, torch.randn(6, 3, 4))
    found = symmetries(trace(model, probe.inputs))
    assert violations(probe, found) == []
    assert any(s.kind == "null" and s.parameters == ("b",) and s.dimension == 4 for s in found) == free
    assert independent_directions(probe, found, points=1) == found.dimension
    measured = functional_rank(model, (2 * torch.randn(12, 3, 4) for _ in range(4)))
    assert (measured.defect - unused, measured.gap > 1e6) == (found.dimension, True)
