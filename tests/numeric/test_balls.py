"""Balls hold the exact values: rational arithmetic and Arb at 200 bits are the judges, and a rule that is wrong is found."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from math import factorial
from random import Random
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


# --- numbers of any size, and every rule at points inside its balls

EXPONENTS = {"near one": (-3, 3), "tiny": (-320, -290), "huge": (140, 160), "any": (-308, 300)}


def wild(draw: Random, *shape: int) -> tuple[Ball, list[list[Fraction]]]:
    """As `ball`, of numbers that under- and overflow when they are multiplied."""
    rows, columns = shape
    sizes = [10.0 ** draw.uniform(*EXPONENTS[draw.choice(list(EXPONENTS))]) * draw.choice([-1, 1]) for _ in range(rows * columns)]
    sizes = [draw.choice([s, s, s, s, 0.0]) for s in sizes]
    radii = [draw.choice([0.0, abs(s) * 2.0 ** -draw.randint(1, 60), 10.0 ** draw.uniform(-320, 5)]) for s in sizes]
    exact = [Fraction(s) + Fraction(r) * Fraction(draw.randint(-4, 4), 4) for s, r in zip(sizes, radii, strict=True)]
    tensors = [torch.tensor(x, dtype=torch.float64).reshape(shape) for x in (sizes, radii)]
    return Ball(*tensors), [exact[i * columns : (i + 1) * columns] for i in range(rows)]


def held_or_unbounded(found: Ball, exact: list[list[Fraction]]) -> bool:
    """A ball without bound holds everything; what has overflowed must be one."""
    bounded = found.middle.isfinite() & found.radius.isfinite()
    if bool((~found.middle.isfinite() & found.radius.isfinite()).any()):
        return False
    pairs = zip(found.middle[bounded].tolist(), found.radius[bounded].tolist(), _where_true(exact, bounded), strict=True)
    return all(abs(value - Fraction(m)) <= Fraction(r) for m, r, value in pairs)


def _where_true(rows: list[list[Fraction]], mask: Tensor) -> list[Fraction]:
    return [value for row, taken in zip(rows, mask.tolist(), strict=True) for value, t in zip(row, taken, strict=True) if t]


def test_arithmetic_of_numbers_of_any_size_holds_exact_values() -> None:
    draw = Random(1)
    for _ in range(150):
        (a, x), (b, y), (c, z) = wild(draw, 3, 4), wild(draw, 3, 4), wild(draw, 4, 2)
        for name in ("add", "sub", "mul"):
            exact = [[OPERATIONS[name](p, q) for p, q in zip(*rows, strict=True)] for rows in zip(x, y, strict=True)]
            assert held_or_unbounded(OPERATIONS[name](a, b), exact), name
        for i in range(3):  # row by row: one ball that holds zero refuses all
            try:
                quotient = Ball(a.middle[i : i + 1], a.radius[i : i + 1]) / Ball(b.middle[i : i + 1], b.radius[i : i + 1])
            except NotEnclosed:
                continue
            assert held_or_unbounded(quotient, [[p / q for p, q in zip(x[i], y[i], strict=True)]])
        assert held_or_unbounded(a.sum([1], keepdim=True), [[sum(row, Fraction(0))] for row in x])
        columns = list(zip(*z, strict=True))
        exact = [[sum((p * q for p, q in zip(row, column, strict=True)), Fraction(0)) for column in columns] for row in x]
        assert held_or_unbounded(product(a, c), exact)


def test_what_overflows_or_is_not_in_double_precision_encloses_nothing() -> None:
    """1e308 / (1e308 + 1e308) is one half; in float64, and once in balls, it was 0."""
    large, one = torch.tensor([1e308, 1e308], dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    with pytest.raises(NotEnclosed, match="zero, or nearly"):
        enclosure(lambda x: x[0] / x.sum(), large)
    with pytest.raises(NotEnclosed, match="not finite"):  # minus infinity by overflow is no mask
        enclosure(lambda x: torch.stack([-x * 1e200 * 1e200, x]).softmax(0), one)
    with pytest.raises(NotEnclosed, match="float32"):
        enclosure(lambda x: x @ x, torch.full((2, 2), 0.1))
    third = torch.full((2, 2), 0.1)
    with pytest.raises(NotEnclosed, match="do not hold what float64 gives"):  # float32 rounds by more than is booked
        enclosure(lambda x: third @ third + x, torch.ones(2, 2, dtype=torch.float64), constants=[third])
    with pytest.raises(NotEnclosed, match="'view' has a rule"):
        enclosure(lambda x: x.view(torch.int64) * x, one)
    with pytest.raises(NotEnclosed, match="do not lie in order"):
        enclosure(lambda x: x[2:].as_strided((2,), (1,), 0) * 1, torch.arange(4, dtype=torch.float64))
    assert enclosure(lambda x: x[:0] * 2, one).middle.shape == (0,)
    number = enclosure(lambda x: x * (2**53 + 1), one)
    assert held(Ball(number.middle[None], number.radius[None]), [[Fraction(2**53 + 1)] * 2])


def logistic(x: Any) -> Any:
    return 1 / (1 + (-x).exp())


def clamped(x: Any, least: Any, most: Any) -> Any:
    x = least if x < least else x
    return most if x > most else x


INSIDE: dict[str, tuple[Callable[..., Ball], Callable[..., Any]]] = {
    **{
        name: (ball_rules.RULES[name], lambda x, n=name: getattr(x, n)())
        for name in ("exp", "expm1", "tanh", "erf", "sin", "cosh", "log1p")
    },
    **{f"power {p}": (lambda x, p=p: ball_rules.RULES["pow"](x, p), lambda x, p=p: x**p) for p in (2, 3, -1, -2)},
    **{f"power {p}": (lambda x, p=p: ball_rules.RULES["pow"](x, p), lambda x, p=p: x ** flint.arb(p)) for p in (0.5, -0.5, 1.5)},
    "silu": (ball_rules.RULES["silu"], lambda x: x * logistic(x)),
    "relu": (ball_rules.RULES["relu"], lambda x: x if x > 0 else flint.arb(0)),
    "abs": (ball_rules.RULES["abs"], abs),
    "softplus": (lambda x: ball_rules.RULES["softplus"](x, 3, 2), lambda x: x if 3 * x > 2 else (1 + (3 * x).exp()).log() / 3),
    "clamp": (lambda x: ball_rules.RULES["clamp"](x, -0.5, 0.5), lambda x: clamped(x, flint.arb(-0.5), flint.arb(0.5))),
    "clamp the wrong way round": (lambda x: ball_rules.RULES["clamp"](x, 0.5, -0.5), lambda x: clamped(x, flint.arb(0.5), flint.arb(-0.5))),
    "tanh_backward": (lambda x: ball_rules.RULES["tanh_backward"](x, x), lambda x: x * (1 - x * x)),
    "sigmoid_backward": (lambda x: ball_rules.RULES["sigmoid_backward"](x, x), lambda x: x * x * (1 - x)),
    "softplus_backward": (lambda x: ball_rules.RULES["softplus_backward"](x, x, 3, 2), lambda x: x if 3 * x > 2 else x * logistic(3 * x)),
}


@pytest.mark.parametrize("name", INSIDE)
def test_rules_hold_at_every_point_of_a_ball(name: str) -> None:
    rule, exact = INSIDE[name]
    draw, decided = Random(2), 0
    with flint.ctx.workprec(300):
        for _ in range(150):
            m = draw.gauss(0, 1) * 10.0 ** draw.uniform(-8, 1)
            r = draw.choice([0.0, abs(m) * 2.0 ** -draw.randint(2, 50), 10.0 ** draw.uniform(-18, -1)])
            x = flint.arb(m) + flint.arb(r) * flint.arb(draw.randint(-4, 4)) / 4
            try:
                found = rule(Ball(*(torch.tensor([v], dtype=torch.float64) for v in (m, r))))
            except NotEnclosed:  # a pole, or two pieces
                continue
            decided += 1
            assert abs(exact(x) - flint.arb(found.middle.item())).lower() <= flint.arb(found.radius.item()), (m, r)
    assert decided > 40
