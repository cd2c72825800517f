"""Balls: tensors of intervals, as float64 midpoints and radii, whose arithmetic encloses the exact result.

For every operation: whatever real numbers lie in the operands' balls, the exact result lies in the result's ball. Midpoints are computed
in float64; radii bound what the operands' radii do, plus the rounding of the midpoint, plus the rounding of the radius itself:

    a + b     r_a + r_b + u |m|
    a b       |a| r_b + r_a |b| + r_a r_b + u |m|
    a / b     (r_a + |m| r_b) / (|b| - r_b) + u |m|
    A B       |A| R_B + R_A |B| + R_A R_B + gamma_n |A| |B|,      gamma_n = n u / (1 - n u) <= 2 n u

with m the midpoint of the result and u = 2^-53. What is assumed: IEEE 754 double precision rounded to nearest, and sums of products in any
order, with or without fused operations (true of every BLAS in float64; not of Strassen's method). Underflow costs at most `TINY`: what
would make more of it, a division by less than `LEAST`, is refused. What overflows has an infinite radius.

Why not one arbitrary-precision ball for each number: products of matrices, which are nearly all the work, run at the speed of float64.

Source: rump1999fast for products of matrices of balls; the other rules are elementary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Final, TypeAlias

import torch
from torch import Tensor

from noetherflow.errors import ModelError

BITS: Final = 53
UNIT: Final = 2.0**-53
TINY: Final = 2.0**-600  # more than any underflow (2^-1022, where subnormal numbers are flushed to zero) over LEAST
LEAST: Final = 2.0**-400
FLOOR: Final = 2.0**-1000  # more than any underflow, added to what is then multiplied by numbers of any size
SHORT: Final = 2.0**20
LONGEST: Final = 2.0**33  # integers of 53 bits, times 2^-20
WIDTH: Final = 2.0**-50

Number: TypeAlias = "Ball | float"


class NotEnclosed(ModelError):
    """An operation that has no rule in ball arithmetic, or balls too wide for it."""


@dataclass(frozen=True, slots=True)
class Ball:
    """Every entry's true value is within `radius` of `middle`.

    Attributes
    ----------
    middle, radius : Tensor
        float64, of one shape; radii are not negative.

    Raises
    ------
    NotEnclosed
        If they are of another dtype, which rounds by more than is booked.

    Examples
    --------
    >>> third = Ball.exact(torch.ones(1, dtype=torch.float64)) / 3.0
    >>> bool(0 < third.radius < 1e-15), third.contains(torch.tensor([1 / 3], dtype=torch.float64))
    (True, True)
    """

    middle: Tensor
    radius: Tensor

    def __post_init__(self) -> None:
        if self.middle.dtype != torch.float64 or self.radius.dtype != torch.float64:
            raise NotEnclosed(f"Balls are of float64; got {self.middle.dtype}. Give the numbers in double precision (x.double()).")

    @classmethod
    def exact(cls, x: Tensor) -> Ball:
        """The numbers that float64 entries are."""
        return cls(x, torch.zeros_like(x))

    @classmethod
    def constant(cls, x: Tensor) -> Ball:
        """Numbers that stand for constants: multiples of 2^-20 below 2^33 for themselves, others for any number within 2^-50, relatively.

        So a result holds for 0.1 as a decimal and as float64 has it, and for 2/√π in a derivative's formula.
        """
        scaled = x * SHORT
        short = (scaled == scaled.round()) & (x.abs() < LONGEST) | x.isinf()
        return cls(x, torch.where(short, 0.0, x.abs() * WIDTH + TINY))

    @property
    def magnitude(self) -> Tensor:
        """At least the size of every number inside."""
        return _up(self.middle.abs() + self.radius, 1)

    def contains(self, x: Tensor) -> bool:
        """Whether every entry of x lies inside, as float64 decides it."""
        return bool(((x - self.middle).abs() <= self.radius).all())

    def __add__(self, other: Number) -> Ball:
        b = _ball(other, self)
        m = self.middle + b.middle
        return Ball(m, _up(self.radius + b.radius + UNIT * m.abs(), 3))

    def __sub__(self, other: Number) -> Ball:
        return self + -_ball(other, self)

    def __neg__(self) -> Ball:
        return Ball(-self.middle, self.radius)

    def __mul__(self, other: Number) -> Ball:
        b = _ball(other, self)
        m = self.middle * b.middle
        moved = self.middle.abs() * b.radius + self.radius * (b.middle.abs() + b.radius)
        return Ball(m, _up(moved + UNIT * m.abs(), 6))

    def __truediv__(self, other: Number) -> Ball:
        b = _ball(other, self)
        least = (b.middle.abs() - b.radius) * (1 - 4 * UNIT)
        if not bool((least > LEAST).all()):
            raise NotEnclosed(
                "A division by a ball that holds zero, or nearly. The point is too near to a pole, or the balls are too wide."
            )
        m = self.middle / b.middle
        return Ball(m, _up((self.radius + (m.abs() * (1 + 4 * UNIT) + TINY) * b.radius) / least + UNIT * m.abs(), 8))

    def sum(self, axes: Sequence[int], *, keepdim: bool = False) -> Ball:
        """Along some axes."""
        m, n = self.middle.sum(list(axes), keepdim=keepdim), prod(self.middle.shape[axis] for axis in axes)
        spread = (self.radius + 2 * n * UNIT * self.middle.abs()).sum(list(axes), keepdim=keepdim)
        return Ball(m, _up(spread + UNIT * m.abs(), n + 6))  # the last so that a sum that overflows has an infinite radius


def product(a: Ball, b: Ball, multiply: Callable[[Tensor, Tensor], Tensor] = torch.matmul) -> Ball:
    """A product of matrices, one by one or in batches.

    >>> a = Ball(torch.eye(2, dtype=torch.float64), torch.full((2, 2), 0.5, dtype=torch.float64))
    >>> bool((product(a, a).radius >= torch.tensor([[1.5, 1.5], [1.5, 1.5]])).all())
    True
    """
    n = a.middle.shape[-1]
    size = b.middle.abs()
    m = multiply(a.middle, b.middle)
    spread = multiply(a.middle.abs(), 2 * n * UNIT * size + b.radius + FLOOR) + multiply(a.radius, size + b.radius)
    return Ball(m, _up(spread + UNIT * m.abs(), n + 10) + n * TINY)


def _up(radius: Tensor, roundings: int) -> Tensor:
    """At least what exact arithmetic gives, if the tensor was computed from numbers that are not negative with this many roundings."""
    return radius * (1 + (2 * roundings + 8) * UNIT) + TINY


def _ball(x: Number, like: Ball) -> Ball:
    return x if isinstance(x, Ball) else Ball.constant(torch.tensor(x, dtype=like.middle.dtype))
