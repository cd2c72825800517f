"""Growth under random factors, against products that are drawn, and the step size at which it changes sign."""

from __future__ import annotations

import numpy as np
import pytest

from noetherflow.errors import RunError
from noetherflow.numeric.lyapunov import critical_rate, growth, growth_samples
from noetherflow.numeric.statistics import judge

CURVATURES = np.random.default_rng(0).normal(-0.1, 1.0, 500)


@pytest.mark.parametrize("rate", [0.1, 0.6])
def test_products_grow_as_told(rate: float) -> None:
    drawn = np.random.default_rng(1).choice(CURVATURES, (64, 1000))
    samples = np.log(np.abs(1 - rate * (drawn + 0.02))).mean(1)
    mean = float(np.log(abs(1 - rate * (CURVATURES + 0.02).mean())))
    assert judge(samples, growth(CURVATURES, rate, 0.02), {"ln of the mean factor": mean}).holds


def test_growth_changes_sign_at_the_critical_rate() -> None:
    edge = critical_rate(CURVATURES, 0.02)
    assert growth(CURVATURES, edge * (1 - 1e-9), 0.02) > 0 > growth(CURVATURES, edge * (1 + 1e-9), 0.02)
    small = -2 * (CURVATURES + 0.02).mean() / np.square(CURVATURES + 0.02).mean()
    assert abs(edge / small - 1) < edge * np.abs(CURVATURES).max(), "to second order in η"


def test_attracting_means_need_no_noise() -> None:
    assert critical_rate(CURVATURES, 0.2) == 0.0
    assert growth(CURVATURES, 0.01, 0.2) < 0


def test_without_noise_there_is_no_critical_rate_but_oscillation() -> None:
    with pytest.raises(RunError, match="No step size"):
        critical_rate([-1.0, -1.0])
    assert growth_samples([-1.0], 0.5) > 0
