"""Constants as a twin has them: the original's own, cut to its sizes, and where its graph does not hold them, what their use says.

A trace keeps small constants, and of a large mask its kind (`noetherflow.bridge.constant_values`). A mask of the twin is the leading block
of the original's: one that hides nothing still hides nothing, a causal one stays causal. Numbers of positions stay in order. Angles are
made anew as RoPE has them, for heads of another width have other ones. What the graph does not hold (a mask made from inputs, large tables,
anything on the meta device) is replaced: a mask by a causal one, indices by positions in order, other numbers by numbers in general
position. All that is not the original's own is named. The values are written into the twin's graph, so that its count can be computed
again from it alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import torch
from torch import Tensor

from noetherflow.bridge.constant_values import HIDDEN, described, is_whole, mask_kind, tensor_of
from noetherflow.numeric import hashed
from noetherflow.symbolic.graph import ArchitectureGraph

BASE: Final = 100.0
"""Of the angles' geometric progression; RoPE has 10,000 for heads that are wider."""
VIEWS: Final = ("identity", "reshape", "expand", "permute")
OWN: Final = "its own constants, cut to size"
UNKNOWN: Final = "a causal mask where the graph does not hold the mask"


def fill(graph: ArchitectureGraph) -> dict[str, str]:
    """Give every constant of a twin a value of its size, in place; returns what those that are not the original's own are now.

    Parameters
    ----------
    graph : ArchitectureGraph
        Its constants have the attributes of the original's, whose sizes may be others.

    Examples
    --------
    >>> graph = ArchitectureGraph()
    >>> _ = graph.add_parameter("w", (3, 2)), graph.add_operation("c", "constant", shape=(1, 4), dtype="int64")
    >>> _ = graph.add_operation("e", "embedding", {"input": "c"}, {"weight": "w"}, shape=(1, 4, 2))
    >>> fill(graph), graph.nodes["c"]["attributes"]["value"]
    ({'c': 'positions in order'}, [[0.0, 1.0, 2.0, 0.0]])
    """
    given: dict[str, str] = {}
    for node, data in graph.nodes(data=True):
        attributes = data["attributes"]
        if data["operation"] == "masked" and not is_whole(attributes.get("mask", {}), data["shape"]):
            hidden = tensor_of(attributes["mask"], data["shape"])
            attributes["mask"] = described(hidden)
            given |= {} if mask_kind(~hidden) else {node: OWN}
        if data["operation"] != "constant" or "value" in attributes:
            continue
        table = _own(graph, node) or _table(graph, node)
        if table is not None:
            for name in ("entries", "kind", "boolean"):
                attributes.pop(name, None)
            attributes["value"] = table[0].tolist()
            if table[0].dtype != torch.bool and data["dtype"] == "bool":
                data["dtype"] = "float32"
            given |= {node: table[1]} if table[1] else {}
    return given


def _own(graph: ArchitectureGraph, node: str) -> tuple[Tensor, str] | None:
    """The original's constant at the twin's sizes, and what is to be said of it; None if it is not known or does not fit."""
    data, uses = graph.nodes[node], list(_uses(graph, node))
    if not {"entries", "kind"} & data["attributes"].keys():
        return None
    sizes = [int(size) for size in data["shape"]]
    whole, same = tensor_of(data["attributes"], sizes), is_whole(data["attributes"], sizes)
    if any(int(whole.max()) >= rows for rows in _picked(graph, uses)):
        return None
    if not same and any(slot in ("cosine", "sine") for _, slot in uses):
        return None
    in_order = bool(sizes) and whole.dtype != torch.bool and torch.equal(whole, torch.arange(sizes[-1]).double().expand(sizes))
    return whole, "" if same or in_order or mask_kind(whole) else OWN


def _picked(graph: ArchitectureGraph, uses: list[tuple[str, str]]) -> list[int]:
    """How many there are of what indices pick."""
    nodes, found = graph.nodes, []
    for node, slot in uses:
        if nodes[node]["operation"] == "embedding" and slot == "input":
            found.append(int(graph.parameters[nodes[node]["parameters"]["weight"]].shape[0]))
        elif slot == "index":
            inputs, held = graph.inputs_of(node), nodes[node]["parameters"]
            picked = graph.parameters[held["input"]].shape if "input" in held else nodes[inputs["input"]]["shape"]
            found.append(int(picked[nodes[node]["attributes"]["dim"]]))
    return found


def _table(graph: ArchitectureGraph, node: str) -> tuple[Tensor, str] | None:
    data, uses = graph.nodes[node], list(_uses(graph, node))
    shape = [int(size) for size in data["shape"]]
    rows = _picked(graph, [(n, slot) for n, slot in uses if slot == "input"])
    if rows:
        return (torch.arange(shape[-1] if shape else 1) % min(rows)).double().expand(shape), "positions in order"
    if any(slot == "mask" for _, slot in uses):
        hidden = torch.ones(shape[-2:]).triu(1 + shape[-1] - shape[-2]) * HIDDEN
        return hidden.double().expand(shape), UNKNOWN
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


def _uses(graph: ArchitectureGraph, node: str) -> Iterator[tuple[str, str]]:
    """(node, slot) of every use, looking through views."""
    for _, consumer, slot in graph.out_edges(node, keys=True):
        if graph.nodes[consumer]["operation"] in VIEWS:
            yield from _uses(graph, consumer)
        else:
            yield consumer, slot
