"""Growth across a mirror's subspace under SGD, against the exact exponent of one unit and against real runs beside the subspace."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import noetherflow as nf
from noetherflow.bridge.collapse import transverse_growth
from noetherflow.bridge.landscape import Landscape
from noetherflow.errors import RunError
from noetherflow.numeric.draws import draw_batches
from noetherflow.numeric.lyapunov import critical_rate, growth
from noetherflow.numeric.order import fit_order
from noetherflow.numeric.statistics import judge

UNIT = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)).double()
X = torch.ones(40, 1, dtype=torch.float64)
Y = (torch.linspace(-1.5, 1.8, 40, dtype=torch.float64))[:, None]
CURVATURES = -(X * Y).flatten().numpy()


def half_square(output: Tensor, target: Tensor) -> Tensor:
    return (output - target).square().sum(1).mean() / 2


@pytest.mark.parametrize("share", [0.8, 1.6])
def test_one_unit_grows_by_the_exact_exponent(share: float) -> None:
    mirror = nf.mirrors(nf.trace(UNIT, X))[0].mirror()
    rate = share * critical_rate(CURVATURES)
    found = transverse_growth(UNIT, mirror, X, Y, half_square, rate=rate, runs=24, steps=300)
    wrong = {"ln of the mean factor": growth([CURVATURES.mean()], rate)}
    # δ has a part along the other direction for a while: at most a factor of a few in all
    assert judge(found.exponents, growth(CURVATURES, rate), wrong, resolution=2 / 300).holds
    assert found.collapses in ((True, None) if share > 1 else (False, None))
    assert "growth" in str(found)


def test_the_linearised_run_is_the_real_one_to_second_order() -> None:
    """The same mini-batches: |Oᵀθ| of a run at a distance ε, over ε, is the product of the transverse factors with an error of ε²."""
    model = nf.models.MLP([3, 2, 2], "tanh").double()
    x, y = torch.randn(20, 3).double(), torch.randn(20, 2).double()
    mirror = nf.mirrors(nf.trace(model, x)).of_kind("swap")[0].mirror(0, 1)
    rate, decay, steps, seed = 0.1, 0.01, 30, 5
    told = transverse_growth(
        model, mirror, x, y, half_square, rate=rate, decay=decay, batch=4, steps=steps, runs=2, warmup=0, seed=seed
    ).logarithms[0, -1]
    land = Landscape(model, half_square, x, y)
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(2, mirror.codimension, generator=generator, dtype=torch.float64)[0]
    sizes, errors = [0.08, 0.04, 0.02, 0.01], []
    for size in sizes:
        theta = land.flat(mirror.projected(land.named(land.start))) + size * land.flat(mirror.lift(start / start.norm()))
        for xb, yb in draw_batches(x, y, 4, [seed], steps):
            slope = torch.func.grad(land.value)(theta, xb[0], yb[0])
            theta = theta - rate * (slope + decay * theta)
        errors.append(abs(float(mirror.distance(land.named(theta)).log()) - float(torch.tensor(size).double().log()) - float(told)))
    assert abs(fit_order(sizes, errors).slope - 2) < 0.2, errors


def test_what_has_neutral_directions_or_diverges_is_refused() -> None:
    pair = nn.Sequential(nn.Linear(3, 2, bias=False), nn.Linear(2, 3, bias=False)).double()
    x = torch.randn(9, 3).double()
    with pytest.raises(RunError, match="neutral"):
        transverse_growth(pair, nf.mirrors(nf.trace(pair, x))[0].mirror(0), x, x, half_square, rate=0.1)
    model = nf.models.MLP([3, 2, 2], "tanh").double()
    sign = nf.mirrors(nf.trace(model, x)).of_kind("sign")[0].mirror(0)
    with pytest.raises(RunError, match="diverges"):
        transverse_growth(model, sign, x, x[:, :2], half_square, rate=1e200, steps=20, runs=2, warmup=0)
