"""Balls hold the exact values: rational arithmetic and Arb at 200 bits are the judges, and a rule that is wrong is found."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from math import factorial
from typing import Any

import flint
import pytest
import torch
from torch import Tensor
from torch.func import grad

from noetherflow.numeric import ball_functions, ball_rules, minors
from noetherflow.numeric.ball_traces import enclosure
from noetherflow.numeric.balls import Ball, NotEnclosed, product
from noetherflow.numeric.brackets import nested

SIZE = 6


def ball(seed: int, *shape: int) -> tuple[Ball, list[list[Fraction]]]:
    """Random balls, and rational numbers inside them, some at the very rim."""
    draw = torch.Generator().manual_seed(seed)
    middle = torch.randn(*shape, generator=draw, dtype=torch.float64)
    radius = middle.abs() * torch.rand(*shape, generator=draw, dtype=torch.float64) * 2.0 ** -(seed % 3 * 20 + 3)
    place = torch.randint(-4, 5, shape, generator=draw)
    rows = zip(fractions(middle), fractions(radius), place.tolist(), strict=True)
    return Ball(middle, radius), [[m + Fraction(k, 4) * r for m, r, k in zip(*row, strict=True)] for row in rows]


def fractions(matrix: Tensor) -> list[list[Fraction]]:
    return [[Fraction(v) for v in row] for row in matrix.tolist()]


def held(found: Ball, exact: list[list[Fraction]]) -> bool:
    """Decided in rational arithmetic."""
    rows = zip(exact, fractions(found.middle), fractions(found.radius), strict=True)
    return all(abs(value - m) <= r for row in rows for value, m, r in zip(*row, strict=True))


OPERATIONS: dict[str, Callable[[Any, Any], Any]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_arithmetic_holds_exact_values(name: str) -> None:
    operation = OPERATIONS[name]
    for seed in range(12):
        (a, x), (b, y) = ball(seed, SIZE, SIZE), ball(seed + 100, SIZE, SIZE)
        exact = [[operation(p, q) for p, q in zip(*rows, strict=True)] for rows in zip(x, y, strict=True)]
        assert held(operation(a, b), exact)
        points = operation(Ball.exact(a.middle), Ball.exact(b.middle))  # of numbers, radii are roundings: there, and a few units
        assert bool((points.radius <= 8 * 2.0**-53 * points.middle.abs() + 2.0**-590).all())
        wrong = Ball(points.middle, torch.zeros_like(points.radius))
        pairs = zip(fractions(a.middle), fractions(b.middle), strict=True)
        truth = [[operation(p, q) for p, q in zip(*rows, strict=True)] for rows in pairs]
        assert held(points, truth)
        assert not held(wrong, truth)


def test_sums_and_products_of_matrices_hold_exact_values() -> None:
    for seed in range(12):
        (a, x), (b, y) = ball(seed, SIZE, SIZE), ball(seed + 100, SIZE, SIZE)
        assert held(a.sum([1], keepdim=True), [[sum(row, Fraction(0))] for row in x])
        columns = list(zip(*y, strict=True))
        exact = [[sum((p * q for p, q in zip(row, column, strict=True)), Fraction(0)) for column in columns] for row in x]
        assert held(product(a, b), exact)
        assert not held(Ball(a.middle @ b.middle, torch.zeros_like(a.middle)), exact)


def test_what_cannot_be_enclosed_is_refused() -> None:
    zero = Ball(torch.zeros(2, dtype=torch.float64), torch.full((2,), 0.1, dtype=torch.float64))
    one = torch.ones(2, dtype=torch.float64)
    with pytest.raises(NotEnclosed, match="zero"):
        _ = Ball.exact(one) / zero
    with pytest.raises(NotEnclosed, match="domain"):
        ball_functions.named("log")(zero)
    with pytest.raises(NotEnclosed, match="not decided"):
        enclosure(torch.relu, 0.0 * one)
    with pytest.raises(NotEnclosed, match="'cumprod' has no rule"):
        enclosure(lambda x: x.cumprod(0), one)
    with pytest.raises(NotEnclosed, match="float32"):
        enclosure(lambda x: x.float() * 2, one)
    with pytest.raises(NotEnclosed, match="reads a number"):
        enclosure(lambda x: x * float(x.sum()), one)
    written = enclosure(lambda x: x.clone().mul_(3).add_(x), one / 3)  # becomes what writes into nothing
    assert held(Ball(written.middle[None], written.radius[None]), [[4 * Fraction(1 / 3)] * 2])
    beside = one / 3
    with pytest.raises(NotEnclosed, match="neither an argument nor a constant"):
        enclosure(lambda x: x * beside, one)
    assert enclosure(lambda x: x * beside, one, constants=[beside]).contains(beside)
    with pytest.raises(NotEnclosed, match="not finite"):
        enclosure(lambda x: x * 1e200 * 1e200, one)


# --- derivatives: torch's, carried out on balls, against Taylor series at 200 bits

F = torch.nn.functional
SERIES: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Any], Any]]] = {
    "exp": (torch.exp, lambda s: s.exp()),
    "tanh": (torch.tanh, lambda s: ((2 * s).exp() - 1) / ((2 * s).exp() + 1)),
    "sigmoid": (torch.sigmoid, lambda s: 1 / (1 + (-s).exp())),
    "silu": (F.silu, lambda s: s / (1 + (-s).exp())),
    "softplus": (F.softplus, lambda s: (1 + s.exp()).log()),
    "error_function": (torch.erf, lambda s: s.erf()),
    "gelu": (F.gelu, lambda s: s * (1 + (s / flint.arb(2).sqrt()).erf()) / 2),
    "gelu_by_tanh": (lambda x: F.gelu(x, approximate="tanh"), lambda s: s / (1 + (-2 * inside(s)).exp())),
    "sine": (torch.sin, lambda s: s.sin()),
    "logarithm": (lambda x: torch.log(x * x + 1), lambda s: (s * s + 1).log()),
    "normalisation": (lambda x: x * (x * x + 0.5) ** -0.5, lambda s: s * (s * s + flint.arb(0.5)).rsqrt()),
    "root": (lambda x: (x * x + 0.5).sqrt(), lambda s: (s * s + flint.arb(0.5)).sqrt()),
    "quotient": (lambda x: 1 / (x * x + 2), lambda s: 1 / (s * s + 2)),
    "softmax": (lambda x: torch.stack([x, 0 * x]).softmax(0)[0], lambda s: 1 / (1 + (-s).exp())),
    "log_softmax": (lambda x: torch.stack([x, 0 * x]).log_softmax(0)[1], lambda s: -(1 + s.exp()).log()),
}
POINTS = (0.734, -1.62, 0.031)


def inside(s: Any) -> Any:
    """Of GELU's approximation, with the constant that float64 has: one of those that the ball stands for."""
    return (2 / flint.arb.pi()).sqrt() * (s + flint.arb(0.044715) * s * s * s)


