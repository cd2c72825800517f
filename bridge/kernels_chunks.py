"""What may be asked of the tensors of one parameter, and how they are cut into cache-sized chunks to answer it.

Shared by every backend; shapes, strides and names only, no arithmetic on data. A layout does three things:

1. it puts the axes into memory order (slowest first), whatever permutation the caller holds;
2. it merges neighbouring axes that no reduction tells apart, so that a convolution kernel's ``kh, kw`` become one axis;
3. it cuts the slowest axes into blocks, so that a float64 copy of one block of every operand stays in cache.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeVar

from torch import Tensor

from noetherflow.errors import NoetherflowError

__all__ = ["Entrywise", "Fold", "KernelError", "Layout", "Request", "check", "plan_fold", "plan_layout"]

T = TypeVar("T")

#: Types of tensors that every backend reads.
FLOATS: Final = ("torch.float64", "torch.float32", "torch.bfloat16", "torch.float16")
#: An axis of fewer entries counts as short.
SHORT: Final = 32


class KernelError(NoetherflowError):
    """A reduction was asked for that its tensors cannot give."""


@dataclass(frozen=True, slots=True)
class Request:
    """One reduction of two vectors (tensors or named linear combinations of tensors).

    Parameters
    ----------
    kind
        ``"pairing"`` sums ``x * y``, ``"sum"`` sums ``x``, ``"fourth"`` sums ``x**2 * y**2``, each over the axes not kept;
        ``"gram"`` is the matrix ``X @ Y.T`` of the unfoldings along the one axis kept.
    x, y
        Names of vectors; ``y`` is None for a sum.
    keep
        Axes that the result keeps, in the order of the result's axes; ``()`` for a scalar.
    """

    kind: Literal["pairing", "sum", "fourth", "gram"]
    x: str
    y: str | None = None
    keep: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Entrywise(Mapping[str, float]):
    """A vector that is a function of tensors, entry by entry; stands where a linear combination does.

    Parameters
    ----------
    names
        The tensors it takes.
    function
        Takes them by name, in float64, and returns a tensor of their shape; must not write to them.

    Examples
    --------
    >>> list(Entrywise(("theta",), lambda tensors: tensors["theta"].sqrt()))
    ['theta']
    """

    names: tuple[str, ...]
    function: Callable[[Mapping[str, Tensor]], Tensor]

    def __getitem__(self, name: str) -> float:
        return 1.0

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True, slots=True)
class Layout:
    """Memory order, merged axes and blocks of one set of same-shaped tensors.

    Parameters
    ----------
    order
        Axes of the tensor, slowest in memory first.
    members
        The axes behind each merged axis, in memory order.
    sizes, block
        Size and block length of each merged axis.
    whole
        Whether one block holds everything.
    plain
        Whether the axes are those of the tensor, in its order, none merged.
    """

    order: tuple[int, ...]
    members: tuple[tuple[int, ...], ...]
    sizes: tuple[int, ...]
    block: tuple[int, ...]
    whole: bool
    plain: bool

    def boxes(self) -> Iterator[tuple[slice, ...]]:
        """Blocks of the merged axes in memory order, each element in exactly one.

        >>> [len(list(plan_layout((10, 4), [(4, 1)], [(0,)], budget=b).boxes())) for b in (4, 12, 40)]
        [10, 4, 1]
        """
        cuts = [[slice(i, min(i + b, n)) for i in range(0, n, b)] for n, b in zip(self.sizes, self.block, strict=True)]
        return itertools.product(*cuts)


@dataclass(frozen=True, slots=True)
class Fold:
    """How products of one chunk become a reduction that keeps some axes.

    In every chunk the merged axes ``dims`` are summed away; what is left is small and is kept in an accumulator over the
    remaining merged axes until the end. There the axes in ``late`` are summed, the kept axes get their own sizes
    ``shape`` back and are put into the order the caller asked for by ``permutation``. ``short`` marks sums over nothing
    but a short fastest axis, which torch does not vectorise: a product with a vector of ones is faster.
    """

    dims: tuple[int, ...]
    late: tuple[int, ...]
    shape: tuple[int, ...]
    permutation: tuple[int, ...] | None
    short: bool

    def remaining(self, per_axis: Sequence[T]) -> tuple[T, ...]:
        """Entries of the merged axes that survive a chunk."""
        return tuple(entry for axis, entry in enumerate(per_axis) if axis not in self.dims)


def plan_layout(
    shape: tuple[int, ...],
    strides: Sequence[tuple[int, ...]],
    keeps: Sequence[tuple[int, ...]],
    *,
    budget: int,
    small: int = 0,
    uncut: int | None = None,
) -> Layout:
    """Order, merge and cut the axes of same-shaped tensors.

    Parameters
    ----------
    shape
        Common shape, without empty axes.
    strides
        Strides of every tensor; the first decides on the memory order.
    keeps
        The sets of axes kept by the reductions to come: axes that none of them separates may be merged.
    budget
        Largest number of elements of a block.
    small
        Tensors of at most this many elements stay as they are, in one block.
    uncut
        An axis that every block has to hold completely (a Gram matrix pairs all of its entries); it may exceed the budget.

    Returns
    -------
    Layout
        Blocks of at most ``max(budget, shape[uncut])`` elements, nearly equal in size.

    >>> layout = plan_layout((64, 32, 3, 3), [(288, 9, 3, 1)], [(0,), (1,)], budget=9216)
    >>> layout.members, layout.sizes, layout.block
    (((0,), (1,), (2, 3)), (64, 32, 9), (32, 32, 9))
    """
    if math.prod(shape) <= small:
        return Layout(tuple(range(len(shape))), tuple((axis,) for axis in range(len(shape))), shape, shape, True, True)
    order = tuple(sorted(range(len(shape)), key=lambda axis: -strides[0][axis]))
    roles = [(axis == uncut, *(axis in keep for keep in keeps)) for axis in range(len(shape))]
    members: list[list[int]] = []
    for axis in order:
        before = members[-1][-1] if members else None
        if before is not None and roles[before] == roles[axis] and _adjacent(shape, strides, before, axis):
            members[-1].append(axis)
        else:
            members.append([axis])
    sizes = tuple(math.prod(shape[axis] for axis in group) for group in members)
    fixed = [index for index, group in enumerate(members) if uncut in group]
    block = _blocks(sizes, fixed, budget)
    return Layout(order, tuple(map(tuple, members)), sizes, block, block == sizes, False)


def plan_fold(layout: Layout, shape: tuple[int, ...], keep: tuple[int, ...]) -> Fold:
    """Choose what a chunk sums at once, what waits until the end, and how the result gets its shape.

    Parameters
    ----------
    layout
        Layout planned with ``keep`` among its ``keeps``.
    shape
        Shape of the tensors.
    keep
        Axes kept, in the order of the result's axes.

    Returns
    -------
    Fold
        The longest run of summed axes goes first: it leaves the least behind.

    >>> plan_fold(plan_layout((64, 32, 3, 3), [(288, 9, 3, 1)], [(0,), (1,)], budget=9216), (64, 32, 3, 3), (1,))
    Fold(dims=(0,), late=(1,), shape=(32,), permutation=None, short=False)
    """
    kept = [group[0] in keep for group in layout.members]
    found = [axis for index, group in enumerate(layout.members) if kept[index] for axis in group]
    permutation = None if tuple(found) == keep else tuple(found.index(axis) for axis in keep)
    sizes = tuple(shape[axis] for axis in found)
    summed = [list(run) for is_kept, run in itertools.groupby(range(len(kept)), key=kept.__getitem__) if not is_kept]
    if layout.plain:
        # All at once: for a small tensor the number of calls weighs more than their speed.
        summed = [[axis for run in summed for axis in run]]
    dims = tuple(max(summed, key=lambda run: math.prod(layout.sizes[axis] for axis in run), default=[]))
    left = [axis for axis in range(len(kept)) if axis not in dims]
    late = tuple(position for position, axis in enumerate(left) if not kept[axis])
    short = dims == (len(kept) - 1,) and layout.sizes[-1] < SHORT and not layout.plain
    return Fold(dims, late, sizes, permutation, short)


def check(
    operands: Sequence[tuple[str, tuple[int, ...], str, str]],
    combinations: Sequence[tuple[str, tuple[str, ...]]],
    requests: Sequence[Request],
) -> None:
    """Whether a call can be answered, by whichever backend.

    Parameters
    ----------
    operands
        Name, shape, dtype and device of every tensor.
    combinations
        Name and parts of every linear combination.
    requests
        What is asked.

    Raises
    ------
    KernelError
        If tensors differ in shape or device or are not floating point, a name is unknown or taken twice, or a request's kind,
        vectors and axes don't fit together.
    """
    if not operands:
        raise KernelError("No tensors to reduce: `tensors` is empty. Pass the parameter's tensors by name.")
    first, shape, _, device = operands[0]
    for name, other, dtype, place in operands:
        if (other, place) != (shape, device):
            raise KernelError(
                f"Tensor {name!r} has shape {other} on {place}, but {first!r} has shape {shape} on {device}: the tensors of one call "
                "belong to one parameter. Pass one parameter per call, on one device.",
                tensor=name,
            )
        if dtype not in FLOATS:
            raise KernelError(f"Tensor {name!r} has dtype {dtype}; expected one of {', '.join(FLOATS)}. Convert it first.", tensor=name)
    names = {operand[0] for operand in operands}
    for name, parts in combinations:
        if name in names or not parts or not names.issuperset(parts):
            raise KernelError(
                f"Combination {name!r} of {list(parts)} cannot be formed: it needs a name that no tensor has, and at least one part, each "
                f"the name of a tensor out of {sorted(names)}.",
                combination=name,
            )
    for request in requests:
        _check_request(request, names | {name for name, _ in combinations}, shape)


def _adjacent(shape: tuple[int, ...], strides: Sequence[tuple[int, ...]], outer: int, inner: int) -> bool:
    """Whether two axes can be seen as one in every tensor without a copy."""
    return all(one[outer] == one[inner] * shape[inner] for one in strides)


def _blocks(sizes: tuple[int, ...], fixed: Sequence[int], budget: int) -> tuple[int, ...]:
    """Fill a block from the fastest axis outwards, and even out the blocks of an axis that is cut."""
    block = [1] * len(sizes)
    room = budget
    for index in (*fixed, *(i for i in reversed(range(len(sizes))) if i not in fixed)):
        pieces = 1 if index in fixed else max(1, math.ceil(sizes[index] / max(1, min(sizes[index], room))))
        block[index] = math.ceil(sizes[index] / pieces)
        room //= block[index]
    return tuple(block)


def _check_request(request: Request, vectors: set[str], shape: tuple[int, ...]) -> None:
    """Raise a KernelError if a request has unknown vectors, impossible axes, or the wrong number of either."""
    if request.kind not in ("pairing", "sum", "fourth", "gram"):
        raise KernelError(f"{request}: unknown kind; expected 'pairing', 'sum', 'fourth' or 'gram'.", request=request)
    if (request.y is None) != (request.kind == "sum"):
        raise KernelError(f"{request}: a sum has one vector (y=None), every other kind has two.", request=request)
    unknown = sorted({name for name in (request.x, request.y) if name is not None} - vectors)
    if unknown:
        raise KernelError(f"{request}: no vector named {', '.join(unknown)}; there are {sorted(vectors)}.", request=request)
    if len(set(request.keep)) != len(request.keep) or not all(0 <= axis < len(shape) for axis in request.keep):
        raise KernelError(
            f"{request}: cannot keep axes {request.keep} of a tensor of shape {shape}. Name each axis once, counted from the front, from 0 "
            f"to {len(shape) - 1}.",
            request=request,
        )
    if request.kind == "gram" and len(request.keep) != 1:
        raise KernelError(f"{request}: a Gram matrix keeps exactly one axis, not {len(request.keep)}.", request=request)
