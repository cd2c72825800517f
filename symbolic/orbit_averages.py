r"""How far the average over n equispaced elements of a circle group is from the average over all of it.

Let F(s) = L(θ; exp(s Ω) data), of period 2π, with Fourier coefficients c_m. The momentum of the data is F'(0)
(`noetherflow.symbolic.input_actions`, equation 1). Averaged over the angles 2πk/n only frequencies that n divides are left,

    (1/n) Σ_k F'(2πk/n) = Σ_{m ≠ 0, n | m} i m c_m .                                                        (1)

Averaged over the whole circle it is zero. So a finite set leaves an *aliasing error*, and
  - none if F is a trigonometric polynomial of degree below n. Where outputs are polynomials of degree p in the inputs, the loss is mean
    square, and no frequency of Ω exceeds k, that degree is at most 2 p k;
  - if F is analytic and bounded by M in the strip |Im s| < a, then |c_m| ≤ M e^{-a|m|}, and (1) is at most 2 M n q / (1 - q)², q = e^{-an};
  - if F has kinks (ReLU), F' has jumps, and the error falls as 1/n only.
A finite group as such gives no infinitesimal restriction: (1) is not zero in general, whatever n.

Source: own; (1) and the bound are the classical theory of the trapezoidal rule.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

import sympy as sp

from noetherflow.symbolic.graph import ArchitectureGraph

ELEMENTS = sp.Symbol("n", integer=True, positive=True)
STRIP = sp.Symbol("a", positive=True)
LARGEST = sp.Symbol("M", positive=True)

Degree = int | None
"""Polynomial degree in the inputs; None for what is no polynomial."""


def kept_by_average(frequency: int, elements: int) -> sp.Expr:
    """The average of e^{ims} over n equispaced angles: 1 if n divides m, else 0, exactly.

    Examples
    --------
    >>> [kept_by_average(m, 4) for m in (0, 1, 2, 4, -8)]
    [1, 0, 0, 1, 1]
    """
    if frequency % elements == 0:
        return sp.S.One
    ratio = sp.exp(2 * sp.pi * sp.I * sp.Rational(frequency, elements))
    return sp.simplify((ratio**elements - 1) / (ratio - 1) / elements)


def aliasing_bound() -> sp.Expr:
    """The largest aliasing error of an analytic F: 2 M Σ_{j≥1} j n q^j with q = e^{-an}, summed.

    Examples
    --------
    >>> aliasing_bound()
    2*M*n*exp(-a*n)/(1 - exp(-a*n))**2
    """
    q, j = sp.Symbol("q", positive=True), sp.Symbol("j", integer=True, positive=True)
    series = sp.Sum(j * q**j, (j, 1, sp.oo)).doit()
    closed = next(value for value, condition in series.args if condition != sp.true) if isinstance(series, sp.Piecewise) else series
    return 2 * LARGEST * ELEMENTS * closed.subs(q, sp.exp(-STRIP * ELEMENTS))


def input_degree(graph: ArchitectureGraph) -> Degree:
    """Degree of a network's outputs as polynomials in its inputs, from its operations; None if they are none.

    An upper bound (leading terms may cancel). Losses are not counted: what they read is.

    Examples
    --------
    >>> graph = ArchitectureGraph()
    >>> _ = graph.add_parameter("w", (4, 3))
    >>> _ = graph.add_operation("x", "input", shape=(8, 3))
    >>> _ = graph.add_operation("h", "linear", {"input": "x"}, {"weight": "w"}, shape=(8, 4))
    >>> _ = graph.add_operation("y", "multiply", {"input": "h", "other": "h"}, shape=(8, 4))
    >>> input_degree(graph)
    2
    """
    degrees: dict[str, Degree] = {}
    for node in graph.topological_order():
        data = graph.nodes[node]
        slots = {slot: degrees[producer] for slot, producer in graph.inputs_of(node).items()}
        degrees[node] = _degree(data["operation"], slots, data["attributes"])
    ends = [degrees[node] for node in graph if graph.out_degree(node) == 0]
    return _largest(ends)


def exact_elements(graph: ArchitectureGraph, frequency: int) -> int | None:
    """The fewest equispaced elements whose average is exact for a mean-square loss: 2 p k + 1; None if no number is."""
    degree = input_degree(graph)
    return None if degree is None else 2 * degree * frequency + 1


def _largest(degrees: list[Degree]) -> Degree:
    return None if None in degrees else max((d for d in degrees if d is not None), default=0)


def _sum(degrees: list[Degree]) -> Degree:
    return None if None in degrees else sum(d for d in degrees if d is not None)


def _layer(slots: Mapping[str, Degree], attributes: Mapping[str, Any]) -> Degree:
    return _largest([_sum([slots.get("input", 0), slots.get("weight", 0)]), slots.get("bias", 0)])


def _power(slots: Mapping[str, Degree], attributes: Mapping[str, Any]) -> Degree:
    exponent, degree = attributes.get("exponent"), slots["input"]
    if degree is None or not isinstance(exponent, int | float) or exponent < 0 or not float(exponent).is_integer():
        return None
    return degree * int(exponent)


def _quotient(slots: Mapping[str, Degree], attributes: Mapping[str, Any]) -> Degree:
    return slots.get("input", 0) if slots.get("other", 0) == 0 else None


def _any_of(slots: Mapping[str, Degree], attributes: Mapping[str, Any]) -> Degree:
    return _largest(list(slots.values()))


def _product(slots: Mapping[str, Degree], attributes: Mapping[str, Any]) -> Degree:
    return _sum(list(slots.values()))


LINEAR: Final = (
    *("add", "subtract", "negate", "scale", "sum", "mean", "average_pool", "adaptive_average_pool"),
    *("identity", "reshape", "permute", "expand", "slice", "concatenate", "rearrange"),
    *("output", "cross_entropy", "mean_square"),
)
RULES: Final[Mapping[str, Callable[[Mapping[str, Degree], Mapping[str, Any]], Degree]]] = MappingProxyType(
    dict.fromkeys(LINEAR, _any_of)
    | dict.fromkeys(("multiply", "matmul", "einsum"), _product)
    | dict.fromkeys(("linear", "convolution", "transposed_convolution"), _layer)
    | {"power": _power, "divide": _quotient}
)


def _degree(operation: str, slots: Mapping[str, Degree], attributes: Mapping[str, Any]) -> Degree:
    if operation == "input":
        return 1
    if operation in RULES:
        return RULES[operation](slots, attributes)
    return 0 if all(d == 0 for d in slots.values()) else None
