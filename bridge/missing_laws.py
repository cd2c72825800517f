"""Directions in which a conserved quantity could still change, which no derived charge accounts for: few entries each, by parameter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor

from noetherflow.bridge.law_counts import Count
from noetherflow.numeric.elimination import Echelon, fraction
from noetherflow.numeric.functional_rank import reduced
from noetherflow.numeric.lie_rank import FloatSpace

ORDERS: Final = 24
SMALL: Final = 1e-7


def missing_directions(count: Count) -> tuple[dict[str, Tensor], ...]:
    """A basis of what the fields leave free, up to the gradients of the charges that were found.

    Each direction is the gradient, at the point, of a law that is not known (or of none, if brackets were not drawn far enough). Directions
    are sought that have few entries, which is what gradients of laws have; the search is a heuristic, the space that they span is not.

    Returns
    -------
    tuple of dict of str to Tensor
        Parameter -> its entries, the first of each direction one; small fractions where residues are such, else the residues.
    """
    space = count.space
    if isinstance(space, FloatSpace):
        rows = reduced(_outside(space.null_space(), count.gradients))
        return tuple(_by_name(row, count.state) for row in rows)
    if space.rank + count.found >= count.coordinates:
        return ()
    found = _sparse(space.null_space(), count.gradients, space.prime)
    lifted = (torch.tensor([_lifted(x, space.prime) for x in row.tolist()], dtype=torch.float64) for row in found)
    return tuple(_by_name(row, count.state) for row in lifted)


def _sparse(null: Tensor, known: Tensor, prime: int) -> list[Tensor]:
    """Rows of reduced forms of the null space in several orders of the columns; the shortest that the known do not span."""
    generator = torch.Generator().manual_seed(0)
    candidates: list[Tensor] = []
    for _ in range(ORDERS):
        order = torch.randperm(null.shape[1], generator=generator)
        space = Echelon(null.shape[1], prime)
        space.add(null[:, order])
        candidates += list(space.rows[:, order.argsort()])
    candidates.sort(key=lambda row: int((row != 0).sum()))
    space, kept = Echelon(null.shape[1], prime), []
    space.add(known)
    for row in candidates:
        if space.rank == len(null):
            break
        if space.add(row.unsqueeze(0)):
            kept.append(_monic(row, prime))
    return kept


def _monic(row: Tensor, prime: int) -> Tensor:
    space = Echelon(len(row), prime)
    space.add(row.unsqueeze(0))
    return space.rows[0]


def _lifted(residue: float, prime: int) -> float:
    found = fraction(residue, prime)
    return residue if found is None else float(found)


def _outside(null: Tensor, known: Tensor) -> Tensor:
    """The part of a null space that is orthogonal to what is known."""
    if len(known):
        basis = torch.linalg.svd(torch.nn.functional.normalize(known), full_matrices=False)
        spanned = basis.Vh[basis.S > SMALL]
        null = null - (null @ spanned.T) @ spanned
    found = torch.linalg.svd(null, full_matrices=False)
    outside: Tensor = found.Vh[found.S > SMALL**0.5]
    return outside


def _by_name(row: Tensor, point: Mapping[str, Tensor]) -> dict[str, Tensor]:
    pieces = torch.split(row, [p.numel() for p in point.values()])
    found = {name: piece.reshape(p.shape) for (name, p), piece in zip(point.items(), pieces, strict=True)}
    return {name: piece for name, piece in found.items() if bool((piece.abs() > SMALL).any())}


def described(direction: Mapping[str, Tensor]) -> str:
    """Where a direction has entries, by parameter: a row as ``w[2, :]``, single entries by their number.

    >>> described({"w": torch.tensor([[0.0, 0.0], [3.0, 1.0]]), "b": torch.tensor([0.0, 2.0])})
    'w[1, :], b[1]'
    """
    return ", ".join(f"{name}{_place(piece)}" for name, piece in direction.items())


def _place(piece: Tensor) -> str:
    mask = piece.abs() > SMALL
    axes = [sorted(set(places)) for places in mask.nonzero().T.tolist()]
    block = 1
    for chosen in axes:
        block *= len(chosen)
    if int(mask.sum()) != block:
        return f" ({int(mask.sum())} entries)"
    shown = [":" if len(chosen) == size else ",".join(map(str, chosen)) for chosen, size in zip(axes, piece.shape, strict=True)]
    return f"[{', '.join(shown)}]" if set(shown) - {":"} else ""
