"""The current that eps lets through, against direct differentiation of whole normalisations; exact, in rational numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import sympy as sp

from noetherflow.symbolic.currents import EPS, VARIANCE, scale_defect

X = sp.symbols("x0:4", real=True)
SLOPES = (3, -1, 2, sp.Rational(1, 2))  # ∂L/∂y at one point: all that a loss is to first order
GAIN = (2, sp.Rational(1, 3), -1, 5)
POINT = dict(zip(X, (1, -2, sp.Rational(1, 2), 4), strict=True))
SMALL = sp.Rational(1, 7)

Rows = Sequence[Sequence[int]]


def normalized(rows: Rows, *, centred: bool) -> list[sp.Expr]:
    """Four values, normalised together as the rows say."""
    out: dict[int, sp.Expr] = {}
    for row in rows:
        mean = sum(X[i] for i in row) / len(row) if centred else 0
        out |= {i: (X[i] - mean) / sp.sqrt(variance(row, centred) + SMALL) for i in row}
    return [out[i] for i in range(4)]


def variance(row: Sequence[int], centred: bool, *, unbiased: bool = False) -> sp.Expr:
    mean = sum(X[i] for i in row) / len(row) if centred else 0
    return sum((X[i] - mean) ** 2 for i in row) / (len(row) - unbiased)


def measured(rows: Rows, *, centred: bool) -> sp.Expr:
    """⟨x, ∂L/∂x⟩: the derivative of the loss along a scale of the input."""
    loss = sum(s * g * y for s, g, y in zip(SLOPES, GAIN, normalized(rows, centred=centred), strict=True))
    return sum(x * sp.diff(loss, x) for x in X).subs(POINT)


def predicted(rows: Rows, *, centred: bool, defect: Callable[[sp.Expr], sp.Expr], unbiased: bool = False) -> sp.Expr:
    values = normalized(rows, centred=centred)
    pulled = [sum(values[i] * GAIN[i] * SLOPES[i] for i in row) for row in rows]
    factors = [defect(variance(row, centred, unbiased=unbiased)) for row in rows]
    return sum(f * p for f, p in zip(factors, pulled, strict=True)).subs(POINT)


def derived(sigma: sp.Expr) -> sp.Expr:
    return scale_defect().subs({VARIANCE: sigma, EPS: SMALL})


LAYOUTS: dict[str, Rows] = {"one statistic": [[0, 1, 2, 3]], "two": [[0, 1], [2, 3]], "interleaved": [[0, 2], [1, 3]]}


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("centred", [True, False])
def test_the_current_is_the_derivative_along_the_scale(name: str, centred: bool) -> None:
    rows = LAYOUTS[name]
    difference = measured(rows, centred=centred) - predicted(rows, centred=centred, defect=derived)
    assert sp.simplify(difference) == 0
    assert measured(rows, centred=centred) != 0


WRONG: dict[str, tuple[Callable[[sp.Expr], sp.Expr], bool]] = {
    "no current": (lambda sigma: sp.S.Zero, False),
    "the unbiased variance": (derived, True),
    "eps left out below": (lambda sigma: SMALL / sigma, False),
    "twice": (lambda sigma: 2 * derived(sigma), False),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("centred", [True, False])
def test_other_currents_are_rejected(name: str, centred: bool) -> None:
    defect, unbiased = WRONG[name]
    rows = LAYOUTS["two"]
    difference = measured(rows, centred=centred) - predicted(rows, centred=centred, defect=defect, unbiased=unbiased)
    assert abs(sp.N(difference)) > 1e-3


def test_without_eps_there_is_no_current() -> None:
    assert scale_defect().subs(EPS, 0) == 0
