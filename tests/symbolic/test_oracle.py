"""Every gauge rule against a numerical search that does not know it: scales, shifts and matrices that an operation passes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import pytest
import torch
from support.blocks import rotary
from torch import Tensor
from torch.nn import functional as F

from noetherflow.numeric.oracle import Equivariances, entry_changes, matrix_changes, rotations
from noetherflow.symbolic.gauge import symmetries
from noetherflow.symbolic.gauge_table import RULES
from noetherflow.symbolic.graph import ArchitectureGraph
from noetherflow.symbolic.operations import OPERATIONS
from noetherflow.symbolic.symmetries import Symmetry

# Where data come in and results go out, there is nothing to carry through.
ENDS: Final = {"input", "constant", "parameter", "output"}
LOSSES: Final = {"cross_entropy", "mean_square"}
EPS: Final = 1e-30
# Slots that hold parameters; all others read values.
HELD: Final = {"weight", "bias", "direction", "magnitude", "weight_ih", "weight_hh", "bias_ih", "bias_hh"}


@dataclass(frozen=True, slots=True)
class Row:
    """One operation: how torch computes it, and by how much its rule is known to fall short of the truth (`why`)."""

    operation: str
    function: Callable[..., Tensor]
    shapes: dict[str, tuple[int, ...]]
    attributes: dict[str, Any] = field(default_factory=dict)
    scales_missing: int = 0
    shifts_missing: int = 0
    matrices_missing: int | None = None  # None: not asked, the operation changes its channels
    axis: int = 1  # of the channels
    why: str = ""

    @property
    def result(self) -> tuple[int, ...]:
        """Shape of the result."""
        return tuple(self.function(*(torch.randn(shape, dtype=torch.float64) for shape in self.shapes.values())).shape)


def mask(*shape: int) -> Tensor:
    return 0.5 + torch.rand(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def batch_norm(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    return F.batch_norm(x, None, None, weight, bias, training=True, eps=EPS)


def frozen_norm(x: Tensor, weight: Tensor | None = None) -> Tensor:
    mean, variance = torch.tensor([0.3, -0.7, 0.5], dtype=torch.float64), torch.tensor([1.3, 0.7, 2.0], dtype=torch.float64)
    return F.batch_norm(x, mean, variance, weight, None, training=False)


def layer_norm(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], weight, bias, EPS)


def rms_norm(x: Tensor, weight: Tensor | None = None) -> Tensor:
    return F.rms_norm(x, x.shape[-1:], weight, EPS)


def group_norm(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
    return F.group_norm(x, 2, weight, bias, EPS)


def attention(**options: Any) -> Callable[..., Tensor]:
    return lambda q, k, v, mask=None: F.scaled_dot_product_attention(q, k, v, mask, **options)


def lstm(x: Tensor, w: Tensor, u: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """The states of one layer, shape (time, batch, hidden), from zero."""
    h, memory, out = torch.zeros(x.shape[1], u.shape[1]), torch.zeros(x.shape[1], u.shape[1]), []
    for step in x:
        i, f, g, o = (F.linear(step, w, b) + F.linear(h, u, c)).chunk(4, -1)
        memory = f.sigmoid() * memory + i.sigmoid() * g.tanh()
        h = o.sigmoid() * memory.tanh()
        out.append(h)
    return torch.stack(out)


def gru(x: Tensor, w: Tensor, u: Tensor, b: Tensor, c: Tensor) -> Tensor:
    h, out = torch.zeros(x.shape[1], u.shape[1]), []
    for step in x:
        (r, z, n), (s, y, m) = F.linear(step, w, b).chunk(3, -1), F.linear(h, u, c).chunk(3, -1)
        update = (z + y).sigmoid()
        h = (1 - update) * (n + (r + s).sigmoid() * m).tanh() + update * h
        out.append(h)
    return torch.stack(out)


FLAT, IMAGE = (2, 3), (2, 3, 4)
LINEAR = "a linear operation passes every shift that is summed away; the rule carries those that are constant along what is summed"
GEOMETRIC = "a scale that grows geometrically along the positions, undone along the kernel: not a function of an index class"
UNREAD = "entries that nothing reads are counted once, as shifts"
NOT_CARRIED = "the rule carries no shift through it"
ONE_MASK = "for one choice of entries; not for all"
ONE_BATCH = "for one batch of rows that are read; not for all"
ALIKE = "positions are moved about: what is the same for all of them is carried"
LOWERED = "minus infinity, which has no scale; a number so low that it stands for it has one"
TARGET = torch.tensor([1, 0, 2])
TOKENS = torch.tensor([[0, 2, 1], [2, 3, 3]])
CHOICE = torch.tensor([[True, False, True], [False, True, False]])
HEAD, KEYS = (1, 3, 2), (1, 4, 2)
RECURRENT = {"input": (2, 1, 2), "weight_ih": (8, 2), "weight_hh": (8, 2), "bias_ih": (8,), "bias_hh": (8,)}
GATED = {"input": (2, 1, 2), "weight_ih": (6, 2), "weight_hh": (6, 2), "bias_ih": (6,), "bias_hh": (6,)}

ROWS: Final[tuple[Row, ...]] = (
    Row("linear", F.linear, {"input": FLAT, "weight": (4, 3), "bias": (4,)}),
    Row("linear", F.linear, {"input": IMAGE, "weight": (2, 4)}),
    Row("convolution", F.conv1d, {"input": (2, 2, 4), "weight": (3, 2, 2), "bias": (3,)}),
    Row("convolution", lambda x, w: F.conv1d(x, w, groups=2), {"input": (2, 4, 3), "weight": (4, 2, 2)}, {"groups": 2}, 2, why=GEOMETRIC),
    Row(
        "convolution",
        lambda x, w: F.conv1d(x, w, groups=3, padding=1),
        {"input": (*FLAT, 3), "weight": (6, 1, 2)},
        {"groups": 3},
        3,
        why=GEOMETRIC,
    ),
    Row("transposed_convolution", F.conv_transpose1d, {"input": (2, 2, 3), "weight": (2, 3, 2), "bias": (3,)}),
    Row(
        "transposed_convolution",
        lambda x, w: F.conv_transpose1d(x, w, groups=2),
        {"input": (2, 2, 3), "weight": (2, 2, 2)},
        {"groups": 2},
        2,
        why=GEOMETRIC,
    ),
    Row("add", torch.add, {"input": FLAT, "other": FLAT}),
    Row("add", torch.add, {"input": IMAGE, "other": (3, 1)}),
    Row("subtract", torch.sub, {"input": FLAT, "other": (3,)}),
    Row("multiply", torch.mul, {"input": FLAT, "other": FLAT}),
    Row("multiply", torch.mul, {"input": FLAT, "other": (2, 1)}),
    Row("matmul", torch.matmul, {"input": (2, 3, 2), "other": (2, 2, 3)}),
    Row("matmul", torch.matmul, {"input": (2, 3, 2), "other": (2, 3)}),
    Row("divide", torch.div, {"input": FLAT, "other": FLAT}),
    Row("divide", torch.div, {"input": FLAT, "other": (2, 1)}),
    Row("einsum", lambda x, w: torch.einsum("bi,oi->bo", x, w), {"0": FLAT, "1": (2, 3)}, {"equation": "bi,oi->bo"}),
    Row("einsum", lambda q, k: torch.einsum("bqe,bke->bqk", q, k), {"0": HEAD, "1": KEYS}, {"equation": "bqe,bke->bqk"}),
    Row(
        "einsum",
        lambda x, y, w: torch.einsum("bi,bj,oij->bo", x, y, w),
        {"0": (2, 2), "1": (2, 2), "2": (3, 2, 2)},
        {"equation": "bi,bj,oij->bo"},
    ),
    Row("embedding", lambda w: F.embedding(TOKENS, w), {"weight": (4, 3)}, {}, 9, 9, why=ONE_BATCH),
    Row("embedding", lambda w: F.embedding(TOKENS, w, 0), {"weight": (4, 3)}, {"padding_idx": 0}, 12, 12, why=ONE_BATCH),
    Row("negate", torch.neg, {"input": FLAT}, matrices_missing=0),
    Row("scale", lambda x: 0.7 * x, {"input": FLAT}, {"factor": 0.7}, matrices_missing=0),
    Row("sum", lambda x: x.sum(2), {"input": IMAGE}, {"dims": [2]}, shifts_missing=24, matrices_missing=0, why=NOT_CARRIED),
    Row("mean", lambda x: x.mean(2), {"input": IMAGE}, {"dims": [2]}, shifts_missing=18, matrices_missing=0, why=LINEAR),
    Row(
        "mean",
        lambda x: x.mean((0, 2), keepdim=True),
        {"input": IMAGE},
        {"dims": [0, 2]},
        shifts_missing=21,
        matrices_missing=0,
        why=LINEAR,
    ),
    Row("relu", torch.relu, {"input": FLAT}, matrices_missing=0),
    Row("leaky_relu", F.leaky_relu, {"input": FLAT}, matrices_missing=0),
    Row("prelu", F.prelu, {"input": FLAT, "weight": (1,)}),
    Row("prelu", F.prelu, {"input": FLAT, "weight": (3,)}),
    Row("absolute", torch.abs, {"input": FLAT}, matrices_missing=0),
    Row("power", lambda x: x**3, {"input": FLAT}, {"exponent": 3}, matrices_missing=0),
    Row(
        "dropout",
        lambda x: x * mask(*FLAT),
        {"input": FLAT},
        {"p": 0.5},
        shifts_missing=6,
        matrices_missing=0,
        why="for one mask; not for all",
    ),
    Row("dropout", lambda x: 1.0 * x, {"input": FLAT}, {"p": 0}, matrices_missing=0),
    Row("masked", lambda x: x.masked_fill(CHOICE, 0.0), {"input": FLAT}, {"value": 0.0}, 0, 6, why=ONE_MASK),
    Row("masked", lambda x: x.masked_fill(CHOICE, -1e9), {"input": FLAT}, {"value": -1e9}, 6, why=LOWERED),
    Row("masked", lambda x: x.masked_fill(CHOICE, 0.5), {"input": FLAT}, {"value": 0.5}, 6, 6, why=ONE_MASK),
    Row("maximum", torch.maximum, {"input": FLAT, "other": FLAT}, {}, 0, 6, 0, why=NOT_CARRIED),
    Row("minimum", torch.minimum, {"input": FLAT, "other": FLAT}, {}, 0, 6, 0, why=NOT_CARRIED),
    Row("select", lambda x, y: torch.where(CHOICE, x, y), {"input": FLAT, "other": FLAT}, {}, 6, 12, 0, why=ONE_MASK),
    Row("exponential", torch.exp, {"input": FLAT}, matrices_missing=0),
    Row("logarithm", lambda x: x.abs().log(), {"input": FLAT}, matrices_missing=0),
    Row("sine", torch.sin, {"input": FLAT}, matrices_missing=0),
    Row("cosine", torch.cos, {"input": FLAT}, matrices_missing=0),
    Row("error_function", torch.erf, {"input": FLAT}, matrices_missing=0),
    Row("hard_sigmoid", F.hardsigmoid, {"input": FLAT}, matrices_missing=0),
    Row("hard_swish", F.hardswish, {"input": FLAT}, matrices_missing=0),
    Row("elu", F.elu, {"input": FLAT}, matrices_missing=0),
    Row("mish", F.mish, {"input": FLAT}, matrices_missing=0),
    Row("clamp", lambda x: x.clamp(-1.0, 2.0), {"input": FLAT}, {"min": -1.0, "max": 2.0}, matrices_missing=0),
    Row("relu6", F.relu6, {"input": FLAT}, matrices_missing=0),
    Row("tanh", torch.tanh, {"input": FLAT}, matrices_missing=0),
    Row("gelu", F.gelu, {"input": FLAT}, matrices_missing=0),
    Row("silu", F.silu, {"input": FLAT}, matrices_missing=0),
    Row("sigmoid", torch.sigmoid, {"input": FLAT}, matrices_missing=0),
    Row("softplus", F.softplus, {"input": FLAT}, matrices_missing=0),
    Row("max_pool", lambda x: F.max_pool1d(x, 2, 1), {"input": IMAGE}, {"dims": 1}, matrices_missing=0),
    Row("max_pool", lambda x: F.max_pool1d(x, 2, 1, padding=1), {"input": IMAGE}, {"dims": 1}, matrices_missing=0),
    Row("average_pool", lambda x: F.avg_pool1d(x, 2, 1), {"input": IMAGE}, {"dims": 1}, shifts_missing=18, matrices_missing=0, why=LINEAR),
    Row(
        "average_pool",
        lambda x: F.avg_pool1d(x, 2, 1, padding=1),
        {"input": IMAGE},
        {"dims": 1, "uniform": False},
        shifts_missing=24,
        matrices_missing=0,
        why=NOT_CARRIED,
    ),
    Row(
        "adaptive_average_pool",
        lambda x: F.adaptive_avg_pool1d(x, 3),
        {"input": IMAGE},
        {"dims": 1},
        shifts_missing=18,
        matrices_missing=0,
        why=LINEAR,
    ),
    Row("adaptive_max_pool", lambda x: F.adaptive_max_pool1d(x, 3), {"input": IMAGE}, {"dims": 1}, matrices_missing=0),
    Row("rearrange", lambda x: x.roll(1, 2), {"input": IMAGE}, {"dims": [2], "uniform": True}, 18, 18, 0, why=ALIKE),
    Row("rearrange", lambda x: x.flip(2), {"input": IMAGE}, {"dims": [2], "uniform": True}, 18, 18, 0, why=ALIKE),
    Row("rearrange", lambda x: F.pad(x, (1, 0)), {"input": IMAGE}, {"dims": [2], "uniform": False}, 18, 24, 0, why=ALIKE),
    Row("batch_norm", batch_norm, {"input": (4, 3), "weight": (3,), "bias": (3,)}, {"eps": EPS}),
    Row("batch_norm", batch_norm, {"input": (4, 3)}, {"eps": EPS}, matrices_missing=0),
    Row("batch_norm", batch_norm, {"input": IMAGE, "weight": (3,)}, {"eps": EPS}),
    Row("batch_norm", frozen_norm, {"input": (4, 3), "weight": (3,)}, {"training": False}),
    Row("batch_norm", frozen_norm, {"input": (4, 3)}, {"training": False}, shifts_missing=12, matrices_missing=6, why=NOT_CARRIED),
    Row("layer_norm", layer_norm, {"input": (2, 4), "weight": (4,), "bias": (4,)}, {"eps": EPS}),
    Row("layer_norm", layer_norm, {"input": (2, 4)}, {"eps": EPS}, matrices_missing=0),
    Row("layer_norm", layer_norm, {"input": (2, 3, 4)}, {"eps": EPS}, matrices_missing=0, axis=2),
    Row("rms_norm", rms_norm, {"input": (2, 4), "weight": (4,)}, {"eps": EPS}),
    Row("rms_norm", rms_norm, {"input": (2, 4)}, {"eps": EPS}, matrices_missing=0),
    Row("group_norm", group_norm, {"input": (2, 6), "weight": (6,), "bias": (6,)}, {"eps": EPS, "groups": 2}),
    Row("group_norm", group_norm, {"input": (2, 4, 3)}, {"eps": EPS, "groups": 2}, matrices_missing=0),
    Row("group_norm", group_norm, {"input": (2, 8)}, {"eps": EPS, "groups": 2}, matrices_missing=0),
    Row("instance_norm", lambda x: F.instance_norm(x, eps=EPS), {"input": IMAGE}, {"eps": EPS}, matrices_missing=0),
    Row("unit_norm", lambda x: F.normalize(x, dim=1, eps=EPS), {"input": FLAT}, {"dim": 1}, matrices_missing=0),
    Row("weight_norm", lambda v, g: torch._weight_norm(v, g, 0), {"direction": (4, 3), "magnitude": (4, 1)}, {"dim": 0}),
    Row("weight_norm", lambda v, g: torch._weight_norm(v, g, 1), {"direction": (4, 3), "magnitude": (1, 3)}, {"dim": 1}),
    Row("attention", attention(), {"query": HEAD, "key": KEYS, "value": KEYS}, matrices_missing=0, axis=2),
    Row(
        "attention",
        attention(is_causal=True),
        {"query": KEYS, "key": KEYS, "value": KEYS},
        {"causal": True},
        2,
        2,
        0,
        axis=2,
        why="the first position attends to nothing but itself: its query is not read",
    ),
    Row(
        "attention",
        attention(enable_gqa=True),
        {"query": (1, 4, 2, 2), "key": (1, 2, 3, 2), "value": (1, 2, 3, 2)},
        {"grouped": True},
    ),
    Row("attention", attention(), {"query": HEAD, "key": KEYS, "value": KEYS, "mask": (3, 4)}),
    Row("rotary", rotary, {"input": (1, 3, 4)}, {"pairing": "halves"}, 0, 12, 0, axis=2, why=NOT_CARRIED),
    Row(
        "rotary",
        lambda x: rotary(x, "interleaved"),
        {"input": (1, 3, 4)},
        {"pairing": "interleaved"},
        0,
        12,
        0,
        axis=2,
        why=NOT_CARRIED,
    ),
    Row("lstm_layer", lstm, RECURRENT),
    Row("gru_layer", gru, GATED),
    Row("softmax", lambda x: x.softmax(1), {"input": FLAT}, {"dim": 1}, matrices_missing=0),
    Row("softmax", lambda x: x.softmax(2), {"input": IMAGE}, {"dim": -1}, matrices_missing=0),
    Row("log_softmax", lambda x: x.log_softmax(1), {"input": FLAT}, {"dim": 1}, matrices_missing=0),
    Row("identity", lambda x: x * 1.0, {"input": FLAT}, matrices_missing=0),
    Row("reshape", lambda x: x.reshape(2, 12), {"input": IMAGE}),
    Row("reshape", lambda x: x.reshape(2, 2, 6), {"input": (2, 12)}),
    Row("permute", lambda x: x.permute(2, 0, 1), {"input": IMAGE}, {"dims": [2, 0, 1]}),
    Row("expand", lambda x: x.expand(2, 4, 3), {"input": (2, 1, 3)}),
    Row("slice", lambda x: x[:, 1:3], {"input": (2, 4)}, {"dim": 1, "start": 1, "length": 2}, 4, why=UNREAD),
    Row("concatenate", lambda x, y: torch.cat([x, y], 1), {"0": FLAT, "1": (2, 2)}, {"dim": 1}),
    Row("concatenate", lambda x, y: torch.cat([x, y], 0), {"0": FLAT, "1": (1, 3)}, {"dim": 0}),
    Row("cross_entropy", lambda x: F.cross_entropy(x, TARGET).reshape(1), {"input": (3, 4)}),
    Row("cross_entropy", lambda x: F.cross_entropy(x, TARGET % 2, label_smoothing=0.1).reshape(1), {"input": (3, 4)}),
    Row("mean_square", lambda x: F.mse_loss(x, torch.ones_like(x)).reshape(1), {"input": FLAT}),
)


def names(row: Row) -> str:
    return f"{row.operation}-{'-'.join('x'.join(map(str, shape)) for shape in row.shapes.values())}"


def test_every_gauge_rule_has_an_oracle_row() -> None:
    assert {row.operation for row in ROWS} == set(RULES) - ENDS == set(OPERATIONS) - ENDS


def test_what_a_rule_falls_short_of_has_a_reason() -> None:
    assert all(bool(row.why) == any((row.scales_missing, row.shifts_missing, row.matrices_missing)) for row in ROWS)


# --- changes of every entry


@pytest.mark.parametrize("row", ROWS, ids=names)
@pytest.mark.parametrize("form", ["scale", "shift"])
def test_a_rule_passes_what_the_oracle_finds(row: Row, form: str) -> None:
    torch.set_default_dtype(torch.float64)
    shapes = list(row.shapes.values())
    truth = entry_changes(row.function, shapes, form, result_moves=row.operation not in LOSSES)  # type: ignore[arg-type]
    assert truth.gap > 1e6
    found = [s for s in symmetries(surrounded(row, form)) if entrywise(s) and (form == "shift") == (s.actions[0].form == "shift")]
    missing = row.scales_missing if form == "scale" else row.shifts_missing
    changes = [change for s in found for change in operand_changes(s, row)]
    assert truth.dimension == len(changes) + missing
    assert all(truth.contains(change) for change in changes)


def entrywise(symmetry: Symmetry) -> bool:
    """Whether the generators change entries by numbers that do not depend on the parameters."""
    return symmetry.kind != "affine" and not symmetry.rotation


def surrounded(row: Row, form: str) -> ArchitectureGraph:
    """The operation on parameters of its operands' shapes, its result multiplied by (or added to) one more, which undoes what passes."""
    graph = ArchitectureGraph()
    inputs, parameters = {}, {}
    for slot, shape in row.shapes.items():
        name = graph.add_parameter(f"operand_{slot}", shape)
        if slot in HELD:
            parameters[slot] = name
        else:
            inputs[slot] = graph.add_operation(f"from_{slot}", "parameter", {}, {"weight": name}, shape=shape)
    result = () if row.operation in LOSSES else row.result
    end = graph.add_operation("result", row.operation, inputs, parameters, shape=result, **row.attributes)
    if row.operation not in LOSSES:
        other = graph.add_parameter("undo", result)
        end = graph.add_operation("undone", "multiply" if form == "scale" else "add", {"input": end}, {"other": other}, shape=result)
    graph.add_operation("output", "output", {"0": end})
    return graph


