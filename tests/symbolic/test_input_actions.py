"""What absorbs a linear action on the inputs, what averages leave, and the laws of row spaces."""

from __future__ import annotations

import pytest
import sympy as sp

from noetherflow.errors import GraphError
from noetherflow.symbolic.graph import ArchitectureGraph
from noetherflow.symbolic.input_actions import input_actions
from noetherflow.symbolic.orbit_averages import aliasing_bound, exact_elements, input_degree, kept_by_average
from noetherflow.symbolic.row_spaces import added_laws, linear_flow, minor_rates, minors


def chain(*operations: str, before: tuple[str, ...] = ()) -> ArchitectureGraph:
    """Inputs of three numbers, operations before the first layer, a layer, operations, a second layer."""
    graph = ArchitectureGraph()
    for name, shape in (("w", (4, 3)), ("b", (4,)), ("v", (2, 4))):
        graph.add_parameter(name, shape)
    last = graph.add_operation("x", "input", shape=(8, 3))
    for operation in before:
        last = graph.add_operation(operation, operation, {"input": last}, shape=(8, 3))
    last = graph.add_operation("h", "linear", {"input": last}, {"weight": "w", "bias": "b"}, shape=(8, 4))
    for number, operation in enumerate(operations):
        slots = {"input": last} | ({"other": last} if operation == "multiply" else {})
        last = graph.add_operation(f"{operation} {number}", operation, slots, shape=(8, 4))
    graph.add_operation("y", "linear", {"input": last}, {"weight": "v"}, shape=(8, 2))
    return graph


@pytest.mark.parametrize(
    ("before", "algebras"),
    [((), ["matrices"]), (("relu",), ["scales"]), (("tanh",), []), (("unit_norm",), None)],
)
def test_what_lets_an_action_through(before: tuple[str, ...], algebras: list[str] | None) -> None:
    found = [action.algebra for action in input_actions(chain("tanh", before=before))]
    assert "matrices" not in found if algebras is None else found == algebras


def test_the_restriction_is_a_trace() -> None:
    (action,) = input_actions(chain("tanh"))
    w, g, x = sp.Matrix(4, 3, sp.symbols("w:12")), sp.Matrix(4, 3, sp.symbols("g:12")), sp.Matrix(3, 3, sp.symbols("x:9"))
    table = {sp.IndexedBase("w")[i, j]: w[i, j] for i in range(4) for j in range(3)}
    table |= {sp.IndexedBase("G_w")[i, j]: g[i, j] for i in range(4) for j in range(3)}
    table |= {sp.IndexedBase("X")[i, j]: x[i, j] for i in range(3) for j in range(3)}
    derived = sp.expand(action.restriction.lhs.doit().xreplace(table))
    assert action.readers == ("w",)
    assert derived == sp.expand(sp.trace((w * x).T * g))
    assert derived != sp.expand(sp.trace((w * x.T).T * g))


def test_a_graph_without_input_is_refused() -> None:
    graph = ArchitectureGraph()
    graph.add_parameter("w", (3,))
    graph.add_operation("y", "parameter", parameters={"weight": "w"}, shape=(3,))
    with pytest.raises(GraphError, match="no input"):
        input_actions(graph)


@pytest.mark.parametrize(("operations", "degree"), [((), 1), (("multiply",), 2), (("multiply", "multiply"), 4), (("tanh",), None)])
def test_degrees(operations: tuple[str, ...], degree: int | None) -> None:
    assert input_degree(chain(*operations)) == degree
    assert exact_elements(chain(*operations), 3) == (None if degree is None else 6 * degree + 1)


def test_averages_keep_multiples_alone() -> None:
    assert all(kept_by_average(m, n) == int(m % n == 0) for n in (1, 2, 3, 6) for m in range(-6, 7))


def test_the_bound_is_the_sum_of_its_series() -> None:
    m, n, a = sp.Symbol("M", positive=True), sp.Symbol("n", integer=True, positive=True), sp.Symbol("a", positive=True)
    value = aliasing_bound().subs({m: 3, n: 5, a: sp.Rational(1, 4)})
    series = sum(2 * 3 * 5 * j * sp.exp(-sp.Rational(5, 4) * j) for j in range(1, 60))
    assert abs(sp.N(value - series, 30)) < 1e-25  # what is left of the series after 60 terms


def test_minors_have_one_rate() -> None:
    (rate,) = minor_rates(2, 4)
    a = sp.MatrixSymbol("A", 2, 2)
    assert sp.expand(rate - a[0, 0] - a[1, 1]) == 0
    with pytest.raises(GraphError, match="span them all"):
        minor_rates(3, 2)


def test_row_space_laws_hold_on_what_is_mixed_alone() -> None:
    flow = linear_flow(2, 1, 3)
    w = sp.Matrix(2, 4, lambda i, j: sp.Symbol(f"W[{i}, {j}]"))

    def moved(function: sp.Expr) -> sp.Expr:
        return sp.cancel(sum(sp.diff(function, entry) * flow[entry] for entry in function.free_symbols))

    first, second, third = minors(w[:, 1:])
    assert moved(first / second) == moved(second / third) == 0
    assert moved(minors(w)[0] / first) != 0


def test_the_number_of_row_space_laws_is_that_of_the_grassmannian() -> None:
    assert [added_laws(h, n) for h, n in ((1, 2), (2, 12), (2, 2), (5, 3))] == [1, 20, 0, 0]
