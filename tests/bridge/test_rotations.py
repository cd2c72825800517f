"""Rotary position embedding: recognised as models write it, and not where a sign, a table, a part or a pairing is another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.evaluation import evaluate, parameter, steps
from torch import Tensor, nn

from noetherflow.bridge.trace import trace

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
    assert [n for n in steps(graph) if "." not in n] == ["multiply", "rotary"]
    assert not [d for _, d in graph.nodes(data=True) if "." in d["operation"] and d["parameters"]]


def test_part_of_a_head_is_turned() -> None:
    def partly(s: Any, x: Tensor, a: Tensor) -> Tensor:
        turned, kept = x[..., :4], x[..., 4:]
        both = torch.cat((a[:, :2], a[:, :2]), -1)
        half = torch.cat((-turned[..., 2:], turned[..., :2]), -1)
        return torch.cat((turned * both.cos() + half * both.sin(), kept), -1)

    model, x, angle = Rotated(partly), torch.randn(2, 4, 5, 6, dtype=torch.float64), torch.randn(5, HALF, dtype=torch.float64)
    graph = trace(model, x, angle)
    assert steps(graph).count("rotary") == 1
    torch.testing.assert_close(evaluate(graph, model, x, angle)["output"], model(x, angle), rtol=1e-12, atol=1e-12)


def test_a_table_that_is_a_buffer_is_looked_at() -> None:
    x, angle = torch.randn(2, 4, 5, 6, dtype=torch.float64), torch.randn(5, HALF, dtype=torch.float64)
    for table, expected in (("doubled", 1), ("single", 0)):
        model = Rotated(lambda s, y, a, table=table: whole(y, (getattr(s, table), wide(a)[1])))
        assert steps(trace(model, x, angle)).count("rotary") == expected


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
    assert "rotary" not in steps(trace(Rotated(NOT_ROTATIONS[name]), x, angle))
