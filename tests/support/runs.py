"""Made-up runs and reports: charges that drift as training would have them, with rounding noise between measured and predicted."""

from pathlib import Path

import numpy as np

from noetherflow.numeric.recorder import Recorder
from noetherflow.numeric.report import FamilyRecord, Report

KINDS = ("rescale", "linear", "scale", "translation", "rotation", "null")
MECHANISMS = {"discretization": 0.01, "momentum": 0.03, "weight_decay": 0.08, "kinetic_symmetry_breaking": 0.001}
CHARGE = r"Q_i = \frac{1}{2} \left\langle W_{\mathrm{in}}^{(i)}, W_{\mathrm{in}}^{(i)}\right\rangle"
BALANCE = r"Q_{k+1} = Q_k - \eta_k P_k + \tfrac{1}{2} \eta_k^{2} \langle b_k, A b_k\rangle \\ P_k = \mu P_{k-1} + 2 \lambda Q_k"
EPSILON = 2e-16
DEVIATIONS = 8.0
BREAKS_AT = 12


def synthetic_report(folder: Path, families: int, failing: tuple[int, ...] = (), steps: int = 200, seed: int = 0) -> Report:
    """A recorded run of random walks and the report about it; in each failing family charge 2 departs at step `BREAKS_AT`."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(4, 40, size=families)
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    total = int(counts.sum())
    parts = {name: size * rng.normal(size=total) for name, size in MECHANISMS.items()}
    drift = np.sum(list(parts.values()), axis=0)
    time = np.arange(steps + 1)[:, None]
    walk = np.cumsum(2e-3 * rng.normal(size=(steps + 1, total)), axis=0)
    predicted = rng.normal(size=total) + drift * time / steps + walk - walk[0]
    deviation = np.broadcast_to(EPSILON * np.sqrt(time + 1), predicted.shape)
    measured = predicted + deviation * np.clip(rng.normal(size=predicted.shape), -4, 4) * (time > 0)
    for family in failing:
        measured[:, starts[family] + 2] += 1e-11 * np.maximum(0, time[:, 0] - BREAKS_AT + 1)
    names = [f"blocks.{place // 2}.{'mlp.hidden' if place % 2 else 'attn.value_output'}" for place in range(families)]
    meta = [{"name": name, "start": int(start), "count": int(count)} for name, start, count in zip(names, starts, counts, strict=True)]
    with Recorder(folder, dict.fromkeys(("measured", "predicted", "deviation"), total), meta) as recorder:
        for step in range(steps + 1):
            recorder.record(step, {"measured": measured[step], "predicted": predicted[step], "deviation": deviation[step]})
    records = []
    for place, (name, start, count) in enumerate(zip(names, starts, counts, strict=True)):
        here = slice(start, start + count)
        motion = {mechanism: float(part[here].sum()) for mechanism, part in parts.items()}
        records.append(
            _record(
                name,
                KINDS[place % len(KINDS)],
                (measured[:, here], predicted[:, here], DEVIATIONS * deviation[:, here]),
                {mechanism: float(np.abs(part[here]).max()) for mechanism, part in parts.items()},
                motion,
            )
        )
    settings = {"model": "ResidualMLP(width=64, blocks=12)", "optimizer": "SGD(lr=0.1, momentum=0.9)", "dtype": "float64"}
    return Report(
        "A residual network under SGD", tuple(records), settings, ("aten.group_norm at 'block3.norm'",), folder, drawing(families)
    )


def _record(
    name: str, kind: str, arrays: tuple[np.ndarray, np.ndarray, np.ndarray], budget: dict[str, float], motion: dict[str, float]
) -> FamilyRecord:
    measured, predicted, bound = arrays
    residual = np.abs(measured - predicted)
    ratios = residual / bound
    step, charge = np.unravel_index(ratios.argmax(), ratios.shape)
    outside = np.argwhere(ratios > 1)
    return FamilyRecord(
        name=name,
        kind=kind,
        parameters=(f"{name}.weight", f"{name}.bias"),
        charges=measured.shape[1],
        steps=len(measured) - 1,
        motion=float(np.abs(measured - measured[0]).max()),
        scale=float(np.abs(measured).max()),
        residual=float(residual.max()),
        bound=float(bound[step, charge]),
        ratio=float(ratios[step, charge]),
        verdict="failed" if len(outside) else "exact",
        reason="The residual leaves its bound." if len(outside) else "Every residual is within its rounding bound.",
        worst_step=int(step),
        worst_charge=int(charge),
        budget=budget,
        motion_parts=motion,
        total_motion=sum(motion.values()),
        charge_latex=CHARGE,
        balance_latex=BALANCE,
        sources=("kunin2021",),
        first_step=int(outside[0, 0]) if len(outside) else None,
        first_charge=int(outside[0, 1]) if len(outside) else None,
    )


def drawing(nodes: int) -> str:
    """A chain of boxes, with the prologue that real drawings bring."""
    boxes = "".join(f'<rect x="{150 * node}" width="100" height="40"><title>linear {node}</title></rect>' for node in range(nodes))
    return f'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {150 * nodes} 40">{boxes}</svg>'
