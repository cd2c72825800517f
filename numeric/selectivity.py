"""Selectivity of units for classes, and when it sets in: measured on activations, knowing nothing of the network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from noetherflow.errors import RunError

__all__ = ["class_means", "onset", "selectivity"]


def class_means(activations: Tensor, labels: Tensor) -> Tensor:
    """Mean activation of each unit over each class, shape (classes, units).

    Parameters
    ----------
    activations : Tensor, shape (n, units)
    labels : Tensor of int64, shape (n,)
        Every class from 0 to the largest must occur.
    """
    counts = torch.bincount(labels).to(activations.dtype)
    if len(labels) != len(activations) or not bool((counts > 0).all()):
        raise RunError(
            f"Class means need a label for each of {len(activations)} samples, and every class; got {len(labels)} labels with counts "
            f"{counts.long().tolist()}."
        )
    sums = torch.zeros(len(counts), activations.shape[1], dtype=activations.dtype).index_add_(0, labels, activations)
    return sums / counts[:, None]


def selectivity(activations: Tensor, labels: Tensor) -> Tensor:
    """The share of each unit's variance that the class explains (the correlation ratio η²), shape (units,), between 0 and 1.

    Labels that tell nothing about n samples of C classes give (C - 1) / (n - 1) on average, not zero. A constant unit has none.

    Parameters
    ----------
    activations : Tensor, shape (n, units)
    labels : Tensor of int64, shape (n,)

    Examples
    --------
    >>> labels = torch.tensor([0, 0, 1, 1])
    >>> selectivity(torch.tensor([[1.0, 1.0], [1.0, 2.0], [3.0, 1.0], [3.0, 2.0]]), labels).tolist()
    [1.0, 0.0]
    """
    means = class_means(activations, labels)
    between = (means[labels] - activations.mean(0)).square().sum(0)
    total = (activations - activations.mean(0)).square().sum(0)
    return torch.where(total > 0, between / total.where(total > 0, torch.ones_like(total)), torch.zeros_like(total))


def onset(steps: Sequence[float], values: Sequence[float], level: float) -> float:
    """The step at which a trajectory first reaches a level, interpolated linearly between records; infinite if it never does.

    Examples
    --------
    >>> onset([0, 10, 20], [0.0, 0.2, 0.6], 0.4)
    15.0
    """
    for i, value in enumerate(values):
        if value >= level:
            if i == 0:
                return float(steps[0])
            before = values[i - 1]
            return float(steps[i - 1] + (steps[i] - steps[i - 1]) * (level - before) / (value - before))
    return float("inf")
