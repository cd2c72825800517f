"""Alignment: images under random elements of both groups come back, other functions do not, and noise stays noise."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from support import zoo
from support.orbits import change, elsewhere, farthest, net
from torch import nn

import noetherflow as nf
from noetherflow.errors import ModelError, NoetherflowError
from noetherflow.numeric.assignment import assignment

EXACT = 1e-10


def hidden(model: nn.Module, graph: nf.ArchitectureGraph, seed: int) -> nn.Module:
    """A copy of a model after a random element of its discrete group."""
    group, other = nf.discrete_symmetries(graph), copy.deepcopy(model)
    there = {**dict(other.named_parameters()), **dict(other.named_buffers())}
    other.load_state_dict(group.transform(there, group.random(seed)), strict=False)
    return other


@pytest.mark.parametrize("size", [1, 2, 7, 60])
def test_assignment_agrees_with_scipy(size: int) -> None:
    random = np.random.default_rng(size)
    for cost in (random.normal(size=(size, size)), random.integers(0, 4, size=(size, size)).astype(float)):
        found = assignment(cost)
        assert sorted(found) == list(range(size))
        assert cost[np.arange(size), found].sum() == pytest.approx(cost[linear_sum_assignment(cost)].sum())


def test_assignment_refuses_what_is_not_a_square_of_numbers() -> None:
    for cost in (np.zeros((2, 3)), np.full((2, 2), np.nan)):
        with pytest.raises(NoetherflowError, match="square matrix"):
            assignment(cost)


@pytest.mark.parametrize("name", ["mlp", "deep_linear", "convnet", "transformer"])
def test_an_image_under_both_groups_comes_back(name: str) -> None:
    case = net(name)
    other = hidden(elsewhere(case, 3), case.graph, 5)
    group = nf.discrete_symmetries(case.graph)
    found = nf.align(case.model, other, case.graph, approximate=True)
    assert found.before > 0.5
    assert found.after < EXACT
    assert farthest(found.model, case.model) < EXACT
    assert change(other, found.model, case.inputs, up_to_shift=name == "convnet") < EXACT
    assert nf.distance(case.model, other, case.graph, approximate=True, discrete=group) < EXACT
    if name != "deep_linear":  # there signs are divided out with the rotations already
        assert nf.distance(case.model, other, case.graph, approximate=True) > 0.5


def test_heads_groups_and_signs_of_a_language_model_come_back() -> None:
    torch.manual_seed(0)
    model, inputs, _ = zoo.build("llama")
    model = model.double()
    for p in model.parameters():
        nn.init.normal_(p, std=0.3)
    graph = nf.trace(model, *inputs)
    found = nf.align(model, hidden(model, graph, 1), graph, strict=False)
    assert found.before > 1
    assert found.after < EXACT


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_noise_is_what_is_left_of_a_noisy_copy(activation: str) -> None:
    torch.manual_seed(0)
    model = nf.models.MLP([10, 24, 24, 5], activation).double()
    graph = nf.trace(model, torch.randn(2, 10, dtype=torch.float64))
    other = hidden(model, graph, 2)
    for p in other.parameters():
        p.data.add_(0.02 * torch.randn_like(p))
    noise = 0.02 * sum(p.numel() for p in model.parameters()) ** 0.5
    found = nf.align(model, other, graph)
    assert found.after < 1.2 * noise < 0.3 * found.before
    assert farthest(found.model, nf.align(model, other, graph).model) == 0.0


def test_another_function_stays_at_a_distance_and_is_not_changed() -> None:
    inputs = torch.randn(9, 5, dtype=torch.float64)
    a, b = (nf.models.build("mlp", seed=s, widths=(5, 16, 3)).double() for s in (0, 1))
    found = nf.align(a, b, inputs)
    assert 1 < found.after < found.before
    assert change(b, found.model, inputs) < EXACT
    single = nf.align(a.float(), b.float(), inputs.float())
    assert {p.dtype for p in single.model.parameters()} == {torch.float32}
    assert single.after == pytest.approx(found.after, rel=1e-4)


def test_permutations_alone_leave_the_scales_where_they_are() -> None:
    torch.manual_seed(0)
    model = nf.models.MLP([6, 9, 9, 4]).double()
    inputs = torch.randn(5, 6, dtype=torch.float64)
    graph = nf.trace(model, inputs)
    other = hidden(model, graph, 3)
    assert nf.align(model, other, graph, continuous=False).after < EXACT
    scaled = nf.rebalance(other, graph).model
    alone, both = (nf.align(model, scaled, graph, continuous=c) for c in (False, True))
    assert both.after < EXACT < 1e-3 < alone.after
    assert change(scaled, alone.model, inputs) < EXACT
    rows = [m.get_parameter("layers.0.weight").norm(dim=1).sort().values for m in (scaled, alone.model)]
    torch.testing.assert_close(rows[0], rows[1])


def test_further_starts_never_end_farther() -> None:
    inputs = torch.randn(4, 8, dtype=torch.float64)
    a, b = (nf.models.build("mlp", seed=s, widths=(8, 12, 12, 12, 3)).double() for s in (0, 1))
    ends = [nf.align(a, b, inputs, continuous=False, restarts=n).after for n in (0, 2, 8)]
    assert ends[0] >= ends[1] >= ends[2]
    assert ends[2] < ends[0]
    again = nf.align(a, b, inputs, continuous=False, restarts=8)
    assert again.after == ends[2]
    assert change(b, again.model, inputs) < EXACT


def test_a_graph_or_inputs_are_asked_for() -> None:
    model = nf.models.MLP([3, 4, 2])
    with pytest.raises(ModelError, match="derived from a graph"):
        nf.align(model, model, nf.symmetries(nf.trace(model, torch.randn(2, 3))))  # type: ignore[arg-type]
