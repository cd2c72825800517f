"""Several optimizers as one: each moves its own parameters, and one step is a step of all.

Some optimizers take matrices only (torch.optim.Muon) and leave biases, gains and convolutions to a companion. What watches an optimizer or
schedules its step sizes sees one: the parameter groups of all, and their states in one table.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from noetherflow.errors import RunError

__all__ = ["Companions", "muon_with_adamw"]


class Companions(torch.optim.Optimizer):
    """Optimizers of different parameters, stepped together.

    Parameters
    ----------
    *optimizers : torch.optim.Optimizer
        Before their first step; their parameter groups are shared, not copied.

    Raises
    ------
    RunError
        If there is none, or one has made steps.

    Examples
    --------
    >>> layer = nn.Linear(3, 2)
    >>> both = Companions(torch.optim.Muon([layer.weight]), torch.optim.AdamW([layer.bias]))
    >>> [group["optimizer"] for group in both.param_groups]
    ['Muon', 'AdamW']
    """

    def __init__(self, *optimizers: torch.optim.Optimizer) -> None:
        if not optimizers or any(optimizer.state for optimizer in optimizers):
            raise RunError("Companions are made of one optimizer or more that have made no step yet.", optimizers=len(optimizers))
        groups = []
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["optimizer"] = type(optimizer).__name__
                groups.append(group)
        super().__init__(groups, {})
        self.defaults = optimizers[0].defaults
        self.optimizers = optimizers
        for optimizer in optimizers:
            optimizer.state = self.state

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of each, in order."""
        value = None if closure is None else closure()
        for optimizer in self.optimizers:
            optimizer.step()
        return value

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up a stored state; the optimizers go on sharing groups and table with this one."""
        super().load_state_dict(state_dict)
        for group, own in zip(self.param_groups, (g for o in self.optimizers for g in o.param_groups), strict=True):
            own.update(group)
        self.param_groups = [g for o in self.optimizers for g in o.param_groups]
        for optimizer in self.optimizers:
            optimizer.state = self.state


def muon_with_adamw(model: nn.Module, *, adamw_lr: float = 1e-3, **options: Any) -> torch.optim.Optimizer:
    """Muon for a model's matrices and AdamW for what is none; Muon alone where all are matrices.

    Parameters
    ----------
    model : nn.Module
    adamw_lr : float
        Step size of the companion; it shares the weight decay.
    **options
        Those of torch.optim.Muon.

    Raises
    ------
    RunError
        If the model has no matrix.
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    matrices, others = [p for p in trainable if p.ndim == 2], [p for p in trainable if p.ndim != 2]
    if not matrices:
        raise RunError("Muon moves matrices, and this model has none. Choose another optimizer.", shapes=[tuple(p.shape) for p in others])
    muon = torch.optim.Muon(matrices, **options)
    if not others:
        return muon
    return Companions(muon, torch.optim.AdamW(others, lr=adamw_lr, weight_decay=muon.defaults["weight_decay"]))
