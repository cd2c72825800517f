"""Labelled images held in memory, and the deterministic stream of batches that a run trains on."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from noetherflow.errors import DataError


@dataclass(frozen=True, slots=True, eq=False)
class ImageSet:
    """Images of one size with one class label each, as they were stored.

    Parameters
    ----------
    images
        uint8, shape (n, channels, height, width).
    labels
        int64, shape (n,), classes counted from 0.
    name
        What the set is, for reports.
    source
        Where it came from, with its citation key where there is one.
    licence
        The terms it may be used under.

    Raises
    ------
    DataError
        The tensors are empty, or of another shape or dtype.

    Examples
    --------
    >>> square = torch.arange(16, dtype=torch.uint8).reshape(2, 1, 2, 4)
    >>> images = ImageSet(square, torch.tensor([0, 1]), "ramps", "made here", "MIT")
    >>> len(images), images.classes, images.channels
    (2, 2, 1)
    """

    images: Tensor
    labels: Tensor
    name: str
    source: str
    licence: str

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.dim() != 4 or self.images.numel() == 0:
            raise DataError(
                f"The images of {self.name!r} are {self.images.dtype} of shape {tuple(self.images.shape)}. "
                "Give a non-empty uint8 tensor of shape (n, channels, height, width).",
                name=self.name,
                shape=tuple(self.images.shape),
            )
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            raise DataError(
                f"The labels of {self.name!r} are {self.labels.dtype} of shape {tuple(self.labels.shape)}. "
                f"Give one int64 label for each of the {len(self.images)} images.",
                name=self.name,
                shape=tuple(self.labels.shape),
            )

    def __len__(self) -> int:
        return len(self.images)

    @property
    def classes(self) -> int:
        """Number of classes: one more than the largest label."""
        return int(self.labels.max()) + 1

    @property
    def channels(self) -> int:
        """Number of colour channels."""
        return self.images.shape[1]

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each channel over the whole set, in units of the stored values.

        Returns
        -------
        mean, deviation
            float64, shape (channels,). Computed from counts of the 256 values, all sums in exact integers: the result depends on no order
            of summation. The deviation of a constant channel is given as 1, so that it can be divided by.

        Examples
        --------
        >>> pixels = torch.tensor([1, 3], dtype=torch.uint8).reshape(2, 1, 1, 1)
        >>> mean, deviation = ImageSet(pixels, torch.tensor([0, 1]), "two", "made here", "MIT").moments()
        >>> mean.item(), deviation.item()
        (2.0, 1.0)
        """
        values = torch.arange(256)
        counts = torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in self.images.unbind(1)])
        total = counts.sum(1)
        mean = (counts * values).sum(1).double() / total
        variance = (counts * values**2).sum(1).double() / total - mean**2
        return mean, torch.where(variance > 0, variance, torch.ones_like(variance)).sqrt()

    def batches(
        self,
        size: int,
        seed: int,
        steps: int,
        size_px: int | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Stream `steps` batches, the same ones for the same arguments.

        Every epoch is shuffled anew by one generator seeded with `seed`; what does not fill a batch at an epoch's end is dropped. Images
        are padded with zeros (black) around, then normalised by the set's own `moments`.

        Parameters
        ----------
        size
            Images in a batch.
        seed
            Seed of the shuffles.
        steps
            Number of batches.
        size_px
            Height and width to pad to; None leaves the images as they are. An odd remainder goes to the right and the bottom.
        dtype, device
            Of the images given out. Normalisation is computed in `dtype` on `device`.

        Returns
        -------
        iterator of (inputs, labels)
            Shapes (size, channels, height, width) and (size,).

        Raises
        ------
        DataError
            A batch is larger than the set, or the images are larger than `size_px`. Raised at the call, not at the first batch.

        Examples
        --------
        >>> pixels = torch.arange(24, dtype=torch.uint8).reshape(6, 1, 2, 2)
        >>> images = ImageSet(pixels, torch.tensor([0, 1, 0, 1, 0, 1]), "six", "made here", "MIT")
        >>> [tuple(inputs.shape) for inputs, _ in images.batches(size=4, seed=0, steps=2, size_px=4)]
        [(4, 1, 4, 4), (4, 1, 4, 4)]
        """
        self._check_batches(size, steps, size_px)
        return self._stream(size, seed, steps, size_px, dtype, torch.device(device))

    def _check_batches(self, size: int, steps: int, size_px: int | None) -> None:
        if not 1 <= size <= len(self):
            raise DataError(
                f"{self.name!r} has {len(self)} images; a batch of {size} cannot be drawn from it. Give a size from 1 to {len(self)}.",
                size=size,
                available=len(self),
            )
        if steps < 0:
            raise DataError(f"{steps} batches were asked of {self.name!r}. Ask for zero or more.", steps=steps)
        if size_px is not None and size_px < max(self.images.shape[2:]):
            raise DataError(
                f"The images of {self.name!r} are {tuple(self.images.shape[2:])} pixels; they cannot be padded to {size_px}. "
                "Padding only adds: give a size_px that is not smaller.",
                size_px=size_px,
                shape=tuple(self.images.shape[2:]),
            )

    def _stream(
        self, size: int, seed: int, steps: int, size_px: int | None, dtype: torch.dtype, device: torch.device
    ) -> Iterator[tuple[Tensor, Tensor]]:
        mean, deviation = (m.to(device, dtype).reshape(1, -1, 1, 1) for m in self.moments())
        for chosen in _shuffled(len(self), size, seed, steps):
            images = self.images[chosen].to(device)
            if size_px is not None:
                images = torch.nn.functional.pad(images, _margins(images, size_px))
            yield (images.to(dtype) - mean) / deviation, self.labels[chosen].to(device)


def _shuffled(count: int, size: int, seed: int, steps: int) -> Iterator[Tensor]:
    """Indices of each batch; the shuffles are made on the CPU, where a seed means the same for every device."""
    generator = torch.Generator().manual_seed(seed)
    per_epoch = count // size
    for first_step in range(0, steps, per_epoch):
        order = torch.randperm(count, generator=generator)
        for batch in range(min(per_epoch, steps - first_step)):
            yield order[batch * size : (batch + 1) * size]


def _margins(images: Tensor, size_px: int) -> tuple[int, int, int, int]:
    """Return left, right, top and bottom margins that make the images size_px square."""
    height, width = images.shape[2:]
    left, top = (size_px - width) // 2, (size_px - height) // 2
    return left, size_px - width - left, top, size_px - height - top
