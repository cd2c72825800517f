"""What it is to read an operation of `torch.export`: its arguments, the tables of readers, and the readings they give.

A reader looks at the arguments of one call, by the names of its schema, and says which standard operation it is, which arguments fill
which slots, and which attributes its gauge rule needs. A call that is several standard operations is read as a reading within a reading.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Reading:
    """A standard operation, its slots and its attributes.

    Parameters
    ----------
    operation : str
    slots : mapping
        Slot -> export node, number, inner reading, or None for an optional slot that is empty.
    attributes : mapping
    shape : tuple of int, optional
        Of an inner reading; the outermost one has the shape of the call.
    data : tuple
        Export nodes that shape the operation without filling a slot (indices, conditions). Where one depends on a parameter the reading
        does not hold.
    otherwise : Reading, optional
        What holds then; None if nothing does.
    mask : tuple of (export node, bool)
        What says which entries are replaced, and its value where they are.
    """

    operation: str
    slots: Mapping[str, Any]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    shape: Shape | None = None
    data: tuple[Any, ...] = ()
    otherwise: Reading | None = None
    mask: tuple[Any, bool] = (None, True)


@dataclass(frozen=True, slots=True)
class Arguments:
    """One call: its arguments by schema name, what it returns, which of several results is meant, and the arguments known to be zero."""

    name: str
    overload: str
    values: Mapping[str, Any]
    output: Any
    index: int | None = None
    zeros: frozenset[Any] = frozenset()

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    def get(self, name: str, default: Any = None) -> Any:
        """An argument, or its default."""
        return self.values.get(name, default)

    @property
    def subject(self) -> Any:
        """The tensor the operation is called on, whatever its schema calls it."""
        return next(self.values[name] for name in ("self", "input", "x") if name in self.values)

    @property
    def result(self) -> Any:
        """The tensor that is read."""
        return self.output if self.index is None else self.output[self.index]

    @property
    def shape(self) -> Shape:
        """Of the tensor that is read."""
        return tuple(self.result.shape)


Reader = Callable[[Arguments], Reading | None]


class Readers(dict[str, Reader]):
    """Readers by the name of the operation, without overload ("relu") or with it ("max.dim")."""

    def reads(self, *names: str) -> Callable[[Reader], Reader]:
        """Register a reader."""

        def register(reader: Reader) -> Reader:
            self.update(dict.fromkeys(names, reader))
            return reader

        return register

    def read(self, a: Arguments) -> Reading | None:
        """The reading of one call, or None if the table has none for it."""
        reader = self.get(f"{a.name}.{a.overload}") or self.get(a.name)
        return reader(a) if reader else None


def shape_of(value: Any) -> Shape:
    """The shape of an export node, of an inner reading or of a number."""
    if isinstance(value, Reading):
        return value.shape or ()
    return tuple(value.meta["val"].shape) if hasattr(value, "meta") else ()


def common_shape(*values: Any) -> Shape:
    """The shape that tensors have together, by broadcasting."""
    return tuple(torch.broadcast_shapes(*map(shape_of, values)))  # type: ignore[no-untyped-call]


def is_number(value: Any) -> bool:
    """Whether an argument is a plain number."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def sequence(value: Any) -> Sequence[Any]:
    """One or several numbers as several."""
    return value if isinstance(value, list | tuple) else [value]


def scaled(value: Any, factor: float) -> Any:
    """A tensor times a number; the tensor itself where that is one."""
    return value if factor == 1 else Reading("scale", {"input": value}, {"factor": factor}, shape_of(value))


def reshaped(value: Any, shape: Sequence[int]) -> Any:
    """A tensor with another shape, itself where it has it."""
    return value if shape_of(value) == tuple(shape) else Reading("reshape", {"input": value}, shape=tuple(shape))


def broadcast(value: Any, shape: Sequence[int]) -> Any:
    """A tensor expanded to a shape, itself where it has it."""
    return value if shape_of(value) == tuple(shape) else Reading("expand", {"input": value}, shape=tuple(shape))


def part(value: Any, dim: int, start: int, length: int) -> Any:
    """The part of a tensor from `start` along `dim`, the tensor itself where that is all of it."""
    shape = shape_of(value)
    dim %= len(shape)
    if length == shape[dim]:
        return value
    cut = (*shape[:dim], length, *shape[dim + 1 :])
    return Reading("slice", {"input": value}, {"dim": dim, "start": start, "length": length}, cut)
