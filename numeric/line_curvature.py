"""What a barrier is made of: the curvature of the loss along the line, split in two.

With l(s) the loss at θ_a + s δ, twice differentiable, the excess over the chord is exactly

    l(t) - (1-t) l(0) - t l(1) = -∫ K(t, s) l''(s) ds,    K(t, s) = min(s (1-t), t (1-s)),   ∫ K(t, s) ds = t (1-t) / 2

(the kernel of Peano), so at the middle it is -1/8 δᵀ H̄ δ with H̄ a mean of Hessians along the line. For a loss of outputs f,

    l'' = f'ᵀ (∇²loss) f' + ⟨∇loss, f''⟩.

Where the loss is convex in the outputs (cross-entropy, squares) the first part only ever lowers the line: a barrier comes from the second
part alone, from how the outputs curve with the parameters. A single convex bowl has none.

Source: own.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from noetherflow.errors import ModelError, RunError
from noetherflow.numeric.barrier import Loss, in_double
from noetherflow.numeric.merging import Batch, has_statistics, merge
from noetherflow.numeric.model_loss import evaluating, output_at
from noetherflow.numeric.progress import shown

__all__ = ["LineCurvature", "line_curvature", "peano_kernel"]

Tensors = dict[str, Tensor]


def peano_kernel(t: float, s: float) -> float:
    """min(s (1 - t), t (1 - s)): the weight of the curvature at s in the excess at t.

    Examples
    --------
    >>> peano_kernel(0.5, 0.25), peano_kernel(0.25, 0.5), peano_kernel(0.3, 1.0)
    (0.125, 0.125, 0.0)
    """
    return min(s * (1 - t), t * (1 - s))


@dataclass(frozen=True, slots=True)
class LineCurvature:
    """Curvature of the loss along a line, and the excess that follows from it.

    Attributes
    ----------
    weight : float
        t, where the excess is predicted.
    places : tuple of float
        s, nodes of the quadrature.
    masses : tuple of float
        Of the nodes; with K(t, s) the weights of the mean.
    gauss_newton, outputs : tuple of float
        The two parts of l''(s): of the loss' curvature in the outputs, and of the outputs' curvature in the parameters.
    """

    weight: float
    places: tuple[float, ...]
    masses: tuple[float, ...]
    gauss_newton: tuple[float, ...]
    outputs: tuple[float, ...]

    @property
    def lowered(self) -> float:
        """The part of the excess by the loss' curvature: not positive for a convex loss."""
        return self._integrated(self.gauss_newton)

    @property
    def raised(self) -> float:
        """The part by the outputs' curvature: what a barrier is made of."""
        return self._integrated(self.outputs)

    @property
    def excess(self) -> float:
        """Predicted excess of the loss over the chord; exact but for the quadrature, where the loss is smooth along the line."""
        return self.lowered + self.raised

    def _integrated(self, values: Sequence[float]) -> float:
        return -sum(m * peano_kernel(self.weight, s) * v for s, m, v in zip(self.places, self.masses, values, strict=True))

    def __repr__(self) -> str:
        return (
            f"Excess {self.excess:.6g} at weight {self.weight:.3g} of b: {self.raised:+.6g} by the curvature of the outputs, "
            f"{self.lowered:+.6g} by that of the loss; {len(self.places)} nodes"
        )


