"""A model's outputs and loss at other parameters, and errors that say what did not fit.

Nothing of the model is written: running statistics and counters that a forward pass in training mode moves are copies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from noetherflow.errors import RunError

__all__ = ["check_loss", "evaluating", "loss_at", "output_at"]

FOREIGN: Final = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""What a model or a loss of one's own raises where data do not fit it."""


def output_at(model: nn.Module, state: Mapping[str, Tensor], inputs: Sequence[Any]) -> Any:
    """What a model gives at other parameters; buffers may be among them, others are copies of the model's.

    Raises
    ------
    RunError
        If the model does not take the inputs.

    Examples
    --------
    >>> output_at(nn.Linear(2, 1, bias=False), {"weight": torch.tensor([[1.0, 2.0]])}, [torch.ones(1, 2)]).tolist()
    [[3.0]]
    """
    buffers = {name: b.clone() for name, b in model.named_buffers() if name not in state}
    # fused attention has no second derivatives, and no rules for functorch; written out it has
    with evaluating(inputs), sdpa_kernel(SDPBackend.MATH):
        return functional_call(model, {**buffers, **state}, tuple(inputs))


def loss_at(
    model: nn.Module, state: Mapping[str, Tensor], inputs: Sequence[Any], targets: Sequence[Any], loss: Callable[..., Any]
) -> Tensor:
    """A loss, called as ``loss(output, *targets)``, at other parameters.

    Raises
    ------
    RunError
        If the model does not take the inputs, the loss not the outputs and targets, or if it is not one number.
    """
    output = output_at(model, state, inputs)
    with evaluating([*inputs, *targets]):
        value = loss(output, *targets)
    if not isinstance(value, Tensor) or value.numel() != 1:
        got = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        raise RunError(f"The loss must be one number, as a tensor; it returned {got}. Take its mean over the samples.")
    return value.reshape(())


@contextmanager
def evaluating(given: Sequence[Any]) -> Iterator[None]:
    """Turn what a model or a loss raises into a RunError that says what it was given."""
    try:
        yield
    except FOREIGN as error:
        told = [f"{tuple(t.shape)} {str(t.dtype).removeprefix('torch.')}" if isinstance(t, Tensor) else type(t).__name__ for t in given]
        raise RunError(
            f"The model or its loss failed on {', '.join(told)}: {str(error).rstrip('. ')}. Give inputs and targets that fit the model, in "
            "its dtype, and a model whose forward pass is a function of them (a norm over the batch by statistics, no dropout).",
            given=told,
        ) from error


@torch.no_grad()
def check_loss(value: Callable[[], Tensor]) -> float:
    """The value of a loss that is a finite number, and the same at each call; random numbers are left as they were.

    Raises
    ------
    RunError
        If it is not.

    Examples
    --------
    >>> check_loss(lambda: torch.tensor(2.0))
    2.0
    """
    with torch.random.fork_rng(devices=[]):
        first, second = float(value()), float(value())
    if not first - first == 0:  # nan or infinite
        raise RunError(f"The loss is {first}. Give finite parameters and data, and at least one sample.", loss=first)
    if first != second:
        raise RunError(
            f"The loss of one batch at the same parameters was {first} and then {second}: it is no function of the parameters (dropout?). "
            "Put the model in eval mode, or take dropout out.",
            losses=(first, second),
        )
    return first
