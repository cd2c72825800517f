"""Rows drawn in pieces, their rank measured now and then: the same rows and the same rank."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from noetherflow.numeric.lie_rank import FloatSpace, grow


@pytest.mark.parametrize("at_once", [4, 7, 500])
def test_rank_does_not_depend_on_how_many_rows_are_drawn_at_a_time(at_once: int) -> None:
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(90, 60, generator=generator, dtype=torch.float64))[0].T  # 60 directions in 90 dimensions
    pool = torch.randn(2000, 60, generator=generator, dtype=torch.float64) @ basis
    drawn: list[tuple[int, int]] = []

    def draw(level: int, first: int, rows: int) -> tuple[Tensor, int]:
        drawn.append((first, rows))
        return pool[first : first + rows], first + rows

    space = FloatSpace(90)
    found = grow(draw, space, 70, spare=80, at_once=at_once)  # ten more are asked for than there are
    assert (found.rank, found.reached, found.closed) == (60, False, True)
    assert space.gap > 1e10
    assert max(rows for _, rows in drawn) <= at_once
    measured = [rows for level, _, rows, _ in found.steps if level == 0]
    assert sum(rows for _, rows in drawn) == sum(rows for _, _, rows, _ in found.steps)
    assert len(measured) <= 25
