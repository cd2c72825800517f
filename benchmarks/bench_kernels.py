"""What evaluating charges costs, in units of reading the same memory once (`torch.sum` of every tensor).

Run ``python benchmarks/bench_kernels.py``: a table of medians, in half a minute. Compare ratios; times differ between machines, and on
a busy one both columns grow, the second more (it has more parallel loops, each of which waits for the slowest thread).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from noetherflow.bridge.kernels_torch import Request, reduce

SELF = (("theta", "theta"), ("buffer", "buffer"))
DRIVEN = (("theta", "theta"), ("u", "u"), ("u", "buffer"))
COMBINATIONS = {"u": {"gradient": 1.0, "theta": 5e-4, "buffer": 0.9}}
#: Cases smaller than this are repeated over copies, so that no memory is found in a cache.
COLD_BYTES = 96 * 2**20


@dataclass(frozen=True, slots=True)
class Case:
    """Parameters of some shapes, and what is asked of each; `keeps` a parameter has too few axes for are left out."""

    name: str
    shapes: tuple[tuple[int, ...], ...]
    pairs: tuple[tuple[str, str], ...] = SELF
    keeps: tuple[tuple[int, ...], ...] = ((0,), (1,))
    dtype: torch.dtype = torch.float32

    def parameters(self) -> list[dict[str, Tensor]]:
        """Random tensors of every parameter, by name."""
        names = sorted({"theta", "buffer"} | ({"gradient"} if self.pairs == DRIVEN else set()))
        return [{name: torch.randn(shape).to(self.dtype) for name in names} for shape in self.shapes]

    def requests(self, ndim: int) -> tuple[Request, ...]:
        """What is asked of a parameter with `ndim` axes."""
        return tuple(Request("pairing", x, y, keep) for x, y in self.pairs for keep in self.keeps if max(keep, default=-1) < ndim)


def resnet18() -> tuple[tuple[int, ...], ...]:
    """Shapes of the 62 parameters of a ResNet-18."""
    shapes: list[tuple[int, ...]] = [(64, 3, 7, 7), (64,), (64,)]
    for before, width in ((64, 64), (64, 128), (128, 256), (256, 512)):
        kernels = [(width, before, 3, 3), *[(width, width, 3, 3)] * 3, *([(width, before, 1, 1)] if before != width else [])]
        shapes += [shape for kernel in kernels for shape in (kernel, (width,), (width,))]
    return (*shapes, (1000, 512), (1000,))


def cases() -> Iterator[Case]:
    yield Case("ResNet-18", resnet18())
    yield Case("ResNet-18", resnet18(), keeps=((0,),))
    yield Case("ResNet-18", resnet18(), pairs=DRIVEN)
    for shape in ((512, 512, 3, 3), (64, 64, 3, 3), (512,)):
        yield Case("x".join(map(str, shape)), (shape,))
    for keeps in (((0,), (1,)), ((0,),), ((1,),), ((),)):
        yield Case("4096x4096", ((4096, 4096),), keeps=keeps)
    yield Case("4096x4096 bf16", ((4096, 4096),), dtype=torch.bfloat16)
    yield Case("4096x4096 f64", ((4096, 4096),), dtype=torch.float64)


def medians(calls: Sequence[Callable[[], object]], *, seconds: float = 1.0) -> list[float]:
    """Median times of several calls, taken in turn, so that a slow moment of the machine meets them all."""
    times: list[list[float]] = [[] for _ in calls]
    stop = time.perf_counter() + seconds
    for call in calls:
        call()
    while time.perf_counter() < stop or len(times[0]) < 3:
        for call, row in zip(calls, times, strict=True):
            start = time.perf_counter()
            call()
            row.append(time.perf_counter() - start)
    return [statistics.median(row) for row in times]


def measure(case: Case) -> str:
    parameters = case.parameters()
    size = sum(one.nbytes for tensors in parameters for one in tensors.values())
    copies = min(200, -(-COLD_BYTES // size))
    parameters += [{name: one.clone() for name, one in tensors.items()} for _ in range(copies - 1) for tensors in parameters]
    work = [(tensors, case.requests(tensors["theta"].ndim)) for tensors in parameters]
    read, evaluate = medians(
        [
            lambda: [one.sum() for tensors, _ in work for one in tensors.values()],
            lambda: [reduce(tensors, COMBINATIONS if case.pairs == DRIVEN else {}, requests) for tensors, requests in work],
        ]
    )
    asked = f"{len(case.pairs)} pairings, keep {' '.join(map(str, case.keeps))}"
    times = f"{read / copies * 1e3:9.3f} {evaluate / copies * 1e3:9.3f} {evaluate / read:6.1f}"
    return f"{case.name:16} {asked:28} {size / 1e6:9.3f} {times}"


def main() -> None:
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    print(f"{'parameters':16} {'asked for':28} {'MB':>9} {'read ms':>9} {'reduce ms':>9} {'ratio':>6}")
    for case in cases():
        print(measure(case), flush=True)


if __name__ == "__main__":
    main()