@torch.enable_grad()
def line_curvature(
    model_a: nn.Module, model_b: nn.Module, batches: Iterable[Batch], loss: Loss, weight: float = 0.5, nodes: int = 12
) -> LineCurvature:
    """Predict the excess of the loss at one point between two models from second derivatives along the line.

    No loss value is used, so that it checks `noetherflow.barrier` and is checked by it.

    Parameters
    ----------
    model_a, model_b : nn.Module
        Of one architecture, without running statistics. Evaluated in float64, dropout off.
    batches : iterable of (inputs, targets)
    loss : callable of (output, targets)
        The mean over a batch.
    weight : float
        t, strictly between 0 and 1.
    nodes : int
        Of Gauss-Legendre quadrature on either side of t, where the kernel has its kink.

    Returns
    -------
    LineCurvature
        ``.excess``, ``.raised``, ``.lowered``, and the curvatures at the nodes.

    Raises
    ------
    ModelError
        If a batch normalisation has running statistics, or other buffers differ: they change along the line in a way that no derivative
        here sees.
    RunError
        If t is not between 0 and 1, or there are no batches.

    Notes
    -----
    Functions with kinks (ReLU) put curvature into points, which neither automatic differentiation nor a quadrature sees: for them the
    prediction is wrong by that much. Smooth activations (tanh, GELU, SiLU) have none.

    Examples
    --------
    >>> import noetherflow as nf
    >>> a, b = (nf.models.build("mlp", seed=s, widths=(3, 5, 2), activation="tanh") for s in (0, 1))
    >>> batch = torch.randn(20, 3), torch.randn(20, 2)
    >>> measured = nf.barrier(a, b, [batch], nn.functional.mse_loss, points=3).excesses[1]
    >>> abs(line_curvature(a, b, [batch], nn.functional.mse_loss).excess - measured) < 1e-12
    True
    """
    if not 0 < weight < 1:
        raise RunError(f"The excess is predicted between the ends: 0 < weight < 1; got {weight}.", weight=weight)
    if has_statistics(model_a):
        raise ModelError(
            "A batch normalisation has running statistics, no smooth function of the point on the line. Measure by nf.barrier, or "
            "set track_running_stats=False."
        )
    moving = _moving_buffers(model_a, model_b)
    if moving:
        raise ModelError(f"Buffers {moving[:4]} differ between the models: they change along the line, which no derivative here sees.")
    read = in_double(batches)
    ends = [copy.deepcopy(model).double().eval() for model in (model_a, model_b)]
    model, (first, last) = merge(ends[0], ends[1]), (dict(end.named_parameters()) for end in ends)
    start = {name: p.detach() for name, p in first.items()}
    step = {name: last[name].detach() - p for name, p in start.items()}
    places, masses = _quadrature(weight, nodes)
    parts = [_parts(model, start, step, s, read, loss) for s in shown(places, "curvature along the line", total=len(places))]
    return LineCurvature(weight, places, masses, tuple(p[0] for p in parts), tuple(p[1] for p in parts))


def _moving_buffers(model_a: nn.Module, model_b: nn.Module) -> list[str]:
    theirs = dict(model_b.named_buffers())
    return [n for n, b in model_a.named_buffers() if b.is_floating_point() and n in theirs and not torch.equal(b, theirs[n].to(b))]


def _quadrature(t: float, nodes: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    x, w = np.polynomial.legendre.leggauss(nodes)
    places = [*(t * (x + 1) / 2), *(t + (1 - t) * (x + 1) / 2)]
    return tuple(map(float, places)), tuple(map(float, [*(t * w / 2), *((1 - t) * w / 2)]))


def _parts(model: nn.Module, start: Tensors, step: Tensors, s: float, batches: Sequence[Batch], loss: Loss) -> tuple[float, float]:
    """The two parts of the second derivative at s, means over all samples."""
    inner = outer = count = 0.0
    at = next(iter(start.values())).new_tensor(s)
    for inputs, targets in batches:
        size = len(targets)
        gauss_newton, outputs = _of_batch(partial(_output, model, start, step, inputs), partial(_lost, loss, targets), at)
        inner, outer, count = inner + size * float(gauss_newton), outer + size * float(outputs), count + size
    return inner / count, outer / count


def _output(model: nn.Module, start: Tensors, step: Tensors, inputs: object, s: Tensor) -> Tensor:
    output: Tensor = output_at(model, {name: p + s * step[name] for name, p in start.items()}, (inputs,))
    return output


def _lost(loss: Loss, targets: Tensor, output: Tensor) -> Tensor:
    with evaluating((output, targets)):
        return loss(output, targets)


def _of_batch(outputs: Callable[[Tensor], Tensor], loss: Callable[[Tensor], Tensor], s: Tensor) -> tuple[Tensor, Tensor]:
    """Of one batch; reverse mode throughout."""
    s = s.detach().requires_grad_()
    f = outputs(s)
    slope = _slope(f, s)
    step = torch.zeros_like(s).requires_grad_()
    inner = _second(loss(f.detach() + step * slope), step)
    return inner, _second(loss(f), s) - inner


def _slope(f: Tensor, s: Tensor) -> Tensor:
    """df/ds: the derivative, by u, of d(u · f)/ds."""
    u = torch.zeros_like(f).requires_grad_()
    (along,) = torch.autograd.grad(f, s, u, create_graph=True)
    return torch.autograd.grad(along, u, retain_graph=True)[0].detach()


def _second(value: Tensor, s: Tensor) -> Tensor:
    (first,) = torch.autograd.grad(value, s, create_graph=True)
    if not first.requires_grad:  # linear along the line
        return torch.zeros_like(first)
    (second,) = torch.autograd.grad(first, s, materialize_grads=True)
    return second.detach()
