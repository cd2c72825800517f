"""Conservation laws counted: 50 random linear and 50 random ReLU networks, and larger ones, on one thread.

    python benchmarks/bench_completeness.py

The random networks are of the sizes of the published battery (Marcotte, Gribonval & Peyré 2023: depth 2 to 4; widths 2 to 5 linear, 2 to 9
ReLU, half of them with biases here). Seconds are those of the processor, and of the clock, which other work on the machine stretches.
"""

import random
import time
from collections import Counter

import torch

import noetherflow as nf
from noetherflow.bridge.law_verdict import Completeness
from noetherflow.numeric.models import MLP

LARGE = [
    ([30, 30, 30], "linear", False),
    ([50, 50, 50], "linear", False),
    ([20, 40, 20, 10], "relu", True),
    ([40, 50, 40], "relu", True),
]


def counted(widths: list[int], activation: str, bias: bool) -> Completeness:
    return nf.completeness(MLP(widths, activation, bias=bias), torch.zeros(1, widths[0]))


def battery() -> None:
    draw = random.Random(0)
    for activation, widest in (("linear", 5), ("relu", 9)):
        begun, clock, outcomes = time.process_time(), time.perf_counter(), Counter[str]()
        for _ in range(50):
            widths = [draw.randint(2, widest) for _ in range(draw.randint(3, 5))]
            found = counted(widths, activation, activation == "relu" and draw.random() < 0.5)
            how = "open" if not found.complete or found.mode != "proved" else "proved, free pieces" if found.assumption else "proved"
            outcomes[how] += 1
        spent = f"{time.process_time() - begun:.1f} s ({time.perf_counter() - clock:.1f} s on the clock, tracing included)"
        print(f"50 {activation} networks: {dict(outcomes)} in {spent}")


def main() -> None:
    torch.set_num_threads(1)
    counted([2, 2, 2], "relu", True)  # what torch does once
    battery()
    for widths, activation, bias in LARGE:
        begun, clock = time.process_time(), time.perf_counter()
        found = counted(widths, activation, bias)
        spent = f"{time.process_time() - begun:.1f} s ({time.perf_counter() - clock:.1f} s on the clock)"
        print(f"{'-'.join(map(str, widths))} {activation}: D = {found.parameters:,}, {str(found).splitlines()[0]}, {spent}")


if __name__ == "__main__":
    main()
