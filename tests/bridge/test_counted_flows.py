"""Counts along gradient, mirror and momentum flows: the published table, proved case by case."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

import pytest
import sympy as sp
import torch
from torch import Tensor, nn

from noetherflow.bridge.certificate import Certificate
from noetherflow.bridge.completeness import completeness
from noetherflow.bridge.counted_flows import Gradient, Momentum, dynamics_of
from noetherflow.bridge.law_counts import Count
from noetherflow.bridge.law_verdict import Completeness
from noetherflow.bridge.metric_flows import MirrorFlow
from noetherflow.bridge.rechecking import check_certificate
from noetherflow.bridge.sampling import Sampling
from noetherflow.bridge.trace import trace
from noetherflow.errors import ModelError, ReportError, RuleError
from noetherflow.numeric.brackets import Params, rows
from noetherflow.numeric.functional_rank import numerical_rank
from noetherflow.numeric.modular import PRIMES
from noetherflow.symbolic.laws import derive
from noetherflow.symbolic.metrics import ARGUMENT, ENTROPY, Adam, Diagonal, Mirror, Natural
from noetherflow.symbolic.potentials import read_potential

ENTROPIC = Mirror(ENTROPY)


class Factors(nn.Module):
    """x U Vᵀ, U (n, r) and V (m, r); with V = U if m is 0."""

    def __init__(self, n: int, m: int, r: int) -> None:
        super().__init__()
        self.u = nn.Parameter(torch.randn(n, r))
        self.v = nn.Parameter(torch.randn(m, r)) if m else self.u

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.u @ self.v.T)


class Convex(nn.Module):
    """A hidden layer that is convex in its input if U >= 0."""

    def __init__(self, n: int, r: int) -> None:
        super().__init__()
        self.first, self.u = nn.Linear(n, r), nn.Parameter(torch.rand(r))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.first(x)) @ self.u


def relu(n: int, r: int, m: int) -> nn.Module:
    return nn.Sequential(nn.Linear(n, r), nn.ReLU(), nn.Linear(r, m))


def count(model: nn.Module, features: int, **flow: object) -> Completeness:
    return completeness(model, torch.zeros(2, features), loss="mse", **flow)  # type: ignore[arg-type]


def linear_gradient(n: int, m: int, r: int) -> int:
    """THEORY's closed form: Z = [U; V] stays on an orbit of O(n, m)."""
    total = n + m
    return r * (r + 1) // 2 if r <= total else total * r - total * (total - 1) // 2


@pytest.mark.parametrize(("n", "m", "r"), [(1, 1, 1), (2, 1, 1), (2, 1, 2), (1, 2, 3), (2, 2, 3), (2, 2, 5)])
def test_linear_networks_under_gradient_flow(n: int, m: int, r: int) -> None:
    found = count(Factors(n, m, r), n)
    assert (found.mode, found.complete, found.laws_possible) == ("proved", True, linear_gradient(n, m, r))


