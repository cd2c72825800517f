"""Many models of one architecture as one batched program: stacked parameters, and a gradient that is traced once.

`torch.func.vmap` turns the gradient of one model's loss into that of many. It is traced once (`noetherflow.numeric.tracing`); a step runs
the list of operations that it is: no autograd graph is built, no layer is walked through, and no compiler is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from noetherflow.errors import RunError
from noetherflow.numeric.products import with_products
from noetherflow.numeric.tracing import traced

__all__ = ["Stack", "batched_gradient", "batched_record", "stack"]

Parameters: TypeAlias = Mapping[str, Tensor]
Loss: TypeAlias = Callable[[Any, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Stack:
    """Parameters of many models of one architecture.

    Attributes
    ----------
    skeleton : nn.Module
        The architecture; its own values are not used.
    flat : Tensor, shape (runs, D)
        All trainable parameters, one run a row.
    shapes : mapping of str to torch.Size
        Trainable parameters in their order in `flat`.
    fixed : mapping of str to Tensor, shape (runs, ...)
        Frozen parameters and buffers.
    """

    skeleton: nn.Module
    flat: Tensor
    shapes: Mapping[str, torch.Size]
    fixed: Mapping[str, Tensor]

    def named(self, flat: Tensor) -> dict[str, Tensor]:
        """Rows of parameters (or of anything of their size) as views by name, shape (runs, ...)."""
        pieces = torch.split(flat, [shape.numel() for shape in self.shapes.values()], dim=1)
        return {name: piece.view(-1, *shape) for (name, shape), piece in zip(self.shapes.items(), pieces, strict=True)}


def stack(models: Sequence[nn.Module], dtype: torch.dtype) -> Stack:
    """Copy the parameters of models that have the same names and shapes into one stack.

    Examples
    --------
    >>> stacked = stack([nn.Linear(3, 2) for _ in range(5)], torch.float64)
    >>> stacked.flat.shape, stacked.named(stacked.flat)["weight"].shape
    (torch.Size([5, 8]), torch.Size([5, 2, 3]))
    """
    first = models[0]
    trainable = {name: p.shape for name, p in first.named_parameters() if p.requires_grad}
    if not trainable:
        raise RunError("The model has no trainable parameter. Give one with requires_grad=True.", model=type(first).__name__)
    states = [dict([*model.named_parameters(), *model.named_buffers()]) for model in models]
    flat = torch.cat([torch.stack([s[name].detach().to(dtype).flatten() for s in states]) for name in trainable], dim=1)
    fixed = {name: torch.stack([_cast(s[name].detach(), dtype) for s in states]) for name in states[0] if name not in trainable}
    return Stack(first, flat, trainable, fixed)


def batched_gradient(
    stacked: Stack, loss: Loss, inputs: Tensor, targets: Tensor, *, per_run: bool
) -> Callable[[Tensor, Tensor, Tensor], list[Tensor]]:
    """A function (flat, inputs, targets) -> gradients of every run's loss, one (runs, size) tensor a parameter.

    Parameters
    ----------
    stacked : Stack
    loss : callable of (output, targets)
        Returns a scalar; the mean over the batch as a rule.
    inputs, targets : Tensor
        Examples: the program holds for batches of the same shapes and dtypes.
    per_run : bool
        Whether the first axis of inputs and targets runs over the runs.

    Raises
    ------
    RunError
        If the model or the loss cannot be batched: control flow that depends on data, or random operations such as dropout.
    """
    runs = stacked.flat.shape[0]
    rows = 0 if per_run else None

    def loss_of(own: Parameters, fixed: Parameters, x: Tensor, y: Tensor) -> Tensor:
        return loss(functional_call(stacked.skeleton, {**own, **fixed}, (x,)), y)

    def program(flat: Tensor, x: Tensor, y: Tensor, *fixed: Tensor) -> list[Tensor]:
        others = dict(zip(stacked.fixed, fixed, strict=True))
        found = vmap(grad(loss_of), (0, 0, rows, rows))(stacked.named(flat), others, x, y)
        return [found[name].reshape(runs, -1) for name in stacked.shapes]

    fixed = tuple(stacked.fixed.values())
    operations = with_products(traced(program, stacked.flat, inputs, targets, *fixed))
    return lambda flat, x, y: operations(flat, x, y, *fixed)


def batched_record(stacked: Stack, function: Callable[[Parameters], Tensor]) -> Callable[[Tensor], Tensor]:
    """A function of one run's parameters by name as a function flat -> its value for every run, shape (runs, ...)."""
    return traced(lambda flat: vmap(function)(stacked.named(flat)), stacked.flat)


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor
