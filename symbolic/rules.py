"""Learning rules as data: ordered update equations in state vectors.

A rule is a list of equations ``name = linear combination of vectors``; nothing in the derivation knows which rule it is. To add one, write
its equations (`Form`), say which hyper-parameter is which mechanism, and give the numbers a constructor.

Conventions: t = step; `g` is the gradient that the optimizer sees (after clipping and accumulation); equations are those of torch.optim.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import sympy as sp

from noetherflow.errors import RuleError
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
    """

    name: str
    equations: tuple[tuple[Vector, sp.Expr], ...]
    buffers: tuple[tuple[Vector, Vector], ...]
    rate: sp.Symbol
    hyperparameters: tuple[tuple[str, sp.Symbol], ...]
    mechanisms: tuple[tuple[sp.Symbol, str], ...]

    def step(self) -> sp.Expr:
        """The combination u in θ, g, and the buffers after the update."""
        return self.in_terms_of_state(STEP)

    def in_terms_of_state(self, vector: Vector) -> sp.Expr:
        """A vector's defining combination, with temporary vectors substituted but buffers kept."""
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
    >>> rule = SGD(lr=0.1, momentum=0.9)
    >>> rule.groups[0].form.step()
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


# --- SGD as torch.optim.SGD does it:  h = ±g + λθ;  b' = μb + (1 - τ)h, and b' = h on the step that makes the buffer (τ = 0 there);
# u = h + μb' (Nesterov), b' (momentum), h (neither).


def sgd_form(*, momentum: bool, nesterov: bool, maximize: bool) -> Form:
    """The equations of torch.optim.SGD for a choice of options."""
    eta, decay, mu, tau = sp.symbols("eta lambda mu tau", real=True)
    h, before, after = Vector("h"), Vector("b"), Vector("b'")
    gradient = -GRADIENT if maximize else GRADIENT
    equations: list[tuple[Vector, sp.Expr]] = [(h, gradient + decay * THETA)]
    if momentum:
        equations.append((after, mu * before + (1 - tau) * h))
    equations.append((STEP, h + mu * after if nesterov else after if momentum else h))
    known = {"lr": eta, "weight_decay": decay} | ({"momentum": mu, "dampening": tau} if momentum else {})
    return Form(
        name="SGD" + (" with Nesterov momentum" if nesterov else " with momentum" if momentum else ""),
        equations=tuple(equations),
        buffers=((before, after),) if momentum else (),
        rate=eta,
        hyperparameters=tuple(known.items()),
        mechanisms=((decay, "weight_decay"), (mu, "momentum"), (tau, "momentum")),
    )


def SGD(
    lr: Number = sp.Symbol("eta", positive=True),  # noqa: B008  # a symbol is immutable
    momentum: Number = 0,
    dampening: Number = 0,
    weight_decay: Number = 0,
    *,
    nesterov: bool = False,
    maximize: bool = False,
    members: frozenset[int] | None = None,
) -> Rule:
    """PyTorch's SGD with all its options; values may be numbers or SymPy symbols.

    Raises
    ------
    RuleError
        For Nesterov momentum without momentum or with dampening, as torch does.
    """
    if nesterov and (momentum == 0 or dampening != 0):
        raise RuleError(
            "Nesterov momentum needs momentum > 0 and dampening = 0, as in torch.optim.SGD.", momentum=momentum, dampening=dampening
        )
    form = sgd_form(momentum=momentum != 0, nesterov=nesterov, maximize=maximize)
    given: dict[str, Any] = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "dampening": dampening}
    return Rule((Group(form, {name: given[name] for name, _ in form.hyperparameters}, members),))
