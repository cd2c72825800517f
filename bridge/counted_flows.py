"""What is counted along each flow: its vector fields, and the gradients of the functions that theory says it conserves.

    gradient    charges Q, ∇Q = ξ                                                              Euclidean
    mirror      charges that survive the metric, ∇Q = Mξ (`noetherflow.symbolic.survival`)
    momentum    e^{γt} ⟨ξ(θ), v⟩ of antisymmetric generators (`noetherflow.symbolic.momenta`); charges are not conserved

Source: marcotte2024keep for the second and third.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import sympy as sp
import torch
from torch import Tensor

from noetherflow.bridge.charge_gradients import charge_directions, cleared
from noetherflow.errors import ModelError
from noetherflow.numeric.brackets import Params, flattened
from noetherflow.numeric.flows import TIME, VELOCITY, Flow, GradientFlow, MetricFlow, MomentumFlow
from noetherflow.symbolic.laws import Laws
from noetherflow.symbolic.metrics import ARGUMENT, Mirror
from noetherflow.symbolic.momenta import turning
from noetherflow.symbolic.survival import Charge, survives
from noetherflow.symbolic.symmetries import Symmetry


@dataclass(frozen=True)
class Conserved:
    """One family of conserved functions: a name, the symmetry behind it, and the gradients at a state, one dict for each function."""

    name: str
    symmetry: Symmetry
    gradients: Callable[[Params], Iterator[Params]]


class CountedFlow(Protocol):
    """A flow, with what theory says of it."""

    @property
    def flow(self) -> Flow:
        """Its vector fields."""
        ...

    def conserved(self, laws: Laws) -> list[Conserved]:
        """What of a graph's laws it has."""
        ...

    def described(self) -> dict[str, Any]:
        """For a certificate."""
        ...


@dataclass(frozen=True)
class Gradient:
    """Gradient flow."""

    flow: Flow = GradientFlow()

    def conserved(self, laws: Laws) -> list[Conserved]:
        """All charges."""
        return [Conserved(law.name, law.symmetry, _tangents(law.symmetry)) for law in laws]

    def described(self) -> dict[str, Any]:
        """Its name."""
        return {"kind": "gradient"}


@dataclass(frozen=True)
class MirrorFlow:
    """Gradient flow under M = ∇²φ of a separable potential.

    Parameters
    ----------
    metric : Mirror
    """

    metric: Mirror

    @property
    def flow(self) -> Flow:
        """M⁻¹ ∇f; where φ'' is the inverse of a polynomial it is a polynomial."""
        return MetricFlow(_Inverses(self.metric))

    def conserved(self, laws: Laws) -> list[Conserved]:
        """The charges that survive the metric, in the part of each family that has them."""
        found = []
        for symmetry in laws.symmetries:
            outcome = survives(symmetry, self.metric)
            if isinstance(outcome, Charge) and outcome.count != 0:
                found.append(Conserved(symmetry.name, symmetry, self._lowered(symmetry, outcome.generators)))
        return found

    def described(self) -> dict[str, Any]:
        """Its name and potentials, in ARGUMENT."""
        elsewhere = {name: sp.sstr(potential) for name, potential in sorted(self.metric.elsewhere.items())}
        return {"kind": "mirror", "potential": sp.sstr(self.metric.potential), "elsewhere": elsewhere}

    def _lowered(self, symmetry: Symmetry, generators: str) -> Callable[[Params], Iterator[Params]]:
        def rows(state: Params) -> Iterator[Params]:
            weights = {name: _function(self.metric.second_derivative(name))(state[name]) for name in symmetry.parameters}
            for tangent in _tangents(symmetry, generators)(state):
                yield {name: weights[name] * change for name, change in tangent.items()}

        return rows


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
        if not isinstance(self.friction, int) or self.friction < 1:
            raise ModelError(f"Laws of a momentum flow are counted at an integer friction of at least 1; got {self.friction}.")

    @property
    def flow(self) -> Flow:
        """In time, parameters and velocities."""
        return MomentumFlow(self.friction)

    def conserved(self, laws: Laws) -> list[Conserved]:
        """e^{γt} times the angular momenta."""
        return [Conserved(f"momentum of {s.name}", s, self._momenta(s)) for s in turning(laws.symmetries)]

    def described(self) -> dict[str, Any]:
        """Its name and friction."""
        return {"kind": "momentum", "friction": self.friction}

    def _momenta(self, symmetry: Symmetry) -> Callable[[Params], Iterator[Params]]:
        """At t = 0: γ P along t, Aᵀ v = -A v along θ, A θ along v."""

        def rows(state: Params) -> Iterator[Params]:
            theta = {name: state[name] for name in state if VELOCITY + name in state}
            v = {name: state[VELOCITY + name] for name in theta}
            for direction in _turns(symmetry):
                along_v, along_theta = symmetry.tangent(theta, direction), symmetry.tangent(v, direction)
                p = torch.stack([(along_v[name] * v[name]).sum() for name in along_v]).sum()
                yield {
                    TIME: self.friction * p,
                    **{name: -change for name, change in along_theta.items()},
                    **{VELOCITY + name: change for name, change in along_v.items()},
                }

        return rows


def gradient_rows(conserved: Sequence[Conserved], state: Params) -> tuple[Tensor, list[int]]:
    """Gradients of conserved functions at a state, shape (functions, coordinates), and for each the place of its family."""
    rows, owners = [torch.zeros(0, sum(x.numel() for x in state.values()), dtype=torch.float64)], []
    for number, family in enumerate(conserved):
        for gradient in family.gradients(state):
            whole = {name: gradient.get(name, torch.zeros_like(x)) for name, x in state.items()}
            rows.append(flattened(whole).unsqueeze(0))
            owners.append(number)
    return torch.cat(rows), owners


def _tangents(symmetry: Symmetry, generators: str = "symmetric") -> Callable[[Params], Iterator[Params]]:
    whole = cleared(symmetry)

    def rows(state: Params) -> Iterator[Params]:
        for direction in charge_directions(whole, generators):
            yield whole.tangent(state, direction)

    return rows


def _turns(symmetry: Symmetry) -> Iterator[Tensor]:
    """A basis of the antisymmetric generators."""
    if symmetry.rotation:
        yield from torch.eye(int(symmetry.dimension), dtype=torch.float64)
        return
    *spectators, n = (int(size) for size in symmetry.sizes)
    count = int(symmetry.dimension) // n**2
    for spectator in range(count):
        for i in range(n):
            for j in range(i):
                matrix = torch.zeros(count, n, n, dtype=torch.float64)
                matrix[spectator, i, j], matrix[spectator, j, i] = 1.0, -1.0
                yield matrix.flatten()


class _Inverses(Mapping[str, Callable[[Tensor], Tensor]]):
    """1 / φ'' of every parameter; the Euclidean ones too."""

    def __init__(self, metric: Mirror) -> None:
        self._metric = metric

    def __contains__(self, name: object) -> bool:
        return True

    def __getitem__(self, name: str) -> Callable[[Tensor], Tensor]:
        return _function(sp.cancel(1 / self._metric.second_derivative(name)))

    def __iter__(self) -> Iterator[str]:
        return iter(self._metric.elsewhere)

    def __len__(self) -> int:
        return len(self._metric.elsewhere)


def _function(expression: sp.Expr) -> Callable[[Tensor], Tensor]:
    """A function of `ARGUMENT` on tensors: a constant one is broadcast."""
    evaluated = sp.lambdify(ARGUMENT, expression, modules="torch")
    return lambda x: evaluated(x) * torch.ones_like(x)
