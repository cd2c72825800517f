"""Learning rules as textbooks write them, on dictionaries of tensors: what has no class in torch.optim, and an adapter for what has.

Each says where the gradient is taken, makes a step, and shows its buffers by the names that the forms use. None knows a form.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from support.rule_cases import Make
from torch import Tensor, nn

from noetherflow.bridge.optimizers import READERS

Params = dict[str, Tensor]


@dataclass
class Reference:
    """What all of them have: hyper-parameters by the forms' names, and buffers that start at zero."""

    values: Mapping[str, float]
    state: dict[str, Params] = field(default_factory=dict)

    def buffer(self, name: str, like: Params) -> Params:
        return self.state.setdefault(name, {n: torch.zeros_like(p) for n, p in like.items()})

    def numbers(self) -> Mapping[str, float]:
        return self.values

    def point(self, params: Params) -> Params:
        return params

    def given(self, params: Params, grads: Params, samples: Params) -> dict[str, Params]:
        """Vectors of the coming step besides θ, g and the buffers."""
        return {}

    def step(self, params: Params, grads: Params, samples: Params) -> Params:
        raise NotImplementedError

    def at_rate(self, rate: float) -> None:
        """Go on with another step size."""
        self.values = {**self.values, "lr": rate}

    def kick(self, name: str, change: Params) -> None:
        """Add to a buffer, so that a run does not start from rest."""
        for n, x in self.buffer(name, change).items():
            x += change[n]


class SignSGD(Reference):
    def step(self, params: Params, grads: Params, samples: Params) -> Params:
        v = self.values
        return {n: p - v["lr"] * torch.sign(grads[n] + v["weight_decay"] * p) for n, p in params.items()}


class Signum(Reference):
    def step(self, params: Params, grads: Params, samples: Params) -> Params:
        v, m = self.values, self.buffer("m", params)
        for n, p in params.items():
            m[n] = v["momentum"] * m[n] + (1 - v["momentum"]) * (grads[n] + v["weight_decay"] * p)
        return {n: p - v["lr"] * torch.sign(m[n]) for n, p in params.items()}


class Lion(Reference):
    """Algorithm 2 of chen2023symbolic."""

    def step(self, params: Params, grads: Params, samples: Params) -> Params:
        v, m, out = self.values, self.buffer("m", params), {}
        for n, p in params.items():
            update = v["beta1"] * m[n] + (1 - v["beta1"]) * grads[n]
            out[n] = p - v["lr"] * (torch.sign(update) + v["weight_decay"] * p)
            m[n] = v["beta2"] * m[n] + (1 - v["beta2"]) * grads[n]
        return out


class SGDW(Reference):
    """Algorithm 1 of loshchilov2019decoupled: decay beside the momentum."""

    def step(self, params: Params, grads: Params, samples: Params) -> Params:
        v, b, out = self.values, self.buffer("b", params), {}
        for n, p in params.items():
            b[n] = v["momentum"] * b[n] + grads[n]
            out[n] = (1 - v["lr"] * v["weight_decay"]) * p - v["lr"] * b[n]
        return out


class NesterovAhead(Reference):
    """Equations 3 and 4 of sutskever2013importance, decay included in the loss."""

    def point(self, params: Params) -> Params:
        return {n: p + self.values["momentum"] * self.buffer("b", params)[n] for n, p in params.items()}

    def step(self, params: Params, grads: Params, samples: Params) -> Params:
        v, b, ahead = self.values, self.buffer("b", params), self.point(params)
        for n in params:
            b[n] = v["momentum"] * b[n] - v["lr"] * (grads[n] + v["weight_decay"] * ahead[n])
        return {n: p + b[n] for n, p in params.items()}


class ExponentiatedGradient(Reference):
    """Exponentiated gradients that are not normalised (kivinen1997exponentiated), for positive parameters."""

    def step(self, params: Params, grads: Params, samples: Params) -> Params:
        v = self.values
        return {n: p * torch.exp(-v["lr"] * (grads[n] + v["weight_decay"] * p)) for n, p in params.items()}


