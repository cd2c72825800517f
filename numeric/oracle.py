"""Equivariances of a single operation, found numerically: the judge of the table of gauge rules, which it does not know.

An operation maps operands to a result. A change of the operands (a scale or a shift of every entry, a matrix or a rotation along one
axis) is an equivariance if some change of the same kind of the result undoes it at every point. Unknown changes enter linearly, so that
all of them are the null space of one matrix: one block of rows for each of a few random points.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Final, Literal

import torch
from torch import Tensor
from torch.autograd.functional import jacobian

POINTS: Final = 48
ZERO: Final = 1e-9
FAR: Final = 8.0
VISIBLE: Final = 1e-6  # part of a change, of length one, that moves the operands

Operation = Callable[..., Tensor]
Form = Literal["scale", "shift"]


@dataclass(frozen=True, slots=True)
class Equivariances:
    """All equivariances of one kind.

    Attributes
    ----------
    basis : Tensor, shape (dimension, numbers)
        Orthonormal; the numbers are the operands' changes, entry by entry. What the result does follows from them.
    gap : float
        Smallest singular value that counts as not zero over the largest that counts as zero.
    """

    basis: Tensor
    gap: float

    @property
    def dimension(self) -> int:
        """How many there are."""
        return len(self.basis)

    def contains(self, change: Tensor) -> bool:
        """Whether a change of the operands is an equivariance, whatever it does to the result."""
        return bool((change - self.basis.T @ (self.basis @ change)).norm() <= 1e-7 * change.norm())


def entry_changes(
    operation: Operation, shapes: Sequence[tuple[int, ...]], form: Form, *, result_moves: bool = True, seed: int = 0
) -> Equivariances:
    """Changes T -> exp(s) T ("scale") or T -> T + s ("shift") of every entry of every operand.

    Parameters
    ----------
    operation
        A function of as many tensors as there are shapes; random ones must fix their draws.
    shapes
        Of the operands, small: the cost grows with the cube of the number of entries.
    form
        Kind of change.
    result_moves
        Whether the result may change in the same manner; if not, only what leaves it alone is looked for.
    seed
        Of the random points.

    Examples
    --------
    >>> entry_changes(torch.relu, [(3,)], "scale").dimension, entry_changes(torch.relu, [(3,)], "shift").dimension
    (3, 0)
    """
    blocks = []
    for point in _points(shapes, seed):
        result = operation(*point).flatten()
        columns = []
        for derivative, operand in zip(_derivatives(operation, point), point, strict=True):
            columns.append(derivative.reshape(len(result), -1) * (operand.flatten() if form == "scale" else 1.0))
        if result_moves:
            columns.append(-torch.diag(result if form == "scale" else torch.ones_like(result)))
        blocks.append(torch.cat(columns, 1))
    return _null_space(torch.cat(blocks), sum(map(prod, shapes)))


def matrix_changes(operation: Operation, shapes: Sequence[tuple[int, ...]], axis: int, seed: int = 0) -> Equivariances:
    """Matrices along one axis of every operand that pass to a matrix along that axis of the result, or that it does not see.

    The numbers of a change are the entries of the operands' matrices, one after the other.

    >>> matrix_changes(torch.relu, [(4, 3)], 1).dimension, matrix_changes(torch.neg, [(4, 3)], 1).dimension
    (3, 9)
    """
    return _null_space(*_by_axis(operation, shapes, axis, seed))


def rotations(operation: Operation, shapes: Sequence[tuple[int, ...]], axis: int, seed: int = 0) -> Equivariances:
    """Of the matrices of `matrix_changes` those that are antisymmetric on every operand.

    >>> rotations(torch.nn.functional.normalize, [(4, 3)], 1).dimension, rotations(torch.relu, [(4, 3)], 1).dimension
    (3, 0)
    """
    equations, operands = _by_axis(operation, shapes, axis, seed)
    allowed: Tensor = torch.block_diag(*(_antisymmetric(shape[axis]) for shape in shapes))  # type: ignore[no-untyped-call]
    found = _null_space(torch.cat([equations[:, :operands] @ allowed, equations[:, operands:]], 1), allowed.shape[1])
    return Equivariances(found.basis @ allowed.T, found.gap)


def _by_axis(operation: Operation, shapes: Sequence[tuple[int, ...]], axis: int, seed: int) -> tuple[Tensor, int]:
    """The equations on matrices along an axis, and how many of the unknown numbers are the operands'."""
    blocks = []
    for point in _points(shapes, seed):
        result = operation(*point)
        derivatives = zip(_derivatives(operation, point), point, strict=True)
        moved = [derivative.reshape(result.numel(), -1) @ _by_matrices(operand, axis) for derivative, operand in derivatives]
        blocks.append(torch.cat([*moved, -_by_matrices(result, axis)], 1))
    return torch.cat(blocks), sum(shape[axis] ** 2 for shape in shapes)


def _antisymmetric(n: int) -> Tensor:
    """Orthonormal columns that span the antisymmetric matrices of size n."""
    unit = torch.eye(n * n, dtype=torch.float64).reshape(n, n, n, n)
    pairs = [(unit[i, j] - unit[j, i]).flatten() / 2**0.5 for i in range(n) for j in range(i)]
    return torch.stack(pairs, 1) if pairs else torch.zeros(n * n, 0, dtype=torch.float64)


def _points(shapes: Sequence[tuple[int, ...]], seed: int) -> list[tuple[Tensor, ...]]:
    """Random operands, small and large by turns: some functions show their bends only far out."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [FAR if number % 2 else 1.0 for number in range(POINTS)]
    return [tuple(size * torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes) for size in sizes]


def _derivatives(operation: Operation, point: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    found: tuple[Tensor, ...] = jacobian(operation, point)  # type: ignore[no-untyped-call]
    return found


def _by_matrices(tensor: Tensor, axis: int) -> Tensor:
    """Columns: the tensor moved by every unit matrix E_ij along the axis."""
    first = tensor.movedim(axis, 0)
    n = len(first)
    moved = torch.einsum("eij,jr->ire", torch.eye(n * n, dtype=tensor.dtype).reshape(n * n, n, n), first.reshape(n, -1))
    return moved.reshape(*first.shape, n * n).movedim(0, axis).reshape(tensor.numel(), n * n)


def _null_space(equations: Tensor, operands: int) -> Equivariances:
    """What solves the equations, seen on the first `operands` numbers; what moves the result only is left out."""
    lengths = equations.norm(dim=0)
    lengths = torch.where(lengths > ZERO * lengths.max(), lengths, lengths.max())  # what is only rounding must not be blown up
    scaled = equations / lengths
    _, values, vectors = torch.linalg.svd(scaled, full_matrices=True)
    values = torch.cat([values, values.new_zeros(len(vectors) - len(values))])
    kept = values > ZERO * values[0]
    gap = float(values[kept].min() / values[~kept].max().clamp(min=1e-300)) if bool(kept.any()) and not bool(kept.all()) else torch.inf
    null = vectors[~kept] / lengths
    part = (torch.linalg.qr(null.T).Q.T if len(null) else null)[:, :operands]
    _, sizes, basis = torch.linalg.svd(part, full_matrices=False)
    return Equivariances(basis[sizes > VISIBLE], gap)
