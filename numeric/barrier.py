"""The loss along the straight line between two models, and how far it rises above the line between its ends: the barrier.

Source: frankle2020linear, entezari2022role for the barrier; own for what is said of rounding.
"""

from __future__ import annotations

import copy
import html
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from noetherflow.errors import ModelError, RunError
from noetherflow.numeric.merging import Batch, estimate_statistics, has_statistics, merge
from noetherflow.numeric.model_loss import evaluating
from noetherflow.numeric.palette import ACCENTS, BAD, MUTED, STYLE
from noetherflow.numeric.progress import shown

__all__ = ["Barrier", "Loss", "barrier", "in_double"]

Loss = Callable[[Any, Tensor], Tensor]
"""Called as loss(output, targets); the mean over a batch."""


@dataclass(frozen=True, slots=True)
class Barrier:
    """Losses along a line.

    Attributes
    ----------
    weights : tuple of float
        Of model b, from 0 to 1.
    losses : tuple of float
        Mean over all samples, in float64.
    accuracies : tuple of float or None
        Share of samples whose largest output is their class; None where targets are not classes, or the axis of classes is not clear.
    reestimated : bool
        Whether running statistics of batch normalisations were estimated anew at every point, the ends included.
    """

    weights: tuple[float, ...]
    losses: tuple[float, ...]
    accuracies: tuple[float, ...] | None
    reestimated: bool

    @property
    def excesses(self) -> tuple[float, ...]:
        """Loss minus the linear interpolation of the losses at the ends; zero there, negative where the line sags."""
        first, last = self.losses[0], self.losses[-1]
        return tuple(loss - ((1 - t) * first + t * last) for t, loss in zip(self.weights, self.losses, strict=True))

    @property
    def height(self) -> float:
        """The largest excess; not negative. Between the points it may be larger."""
        return max(0.0, *self.excesses)

    @property
    def at(self) -> float:
        """The weight of b with the largest excess."""
        return self.weights[int(np.argmax(self.excesses))]

    def table(self) -> str:
        """One line for each point."""
        rows = ["weight of b         loss       excess  accuracy"]
        for i, (t, loss, excess) in enumerate(zip(self.weights, self.losses, self.excesses, strict=True)):
            share = "" if self.accuracies is None else f"{self.accuracies[i]:10.4f}"
            rows.append(f"{t:11.4f} {loss:12.6g} {excess:+12.4g}{share}".rstrip())
        return "\n".join(rows)

    def __repr__(self) -> str:
        ends = f"{self.losses[0]:.4g} and {self.losses[-1]:.4g}"
        more = "; running statistics estimated anew" if self.reestimated else ""
        return f"Barrier of {self.height:.4g} at weight {self.at:.3g} of b, {len(self.weights)} points; losses at the ends {ends}{more}"

    def _repr_html_(self) -> str:
        return f"<p>{html.escape(repr(self))}</p><pre>{html.escape(self.table())}</pre>"

    def draw(self, axes: Axes, label: str | None = None, colour: str = ACCENTS[0]) -> None:
        """The losses on given axes, with the chord between the ends."""
        axes.plot(self.weights, self.losses, color=colour, marker="o", markersize=2.5, linewidth=1.2, label=label)
        axes.plot([0, 1], [self.losses[0], self.losses[-1]], color=colour, linewidth=0.8, linestyle=":")

    def plot(self) -> Figure:
        """Loss and, where there are classes, accuracy along the line."""
        with matplotlib.rc_context(STYLE):
            figure = Figure(figsize=(3.6 if self.accuracies is None else 7.2, 2.9), layout="constrained")
            axes = figure.subplots(1, 1 if self.accuracies is None else 2, squeeze=False)[0]
            self.draw(axes[0])
            top, chord = self.losses[self.weights.index(self.at)], self.losses[self.weights.index(self.at)] - max(self.excesses)
            axes[0].vlines(self.at, chord, top, color=BAD, linewidth=1.2)
            axes[0].set(title=f"Barrier {self.height:.3g}", xlabel="weight of b", ylabel="loss")
            if self.accuracies is not None:
                axes[1].plot(self.weights, self.accuracies, color=ACCENTS[2], marker="o", markersize=2.5, linewidth=1.2)
                axes[1].plot([0, 1], [self.accuracies[0], self.accuracies[-1]], color=MUTED, linewidth=0.8, linestyle=":")
                axes[1].set(title="Accuracy", xlabel="weight of b", ylim=(0, 1))
        return figure


