"""A mirror's subspace in a model's landscape: its stationary points, and the Hessian across it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from noetherflow.bridge.landscape import Landscape
from noetherflow.bridge.mirrors import Mirror
from noetherflow.errors import RunError

MOST_CONDITIONS: Final = 2000  # of Oᵀθ = 0: the transverse Hessian is written out
ROUNDS, POLISH, SOLVES = 400, 12, 400  # of L-BFGS, of Newton's method after it, of conjugate gradients in each
ASLEEP: Final = (
    1e-6  # directions with weights below this share of all have no orbit: they are as near to zero as stationary points are known
)
STATIONARY: Final = 1e-9  # of the gradient, relative to the decay's part of it: λ_c is then known to about its square root's square, 1e-9


@dataclass(frozen=True, slots=True)
class Stationary:
    """A stationary point of loss + ½λ|θ|² inside a subspace.

    Attributes
    ----------
    theta : Tensor, shape (P,)
    decay : float
        λ.
    slope : float
        Norm of the gradient that is left.
    curvatures : Tensor, shape (k,) or fewer
        Eigenvalues of OᵀHO of the loss alone, ascending; rotations, along which nothing changes, are left out.
    direction : Tensor, shape (P,)
        Unit vector of the lowest.
    """

    theta: Tensor
    decay: float
    slope: float
    curvatures: Tensor
    direction: Tensor

    @property
    def level(self) -> float:
        """Lowest curvature with decay: the subspace attracts gradient flow where it is positive."""
        return float(self.curvatures[0]) + self.decay


class Subspace:
    """The points of a landscape that a mirror fixes.

    Parameters
    ----------
    landscape : Landscape
    mirror : Mirror

    Raises
    ------
    RunError
        If the mirror moves what the landscape does not have, or has more conditions than are written out.
    """

    def __init__(self, landscape: Landscape, mirror: Mirror) -> None:
        missing = [n for n, s in mirror.shapes.items() if landscape.shapes.get(n) != tuple(s)]
        if missing:
            raise RunError(f"The mirror moves {missing[:4]}, which the model does not train in that shape. Derive it from this model.")
        if mirror.codimension > MOST_CONDITIONS:
            raise RunError(f"The mirror has {mirror.codimension} conditions; a transverse Hessian is written out for {MOST_CONDITIONS}.")
        self.landscape, self.mirror = landscape, mirror
        every = torch.eye(mirror.codimension, dtype=torch.float64)
        self.basis = torch.stack([landscape.flat(mirror.lift(row)) for row in every])

    def project(self, theta: Tensor) -> Tensor:
        """(I - O Oᵀ) θ; entries that a sign flips become exactly zero."""
        return self.landscape.flat(self.mirror.projected(self.landscape.named(theta)))

    def transverse(self, theta: Tensor) -> Tensor:
        """OᵀHO, shape (k, k)."""
        block = self.landscape.hessian_times(theta, self.basis) @ self.basis.T
        return (block + block.T) / 2

    def modes(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Eigenvalues of OᵀHO, ascending, and unit eigenvectors as rows, shape (.., P): but for rotations of an awake direction into e.

        With decay these are flat (their curvature is -λ at a stationary point), however far from critical the subspace is.
        """
        kept = self._across_orbits(theta)
        values, vectors = torch.linalg.eigh(kept @ self.transverse(theta) @ kept.T)
        return values, vectors.T @ kept @ self.basis

    def _across_orbits(self, theta: Tensor) -> Tensor:
        """An orthonormal basis of what is orthogonal to all O_fᵀθ, as rows, shape (.., k)."""
        every = torch.eye(self.mirror.codimension, dtype=torch.float64)
        params = self.landscape.named(theta)
        if not self.mirror.turned:
            return every
        along = torch.stack([m.coordinates(params) for m in self.mirror.turned])
        _, sizes, rows = torch.linalg.svd(along)
        across: Tensor = rows[int((sizes > ASLEEP * max(float(theta.norm()), ASLEEP)).sum()) :]
        return across

    def stationary(self, decay: float, start: Tensor) -> Stationary:
        """The stationary point inside the subspace that a descent from `start` ends at."""
        theta = self._descend(decay, self.project(start))
        for _ in range(POLISH):
            slope = self._slope(theta, decay)
            if float(slope.norm()) <= 1e-3 * STATIONARY * decay * (1 + float(theta.norm())):
                break
            theta = self.project(theta - self.solve(theta, decay, slope))
        left = float(self._slope(theta, decay).norm())
        if not left <= STATIONARY * decay * (1 + float(theta.norm())):
            raise RunError(
                f"No stationary point was reached inside the subspace at decay {decay:.4g}: the gradient is still {left:.3g}. "
                "Give a model that is trained further, or a larger decay.",
                decay=decay,
                slope=left,
            )
        values, vectors = self.modes(theta)
        return Stationary(theta, decay, left, values, vectors[0])

    def solve(self, theta: Tensor, decay: float, right: Tensor) -> Tensor:
        """(H + λ)⁻¹ applied to a vector of the subspace, by conjugate gradients; stops where the curvature is not positive."""
        x, r = torch.zeros_like(right), right.clone()
        p, size = r.clone(), float(r @ r)
        enough = 1e-24 * size
        for _ in range(SOLVES):
            if size <= enough:
                break
            q = self.landscape.contracted(theta, p) + decay * p
            curvature = float(p @ q)
            if curvature <= 0:
                break
            x, r = x + size / curvature * p, r - size / curvature * q
            old, size = size, float(r @ r)
            p = r + size / old * p
        return self.project(x)

    def _slope(self, theta: Tensor, decay: float) -> Tensor:
        return self.project(self.landscape.gradient(theta) + decay * theta)

    def _descend(self, decay: float, theta: Tensor) -> Tensor:
        point = theta.clone().requires_grad_()
        optimizer = torch.optim.LBFGS(
            [point], max_iter=ROUNDS, history_size=30, tolerance_grad=1e-13, tolerance_change=0.0, line_search_fn="strong_wolfe"
        )

        def closure() -> Tensor:
            value = self.landscape.value(point) + decay / 2 * point.square().sum()
            (slope,) = torch.autograd.grad(value, point)
            point.grad = self.project(slope)
            return value.detach()

        optimizer.step(closure)  # type: ignore[no-untyped-call]
        return self.project(point.detach())
