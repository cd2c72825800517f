"""Order parameters, fixed subspaces and escape: what holds, and that the statements next to it do not."""

from __future__ import annotations

from math import factorial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import noetherflow as nf
from noetherflow.errors import GraphError, ModelError, RuleError, RunError
from noetherflow.symbolic.discrete_elements import flip, swap, swaps


def data(size: int = 60) -> tuple[Tensor, Tensor]:
    (pair,) = nf.data.fashion_mnist_subset().batches(size, seed=0, steps=1, dtype=torch.float64)
    return nn.functional.avg_pool2d(pair[0], 7).flatten(1), pair[1]


def network(units: tuple[int, ...] = (0, 1), kind: str = "tanh", hidden: int = 5, signs: tuple[int, ...] = ()) -> Any:
    """Some of the units equal to the first of them, or to its negative."""
    torch.manual_seed(0)
    model: Any = nf.models.MLP([16, hidden, 10], kind).double()
    with torch.no_grad():
        for unit, sign in zip(units, signs or (1,) * len(units), strict=True):
            for part, at in ((model.layers[0].weight, unit), (model.layers[0].bias, unit), (model.layers[1].weight.T, unit)):
                part[at] = sign * part[units[0]]
    return model


def graph_of(model: Any) -> nf.ArchitectureGraph:
    return nf.trace(model, data(4)[0])


def test_identical_units_are_one_orbit_and_their_permutations_the_stabilizer() -> None:
    model = network((0, 2, 3))
    (found,) = nf.order_parameters(model, graph_of(model)).classes
    assert found.orbits == ([[0, 2, 3], [1], [4]],) or sorted(found.orbits[0]) == [[0, 2, 3], [1], [4]]
    assert found.stabilizer == factorial(3)
    assert found.nearest == 0.0
    with torch.no_grad():
        model.layers[0].bias[3] = torch.nextafter(model.layers[0].bias[3], torch.tensor(9.0, dtype=torch.float64))
    (other,) = nf.order_parameters(model, graph_of(model)).classes
    assert (other.distinct, other.stabilizer) == (3, 2)  # one bit: near, but not the same


def test_distances_are_those_of_swaps() -> None:
    model = network((0,), "relu")
    graph = graph_of(model)
    group = nf.discrete_symmetries(graph)
    (found,) = nf.order_parameters(model, graph, modulo=False).classes
    params = {n: p.detach() for n, p in model.named_parameters()}
    after = group.transform(params, swap(group, 0, 1, 4))
    moved = sum(float((after[n] - p).square().sum()) for n, p in params.items()) ** 0.5
    assert float(found.distances[0, 1, 4]) == pytest.approx(moved / 2**0.5, rel=1e-12)


def test_units_that_differ_by_a_rescaling_are_one_only_modulo_the_continuous_group() -> None:
    model = network((0, 1), "relu")
    with torch.no_grad():
        model.layers[0].weight[1] *= 3
        model.layers[0].bias[1] *= 3
        model.layers[1].weight[:, 1] /= 3
    graph = graph_of(model)
    assert nf.order_parameters(model, graph).classes[0].distinct == 4
    assert nf.order_parameters(model, graph, modulo=False).classes[0].distinct == 5
    assert nf.order_parameters(model, graph).classes[0].stabilizer == 1  # of the parameters as given


def test_opposite_units_are_one_where_signs_are_symmetries() -> None:
    for kind, distinct, stabilizer in (("tanh", 4, 2), ("relu", 5, 1)):
        model = network((0, 1), kind, signs=(1, -1))
        (found,) = nf.order_parameters(model, graph_of(model), modulo=False).classes
        assert (found.distinct, found.stabilizer) == (distinct, stabilizer)


def test_a_dead_unit_of_an_odd_network_keeps_its_sign() -> None:
    model = network((0,))
    with torch.no_grad():
        for part, at in ((model.layers[0].weight, 2), (model.layers[0].bias, 2), (model.layers[1].weight.T, 2)):
            part[at] = 0
    found = nf.order_parameters(model, graph_of(model))
    assert found.classes[0].stabilizer == 2
    assert list(found.signs.values()) == [2]


def test_breaking_is_the_distance_to_the_average_over_all_permutations() -> None:
    model = network((0,))
    graph = graph_of(model)
    group = nf.discrete_symmetries(graph)
    whole = nf.fixed_subspace(group, swaps(group, 0), model)
    theta = whole.flat(model)
    gap = float((theta - whole.vectors.project(theta)).square().sum())
    moved = sum(float(p.detach().square().sum()) for n, p in model.named_parameters() if n != "layers.1.bias")
    assert nf.order_parameters(model, graph, modulo=False).classes[0].breaking == pytest.approx(gap / moved, rel=1e-12)


def test_a_fixed_subspace_of_a_sign_holds_the_unit_at_zero() -> None:
    model = network((0,))
    group = nf.discrete_symmetries(graph_of(model))
    number = next(i for i, f in enumerate(group) if f.kind == "sign")
    space = nf.fixed_subspace(group, flip(group, number, 2), model)
    assert space.transverse_dimension == 16 + 1 + 10
    assert not bool(space.project(model)["layers.0.weight"][2].any())
    assert not space.holds(model)
    for bad in (lambda: flip(group, number, 9), lambda: swap(group, 0, 0, 9), lambda: swap(group, number, 0, 1)):
        with pytest.raises(GraphError):
            bad()
    with pytest.raises(GraphError, match="not among"):
        nf.fixed_subspace(group, swap(group, 0, 0, 1), {})


