"""Rebalancing: charges zero, norm least, function the same; and what has no balance is said to have none."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from support.cases import frozen_middle
from support.orbits import BUILDERS, EXACT, change, charges, elsewhere, farthest, imbalance, net, output, parameters
from torch import nn

import noetherflow as nf
from noetherflow.errors import ModelError
from noetherflow.symbolic.symmetries import Symmetries, Symmetry

ZERO = 1e-12  # of a charge, relative to what cancels in it


@pytest.mark.parametrize("name", BUILDERS)
def test_charges_vanish_and_the_function_stays(name: str) -> None:
    case = net(name)
    start = elsewhere(case, 1)
    moved = nf.rebalance(start, case.symmetries)
    assert imbalance(case.symmetries, start) > 1e-3
    assert imbalance(case.symmetries, moved.model) < ZERO
    assert change(start, moved.model, case.inputs) < EXACT
    assert moved.after < moved.before
    assert moved.after == pytest.approx(math.sqrt(sum(float(p.square().sum()) for p in parameters(moved.model).values())), rel=1e-12)


@pytest.mark.parametrize("name", ["mlp", "deep_linear", "resnet"])
def test_no_other_point_of_the_orbit_has_a_smaller_norm(name: str) -> None:
    case = net(name)
    balanced = nf.rebalance(case.model, case.graph)
    for seed in range(5):
        own = parameters(balanced.model)
        generator = torch.Generator().manual_seed(seed)
        for symmetry in (s for s in case.symmetries if s.kind in ("rescale", "linear")):
            own = symmetry.transform(own, 0.1 * torch.randn(symmetry.dimension, generator=generator, dtype=torch.float64))
        assert math.sqrt(sum(float(p.square().sum()) for p in own.values())) > balanced.after


def test_a_linear_pair_is_balanced_as_its_singular_values_say() -> None:
    """The least of ‖A‖² + ‖B‖² over A B = M is twice the sum of the singular values of M."""
    model = nf.models.MLP([6, 3, 5], "linear", bias=False).double()
    product = model.layers[1].weight.detach() @ model.layers[0].weight.detach()
    moved = nf.rebalance(model, torch.randn(4, 6).double())
    assert moved.after**2 == pytest.approx(2 * float(torch.linalg.svdvals(product)[:3].sum()), rel=1e-12)


def test_scales_sixteen_orders_apart_are_balanced() -> None:
    model = nf.models.MLP([5, 8, 3]).double()
    with torch.no_grad():
        model.layers[0].weight.mul_(torch.logspace(-8, 8, 8, dtype=torch.float64)[:, None])
    case = nf.symmetries(nf.trace(model, torch.randn(4, 5).double()))
    moved: Any = nf.rebalance(model, case).model
    incoming = moved.layers[0].weight.square().sum(1) + moved.layers[0].bias.square()
    assert torch.allclose(incoming, moved.layers[1].weight.square().sum(0), rtol=1e-12, atol=0)


def test_balancing_the_families_one_after_the_other_is_not_enough() -> None:
    """Negative control: families that share a weight disturb each other, and the measure sees it."""
    case = net("mlp")
    model = case.model
    for symmetry in (s for s in case.symmetries if s.kind == "rescale"):
        model = nf.rebalance(model, Symmetries([symmetry], {}, {})).model
    assert imbalance(case.symmetries, model) > 1e-6


def test_a_pure_scale_is_left_alone_or_set_to_a_norm() -> None:
    case = net("convnet")
    left = nf.rebalance(case.model, case.graph, approximate=True)
    assert [s.kind for s in left.left if isinstance(s, Symmetry)].count("scale") == 1
    moved = nf.rebalance(case.model, case.graph, approximate=True, scale_norm=2.0)
    own = parameters(moved.model)
    filters = own["0.weight"].square().sum((1, 2, 3)) + own["0.bias"].square()
    assert torch.allclose(filters, torch.full((4,), 4.0, dtype=torch.float64), rtol=1e-12)
    assert imbalance(case.symmetries, moved.model) < ZERO
    assert change(case.model, moved.model, case.inputs) < EXACT
    with pytest.raises(ModelError, match="positive"):
        nf.rebalance(case.model, case.graph, scale_norm=0.0)


def test_scales_that_an_eps_breaks_are_used_only_when_asked() -> None:
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.BatchNorm1d(4), nn.Linear(4, 2)).double()
    moved = nf.rebalance(model, torch.randn(8, 3).double(), scale_norm=1.0)
    assert torch.equal(parameters(moved.model)["0.weight"], model[0].weight)
    assert any("eps of 1 breaks it" in why for why in moved.left.values())
    used = nf.rebalance(model, torch.randn(8, 3).double(), scale_norm=1.0, approximate=True)
    assert torch.allclose(parameters(used.model)["0.weight"].norm(dim=1), torch.ones(4).double())


# --- no least norm


def dead_unit() -> Any:
    model: Any = nf.models.MLP([5, 4, 3]).double()
    with torch.no_grad():
        model.layers[1].weight[:, 2] = 0.0
    return model


def test_a_unit_that_nothing_reads_is_refused_or_left_alone() -> None:
    model, x = dead_unit(), torch.randn(6, 5).double()
    with pytest.raises(ModelError, match=r"generators 2 have parameters on one side only") as caught:
        nf.rebalance(model, x)
    assert caught.value.data["generators"] == [[2]]
    moved = nf.rebalance(model, x, strict=False)
    assert any("generators 2 " in why for why in moved.left.values())
    assert torch.equal(parameters(moved.model)["layers.0.weight"][2], model.layers[0].weight[2])
    values, size = charges(nf.symmetries(nf.trace(model, x))[0], moved.model)
    assert [i for i, q in enumerate(values) if abs(q) > ZERO * size] == [2]


def test_a_unit_without_any_weight_is_balanced_already() -> None:
    model = dead_unit()
    with torch.no_grad():
        model.layers[0].weight[2] = model.layers[0].bias[2] = 0.0
    moved = nf.rebalance(model, torch.randn(6, 5).double())
    assert imbalance(nf.symmetries(nf.trace(model, torch.randn(6, 5).double())), moved.model) < ZERO


@pytest.mark.parametrize("widths", [(6, 5, 4, 5, 6), (20, 12, 9, 4)], ids=["waist", "funnel"])
def test_linear_layers_of_unequal_rank_have_no_balance(widths: tuple[int, ...]) -> None:
    """Directions of a hidden layer that the rest cannot read shrink for ever, without reaching the norm's infimum."""
    model = nf.models.MLP(widths, "linear", bias=False).double()
    x = torch.randn(4, widths[0]).double()
    with pytest.raises(ModelError, match="no point of least norm: what writes its axis has rank"):
        nf.rebalance(model, x)
    moved = nf.rebalance(model, x, strict=False)
    assert moved.left
    assert change(model, moved.model, x) < EXACT


