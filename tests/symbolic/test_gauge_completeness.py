"""Nothing is missing that the table of cases does not admit: derived generators against the measured rank of the network's function."""

from __future__ import annotations

import pytest
import torch
from support.block_cases import BLOCK_CASES
from support.cases import CASES, EPS, Case
from support.invariance import Probe, independent_directions
from support.measured import data_of, logit_differences, moved
from torch import Tensor, nn

from noetherflow.bridge.trace import trace
from noetherflow.errors import ModelError
from noetherflow.numeric import convnets
from noetherflow.numeric.functional_rank import FunctionalRank, functional_rank, numerical_rank
from noetherflow.symbolic.gauge import symmetries

# Rank can only be lost by chance (a unit that is dead, or always on, on all data), so the best of some draws is the rank.
DRAWS = 24
CLEAR_GAP = 1e9


def best_rank(case: Case, defect: int) -> FunctionalRank:
    """The largest rank over draws of parameters and data, no further than it takes to reach the expected one."""
    found = []
    for draw in range(DRAWS):
        torch.manual_seed(draw)
        model = moved(case.build())
        found.append(functional_rank(model, data_of(case, model), readout=logit_differences if case.loss else None))
        if found[-1].defect == defect and found[-1].gap > CLEAR_GAP:
            break
    return max(found, key=lambda measured: measured.rank)


@pytest.mark.parametrize("case", [*CASES, *BLOCK_CASES], ids=lambda case: case.name)
def test_derived_and_measured_directions_agree(case: Case) -> None:
    torch.set_default_dtype(torch.float64)
    found = symmetries(trace(case.build(), case.inputs(), loss=case.loss))
    assert (found.dimension, found.opaque) == (case.dimension, {})
    assert bool(case.missing) == bool(case.why)
    expected = case.dimension - case.excess + case.missing
    measured = best_rank(case, expected)
    assert (measured.defect, measured.gap > CLEAR_GAP) == (expected, True)


def test_a_group_larger_than_its_orbit_is_known_as_such() -> None:
    """GL(5) between layers of width 2: at any point 9 of its 25 generators move nothing, as fields all 25 are independent."""
    torch.set_default_dtype(torch.float64)
    case = next(c for c in CASES if c.name == "wide_linear")
    model = case.build()
    probe = Probe(model, case.inputs())
    found = symmetries(trace(model, probe.inputs))
    assert independent_directions(probe, found, points=1) == found.dimension - case.excess
    assert independent_directions(probe, found) == found.dimension


@pytest.mark.slow
@pytest.mark.parametrize(("network", "image", "parameters", "dimension"), [("resnet18", 33, 943, 83), ("vgg16_bn", 32, 600, 94)])
def test_real_architectures_at_small_width_have_no_other_symmetry(
    network: str, image: int, parameters: int, dimension: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_default_dtype(torch.float64)
    monkeypatch.setattr(convnets, "RESNET18_STAGES", (2, 2, 2, 3))
    monkeypatch.setattr(convnets, "VGG16_STAGES", ((2, 2), (2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 3)))
    found, measured = None, []
    for draw in range(4):
        torch.manual_seed(draw)
        model = _lively(convnets.ResNet18(classes=3) if network == "resnet18" else _vgg(), image)
        batches = [torch.randn(24, 1, image, image) for _ in range(32 if network == "resnet18" else 18)]
        found = found or symmetries(trace(model, batches[0], loss="cross_entropy"))
        measured.append(functional_rank(model, batches, readout=logit_differences))
        if measured[-1].defect == found.dimension:
            break
    best = max(measured, key=lambda m: m.rank)
    assert (best.parameters, found.dimension, best.defect) == (parameters, dimension, dimension)
    assert best.gap > CLEAR_GAP


def _vgg() -> nn.Module:
    """VGG-16 with leaky units: sixteen narrow layers of ReLU would leave hardly any unit alive. Both are homogeneous."""
    model = convnets.VGG16(batch_norm=True, classes=3, hidden=4, dropout=0.2)
    for layers in (model.features, model.classifier):
        for place, layer in enumerate(layers):
            if isinstance(layer, nn.ReLU):
                layers[place] = nn.LeakyReLU(0.2)
    return model


@torch.no_grad()
def _lively(model: nn.Module, image: int) -> nn.Module:
    """Parameters at which every unit is sometimes on and sometimes off."""
    pooled = isinstance(model, convnets.VGG16)  # a maximum over positions is seldom negative unless the channel mostly is
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.eps = EPS
            layer.weight.uniform_(0.5, 1.5)
            layer.bias.normal_(-0.5 if pooled else 0.4, 0.2 if pooled else 0.4)
    data = torch.randn(64, 1, image, image)
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            _centre(model, layer, data)
    return model


def _centre(model: nn.Module, layer: nn.Linear, data: Tensor) -> None:
    outputs: list[Tensor] = []
    handle = layer.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    model(data)
    handle.remove()
    layer.bias -= outputs[0].mean(0)


def test_too_few_data_are_refused() -> None:
    with pytest.raises(ModelError, match="Give more batches"):
        functional_rank(nn.Linear(3, 4), [torch.randn(2, 3)])


def test_a_jacobian_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ModelError, match="not finite"):
        functional_rank(nn.Linear(3, 2), [torch.full((8, 3), torch.inf)])


@pytest.mark.parametrize("rank", [1, 4, 7])
def test_a_known_rank_is_measured_with_its_gap(rank: int) -> None:
    torch.set_default_dtype(torch.float64)
    matrix = (torch.randn(20, rank) @ torch.randn(rank, 7)) * torch.logspace(-4, 4, 7)  # columns of very different size
    measured, gap = numerical_rank(matrix)
    assert measured == rank
    assert gap > CLEAR_GAP