@pytest.mark.parametrize(("n", "m", "r"), [(2, 1, 1), (2, 1, 2), (1, 2, 3), (2, 2, 3)])
def test_linear_networks_under_momentum(n: int, m: int, r: int) -> None:
    """r (r - 1) / 2 angular momenta and nothing else: the charges are gone."""
    found = count(Factors(n, m, r), n, friction=1)
    assert (found.mode, found.complete, found.laws_possible) == ("proved", True, r * (r - 1) // 2)
    assert found.coordinates == 2 * found.parameters + 1


def test_principal_components() -> None:
    """U Uᵀ: no charges; with r >= n the row space of U is conserved (n r - n^2 numbers, no charges of a symmetry), and momenta."""
    narrow, wide = count(Factors(3, 0, 2), 3), count(Factors(2, 0, 3), 2)
    assert (narrow.laws_found, narrow.laws_possible, narrow.complete) == (0, 0, True)
    assert (wide.laws_found, wide.laws_possible, wide.complete) == (0, 2, False)
    assert {name for direction in wide.missing for name in direction} == {"u"}
    turning = count(Factors(2, 0, 3), 2, friction=2)
    assert (turning.laws_possible, turning.complete) == (3, True)


def test_hidden_units_of_relu_have_charges_and_no_momenta() -> None:
    found, turning = count(relu(2, 3, 2), 2), count(relu(2, 3, 2), 2, friction=1)
    assert (found.laws_possible, found.complete, found.mode) == (3, True, "proved")
    assert (turning.laws_possible, turning.complete, turning.mode) == (0, True, "proved")


def test_mirror_flows() -> None:
    """Non-negative factors: r differences of column sums, where gradient flow has r (r + 1) / 2 laws; and an input-convex network."""
    factors = count(Factors(2, 2, 3), 2, metric=ENTROPIC)
    assert (factors.laws_possible, factors.complete, factors.mode) == (3, True, "proved")
    convex = Mirror(ARGUMENT**2 / 2, {"u": ENTROPY})
    network = count(Convex(2, 3), 2, metric=convex)
    assert (network.laws_possible, network.complete, network.mode) == (3, True, "proved")


def preconditioned(blocks: Sequence[Sequence[int]], samples: int, seed: int) -> Tensor:
    """Brackets of fields -(F + ε)⁻¹ g of U V with F = E[g gᵀ] over samples, in the given blocks, at one point: rows, unit length."""
    point = {"t": torch.tensor([0.9, -0.7, 1.3, 0.4, -1.1, 0.8], dtype=torch.float64)}

    def gradient(t: Tensor, x: Tensor, w: Tensor) -> Tensor:
        return torch.func.grad(lambda p: w * (x @ p[:4].view(2, 2) @ p[4:]))(t)

    def field(theta: Params, sample: dict[str, Tensor]) -> Params:
        each = torch.func.vmap(gradient, in_dims=(None, 0, 0))(theta["t"], sample["x"], sample["w"])
        mean, fisher = each.mean(0), each.T @ each / samples
        parts = [torch.linalg.solve(fisher[b][:, b] + 0.3 * torch.eye(len(b), dtype=torch.float64), mean[b]) for b in map(list, blocks)]
        order = torch.tensor([i for b in blocks for i in b]).argsort()
        return {"t": torch.cat(parts)[order]}

    drawn = torch.Generator().manual_seed(seed)

    def batches() -> dict[str, Tensor]:
        x, w = (torch.randn(40, samples, *shape, generator=drawn, dtype=torch.float64) for shape in ((2,), ()))
        return {"x": x, "w": w}

    found = [rows(field, point, 0, batches()), rows(field, point, 1, (batches(), batches()))]
    return torch.nn.functional.normalize(torch.cat(found))


def test_natural_gradient_has_the_laws_of_gradient_flow() -> None:
    """Counted on the gradients' fields, and seen on its own: three laws of U v with two hidden units; layer by layer they are lost."""
    found = count(Factors(2, 2, 3), 2, metric=Natural())
    assert (found.laws_found, found.laws_possible, found.complete, found.mode) == (6, 6, True, "proved")
    assert str(check_certificate(Certificate.read(found.certificate.text()))) == str(found)
    whole, layered = (numerical_rank(preconditioned(blocks, 3, 0)) for blocks in ([range(6)], [range(4), range(4, 6)]))
    assert (6 - whole[0], 6 - layered[0]) == (3, 0)
    assert min(whole[1], layered[1]) > 1e5
    with pytest.raises(ModelError, match="whole Fisher"):
        count(Factors(2, 2, 3), 2, metric=Natural(blocks=[frozenset({"u"})]))
    with pytest.raises(ModelError, match="Laws are counted under"):
        count(Factors(2, 2, 3), 2, metric=Adam())


def test_step_sizes_of_groups_change_the_charges_not_their_number() -> None:
    found = count(Factors(2, 2, 3), 2, metric=Diagonal({"u": sp.Rational(1, 3)}))
    assert (found.laws_possible, found.complete, found.mode) == (6, True, "proved")


def test_a_potential_without_rational_second_derivative_is_counted_in_floats() -> None:
    found = count(Factors(2, 1, 2), 2, metric=Mirror(sp.cosh(ARGUMENT)))
    assert found.mode == "numerical"
    assert found.laws_found == found.laws_possible


@pytest.mark.parametrize("right", [Gradient(), MirrorFlow(ENTROPIC), Momentum(1)])
def test_functions_of_another_flow_are_refuted(right: object) -> None:
    """Charges under another metric, and momenta with another friction, are not conserved."""
    graph = trace(Factors(2, 2, 3), torch.zeros(2, 2), loss="mse")
    laws = derive(graph)
    flows = {Gradient: Gradient(), MirrorFlow: MirrorFlow(ENTROPIC), Momentum: Momentum(1)}
    wrong = {Gradient: MirrorFlow(ENTROPIC), MirrorFlow: Gradient(), Momentum: Momentum(2)}[type(right)]  # type: ignore[index]
    for stated, refuted in ((flows[type(right)], False), (wrong, True)):  # type: ignore[index]
        tried = Count(Sampling(graph, "0", "realised", PRIMES[0]), stated.conserved(laws), right)  # type: ignore[arg-type]
        tried.run()
        assert bool(tried.refuted) is refuted


@pytest.mark.parametrize("flow", [{"metric": Mirror(ARGUMENT**2 / 2, {"v": ENTROPY})}, {"friction": 3}])
def test_certificates_name_their_flow(flow: dict[str, object]) -> None:
    found = count(Factors(2, 1, 2), 2, **flow)
    again = check_certificate(Certificate.read(found.certificate.text()))
    assert str(again) == str(found)
    other = {**found.certificate.data, "flow": {"kind": "gradient"}}
    with pytest.raises(ReportError, match="does not hold"):
        check_certificate(replace(found.certificate, data=other))
    unknown = json.loads(json.dumps({**found.certificate.data, "flow": {"kind": "sideways"}}))
    with pytest.raises(ReportError, match="flow that is not known"):
        check_certificate(Certificate(unknown))


def test_a_potential_in_a_file_is_read_without_evaluating_it() -> None:
    for potential in (ENTROPY, ARGUMENT**2 / 2, sp.cosh(ARGUMENT), ARGUMENT**4 / 12 - sp.sqrt(ARGUMENT)):
        assert read_potential(sp.sstr(potential)) == potential
    for text in ("__import__('os').getcwd()", "y**2", "x.real", "lambda: 3", "1.5*x", "x if x else 1", "log(x, 2)"):
        with pytest.raises(RuleError, match="is no potential"):
            read_potential(text)
    assert isinstance(dynamics_of({"kind": "momentum", "friction": 2}), Momentum)


def test_flows_that_cannot_be_counted_are_refused() -> None:
    model = Factors(2, 1, 2)
    with pytest.raises(ModelError, match="a metric or a friction"):
        count(model, 2, metric=ENTROPIC, friction=1)
    with pytest.raises(ModelError, match="integer friction"):
        count(model, 2, friction=0)
    with pytest.raises(ModelError, match="under gradient flow"):
        count(model, 2, laws=list(derive(trace(model, torch.zeros(2, 2)))), friction=1)
