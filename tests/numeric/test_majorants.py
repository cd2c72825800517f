"""Float64's distance from exact values of polynomials stays within N u M, where everything cancels too."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch.func import vmap

from noetherflow.numeric.majorants import Majorant
from noetherflow.numeric.modular import NotPolynomial

UNIT = Fraction(1, 2**53)
POLYNOMIALS: dict[str, Callable[[Any], Any]] = {
    "cancelling": lambda x: ((x * 2.0**50 + x) - x * 2.0**50) - x,
    "binomial": lambda x: (x - 1.0) * (x - 1.0) * (x - 1.0) - (x * x * x - 3 * x * x + 3 * x - 1),
    "negative": lambda x: -(x * -0.3) + -7 - (2 - x),
    "power": lambda x: x**5 - x * x * x * x * x,
}


@pytest.mark.parametrize("name", POLYNOMIALS)
@pytest.mark.parametrize("mapped", [False, True])
def test_float64_is_within_all_roundings_of_the_exact_value(name: str, mapped: bool) -> None:
    f = POLYNOMIALS[name]
    g = vmap(f) if mapped else f
    x = torch.tensor([0.3, -1.7, 2.9, 1e-3], dtype=torch.float64)
    computed = g(x)
    with Majorant() as sizes:
        most = g(x)
    assert bool((most >= computed.abs()).all())
    for v, m, size in zip(x.tolist(), computed.tolist(), most.tolist(), strict=True):
        exact = _rational(f, v)
        assert abs(Fraction(m) - exact) <= 4 * sizes.roundings * UNIT * Fraction(size)
    if name == "cancelling":  # whose float64 value is all rounding
        assert any(
            abs(Fraction(m) - _rational(f, v)) > Fraction(abs(m)) / 2 for v, m in zip(x.tolist(), computed.tolist(), strict=True) if m
        )


def _rational(f: Callable[[Any], Any], x: float) -> Fraction:
    """Numbers in the text are what float64 has: Fraction(2.0**50) and Fraction(-0.3) are exact."""
    return f(Rational(Fraction(x))).value


class Rational:
    """Fractions that take floats for the numbers that they are."""

    def __init__(self, value: Fraction) -> None:
        self.value = value

    def __add__(self, other: Any) -> Rational:
        return Rational(self.value + _value(other))

    def __sub__(self, other: Any) -> Rational:
        return Rational(self.value - _value(other))

    def __rsub__(self, other: Any) -> Rational:
        return Rational(_value(other) - self.value)

    def __mul__(self, other: Any) -> Rational:
        return Rational(self.value * _value(other))

    __rmul__ = __mul__

    def __neg__(self) -> Rational:
        return Rational(-self.value)

    def __pow__(self, exponent: int) -> Rational:
        return Rational(self.value**exponent)


def _value(other: Any) -> Fraction:
    return other.value if isinstance(other, Rational) else Fraction(other)


def test_matrices_count_the_length_of_their_sums() -> None:
    a = torch.randn(7, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with Majorant() as sizes:
        most = torch.addmm(-torch.ones(7, 7, dtype=torch.float64), a, -a.T)
    assert torch.allclose(most, a.abs() @ a.abs().T + 1)
    assert sizes.roundings >= 30
    with pytest.raises(NotPolynomial, match="'tanh'"), Majorant():
        a.tanh()
    with pytest.raises(NotPolynomial, match="writes into a tensor"), Majorant():
        a.clone().sub_(a)
    with pytest.raises(NotPolynomial, match="'lt'"), Majorant():  # would compare sizes
        _ = a < 0


def test_numbers_of_every_kind_are_taken_absolutely() -> None:
    x, whole = torch.tensor([-2.0, 3.0], dtype=torch.float64), torch.tensor([-1, 4])
    negative = x < 0
    with Majorant():
        found = [x * whole, x - whole, x * negative, x + torch.full((2,), -5), x - torch.tensor(-1.5, dtype=torch.float64), x[:1] - x[1:]]
    assert [y.tolist() for y in found] == [[2, 12], [3, 7], [2, 0], [7, 8], [3.5, 4.5], [5]]
