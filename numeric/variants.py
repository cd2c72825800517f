"""Variants: the settings of each run of an ensemble, and the product of several lists of settings."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

from noetherflow.errors import RunError

__all__ = ["Variant", "variants"]


@dataclass(frozen=True, slots=True)
class Variant:
    """One run of an ensemble: torch.optim.SGD's options, a seed, and a width.

    Parameters
    ----------
    lr, momentum, dampening, weight_decay, nesterov
        As for `torch.optim.SGD`, with the same restrictions.
    seed : int
        Seeds the run's own initialisation and its own mini-batches.
    width : int
        What the model's factory makes of it; 0 where models have one size.

    Raises
    ------
    RunError
        For values that torch.optim.SGD refuses.

    Examples
    --------
    >>> Variant(lr=0.1, momentum=0.9).nesterov
    False
    """

    lr: float
    seed: int = 0
    width: int = 0
    momentum: float = 0.0
    dampening: float = 0.0
    weight_decay: float = 0.0
    nesterov: bool = False

    def __post_init__(self) -> None:
        numbers = {"lr": self.lr, "momentum": self.momentum, "weight_decay": self.weight_decay}
        wrong = {name: value for name, value in numbers.items() if not (math.isfinite(value) and value >= 0)}
        if wrong or not math.isfinite(self.dampening):
            raise RunError(
                f"A run needs finite options, lr, momentum and weight_decay not negative; got {wrong or {'dampening': self.dampening}}.",
                variant=wrong,
            )
        if self.nesterov and (self.momentum == 0 or self.dampening != 0):
            raise RunError(
                f"Nesterov momentum needs momentum > 0 and dampening = 0, as in torch.optim.SGD; got momentum={self.momentum}, "
                f"dampening={self.dampening}."
            )

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of torch.optim.SGD."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("seed", "width")}


def variants(**settings: Any) -> tuple[Variant, ...]:
    """Every combination of settings; a sequence is run through, a single value holds for all.

    Parameters
    ----------
    **settings
        Fields of `Variant`, each a value or a sequence of values; the last one named varies fastest.

    Returns
    -------
    tuple of Variant

    Raises
    ------
    RunError
        For a setting that there is not, an empty sequence, or values that torch.optim.SGD refuses.

    Examples
    --------
    >>> runs = variants(width=[4, 8], lr=[0.1, 0.05], seed=range(75), momentum=0.9)
    >>> len(runs), runs[0].lr, runs[-1].width
    (300, 0.1, 8)
    """
    known = [f.name for f in fields(Variant)]
    unknown = sorted(set(settings) - set(known))
    if unknown:
        raise RunError(f"A run has no setting {unknown}; it has {', '.join(known)}.", unknown=unknown)
    lists = {name: _listed(value) for name, value in settings.items()}
    empty = [name for name, values in lists.items() if not values]
    if empty:
        raise RunError(f"No value is given for {empty}, so there is no run. Give at least one.", empty=empty)
    return tuple(Variant(**dict(zip(lists, chosen, strict=True))) for chosen in itertools.product(*lists.values()))


def _listed(value: Any) -> Sequence[Any]:
    return list(value) if isinstance(value, Iterable) else [value]
