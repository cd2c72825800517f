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
from torch.func import grad, jacrev, vjp, vmap

from noetherflow.errors import ModelError, RunError
from noetherflow.numeric.model_loss import output_at
from noetherflow.numeric.segments import NODES, unit_nodes

Tensors = Mapping[str, Tensor]
CHUNK = 32
"""Samples whose Jacobians are held at once while products are made."""


def double_state(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Trainable parameters, and all other parameters and buffers, as copies in float64 (indices stay what they are)."""
    trainable = {n for n, p in model.named_parameters() if p.requires_grad}
    state = {n: t.detach().clone() for n, t in [*model.named_parameters(), *model.named_buffers()]}
    state = {n: t.double() if t.is_floating_point() else t for n, t in state.items()}
    return {n: t for n, t in state.items() if n in trainable}, {n: t for n, t in state.items() if n not in trainable}


def pushed(f: Callable[[Tensors], Tensor], point: Tensors, direction: Tensors) -> Tensor:
    """J v of a function: the derivative by w of ⟨Jᵀ w, v⟩. Two backward passes, so every operation that trains will do."""
    found = vjp(f, dict(point))
    value, back = found[0], found[1]
    along: Tensor = grad(lambda w: sum((g * direction[n]).sum() for n, g in back(w)[0].items()))(torch.zeros_like(value))
    return along


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
        return self._called(self.inputs, parameters or self.parameters)

    def pushed(self, direction: Tensors) -> Tensor:
        """J v: how outputs change along a change of parameters, shape (n,)."""
        return pushed(self.outputs, self.parameters, direction)

    def pulled(self, weights: Tensor) -> dict[str, Tensor]:
        """Jᵀ w: the gradient of ⟨w, outputs⟩, for w of shape (n,)."""
        back = vjp(self.outputs, dict(self.parameters))[1]
        found: dict[str, Tensor] = back(weights)[0]
        return found

    def product(self, weights: Tensor) -> Tensor:
        """K w without K: one pass back, one forward."""
        return self.pushed(self.pulled(weights))

    def averaged_product(self, change: Tensors, weights: Tensor, nodes: int = 2 * NODES) -> Tensor:
        """K̄ w with K̄ = J̄ Jᵀ, J at θ and J̄ = ∫ J(θ + s · change) ds, by Gauss and Legendre's rule of so many nodes.

        One step of gradient descent, θ' = θ - η Jᵀ ∂f, moves outputs by -η K̄ ∂f and a loss by -η ⟨mean gradient, K̄ ∂f⟩, at any η; K̄ is
        not symmetric.
        """
        direction, total = self.pulled(weights), torch.zeros_like(weights)
        for s, w in unit_nodes(nodes):
            total = total + w * self.at({n: p + s * change[n] for n, p in self.parameters.items()}).pushed(direction)
        return total

    @cached_property
    def matrix(self) -> Tensor:
        """K, shape (n, n), symmetric; exact to rounding. Holds J of `chunk` samples, twice, and K."""

        def twice(sample: Tensor) -> tuple[Tensor, Tensor]:
            found = self._jacobian(sample)
            return found, found

        return self._product(twice)

    def velocity(self, direction: Tensors) -> Tensor:
        """Change of K along a change v of parameters, J̇ Jᵀ + J J̇ᵀ with J̇ = (∂J) v, shape (n, n).

        With v = -∇f it is the kernel's motion under gradient flow: zero for a network that is linear in its parameters, whose laws are
        then the same at all times.
        """

        def both(sample: Tensor) -> tuple[Tensor, Tensor]:
            moved = jacrev(lambda p: pushed(lambda q: self._alone(sample, q), p, direction))(dict(self.parameters))
            return self._jacobian(sample), self._flat(moved)

        half = self._product(both)
        return half + half.T

    def _alone(self, sample: Tensor, parameters: Tensors) -> Tensor:
        return self._called(sample[None], parameters)

    def _called(self, inputs: Tensor, parameters: Tensors) -> Tensor:
        out = output_at(self.model, {**parameters, **self.constants}, (inputs,))
        if not isinstance(out, Tensor):
            raise ModelError(f"The model must return one tensor; it returned {type(out).__name__}. Wrap it so that it does.")
        return out.flatten()

    def _jacobian(self, sample: Tensor) -> Tensor:
        """Shape (outputs of the sample, D)."""
        return self._flat(jacrev(lambda p: self._alone(sample, p))(dict(self.parameters)))

    def _flat(self, jacobian: Tensors) -> Tensor:
        return torch.cat([jacobian[name].flatten(1) for name in self.parameters], dim=1)

    def _product(self, pair: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Tensor:
        """A Bᵀ for (A, B) of every sample, by chunks."""
        parts = torch.split(self.inputs, self.chunk)
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
        If outputs of one sample depend on others, nothing is trainable, there are no samples, or the model does not return one tensor.
    RunError
        If `chunk` is not positive, or the model does not take the inputs.

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
    if not len(inputs):
        raise ModelError(f"A kernel needs a sample or more; got inputs of shape {tuple(inputs.shape)}.", shape=tuple(inputs.shape))
    data = inputs.double() if inputs.is_floating_point() else inputs
    kernel = TangentKernel(model, data, parameters, constants, chunk)
    _check_separate(kernel)
    return kernel


def _check_separate(kernel: TangentKernel) -> None:
    """A sample alone must give what it gives in company; a norm over the batch is off by far more than the order of summation."""
    normed = [
        m for m in kernel.model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and (m.training or m.running_mean is None)
    ]
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
