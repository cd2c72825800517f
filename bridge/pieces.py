"""Functions made of pieces: which piece holds where (the pattern), and the value that it gives, a polynomial.

A pattern is found from the input, or given: then the function is the polynomial that holds on one region of inputs and parameters, and can
be evaluated where it does not hold, or modulo a prime.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional as F

from noetherflow.bridge.windows import pool_windows

Values = Mapping[str, Tensor]
Attributes = Mapping[str, Any]
Shape = tuple[int, ...]
# Nearer to a border than this, relative to its scale, nothing is taken, whatever the bound on roundings says.
CLEAR: Final = 1e-9
# Of N u M (`noetherflow.numeric.majorants`): twice for gamma_N, twice for the two numbers of a difference, twice for the rounding of M.
ROUNDED: Final = 8 * 2.0**-53


@dataclass(frozen=True, slots=True)
class Piece:
    """One such operation.

    Attributes
    ----------
    pattern : callable
        (slots, attributes, shape) -> ones and zeros.
    value : callable
        (slots, attributes, shape, pattern) -> the value, polynomial in the slots.
    margin : callable
        (slots, attributes, shape) -> distances from where another piece begins.
    """

    pattern: Callable[[Values, Attributes, Shape], Tensor]
    value: Callable[[Values, Attributes, Shape, Tensor], Tensor]
    margin: Callable[[Values, Attributes, Shape], Tensor]

    def clear(self, v: Values, a: Attributes, shape: Shape, *, sizes: Values, roundings: int) -> Tensor:
        """Whether every entry is further from a boundary than rounding could carry it, as a tensor without axes.

        Parameters
        ----------
        v, a, shape
            As for all callables here.
        sizes, roundings
            The slots' majorants, and how many roundings have gone into a number (`noetherflow.numeric.majorants`).
        """
        scale, most = (torch.stack([x.abs().amax() for x in slots.values()]).amax() for slots in (v, sizes))
        return (self.margin(v, a, shape) > torch.maximum(CLEAR * scale, ROUNDED * (roundings + 2) * most)).all()


def _one_sided(value: Callable[[Values, Attributes, Shape, Tensor], Tensor]) -> Piece:
    """Two pieces that meet at zero; the pattern is one on the positive side."""
    return Piece(lambda v, a, s: (v["input"] > 0).to(v["input"].dtype), value, lambda v, a, s: v["input"].abs())


def _extreme(sign: int) -> Piece:
    """The larger (or smaller) of two; the pattern is one where it is the first."""

    def difference(v: Values, a: Attributes, shape: Shape) -> Tensor:
        return (sign * (v["input"] - v["other"])).expand(shape)

    return Piece(
        lambda v, a, s: (difference(v, a, s) > 0).to(v["input"].dtype),
        lambda v, a, s, g: g * v["input"] + (1 - g) * v["other"],
        lambda v, a, s: difference(v, a, s).abs(),
    )


def _leaky(v: Values, a: Attributes, shape: Shape, g: Tensor) -> Tensor:
    slope: float = a.get("slope", 0.01)
    return v["input"] * (g + (1 - g) * slope)


def _prelu(v: Values, a: Attributes, shape: Shape, g: Tensor) -> Tensor:
    x, slope = v["input"], v["weight"]
    slope = slope.reshape([-1 if d == 1 else 1 for d in range(x.dim())]) if slope.numel() > 1 else slope.reshape([1] * x.dim())
    return x * g + x * (1 - g) * slope


def _bounded(low: float | None, high: float | None, value: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None) -> Piece:
    """Three pieces; the pattern has two layers, inside and above."""

    def bounds(a: Attributes) -> list[tuple[float, int]]:
        found = (low, high) if value or (low, high) != (None, None) else (a.get("min"), a.get("max"))
        return [(-torch.inf if found[0] is None else found[0], 0), (torch.inf if found[1] is None else found[1], 1)]

    def pattern(v: Values, a: Attributes, shape: Shape) -> Tensor:
        (least, _), (most, _) = bounds(a)
        x = v["input"]
        return torch.stack([((x > least) & (x < most)).to(x.dtype), (x >= most).to(x.dtype)])

    def clamped(v: Values, a: Attributes, shape: Shape, g: Tensor) -> Tensor:
        inside, above = g[0], g[1]
        if value is not None:
            return value(v["input"], inside, above)
        (least, _), (most, _) = bounds(a)
        y = inside * v["input"]
        y = y + above * most if most < torch.inf else y
        return y + (1 - inside - above) * least if least > -torch.inf else y

    def margin(v: Values, a: Attributes, shape: Shape) -> Tensor:
        return torch.stack([(v["input"] - bound).abs() for bound, _ in bounds(a)]).amin(0)

    return Piece(pattern, clamped, margin)


def _chosen(v: Values, a: Attributes, shape: Shape) -> Tensor:
    """One layer per entry of a window, one where it is the largest."""
    found = pool_windows(v["input"], a, shape, fill=-torch.inf)
    return F.one_hot(found.argmax(0), len(found)).movedim(-1, 0).to(found.dtype)


def _lead(v: Values, a: Attributes, shape: Shape) -> Tensor:
    found = pool_windows(v["input"], a, shape, fill=-torch.inf)
    if len(found) == 1:
        return torch.ones_like(found[0])
    first, second = found.topk(2, 0).values.unbind(0)
    # entries that ReLUs closed are zero all around the point: which of them is the largest makes no difference
    return torch.where(first == 0, torch.inf, first - second) if a.get("from_relu") else first - second


_pool: Final = Piece(_chosen, lambda v, a, s, g: (pool_windows(v["input"], a, s) * g).sum(0), _lead)


def _mask(v: Values, a: Attributes, shape: Shape) -> Tensor:
    raise NotImplementedError("a random mask")


PIECES: Final[dict[str, Piece]] = {
    "relu": _one_sided(lambda v, a, s, g: v["input"] * g),
    "leaky_relu": _one_sided(_leaky),
    "prelu": _one_sided(_prelu),
    "absolute": _one_sided(lambda v, a, s, g: v["input"] * (2 * g - 1)),
    "maximum": _extreme(1),
    "minimum": _extreme(-1),
    "relu6": _bounded(0.0, 6.0),
    "clamp": _bounded(None, None),
    "hard_sigmoid": _bounded(-3.0, 3.0, lambda x, inside, above: inside * (x + 3) / 6 + above),
    "hard_swish": _bounded(-3.0, 3.0, lambda x, inside, above: inside * x * (x + 3) / 6 + above * x),
    "max_pool": _pool,
    "adaptive_max_pool": _pool,
    # its pattern is drawn, never found
    "dropout": Piece(_mask, lambda v, a, s, g: v["input"] * g / (1 - a["p"]), _mask),
}
