"""Laws counted at one point: charges against brackets of gradient fields, exactly modulo a prime or in float64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

import torch
from torch import Tensor

from noetherflow.bridge.conserved import Conserved, CountedFlow, gradient_rows
from noetherflow.bridge.counted_flows import Gradient
from noetherflow.bridge.sampling import Sampling
from noetherflow.numeric import brackets
from noetherflow.numeric.brackets import Params
from noetherflow.numeric.elimination import Echelon, product
from noetherflow.numeric.functional_rank import numerical_rank
from noetherflow.numeric.lie_rank import FloatSpace, Growth, grow
from noetherflow.numeric.modular import Modulo, residues

# A charge is conserved along a field in float64 if the cosine of the angle between its gradient and the field is below this.
ROUNDING: Final = 1e-8
# Numbers that one batch of brackets may hold, with what autograd keeps of them.
NUMBERS_AT_ONCE: Final = 3e7


@dataclass
class Count:
    """The count at one point.

    Parameters
    ----------
    sampling : Sampling
    laws : sequence of Conserved
        Those that are said to hold.
    dynamics : CountedFlow
        Along which flow.
    """

    sampling: Sampling
    laws: Sequence[Conserved]
    dynamics: CountedFlow = field(default_factory=Gradient)

    def __post_init__(self) -> None:
        self.refuted: set[int] = set()
        self.growth = Growth()
        prime = self.sampling.prime
        self.space: Echelon | FloatSpace = Echelon(self.coordinates, prime) if prime else FloatSpace(self.coordinates)

    @cached_property
    def parameters(self) -> int:
        """D: entries of all trainable parameters."""
        return sum(p.numel() for p in self.sampling.point.values())

    @cached_property
    def state(self) -> Params:
        """The point, with what else the flow moves."""
        return self.dynamics.flow.state(self.sampling.point, self.sampling.numbers)

    @cached_property
    def coordinates(self) -> int:
        """Numbers that the flow moves: D, or 2 D + 1 with velocities and time."""
        return sum(x.numel() for x in self.state.values())

    @cached_property
    def _charges(self) -> tuple[Tensor, Tensor]:
        rows, owners = gradient_rows(self.laws, self.state, self.sampling.prime)
        return rows, torch.tensor(owners, dtype=torch.long)

    @property
    def gradients(self) -> Tensor:
        """Gradients of the charges that no field refutes, shape (charges, coordinates)."""
        rows, owners = self._charges
        return rows[[int(owner) not in self.refuted for owner in owners]] if len(rows) else rows

    @property
    def found(self) -> int:
        """Independent charges among them."""
        rows = self.gradients
        if self.sampling.prime:
            space = Echelon(self.coordinates, self.sampling.prime)
            return space.add(rows)
        return numerical_rank(rows)[0] if len(rows) else 0

    @property
    def possible(self) -> int:
        """Laws that the fields leave room for."""
        return self.coordinates - self.growth.rank

    @property
    def gap(self) -> float:
        """Spectral gap at the rank; infinite in exact arithmetic."""
        return self.space.gap if isinstance(self.space, FloatSpace) else torch.inf

    def run(self) -> None:
        """Draw brackets until the two counts meet or nothing new is found. Charges that a field moves are refuted on the way."""
        exact = self.sampling.prime is not None
        self._refute(self.draw(0, 0, 4)[0])
        target = self.coordinates - self.found
        spare = 2 if exact else 10 + target  # singular values of random rows are clearer when there are more
        self.growth = grow(self._checked, self.space, target, spare=spare, at_once=self._at_once)

    @property
    def _at_once(self) -> int:
        return max(4, min(512, int(NUMBERS_AT_ONCE / (16 * (self.coordinates + self.sampling.summed * self.sampling.nodes_numbers)))))

    def _checked(self, level: int, first: int, count: int) -> tuple[Tensor, int]:
        rows, after = self.draw(level, first, count)
        if self.sampling.prime or level == 0:  # what fields conserve, their brackets do; in float64 these only carry more rounding
            self._refute(rows)
        return rows, after

    def draw(self, level: int, first: int, count: int) -> tuple[Tensor, int]:
        """Brackets of a level, numbered from `first` on, at the point, and the number to go on with."""
        samples, after = self.sampling.samples(level, first, count)
        prime = self.sampling.prime
        if not prime:
            return self.rows(level, self.state, samples), after
        state = {name: residues(x, prime) for name, x in self.state.items()}
        with Modulo(prime):
            rows = self.rows(level, state, samples)
        if not torch.equal(rows, rows.round()):
            raise ArithmeticError("Arithmetic modulo a prime gave a fraction: a rule of noetherflow.numeric.modular is wrong.")
        return rows, after

    def rows(self, level: int, state: Params, samples: Any) -> Tensor:
        """Brackets of a level at some state, in the arithmetic of whatever surrounds the call."""
        flow, scalar = self.dynamics.flow, self.sampling.scalar
        return brackets.rows(flow.field(scalar), state, level, samples, flow.along(scalar))

    def _refute(self, rows: Tensor) -> None:
        """⟨∇Q, V⟩ must be zero for every charge and every bracket."""
        charges, owners = self._charges
        if not len(charges):
            return
        if self.sampling.prime:
            moved = (product(rows, charges.T.contiguous(), self.sampling.prime) != 0).any(0)
        else:
            kept = rows[rows.norm(dim=1) > 1e-10 * rows.norm(dim=1).max()]
            angles = torch.nn.functional.normalize(kept) @ torch.nn.functional.normalize(charges).T
            moved = (angles.abs() > ROUNDING).any(0)
        self.refuted |= {int(owner) for owner in owners[moved]}
