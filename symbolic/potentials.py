"""Mirror potentials as text: what a certificate holds, read back without evaluating anything but arithmetic."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from typing import Any, Final

import sympy as sp

from noetherflow.errors import RuleError
from noetherflow.symbolic.metrics import ARGUMENT

OPERATORS: Final[dict[type, Callable[[Any, Any], Any]]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}
FUNCTIONS: Final = {"log": sp.log, "exp": sp.exp, "sqrt": sp.sqrt, "cosh": sp.cosh}


def read_potential(text: str) -> sp.Expr:
    """A potential in `ARGUMENT` from what SymPy prints of it.

    Raises
    ------
    RuleError
        If the text is anything but integers, x, + - * / **, log, exp, sqrt and cosh.

    Examples
    --------
    >>> read_potential("x*log(x) - x**2/2")
    -x**2/2 + x*log(x)
    """
    try:
        return _built(ast.parse(text, mode="eval").body)
    except (SyntaxError, ValueError, RecursionError) as err:
        raise RuleError(
            f"'{text[:80]}' is no potential in {ARGUMENT}: {err}. Write integers, {ARGUMENT}, + - * / **, {', '.join(FUNCTIONS)}."
        ) from err


def _built(node: ast.expr) -> sp.Expr:
    match node:
        case ast.Constant(value=int() as value):
            return sp.Integer(value)
        case ast.Name(id=name) if name == str(ARGUMENT):
            return ARGUMENT
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_built(operand)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
            return OPERATORS[type(op)](_built(left), _built(right))
        case ast.Call(func=ast.Name(id=name), args=[argument], keywords=[]) if name in FUNCTIONS:
            return FUNCTIONS[name](_built(argument))
        case _:
            raise ValueError(f"{ast.unparse(node)} has no place in one")
