"""From torch modules to graphs: what is recognised, what is opaque, and that nothing is touched on the way."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import networkx as nx
import pytest
import torch
from support.cases import Block
from torch import Tensor, nn
from torch.nn import functional as F

from noetherflow.bridge.aliasing import Memory, memory_of, mutates
from noetherflow.bridge.trace import first_tensor, trace
from noetherflow.errors import TraceError
from noetherflow.numeric.models import MODELS, TiedMLP, build
from noetherflow.symbolic.gauge import symmetries
from noetherflow.symbolic.graph import ArchitectureGraph


def operations(graph: ArchitectureGraph) -> list[str]:
    """Operations that reach the end, in the order of computation; the ends themselves left out."""
    sinks = [n for n in graph if graph.nodes[n]["operation"] in ("output", "cross_entropy", "mean_square")]
    alive = set(sinks).union(*(nx.ancestors(graph, n) for n in sinks))
    found = [graph.nodes[n]["operation"] for n in graph.topological_order() if n in alive]
    return [operation for operation in found if operation not in ("input", "output", "constant")]


def traced(function: Callable[[Any, Tensor], Any], shape: tuple[int, ...] = (4, 6), **parts: Any) -> ArchitectureGraph:
    return trace(Block(function, **parts), torch.zeros(shape))


def perceptron() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))


# --- parameters


def test_parameters_keep_their_names_shapes_dtypes_and_freedom() -> None:
    model = perceptron().to(torch.bfloat16)
    model[2].bias.requires_grad_(False)
    graph = trace(model, torch.zeros(4, 3, dtype=torch.bfloat16))
    assert {n: (p.shape, p.dtype, p.trainable) for n, p in graph.parameters.items()} == {
        "0.weight": ((5, 3), "bfloat16", True),
        "0.bias": ((5,), "bfloat16", True),
        "2.weight": ((2, 5), "bfloat16", True),
        "2.bias": ((2,), "bfloat16", False),
    }
    assert list(graph.uses_of("2.weight")) == [("linear_1", "weight")]


def test_tied_weights_are_one_parameter_with_aliases() -> None:
    model = nn.ModuleDict({"encoder": nn.Linear(4, 4), "decoder": nn.Linear(4, 4)})
    model["decoder"].weight = model["encoder"].weight
    graph = trace(Block(lambda s, x: s.m["decoder"](s.m["encoder"](x).relu()), m=model), torch.zeros(5, 4))
    assert list(graph.parameters) == ["m.encoder.weight", "m.encoder.bias", "m.decoder.bias"]
    assert graph.aliases == {"m.decoder.weight": "m.encoder.weight"}
    assert sorted(node for node, _ in graph.uses_of("m.encoder.weight")) == ["linear", "linear_1"]


def test_a_layer_used_twice_is_one_parameter_with_two_uses() -> None:
    graph = trace(TiedMLP(6, 4, 3), torch.zeros(2, 6))
    assert len(list(graph.uses_of("shared.weight"))) == 2
    assert graph.aliases == {}


def test_parameters_nobody_reads_are_in_the_graph_and_in_no_symmetry() -> None:
    graph = traced(lambda s, x: s.a(x), a=nn.Linear(6, 2), unread=nn.Linear(6, 2))
    assert "unread.weight" in graph.parameters
    assert all("unread" not in name for s in symmetries(graph) for name in s.parameters)


# --- operations


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda s, x: x.flatten(1).reshape(2, 12).unsqueeze(0).squeeze(), ["reshape"] * 4),
        (lambda s, x: x.t().transpose(0, 1).permute(1, 0), ["permute"] * 3),
        (lambda s, x: x.chunk(2, 1)[1], ["slice"]),
        (lambda s, x: x.split([1, 5], 1)[0], ["slice"]),
        (lambda s, x: x.tensor_split(3, dim=-1)[1], ["slice"]),
        (lambda s, x: x.select(1, -1), ["slice", "reshape"]),
        (lambda s, x: x.unbind(1)[2], ["slice", "reshape"]),
        (lambda s, x: x[:, 1:3], ["slice"]),
        (lambda s, x: x[:, :], ["identity"]),
        (lambda s, x: x[:, ::2], ["rearrange"]),
        (lambda s, x: torch.cat([x, x]), ["concatenate"]),
        (lambda s, x: -x * 2 + x / 3 - 1.0, ["negate", "scale", "scale", "add", "subtract"]),
        (lambda s, x: 1.0 - x, ["subtract"]),
        (lambda s, x: torch.add(x, x, alpha=2), ["scale", "add"]),
        (lambda s, x: x / x, ["divide"]),
        (lambda s, x: x**2 + x.square(), ["power", "power", "add"]),
        (lambda s, x: x @ x.t(), ["permute", "matmul"]),
        (lambda s, x: x.sum() + x.mean(1, keepdim=True), ["sum", "mean", "add"]),
        (lambda s, x: F.dropout(x, 0.5, False), ["identity"]),
        (lambda s, x: F.dropout(x, 0.5, True), ["dropout"]),
        (lambda s, x: F.alpha_dropout(x, 0.5, True), ["aten.alpha_dropout"]),
        (lambda s, x: F.alpha_dropout(x, 0.5, False), ["identity"]),
        (lambda s, x: F.hardtanh(x), ["clamp"]),
        (lambda s, x: x.softmax(1).log_softmax(1), ["softmax", "log_softmax"]),
        (lambda s, x: x.double().clone(), ["identity"] * 2),
        (lambda s, x: x.to(torch.int32).to(torch.float32), ["aten.to", "identity"]),
        (lambda s, x: x.view(torch.int32), ["aten.view"]),
        (lambda s, x: F.layer_norm(x, (6,)), ["layer_norm"]),
        (lambda s, x: x.max(1).values, ["aten.max"]),
        (lambda s, x: x.detach(), ["aten.detach"]),
        (lambda s, x: torch.broadcast_tensors(x, x[:1])[1] + x, ["slice", "expand", "expand", "add"]),
    ],
)
def test_operations_have_their_standard_names_or_their_own(function: Callable[[Any, Tensor], Any], expected: list[str]) -> None:
    assert operations(traced(function)) == expected


@pytest.mark.parametrize(
    ("layer", "shape", "operation", "attributes"),
    [
        (nn.Conv1d(4, 6, 3, groups=2), (2, 4, 5), "convolution", {"groups": 2}),
        (nn.Conv2d(2, 3, 3, padding="same"), (2, 2, 5, 5), "convolution", {"padding": "same"}),
        (nn.Conv3d(1, 2, 2, stride=2), (2, 1, 4, 4, 4), "convolution", {"stride": [2, 2, 2]}),
        (nn.ConvTranspose2d(2, 4, 3, groups=2), (2, 2, 5, 5), "transposed_convolution", {"groups": 2}),
        (nn.BatchNorm2d(2, eps=1e-3), (2, 2, 3, 3), "batch_norm", {"training": True, "eps": 1e-3}),
        (nn.BatchNorm2d(2).eval(), (2, 2, 3, 3), "batch_norm", {"training": False}),
        (nn.BatchNorm2d(2, track_running_stats=False).eval(), (2, 2, 3, 3), "batch_norm", {"training": True}),
        (nn.MaxPool2d(2), (2, 2, 4, 4), "max_pool", {"dims": 2}),
        (nn.MaxPool1d(2, return_indices=False), (2, 2, 4), "max_pool", {"dims": 1}),
        (nn.AvgPool2d(2, padding=1), (2, 2, 4, 4), "average_pool", {"uniform": False}),
        (nn.AvgPool2d(2, padding=1, count_include_pad=False), (2, 2, 4, 4), "average_pool", {"uniform": True}),
        (nn.AdaptiveAvgPool2d(1), (2, 2, 4, 4), "adaptive_average_pool", {"dims": 2}),
        (nn.AdaptiveMaxPool1d(2), (2, 2, 4), "adaptive_max_pool", {"dims": 1}),
        (nn.PReLU(2), (2, 2), "prelu", {}),
        (nn.Dropout2d(0.5), (2, 2, 3, 3), "dropout", {"p": 0.5}),
        (nn.Dropout(0.5, inplace=True), (2, 2), "dropout", {"p": 0.5}),
        (nn.Dropout(0.0), (2, 2), "identity", {}),
        (nn.ReLU(inplace=True), (2, 2), "relu", {}),
        (nn.ReLU6(), (2, 2), "relu6", {}),
    ],
)
def test_layers_have_their_operation_and_attributes(
    layer: nn.Module, shape: tuple[int, ...], operation: str, attributes: dict[str, Any]
) -> None:
    graph = trace(layer, torch.randn(shape))
    (node,) = (n for n in graph if graph.nodes[n]["operation"] == operation)
    assert attributes.items() <= graph.nodes[node]["attributes"].items()


def test_nodes_know_the_module_they_came_from() -> None:
    graph = trace(build("resnet18", width=0.125), torch.zeros(2, 1, 28, 28), loss=F.mse_loss)
    assert {d["module"] for _, d in graph.nodes(data=True) if d["operation"] == "batch_norm"} >= {
        "bn1",
        "layer1.0.bn1",
        "layer2.0.downsample.1",
    }


def test_an_unknown_operation_is_kept_under_its_name_and_reported() -> None:
    found = symmetries(traced(lambda s, x: s.a(x).cumprod(1), a=nn.Linear(6, 4)))
    assert found.opaque == {"cumprod": "no gauge rule for 'aten.cumprod'"}
    assert found.dimension == 0


# --- in place


def test_an_in_place_operation_gives_its_tensor_a_new_value() -> None:
    def forward(s: Any, x: Tensor) -> Tensor:
        h = s.a(x)
        F.relu(h, inplace=True)
        h += 1.0
        return s.b(h)

    graph = traced(forward, a=nn.Linear(6, 4), b=nn.Linear(4, 2))
    assert operations(graph) == ["linear", "relu", "add", "linear"]
    assert graph.inputs_of("linear_1") == {"input": "add_"}


def test_a_residual_block_in_place_is_followed_exactly() -> None:
    def forward(s: Any, x: Tensor) -> Tensor:
        h = s.a(x)
        g = s.b(F.relu(h))
        g += h
        return s.c(F.relu(g, inplace=True))

    model = Block(forward, a=nn.Linear(6, 4), b=nn.Linear(4, 4), c=nn.Linear(4, 2))
    found = symmetries(trace(model, torch.zeros(5, 6)))
    assert (found.dimension, found.opaque) == (4, {})


def test_what_shares_memory_with_an_overwritten_tensor_is_opaque_if_it_is_read_again() -> None:
    def forward(s: Any, x: Tensor) -> Tensor:
        h = s.a(x)
        h[:, 0].tanh_()
        return s.b(h)

    found = symmetries(traced(forward, a=nn.Linear(6, 4), b=nn.Linear(4, 2)))
    (why,) = found.opaque.values()
    assert "writes into the memory of 'linear'" in why


def test_views_that_are_not_read_again_cost_nothing() -> None:
    def forward(s: Any, x: Tensor) -> Tensor:
        h = s.a(x)
        size = h.view(-1).square().mean()
        return s.b(F.relu(h, inplace=True)) + size.detach()

    found = symmetries(traced(forward, a=nn.Linear(6, 4), b=nn.Linear(4, 2)))
    assert not any("writes into" in why for why in found.opaque.values())


def test_overwriting_inside_a_nested_graph_is_seen() -> None:
    def forward(s: Any, x: Tensor) -> Tensor:
        h = s.a(x)
        flat = h.view(-1)
        with torch.no_grad():
            h.clamp_(-1.0, 1.0)
        return s.b(flat.view(4, 4))

    assert symmetries(traced(forward, a=nn.Linear(6, 4), b=nn.Linear(4, 2))).dimension == 0


def test_memory_is_told_apart_on_any_device() -> None:
    for device in ("cpu", "meta"):
        whole = torch.zeros(4, 3, device=device)
        assert memory_of(whole) == memory_of(whole.t()[0]) != memory_of(torch.zeros(4, 3, device=device))
    assert memory_of(None) is None
    assert memory_of(torch.zeros(3).to_sparse()) is None
    assert mutates(torch.ops.aten.relu_.default)
    assert not mutates(torch.ops.aten.relu.default)
    assert Memory().tensor("anything") == "anything"


# --- losses


TARGETS: list[tuple[Any, list[str]]] = [
    ("cross_entropy", ["cross_entropy"]),
    ("mse", ["mean_square"]),
    (F.cross_entropy, ["cross_entropy"]),
    (F.mse_loss, ["mean_square"]),
    (nn.CrossEntropyLoss(label_smoothing=0.1), ["cross_entropy"]),
    (nn.CrossEntropyLoss(weight=torch.ones(2)), ["cross_entropy"]),
    (nn.MSELoss(), ["mean_square"]),
    (functools.partial(F.cross_entropy, label_smoothing=0.1), ["cross_entropy"]),
    (lambda output, target: F.cross_entropy(output, target), ["cross_entropy"]),
    (lambda output, target: (output - target).abs().sum(), ["subtract", "absolute", "sum"]),
    (lambda output: output.square().mean(), ["power", "mean"]),
]


@pytest.mark.parametrize(("loss", "expected"), TARGETS, ids=[str(i) for i in range(len(TARGETS))])
def test_losses_are_recognised_or_traced(loss: Any, expected: list[str]) -> None:
    graph = trace(perceptron(), torch.zeros(4, 3), loss=loss)
    assert operations(graph) == ["linear", "relu", "linear", *expected]
    assert symmetries(graph).dimension == (5 + 5 + 1 if expected == ["cross_entropy"] else 5)


def test_an_unhashable_loss_is_traced() -> None:
    class Loss:
        __hash__ = None  # type: ignore[assignment]

        def __call__(self, output: Tensor, target: Tensor) -> Tensor:
            return F.cross_entropy(output, target)

    assert symmetries(trace(perceptron(), torch.zeros(4, 3), loss=Loss())).dimension == 11


@pytest.mark.parametrize(("shape", "axis"), [((4, 3), -1), ((4, 6, 3), -1), ((4, 2, 6, 3), 1)])
def test_a_named_cross_entropy_takes_classes_on_the_last_axis_or_on_the_channels_of_images(shape: tuple[int, ...], axis: int) -> None:
    graph = trace(nn.Linear(3, 2), torch.zeros(shape), loss="cross_entropy")
    assert graph.nodes["loss"]["attributes"] == {"axis": axis}


def test_a_loss_of_its_own_is_not_taken_for_one_it_only_computes() -> None:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        F.cross_entropy(output, target)  # a metric nobody reads
        return (output - 1.0).square().sum()

    assert symmetries(trace(perceptron(), torch.zeros(4, 3), loss=loss)).dimension == 5


def test_a_regulariser_in_the_loss_breaks_what_it_sees() -> None:
    model = perceptron()
    captured = model[0].weight
    through_model = trace(model, torch.zeros(4, 3), loss=lambda o, t: F.mse_loss(o, t) + model[0].weight.square().sum())
    through_closure = trace(model, torch.zeros(4, 3), loss=lambda o, t: F.mse_loss(o, t) + captured.square().sum())
    assert symmetries(through_model).dimension == 0
    assert symmetries(through_closure).dimension == 0


def test_a_buffer_that_is_a_parameter_in_disguise_holds_it_in_place() -> None:
    model = Block(lambda s, x: s.b(s.a(x).relu()) + s.copy.sum(), a=nn.Linear(6, 4), b=nn.Linear(4, 2))
    model.register_buffer("copy", model.a.weight.data)
    found = symmetries(trace(model, torch.zeros(4, 6)))
    assert found.dimension == 0
    assert "shares its memory with the parameter 'a.weight'" in next(iter(found.opaque.values()))


def test_parameters_of_a_loss_are_constants() -> None:
    class Loss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2))

        def forward(self, output: Tensor, target: Tensor) -> Tensor:
            return F.mse_loss(self.weight * output, target)

    graph = trace(perceptron(), torch.zeros(4, 3), loss=Loss())
    assert list(graph.parameters) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert symmetries(graph).dimension == 5


# --- outputs


def test_all_outputs_are_held_whatever_holds_them() -> None:
    graph = traced(lambda s, x: {"y": s.b(h := s.a(x).relu()), "hidden": [h]}, a=nn.Linear(6, 4), b=nn.Linear(4, 2))
    assert symmetries(graph).dimension == 0


def test_a_parameter_that_is_an_output_is_held() -> None:
    graph = traced(lambda s, x: (s.b(s.a(x).relu()), s.a.weight), a=nn.Linear(6, 4), b=nn.Linear(4, 2))
    assert graph.nodes["output"]["parameters"] == {"1": "a.weight"}
    assert symmetries(graph).dimension == 0


def test_a_scalar_output_can_have_a_loss_of_its_own() -> None:
    model = Block(lambda s, x: s.b(s.a(x).relu()).sum(), a=nn.Linear(6, 4), b=nn.Linear(4, 2))
    assert symmetries(trace(model, torch.zeros(4, 6), loss=lambda value: value.square())).dimension == 4


# --- nothing is touched


@pytest.mark.parametrize("name", list(MODELS))
def test_meta_and_real_models_give_the_same_graph(name: str) -> None:
    small: dict[str, Any] = {"width": 0.125} if "mlp" not in name else {}
    pixels = MODELS[name].image
    with torch.device("meta"):
        weightless = build(name, **small)
    real = build(name, **small)
    first = trace(weightless, torch.zeros(4, 1, pixels, pixels, device="meta"), loss="cross_entropy")
    assert first.to_json() == trace(real, torch.zeros(4, 1, pixels, pixels), loss="cross_entropy").to_json()


def test_weights_buffers_mode_gradients_and_random_state_are_left_alone() -> None:
    model = build("vgg16_bn", width=0.125, hidden=8)
    model.classifier.eval()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    modes = [m.training for m in model.modules()]
    inputs = torch.randn(4, 1, 32, 32)
    state = torch.get_rng_state()
    trace(model, inputs, loss=lambda o, t: F.cross_entropy(o, t))
    after = model.state_dict()
    assert all(torch.equal(before[n], after[n]) for n in before)
    assert [m.training for m in model.modules()] == modes
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_traced_graph_survives_json() -> None:
    graph = trace(build("resnet18", width=0.125), torch.zeros(2, 1, 28, 28), loss="cross_entropy")
    again = ArchitectureGraph.from_json(graph.to_json())
    assert repr(symmetries(again)) == repr(symmetries(graph))


# --- errors


def test_a_module_that_does_not_export_is_refused() -> None:
    model = Block(lambda s, x: x if x.sum() > 0 else -x)
    with pytest.raises(TraceError, match=r"torch.export could not trace Block on inputs \[\(4, 6\)\]"):
        trace(model, torch.zeros(4, 6))


def test_inputs_of_the_wrong_shape_are_refused() -> None:
    with pytest.raises(TraceError, match="could not trace Linear"):
        trace(nn.Linear(3, 2), torch.zeros(4, 5))


def test_an_unknown_loss_name_is_refused() -> None:
    with pytest.raises(TraceError, match="Expected one of"):
        trace(perceptron(), torch.zeros(4, 3), loss="crossentropy")


def test_a_loss_that_fits_no_target_is_refused() -> None:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        raise ValueError("not today")

    with pytest.raises(TraceError, match=r"could not be called on the model's output of shape \(4, 2\).*not today"):
        trace(perceptron(), torch.zeros(4, 3), loss=loss)


def test_an_output_without_numbers_is_refused() -> None:
    with pytest.raises(TraceError, match="no floating-point tensor"):
        first_tensor({"labels": [torch.zeros(3, dtype=torch.long)]})
