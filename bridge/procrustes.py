"""Rotations along linear axes that bring tensors near to others: orthogonal Procrustes problems, one family after another."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from noetherflow.bridge.group_elements import Element, Tensors
from noetherflow.bridge.minimum_norm import stacked
from noetherflow.symbolic.symmetries import Symmetry

SWEEPS = 50
SETTLED = 1e-12  # a sweep that gains less than this share of the squared distance is the last


def rotated(families: Sequence[Symmetry], fixed: Tensors, tensors: Tensors) -> tuple[list[Element], Tensors]:
    """Rotations that bring tensors nearer to fixed ones, one family at a time until nothing is gained, and what they make of them."""
    turns: list[Element] = []
    nearest = gap(fixed, tensors)
    for _ in range(SWEEPS if families else 0):
        before = nearest
        for family in families:
            turn = _procrustes(family, fixed, tensors)
            turned = turn.act(tensors)
            if (closer := gap(fixed, turned)) < nearest:  # where one parameter has the axis twice, the closed form need not gain
                turns.append(turn)
                tensors, nearest = turned, closer
        if before - nearest <= SETTLED * before:
            break
    return turns, tensors


def gap(a: Tensors, b: Tensors) -> float:
    """Squared distance."""
    return sum(float((a[name] - b[name]).square().sum()) for name in a)


def _procrustes(family: Symmetry, fixed: Tensors, tensors: Tensors) -> Element:
    """The rotation O that brings O b nearest to a: the orthogonal factor of Σ a bᵀ."""
    cross = stacked(family, fixed, family.actions) @ stacked(family, tensors, family.actions).mT
    u, _, vh = torch.linalg.svd(cross)
    rotation = u @ vh
    return Element(family, rotation, rotation.mT)
