"""From SymPy expressions in scalars and pairings to functions of tensors.

Only the scalar algebra around pairings is printed (sums and products with hyper-parameters), through SymPy's own printer and `cse`; it acts
on tensors of charges element by element. Vectors never appear: their pairings are arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sympy as sp

from noetherflow.symbolic.pairings import Inner

Key = tuple[str, ...]


@dataclass(frozen=True)
class Compiled:
    """Expressions compiled into one function.

    Attributes
    ----------
    keys : tuple
        Names of the results, in order.
    arguments : tuple of sympy.Expr
        Symbols and pairings that the function takes, in order.
    """

    keys: tuple[Key, ...]
    arguments: tuple[sp.Expr, ...]
    function: Callable[..., Sequence[Any]]

    def __call__(self, values: Mapping[sp.Expr, Any]) -> dict[Key, Any]:
        """Evaluate all expressions.

        Parameters
        ----------
        values : mapping
            A number or tensor for every argument.
        """
        return dict(zip(self.keys, self.function(*(values[a] for a in self.arguments)), strict=True))


def compile_expressions(expressions: Mapping[Key, sp.Expr]) -> Compiled:
    """Compile expressions, with common subexpressions computed once.

    Examples
    --------
    >>> x, y = sp.symbols("x y")
    >>> compile_expressions({("sum",): x + y, ("half",): x / 2})({x: 3.0, y: 1.0})
    {('sum',): 4.0, ('half',): 1.5}
    """
    found: set[sp.Expr] = set()
    for expression in expressions.values():
        found |= expression.atoms(Inner)
        hidden = {pairing: sp.Dummy() for pairing in expression.atoms(Inner)}  # vectors inside pairings are no arguments
        found |= expression.xreplace(hidden).free_symbols - set(hidden.values())
    arguments = tuple(sorted(found, key=str))
    dummies = {a: sp.Dummy(f"x{i}") for i, a in enumerate(arguments)}
    body = [sp.sympify(e).xreplace(dummies) for e in expressions.values()]
    function = sp.lambdify([dummies[a] for a in arguments], body, modules="math", cse=True)
    return Compiled(tuple(expressions), arguments, function)
