"""Steps per second of 300 small runs: one batched program against a Python loop over runs, on one thread.

    python benchmarks/bench_ensembles.py

The loop is what one writes: for every run its own model and torch.optim.SGD (momentum, weight decay), zero_grad, backward, step, in
float64, on mini-batches that are there already. Loop and ensemble take turns, so that other work on the machine hits both; medians.
"""

import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import nn

import noetherflow as nf

RUNS, ROUNDS, STEPS = 300, 7, 20
OPTIONS = {"momentum": 0.9, "weight_decay": 1e-3}
CASES: dict[str, tuple[tuple[int, ...], int]] = {  # widths, batch
    "2-4-1": ((2, 4, 1), 4),
    "4-8-2": ((4, 8, 2), 8),
    "8-16-4": ((8, 16, 4), 16),
    "8-16-16-4": ((8, 16, 16, 4), 16),
    "16-16-10": ((16, 16, 10), 16),
    "64-16-10": ((64, 16, 10), 16),
    "64-32-10": ((64, 32, 10), 32),
}


def build(widths: Sequence[int], seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nf.models.MLP(widths).double()


def measure(widths: tuple[int, ...], batch: int) -> tuple[float, float]:
    """Median seconds that one step of all runs takes: the loop's, and the ensemble's."""
    runs = nf.ensembles.variants(lr=0.01, seed=range(RUNS), **OPTIONS)
    x = torch.randn(RUNS, batch, widths[0], dtype=torch.float64)
    y = torch.randn(RUNS, batch, widths[-1], dtype=torch.float64)
    models = [build(widths, v.seed) for v in runs]
    optimizers = [torch.optim.SGD(m.parameters(), **v.options) for m, v in zip(models, runs, strict=True)]
    ensemble = nf.ensembles.Ensemble(lambda v: build(widths, v.seed), nn.functional.mse_loss, runs)

    def loop() -> None:
        for model, optimizer, inputs, targets in zip(models, optimizers, x, y, strict=True):
            optimizer.zero_grad()
            nn.functional.mse_loss(model(inputs), targets).backward()
            optimizer.step()

    def together() -> None:
        for _ in range(STEPS):
            ensemble.step(x, y, per_run=True)

    loop(), together()
    times = [(seconds(loop), seconds(together) / STEPS) for _ in range(ROUNDS)]
    slow, fast = (statistics.median(column) for column in zip(*times, strict=True))
    return slow, fast


def seconds(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} thread, {RUNS} runs, {OPTIONS}")
    print(f"{'MLP':>10} {'batch':>6} {'loop ms':>9} {'ensemble ms':>12} {'run-steps/s':>12} {'ratio':>6}")
    for name, (widths, batch) in CASES.items():
        slow, fast = measure(widths, batch)
        print(f"{name:>10} {batch:6} {slow * 1e3:9.1f} {fast * 1e3:12.2f} {RUNS / fast:12.0f} {slow / fast:6.0f}", flush=True)


if __name__ == "__main__":
    main()
