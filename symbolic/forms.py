"""The form of a learning rule: ordered update equations in state vectors, and the numbers that parameter groups put into them.

Equations are written in vectors as if these were numbers: a linear combination means itself, anything else acts entry by entry
(``m / (sqrt(v) + eps)``), but for the matrix functions of `noetherflow.symbolic.nonlinear`.

Conventions: t = step; `g` is the gradient that the optimizer sees (after clipping and accumulation); equations are those of torch.optim.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import sympy as sp

from noetherflow.symbolic.pairings import Vector

THETA: Final = Vector("theta", r"\theta")
GRADIENT: Final = Vector("g")
STEP: Final = Vector("u")

Number: TypeAlias = float | sp.Expr


@dataclass(frozen=True)
class Form:
    """The update equations of a rule.

    Attributes
    ----------
    name : str
    equations : tuple of (Vector, expression)
        In order; a later one may use vectors that an earlier one made. The step u is among them: θ' = θ - η u.
    buffers : mapping of Vector to Vector
        State that lives from step to step: its value before -> the vector that is its value after.
    rate : sympy.Symbol
        The step size η.
    hyperparameters : mapping of str to sympy.Symbol
    mechanisms : mapping of sympy.Symbol to str
        Hyper-parameter -> the mechanism that its terms are booked under.
    invariant : tuple of Vector
        Further combinations of gradients of invariant losses: no generator has a component along them.
    point : expression
        Where the gradient is taken: θ, or a point next to it in θ and the buffers before the step.
    potential : expression, optional
        φ of `noetherflow.symbolic.metrics.ARGUMENT`, where the step is one of mirror descent: its charges are those of the metric ∇²φ.
    """

    name: str
    equations: tuple[tuple[Vector, sp.Expr], ...]
    buffers: tuple[tuple[Vector, Vector], ...]
    rate: sp.Symbol
    hyperparameters: tuple[tuple[str, sp.Symbol], ...]
    mechanisms: tuple[tuple[sp.Symbol, str], ...]
    invariant: tuple[Vector, ...] = ()
    point: sp.Expr = THETA
    potential: sp.Expr | None = None

    def step(self) -> sp.Expr:
        """The combination u in θ, g, and the buffers after the update."""
        return self.in_terms_of_state(STEP)

    def in_terms_of_state(self, vector: Vector) -> sp.Expr:
        """A vector's defining expression, with temporary vectors substituted but buffers kept."""
        table = dict(self.equations)
        kept = {after for _, after in self.buffers}
        out = table[vector]
        while inner_vectors := [v for v in out.free_symbols if isinstance(v, Vector) and v in table and v not in kept]:
            out = out.xreplace({v: table[v] for v in inner_vectors})
        return sp.expand(out)

    def latex(self) -> str:
        """The equations, aligned."""
        rows = [rf"{sp.latex(v)} &= {sp.latex(e)}" for v, e in self.equations]
        rows.append(rf"\theta' &= \theta - {sp.latex(self.rate)} u")
        return r"\begin{aligned}" + r"\\ ".join(rows) + r"\end{aligned}"


@dataclass(frozen=True)
class Group:
    """Parameters that one form with one set of values updates; `members` are tensor identities, None for all parameters."""

    form: Form
    values: Mapping[str, Number]
    members: frozenset[int] | None = None


@dataclass(frozen=True)
class Rule:
    """A learning rule: one or more parameter groups.

    Examples
    --------
    >>> from noetherflow.symbolic.rules import SGD
    >>> SGD(lr=0.1, momentum=0.9).groups[0].form.step()
    b'
    """

    groups: tuple[Group, ...]
    notes: tuple[str, ...] = field(default=())

    def group_of(self, identity: int | None) -> int | None:
        """Number of the group that a tensor belongs to; None if the rule does not move it."""
        for number, group in enumerate(self.groups):
            if group.members is None or identity in group.members:
                return number
        return None

    def _repr_latex_(self) -> str:
        return rf"$\displaystyle {self.groups[0].form.latex()}$"
