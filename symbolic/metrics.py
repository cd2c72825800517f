"""Kinetic metrics: how a learning rule turns a gradient into a velocity, M(θ) θ' = -∇f, and what a generator's one-form Mξ is under them.

Along any such flow an invariance gives the constraint ⟨Mξ, θ'⟩ = -⟨ξ, ∇f⟩ = 0. It is the conservation of a charge Q, ∇Q = Mξ, exactly if
Mξ is closed (`noetherflow.symbolic.survival`). A metric says here what M does to the entries of a generator, and what else it depends on:

    Euclidean   M = 1                                   gradient flow
    Diagonal    M = c_P on each parameter P             step sizes of parameter groups: c = 1/η
    Mirror      M = ∇²φ, φ a separable potential        mirror descent; φ = x log x - x: exponentiated gradients
    Natural     M = F + ε, F = E[∇ℓ ∇ℓᵀ] over samples   damped natural gradient, whole or block by block
    Adaptive    M = diag(√v + ε), v from past gradients RMSProp, Adagrad, Adam
    Held        the diagonal that a rule divides by, held at its value within one step: the state's change is booked as drift

Source: marcotte2024keep for mirror flows; tanaka2021noether for the metric as kinetic energy; own for Natural and Adaptive.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Protocol

import sympy as sp

from noetherflow.errors import RuleError
from noetherflow.symbolic.actions import Action
from noetherflow.symbolic.forms import GRADIENT, Number
from noetherflow.symbolic.one_forms import Component
from noetherflow.symbolic.pairings import Along
from noetherflow.symbolic.symmetries import Symmetry

ARGUMENT = sp.Symbol("x", positive=True)
DAMPING = sp.Symbol("epsilon", positive=True)
ENTROPY = ARGUMENT * sp.log(ARGUMENT) - ARGUMENT


class Metric(Protocol):
    """What a kinetic metric must say of itself; a class that says it needs nothing else."""

    @property
    def name(self) -> str:
        """How tables call it."""
        ...

    def lower(self, symmetry: Symmetry, action: Action, component: Component) -> sp.Expr:
        """(Mξ)[entry], given (entry, ξ[entry]) of one action of a symmetry."""
        ...

    def states(self, component: Component) -> Sequence[sp.Expr]:
        """What M at an entry depends on besides the parameters."""
        ...


@dataclass(frozen=True)
class Mirror:
    """M = ∇²φ for a separable convex potential φ(θ) = Σ φ(θ_e), the same for all parameters but those of `elsewhere`.

    Parameters
    ----------
    potential : sympy.Expr
        In `ARGUMENT`; may hold an undefined function.
    elsewhere : mapping of str to sympy.Expr
        Parameter -> its own potential.
    name : str

    Examples
    --------
    >>> entropic = Mirror(ENTROPY, name="exponentiated gradient")
    >>> entropic.second_derivative("w")
    1/x
    """

    potential: sp.Expr
    elsewhere: Mapping[str, sp.Expr] = field(default_factory=dict)
    name: str = "mirror"

    def __post_init__(self) -> None:
        for potential in (self.potential, *self.elsewhere.values()):
            if sp.diff(potential, ARGUMENT, 2) == 0:
                raise RuleError(
                    f"A mirror potential is a convex function of metrics.ARGUMENT ({ARGUMENT}); got {potential}, "
                    "whose second derivative there vanishes.",
                    potential=potential,
                )

    def potential_of(self, parameter: str) -> sp.Expr:
        """φ of one parameter's entries."""
        return self.elsewhere.get(parameter, self.potential)

    def second_derivative(self, parameter: str) -> sp.Expr:
        """φ'' of one parameter's entries."""
        return _curvature(self.potential_of(parameter))

    def lower(self, symmetry: Symmetry, action: Action, component: Component) -> sp.Expr:
        """φ''(θ_e) ξ_e."""
        entry, change = component
        return self.second_derivative(action.parameter).xreplace({ARGUMENT: entry}) * change

    def states(self, component: Component) -> Sequence[sp.Expr]:
        """None."""
        return ()


def Euclidean() -> Mirror:
    """M = 1."""
    return Mirror(ARGUMENT**2 / 2, name="Euclidean")


def Diagonal(weights: Mapping[str, Number], name: str = "diagonal") -> Mirror:
    """M = c_P on each parameter, 1 where none is given: groups with step sizes η_P have c_P = 1/η_P."""
    return Mirror(ARGUMENT**2 / 2, {parameter: sp.sympify(c) * ARGUMENT**2 / 2 for parameter, c in weights.items()}, name)


