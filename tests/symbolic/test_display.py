"""What people read: lines that join equal layers, and JSON that holds everything."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from noetherflow.bridge.trace import trace
from noetherflow.numeric.models import MLP
from noetherflow.symbolic.display import lines, pattern, shortened, to_json
from noetherflow.symbolic.laws import Laws, derive


@pytest.fixture(scope="module")
def laws() -> Laws:
    return derive(trace(MLP([3, 4, 4, 4, 2]), torch.randn(5, 3)))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("layers.0.weight", "layers.*.weight"),
        ("model.layers.11.self_attn.q_proj.weight", "model.layers.*.self_attn.q_proj.weight"),
        ("0.weight", "*.weight"),
        ("w1", "w1"),
        ("conv1.weight", "conv1.weight"),
        ("layer2.0.downsample.1.bias", "layer2.*.downsample.*.bias"),
    ],
)
def test_only_numbers_of_layers_become_stars(name: str, expected: str) -> None:
    assert pattern(name) == expected


def test_equal_layers_share_a_line_and_nothing_is_lost(laws: Laws) -> None:
    (line,) = lines(laws)
    assert (line.kind, len(line.families), line.generators, line.charges) == ("rescale", 3, 12, 12)
    assert line.module == "layers.*"
    assert line.formula


def test_the_module_of_a_line_is_what_its_parameters_share() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    found = {line.kind: line.module for line in lines(derive(trace(model, torch.randn(5, 3)))) if len(line.parameters) > 1}
    assert found["scale"] == "*"
    assert set(found.values()) == {"*"}


def test_long_rows_of_names_say_how_many_there_are() -> None:
    assert shortened(["a", "b", "a", "c", "d", "e"]) == "a, b, c and 2 more"
    assert shortened(["a", "a"]) == "a"


def test_json_holds_counts_formulas_and_motion(laws: Laws) -> None:
    data = json.loads(to_json(laws))
    assert (data["generators"], data["directions"], data["charges"], len(data["families"])) == (12, 12, 12, 3)
    first = data["families"][0]
    assert first["parameters"] == ["layers.0.weight", "layers.0.bias", "layers.1.weight"]
    assert first["generator"]["layers.1.weight[j, i]"] == "-a[i]*layers.1.weight[j, i]"
    assert "layers.0.bias[i]**2/2" in first["charge"]
    assert first["balance"]
    assert "balance" not in json.loads(to_json(laws, details=False))["families"][0]


def test_families_without_a_charge_are_told_and_have_no_motion() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    found = derive(trace(model, torch.randn(5, 3)))
    (affine,) = (family for family in json.loads(to_json(found))["families"] if family["kind"] == "affine")
    assert (affine["charges"], affine["generators"]) == (0, 4)
    assert "charge" not in affine
    (line,) = (line for line in lines(found) if line.kind == "affine")
    assert (line.charges, line.formula) == (0, "")
