"""Training in bfloat16: what rounds more than a parameter's own roundoff, and always in the same sense, is in the bounds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.cases import Block
from torch import Tensor, nn
from torch.nn import functional as F

import noetherflow as nf
from noetherflow.bridge.noise import repeated_variance, scattered_lengths, scattered_variance
from noetherflow.bridge.trace import trace
from noetherflow.numeric.report import Report

Half = torch.bfloat16
WIDTH = 8


def stream(norm: Callable[[int], nn.Module]) -> nn.Module:
    """An embedding, a residual stream with norms that have no gain, a head."""

    def forward(s: Any, t: Tensor) -> Tensor:
        x = s.e(t)
        return s.head(s.last(x + s.b(F.relu(s.a(s.norm(x))))))

    layers = {"a": nn.Linear(WIDTH, 16), "b": nn.Linear(16, WIDTH), "head": nn.Linear(WIDTH, 13)}
    return Block(forward, e=nn.Embedding(13, WIDTH), norm=norm(WIDTH), last=norm(WIDTH), **layers)


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "rms_norm": lambda d: nn.RMSNorm(d, eps=1e-5, elementwise_affine=False),
    "layer_norm": lambda d: nn.LayerNorm(d, elementwise_affine=False),
}


def report_of(norm: str, steps: int, *, vocabulary: int = 13, batch: int = 16, lr: float = 0.05, seed: int = 0, **watching: Any) -> Report:
    torch.manual_seed(seed)
    model = stream(NORMS[norm]).to(Half)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    with nf.watch(model, optimizer, "cross_entropy", (torch.randint(vocabulary, (batch, 6)),), **watching) as run:
        for _ in range(steps):
            optimizer.zero_grad()
            tokens = torch.randint(vocabulary, (batch, 6))
            F.cross_entropy(model(tokens).flatten(0, 1), ((5 * tokens + 1) % 13).flatten()).backward()
            optimizer.step()
    return run.report()


# --- rows that are summed in half precision: two tokens, hundreds of positions for each


@pytest.mark.parametrize("norm", NORMS)
def test_an_embedding_whose_rows_are_read_often_holds(norm: str) -> None:
    report = report_of(norm, 12, vocabulary=2, batch=512)
    assert report.holds, report.sentence()
    assert all(f.ratio >= 1e-3 for f in report.families if f.residual > 0)


@pytest.mark.parametrize("norm", NORMS)
def test_without_it_the_rotations_of_the_stream_would_fail(norm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("noetherflow.bridge.watch.scattered_lengths", lambda graph, device: {})
    assert [f.name for f in report_of(norm, 12, vocabulary=2, batch=512).failed] == ["rotation e.weight +4"]


@pytest.mark.parametrize("count", [100, 300, 3000])
@pytest.mark.parametrize("coherent", [True, False])
def test_the_bound_of_a_sum_in_half_precision_holds_and_is_not_loose(count: int, coherent: bool) -> None:
    torch.manual_seed(0)
    table = nn.Embedding(1, 500).to(Half)
    summands = (torch.ones(count, 500) + 0.3 * torch.randn(count, 500) if coherent else torch.randn(count, 500)).to(Half)
    (table(torch.zeros(count, dtype=torch.long)) * summands).sum().backward()
    assert table.weight.grad is not None
    found, exact = table.weight.grad[0].double(), summands.double().sum(0)
    largest = torch.maximum(summands.double().cumsum(0).abs().amax(0), found.abs())
    deviation = float(scattered_variance(torch.tensor(float(count)), torch.tensor(2.0**-8)).sqrt()) * largest
    ratio = float(((found - exact).abs() / deviation).amax())
    assert ratio < 6
    assert ratio > (0.05 if coherent or count < 1000 else 1e-3)


def test_tables_that_nothing_picks_from_sum_products_in_float32() -> None:
    graph = trace(stream(NORMS["rms_norm"]), torch.zeros(4, 6, dtype=torch.long))
    assert scattered_lengths(graph, torch.device("cpu")) == {"e.weight": 24}
    assert scattered_lengths(graph, torch.device("cuda")) == {}


# --- steps below a roundoff, which are lost again and again


@pytest.mark.parametrize("norm", NORMS)
def test_small_steps_hold(norm: str) -> None:
    report = report_of(norm, 200, lr=0.001)
    assert report.holds, report.sentence()


def test_they_need_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("noetherflow.bridge.monitor.repeated_variance", lambda rounded, stepped, momentum: torch.zeros_like(rounded))
    assert [f.name for f in report_of("rms_norm", 200, lr=0.001).failed] == ["translation head.weight"]


def updates(momentum: float, size: float) -> tuple[float, float]:
    """The largest error of sums of 64 entries after 200 steps in bfloat16, over its bound with and without what repeats itself."""
    torch.manual_seed(0)
    steps, shape = 200, (50, 64)
    start, drift = (1 + torch.rand(shape, dtype=torch.float64)).to(Half).double(), torch.randn(shape, dtype=torch.float64)
    theta, exact, buffer = start, start, torch.zeros_like(start)
    independent, repeated = torch.zeros(len(start), dtype=torch.float64), torch.zeros(len(start), dtype=torch.float64)
    for _ in range(steps):
        buffer = (momentum * buffer + drift + torch.randn(shape, dtype=torch.float64)).to(Half).double()
        theta, exact = (theta - size * buffer).to(Half).double(), exact - size * buffer
        rounded, stepped = 2.0**-16 * theta.square().sum(1), size**2 * buffer.square().sum(1)
        independent, repeated = independent + rounded, repeated + repeated_variance(rounded, stepped, momentum).sqrt()
    error = (theta - exact).sum(1).abs()
    return float((error / (independent + repeated**2).sqrt()).amax()), float((error / independent.sqrt()).amax())


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_bound_of_updates_holds_and_is_not_loose(momentum: float) -> None:
    """Steps of all sizes, from far above a roundoff to far below it."""
    found = [updates(momentum, 2.0**-power) for power in range(1, 16, 2)]
    assert all(0.01 < ratio < 4 for ratio, _ in found)
    assert max(without for _, without in found) > 8


@pytest.mark.parametrize("kind", ["momentum", "sign"])
def test_what_is_wrong_is_still_found_out(kind: str) -> None:
    assert report_of("rms_norm", 40, sabotage=kind, lr=0.3).failed