@dataclass
class Hypentropy(Reference):
    """Gradient descent in arsinh(θ/β) (ghai2020exponentiated)."""

    width: float = 0.5

    def step(self, params: Params, grads: Params, samples: Params) -> Params:
        v, b = self.values, self.width
        return {n: b * torch.sinh(torch.asinh(p / b) - v["lr"] * (grads[n] + v["weight_decay"] * p)) for n, p in params.items()}


@dataclass
class NaturalGradient(Reference):
    """(F + ε) u = g with the empirical Fisher matrix; `blocks` of names have each their own part of F."""

    blocks: tuple[tuple[str, ...], ...] | None = None

    def direction(self, grads: Params, samples: Params) -> tuple[Params, Params]:
        """u and F u."""
        u, fisher = {}, {}
        for names in self.blocks or (tuple(grads),):
            rows = torch.cat([samples[n].flatten(1) for n in names], 1)
            gradient = torch.cat([grads[n].flatten() for n in names])
            matrix = rows.T @ rows / len(rows)
            found = torch.linalg.solve(matrix + self.values["damping"] * torch.eye(len(matrix), dtype=torch.float64), gradient)
            for target, flat in ((u, found), (fisher, matrix @ found)):
                pieces = torch.split(flat, [grads[n].numel() for n in names])
                target |= {n: piece.reshape(grads[n].shape) for n, piece in zip(names, pieces, strict=True)}
        return u, fisher

    def given(self, params: Params, grads: Params, samples: Params) -> dict[str, Params]:
        return {"Fu": self.direction(grads, samples)[1]}

    def step(self, params: Params, grads: Params, samples: Params) -> Params:
        u, decay = self.direction(grads, samples)[0], self.values.get("weight_decay", 0.0)
        return {n: p - self.values["lr"] * (u[n] + decay * p) for n, p in params.items()}


@dataclass
class Torch(Reference):
    """An optimizer of torch.optim, read as the bridge reads it."""

    make: Make | None = None
    _held: dict[str, nn.Parameter] = field(default_factory=dict)
    _optimizer: Any = None

    def _start(self, params: Params) -> None:
        assert self.make is not None
        self._held = {n: nn.Parameter(p.clone()) for n, p in params.items()}
        self._optimizer = self.make(nn.ParameterList(self._held.values()))

    @property
    def _reader(self) -> Any:
        return READERS[type(self._optimizer)]

    def form(self, params: Params) -> Any:
        self._start(params)
        return self._reader.form(self._optimizer.param_groups[0])

    def numbers(self) -> Mapping[str, float]:
        kept = self._optimizer.state.get(next(iter(self._held.values())), {})
        return self._reader.values(self._optimizer.param_groups[0], kept)  # type: ignore[no-any-return]

    def buffer(self, name: str, like: Params) -> Params:
        found = {n: self._reader.buffers(self._optimizer.state.get(p, {})).get(name) for n, p in self._held.items()}
        return {n: torch.zeros_like(like[n]) if b is None else b.clone() for n, b in found.items()}

    def given(self, params: Params, grads: Params, samples: Params) -> dict[str, Params]:
        out: dict[str, Params] = {}
        for n, p in self._held.items():
            p.grad = grads[n].clone()
            for name, x in self._reader.given(self._optimizer.param_groups[0], p, self._optimizer.state.get(p, {})).items():
                out.setdefault(name, {})[n] = x
        return out

    def step(self, params: Params, grads: Params, samples: Params) -> Params:
        for n, p in self._held.items():
            p.grad = grads[n].clone()
        self._optimizer.step()
        return {n: p.detach().clone() for n, p in self._held.items()}

    def kick(self, name: str, change: Params) -> None:
        with torch.no_grad():
            for n, p in self._held.items():
                self._reader.buffers(self._optimizer.state[p])[name].add_(change[n])

    def at_rate(self, rate: float) -> None:
        self._optimizer.param_groups[0]["lr"] = rate
