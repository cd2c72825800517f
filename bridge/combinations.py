"""A form's vectors, made of the tensors at hand before a step: linear combinations, or equations followed entry by entry.

Besides the vectors that the form makes there are, for every atom, its companion, and for every vector how much rounding can change it:
the root of Σ (∂d/∂x)² (x² + Σ summands²) over what the equations make on the way, in units of one roundoff.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from functools import cached_property, lru_cache, reduce
from typing import Any, Final

import sympy as sp
import torch
from torch import Tensor

from noetherflow.bridge.kernels_chunks import Entrywise
from noetherflow.bridge.printing import Compiled, compile_expressions
from noetherflow.symbolic.forms import GRADIENT, STEP, THETA, Form
from noetherflow.symbolic.nonlinear import Larger, Magnitude, Orthogonal, Sign, structure
from noetherflow.symbolic.pairings import Vector, parts

THETA_NAME, GRADIENT_NAME = "theta", "gradient"
Coefficients = Mapping[str, float]
Scalar = Tensor | float


def buffer_name(before: str) -> str:
    """Name of a buffer's tensor, by its vector before the step."""
    return f"buffer {before}"


def companion_name(atom: str) -> str:
    """Name of what an atom follows."""
    return f"followed by {atom}"


def rounding_name(vector: str) -> str:
    """Name of how far rounding can change a vector, entry by entry, in roundoffs."""
    return f"rounding of {vector}"


def given_atoms(form: Form) -> frozenset[Vector]:
    """Atoms that are no function of single entries: they are handed over as tensors."""
    return frozenset(v for v, e in form.equations if e.atoms(Orthogonal))


@dataclass(frozen=True)
class Combinations:
    """Everything that a plan may ask of a form's vectors."""

    form: Form

    @cached_property
    def _table(self) -> dict[Vector, sp.Expr]:
        return {v: e for v, e in self.form.equations if v not in given_atoms(self.form)}

    @cached_property
    def _tensors(self) -> dict[Vector, str]:
        own = {THETA: THETA_NAME, GRADIENT: GRADIENT_NAME, **{before: buffer_name(before.name) for before, _ in self.form.buffers}}
        return own | {given: given.name for given in (*given_atoms(self.form), *self.form.invariant)}

    @cached_property
    def _curved(self) -> frozenset[Vector]:
        """Made vectors that are no linear combinations of tensors."""
        out: set[Vector] = set()
        for vector, expression in self._table.items():
            if vector in structure(self.form).atoms or expression.free_symbols & out:
                out.add(vector)
        return frozenset(out)

    @cached_property
    def _linear(self) -> Compiled:
        wanted = {v.name: sp.sympify(v) for v in (STEP, *(after for _, after in self.form.buffers), *self._table) if v not in self._curved}
        wanted |= {companion_name(atom.name): L for atom, L in structure(self.form).atoms.items() if L != 0 and self._is_flat(L)}
        out: dict[tuple[str, ...], sp.Expr] = {}
        for name, combination in wanted.items():
            for source, coefficient in parts(self._expanded(combination)).items():
                out[name, self._tensors[source]] = coefficient
        return compile_expressions(out)

    def _is_flat(self, combination: sp.Expr) -> bool:
        return not combination.free_symbols & self._curved

    def _expanded(self, combination: sp.Expr) -> sp.Expr:
        out = combination
        while made := [v for v in out.free_symbols if v in self._table]:
            out = out.xreplace({v: self._table[v] for v in made})
        return sp.expand(out)

    @cached_property
    def _programs(self) -> dict[str, Program]:
        atoms = structure(self.form).atoms
        out = {v.name: Program.of(self._table, v, self._tensors) for v in self._curved}
        for atom, followed in atoms.items():
            if followed != 0 and not self._is_flat(followed):
                out[companion_name(atom.name)] = Program.of(self._table, followed, self._tensors)
        rounded = {*self._curved, *given_atoms(self.form), *(after for _, after in self.form.buffers)} if atoms else set()
        return out | {rounding_name(v.name): Program.of(self._table, v, self._tensors, rounding=True) for v in rounded}

    def numbers(self, values: Mapping[str, float], *, present: Set[str]) -> dict[str, Coefficients]:
        """What every vector is in one step.

        Parameters
        ----------
        values : mapping of str to float
            Hyper-parameters by name.
        present : set of str
            Names of the tensors there are; a buffer that does not exist yet is zero.
        """
        known = {symbol: values[name] for name, symbol in self.form.hyperparameters}
        out: dict[str, dict[str, float]] = {}
        for (vector, tensor), coefficient in self._linear(known).items():
            if tensor in present:
                out.setdefault(vector, {})[tensor] = float(coefficient)
        bound: dict[str, Coefficients] = {name: program.bound(known, present) for name, program in self._programs.items()}
        return {**out, **bound}


