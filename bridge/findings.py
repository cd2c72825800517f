"""From a monitored run to a report: verdicts, figures and budgets per family."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from noetherflow.bridge.bundles import Bundle
from noetherflow.bridge.monitor import Monitor
from noetherflow.bridge.precisions import Met
from noetherflow.bridge.prediction import Prediction
from noetherflow.bridge.tally import Tally
from noetherflow.numeric.findings import FamilyRecord
from noetherflow.numeric.report import Report
from noetherflow.numeric.rounding import unit_roundoff
from noetherflow.symbolic.charges import formula
from noetherflow.symbolic.drawing import draw_svg
from noetherflow.symbolic.graph import ArchitectureGraph
from noetherflow.symbolic.laws import Law, Laws

SHOWN = 4
"""Number of laws that a note names."""


def report_of(
    monitor: Monitor, laws: Laws, graph: ArchitectureGraph, directory: Path, settings: Mapping[str, str], unseen: Mapping[int, str]
) -> Report:
    """Sum up a run.

    Parameters
    ----------
    monitor : Monitor
    laws : Laws
    graph : ArchitectureGraph
    directory : Path
        Where its trajectories are.
    settings : mapping of str to str
    unseen : mapping of int to str
        Number of a symmetry -> why its law could not be checked.
    """
    families = []
    names = unique_names([law.name for b in monitor.bundles for law in b.laws])
    numbered = iter(names)
    for b, prediction, tally in zip(monitor.bundles, monitor.predictions, monitor.tallies, strict=False):
        for law, start, stop in zip(b.laws, b.starts, b.starts[1:], strict=False):
            name = next(numbered)
            families.append(
                _family(
                    monitor, b, law, name, _part(tally, start, stop), prediction, slice(start, stop), unseen.get(law.symmetry.number, "")
                )
            )
    order = {name: i for i, name in enumerate(names)}
    position = {law.symmetry.number: i for i, law in enumerate(laws)}
    by_law = {
        name: position.get(law.symmetry.number, order[name])
        for name, law in zip(names, (w for b in monitor.bundles for w in b.laws), strict=True)
    }
    families.sort(key=lambda f: by_law[f.name])
    return Report(
        title=settings.get("title", "Conservation laws against a real run"),
        families=tuple(families),
        settings={k: v for k, v in settings.items() if k != "title"},
        opaque=tuple(f"{node}: {why}" for node, why in laws.opaque.items()),
        directory=directory,
        graph_svg=draw_svg(graph, laws.symmetries),
        notes=(_bound_note(monitor), *_type_notes(monitor), *_symmetry_note(laws)),
    )


def _family(
    monitor: Monitor, b: Bundle, law: Law, name: str, tally: Tally, prediction: Prediction, where: slice, unseen: str
) -> FamilyRecord:
    z = monitor.confidence
    worst = int(tally.ratio.argmax())
    ratio = float(tally.ratio[worst]) / z
    parts = {m: moved[where] for m, moved in prediction.moved.items()}
    exceeded = (tally.first >= 0).nonzero().flatten()
    first = int(exceeded[tally.first[exceeded].argmin()]) if len(exceeded) else None
    return FamilyRecord(
        name=name,
        kind=law.symmetry.kind,
        parameters=law.symmetry.parameters,
        charges=int(law.count) if isinstance(law.count, int) else tally.initial.numel(),
        steps=monitor.step,
        motion=float(tally.motion.max()),
        scale=float(tally.size.max()),
        residual=float(tally.residual.max()),
        bound=float(tally.at_deviation[worst]) * z,
        ratio=ratio,
        verdict="not checked" if unseen or not monitor.step else ("exact" if ratio <= 1 else "failed"),
        reason=unseen or _reason(tally, ratio),
        worst_step=int(tally.at_step[worst]),
        worst_charge=worst,
        budget={m: float(v.abs().max()) for m, v in parts.items()},
        motion_parts={m: float(v.sum()) for m, v in parts.items()},
        total_motion=float((tally.predicted - tally.initial).sum()),
        charge_latex=formula(law.symmetry),
        balance_latex=law.balance.latex(),
        sources=law.source,
        first_step=None if first is None else int(tally.first[first]),
        first_charge=first,
    )


def _part(tally: Tally, start: int, stop: int) -> Tally:
    return Tally(**{name: value[start:stop].cpu() for name, value in tally.state_dict().items()})


def _reason(tally: Tally, ratio: float) -> str:
    if ratio <= 1:
        return ""
    if not bool(torch.isfinite(_both(tally)).all()):
        return "a charge is not finite: the run diverged, or a parameter holds a value that is not a number"
    return "the measured charge leaves its prediction by more than rounding allows"


def _both(tally: Tally) -> Tensor:
    return torch.cat([tally.measured, tally.predicted])


def _bound_note(monitor: Monitor) -> str:
    return (
        f"The bound is {monitor.confidence:.2f} standard deviations of the rounding error, derived from the dtype, the sizes of the "
        "tensors and the law's own response; independent roundings exceed it anywhere in the run with probability below 1e-6."
    )


def _type_notes(monitor: Monitor) -> Iterator[str]:
    """Which laws the model's own casts make less exact than its parameters are."""
    found: dict[torch.dtype, list[str]] = {}
    for law in monitor.laws:
        own = max((monitor.state.dtype(name) for name in law.symmetry.parameters), key=unit_roundoff)
        met = monitor.met.get(law.symmetry.number, Met()).with_all(own)
        if unit_roundoff(met.absorbed) > unit_roundoff(own):
            found.setdefault(met.absorbed, []).append(law.name)
    for dtype, names in found.items():
        shown = ", ".join(f"'{name}'" for name in names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
        yield f"The model computes in {dtype} where these laws pass, so they are bounded by its roundings: {shown}."


def _symmetry_note(laws: Laws) -> tuple[str, ...]:
    without = [s.name for s in laws.symmetries if s.number not in {law.symmetry.number for law in laws}]
    return (f"Symmetries without a charge: {', '.join(without)}.",) if without else ()


def unique_names(names: list[str]) -> list[str]:
    """Names with a number behind those that repeat."""
    seen: dict[str, int] = {}
    out = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        out.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return out
