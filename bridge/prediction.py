"""Predicted charges of one bundle of laws, carried from step to step, beside the standard deviation that rounding gives them.

The prediction starts from the measured charge and never sees it again. Each step it takes the second-order pairings (measured), the
currents (predicted), and the hyper-parameters; ⟨ξ, g⟩ of the batch enters as zero or as the current. Each mechanism's share is carried
apart, through the momenta too, so that the shares add up to the motion.

Rounding errors are sources of the same linear recursion as gradients: an error of the gradient acts like a current, an error of the
update on the charge itself. Their covariance is carried along by the law's own response.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import sympy as sp
import torch
from torch import Tensor

from noetherflow.bridge.bundles import CHARGE_PART, MOMENTUM_PART, Bundle
from noetherflow.symbolic.balance import CHARGE, CURRENT, METRIC, MOMENTUM
from noetherflow.symbolic.pairings import Inner

Hyper = Mapping[sp.Expr, float]


@dataclass(frozen=True)
class Measured:
    """What one step of a bundle takes from the run; every tensor has shape (charges,), float64.

    Attributes
    ----------
    pairings : mapping of Inner to Tensor
    group_charges : tuple of Tensor
        Charge of each parameter group before the step (used where a family crosses groups).
    current : Tensor
        Predicted ⟨ξ, g⟩.
    momenta : mapping of str to Tensor
        Measured ⟨ξ, b⟩ before the step, for laws that do not close.
    gradient_noise, update_noise, repeated_noise : Tensor
        Standard deviations of the rounding errors of ⟨ξ, g⟩ (and of the buffer) and of the charge's own update; of the latter as far as
        they are the same in every step.
    sources : mapping of Symbol to Tensor
        Kinetic symmetry breaking, and the gain it was measured with.
    source_noise, buffer_noise : mapping of str to Tensor
        Standard deviations of what rounding adds to each source (in the step) and to each momentum (in its buffer), by name.
    """

    pairings: Mapping[Inner, Tensor]
    group_charges: tuple[Tensor, ...]
    current: Tensor
    momenta: Mapping[str, Tensor]
    gradient_noise: Tensor
    update_noise: Tensor
    repeated_noise: Tensor
    sources: Mapping[sp.Symbol, Tensor] = field(default_factory=dict)
    source_noise: Mapping[str, Tensor] = field(default_factory=dict)
    buffer_noise: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass
class Prediction:
    """State of one bundle's predicted charges.

    Parameters
    ----------
    bundle : Bundle
    charge : Tensor, shape (charges,)
        Predicted charges now.
    momenta : mapping of str to (mapping of str to Tensor)
        For each K: mechanism -> its share.
    repeated : Tensor, optional
        Standard deviation of what rounding did in the same way in every step.
    """

    bundle: Bundle
    charge: Tensor
    momenta: dict[str, dict[str, Tensor]]
    moved: dict[str, Tensor] = field(default_factory=dict)
    covariance: dict[tuple[str, str], Tensor] = field(default_factory=dict)
    weights: tuple[float, ...] | None = None
    repeated: Tensor | None = None

    @classmethod
    def start(cls, bundle: Bundle, charge: Tensor, momenta: Mapping[str, Tensor]) -> Prediction:
        """Begin at measured values; a buffer that exists already is booked as momentum."""
        state = {k.name: {MOMENTUM: momenta.get(k.name, torch.zeros_like(charge)).clone()} for k in bundle.balance.momenta}
        return cls(bundle, charge.clone(), state)

    def reweight(self, weights: tuple[float, ...], group_charges: tuple[Tensor, ...]) -> None:
        """Follow a change of the metric (step sizes of groups whose ratio changes): the charge is another combination from now on."""
        if self.weights is not None and weights != self.weights:
            change = torch.zeros_like(self.charge)
            for new, old, charge in zip(weights, self.weights, group_charges, strict=True):
                change += (new - old) * charge
            self._book(METRIC, change)
        self.weights = weights

    def advance(self, measured: Measured, hyper: Hyper) -> None:
        """One step of the balance law."""
        self._advance_covariance(measured, hyper)
        terms = self._evaluated(measured, hyper)
        names = [k.name for k in self.bundle.balance.momenta]
        if not self.bundle.balance.closed:
            self.momenta = {name: {MOMENTUM: measured.momenta[name]} for name in names}
        for name in names:
            for mechanism, share in self.momenta[name].items():
                self._book(mechanism, terms["into", name] * share)
        for key, value in terms.items():
            if key[0] == CHARGE_PART:
                self._book(key[1], value)
        for name in names if self.bundle.balance.closed else ():
            self._advance_momentum(name, terms)

    def _evaluated(self, measured: Measured, hyper: Hyper) -> dict[tuple[str, ...], Any]:
        values: dict[sp.Expr, Any] = {**hyper, CHARGE: self.charge, CURRENT: measured.current, **measured.pairings, **measured.sources}
        values |= {sp.Symbol(f"Q_{p}", real=True): q for p, q in enumerate(measured.group_charges)}
        return self.bundle.step(values)

    def _advance_momentum(self, name: str, terms: Mapping[tuple[str, ...], Any]) -> None:
        shares = {m: terms["factor", name] * share for m, share in self.momenta[name].items()}
        for key, value in terms.items():
            if key[:2] == (MOMENTUM_PART, name):
                shares[key[2]] = shares.get(key[2], torch.zeros_like(self.charge)) + value
        self.momenta[name] = shares

    def _book(self, mechanism: str, change: Any) -> None:
        change = change + torch.zeros_like(self.charge)
        self.charge = self.charge + change
        self.moved[mechanism] = self.moved.get(mechanism, torch.zeros_like(self.charge)) + change

    def _advance_covariance(self, measured: Measured, hyper: Hyper) -> None:
        r = self.bundle.response({**hyper, **measured.sources})
        closed = [k.name for k in self.bundle.balance.momenta] if self.bundle.balance.closed else []
        state, zero = ["charge", *closed], torch.zeros_like(self.charge)
        old = {(x, y): self._covariance(x, y) for x in state for y in state}
        noises = {"current": measured.gradient_noise, **measured.source_noise}
        fresh: dict[tuple[str, str], Tensor] = {}
        for i, x in enumerate(state):
            for y in state[i:]:
                total = sum((r.get((x, n), 0.0) * r.get((y, n), 0.0) * deviation**2 for n, deviation in noises.items()), zero)
                if x == y and x in measured.buffer_noise:
                    total = total + measured.buffer_noise[x] ** 2
                for a in state:
                    for b in state:
                        total = total + r.get((x, a), 0.0) * r.get((y, b), 0.0) * old[a, b]
                fresh[x, y] = total
        fresh["charge", "charge"] = fresh["charge", "charge"] + measured.update_noise**2
        self.covariance = fresh
        before = zero if self.repeated is None else self.repeated
        self.repeated = abs(r.get(("charge", "charge"), 0.0)) * before + measured.repeated_noise

    def _covariance(self, x: str, y: str) -> Tensor:
        found = self.covariance.get((x, y), self.covariance.get((y, x)))
        return torch.zeros_like(self.charge) if found is None else found

    @property
    def deviation(self) -> Tensor:
        """Standard deviation of the predicted charge by rounding."""
        independent = self._covariance("charge", "charge").clamp(min=0)
        return independent.sqrt() if self.repeated is None else (independent + self.repeated**2).sqrt()

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on later."""
        return {
            "charge": self.charge,
            "momenta": self.momenta,
            "moved": self.moved,
            "covariance": {f"{x}|{y}": v for (x, y), v in self.covariance.items()},
            "weights": self.weights,
            "repeated": self.repeated,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a stored state."""
        self.charge, self.momenta, self.moved = state["charge"], dict(state["momenta"]), dict(state["moved"])
        self.covariance = {(k.split("|")[0], k.split("|")[1]): v for k, v in state["covariance"].items()}
        self.repeated = state["repeated"]
        self.weights = None if state["weights"] is None else tuple(state["weights"])
