"""Counts along gradient flows under a metric that is not the Euclidean one: mirror flows and natural gradient.

A mirror flow θ' = -M(θ)⁻¹ ∇f has fields M⁻¹ χ of its own. Natural gradient θ' = -(F + ε)⁻¹ ∇f, F = E[∇ℓ ∇ℓᵀ] over the samples (damped
Gauss-Newton likewise), has the laws of gradient flow, exactly: (F + ε)⁻¹ ∇f is a combination of the samples' gradients, with coefficients
that depend on θ, and a single sample's is a multiple of its gradient, v / (ε + |v|²). So the two families of fields span the same space at
every point, and what is constant along one is constant along the other. With F in blocks this is lost.

Source: marcotte2024keep for mirror flows; own for natural gradient (its charges are those of `noetherflow.symbolic.metrics.Natural`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import sympy as sp
import torch
from torch import Tensor

from noetherflow.bridge.conserved import Conserved, tangents
from noetherflow.errors import ModelError
from noetherflow.numeric.brackets import Params
from noetherflow.numeric.flows import Flow, GradientFlow, MetricFlow
from noetherflow.numeric.modular import NotPolynomial, reduced, residues
from noetherflow.symbolic.laws import Laws
from noetherflow.symbolic.metrics import ARGUMENT, Mirror, Natural
from noetherflow.symbolic.survival import Charge, survives
from noetherflow.symbolic.symmetries import Symmetry


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
            for tangent in tangents(symmetry, generators)(state, prime):
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
class NaturalFlow:
    """Natural gradient with the Fisher matrix of all parameters, damped.

    Parameters
    ----------
    metric : Natural
        Without blocks.
    """

    metric: Natural

    def __post_init__(self) -> None:
        if self.metric.blocks is not None:
            raise ModelError("Laws of natural gradient are counted for the whole Fisher matrix; in blocks it moves along other fields.")

    @property
    def flow(self) -> Flow:
        """Fields that span the same space at every point: the gradients."""
        return GradientFlow()

    def conserved(self, laws: Laws) -> list[Conserved]:
        """The charges that survive the metric."""
        outcomes = [survives(s, self.metric) for s in laws.symmetries if not s.breaking]
        return [Conserved(o.symmetry.name, tangents(o.symmetry, o.generators)) for o in outcomes if isinstance(o, Charge) and o.count != 0]

    def described(self) -> dict[str, Any]:
        """Its name."""
        return {"kind": "natural gradient"}


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