def derivative(function: Callable[[Tensor], Tensor], order: int) -> Callable[[Tensor], Tensor]:
    for _ in range(order):
        function = grad(lambda x, f=function: f(x).sum())
    return function


@pytest.mark.parametrize("name", SERIES)
def test_derivatives_up_to_the_third_hold_exact_values(name: str) -> None:
    function, series = SERIES[name]
    for order in range(4):
        found = enclosure(derivative(function, order), torch.tensor(POINTS, dtype=torch.float64))
        assert bool((found.radius < 1e-11).all())
        for i, x in enumerate(POINTS):
            with flint.ctx.workprec(200):
                exact = series(flint.arb_series([flint.arb(x), 1], 5))[order] * factorial(order)
                assert (exact - flint.arb(float(found.middle[i]))).abs_upper() <= flint.arb(float(found.radius[i])), (order, x)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("tanh_backward", lambda g, y: g * (ball_rules.RULES["sub"](1.0, y))),
        ("tanh", ball_functions.named("atan")),
        ("mm", lambda a, b: product(a, b, torch.mm) * 1.000001),
        ("sum", lambda x, axes=None, keepdim=False: x.sum(axes or range(x.middle.dim()), keepdim=keepdim) + 1e-6),
    ],
)
def test_a_wrong_rule_is_caught_against_float64(name: str, wrong: Callable[..., Ball], monkeypatch: pytest.MonkeyPatch) -> None:
    def network(w: Tensor) -> Tensor:
        return torch.tanh(w @ w).sum(0) @ w

    field = derivative(lambda w: network(w).sum(), 1)
    w = torch.linspace(-1, 1, 9, dtype=torch.float64).reshape(3, 3) + 0.1
    right = enclosure(field, w)
    assert bool(((right.middle - field(w)).abs() <= 8 * right.radius).all())
    monkeypatch.setitem(ball_rules.RULES, name, wrong)
    with pytest.raises(NotEnclosed, match="is wrong"):
        enclosure(field, w)


