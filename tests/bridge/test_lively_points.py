"""Points at which pieces change: a dead unit counts before any number of positions."""

from __future__ import annotations

import torch
from torch import nn

import noetherflow as nf
from noetherflow.bridge.lively_points import _liveliness, lively_seeds
from noetherflow.bridge.sampling import Sampling


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


def test_points_evaluated_one_by_one_or_together_are_the_same() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Conv2d(2, 2, 3, padding=1), nn.ReLU())
    large, small = (nf.trace(model, torch.zeros(2, 1, size, size)) for size in (60, 3))
    assert Sampling(large, "0").nodes_numbers > 1e4 > Sampling(small, "0").nodes_numbers
    for graph in (large, small):
        first, second = lively_seeds(graph, "0", None, 2)
        assert first != second
