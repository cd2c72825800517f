"""Signs of units with a sigmoid: (w, b, u, c) goes to (-w, -b, -u, c + u), where one linear layer with a bias reads them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from math import factorial

import pytest
import torch
from torch import Tensor, nn

import noetherflow as nf
from noetherflow.bridge.fixed_subspace import fixed_subspace
from noetherflow.errors import GraphError
from noetherflow.symbolic.discrete import DiscreteSymmetries
from noetherflow.symbolic.discrete_elements import flip

UNITS = 5
EXACT = 1e-13  # outputs are of size one: a few hundred roundings of 1e-16


def network(*behind: nn.Module, gate: type[nn.Module] = nn.Sigmoid, bias: bool = True) -> nn.Module:
    return nn.Sequential(nn.Linear(4, UNITS), gate(), nn.Linear(UNITS, 6, bias=bias), *behind)


class Several(nn.Module):
    """Sigmoids that are read in more than one way."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.write, self.again, self.read = how, nn.Linear(4, UNITS), nn.Linear(UNITS, UNITS), nn.Linear(UNITS, 6)

    def forward(self, x: Tensor) -> Tensor:
        """Shape (batch, 6)."""
        h = self.write(x).sigmoid()
        if self.how == "beside":
            return self.read(h + self.again(h).tanh())
        if self.how == "gate":
            return self.read(h * self.write(x))
        return self.again(self.again(h).sigmoid()) if self.how == "twice" else self.read(self.again(h).relu()) * self.read.bias


# Order of the permutations and signs, by hand.
FOUND: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "sigmoid": (network, factorial(UNITS) * 2**UNITS),
    "hard sigmoid": (lambda: network(gate=nn.Hardsigmoid), factorial(UNITS) * 2**UNITS),
    "two layers": (lambda: network(nn.Sigmoid(), nn.Linear(6, 2)), factorial(UNITS) * 2**UNITS * factorial(6) * 2**6),
    "tanh behind": (lambda: network(nn.Tanh(), nn.Linear(6, 2)), factorial(UNITS) * 2**UNITS * factorial(6) * 2**6),
    "relu behind": (lambda: network(nn.ReLU(), nn.Linear(6, 2)), factorial(UNITS) * 2**UNITS * factorial(6)),
    "linear behind": (lambda: network(nn.Linear(6, 8)), factorial(UNITS) * 2**UNITS * 2),
    "normalised behind": (
        lambda: network(nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2)),
        factorial(UNITS) * 2**UNITS * factorial(6) * 2**6,
    ),
}
NONE: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "no bias": (lambda: network(bias=False), factorial(UNITS)),
    "beside": (lambda: Several("beside"), factorial(UNITS)),
    "gate": (lambda: Several("gate"), factorial(UNITS)),
    "twice": (lambda: Several("twice"), 1),
    "silu": (lambda: network(gate=nn.SiLU), factorial(UNITS)),
    "softplus": (lambda: network(gate=nn.Softplus), factorial(UNITS)),
}


def built(build: Callable[[], nn.Module]) -> tuple[nn.Module, Tensor, DiscreteSymmetries]:
    torch.manual_seed(0)
    model, x = build().double(), torch.randn(9, 4, dtype=torch.float64)
    return model, x, nf.discrete_symmetries(nf.trace(model, x))


def point_of(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.detach() for n, p in model.named_parameters()}


def change(model: nn.Module, x: Tensor, point: dict[str, Tensor]) -> float:
    return float((torch.func.functional_call(model, point, (x,)) - model(x)).detach().abs().max())


def of_units(found: DiscreteSymmetries) -> int:
    return next(i for i, f in enumerate(found) if f.kind == "shifted sign" and f.sizes == (UNITS,))


@pytest.mark.parametrize("name", FOUND)
def test_a_sign_shifts_the_bias_that_reads_it(name: str) -> None:
    model, x, found = built(FOUND[name][0])
    point = point_of(model)
    assert found.order == FOUND[name][1]
    for seed in range(4):
        assert change(model, x, found.transform(point, found.random(seed))) < EXACT
    element = flip(found, of_units(found), 1)
    moved = found.transform(point, element)
    expected = {n: p.clone() for n, p in point.items()}
    expected["0.weight"][1] *= -1
    expected["0.bias"][1] *= -1
    expected["2.weight"][:, 1] *= -1
    expected["2.bias"] += point["2.weight"][:, 1]
    assert all(torch.allclose(moved[n], p, rtol=0, atol=EXACT) for n, p in expected.items())
    again = found.transform(moved, element)
    assert all(torch.allclose(again[n], p, rtol=0, atol=EXACT) for n, p in point.items())


def test_without_the_shift_or_with_another_it_is_none() -> None:
    model, x, found = built(network)
    point = point_of(model)
    moved = found.transform(point, flip(found, of_units(found), 1))
    shift = moved["2.bias"] - point["2.bias"]
    for wrong in (0.0, 0.5, -1.0):
        assert change(model, x, {**moved, "2.bias": point["2.bias"] + wrong * shift}) > 1e-3


@pytest.mark.parametrize("name", NONE)
def test_where_the_shift_has_no_place_to_go_there_are_no_signs(name: str) -> None:
    model, x, found = built(NONE[name][0])
    point = point_of(model)
    assert found.order == NONE[name][1]
    assert not [f for f in found if f.kind == "shifted sign"]
    assert change(model, x, found.transform(point, found.random(1))) < EXACT
    wrong = {n: -p if n.split(".")[0] in ("0", "write") else p for n, p in point.items()}
    assert change(model, x, wrong) > 1e-3


@pytest.mark.parametrize("name", ["two layers", "linear behind", "normalised behind"])
def test_alignment_and_distance_carry_units_back(name: str) -> None:
    model, x, found = built(FOUND[name][0])
    other = copy.deepcopy(model)
    other.load_state_dict(found.transform(point_of(model), found.random(3)), strict=False)
    graph = nf.trace(model, x)
    group, bound = nf.symmetries(graph), 1e-11  # balancing ends at a slope of 1e-12 of ½ ‖θ‖², here about ten
    assert nf.align(model, other, graph, approximate=True).after < bound
    assert nf.align(model, other, graph, continuous=False).after < bound
    assert nf.distance(model, other, group, approximate=True) > 1
    assert nf.distance(model, other, group, approximate=True, discrete=found) < bound
    assert nf.distance(other, model, group, approximate=True, discrete=found) < bound


def test_it_is_no_reflection() -> None:
    """It changes the norm, so weight decay does not see it: nothing that rests on orthogonal maps takes it for one."""
    model, x, found = built(network)
    element, point = flip(found, of_units(found), 0), point_of(model)
    before, after = (sum(float(p.square().sum()) for p in t.values()) for t in (point, found.transform(point, element)))
    assert abs(before - after) > 1e-3
    mirrors = nf.mirrors(nf.trace(model, x))
    assert [m.kind for m in mirrors] == ["swap"]
    with pytest.raises(GraphError, match="shifts a bias"):
        mirrors.of(element)
    with pytest.raises(GraphError, match="shifts a bias"):
        fixed_subspace(found, element, model)
