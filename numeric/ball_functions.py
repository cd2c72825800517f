"""Elementary functions of balls, entry by entry in the arbitrary-precision balls of python-flint.

Libraries' float64 versions of exp or erf come with no proved error; Arb's enclose the exact value for every number of a ball.

Source: johansson2017arb.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, Final

import torch

from noetherflow.errors import ModelError
from noetherflow.numeric.balls import UNIT, Ball, NotEnclosed

PRECISION: Final = 80  # bits; the result is rounded to 53
KAPPA: Final = 0.044715

Function = Callable[[Any], Any]


def flint() -> Any:
    """The package python-flint.

    Raises
    ------
    ModelError
        If it is not installed.
    """
    try:
        return import_module("flint")
    except ImportError as err:
        raise ModelError(
            "Ball arithmetic needs python-flint, which is not installed. Run pip install 'noetherflow[balls]', or count without balls=True."
        ) from err


def through(function: Function, x: Ball) -> Ball:
    """A function of python-flint's balls at every entry.

    Parameters
    ----------
    function : callable
        arb -> arb.
    x : Ball

    Raises
    ------
    NotEnclosed
        If it is not finite on some ball: outside its domain, or the ball is too wide.

    Examples
    --------
    >>> y = through(lambda b: b.exp(), Ball.exact(torch.tensor([1.0], dtype=torch.float64)))
    >>> y.contains(torch.tensor([2.718281828459045], dtype=torch.float64))
    True
    """
    library = flint()
    with library.ctx.workprec(PRECISION):
        values = [function(library.arb(m, r)) for m, r in zip(x.middle.flatten().tolist(), x.radius.flatten().tolist(), strict=True)]
        middle = x.middle.new_tensor([float(v.mid()) for v in values]).reshape(x.middle.shape)
        radius = x.middle.new_tensor([float(v.rad()) for v in values]).reshape(x.middle.shape)
    if not bool((middle.isfinite() & radius.isfinite()).all()):
        raise NotEnclosed("A function is not finite on a ball: it reaches the end of the function's domain, or is too wide.")
    return Ball(middle, radius) + Ball(torch.zeros_like(middle), 4 * UNIT * middle.abs())  # midpoints were rounded to 53 bits


def named(name: str) -> Callable[[Ball], Ball]:
    """One of the functions that python-flint has: exp, tanh, erf, ..."""
    return lambda x: through(lambda b: getattr(b, name)(), x)


def power(x: Ball, exponent: float) -> Ball:
    """X to a power that is an integer, or with x > 0 a multiple of a power of two.

    >>> power(Ball.exact(torch.tensor([4.0], dtype=torch.float64)), -0.5).middle
    tensor([0.5000], dtype=torch.float64)
    """
    whole = float(exponent).is_integer()
    if not whole and not float(exponent * 1024).is_integer():
        raise NotEnclosed(f"The power {exponent} is no short binary fraction, so it is not known which number is meant.")
    given: Any = int(exponent) if whole else flint().arb(exponent)
    return through(lambda b: b**given, x)


def sigmoid(x: Ball) -> Ball:
    """1 / (1 + e^-x)."""
    return through(lambda b: 1 / (1 + (-b).exp()), x)


def gelu(x: Ball, *, approximate: bool) -> Ball:
    """X Φ(x), or its approximation by tanh."""
    return x * (through(_bell_share, x) if not approximate else (through(_tanh_inside, x) + 1.0) * 0.5)


def gelu_slope(x: Ball, *, approximate: bool) -> Ball:
    """The derivative of `gelu`."""
    return through(_approximate_slope if approximate else (lambda b: _bell_share(b) + b * _bell(b)), x)


def _bell_share(b: Any) -> Any:
    return (1 + (b / flint().arb(2).sqrt()).erf()) / 2


def _bell(b: Any) -> Any:
    return (-b * b / 2).exp() / (2 * flint().arb.pi()).sqrt()


def _kappa() -> Any:
    return flint().arb(KAPPA, 4 * UNIT * KAPPA)  # the decimal number, and what float64 makes of it


def _tanh_inside(b: Any) -> Any:
    return ((2 / flint().arb.pi()).sqrt() * (b + _kappa() * b**3)).tanh()


def _approximate_slope(b: Any) -> Any:
    t = _tanh_inside(b)
    return (1 + t) / 2 + b / 2 * (1 - t * t) * (2 / flint().arb.pi()).sqrt() * (1 + 3 * _kappa() * b * b)
