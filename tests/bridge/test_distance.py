"""The distance modulo symmetries: zero on an orbit, symmetric, the same for any two models of two orbits, and a number with its parts."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
from support.orbits import BUILDERS, Net, change, elsewhere, farthest, net, parameters
from torch import nn

import noetherflow as nf
from noetherflow.errors import ModelError

ZERO = 1e-10


def other(case: Net, seed: int = 7) -> nn.Module:
    """A model of the same architecture and another function."""
    model = copy.deepcopy(case.model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return model


def test_zero_on_the_orbit_of_a_residual_network() -> None:
    case = net("resnet")
    moved = elsewhere(case, 1)
    assert farthest(case.model, moved) > 0.1
    assert nf.distance(case.model, moved, case.symmetries, approximate=True) < ZERO


@pytest.mark.parametrize("name", [name for name in BUILDERS if name != "resnet"])
def test_zero_on_an_orbit_symmetric_and_invariant_off_it(name: str) -> None:
    case = net(name)
    a, b = case.model, other(case)
    moved_a = elsewhere(case, 1)
    moved_b = elsewhere(Net(b, case.inputs, case.graph, case.symmetries), 2)
    found = nf.distance(a, b, case.symmetries, approximate=True)
    assert farthest(a, moved_a) > 0.1
    assert nf.distance(a, moved_a, case.symmetries, approximate=True) < ZERO
    assert found > 0.1
    assert nf.distance(b, a, case.symmetries, approximate=True) == pytest.approx(found, rel=1e-9)
    assert nf.distance(moved_a, moved_b, case.symmetries, approximate=True) == pytest.approx(found, rel=1e-7)


def test_the_triangle_inequality_holds() -> None:
    case = net("mlp")
    models = [case.model, other(case, 1), other(case, 2)]
    for a, b, c in itertools.permutations(models):
        assert nf.distance(a, c, case.graph) <= nf.distance(a, b, case.graph) + nf.distance(b, c, case.graph) + ZERO


def test_equal_singular_values_do_no_harm() -> None:
    """The canonical frame is then arbitrary; the search over rotations finds what the frames miss."""
    model = nf.models.MLP([3, 3, 3], "linear", bias=False).double()
    with torch.no_grad():
        for layer in model.layers:
            nn.init.orthogonal_(layer.weight)
    turned = copy.deepcopy(model)
    with torch.no_grad():
        turn = torch.linalg.qr(torch.randn(3, 3).double()).Q
        turned.layers[0].weight.copy_(turn @ model.layers[0].weight)
        turned.layers[1].weight.copy_(model.layers[1].weight @ turn.T)
    x = torch.randn(4, 3).double()
    assert change(model, turned, x) < ZERO
    forms = [nf.canonical(m, x).model for m in (model, turned)]
    assert farthest(*forms) > 0.1
    assert nf.distance(model, turned, x) < ZERO


def test_a_number_with_its_parts() -> None:
    case = net("mlp")
    b = other(case)
    found = nf.distance(case.model, b, case.graph)
    assert isinstance(found, float)
    assert set(found.parameters) == set(parameters(b))
    assert math.hypot(*found.parameters.values()) == pytest.approx(found, rel=1e-12)
    assert found.left == {}


def test_what_no_family_moves_counts_as_it_is() -> None:
    model = nf.models.MLP([3, 4, 2], "tanh").double()
    b = copy.deepcopy(model)
    with torch.no_grad():
        parameters(b)["layers.1.bias"][0] += 2.0
    assert nf.distance(model, b, torch.randn(4, 3).double()) == pytest.approx(2.0, rel=1e-12)


def test_permuted_units_are_apart_and_families_left_alone_are_named() -> None:
    case = net("convnet")
    flipped = copy.deepcopy(case.model)
    with torch.no_grad():
        flipped[7].weight.copy_(case.model[7].weight.flip(0))
        flipped[7].bias.copy_(case.model[7].bias.flip(0))
        flipped[9].weight.copy_(case.model[9].weight.flip(1))
    assert change(case.model, flipped, case.inputs) < ZERO
    found = nf.distance(case.model, flipped, case.symmetries)
    assert found > 0.1
    assert ["eps" in why for why in found.left.values()] == [True]


def test_models_of_two_architectures_are_refused() -> None:
    case = net("mlp")
    with pytest.raises(ModelError, match="another model"):
        nf.distance(case.model, net("tied").model, case.graph)
