"""Breaking, watched: the order parameters of a network's permutations along a run.

Source: ziyin2025parameter for the order parameter Δ; own.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from types import TracebackType
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import nn

from noetherflow.bridge.order_parameters import RESOLUTION, OrderParameters, order_parameters
from noetherflow.errors import RunError
from noetherflow.numeric.breaking_figures import breaking_figure
from noetherflow.symbolic.discrete import discrete_symmetries
from noetherflow.symbolic.graph import ArchitectureGraph


class Breaking:
    """Order parameters of a model along a run, recorded on request or after steps of an optimizer.

    Attributes
    ----------
    steps : list of int
        At which points were recorded.
    points : list of OrderParameters
    """

    def __init__(
        self,
        model: nn.Module,
        graph: ArchitectureGraph,
        optimizer: torch.optim.Optimizer | None,
        every: int,
        options: Mapping[str, Any],
    ) -> None:
        if every < 1:
            raise RunError(f"Points are recorded every {every} steps. Give 1 or more.", every=every)
        self.steps: list[int] = []
        self.points: list[OrderParameters] = []
        self._model, self._graph, self._every = model, graph, every
        self._options = dict(options)
        self._group = discrete_symmetries(graph)
        self._made = 0
        self._hook = None if optimizer is None else optimizer.register_step_post_hook(lambda *_: self._stepped())

    def __enter__(self) -> Breaking:
        """Record the start, unless there is a point already."""
        if not self.points:
            self.record()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Stop recording after steps."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def record(self, step: int | None = None) -> OrderParameters:
        """Record the model as it is now; `step` is the number of steps made, counted here unless it is given."""
        self._made = self._made if step is None else step
        self.steps.append(self._made)
        self.points.append(order_parameters(self._model, self._graph, group=self._group, **self._options))
        return self.points[-1]

    def _stepped(self) -> None:
        self._made += 1
        if self._made % self._every == 0:
            self.record()

    def table(self) -> list[dict[str, Any]]:
        """One row per recorded point and class, ready for ``pandas.DataFrame``."""
        return [{"step": step, **row} for step, point in zip(self.steps, self.points, strict=True) for row in point.table()]

    def trajectory(self, name: str, of: int = 0) -> list[float]:
        """One order parameter of one class along the run.

        Parameters
        ----------
        name : str
            "breaking", "distinct", "nearest", "participation" or "stabilizer".
        of : int
            Number of the class.
        """
        return [float(getattr(point.classes[of], name)) for point in self.points]

    def broken_at(self, of: int = 0) -> int | None:
        """The first recorded step at which the units of a class are not all of one orbit any more; None if they still are."""
        copies = self.points[0].classes[of].factor.copies if self.points else 1
        found = (step for step, point in zip(self.steps, self.points, strict=True) if point.classes[of].distinct > copies)
        return next(found, None)

    def plot(self) -> Figure:
        """Trajectories of all classes."""
        if not self.points:
            raise RunError("Nothing has been recorded. Call record(), or give the optimizer and make steps.")
        keys = ("breaking", "distinct", "participation")
        names = [c.parameters.split(", ")[0] for c in self.points[0].classes]
        return breaking_figure(self.steps, {n: {k: self.trajectory(k, i) for k in keys} for i, n in enumerate(names)})

    def __str__(self) -> str:
        if not self.points:
            return "Breaking: nothing recorded"
        lines = [f"Breaking, {len(self.points)} points of steps {self.steps[0]} to {self.steps[-1]}"]
        for i, (first, last) in enumerate(zip(self.points[0].classes, self.points[-1].classes, strict=True)):
            lines.append(
                f"  {first.distinct} -> {last.distinct} of {last.units} units distinct, Δ {first.breaking:.3g} -> {last.breaking:.3g}, "
                f"stabilizer {first.stabilizer} -> {last.stabilizer}, broken at {self.broken_at(i)}: {last.parameters}"
            )
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return f"<pre>{escape(str(self))}</pre>"


def watch_breaking(
    model: nn.Module,
    graph: ArchitectureGraph,
    optimizer: torch.optim.Optimizer | None = None,
    *,
    every: int = 1,
    resolution: float = RESOLUTION,
    modulo: bool = True,
    approximate: bool = False,
) -> Breaking:
    """Record the order parameters of a model's permutations along a run.

    Parameters
    ----------
    model : nn.Module
    graph : ArchitectureGraph
        Of ``nf.trace``.
    optimizer : torch.optim.Optimizer, optional
        Points are recorded after its steps; without it, by ``.record()``.
    every : int
        Record each that many steps.
    resolution, modulo, approximate
        As for `noetherflow.order_parameters`.

    Returns
    -------
    Breaking
        ``.record()``, ``.table()``, ``.trajectory(name, of=class)``, ``.broken_at(class)``, ``.plot()``; a context manager that records
        the start and stops recording at its end.

    Raises
    ------
    RunError
        If `every` is below one.
    ModelError
        If the model does not match the graph (when a point is recorded).

    Examples
    --------
    >>> import noetherflow as nf
    >>> model, x = nf.models.MLP([3, 4, 2]).double(), torch.randn(5, 3).double()
    >>> _ = [nn.init.constant_(p, 0.1) for p in model.parameters()]
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> with watch_breaking(model, nf.trace(model, x), optimizer) as run:
    ...     for _ in range(3):
    ...         _ = model(x).square().sum().backward()
    ...         optimizer.step()
    >>> run.steps, run.trajectory("distinct"), run.broken_at()
    ([0, 1, 2, 3], [1.0, 1.0, 1.0, 1.0], None)
    """
    return Breaking(model, graph, optimizer, every, {"resolution": resolution, "modulo": modulo, "approximate": approximate})
