"""From a SymPy expression in one variable to a function of every element of a tensor.

An expression is walked, not printed as text: numbers take the tensor's dtype and device, pieces are chosen by `torch.where`, and equal
parts are computed once.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any, Final

import sympy as sp
import torch
from torch import Tensor

from noetherflow.errors import GraphError
from noetherflow.symbolic.defects import Z

OPERATIONS: Final[dict[Any, Callable[..., Tensor]]] = {
    sp.Add: lambda *terms: reduce(torch.add, terms),
    sp.Mul: lambda *factors: reduce(torch.mul, factors),
    sp.Pow: torch.pow,
    sp.exp: torch.exp,
    sp.log: torch.log,
    sp.sin: torch.sin,
    sp.cos: torch.cos,
    sp.tanh: torch.tanh,
    sp.erf: torch.erf,
    sp.Or: lambda *cases: reduce(torch.logical_or, cases),
    sp.And: lambda *cases: reduce(torch.logical_and, cases),
    sp.Not: torch.logical_not,
    sp.StrictLessThan: torch.lt,
    sp.StrictGreaterThan: torch.gt,
    sp.LessThan: torch.le,
    sp.GreaterThan: torch.ge,
}


def evaluate(expression: sp.Expr, z: Tensor) -> Tensor:
    """An expression in `Z`, at every element of a tensor.

    Parameters
    ----------
    expression : sympy.Expr
    z : Tensor
        Of a floating-point dtype, in which everything is computed.

    Returns
    -------
    Tensor
        Of the shape of z.

    Raises
    ------
    GraphError
        If the expression holds another symbol, or a function without an entry in `OPERATIONS`.

    Examples
    --------
    >>> evaluate(sp.Piecewise((Z, Z > 0), (sp.Rational(1, 3) * Z**2, True)), torch.tensor([-3.0, 2.0]))
    tensor([3., 2.])
    """
    known: dict[Any, Tensor] = {Z: z}
    return _value(expression, z, known).expand(z.shape)


def _value(part: Any, z: Tensor, known: dict[Any, Tensor]) -> Tensor:
    if part not in known:
        known[part] = _computed(part, z, known)
    return known[part]


def _computed(part: Any, z: Tensor, known: dict[Any, Tensor]) -> Tensor:
    if part in (sp.true, sp.false):
        return torch.tensor(bool(part), device=z.device)
    if part.is_number:
        return z.new_tensor(float(part))
    if isinstance(part, sp.Piecewise):
        *pieces, (last, _) = part.args
        out = _value(last, z, known)
        for value, condition in reversed(pieces):
            out = torch.where(_value(condition, z, known), _value(value, z, known), out)
        return out
    if part.func not in OPERATIONS:
        raise GraphError(f"'{part}' cannot be evaluated on tensors. Add {part.func} to noetherflow.bridge.elementwise.OPERATIONS.")
    return OPERATIONS[part.func](*(_value(argument, z, known) for argument in part.args))
