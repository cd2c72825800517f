"""Which tensors of an exported program share memory, so that an in-place operation on one is seen through the others.

`torch.export` keeps in-place operations as they were written. It follows the tensor that was written to, but not its views: after
``view = h[:, 0]; view.tanh_()`` the program goes on to read ``h`` by its old name.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef


def memory_of(tensor: Any) -> int | None:
    """A number that tensors have in common if they share storage (fake and meta tensors too); None if there is none to share."""
    try:
        return int(StorageWeakRef(tensor.untyped_storage()).cdata)  # type: ignore[no-untyped-call]
    except (AttributeError, NotImplementedError, RuntimeError):  # not a tensor, or one without plain storage
        return None


def mutates(target: Any) -> bool:
    """Whether an operation, or any operation of a nested graph, writes into its arguments."""
    if isinstance(target, torch.fx.GraphModule):
        nodes = target.graph.nodes
        nested = (getattr(target, node.target, None) for node in nodes if node.op == "get_attr")
        return any(mutates(node.target) for node in nodes if node.op == "call_function") or any(map(mutates, nested))
    schema = getattr(target, "_schema", None)
    return schema is not None and bool(schema.is_mutable)


class Memory:
    """Export nodes by the memory that holds their values."""

    def __init__(self) -> None:
        self._same: dict[int | None, int | None] = {}  # memory that torch.export keeps apart, though it is one
        self._tensor: dict[Any, Any] = {}  # result of an in-place operation -> the node whose tensor it is

    def returns_its_argument(self, node: Any, argument: Any) -> None:
        """Note that a node's value is its argument (dropout that drops nothing)."""
        self._same[memory_of(node.meta.get("val"))] = self._of(argument)

    def overwrites(self, node: Any, target: Any) -> None:
        """Note that an in-place operation returned the tensor it wrote to."""
        self._tensor[node] = self.tensor(target)

    def tensor(self, node: Any) -> Any:
        """The first node whose value was the same tensor object."""
        return self._tensor.get(node, node)

    def sharing(self, node: Any, among: Iterable[Any]) -> list[Any]:
        """The nodes whose values share memory with a node's, itself left out."""
        where = self._of(node)
        return [other for other in among if other is not node and where is not None and self._of(other) == where]

    def _of(self, node: Any) -> int | None:
        number = memory_of(node.meta.get("val"))
        return self._same.get(number, number)
