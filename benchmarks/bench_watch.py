"""What watching costs: time to trace and derive, and the overhead of checking every law at every step.

    python benchmarks/bench_watch.py [--batch 64] [--rounds 7]

Steps with and without a watch are timed in turn on the same model, so that the machine's moods fall on both; medians are printed.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import noetherflow as nf
from noetherflow.bridge.plan import Values
from noetherflow.numeric.models import build


class Bottleneck(nn.Module):
    """The block of a ResNet-50."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        out = 4 * width
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, out, 1, bias=False), nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = (
            nn.Sequential(nn.Conv2d(inputs, out, 1, stride, bias=False), nn.BatchNorm2d(out)) if stride > 1 or inputs != out else None
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Three convolutions around a skip."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


def resnet50() -> nn.Module:
    blocks: list[nn.Module] = []
    inputs = 64
    for width, count, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for i in range(count):
            blocks.append(Bottleneck(inputs, width, stride if i == 0 else 1))
            inputs = 4 * width
    stem = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2048, 1000))


def timed(action: Callable[[], object]) -> float:
    begun = time.perf_counter()
    action()
    return time.perf_counter() - begun


def deriving(name: str, make: Callable[[], nn.Module], shape: tuple[int, ...]) -> list[str]:
    with torch.device("meta"):
        model = make()
        inputs = torch.zeros(shape)
    nf.trace(nn.Linear(2, 2), torch.zeros(1, 2))  # the first export of a process loads torch's own machinery
    export = timed(lambda: torch.export.export(model, (inputs,), strict=False))
    graph = nf.trace(model, inputs, loss="cross_entropy")
    trace = timed(lambda: nf.trace(model, inputs, loss="cross_entropy"))
    laws = nf.derive(graph, nf.rules.SGD(momentum=0.9))
    derive = timed(lambda: nf.derive(graph, nf.rules.SGD(momentum=0.9)))
    beyond = f"{name}: trace and derive beyond torch.export ({export:.2f} s)"
    return [beyond, f"{trace - export + derive:.2f} s", f"{laws.charges:,} charges"]


def watching(batch: int, rounds: int, *, nesterov: bool) -> list[str]:
    torch.manual_seed(0)
    model = build("resnet18", seed=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4, nesterov=nesterov)
    images, labels = torch.randn(batch, 1, 28, 28), torch.randint(0, 10, (batch,))

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()

    step()
    ratios, steps = [], []
    for _ in range(rounds):
        plain = [timed(step) for _ in range(3)]
        with nf.watch(model, optimizer, "cross_entropy", images):
            for _ in range(3):
                step()  # the first steps measure fourth moments too
            watched = [timed(step) for _ in range(3)]
        steps.append(min(plain))
        ratios.append(min(watched) / min(plain))
    name = f"ResNet-18, batch {batch}, float32, SGD with {'Nesterov ' if nesterov else ''}momentum"
    overhead = f"{100 * (statistics.median(ratios) - 1):.1f} %"
    return [f"{name}: overhead of checking every step", overhead, f"step {1e3 * statistics.median(steps):.0f} ms"]


def evaluating() -> list[str]:
    """The whole plan of a ResNet-18 against one `torch.sum` over the same tensors."""
    torch.manual_seed(0)
    model = build("resnet18", seed=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    images = torch.randn(8, 1, 28, 28)
    with nf.watch(model, optimizer, "cross_entropy", images) as run:
        for _ in range(3):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), torch.zeros(8, dtype=torch.long)).backward()
            optimizer.step()
        monitor = run.monitor
        tensors = [t for own in monitor.state.vectors(monitor.state.names, gradients=False, buffers=True).values() for t in own.values()]

        def read() -> list[torch.Tensor]:
            return [t.sum() for t in tensors]

        def plan() -> Values:
            return monitor.evaluate()

        pairs = [(timed(read), timed(plan)) for _ in range(15)]
    ratio = statistics.median(p / r for r, p in pairs)
    size = sum(t.numel() * t.element_size() for t in tensors) / 1e6
    return ["all charges of a ResNet-18, as a multiple of torch.sum over the same tensors", f"{ratio:.1f} x", f"{size:.0f} MB"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    chosen = parser.parse_args()
    table = Table("what", "figure", "of", title=f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    table.add_row(*deriving("ResNet-18", lambda: build("resnet18"), (4, 1, 28, 28)))
    table.add_row(*deriving("ResNet-50", resnet50, (4, 3, 224, 224)))
    table.add_row(*evaluating())
    for nesterov in (False, True):
        table.add_row(*watching(chosen.batch, chosen.rounds, nesterov=nesterov))
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
