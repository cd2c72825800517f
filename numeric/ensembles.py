"""Ensembles: many small models trained side by side as one batched program, (step size × seed × width × ...) variants of one run.

Runs whose parameters have the same shapes share a program (`noetherflow.numeric.batched`). Other widths get programs of their own: that is
exact, run for run, for any architecture, where padding with masked units is not (a norm, a mean or a sigmoid sees the padding). A step does
what `torch.optim.SGD` does with every run, operation by operation, with each run's own step size, momentum, dampening and weight decay;
it differs from torch's loop by the rounding of batched matrix products only. Small models gain most: a loop spends its time on starting
operations (`benchmarks/bench_ensembles.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from noetherflow.errors import RunError
from noetherflow.numeric.batched import Stack, batched_gradient, batched_record, stack
from noetherflow.numeric.draws import draw_batches, draw_indices
from noetherflow.numeric.options import option_columns, per_parameter
from noetherflow.numeric.variants import Variant, variants

__all__ = ["Ensemble", "Records", "Variant", "draw_batches", "draw_indices", "train", "variants"]

Factory: TypeAlias = Callable[[Variant], nn.Module]
Loss: TypeAlias = Callable[[Any, Tensor], Tensor]
Record: TypeAlias = Callable[[Mapping[str, Tensor]], Tensor]


@dataclass(frozen=True, slots=True)
class Records:
    """What was recorded of an ensemble.

    Attributes
    ----------
    variants : tuple of Variant
        Runs in the order of the first axis of every value.
    steps : Tensor of int64, shape (times,)
        Number of steps made when each value was taken; the first is 0 for a new ensemble.
    values : mapping of str to Tensor, shape (runs, times, ...)
    """

    variants: tuple[Variant, ...]
    steps: Tensor
    values: Mapping[str, Tensor]

    def __getitem__(self, name: str) -> Tensor:
        return self.values[name]

    def where(self, **settings: Any) -> Tensor:
        """Which runs have the given settings: a boolean mask, shape (runs,)."""
        return torch.tensor([all(getattr(v, name) == value for name, value in settings.items()) for v in self.variants])


@dataclass(slots=True)
class _Block:
    """Runs that share a program: state, and hyper-parameters as columns."""

    places: Tensor
    stacked: Stack
    columns: Mapping[str, Tensor]
    buffer: Tensor
    gradient: Tensor
    started: bool = False
    programs: dict[Any, Callable[..., Any]] = field(default_factory=dict)
    records: WeakKeyDictionary[Record, Callable[..., Any]] = field(default_factory=WeakKeyDictionary)

    def step(self, loss: Loss, inputs: Tensor, targets: Tensor, *, per_run: bool) -> None:
        """One step, rounded as torch.optim.SGD does: h = g + λθ; b' = h at first, then μb + (1 - τ)h; u = h + μb' (Nesterov), b' or h."""
        theta, b, h, column = self.stacked.flat, self.buffer, self.gradient, self.columns
        torch.cat(self._gradient_of(loss, inputs, targets, per_run)(theta, inputs, targets), dim=1, out=h)
        if "weight_decay" in column:
            h.addcmul_(theta, column["weight_decay"])
        u = h
        if "momentum" in column:
            if self.started:
                b.mul_(column["momentum"]).addcmul_(h, column["taken"])
            else:
                b.copy_(h)
            u = torch.where(column["nesterov"], torch.addcmul(h, b, column["momentum"]), b) if "nesterov" in column else b
        self.started = True
        theta.addcmul_(u, column["minus_lr"])

    def _gradient_of(self, loss: Loss, inputs: Tensor, targets: Tensor, per_run: bool) -> Callable[..., Any]:
        key = (inputs.shape, inputs.dtype, targets.shape, targets.dtype, per_run)
        if key not in self.programs:
            self.programs[key] = batched_gradient(self.stacked, loss, inputs, targets, per_run=per_run)
        return self.programs[key]

    def record(self, function: Record) -> Tensor:
        """The value of a function of the parameters for each run."""
        if function not in self.records:
            self.records[function] = batched_record(self.stacked, function)
        with torch.no_grad():
            value: Tensor = self.records[function](self.stacked.flat)
        return value.clone()


