"""Where a normalisation's statistics belong among a family's charges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor

from noetherflow.errors import RunError
from noetherflow.symbolic.actions import Index, Patch
from noetherflow.symbolic.broken import Site
from noetherflow.symbolic.picks import Chosen
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
    picked : tuple of Chosen
        Of the last axes, which statistics do not have: how data chose an index along them.
    """

    node: str
    patch: Patch
    places: tuple[int, ...]
    sizes: tuple[int, ...]
    picked: tuple[Chosen, ...] = ()

    @classmethod
    def of(cls, site: Absorber | Site) -> Placing:
        """That of an absorber, or of a function that breaks a family."""
        return cls(site.node, site.patch, site.places, tuple(int(size) for size in site.sizes), site.picked)

    @property
    def chosen_at(self) -> str:
        """The node that picks by the indices which are needed; '' if none are."""
        return self.picked[0].node if self.picked else ""

    @property
    def problem(self) -> str:
        """Why the indices that are needed cannot be known, or ''."""
        if len(self.picked) > 1:
            return "its charges lie along indices that data choose by several tensors"
        return "its charges lie along an index that data choose by a part of a tensor" if self.picked and not self.chosen_at else ""

    def summed(self, statistics: Tensor, indices: Tensor | None = None) -> Tensor:
        """Sum what statistics contribute onto the family's charges, at the places that indices chose where they do.

        A batch or a sequence may have another length in the run than in the trace: the outermost index of such an axis grows or shrinks.

        Parameters
        ----------
        statistics : Tensor, shape (kept axes...)
        indices : Tensor, optional
            What `chosen_at` picks by.

        Returns
        -------
        Tensor, shape (charges,)

        Raises
        ------
        RunError
            If an axis that the family's charges lie along, or that it covers in part only, has another size than in the trace, or if
            indices are needed and not given, or do not fit.

        Examples
        --------
        >>> import torch
        >>> from noetherflow.symbolic.actions import Index, Patch
        >>> patch = Patch((0, 0), (Index(0, 4, 1, 0), Index(1, 3, 1, 1)))
        >>> Placing("norm", patch, (1,), (4, 3)).summed(torch.ones(2, 3))
        tensor([2., 2., 2.])
        """
        if self.picked:
            return self._scattered(statistics, indices)
        return _summed(self._patch_for(tuple(statistics.shape)).view(statistics.contiguous()), self.places)

    # Statistics have no axis for the chosen index: each is added where it was chosen. What is summed of them is summed first.

    def _scattered(self, statistics: Tensor, indices: Tensor | None) -> Tensor:
        sizes, (*_, rows) = tuple(statistics.shape), self.sizes
        patch, *behind = self._patch_for(sizes), *(index for index in self.patch.indices if index.axis == len(sizes))
        own = len(patch.indices)
        kept = [place for place in self.places if place < own]
        chosen = self._spread(indices, sizes) % rows  # indices may count from the end
        flat = [_kept(patch.view(tensor.contiguous()), kept) for tensor in (statistics, chosen)]
        onto = flat[0].new_zeros(*flat[0].shape[:-1], rows).scatter_add_(-1, flat[1], flat[0])
        along = [Index(axis, size, 1, -1) for axis, size in enumerate(onto.shape[:-1])]
        along += [replace(index, axis=len(kept)) for index in behind]
        block = Patch((*[0] * len(kept), self.patch.offsets[-1]), tuple(along)).view(onto)
        return _summed(block, tuple(kept.index(p) if p < own else len(kept) + p - own for p in self.places))

    def _spread(self, indices: Tensor | None, sizes: tuple[int, ...]) -> Tensor:
        """What was chosen at every place of the statistics."""
        if indices is None or self.problem:
            raise RunError(f"At '{self.node}': {self.problem or 'what data chose is not known'}.", node=self.node)
        flat, count = torch.zeros(sizes, dtype=torch.long, device=indices.device), 1
        for axis, size, stride in self.picked[0].by:
            inside = torch.arange(sizes[axis], device=indices.device) // int(stride)
            outermost = int(size) * int(stride) == self.sizes[axis]
            length = sizes[axis] // int(stride) if outermost else int(size)
            flat = flat * length + (inside % length).reshape(-1, *[1] * (len(sizes) - axis - 1))
            count *= length
        if count != indices.numel():
            raise self._error(sizes)
        return indices.reshape(-1)[flat]

    def _patch_for(self, sizes: tuple[int, ...]) -> Patch:
        """The patch along the axes that statistics have."""
        if len(sizes) != len(self.sizes) - len(self.picked):
            raise self._error(sizes)
        own = tuple(index for index in self.patch.indices if index.axis < len(sizes))
        patch = Patch(self.patch.offsets[: len(sizes)], own)
        for axis, (size, traced) in enumerate(zip(sizes, self.sizes, strict=False)):
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


def _kept(block: Tensor, places: Sequence[int]) -> Tensor:
    """A block with the given dimensions first and all others in one."""
    moved = block.movedim(tuple(places), tuple(range(len(places))))
    return moved.reshape(*moved.shape[: len(places)], -1)


def _summed(block: Tensor, places: Sequence[int]) -> Tensor:
    total: Tensor = _kept(block, places).sum(-1).reshape(-1)
    return total
