"""Whether the symmetries of a real model are true, generator by generator, on the model itself in float64."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

from noetherflow.symbolic.symmetries import Symmetries, Symmetry

EPS = 1e-30
TOLERANCE = 1e-10
FLOOR = 1e-12  # of the sizes that meet in a sum; what is smaller than that is rounding

Parameters = dict[str, Tensor]


class Double(TorchFunctionMode):
    """What a model casts to float32 on its way (norms, routers, scans) stays float64."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def wide(value: Any) -> Any:
            return torch.float64 if value is torch.float32 else value

        if getattr(func, "__name__", "") == "float":
            return args[0].double()
        return func(*map(wide, args), **{key: wide(value) for key, value in (kwargs or {}).items()})


def exact(model: nn.Module) -> nn.Module:
    """The model in float64, away from its initial values, and with an eps that nothing sees."""
    model = model.double()
    for module in model.modules():
        for name in ("eps", "variance_epsilon"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, EPS)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.where(p == 1, p + torch.rand_like(p), p + 0.1 * torch.randn_like(p)))
    return model


@dataclass(frozen=True, slots=True)
class Judge:
    """A model on its example inputs, read through random weights on its outputs (on its logits, if that is what it calls them)."""

    model: nn.Module
    inputs: tuple[Any, ...]
    keywords: dict[str, Any]

    def terms(self, parameters: Parameters) -> Tensor:
        """The numbers whose sum must not change."""
        torch.manual_seed(3)
        with Double():
            output = functional_call(self.model, parameters, self.inputs, self.keywords)
        outputs = list(_tensors(getattr(output, "logits", output)))
        torch.manual_seed(5)
        return torch.cat([(o * torch.randn_like(o)).flatten() for o in outputs])

    def violations(self, symmetries: Symmetries) -> list[str]:
        """Every reported symmetry that moves the sum, infinitesimally or finitely, in words."""
        point = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        trainable = [name for name, p in self.model.named_parameters() if p.requires_grad]
        leaves = {name: p.clone().requires_grad_(name in trainable) for name, p in point.items()}
        before = self.terms(leaves)
        found = torch.autograd.grad(before.sum(), [leaves[name] for name in trainable], allow_unused=True)
        gradient = {name: g for name, g in zip(trainable, found, strict=True) if g is not None}
        scale = sum(float((g * point[name]).abs().sum()) for name, g in gradient.items())
        return [text for s in symmetries for text in self._violation(s, point, gradient, before.detach(), scale)]

    def _violation(self, s: Symmetry, point: Parameters, gradient: Parameters, before: Tensor, scale: float) -> Iterator[str]:
        direction = torch.randn(s.dimension, dtype=torch.float64, generator=torch.Generator().manual_seed(s.number))
        products = [(gradient[name] * t).flatten() for name, t in s.tangent(point, direction).items() if name in gradient]
        error, size = (abs(float(torch.cat(products).sum())), float(torch.cat(products).abs().sum())) if products else (0.0, 0.0)
        if error > TOLERANCE * size + FLOOR * scale:
            yield f"{s.name}: <gradient, tangent> = {error:.1e} of {size:.1e}"
        after = self.terms(s.transform(point, 0.2 * direction / direction.abs().max())).detach()
        if float((after - before).abs().sum()) > TOLERANCE * float(before.abs().sum()):
            yield f"{s.name}: outputs move by {float((after - before).abs().sum()):.1e} of {float(before.abs().sum()):.1e}"


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, dict | list | tuple):
        for member in value.values() if isinstance(value, dict) else value:
            yield from _tensors(member)
