"""Polynomial conservation laws, found without a theory: of a network under gradient flow, or of vector fields of the user's own.

A second, independent way to the laws that are derived from symmetries, and the only one where there is no network: what comes out is what
linear algebra finds, up to the degree that is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Final, TypeAlias

import sympy as sp
import torch
from torch import Tensor, nn
from torch.func import grad

from noetherflow.bridge.sampling import Sampling
from noetherflow.bridge.trace import Loss, trace
from noetherflow.errors import ModelError
from noetherflow.numeric import brackets, hashed
from noetherflow.numeric.elimination import product
from noetherflow.numeric.law_search import Solutions, search
from noetherflow.numeric.modular import PRIMES, Modulo, residues
from noetherflow.symbolic.graph import ArchitectureGraph

VectorField: TypeAlias = Mapping[sp.Symbol, sp.Expr]
CHECKS: Final = 4  # further points at which a network's laws are tried, modulo another prime


@dataclass(frozen=True)
class PolynomialLaws:
    """What a search found.

    Attributes
    ----------
    degree : int
    variables : tuple of sympy.Symbol
        For a network, one for each entry of a trainable parameter.
    laws : tuple of sympy.Expr
        A basis of all polynomial laws up to the degree; with two laws their products, where these are of the degree, are laws too.
    independent : int
        How many of them are functions of no others, at least.
    proved : bool
        The laws hold identically (vector fields). For a network they were tried on further samples, modulo another prime.
    unread : int
        Solutions whose coefficients are no small fractions, or that further samples refute: not among the laws.
    """

    degree: int
    variables: tuple[sp.Symbol, ...]
    laws: tuple[sp.Expr, ...]
    independent: int
    proved: bool
    unread: int = 0

    def __str__(self) -> str:
        if not self.laws and not self.unread:
            return f"no polynomial law up to degree {self.degree} in {len(self.variables)} variables: proved, for rational coefficients"
        standing = "hold identically" if self.proved else "hold on every sample tried"
        head = f"{len(self.laws)} polynomial laws up to degree {self.degree}, {self.independent} of them independent; they {standing}"
        unread = [f"  and {self.unread} solutions that could not be read as laws"] if self.unread else []
        return "\n".join([head, *(f"  {law}" for law in self.laws), *unread])

    def _repr_latex_(self) -> str:
        return r"$\displaystyle \begin{aligned}" + r"\\ ".join(sp.latex(law) for law in self.laws) + r"\end{aligned}$"


def polynomial_laws(
    source: nn.Module | ArchitectureGraph | VectorField | Sequence[VectorField],
    *example_inputs: Any,
    degree: int = 2,
    loss: Loss = None,
    seed: int = 0,
) -> PolynomialLaws:
    """Find every polynomial that is conserved, up to a degree.

    Parameters
    ----------
    source : nn.Module, ArchitectureGraph, or vector fields
        A small network whose operations are piecewise polynomial (what pieces of ReLUs and maxima hold is free, as in the path-lifting:
        data that reach them all are supposed); or one or more vector fields, each a mapping from every variable to its
        velocity, a polynomial in the variables with rational coefficients. What is conserved is so along all of them.
    example_inputs : tensors
        For a module, as for `noetherflow.trace`.
    degree : int
        2 holds all known laws of linear and ReLU networks.
    loss : as for `noetherflow.trace`
    seed : int

    Returns
    -------
    PolynomialLaws
        Complete: there is no further polynomial law of the degree with rational coefficients (see `noetherflow.numeric.law_search`).

    Raises
    ------
    ModelError
        Vector fields that are no polynomials or do not say how every variable moves; a network with other operations than polynomial
        ones; or too many monomials.

    Notes
    -----
    Source: marcotte2023abide, section 3 (polynomial laws as the null space of a linear system); here over a prime field.

    Examples
    --------
    >>> x, y, z = sp.symbols("x y z")
    >>> print(polynomial_laws({x: y * z, y: -2 * x * z, z: x * y}))
    2 polynomial laws up to degree 2, 2 of them independent; they hold identically
      x**2 - z**2
      y**2 + 2*z**2
    >>> print(polynomial_laws({x: x, y: y**2}))
    no polynomial law up to degree 2 in 2 variables: proved, for rational coefficients
    """
    if degree < 1:
        raise ModelError(f"Polynomial laws have a degree of at least 1; got {degree}.", degree=degree)
    if isinstance(source, nn.Module):
        source = trace(source, *example_inputs, loss=loss)
    fields = _Network(source, str(seed)) if isinstance(source, ArchitectureGraph) else _Given(source, str(seed))
    prime = PRIMES[0]
    found = search(lambda number: fields.draw(number, prime), len(fields.variables), degree, prime)
    read = [found.coefficients(i, prime) for i in range(len(found.basis))]
    laws = [_whole(c) for c in read if c is not None and fields.conserve(c, found)]
    expressions = tuple(_expression(c, found, fields.variables) for c in laws)
    return PolynomialLaws(degree, fields.variables, expressions, found.independent, fields.identically, len(read) - len(laws))


class _Given:
    """Vector fields written in SymPy."""

    identically = True

    def __init__(self, source: VectorField | Sequence[VectorField], seed: str) -> None:
        self.fields = [source] if isinstance(source, Mapping) else list(source)
        names = dict.fromkeys(v for f in self.fields for v in f)
        self.variables: tuple[sp.Symbol, ...] = tuple(sorted(names, key=sp.default_sort_key))
        self.seed = seed
        if not self.fields or not self.variables:
            raise ModelError("No vector field to search. Give a mapping from each variable to its velocity.")
        self.terms = [[self._terms(f.get(v)) for v in self.variables] for f in self.fields]

    def _terms(self, velocity: Any) -> list[tuple[tuple[int, ...], Fraction]]:
        if velocity is None:
            raise ModelError(f"Every field must say how each of {list(self.variables)} moves; one is silent. Write 0 where it rests.")
        try:
            polynomial = sp.Poly(sp.sympify(velocity), *self.variables, domain=sp.QQ)
        except sp.PolynomialError as err:
            raise ModelError(
                f"The velocity {velocity} is no polynomial in {list(self.variables)} with rational coefficients. Floats must be written as "
                "sympy.Rational, and constants as numbers.",
                velocity=str(velocity),
            ) from err
        except sp.CoercionFailed as err:
            raise ModelError(f"The velocity {velocity} has coefficients that are not rational.", velocity=str(velocity)) from err
        return [(powers, Fraction(int(c.p), int(c.q))) for powers, c in polynomial.terms()]

    def draw(self, number: int, prime: int) -> tuple[Tensor, Tensor]:
        point = residues(hashed.sixtyfourths(f"{self.seed}/{number}", [len(self.variables)]), prime)
        entries = [int(v) for v in point]
        rows = [[_balanced(sum(_value(term, entries, prime) for term in terms), prime) for terms in field] for field in self.terms]
        return point, torch.tensor(rows, dtype=torch.float64)

    def conserve(self, law: dict[int, Fraction], found: Solutions) -> bool:
        """Whether a law's derivative along every field vanishes identically."""
        h = _expression(law, found, self.variables)
        return all(sp.expand(sum(sp.diff(h, v) * sp.sympify(f[v]) for v in self.variables)) == 0 for f in self.fields)


