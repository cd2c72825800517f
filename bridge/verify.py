"""Train and check in one call."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from noetherflow.bridge.sabotage import Sabotage
from noetherflow.bridge.trace import Loss
from noetherflow.bridge.watch import Watch, watch
from noetherflow.errors import RunError
from noetherflow.numeric.progress import shown
from noetherflow.numeric.report import Report

LOSS_FUNCTIONS: Final[dict[str, Callable[..., Tensor]]] = {
    "cross_entropy": nn.functional.cross_entropy,
    "mse": nn.functional.mse_loss,
}


def verify(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[tuple[Any, Any]],
    steps: int | None = None,
    loss: Loss = "cross_entropy",
    *,
    scheduler: Any = None,
    clip: float | None = None,
    accumulate: int = 1,
    directory: Path | str | None = None,
    settings: Mapping[str, str] | None = None,
    sabotage: Sabotage | str | None = None,
) -> Report:
    """Derive a model's laws, train it, and hold the run to them.

    Parameters
    ----------
    model : nn.Module
    optimizer : torch.optim.Optimizer
    batches : iterable of (inputs, targets)
        A loader, or any iterable; inputs may be a tensor or a tuple of what the forward pass takes.
    steps : int, optional
        How many optimizer steps to make; until the batches end if absent.
    loss : str, nn.Module or callable
        "cross_entropy", "mse", or called as ``loss(output, targets)``.
    scheduler : optional
        Anything with ``step()``, called after each optimizer step.
    clip : float, optional
        Clip the gradient's global norm to this.
    accumulate : int
        Batches per step, their gradients averaged.
    directory, settings, sabotage
        As for `noetherflow.watch`.

    Returns
    -------
    Report

    Raises
    ------
    RunError
        If there are no batches, the loss is None, or the pair cannot be watched.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)).double()
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.01)
    >>> batches = [(torch.randn(8, 3).double(), torch.randint(0, 2, (8,))) for _ in range(6)]
    >>> report = verify(model, optimizer, batches)
    >>> report.holds, [family.kind for family in report.families]
    (True, ['rescale', 'translation', 'translation'])
    """
    function = _loss_function(loss)
    stream = iter(batches)
    first = next(stream, None)
    if first is None:
        raise RunError("There are no batches to train on. Give an iterable of (inputs, targets).")
    inputs = first[0] if isinstance(first[0], tuple) else (first[0],)
    _check_devices(model, inputs)
    run = watch(model, optimizer, loss, inputs, directory=directory, settings=settings, sabotage=sabotage)
    with run:
        groups = _grouped(_chained(first, stream), accumulate)
        for group in shown(islice(groups, steps), "training and checking", total=steps):
            _step(run, group, function, clip)
            if scheduler is not None:
                scheduler.step()
    if steps is not None and run.monitor.step < steps:
        raise RunError(
            f"The batches ended after {run.monitor.step} of {steps} steps. Give more batches, or fewer steps.", steps=run.monitor.step
        )
    return run.report()


def _loss_function(loss: Loss) -> Callable[..., Tensor]:
    if loss is None:
        raise RunError(f"Training needs a loss: one of {sorted(LOSS_FUNCTIONS)}, or a callable loss(output, targets).")
    if isinstance(loss, str):
        if loss not in LOSS_FUNCTIONS:
            raise RunError(
                f"Unknown loss '{loss}'. Expected one of {sorted(LOSS_FUNCTIONS)}, or a callable loss(output, targets).", loss=loss
            )
        return LOSS_FUNCTIONS[loss]
    return loss


def _check_devices(model: nn.Module, inputs: tuple[Any, ...]) -> None:
    home = next(model.parameters()).device
    astray = [str(x.device) for x in inputs if isinstance(x, Tensor) and x.device != home]
    if astray:
        raise RunError(
            f"The model is on {home}, the batches on {sorted(set(astray))}. Move one to the other with .to(...).", model=str(home)
        )


def _chained(first: Any, rest: Iterable[Any]) -> Iterable[Any]:
    yield first
    yield from rest


def _grouped(batches: Iterable[Any], size: int) -> Iterable[list[Any]]:
    stream = iter(batches)
    while group := list(islice(stream, size)):
        if len(group) == size:
            yield group


def _step(run: Watch, group: list[Any], function: Callable[..., Tensor], clip: float | None) -> None:
    model, optimizer = run.model, run.optimizer
    optimizer.zero_grad()
    for inputs, targets in group:
        output = model(*inputs) if isinstance(inputs, tuple) else model(inputs)
        (function(output, targets) / len(group)).backward()  # type: ignore[no-untyped-call]
    if clip is not None:
        nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()
