"""Seeded mini-batches for the runs of an ensemble: every run draws its own, and the same seed draws the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import torch
from torch import Tensor

from noetherflow.errors import RunError

__all__ = ["draw_batches", "draw_indices"]

# Steps drawn at a time: fixed, so that a run's draws do not depend on how many steps are asked for.
BLOCK: Final = 64


def draw_indices(size: int, batch: int, seeds: Sequence[int], steps: int, *, replace: bool = True) -> Iterator[Tensor]:
    """Indices of independent mini-batches, one row a run.

    Parameters
    ----------
    size : int
        Number of samples there are.
    batch : int
        Samples in a mini-batch.
    seeds : sequence of int
        One a run; runs with the same seed draw the same.
    steps : int
    replace : bool
        Whether a sample may be drawn twice into one mini-batch. Mini-batches of different steps are independent either way.

    Yields
    ------
    Tensor of int64, shape (runs, batch)

    Raises
    ------
    RunError
        For sizes that cannot be drawn.

    Examples
    --------
    >>> first, second = draw_indices(10, 3, [0, 1, 0], steps=2)
    >>> first.shape, bool((first[0] == first[2]).all()), bool((first[0] == second[0]).all())
    (torch.Size([3, 3]), True, False)
    """
    if size < 1 or batch < 1 or (batch > size and not replace):
        raise RunError(
            f"Cannot draw mini-batches of {batch} from {size} samples{'' if replace else ' without replacement'}.", size=size, batch=batch
        )
    generators = {seed: torch.Generator().manual_seed(seed) for seed in dict.fromkeys(seeds)}
    place = {seed: row for row, seed in enumerate(generators)}
    rows = torch.tensor([place[seed] for seed in seeds])
    for start in range(0, steps, BLOCK):
        drawn = torch.stack([_block(size, batch, generator, replace) for generator in generators.values()], dim=1)
        for step in range(min(BLOCK, steps - start)):
            yield drawn[step][rows]


def _block(size: int, batch: int, generator: torch.Generator, replace: bool) -> Tensor:
    if replace:
        return torch.randint(size, (BLOCK, batch), generator=generator)
    # the places of the smallest of independent keys are a uniformly drawn subset
    return torch.rand((BLOCK, size), generator=generator, dtype=torch.float64).topk(batch, largest=False).indices


def draw_batches(
    inputs: Tensor, targets: Tensor, batch: int, seeds: Sequence[int], steps: int, *, replace: bool = True
) -> Iterator[tuple[Tensor, Tensor]]:
    """Mini-batches of a data set for every run; see `draw_indices`.

    Yields
    ------
    tuple of Tensor, shapes (runs, batch, ...)

    Examples
    --------
    >>> x, y = torch.arange(10.0).reshape(10, 1), torch.arange(10)
    >>> [(a.shape, b.shape) for a, b in draw_batches(x, y, 4, range(5), steps=1)]
    [(torch.Size([5, 4, 1]), torch.Size([5, 4]))]
    """
    for rows in draw_indices(len(inputs), batch, seeds, steps, replace=replace):
        yield inputs[rows], targets[rows]
