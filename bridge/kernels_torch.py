"""Reductions of one parameter's tensors in plain torch: one pass over the memory, float64 throughout, no compiler.

A charge needs sums such as ``sum_i W[o, i]**2`` of tensors that are far larger than the cache. Every tensor is therefore read
once, in chunks: a chunk is copied into a float64 buffer that stays in cache, linear combinations and products are formed there, and
all sums that any charge asks for are taken from it before the next chunk is read. Products of float32 values are exact in float64,
so for float32 input the only rounding left is that of the float64 sums.

The work runs in three stages, the first cached by shapes, strides and names (coefficients may change at every step):

1. `_compile` validates a call and turns it into programs: a layout (`kernels_chunks`), and steps on numbered buffers;
2. `_run` walks a program's steps over the chunks;
3. `_finished` gives every accumulated sum the axes its request asked for.
"""

from __future__ import annotations

import functools
import math
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol, TypeAlias

import torch
from torch import Tensor

from noetherflow.bridge.kernels_chunks import Entrywise, Fold, KernelError, Layout, Request, check, plan_fold, plan_layout

__all__ = ["KernelError", "Reducer", "Request", "reduce"]

#: Elements per chunk. On CPUs, 5 MB of float64: less and the start of each parallel loop weighs, more and the chunk leaves the cache.
CHUNK_CPU: Final = 640 * 1024
#: On accelerators a chunk only bounds the temporary memory.
CHUNK_ACCELERATOR: Final = 16 * 1024 * 1024
#: Chunks of at most this many elements get fresh memory for every result: that is cheaper than viewing parts of kept buffers.
SMALL: Final = 12 * 1024


class Reducer(Protocol):
    """What every backend offers; see `reduce` for the meaning of the arguments."""

    def __call__(
        self, tensors: Mapping[str, Tensor], combinations: Mapping[str, Mapping[str, float]], requests: Sequence[Request], /
    ) -> list[Tensor]:
        """Evaluate the requests in order."""
        ...


def reduce(tensors: Mapping[str, Tensor], combinations: Mapping[str, Mapping[str, float]], requests: Sequence[Request]) -> list[Tensor]:
    """Evaluate reductions of same-shaped tensors, reading each tensor once.

    Parameters
    ----------
    tensors
        The state of one parameter by name: any shape, strides and mixture of float64, float32, bfloat16 and float16,
        all of one shape on one device.
    combinations
        Further vectors by name, each a linear combination ``{tensor: coefficient}``, formed in float64.
    requests
        What to evaluate. Gram matrices along a second axis cost another pass.

    Returns
    -------
    list of Tensor
        One float64 tensor per request, with the sizes of the axes in ``keep`` (``(n, n)`` for a Gram matrix along an axis of size n),
        on the tensors' device. Relative to the sum of absolute values the error is a few float64 round-offs; the result is the
        same at every call on the same machine with the same number of threads.

    Raises
    ------
    KernelError
        If tensors differ in shape or device or are not floating point, a name is unknown or taken twice, or a request's kind, vectors
        and axes don't fit together.

    Examples
    --------
    >>> W, g = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.ones(2, 2)
    >>> rows, drift = reduce(
    ...     {"theta": W, "gradient": g},
    ...     {"u": {"gradient": 1.0, "theta": 0.5}},
    ...     [Request("pairing", "theta", "theta", (0,)), Request("pairing", "u", "theta")],
    ... )
    >>> rows, drift
    (tensor([ 5., 25.], dtype=torch.float64), tensor(25., dtype=torch.float64))
    """
    operands = tuple([(name, one.shape, one.stride(), one.dtype, one.device) for name, one in tensors.items()])
    programs = _compile(operands, tuple([(name, tuple(parts)) for name, parts in combinations.items()]), tuple(requests))
    with torch.no_grad():
        totals = [_run(program, tensors, combinations) for program in programs]
    results = {request: sums[total] for program, sums in zip(programs, totals, strict=True) for request, total in program.outputs}
    return [results[index] for index in range(len(requests))]


# ---------------------------------------------------------------- stage 1: from requests to steps on numbered buffers

_Operand: TypeAlias = tuple[str, torch.Size, tuple[int, ...], torch.dtype, torch.device]
_Parts: TypeAlias = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Load:
    """Bring a tensor's chunk into float64; a float64 chunk is used where it lies."""

    slot: int
    name: str

    def run(self, chunk: _Chunk) -> None:
        source, buffer = chunk.operands[self.name], chunk.buffers[self.slot]
        chunk.values[self.slot] = source.double() if buffer is None or source.dtype is torch.float64 else buffer.copy_(source)


