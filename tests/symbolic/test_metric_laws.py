"""Laws under a metric through `derive`: which there are, what they say, and what is refused."""

from __future__ import annotations

import pytest
import sympy as sp

import noetherflow as nf
from noetherflow.errors import RuleError
from noetherflow.symbolic.graph import ArchitectureGraph
from noetherflow.symbolic.metric_laws import MetricLaw
from noetherflow.symbolic.rules import Rule

M = nf.metrics
ETA, LAMBDA, J, Q = sp.symbols("eta lambda J Q", real=True)


@pytest.fixture(scope="module")
def graph() -> ArchitectureGraph:
    """Scale and rotation behind a norm, then linear layers."""
    made = nf.ArchitectureGraph()
    made.add_parameter("w", (3, 5))
    made.add_parameter("u", (4, 3))
    made.add_parameter("v", (2, 4))
    made.add_operation("x", "input", shape=(8, 5))
    made.add_operation("h", "linear", {"input": "x"}, {"weight": "w"}, shape=(8, 3))
    made.add_operation("n", "rms_norm", {"input": "h"}, shape=(8, 3), axes=(1,))
    made.add_operation("a", "linear", {"input": "n"}, {"weight": "u"}, shape=(8, 4))
    made.add_operation("y", "linear", {"input": "a"}, {"weight": "v"}, shape=(8, 2))
    return made


def test_mirror_descent_has_the_laws_of_its_potential(graph: ArchitectureGraph) -> None:
    laws = nf.derive(graph, nf.rules.MirrorDescent())
    assert {law.symmetry.kind: law.outcome.generators for law in laws} == {"scale": "all", "linear": "diagonal"}
    (rotation,) = laws.constraints
    assert rotation.symmetry.kind == "rotation"
    assert dict(rotation.terms) == {"explicit_breaking": -ETA * J}, "decay does nothing to a rotation"
    scale = next(law for law in laws if law.symmetry.kind == "scale")
    assert isinstance(scale, MetricLaw)
    assert str(scale.charge) == "Sum(w[i, j], (i, 0, 2), (j, 0, 4))"
    assert set(scale.terms) == {"discretization", "explicit_breaking", "weight_decay"}
    assert "Along(theta)" in str(scale.flow.rhs)
    assert laws.charges == 1 + 4


def test_the_rules_own_diagonal_keeps_charges_that_drift(graph: ArchitectureGraph) -> None:
    laws = nf.derive(graph, nf.rules.AdamW(), metric=M.Held())
    assert {law.symmetry.kind for law in laws} == {"scale", "linear"}
    assert all(law.terms["metric"] == sp.Symbol("dP", real=True) for law in laws)
    assert all("kinetic_symmetry_breaking" not in law.terms for law in laws), "the metric is the one that the rule follows"
    assert {law.symmetry.kind for law in laws.constraints} == {"rotation"}
    assert "M_w[i, j]" in str(next(law for law in laws if law.symmetry.kind == "scale").charge)
    with pytest.raises(RuleError, match="no continuous-time limit"):
        _ = laws[0].flow
    assert r"M &=" in laws[0].latex()


def test_constant_metrics_are_those_of_the_step_sizes(graph: ArchitectureGraph) -> None:
    identities = {1: "w", 2: "u", 3: "v"}
    graph.graph["identities"] = identities
    groups = [nf.rules.SGD(lr=lr, members=frozenset(own)).groups[0] for lr, own in ((0.1, {1, 2}), (0.05, {3}))]
    rule = Rule(tuple(groups))
    metric = M.Diagonal({"w": 10, "u": 10, "v": 20})
    assert [law.name for law in nf.derive(graph, rule, metric=metric)] == [law.name for law in nf.derive(graph, rule)]
    with pytest.raises(RuleError, match="as 1 over its step size"):
        nf.derive(graph, rule, metric=M.Diagonal({"w": 10, "u": 10, "v": 10.1}))
    with pytest.raises(RuleError, match="crosses parameter groups"):
        nf.derive(graph, Rule(tuple(replace_form(g) for g in groups)), metric=M.Held())


def replace_form(group: nf.rules.Group) -> nf.rules.Group:
    return nf.rules.Group(nf.rules.RMSprop().groups[0].form, {}, group.members)


@pytest.mark.parametrize(
    ("rule", "metric", "why"),
    [
        (nf.rules.SGD(), M.Mirror(M.ENTROPY), "does not move along"),
        (nf.rules.SGD(), M.Natural(), "does not move along"),
        (nf.rules.MirrorDescent(), M.Euclidean(), "does not move along"),
        (nf.rules.Muon(), M.Held(), "shows no metric of its own"),
    ],
)
def test_a_metric_that_the_rule_does_not_move_along_is_refused(graph: ArchitectureGraph, rule: Rule, metric: M.Metric, why: str) -> None:
    graph.graph.pop("identities", None)
    with pytest.raises(RuleError, match=why):
        nf.derive(graph, rule, metric=metric)


def test_natural_gradient_has_the_euclidean_charges(graph: ArchitectureGraph) -> None:
    laws = nf.derive(graph, nf.rules.NaturalGradient(), metric=M.Natural())
    assert laws.charges == nf.derive(graph, nf.rules.SGD()).charges
