"""Optimizers of torch.optim other than SGD, one row for each option that changes their equations or the kernels that follow them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
from torch import nn, optim

Make = Callable[[nn.Module], torch.optim.Optimizer]


def matrices() -> nn.Sequential:
    """Weights only, as Muon wants them: a rescale, a matrix and a translation family."""
    layers = [nn.Linear(5, 4, bias=False), nn.ReLU(), nn.Linear(4, 6, bias=False), nn.Linear(6, 3, bias=False)]
    return nn.Sequential(*layers)


def mixed() -> nn.Sequential:
    """Scale, null, rescale, matrix and translation families in one net."""
    return nn.Sequential(
        nn.Conv2d(1, 3, 3),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(12, 5),
        nn.ReLU(),
        nn.Linear(5, 4),
        nn.Linear(4, 3),
    )


def perceptron() -> nn.Sequential:
    """A rescale and two translation families."""
    return nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3))


SHAPES: Final[dict[Callable[[], nn.Module], tuple[int, ...]]] = {mixed: (12, 1, 6, 6), perceptron: (12, 5), matrices: (12, 5)}


def alone(kind: type[torch.optim.Optimizer], **options: Any) -> Make:
    return lambda model: kind(model.parameters(), **options)  # type: ignore[call-arg]


def halved(kind: type[torch.optim.Optimizer], first: dict[str, Any], second: dict[str, Any], **options: Any) -> Make:
    def make(model: nn.Module) -> torch.optim.Optimizer:
        parameters = list(model.parameters())
        return kind([{"params": parameters[::2], **first}, {"params": parameters[1::2], **second}], **options)  # type: ignore[call-arg]

    return make


RULES: Final[dict[str, Make]] = {
    "adam": alone(optim.Adam, lr=1e-3),
    "adam, coupled decay": alone(optim.Adam, lr=1e-3, weight_decay=1e-2, betas=(0.8, 0.99)),
    "adam, no momentum": alone(optim.Adam, lr=1e-3, betas=(0.0, 0.9), eps=1e-3),
    "adam, fused": alone(optim.Adam, lr=1e-3, fused=True),
    "adamw": alone(optim.AdamW, lr=1e-3, weight_decay=0.1),
    "adamw, one by one": alone(optim.AdamW, lr=1e-3, weight_decay=0.1, foreach=False),
    "adamw, tensor step size": alone(optim.AdamW, lr=torch.tensor(1e-3, dtype=torch.float64), foreach=False),
    "amsgrad": alone(optim.Adam, lr=1e-3, amsgrad=True, maximize=True),
    "adamw, amsgrad": alone(optim.AdamW, lr=1e-3, amsgrad=True),
    "nadam": alone(optim.NAdam, lr=1e-3, weight_decay=1e-2),
    "nadam, decoupled": alone(optim.NAdam, lr=1e-3, weight_decay=0.1, decoupled_weight_decay=True, momentum_decay=0.1, foreach=False),
    "rmsprop": alone(optim.RMSprop, lr=1e-3, weight_decay=1e-2),
    "rmsprop, momentum": alone(optim.RMSprop, lr=1e-3, momentum=0.9, alpha=0.9),
    "rmsprop, centred": alone(optim.RMSprop, lr=1e-3, centered=True, maximize=True),
    "rmsprop, centred with momentum": alone(optim.RMSprop, lr=1e-3, centered=True, momentum=0.9, weight_decay=1e-2),
    "adagrad": alone(optim.Adagrad, lr=1e-2, lr_decay=0.1, weight_decay=1e-2),
    "adagrad, filled": alone(optim.Adagrad, lr=1e-2, initial_accumulator_value=0.1),
    "adadelta": alone(optim.Adadelta, weight_decay=1e-2),
    "adamw, decay in one group": halved(optim.AdamW, {"weight_decay": 0.1}, {"weight_decay": 0.0}, lr=1e-3),
    "adam, group rates and momenta": halved(optim.Adam, {"lr": 1e-3}, {"lr": 3e-3, "betas": (0.8, 0.99)}),
    "rmsprop, momentum in one group": halved(optim.RMSprop, {"momentum": 0.9}, {"momentum": 0.0}, lr=1e-3, weight_decay=1e-2),
}
MATRIX_RULES: Final[dict[str, Make]] = {
    "muon": alone(optim.Muon, lr=1e-2),
    "muon, plain": alone(optim.Muon, lr=1e-2, nesterov=False, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
    "muon, group rates": halved(optim.Muon, {"lr": 1e-2}, {"lr": 1e-3}),
}
