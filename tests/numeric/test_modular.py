"""Arithmetic modulo a prime below torch.func, elimination in it, and brackets: against rational arithmetic and an independent library."""

from __future__ import annotations

import hashlib
from fractions import Fraction

import flint
import pytest
import sympy as sp
import torch
from torch import Tensor
from torch.func import grad, vmap

from noetherflow.numeric import brackets, hashed
from noetherflow.numeric.elimination import Echelon, fraction, product, rank
from noetherflow.numeric.lie_rank import FloatSpace, grow
from noetherflow.numeric.modular import PRIMES, ContractionTooLong, Modulo, NotPolynomial, length_limit, reduced, residue, residues

P = PRIMES[0]


def random(*shape: int, seed: int = 0, prime: int = P) -> Tensor:
    drawn = torch.randint(0, prime, shape, generator=torch.Generator().manual_seed(seed))
    return reduced(drawn.to(torch.float64), prime)


@pytest.mark.parametrize("prime", PRIMES)
def test_the_primes_are_primes_and_their_contractions_fit(prime: int) -> None:
    assert sp.isprime(prime)
    assert length_limit(prime) * (prime // 2 + 1) ** 2 < 2**53
    assert (length_limit(prime) + 1) * (prime // 2 + 1) ** 2 >= 2**53


def test_residues_are_those_of_the_rationals_that_the_floats_are() -> None:
    values = torch.tensor([0.1, -2.5, 3.0, 7 / 64], dtype=torch.float64)
    for got, value in zip(residues(values, P).tolist(), values.tolist(), strict=True):
        exact = Fraction(value)
        assert (int(got) * exact.denominator - exact.numerator) % P == 0
        assert got == residue(value, P)


def test_second_derivatives_are_exact_under_vmap() -> None:
    """x -> Σ (W x)^5 at residues that overflow float64 by far without reduction: against Python's integers."""
    w, x = random(3, 4, seed=1), random(2, 4, seed=2)

    def f(v: Tensor) -> Tensor:
        return ((w @ v) ** 5).sum()

    with Modulo(P):
        found = vmap(lambda v: grad(lambda u: (grad(f)(u) * v).sum())(v))(x)
    for row, point in zip(found.tolist(), x.tolist(), strict=True):
        a = [[int(e) for e in r] for r in w.tolist()]
        y = [sum(c * int(e) for c, e in zip(r, point, strict=True)) for r in a]
        hessian_times_point = [20 * sum(y[i] ** 3 * y[i] * a[i][k] for i in range(3)) for k in range(4)]
        assert [(int(g) - e) % P for g, e in zip(row, hessian_times_point, strict=True)] == [0] * 4


def test_means_quotients_and_numbers_are_rationals() -> None:
    x = torch.tensor([[3.0, 4.0, 6.0]], dtype=torch.float64)
    with Modulo(P):
        mean, half, third = x.mean(1), 0.5 * x.sum(), x / 3
    assert fraction(float(mean), P) == Fraction(13, 3)
    assert fraction(float(half), P) == Fraction(13, 2)
    assert [fraction(v, P) for v in third.flatten().tolist()] == [1, Fraction(4, 3), 2]


@pytest.mark.parametrize(
    "function",
    [torch.exp, torch.sqrt, torch.relu, torch.abs, lambda x: x / x, lambda x: x**-1, lambda x: x.max(), lambda x: x.to(torch.float32)],
)
def test_what_is_no_polynomial_is_refused(function: object) -> None:
    with pytest.raises(NotPolynomial), Modulo(P):
        function(torch.ones(3, dtype=torch.float64))  # type: ignore[operator]


def test_a_contraction_that_would_round_is_refused() -> None:
    long = torch.ones(1, length_limit(P) + 5, dtype=torch.float64)
    with pytest.raises(ContractionTooLong), Modulo(P):
        _ = long @ long.T
    with Modulo(PRIMES[1]):
        short = long @ long.T
    assert float(short) == long.shape[1]
    assert float(product(long, long.T.contiguous(), P)) == long.shape[1]


@pytest.mark.parametrize(("rows", "columns", "true"), [(7, 9, 7), (60, 40, 23), (90, 100, 64), (3, 5, 0)])
def test_ranks_and_null_spaces_agree_with_an_independent_library(rows: int, columns: int, true: int) -> None:
    matrix = product(random(rows, true, seed=3), random(true, columns, seed=4), P)
    other = flint.nmod_mat(rows, columns, [int(v) % P for v in matrix.flatten().tolist()], P)
    assert rank(matrix, P) == other.rank() == true
    space = Echelon(columns, P)
    for part in torch.split(matrix, 17):
        space.add(part)
    assert space.rank == true
    null = space.null_space()
    assert len(null) == columns - true == rank(null, P)
    assert not product(matrix, null.T.contiguous(), P).any()
    changed = matrix.clone()
    changed[0, 0] += 1.0  # one wrong entry is seen
    assert rank(torch.cat([matrix, changed]), P) == true + 1


def test_brackets_are_those_of_the_formula() -> None:
    """[X, Y] = DY X - DX Y and [Z, [X, Y]], by SymPy, for gradient fields of random cubics in three variables."""
    coefficients = hashed.indices("cubics", (3, 10), 7)
    symbols = sp.symbols("x y z")
    monomials = sorted(sp.itermonomials(symbols, 3), key=str)[-10:]
    fields = [
        sp.Matrix([sp.diff(sum(int(c) * m for c, m in zip(row, monomials, strict=True)), s) for s in symbols]) for row in coefficients
    ]

    def bracket(x: sp.Matrix, y: sp.Matrix) -> sp.Matrix:
        return y.jacobian(symbols) * x - x.jacobian(symbols) * y

    exponents = torch.tensor([[int(sp.degree(m, s)) for s in symbols] for m in monomials])

    def function(theta: dict[str, Tensor], sample: Tensor) -> Tensor:
        terms = [torch.stack([theta["t"][i] ** int(e) for i, e in enumerate(row)]).prod(0) for row in exponents]
        return (torch.stack(terms) * sample).sum()

    point = {"t": torch.tensor([2.0, -3.0, 5.0], dtype=torch.float64)}
    values = dict(zip(symbols, (2, -3, 5), strict=True))
    z, x, y = coefficients.to(torch.float64)
    once = brackets.nested(grad(function), 1)(point, (x, y))["t"]
    twice = brackets.nested(grad(function), 2)(point, (z, (x, y)))["t"]
    assert once.tolist() == [float(v) for v in bracket(fields[1], fields[2]).subs(values)]
    assert twice.tolist() == [float(v) for v in bracket(fields[0], bracket(fields[1], fields[2])).subs(values)]


def test_growth_stops_at_the_target_or_when_a_level_is_empty() -> None:
    rows = torch.eye(6, dtype=torch.float64)

    def draw(level: int, first: int, count: int) -> tuple[Tensor, int]:
        mixed = (
            hashed.reals(f"{level}/{first}", (count, 2), 0.1, 1.0) @ rows[2 * level : 2 * level + 2] if level < 2 else torch.zeros(count, 6)
        )
        return mixed.to(torch.float64), first + count

    full = grow(draw, FloatSpace(6), 4, spare=2, at_once=5)
    assert (full.rank, full.reached, [step[0] for step in full.steps]) == (4, True, [0, 1])
    short = grow(draw, FloatSpace(6), 5, spare=2, at_once=5)
    assert (short.rank, short.reached, short.closed) == (4, False, True)


def test_draws_are_the_hash_that_they_say() -> None:
    stream = hashlib.shake_256(b"0/w").digest(12)
    expected = [int.from_bytes(stream[i : i + 4], "little") % 198 - 99 for i in (0, 4, 8)]
    expected = [(e + (e >= 0)) / 64 for e in expected]
    assert hashed.sixtyfourths("0/w", (3,)).tolist() == expected
    assert hashed.sixtyfourths("0/w", (2,), 1).tolist() == expected[1:]


@pytest.mark.parametrize("number", [10**12 + 7, -(2**52) - 1, 2**60 + 12345])
def test_whole_numbers_of_any_size_are_exact(number: int) -> None:
    """A residue times 10^12 is no integer of 53 bits: left as it was, the product was a random number."""
    x = random(5)
    with Modulo(P):
        times, plus = x * number, x + number
    assert times.tolist() == [residue(int(v) * number, P) for v in x.tolist()]
    assert plus.tolist() == [residue(int(v) + number, P) for v in x.tolist()]
    with Modulo(P), pytest.raises(NotPolynomial, match="factors"):
        torch.addmm(x[:1, None], x[:1, None], x[:1, None], alpha=10**9)
