"""Curvature: products, diagonal and extreme eigenvalues against the whole Hessian."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from noetherflow.errors import RunError
from noetherflow.numeric.curvature import hessian_product, hessian_times, largest_eigenvalue, slope_and_product

SIZE = 24
# sums of SIZE products, a few of them one after the other
ROUNDING = 2.0**-53 * SIZE * 16


def quartic(seed: int) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """A point, a matrix and a vector of an indefinite quartic."""
    drawn = torch.Generator().manual_seed(seed)
    point = {
        "a": torch.randn(4, 3, generator=drawn, dtype=torch.float64),
        "idle": torch.ones(2, dtype=torch.float64),
        "b": torch.randn(10, generator=drawn, dtype=torch.float64),
    }
    matrix = torch.randn(22, 22, generator=drawn, dtype=torch.float64)
    return point, matrix + matrix.T, torch.randn(22, generator=drawn, dtype=torch.float64)


def function(matrix: Tensor, vector: Tensor) -> object:
    def value(p: dict[str, Tensor]) -> Tensor:
        flat = torch.cat([p["a"].reshape(-1), p["b"]])
        return flat @ matrix @ flat / 2 + (vector * flat**4).sum()

    return value


def whole(point: dict[str, Tensor], matrix: Tensor, vector: Tensor) -> Tensor:
    flat = torch.cat([point["a"].reshape(-1), point["b"]])
    inner = matrix + torch.diag(12 * vector * flat**2)
    out = torch.zeros(SIZE, SIZE, dtype=torch.float64)
    used = [*range(12), *range(14, 24)]
    out[torch.tensor(used)[:, None], torch.tensor(used)] = inner
    return out


@pytest.mark.parametrize("seed", range(3))
def test_products_are_those_of_the_matrix(seed: int) -> None:
    point, matrix, vector = quartic(seed)
    expected = whole(point, matrix, vector)
    product = hessian_product(function(matrix, vector), point)
    v = {name: torch.randn(t.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64) for name, t in point.items()}
    found = torch.cat([t.reshape(-1) for t in product(v).values()])
    scale = float(expected.abs().sum(1).max())
    assert float((found - expected @ torch.cat([t.reshape(-1) for t in v.values()])).abs().max()) < ROUNDING * scale
    flat = torch.cat([t.reshape(-1) for t in point.values()])
    sizes = [t.numel() for t in point.values()]

    def of_vector(x: Tensor) -> Tensor:
        parts = zip(point.items(), torch.split(x, sizes), strict=True)
        return function(matrix, vector)({name: part.reshape(t.shape) for (name, t), part in parts})

    every = hessian_times(of_vector, flat, torch.eye(len(flat), dtype=torch.float64))
    assert float((every - expected).abs().max()) < ROUNDING * scale
    slope, row = slope_and_product(of_vector, flat, torch.eye(len(flat), dtype=torch.float64)[2])
    assert torch.equal(slope, torch.func.grad(of_vector)(flat))
    assert float((row - expected[2]).abs().max()) < ROUNDING * scale


@pytest.mark.parametrize("smallest", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_the_extreme_eigenvalue_is_the_matrix_own(seed: int, smallest: bool) -> None:
    point, matrix, vector = quartic(seed)
    values = torch.linalg.eigvalsh(whole(point, matrix, vector))
    found = largest_eigenvalue(hessian_product(function(matrix, vector), point), point, smallest=smallest)
    assert found == pytest.approx(float(values[0 if smallest else -1]), rel=1e-9)
    assert found != pytest.approx(float(values[1 if smallest else -2]), rel=1e-3), "not its neighbour"


def test_a_flat_function_has_no_curvature() -> None:
    point = {"x": torch.ones(3, dtype=torch.float64)}
    assert largest_eigenvalue(hessian_product(lambda p: p["x"].sum(), point), point) == 0.0


def test_what_does_not_converge_or_is_not_finite_is_refused() -> None:
    scale = torch.linspace(1, 2, 2000, dtype=torch.float64)
    with pytest.raises(RunError, match="did not converge in 200 steps"):
        largest_eigenvalue(lambda v: {"x": (scale * v["x"]).float().double()}, {"x": scale}, tolerance=1e-15)
    with pytest.raises(RunError, match="not finite"):
        largest_eigenvalue(lambda v: {"x": v["x"] * torch.inf}, {"x": scale})
