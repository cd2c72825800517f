"""Derivatives along an orbit: carried from one point, to rounding, and the drift of finite steps and noise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import noetherflow as nf
from noetherflow.errors import ModelError
from noetherflow.numeric.order import fit_order

PLACES = (-0.6, -0.2, 0.0, 0.3, 0.7)
# each is a sum of fewer than 2^12 products
ROUNDING = 2.0**-53 * 2**12


def case(name: str) -> tuple[nn.Module, Tensor, Tensor]:
    torch.default_generator.manual_seed(3)
    nets = {
        "relu": lambda: nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3)),
        "linear": lambda: nn.Sequential(nn.Linear(5, 4, bias=False), nn.Linear(4, 3)),
        "convolution": lambda: nn.Sequential(nn.Unflatten(1, (1, 5)), nn.Conv1d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3)),
    }
    model = nets[name]().double()
    return model, torch.randn(12, 5, dtype=torch.float64), torch.arange(12) % 3


@pytest.mark.parametrize("name", ["relu", "linear", "convolution"])
def test_what_is_known_at_one_point_is_known_on_the_orbit(name: str) -> None:
    model, x, y = case(name)
    profile = nf.orbit_profile(model, nf.trace(model, x), x, y, F.cross_entropy, at=PLACES)
    assert np.ptp(profile.loss) < ROUNDING
    for quantity, told in profile.predicted.items():
        assert np.abs(told / getattr(profile, quantity) - 1).max() < ROUNDING, quantity
        assert np.ptp(told) > 1e-3 * told.max(), "the quantity does move along the orbit"
    assert len(profile.table()) == len(PLACES)
    assert "drift towards +s" in repr(profile), "the steepest direction goes down"


@pytest.mark.parametrize("name", ["relu", "linear"])
def test_slopes_are_those_of_the_curves(name: str) -> None:
    """Central differences of second order: their error falls as the square of the distance."""
    model, x, y = case(name)
    steps = [0.2 / 2**k for k in range(5)]
    at = [sign * h for h in steps for sign in (-1, 1)]
    profile = nf.orbit_profile(model, nf.trace(model, x), x, y, F.cross_entropy, at=at)
    for quantity, slope in profile.slopes.items():
        values = getattr(profile, quantity)
        found = (values[1::2] - values[::2]) / (2 * np.array(steps))
        order = fit_order(steps, list(np.abs(found - slope)))
        assert abs(order.slope - 2) < 0.1, (quantity, order)
        assert np.abs(found[-1] + slope) > 0.5 * abs(slope), "the other sign is not it"


def test_gradient_descent_moves_by_the_drift() -> None:
    """A step's charge on the orbit of the old point: the leading order is η², the error of higher order."""
    model, x, y = case("relu")
    graph = nf.trace(model, x)
    profile = nf.orbit_profile(model, graph, x, y, F.cross_entropy, at=(0.0,))
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    F.cross_entropy(model(x), y).backward()
    slopes = {name: p.grad.clone() for name, p in model.named_parameters()}

    def charge(p: dict[str, Tensor]) -> Tensor:
        return profile.direction @ (p["0.weight"].square().sum(1) + p["0.bias"].square() - p["2.weight"].square().sum(0)) / 2

    def moved(rate: float) -> float:
        change = charge({k: start[k] - rate * slopes[k] for k in start}) - charge(start)
        return float(change) / profile.velocity  # dQ/ds = |ξ|² at s = 0: the place on the orbit, to leading order

    rates = [0.4 / 2**k for k in range(5)]
    for rate in rates:
        assert moved(rate) == pytest.approx(profile.drift(rate), rel=1e-9)
    assert profile.drift(0.1, 1.0) != pytest.approx(profile.drift(0.1), rel=0.1), "noise adds to it"


def test_wrong_input_is_refused_by_name() -> None:
    model, x, y = case("relu")
    graph = nf.trace(model, x)
    with pytest.raises(ModelError, match="float64"):
        nf.orbit_profile(model.float(), graph, x.float(), y, F.cross_entropy)
    model = model.double()
    with pytest.raises(ModelError, match="No family number 3"):
        nf.orbit_profile(model, graph, x, y, F.cross_entropy, family=3)
    with pytest.raises(ModelError, match=r"has shape \(6,\)"):
        nf.orbit_profile(model, graph, x, y, F.cross_entropy, direction=torch.ones(5))
    linear, x, y = case("linear")
    with pytest.raises(ModelError, match="symmetric"):
        nf.orbit_profile(linear, nf.trace(linear, x), x, y, F.cross_entropy, direction=torch.triu(torch.ones(4, 4)))
