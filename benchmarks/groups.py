"""Discrete groups of real models at their real sizes: how many copies of one function there are. Writes docs/groups.md.

Run ``python benchmarks/groups.py`` with the extra ``models`` installed (and timm's stand-in for torchvision, which the tests have); some
minutes. Nothing is downloaded and no weight is made. That every element is a symmetry is tested on the same architectures at small size,
in float64 (tests/symbolic/test_discrete_zoo.py).
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from pathlib import Path

import torch

import noetherflow as nf
from noetherflow.numeric.progress import shown

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

from zoo import ZOO, Specimen  # noqa: E402

HEAD = """# Discrete groups of real models

The models of [zoo.md](zoo.md) at real size, on the meta device. *Order*: number of permutations and signs of the parameters that leave the
outputs unchanged, `nf.discrete_symmetries(graph).formula`, exactly; what is part of a continuous group (rotations of a stream or a head)
counts by its components only. Every element is a symmetry; it isn't claimed that there are no others. Experts that a router chooses are
interchanged for inputs of which no scores tie. *Digits*: log10 of the order.
*Opaque*: operations that nothing was allowed through. Seconds of processor time, one core, after tracing.

On the same architectures at small size random elements leave the outputs unchanged in float64, and parts of them do not
(`tests/symbolic/test_discrete_zoo.py`). Made by `python benchmarks/groups.py`.

| model | parameters | factors | order | digits | opaque | seconds |
|---|---:|---:|---|---:|---:|---:|
"""


def row(specimen: Specimen) -> str:
    """One line of the table."""
    with torch.device("meta"):
        model, inputs, keywords = specimen.build()
    graph = nf.trace(model.train(), *inputs, kwargs=keywords)
    begun = time.process_time()
    found = nf.discrete_symmetries(graph)
    seconds = time.process_time() - begun
    for why in sorted(set(found.opaque.values())):
        print(f"  {specimen.name}: opaque: {why}", file=sys.stderr)
    parameters = sum(p.numel() for p in model.parameters())
    digits = found.log_order / math.log(10)
    cells = [specimen.name, f"{parameters:,}", f"{len(found):,}", found.formula, f"{digits:,.1f}", f"{len(found.opaque)}", f"{seconds:.1f}"]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--only", default="", help="models whose name holds this")
    options.add_argument("--output", type=Path, default=ROOT / "docs" / "groups.md")
    chosen = options.parse_args()
    zoo = [specimen for specimen in ZOO if chosen.only.lower() in specimen.name.lower()]
    rows = [row(specimen) for specimen in shown(zoo, "deriving", total=len(zoo))]
    text = HEAD + "\n".join(rows) + f"\n\ntorch {torch.__version__}.\n"
    chosen.output.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
