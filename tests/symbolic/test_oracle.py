"""Every gauge rule against a numerical search that does not know it: scales, shifts and matrices that an operation passes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from noetherflow.numeric.oracle import Equivariances, entry_changes, matrix_changes
from noetherflow.symbolic.gauge import symmetries
from noetherflow.symbolic.gauge_table import RULES
from noetherflow.symbolic.graph import ArchitectureGraph
from noetherflow.symbolic.operations import OPERATIONS
from noetherflow.symbolic.symmetries import Symmetry

# Where data come in and results go out, there is nothing to carry through.
ENDS: Final = {"input", "constant", "parameter", "output"}
LOSSES: Final = {"cross_entropy", "mean_square"}
EPS: Final = 1e-30


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


FLAT, IMAGE = (2, 3), (2, 3, 4)
LINEAR = "a linear operation passes every shift that is summed away; the rule carries those that are constant along what is summed"
GEOMETRIC = "a scale that grows geometrically along the positions, undone along the kernel: not a function of an index class"
UNREAD = "entries that nothing reads are counted once, as shifts"
NOT_CARRIED = "the rule carries no shift through it"
TARGET = torch.tensor([1, 0, 2])

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
    Row("batch_norm", batch_norm, {"input": (4, 3), "weight": (3,), "bias": (3,)}, {"eps": EPS}),
    Row("batch_norm", batch_norm, {"input": (4, 3)}, {"eps": EPS}, matrices_missing=0),
    Row("batch_norm", batch_norm, {"input": IMAGE, "weight": (3,)}, {"eps": EPS}),
    Row("batch_norm", frozen_norm, {"input": (4, 3), "weight": (3,)}, {"training": False}),
    Row("batch_norm", frozen_norm, {"input": (4, 3)}, {"training": False}, shifts_missing=12, matrices_missing=6, why=NOT_CARRIED),
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
    assert {row.operation for row in ROWS} == set(RULES) - ENDS


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
    found = [s for s in symmetries(surrounded(row, form)) if (form == "shift") == (s.actions[0].form == "shift")]
    missing = row.scales_missing if form == "scale" else row.shifts_missing
    changes = [change for s in found for change in operand_changes(s, row)]
    assert truth.dimension == len(changes) + missing
    assert all(truth.contains(change) for change in changes)


def surrounded(row: Row, form: str) -> ArchitectureGraph:
    """The operation on parameters of its operands' shapes, its result multiplied by (or added to) one more, which undoes what passes."""
    graph = ArchitectureGraph()
    inputs, parameters = {}, {}
    for slot, shape in row.shapes.items():
        name = graph.add_parameter(f"operand_{slot}", shape)
        if slot in ("weight", "bias"):
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
    (shape,) = row.shapes.values()
    truth = matrix_changes(row.function, shape, 1, 1)
    assert truth.gap > 1e6
    found = [s for s in symmetries(between_maps(row, shape)) if "before" in s.parameters]
    assert truth.dimension == sum(s.dimension for s in found) + (row.matrices_missing or 0)


def between_maps(row: Row, shape: tuple[int, ...]) -> ArchitectureGraph:
    """Data -> linear map of the channels -> the operation -> linear map of the channels; as many channels before as after."""
    graph = ArchitectureGraph()
    n, result = shape[1], row.result
    graph.add_parameter("before", (n, n) if len(shape) == 2 else (n, n, 1))
    graph.add_parameter("after", (5, n) if len(result) == 2 else (5, n, 1))
    graph.add_operation("x", "input", shape=shape)
    graph.add_operation("h", "linear" if len(shape) == 2 else "convolution", {"input": "x"}, {"weight": "before"}, shape=shape)
    graph.add_operation("y", row.operation, {"input": "h"}, shape=result, **row.attributes)
    last = (result[0], 5, *result[2:])
    graph.add_operation("z", "linear" if len(result) == 2 else "convolution", {"input": "y"}, {"weight": "after"}, shape=last)
    graph.add_operation("output", "output", {"0": "z"})
    return graph


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


def test_the_vocabulary_has_no_operation_that_only_torch_knows() -> None:
    assert {row.operation for row in ROWS} <= set(OPERATIONS)
