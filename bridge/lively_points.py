"""A point at which as many pieces as possible change with the input.

A ReLU that is closed (or open) for every input near a point makes the network there simpler than it is: near that point it has more laws
than hold everywhere. Any point gives a true upper bound; this one a good one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor
from torch.func import vmap

from noetherflow.bridge.sampling import Sampling
from noetherflow.numeric.brackets import Params
from noetherflow.symbolic.graph import ArchitectureGraph

POINTS: Final = 48
INPUTS: Final = 10
NUMBERS_AT_ONCE: Final = 1e6
"""What points are evaluated together may hold: beyond, memory costs more than calls."""


def lively_seeds(graph: ArchitectureGraph, seed: str, prime: int | None, count: int) -> list[str]:
    """Of the seeds SEED, SEED.1, SEED.2, ... those whose points have the fewest dead units, and then most pieces that vary.

    Pieces count if they vary with the input, and are different from one another.

    Parameters
    ----------
    graph : ArchitectureGraph
    seed : str
    prime : int or None
        As for `Sampling`.
    count : int
        How many.
    """
    samplings = [Sampling(graph, f"{seed}.{k}" if k else seed, "realised", prime) for k in range(POINTS)]
    if not samplings[0].pieces:
        return [s.seed for s in samplings[:count]]
    points, (inputs, masks), one = _together([s.point for s in samplings]), samplings[0].given(f"{seed}/lively", INPUTS), samplings[0]
    over_inputs = vmap(lambda point, x, mask: one.patterns(point, x, mask), in_dims=(None, 0, 0))
    together = max(1, min(POINTS, int(NUMBERS_AT_ONCE / (INPUTS * samplings[0].nodes_numbers))))
    patterns: Params = vmap(over_inputs, in_dims=(0, None, None), chunk_size=together)(points, inputs, masks)
    scores = [_liveliness([found[k] for found in patterns.values()]) for k in range(POINTS)]
    return [samplings[k].seed for k in sorted(range(POINTS), key=lambda k: scores[k], reverse=True)[:count]]


def _liveliness(patterns: Sequence[Tensor]) -> tuple[int, int]:
    """Fewest dead slices first, for a dead unit weighs more than any number of positions; then most columns that differ.

    Each pattern has shape (inputs, ...); a slice along any other axis is dead if none of its entries varies.
    """
    return -sum(map(_dead_slices, patterns)), sum(map(_varying, patterns))


def _dead_slices(patterns: Tensor) -> int:
    varies = patterns.amax(0) != patterns.amin(0)
    axes = range(varies.dim())
    return sum(int((~varies.any([a for a in axes if a != axis])).sum()) if len(axes) > 1 else int((~varies).sum()) for axis in axes)


def _varying(patterns: Tensor) -> int:
    """How many different columns, none of them constant, patterns of shape (inputs, ...) have: each is read as a binary number."""
    powers = 2 ** torch.arange(len(patterns))
    numbers = torch.unique((patterns.flatten(1).long() * powers[:, None]).sum(0))
    return int(((numbers != 0) & (numbers != powers.sum())).sum())


def _together(values: list[Params]) -> Params:
    return {name: torch.stack([v[name] for v in values]) for name in values[0]}
