"""Every gauge rule against a numerical search that does not know it: scales, shifts and matrices that an operation passes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import pytest
import torch
from support.attention import rotary
from support.operation_rows import ROWS, Row, layer_norm
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
# Slots that hold parameters; all others read values.
HELD: Final = {"weight", "bias", "direction", "magnitude", "weight_ih", "weight_hh", "bias_ih", "bias_hh"}


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


@pytest.mark.parametrize("row", [row for row in ROWS if row.matrices_missing == 0], ids=names)
def test_rotations_pass_where_the_oracle_says(row: Row) -> None:
    torch.set_default_dtype(torch.float64)
    truth = rotations(row.function, list(row.shapes.values()), row.axis)
    assert truth.gap > 1e6
    found = symmetries(between_maps(row))
    changes = [change for s in found for change in channel_changes(s, row)]
    assert truth.dimension == antisymmetric(changes, row)
    assert all(truth.contains(change) for s in found if s.rotation for change in channel_changes(s, row))


def antisymmetric(changes: list[Tensor], row: Row) -> int:
    """How many independent sums of changes are antisymmetric on every operand."""
    sizes = [shape[row.axis] for shape in row.shapes.values()]
    blocks = [[m.reshape(n, n) for m, n in zip(change.split([n * n for n in sizes]), sizes, strict=True)] for change in changes]
    even = [torch.cat([(m + m.T).flatten() for m in block]) for block in blocks]
    return len(changes) - int(torch.linalg.matrix_rank(torch.stack(even))) if changes else 0


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
    """Every generator that moves a map in front, as the entries of the maps' matrices: what it does where they are the identity."""
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
    """RoPE with one sign wrong: (x cos + y sin, y cos + x sin)."""
    half = x.shape[-1] // 2
    return torch.cat([rotary(torch.cat([x[..., :half], -x[..., half:]], -1))[..., :half], rotary(x)[..., half:]], -1)


def one_norm(x: Tensor) -> Tensor:
    return F.normalize(x, p=1, dim=1)


@pytest.mark.parametrize(
    ("operation", "function", "kind"),
    [("rotary", wrongly_turned, "complex"), ("rms_norm", layer_norm, "rotation"), ("unit_norm", one_norm, "rotation")],
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
