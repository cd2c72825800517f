"""The search for polynomial laws: what is planted is found, and nothing else."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import sympy as sp
import torch
from torch import nn

from noetherflow.bridge.polynomial_laws import polynomial_laws
from noetherflow.bridge.trace import trace
from noetherflow.errors import ModelError
from noetherflow.numeric.law_search import search
from noetherflow.numeric.modular import PRIMES
from noetherflow.symbolic.laws import derive
from noetherflow.symbolic.rules import SGD

VARIABLES = sp.symbols("x y z u")
PLANTED: tuple[tuple[int, Callable[..., sp.Expr]], ...] = (
    (1, lambda x, y, z, u: 3 * x - 2 * y + u),
    (2, lambda x, y, z, u: x**2 - 3 * y * z + u / 2),
    (3, lambda x, y, z, u: x * y * z - u**3 + 5 * x),
    (2, lambda x, y, z, u: sp.Rational(2, 7) * x * u - y**2),
)


def random_polynomial(generator: random.Random, degree: int) -> sp.Expr:
    terms = [sp.Mul(*generator.choices(VARIABLES, k=generator.randint(0, degree))) for _ in range(3)]
    return sp.Add(*(generator.choice([-3, -2, -1, 1, 2, 3]) * term for term in terms))


def with_law(h: sp.Expr, generator: random.Random) -> dict[sp.Symbol, sp.Expr]:
    """A random polynomial field that leaves h constant: an antisymmetric matrix times its gradient."""
    size = len(VARIABLES)
    entries = {(i, j): random_polynomial(generator, 1) for i in range(size) for j in range(i)}
    matrix = sp.Matrix(size, size, lambda i, j: 0 if i == j else entries[i, j] if i > j else -entries[j, i])
    return dict(zip(VARIABLES, matrix * sp.Matrix([sp.diff(h, v) for v in VARIABLES]), strict=True))


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(("degree", "law"), PLANTED)
def test_a_planted_law_is_found(degree: int, law: Callable[..., sp.Expr], seed: int) -> None:
    generator, h = random.Random(seed), law(*VARIABLES)
    fields = [with_law(h, generator) for _ in range(3)]
    found = polynomial_laws(fields, degree=degree)
    assert len(found.laws) == 1
    assert sp.simplify(found.laws[0] / h).is_number
    assert found.proved
    assert polynomial_laws(fields, degree=degree - 1).laws == () if degree > 1 else True


@pytest.mark.parametrize("seed", range(4))
def test_a_random_field_has_no_law(seed: int) -> None:
    """The same with one velocity spoiled, too: what was planted is gone."""
    generator = random.Random(100 + seed)
    free = {v: sum(random_polynomial(generator, 2) for _ in range(3)) for v in VARIABLES}
    assert polynomial_laws(free, degree=3).laws == ()
    spoiled = with_law(PLANTED[1][1](*VARIABLES), generator)
    spoiled[VARIABLES[0]] += VARIABLES[1]
    found = polynomial_laws(spoiled, degree=2)
    assert (found.laws, found.unread) == ((), 0)
    assert "no polynomial law" in str(found)


def test_laws_of_all_fields_are_fewer_than_those_of_each() -> None:
    x, y, z, _ = VARIABLES
    turning, other = {x: -y, y: x, z: 0}, {x: 0, y: -z, z: y}
    assert len(polynomial_laws(turning, degree=1).laws) == 1  # z
    assert len(polynomial_laws(turning).laws) == 3  # z, z^2, x^2 + y^2
    assert polynomial_laws(turning).independent == 2
    assert polynomial_laws([turning, other]).laws == (x**2 + y**2 + z**2,)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "linear": (lambda: nn.Sequential(nn.Linear(2, 3, bias=False), nn.Linear(3, 2, bias=False)), 2),
    "deep linear": (lambda: nn.Sequential(*(nn.Linear(2, 2, bias=False) for _ in range(3))), 2),
    "relu": (lambda: nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)), 2),
    "deep relu": (lambda: nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1)), 2),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_has_the_derived_laws_and_no_others(name: str) -> None:
    make, features = NETWORKS[name]
    model, x = make().double(), torch.randn(4, features, dtype=torch.float64)
    derived = sum(law.count for law in derive(trace(model, x), rule=SGD(lr=0.1)))
    found = polynomial_laws(model, x)
    assert (len(found.laws), found.unread) == (derived, 0)
    assert found.independent == derived
    values = {str(v): float(t) for v, t in zip(found.variables, torch.cat([p.detach().flatten() for p in model.parameters()]), strict=True)}
    assert set(map(str, found.laws[0].free_symbols)) <= values.keys()


def test_coefficients_that_are_no_small_fractions_are_not_called_laws() -> None:
    x, y, *_ = VARIABLES
    large = sp.Rational(104729, 99991)
    found = polynomial_laws({x: 2 * y, y: -2 * large * x})
    assert (found.laws, found.unread) == ((), 1)  # large x^2 + y^2
    assert "could not be read" in str(found)


def test_a_solution_of_too_few_points_is_no_law() -> None:
    """One point leaves solutions that are constant there only; the search must go on until nothing new comes."""
    point, field = torch.tensor([2.0, 3.0], dtype=torch.float64), torch.tensor([[1.0, 1.0]], dtype=torch.float64)
    stuck = search(lambda number: (point, field), 2, 2, PRIMES[0])
    assert len(stuck.basis) == 4
    x, y, *_ = VARIABLES
    assert len(polynomial_laws({x: sp.Integer(1), y: 1 + x * y}).laws) == 0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({VARIABLES[0]: sp.sin(VARIABLES[0])}, "is no polynomial"),
        ({VARIABLES[0]: 0.5 * VARIABLES[0]}, None),
        ({VARIABLES[0]: sp.pi * VARIABLES[0]}, "not rational|no polynomial"),
        ({VARIABLES[0]: VARIABLES[1]}, "not rational"),
        ([{VARIABLES[0]: VARIABLES[1], VARIABLES[1]: VARIABLES[0]}, {VARIABLES[0]: VARIABLES[0]}], "is silent"),
        ([], "No vector field"),
    ],
)
def test_what_cannot_be_searched_is_refused(fields: object, message: str | None) -> None:
    if message is None:
        assert polynomial_laws(fields).laws == ()  # type: ignore[arg-type]  # a float is the rational that it is
        return
    with pytest.raises(ModelError, match=message):
        polynomial_laws(fields)  # type: ignore[arg-type]


def test_degrees_and_sizes_out_of_reach_are_refused() -> None:
    with pytest.raises(ModelError, match="at least 1"):
        polynomial_laws({VARIABLES[0]: sp.Integer(0)}, degree=0)
    many = {sp.Symbol(f"v{i}"): sp.Integer(0) for i in range(60)}
    with pytest.raises(ModelError, match="monomials"):
        polynomial_laws(many, degree=3)
