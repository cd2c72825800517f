"""Folding gains: ones where a family moves one gain, named exceptions elsewhere, and the function unchanged."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from support.orbits import EXACT, change, elsewhere, net, parameters
from torch import nn

import noetherflow as nf
from noetherflow.errors import ModelError


def drawn(seed: int = 0) -> Any:
    """The convolutional net with gains of both signs and statistics that were run in."""
    model = elsewhere(net("convnet"), seed)
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([0.5, -2.0, 3.0, -0.25]))
    model(torch.randn(16, 1, 8, 8).double())
    return model


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_gains_become_one_in_size_and_the_function_stays(training: bool) -> None:
    model, x = drawn().train(training), net("convnet").inputs
    moved = nf.fold_gains(model, x)
    assert torch.allclose(parameters(moved.model)["1.weight"], torch.tensor([1.0, -1.0, 1.0, -1.0]).double())
    assert change(model, moved.model, x) < EXACT
    assert torch.allclose(parameters(moved.model)["4.weight"][:, 1], 2.0 * model[4].weight[:, 1])
    assert torch.allclose(parameters(moved.model)["1.bias"][1], model[1].bias[1] / 2.0)
    assert (moved.before, moved.left) == (2.0, {})
    assert moved.after < 1e-12


def test_a_zero_gain_is_named_and_stays() -> None:
    model, x = drawn(), net("convnet").inputs
    with torch.no_grad():
        model[1].weight[2] = 0.0
    moved = nf.fold_gains(model, x)
    assert moved.left == {"1.weight": "entries [2] are zero, which no scale changes"}
    assert parameters(moved.model)["1.weight"].abs().tolist() == pytest.approx([1.0, 1.0, 0.0, 1.0])
    assert change(model, moved.model, x) < EXACT


def test_gains_of_a_residual_stream_are_left_those_inside_blocks_are_folded() -> None:
    case = net("resnet")
    moved = nf.fold_gains(case.model, case.graph)
    inside = [name for name in parameters(case.model) if name.endswith(".bn1.weight")]
    assert len(inside) == 8
    assert all(float((parameters(moved.model)[name] - 1).abs().max()) < 1e-12 for name in inside)
    assert all("gains at once" in why for why in moved.left.values())
    assert len(moved.left) == 4
    stream = [name for name in parameters(case.model) if "bn2.weight" in name or "downsample.1.weight" in name or name == "bn1.weight"]
    assert all(torch.equal(parameters(moved.model)[name], parameters(case.model)[name]) for name in stream)
    assert change(case.model, moved.model, case.inputs) < EXACT


def test_gains_of_a_transformer_are_folded_into_all_their_readers() -> None:
    case = net("transformer")
    moved = nf.fold_gains(case.model, case.graph)
    assert moved.before > 0.1
    assert moved.after < 1e-12
    assert not moved.left
    for norm, readers in (("norm1", ("attend",)), ("norm2", ("gate", "up"))):
        gain = parameters(case.model)[f"{norm}.weight"]
        for reader in readers:
            folded, before = (parameters(m)[f"{reader}.weight"] for m in (moved.model, case.model))
            assert torch.allclose(folded, before * gain, rtol=1e-12)
    assert change(case.model, moved.model, case.inputs) < EXACT


def test_a_gain_that_tanh_reads_is_named() -> None:
    model: Any = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2)).double()
    nn.init.uniform_(model[1].weight)
    moved = nf.fold_gains(model, torch.randn(6, 3).double())
    assert moved.left == {"1.weight": "no family moves this gain"}
    assert torch.equal(parameters(moved.model)["1.weight"], model[1].weight)


def test_gains_may_be_named_and_then_need_no_graph() -> None:
    case, model = net("convnet"), drawn()
    assert torch.allclose(parameters(nf.fold_gains(model, case.symmetries, ["1.weight"]).model)["1.weight"].abs(), torch.ones(4).double())
    with pytest.raises(ModelError, match="read from a graph"):
        nf.fold_gains(model, case.symmetries)
    with pytest.raises(ModelError, match="are not parameters"):
        nf.fold_gains(model, case.symmetries, ["2.weight"])


def test_folding_without_the_readers_changes_the_function() -> None:
    """Negative control: the check of the function sees a gain that was dropped."""
    model, x = drawn(), net("convnet").inputs
    wrong = copy.deepcopy(model)
    with torch.no_grad():
        wrong[1].weight.copy_(model[1].weight.sign())
    assert change(model, wrong, x) > 1e-2
