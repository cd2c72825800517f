"""A budget that must add up: what every mechanism moved, charge by charge, against the motion; for any rule."""

from __future__ import annotations

import torch

from noetherflow.bridge.watch import Watch
from noetherflow.numeric.report import Report

MECHANISMS = {"discretization", "momentum", "weight_decay", "explicit_breaking", "kinetic_symmetry_breaking", "metric"}
EPS = torch.finfo(torch.float64).eps


def check_budget(run: Watch, report: Report) -> None:
    """Parts sum to the motion to rounding, in every charge; no part may be left out; and the report says the same."""
    for prediction, tally in zip(run.monitor.predictions, run.monitor.tallies, strict=True):
        assert prediction.moved.keys() <= MECHANISMS
        motion = prediction.charge - tally.initial
        largest = torch.stack([moved.abs() for moved in prediction.moved.values()]).sum(0) + tally.size
        rounding = 8 * run.monitor.step * EPS * largest
        total = torch.stack(list(prediction.moved.values())).sum(0)
        assert bool(((total - motion).abs() <= rounding).all())
        for name, moved in prediction.moved.items():
            if bool((moved.abs() > 1e3 * rounding).any()):
                assert bool(((total - moved - motion).abs() > rounding).any()), f"the budget adds up without {name}"
    rows = report.budget()
    for family in report.families:
        own = [row for row in rows if row["family"] == family.name]
        assert all(row["mechanism"] in MECHANISMS for row in own)
        parts = [row["contribution"] for row in own]
        size = sum(map(abs, parts)) + family.charges * family.scale
        assert abs(sum(parts) - family.total_motion) <= 8 * family.steps * EPS * size