def test_a_factor_of_zeros_has_no_balance() -> None:
    model = nf.models.MLP([6, 2, 6], "linear", bias=False).double()
    nn.init.zeros_(model.layers[1].weight)
    with pytest.raises(ModelError, match="rank 2, what reads it 0"):
        nf.rebalance(model, torch.randn(4, 6).double())


# --- conventions


def test_a_copy_comes_back_and_the_model_is_untouched() -> None:
    case = net("mlp")
    before = copy.deepcopy(case.model)
    moved = nf.rebalance(case.model, case.graph).model
    assert farthest(case.model, before) == 0.0
    assert farthest(moved, before) > 1e-3
    assert {id(p) for p in moved.parameters()}.isdisjoint(id(p) for p in case.model.parameters())


def test_in_place_keeps_the_parameter_objects_and_the_optimizers_state() -> None:
    model, x = nf.models.MLP([5, 4, 3]).double(), torch.randn(6, 5).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(x).square().sum().backward()
    optimizer.step()
    objects, before = [id(p) for p in model.parameters()], output(model, x)
    buffers = [optimizer.state[p]["momentum_buffer"].clone() for p in model.parameters()]
    moved = nf.rebalance(model, x, inplace=True)
    assert moved.model is model
    assert [id(p) for p in model.parameters()] == objects
    assert torch.allclose(output(model, x), before, rtol=1e-12, atol=1e-14)
    assert all(torch.equal(optimizer.state[p]["momentum_buffer"], b) for p, b in zip(model.parameters(), buffers, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_dtypes_stay_and_rounding_is_the_only_change(dtype: torch.dtype) -> None:
    model, x = nf.models.MLP([5, 8, 3]).to(dtype), torch.randn(6, 5).to(dtype)
    moved = nf.rebalance(model, x).model
    assert {p.dtype for p in moved.parameters()} == {dtype}
    exact = nf.rebalance(copy.deepcopy(model).double(), x.double()).model
    rounded = {name: p.to(dtype) for name, p in parameters(exact).items()}
    assert all(torch.equal(p, rounded[name]) for name, p in parameters(moved).items())


def test_frozen_parameters_stay_bit_for_bit() -> None:
    model = frozen_middle().double()
    moved = nf.rebalance(model, torch.randn(4, 3).double()).model
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    assert frozen
    assert all(torch.equal(parameters(moved)[name], parameters(model)[name]) for name in frozen)
    assert not dict(moved.named_parameters())[frozen[0]].requires_grad
    assert farthest(moved, model) > 1e-3


def test_shared_parameters_stay_shared() -> None:
    layers = (nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    model, x = nn.Sequential(*layers).double(), torch.randn(6, 5).double()
    model[4].weight = model[2].weight
    moved: Any = nf.rebalance(model, x).model
    assert moved[4].weight is moved[2].weight
    assert not torch.equal(moved[4].weight, model[4].weight)
    assert change(model, moved, x) < EXACT
