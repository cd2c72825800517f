"""The canonical form: the same for all models of one orbit, another for others, and the function it started from."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from support.orbits import BUILDERS, EXACT, HANDLED, change, elsewhere, farthest, imbalance, net, output, parameters
from torch import nn

import noetherflow as nf
from noetherflow.errors import ModelError
from noetherflow.symbolic.symmetries import Symmetries, Symmetry

SAME = 1e-10  # of parameters; matrices of random layers are conditioned well enough for this


@pytest.mark.parametrize("name", BUILDERS)
def test_models_of_one_orbit_have_one_form(name: str) -> None:
    case = net(name)
    here, there = elsewhere(case, 1), elsewhere(case, 2)
    forms = [nf.canonical(model, case.symmetries, approximate=True) for model in (here, there)]
    assert farthest(here, there) > 0.1
    assert farthest(forms[0].model, forms[1].model) < SAME
    assert change(here, forms[0].model, case.inputs, up_to_shift=name == "convnet") < EXACT
    assert {s.kind for s in forms[0].left}.isdisjoint(HANDLED)
    assert bool(forms[0].left) == (name == "transformer")


@pytest.mark.parametrize("name", ["mlp", "deep_linear", "convnet", "transformer"])
def test_models_of_other_functions_have_other_forms(name: str) -> None:
    """Negative control: a small step off the orbit shows."""
    case = net(name)
    other = copy.deepcopy(case.model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1e-3 * torch.randn_like(parameter))
    a, b = (nf.canonical(model, case.symmetries, approximate=True).model for model in (case.model, other))
    assert farthest(a, b) > 1e-4


def test_the_form_is_a_fixed_point() -> None:
    case = net("deep_linear")
    form = nf.canonical(case.model, case.symmetries).model
    assert farthest(form, nf.canonical(form, case.symmetries).model) < SAME


def test_every_gauge_is_fixed_as_it_is_said() -> None:
    case = net("convnet")
    form: Any = nf.canonical(elsewhere(case, 1), case.symmetries, scale_norm=3.0, approximate=True).model
    assert imbalance(case.symmetries, form) < 1e-12
    assert torch.allclose(form[0].weight.square().sum((1, 2, 3)).sqrt(), torch.full((4,), 3.0).double())
    assert float(form[0].bias.detach().abs().max()) < SAME
    assert float(form[9].weight.detach().sum(0).abs().max()) < SAME
    assert abs(float(form[9].bias.detach().sum())) < SAME


def test_the_frame_of_a_linear_axis_is_diagonal_sorted_and_signed() -> None:
    case = net("deep_linear")
    first, second, third = parameters(nf.canonical(case.model, case.symmetries).model).values()
    for writer, reader in ((first, second), (second, third)):
        gram = writer @ writer.T
        assert torch.allclose(gram, reader.T @ reader, atol=1e-12)
        assert torch.allclose(gram, gram.diagonal().diag(), atol=1e-12)
        assert gram.diagonal().diff().max() < 0
        assert (writer.gather(1, writer.abs().argmax(1, keepdim=True)) > 0).all()


def test_signs_of_a_linear_axis_are_divided_out_permutations_of_units_are_not() -> None:
    linear, relu = net("deep_linear"), net("mlp")
    flipped, permuted = copy.deepcopy(linear.model), copy.deepcopy(relu.model)
    with torch.no_grad():
        flipped.layers[0].weight[1] *= -1
        flipped.layers[1].weight[:, 1] *= -1
        order = torch.arange(8).flip(0)
        permuted.layers[0].weight.copy_(relu.model.layers[0].weight[order])
        permuted.layers[0].bias.copy_(relu.model.layers[0].bias[order])
        permuted.layers[1].weight.copy_(relu.model.layers[1].weight[:, order])
    assert change(linear.model, flipped, linear.inputs) < EXACT
    assert change(relu.model, permuted, relu.inputs) < EXACT
    a, b = (nf.canonical(m, linear.symmetries).model for m in (linear.model, flipped))
    assert farthest(a, b) < SAME
    a, b = (nf.canonical(m, relu.symmetries).model for m in (relu.model, permuted))
    assert farthest(a, b) > 1e-3


def test_families_that_an_eps_breaks_stay_and_are_named() -> None:
    model, x = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)).double(), torch.randn(8, 3).double()
    found = nf.symmetries(nf.trace(model, x))
    form = nf.canonical(model, found)
    assert [s.kind for s in form.left if isinstance(s, Symmetry)] == ["scale"]
    assert "left alone: scale 0.weight +1 (the eps of 1 breaks it" in repr(form)
    assert torch.equal(parameters(form.model)["0.weight"], parameters(model)["0.weight"])
    assert change(model, form.model, x) < EXACT
    assert 0 < change(model, nf.canonical(model, found, approximate=True).model, x) < 1e-2


def test_families_of_unknown_kind_stay_and_are_named() -> None:
    case = net("mlp")
    strange = replace(case.symmetries[0], kind="rotation")
    form = nf.canonical(case.model, Symmetries([strange, case.symmetries[1]], {}, {}))
    assert form.left == {strange: "kind 'rotation' with actions ['scale'] is not handled"}
    assert torch.equal(parameters(form.model)["layers.0.weight"], parameters(case.model)["layers.0.weight"])


def test_running_statistics_move_along() -> None:
    case = net("convnet")
    model = copy.deepcopy(case.model)
    for seed in range(3):
        model(torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.5)
    form: Any = nf.canonical(model, case.symmetries, approximate=True).model
    assert change(model.eval(), form.eval(), case.inputs, up_to_shift=True) < EXACT
    form[1].running_mean.copy_(model[1].running_mean)
    assert change(model, form, case.inputs, up_to_shift=True) > 1e-3


def test_an_orbit_without_least_norm_has_no_form_unless_it_may_be_left() -> None:
    model, x = nf.models.MLP([6, 4, 2, 4], "linear", bias=False).double(), torch.randn(5, 6).double()
    with pytest.raises(ModelError, match="no point of least norm"):
        nf.canonical(model, x)
    form = nf.canonical(model, x, strict=False)
    assert [s.parameters for s in form.left if isinstance(s, Symmetry)] == [("layers.0.weight", "layers.1.weight")]
    assert torch.allclose(output(form.model, x), output(model, x), rtol=1e-10, atol=1e-12)
