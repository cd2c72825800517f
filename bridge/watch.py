"""A monitor attached to a running optimizer: the user's loop does not change.

Hooks on ``optimizer.step`` read what the laws need before and after it (gradients as clipped and accumulated by then), hooks on
normalisations capture their variances. Trajectories go to disk as the run goes; in memory there are a few numbers per charge.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import nn

from noetherflow.bridge.bundles import entries
from noetherflow.bridge.findings import report_of, unique_names
from noetherflow.bridge.loss_check import LossCheck
from noetherflow.bridge.momentum_findings import recorded, slices
from noetherflow.bridge.momentum_monitor import MomentumMonitor
from noetherflow.bridge.momentum_tally import MomentumTally
from noetherflow.bridge.monitor import Monitor
from noetherflow.bridge.noise import gradient_lengths, scattered_lengths
from noetherflow.bridge.optimizers import rule_of
from noetherflow.bridge.precisions import types_met
from noetherflow.bridge.sabotage import Sabotage
from noetherflow.bridge.sources import Sources
from noetherflow.bridge.state import State, check
from noetherflow.bridge.tally import Tally
from noetherflow.bridge.trace import Loss, trace
from noetherflow.errors import RunError
from noetherflow.numeric.recorder import Recorder
from noetherflow.numeric.report import Report
from noetherflow.symbolic.graph import ArchitectureGraph
from noetherflow.symbolic.laws import Laws, derive


def watch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: Loss = None,
    example_inputs: Any = None,
    *,
    directory: Path | str | None = None,
    record_every: int = 1,
    settings: Mapping[str, str] | None = None,
    sabotage: Sabotage | str | None = None,
) -> Watch:
    """Watch every law of a model while its own training loop runs.

    Parameters
    ----------
    model : nn.Module
        In training mode, on any device.
    optimizer : torch.optim.Optimizer
        Holding exactly the model's trainable parameters.
    loss : None, str, nn.Module or callable
        As for `noetherflow.trace`: None checks what holds for every loss; "cross_entropy" adds what holds for that one.
    example_inputs : tensor or tuple, optional
        What the forward pass takes. Without it the first forward pass inside the loop is taken.
    directory : path, optional
        Where trajectories are written; a new folder under the system's temporary one if absent (see ``run.directory``).
    record_every : int
        Write one row every so many steps; every step is checked in any case.
    settings : mapping of str to str, optional
        What a report should say about the run.
    sabotage : Sabotage or str, optional
        Break the laws on purpose, to see the verdict fail.

    Returns
    -------
    Watch
        A context manager; ``run.report()`` inside or after it.

    Raises
    ------
    RunError, RuleError, TraceError
        Before the run, if it cannot be watched. `RunError` at the first step, if the loop's loss is not the one named here.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)).double()
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    >>> with watch(model, optimizer, example_inputs=torch.zeros(8, 3).double()) as run:
    ...     for _ in range(5):
    ...         optimizer.zero_grad()
    ...         model(torch.randn(8, 3).double()).square().mean().backward()
    ...         optimizer.step()
    >>> run.report().holds
    True
    """
    chosen = Sabotage(sabotage) if isinstance(sabotage, str) else sabotage
    inputs = example_inputs if isinstance(example_inputs, tuple) or example_inputs is None else (example_inputs,)
    run = Watch(model, optimizer, loss, inputs, directory, record_every, dict(settings or {}), chosen)
    run.prepare()
    return run


@dataclass
class Watch:
    """A watched run; made by `watch`.

    Attributes
    ----------
    graph : ArchitectureGraph
    laws : Laws
    directory : Path
        Where trajectories are written.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    loss: Loss
    example_inputs: tuple[Any, ...] | None
    where: Path | str | None
    record_every: int
    settings: dict[str, str]
    sabotage: Sabotage | None
    graph: ArchitectureGraph = field(default_factory=ArchitectureGraph)
    directory: Path = field(default_factory=Path)
    _handles: list[Any] = field(default_factory=list)
    _recorder: Recorder | None = None
    _monitor: Monitor | None = None
    _momenta: MomentumMonitor | None = None
    _laws: Laws | None = None
    _pending: dict[str, Any] | None = None
    _loss_check: LossCheck | None = None
    _last_recorded: int | None = None

    # --- before the run

    def prepare(self) -> None:
        """Check the pair, and trace and derive if inputs are known."""
        check(self.model, self.optimizer)
        self.directory = _folder(self.where)
        if self.example_inputs is not None:
            self._derive(self.example_inputs)

    @property
    def laws(self) -> Laws:
        """The laws that are watched."""
        if self._laws is None:
            raise RunError("Nothing is derived yet: give example_inputs, or run one forward pass inside the watch.")
        return self._laws

    @property
    def monitor(self) -> Monitor:
        """Predictions and tallies."""
        if self._monitor is None:
            raise RunError("Nothing is derived yet: give example_inputs, or run one forward pass inside the watch.")
        return self._monitor

    @property
    def momenta(self) -> MomentumMonitor:
        """Those of angular momenta."""
        if self._momenta is None:
            raise RunError("Nothing is derived yet: give example_inputs, or run one forward pass inside the watch.")
        return self._momenta

    def _derive(self, inputs: Sequence[Any]) -> None:
        self.graph = trace(self.model, *inputs, loss=self.loss)
        laws = derive(self.graph, rule_of(self.optimizer))
        self._laws = laws
        members = [self.sabotage.law(law) for law in laws] if self.sabotage else list(laws)
        turning = [self.sabotage.law(law) for law in laws.momenta] if self.sabotage else list(laws.momenta)
        if not members and not turning:
            raise RunError(
                "No conservation law was found for this model, so there is nothing to watch. "
                f"Opaque operations: {dict(laws.opaque) or 'none'}."
            )
        moving = [law.symmetry for law in members] + [law.symmetry for law in turning]
        names = tuple(dict.fromkeys(name for symmetry in moving for name in symmetry.parameters))
        state = State(self.model, self.optimizer, names)
        sign, lengths = self.sabotage.sign if self.sabotage else 1.0, gradient_lengths(self.graph)
        added = scattered_lengths(self.graph, next(self.model.parameters()).device)
        self._momenta = MomentumMonitor(turning, state, lengths, sign=sign, met=types_met(self.graph, turning, ()), scattered=added)
        self._sources = Sources(self.model, self.graph, members, bool(self.sabotage and self.sabotage.ignores_currents))
        self._monitor = Monitor(members, state, lengths, sign=sign, beside=self.momenta.count, met=self._sources.met, scattered=added)
        self._loss_check = LossCheck.of(self.graph) if self.loss is not None else None
        if self._pending is not None:
            self._load(self._pending)
        if self.sabotage:
            self.sabotage.run(self.model, self.optimizer, [law.symmetry for law in members])

    def _note_autocast(self, model: nn.Module, args: Any) -> None:
        kind = next(self.model.parameters()).device.type
        if torch.is_autocast_enabled(kind):
            self.monitor.compute_in(torch.get_autocast_dtype(kind))
            self.momenta.compute_in(torch.get_autocast_dtype(kind))

    # --- the run

    def __enter__(self) -> Watch:
        if self._monitor is None:
            self._handles.append(self.model.register_forward_pre_hook(self._first_forward, with_kwargs=True))
        else:
            self._attach()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if self._monitor is not None and kind is None:
            self._monitor.finish()
            self._record()
        self.close()

    def close(self) -> None:
        """Take all hooks off and close the files; the report stays available."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        if self._monitor is not None:
            self._sources.detach()
        if self._recorder is not None:
            self._recorder.close()
            self._recorder = None

    def _first_forward(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if kwargs:
            raise RunError(
                f"The forward pass takes keyword arguments {sorted(kwargs)}; pass example_inputs to watch, or call it by position."
            )
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._derive(args)
        self._attach()

    def _attach(self) -> None:
        monitor = self.monitor
        columns = {name: sum(f["count"] for f in self._families()) for name in ("measured", "predicted", "bound")}
        resumed = monitor.started
        if resumed and (self.directory / "meta.json").exists():
            self._recorder = Recorder.resume(self.directory, columns=columns, from_step=monitor.step + monitor.after)
        else:
            self._recorder = Recorder(self.directory, columns, self._families(), settings=self.settings, overwrite=self.where is None)
        self._sources.attach()
        self._handles.append(self.model.register_forward_pre_hook(self._note_autocast))
        self._handles.append(self.optimizer.register_step_pre_hook(self._before))
        self._handles.append(self.optimizer.register_step_post_hook(self._after))
        if self._loss_check is not None:
            self._handles.append(self.model.register_forward_hook(self._loss_check.forward))

    def _families(self) -> list[dict[str, Any]]:
        laws = [law for b in self.monitor.bundles for law in b.laws]
        turning = slices(self.momenta)
        names = unique_names([law.name for law in laws] + [law.name for law, _ in turning])
        sizes = [entries(law) for law in laws] + [size for _, size in turning]
        starts = [sum(sizes[:i]) for i in range(len(sizes))]
        return [{"name": n, "start": start, "count": size} for n, start, size in zip(names, starts, sizes, strict=True)]

    def _before(self, optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if any(callable(a) for a in (*args[1:], *kwargs.values())):
            raise RunError("optimizer.step(closure) computes gradients inside the step. Call the closure yourself, then optimizer.step().")
        monitor = self.monitor
        missing = monitor.state.missing_gradients()
        if missing:
            raise RunError(
                f"No gradient for {missing[:6]} at step {monitor.step}: torch skips such parameters. Freeze them, or use them in the loss."
            )
        if self._loss_check is not None:
            self._loss_check.confirm()
        if self.sabotage:
            self.sabotage.gradients(self.model)
        hyper = monitor.state.hyperparameters()
        if self.sabotage:
            hyper = self.sabotage.hyperparameters(hyper)
        if not monitor.started:
            monitor.begin(hyper)
            self.momenta.begin(hyper)
            self._record()
        monitor.before_step(hyper, self._sources.of)
        self.momenta.before_step(hyper)
        if self.sabotage:
            self.sabotage.predictions(monitor.predictions, self.momenta.carried)

    def _after(self, optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.monitor.after_step()
        self.momenta.after_step(self.monitor.confidence)
        self._sources.clear(measuring=self.monitor.refreshes)
        if self.monitor.after and self.monitor.step % self.record_every == 0:
            self._record()
        elif not self.monitor.after and (self.monitor.step - 1) % self.record_every == 0 and self.monitor.step > 1:
            self._record(self.monitor.step - 1)

    def _record(self, step: int | None = None) -> None:
        if self._recorder is None or not self.monitor.started:
            return
        tallies: list[Tally | MomentumTally] = [*self.monitor.tallies, *recorded(self.momenta)]
        z = self.monitor.confidence
        columns = {
            "measured": torch.cat([t.measured for t in tallies]),
            "predicted": torch.cat([t.predicted for t in tallies]),
            "bound": torch.cat([t.deviation for t in tallies]) * z,
        }
        at = self.monitor.step if step is None else step
        if self._last_recorded is None or at > self._last_recorded:
            self._recorder.record(at, {name: column.cpu().numpy() for name, column in columns.items()})
            self._last_recorded = at

    # --- after it

    def report(self) -> Report:
        """The verdict so far: every law, its residual against its bound, and the budget of what moved it."""
        if self._recorder is not None:
            self._recorder.flush()
        return report_of(self.monitor, self.momenta, self.laws, self.graph, self.directory, self.settings, self._sources.unseen)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs, to be stored beside the model's and the optimizer's states."""
        return {**self.monitor.state_dict(), "momenta": self.momenta.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a stored state; call before entering the watch, with the same model, optimizer and directory."""
        if self._monitor is None:
            self._pending = dict(state)
        else:
            self._load(state)

    def _load(self, state: Mapping[str, Any]) -> None:
        if "momenta" not in state:
            raise RunError(
                f"The stored state has no angular momenta, only {sorted(state)}. Start the watch anew from here.", keys=sorted(state)
            )
        self.monitor.load_state_dict(state)
        self.momenta.load_state_dict(state["momenta"])


def _folder(where: Path | str | None) -> Path:
    return Path(tempfile.mkdtemp(prefix="noetherflow-")) if where is None else Path(where)
