"""Mirrors are symmetries, of real models, and what is close to them is not; on their subspaces gradients of samples stay."""

from __future__ import annotations

from random import Random

import pytest
import torch
from support.block_cases import BLOCK_CASES
from support.cases import CASES
from support.invariance import Probe
from torch import nn

import noetherflow as nf
from noetherflow.bridge.anchoring import anchored
from noetherflow.bridge.landscape import Landscape
from noetherflow.bridge.mirrors import Mirror, MirrorFamily
from noetherflow.bridge.subspaces import Subspace
from noetherflow.errors import GraphError, ModelError, RunError
from noetherflow.symbolic.discrete import GroupElement

BY_NAME = {case.name: case for case in (*CASES, *BLOCK_CASES)}
SOUND = ("relu_mlp", "tanh_mlp", "linear_pair", "swiglu", "conv_bn_relu_conv", "grouped_conv", "attention_grouped", "llama_tied", "experts")
ROUNDING = 1e-11  # of outputs' magnitudes: thousands of roundings of 2⁻⁵³ each, added up


def drawn(family: MirrorFamily, random: Random) -> Mirror:
    """One of a family's mirrors, along a random direction where it has such."""
    if family.kind == "swap":
        return family.mirror(*(random.randrange(n) for n in family.sizes[:-1]), *random.sample(range(family.sizes[-1]), 2))
    place = [random.randrange(n) for n in family.sizes]
    if family.kind == "sign":
        flat = random.choice([i for i, free in enumerate(family.factor.free()) if free])
        return family.mirror(*(int(i) for i in torch.unravel_index(torch.tensor(flat), family.sizes))) if place else family.mirror()
    if family.everywhere:
        return family.mirror(*place[:-1], torch.randn(family.sizes[-1], dtype=torch.float64))
    return family.mirror(*place)


@pytest.mark.parametrize("name", SOUND)
def test_reflections_leave_the_function_unchanged(name: str) -> None:
    case = BY_NAME[name]
    model, inputs = case.build().double(), case.inputs()
    probe = Probe(model, inputs if case.tokens else inputs.double(), case.loss)
    point = probe.point(0)
    before = probe.terms(point)
    families = nf.mirrors(nf.trace(model, case.inputs() if case.tokens else case.inputs().double(), loss=case.loss))
    assert len(families)
    for family in families:
        mirror = drawn(family, Random(1))
        moved = mirror.reflected(point)
        assert float((probe.terms(moved) - before).abs().max()) < ROUNDING * max(1.0, float(before.abs().max())), family
        assert all(torch.allclose(mirror.reflected(moved)[n], p, rtol=0, atol=1e-12) for n, p in point.items())
        lifted = torch.stack([mirror.coordinates(mirror.lift(row)) for row in torch.eye(mirror.codimension).double()])
        assert torch.allclose(lifted, torch.eye(mirror.codimension).double(), rtol=0, atol=1e-14)
        parts = {n: (moved[n] if k == 0 else p) for k, (n, p) in enumerate((n, point[n]) for n in mirror.shapes)}
        if len(parts) > 1:  # reflecting one of its parameters alone is no symmetry
            assert float((probe.terms(point | parts) - before).abs().max()) > 1e6 * ROUNDING, family


def test_families_and_counts() -> None:
    tanh, relu = (nf.models.MLP([3, 4, 2], activation) for activation in ("tanh", "relu"))
    found = nf.mirrors(nf.trace(tanh, torch.zeros(5, 3)))
    assert [(f.kind, f.sizes, f.count) for f in found] == [("swap", (4,), 6), ("sign", (4,), 4)]
    assert [f.kind for f in nf.mirrors(nf.trace(relu, torch.zeros(5, 3)))] == ["swap"], "positive scalings hold no reflection"
    assert (found[0].mirror(0, 1).codimension, found[1].mirror(0).codimension) == (6, 6)
    assert "swap (4,)" in repr(found)
    assert "identical units" in repr(found[0].mirror(0, 1))


def test_the_subspace_of_a_swap_is_where_units_are_equal() -> None:
    model = nf.models.MLP([3, 4, 2], "tanh").double()
    mirror = nf.mirrors(nf.trace(model, torch.zeros(5, 3).double()))[0].mirror(0, 2)
    params = mirror.projected({n: p.detach() for n, p in model.named_parameters()})
    weight, out = params["layers.0.weight"], params["layers.1.weight"]
    ulps = 4 * 2.0**-53  # a difference, a product with ½ (as √½ twice), and a difference, of numbers below one
    assert float((weight[0] - weight[2]).abs().max()) <= ulps
    assert float((out[:, 0] - out[:, 2]).abs().max()) <= ulps
    assert float(mirror.distance(params)) <= ulps * mirror.codimension**0.5
    assert not torch.equal(weight[0], weight[1])


