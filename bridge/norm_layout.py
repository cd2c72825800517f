"""Which values of a tensor a normalisation takes together: rows of values that share one mean and one variance.

BatchNorm has a row for every channel (values: the batch and the positions), LayerNorm and RMSNorm one for every sample and position
(values: the features), GroupNorm one for every sample and group, InstanceNorm one for every sample and channel. Rows are in the order of
the axes that statistics are not taken along, so that a family's index is found among them (`noetherflow.bridge.placing`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from torch import Tensor

from noetherflow.symbolic.graph import ArchitectureGraph

NORMALIZATIONS: Final = ("batch_norm", "layer_norm", "rms_norm", "group_norm", "instance_norm")


@dataclass(frozen=True, slots=True)
class Layout:
    """How a normalisation reads its input.

    Parameters
    ----------
    operation : str
        One of `NORMALIZATIONS`.
    rank : int
        Of its input.
    dims : int
        Number of last axes that LayerNorm and RMSNorm normalise.
    groups : int
        Of GroupNorm.
    channels_first : bool
        The features lie on axis 1, and the module moves them last before it normalises.

    Examples
    --------
    >>> import torch
    >>> x = torch.arange(12.0).reshape(2, 2, 3)
    >>> [tuple(Layout(name, 3).rows(x).shape) for name in NORMALIZATIONS]
    [(2, 6), (2, 2, 3), (2, 2, 3), (2, 1, 6), (2, 2, 3)]
    """

    operation: str
    rank: int
    dims: int = 1
    groups: int = 1
    channels_first: bool = False

    @classmethod
    def of(cls, graph: ArchitectureGraph, node: str) -> Layout:
        """The layout of a node of the graph."""
        data = graph.nodes[node]
        attributes = data["attributes"]
        return cls(data["operation"], len(data["shape"]), attributes.get("dims", 1), attributes.get("groups", 1))

    @property
    def centred(self) -> bool:
        """Whether the mean is subtracted."""
        return self.operation != "rms_norm"

    @property
    def on_features(self) -> bool:
        """Whether the last axes are normalised (LayerNorm, RMSNorm)."""
        return self.operation in ("layer_norm", "rms_norm")

    def rows(self, x: Tensor) -> Tensor:
        """Values, shape (statistics..., values of each)."""
        if self.operation == "batch_norm":
            return x.transpose(0, 1).flatten(1)
        if self.operation == "group_norm":
            return x.reshape(x.shape[0], self.groups, -1)
        if self.operation == "instance_norm":
            return x.reshape(*x.shape[:2], -1)
        moved = x.movedim(1, -1) if self.channels_first else x
        return moved.reshape(*moved.shape[: self.rank - self.dims], -1)

    def channels(self, rows: Tensor, count: int) -> Tensor:
        """The same values, shape (channels, values of each): what one row of the weight before the normalisation makes."""
        if self.operation == "batch_norm":
            return rows
        if self.on_features:
            return rows.reshape(-1, count).transpose(0, 1)
        return rows.reshape(rows.shape[0], count, -1).transpose(0, 1).flatten(1)

    def per_row(self, channels: Tensor, rows: Tensor) -> Tensor:
        """Spread a vector over channels onto statistics: the largest of a statistic's channels, in parts that sum to it over all rows."""
        kept = rows.shape[:-1]
        if self.operation == "batch_norm":
            return channels
        if self.on_features:
            return channels.amax().expand(kept) / max(1, kept.numel())
        return channels.reshape(kept[1], -1).amax(1).expand(kept) / kept[0]

    def channel_count(self, x: Tensor) -> int:
        """Number of entries of a gain."""
        return self.rows(x[:1]).shape[-1] if self.on_features else x.shape[1]

    def gained(self, x: Tensor, gain: Tensor | None) -> Tensor:
        """A tensor shaped like the input times a gain (over channels, or of the shape of the normalised axes)."""
        if gain is None:
            return x
        if self.on_features and not self.channels_first:
            return x * gain.reshape(x.shape[self.rank - self.dims :])
        return x * gain.reshape(1, -1, *[1] * (self.rank - 2))

    def shifted_back(self, x: Tensor, shift: Tensor | None) -> Tensor:
        """A tensor shaped like the input without a shift; a new tensor where there is one."""
        if shift is None:
            return x
        if self.on_features and not self.channels_first:
            return x - shift.reshape(x.shape[self.rank - self.dims :])
        return x - shift.reshape(1, -1, *[1] * (self.rank - 2))
