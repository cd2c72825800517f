"""Teleportation: an objective gained or charges met, the function unchanged, the radius kept."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from support.orbits import EXACT, change, charges, net, output, parameters
from torch import Tensor, nn
from torch.nn import functional as F

import noetherflow as nf
from noetherflow.bridge.teleport import squared_gradient
from noetherflow.errors import ModelError


def measured_slope(model: nn.Module, inputs: Tensor, targets: Tensor) -> float:
    """‖∇L‖² by a plain backward pass."""
    model.zero_grad()
    F.cross_entropy(model(inputs), targets).backward()
    return sum(float(p.grad.square().sum()) for p in model.parameters())


@pytest.mark.parametrize("name", ["mlp", "deep_linear", "convnet"])
@pytest.mark.parametrize("maximize", [True, False], ids=["steeper", "flatter"])
def test_the_gradient_grows_or_shrinks_and_the_function_stays(name: str, maximize: bool) -> None:
    case = net(name)
    targets = torch.arange(len(case.inputs)) % 3
    slope = squared_gradient(case.model, F.cross_entropy, case.inputs, targets)
    buffers = [b.clone() for b in case.model.buffers()]
    moved = nf.teleport(case.model, case.symmetries, slope, maximize=maximize, steps=8)
    assert all(torch.equal(a, b) for a, b in zip(buffers, case.model.buffers(), strict=True))
    assert moved.after > 1.5 * moved.before if maximize else moved.after < 0.9 * moved.before
    assert change(case.model, moved.model, case.inputs, up_to_shift=name == "convnet") < EXACT
    assert measured_slope(moved.model, case.inputs, targets) == pytest.approx(moved.after, rel=1e-9)


def test_no_coordinate_leaves_the_radius() -> None:
    case = net("mlp")
    slope = squared_gradient(case.model, F.cross_entropy, case.inputs, torch.arange(9) % 3)
    moved = nf.teleport(case.model, case.graph, slope, steps=30, radius=0.25)
    largest = max(float(element.value.abs().max()) for element in moved.elements)
    assert largest == pytest.approx(0.25, rel=1e-12)
    rows = parameters(moved.model)["layers.0.weight"].norm(dim=1) / parameters(case.model)["layers.0.weight"].norm(dim=1)
    assert float(rows.log().abs().max()) <= 0.25 + 1e-12


def test_the_norm_as_objective_is_least_where_rebalancing_says() -> None:
    case = net("mlp")
    moved = nf.teleport(
        case.model, case.graph, lambda own: sum(p.square().sum() for p in own.values()), maximize=False, steps=200, radius=3.0
    )
    least = nf.rebalance(case.model, case.graph).after ** 2
    assert least * (1 - 1e-12) <= moved.after < least * (1 + 1e-4) < moved.before


def test_nothing_to_gain_is_nothing_moved() -> None:
    """Negative control: what the function alone decides does not change along an orbit."""
    case = net("mlp")

    def loss(own: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(case.model, own, (case.inputs,)).square().mean()

    moved = nf.teleport(case.model, case.graph, loss, steps=5)
    assert moved.after == pytest.approx(moved.before, rel=1e-12)


def test_a_float32_model_stays_one() -> None:
    model, x = nf.models.MLP([3, 6, 2]), torch.randn(8, 3)
    moved = nf.teleport(model, x, squared_gradient(model, F.mse_loss, x, torch.randn(8, 2)), steps=5)
    assert {p.dtype for p in moved.model.parameters()} == {torch.float32}
    assert moved.after > moved.before
    assert torch.allclose(output(moved.model, x), output(model, x), atol=1e-5)


@pytest.mark.parametrize(
    ("objective", "words"),
    [
        (lambda own: own["layers.0.weight"], "one finite number"),
        (lambda own: torch.tensor(torch.nan), "one finite number"),
        (lambda own: 1.0, "one finite number"),
        (lambda own: torch.tensor(1.0), "does not depend"),
    ],
    ids=["a_matrix", "nan", "no_tensor", "a_constant"],
)
def test_an_objective_of_the_wrong_form_is_refused(objective: object, words: str) -> None:
    case = net("mlp")
    with pytest.raises(ModelError, match=words):
        nf.teleport(case.model, case.graph, objective)


def test_charges_asked_for_are_met() -> None:
    case = net("resnet")
    families = [s for s in case.symmetries if s.kind == "rescale"][:3]
    wanted = {s: torch.randn(s.dimension, generator=torch.Generator().manual_seed(s.number)).double() for s in families}
    moved = nf.teleport(case.model, case.symmetries, wanted)
    for symmetry, values in wanted.items():
        found, size = charges(symmetry, moved.model)
        assert float((found / 2 - values).abs().max()) < 1e-12 * float(size)
    assert moved.after < 1e-12 * moved.before
    assert change(case.model, moved.model, case.inputs) < EXACT
    assert (
        sum("no charges were asked" in why for why in moved.left.values())
        == sum(s.kind in ("rescale", "translation") for s in case.symmetries) - 3
    )


def test_charges_that_cannot_be_are_refused() -> None:
    case = net("convnet")
    by_kind = {s.kind: s for s in case.symmetries}
    with pytest.raises(ModelError, match="cannot be given charges"):
        nf.teleport(case.model, case.symmetries, {by_kind["translation"]: torch.zeros(1)})
    with pytest.raises(ModelError, match="eps"):
        nf.teleport(case.model, case.symmetries, {by_kind["scale"]: torch.ones(4)})
    with pytest.raises(ModelError, match=r"shape \(6,\); got \(2,\)"):
        nf.teleport(case.model, case.symmetries, {by_kind["rescale"]: torch.ones(2)})
    with pytest.raises(ModelError, match="no point of least norm"):
        nf.teleport(case.model, case.symmetries, {by_kind["scale"]: -torch.ones(4)}, approximate=True)


def test_a_pure_scale_reaches_positive_charges() -> None:
    case = net("convnet")
    scale = next(s for s in case.symmetries if s.kind == "scale")
    moved: Any = nf.teleport(case.model, case.symmetries, {scale: torch.full((4,), 0.5)}, approximate=True).model
    assert torch.allclose(moved[0].weight.square().sum((1, 2, 3)) + moved[0].bias.square(), torch.ones(4).double())
    assert math.isclose(change(case.model, moved, case.inputs), 0.0, abs_tol=EXACT)
