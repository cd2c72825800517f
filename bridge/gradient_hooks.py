"""Looking at the gradient of a tensor as it is now, whatever the forward pass does to the tensor later."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def on_gradient(output: Tensor, function: Callable[[Tensor], None]) -> None:
    """Call a function with the gradient of a tensor as it is now, whatever is written over it in place later.

    A view that is written over drops out of autograd's graph, and its hooks with it; its base keeps its node.
    """
    base = output._base
    if base is None or base.grad_fn is None:
        output.register_hook(function)  # type: ignore[no-untyped-call]
        return
    shape, strides, offset = output.shape, output.stride(), output.storage_offset() - base.storage_offset()
    layout = base.shape, base.stride()

    def backward(gradients: Sequence[Tensor | None]) -> None:
        if gradients[0] is not None:
            whole = torch.empty_strided(*layout, dtype=gradients[0].dtype, device=gradients[0].device).copy_(gradients[0])
            function(whole.as_strided(shape, strides, offset))

    base.grad_fn.register_prehook(backward)


def without_gradients(function: Callable[..., None]) -> Callable[..., None]:
    """The function as a hook: it returns nothing, and what it computes is not recorded."""

    def hook(*arguments: Any) -> None:
        with torch.no_grad():
            function(*arguments)

    return hook
