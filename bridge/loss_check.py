"""Is the loop's loss the one that was named? Cross-entropy's gradient sums to zero over the classes; another loss's does not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from noetherflow.bridge.trace import first_tensor
from noetherflow.errors import RunError, TraceError
from noetherflow.symbolic.graph import ArchitectureGraph

LARGEST_SUM: Final = 0.02
"""Sum of the gradient over the classes, relative to its size, that half precision may leave."""


@dataclass
class LossCheck:
    """Looks at the gradient at the logits, in the first step only.

    Parameters
    ----------
    axis : int
        Of the classes.
    """

    axis: int
    relative_sum: float | None = None
    confirmed: bool = False

    @classmethod
    def of(cls, graph: ArchitectureGraph) -> LossCheck | None:
        """The check of a graph that ends in cross-entropy; None for any other."""
        last = graph.topological_order()[-1]
        if graph.nodes[last]["operation"] != "cross_entropy":
            return None
        return cls(int(graph.nodes[last]["attributes"].get("axis", 1)))

    def forward(self, model: nn.Module, inputs: Any, output: Any) -> None:
        """Forward hook: wait for the gradient of the logits."""
        try:
            logits = first_tensor(output)
        except TraceError:
            return
        if not self.confirmed and logits.requires_grad:
            logits.register_hook(self._backward)  # type: ignore[no-untyped-call]

    def _backward(self, gradient: Tensor) -> None:
        with torch.no_grad():
            total, size = gradient.double().sum(self.axis).abs().max(), gradient.double().abs().sum(self.axis).max()
            self.relative_sum = float(total / size) if size > 0 else 0.0

    def confirm(self) -> None:
        """Before the first step.

        Raises
        ------
        RunError
            If the gradient does not sum to zero over the classes.
        """
        self.confirmed = True
        if self.relative_sum is not None and self.relative_sum > LARGEST_SUM:
            raise RunError(
                "The loop's loss is not the cross-entropy that was named: its gradient at the logits does not sum to zero over the classes "
                f"(relative sum {self.relative_sum:.2g}). Name the loss that is used, or loss=None for what holds for every loss.",
                relative_sum=self.relative_sum,
            )
