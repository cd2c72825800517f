"""Derived symmetries against the measured rank of a network's function: how many directions no family explains, and in which parameters.

The null space of the Jacobian of the outputs, on much random data, holds every direction that the network does not see. What the derived
generators do not span of it is missing. At one point and for finite data there can be more than there are symmetries: dead units, rows of a
table that no data ask for, inputs that never vary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from noetherflow.bridge.trace import Loss, trace
from noetherflow.errors import ModelError
from noetherflow.numeric.functional_rank import jacobian_rows, null_space, reduced
from noetherflow.symbolic.gauge import symmetries
from noetherflow.symbolic.symmetries import Symmetries

INDEPENDENT = 1e-7
"""Singular values of unit vectors below this are taken for zero; the gap says whether they are."""


@dataclass(frozen=True)
class Unexplained:
    """Directions that change nothing and belong to no derived family.

    Attributes
    ----------
    parameters : int
        Trainable parameters, D.
    measured : int
        Directions that the outputs do not see: D minus the rank of their Jacobian, at these parameters and on these data.
    found : int
        Of these, how many the derived generators span.
    gap : float
        Spectral gap at the rank: 1e6 and more is a clear cut.
    basis : tuple of dict of str to Tensor
        The others, one direction each, reduced so that each has few entries.
    shares : dict of str to float
        Parameter -> its part of the squared length of all missing directions, largest first.
    broken : tuple of str
        Families that eps breaks here: exact only at eps = 0, so not among those found.
    """

    parameters: int
    measured: int
    found: int
    gap: float
    basis: tuple[dict[str, Tensor], ...]
    shares: dict[str, float]
    broken: tuple[str, ...]

    @property
    def missing(self) -> int:
        """How many directions no family explains."""
        return self.measured - self.found

    def __str__(self) -> str:
        head = f"{self.found} of {self.measured} directions of {self.parameters} parameters are derived symmetries (gap {self.gap:.0e})"
        lines = [f"  missing {self.missing}, in"] + [f"    {name}: {share:.0%}" for name, share in self.shares.items() if share > 1e-3]
        broken = [f"  broken by eps and not counted: {', '.join(self.broken)}"] if self.broken else []
        return "\n".join([head, *(lines if self.missing else []), *broken])


def unexplained(
    model: nn.Module, batches: Iterable[Tensor], loss: Loss = None, *, readout: Callable[[Tensor], Tensor] | None = None
) -> Unexplained:
    """Compare derived symmetries with the rank of the network's function.

    Parameters
    ----------
    model : nn.Module
        Small (some thousand parameters), in float64; its parameters should be in general position.
    batches : iterable of tensor
        Inputs that together give at least as many output numbers as there are parameters.
    loss : as for `noetherflow.trace`
        With "cross_entropy", logits count up to a number common to all classes (the last axis).
    readout : callable, optional
        What of the outputs a loss of your own sees.

    Returns
    -------
    Unexplained
        Sampled: what is measured is an upper bound of the symmetries, and exact with probability one for enough random data.

    Raises
    ------
    ModelError
        Too few data, derivatives that are not finite, or parameters in less than float64.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)).double()
    >>> print(unexplained(model, [torch.randn(60, 2, dtype=torch.float64)]).missing)
    0
    """
    coarse = [n for n, p in model.named_parameters() if p.requires_grad and p.dtype != torch.float64]
    if coarse:
        raise ModelError(f"Ranks are measured in float64; {coarse[:4]} are not. Use model.double().", parameters=coarse)
    data = list(batches)
    if not data:
        raise ModelError("No batches to measure a rank on. Give some inputs.")
    found = symmetries(trace(model, data[0], loss=loss))
    seen = readout or readout_of(loss)
    rows, sizes = jacobian_rows(model, data, readout=seen)
    null, gap = null_space(rows)
    spanned, broken = _spanned(model, found, sizes)
    outside = null - spanned @ (spanned.T @ null)
    vectors, lengths, _ = torch.linalg.svd(outside, full_matrices=False)
    missing = vectors[:, lengths > INDEPENDENT**0.5]
    return Unexplained(
        sum(sizes.values()),
        null.shape[1],
        null.shape[1] - missing.shape[1],
        gap,
        tuple(split(row, model, sizes) for row in reduced(missing.T)),
        _shares(missing, sizes),
        broken,
    )


def tangents(model: nn.Module, found: Symmetries, sizes: dict[str, int]) -> Tensor:
    """The generators of the exact families at the model's parameters, columns of length one."""
    point = {n: p.detach() for n, p in model.named_parameters()}
    columns = [torch.zeros(sum(sizes.values()), 0, dtype=torch.float64)]
    for symmetry in found:
        if not symmetry.breaking:
            columns += [flat(symmetry.tangent(point, e), sizes).unsqueeze(1) for e in torch.eye(symmetry.dimension, dtype=torch.float64)]
    every = torch.cat(columns, 1)
    lengths: Tensor = every.norm(dim=0).clamp(min=torch.finfo(every.dtype).tiny)
    return every / lengths


def readout_of(loss: Loss) -> Callable[[Tensor], Tensor] | None:
    """What of the outputs a loss sees, if not all."""
    return _differences if loss == "cross_entropy" else None


def _differences(logits: Tensor) -> Tensor:
    return logits[..., 1:] - logits[..., :1]


def _spanned(model: nn.Module, found: Symmetries, sizes: dict[str, int]) -> tuple[Tensor, tuple[str, ...]]:
    """An orthonormal basis of what the exact families span at the model's parameters, and the names of the broken ones."""
    every = tangents(model, found, sizes)
    vectors, lengths, _ = torch.linalg.svd(every, full_matrices=False)
    return vectors[:, lengths > INDEPENDENT], tuple(s.name for s in found if s.breaking)


def flat(tangent: dict[str, Tensor], sizes: dict[str, int]) -> Tensor:
    """A direction as one vector."""
    return torch.cat([tangent[n].reshape(-1) if n in tangent else torch.zeros(size, dtype=torch.float64) for n, size in sizes.items()])


def split(row: Tensor, model: nn.Module, sizes: dict[str, int]) -> dict[str, Tensor]:
    """A vector as a direction, by the parameters that it moves."""
    shapes = {n: p.shape for n, p in model.named_parameters()}
    pieces = zip(sizes, torch.split(row, list(sizes.values())), strict=True)
    return {n: piece.reshape(shapes[n]) for n, piece in pieces if bool((piece.abs() > INDEPENDENT).any())}


def _shares(missing: Tensor, sizes: dict[str, int]) -> dict[str, float]:
    weights = (missing**2).sum(1)
    parts = {n: float(piece.sum()) for n, piece in zip(sizes, torch.split(weights, list(sizes.values())), strict=True)}
    total = sum(parts.values()) or 1.0
    return {n: part / total for n, part in sorted(parts.items(), key=lambda item: -item[1]) if part > INDEPENDENT * total}
