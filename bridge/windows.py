"""Convolutions and pools by their windows: entries moved, then products and sums, so that they are exact modulo a prime as well."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Values = Mapping[str, Tensor]


def windows(
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    sizes: Sequence[int],
    fill: float = 0.0,
) -> Tensor:
    """All windows along the last axes.

    Parameters
    ----------
    x : Tensor, shape (..., *positions)
    kernel, stride, padding, dilation : sequences of int
        One number per axis of positions; of the padding, that in front.
    sizes : sequence of int
        Number of windows along each axis; what they need behind the end is padded too.
    fill : float
        What lies outside.

    Returns
    -------
    Tensor, shape (entries of the kernel, ..., *sizes)

    Examples
    --------
    >>> windows(torch.arange(4.0), [2], [1], [0], [1], [3])
    tensor([[0., 1., 2.],
            [1., 2., 3.]])
    """
    n = len(kernel)
    last = [(size - 1) * s + (k - 1) * d + 1 for size, s, k, d in zip(sizes, stride, kernel, dilation, strict=True)]
    behind = [max(0, end - length - p) for end, length, p in zip(last, x.shape[-n:], padding, strict=True)]
    margins = [m for p, b in reversed(list(zip(padding, behind, strict=True))) for m in (p, b)]
    x = F.pad(x, margins, value=fill) if any(margins) else x
    found = []
    for offset in product(*map(range, kernel)):
        piece = x
        for axis, (o, size, s, d) in enumerate(zip(offset, sizes, stride, dilation, strict=True)):
            at = (slice(None),) * (x.dim() - n + axis)
            piece = piece[(*at, slice(o * d, o * d + (size - 1) * s + 1, s))]
        found.append(piece)
    return torch.stack(found)


def convolution(v: Values, a: Mapping[str, Any], shape: tuple[int, ...]) -> Tensor:
    """Sum over kernel entries and the channels of a group of window times weight."""
    weight, x, groups = v["weight"], v["input"], a["groups"]
    n = weight.dim() - 2
    kernel, stride, dilation = list(weight.shape[2:]), _every(a["stride"], n), _every(a["dilation"], n)
    found = windows(x, kernel, stride, _front(a["padding"], kernel, dilation), dilation, shape[-n:])
    lead = found.reshape([*found.shape[: -n - 1], groups, weight.shape[1], -1])  # kernel, (batch), group, channel, positions
    split = weight.reshape([groups, -1, weight.shape[1], len(found)])  # group, out, channel, kernel
    y: Tensor = torch.einsum("k...gcp,gock->...gop", lead, split).reshape(shape)
    return y + v["bias"].reshape([-1, *[1] * n]) if "bias" in v else y


def transposed_convolution(v: Values, a: Mapping[str, Any], shape: tuple[int, ...]) -> Tensor:
    """A convolution of step one with the kernel turned round, of the input with zeros between its entries."""
    weight, x, groups = v["weight"], v["input"], a["groups"]
    n = weight.dim() - 2
    kernel, dilation = list(weight.shape[2:]), _every(a["dilation"], n)
    margins = [d * (k - 1) - p for d, k, p in zip(dilation, kernel, _every(a["padding"], n), strict=True)]
    found = windows(_spread(x, _every(a["stride"], n)), kernel, [1] * n, margins, dilation, shape[-n:])
    lead = found.reshape([*found.shape[: -n - 1], groups, weight.shape[0] // groups, -1])  # kernel, (batch), group, channel, positions
    turned = weight.flip(list(range(2, n + 2)))
    split = turned.reshape([groups, -1, weight.shape[1], len(found)])  # group, channel, out, kernel
    y: Tensor = torch.einsum("k...gcp,gcok->...gop", lead, split).reshape(shape)
    return y + v["bias"].reshape([-1, *[1] * n]) if "bias" in v else y


def _spread(x: Tensor, stride: Sequence[int]) -> Tensor:
    """Zeros between neighbours along the last axes, so that neighbours are a stride apart."""
    for axis, step in zip(range(x.dim() - len(stride), x.dim()), stride, strict=True):
        moved = F.pad(x.movedim(axis, -1).unsqueeze(-1), (0, step - 1)).flatten(-2)
        x = moved.narrow(-1, 0, moved.shape[-1] - step + 1).movedim(-1, axis)
    return x


def average_pool(v: Values, a: Mapping[str, Any], shape: tuple[int, ...]) -> Tensor:
    """The mean of every window."""
    x = v["input"]
    if "kernel" not in a:
        return _adaptive(x, a["dims"], shape).mean(list(range(-2 * a["dims"] + 1, 0, 2)))
    found = pool_windows(x, a, shape)
    return found.sum(0) / _divisor(x, a, shape, len(found))


def _divisor(x: Tensor, a: Mapping[str, Any], shape: tuple[int, ...], entries: int) -> int:
    """What the sum over a window is divided by, if that is one number for all windows."""
    if a.get("divisor"):
        return int(a["divisor"])
    n, divisor, over = a["dims"], 1, False
    for length, size, k, s, p, d in zip(x.shape[-n:], shape[-n:], *_sizes(a), strict=True):
        inside = {sum(0 <= i * s + o * d - p < length for o in range(k)) for i in range(size)}
        if a["uniform"] and len(inside) > 1:
            raise NotImplementedError("windows of different sizes")
        divisor *= inside.pop()
        over = over or (size - 1) * s + k > length + 2 * p
    if not a["uniform"] and over:
        raise NotImplementedError("windows of different sizes")
    return divisor if a["uniform"] else entries


def pool_windows(x: Tensor, a: Mapping[str, Any], shape: tuple[int, ...], fill: float = 0.0) -> Tensor:
    """The windows of a pool, shape (entries of the window, *shape)."""
    if "kernel" in a:
        return windows(x, *_sizes(a), shape[-a["dims"] :], fill)
    split = _adaptive(x, a["dims"], shape)
    inner = range(split.dim() - 2 * a["dims"] + 1, split.dim(), 2)
    outer = [d for d in range(split.dim()) if d not in inner]
    return split.permute([*inner, *outer]).flatten(0, a["dims"] - 1)


def _sizes(a: Mapping[str, Any]) -> tuple[list[int], list[int], list[int], list[int]]:
    return a["kernel"], a["stride"], a["padding"], a["dilation"]


def _adaptive(x: Tensor, n: int, shape: tuple[int, ...]) -> Tensor:
    """Every axis of positions as (windows, entries of a window), where they divide evenly."""
    for axis in range(n):
        at = x.dim() - n + axis
        size = shape[len(shape) - n + axis]
        if x.shape[at] % size:
            raise NotImplementedError("windows of different sizes")
    lead = x.dim() - n
    pairs = [s for size, length in zip(shape[-n:], x.shape[-n:], strict=True) for s in (size, length // size)]
    return x.reshape([*x.shape[:lead], *pairs])


def _every(value: Any, n: int) -> list[int]:
    numbers = list(value) if isinstance(value, list | tuple) else [value]
    return numbers if len(numbers) == n else numbers * n


def _front(padding: Any, kernel: Sequence[int], dilation: Sequence[int]) -> list[int]:
    """Padding in front; 'same' puts the odd one behind."""
    if isinstance(padding, str):
        return [(d * (k - 1)) // 2 if padding == "same" else 0 for k, d in zip(kernel, dilation, strict=True)]
    return _every(padding, len(kernel))