def operand_changes(symmetry: Symmetry, row: Row) -> list[Tensor]:
    """Every generator as one vector over the operands' entries: at ones, a scale and its logarithm are the same number.

    Of a matrix family the diagonal ones, which scale.
    """
    ones = {f"operand_{slot}": torch.ones(shape) for slot, shape in row.shapes.items()} | {"undo": torch.ones(row.result)}
    directions, changes = torch.eye(symmetry.dimension), []
    if symmetry.matrix:
        n = symmetry.sizes[-1]
        directions = directions[[i for i in range(symmetry.dimension) if i // n % n == i % n]]
    for direction in directions:
        tangent = symmetry.tangent(ones, direction)
        changes.append(torch.cat([tangent.get(name, torch.zeros_like(ones[name])).flatten() for name in ones if name != "undo"]))
    return changes


# --- matrices along the channels


@pytest.mark.parametrize("row", [row for row in ROWS if row.matrices_missing is not None], ids=names)
def test_matrices_pass_where_the_oracle_says(row: Row) -> None:
    torch.set_default_dtype(torch.float64)
    truth = matrix_changes(row.function, list(row.shapes.values()), row.axis)
    assert truth.gap > 1e6
    changes = [change for s in symmetries(between_maps(row)) for change in channel_changes(s, row)]
    assert truth.dimension == len(changes) + (row.matrices_missing or 0)
    assert all(truth.contains(change) for change in changes)


@pytest.mark.parametrize("row", [row for row in ROWS if row.matrices_missing is not None], ids=names)
def test_rotations_pass_where_the_oracle_says(row: Row) -> None:
    torch.set_default_dtype(torch.float64)
    truth = rotations(row.function, list(row.shapes.values()), row.axis)
    found = [s for s in symmetries(between_maps(row)) if s.rotation]
    changes = [change for s in found for change in channel_changes(s, row)]
    general = sum(s.dimension * (s.sizes[-1] - 1) // (2 * s.sizes[-1]) for s in symmetries(between_maps(row)) if rotates_all(s, row))
    assert truth.dimension == len(changes) + general
    assert all(truth.contains(change) for change in changes)


def rotates_all(symmetry: Symmetry, row: Row) -> bool:
    """Whether a family is a GL(n) that acts on maps in front of the operation, the rotations among its matrices."""
    return symmetry.matrix and any(name.startswith("before") for name in symmetry.parameters)


def between_maps(row: Row) -> ArchitectureGraph:
    """Data -> linear map of the channels -> the operation -> linear map of the channels; every operand has a map of its own."""
    graph = ArchitectureGraph()
    values = {}
    for slot, shape in row.shapes.items():
        n = shape[row.axis]
        graph.add_operation(f"data_{slot}", "input", shape=shape)
        values[slot] = _map(graph, row, f"before_{slot}", f"data_{slot}", shape, n)
    end = graph.add_operation("result", row.operation, values, shape=row.result, **row.attributes)
    end = _map(graph, row, "after", end, row.result, 5)
    graph.add_operation("output", "output", {"0": end})
    return graph


def _map(graph: ArchitectureGraph, row: Row, name: str, source: str, shape: tuple[int, ...], out: int) -> str:
    last = row.axis == len(shape) - 1
    weight = graph.add_parameter(name, (out, shape[row.axis], *[1] * (0 if last else len(shape) - 2)))
    mapped = (*shape[: row.axis], out, *shape[row.axis + 1 :])
    return graph.add_operation(f"{name}_map", "linear" if last else "convolution", {"input": source}, {"weight": weight}, shape=mapped)


def channel_changes(symmetry: Symmetry, row: Row) -> list[Tensor]:
    """Every generator as the entries of the operands' matrices: what it does to maps that are the identity; those that move none left out."""
    sizes = {f"before_{slot}": shape[row.axis] for slot, shape in row.shapes.items()}
    if not set(sizes) & set(symmetry.parameters):
        return []
    graph = between_maps(row)
    identity = {name: torch.eye(n).reshape(graph.parameters[name].shape) for name, n in sizes.items()}
    identity["after"] = torch.ones(graph.parameters["after"].shape)
    tangents = [symmetry.tangent(identity, direction) for direction in torch.eye(symmetry.dimension)]
    return [torch.cat([tangent.get(n, torch.zeros_like(identity[n])).flatten() for n in sizes]) for tangent in tangents]


# --- the oracle itself


@pytest.mark.parametrize(
    ("function", "shapes", "form", "dimension"),
    [
        (torch.relu, [(5,)], "scale", 5),
        (torch.tanh, [(5,)], "scale", 0),
        (lambda x: x - x.mean(), [(5,)], "scale", 1),
        (lambda x: x - x.mean(), [(5,)], "shift", 5),  # linear: a shift of x passes to a shift of the result
        (lambda x: (x - x.mean()).relu(), [(5,)], "shift", 1),
        (torch.mul, [(2,), (2,)], "scale", 4),
        (lambda x: x * torch.tensor([1.0, 0.0]), [(2,)], "scale", 2),  # what is not read may do anything
        (lambda x, y: x**2 * y, [(2,), (2,)], "scale", 4),
        (lambda w, x: w @ x, [(3, 2), (2, 4)], "scale", 3 + 2 + 4 - 1),
    ],
)
def test_the_oracle_finds_what_is_known(function: Callable[..., Tensor], shapes: list[tuple[int, ...]], form: Any, dimension: int) -> None:
    assert entry_changes(function, shapes, form).dimension == dimension


def test_the_oracle_knows_exponents() -> None:
    """x**2 y: scaling x by t scales the result by t**2, and y by t**-2 undoes it."""
    truth: Equivariances = entry_changes(lambda x, y: x**2 * y, [(1,), (1,)], "scale", result_moves=False)
    (vector,) = truth.basis
    assert float(vector[1] / vector[0]) == pytest.approx(-2.0, abs=1e-9)
    assert truth.contains(torch.tensor([1.0, -2.0], dtype=torch.float64))
    assert not truth.contains(torch.tensor([1.0, -1.0], dtype=torch.float64))


def test_a_rule_that_allows_too_much_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: were tanh taken for homogeneous, the oracle would object."""
    torch.set_default_dtype(torch.float64)
    monkeypatch.setitem(RULES, "tanh", RULES["relu"])
    row = next(row for row in ROWS if row.operation == "tanh")
    truth = entry_changes(row.function, list(row.shapes.values()), "scale")
    found = symmetries(surrounded(row, "scale"))
    assert found.dimension == 6 > truth.dimension == 0
    assert not any(truth.contains(change) for s in found for change in operand_changes(s, row))


def wrongly_turned(x: Tensor) -> Tensor:
    """RoPE with one sign wrong."""
    return rotary(x) - 2.0 * rotary(torch.cat([x[..., :2], torch.zeros_like(x[..., 2:])], -1)).roll(2, -1) * torch.tensor([1.0, 1, 0, 0])


@pytest.mark.parametrize(
    ("operation", "function", "kind"),
    [("rotary", wrongly_turned, "complex"), ("rms_norm", layer_norm, "orthogonal"), ("layer_norm", batch_norm, "orthogonal")],
)
def test_a_rotation_claimed_of_another_operation_is_seen(operation: str, function: Callable[..., Tensor], kind: str) -> None:
    """Negative control: what a rule passes, held against an operation that is like its own but not the same."""
    torch.set_default_dtype(torch.float64)
    row = next(row for row in ROWS if row.operation == operation and row.matrices_missing is not None)
    claimed = [change for s in symmetries(between_maps(row)) if s.kind == kind for change in channel_changes(s, row)]
    own, other = (rotations(f, list(row.shapes.values()), row.axis) for f in (row.function, function))
    assert claimed
    assert all(own.contains(change) for change in claimed)
    assert not all(other.contains(change) for change in claimed)
