"""Models of the table of cases where ranks are measured: away from where parameters begin, on data enough for all of them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from support.cases import Case
from torch import Tensor, nn


def logit_differences(logits: Tensor) -> Tensor:
    """What a cross-entropy sees: logits but for a number common to all classes."""
    return logits[..., 1:] - logits[..., :1]


@torch.no_grad()
def moved(model: nn.Module) -> nn.Module:
    """Away from where parameters begin; a gain, which begins at one, stays away from zero: near it ranks are not clear."""
    for parameter in model.parameters():
        parameter += torch.where(parameter == 1, torch.rand_like(parameter), 0.3 * torch.randn_like(parameter))
    return model


def data_of(case: Case, model: nn.Module) -> Iterator[Tensor]:
    """Batches that give more output numbers than there are parameters."""
    count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    output = model(case.inputs())
    rows = (logit_differences(output) if case.loss else output).numel()
    return (case.inputs(3.0) for _ in range(4 * count // rows + 2))
