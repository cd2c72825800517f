"""Prediction beside measurement, step by step, for all laws of a model.

Where a rule's step is its buffer (SGD with momentum), the charge and all pairings of a step are read after it, from θ' and b'. Where it
is not (plain, Nesterov), they are read before it, from θ, g and b. Either way each tensor is read once per step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from noetherflow.bridge.bundles import Bundle, bundle, spread
from noetherflow.bridge.combinations import GRADIENT_NAME, THETA_NAME, Combinations, buffer_name
from noetherflow.bridge.kinetics import Kinetics
from noetherflow.bridge.noise import DOUBLE, REFRESH, Precision, gradient_variance, repeated_variance, update_variance
from noetherflow.bridge.plan import Plan, Values, Wanted, compile_plan
from noetherflow.bridge.precisions import Met
from noetherflow.bridge.prediction import Measured, Prediction
from noetherflow.bridge.state import State
from noetherflow.bridge.tally import Tally
from noetherflow.numeric.rounding import confidence, unit_roundoff
from noetherflow.symbolic.laws import Law
from noetherflow.symbolic.nonlinear import is_linear

HORIZON = 1000
"""A bound is made for at least this many steps, so that it does not widen while a short run goes on."""

Hyper = Mapping[int, Mapping[str, float]]
Sources = Callable[[Bundle], tuple[Tensor, Tensor]]


@dataclass
class Monitor:
    """All bundles of a model's laws with their predictions and tallies.

    Parameters
    ----------
    laws : sequence of Law
    state : State
    lengths : mapping of str to int
        Number of products summed in a gradient entry of each parameter.
    scattered : mapping of str to int
        Number of additions that make a gradient entry of a parameter that indices pick from.
    sign : float
        Factor on the measured second-order pairings; anything but 1 is a deliberately wrong law.
    compute : torch.dtype
        Coarsest dtype that the passes run in, besides the parameters' own and those of the graph.
    met : mapping of int to Met
        Number of a symmetry -> coarsest dtypes that its law meets in the graph.
    beside : int
        Number of quantities that are looked at in every step besides these charges, under the same bound.
    """

    laws: Sequence[Law]
    state: State
    lengths: Mapping[str, int]
    sign: float = 1.0
    compute: torch.dtype = torch.float64
    met: Mapping[int, Met] = field(default_factory=dict)
    scattered: Mapping[str, int] = field(default_factory=dict)
    bundles: tuple[Bundle, ...] = ()
    predictions: list[Prediction] = field(default_factory=list)
    tallies: list[Tally] = field(default_factory=list)
    step: int = 0
    started: bool = False
    beside: int = 0

    def __post_init__(self) -> None:
        self.bundles = bundle(self.laws)
        forms = {form for b in self.bundles for form in b.balance.forms}
        self.after = all(is_linear(form) and form.buffers and form.step() == form.buffers[0][1] for form in forms)
        self._buffer = buffer_name(next(iter(forms)).buffers[0][0].name) if self.after else ""
        self._combinations = {form: Combinations(form) for form in forms}
        self._group_of = {name: g for law in self.laws for name, g in law.group_of.items()}
        self._form_of = {name: law.rule.groups[g].form for law in self.laws for name, g in law.group_of.items()}
        self._device = next(self.state.model.parameters()).device
        self._ratios: dict[tuple[int, int, str], Tensor] = {}
        self._steps_before: dict[tuple[int, int], Tensor] = {}
        self._precisions: dict[tuple[int, int], Precision] = {}
        self._momenta_before: dict[int, dict[str, Tensor]] = {}
        self._kinetics = {n: Kinetics(n, b) for n, b in enumerate(self.bundles) if b.kinetic}
        self._start_plan = self._plan(self._wanted_at_start)
        self._step_plan = self._plan(self._wanted_each_step)
        self._charge_plan = self._plan(self._wanted_charges)
        self._moment_plan = self._plan(self._wanted_moments)
        self.compute_in(self.compute)
        self._charges = sum(b.size for b in self.bundles)

    def compute_in(self, dtype: torch.dtype) -> None:
        """Take note that passes run in a dtype (autocast): its roundoff then counts too, if it is the coarser one."""
        coarsest = max(self.compute, dtype, key=unit_roundoff)
        if coarsest == self.compute and self._precisions:
            return
        self.compute = coarsest
        self._precisions = {(n, p): self._precision(b, p) for n, b in enumerate(self.bundles) for p in range(len(b.groups))}

    # --- what is read

    def _plan(self, wanted: Callable[[Bundle], list[tuple[int, Wanted]]]) -> Plan:
        return compile_plan(self.bundles, {n: wanted(b) for n, b in enumerate(self.bundles)})

    def _wanted_charges(self, b: Bundle) -> list[tuple[int, Wanted]]:
        out = [(p, Wanted("charge", THETA_NAME, THETA_NAME)) for p in range(len(b.groups))]
        if b.linear:
            out += [(p, Wanted("theta_square", THETA_NAME, THETA_NAME, "variance")) for p in range(len(b.groups))]
        return out

    def _wanted_at_start(self, b: Bundle) -> list[tuple[int, Wanted]]:
        out = self._wanted_charges(b)
        for k, weights in b.balance.momentum_weights.items():
            for p in (p for p, weight in enumerate(weights) if weight != 0):
                out.append((p, Wanted(f"momentum {k.name}", THETA_NAME, buffer_name(b.balance.buffer_of(k, p).name))))
        return out

    def _wanted_each_step(self, b: Bundle) -> list[tuple[int, Wanted]]:
        out = self._wanted_charges(b)
        for pairing in b.pairings:
            position, _, (x, y) = b.group_of_pairing(pairing)
            out.append((position, Wanted(str(pairing), self._tensor(x), self._tensor(y))))
        step = self._tensor("u")
        if b.linear:
            out += [(p, Wanted("step_square", step, step, "variance")) for p in range(len(b.groups))]
        return out + (self._kinetics_of(b).wanted() if b.kinetic else [])

    def _kinetics_of(self, b: Bundle) -> Kinetics:
        return self._kinetics[self.bundles.index(b)]

    def _wanted_moments(self, b: Bundle) -> list[tuple[int, Wanted]]:
        further = self._kinetics_of(b).wanted_moments() if b.kinetic else []
        if b.linear or b.matrix:
            return further
        step = GRADIENT_NAME if b.kinetic else self._tensor("u")
        kinds = (("theta_fourth", THETA_NAME), ("step_fourth", step))
        return further + [(p, Wanted(name, THETA_NAME, y, "fourth")) for p in range(len(b.groups)) for name, y in kinds]

    def _tensor(self, vector: str) -> str:
        return self._buffer if self.after else {"g": GRADIENT_NAME, "theta": THETA_NAME}.get(vector, vector)

    def _read(self, plan: Plan, hyper: Hyper | None) -> Values:
        names = {name for name, _ in plan.blocks}
        stepping = hyper is not None and not self.after
        vectors = self.state.vectors(names, gradients=not self.after, buffers=True, given=stepping)
        combinations: dict[str, Mapping[str, Mapping[str, float]]] = {}
        if hyper is not None and stepping:
            found: dict[tuple[int, frozenset[str]], Mapping[str, Mapping[str, float]]] = {}
            for name in names:
                key = (self._group_of[name], frozenset(vectors[name]))
                if key not in found:
                    found[key] = self._combinations[self._form_of[name]].numbers(hyper[key[0]], present=key[1])
                combinations[name] = found[key]
        return plan.evaluate(vectors, combinations, self._device)

    # --- the life of a run

    def begin(self, hyper: Hyper) -> None:
        """Measure the charges, and the momenta where buffers exist, that predictions start from."""
        self.state.check_steps()
        buffered = self.state.has_buffers()
        values = self._read(self._start_plan if buffered else self._charge_plan, None)
        for n, b in enumerate(self.bundles):
            weights = self._weights(b, hyper)
            charge = self._combined(n, values, "charge", weights["charge"])
            momenta = self._momenta(n, b, values, weights) if buffered else {}
            prediction = Prediction.start(b, charge, momenta)
            prediction.weights = weights["charge"]
            self.predictions.append(prediction)
            self.tallies.append(Tally.start(charge, self._size(n, values)))
        self.started = True

    def before_step(self, hyper: Hyper, sources: Sources) -> None:
        """Read and advance, for rules that are read before the step; measured charges meet their predictions here."""
        self._hyper, self._sources = hyper, {n: sources(b) for n, b in enumerate(self.bundles)}
        self._reweight(hyper)
        if not self.after:
            values = self._read(self._step_plan, hyper)
            self._confront(values)
            self._advance(values, self._moments(hyper))

    def after_step(self) -> None:
        """Read and advance, for rules that are read after the step."""
        values = self._read(self._step_plan, None) if self.after else None
        if values is not None:
            self._advance(values, self._moments(None))
        self.step += 1
        if values is not None:
            self._confront(values)

    def evaluate(self) -> Values:
        """Evaluate everything that one step needs, from the tensors as they are (after a step, for rules read after it)."""
        return self._read(self._step_plan, self._hyper)

    def finish(self) -> None:
        """Confront the last step of a rule that is read before its steps."""
        if self.started and not self.after and self.step:
            self._confront(self._read(self._charge_plan, None))

    # --- one step

    def _advance(self, values: Values, moments: Values | None) -> None:
        for n, b in enumerate(self.bundles):
            self._take_ratios(n, b, values, moments)
            current, vanishing = self._sources[n]
            group_charges = tuple(values.of(n, p, "charge", b.size) for p in range(len(b.groups)))
            if self.after and len(b.groups) > 1:
                group_charges = self._charges_before[n]
            pairings = {q: self.sign * values.of(n, b.group_of_pairing(q)[0], str(q), b.size) for q in b.pairings}
            momenta = {} if b.balance.closed else self._momenta_before[n]
            noises = self._noise(n, b, values, vanishing)
            numbers, measured = b.hyperparameters(self._hyper), Measured(pairings, group_charges, current, momenta, *noises)
            if b.kinetic:
                measured = self._kinetics[n].completed(measured, values, moments, numbers, self._sizes_of(n, b, values))
            self.predictions[n].advance(measured, numbers)

    def _momenta(self, n: int, b: Bundle, values: Values, weights: Mapping[str, Sequence[float]]) -> dict[str, Tensor]:
        """Every ⟨ξ, b⟩ as it lies in the buffers."""
        return {k.name: self._combined(n, values, f"momentum {k.name}", weights[k.name]) for k in b.balance.momenta}

    def _sizes_of(self, n: int, b: Bundle, values: Values) -> list[tuple[Precision, Tensor]]:
        """For each group its precision and Σ|ξ||θ|-like size."""
        return [(self._precisions[n, p], self._group_size(n, p, values)) for p in range(len(b.groups))]

    def _confront(self, values: Values) -> None:
        z = self.confidence
        for n, (prediction, tally) in enumerate(zip(self.predictions, self.tallies, strict=True)):
            measured = self._combined(n, values, "charge", prediction.weights or (1.0,))
            size = self._size(n, values)
            deviation = (prediction.deviation**2 + (4 * DOUBLE * size) ** 2).sqrt()
            tally.take(self.step, measured, prediction.charge, deviation, size, z)

    @property
    def confidence(self) -> float:
        """Standard deviations that make the bound."""
        return confidence((self._charges + self.beside) * max(self.step, HORIZON))

    def _reweight(self, hyper: Hyper) -> None:
        """What must be measured before the step: charges (and open momenta) of families that cross groups."""
        crossing = [n for n, b in enumerate(self.bundles) if len(b.groups) > 1]
        if not crossing:
            return
        buffered = self.state.has_buffers()
        values = self._read(self._start_plan if buffered else self._charge_plan, None)
        self._charges_before: dict[int, tuple[Tensor, ...]] = {}
        for n in crossing:
            b = self.bundles[n]
            self._charges_before[n] = tuple(values.of(n, p, "charge", b.size) for p in range(len(b.groups)))
            weights = self._weights(b, hyper)
            resting = {k.name: values.signed.new_zeros(b.size) for k in b.balance.momenta}
            self._momenta_before[n] = self._momenta(n, b, values, weights) if buffered else resting
            self.predictions[n].reweight(weights["charge"], self._charges_before[n])

    def _weights(self, b: Bundle, hyper: Hyper) -> dict[str, tuple[float, ...]]:
        try:
            found = b.metric(b.hyperparameters(hyper))
        except ZeroDivisionError:  # a group at rest: the weights it had before, or equal ones, are as good as any while nothing moves
            previous = next((p.weights for p in self.predictions if p.bundle is b and p.weights), tuple(1.0 for _ in b.groups))
            return {"charge": previous, **{k.name: tuple(1.0 for _ in b.groups) for k in b.balance.momenta}}
        out: dict[str, tuple[float, ...]] = {}
        for (name, _), weight in found.items():
            out[name] = (*out.get(name, ()), float(weight))
        return out

    def _combined(self, n: int, values: Values, quantity: str, weights: Sequence[float]) -> Tensor:
        size = self.bundles[n].size
        total = torch.zeros(size, dtype=torch.float64, device=self._device)
        for p, weight in enumerate(weights):
            total += weight * values.of(n, p, quantity, size)
        return total

    # --- rounding

    def _size(self, n: int, values: Values) -> Tensor:
        """Size of the sums behind a charge: Σ|weight| ½θ², or the root of Σθ² for linear ones."""
        b = self.bundles[n]
        parts = [self._group_size(n, p, values) for p in range(len(b.groups))]
        return torch.stack(parts).sum(0)

    def _group_size(self, n: int, p: int, values: Values) -> Tensor:
        b = self.bundles[n]
        if b.linear:
            return values.of(n, p, "theta_square", b.size, absolute=True).sqrt()
        return spread(b, values.of(n, p, "charge", b.size, absolute=True))

    def _moments(self, hyper: Hyper | None) -> Values | None:
        return self._read(self._moment_plan, hyper) if self.refreshes else None

    @property
    def refreshes(self) -> bool:
        """Whether sizes that are only measured now and then are due in this step."""
        return self.step % REFRESH == 0 or self.step in (1, 2, 5, 10)

    def _take_ratios(self, n: int, b: Bundle, values: Values, moments: Values | None) -> None:
        """Fourth-order sums over products of second-order ones: at most 1, and slowly changing."""
        if moments is None or b.linear or b.matrix:
            return
        for p in range(len(b.groups)):
            theta, step = self._group_size(n, p, values) * 2, self._step_square(n, p, values)
            step = self._kinetics[n].gradient_square(p, values) if b.kinetic else step
            for name, other in (("theta_fourth", theta), ("step_fourth", step)):
                fourth, product = moments.of(n, p, name, b.size), theta * other
                ratio = torch.where(product > 0, fourth / product.clamp(min=torch.finfo(torch.float64).tiny), 1.0).clamp(max=1.0)
                self._ratios[n, p, name] = torch.maximum(ratio, self._ratios.get((n, p, name), ratio))

    def _step_square(self, n: int, p: int, values: Values) -> Tensor:
        """Σ|weight| x² of the step vector."""
        b = self.bundles[n]
        if b.linear:
            return values.of(n, p, "step_square", b.size, absolute=True)
        own = [q for q in b.pairings if b.group_of_pairing(q)[0] == p and q.args[0] == q.args[1]]
        return spread(b, values.of(n, p, str(own[0]), b.size, absolute=True)) if own else values.signed.new_zeros(b.size)

    def _noise(self, n: int, b: Bundle, values: Values, vanishing: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        gradient = torch.zeros(b.size, dtype=torch.float64, device=self._device)
        update, repeated = torch.zeros_like(gradient), torch.zeros_like(gradient)
        for p in range(len(b.groups)):
            precision = self._precisions[n, p]
            size, step = self._group_size(n, p, values), self._step_square(n, p, values)
            if b.kinetic:  # the gradient itself is read
                step = self._kinetics[n].gradient_square(p, values)
                self._steps_before[n, p] = torch.zeros_like(step)
            recent = (step.sqrt() + self._steps_before.get((n, p), step).sqrt()) ** 2  # |g| ≤ |b'| + |b|
            self._steps_before[n, p] = step
            one = torch.ones_like(size)
            if b.linear:
                on_theta, per_square = size**2, one
            else:
                on_theta = self._ratios.get((n, p, "theta_fourth"), one) * (2 * size) ** 2
                per_square = self._ratios.get((n, p, "step_fourth"), one) * 2 * size
            weight = (self.predictions[n].weights or (1.0,))[p]
            gradient += gradient_variance(precision, per_square * recent, 2 * size, vanishing)
            update += weight**2 * update_variance(precision.unit, on_theta, size)
            if not b.kinetic:  # a metric's steps are not read
                group = self._hyper[b.groups[p]]
                stepped, momentum = group.get("lr", 1.0) ** 2 * per_square * step, group.get("momentum", 0.0)
                repeated += weight**2 * repeated_variance(precision.unit**2 * on_theta, stepped, momentum)
        return gradient.sqrt(), update.sqrt(), repeated.sqrt()

    def _precision(self, b: Bundle, position: int) -> Precision:
        lengths, scattered = torch.ones(b.size, dtype=torch.float64), torch.zeros(b.size, dtype=torch.float64)
        dtypes, met = {torch.float64}, [Met()] * b.size
        for law, start, stop in zip(b.laws, b.starts, b.starts[1:], strict=False):
            met[start:stop] = [self.met.get(law.symmetry.number, Met()).with_all(self.compute)] * (stop - start)
            own = [name for name in law.symmetry.parameters if law.group_of[name] == b.groups[position]]
            lengths[start:stop] = max((self.lengths.get(name, 1) for name in own), default=1)
            scattered[start:stop] = max((self.scattered.get(name, 0) for name in own), default=0)
            dtypes |= {self.state.dtype(name) for name in own}
        coarsest = max(dtypes, key=unit_roundoff)
        return Precision.of(coarsest, met, lengths.to(self._device), scattered.to(self._device))

    # --- going on later

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on in another process."""
        return {
            "step": self.step,
            "started": self.started,
            "predictions": [p.state_dict() for p in self.predictions],
            "tallies": [t.state_dict() for t in self.tallies],
            "ratios": self._ratios,
            "steps_before": self._steps_before,
            "kinetics": {n: kinetics.ratios for n, kinetics in self._kinetics.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a stored state of the same laws."""
        self.step, self.started = state["step"], state["started"]
        self._ratios, self._steps_before = dict(state["ratios"]), dict(state["steps_before"])
        for n, kinetics in self._kinetics.items():
            kinetics.ratios = dict(state["kinetics"][n])
        self.predictions, self.tallies = [], []
        for b, prediction, tally in zip(self.bundles, state["predictions"], state["tallies"], strict=True):
            fresh = Prediction(b, prediction["charge"], {})
            fresh.load_state_dict(prediction)
            self.predictions.append(fresh)
            self.tallies.append(Tally(**tally))
