"""A function along a segment θ + s Δ, 0 ≤ s ≤ 1: the work of its gradient and the weighted curvature, by Gauss and Legendre's rule.

    work       ∫₀¹ φ'(s) ds              = f(θ + Δ) - f(θ), for every continuous f that has a gradient almost everywhere
    curvature  ∫₀¹ (1 - s) φ''(s) ds     = work - φ'(0), if φ' is continuous; where it jumps, (1 - s) · jump is missing for each jump

with φ(s) = f(θ + s Δ). n nodes integrate polynomials of degree 2 n - 1 exactly. The error is estimated from two refinements alone: the
value of f at the ends never enters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

Tensors = Mapping[str, Tensor]
Scalar = Callable[[Tensors], Tensor]
NODES: Final = 8
MOST_PANELS: Final = 32
SLOW: Final = 8.0
"""Halving panels makes a smooth function's error fall by 2^16 in the end, one with kinks by 2 to 4: two falls below this tell kinks."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Integrals along a segment.

    Attributes
    ----------
    slope : float
        φ'(0) = ⟨∇f, Δ⟩.
    work : float
        ∫ φ'.
    curvature : float
        ∫ (1 - s) φ'': the second-order term of Taylor's theorem, all higher orders included.
    quadrature : float
        Estimated error of `work` and `curvature`: differences of two refinements, panel by panel, in absolute value. Across kinks the
        differences of the last two, as one may be small by chance; still an estimate, no bound.
    panels : int
        Of the finer refinement.
    """

    slope: float
    work: float
    curvature: float
    quadrature: float
    panels: int

    @property
    def kinks(self) -> float:
        """What jumps of the gradient add, Σ (1 - s) · jump: zero to rounding for a smooth function."""
        return self.work - self.slope - self.curvature


def segment(f: Scalar, start: Tensors, change: Tensors, *, accuracy: float = 0.0, nodes: int = NODES, most: int = MOST_PANELS) -> Segment:
    """Integrate along θ + s Δ, with panels halved until the estimated error is below `accuracy`, or there are `most` of them,
    or the error falls so slowly that the function must have kinks.

    Parameters
    ----------
    f : callable
        Parameters -> scalar, differentiable.
    start, change : mapping of str to Tensor
        θ and Δ, in float64.
    accuracy : float
    nodes : int
        In each panel.
    most : int
        Panels of the finer refinement, a power of two.

    Examples
    --------
    >>> found = segment(lambda p: p["x"] ** 3, {"x": torch.tensor(1.0).double()}, {"x": torch.tensor(2.0).double()})
    >>> [round(v, 12) for v in (found.slope, found.work, found.curvature)]
    [6.0, 26.0, 20.0]
    """
    slope, _ = _derivatives(f, start, change, 0.0)
    panels, slow, last = 1, 0, np.inf
    coarse = _panels(f, start, change, panels, nodes)
    while True:
        fine = _panels(f, start, change, 2 * panels, nodes)
        apart = fine.reshape(panels, 2, 2).sum(1) - coarse
        error = float(np.abs(apart).sum(0).max())
        panels, coarse = 2 * panels, fine
        slow, last, before = slow + (error > last / SLOW), error, last
        if error <= accuracy or panels >= most or slow > 1:
            work, curvature = (float(v) for v in fine.sum(0))
            return Segment(slope, work, curvature, error + (before if slow > 1 else 0.0), panels)


def _panels(f: Scalar, start: Tensors, change: Tensors, panels: int, nodes: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """(work, curvature) of each panel, shape (panels, 2)."""
    out = np.zeros((panels, 2))
    for k in range(panels):
        for x, w in unit_nodes(nodes):
            s = (k + x) / panels
            first, second = _derivatives(f, start, change, s)
            out[k] += np.array([first, (1 - s) * second]) * w / panels
    return out


def _derivatives(f: Scalar, start: Tensors, change: Tensors, at: float) -> tuple[float, float]:
    """φ' and φ'' at one place."""
    with torch.enable_grad():
        s = torch.tensor(at, dtype=torch.float64, requires_grad=True)
        value = f({name: p + s * change[name] for name, p in start.items()})
        (first,) = torch.autograd.grad(value, s, create_graph=True)
        second = torch.autograd.grad(first, s, materialize_grads=True)[0] if first.requires_grad else torch.zeros_like(first)
    return float(first.detach()), float(second)


def mean_gradient(f: Callable[[Tensor], Tensor], start: Tensor, end: Tensor, nodes: int = 2 * NODES) -> Tensor:
    """∫₀¹ ∇f(z + s (z' - z)) ds: the discrete gradient with f(z') - f(z) = ⟨mean gradient, z' - z⟩ (averaged vector field).

    Exact for polynomials up to degree 2 `nodes`, to the error of the quadrature otherwise; for a square it is the gradient at the midpoint.

    Examples
    --------
    >>> a, b = torch.tensor([1.0, 2.0]).double(), torch.tensor([3.0, -1.0]).double()
    >>> mean_gradient(lambda z: (z**2).sum(), a, b).round(decimals=12).tolist()
    [4.0, 1.0]
    """
    total = torch.zeros_like(start)
    for s, w in unit_nodes(nodes):
        z = (start + s * (end - start)).detach().requires_grad_()
        total = total + w * torch.autograd.grad(f(z), z)[0]
    return total


def unit_nodes(nodes: int) -> list[tuple[float, float]]:
    """Places and weights of Gauss and Legendre's rule on [0, 1]."""
    points, weights = np.polynomial.legendre.leggauss(nodes)
    return [((1 + float(x)) / 2, float(w) / 2) for x, w in zip(points, weights, strict=True)]
