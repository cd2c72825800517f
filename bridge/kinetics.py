"""What a step that is not linear in the gradients adds to a bundle's law: measured sources, their gain, and what rounding does to them.

A source is S = ⟨ξ, d⟩ - κ ⟨ξ, L⟩, and κ is anyone's choice (`noetherflow.symbolic.kinetic_balance`). Here it is, for every charge and step,
the least-squares factor ⟨d, L⟩ / ⟨L, L⟩ over the parameters behind the charge: then no multiple of L would explain more of d, and what is
booked as kinetic symmetry breaking is nothing that a step size could be.

Rounding: the step's own operations change d by `rounding of d` roundoffs, entry by entry (`noetherflow.bridge.combinations`), a buffer is
rounded when it is written. Sums of fourth order are known every so many steps; in between their ratio to products of second order is kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import sympy as sp
import torch
from torch import Tensor

from noetherflow.bridge.bundles import Bundle, spread
from noetherflow.bridge.combinations import GRADIENT_NAME, THETA_NAME, companion_name, rounding_name
from noetherflow.bridge.noise import Precision
from noetherflow.bridge.plan import Values, Wanted
from noetherflow.bridge.prediction import Measured
from noetherflow.symbolic.balance import Breaking
from noetherflow.symbolic.kinetic_balance import GAIN

Wants = list[tuple[int, Wanted]]


@dataclass
class Kinetics:
    """Sources of one bundle.

    Parameters
    ----------
    number : int
        The bundle's, in the plan.
    bundle : Bundle
    ratios : mapping
        Largest ratios of fourth-order sums to products of second-order ones so far.
    """

    number: int
    bundle: Bundle
    ratios: dict[tuple[int, str], Tensor] = field(default_factory=dict)

    @property
    def _square(self) -> str:
        """How sums over the parameters behind a charge are asked for: without the generator's signs."""
        return "variance" if self.bundle.linear else "pairing"

    def _made(self) -> Iterable[tuple[int, str]]:
        """(group, vector) of all that rounding changes: the sources' vectors and the carried buffers."""
        for source in self.bundle.balance.breaking:
            yield source.group, source.vector.name
        if self.bundle.balance.closed:
            for k in self.bundle.balance.momenta:
                yield 0, self._after(k)

    def _after(self, momentum: sp.Symbol) -> str:
        balance = self.bundle.balance
        return str(dict(balance.forms[0].buffers)[balance.buffer_of(momentum, 0)].name)

    # --- what is read

    def wanted(self) -> Wants:
        """In every step."""
        out = [(p, Wanted("gradient_square", GRADIENT_NAME, GRADIENT_NAME, self._square)) for p in range(len(self.bundle.groups))]
        for source in self.bundle.balance.breaking:
            d, follows = source.vector.name, self._companion(source)
            out.append((source.group, Wanted(f"along {d}", THETA_NAME, d)))
            out.append((source.group, Wanted(f"along companion of {d}", THETA_NAME, follows)))
            out.append((source.group, Wanted(f"{d} with companion", d, follows, self._square)))
            out.append((source.group, Wanted(f"companion of {d}", follows, follows, self._square)))
        return out + [(p, Wanted(f"square of {x}", x, x, self._square)) for p, x in self._made()]

    def wanted_moments(self) -> Wants:
        """Now and then."""
        out = [(p, Wanted(f"rounding of {x}", rounding_name(x), rounding_name(x), self._square)) for p, x in self._made()]
        if not self.bundle.linear and not self.bundle.matrix:
            out += [(p, Wanted(f"fourth of {x}", THETA_NAME, x, "fourth")) for p, x in self._made()]
        return out

    def _companion(self, source: Breaking) -> str:
        """Zero companions are followed with no gain: any vector does."""
        return companion_name(source.vector.name) if source.companion != 0 else source.vector.name

    def _sum(self, values: Values, group: int, quantity: str) -> Tensor:
        return spread(self.bundle, values.of(self.number, group, quantity, self.bundle.size, absolute=True))

    def gradient_square(self, group: int, values: Values) -> Tensor:
        """Σ|weight| g²."""
        return self._sum(values, group, "gradient_square")

    # --- what a step takes

    def completed(
        self,
        measured: Measured,
        values: Values,
        moments: Values | None,
        hyper: Mapping[sp.Expr, float],
        groups: Sequence[tuple[Precision, Tensor]],
    ) -> Measured:
        """Add the sources, the gain and their noise to what a step takes from the run.

        Parameters
        ----------
        measured : Measured
        values, moments : Values
            Results of `wanted` and, where they are due, of `wanted_moments`.
        hyper : mapping of Symbol to float
        groups : sequence of (Precision, Tensor)
            Of each group: its roundoffs, and the size of its charges.
        """
        if moments is not None:
            self._take_ratios(values, moments, groups)
        noise = {name: self._noise(values, p, name, *groups[p]) for p, name in self._made()}
        return replace(
            measured,
            sources=self._sources(values, hyper),
            source_noise={s.symbol.name: noise[s.vector.name] for s in self.bundle.balance.breaking},
            buffer_noise={k.name: noise[self._after(k)] for k in self.bundle.balance.momenta} if self.bundle.balance.closed else {},
        )

    def _sources(self, values: Values, hyper: Mapping[sp.Expr, float]) -> dict[sp.Symbol, Tensor]:
        breaking = self.bundle.balance.breaking
        try:
            numbers = self.bundle.gains(hyper)
        except ZeroDivisionError:  # a group at rest: nothing is predicted of this step, everything measured
            numbers = {(kind, s.symbol.name): 0.0 for kind in ("slope", "offset") for s in breaking}
        slopes, offsets = ({s.symbol: float(numbers[kind, s.symbol.name]) for s in breaking} for kind in ("slope", "offset"))
        above = torch.zeros(self.bundle.size, dtype=torch.float64, device=values.signed.device)
        below = torch.zeros_like(above)
        for s in (s for s in breaking if s.companion != 0):
            d = s.vector.name
            both, own = self._mean(values, s.group, f"{d} with companion"), self._mean(values, s.group, f"companion of {d}")
            above += slopes[s.symbol] * (both - offsets[s.symbol] * own)
            below += slopes[s.symbol] ** 2 * own
        gain = torch.where(below > 0, above / below.clamp(min=torch.finfo(torch.float64).tiny), 0.0)
        out: dict[sp.Symbol, Tensor] = {GAIN: gain}
        for s in breaking:
            d, size = s.vector.name, self.bundle.size
            out[s.symbol] = values.of(self.number, s.group, f"along {d}", size)
            if s.companion != 0:
                followed = values.of(self.number, s.group, f"along companion of {d}", size)
                out[s.symbol] = out[s.symbol] - (slopes[s.symbol] * gain + offsets[s.symbol]) * followed
        return out

    def _mean(self, values: Values, group: int, quantity: str) -> Tensor:
        """A sum over the parameters behind a charge; for an entry of a matrix the mean of its row's and its column's."""
        b, found = self.bundle, values.of(self.number, group, quantity, self.bundle.size, absolute=True)
        if not b.matrix:
            return found
        out = torch.empty_like(found)
        for law, start, stop in zip(b.laws, b.starts, b.starts[1:], strict=False):
            n = int(law.symmetry.sizes[-1])
            diagonal = found[start:stop].reshape(-1, n, n).diagonal(dim1=-2, dim2=-1)
            out[start:stop] = ((diagonal.unsqueeze(-1) + diagonal.unsqueeze(-2)) / 2).reshape(-1)
        return out

    # --- rounding

    def _take_ratios(self, values: Values, moments: Values, groups: Sequence[tuple[Precision, Tensor]]) -> None:
        for p, x in self._made():
            square = self._sum(values, p, f"square of {x}")
            self._keep(p, f"rounding of {x}", self._sum(moments, p, f"rounding of {x}"), square)
            if not self.bundle.linear and not self.bundle.matrix:
                fourth = moments.of(self.number, p, f"fourth of {x}", self.bundle.size)
                self._keep(p, f"fourth of {x}", fourth, 2 * groups[p][1] * square)

    def _keep(self, group: int, name: str, above: Tensor, below: Tensor) -> None:
        ratio = torch.where(below > 0, above / below.clamp(min=torch.finfo(torch.float64).tiny), 1.0)
        known = self.ratios.get((group, name))
        self.ratios[group, name] = ratio if known is None else torch.maximum(known, ratio)

    def _noise(self, values: Values, group: int, name: str, precision: Precision, size: Tensor) -> Tensor:
        """Standard deviation of what rounding a vector entry by entry does to its pairing with ξ."""
        square = self._sum(values, group, f"square of {name}")
        roundoffs = self.ratios.get((group, f"rounding of {name}"), torch.ones_like(square))
        weighted = self.ratios.get((group, f"fourth of {name}"), torch.ones_like(square)) * 2 * size
        return precision.unit * (roundoffs * square * (1.0 if self.bundle.linear else weighted)).sqrt()