def test_a_recorder_sees_dropout_break_what_plain_steps_keep() -> None:
    inputs, labels = data()
    for dropout in (False, True):
        model = network((0, 1))
        graph = graph_of(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with nf.watch_breaking(model, graph, optimizer, every=4) as run:
            for _ in range(8):
                hidden = torch.tanh(model.layers[0](inputs))
                hidden = nn.functional.dropout(hidden, 0.3) if dropout else hidden
                optimizer.zero_grad()
                nn.functional.cross_entropy(model.layers[1](hidden), labels).backward()
                optimizer.step()
        assert run.steps == [0, 4, 8]
        assert run.trajectory("distinct") == ([4, 5, 5] if dropout else [4, 4, 4])
        assert len(run.table()) == 3
        assert run.plot().axes
    with pytest.raises(RunError, match="every 0"):
        nf.watch_breaking(model, graph, every=0)


def test_every_rate_across_n_identical_units_comes_n_minus_one_times() -> None:
    inputs, labels = data()
    model = network((0, 1, 2, 3))
    group = nf.discrete_symmetries(graph_of(model))
    pair = nf.fixed_subspace(group, swap(group, 0, 0, 1), model)
    all_four = nf.fixed_subspace(group, swaps(group, 0, (0, 1, 2, 3)), model)
    once, thrice = (nf.transverse_hessian(model, inputs, labels, subspace=s).eigenvalues() for s in (pair, all_four))
    assert torch.allclose(once.repeat_interleave(3), thrice, atol=1e-13 * float(thrice.abs().max()) * len(thrice), rtol=0)
    there = nf.transverse_hessian(model, inputs, labels, subspace=pair)
    v = torch.randn(len(there.theta), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    basis = pair.vectors.transverse()
    assert torch.allclose(basis @ there.times(v), there.matrix() @ basis @ v, atol=1e-12)
    broken = network((0,))
    with pytest.raises(ModelError, match="not on the fixed subspace"):
        nf.transverse_hessian(broken, inputs, labels, subspace=pair)


@pytest.mark.parametrize(("units", "order"), [((0, 1), 2), ((0, 1, 2), 1)])
def test_the_tangent_predicts_the_escape_with_an_error_of_the_derived_order(units: tuple[int, ...], order: int) -> None:
    model = network(units)
    group = nf.discrete_symmetries(graph_of(model))
    space = nf.fixed_subspace(group, swaps(group, 0, units), model)
    direction = torch.randn(len(space.vectors.first), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = nf.escape(
        model,
        lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=1e-3),
        [data()] * 25,
        subspace=space,
        direction=direction,
        sizes=[1e-4 / 2**k for k in range(4)],
    )
    assert found.order is not None
    assert abs(found.order.slope - order) < 0.1
    assert found.leak < 1e-12  # 25 steps that round some ten times each, relative
    assert found.mismatch < 1e-12


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.RMSprop, torch.optim.NAdam])
def test_the_tangent_of_adaptive_rules_is_that_of_their_own_steps(kind: type[torch.optim.Optimizer]) -> None:
    model = network((0, 1))
    group = nf.discrete_symmetries(graph_of(model))
    space = nf.fixed_subspace(group, swap(group, 0, 0, 1), model)
    direction = torch.randn(len(space.vectors.first), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    sizes = [1e-6, 5e-7]  # of second order: errors of 1e-12 times what the third derivative makes of it
    found = nf.escape(model, lambda p: kind(p, lr=1e-3), [data()] * 6, subspace=space, direction=direction, sizes=sizes)  # type: ignore[call-arg]
    assert max(found.errors) < 1e-6
    assert found.mismatch < 1e-10
    plain = nf.escape(model, lambda p: torch.optim.SGD(p, lr=1e-3), [data()] * 6, subspace=space, direction=direction)
    assert float((plain.tangent - found.tangent).norm()) > 1e-4  # another rule is told apart


def test_what_cannot_be_followed_is_refused() -> None:
    model = network((0, 1))
    group = nf.discrete_symmetries(graph_of(model))
    space = nf.fixed_subspace(group, swap(group, 0, 0, 1), model)
    ones = torch.ones(len(space.vectors.first), dtype=torch.float64)
    with pytest.raises(RunError, match="lies in the fixed subspace"):
        nf.escape(model, lambda p: torch.optim.SGD(p, lr=0.1), [data()], subspace=space, direction=ones)
    direction = ones.cumsum(0)
    with pytest.raises(RuleError, match="parameter groups"):
        nf.escape(model, lambda p: torch.optim.SGD([{"params": [q]} for q in p], lr=0.1), [data()], subspace=space, direction=direction)
    with pytest.raises(ModelError, match="float64"):
        nf.escape(network().float(), lambda p: torch.optim.SGD(p, lr=0.1), [data()], subspace=space, direction=direction)
