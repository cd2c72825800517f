"""What is derived: exact counts of real networks, and constructions made to deceive, each with what must come out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import sympy as sp
import torch
from support.cases import Block
from support.deceptions import DECEPTIONS, PAIR, SIX, linears
from support.invariance import Probe, independent_directions, violations
from torch import Tensor, nn

from noetherflow.bridge.trace import trace
from noetherflow.errors import GraphError
from noetherflow.numeric.models import build
from noetherflow.symbolic.gauge import symmetries
from noetherflow.symbolic.graph import ArchitectureGraph
from noetherflow.symbolic.symmetries import Symmetries


def derived(name: str, pixels: int, **options: Any) -> Symmetries:
    """Symmetries of a registered model, traced without weights, with a cross-entropy on its ten classes."""
    with torch.device("meta"):
        model = build(name, **options)
    return symmetries(trace(model, torch.zeros(4, 1, pixels, pixels, device="meta"), loss="cross_entropy"))


def generators(found: Symmetries) -> Counter[str]:
    """Number of generators of each kind."""
    counts: Counter[str] = Counter()
    for symmetry in found:
        counts[symmetry.kind] += symmetry.dimension
    return counts


# --- real networks


def test_a_relu_perceptron_has_one_scale_for_every_hidden_unit_and_the_class_shifts() -> None:
    found = derived("mlp", 28)
    assert [(s.kind, s.dimension, s.parameters) for s in found] == [
        ("rescale", 128, ("layers.0.weight", "layers.0.bias", "layers.1.weight")),
        ("rescale", 64, ("layers.1.weight", "layers.1.bias", "layers.2.weight")),
        ("translation", 64, ("layers.2.weight",)),
        ("translation", 1, ("layers.2.bias",)),
    ]


def test_resnet18_has_9089_generators_in_37_families() -> None:
    """The networks' 20 convolutions all end in a BatchNorm; 8 blocks, 3 of them with a downsample branch.

    scale        every output channel of every convolution: 64 + 4 * 64 + 5 * 128 + 5 * 256 + 5 * 512 = 4800
    rescale      inside each block, BatchNorm 1 against convolution 2, by channel: 2 * (64 + 128 + 256 + 512) = 1920
                 the stream of each stage, all that writes into it against all that reads it: 64 + 128 + 256 + 512 = 960
    translation  a constant moved between the two BatchNorms added at a downsample block: 128 + 256 + 512 = 896
                 one vector added to every class's weights, one number to every class's bias: 512 + 1 = 513
    """
    found = derived("resnet18", 28)
    assert (len(found), found.dimension, found.opaque) == (37, 9089, {})
    assert generators(found) == {"scale": 4800, "rescale": 1920 + 960, "translation": 896 + 513}
    streams = {s.dimension: len(s.parameters) for s in found if s.kind == "rescale" and len(s.parameters) > 3}
    # a stream's writers bring two parameters each: three writers in the first stage (stem, two blocks) and in each later one (two
    # BatchNorms of the downsample block, one block); its readers one each: convolutions of the next blocks, and the last linear layer.
    assert streams == {64: 6 + 4, 128: 6 + 3, 256: 6 + 3, 512: 6 + 2}
    between = [s for s in found if s.kind == "translation" and all("bn2" in p or "downsample" in p for p in s.parameters)]
    assert [(s.dimension, [int(a.weight) for a in s.actions]) for s in between] == [(128, [1, -1]), (256, [1, -1]), (512, [1, -1])]


def test_vgg16_with_batch_norm_has_14209_generators_in_43_families() -> None:
    """Thirteen convolutions with biases, each with a BatchNorm; two hidden linear layers; ten classes.

    scale        weight and bias of every convolution's channel, which BatchNorm divides out: 2*64 + 2*128 + 3*256 + 6*512 = 4224
    null         every convolution's bias, which BatchNorm subtracts: its gradient vanishes: 4224
    rescale      every channel from BatchNorm to the next layer: 4224; every unit of the hidden linear layers: 2 * 512
    translation  one vector added to all classes' weights, one number to all classes' biases: 512 + 1
    """
    found = derived("vgg16_bn", 32)
    assert (len(found), found.dimension, found.opaque) == (3 * 13 + 2 + 2, 14209, {})
    assert generators(found) == {"scale": 4224, "null": 4224, "rescale": 4224 + 1024, "translation": 513}


def test_vgg16_has_one_scale_for_every_channel_and_unit() -> None:
    found = derived("vgg16", 32)
    assert generators(found) == {"rescale": 4224 + 1024, "translation": 513}


def test_a_shared_layer_ties_the_scales_of_all_units_it_joins() -> None:
    (hidden, *_) = derived("tied_mlp", 28)
    assert hidden.dimension == 64
    assert [(a.parameter, int(a.weight)) for a in hidden.actions] == [
        ("first.weight", 1),
        ("first.bias", 1),
        ("shared.weight", 1),
        ("shared.weight", -1),
        ("shared.bias", 1),
        ("last.weight", -1),
    ]


def test_the_eps_of_a_normalisation_is_listed_where_it_breaks_a_scale() -> None:
    found = derived("resnet18", 28)
    broken = [s for s in found if s.breaking]
    assert {s.kind for s in broken} == {"scale"}
    assert sum(s.dimension for s in broken) == 4800
    assert all(len(s.breaking) == 1 and s.breaking[0].eps == 1e-5 for s in broken)


# --- constructions made to deceive


@pytest.mark.parametrize(("name", "function", "parts", "loss", "dimension"), DECEPTIONS, ids=[d[0] for d in DECEPTIONS])
@pytest.mark.parametrize("batch", [5, 1], ids=["five_samples", "one_sample"])
def test_a_deception_is_seen_through(
    name: str, function: Callable[[Any, Tensor], Any], parts: dict[str, Any], loss: str | None, dimension: int, batch: int
) -> None:
    torch.set_default_dtype(torch.float64)
    model = Block(function, **parts).double()
    shape = (batch, 5, 3) if "position" in name else (batch, 3)
    if batch == 1 and "norm" in parts:
        pytest.skip("two samples that are normalised together become plus and minus one: nothing is left to learn")
    probe = Probe(model, torch.randn(shape), loss)
    found = symmetries(trace(model, probe.inputs, loss=loss))
    assert violations(probe, found) == []
    matrices = any(symmetry.matrix for symmetry in found)  # their groups may have stabilisers at one point
    assert independent_directions(probe, found, points=4 if matrices else 1) == found.dimension
    assert found.dimension == dimension or batch == 1


# --- scales of numbers


@pytest.mark.parametrize("factor", [0.7, 1 / 3, -(2.0**-0.5), 1e-3])
def test_generators_are_of_order_one_whatever_factors_stand_in_the_network(factor: float) -> None:
    """The shifts of two branches that are multiplied by a number cancel in the ratio of that number."""
    model = Block(lambda s, x: factor * s.a(x) - s.b(x), a=nn.Linear(3, 4), b=nn.Linear(3, 4)).double()
    probe = Probe(model, torch.randn(5, 3, dtype=torch.float64))
    found = symmetries(trace(model, probe.inputs))
    (shift,) = (s for s in found if set(s.parameters) == {"a.bias", "b.bias"})
    weights = [abs(float(action.weight)) for action in shift.actions]
    assert 1e-3 <= min(weights) <= max(weights) <= 1e3
    assert min(weights) / max(weights) == pytest.approx(min(abs(factor), 1 / abs(factor)))
    assert violations(probe, found) == []


def test_a_factor_keeps_its_simplest_rational() -> None:
    model = Block(lambda s, x: 0.7 * s.a(x) - s.b(x), a=nn.Linear(3, 4), b=nn.Linear(3, 4))
    (shift,) = (s for s in symmetries(trace(model, torch.randn(5, 3))) if set(s.parameters) == {"a.bias", "b.bias"})
    assert [action.weight for action in shift.actions] == [10, 7]


# --- what cannot be passed is named, and leaves no trace


def test_an_operation_without_a_rule_is_named_and_nothing_passes_it() -> None:
    model = Block(lambda s, x: s.b(s.a(x).atan()), **linears("a", **PAIR))
    found = symmetries(trace(model, torch.zeros(5, 3)))
    assert (found.dimension, list(found.opaque.values())) == (0, ["no gauge rule for 'aten.atan'"])


def test_an_operation_that_turns_out_opaque_leaves_no_trace_in_the_axes() -> None:
    """`h + g` cannot be followed (h is split 2 x 3, g 3 x 2); what h and g do elsewhere is derived as if it were not there."""
    model = Block(
        lambda s, x: (s.c((h := s.a(x)) + (g := s.b(x))), h.view(-1, 2, 3).tanh(), g.view(-1, 3, 2).tanh(), s.d(s.e(x).relu())),
        **linears(**SIX, e=(3, 6), d=(6, 2)),
    ).double()
    probe = Probe(model, torch.randn(5, 3, dtype=torch.float64))
    found = symmetries(trace(model, probe.inputs))
    assert [s.parameters for s in found] == [("e.weight", "d.weight")]
    assert violations(probe, found) == []


def test_dead_ends_are_left_out() -> None:
    graph = ArchitectureGraph()
    for name, shape in (("w1", (5, 3)), ("w2", (2, 5)), ("w3", (2, 5))):
        graph.add_parameter(name, shape)
    graph.add_operation("x", "input", shape=(8, 3))
    graph.add_operation("h", "linear", {"input": "x"}, {"weight": "w1"}, shape=(8, 5))
    graph.add_operation("y", "linear", {"input": "h"}, {"weight": "w2"}, shape=(8, 2))
    graph.add_operation("unread", "linear", {"input": "h"}, {"weight": "w3"}, shape=(8, 2))
    graph.add_operation("output", "output", {"0": "y"})
    assert [s.parameters for s in symmetries(graph)] == [("w1", "w2")]


def test_dropout_drawn_without_its_probability_may_drop() -> None:
    graph = ArchitectureGraph()
    graph.add_parameter("w1", (5, 3))
    graph.add_parameter("w2", (2, 5))
    graph.add_operation("x", "input", shape=(8, 3))
    graph.add_operation("h", "linear", {"input": "x"}, {"weight": "w1"}, shape=(8, 5))
    graph.add_operation("d", "dropout", {"input": "h"}, shape=(8, 5))
    graph.add_operation("y", "linear", {"input": "d"}, {"weight": "w2"}, shape=(8, 2))
    (hidden,) = symmetries(graph)
    assert (hidden.kind, hidden.dimension) == ("rescale", 5)


# --- symmetries as objects


def test_a_generator_is_written_in_symbols() -> None:
    (hidden,) = symmetries(trace(nn.Sequential(nn.Linear(3, 4, bias=False), nn.ReLU(), nn.Linear(4, 2, bias=False)), torch.zeros(5, 3)))
    i, j = sp.symbols("i j", integer=True)
    a, first, last = sp.IndexedBase("a"), sp.IndexedBase("0.weight"), sp.IndexedBase("2.weight")
    assert dict(hidden.generator) == {first[i, j]: a[i] * first[i, j], last[j, i]: -a[i] * last[j, i]}


def test_a_direction_of_the_wrong_length_is_refused() -> None:
    (hidden,) = symmetries(trace(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.zeros(5, 3)))
    with pytest.raises(GraphError, match=r"direction of shape \(4,\)"):
        hidden.tangent({}, torch.zeros(3))


def test_acting_leaves_what_was_given_unchanged() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    (hidden,) = symmetries(trace(model, torch.zeros(5, 3)))
    point = {n: p.detach() for n, p in model.named_parameters()}
    hidden.transform(point, torch.ones(4))
    hidden.tangent(point, torch.ones(4))
    assert all(torch.equal(point[n], before[n]) for n in before)


def test_parameters_in_any_memory_layout_are_moved_alike() -> None:
    torch.set_default_dtype(torch.float64)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    (hidden,) = symmetries(trace(model, torch.zeros(5, 3)))
    plain = {n: p.detach() for n, p in model.named_parameters()}
    turned = {n: p.t().contiguous().t() if p.dim() == 2 else p for n, p in plain.items()}
    direction = torch.randn(4)
    first, second = hidden.transform(plain, direction), hidden.transform(turned, direction)
    assert all(torch.equal(first[n], second[n]) for n in plain)