class _Network:
    """Gradient fields of a graph's outputs."""

    identically = False

    def __init__(self, graph: ArchitectureGraph, seed: str) -> None:
        self.graph, self.seed = graph, seed
        shapes = {name: [int(s) for s in p.shape] for name, p in graph.parameters.items() if p.trainable}
        self.variables = tuple(sp.Symbol(_entry(name, index)) for name, shape in shapes.items() for index in _indices(shape))

    def draw(self, number: int, prime: int) -> tuple[Tensor, Tensor]:
        sampling = Sampling(self.graph, f"{self.seed}/{number}", "free", prime)
        samples, _ = sampling.samples(0, 0, len(self.variables))
        theta = sampling.theta
        with Modulo(prime):
            fields = brackets.rows(grad(sampling.scalar), theta, 0, samples)
        return brackets.flattened(theta), fields

    def conserve(self, law: dict[int, Fraction], found: Solutions) -> bool:
        """Whether further samples, modulo another prime, leave a law constant."""
        prime = PRIMES[1]
        row = torch.zeros(1, len(found.monomials), dtype=torch.float64)
        for m, c in law.items():
            row[0, m] = _balanced(c.numerator * pow(c.denominator, -1, prime), prime)
        for number in range(found.points + 1, found.points + 1 + CHECKS):
            point, fields = self.draw(number, prime)
            gradient = product(row, found.monomials.gradients(point, prime), prime)
            if bool(product(fields, gradient.T.contiguous(), prime).any()):
                return False
        return True


def _value(term: tuple[tuple[int, ...], Fraction], entries: Sequence[int], prime: int) -> int:
    powers, c = term
    value = c.numerator * pow(c.denominator, -1, prime)
    for entry, power in zip(entries, powers, strict=True):
        value = value * pow(entry, power, prime) % prime
    return value


def _balanced(value: int, prime: int) -> float:
    r = value % prime
    return float(r if r <= prime // 2 else r - prime)


def _whole(law: dict[int, Fraction]) -> dict[int, Fraction]:
    """The same law with coprime integers."""
    scale = sp.ilcm(1, *(c.denominator for c in law.values()))
    return {m: c * int(scale) for m, c in law.items()}


def _expression(law: dict[int, Fraction], found: Solutions, variables: Sequence[sp.Symbol]) -> sp.Expr:
    terms = ((sp.Rational(c.numerator, c.denominator), found.monomials.powers(m)) for m, c in law.items())
    return sp.Add(*(c * sp.Mul(*(variables[i] ** power for i, power in powers)) for c, powers in terms))


def _indices(shape: Sequence[int]) -> list[tuple[int, ...]]:
    return (
        [tuple(int(i) for i in row) for row in torch.cartesian_prod(*(torch.arange(s) for s in shape)).reshape(-1, len(shape))]
        if shape
        else [()]
    )


def _entry(name: str, index: tuple[int, ...]) -> str:
    return f"{name}[{', '.join(map(str, index))}]" if index else name