@dataclass(frozen=True, slots=True)
class _Combine:
    """Form a linear combination in the buffer of its first part, which nothing needs any more, or in a new one; or follow a function."""

    slot: int
    name: str
    parts: tuple[tuple[str, int], ...]

    def run(self, chunk: _Chunk) -> None:
        coefficients = chunk.combinations[self.name]
        if isinstance(coefficients, Entrywise):
            chunk.values[self.slot] = coefficients.function({part: chunk.values[slot] for part, slot in self.parts})
            return
        (first, slot), *others = self.parts
        total, buffer = chunk.values[slot], chunk.buffers[self.slot]
        if total is not buffer or coefficients[first] != 1.0:
            total = torch.mul(total, coefficients[first], out=buffer)
        for part, slot in others:
            total.add_(chunk.values[slot], alpha=coefficients[part])
        chunk.values[self.slot] = total


@dataclass(frozen=True, slots=True)
class _Sum:
    """Sum a vector itself."""

    x: int
    totals: tuple[int, ...]

    def run(self, chunk: _Chunk) -> None:
        for total in self.totals:
            chunk.accumulate(total, chunk.values[self.x], fresh=False)


@dataclass(frozen=True, slots=True)
class _Product:
    """Form ``x * y`` in a buffer, sum it; square it there, sum that."""

    slot: int
    x: int
    y: int
    pairings: tuple[int, ...]
    fourths: tuple[int, ...]

    def run(self, chunk: _Chunk) -> None:
        x, y, buffer = chunk.values[self.x], chunk.values[self.y], chunk.buffers[self.slot]
        # square reads its operand once: 1.5 times the speed of mul
        product = torch.square(x, out=buffer) if x is y else torch.mul(x, y, out=buffer)
        for total in self.pairings:
            chunk.accumulate(total, product, fresh=buffer is None)
        if self.fourths:
            product = torch.square(product, out=buffer)
        for total in self.fourths:
            chunk.accumulate(total, product, fresh=buffer is None)


@dataclass(frozen=True, slots=True)
class _Gram:
    """Add a chunk's part of ``X @ Y.T``; every chunk holds the whole of the merged axis ``axis``."""

    x: int
    y: int
    axis: int
    total: int

    def run(self, chunk: _Chunk) -> None:
        x, y, total = chunk.values[self.x].movedim(self.axis, 0), chunk.values[self.y].movedim(self.axis, 0), chunk.totals[self.total]
        unfolded = total.shape[0], math.prod(x.shape[1:])
        total.addmm_(x.reshape(unfolded), y.reshape(unfolded).T)


_Step: TypeAlias = _Load | _Combine | _Sum | _Product | _Gram


@dataclass(frozen=True, slots=True)
class _Program:
    """Steps for every chunk of one layout.

    ``operands`` are the tensors read. ``folds`` has one entry per total (None for a Gram matrix), ``zeros`` the shape in which a total
    starts (None where the first chunk is the only one). ``outputs`` pairs requests with totals.
    """

    layout: Layout
    steps: tuple[_Step, ...]
    buffers: int
    operands: tuple[str, ...]
    folds: tuple[Fold | None, ...]
    zeros: tuple[tuple[int, ...] | None, ...]
    outputs: tuple[tuple[int, int], ...]


class _Scheduler:
    """Gives vectors buffers just before their first use and takes the buffers back after the last."""

    def __init__(self, combinations: Mapping[str, _Parts], jobs: Sequence[tuple[str, ...]]) -> None:
        self.combinations = combinations
        self.uses = Counter(name for job in jobs for name in set(job))
        self.uses.update(part for name in list(self.uses) for part in set(combinations.get(name, ())))
        self.slots: dict[str, int] = {}
        self.free: list[int] = []
        self.count = 0
        self.steps: list[_Step] = []

    def buffer(self) -> int:
        """The buffer given back last (its lines are in cache), or a new one."""
        if self.free:
            return self.free.pop()
        self.count += 1
        return self.count - 1

    def obtain(self, name: str) -> int:
        """Buffer in which a vector stands, bringing it there if need be."""
        if name not in self.slots:
            if name in self.combinations:
                self._combine(name, self.combinations[name])
            else:
                self.slots[name] = self.buffer()
                self.steps.append(_Load(self.slots[name], name))
        return self.slots[name]

    def consume(self, names: Sequence[str]) -> list[int]:
        """Count one use of each vector; the buffers of those that nothing needs any more."""
        self.uses.subtract(set(names))
        return [self.slots.pop(name) for name in dict.fromkeys(names) if not self.uses[name]]

    def _combine(self, name: str, parts: _Parts) -> None:
        placed = [(part, self.obtain(part)) for part in parts]
        dead = self.consume(parts)
        # A part that may be overwritten comes first.
        placed.sort(key=lambda pair: pair[1] not in dead[:1])
        self.slots[name] = dead.pop(0) if dead else self.buffer()
        self.free += dead
        self.steps.append(_Combine(self.slots[name], name, tuple(placed)))


