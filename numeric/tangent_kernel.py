"""The neural tangent kernel K = J Jᵀ of a network at its parameters: its matrix, its products, and its velocity.

J is the Jacobian of all outputs (samples times what one sample gives) by the trainable parameters. Under gradient flow outputs move by
-K ∂f/∂outputs, and a loss falls by ∂fᵀ K ∂f. Everything is computed in float64 from the network's own derivatives; nothing is sampled.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, jvp, vjp, vmap

from noetherflow.errors import ModelError, RunError

Tensors = Mapping[str, Tensor]
CHUNK = 32
"""Samples whose Jacobians are held at once while products are made."""


def double_state(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Trainable parameters, and all other parameters and buffers, as copies in float64 (indices stay what they are)."""
    trainable = {n for n, p in model.named_parameters() if p.requires_grad}
    state = {n: t.detach().clone() for n, t in [*model.named_parameters(), *model.named_buffers()]}
    state = {n: t.double() if t.is_floating_point() else t for n, t in state.items()}
    return {n: t for n, t in state.items() if n in trainable}, {n: t for n, t in state.items() if n not in trainable}


@dataclass(frozen=True)
class TangentKernel:
    """K = J Jᵀ on given inputs. Outputs are flattened: all of the first sample, then all of the second.

    Attributes
    ----------
    model : nn.Module
        Not changed.
    inputs : Tensor, shape (samples, ...)
    parameters : mapping of str to Tensor
        θ, in float64.
    constants : mapping of str to Tensor
        All else that the network holds.
    chunk : int
        Samples whose Jacobians are held at once.
    """

    model: nn.Module
    inputs: Tensor
    parameters: Tensors
    constants: Tensors
    chunk: int

    def at(self, parameters: Tensors) -> TangentKernel:
        """The kernel of the same network at other parameters."""
        return TangentKernel(self.model, self.inputs, dict(parameters), self.constants, self.chunk)

    def outputs(self, parameters: Tensors | None = None) -> Tensor:
        """Flattened outputs, shape (n,)."""
        out: Tensor = functional_call(self.model, {**(parameters or self.parameters), **self.constants}, (self.inputs,))
        return out.flatten()

    def pushed(self, direction: Tensors) -> Tensor:
        """J v: how outputs change along a change of parameters, shape (n,)."""
        return jvp(self.outputs, (dict(self.parameters),), (dict(direction),))[1]

    def pulled(self, weights: Tensor) -> dict[str, Tensor]:
        """Jᵀ w: the gradient of ⟨w, outputs⟩, for w of shape (n,)."""
        _, back = vjp(self.outputs, dict(self.parameters))
        found: dict[str, Tensor] = back(weights)[0]
        return found

    def product(self, weights: Tensor) -> Tensor:
        """K w without K: one pass back, one forward."""
        return self.pushed(self.pulled(weights))

    @cached_property
    def matrix(self) -> Tensor:
        """K, shape (n, n), symmetric; exact to rounding. Holds J of `chunk` samples, twice, and K."""
        return self._product(lambda sample: (self._jacobian(sample),) * 2)

    def velocity(self, direction: Tensors) -> Tensor:
        """dK along a change v of parameters, J̇ Jᵀ + J J̇ᵀ with J̇ = (∂J) v, shape (n, n).

        With v = -∇f it is the kernel's motion under gradient flow: zero for a network that is linear in its parameters, whose laws are
        then the same at all times.
        """

        def both(sample: Tensor) -> tuple[Tensor, Tensor]:
            return jvp(lambda p: self._jacobian(sample, p), (dict(self.parameters),), (dict(direction),))

        half = self._product(both)
        return half + half.T

    def _jacobian(self, sample: Tensor, parameters: Tensors | None = None) -> Tensor:
        """Shape (outputs of the sample, D)."""

        def alone(p: Tensors) -> Tensor:
            out: Tensor = functional_call(self.model, {**p, **self.constants}, (sample[None],))
            return out.flatten()

        found = jacrev(alone)(dict(parameters or self.parameters))
        return torch.cat([found[name].flatten(1) for name in self.parameters], dim=1)

    def _product(self, pair: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Tensor:
        """A Bᵀ for (A, B) of every sample, by chunks."""
        parts = self.inputs.split(self.chunk)
        rows = []
        for left in parts:
            a = vmap(pair)(left)[1].flatten(0, 1)
            rows.append(torch.cat([a @ vmap(pair)(right)[0].flatten(0, 1).T for right in parts], dim=1))
        return torch.cat(rows)


def neural_tangent_kernel(model: nn.Module, inputs: Tensor, *, chunk: int = CHUNK) -> TangentKernel:
    """The neural tangent kernel of a network at its parameters, on given inputs.

    Parameters
    ----------
    model : nn.Module
        From a batch of inputs to one tensor, each sample on its own (a batch norm in training mode is refused). Not changed.
    inputs : Tensor, shape (samples, ...)
    chunk : int
        Samples whose Jacobians are held at once; memory is that many times outputs times parameters.

    Returns
    -------
    TangentKernel
        ``.matrix``, made when asked for; ``.product(v)``, without it; ``.velocity(direction)``.

    Raises
    ------
    ModelError
        If outputs of one sample depend on others, or nothing is trainable.
    RunError
        If `chunk` is not positive.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    >>> kernel = neural_tangent_kernel(model, torch.randn(5, 3).double())
    >>> v = torch.ones(10, dtype=torch.float64)
    >>> tuple(kernel.matrix.shape), torch.allclose(kernel.matrix @ v, kernel.product(v))
    ((10, 10), True)
    """
    if chunk < 1:
        raise RunError(f"Jacobians are made for one sample or more at once; got chunk={chunk}.", chunk=chunk)
    parameters, constants = double_state(model)
    if not parameters:
        raise ModelError("The model has no trainable parameter, so its tangent kernel is zero. Set requires_grad on some.")
    data = inputs.double() if inputs.is_floating_point() else inputs
    kernel = TangentKernel(model, data, parameters, constants, chunk)
    _check_separate(kernel)
    return kernel


def _check_separate(kernel: TangentKernel) -> None:
    """A sample alone must give what it gives in company; a norm over the batch is off by far more than the order of summation."""
    normed = [m for m in kernel.model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and (m.training or m.running_mean is None)]
    if normed:
        raise ModelError("Outputs depend on the whole batch (a batch norm in training mode). Put the model in eval mode.", modules=normed)
    with torch.no_grad():
        together = kernel.outputs()
        alone = TangentKernel(kernel.model, kernel.inputs[:1], kernel.parameters, kernel.constants, 1).outputs()
    apart = float((together[: len(alone)] - alone).abs().max())
    if not apart <= 1e-6 * float(together.abs().max()):  # rounding of float64 is 1e-16 times the conditioning of a network
        raise ModelError(
            f"A sample's output alone differs by {apart:.1e} from its output in a batch: dropout, or samples that see one another. Put the "
            "model in eval mode.",
            difference=apart,
        )
