"""The Hessian across a fixed subspace: what decides whether a symmetric point is left.

At a point θ = Pθ that a group G of orthogonal symmetries fixes, H ρ = ρ H for ρ in G, so H P = P H: the Hessian has a block along the fixed
subspace and a block H⊥ across it. A negative eigenvalue of H⊥ is an escape direction that the symmetric run itself never sees. Across
N units that are all exchanged H⊥ is the same matrix N - 1 times (Schur's lemma: their contrasts are irreducible), so every escape rate
comes N - 1 times.
Source: ziyin2024symmetry for the two blocks of a reflection; own for the multiplicity.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from noetherflow.bridge.fixed_subspace import FixedSubspace
from noetherflow.bridge.replay import loss_function
from noetherflow.bridge.trace import Loss, first_tensor
from noetherflow.errors import ModelError
from noetherflow.numeric.curvature import hessian_times, slope_and_product
from noetherflow.numeric.model_loss import check_loss, loss_at

ON_IT: Final = 1e-20  # of Δ: a relative distance of 1e-10 is far above what rounding adds up to, and far below any breaking that matters
LARGEST: Final = 4096

Objective = Callable[[Tensor], Tensor]


def objective(model: nn.Module, subspace: FixedSubspace, inputs: Any, target: Any, loss: Loss) -> Objective:
    """The loss of a batch as a function of all parameters as one vector."""
    given = inputs if isinstance(inputs, tuple) else (inputs,)
    told, function = (() if target is None else (target,)), loss_function(loss)
    like = {name: p.dtype for name, p in model.named_parameters()}

    def value(theta: Tensor) -> Tensor:
        params = {name: part.to(like[name]) for name, part in subspace.unflat(theta).items()}
        return loss_at(model, params, given, told, lambda output, *targets: function(first_tensor(output), *targets))

    return value


@dataclass(frozen=True, slots=True, eq=False)
class TransverseHessian:
    """The Hessian of a batch's loss, restricted to the complement of a fixed subspace.

    Attributes
    ----------
    theta : Tensor, shape (D,)
        The point, on the subspace.
    value : callable
        The loss of a vector of parameters.
    subspace : FixedSubspace
    """

    theta: Tensor
    value: Objective
    subspace: FixedSubspace

    @property
    def dimension(self) -> int:
        """Number of transverse directions."""
        return self.subspace.transverse_dimension

    def whole(self, vector: Tensor) -> Tensor:
        """H v with the whole Hessian, shape (D,)."""
        return slope_and_product(self.value, self.theta, vector)[1]

    def times(self, vector: Tensor) -> Tensor:
        """H⊥ v = (1 - P) H (1 - P) v, shape (D,)."""
        project = self.subspace.vectors.project
        found = self.whole(vector - project(vector))
        return found - project(found)

    def matrix(self) -> Tensor:
        """H⊥ in an orthonormal basis of contrasts, shape (dimension, dimension), symmetric."""
        if self.dimension > LARGEST:
            raise ModelError(
                f"A transverse Hessian of {self.dimension} directions is too large to be written out (at most {LARGEST}). Use .times, or a "
                "smaller group or model.",
                dimension=self.dimension,
            )
        basis = self.subspace.vectors.transverse()
        found = hessian_times(self.value, self.theta, basis) @ basis.mT if len(basis) else basis.new_zeros(0, 0)
        symmetric: Tensor = (found + found.mT) / 2
        return symmetric

    def eigenvalues(self) -> Tensor:
        """Of H⊥, ascending."""
        found: Tensor = torch.linalg.eigvalsh(self.matrix())
        return found

    @property
    def lowest(self) -> float:
        """The smallest eigenvalue: below zero, gradient flow leaves the symmetric point at the rate -λ."""
        return float(self.eigenvalues()[0]) if self.dimension else float("inf")


def transverse_hessian(
    model: nn.Module, inputs: Any, target: Any = None, *, loss: Loss = "cross_entropy", subspace: FixedSubspace
) -> TransverseHessian:
    """The Hessian of a batch's loss across the subspace that a group of discrete symmetries fixes.

    Parameters
    ----------
    model : nn.Module
        At a point of the subspace. Not changed; float64 advised.
    inputs : Tensor or tuple
    target : optional
    loss : str, nn.Module or callable
        As for `noetherflow.trace`; with a target, called as ``loss(output, target)``.
    subspace : FixedSubspace

    Returns
    -------
    TransverseHessian
        ``.times(vector)``, ``.matrix()``, ``.eigenvalues()``, ``.lowest``; exact to rounding where the network is twice differentiable.

    Raises
    ------
    ModelError
        If the parameters are not on the subspace.
    RunError
        If the loss fails on the data, is not finite, or is random (dropout).

    Examples
    --------
    >>> import noetherflow as nf
    >>> from noetherflow.symbolic.discrete_elements import swap
    >>> model, x = nf.models.MLP([3, 2, 2], "tanh").double(), torch.randn(5, 3).double()
    >>> _ = [nn.init.constant_(p, 0.1) for p in model.parameters()]
    >>> group = nf.discrete_symmetries(nf.trace(model, x))
    >>> there = nf.fixed_subspace(group, swap(group, 0, 0, 1), model)
    >>> found = transverse_hessian(model, x, torch.zeros(5, 2).double(), loss="mse", subspace=there)
    >>> found.dimension, found.eigenvalues().shape
    (6, torch.Size([6]))
    """
    breaking = subspace.breaking(model)
    if breaking > ON_IT:
        raise ModelError(
            f"The parameters are not on the fixed subspace: Δ = {breaking:.3g} > {ON_IT:g}. Project them first (subspace.project).",
            breaking=breaking,
        )
    theta, value = subspace.flat(model), objective(model, subspace, inputs, target, loss)
    check_loss(lambda: value(theta))
    return TransverseHessian(theta, value, subspace)
