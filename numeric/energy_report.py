"""What an energy balance found: the change of the loss at every step, measured and predicted, with every part booked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from noetherflow.numeric.findings import amount, plural, scientific
from noetherflow.numeric.palette import BAD, INK, MUTED, STYLE, mechanism_colours

KINKS = "kinks"


@dataclass(frozen=True, slots=True)
class EnergyRecord:
    """One step.

    Attributes
    ----------
    step : int
        From 0.
    loss : float
        f before the step.
    change : float
        Measured f' - f.
    parts : mapping of str to float
        Mechanism -> its predicted part.
    rounding : float
        What roundings may make of ``change - predicted``.
    quadrature : float
        Estimated error of the integrals along the step; far below the rounding for smooth networks.
    mechanical_change, mechanical_parts
        The same for E = f + ½ λ |θ|² + kinetic, in squares of buffers; None and empty for rules that have none.
    """

    step: int
    loss: float
    change: float
    parts: Mapping[str, float]
    rounding: float
    quadrature: float
    mechanical_change: float | None
    mechanical_parts: Mapping[str, float]

    @property
    def predicted(self) -> float:
        """Sum of the parts."""
        return sum(self.parts.values())

    @property
    def bound(self) -> float:
        """Largest |change - predicted| that is no contradiction."""
        return self.rounding + self.quadrature

    @property
    def residual(self) -> float:
        """Measured minus predicted."""
        return self.change - self.predicted

    @property
    def mechanical_residual(self) -> float:
        """The same of the mechanical energy; zero where there is none."""
        return 0.0 if self.mechanical_change is None else self.mechanical_change - sum(self.mechanical_parts.values())

    @property
    def smooth(self) -> bool:
        """Whether no kink was crossed that shows."""
        return abs(self.parts[KINKS]) <= self.bound

    def without(self, part: str) -> float:
        """|Measured - predicted| in bounds if one part is left out: what a wrong law would show."""
        return abs(self.residual + self.parts[part]) / self.bound


@dataclass(frozen=True)
class EnergyReport:
    """The energy balance of a run.

    Attributes
    ----------
    steps : sequence of EnergyRecord
    rule : str
    """

    steps: Sequence[EnergyRecord]
    rule: str

    @property
    def holds(self) -> bool:
        """Whether measurement and prediction agree within the bound at every step."""
        return all(abs(r.residual) <= r.bound and abs(r.mechanical_residual) <= r.bound for r in self.steps)

    @property
    def worst(self) -> EnergyRecord:
        """The step with the largest residual in bounds."""
        return max(self.steps, key=lambda r: max(abs(r.residual), abs(r.mechanical_residual)) / r.bound)

    @property
    def mechanisms(self) -> tuple[str, ...]:
        """All that moved the loss."""
        return tuple(dict.fromkeys(name for r in self.steps for name in r.parts))

    def budget(self) -> dict[str, float]:
        """What each mechanism changed the loss by, over the whole run."""
        return {name: sum(r.parts.get(name, 0.0) for r in self.steps) for name in self.mechanisms}

    def table(self) -> list[dict[str, Any]]:
        """One row a step, ready for pandas."""
        return [
            {"step": r.step, "loss": r.loss, "change": r.change, "predicted": r.predicted, "residual": r.residual, "bound": r.bound}
            | {name: r.parts.get(name, 0.0) for name in self.mechanisms}
            for r in self.steps
        ]

    def __str__(self) -> str:
        worst = self.worst
        verdict = "holds" if self.holds else "fails"
        size = max(abs(r.change) for r in self.steps)
        lines = [
            f"Energy balance of {plural(len(self.steps), 'step')} of {self.rule}: {verdict}",
            f"  largest residual {scientific(abs(worst.residual))}, {amount(abs(worst.residual) / worst.bound)} of its bound (step "
            f"{worst.step}); largest change of the loss {scientific(size)}",
        ]
        lines += [f"  {name}: {value:+.3e}" for name, value in self.budget().items() if value != 0]
        total = self.steps[-1].loss + self.steps[-1].change - self.steps[0].loss
        return "\n".join([*lines, f"  all: {total:+.3e}, from a loss of {self.steps[0].loss:.4g}"])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return f"<pre>{escape(str(self))}</pre>"

    def plot(self) -> Figure:
        """Parts of the change added up over the run beside the measured loss, and residuals under their bounds."""
        colours = mechanism_colours(self.mechanisms)
        at = [r.step + 1 for r in self.steps]
        with matplotlib.rc_context(STYLE):
            figure = Figure(figsize=(9.5, 3.4), layout="constrained")
            left, right = figure.subplots(1, 2)
            left.plot(at, np.cumsum([r.change for r in self.steps]), color=INK, linewidth=3.5, alpha=0.3, label="measured")
            left.plot(at, np.cumsum([r.predicted for r in self.steps]), color=INK, linewidth=1.0, label="predicted")
            for name in self.mechanisms:
                values = np.cumsum([r.parts.get(name, 0.0) for r in self.steps])
                if np.abs(values).max() > 0:
                    left.plot(at, values, color=colours[name], linewidth=1.2, label=name.replace("_", " "))
            left.set(title="What moved the loss", xlabel="step", ylabel="change since the start")
            left.legend()
            residuals = [max(abs(r.residual), 1e-18) for r in self.steps]
            right.semilogy(at, residuals, ".", color=INK if self.holds else BAD, markersize=4, label="|measured − predicted|")
            right.semilogy(at, [r.bound for r in self.steps], color=MUTED, linewidth=1.2, label="bound")
            right.set(title="Residual", xlabel="step", ylabel="of one step's change")
            right.legend()
        return figure
