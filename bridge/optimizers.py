"""From a torch optimizer to its learning rule.

`rule_of` reads which update equations each parameter group follows; what changes from step to step (step sizes, momenta) is read at each.
"""

from __future__ import annotations

import torch

from noetherflow.bridge.optimizer_readers import READERS, Reader, SGDReader
from noetherflow.errors import RuleError
from noetherflow.symbolic.forms import Group, Rule

__all__ = ["READERS", "Reader", "SGDReader", "reader_of", "rule_of"]


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
            "Write its update equations (noetherflow.symbolic.forms.Form) and register a reader in noetherflow.bridge.optimizers.READERS.",
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
    >>> rule_of(torch.optim.AdamW([w])).groups[0].form.name
    'AdamW'
    """
    reader = reader_of(optimizer)
    groups = [
        Group(reader.form(options), reader.values(options, None), frozenset(id(p) for p in options["params"]))
        for options in optimizer.param_groups
    ]
    return Rule(tuple(groups))
