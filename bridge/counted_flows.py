"""What is counted along each flow: its vector fields, and the gradients of the functions that theory says it conserves.

    gradient    charges Q, ∇Q = ξ                                                              Euclidean
    metric      charges that survive the metric, ∇Q = Mξ (`noetherflow.bridge.metric_flows`)
    momentum    e^{γt} ⟨ξ(θ), v⟩ of antisymmetric generators (`noetherflow.symbolic.momenta`); charges are not conserved

Source: marcotte2024keep for the last.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from noetherflow.bridge.charge_gradients import turning_directions
from noetherflow.bridge.conserved import Conserved, CountedFlow, tangents
from noetherflow.bridge.metric_flows import MirrorFlow, NaturalFlow
from noetherflow.errors import ModelError, ReportError
from noetherflow.numeric.brackets import Params
from noetherflow.numeric.flows import TIME, VELOCITY, Flow, GradientFlow, MomentumFlow
from noetherflow.symbolic.laws import Laws
from noetherflow.symbolic.metrics import Mirror, Natural
from noetherflow.symbolic.momenta import turning
from noetherflow.symbolic.potentials import read_potential
from noetherflow.symbolic.symmetries import Symmetry


@dataclass(frozen=True)
class Gradient:
    """Gradient flow."""

    @property
    def flow(self) -> Flow:
        """The gradients."""
        return GradientFlow()

    def conserved(self, laws: Laws) -> list[Conserved]:
        """All charges."""
        return [Conserved(law.name, tangents(law.symmetry)) for law in laws if not law.symmetry.breaking]

    def described(self) -> dict[str, Any]:
        """Its name."""
        return {"kind": "gradient"}


@dataclass(frozen=True)
class Momentum:
    """θ'' + γ θ' + ∇f = 0.

    Parameters
    ----------
    friction : int
        γ; a positive integer.
    """

    friction: int = 1

    def __post_init__(self) -> None:
        if self.friction < 1 or self.friction != int(self.friction):
            raise ModelError(f"Laws of a momentum flow are counted at an integer friction of at least 1; got {self.friction}.")

    @property
    def flow(self) -> Flow:
        """In time, parameters and velocities."""
        return MomentumFlow(self.friction)

    def conserved(self, laws: Laws) -> list[Conserved]:
        """e^{γt} times the angular momenta."""
        return [Conserved(f"momentum of {s.name}", self._momenta(s)) for s in turning(laws.symmetries) if not s.breaking]

    def described(self) -> dict[str, Any]:
        """Its name and friction."""
        return {"kind": "momentum", "friction": self.friction}

    def _momenta(self, symmetry: Symmetry) -> Callable[[Params, int | None], Iterator[Params]]:
        """At t = 0: γ P along t, Aᵀ v = -A v along θ, A θ along v."""

        def rows(state: Params, prime: int | None) -> Iterator[Params]:
            theta = {name: state[name] for name in state if VELOCITY + name in state}
            v = {name: state[VELOCITY + name] for name in theta}
            for direction in turning_directions(symmetry):
                along_v, along_theta = symmetry.tangent(theta, direction), symmetry.tangent(v, direction)
                p = torch.stack([(along_v[name] * v[name]).sum() for name in along_v]).sum()
                yield {
                    TIME: self.friction * p,
                    **{name: -change for name, change in along_theta.items()},
                    **{VELOCITY + name: change for name, change in along_v.items()},
                }

        return rows


def dynamics_of(described: Mapping[str, Any]) -> CountedFlow:
    """The flow that a certificate describes."""
    match described:
        case {"kind": "gradient"}:
            return Gradient()
        case {"kind": "natural gradient"}:
            return NaturalFlow(Natural())
        case {"kind": "momentum", "friction": friction}:
            return Momentum(friction)
        case {"kind": "mirror", "potential": potential, "elsewhere": elsewhere}:
            return MirrorFlow(Mirror(read_potential(potential), {name: read_potential(p) for name, p in elsewhere.items()}))
    raise ReportError(f"The certificate names a flow that is not known: {described}. Write it again with certificate.save.")


def under(metric: Mirror | Natural) -> CountedFlow:
    """Gradient flow under a metric.

    Raises
    ------
    ModelError
        If the metric has a state of its own (that of RMSprop, Adam), so that it is no flow of the parameters alone.
    """
    if isinstance(metric, Mirror):
        return MirrorFlow(metric)
    if isinstance(metric, Natural):
        return NaturalFlow(metric)
    raise ModelError(f"Laws are counted under mirror, diagonal and natural metrics of `noetherflow.metrics`; got {metric!r}.")
