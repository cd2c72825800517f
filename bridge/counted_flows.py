"""What is counted along each flow: its vector fields, and the gradients of the functions that theory says it conserves.

    gradient    charges Q, ∇Q = ξ                                                              Euclidean
    mirror      charges that survive the metric, ∇Q = Mξ (`noetherflow.symbolic.survival`)
    momentum    e^{γt} ⟨ξ(θ), v⟩ of antisymmetric generators (`noetherflow.symbolic.momenta`); charges are not conserved

Source: marcotte2024keep for the second and third.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Protocol

import sympy as sp
import torch
from torch import Tensor

from noetherflow.bridge.charge_gradients import charge_directions, cleared, turning_directions
from noetherflow.errors import ModelError, ReportError
from noetherflow.numeric.brackets import Params, flattened
from noetherflow.numeric.flows import TIME, VELOCITY, Flow, GradientFlow, MetricFlow, MomentumFlow
from noetherflow.numeric.modular import NotPolynomial, reduced, residues
from noetherflow.symbolic.laws import Laws
from noetherflow.symbolic.metrics import ARGUMENT, Mirror
from noetherflow.symbolic.momenta import turning
from noetherflow.symbolic.potentials import read_potential
from noetherflow.symbolic.survival import Charge, survives
from noetherflow.symbolic.symmetries import Symmetry


@dataclass(frozen=True)
class Conserved:
    """One family of conserved functions.

    Attributes
    ----------
    name : str
    gradients : callable
        (state, prime or None) -> the gradients there, one dict for each function. The state is a true point, never residues; what is not
        exact in float64 there is given as residues if there is a prime.
    """

    name: str
    gradients: Callable[[Params, int | None], Iterator[Params]]


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

    @property
    def flow(self) -> Flow:
        """The gradients."""
        return GradientFlow()

    def conserved(self, laws: Laws) -> list[Conserved]:
        """All charges."""
        return [Conserved(law.name, _tangents(law.symmetry)) for law in laws if not law.symmetry.breaking]

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
            outcome = survives(symmetry, self.metric) if not symmetry.breaking else None
            if isinstance(outcome, Charge) and outcome.count != 0:
                found.append(Conserved(symmetry.name, self._lowered(symmetry, outcome.generators)))
        return found

    def described(self) -> dict[str, Any]:
        """Its name and potentials, in ARGUMENT."""
        elsewhere = {name: sp.sstr(potential) for name, potential in sorted(self.metric.elsewhere.items())}
        return {"kind": "mirror", "potential": sp.sstr(self.metric.potential), "elsewhere": elsewhere}

    def _lowered(self, symmetry: Symmetry, generators: str) -> Callable[[Params, int | None], Iterator[Params]]:
        def rows(state: Params, prime: int | None) -> Iterator[Params]:
            weights = {name: self._weights(name, state[name], prime) for name in symmetry.parameters}
            for tangent in _tangents(symmetry, generators)(state, prime):
                if prime is None:
                    yield {name: weights[name] * change for name, change in tangent.items()}
                else:
                    yield {name: reduced(residues(change, prime) * weights[name], prime) for name, change in tangent.items()}

        return rows

    def _weights(self, name: str, entries: Tensor, prime: int | None) -> Tensor:
        """φ'' of a parameter's entries; as residues of the rational numbers that they are."""
        second = self.metric.second_derivative(name)
        if prime is None:
            return _function(second)(entries)
        values = [_residue(second, Fraction(x), prime) for x in entries.flatten().tolist()]
        return torch.tensor(values, dtype=torch.float64).reshape(entries.shape)


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
        case {"kind": "momentum", "friction": friction}:
            return Momentum(friction)
        case {"kind": "mirror", "potential": potential, "elsewhere": elsewhere}:
            return MirrorFlow(Mirror(read_potential(potential), {name: read_potential(p) for name, p in elsewhere.items()}))
    raise ReportError(f"The certificate names a flow that is not known: {described}. Write it again with certificate.save.")


def gradient_rows(conserved: Sequence[Conserved], state: Params, prime: int | None) -> tuple[Tensor, list[int]]:
    """Gradients of conserved functions at a true point, shape (functions, coordinates), and for each the place of its family.

    Residues if there is a prime: the point's numbers are short enough for products of three to be exact.
    """
    rows, owners = [torch.zeros(0, sum(x.numel() for x in state.values()), dtype=torch.float64)], []
    for number, family in enumerate(conserved):
        for gradient in family.gradients(state, prime):
            whole = {name: gradient.get(name, torch.zeros_like(x)) for name, x in state.items()}
            rows.append(flattened(whole).unsqueeze(0))
            owners.append(number)
    every = torch.cat(rows)
    return (residues(every, prime) if prime else every), owners


def _tangents(symmetry: Symmetry, generators: str = "symmetric") -> Callable[[Params, int | None], Iterator[Params]]:
    whole = cleared(symmetry)

    def rows(state: Params, prime: int | None) -> Iterator[Params]:
        for direction in charge_directions(whole, generators):
            yield whole.tangent(state, direction)

    return rows


def _residue(expression: sp.Expr, x: Fraction, prime: int) -> float:
    """The residue of a rational function of `ARGUMENT` at a fraction."""
    parts = [sp.Poly(part, ARGUMENT) for part in sp.fraction(sp.cancel(expression))]
    if not all(part.domain.is_ZZ or part.domain.is_QQ for part in parts):
        raise NotPolynomial(f"{expression} is no rational function, so it has no meaning modulo a prime.", operation="metric")
    above, below = (_horner([Fraction(int(c.p), int(c.q)) for c in part.all_coeffs()], x) for part in parts)
    value = above / below
    r = value.numerator * pow(value.denominator, -1, prime) % prime
    return float(r if r <= prime // 2 else r - prime)


def _horner(coefficients: Sequence[Fraction], x: Fraction) -> Fraction:
    value = Fraction(0)
    for c in coefficients:
        value = value * x + c
    return value


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
