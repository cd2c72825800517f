"""Options of torch.optim.SGD as tensors: a column for each run of an ensemble, or a row for each with every parameter's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from noetherflow.errors import RunError
from noetherflow.numeric.variants import Variant

__all__ = ["option_columns", "per_parameter"]


def option_columns(runs: Sequence[Variant], dtype: torch.dtype) -> dict[str, Tensor]:
    """Hyper-parameters as columns that multiply rows of parameters; those that no run has are left out.

    Examples
    --------
    >>> option_columns([Variant(lr=0.5), Variant(lr=0.25)], torch.float64)
    {'minus_lr': tensor([[-0.5000],
            [-0.2500]], dtype=torch.float64)}
    """

    def column(values: Sequence[float | bool]) -> Tensor:
        return torch.tensor(values, dtype=torch.bool if isinstance(values[0], bool) else dtype)[:, None]

    out = {"minus_lr": column([-v.lr for v in runs])}
    if any(v.weight_decay for v in runs):
        out["weight_decay"] = column([v.weight_decay for v in runs])
    if any(v.momentum for v in runs):
        out["momentum"] = column([v.momentum for v in runs])
        out["taken"] = column([1 - v.dampening if v.momentum else 1.0 for v in runs])  # torch has no dampening without momentum
        if any(v.nesterov for v in runs):
            out["nesterov"] = column([v.nesterov for v in runs])
    return out


def per_parameter(
    runs: Sequence[Variant], shapes: Mapping[str, torch.Size], groups: Mapping[str, Mapping[str, Any]], dtype: torch.dtype
) -> dict[str, Tensor]:
    """The same with a value for every entry of every parameter, shape (runs, D): that of its group, where it has one.

    Raises
    ------
    RunError
        If a group is of a parameter that is not there.
    """
    if strange := [name for name in groups if name not in shapes]:
        raise RunError(f"Options are given for {strange}, which are no trainable parameters; there are {list(shapes)}.", names=strange)
    neutral = {"weight_decay": 0.0, "momentum": 0.0, "taken": 1.0, "nesterov": False}
    found = [option_columns([replace(run, **groups.get(name, {})) for run in runs], dtype) for name in shapes]
    out = {}
    for key in dict.fromkeys(k for columns in found for k in columns):
        pieces = []
        for columns, shape in zip(found, shapes.values(), strict=True):
            own = (
                columns[key]
                if key in columns
                else torch.full((len(runs), 1), neutral[key], dtype=torch.bool if key == "nesterov" else dtype)
            )
            pieces.append(own.expand(-1, shape.numel()))
        out[key] = torch.cat(pieces, dim=1).contiguous()
    return out