@functools.lru_cache(maxsize=4096)
def _compile(
    operands: tuple[_Operand, ...], combinations: tuple[tuple[str, _Parts], ...], requests: tuple[Request, ...]
) -> tuple[_Program, ...]:
    """Programs that together answer the requests: one, and one more for every further axis of a Gram matrix."""
    check([(one[0], tuple(one[1]), str(one[3]), str(one[4])) for one in operands], combinations, requests)
    axes: list[int | None] = list(dict.fromkeys(request.keep[0] for request in requests if request.kind == "gram"))
    passes: dict[int | None, list[int]] = {axis: [] for axis in axes or [None]}
    for index, request in enumerate(requests):
        passes[request.keep[0] if request.kind == "gram" else next(iter(passes))].append(index)
    return tuple(_program(operands, dict(combinations), requests, chosen, uncut) for uncut, chosen in passes.items() if chosen)


def _program(
    operands: tuple[_Operand, ...],
    combinations: Mapping[str, _Parts],
    requests: tuple[Request, ...],
    chosen: Sequence[int],
    uncut: int | None,
) -> _Program:
    """Lay out and schedule one pass."""
    shape, device = operands[0][1], operands[0][4]
    budget = CHUNK_CPU if device.type == "cpu" else CHUNK_ACCELERATOR
    keeps = sorted({requests[index].keep for index in chosen})
    layout = plan_layout(tuple(shape), [one[2] for one in operands], keeps, budget=budget, small=SMALL, uncut=uncut)
    # Requests that are the same up to the order of x and y share a total, requests for the same product share a job.
    totals: dict[Request, int] = {}
    outputs = tuple((index, totals.setdefault(_ordered(requests[index]), len(totals))) for index in chosen)
    jobs: dict[tuple[str, ...], dict[Request, int]] = {}
    for request, total in totals.items():
        jobs.setdefault(_vectors(request), {})[request] = total
    schedule = _Scheduler(combinations, list(jobs))
    for names, wanted in jobs.items():
        _schedule(schedule, layout, names, wanted)
    read = tuple({step.name: None for step in schedule.steps if isinstance(step, _Load)})
    folds = tuple(None if request.kind == "gram" else plan_fold(layout, tuple(shape), request.keep) for request in totals)
    zeros = tuple(
        (shape[request.keep[0]],) * 2 if fold is None else None if layout.whole else fold.remaining(layout.sizes)
        for request, fold in zip(totals, folds, strict=True)
    )
    return _Program(layout, tuple(schedule.steps), schedule.count, read, folds, zeros, outputs)


def _schedule(schedule: _Scheduler, layout: Layout, names: tuple[str, ...], wanted: Mapping[Request, int]) -> None:
    """Append the steps of one job: everything that is wanted of one vector or one pair of vectors."""
    x, y = schedule.obtain(names[0]), schedule.obtain(names[-1])
    by_kind = {kind: tuple(total for request, total in wanted.items() if request.kind == kind) for kind in ("sum", "pairing", "fourth")}
    for request, total in wanted.items():
        if request.kind == "gram":
            axis = next(index for index, group in enumerate(layout.members) if request.keep[0] in group)
            # The job knows its vectors in alphabetical order; a Gram matrix of (y, x) is the transpose of that of (x, y).
            schedule.steps.append(_Gram(x, y, axis, total) if request.x == names[0] else _Gram(y, x, axis, total))
    if by_kind["sum"]:
        schedule.steps.append(_Sum(x, by_kind["sum"]))
    dead = schedule.consume(names)
    if by_kind["pairing"] or by_kind["fourth"]:
        # The product may overwrite a vector that nothing needs any more: one stream less through the cache.
        slot = dead.pop(0) if dead else schedule.buffer()
        schedule.steps.append(_Product(slot, x, y, by_kind["pairing"], by_kind["fourth"]))
        schedule.free.append(slot)
    schedule.free += dead


