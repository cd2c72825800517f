"""Fits of order and the integrator they rest on."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from noetherflow.errors import RunError
from noetherflow.numeric.integrate import integrate
from noetherflow.numeric.order import fit_order

STEPS = [0.4 / 2**octave for octave in range(6)]


@pytest.mark.parametrize("order", [1, 2, 3.5])
def test_a_power_law_is_found_with_no_uncertainty(order: float) -> None:
    fitted = fit_order(STEPS, [0.3 * h**order for h in STEPS])
    assert fitted.slope == pytest.approx(order, abs=1e-12)
    assert fitted.factor == pytest.approx(0.3, rel=1e-12)
    assert fitted.uncertainty < 1e-12


def test_the_standard_error_is_that_of_many_noisy_fits() -> None:
    """Scatter of slopes over seeded ensembles against the mean reported error."""
    generator = np.random.default_rng(1)
    fits = [fit_order(STEPS, [h**2 * math.exp(0.1 * generator.standard_normal()) for h in STEPS]) for _ in range(2000)]
    scatter = float(np.std([fit.slope for fit in fits]))
    reported = math.sqrt(float(np.mean([fit.uncertainty**2 for fit in fits])))
    assert reported == pytest.approx(scatter, rel=0.1)
    assert str(fits[0]).count("±") == 1


def test_a_floor_shows_as_uncertainty() -> None:
    clean, floored = (fit_order(STEPS, [h**2 + floor for h in STEPS]) for floor in (0.0, 1e-2))
    assert floored.uncertainty > 0.05 > clean.uncertainty
    assert abs(floored.slope - 2) > 0.5


@pytest.mark.parametrize(
    ("steps", "errors", "said"),
    [
        (STEPS[:3], [1.0, 0.5, 0.25], "4 or more"),
        ([0.1] * 6, [1.0] * 6, "4 or more"),
        (STEPS, [1.0] * 5, "4 or more"),
        (STEPS, [1.0, 0.5, 0.25, 0.0, 0.1, 0.1], "positive and finite"),
        (STEPS, [1.0, 0.5, math.nan, 0.1, 0.1, 0.1], "positive and finite"),
    ],
    ids=["too few", "one step size", "lengths differ", "zero", "nan"],
)
def test_what_has_no_order_is_refused(steps: Sequence[float], errors: Sequence[float], said: str) -> None:
    with pytest.raises(RunError, match=said):
        fit_order(steps, errors)


def test_the_integrator_is_of_eighth_order() -> None:
    """A pendulum, against the same integrator with many more steps."""
    start = torch.tensor([1.5, 0.3], dtype=torch.float64)

    def pendulum(x: torch.Tensor) -> torch.Tensor:
        return torch.stack([x[1], -torch.sin(x[0])])

    exact = integrate(pendulum, start, 4.0, 60)
    counts = [2, 3, 4, 6, 8]
    errors = [float((integrate(pendulum, start, 4.0, n) - exact).norm()) for n in counts]
    assert fit_order([4 / n for n in counts], errors).slope == pytest.approx(8, abs=0.6)


def test_the_integrator_keeps_an_energy_and_refuses_no_steps() -> None:
    start = torch.tensor([1.5, 0.3], dtype=torch.float64)
    end = integrate(lambda x: torch.stack([x[1], -x[0]]), start, 2 * math.pi, 40)
    assert float((end - start).norm()) < 1e-11
    with pytest.raises(RunError, match="at least one step"):
        integrate(lambda x: x, start, 1.0, 0)
