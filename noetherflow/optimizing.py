"""The optimizers that the command line builds: a name, torch.optim's class, its usual step size, and which options it takes."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn

from noetherflow.errors import RunError
from noetherflow.numeric.companions import muon_with_adamw


@dataclass(frozen=True, slots=True)
class Choice:
    """One optimizer.

    Attributes
    ----------
    build : callable
        torch.optim's class.
    make : callable, optional
        (model, options) -> the optimizer, where the class does not take all of a model's parameters.
    lr : float
        Step size if none is given.
    options : callable
        The command line's options -> the optimizer's, besides the step size, the decay and `maximize`.
    shown : str
        What to say of those options, a format of the command line's names.
    """

    build: Callable[..., torch.optim.Optimizer]
    lr: float
    options: Callable[[Namespace], dict[str, Any]] = lambda chosen: {}
    shown: str = ""
    make: Callable[..., torch.optim.Optimizer] | None = None


def _sgd(chosen: Namespace) -> dict[str, Any]:
    return {"momentum": chosen.momentum, "dampening": chosen.dampening, "nesterov": chosen.nesterov}


def _betas(chosen: Namespace) -> dict[str, Any]:
    return {"betas": (chosen.momentum, 0.999)}


def _muon(model: nn.Module, *, maximize: bool, **options: Any) -> torch.optim.Optimizer:
    if maximize:
        raise RunError("torch.optim.Muon does not ascend. Leave --maximize out, or choose another optimizer.")
    return muon_with_adamw(model, **options)


OPTIMIZERS: Final[dict[str, Choice]] = {
    "sgd": Choice(torch.optim.SGD, 0.05, _sgd, ", momentum {momentum:g}"),
    "adam": Choice(torch.optim.Adam, 1e-3, _betas, ", betas {momentum:g}, 0.999"),
    "adamw": Choice(torch.optim.AdamW, 1e-3, _betas, ", betas {momentum:g}, 0.999"),
    "amsgrad": Choice(torch.optim.Adam, 1e-3, lambda chosen: _betas(chosen) | {"amsgrad": True}, ", betas {momentum:g}, 0.999, AMSGrad"),
    "nadam": Choice(torch.optim.NAdam, 1e-3, _betas, ", betas {momentum:g}, 0.999"),
    "rmsprop": Choice(torch.optim.RMSprop, 1e-3, lambda chosen: {"momentum": chosen.momentum}, ", momentum {momentum:g}"),
    "adagrad": Choice(torch.optim.Adagrad, 1e-2),
    "adadelta": Choice(torch.optim.Adadelta, 1.0),
    "muon": Choice(
        torch.optim.Muon,
        0.02,
        lambda chosen: {"momentum": chosen.momentum, "nesterov": chosen.nesterov},
        ", momentum {momentum:g}, with AdamW lr 0.001 for what is no matrix",
        _muon,
    ),
}


def built(chosen: Namespace, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer that the command line asks for; fills in its usual step size if none was given."""
    choice = OPTIMIZERS[chosen.optimizer]
    chosen.lr = choice.lr if chosen.lr is None else chosen.lr
    common = {"lr": chosen.lr, "weight_decay": chosen.weight_decay, "maximize": chosen.maximize}
    if choice.make is not None:
        return choice.make(model, **common, **choice.options(chosen))
    return choice.build(model.parameters(), **common, **choice.options(chosen))


def described(chosen: Namespace) -> str:
    """The optimizer in words, for a report."""
    choice = OPTIMIZERS[chosen.optimizer]
    text = f"{choice.build.__name__} lr {chosen.lr:g}" + choice.shown.format(**vars(chosen)) + f", weight decay {chosen.weight_decay:g}"
    if chosen.optimizer == "sgd":
        text += (", Nesterov" if chosen.nesterov else "") + (f", dampening {chosen.dampening:g}" if chosen.dampening else "")
    return text + (", maximize" if chosen.maximize else "")
