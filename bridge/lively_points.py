"""A point at which as many pieces as possible change with the input.

A ReLU that is closed (or open) for every input near a point makes the network there simpler than it is: near that point it has more laws
than hold everywhere. Any point gives a true upper bound; this one a good one.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor
from torch.func import vmap

from noetherflow.bridge.sampling import Sampling
from noetherflow.numeric.brackets import Params
from noetherflow.symbolic.graph import ArchitectureGraph

POINTS: Final = 48
INPUTS: Final = 10


def lively_seeds(graph: ArchitectureGraph, seed: str, prime: int | None, count: int) -> list[str]:
    """Of the seeds SEED, SEED.1, SEED.2, ... those whose points have most pieces that differ from one another and vary with the input.

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
    patterns: Params = vmap(over_inputs, in_dims=(0, None, None))(points, inputs, masks)
    scores = [sum(_varying(found[k]) for found in patterns.values()) for k in range(POINTS)]
    return [samplings[k].seed for k in sorted(range(POINTS), key=lambda k: -scores[k])[:count]]


def _varying(patterns: Tensor) -> int:
    """How many different columns, none of them constant, patterns of shape (inputs, ...) have."""
    columns = torch.unique(patterns.flatten(1).T, dim=0)
    return int(((columns.amin(1) == 0) & (columns.amax(1) == 1)).sum())


def _together(values: list[Params]) -> Params:
    return {name: torch.stack([v[name] for v in values]) for name in values[0]}
