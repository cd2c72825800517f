"""Charges, flows and closed forms of whole graphs."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import sympy as sp

from noetherflow.errors import RuleError
from noetherflow.symbolic.charges import charge_count, curvature, is_closed
from noetherflow.symbolic.currents import EPS, VARIANCE, scale_defect
from noetherflow.symbolic.gauge import symmetries
from noetherflow.symbolic.graph import ArchitectureGraph, Size
from noetherflow.symbolic.laws import derive
from noetherflow.symbolic.rules import SGD, Group, Rule

LAMBDA, MU, ETA, TAU, Q = sp.symbols("lambda mu eta tau Q", real=True)


def mlp(activation: str, widths: tuple[Size, ...] = (3, 5, 2), loss: str = "output") -> ArchitectureGraph:
    graph = ArchitectureGraph()
    batch = sp.Symbol("N", integer=True, positive=True)
    node = graph.add_operation("x", "input", shape=(batch, widths[0]))
    for i, (a, b) in enumerate(pairwise(widths)):
        graph.add_parameter(f"w{i}", (b, a))
        graph.add_parameter(f"b{i}", (b,))
        node = graph.add_operation(f"z{i}", "linear", {"input": node}, {"weight": f"w{i}", "bias": f"b{i}"}, shape=(batch, b))
        if i < len(widths) - 2:
            node = graph.add_operation(f"a{i}", activation, {"input": node}, shape=(batch, b))
    graph.add_operation("end", loss, {"0": node} if loss == "output" else {"input": node})
    return graph


def test_charges_of_a_relu_net_are_those_of_the_textbook() -> None:
    (law,) = derive(mlp("relu"))
    i, j = sp.symbols("i j", integer=True)
    w0, b0, w1 = (sp.IndexedBase(n) for n in ("w0", "b0", "w1"))
    expected = sp.Sum(w0[i, j] ** 2, (j, 0, 2)) / 2 + b0[i] ** 2 / 2 - sp.Sum(w1[j, i] ** 2, (j, 0, 1)) / 2
    assert sp.simplify((law.charge - expected).doit()) == 0
    assert law.count == 5


def test_a_law_can_be_stated_for_width_n() -> None:
    n = sp.Symbol("n", integer=True, positive=True)
    (relu,) = derive(mlp("relu", (3, n, 2)))
    assert relu.count == n
    (linear,) = derive(mlp("identity", (3, n, 2)))
    assert sp.simplify(linear.count - n * (n + 1) / 2) == 0
    assert linear.symmetry.dimension == n**2


def test_a_matrix_family_has_charges_for_its_symmetric_part_only() -> None:
    symmetry, shift = symmetries(mlp("identity"))
    assert (symmetry.kind, symmetry.dimension, shift.kind) == ("linear", 25, "affine")
    assert charge_count(symmetry) == 15
    assert is_closed(symmetry)
    assert all(curvature(symmetry, action) != 0 for action in symmetry.actions if len(action.patch.indices)), "not for every matrix"


def test_what_a_bias_takes_back_behind_a_weight_has_no_charge() -> None:
    """b0 <- b0 + v, b1 <- b1 - w1 v: its one-form is not closed, for w1 is a parameter."""
    _, shift = symmetries(mlp("identity"))
    assert not is_closed(shift)
    assert charge_count(shift) == 0


def test_groups_weigh_the_charge_with_their_step_sizes() -> None:
    graph = mlp("relu")
    graph.graph["identities"] = {1: "w0", 2: "b0", 3: "w1", 4: "b1"}
    form = SGD().groups[0].form
    rates = sp.symbols("eta_0 eta_1", real=True)
    rule = Rule(
        (Group(form, {"lr": 0.1, "weight_decay": 0}, frozenset({1, 2})), Group(form, {"lr": 0.2, "weight_decay": 0}, frozenset({3, 4})))
    )
    (law,) = derive(graph, rule)
    w1 = sp.IndexedBase("w1")
    i, j = sp.symbols("i j", integer=True)
    assert law.groups == (0, 1)
    assert sp.simplify(law.charge.coeff(rates[0] / rates[1]) - sp.Sum(-(w1[j, i] ** 2) / 2, (j, 0, 1))) == 0


def test_a_rule_that_leaves_a_parameter_alone_is_refused() -> None:
    graph = mlp("relu")
    graph.graph["identities"] = {1: "w0", 2: "b0", 3: "w1", 4: "b1"}
    with pytest.raises(RuleError, match=r"does not move \['w1'\]"):
        derive(graph, SGD(members=frozenset({1, 2, 4})))
    with pytest.raises(RuleError, match="Nesterov"):
        SGD(nesterov=True)


def test_the_flow_carries_the_momentum_factor() -> None:
    (law,) = derive(mlp("relu"), SGD(momentum=0.9, dampening=0.1, weight_decay=0.1))
    rate = law.flow.rhs.subs({sp.Function("Q")(sp.Symbol("t", nonnegative=True)): Q, sp.Symbol("J", real=True): 0})
    assert sp.simplify(rate + 2 * LAMBDA * Q * (1 - TAU) / (1 - MU)) == 0


def test_the_flow_is_the_first_order_limit_of_the_discrete_law() -> None:
    """Error at fixed time against step size: the fitted slope is 1 (an ODE to leading order)."""
    laws = derive(mlp("relu", loss="cross_entropy"), SGD(momentum=0.8, weight_decay=0.1))
    law = next(law for law in laws if law.linear)
    rate = float(
        law.flow.rhs.subs({LAMBDA: 0.1, MU: 0.8, TAU: 0, sp.Symbol("J", real=True): 0}).subs(
            sp.Function("Q")(sp.Symbol("t", nonnegative=True)), 1
        )
    )
    matrix = law.solution().matrix.subs({LAMBDA: 0.1, MU: 0.8, TAU: 0})
    errors = []
    for octave in range(4):
        eta, steps = 0.1 / 2**octave, 40 * 2**octave
        q, k = 1.0, 0.1 / (1 - 0.8)  # momentum at rest: the transient is another first-order term
        numeric = sp.lambdify([], matrix.subs(ETA, eta))()
        for _ in range(steps):
            q, k = numeric[0][0] * q + numeric[0][1] * k, numeric[1][0] * q + numeric[1][1] * k
        errors.append(abs(q - math.exp(rate * eta * steps)))
    slopes = [math.log2(a / b) for a, b in pairwise(errors)]
    assert slopes[-1] == pytest.approx(1, abs=0.1)


def test_the_closed_form_of_a_linear_charge_solves_the_recursion_exactly() -> None:
    laws = derive(mlp("relu", loss="cross_entropy"), SGD(momentum=0.9, weight_decay=0.1))
    solution = next(law for law in laws if law.linear).solution()
    z = solution.characteristic.gen
    published = z**2 - (1 + MU - ETA * (1 - TAU) * LAMBDA) * z + MU
    assert sp.expand(solution.characteristic.as_expr() - published) == 0
    numbers = {LAMBDA: sp.Rational(1, 10), MU: sp.Rational(9, 10), ETA: sp.Rational(1, 5), TAU: 0}
    start = {sp.Symbol("Q_0", real=True): sp.Rational(3), sp.Symbol("K_0", real=True): sp.Rational(-1, 7)}
    matrix, state = solution.matrix.subs(numbers), sp.Matrix([3, sp.Rational(-1, 7)])
    for k in range(6):
        closed = solution.charge.subs(numbers).subs(start).subs(sp.Symbol("k", integer=True, nonnegative=True), k)
        assert sp.simplify(sp.expand(closed) - state[0]) == 0
        state = matrix * state


def test_the_defect_of_a_normalisation_is_derived() -> None:
    assert sp.simplify(scale_defect() - EPS / (VARIANCE + EPS)) == 0
