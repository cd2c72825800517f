"""Laws that hold only here: at these parameters (a unit that is dead) or for these data (a pixel that is constant).

A direction v that the outputs do not see at a point, on all the data, gets no gradient, so v·θ stays as it is for as long as that lasts.
Derived symmetries give such directions everywhere and for all data. What the measured rank of the network's function leaves beside them
(`noetherflow.bridge.unexplained`) holds here only, or is missing from the derived list. Which of these, a second look decides:

    unseen also on random data                  it is the parameters: only here
    seen on random data                         it is the data: only for these
    missing at random parameters too, on random data      no derived family explains it anywhere
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from noetherflow.bridge.missing_laws import described
from noetherflow.bridge.trace import Loss, trace
from noetherflow.bridge.unexplained import INDEPENDENT, Unexplained, flat, readout_of, split, tangents, unexplained
from noetherflow.numeric import hashed
from noetherflow.numeric.functional_rank import FunctionalRank, jacobian_rows, reduced
from noetherflow.symbolic.gauge import symmetries

POINTS: Final = 3
"""Random parameters may have dead units of their own; of so many points the one with fewest missing directions counts."""

Directions = tuple[dict[str, Tensor], ...]


@dataclass(frozen=True)
class LocalLaws:
    """Directions without gradient, told apart by what they depend on.

    Attributes
    ----------
    functional : FunctionalRank
        Rank of the outputs' Jacobian at the model's parameters, on its data, with the spectral gap.
    universal : int
        Directions of derived symmetries: they are there at all parameters and for all data.
    here : tuple of dict of str to Tensor
        A basis of those that hold at these parameters, whatever the data (at a random point some may be missing from theory: `underived`).
    data : tuple of dict of str to Tensor
        A basis of the others: they hold for these data.
    lasting : int
        How many of the latter are there at random parameters too.
    underived : int
        Directions that no derived family explains at random parameters, on random data.
    broken : tuple of str
        Families that eps breaks: not counted as universal.
    """

    functional: FunctionalRank
    universal: int
    here: Directions
    data: Directions
    lasting: int
    underived: int
    broken: tuple[str, ...]

    def __str__(self) -> str:
        lines = [
            f"{self.functional.defect} of {self.functional.parameters} directions without gradient (gap {self.functional.gap:.0e}): "
            f"{self.universal} by symmetry, {len(self.here)} only at these parameters, {len(self.data)} only for these data"
        ]
        lines += [f"  only here: {described(direction)}" for direction in self.here]
        lines += [f"  only for these data: {described(direction)}" for direction in self.data]
        lines += [f"  at other parameters too, for these data: {self.lasting} of {len(self.data)}"] if self.data else []
        lines += [f"  not derived, everywhere: {self.underived}"] if self.underived else []
        lines += [f"  broken by eps, so not by symmetry: {', '.join(self.broken)}"] if self.broken else []
        return "\n".join(lines)


def local_laws(
    model: nn.Module, batches: Iterable[Tensor], loss: Loss = None, *, readout: Callable[[Tensor], Tensor] | None = None, seed: int = 0
) -> LocalLaws:
    """Tell what holds only at a model's parameters, or only for some data, from its symmetries.

    Parameters
    ----------
    model : nn.Module
        Small (some thousand parameters), in float64.
    batches : iterable of tensor
        The data; together they must give at least as many output numbers as there are parameters.
    loss, readout
        As for `noetherflow.unexplained`.
    seed : int
        Of the random parameters and data that it is compared with.

    Returns
    -------
    LocalLaws
        Measured: exact with probability one if the spectral gap is clear.

    Raises
    ------
    ModelError
        Too few data, derivatives that are not finite, or parameters in less than float64.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)).double()
    >>> with torch.no_grad():
    ...     _ = model[0].weight.copy_(torch.tensor([[1.0, 2.0], [-1.0, 0.5], [0.5, 0.5]]))
    ...     _ = model[0].bias.copy_(torch.tensor([0.1, 0.2, -50]))
    >>> print(local_laws(model, [torch.randn(90, 2, dtype=torch.float64)]))  # doctest: +ELLIPSIS
    6 of 13 directions without gradient (gap ...): 3 by symmetry, 3 only at these parameters, 0 only for these data
      only here: ...
    """
    data = list(batches)
    found = unexplained(model, data, loss, readout=readout)
    drawn = [_drawn(f"{seed}/data/{i}", batch) for i, batch in enumerate(data)]
    rows, sizes = jacobian_rows(model, drawn, readout=readout or readout_of(loss))
    missing = torch.stack([flat(direction, sizes) for direction in found.basis], 1) if found.basis else rows.new_zeros(rows.shape[1], 0)
    here, only_data = _parted(torch.linalg.qr(missing)[0], rows)
    known = tangents(model, symmetries(trace(model, data[0], loss=loss)), sizes).T
    elsewhere = [_moved(model, f"{seed}/{k}") for k in range(POINTS)]
    return LocalLaws(
        FunctionalRank(found.parameters, found.parameters - found.measured, found.gap),
        found.found,
        tuple(split(_sparser(row, known), model, sizes) for row in reduced(here.T)),
        tuple(split(_sparser(row, known), model, sizes) for row in reduced(only_data.T)),
        _fewest(unexplained(other, data, loss, readout=readout) for other in elsewhere) if only_data.shape[1] else 0,
        _fewest(unexplained(other, drawn, loss, readout=readout) for other in elsewhere),
        found.broken,
    )


def _parted(missing: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """What other data do not see of some directions either, and the rest."""
    if not missing.shape[1]:
        return missing, missing
    seen = rows @ missing / torch.linalg.matrix_norm(rows, 2)
    _, lengths, vectors = torch.linalg.svd(seen, full_matrices=True)
    rank = int((lengths > INDEPENDENT).sum())
    return missing @ vectors[rank:].T, missing @ vectors[:rank].T


def _sparser(row: Tensor, known: Tensor) -> Tensor:
    """A direction less the multiples of known ones that leave it with fewest entries: the ratio that most entries share is taken back."""
    for generator in known:
        at = generator.abs() > INDEPENDENT
        ratios = row[at] / generator[at]
        shared = [int(((ratios - ratio).abs() < INDEPENDENT * ratios.abs().max()).sum()) for ratio in ratios]
        if shared and max(shared) > int((row[at].abs() < INDEPENDENT).sum()):
            row = row - ratios[shared.index(max(shared))] * generator
    row = torch.where(row.abs() > INDEPENDENT, row, 0.0)
    return row / row[row.abs().argmax()]


def _drawn(label: str, batch: Tensor) -> Tensor:
    """Data in general position: numbers as large as those given, indices that occur."""
    if not batch.is_floating_point():
        return hashed.indices(label, batch.shape, int(batch.max()) + 1).to(batch.dtype)
    scale = float(batch.abs().max()) or 1.0
    return (hashed.reals(label, batch.shape, 0.05, 1.0) * scale).to(batch.dtype)


def _moved(model: nn.Module, label: str) -> nn.Module:
    """A copy with parameters in general position."""
    copy = deepcopy(model)
    with torch.no_grad():
        for name, p in copy.named_parameters():
            p.copy_(hashed.reals(f"{label}/{name}", p.shape, 0.3, 1.3).to(p.dtype))
    return copy


def _fewest(counts: Iterator[Unexplained]) -> int:
    least = 0
    for number, count in enumerate(counts):
        least = count.missing if number == 0 else min(least, count.missing)
        if not least:
            break
    return least
