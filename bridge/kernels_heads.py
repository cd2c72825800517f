"""Gram matrices block by block: one matrix for every head of an attention, say, along the last of the axes kept.

`kernels_torch.reduce` takes one Gram matrix of a whole tensor; here the axes kept before the last tell the blocks apart. Blocks are taken
in groups that stay small, so a tensor never has to be held in float64 as a whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor

from noetherflow.bridge.kernels_chunks import Entrywise
from noetherflow.bridge.kernels_torch import CHUNK_CPU, Reducer, Request

LARGEST: Final = CHUNK_CPU
"""Elements that are taken to float64 at once, if one block is not larger."""


def reduce_all(
    backend: Reducer, tensors: Mapping[str, Tensor], combinations: Mapping[str, Mapping[str, float]], requests: Sequence[Request]
) -> list[Tensor]:
    """Evaluate reductions, Gram matrices of blocks among them.

    Parameters
    ----------
    backend : Reducer
        What evaluates all others.
    tensors, combinations, requests
        As for `kernels_torch.reduce`; a Gram matrix may keep several axes.

    Examples
    --------
    >>> from noetherflow.bridge.kernels_torch import reduce
    >>> heads = {"theta": torch.tensor([[[1.0], [2.0]], [[3.0], [4.0]]])}
    >>> reduce_all(reduce, heads, {}, [Request("gram", "theta", "theta", (0, 1))])[0][1]
    tensor([[ 9., 12.],
            [12., 16.]], dtype=torch.float64)
    """
    blocked = [r.kind == "gram" and len(r.keep) > 1 for r in requests]
    others = [r for r, own in zip(requests, blocked, strict=True) if not own]
    found = iter(backend(tensors, combinations, others) if others else [])
    return [block_gram(tensors, combinations, r) if own else next(found) for r, own in zip(requests, blocked, strict=True)]


def block_gram(tensors: Mapping[str, Tensor], combinations: Mapping[str, Mapping[str, float]], request: Request) -> Tensor:
    """``X @ Y.T`` of every block.

    Returns
    -------
    Tensor, shape (blocks..., n, n)
        Float64.
    """
    lead = len(request.keep)
    with torch.no_grad():
        views = {name: t.movedim(request.keep, tuple(range(lead))) for name, t in tensors.items()}
        return _grams(views, combinations, request, lead)


def _grams(views: Mapping[str, Tensor], combinations: Mapping[str, Mapping[str, float]], request: Request, lead: int) -> Tensor:
    first = next(iter(views.values()))
    if lead > 2:
        parts = [_grams({name: v[i] for name, v in views.items()}, combinations, request, lead - 1) for i in range(first.shape[0])]
        return torch.stack(parts)
    step = max(1, LARGEST // max(1, first[0].numel()))
    out = []
    for start in range(0, first.shape[0], step):
        chunk = {name: v[start : start + step] for name, v in views.items()}
        x = _vector(chunk, combinations, request.x)
        y = x if request.y in (None, request.x) else _vector(chunk, combinations, str(request.y))
        out.append(x @ y.mT)
    return torch.cat(out)


def _vector(chunk: Mapping[str, Tensor], combinations: Mapping[str, Mapping[str, float]], name: str) -> Tensor:
    """A vector in float64, shape (blocks, n, columns)."""
    parts = combinations.get(name, {name: 1.0})
    if isinstance(parts, Entrywise):
        total: Any = parts.function({part: chunk[part].double() for part in parts})
    else:
        total = sum(coefficient * chunk[part].double() for part, coefficient in parts.items())
    assert isinstance(total, Tensor)
    return total.reshape(*total.shape[:2], -1)
