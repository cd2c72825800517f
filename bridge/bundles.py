"""Laws that share one balance law and its parameter groups, evaluated as one flat vector of charges.

A model has hundreds of families but few distinct balance laws; the cost of a step grows with the latter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Generic, TypeVar

import sympy as sp
import torch
from torch import Tensor

from noetherflow.bridge.printing import Compiled, compile_expressions
from noetherflow.symbolic.axes import multiply
from noetherflow.symbolic.balance import CHARGE, CURRENT, Balance
from noetherflow.symbolic.kinetic_balance import GAIN
from noetherflow.symbolic.laws import Law
from noetherflow.symbolic.momenta import MomentumLaw
from noetherflow.symbolic.pairings import Inner
from noetherflow.symbolic.rules import Form

AnyLaw = TypeVar("AnyLaw", Law, MomentumLaw)
AnyBalance = TypeVar("AnyBalance")
CHARGE_PART, MOMENTUM_PART = "charge", "momentum"


def entries(law: Law | MomentumLaw) -> int:
    """Number of charges of a law as they lie in a flat vector (a matrix law keeps its whole matrix)."""
    sizes, matrix = law.symmetry.sizes, law.symmetry.matrix or law.symmetry.rotation
    return int(multiply([*sizes, sizes[-1]] if matrix else list(sizes)))


@dataclass(frozen=True)
class Together(Generic[AnyLaw, AnyBalance]):
    """Laws with one balance and one tuple of parameter groups, their charges side by side in a flat vector.

    Attributes
    ----------
    laws : tuple of Law, or of MomentumLaw
    balance : Balance, or MomentumBalance
    groups : tuple of int
        The optimizer's parameter groups, in the order of the balance's.
    """

    laws: tuple[AnyLaw, ...]
    balance: AnyBalance
    groups: tuple[int, ...]

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """Where each law begins in the flat vector; one more entry for the end."""
        out = [0]
        for law in self.laws:
            out.append(out[-1] + entries(law))
        return tuple(out)

    @property
    def size(self) -> int:
        """Length of the flat vector."""
        return self.starts[-1]


class Bundle(Together[Law, Balance]):
    """Laws that share one balance law."""

    @property
    def matrix(self) -> bool:
        """Whether these charges are matrices."""
        return self.laws[0].symmetry.matrix

    @property
    def linear(self) -> bool:
        """Whether these charges are linear in the parameters."""
        return self.laws[0].linear

    @cached_property
    def pairings(self) -> tuple[Inner, ...]:
        """The second-order pairings that the balance law needs measured."""
        found: set[Inner] = set()
        for expression in self._expressions.values():
            found |= expression.atoms(Inner)
        return tuple(sorted(found, key=str))

    @cached_property
    def step(self) -> Compiled:
        """One step: every mechanism's part of the charge and of each momentum, and how they move one another."""
        return compile_expressions(self._expressions)

    @cached_property
    def response(self) -> Compiled:
        """Derivatives of the step by the charge, the momenta, the current and measured sources: how errors travel."""
        balance = self.balance
        charge = sp.Add(CHARGE, *balance.charge_terms.values())
        out: dict[tuple[str, ...], sp.Expr] = {("charge", "charge"): sp.diff(charge, CHARGE)}
        out["charge", "current"] = sp.diff(charge, CURRENT)
        out |= {("charge", source.symbol.name): sp.diff(charge, source.symbol) for source in balance.breaking}
        for k in balance.momenta:
            terms = sp.Add(*balance.momentum_terms[k].values())
            out |= {("charge", k.name): balance.momentum_in_charge[k], (k.name, k.name): balance.momentum_factor[k]}
            out |= {(k.name, "charge"): sp.diff(terms, CHARGE), (k.name, "current"): sp.diff(terms, CURRENT)}
            out |= {(k.name, source.symbol.name): sp.diff(terms, source.symbol) for source in balance.breaking}
        return compile_expressions(out)

    @property
    def kinetic(self) -> bool:
        """Whether the steps are not linear in the gradients, so that sources are measured."""
        return bool(self.balance.breaking)

    @cached_property
    def gains(self) -> Compiled:
        """Slope and offset of each source's gain in the one number that is free."""
        out: dict[tuple[str, ...], sp.Expr] = {}
        for source in self.balance.breaking:
            out["slope", source.symbol.name] = sp.cancel(sp.diff(source.gain, GAIN))
            out["offset", source.symbol.name] = sp.cancel(source.gain.subs(GAIN, 0))
        return compile_expressions(out)

    @cached_property
    def metric(self) -> Compiled:
        """Weights of the groups in the charge and in each momentum."""
        out: dict[tuple[str, ...], sp.Expr] = {("charge", str(p)): w for p, w in enumerate(self.balance.weights)}
        for k, v in self.balance.momentum_weights.items():
            out |= {(k.name, str(p)): w for p, w in enumerate(v)}
        return compile_expressions(out)

    @cached_property
    def _expressions(self) -> dict[tuple[str, ...], sp.Expr]:
        balance = self.balance
        out: dict[tuple[str, ...], sp.Expr] = {(CHARGE_PART, m): e for m, e in balance.charge_terms.items()}
        for k in balance.momenta:
            out |= {(MOMENTUM_PART, k.name, m): e for m, e in balance.momentum_terms[k].items()}
            out |= {("factor", k.name): balance.momentum_factor[k], ("into", k.name): balance.momentum_in_charge[k]}
        return out

    def hyperparameters(self, values: Mapping[int, Mapping[str, float]]) -> dict[sp.Expr, float]:
        """Numbers for the balance law's symbols from each group's values."""
        out: dict[sp.Expr, float] = {}
        for p, (form, group) in enumerate(zip(self.balance.forms, self.groups, strict=True)):
            for name, symbol in form.hyperparameters:
                value = values[group][name]
                out[symbol] = value  # symbols that all groups share are equal by construction
                out[sp.Symbol(f"{symbol.name}_{p}", real=True)] = value
        return out

    def group_of_pairing(self, pairing: Inner) -> tuple[int, Form, tuple[str, str]]:
        """(position of the group, its form, names of the two vectors in that form) of a pairing."""
        names = [argument.name for argument in pairing.args]
        if len(self.groups) == 1:
            return 0, self.balance.forms[0], (names[0], names[1])
        position = int(names[0].rsplit("_", 1)[1])
        plain = [name.rsplit("_", 1)[0] for name in names]
        return position, self.balance.forms[position], (plain[0], plain[1])


def bundle(laws: Sequence[Law]) -> tuple[Bundle, ...]:
    """Gather laws by balance law, groups, and whether their charges are matrices."""
    found: dict[tuple[int, tuple[int, ...], bool], list[Law]] = {}
    for law in laws:
        found.setdefault((id(law.balance), law.groups, law.symmetry.matrix), []).append(law)
    return tuple(Bundle(tuple(members), members[0].balance, members[0].groups) for members in found.values())


def spread(b: Bundle, absolute: Tensor) -> Tensor:
    """For matrices: |Q[i, j]| is at most the root of the diagonal entries' product."""
    if not b.matrix:
        return absolute
    out = torch.empty_like(absolute)
    for law, start, stop in zip(b.laws, b.starts, b.starts[1:], strict=False):
        n = int(law.symmetry.sizes[-1])
        diagonal = absolute[start:stop].reshape(-1, n, n).diagonal(dim1=-2, dim2=-1).sqrt()
        out[start:stop] = (diagonal.unsqueeze(-1) * diagonal.unsqueeze(-2)).reshape(-1)
    return out
