"""Functions that theory says a flow conserves, as what a count needs of them: their gradients at a point."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from noetherflow.bridge.charge_gradients import charge_directions, cleared
from noetherflow.numeric.brackets import Params, flattened
from noetherflow.numeric.flows import Flow
from noetherflow.numeric.modular import residues
from noetherflow.symbolic.laws import Laws
from noetherflow.symbolic.symmetries import Symmetry


@dataclass(frozen=True)
class Conserved:
    """One family of conserved functions.

    Attributes
    ----------
    name : str
    gradients : callable
        (state, prime or None) -> the gradients there, one dict for each function. The state is a true point, never residues; what is not
        exact in float64 there is given as residues if there is a prime.
    """

    name: str
    gradients: Callable[[Params, int | None], Iterator[Params]]


class CountedFlow(Protocol):
    """A flow, with what theory says of it."""

    @property
    def flow(self) -> Flow:
        """Its vector fields."""
        ...

    def conserved(self, laws: Laws) -> list[Conserved]:
        """What of a graph's laws it has."""
        ...

    def described(self) -> dict[str, Any]:
        """For a certificate."""
        ...


def gradient_rows(conserved: Sequence[Conserved], state: Params, prime: int | None) -> tuple[Tensor, list[int]]:
    """Gradients of conserved functions at a true point, shape (functions, coordinates), and for each the place of its family.

    Residues if there is a prime: the point's numbers are short enough for products of three to be exact.
    """
    rows, owners = [torch.zeros(0, sum(x.numel() for x in state.values()), dtype=torch.float64)], []
    for number, family in enumerate(conserved):
        for gradient in family.gradients(state, prime):
            whole = {name: gradient.get(name, torch.zeros_like(x)) for name, x in state.items()}
            rows.append(flattened(whole).unsqueeze(0))
            owners.append(number)
    every = torch.cat(rows)
    return (residues(every, prime) if prime else every), owners


def tangents(symmetry: Symmetry, generators: str = "symmetric") -> Callable[[Params, int | None], Iterator[Params]]:
    """The generators that have charges, as gradients of these."""
    whole = cleared(symmetry)

    def rows(state: Params, prime: int | None) -> Iterator[Params]:
        for direction in charge_directions(whole, generators):
            yield whole.tangent(state, direction)

    return rows
