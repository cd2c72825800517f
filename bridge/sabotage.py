"""Laws broken on purpose: a check that cannot fail is worth nothing, so anyone can watch these fail.

Each sabotage changes one thing by little, in the law or in the run; the verdict must turn to failure and name the families at fault.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any, Final, TypeVar

import sympy as sp
import torch
from torch import nn

from noetherflow.bridge.asymmetric import held_weights
from noetherflow.bridge.momentum_monitor import Carried
from noetherflow.bridge.prediction import Prediction
from noetherflow.errors import RunError
from noetherflow.symbolic.laws import Law
from noetherflow.symbolic.momenta import MomentumLaw
from noetherflow.symbolic.symmetries import Symmetry

AnyLaw = TypeVar("AnyLaw", Law, MomentumLaw)

SABOTAGES: Final[dict[str, str]] = {
    "weight_decay": "the predicted weight decay is 1 % too large",
    "momentum": "the law forgets its momentum",
    "gradient": "one layer's gradient is scaled by 1.001 behind the law's back",
    "sign": "the law's second-order terms have the wrong sign",
    "generator": "one coefficient of each generator is off by 0.001",
    "untie": "a shared weight is copied for one of its uses after the laws were derived",
    "eps": "the current of the normalisations' eps is left out",
    "hold": "a few weights are held where they are, as in a twin without symmetries, after the laws were derived",
}

HELD: Final = 500
"""Families of that many generators in all are removed: enough to be seen, soon found in a large network."""


@dataclass
class Sabotage:
    """One way to break the laws.

    Parameters
    ----------
    kind : str
        A key of `SABOTAGES`.

    Raises
    ------
    RunError
        If the kind is unknown, or does not apply to the model.
    """

    kind: str
    _held: dict[str, torch.Tensor] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.kind not in SABOTAGES:
            raise RunError(f"Unknown sabotage '{self.kind}'. Choose one of {sorted(SABOTAGES)}.", kind=self.kind)

    @property
    def sign(self) -> float:
        """Factor on second-order pairings."""
        return -1.0 if self.kind == "sign" else 1.0

    @property
    def ignores_currents(self) -> bool:
        """Whether currents are left out."""
        return self.kind == "eps"

    def law(self, law: AnyLaw) -> AnyLaw:
        """The law as it will be used: wrong if the generator is sabotaged (one action of several; one alone is a symmetry at any scale)."""
        symmetry = law.symmetry
        if self.kind != "generator" or len(symmetry.actions) < 2:
            return law
        first, *rest = symmetry.actions
        wrong = replace(first, weight=first.weight * sp.Rational(1001, 1000))
        return replace(law, symmetry=replace(symmetry, actions=(wrong, *rest)))

    def hyperparameters(self, hyper: Mapping[int, Mapping[str, float]]) -> dict[int, dict[str, float]]:
        """What the law believes of the optimizer."""
        factor = 1.01 if self.kind == "weight_decay" else 1.0
        return {g: {n: v * (factor if n == "weight_decay" else 1.0) for n, v in values.items()} for g, values in hyper.items()}

    def predictions(self, predictions: Sequence[Prediction], momenta: Sequence[Carried] = ()) -> None:
        """Change the carried state before it is used."""
        if self.kind == "momentum":
            for carried in momenta:
                carried.predicted = torch.zeros_like(carried.predicted)
                carried.measured = tuple(torch.zeros_like(m) for m in carried.measured)
            for prediction in predictions:
                prediction.momenta = {k: {m: torch.zeros_like(v) for m, v in shares.items()} for k, shares in prediction.momenta.items()}

    def gradients(self, model: nn.Module) -> None:
        """Change the run: one layer's gradient, just before the optimizer uses it."""
        if self.kind == "gradient":
            weights = [p for p in model.parameters() if p.grad is not None and p.dim() > 1]
            chosen = weights[len(weights) // 2]
            if chosen.grad is not None:
                chosen.grad.mul_(1.001)
        if self.kind == "hold":
            for name, parameter in model.named_parameters():
                if name in self._held and parameter.grad is not None:
                    parameter.grad.masked_fill_(self._held[name].to(parameter.device), 0.0)

    def run(self, model: nn.Module, optimizer: torch.optim.Optimizer, families: Sequence[Symmetry]) -> None:
        """Change the model after its laws were derived."""
        if self.kind == "hold":
            totals = accumulate(int(f.dimension) for f in families)
            chosen = [f for f, total in zip(families, totals, strict=True) if total <= HELD] or list(families[:1])
            self._held, _ = held_weights(model, chosen)
        if self.kind != "untie":
            return
        for parent, name, child in _second_uses(model):
            copied = nn.Parameter(child.weight.detach().clone())
            twin = _TwinLinear(child, copied)
            setattr(parent, name, twin)
            optimizer.add_param_group({"params": [copied]})
            return
        raise RunError("This model has no shared linear layer to untie; use a model with one (tied_mlp).")


class _TwinLinear(nn.Module):
    """A linear layer that uses its own weight at even calls and an untied copy at odd ones."""

    def __init__(self, layer: Any, copied: nn.Parameter) -> None:
        super().__init__()
        self.layer, self.copied, self.calls = layer, copied, 0

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        weight = self.layer.weight if self.calls % 2 else self.copied
        return nn.functional.linear(inputs, weight, self.layer.bias)


def _second_uses(model: Any) -> list[tuple[nn.Module, str, Any]]:
    """Linear layers that a forward pass calls more than once, as the model itself declares them (attribute `shared`)."""
    child = getattr(model, "shared", None)
    return [(model, "shared", child)] if isinstance(child, nn.Linear) else []
