"""Functions of every element, as SymPy expressions, and by how much each fails to pass a change of its input.

A function y = f(z) that is positively homogeneous of degree 1 turns z -> e^s z into y -> e^s y, a linear one with slope 1 turns z -> z + t
into y -> y + t. Any other f misses that by its *defect*, the derivative of what it does minus what was expected of it, at no change:

    scale    d/ds [f(e^s z) - e^s f(z)] = z f'(z) - f(z)
    shift    d/dt [f(z + t) - f(z) - t] = f'(z) - 1

Only the functions are written down here; SymPy differentiates. Source: own (`derivations/broken_symmetries.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Final

import sympy as sp

from noetherflow.errors import GraphError

Z: Final = sp.Symbol("z", real=True)
HALF: Final = sp.Rational(1, 2)

Change = Callable[[sp.Expr, sp.Expr], sp.Expr]
# What a change with parameter s makes of a tensor, before the function and (expected) behind it.
CHANGES: Final[dict[str, Change]] = {"scale": lambda tensor, s: sp.exp(s) * tensor, "shift": lambda tensor, s: tensor + s}


def _logistic(z: sp.Expr) -> sp.Expr:
    return (1 + sp.tanh(z / 2)) / 2  # in this form nothing overflows


def _gelu(attributes: Mapping[str, Any]) -> sp.Expr:
    if attributes.get("approximate", "none") == "tanh":
        return Z / 2 * (1 + sp.tanh(sp.sqrt(2 / sp.pi) * (Z + sp.Rational("0.044715") * Z**3)))
    return Z / 2 * (1 + sp.erf(Z / sp.sqrt(2)))


def _softplus(attributes: Mapping[str, Any]) -> sp.Expr:
    beta, threshold = _number(attributes.get("beta", 1)), _number(attributes.get("threshold", 20))  # torch is linear above the threshold
    return sp.Piecewise((Z, beta * Z > threshold), (sp.log(1 + sp.exp(beta * Z)) / beta, True))


def _elu(attributes: Mapping[str, Any]) -> sp.Expr:
    return sp.Piecewise((Z, Z > 0), (_number(attributes.get("alpha", 1)) * (sp.exp(Z) - 1), True))


def _clamp(attributes: Mapping[str, Any]) -> sp.Expr:
    low, high = attributes.get("min"), attributes.get("max")
    pieces = [] if low is None else [(_number(low), _number(low) > Z)]
    pieces += [] if high is None else [(_number(high), _number(high) < Z)]
    return sp.Piecewise(*pieces, (Z, True))


def _number(value: Any) -> sp.Expr:
    return sp.Rational(str(value))


FUNCTIONS: Final[dict[str, Callable[[Mapping[str, Any]], sp.Expr]]] = {
    "gelu": _gelu,
    "softplus": _softplus,
    "elu": _elu,
    "clamp": _clamp,
    "tanh": lambda _: sp.tanh(Z),
    "silu": lambda _: Z * _logistic(Z),
    "sigmoid": lambda _: _logistic(Z),
    "mish": lambda _: Z * sp.tanh(sp.log(1 + sp.exp(Z))),
    "exponential": lambda _: sp.exp(Z),
    "logarithm": lambda _: sp.log(Z),
    "sine": lambda _: sp.sin(Z),
    "cosine": lambda _: sp.cos(Z),
    "error_function": lambda _: sp.erf(Z),
    "relu": lambda _: sp.Piecewise((Z, Z > 0), (0, True)),
    "relu6": lambda _: sp.Piecewise((0, Z <= 0), (Z, Z < 6), (6, True)),
    "hard_sigmoid": lambda _: _hard_sigmoid(),
    "hard_swish": lambda _: Z * _hard_sigmoid(),
    "absolute": lambda _: sp.Piecewise((Z, Z > 0), (-Z, True)),
    "power": lambda attributes: Z ** _number(attributes["exponent"]),
}


def _hard_sigmoid() -> sp.Expr:
    return sp.Piecewise((0, Z <= -3), (Z / 6 + HALF, Z < 3), (1, True))


def function(operation: str, attributes: Mapping[str, Any]) -> sp.Expr:
    """What an operation makes of one element z.

    Parameters
    ----------
    operation : str
        A standard name.
    attributes : mapping
        Of the node; those that it lacks have torch's defaults.

    Raises
    ------
    GraphError
        If the operation is no known function of every element.

    Examples
    --------
    >>> function("gelu", {})
    z*(erf(sqrt(2)*z/2) + 1)/2
    """
    if operation not in FUNCTIONS:
        raise GraphError(
            f"'{operation}' is no known function of every element. Known are {sorted(FUNCTIONS)}; add its expression to "
            "noetherflow.symbolic.defects.FUNCTIONS.",
            operation=operation,
        )
    return FUNCTIONS[operation](attributes)


@lru_cache(maxsize=256)
def defect(f: sp.Expr, change: str) -> sp.Expr:
    """By how much f fails to pass a change, per unit of the change of its input.

    Parameters
    ----------
    f : sympy.Expr
        In `Z`.
    change : 'scale' or 'shift'

    Returns
    -------
    sympy.Expr
        In `Z`; zero exactly if f passes the change.

    Examples
    --------
    >>> defect(function("gelu", {}), "scale"), defect(function("tanh", {}), "shift"), defect(function("relu", {}), "scale")
    (sqrt(2)*z**2*exp(-z**2/2)/(2*sqrt(pi)), -tanh(z)**2, 0)
    """
    s, changed = sp.Symbol("s", real=True), CHANGES[change]
    missed = f.xreplace({Z: changed(Z, s)}) - changed(f, s)
    return sp.expand(sp.diff(missed, s).subs(s, 0))
