"""Numbers that anybody can draw again: read off SHAKE-256 of a label, little-endian, four bytes each.

A generator's stream depends on its library and version; a hash does not, so a certificate can name its numbers by their labels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from math import prod
from typing import Final

import numpy as np
import torch
from torch import Tensor

BOUND: Final = 99


def words(label: str, count: int, first: int = 0) -> np.ndarray[tuple[int], np.dtype[np.uint32]]:
    """Numbers of a label, each below 2^32, from number `first` on.

    >>> words("noetherflow", 1, 1).tolist() == [int.from_bytes(hashlib.shake_256(b"noetherflow").digest(8)[4:], "little")]
    True
    """
    return np.frombuffer(hashlib.shake_256(label.encode()).digest(4 * (first + count)), dtype="<u4")[first:]


def sixtyfourths(label: str, shape: Sequence[int], first: int = 0) -> Tensor:
    """Multiples of 1/64 from -99/64 to 99/64 without zero, as float64: word u gives u mod 198, less 99, one more from zero on, over 64.

    >>> x = sixtyfourths("x", (40, 50))
    >>> x.min().item() * 64, x.max().item() * 64, bool((x == 0).any())
    (-99.0, 99.0, False)
    """
    drawn = (words(label, prod(shape), first) % (2 * BOUND)).astype(np.int64) - BOUND
    return torch.from_numpy((drawn + (drawn >= 0)).astype(np.float64) / 64).reshape(list(shape))


def indices(label: str, shape: Sequence[int], size: int, first: int = 0) -> Tensor:
    """Integers from 0 to size - 1: u mod size."""
    return torch.from_numpy((words(label, prod(shape), first) % size).astype(np.int64)).reshape(list(shape))


def reals(label: str, shape: Sequence[int], least: float, most: float, first: int = 0) -> Tensor:
    """Numbers whose size lies between `least` and `most`, of either sign: u / 2^31, less one, stretched.

    >>> x = reals("x", (100,), 0.5, 1.5).abs()
    >>> bool((x.min() >= 0.5) & (x.max() <= 1.5))
    True
    """
    unit = torch.from_numpy(words(label, prod(shape), first).astype(np.float64) / 2**31 - 1.0).reshape(list(shape))
    return torch.where(unit < 0, -1.0, 1.0) * (least + (most - least) * unit.abs())