def _vectors(request: Request) -> tuple[str, ...]:
    """The vectors of a request, as the key under which work is shared."""
    return (request.x,) if request.y is None else tuple(sorted((request.x, request.y)))


def _ordered(request: Request) -> Request:
    """The request with x and y in order, where they may be exchanged."""
    return request if request.kind in ("sum", "gram") else replace(request, x=_vectors(request)[0], y=_vectors(request)[-1])


# ---------------------------------------------------------------- stages 2 and 3: the steps over the chunks, the axes of the results


class _Workspace(threading.local):
    """Buffers kept between calls, one set per thread: fresh memory of this size costs more (page faults) than the arithmetic."""

    def __init__(self) -> None:
        self.flat: list[Tensor] = []

    def take(self, count: int, shape: Sequence[int], device: torch.device) -> Sequence[Tensor | None]:
        """Float64 buffers of one shape with arbitrary contents; None where results had better be allocated afresh."""
        size = math.prod(shape)
        if size <= SMALL or device.type != "cpu":
            return [None] * count
        # Not inference tensors, even if the first call comes from inference mode: later calls write to them outside of it.
        with torch.inference_mode(False):
            self.flat = [old if old.numel() >= size else torch.empty(size, dtype=torch.float64, device="cpu") for old in self.flat]
            self.flat += [torch.empty(size, dtype=torch.float64, device="cpu") for _ in range(count - len(self.flat))]
        return [flat[:size].view(shape) for flat in self.flat[:count]]


_WORKSPACE: Final = _Workspace()
_UNSET: Final = torch.empty(0)


@dataclass(slots=True)
class _Chunk:
    """What the steps work on: one chunk of every operand, the buffers, and the totals so far."""

    combinations: Mapping[str, Mapping[str, float]]
    folds: tuple[Fold | None, ...]
    totals: list[Tensor]
    operands: dict[str, Tensor]
    buffers: Sequence[Tensor | None]
    values: list[Tensor]
    box: tuple[slice, ...] | None

    def accumulate(self, total: int, product: Tensor, *, fresh: bool) -> None:
        """Sum a chunk onto the axes that its fold leaves, and add it to the total; nobody else holds a `fresh` product."""
        fold = self.folds[total]
        assert fold is not None
        part = _folded(product, fold) if fold.dims else product
        if self.box is not None:
            self.totals[total][fold.remaining(self.box)].add_(part)
        else:
            self.totals[total] = part if fold.dims or fresh else part.clone()


def _folded(product: Tensor, fold: Fold) -> Tensor:
    """Sum away the axes that every chunk sums."""
    if fold.short:
        return product @ torch.ones(product.shape[-1], dtype=torch.float64, device=product.device)
    return product.sum(fold.dims)


def _run(program: _Program, tensors: Mapping[str, Tensor], combinations: Mapping[str, Mapping[str, float]]) -> list[Tensor]:
    """All totals of a program, each in the shape that was asked for."""
    layout = program.layout
    views = {name: tensors[name] for name in program.operands}
    views = views if layout.plain else {name: one.permute(layout.order).view(layout.sizes) for name, one in views.items()}
    device = views[program.operands[0]].device
    totals = [torch.zeros(size, dtype=torch.float64, device=device) if size is not None else _UNSET for size in program.zeros]
    chunk = _Chunk(combinations, program.folds, totals, views, [], [], None)
    shape: Sequence[int] | None = None
    for box in [None] if layout.whole else layout.boxes():
        if box is not None:
            chunk.box, chunk.operands = box, {name: view[box] for name, view in views.items()}
        shape, before = chunk.operands[program.operands[0]].shape, shape
        if shape != before:
            chunk.buffers = _WORKSPACE.take(program.buffers, shape, device)
            chunk.values = [_UNSET] * program.buffers
        for step in program.steps:
            step.run(chunk)
    return [_finished(total, fold) for total, fold in zip(chunk.totals, program.folds, strict=True)]


def _finished(total: Tensor, fold: Fold | None) -> Tensor:
    """Sum the axes left over, and give the kept ones their own sizes and the order asked for."""
    if fold is None:
        return total
    total = total.sum(fold.late) if fold.late else total
    total = total if total.ndim == len(fold.shape) else total.reshape(fold.shape)
    return total if fold.permutation is None else total.permute(fold.permutation).contiguous()
