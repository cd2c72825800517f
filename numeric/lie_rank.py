"""Dimension of the Lie algebra that gradient fields generate, at one point: rows are drawn level by level until nothing is left to find.

The rank of some rows is never more than the dimension, so a number of laws counted from it is never too small. It is the dimension once no
bracket of the next length brings anything new at a generic point; that is the only thing that a measurement cannot prove.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Protocol

import torch
from torch import Tensor

from noetherflow.errors import ModelError
from noetherflow.numeric.functional_rank import null_space, numerical_rank

MAX_LEVEL: Final = 7
SHARE: Final = 4
"""The rank is measured again when a quarter more rows are there: each time costs a decomposition of them all."""

Draw = Callable[[int, int, int], tuple[Tensor, int]]
"""(level, first sample, rows) -> the rows, and the sample to go on with."""


class Space(Protocol):
    """A row space that rows are added to."""

    @property
    def rank(self) -> int:
        """Its dimension."""
        ...

    def add(self, rows: Tensor) -> int:
        """Add rows; returns how many dimensions they bring."""
        ...

    def null_space(self) -> Tensor:
        """A basis, one row each, of what every row maps to zero."""
        ...


class FloatSpace:
    """A row space in float64: rank by singular values, with the gap there.

    Examples
    --------
    >>> space = FloatSpace(2)
    >>> space.add(torch.tensor([[1.0, 2.0], [2.0, 4.0], [3.0, 6.0]], dtype=torch.float64)), space.gap > 1e10
    (1, True)
    """

    def __init__(self, columns: int) -> None:
        self.rows = torch.zeros(0, columns, dtype=torch.float64)
        self.rank, self.gap = 0, torch.inf

    def add(self, rows: Tensor) -> int:
        """Add rows and measure the rank of all."""
        before = self.rank
        lengths = rows.norm(dim=1, keepdim=True)
        kept = (lengths > 1e-10 * lengths.max()).flatten()
        self.rows = torch.cat([self.rows, rows[kept] / lengths[kept]])
        self.rank, self.gap = numerical_rank(self.rows)
        return self.rank - before

    def null_space(self) -> Tensor:
        """An orthonormal basis."""
        return null_space(self.rows)[0].T


class NotFinite(ModelError):
    """A field has no value at a point: a normalisation without eps whose variance is zero there, say."""


@dataclass(slots=True)
class Growth:
    """How the rank grew.

    Attributes
    ----------
    steps : list of (level, first sample, rows, rank afterwards)
    rank : int
        A lower bound of the dimension of the Lie algebra at the point (in exact arithmetic: proved).
    reached : bool
        The rank is the one asked for.
    closed : bool
        A whole level brought nothing new.
    """

    steps: list[tuple[int, int, int, int]] = field(default_factory=list)
    rank: int = 0
    reached: bool = False
    closed: bool = False


def grow(draw: Draw, space: Space, target: int, *, spare: int, at_once: int) -> Growth:
    """Draw brackets until their rank is `target`, or a level brings nothing.

    Parameters
    ----------
    draw : callable
    space : Space
        Empty; it is filled.
    target : int
        The rank to reach: parameters less the laws that are known.
    spare : int
        Rows drawn beyond what the target needs.
    at_once : int
        Most rows that are drawn at a time.

    Examples
    --------
    >>> turning = lambda level, first, rows: (torch.randn(rows, 3, dtype=torch.float64) * (level < 2), first + rows)
    >>> grow(turning, FloatSpace(3), 3, spare=2, at_once=8).reached
    True
    """
    found = Growth()
    for level in range(MAX_LEVEL + 1):
        first, before = 0, space.rank
        while True:
            rows = min(max(at_once, space.rank // SHARE), target - space.rank + spare)
            drawn, after = _drawn(draw, level, first, rows, at_once)
            if not torch.isfinite(drawn).all():
                raise NotFinite("Brackets of gradient fields are not finite at a random point.", level=level)
            gained = space.add(drawn) if bool((drawn != 0).any()) else 0
            found.steps.append((level, first, rows, space.rank))
            found.rank, first = space.rank, after
            if found.rank >= target:
                found.reached = True
                return found
            if gained < rows:
                break
        if space.rank == before and level:
            found.closed = True
            return found
    return found


def _drawn(draw: Draw, level: int, first: int, rows: int, at_once: int) -> tuple[Tensor, int]:
    """Rows in pieces of no more than `at_once`."""
    pieces = []
    for start in range(0, rows, at_once):
        piece, first = draw(level, first, min(at_once, rows - start))
        pieces.append(piece)
    return torch.cat(pieces), first
