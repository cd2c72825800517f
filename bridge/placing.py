"""Where a normalisation's statistics belong among a family's charges."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

from torch import Tensor

from noetherflow.errors import RunError
from noetherflow.symbolic.actions import Index, Patch
from noetherflow.symbolic.symmetries import Absorber


@dataclass(frozen=True, slots=True)
class Placing:
    """A family's part of the axes that statistics are kept for, and where its indices lie there.

    Parameters
    ----------
    node : str
        Of the normalisation, for messages.
    patch : Patch
    places : tuple of int
        For each index of the family, the dimension of the patch that carries it.
    sizes : tuple of int
        Of the axes, as traced.
    """

    node: str
    patch: Patch
    places: tuple[int, ...]
    sizes: tuple[int, ...]

    @classmethod
    def of(cls, site: Absorber) -> Placing:
        """That of an absorber."""
        return cls(site.node, site.patch, site.places, tuple(int(size) for size in site.sizes))

    def summed(self, statistics: Tensor) -> Tensor:
        """Sum what statistics contribute onto the family's charges.

        A batch or a sequence may have another length in the run than in the trace: the outermost index of such an axis grows or shrinks.

        Parameters
        ----------
        statistics : Tensor, shape (kept axes...)

        Returns
        -------
        Tensor, shape (charges,)

        Raises
        ------
        RunError
            If an axis that the family's charges lie along, or that it covers in part only, has another size than in the trace.

        Examples
        --------
        >>> import torch
        >>> from noetherflow.symbolic.actions import Index, Patch
        >>> patch = Patch((0, 0), (Index(0, 4, 1, 0), Index(1, 3, 1, 1)))
        >>> Placing("norm", patch, (1,), (4, 3)).summed(torch.ones(2, 3))
        tensor([2., 2., 2.])
        """
        block = self._patch_for(tuple(statistics.shape)).view(statistics.contiguous())
        block = block.movedim(self.places, tuple(range(len(self.places))))
        out: Tensor = block.reshape(*block.shape[: len(self.places)], -1).sum(-1).reshape(-1)
        return out

    def _patch_for(self, sizes: tuple[int, ...]) -> Patch:
        if len(sizes) != len(self.sizes):
            raise self._error(sizes)
        patch = self.patch
        for axis, (size, traced) in enumerate(zip(sizes, self.sizes, strict=True)):
            if size != traced:
                patch = self._resized(patch, axis, size, sizes)
        return patch

    def _resized(self, patch: Patch, axis: int, size: int, sizes: tuple[int, ...]) -> Patch:
        along = [d for d, index in enumerate(patch.indices) if index.axis == axis]
        if self.sizes[axis] == 1:
            return replace(patch, indices=(*patch.indices, Index(axis, size, 1, -1)))
        outer = max(along, key=lambda d: patch.indices[d].stride, default=-1)
        covered = prod(patch.indices[d].size for d in along) == self.sizes[axis]
        if outer < 0 or outer in self.places or not covered or size % patch.indices[outer].stride:
            raise self._error(sizes)
        longer = replace(patch.indices[outer], size=size // patch.indices[outer].stride)
        return replace(patch, indices=(*patch.indices[:outer], longer, *patch.indices[outer + 1 :]))

    def _error(self, sizes: tuple[int, ...]) -> RunError:
        return RunError(
            f"The statistics of the normalisation at '{self.node}' have shape {sizes}; the network was traced with {self.sizes}, and a "
            "law's charges lie along what differs. Give example_inputs of the shape that the run uses.",
            node=self.node,
        )
