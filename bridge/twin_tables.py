"""Constants that a graph does not hold, as a twin has them: what they are used for says what they may be.

A trace keeps no large constants (masks, tables of angles, numbers of positions), and those of the original would not fit a twin's sizes.
In their place it gets a mask that hides what comes later, angles as RoPE has them, positions in order, or numbers in general position.
They are written into the twin's graph, so that its count can be computed again from it alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import torch
from torch import Tensor

from noetherflow.numeric import hashed
from noetherflow.symbolic.graph import ArchitectureGraph

HIDDEN: Final = -1e4
"""Added to scores that a mask hides: its exponential is zero in float64."""
BASE: Final = 100.0
"""Of the angles' geometric progression; RoPE has 10,000 for heads that are wider."""
VIEWS: Final = ("identity", "reshape", "expand", "permute")


def fill(graph: ArchitectureGraph) -> dict[str, str]:
    """Give every constant without a value one, in place; returns what each is now.

    Examples
    --------
    >>> graph = ArchitectureGraph()
    >>> _ = graph.add_parameter("w", (3, 2)), graph.add_operation("c", "constant", shape=(1, 4), dtype="int64")
    >>> _ = graph.add_operation("e", "embedding", {"input": "c"}, {"weight": "w"}, shape=(1, 4, 2))
    >>> fill(graph), graph.nodes["c"]["attributes"]["value"]
    ({'c': 'positions in order'}, [[0.0, 1.0, 2.0, 0.0]])
    """
    given = {}
    for node, data in graph.nodes(data=True):
        if data["operation"] == "constant" and "value" not in data["attributes"]:
            table = _table(graph, node)
            if table is not None:
                data["attributes"]["value"], given[node] = table[0].tolist(), table[1]
                data["dtype"] = "float32" if data["dtype"] == "bool" else data["dtype"]
    return given


def _table(graph: ArchitectureGraph, node: str) -> tuple[Tensor, str] | None:
    data, uses = graph.nodes[node], list(_uses(graph, node))
    shape = [int(size) for size in data["shape"]]
    rows = [
        int(graph.parameters[graph.nodes[n]["parameters"]["weight"]].shape[0])
        for n, slot in uses
        if (slot == "input" and _is_table(graph, n))
    ]
    if rows:
        return (torch.arange(shape[-1] if shape else 1) % min(rows)).double().expand(shape), "positions in order"
    if any(slot == "mask" for _, slot in uses):
        hidden = torch.ones(shape[-2:]).triu(1 + shape[-1] - shape[-2]) * HIDDEN
        return hidden.double().expand(shape), "a causal mask"
    if any(slot in ("cosine", "sine") for _, slot in uses):
        angles = _angles(shape, *next((n, s) for n, s in uses if s in ("cosine", "sine")), graph)
        return angles, "rotary angles"
    if "float" not in data["dtype"]:
        return None
    return hashed.sixtyfourths(f"constant/{node}", shape, 0), "constants in general position"


def _angles(shape: list[int], node: str, slot: str, graph: ArchitectureGraph) -> Tensor:
    half = int(graph.nodes[node]["shape"][-1]) // 2
    steps = BASE ** (-torch.arange(half, dtype=torch.float64) / half)
    angles = torch.arange(shape[-2], dtype=torch.float64)[:, None] * steps
    if shape[-1] != half:
        halves = graph.nodes[node]["attributes"].get("pairing", "halves") == "halves"
        angles = torch.cat([angles, angles], -1) if halves else angles.repeat_interleave(2, -1)
    return (angles.cos() if slot == "cosine" else angles.sin()).expand(shape)


def _is_table(graph: ArchitectureGraph, node: str) -> bool:
    return bool(graph.nodes[node]["operation"] == "embedding")


def _uses(graph: ArchitectureGraph, node: str) -> Iterator[tuple[str, str]]:
    """(node, slot) of every use, looking through views."""
    for _, consumer, slot in graph.out_edges(node, keys=True):
        if graph.nodes[consumer]["operation"] in VIEWS:
            yield from _uses(graph, consumer)
        else:
            yield consumer, slot
