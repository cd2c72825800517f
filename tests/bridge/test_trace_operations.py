"""What each operation of torch.export is read as: its name, its slots, its attributes, and that the reading computes the same numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.cases import Block
from support.evaluation import evaluate, parameter, steps
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from noetherflow.bridge.aten import written_out
from noetherflow.bridge.building import READERS
from noetherflow.bridge.reading import Readers
from noetherflow.bridge.trace import trace
from noetherflow.symbolic.graph import ArchitectureGraph
from noetherflow.symbolic.operations import OPERATIONS

Function = Callable[[Any, Tensor], Tensor]


def graph_of(function: Function, shape: tuple[int, ...] = (4, 6), **parts: Any) -> ArchitectureGraph:
    return trace(Block(function, **parts), torch.randn(shape, dtype=torch.float64))


def only(graph: ArchitectureGraph, operation: str) -> dict[str, Any]:
    """The one node with this operation: its attributes, and where its slots come from."""
    ((node, data),) = ((n, d) for n, d in graph.nodes(data=True) if d["operation"] == operation)
    return {"attributes": data["attributes"], "slots": {*graph.inputs_of(node), *data["parameters"]}, "shape": data["shape"]}


# --- the reading computes what the operation computes


COMPUTED: dict[str, tuple[Function, tuple[int, ...], list[str]]] = {
    "sqrt, rsqrt, reciprocal": (
        lambda s, x: (x.exp().sqrt().rsqrt() + 1.0).reciprocal(),
        (4, 6),
        ["exponential", "power", "power", "add", "power"],
    ),
    "curved": (
        lambda s, x: x.sin() + x.cos() + x.erf() + F.hardsigmoid(x) + F.hardswish(x) + F.mish(x) + F.elu(x),
        (4, 6),
        ["sine", "cosine", "add", "error_function", "add", "hard_sigmoid", "add", "hard_swish", "add", "mish", "add", "elu", "add"],
    ),
    "bounded": (lambda s, x: x.clamp(-1, 2).clamp_min(0.1).clamp_max(0.7).log(), (4, 6), ["clamp", "clamp", "clamp", "logarithm"]),
    "clamp at zero": (lambda s, x: x.clamp(min=0.0) + x.clamp_min(0), (4, 6), ["relu", "relu", "add"]),
    "hardtanh": (lambda s, x: F.hardtanh(x, 0.0, 6.0) + F.hardtanh(x), (4, 6), ["relu6", "clamp", "add"]),
    "numbers": (lambda s, x: 3.0 - x - 1.0, (4, 6), ["subtract", "subtract"]),
    "alpha": (lambda s, x: torch.sub(x, x.tanh(), alpha=2), (4, 6), ["tanh", "scale", "subtract"]),
    "rsub alpha": (lambda s, x: torch.rsub(x, 2.0, alpha=3), (4, 6), ["scale", "subtract"]),
    "extremes": (
        lambda s, x: torch.maximum(x, x.tanh()) + torch.minimum(x, x.sin()),
        (4, 6),
        ["tanh", "maximum", "sine", "minimum", "add"],
    ),
    "glu": (lambda s, x: F.glu(x, 1), (4, 6), ["slice", "slice", "sigmoid", "multiply"]),
    "addcmul": (lambda s, x: torch.addcmul(x, x, x[:1], value=2.0), (4, 6), ["slice", "multiply", "scale", "add"]),
    "addcdiv": (lambda s, x: torch.addcdiv(x, x, x.exp()), (4, 6), ["exponential", "divide", "add"]),
    "lerp": (lambda s, x: torch.lerp(x, x.tanh(), x[:, :1]), (4, 6), ["tanh", "slice", "subtract", "multiply", "add"]),
    "lerp by a number": (lambda s, x: torch.lerp(x, x.tanh(), 0.3), (4, 6), ["tanh", "subtract", "scale", "add"]),
    "variance": (lambda s, x: x.var(1, correction=0, keepdim=True), (4, 6), ["mean", "subtract", "power", "mean"]),
    "deviation": (lambda s, x: x.std((0, 1), correction=0, keepdim=True), (4, 6), ["mean", "subtract", "power", "mean", "power"]),
    "length": (lambda s, x: torch.linalg.vector_norm(x, dim=1), (4, 6), ["power", "sum", "power"]),
    "einsum": (lambda s, x: torch.einsum("...i, j i -> ... j", x, x[:2]), (4, 6), ["slice", "einsum"]),
    "implicit einsum": (lambda s, x: torch.einsum("bi,ci", x, x), (4, 6), ["einsum"]),
    "addmm": (lambda s, x: torch.addmm(s.b, x, s.w), (4, 6), ["linear"]),
    "addmm with factors": (
        lambda s, x: torch.addmm(x, x, x.tanh(), beta=2, alpha=3),
        (4, 4),
        ["tanh", "scale", "matmul", "scale", "add"],
    ),
    "vectors": (
        lambda s, x: torch.mv(x, x[0]) @ x[:, 0] + torch.dot(x[0], x[1]),
        (4, 6),
        [*["slice", "reshape"], "matmul", *["slice", "reshape"], "matmul", *["slice", "reshape"] * 2, "matmul", "add"],
    ),
    "baddbmm": (lambda s, x: torch.baddbmm(x, x, x), (2, 3, 3), ["matmul", "add"]),
    "transposed views": (lambda s, x: x.mT.swapaxes(0, 1).movedim(2, 0).movedim((0, 1), (1, 2)), (2, 3, 4), ["permute"] * 4),
    "reversed axes": (lambda s, x: x.T.adjoint(), (4, 6), ["permute"] * 2),
    "narrow": (lambda s, x: x.narrow(1, -4, 3), (4, 6), ["slice"]),
    "uneven pieces": (lambda s, x: x.split([1, 2, 3], 1)[2] * x.tensor_split((1, 3), 1)[2], (4, 6), ["slice", "slice", "multiply"]),
    "stack": (lambda s, x: torch.stack([x, x.tanh()], -1), (4, 6), ["tanh", "reshape", "reshape", "concatenate"]),
    "unflatten": (lambda s, x: x.unflatten(1, (2, 3)).squeeze(), (4, 6), ["reshape"] * 2),
    "repeat along new and single axes": (lambda s, x: x[:1].repeat(3, 2, 1), (4, 6), ["slice", "reshape", "expand"]),
    "cat": (lambda s, x: torch.cat([x, x.tanh(), x], -1), (4, 6), ["tanh", "concatenate"]),
    "cat with nothing": (lambda s, x: torch.cat([x[:, :6], x[:, 6:]], -1), (4, 6), ["identity", "identity"]),
    "pixel shuffle": (lambda s, x: F.pixel_shuffle(x, 2), (2, 8, 3, 2), ["reshape", "permute", "reshape"]),
    "conv": (lambda s, x: s.m(x), (2, 4, 7, 7), ["convolution"]),
    "conv transpose": (lambda s, x: s.t(x), (2, 4, 5, 5), ["transposed_convolution"]),
    "attention": (
        lambda s, x: F.scaled_dot_product_attention(x, x[:, :2], x[:, :2], is_causal=True, scale=0.3, enable_gqa=True),
        (2, 4, 5, 3),
        ["slice", "slice", "attention"],
    ),
    "weight norm": (lambda s, x: torch.ops.aten._weight_norm(x, x[:, :1], 0), (4, 6), ["slice", "weight_norm"]),
    "log softmax": (lambda s, x: x.log_softmax(-1), (4, 6), ["log_softmax"]),
    "unit length": (lambda s, x: F.normalize(x, dim=-1), (4, 6), ["unit_norm"]),
}


@pytest.mark.parametrize("name", list(COMPUTED))
def test_a_reading_computes_what_the_operation_computes(name: str) -> None:
    function, shape, expected = COMPUTED[name]
    parts = {"w": parameter(6, 3), "b": parameter(3)} if name == "addmm" else {}
    layers = {"m": nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), "t": nn.ConvTranspose2d(4, 4, 3, 2, 1, output_padding=1)}
    model = Block(function, **parts, **(layers if "conv" in name else {})).double()
    x = torch.randn(shape, dtype=torch.float64)
    graph = trace(model, x)
    assert steps(graph) == expected
    torch.testing.assert_close(evaluate(graph, model, x)["output"], model(x), rtol=1e-12, atol=1e-12)


RECURRENT: dict[str, tuple[nn.Module, int, list[str]]] = {
    "lstm": (nn.LSTM(6, 5), 0, ["lstm_layer"]),
    "two layers, both directions": (
        nn.LSTM(6, 5, num_layers=2, bidirectional=True, batch_first=True),
        0,
        ["lstm_layer", "lstm_layer", "concatenate", "lstm_layer", "lstm_layer", "concatenate"],
    ),
    "gru without bias": (nn.GRU(6, 5, bias=False), 0, ["gru_layer"]),
    "last state": (nn.GRU(6, 5, batch_first=True), 1, ["gru_layer", "slice", "reshape"]),
    "last states, both directions": (
        nn.LSTM(6, 5, bidirectional=True, batch_first=True),
        1,
        ["lstm_layer", "slice", "reshape", "lstm_layer", "slice", "reshape", "concatenate"],
    ),
}


BARE: dict[str, nn.Module] = {
    "lstm": nn.LSTM(6, 5),
    "lstm without bias, batch first": nn.LSTM(6, 5, bias=False, batch_first=True),
    "lstm, two layers, both directions": nn.LSTM(6, 5, num_layers=2, bidirectional=True, batch_first=True),
    "gru": nn.GRU(6, 5, num_layers=2),
    "tanh": nn.RNN(6, 5, num_layers=2, bidirectional=True),
    "relu": nn.RNN(6, 5, nonlinearity="relu"),
    "relu, two layers, both directions": nn.RNN(6, 5, num_layers=2, bidirectional=True, batch_first=True, nonlinearity="relu"),
    "relu without bias": nn.RNN(6, 5, bias=False, nonlinearity="relu"),
}


@pytest.mark.parametrize("started", [False, True])
@pytest.mark.parametrize("name", list(BARE))
def test_all_results_of_a_recurrent_module_are_computed_from_its_graph(name: str, started: bool) -> None:
    layer = BARE[name].double()
    x, runs = torch.randn(3, 4, 6, dtype=torch.float64), layer.num_layers * (2 if layer.bidirectional else 1)
    state = torch.randn(2, runs, 3 if layer.batch_first else 4, 5, dtype=torch.float64).unbind(0)
    inputs = (x, state if isinstance(layer, nn.LSTM) else state[0]) if started else (x,)
    graph = trace(layer, *inputs)
    values = evaluate(graph, layer, *pytree.tree_leaves(inputs))
    nodes, results, from_zero = graph.inputs_of("output").values(), pytree.tree_leaves(layer(*inputs)), pytree.tree_leaves(layer(x))
    for node, expected, other in zip(nodes, results, from_zero, strict=True):
        torch.testing.assert_close(values[node], expected, rtol=1e-12, atol=1e-12)
        assert torch.allclose(expected, other) is not started


def test_a_state_that_is_a_constant_is_kept_if_it_is_not_zero() -> None:
    x = torch.randn(3, 4, 6, dtype=torch.float64)
    for start, slots in ((torch.zeros(1, 4, 5), set()), (torch.ones(1, 4, 5), {"hidden"})):
        model = Block(lambda s, x: s.m(x, s.start)[0], m=nn.GRU(6, 5))
        model.register_buffer("start", start)
        graph = trace(model.double(), x)
        (layer,) = (n for n, d in graph.nodes(data=True) if d["operation"] == "gru_layer")
        assert set(graph.inputs_of(layer)) - {"input"} == slots
        torch.testing.assert_close(evaluate(graph, model, x)["output"], model(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", list(RECURRENT))
def test_recurrent_layers_are_one_node_for_each_layer_and_direction(name: str) -> None:
    layer, result, expected = RECURRENT[name]
    model = Block(lambda s, x: s.m(x)[0] if not result else (s.m(x)[1][0] if isinstance(s.m, nn.LSTM) else s.m(x)[1]), m=layer).double()
    x = torch.randn(3, 4, 6, dtype=torch.float64)
    graph = trace(model, x)
    assert sorted(steps(graph)) == sorted(expected)
    torch.testing.assert_close(evaluate(graph, model, x)["output"], model(x), rtol=1e-12, atol=1e-12)


def test_dropout_between_recurrent_layers_is_a_node() -> None:
    graph = graph_of(lambda s, x: s.m(x)[0], (3, 4, 6), m=nn.LSTM(6, 5, num_layers=2, dropout=0.25).double())
    assert steps(graph) == ["lstm_layer", "dropout", "lstm_layer"]
    assert only(graph, "dropout")["attributes"] == {"p": 0.25}


def test_a_recurrent_layer_that_is_fed_a_state_from_parameters_is_opaque() -> None:
    fed = Block(lambda s, x: s.m(x, s.h)[0], m=nn.GRU(6, 5), h=nn.Parameter(torch.zeros(1, 4, 5)))
    assert steps(trace(fed, torch.zeros(3, 4, 6))) == ["aten.gru"]
    projected = Block(lambda s, x: s.m(x)[0], m=nn.LSTM(6, 5, proj_size=2))
    assert steps(trace(projected, torch.zeros(3, 4, 6))) == ["aten.lstm"]


# --- slots and attributes


ATTRIBUTES: dict[str, tuple[Function, tuple[int, ...], str, set[str], dict[str, Any]]] = {
    "addmm": (lambda s, x: torch.addmm(s.v, x, s.w), (4, 6), "linear", {"input", "weight", "bias"}, {"transposed": True}),
    "layer norm": (
        lambda s, x: F.layer_norm(x, (6,), s.g, s.g, 1e-4),
        (4, 6),
        "layer_norm",
        {"input", "weight", "bias"},
        {"dims": 1, "eps": 1e-4},
    ),
    "layer norm of two axes": (lambda s, x: F.layer_norm(x, (4, 6)), (2, 4, 6), "layer_norm", {"input"}, {"dims": 2, "eps": 1e-5}),
    "rms norm": (
        lambda s, x: F.rms_norm(x, (6,), s.g),
        (4, 6),
        "rms_norm",
        {"input", "weight"},
        {"dims": 1, "eps": torch.finfo(torch.float64).eps},
    ),
    "group norm": (lambda s, x: F.group_norm(x, 3, s.g), (4, 6), "group_norm", {"input", "weight"}, {"groups": 3, "eps": 1e-5}),
    "instance norm": (lambda s, x: F.instance_norm(x), (4, 6, 5), "instance_norm", {"input"}, {"eps": 1e-5}),
    "unit norm": (lambda s, x: F.normalize(x, dim=0, eps=1e-3), (4, 6), "unit_norm", {"input"}, {"dim": 0, "eps": 1e-3}),
    "normalised parameter": (lambda s, x: x @ F.normalize(s.w, dim=0), (4, 6), "unit_norm", {"input"}, {"dim": 0, "eps": 1e-12}),
    "padded embedding": (
        lambda s, x: F.embedding(x.long().clamp(0, 1), s.w, 1),
        (4,),
        "embedding",
        {"weight", "input"},
        {"padding_idx": 1},
    ),
    "embedding": (lambda s, x: F.embedding(x.long().clamp(0, 1), s.w), (4,), "embedding", {"weight", "input"}, {"padding_idx": None}),
    "attention": (
        lambda s, x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.25),
        (2, 4, 6),
        "attention",
        {"query", "key", "value"},
        {"causal": False, "dropout": 0.25, "scale": None, "grouped": False},
    ),
    "masked attention": (
        lambda s, x: F.scaled_dot_product_attention(x, x, x, torch.ones(4, 4).tril().bool()),
        (2, 4, 6),
        "attention",
        {"query", "key", "value", "mask"},
        {"causal": False, "dropout": 0.0, "scale": None, "grouped": False},
    ),
    "masked": (
        lambda s, x: x.masked_fill(torch.ones(4, 6) > 0, float("-inf")),
        (4, 6),
        "masked",
        {"input"},
        {"value": float("-inf")},
    ),
    "where": (lambda s, x: torch.where(torch.ones(4, 6) > 0, x, -5.0), (4, 6), "masked", {"input"}, {"value": -5.0}),
    "select": (lambda s, x: torch.where(torch.ones(4, 6) > 0, x, x * s.g), (4, 6), "select", {"input", "other"}, {}),
    "triangle": (lambda s, x: (s.w @ s.w.t()).tril(), (4, 6), "masked", {"input"}, {"value": 0.0}),
    "power": (lambda s, x: x.rsqrt(), (4, 6), "power", {"input"}, {"exponent": -0.5}),
    "padded convolution": (
        lambda s, x: F.conv1d(x, s.k, padding=1),
        (2, 6, 5),
        "convolution",
        {"input", "weight"},
        {"padded": True, "padding": [1]},
    ),
    "bare convolution": (
        lambda s, x: F.conv1d(x, s.k, stride=2),
        (2, 6, 5),
        "convolution",
        {"input", "weight"},
        {"padded": False, "stride": [2]},
    ),
    "same": (
        lambda s, x: F.conv1d(x, s.k, padding="same"),
        (2, 6, 5),
        "convolution",
        {"input", "weight"},
        {"padded": True, "padding": "same"},
    ),
    "valid": (lambda s, x: F.conv1d(x, s.k, padding="valid"), (2, 6, 5), "convolution", {"input", "weight"}, {"padded": False}),
    "same by points": (
        lambda s, x: F.conv1d(x, s.k[:, :, :1], padding="same"),
        (2, 6, 5),
        "convolution",
        {"input", "weight"},
        {"padded": False},
    ),
    "einsum": (lambda s, x: torch.einsum("... i, ij", x, s.w), (4, 6), "einsum", {"0", "1"}, {"equation": "ai,ij->aj"}),
    "weight norm": (
        lambda s, x: x @ torch.ops.aten._weight_norm(s.w, s.w[:1], 1),
        (4, 6),
        "weight_norm",
        {"direction", "magnitude"},
        {"dim": 1},
    ),
    "roll": (lambda s, x: x.roll((1, 2), (0, -1)), (4, 6), "rearrange", {"input"}, {"dims": [0, 1], "uniform": True}),
    "strided": (lambda s, x: x[:, 1::2], (4, 6), "rearrange", {"input"}, {"dims": [1], "uniform": True, "start": 1, "step": 2}),
    "rows of a table by data": (lambda s, x: s.w[torch.tensor([0, 2, 2])], (4, 6), "index_select", {"input", "index"}, {"dim": 0}),
    "columns by several axes of data": (
        lambda s, x: s.w[:, torch.tensor([[0, 2], [1, 1]])],
        (4, 6),
        "index_select",
        {"input", "index"},
        {"dim": 1},
    ),
    "entries by data": (lambda s, x: s.w.gather(1, torch.tensor([[2, 0]])), (4, 6), "gather", {"input", "index"}, {"dim": 1}),
    "entries along one axis": (
        lambda s, x: torch.take_along_dim(s.w, torch.tensor([[1, 2]]), 1),
        (4, 6),
        "gather",
        {"input", "index"},
        {"dim": 1},
    ),
}


@pytest.mark.parametrize("name", list(ATTRIBUTES))
def test_slots_and_attributes(name: str) -> None:
    function, shape, operation, slots, attributes = ATTRIBUTES[name]
    weights = {"w": parameter(6, 3), "v": parameter(3), "g": parameter(6), "k": parameter(4, 6, 3)}
    found = only(graph_of(function, shape, **weights), operation)
    assert found["slots"] == slots
    assert attributes.items() <= found["attributes"].items()
    assert found["attributes"].keys() - attributes.keys() <= {"groups", "stride", "padding", "dilation", "mask"}


def test_the_parametrisation_by_weight_norm_is_its_operation() -> None:
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(6, 3))
    graph = trace(layer, torch.zeros(4, 6))
    assert steps(graph) == ["weight_norm", "linear"]
    assert graph.nodes["_weight_norm"]["parameters"] == {
        "magnitude": "parametrizations.weight.original0",
        "direction": "parametrizations.weight.original1",
    }
    whole = nn.utils.parametrizations.weight_norm(nn.Linear(6, 3), dim=None)
    assert "aten._weight_norm" in steps(trace(whole, torch.zeros(4, 6)))


# --- rearrangements: a linear map of positions that looks at no other axis


REARRANGED: dict[str, tuple[Callable[[Tensor], Tensor], list[int], bool]] = {
    "roll": (lambda x: x.roll(2, 1), [1], True),
    "flip": (lambda x: x.flip(0, 2), [0, 2], True),
    "strided slice": (lambda x: x[:, 1::2], [1], True),
    "repeat": (lambda x: x.repeat(1, 2, 3), [1, 2], True),
    "tile": (lambda x: x.tile(2), [2], True),
    "repeat_interleave": (lambda x: x.repeat_interleave(2, 1), [1], True),
    "cumsum": (lambda x: x.cumsum(-1), [2], False),
    "zeros around": (lambda x: F.pad(x, (1, 0, 2, 2)), [1, 2], False),
    "cropped": (lambda x: F.pad(x, (-1, -1)), [2], True),
    "reflected": (lambda x: F.pad(x, (1, 1), mode="reflect"), [2], True),
    "nearest": (lambda x: F.interpolate(x, scale_factor=2), [2], True),
    "linear": (lambda x: F.interpolate(x, size=7, mode="linear"), [2], True),
}


@pytest.mark.parametrize("name", list(REARRANGED))
def test_a_rearrangement_is_linear_in_positions_and_looks_at_no_other_axis(name: str) -> None:
    function, dims, uniform = REARRANGED[name]
    x = torch.randn(3, 4, 5, dtype=torch.float64)
    graph = trace(Block(lambda s, y: function(y)), x)
    assert steps(graph) == ["rearrange"]
    found = only(graph, "rearrange")["attributes"]
    assert (found["dims"], found["uniform"]) == (dims, uniform)
    others = [d for d in range(3) if d not in dims]
    mixer = {d: torch.randn(x.shape[d], dtype=torch.float64).reshape([-1 if i == d else 1 for i in range(3)]) for d in others}
    for factor in mixer.values():
        torch.testing.assert_close(function(x * factor), function(x) * factor)
    torch.testing.assert_close(function(x + 2 * x.sin()), function(x) + 2 * function(x.sin()))
    constant = torch.ones_like(x)
    assert torch.allclose(function(constant), torch.ones(function(x).shape, dtype=torch.float64)) is uniform


# --- the table itself


def test_every_reader_names_an_operation_of_the_vocabulary() -> None:
    seen = {r.operation for r in recorded_readings()}
    assert seen <= OPERATIONS.keys()


def recorded_readings() -> list[Any]:
    """All readings made while a set of functions is traced."""
    made: list[Any] = []
    original = Readers.read

    def read(self: Readers, a: Any) -> Any:
        found = original(self, a)
        made.extend([found] if found else [])
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Readers, "read", read)
        for function, shape, _ in REARRANGED_AND_COMPUTED:
            trace(Block(function), torch.randn(shape, dtype=torch.float64))
    assert len(made) > 50
    return made


REARRANGED_AND_COMPUTED = [row for name, row in COMPUTED.items() if name != "addmm" and "conv" not in name]


@pytest.mark.parametrize("name", sorted(READERS))
def test_every_reader_is_for_an_operation_that_torch_has(name: str) -> None:
    base, _, overload = name.partition(".")
    packets = [packet for n in (base, f"{base}_") if (packet := getattr(torch.ops.aten, n, None)) is not None]
    assert packets, f"torch has no operation aten.{base}"
    if overload:
        assert any(overload in packet.overloads() for packet in packets), f"aten.{base} has no overload {overload}"


@pytest.mark.parametrize(
    ("equation", "ranks", "expected"),
    [
        ("ij,jk->ik", [2, 2], "ij,jk->ik"),
        ("... i , i", [3, 1], "abi,i->ab"),
        ("ba,ac", [2, 2], "ba,ac->bc"),
        ("...a,...b->...", [2, 3], "da,cdb->cd"),
    ],
)
def test_einsum_equations_are_written_out(equation: str, ranks: list[int], expected: str) -> None:
    assert written_out(equation, ranks) == expected
