"""Groups that act on inputs: what is one is kept exactly, what is none is refused."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from noetherflow.errors import DataError
from noetherflow.numeric.input_groups import Circle, circle_of, cyclic_shifts, generated, representation_defects, ring_rotations
from noetherflow.numeric.polar_images import polar_images

TURN = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)


def interpolated(angle: float) -> Tensor:
    """Bilinear turning of 5 x 5 pixels."""
    cosine, sine = math.cos(angle), math.sin(angle)
    places = torch.tensor([[cosine, -sine, 0.0], [sine, cosine, 0.0]], dtype=torch.float64).expand(25, 2, 3)
    pixels = torch.eye(25, dtype=torch.float64).reshape(25, 1, 5, 5)
    grid = torch.nn.functional.affine_grid(places, [25, 1, 5, 5], align_corners=False)
    return torch.nn.functional.grid_sample(pixels, grid, align_corners=False).reshape(25, 25).T


def test_ring_rotations_are_a_representation() -> None:
    circle = ring_rotations(3, 9)
    assert circle.frequency == 4
    # entries are sums of 27 terms of at most one
    assert max(representation_defects(circle.element, (0.3, 1.1, 4.0)).values()) < 27 * 2.0**-50
    shifted = torch.arange(27.0, dtype=torch.float64).reshape(3, 9).roll(2, 1).flatten()
    assert torch.allclose(circle.element(4 * math.pi / 9) @ torch.arange(27.0, dtype=torch.float64), shifted, atol=1e-12)


def test_generator_is_the_derivative_of_the_elements() -> None:
    circle, h = ring_rotations(1, 7), 1e-3
    for step, tolerance in ((h, 3**3 * h**2), (h / 10, 3**3 * h**2 / 100)):  # a central difference, third derivatives at most 3³
        slope = (circle.element(step) - circle.element(-step)) / (2 * step)
        assert float((slope - circle.generator).abs().max()) < tolerance


def test_an_action_is_read_from_its_elements() -> None:
    known = ring_rotations(2, 7)
    found = circle_of(known.element, 9)
    assert float((found.generator - known.generator).abs().max()) < 1e-12
    with pytest.raises(DataError, match="frequencies above 2"):
        circle_of(known.element, 5)


def test_interpolation_is_no_action() -> None:
    with pytest.raises(DataError, match="no orthogonal group action"):
        circle_of(interpolated, 31)


@pytest.mark.parametrize(
    ("generator", "message"),
    [
        (torch.eye(2), "not antisymmetric"),
        (torch.block_diag(TURN, math.sqrt(2) * TURN), "whole numbers"),
        (torch.zeros(2, 3), "square matrix"),
    ],
)
def test_what_generates_no_circle_is_refused(generator: Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Circle(generator)


def test_finite_groups_are_closed() -> None:
    places = torch.eye(4, dtype=torch.float64)
    assert generated(places[[1, 0, 2, 3]], places[[1, 2, 3, 0]]).order == 24
    assert generated(places[[1, 2, 3, 0]], places[[3, 2, 1, 0]]).order == 8
    assert cyclic_shifts(6).order == 6
    with pytest.raises(DataError, match="orthogonally"):
        generated(2 * places)
    with pytest.raises(DataError, match="products"):
        generated(Circle(TURN).element(1.0))


def test_even_rings_are_refused() -> None:
    with pytest.raises(DataError, match="odd"):
        ring_rotations(1, 8)


def test_polar_images_of_a_turned_picture_are_shifted() -> None:
    generator = torch.Generator().manual_seed(0)
    picture = torch.rand(2, 1, 9, 9, generator=generator, dtype=torch.float64)
    flat = polar_images(picture, 2, 8).reshape(2, 2, 8)
    quarter = polar_images(torch.rot90(picture, -1, (2, 3)), 2, 8).reshape(2, 2, 8)
    assert torch.allclose(quarter, flat.roll(2, 2), atol=1e-12)
    assert not torch.allclose(quarter, flat.roll(-2, 2), atol=1e-2)
