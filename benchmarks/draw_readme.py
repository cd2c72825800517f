"""The README's picture, from a finished `make verify`: `python benchmarks/draw_readme.py noetherflow-report docs/resnet18.png`."""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from noetherflow.numeric.palette import ACCENTS, INK, MUTED, STYLE
from noetherflow.numeric.recorder import open_run
from noetherflow.numeric.report import Report
from noetherflow.numeric.trajectories import most_moving

CHOSEN = (
    ("scale layer1.0.conv1.weight", "scale\nfilters before BatchNorm"),
    ("rescale layer2.0.bn1.weight +2", "rescale\nhidden channels of a block"),
    ("rescale bn1.weight +9", "rescale\nchannels of the residual stream"),
    ("translation fc.weight", "translation\nclassifier weights over classes"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("picture", type=Path)
    chosen = parser.parse_args()
    run, report = open_run(chosen.folder / "run"), Report.from_json(chosen.folder / "report.json")
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11, 4.6), layout="constrained")
        axes = figure.subplots(2, len(CHOSEN), sharex=True, height_ratios=(3, 2))
        for (family, text), (above, below) in zip(CHOSEN, axes.T, strict=True):
            measured, predicted, bound = (np.asarray(run.column(c, family)) for c in ("measured", "predicted", "bound"))
            for place, charge in enumerate(most_moving(run, family, count=3)):
                above.plot(run.steps, measured[:, charge] - measured[0, charge], color=INK, linewidth=1.0)
                above.plot(run.steps, predicted[:, charge] - measured[0, charge], color=ACCENTS[place], linewidth=2.2, dashes=(3, 2))
            residual = np.abs(measured - predicted).max(axis=1)
            below.semilogy(run.steps, np.where(residual > 0, residual, np.nan), ".", color=ACCENTS[0], markersize=3)
            below.semilogy(run.steps[1:], bound.max(axis=1)[1:], color=MUTED, linewidth=1.4)
            above.set_title(text, fontsize=9)
            below.set_xlabel("step")
            above.ticklabel_format(axis="y", scilimits=(-2, 3), useMathText=True)
        axes[0, 0].set_ylabel("motion of the charge\nmeasured (line), predicted (dashes)")
        axes[1, 0].set_ylabel("residual (dots)\nand rounding bound")
        figure.suptitle(report.sentence(), fontsize=10)
        chosen.picture.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(chosen.picture, dpi=110)


if __name__ == "__main__":
    main()