class Ensemble:
    """Many models that are trained side by side; each run is what `torch.optim.SGD` would make of it, to rounding.

    Parameters
    ----------
    factory : callable of Variant to nn.Module
        Called once a run with torch's seed set to the variant's. Models of one width must have equal names and shapes; their forward pass
        may not branch on data. Returning one and the same model starts all runs there: values are copied.
    loss : callable of (output, targets)
        Returns a scalar.
    variants : sequence of Variant
        From `variants`, or written out.
    dtype : torch.dtype
        Of parameters, buffers and floating-point data.
    groups : mapping of str to (mapping of str to number), optional
        Parameter name -> options that it has in every run instead of the variants', like parameter groups of torch.optim.SGD.

    Attributes
    ----------
    variants : tuple of Variant
    steps : int
        Steps made.

    Raises
    ------
    RunError
        If there are no variants; when first stepped, if the model cannot be batched.

    Examples
    --------
    >>> runs = variants(lr=[0.1, 0.05], seed=range(3), momentum=0.9)
    >>> ensemble = Ensemble(lambda variant: nn.Linear(4, 1), nn.functional.mse_loss, runs)
    >>> x, y = torch.randn(8, 4), torch.randn(8, 1)
    >>> for _ in range(10):
    ...     ensemble.step(x, y)
    >>> ensemble.parameters(0)["weight"].shape, ensemble.record(lambda p: (p["weight"] ** 2).sum()).shape
    (torch.Size([1, 4]), torch.Size([6]))
    """

    def __init__(
        self,
        factory: Factory,
        loss: Loss,
        variants: Sequence[Variant],
        *,
        dtype: torch.dtype = torch.float64,
        groups: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        if not variants:
            raise RunError("An ensemble needs at least one variant; see noetherflow.ensembles.variants.")
        self.variants, self.steps = tuple(variants), 0
        self._loss, self._dtype, self._groups = loss, dtype, groups or {}
        models = [_built(factory, variant) for variant in self.variants]
        alike: dict[Any, list[int]] = {}
        for place, model in enumerate(models):
            alike.setdefault(tuple((n, t.shape) for n, t in [*model.named_parameters(), *model.named_buffers()]), []).append(place)
        self._blocks = [self._block([models[p] for p in places], places) for places in alike.values()]

    def _block(self, models: Sequence[nn.Module], places: Sequence[int]) -> _Block:
        stacked = stack(models, self._dtype)
        runs = [self.variants[p] for p in places]
        columns = per_parameter(runs, stacked.shapes, self._groups, self._dtype) if self._groups else option_columns(runs, self._dtype)
        buffer = torch.zeros_like(stacked.flat) if "momentum" in columns else stacked.flat.new_zeros(0)
        return _Block(torch.tensor(places), stacked, columns, buffer, torch.empty_like(stacked.flat))

    @torch.no_grad()
    def step(self, inputs: Tensor, targets: Tensor, *, per_run: bool = False) -> None:
        """One step of every run.

        Parameters
        ----------
        inputs, targets : Tensor
            One mini-batch for all runs, or with `per_run` one for each along the first axis.

        Raises
        ------
        RunError
            If `per_run` batches are not as many as runs, or the model cannot be batched.
        """
        if per_run and not len(inputs) == len(targets) == len(self.variants):
            raise RunError(
                f"Batches per run need one along the first axis for each of {len(self.variants)} runs; got inputs of shape "
                f"{tuple(inputs.shape)} and targets of shape {tuple(targets.shape)}. Pass per_run=False for one batch for all."
            )
        x, y = (t.to(self._dtype) if t.is_floating_point() else t for t in (inputs, targets))
        alone = len(self._blocks) == 1
        for block in self._blocks:
            own = (x[block.places], y[block.places]) if per_run and not alone else (x, y)
            block.step(self._loss, *own, per_run=per_run)
        self.steps += 1

    def record(self, function: Record) -> Tensor:
        """A function of one run's parameters (by name) for every run.

        Returns
        -------
        Tensor, shape (runs, ...)

        Raises
        ------
        RunError
            If the function cannot be batched, or gives different shapes for different widths.
        """
        found = [block.record(function) for block in self._blocks]
        if len({value.shape[1:] for value in found}) > 1:
            raise RunError(
                f"A record must have one shape in every run; got {sorted({tuple(v.shape[1:]) for v in found})} for different widths. "
                "Reduce it to what all widths have, or make an ensemble for each width."
            )
        return torch.cat(found)[torch.cat([block.places for block in self._blocks]).argsort()]

    def parameters(self, run: int) -> dict[str, Tensor]:
        """One run's trainable parameters by name: copies, with the model's own shapes."""
        block, row = self._find(run)
        return {name: value[row].clone() for name, value in block.stacked.named(block.stacked.flat).items()}

    def momenta(self, run: int) -> dict[str, Tensor]:
        """One run's momentum buffers by name; zero where its momentum is zero or before its first step."""
        block, row = self._find(run)
        if not block.buffer.numel():
            return {name: torch.zeros_like(value) for name, value in self.parameters(run).items()}
        return {name: value[row].clone() for name, value in block.stacked.named(block.buffer).items()}

    def _find(self, run: int) -> tuple[_Block, int]:
        for block in self._blocks:
            if len(row := (block.places == run).nonzero()):
                return block, int(row[0])
        raise RunError(f"There is no run {run}; the ensemble has runs 0 to {len(self.variants) - 1}.", run=run)


def train(
    ensemble: Ensemble,
    batches: Iterable[tuple[Tensor, Tensor]],
    record: Mapping[str, Record],
    *,
    every: int = 1,
    per_run: bool = False,
) -> Records:
    """Train an ensemble on batches, recording functions of the parameters before the first step and after each `every` steps.

    Parameters
    ----------
    ensemble : Ensemble
        Goes on from where it is.
    batches : iterable of (inputs, targets)
    record : mapping of str to callable
        Functions of one run's parameters by name, such as charges.
    every : int
    per_run : bool
        Whether batches have one for each run along their first axis, as `draw_batches` gives them.

    Returns
    -------
    Records

    Raises
    ------
    RunError
        If `every` is not positive, or as for `Ensemble.step` and `Ensemble.record`.

    Examples
    --------
    >>> runs = variants(lr=0.1, seed=range(5), width=[3, 6])
    >>> ensemble = Ensemble(lambda v: nn.Sequential(nn.Linear(2, v.width), nn.Linear(v.width, 1)), nn.functional.mse_loss, runs)
    >>> x, y = torch.randn(20, 2), torch.randn(20, 1)
    >>> batches = draw_batches(x, y, 4, [v.seed for v in runs], steps=6)
    >>> found = train(ensemble, batches, {"norm": lambda p: (p["1.weight"] ** 2).sum()}, every=3, per_run=True)
    >>> found.steps.tolist(), found["norm"].shape, found["norm"][found.where(width=3)].shape
    ([0, 3, 6], torch.Size([10, 3]), torch.Size([5, 3]))
    """
    if every < 1:
        raise RunError(f"Records are taken each {every} steps, which is never. Give every=1 or more.", every=every)
    steps, taken = [ensemble.steps], {name: [ensemble.record(function)] for name, function in record.items()}
    for number, (inputs, targets) in enumerate(batches, start=1):
        ensemble.step(inputs, targets, per_run=per_run)
        if number % every == 0:
            steps.append(ensemble.steps)
            for name, function in record.items():
                taken[name].append(ensemble.record(function))
    return Records(ensemble.variants, torch.tensor(steps), {name: torch.stack(values, dim=1) for name, values in taken.items()})


def _built(factory: Factory, variant: Variant) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(variant.seed)  # torch.manual_seed is slow: it keeps a trace of the stack for every device
        return factory(variant)
