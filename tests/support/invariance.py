"""Whether reported symmetries are true: gradients orthogonal to them, losses unchanged by them, and none counted twice."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from noetherflow.symbolic.symmetries import Symmetries, Symmetry

TOLERANCE = 1e-10
FLOOR = 1e-12  # of the sizes that meet in a sum; what is smaller than that is rounding
SIZE = 0.3

Parameters = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Probe:
    """A network with fixed random data, and what is read off its outputs."""

    model: nn.Module
    inputs: Tensor
    loss: str | Callable[[Any], Tensor] | None = None

    def point(self, seed: int) -> Parameters:
        """Random parameters around the model's own."""
        generator = torch.Generator().manual_seed(seed)
        draw = {n: torch.randn(p.shape, generator=generator, dtype=p.dtype) for n, p in self.model.named_parameters()}
        return {n: p.detach() + 0.3 * draw[n] for n, p in self.model.named_parameters()}

    def terms(self, parameters: Parameters) -> Tensor:
        """The numbers whose sum must not change; the sum of their magnitudes is the scale of its rounding."""
        torch.manual_seed(11)  # the same dropout masks at every point
        output = functional_call(self.model, parameters, (self.inputs.clone(),))
        if callable(self.loss):
            return self.loss(output).reshape(1)
        if self.loss is not None:
            return _loss(self.loss, output)
        outputs = output if isinstance(output, tuple | list) else [output]
        torch.manual_seed(13)
        return torch.cat([(o * torch.randn(o.shape, dtype=o.dtype)).flatten() for o in outputs])

    def gradient(self, parameters: Parameters) -> Parameters:
        """Gradient of the sum with respect to trainable parameters."""
        trainable = [n for n, p in self.model.named_parameters() if p.requires_grad]
        leaves = {n: p.clone().requires_grad_(n in trainable) for n, p in parameters.items()}
        total = self.terms(leaves).sum()
        if not trainable or not total.requires_grad:
            return {}
        found = torch.autograd.grad(total, [leaves[n] for n in trainable], allow_unused=True)
        return {n: g for n, g in zip(trainable, found, strict=True) if g is not None}


def _loss(name: str, output: Any) -> Tensor:
    first = output[0] if isinstance(output, tuple | list) else output
    if name == "mse":
        return (first - 0.3).square().flatten()
    logits = first if first.dim() > 3 else first.movedim(-1, 1) if first.dim() > 1 else first
    classes = logits.shape[1] if logits.dim() > 1 else logits.shape[0]
    target = torch.arange(logits.numel() // classes).reshape(logits.shape[:1] + logits.shape[2:] if logits.dim() > 1 else ()) % classes
    return F.cross_entropy(logits, target, reduction="none").flatten()


def violations(probe: Probe, symmetries: Symmetries, seed: int = 0) -> list[str]:
    """Every reported symmetry that moves the gradient's or the loss's value, in words."""
    point = probe.point(seed)
    gradient = probe.gradient(point)
    before = probe.terms(point)
    scale = sum(float((g.abs() * point[n].abs()).sum()) for n, g in gradient.items()) + float(before.abs().sum())
    wrong = []
    for number, symmetry in enumerate(symmetries):
        generator = torch.Generator().manual_seed(100 * seed + number)
        direction = torch.randn(symmetry.dimension, generator=generator, dtype=before.dtype)
        wrong += _tangent_violation(symmetry, point, gradient, direction, scale)
        wrong += _finite_violation(probe, symmetry, point, before, direction)
    return wrong


def _tangent_violation(symmetry: Symmetry, point: Parameters, gradient: Parameters, direction: Tensor, scale: float) -> list[str]:
    tangent = symmetry.tangent(point, direction)
    products = torch.cat([(gradient[n] * t).flatten() for n, t in tangent.items() if n in gradient] or [direction.new_zeros(1)])
    error, size = abs(float(products.sum())), float(products.abs().sum())
    if error <= TOLERANCE * size + FLOOR * scale:
        return []
    return [f"{symmetry.name} {symmetry.parameters}: <gradient, tangent> = {error:.1e} of {size:.1e}"]


def _finite_violation(probe: Probe, symmetry: Symmetry, point: Parameters, before: Tensor, direction: Tensor) -> list[str]:
    after = probe.terms(symmetry.transform(point, SIZE * direction / max(1.0, float(direction.abs().max()))))
    error, size = float((after - before).abs().sum()), float(before.abs().sum())
    if error <= TOLERANCE * size + FLOOR:
        return []
    return [f"{symmetry.name} {symmetry.parameters}: outputs move by {error:.1e} of {size:.1e}"]


def independent_directions(probe: Probe, symmetries: Iterable[Symmetry], points: int = 4) -> int:
    """Rank of all basis directions as fields on parameter space, seen at a few points together."""
    columns = []
    for seed in range(points):
        point = probe.point(seed)
        rows = [_flat(s.tangent(point, e), point) for s in symmetries for e in torch.eye(s.dimension, dtype=_dtype(point))]
        columns.append(torch.stack(rows) if rows else torch.zeros(0, 1))
    fields = torch.cat(columns, 1)
    if not fields.shape[0]:
        return 0
    fields = fields / fields.norm(dim=1, keepdim=True).clamp(min=1e-300)
    return int((torch.linalg.svdvals(fields) > 1e-9).sum())


def _dtype(point: Parameters) -> torch.dtype:
    return next(iter(point.values())).dtype


def _flat(tangent: Parameters, point: Parameters) -> Tensor:
    return torch.cat([tangent[n].flatten() if n in tangent else p.new_zeros(p.numel()) for n, p in point.items()])
