"""Products of many small matrices on CPUs: NumPy's loop over them, where torch's batched call spends longer on each than on its numbers.

Torch hands `bmm` to a batched routine of its linear algebra library, which on some processors is several times slower for small matrices
than one plain product after the other (`benchmarks/bench_ensembles.py`). Tensors are shared with NumPy, nothing is copied; results differ
by rounding only, and do not depend on which is faster where.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from torch import Tensor, fx

__all__ = ["products", "with_products"]

KINDS: Final = (torch.float32, torch.float64)


def products(left: Tensor, right: Tensor) -> Tensor:
    """The products of two stacks of matrices, shapes (n, i, j) and (n, j, k), on the CPU and without gradients.

    Examples
    --------
    >>> a, b = torch.ones(3, 2, 4), torch.ones(3, 4, 5)
    >>> products(a, b).shape
    torch.Size([3, 2, 5])
    """
    return torch.from_numpy(np.matmul(left.numpy(), right.numpy()))


def with_products(operations: fx.GraphModule) -> fx.GraphModule:
    """Let a traced list of operations use `products` for its batched products on the CPU; it is changed in place."""
    for node in operations.graph.nodes:
        value = node.meta.get("val")
        if node.target is torch.ops.aten.bmm.default and isinstance(value, Tensor) and value.device.type == "cpu" and value.dtype in KINDS:
            node.target = products
    operations.recompile()
    return operations