@dataclass(frozen=True)
class Program:
    """Equations in order, each compiled on its own: what the next ones need of the last is at hand.

    Attributes
    ----------
    steps : tuple of (Vector, arguments, function)
        Made vectors on the way to the result.
    results : tuple of (arguments, function)
        One expression: the result; several: squares whose root it is.
    tensors : mapping of Vector to str
        Names of the tensors it starts from.
    rounding : bool
        Whether the result is the root of the sum of squares.
    """

    steps: tuple[tuple[Vector, tuple[sp.Symbol, ...], Callable[..., Scalar]], ...]
    results: tuple[tuple[tuple[sp.Symbol, ...], Callable[..., Scalar]], ...]
    tensors: Mapping[Vector, str]
    rounding: bool

    @classmethod
    def of(cls, table: Mapping[Vector, sp.Expr], target: sp.Expr, tensors: Mapping[Vector, str], *, rounding: bool = False) -> Program:
        """Compile the equations that a vector, or a combination of vectors, needs."""
        needed: set[Vector] = set(target.atoms(Vector))
        for vector, expression in reversed(list(table.items())):
            needed |= expression.atoms(Vector) if vector in needed else set()
        order = [v for v in table if v in needed]
        results = _squares(table, target, order) if rounding else [target]
        steps = tuple((v, *_compiled(table[v])) for v in order)
        used = {v: name for v, name in tensors.items() if v in needed}
        return cls(steps, tuple(_compiled(e) for e in results), used, rounding)

    def bound(self, known: Mapping[sp.Symbol, float], present: Set[str]) -> Entrywise:
        """With numbers for one step."""
        names = tuple(name for name in self.tensors.values() if name in present)

        def evaluate(tensors: Mapping[str, Tensor]) -> Tensor:
            zero = next(iter(tensors.values())).new_zeros(())
            at: dict[sp.Symbol, Scalar] = {**known, **{v: tensors.get(name, zero) for v, name in self.tensors.items()}}
            for vector, arguments, function in self.steps:
                at[vector] = function(*(at[a] for a in arguments))
            found = [function(*(at[a] for a in arguments)) for arguments, function in self.results]
            if not self.rounding:
                assert isinstance(found[0], Tensor)
                return found[0]
            # where an average is zero its root has no slope, and nothing is there to be rounded
            squares = [torch.nan_to_num(torch.as_tensor(x), nan=0.0, posinf=0.0) for x in found]
            return torch.sqrt(reduce(torch.add, squares))

        return Entrywise(names, evaluate)


def _squares(table: Mapping[Vector, sp.Expr], target: sp.Expr, order: list[Vector]) -> list[sp.Expr]:
    """(∂target/∂x)² (x² + Σ summands²) of every made x; of what is given, its own square."""
    slopes: dict[Vector, sp.Expr] = {target: sp.S.One}
    for vector in reversed(order):
        for argument in table[vector].atoms(Vector):
            slope = slopes.get(vector, sp.S.Zero) * sp.diff(table[vector], argument)
            slopes[argument] = slopes.get(argument, sp.S.Zero) + slope
    out = []
    for vector in order:
        summands = sp.Add.make_args(sp.expand(table[vector]))
        own = vector**2 + (sp.Add(*(x**2 for x in summands)) if len(summands) > 1 else 0)
        if slopes.get(vector, 0) != 0:
            out.append(slopes[vector] ** 2 * own)
    return out or [target**2]


def _root(x: Scalar) -> Scalar:
    return x.sqrt() if isinstance(x, Tensor) else math.sqrt(x)


FUNCTIONS: Final[dict[str, Callable[..., Any]]] = {
    "sqrt": _root,
    Sign.__name__: torch.sign,
    Magnitude.__name__: torch.abs,
    Larger.__name__: torch.maximum,
    **{name: getattr(torch, name) for name in ("exp", "log", "sinh", "cosh", "asinh")},  # steps of mirror descent
}


@lru_cache(maxsize=4096)
def _compiled(expression: sp.Expr) -> tuple[tuple[sp.Symbol, ...], Callable[..., Scalar]]:
    arguments = tuple(sorted(expression.free_symbols, key=str))
    dummies = [sp.Dummy(f"x{i}") for i in range(len(arguments))]
    body = expression.xreplace(dict(zip(arguments, dummies, strict=True)))
    return arguments, sp.lambdify(dummies, body, modules=[dict(FUNCTIONS)], cse=True)