@pytest.mark.parametrize("rule", ["SGD", "Adam"])
def test_training_stays_on_the_subspace_but_not_for_every_rule(rule: str) -> None:
    """A reflection along two coordinates is kept by SGD alone: Adam is no rule of directions, and the mirror says so."""
    model = nn.Sequential(nn.Linear(4, 3, bias=False), nn.Linear(3, 2, bias=False)).double()
    x, y = torch.randn(20, 4).double(), torch.randn(20, 2).double()
    mirror = nf.mirrors(nf.trace(model, x))[0].mirror(torch.tensor([3.0, 4.0, 0.0]))
    assert not mirror.coordinatewise
    with torch.no_grad():
        for name, value in mirror.projected(dict(model.named_parameters())).items():
            model.get_parameter(name).copy_(value)
    optimizer = getattr(torch.optim, rule)(model.parameters(), lr=0.05)
    for _ in range(50):
        optimizer.zero_grad()
        ((model(x) - y) ** 2).mean().backward()
        optimizer.step()
    away = float(mirror.distance(dict(model.named_parameters())).detach())
    bound = 50 * 0.05 * 64 * 2.0**-53 * float(x.abs().sum()) * 50  # each step's rounding, grown by at most a factor of 50
    assert (away < bound) == (rule == "SGD"), away
    assert away < bound or away > 1e-3


def test_an_involution_of_the_group_is_a_mirror_and_other_elements_are_not() -> None:
    model = nf.models.MLP([3, 4, 2], "tanh").double()
    found = nf.mirrors(nf.trace(model, torch.zeros(5, 3).double()))
    both = found.of(GroupElement(((1, 0, 2, 3), (0, 0, 0, 1))))  # a swap and a sign of another unit
    assert both.codimension == 12
    assert both.coordinatewise
    x = torch.randn(7, 3).double()
    moved = torch.func.functional_call(model, both.reflected(dict(model.named_parameters())), (x,))
    assert torch.allclose(moved, model(x), rtol=0, atol=1e-14)
    with pytest.raises(GraphError, match="its own inverse"):
        found.of(GroupElement(((1, 2, 0, 3), (0, 0, 0, 0))))
    with pytest.raises(GraphError, match="its own inverse"):
        found.of(found.group.identity)


def test_gradients_of_samples_stay_on_a_silent_unit_exactly() -> None:
    model = nf.models.MLP([3, 4, 5, 2], "tanh")
    x, y = torch.randn(30, 3), torch.randn(30, 2)
    land = Landscape(model, "mse", x, y)
    for family in nf.mirrors(nf.trace(model, x)).of_kind("sign"):
        subspace = Subspace(land, family.mirror(1))
        theta = subspace.project(land.start)
        assert float((land.sample_gradients(theta) @ subspace.basis.T).abs().max()) == 0.0
        assert float((land.sample_gradients(land.start) @ subspace.basis.T).abs().max()) > 1e-3, "elsewhere they do not"


def test_wrong_choices_are_refused() -> None:
    model = nf.models.MLP([3, 4, 2], "tanh")
    swap, sign = nf.mirrors(nf.trace(model, torch.zeros(5, 3)))
    for family, at in ((swap, (1,)), (swap, (1, 1)), (swap, (0, 4)), (sign, (4,)), (sign, (torch.ones(4),))):
        with pytest.raises(GraphError):
            family.mirror(*at)
    with pytest.raises(RunError, match="does not train"):
        Subspace(Landscape(nn.Linear(3, 2), "mse", torch.zeros(5, 3), torch.zeros(5, 2)), sign.mirror(0))
    with pytest.raises(RunError, match="Unknown loss"):
        Landscape(model, "hinge", torch.zeros(5, 3), torch.zeros(5, 2))


def test_an_anchor_leaves_the_function_and_takes_the_mirrors() -> None:
    model, x = nf.models.MLP([3, 4, 2], "tanh").double(), torch.randn(6, 3).double()
    free = anchored(model, 0.1)
    assert torch.allclose(free(x), model(x), rtol=0, atol=1e-15 * 64)
    assert len(nf.mirrors(nf.trace(model, x))) == 2
    assert len(nf.mirrors(nf.trace(free, x))) == 0
    with pytest.raises(ModelError, match="positive scale"):
        anchored(model, 0.0)
    tied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    tied[1].weight = tied[0].weight
    with pytest.raises(ModelError, match="shares"):
        anchored(tied)


def test_statistics_are_not_reflected_and_eval_mode_says_so() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3)).double()
    x = torch.randn(40, 4, dtype=torch.float64) + 1
    model(x)
    kinds = [family.kind for family in nf.mirrors(nf.trace(model, x))]
    assert kinds == ["swap", "sign", "sign"]
    assert [family.kind for family in nf.mirrors(nf.trace(model.eval(), x))] == ["sign"], "only the sign behind the norm"
    swapped = nf.mirrors(nf.trace(model.train(), x))[0].mirror(0, 1).reflected(dict(model.named_parameters()))
    with torch.no_grad():
        outputs = [[torch.func.functional_call(model.train(mode), p, (x,)) for p in ({}, swapped)] for mode in (True, False)]
    apart = [float((a - b).abs().max()) for a, b in outputs]
    assert apart[0] < 1e-14, "sums of forty terms of size one"
    assert apart[1] > 1e-3


def test_anchors_on_parametrizations_are_refused() -> None:
    with pytest.raises(ModelError, match="parametrizations already"):
        anchored(nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 3))))
