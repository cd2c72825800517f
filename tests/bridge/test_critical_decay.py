"""The critical decay against spectra that are known, and against descents on either side of it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import noetherflow as nf
from noetherflow.bridge.critical_decay import CriticalDecay
from noetherflow.bridge.landscape import Landscape
from noetherflow.bridge.mirrors import Mirror
from noetherflow.bridge.subspaces import Subspace
from noetherflow.errors import RunError
from noetherflow.numeric.order import fit_order


def half_square(output: Tensor, target: Tensor) -> Tensor:
    return (output - target).square().sum(1).mean() / 2


def whitened(samples: int, inputs: int) -> Tensor:
    x = torch.linalg.qr(torch.randn(samples, inputs, dtype=torch.float64)).Q
    return x * samples**0.5


def descended(model: nn.Module, mirror: Mirror, found: CriticalDecay, data: tuple[Tensor, Tensor], decay: float, rate: float) -> float:
    """|Oᵀθ| after 400 steps from 1e-3 beside the critical point."""
    land = Landscape(model, half_square, *data)
    theta = found.point.theta + 1e-3 * found.point.direction
    for _ in range(400):
        theta = theta - rate * (land.contracted(theta) + decay * theta)
    return float(mirror.distance(land.named(theta)))


def test_low_rank_begins_at_the_second_singular_value() -> None:
    x = whitened(60, 5)
    y = x @ torch.randn(5, 4, dtype=torch.float64)
    spectrum = torch.linalg.svdvals(y.T @ x / len(x))
    model = nn.Sequential(nn.Linear(5, 2, bias=False), nn.Linear(2, 4, bias=False)).double()
    mirror = nf.mirrors(nf.trace(model, x))[0].mirror(torch.tensor([1.0, -2.0]))
    found = nf.critical_decay(model, mirror, x, y, half_square)
    assert abs(found.decay / float(spectrum[1]) - 1) < 1e-6  # 1e-8 is asked for, of levels that are known to about 1e-8
    assert abs(found.rate - 1) < 1e-6, "whitened inputs: what decay does to the first direction, the second does not see"
    assert found.order == 2
    space = Subspace(Landscape(model, half_square, x, y), mirror)
    between = float(spectrum[:2].mean())
    lowest = float(torch.linalg.eigvalsh(space.transverse(space.stationary(between, space.landscape.start).theta))[0])
    assert abs(lowest / -between - 1) < 1e-6, "with rotations left in, the criterion would call every decay critical"


def test_a_unit_falls_silent_where_it_is_told() -> None:
    torch.manual_seed(1)
    x = torch.randn(50, 4, dtype=torch.float64)
    y = torch.tanh(x @ torch.randn(4, 3, dtype=torch.float64))
    model = nn.Sequential(nn.Linear(4, 1, bias=False), nn.Tanh(), nn.Linear(1, 3)).double()
    mirror = nf.mirrors(nf.trace(model, x))[0].mirror()
    found = nf.critical_decay(model, mirror, x, y, half_square)
    above, below = (descended(model, mirror, found, (x, y), found.decay * f, 0.6 * found.largest_rate) for f in (1.05, 0.95))
    assert above < 1e-6
    assert abs(below / found.amplitude(0.95 * found.decay) - 1) < 0.1, "to relative order 1 - λ/λ_c, 0.05 times order one"
    shares = [0.08, 0.04, 0.02, 0.01]
    amplitudes = [found.amplitude(found.decay * (1 - s)) for s in shares]
    assert abs(fit_order(shares, amplitudes).slope - 0.5) < 1e-9
    assert descended(model, mirror, found, (x, y), found.decay, 1.05 * found.largest_rate) > 1e-3, "too large steps leave by oscillation"
    assert "continuous" in str(found)
    assert [row["attractive"] for row in found.table()] == sorted(row["attractive"] for row in found.table())
    assert found.plot().axes


class Steep(nn.Module):
    """u (wx + 4 (wx)³): the more weight, the more gain."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.inner(inputs)
        return self.outer(hidden + 4 * hidden**3)


def test_a_jump_is_told_from_a_continuous_transition() -> None:
    x = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    model = Steep().double()
    mirror = nf.mirrors(nf.trace(model, x))[0].mirror()
    found = nf.critical_decay(model, mirror, x, 0.3 * x, half_square)
    assert abs(found.decay - 0.3) < 1e-7
    # ½ (0.3 - s)² with s = a²/2 + a⁴ along w = u: B = 1/8 - 0.3
    assert abs(found.quartic - (1 / 8 - 0.3)) < 1e-6
    assert found.order == 1
    with pytest.raises(RunError, match="jump"):
        found.amplitude(0.2)
    beside = Landscape(model, half_square, x, 0.3 * x)
    values = [float(beside.value(torch.full((2,), a / 2**0.5).double()) + 0.31 * a**2 / 2) for a in (0.0, 0.45)]
    assert values[1] < values[0], "above λ_c the subspace attracts, and is not the deepest"


def test_what_cannot_be_solved_is_refused() -> None:
    x = torch.tensor([[1.0], [-1.0]])
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
    mirror = nf.mirrors(nf.trace(model, x))[0].mirror()
    with pytest.raises(RunError, match="vanishes"):
        nf.critical_decay(model, mirror, x, 0 * x, half_square)
