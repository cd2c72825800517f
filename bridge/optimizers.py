"""From a torch optimizer to its learning rule, and its state to the rule's vectors.

`rule_of` reads which update equations each parameter group follows; what changes from step to step (step sizes, momenta) is read at each.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

import torch

from noetherflow.errors import RuleError
from noetherflow.symbolic.rules import Group, Rule, sgd_form


class Reader(Protocol):
    """How one optimizer class is read: its update equations, its numbers, and where it keeps each buffer."""

    def form(self, options: Mapping[str, Any]) -> Any:
        """The `Form` of a parameter group."""
        ...

    def values(self, options: Mapping[str, Any], *, first: bool) -> dict[str, float]:
        """Hyper-parameters by the names of the form, as the next step will use them."""
        ...

    def buffer(self, state: Mapping[str, Any]) -> torch.Tensor | None:
        """The momentum buffer, None before it exists."""
        ...


@dataclass(frozen=True)
class SGDReader:
    """torch.optim.SGD."""

    def form(self, options: Mapping[str, Any]) -> Any:
        """Momentum, Nesterov and maximize decide which equations there are."""
        return sgd_form(momentum=options["momentum"] != 0, nesterov=bool(options["nesterov"]), maximize=bool(options["maximize"]))

    def values(self, options: Mapping[str, Any], *, first: bool) -> dict[str, float]:
        """The step that makes the buffer sets b' = h: no dampening."""
        known = {"lr": float(options["lr"]), "weight_decay": float(options["weight_decay"])}
        if options["momentum"] != 0:
            known |= {"momentum": float(options["momentum"]), "dampening": 0.0 if first else float(options["dampening"])}
        return known

    def buffer(self, state: Mapping[str, Any]) -> torch.Tensor | None:
        """`momentum_buffer`."""
        found: torch.Tensor | None = state.get("momentum_buffer")
        return found


READERS: Final[dict[type, Reader]] = {torch.optim.SGD: SGDReader()}


def reader_of(optimizer: torch.optim.Optimizer) -> Reader:
    """The reader for an optimizer's exact class; a subclass may step differently and is refused.

    Raises
    ------
    RuleError
        If the class is not known.
    """
    reader = READERS.get(type(optimizer))
    if reader is None:
        raise RuleError(
            f"No rule is known for {type(optimizer).__module__}.{type(optimizer).__qualname__}. Known: "
            f"{', '.join(sorted(kind.__name__ for kind in READERS))}. A subclass may change the update, so it is not taken for its base. "
            "Write its update equations (noetherflow.symbolic.rules.Form) and register a reader in noetherflow.bridge.optimizers.READERS.",
            optimizer=type(optimizer).__qualname__,
        )
    return reader


def rule_of(optimizer: torch.optim.Optimizer) -> Rule:
    """The exact rule of a torch optimizer, one group per parameter group with its own values.

    Raises
    ------
    RuleError
        If the optimizer's class is not known.

    Examples
    --------
    >>> w = torch.nn.Parameter(torch.zeros(2))
    >>> rule_of(torch.optim.SGD([w], lr=0.1, momentum=0.9)).groups[0].form.name
    'SGD with momentum'
    """
    reader = reader_of(optimizer)
    groups = [
        Group(reader.form(options), reader.values(options, first=False), frozenset(id(p) for p in options["params"]))
        for options in optimizer.param_groups
    ]
    return Rule(tuple(groups))
