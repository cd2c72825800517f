"""Two models of one architecture merged into one between them: parameters on the straight line, running statistics estimated anew.

Source: ainsworth2023git for the line, jordan2023repair for the statistics.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from noetherflow.errors import ModelError, RunError
from noetherflow.numeric.model_loss import evaluating

__all__ = ["Batch", "estimate_statistics", "has_statistics", "merge"]

Batch = tuple[Any, Tensor]
"""Inputs and targets."""


@torch.no_grad()
def merge(model_a: nn.Module, model_b: nn.Module, weight: float = 0.5, batches: Iterable[Batch] | None = None) -> nn.Module:
    """The model at one point of the straight line between two.

    Units mean the same in both only after `noetherflow.align`; merged without it, two models that were trained from different seeds
    usually make one that is worse than either.

    Parameters
    ----------
    model_a, model_b : nn.Module
        Of one architecture. Neither is changed.
    weight : float
        Of b: parameters and buffers of floating-point numbers are (1 - weight) a + weight b, computed in float64 and rounded once. Integer
        buffers are a's. At 0 and 1 they are a's and b's, to the last bit.
    batches : iterable of (inputs, targets), optional
        Running statistics of batch normalisations are those of these batches. Without them they lie on the line as well, although the
        statistics of a merged model do not.

    Returns
    -------
    nn.Module
        A copy of a with these numbers, in a's mode and dtypes.

    Raises
    ------
    ModelError
        If the two have different parameters or buffers, or the weight is not finite.
    RunError
        If statistics are to be estimated from no batches, or from some that the model does not take.

    Examples
    --------
    >>> a, b = nn.Linear(2, 1), nn.Linear(2, 1)
    >>> torch.allclose(merge(a, b).weight, (a.weight + b.weight) / 2)
    True
    """
    if not math.isfinite(weight):
        raise ModelError(f"The weight of b must be finite; got {weight}.")
    ours, theirs = model_a.state_dict(), model_b.state_dict()
    _check_alike(ours, theirs)
    model = copy.deepcopy(model_a)
    model.load_state_dict({name: _between(t, theirs[name], weight) for name, t in ours.items()})
    if batches is not None:
        estimate_statistics(model, tuple(batches))
    return model


def _between(a: Tensor, b: Tensor, weight: float) -> Tensor:
    if not a.is_floating_point() or weight == 0:
        return a
    there = b.to(a.device, torch.float64)
    # written so that either end is exact
    return (there if weight == 1 else (1 - weight) * a.to(torch.float64) + weight * there).to(a.dtype)


def _check_alike(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    different = sorted(
        name for name in ours.keys() | theirs.keys() if getattr(ours.get(name), "shape", 0) != getattr(theirs.get(name), "shape", 0)
    )
    if different:
        raise ModelError(
            f"The models are not of one architecture: {different[:4]} are missing in one, or have different shapes. Give two models that "
            "were built alike.",
            names=different,
        )


def _normalisations(model: nn.Module) -> list[_BatchNorm]:
    return [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]


def has_statistics(model: nn.Module) -> bool:
    """Whether a model has batch normalisations with running statistics.

    Examples
    --------
    >>> has_statistics(nn.BatchNorm1d(3)), has_statistics(nn.LayerNorm(3))
    (True, False)
    """
    return bool(_normalisations(model))


@torch.no_grad()
def estimate_statistics(model: nn.Module, batches: Sequence[Batch]) -> None:
    """Set all running means and variances to the means over batches of the batches' own, in place; nothing else changes.

    All layers' at once: a layer's statistics are those of a network that normalises by its batch, as in training. Dropout is off.
    """
    norms = _normalisations(model)
    if norms and not batches:
        raise RunError("There are no batches to estimate running statistics from. Give at least one (an iterator is used up).")
    modes, momenta = {m: m.training for m in model.modules()}, [m.momentum for m in norms]
    model.eval()
    for norm in norms:
        norm.train()
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean
    for inputs, _ in batches if norms else ():
        with evaluating((inputs,)):
            model(inputs)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    for module, mode in modes.items():
        module.training = mode
