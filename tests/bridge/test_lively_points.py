"""Points at which pieces change: a dead unit counts before any number of positions."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import noetherflow as nf
from noetherflow.bridge import lively_points
from noetherflow.bridge.lively_points import _liveliness, lively_seeds


def test_one_dead_unit_weighs_more_than_many_positions() -> None:
    draw = torch.Generator().manual_seed(0)
    wide = torch.randint(2, (10, 2, 30), generator=draw).double()
    narrow = torch.randint(2, (10, 2, 3), generator=draw).double()
    dead, poor = narrow.clone(), wide.clone()
    dead[:, 1] = 0.0
    poor[:, :, 5:] = poor[:, :, :1]  # positions that vary, but together
    alive, lost, fewer = (_liveliness([a, b]) for a, b in ((wide, narrow), (wide, dead), (poor, narrow)))
    assert alive[0] == fewer[0] == 0 > lost[0]
    assert lost[1] > fewer[1]  # by columns alone the point with the dead unit would be taken
    assert alive > fewer > lost


def test_points_evaluated_one_by_one_or_together_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Conv2d(2, 2, 3, padding=1), nn.ReLU())
    graph = nf.trace(model, torch.zeros(2, 1, 4, 4))
    found = []
    for numbers in (1, 1e12):
        monkeypatch.setattr(lively_points, "NUMBERS_AT_ONCE", numbers)
        found.append(lively_seeds(graph, "0", None, 5))
    assert found[0] == found[1]
