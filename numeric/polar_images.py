"""Pictures sampled on polar rings, where a rotation of the plane is an exact linear action on what was sampled."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from noetherflow.errors import DataError

__all__ = ["polar_images"]


def polar_images(images: Tensor, rings: int, angles: int) -> Tensor:
    """Sample pictures on rings about their centre, by bilinear interpolation.

    The sampling is a choice of features, made once. What follows is exact: on these features
    `noetherflow.numeric.input_groups.ring_rotations` is a group action, and its steps of 2π / angles are shifts.

    Parameters
    ----------
    images : Tensor, shape (n, channels, height, width)
    rings : int
        At radii (r + 1) / rings of half the shorter side, less half a pixel.
    angles : int
        Places on each ring; odd, for `ring_rotations`.

    Returns
    -------
    Tensor, shape (n, channels * rings * angles), float64
        Angles run fastest.

    Raises
    ------
    DataError
        The images are not of that shape, or there is no ring.

    Examples
    --------
    >>> flat = polar_images(torch.ones(2, 1, 8, 8), rings=2, angles=5)
    >>> tuple(flat.shape), bool((flat - 1).abs().max() < 1e-12)
    ((2, 10), True)
    """
    if images.dim() != 4 or rings < 1 or angles < 1:
        raise DataError(f"Rings are sampled of images (n, channels, height, width); got {tuple(images.shape)}, {rings} rings.")
    height, width = images.shape[2:]
    radii = (min(height, width) - 1) / 2 * (torch.arange(rings, dtype=torch.float64) + 1) / rings
    turns = 2 * math.pi * torch.arange(angles, dtype=torch.float64) / angles
    # grid_sample counts from -1 to 1 between the centres of the outermost pixels
    across = radii[:, None] * torch.cos(turns) / ((width - 1) / 2)
    down = radii[:, None] * torch.sin(turns) / ((height - 1) / 2)
    grid = torch.stack([across, down], -1).expand(len(images), -1, -1, -1)
    return torch.nn.functional.grid_sample(images.double(), grid, align_corners=True).flatten(1)
