"""What a run says of angular momenta: their families in a report, and what of them is recorded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from noetherflow.bridge.momentum_bundles import MomentumBundle
from noetherflow.bridge.momentum_monitor import Carried, MomentumMonitor
from noetherflow.bridge.momentum_tally import MomentumTally
from noetherflow.numeric.findings import FamilyRecord
from noetherflow.symbolic.momenta import MomentumLaw, momentum_formula


def momentum_families(monitor: MomentumMonitor, names: Sequence[str], confidence: float) -> list[FamilyRecord]:
    """One record for each law, in the order of the monitor's bundles.

    Parameters
    ----------
    monitor : MomentumMonitor
    names : sequence of str
        What the laws are called.
    confidence : float
        Standard deviations that make the bound.
    """
    found = []
    for (b, number, law, carried, tally), name in zip(_of(monitor), names, strict=False):
        found.append(_family(b, number, law, name, carried, tally, monitor.step, confidence))
    return found


def slices(monitor: MomentumMonitor) -> list[tuple[MomentumLaw, int]]:
    """Every law and how many numbers of it are recorded: one for each block."""
    return [(law, blocks) for b in monitor.bundles for law, (blocks, _) in zip(b.laws, b.shapes, strict=True)]


def recorded(monitor: MomentumMonitor) -> list[MomentumTally]:
    """What is recorded of each law, in that order."""
    return [tally for tallies in monitor.tallies for tally in tallies]


def _of(monitor: MomentumMonitor) -> Iterator[tuple[MomentumBundle, int, MomentumLaw, Carried, MomentumTally]]:
    for b, carried, tallies in zip(monitor.bundles, monitor.carried, monitor.tallies, strict=False):
        for number, (law, tally) in enumerate(zip(b.laws, tallies, strict=True)):
            yield b, number, law, carried, tally


def _family(
    b: MomentumBundle, number: int, law: MomentumLaw, name: str, carried: Carried, tally: MomentumTally, steps: int, confidence: float
) -> FamilyRecord:
    where = b.kept[number]
    worst = int(tally.ratio.argmax())
    ratio = float(tally.ratio[worst]) / confidence
    parts = {mechanism: moved[where] for mechanism, moved in carried.moved.items()}
    exceeded = (tally.first >= 0).nonzero().flatten()
    first = int(exceeded[tally.first[exceeded].argmin()]) if len(exceeded) else None
    return FamilyRecord(
        name=name,
        kind=law.kind,
        parameters=law.symmetry.parameters,
        charges=int(law.count) if isinstance(law.count, int) else b.count,
        steps=steps,
        motion=float(tally.motion.max()),
        scale=float(tally.size.max()),
        residual=float(tally.residual.max()),
        bound=float(tally.at_deviation[worst]) * confidence,
        ratio=ratio,
        verdict="not checked" if not steps else ("exact" if ratio <= 1 else "failed"),
        reason=_reason(tally, worst, b.shapes[number][1], ratio),
        worst_step=int(tally.at_step[worst]),
        worst_charge=worst,
        budget={mechanism: float(part.abs().max()) for mechanism, part in parts.items()},
        motion_parts={mechanism: float(part.sum()) for mechanism, part in parts.items()},
        total_motion=float((carried.predicted[where] - tally.initial.reshape(-1)).sum()),
        charge_latex=momentum_formula(law),
        balance_latex=law.balance.latex(),
        sources=law.source,
        first_step=None if first is None else int(tally.first[first]),
        first_charge=first,
        quantity="momenta",
    )


def _reason(tally: MomentumTally, worst: int, n: int, ratio: float) -> str:
    if ratio <= 1:
        return ""
    if not bool(torch.isfinite(torch.cat([tally.measured, tally.predicted])).all()):
        return "an angular momentum is not finite: the run diverged, or a parameter holds a value that is not a number"
    i, j = _entry(int(tally.at_entry[worst]), n)
    return f"the measured angular momentum leaves its prediction by more than rounding allows, most at the entry ({i}, {j})"


def _entry(number: int, n: int) -> tuple[int, int]:
    """Row and column of an entry above the diagonal.

    Examples
    --------
    >>> _entry(3, 4)
    (1, 2)
    """
    pairs: Tensor = torch.triu_indices(n, n, 1)
    return int(pairs[0, number]), int(pairs[1, number])
