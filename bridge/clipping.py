"""What gradients were multiplied with between the backward pass and the step: clipping, loss scaling.

A current is captured in the backward pass, but the law needs what the optimizer sees. The factor is read off the gradients of a few small
parameters, ⟨after, before⟩ / ⟨before, before⟩, taken as soon as they have accumulated and again before the step; of parameters that the law
itself does not move, so that whoever scales one layer's gradient alone is found out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn

SAMPLE: Final = 2**16
"""Largest number of entries of a gradient that are looked at, evenly spread."""

REFERENCES: Final = 3
"""Number of parameters that a factor is read off: one alone may have no gradient."""


@dataclass
class Clipping:
    """Gradients of chosen parameters as the backward pass left them.

    Parameters
    ----------
    model : nn.Module
    names : iterable of str
        Parameters that factors may be read off.

    Examples
    --------
    >>> model = nn.Linear(2, 1)
    >>> clipping = Clipping(model, ["weight"])
    >>> clipping.attach()
    >>> model(torch.ones(1, 2)).sum().backward()
    >>> _ = nn.utils.clip_grad_norm_([model.weight], 0.25 * 2**0.5)
    >>> round(clipping.factor(["weight"]), 4)
    0.25
    """

    model: nn.Module
    names: Iterable[str]
    _before: dict[str, Tensor] = field(default_factory=dict)
    _handles: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._parameters = {name: self.model.get_parameter(name) for name in self.names}

    def attach(self) -> None:
        """Put the hooks on."""
        for name, parameter in self._parameters.items():
            handle = parameter.register_post_accumulate_grad_hook(partial(self._keep, name))  # type: ignore[no-untyped-call]
            self._handles.append(handle)

    def detach(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def clear(self) -> None:
        """A step is over."""
        self._before.clear()

    def factor(self, names: Iterable[str]) -> float:
        """What the gradients of some parameters were multiplied with since they accumulated; 1 if all are zero or were not seen."""
        product = size = 0.0
        for name in names:
            before, gradient = self._before.get(name), self._parameters[name].grad
            if before is not None and gradient is not None:
                product += float((_sample(gradient) * before).sum())
                size += float((before * before).sum())
        return product / size if size > 0 else 1.0

    def _keep(self, name: str, parameter: Tensor) -> None:
        if parameter.grad is not None:
            self._before[name] = _sample(parameter.grad)


def references(model: nn.Module, moved: Iterable[str]) -> tuple[str, ...]:
    """The smallest trainable parameters, those that a law does not move first.

    Examples
    --------
    >>> references(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1)), ["1.bias"])
    ('0.bias', '1.weight', '0.weight')
    """
    own = set(moved)
    trained = [(name in own, parameter.numel(), name) for name, parameter in model.named_parameters() if parameter.requires_grad]
    return tuple(name for _, _, name in sorted(trained)[:REFERENCES])


def _sample(gradient: Tensor) -> Tensor:
    """Entries in float64, as a copy that clipping in place does not change."""
    flat = gradient.detach().reshape(-1)
    return flat[:: max(1, flat.numel() // SAMPLE)].to(torch.float64, copy=True)
