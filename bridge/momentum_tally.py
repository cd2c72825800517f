"""What a confrontation of an angular momentum keeps: a few numbers for each block of a law, whatever the size of its matrix."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass
class MomentumTally:
    """Running extremes of one law; all but the first two of shape (blocks,).

    Attributes
    ----------
    initial : Tensor, shape (blocks, entries)
        K as it was at the start.
    direction : Tensor, shape (blocks, entries)
        The one generator whose momentum is recorded: along K at the start, or the sum of all where that is zero; of length 1.
    measured, predicted, deviation : Tensor
        The momentum of that generator, latest values.
    motion, size, residual : Tensor
        Largest |K - K_0|, scale, and |measured - predicted| over the entries.
    ratio, at_step, at_entry, at_residual, at_deviation : Tensor
        Largest residual in standard deviations, and where, how large and against which deviation.
    first, first_entry : Tensor
        First step and entry at which the bound was exceeded, or -1.
    """

    initial: Tensor
    direction: Tensor
    measured: Tensor
    predicted: Tensor
    deviation: Tensor
    motion: Tensor
    size: Tensor
    residual: Tensor
    ratio: Tensor
    at_step: Tensor
    at_entry: Tensor
    at_residual: Tensor
    at_deviation: Tensor
    first: Tensor
    first_entry: Tensor

    @classmethod
    def start(cls, initial: Tensor) -> MomentumTally:
        """At the first measurement, shape (blocks, entries)."""
        length = initial.norm(dim=1, keepdim=True)
        direction = torch.where(length > 0, initial, torch.ones_like(initial))
        direction = direction / direction.norm(dim=1, keepdim=True)
        zero = torch.zeros_like(initial[:, 0])
        value = (direction * initial).sum(1)
        own = {"initial": initial, "direction": direction, "measured": value, "predicted": value}
        own |= {"first": zero - 1, "first_entry": zero - 1}
        return cls(**{f.name: own.get(f.name, zero).clone() for f in fields(cls)})

    def take(self, step: int, measured: Tensor, predicted: Tensor, deviation: Tensor, size: Tensor, confidence: float) -> None:
        """Confront one step, all of shape (blocks, entries); what is not finite counts as infinitely wrong."""
        tiny = torch.finfo(torch.float64).tiny
        residual = torch.nan_to_num((measured - predicted).abs(), nan=torch.inf)
        ratio = residual / torch.nan_to_num(deviation, nan=tiny, posinf=tiny).clamp(min=tiny)
        ratio = torch.nan_to_num(ratio, nan=0.0, posinf=torch.inf)
        worst, entry = ratio.max(dim=1)
        self._keep(step, worst, entry, residual, deviation)
        new = (self.first < 0) & (worst > confidence)
        self.first = torch.where(new, float(step), self.first)
        self.first_entry = torch.where(new, entry.to(self.first.dtype), self.first_entry)
        self.residual = torch.maximum(self.residual, residual.amax(1))
        self.motion = torch.maximum(self.motion, torch.nan_to_num((measured - self.initial).abs(), nan=torch.inf).amax(1))
        self.size = torch.maximum(self.size, size.amax(1))
        self.measured, self.predicted = ((self.direction * x).sum(1) for x in (measured, predicted))
        self.deviation = (self.direction.abs() * deviation).sum(1)  # entries share rows, so their errors are not independent

    def _keep(self, step: int, worst: Tensor, entry: Tensor, residual: Tensor, deviation: Tensor) -> None:
        worse = worst > self.ratio
        at = entry.unsqueeze(1)
        found = {
            "ratio": worst,
            "at_step": torch.full_like(worst, float(step)),
            "at_entry": entry.to(worst.dtype),
            "at_residual": residual.gather(1, at).squeeze(1),
            "at_deviation": deviation.gather(1, at).squeeze(1),
        }
        for name, value in found.items():
            setattr(self, name, torch.where(worse, value, getattr(self, name)))

    def state_dict(self) -> dict[str, Tensor]:
        """All tensors by name."""
        return {f.name: getattr(self, f.name) for f in fields(self)}
