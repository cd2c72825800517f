"""Gradients of derived charges at a point: the generators that have charges, one row each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from math import lcm

import torch
from torch import Tensor

from noetherflow.errors import GraphError
from noetherflow.symbolic.laws import Law
from noetherflow.symbolic.symmetries import Symmetry


def charge_gradients(laws: Sequence[Law], point: Mapping[str, Tensor]) -> tuple[Tensor, list[int]]:
    """∇Q of every charge under the Euclidean metric.

    Parameters
    ----------
    laws : sequence of Law
    point : mapping of str to Tensor
        The parameters that count, in order, in float64. Integers give integers (a family with fractions is multiplied by what clears them).

    Returns
    -------
    Tensor, shape (charges, D)
        Columns are the parameters' entries in the order of `point`.
    list of int
        For each row, the place of its law.
    """
    rows, owners = [torch.zeros(0, sum(p.numel() for p in point.values()), dtype=torch.float64)], []
    for number, law in enumerate(laws):
        symmetry = _cleared(law.symmetry)
        for direction in _directions(symmetry):
            tangent = symmetry.tangent(point, direction)
            whole = [tangent[name].flatten() if name in tangent else p.new_zeros(p.numel()) for name, p in point.items()]
            rows.append(torch.cat(whole).unsqueeze(0))
            owners.append(number)
    return torch.cat(rows), owners


def _cleared(symmetry: Symmetry) -> Symmetry:
    """The same family with integer weights."""
    common = lcm(*(int(action.weight.q) for action in symmetry.actions))
    return replace(symmetry, actions=tuple(replace(a, weight=a.weight * common) for a in symmetry.actions)) if common > 1 else symmetry


def _directions(symmetry: Symmetry) -> Iterator[Tensor]:
    """A basis of the generators that have charges: all, or the symmetric matrices of a matrix family."""
    if not isinstance(symmetry.dimension, int):
        raise GraphError(f"'{symmetry.name}' has symbolic size {symmetry.dimension}; laws are counted for a graph with numbers.")
    if not symmetry.matrix:
        yield from torch.eye(symmetry.dimension, dtype=torch.float64)
        return
    n = int(symmetry.sizes[-1])
    for spectator in range(symmetry.dimension // n**2):
        for i in range(n):
            for j in range(i + 1):
                matrix = torch.zeros(symmetry.dimension // n**2, n, n, dtype=torch.float64)
                matrix[spectator, i, j] = matrix[spectator, j, i] = 1.0
                yield matrix.flatten()
