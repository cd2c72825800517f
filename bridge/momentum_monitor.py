"""Angular momenta beside a run: predicted against measured at every step, one matrix product for each tensor.

Measured is K = Σ (b Pᵀ - P bᵀ) after each step, from the tensors as the optimizer left them. Predicted is what the law makes of the one
before: of the predicted one where the law closes (from the first step on it is never measured again), of the measured ones of the parameter
groups where it does not. Pairings that the law needs are read before the step. A rule without a buffer is held to the step that it made:
its parameters are copied before it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor

from noetherflow.bridge.combinations import GRADIENT_NAME, THETA_NAME, buffer_name
from noetherflow.bridge.momentum_bundles import MomentumBundle, bundle_momenta
from noetherflow.bridge.momentum_noise import Rows, evaluation_variance, fourth_order, ratio, size_squared, step_variance
from noetherflow.bridge.momentum_tally import MomentumTally
from noetherflow.bridge.noise import REFRESH, Precision
from noetherflow.bridge.plan import Plan, Values, Wanted, compile_plan
from noetherflow.bridge.precisions import Met
from noetherflow.bridge.state import State
from noetherflow.numeric.rounding import unit_roundoff
from noetherflow.symbolic.angular import ANGULAR, DISPLACEMENT
from noetherflow.symbolic.balance import DISCRETIZATION, METRIC
from noetherflow.symbolic.momenta import MomentumLaw

Hyper = Mapping[int, Mapping[str, float]]
Needs = list[tuple[int, Wanted]]
BEFORE_NAME, MOVED_NAME, BUFFER_NAME = "before", "moved", "buffer"
TENSORS: Final = {"g": GRADIENT_NAME, "theta": THETA_NAME, DISPLACEMENT.name: MOVED_NAME}


@dataclass
class Carried:
    """The prediction of one bundle.

    Attributes
    ----------
    predicted, variance : Tensor, shape (count,)
    measured : tuple of Tensor
        Each group's momentum, latest measurement.
    moved : dict of str to Tensor
        Mechanism -> its contribution so far.
    rows : dict of int to (Tensor, Tensor)
        For each group, squared lengths of the rows of θ and of the buffer (or step) after the latest step.
    ratios : dict of (int, str) to Tensor
        Fourth-order sums over products of rows' lengths.
    """

    predicted: Tensor
    variance: Tensor
    measured: tuple[Tensor, ...]
    moved: dict[str, Tensor] = field(default_factory=dict)
    rows: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    ratios: dict[tuple[int, str], Tensor] = field(default_factory=dict)
    latest: Tensor | None = None


@dataclass
class MomentumMonitor:
    """All angular momenta of a model.

    Parameters
    ----------
    laws : sequence of MomentumLaw
    state : State
    lengths : mapping of str to int
        Number of products summed in a gradient entry of each parameter.
    scattered : mapping of str to int
        Number of additions that make a gradient entry of a parameter that indices pick from.
    sign : float
        Factor on the measured pairings; anything but 1 is a deliberately wrong law.
    compute : torch.dtype
        Coarsest dtype that the passes run in, besides the parameters' own and those of the graph.
    met : mapping of int to Met
        Number of a symmetry -> coarsest dtypes that its law meets in the graph.
    """

    laws: Sequence[MomentumLaw]
    state: State
    lengths: Mapping[str, int]
    sign: float = 1.0
    compute: torch.dtype = torch.float64
    met: Mapping[int, Met] = field(default_factory=dict)
    scattered: Mapping[str, int] = field(default_factory=dict)
    bundles: tuple[MomentumBundle, ...] = ()
    carried: list[Carried] = field(default_factory=list)
    tallies: list[list[MomentumTally]] = field(default_factory=list)
    step: int = 0

    def __post_init__(self) -> None:
        self.bundles = bundle_momenta(self.laws)
        self._device = next(self.state.model.parameters()).device
        self._start_plan, self._source_plan, self._step_plan = (
            compile_plan(self.bundles, {n: wanted(b) for n, b in enumerate(self.bundles)})
            for wanted in (self._wanted_at_start, self._wanted_before, self._wanted_after)
        )
        self._buffer_of: dict[str, str] = {}
        for law in self.laws:
            held = dict(zip(law.groups, law.balance.buffers, strict=True))
            self._buffer_of |= {name: buffer[0].name for name, g in law.group_of.items() if (buffer := held[g]) is not None}
        self._snapshot: dict[str, Tensor] = {}
        self._sources: Values | None = None
        self._hyper: Hyper = {}

    @property
    def count(self) -> int:
        """Entries that are looked at in every step."""
        return sum(b.count for b in self.bundles)

    def compute_in(self, dtype: torch.dtype) -> None:
        """Take note that passes run in a dtype (autocast): its roundoff then counts too, if it is the coarser one."""
        self.compute = max(self.compute, dtype, key=unit_roundoff)

    # --- what is read

    def _wanted_at_start(self, b: MomentumBundle) -> Needs:
        return [need for p, held in enumerate(b.balance.buffers) if held for need in _of_buffer(p)]

    def _wanted_before(self, b: MomentumBundle) -> Needs:
        return [(p, Wanted(str(symbol), *self._operands(b, p, names), "wedge")) for p, symbol, names in b.sources if not _late(names)]

    def _wanted_after(self, b: MomentumBundle) -> Needs:
        late = [(p, Wanted(str(symbol), *self._operands(b, p, names), "wedge")) for p, symbol, names in b.sources if _late(names)]
        return late + [need for p, held in enumerate(b.balance.buffers) for need in (_of_buffer(p) if held else _of_step(p))]

    def _operands(self, b: MomentumBundle, position: int, names: tuple[str, str]) -> tuple[str, str]:
        """The tensors of ⟨A x, y⟩ = ½⟨X, y xᵀ - x yᵀ⟩, y first; the buffer before and after is the one that the optimizer holds then."""
        held = b.balance.buffers[position] or ()
        found = TENSORS | {vector.name: BUFFER_NAME for vector in held}
        return found[names[1]], found[names[0]]

    def _read(self, plan: Plan) -> Values:
        names = {name for name, _ in plan.blocks}
        return plan.evaluate(self._vectors(names), {name: _moved(name in self._snapshot) for name in names}, self._device)

    def _vectors(self, names: set[str]) -> dict[str, dict[str, Tensor]]:
        """Tensors by parameter and vector; of the buffers the one that averages gradients, zero where it is not there yet."""
        found = self.state.vectors(names, gradients=True, buffers=True)
        for name, tensors in found.items():
            if name in self._buffer_of:
                kept = tensors.get(buffer_name(self._buffer_of[name]))
                tensors[BUFFER_NAME] = torch.zeros_like(tensors[THETA_NAME]) if kept is None else kept
            if name in self._snapshot:
                tensors[BEFORE_NAME] = self._snapshot[name]
        return found

    def _copied(self) -> Iterator[str]:
        """Parameters whose step is looked at."""
        for b in self.bundles:
            stepping = {p for p, held in enumerate(b.balance.buffers) if not held} | {p for p, _, names in b.sources if _late(names)}
            for law in b.laws:
                yield from (name for name, group in law.group_of.items() if b.groups.index(group) in stepping)

    # --- the life of a run

    def begin(self, hyper: Hyper) -> None:
        """Measure the momenta that predictions start from: zero from rest."""
        buffered = self.state.has_buffers()
        values = self._read(self._start_plan) if buffered else None
        for n, b in enumerate(self.bundles):
            nothing = torch.zeros(b.count, dtype=torch.float64, device=self._device)
            lasting = [values is not None and held is not None for held in b.balance.buffers]
            measured = tuple(self._momentum(values, n, p) if values and held else nothing for p, held in enumerate(lasting))
            weights = self._weights(b, hyper) or (1.0,) * len(b.groups)
            total = sum((w * m for w, m in zip(weights, measured, strict=True)), nothing)
            carried = Carried(total.clone(), nothing.clone(), measured)
            carried.rows = {p: self._rows(values, n, p) for p, held in enumerate(lasting) if values and held}
            self.carried.append(carried)
            self.tallies.append([MomentumTally.start(part) for part in self._by_law(b, total)])

    def before_step(self, hyper: Hyper) -> None:
        """Read the pairings that laws need, and copy what is held to its step."""
        self._hyper = hyper
        parameters = {name: self.state.vectors([name], gradients=False, buffers=False)[name][THETA_NAME] for name in self._copied()}
        self._snapshot = {name: parameter.clone() for name, parameter in parameters.items()}
        self._sources = self._read(self._source_plan) if self._source_plan.blocks else None

    def after_step(self, confidence: float) -> None:
        """Measure, advance the predictions, and confront them."""
        values = self._read(self._step_plan)
        due = self.step % REFRESH == 0 or self.step in (1, 2, 5, 10)
        self.step += 1
        for n, b in enumerate(self.bundles):
            rows = {p: self._step_rows(n, p, values) for p in range(len(b.groups))}
            if due:
                self._take_ratios(n, rows)
            measured = tuple(self._momentum(values, n, p) for p in range(len(b.groups)))
            weights = self._weights(b, self._hyper)
            if weights is not None:  # a group at rest: what its gradients are is not to be seen, nor then the others' sum
                self._advance(n, values, rows, weights)
                total = sum((w * m for w, m in zip(weights, measured, strict=True)), torch.zeros_like(measured[0]))
                self._confront(n, total, rows, confidence)
            self.carried[n].measured = measured
        self._snapshot = {}

    # --- one step

    def _advance(self, n: int, values: Values, rows: Mapping[int, Rows], weights: Sequence[float]) -> None:
        b, carried = self.bundles[n], self.carried[n]
        held = [w * m for w, m, buffer in zip(weights, carried.measured, b.balance.buffers, strict=True) if buffer]
        closed = b.balance.closed
        start = carried.predicted if closed else sum(held, torch.zeros_like(carried.predicted))
        start = start if b.balance.lasting else torch.zeros_like(start)
        if not closed and carried.latest is not None:
            self._book(carried, METRIC if all(b.balance.buffers) else DISCRETIZATION, start - carried.latest)
        known: dict[Any, Any] = {**b.hyperparameters(self._hyper), ANGULAR: start}
        known |= {b.name(p): momentum for p, momentum in enumerate(carried.measured) if not closed}
        for p, symbol, names in b.sources:
            found = values if _late(names) else self._sources
            known[symbol] = self.sign * b.upper(found.of(n, p, str(symbol), b.size)) if found else torch.zeros_like(start)
        total = start
        for (mechanism,), change in b.step(known).items():
            total = total + change
            self._book(carried, mechanism, change + torch.zeros_like(start))
        carried.predicted = total
        carried.variance = self._variance(n, rows, weights)

    def _book(self, carried: Carried, mechanism: str, change: Tensor) -> None:
        carried.moved[mechanism] = carried.moved.get(mechanism, torch.zeros_like(change)) + change

    def _variance(self, n: int, rows: Mapping[int, Rows], weights: Sequence[float]) -> Tensor:
        b, carried = self.bundles[n], self.carried[n]
        total = torch.zeros_like(carried.variance)
        if b.balance.closed and b.balance.lasting:
            total = float(b.response(b.hyperparameters(self._hyper))["momentum",]) ** 2 * carried.variance
        for p, weight in enumerate(weights):
            ratios = {name: carried.ratios[p, name] for name in ("partner", "theta")}
            lasting = b.balance.buffers[p] is not None
            total = total + weight**2 * step_variance(b, rows[p], ratios, self._precision(b, p), lasting=lasting)
        return total

    def _confront(self, n: int, measured: Tensor, rows: Mapping[int, Rows], confidence: float) -> None:
        b, carried = self.bundles[n], self.carried[n]
        weights = self._weights(b, self._hyper) or ()
        size = sum((w**2 * size_squared(b, rows[p]) for p, w in enumerate(weights)), torch.zeros_like(measured))
        seen = sum((w**2 * evaluation_variance(b, rows[p]) for p, w in enumerate(weights)), torch.zeros_like(measured))
        deviation = (carried.variance + seen).sqrt()
        parts = (self._by_law(b, x) for x in (measured, carried.predicted, deviation, size.sqrt()))
        for tally, *values in zip(self.tallies[n], *parts, strict=True):
            tally.take(self.step, *values, confidence)
        carried.latest = measured

    def _by_law(self, b: MomentumBundle, flat: Tensor) -> list[Tensor]:
        """What is kept of each law, shape (blocks, entries)."""
        return [flat[where].reshape(blocks, -1) for where, (blocks, _) in zip(b.kept, b.shapes, strict=True)]

    def _momentum(self, values: Values, n: int, p: int) -> Tensor:
        b = self.bundles[n]
        return b.upper(values.of(n, p, "momentum", b.size))

    def _weights(self, b: MomentumBundle, hyper: Hyper) -> tuple[float, ...] | None:
        """The combination of the groups; None where a group does not feel its gradient at all."""
        try:
            found = b.response(b.hyperparameters(hyper))
        except ZeroDivisionError:
            return None
        return tuple(float(found["weight", str(p)]) for p in range(len(b.groups)))

    # --- rounding

    def _rows(self, values: Values, n: int, p: int) -> tuple[Tensor, Tensor]:
        size = self.bundles[n].size
        return values.of(n, p, "theta_rows", size).clone(), values.of(n, p, "partner_rows", size).clone()

    def _step_rows(self, n: int, p: int, values: Values) -> Rows:
        """Rows' lengths of one step; |g| is at most |b'| + |b| + λ|θ|, or |Δ| + ηλ|θ| where the step is the partner."""
        b, carried = self.bundles[n], self.carried[n]
        group = self._hyper[b.groups[p]]
        theta, partner = self._rows(values, n, p)
        before, decay = torch.zeros_like(partner), group.get("weight_decay", 0.0)
        if b.balance.buffers[p]:
            before = carried.rows.get(p, (theta, before))[1]
        else:
            decay *= group.get("lr", 1.0)
        carried.rows[p] = theta, partner
        return Rows(theta, partner, (partner.sqrt() + before.sqrt() + abs(decay) * theta.sqrt()) ** 2)

    def _take_ratios(self, n: int, rows: Mapping[int, Rows]) -> None:
        b, carried = self.bundles[n], self.carried[n]
        vectors = self._vectors({name for law in b.laws for name in law.group_of})
        for p, own in rows.items():
            partner = BUFFER_NAME if b.balance.buffers[p] else MOVED_NAME
            for name, vector, other in (("partner", partner, own.partner), ("theta", THETA_NAME, own.theta)):
                fourth = fourth_order(b, p, vectors, THETA_NAME, vector)
                carried.ratios[p, name] = ratio(fourth, b.outer(own.theta, other), carried.ratios.get((p, name)))

    def _precision(self, b: MomentumBundle, position: int) -> Precision:
        lengths, scattered = torch.ones(b.size, dtype=torch.float64), torch.zeros(b.size, dtype=torch.float64)
        dtypes, met = {torch.float64}, [Met()] * b.size
        for law, start, stop in zip(b.laws, b.starts, b.starts[1:], strict=False):
            met[start:stop] = [self.met.get(law.symmetry.number, Met()).with_all(self.compute)] * (stop - start)
            own = [name for name, group in law.group_of.items() if group == b.groups[position]]
            lengths[start:stop] = max((self.lengths.get(name, 1) for name in own), default=1)
            scattered[start:stop] = max((self.scattered.get(name, 0) for name in own), default=0)
            dtypes |= {self.state.dtype(name) for name in own}
        return Precision.of(max(dtypes, key=unit_roundoff), met, lengths.to(self._device), scattered.to(self._device))

    # --- going on later

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on in another process."""
        carried = [{**vars(c), "moved": dict(c.moved), "rows": dict(c.rows), "ratios": dict(c.ratios)} for c in self.carried]
        return {"step": self.step, "carried": carried, "tallies": [[t.state_dict() for t in tallies] for tallies in self.tallies]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a stored state of the same laws."""
        self.step = state["step"]
        self.carried = [Carried(**carried) for carried in state["carried"]]
        self.tallies = [[MomentumTally(**tally) for tally in tallies] for tallies in state["tallies"]]


def _of_buffer(p: int) -> Needs:
    return [
        (p, Wanted("momentum", BUFFER_NAME, THETA_NAME, "wedge")),
        (p, Wanted("theta_rows", THETA_NAME, THETA_NAME, "rows")),
        (p, Wanted("partner_rows", BUFFER_NAME, BUFFER_NAME, "rows")),
    ]


def _of_step(p: int) -> Needs:
    return [
        (p, Wanted("momentum", MOVED_NAME, BEFORE_NAME, "wedge")),
        (p, Wanted("theta_rows", BEFORE_NAME, BEFORE_NAME, "rows")),
        (p, Wanted("partner_rows", MOVED_NAME, MOVED_NAME, "rows")),
    ]


def _moved(copied: bool) -> dict[str, dict[str, float]]:
    return {MOVED_NAME: {THETA_NAME: 1.0, BEFORE_NAME: -1.0}} if copied else {}


def _late(names: tuple[str, str]) -> bool:
    """Whether a pairing is one of the step that was made, known only after it."""
    return DISPLACEMENT.name in names
