"""Moving along an orbit: the action agrees with `Symmetry.transform`, and models that do not fit their symmetries are refused."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace

import pytest
import torch
from support.cases import CASES, Case
from support.orbits import EXACT, change, farthest, net, parameters
from torch import nn

import noetherflow as nf
from noetherflow.bridge.group_elements import act_all, exponential, pairing, tangent
from noetherflow.bridge.minimum_norm import compressed, minimum_norm
from noetherflow.bridge.orbits import orbit_of
from noetherflow.errors import ModelError
from noetherflow.symbolic.symmetries import Symmetries


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_action_is_that_of_the_symmetries(case: Case) -> None:
    torch.set_default_dtype(torch.float64)
    model = case.build()
    own = parameters(model)
    graph = nf.trace(model, torch.randn(case.batch, *case.shape), loss=case.loss)
    for family in orbit_of(model, graph, approximate=True).families:
        direction = 0.3 * torch.randn(family.dimension)
        coordinates = family.coefficients(direction)
        there, expected = exponential(family, coordinates).act(own), family.transform(own, direction)
        assert all(torch.allclose(there[name], expected[name], rtol=1e-12, atol=1e-14) for name in own)
        moved = tangent([family], own, [coordinates])
        assert all(torch.allclose(t, moved[name], rtol=1e-12, atol=1e-14) for name, t in family.tangent(own, direction).items())
        others = {name: torch.randn_like(p) for name, p in own.items()}
        along = sum((moved[name] * others[name]).sum() for name in moved)
        assert torch.allclose((pairing(family, own, others) * coordinates).sum(), along, rtol=1e-10)


def test_gradients_flow_through_the_action_where_families_share_a_block() -> None:
    case = net("tied")
    own = parameters(case.model)
    family = case.symmetries[0]
    weights = {name: torch.randn_like(p) for name, p in own.items()}

    def value(coordinates: torch.Tensor) -> torch.Tensor:
        moved = act_all([exponential(family, coordinates)], own)
        return sum((weights[name] * p).sum() for name, p in moved.items())

    assert torch.autograd.gradcheck(value, (0.1 * torch.randn(6).double().requires_grad_(),))


def test_compression_does_not_change_the_minimum() -> None:
    """The point found on norms of kernels is stationary for the kernels themselves."""
    case = net("resnet")
    families = [s for s in case.symmetries if s.kind == "rescale"]
    tensors = orbit_of(case.model, case.symmetries).tensors()
    _, small = compressed(families, tensors)
    assert sum(t.numel() for t in small.values()) < 0.2 * sum(t.numel() for t in tensors.values())
    moved = act_all(minimum_norm(families, tensors), tensors)
    for family in families:
        slope, mass = (pairing(family, moved, moved, power=power) for power in (1, 2))
        assert float((slope.abs() / mass).max()) < 1e-12


def test_an_element_of_a_wrong_family_changes_the_function() -> None:
    """Negative control: one weight of the wrong sign, and what all these tests measure sees it."""
    case = net("mlp")
    family = case.symmetries[0]
    wrong = replace(family, actions=(*family.actions[:-1], replace(family.actions[-1], weight=-family.actions[-1].weight)))
    for chosen, unchanged in ((family, True), (wrong, False)):
        model = orbit_of(case.model, Symmetries([chosen], {}, {})).carried(
            [exponential(chosen, torch.full((8,), 0.1).double())], inplace=False
        )
        assert (change(case.model, model, case.inputs) < EXACT) == unchanged


# --- what does not fit


def test_another_model_is_refused_with_the_parameters_at_fault() -> None:
    case = net("mlp")
    with pytest.raises(ModelError, match="graph is of another model") as caught:
        nf.rebalance(net("tied").model, case.graph)
    assert "layers.0.bias" in caught.value.data["missing"]
    with pytest.raises(ModelError, match=r"which TiedMLP does not have"):
        nf.rebalance(net("tied").model, case.symmetries)


def test_other_shapes_are_refused() -> None:
    case = net("mlp")
    with pytest.raises(ModelError, match=r"\(9, 5\), trainable in the model, \(8, 5\), trainable in the graph"):
        nf.rebalance(nf.models.MLP([5, 9, 6, 3]), case.graph)
    with pytest.raises(ModelError, match=r"reaches to \(8, 5\); the model's has shape \(4, 5\)"):
        nf.rebalance(nf.models.MLP([5, 4, 6, 3]), case.symmetries)


@pytest.mark.parametrize("by", ["graph", "symmetries"])
def test_a_parameter_frozen_since_the_trace_is_refused(by: str) -> None:
    case = net("mlp")
    model = copy.deepcopy(case.model)
    model.layers[1].weight.requires_grad_(False)
    with pytest.raises(ModelError, match="frozen"):
        nf.rebalance(model, getattr(case, by))


def test_parameters_tied_since_the_trace_are_refused() -> None:
    model, x = nf.models.MLP([4, 4, 4, 4]).double(), torch.randn(5, 4).double()
    found = nf.symmetries(nf.trace(model, x))
    model.layers[1].weight = model.layers[0].weight
    with pytest.raises(ModelError, match="one tensor in the model"):
        nf.rebalance(model, found)


def test_a_model_without_values_is_refused() -> None:
    with torch.device("meta"):
        model = nf.models.MLP([4, 4, 4])
    with pytest.raises(ModelError, match="meta"):
        nf.rebalance(model, torch.zeros(2, 4, device="meta"))


def test_something_else_than_symmetries_is_refused() -> None:
    with pytest.raises(ModelError, match="given as dict"):
        nf.rebalance(net("mlp").model, {})


def test_a_point_beyond_the_dtype_is_refused_and_nothing_is_changed() -> None:
    model, x = nf.models.MLP([3, 4, 2]).half(), torch.randn(4, 3).half()
    before = copy.deepcopy(model)
    target = {nf.symmetries(nf.trace(model, x))[0]: torch.full((4,), 1e12)}
    with pytest.raises(ModelError, match=r"would not be finite in torch.float16"):
        nf.teleport(model, x, target, inplace=True)
    assert farthest(model, before) == 0.0


def test_refusals_survive_pickling() -> None:
    model = nf.models.MLP([6, 3, 6], "linear", bias=False).double()
    nn.init.zeros_(model.layers[0].weight)
    with pytest.raises(ModelError) as caught:
        nf.rebalance(model, torch.randn(2, 6).double())
    assert pickle.loads(pickle.dumps(caught.value)).data["symmetry"].kind == "linear"
