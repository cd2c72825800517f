"""What a confrontation keeps: memory for each charge, none for each step."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor


@dataclass
class Tally:
    """Running extremes of one bundle, each of shape (charges,).

    Attributes
    ----------
    initial, measured, predicted, deviation : Tensor
        First and latest values.
    size : Tensor
        Scale of the charge: the largest sum of absolute contributions so far.
    motion, residual : Tensor
        Largest |Q_k - Q_0| and |measured - predicted|.
    ratio, at_step, at_residual, at_deviation : Tensor
        Largest residual in standard deviations, and where, how large and against which deviation.
    first : Tensor
        First step at which the bound was exceeded, or -1.
    """

    initial: Tensor
    measured: Tensor
    predicted: Tensor
    deviation: Tensor
    size: Tensor
    motion: Tensor
    residual: Tensor
    ratio: Tensor
    at_step: Tensor
    at_residual: Tensor
    at_deviation: Tensor
    first: Tensor

    @classmethod
    def start(cls, charge: Tensor, size: Tensor) -> Tally:
        """At the first measurement."""
        zero = torch.zeros_like(charge)
        own = {"initial": charge, "measured": charge, "predicted": charge, "size": size, "first": zero - 1}
        return cls(**{f.name: own.get(f.name, zero).clone() for f in fields(cls)})

    def take(self, step: int, measured: Tensor, predicted: Tensor, deviation: Tensor, size: Tensor, confidence: float) -> None:
        """Confront one step; what is not finite counts as infinitely wrong."""
        residual = torch.nan_to_num((measured - predicted).abs(), nan=torch.inf)
        self.measured, self.predicted, self.deviation = measured, predicted, deviation
        self.size = torch.maximum(self.size, size)
        self.motion = torch.maximum(self.motion, torch.nan_to_num((measured - self.initial).abs(), nan=torch.inf))
        self.residual = torch.maximum(self.residual, residual)
        smallest = torch.finfo(torch.float64).tiny
        ratio = torch.nan_to_num(
            residual / torch.nan_to_num(deviation, nan=smallest, posinf=smallest).clamp(min=smallest), nan=0.0, posinf=torch.inf
        )
        worse = ratio > self.ratio
        self.ratio = torch.where(worse, ratio, self.ratio)
        self.at_step = torch.where(worse, float(step), self.at_step)
        self.at_residual = torch.where(worse, residual, self.at_residual)
        self.at_deviation = torch.where(worse, deviation, self.at_deviation)
        self.first = torch.where((self.first < 0) & (ratio > confidence), float(step), self.first)

    def state_dict(self) -> dict[str, Any]:
        """All tensors by name."""
        return {f.name: getattr(self, f.name) for f in fields(self)}