@dataclass(frozen=True)
class Natural:
    """M = F + ε with the Fisher matrix F = E[∇ℓ ∇ℓᵀ] over samples (or over labels drawn from the model), whole or in blocks.

    Every sample's loss has the symmetry, so F ξ = E[∇ℓ ⟨∇ℓ, ξ⟩] vanishes where one block holds all that ξ moves, and ε ξ is left. A block
    that holds a part of ξ sees ⟨∇ℓ, ξ⟩ of that part, which depends on the data.

    Parameters
    ----------
    damping : sympy.Expr
        ε > 0.
    blocks : sequence of sets of str, optional
        Parameters of each block; one block with all by default. Parameters outside of every block have M = ε.
    name : str
    """

    damping: sp.Expr = DAMPING
    blocks: Sequence[frozenset[str]] | None = None
    name: str = "natural gradient"

    def lower(self, symmetry: Symmetry, action: Action, component: Component) -> sp.Expr:
        """(F ξ)_e / ε + ξ_e, with F ξ from the block of the parameter: M up to the constant ε, so that charges come without it."""
        entry, change = component
        along = self._along(symmetry, action.parameter).xreplace({Along(GRADIENT): sp.S.Zero})
        return along * _like("G", entry) / self.damping + change

    def _along(self, symmetry: Symmetry, parameter: str) -> sp.Expr:
        """⟨∇ℓ, ξ⟩ over the block."""
        moved = set(symmetry.parameters)
        for number, block in enumerate(self._blocks(moved)):
            if parameter in block:
                return Along(GRADIENT) if moved <= block else sp.Symbol(f"J_{number}", real=True)
        return sp.S.Zero

    def _blocks(self, moved: set[str]) -> Sequence[frozenset[str]]:
        return (frozenset(moved),) if self.blocks is None else self.blocks

    def states(self, component: Component) -> Sequence[sp.Expr]:
        """The samples' gradients: a law must hold for all data."""
        return (_like("G", component[0]),)


@dataclass(frozen=True)
class Adaptive:
    """M = diag(d(v)), with v[e] a running average of past squared gradients: a state of its own next to the parameters.

    Parameters
    ----------
    name : str
    entry : sympy.Expr
        d in `ARGUMENT`, which stands for v[e].
    """

    name: str = "adaptive"
    entry: sp.Expr = sp.sqrt(ARGUMENT) + DAMPING

    def lower(self, symmetry: Symmetry, action: Action, component: Component) -> sp.Expr:
        """d(v[e]) ξ_e."""
        entry, change = component
        return self.entry.xreplace({ARGUMENT: _like("v", entry)}) * change

    def states(self, component: Component) -> Sequence[sp.Expr]:
        """The running average v at the entry."""
        return (_like("v", component[0]),)


@dataclass(frozen=True)
class Held:
    """The positive diagonal M that a rule's own step divides by, M[e] held within one step; from step to step a charge drifts with it.

    Which M that is, the rule says (`noetherflow.symbolic.metric_balance`): √(v'/c2) + ε for Adam, the size of the average for Lion.

    Parameters
    ----------
    name : str

    Examples
    --------
    >>> Held().name
    "the rule's own"
    """

    name: str = "the rule's own"

    def lower(self, symmetry: Symmetry, action: Action, component: Component) -> sp.Expr:
        """M[e] ξ_e."""
        entry, change = component
        return _like("M", entry) * change

    def states(self, component: Component) -> Sequence[sp.Expr]:
        """None: within a step it is a number for each entry."""
        return ()


def RMSProp() -> Adaptive:
    """M = diag(√v + ε), v ← γ v + (1 - γ) g²."""
    return Adaptive("RMSProp")


def Adagrad() -> Adaptive:
    """M = diag(√v + ε), v ← v + g²."""
    return Adaptive("Adagrad")


def Adam() -> Adaptive:
    """M = diag(√v + ε), as RMSProp; Adam's momentum replaces the gradient, not the metric."""
    return Adaptive("Adam")


@lru_cache(maxsize=64)
def _curvature(potential: sp.Expr) -> sp.Expr:
    """φ'', without what cancels in it."""
    return sp.simplify(sp.diff(potential, ARGUMENT, 2))


def _like(name: str, entry: sp.Expr) -> sp.Expr:
    """A quantity with the shape of a parameter."""
    return (
        sp.IndexedBase(f"{name}_{entry.base}")[entry.indices] if isinstance(entry, sp.Indexed) else sp.Symbol(f"{name}_{entry}", real=True)
    )