@torch.no_grad()
def barrier(model_a: nn.Module, model_b: nn.Module, batches: Iterable[Batch], loss: Loss, points: int = 21) -> Barrier:
    """Measure the loss along the straight line between two models.

    Parameters
    ----------
    model_a, model_b : nn.Module
        Of one architecture. Neither is changed. Carry one onto the other first by `noetherflow.align` to compare them modulo symmetries.
    batches : iterable of (inputs, targets)
        All of it is used at every point. Inputs and targets lie on the models' device; floating-point ones are read in float64.
    loss : callable of (output, targets)
        The mean over a batch. Batches are weighted by their number of targets along the first axis.
    points : int
        Evenly spaced, the ends included; at least 3.

    Returns
    -------
    Barrier
        ``.weights``, ``.losses``, ``.accuracies``, ``.excesses``, ``.height``, ``.table()``, ``.plot()``.

    Raises
    ------
    RunError
        If there are no batches or an empty one, if model or loss fail on them, or for fewer than 3 points.
    ModelError
        If the models are of different architectures, or a loss is not a finite number.

    Notes
    -----
    Computed in float64, dropout off. The running statistics of batch normalisations are estimated from the batches anew at every point,
    the ends included, so that all points are treated alike: without it the merged models' statistics would be wrong, which shows as a
    barrier (jordan2023repair).

    Examples
    --------
    >>> a, b = nn.Linear(2, 1).double(), nn.Linear(2, 1).double()
    >>> x, y = torch.randn(9, 2).double(), torch.randn(9, 1).double()
    >>> barrier(a, b, [(x, y)], nn.functional.mse_loss, points=5).height  # linear in its parameters, the loss convex
    0.0
    """
    batches = in_double(batches)
    if points < 3:
        raise RunError(f"A barrier is measured between two ends; got {points} points. Give at least 3.", points=points)
    ends = [copy.deepcopy(model).double().eval() for model in (model_a, model_b)]
    reestimated = has_statistics(ends[0])
    weights = tuple(i / (points - 1) for i in range(points))
    found = [_measured(ends, t, batches, loss) for t in shown(weights, "walking the line", total=points)]
    losses, shares = zip(*found, strict=True)
    accuracies = None if shares[0] is None else shares
    return Barrier(weights, losses, accuracies, reestimated)


def in_double(batches: Iterable[Batch]) -> tuple[Batch, ...]:
    """Batches with all floating-point tensors in float64.

    Raises
    ------
    RunError
        If there are none, or one is empty.
    """
    read = tuple((_doubled(inputs), _doubled(targets)) for inputs, targets in batches)
    if not read or not all(len(targets) for _, targets in read):
        raise RunError(
            "There are no batches to measure a loss on, or one of them is empty. Give at least one pair of inputs and targets (an iterator "
            "is used up)."
        )
    return read


def _doubled(what: Any) -> Any:
    return what.double() if isinstance(what, Tensor) and what.is_floating_point() else what


def _class_axis(output: Any, targets: Tensor) -> int | None:
    """The axis of outputs without which they have the shape of whole-numbered targets: 1 for images, the last for logits of a sequence."""
    if not isinstance(output, Tensor) or targets.is_floating_point():
        return None
    axes = [axis for axis in range(1, output.ndim) if (*output.shape[:axis], *output.shape[axis + 1 :]) == tuple(targets.shape)]
    return axes[0] if len(axes) == 1 else None  # of a sequence as long as there are classes nothing is said


def _measured(ends: Sequence[nn.Module], weight: float, batches: Sequence[Batch], loss: Loss) -> tuple[float, float | None]:
    """Loss and accuracy at one point."""
    model = merge(ends[0], ends[1], weight)
    estimate_statistics(model, batches)
    total, right, count = 0.0, 0, 0
    classes = True
    for inputs, targets in batches:
        with evaluating((inputs, targets)):
            output = model(inputs)
            total += float(loss(output, targets)) * len(targets)
        count += len(targets)
        axis = _class_axis(output, targets)
        classes = classes and axis is not None
        right += int((output.argmax(axis) == targets).sum()) if classes else 0
    mean = total / count
    if not np.isfinite(mean):
        raise ModelError(f"The loss at weight {weight:.3g} of b is {mean}. Check the models' parameters.", weight=weight)
    samples = sum(targets.numel() for _, targets in batches)
    return mean, right / samples if classes else None
