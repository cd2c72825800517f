"""The generators that have charges, as directions in a family's basis: their tangents are the charges' Euclidean gradients."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import lcm

import torch
from torch import Tensor

from noetherflow.errors import GraphError
from noetherflow.symbolic.symmetries import Symmetry


def cleared(symmetry: Symmetry) -> Symmetry:
    """The same family with integer weights: at points with integers its tangents are integers."""
    common = lcm(*(int(action.weight.q) for action in symmetry.actions))
    return replace(symmetry, actions=tuple(replace(a, weight=a.weight * common) for a in symmetry.actions)) if common > 1 else symmetry


def charge_directions(symmetry: Symmetry, generators: str = "symmetric") -> Iterator[Tensor]:
    """A basis of the generators that have charges: all, or of a matrix family the symmetric or the diagonal matrices.

    Raises
    ------
    GraphError
        If the family has symbolic sizes.
    """
    if not isinstance(symmetry.dimension, int):
        raise GraphError(f"'{symmetry.name}' has symbolic size {symmetry.dimension}; laws are counted for a graph with numbers.")
    if not symmetry.matrix:
        yield from torch.eye(symmetry.dimension, dtype=torch.float64)
        return
    for i, j, matrix, spectator in _places(symmetry):
        if generators != "diagonal" or i == j:
            matrix[spectator, i, j] = matrix[spectator, j, i] = 1.0
            yield matrix.flatten()


def turning_directions(symmetry: Symmetry) -> Iterator[Tensor]:
    """A basis of a family's antisymmetric generators, which have angular momenta."""
    if symmetry.rotation:
        yield from torch.eye(int(symmetry.dimension), dtype=torch.float64)
        return
    for i, j, matrix, spectator in _places(symmetry):
        if i != j:
            matrix[spectator, i, j], matrix[spectator, j, i] = 1.0, -1.0
            yield matrix.flatten()


def _places(symmetry: Symmetry) -> Iterator[tuple[int, int, Tensor, int]]:
    """(row, column, zero matrices, which of them) for every place on or below the diagonal."""
    n = int(symmetry.sizes[-1])  # numbers, as the caller has seen
    count = int(symmetry.dimension) // n**2
    for spectator in range(count):
        for i in range(n):
            for j in range(i + 1):
                yield i, j, torch.zeros(count, n, n, dtype=torch.float64), spectator
