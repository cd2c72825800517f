"""Small networks and the loops that train them, for tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import noetherflow as nf
from noetherflow.bridge.watch import Watch

Make = Callable[[nn.Module], torch.optim.Optimizer]


def convnet() -> nn.Sequential:
    """Scale, null, rescale and translation families in one net: a convolution before BatchNorm, one before ReLU, two linear layers."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 5, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(20, 6),
        nn.ReLU(),
        nn.Linear(6, 3),
    )


def linear_net() -> nn.Sequential:
    """Two matrix families."""
    return nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 6, bias=False), nn.Linear(6, 3))


INPUTS = {"convnet": (16, 1, 8, 8), "linear_net": (16, 5)}


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    shape: tuple[int, ...],
    steps: int,
    *,
    clip: float | None = None,
    accumulate: int = 1,
    scheduler: Any = None,
    seed: int = 1,
    after: Callable[[int], None] | None = None,
) -> None:
    """A plain loop on random data, as a user writes it."""
    generator = torch.Generator().manual_seed(seed)
    dtype = next(model.parameters()).dtype
    for step in range(steps):
        optimizer.zero_grad()
        for _ in range(accumulate):
            inputs = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
            targets = torch.randint(0, 3, (shape[0],), generator=generator)
            (nn.functional.cross_entropy(model(inputs), targets) / accumulate).backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        if after is not None:
            after(step)


def watched(
    build: Callable[[], nn.Module],
    make: Make,
    shape: tuple[int, ...],
    steps: int = 30,
    *,
    dtype: torch.dtype = torch.float64,
    scheduled: bool = False,
    seed: int = 0,
    watching: dict[str, Any] | None = None,
    **loop: Any,
) -> Watch:
    """Build, watch, train."""
    torch.manual_seed(seed)
    model = build().to(dtype)
    optimizer = make(model)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps) if scheduled else None
    with nf.watch(model, optimizer, "cross_entropy", torch.zeros(shape, dtype=dtype), **(watching or {})) as run:
        train(model, optimizer, shape, steps, scheduler=scheduler, **loop)
    return run
