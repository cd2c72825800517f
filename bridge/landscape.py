"""A model's loss on fixed data as a function of one flat vector, with its derivatives along given directions, in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import grad, vmap

from noetherflow.bridge.replay import loss_function
from noetherflow.errors import ModelError
from noetherflow.numeric.curvature import CHUNK, hessian_times
from noetherflow.numeric.model_loss import check_loss, loss_at

LossFunction = Callable[[Any, Tensor], Tensor]


class Landscape:
    """The loss of a model on one set of samples.

    Parameters
    ----------
    model : nn.Module
        Copied; its trainable parameters, one after the other, are the vector.
    loss : 'mse', 'cross_entropy' or callable of (output, targets)
        A mean over the samples.
    inputs, targets : Tensor
        Floating-point data are taken in float64.

    Raises
    ------
    RunError
        If the loss is unknown, fails on the data, is not finite, or is random (dropout).
    ModelError
        If nothing is trainable.

    Examples
    --------
    >>> _ = torch.manual_seed(0)
    >>> land = Landscape(nn.Linear(2, 1, bias=False), "mse", torch.eye(2), torch.zeros(2, 1))
    >>> theta = torch.tensor([1.0, 2.0], dtype=torch.float64)
    >>> land.gradient(theta).tolist(), land.hessian_times(theta, torch.eye(2).double()).tolist()
    ([1.0, 2.0], [[1.0, 0.0], [0.0, 1.0]])
    """

    def __init__(self, model: nn.Module, loss: str | LossFunction, inputs: Tensor, targets: Tensor) -> None:
        self._model, self._loss = copy.deepcopy(model).double(), loss_function(loss)
        trainable = {n: p.detach().clone() for n, p in self._model.named_parameters() if p.requires_grad}
        if not trainable:
            raise ModelError("The model has no trainable parameter. Set requires_grad on some.")
        self.shapes = {name: tuple(p.shape) for name, p in trainable.items()}
        self.start = self.flat(trainable)
        self.inputs, self.targets = (t.double() if t.is_floating_point() else t for t in (inputs, targets))
        check_loss(lambda: self.value(self.start))

    def flat(self, params: Mapping[str, Tensor]) -> Tensor:
        """The vector of parameters given by name, zero for those not given."""
        parts = [params[n].reshape(-1) if n in params else torch.zeros(s, dtype=torch.float64).reshape(-1) for n, s in self.shapes.items()]
        return torch.cat(parts)

    def named(self, theta: Tensor) -> dict[str, Tensor]:
        """The parameters of a vector, by name."""
        parts = torch.split(theta, [int(torch.Size(s).numel()) for s in self.shapes.values()])
        return {n: part.reshape(s) for (n, s), part in zip(self.shapes.items(), parts, strict=True)}

    def value(self, theta: Tensor, inputs: Tensor | None = None, targets: Tensor | None = None) -> Tensor:
        """The loss, on other samples if they are given."""
        x, y = (self.inputs, self.targets) if inputs is None or targets is None else (inputs, targets)
        return loss_at(self._model, self.named(theta), (x,), (y,), self._loss)

    def gradient(self, theta: Tensor) -> Tensor:
        """∇L, shape (P,)."""
        found: Tensor = grad(self.value)(theta)
        return found

    def sample_gradients(self, theta: Tensor) -> Tensor:
        """∇L of every sample by itself, shape (samples, P)."""

        def one(x: Tensor, y: Tensor) -> Tensor:
            found: Tensor = grad(self.value)(theta, x[None], y[None])
            return found

        found: Tensor = vmap(one, chunk_size=CHUNK)(self.inputs, self.targets)
        return found

    def hessian_times(self, theta: Tensor, directions: Tensor) -> Tensor:
        """H v for each row v of `directions`, shape (m, P)."""
        return hessian_times(self.value, theta, directions)

    def contracted(self, theta: Tensor, *directions: Tensor) -> Tensor:
        """D^{k+1}L[v_1, ..., v_k, ·], shape (P,)."""
        point = theta.detach().clone().requires_grad_()
        (found,) = torch.autograd.grad(self.value(point), point, create_graph=True)
        for v in directions:
            scalar = found @ v
            if not scalar.requires_grad:
                return torch.zeros_like(theta)
            (found,) = torch.autograd.grad(scalar, point, create_graph=True, materialize_grads=True)
        return found.detach()
