"""Modules that are normalisations: torch's own, and any other whose output is found to be a gain times its normalised input.

A module of unknown type (LlamaRMSNorm, LayerNorm2d) is not taken at its word. Its output is compared with a gain, fitted channel by
channel, times the input as the graph normalises it; what is not that, to rounding, cannot be captured.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import reduce
from typing import Any, Final

import torch
from torch import Tensor, nn

from noetherflow.bridge.norm_layout import Layout
from noetherflow.bridge.placing import Placing
from noetherflow.numeric.rounding import unit_roundoff

TORCH_NORMS: Final = frozenset(
    {
        nn.BatchNorm1d,
        nn.BatchNorm2d,
        nn.BatchNorm3d,
        nn.LayerNorm,
        nn.RMSNorm,
        nn.GroupNorm,
        nn.InstanceNorm1d,
        nn.InstanceNorm2d,
        nn.InstanceNorm3d,
    }
)
ROUNDINGS: Final = 8.0
"""How many roundoffs of its size (root mean square) an output may differ from what it should be."""


@dataclass(frozen=True, slots=True)
class Normalization:
    """One call of a normalisation, as the graph has it.

    Parameters
    ----------
    node, path : str
        In the graph, and the module's.
    layout : Layout
    eps : float
    shift : str or None
        Parameter that is added behind it.
    placings : tuple of Placing
        What its statistics are summed onto.
    """

    node: str
    path: str
    layout: Layout
    eps: float
    shift: str | None
    placings: tuple[Placing, ...]


def normalized(layout: Layout, x: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(normalised values, variance or mean square), in rows.

    Examples
    --------
    >>> values, variance = normalized(Layout("rms_norm", 2), torch.tensor([[3.0, 4.0]]), 0.0, torch.float64)
    >>> variance
    tensor([12.5000], dtype=torch.float64)
    """
    rows = layout.rows(x).to(dtype)
    if layout.centred:
        rows = rows - rows.mean(-1, keepdim=True, dtype=torch.float64).to(dtype)
    variance = (rows * rows).mean(-1, dtype=torch.float64)
    return rows * (variance + eps).rsqrt().unsqueeze(-1).to(dtype), variance


def working_dtype(*tensors: Tensor) -> torch.dtype:
    """What sums over the values of a statistic are made in: float32, or float64 where a tensor is."""
    return reduce(torch.promote_types, (t.dtype for t in tensors), torch.float32)


def is_torch_norm(module: nn.Module) -> bool:
    """Whether the module is one of torch's own, so that nothing but its normalisation stands between input and output."""
    return type(module) in TORCH_NORMS


@dataclass(frozen=True, slots=True)
class Fit:
    """How a module of unknown type normalises.

    Parameters
    ----------
    layout : Layout
    gain : Tensor
        One entry for each channel.
    dtype : torch.dtype
        What it must have been computed in, from how well it fits: coarser than its input's where the module casts to float32 inside.
    """

    layout: Layout
    gain: Tensor
    dtype: torch.dtype


def fitted(norm: Normalization, x: Tensor, y: Any, shift: Tensor | None) -> Fit | None:
    """The layout and the gain with which a module normalises, if its output is that; None if it is something else.

    Parameters
    ----------
    norm : Normalization
    x, y : Tensor
        The module's input and output.
    shift : Tensor or None
        What is added behind the gain.
    """
    if not isinstance(y, Tensor) or y.shape != x.shape or x.dim() != norm.layout.rank:
        return None
    for layout in _candidates(norm.layout):
        found = _fit(layout, norm.eps, x, y, shift)
        if found is not None:
            return found
    return None


def _candidates(layout: Layout) -> tuple[Layout, ...]:
    moved = replace(layout, channels_first=True)
    return (layout, moved) if layout.on_features and layout.dims == 1 and layout.rank > 2 else (layout,)


def _fit(layout: Layout, eps: float, x: Tensor, y: Tensor, shift: Tensor | None) -> Fit | None:
    count, working = layout.channel_count(x), working_dtype(x, y)
    if shift is not None and shift.numel() != count:
        return None
    rows, variance = normalized(layout, x, eps, working)
    divided = layout.rows(x).to(working) * (variance + eps).rsqrt().unsqueeze(-1).to(working)
    result = layout.rows(layout.shifted_back(y, shift)).to(working)
    unit, raw, own = (layout.channels(t, count) for t in (rows, divided, result))
    if unit.shape[1] < 2:
        return None  # one value per channel fits anything
    gain = (unit * own).sum(1) / unit.square().sum(1).clamp(min=torch.finfo(working).tiny)
    residual = float((own - gain.unsqueeze(1) * unit).norm())
    size = float(own.norm() + (gain.unsqueeze(1) * raw).norm())
    coarser = max(x.dtype, y.dtype, key=unit_roundoff)
    for dtype in (coarser, max(coarser, torch.float32, key=unit_roundoff)):
        if residual <= ROUNDINGS * unit_roundoff(dtype) * size:
            return Fit(layout, gain, dtype)
    return None
