"""A point at which as many pieces as possible change with the input.

A ReLU that is closed (or open) for every input near a point makes the network there simpler than it is: it has more laws near that point than
laws that hold everywhere. Any point gives a true upper bound; this one a good one.
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


def lively_seed(graph: ArchitectureGraph, seed: str, prime: int) -> str:
    """Of the seeds SEED, SEED.1, SEED.2, ... the one whose point has the most pieces that differ from one another and vary with the input."""
    samplings = [Sampling(graph, f"{seed}.{k}" if k else seed, "realised", prime) for k in range(POINTS)]
    if not samplings[0].pieces:
        return seed
    points = _together([s.point for s in samplings])
    inputs = {node: x.flatten(0, 1) for node, x in samplings[0].inputs(f"{seed}/lively", 0, INPUTS).items()}
    frozen = samplings[0]
    over_inputs = vmap(lambda point, x: frozen.patterns(point, x)[0], in_dims=(None, 0))
    patterns: Params = vmap(over_inputs, in_dims=(0, None))(points, inputs)
    scores = [sum(_varying(found[k]) for found in patterns.values()) for k in range(POINTS)]
    return samplings[scores.index(max(scores))].seed


def _varying(patterns: Tensor) -> int:
    """How many different columns, none of them constant, patterns of shape (inputs, ...) have."""
    columns = torch.unique(patterns.flatten(1).T, dim=0)
    return int(((columns.amin(1) == 0) & (columns.amax(1) == 1)).sum())


def _together(values: list[Params]) -> Params:
    return {name: torch.stack([v[name] for v in values]) for name in values[0]}