def test_brackets_hold_rational_values() -> None:
    """[V_0, V_1] of gradients of x² y / 2 and x y²: all in rational numbers, the point too."""
    x, y = Fraction(0.3), Fraction(-0.7)

    def f(t: dict[str, Tensor], s: Tensor) -> Tensor:
        return s[0] * t["x"] ** 2 * t["y"] / 2 + s[1] * t["x"] * t["y"] ** 2

    theta = {"x": torch.tensor(0.3, dtype=torch.float64), "y": torch.tensor(-0.7, dtype=torch.float64)}
    one, two = torch.eye(2, dtype=torch.float64)
    bracket = nested(grad(f), 1)
    found = enclosure(lambda t, s: torch.stack(list(bracket(t, s).values())).unsqueeze(0), theta, (one, two))
    # X = (x y, x²/2), Y = (y², 2 x y): DY X - DX Y
    first = 2 * y * x**2 / 2 - (y * y**2 + x * 2 * x * y)
    second = (2 * y * x * y + 2 * x * x**2 / 2) - x * y**2
    assert held(found, [[first, second]])


# --- minors


def test_a_singular_minor_is_never_a_contraction() -> None:
    draw = torch.Generator().manual_seed(0)
    for size in range(2, 9):
        left = torch.randint(-9, 10, (size, size - 1), generator=draw).double()
        singular = left @ torch.randint(-9, 10, (size - 1, size), generator=draw).double()  # integers: exactly of rank size - 1
        assert minors.contraction(Ball.exact(singular)) >= 1
        near = singular + 1e-3 * torch.randn(size, size, generator=draw, dtype=torch.float64)
        assert minors.contraction(Ball.exact(near)) < 1  # another matrix, which is regular
        assert minors.contraction(Ball(near, (near - singular).abs() * 1.001)) >= 1  # a ball with the singular one inside


def test_pivots_take_as_many_rows_of_each_block_as_they_are_told() -> None:
    draw = torch.Generator().manual_seed(1)
    whole = torch.randn(9, 3, generator=draw, dtype=torch.float64) @ torch.randn(3, 7, generator=draw, dtype=torch.float64)
    more = torch.randn(5, 7, generator=draw, dtype=torch.float64)
    (first, second), columns = minors.chosen([(whole, 3), (more, 2)])
    assert (len(set(first)), len(set(second)), len(set(columns))) == (3, 2, 5)
    assert minors.contraction(Ball.exact(torch.cat([whole[first], more[second]])[:, columns])) < 1e-10
    (first, second), columns = minors.chosen([(whole, 4), (more, 2)])  # one more than there is
    inexact = Ball(torch.cat([whole[first], more[second]])[:, columns], torch.full((6, 6), 1e-15, dtype=torch.float64))
    assert minors.contraction(inexact) >= 1
