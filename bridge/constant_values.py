"""Tensors that a module computes with and that no input and no parameter changes: masks, positions, angles, buffers.

The part of an exported program that depends on neither is run once, as it stands, when the module is traced; what is small enough is kept
in the graph, and of a large mask whether it hides nothing or what comes later. What is drawn at random, read from memory that nobody
filled, or changed by the program itself (running statistics) is not known, nor is anything on the meta device.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from noetherflow.symbolic.graph import ArchitectureGraph

KEPT: Final = 4096
"""Entries that a graph keeps of one constant, axes along which it does not change counted once: a mask of 64 positions."""
COMPUTED: Final = 2**22
"""Larger tensors are not computed at all."""
HIDDEN: Final = -1e4
"""Numbers added to scores that are below this hide them: their exponential is zero."""
LOWEST: Final = torch.finfo(torch.float64).min
"""What minus infinity is written as, which JSON does not have: its exponential is zero too."""
UNFILLED: Final = ("empty", "new_empty")
STATISTICS: Final = ("batch_norm", "instance_norm")
FILLED: Final = frozenset({"new_zeros", "new_ones", "new_full", "zeros_like", "ones_like", "full_like"})
"""What these make has nothing of the tensor that they are given but its type and shape."""


class ConstantValues:
    """Runs the constant part of an exported program, node by node in its order.

    Parameters
    ----------
    nodes : sequence of torch.fx.Node
        Of the whole program.
    """

    def __init__(self, nodes: Sequence[Any]) -> None:
        self._values: dict[Any, Any] = {}
        self._given: set[int] = set()  # memory of the module's own tensors, which is never written to
        self._changing = {_root(node.args[0]) for node in nodes if _mutates(node) and node.args}
        self._changing |= {n for node in nodes if any(s in str(node.target) for s in STATISTICS) for n in node.all_input_nodes}

    def give(self, node: Any, tensor: Any) -> None:
        """A tensor of the module's own, as it is now."""
        known = isinstance(tensor, Tensor) and not isinstance(tensor, FakeTensor) and tensor.device.type != "meta"
        if known and node not in self._changing and tensor.numel() <= COMPUTED:
            self._values[node] = tensor.detach().cpu()
            self._given.add(_memory(self._values[node]))

    def same(self, node: Any, other: Any) -> None:
        """A node has another's value: a place in a nested block, or what comes out of one."""
        if other in self._values:
            self._values[node] = self._values[other]

    def results(self, node: Any, others: Sequence[Any]) -> None:
        """A nested block has the values of these nodes within it."""
        self._values[node] = {i: self._values[other] for i, other in enumerate(others) if other in self._values}

    def run(self, node: Any) -> None:
        """One call, if all that it reads is known."""
        if node.op != "call_function" or not (isinstance(node.target, torch._ops.OpOverload) or node.target is operator.getitem):
            return
        sources, writes = node.all_input_nodes, _mutates(node)
        if (
            all(n in self._values or _is_filled(node) for n in sources)
            and self._is_wanted(node)
            and not (writes and self._is_given(node.args[0]))
        ):
            try:
                self._values[node] = self._called(node)
                return
            except (RuntimeError, TypeError, ValueError, LookupError):
                pass  # it needs what is not there (another device, a kernel for this type)
        if writes:
            self._forget([self._values[n] for n in sources if n in self._values])

    def value(self, node: Any) -> Tensor | None:
        """What a node has now, if it is known: a copy, for it may be written into later."""
        found = self._values.get(node)
        return found.clone() if isinstance(found, Tensor) and found.numel() <= COMPUTED else None

    def is_zero(self, node: Any) -> bool:
        """Whether a node is known to be zero."""
        found = self._values.get(node)
        return isinstance(found, Tensor) and not bool(found.any())

    def _is_wanted(self, node: Any) -> bool:
        if node.target is operator.getitem:
            return True
        results = node.meta.get("val")
        tensors = list(results) if isinstance(results, list | tuple) else [results]
        drawn = torch.Tag.nondeterministic_seeded in node.target.tags
        unfilled = _called_name(node).startswith(UNFILLED)
        return not drawn and not unfilled and all(isinstance(t, Tensor) and t.numel() <= COMPUTED for t in tensors)

    def _called(self, node: Any) -> Any:
        value = _stand_in if _is_filled(node) else self._values.__getitem__
        read: Any = torch.fx.map_arg((node.args, node.kwargs), value)
        args, options = read
        options = {name: torch.device("cpu") if name == "device" and v is not None else v for name, v in options.items()}
        args = tuple(torch.device("cpu") if isinstance(a, torch.device) else a for a in args)
        with torch.no_grad():
            return node.target(*args, **options)

    def _is_given(self, target: Any) -> bool:
        return _memory(self._values.get(target)) in self._given

    def _forget(self, tensors: Sequence[Any]) -> None:
        """Their memory was written to, in a way that is not known."""
        lost = set(map(_memory, tensors))
        self._values = {node: v for node, v in self._values.items() if not any(_memory(t) in lost for t in _parts(v))}


def _called_name(node: Any) -> str:
    name: str = node.target._schema.name.split("::")[-1]
    return name


def _is_filled(node: Any) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and _called_name(node) in FILLED


def _stand_in(node: Any) -> Tensor:
    """A tensor of a node's type and shape, without memory."""
    like = node.meta["val"]
    return torch.zeros((), dtype=like.dtype).expand(like.shape)


def _parts(value: Any) -> Sequence[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list | tuple) else [value]


def _memory(value: Any) -> int:
    return value.untyped_storage().data_ptr() if isinstance(value, Tensor) else -1 - id(value)


def _mutates(node: Any) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and bool(schema.is_mutable)


def _root(node: Any) -> Any:
    """The first tensor that a chain of calls began with."""
    while isinstance(node, torch.fx.Node) and node.op == "call_function" and node.args and isinstance(node.args[0], torch.fx.Node):
        node = node.args[0]
    return node


# --- in the graph


def keep(graph: ArchitectureGraph, values: Mapping[str, Tensor]) -> None:
    """Write what is known of its constants into a graph."""
    for node, data in graph.nodes(data=True):
        if data["operation"] == "constant" and "value" not in data["attributes"] and node in values:
            data["attributes"].update(described(values[node]))


def described(tensor: Tensor) -> dict[str, Any]:
    """A constant as JSON values.

    Returns
    -------
    dict
        ``entries``, nested lists in which an axis without changes has size one; of a large mask its ``kind``, 'open' (it hides nothing) or
        'causal' (it hides what comes later), and whether it is ``boolean``; empty if it is neither small nor such a mask.

    Examples
    --------
    >>> described(torch.ones(2, 1, 2, 2).tril().bool())
    {'entries': [[[[True, False], [True, True]]]]}
    >>> described(torch.ones(1, 1, 900, 900).bool())
    {'entries': [[[[True]]]]}
    >>> described(torch.ones(900, 900).tril().bool())
    {'kind': 'causal', 'boolean': True}
    """
    if tensor.is_complex() or not tensor.numel() or bool(tensor.isnan().any()):
        return {}
    small = _without_copies(tensor)
    if small.numel() > KEPT:
        kind = mask_kind(tensor)
        return {"kind": kind, "boolean": tensor.dtype == torch.bool} if kind else {}
    return {"entries": (small if small.dtype == torch.bool else small.double().clamp(min=LOWEST, max=-LOWEST)).tolist()}


def tensor_of(attributes: Mapping[str, Any], shape: Sequence[int]) -> Tensor:
    """What `described` wrote, or a number or table under ``value``: boolean as it was, else float64. Of a smaller shape, the leading block.

    Raises
    ------
    KeyError
        If none of these is there.

    Examples
    --------
    >>> tensor_of({"kind": "causal", "boolean": False}, (2, 3))[1] == 0
    tensor([ True,  True, False])
    """
    if "kind" in attributes:
        shown = _mask(attributes["kind"], shape)
        return shown if attributes["boolean"] else torch.zeros(shown.shape, dtype=torch.float64).masked_fill(~shown, LOWEST)
    entries = attributes["value"] if "value" in attributes else attributes["entries"]
    leaf = entries
    while isinstance(leaf, list):
        leaf = leaf[0]
    held = torch.tensor(entries, dtype=torch.bool if isinstance(leaf, bool) else torch.float64)
    sizes = [int(size) for size in shape]
    return held[tuple(slice(size) for size in sizes[len(sizes) - held.dim() :])].expand(sizes)


def is_whole(attributes: Mapping[str, Any], shape: Sequence[int]) -> bool:
    """Whether a constant has this shape, so that `tensor_of` cuts nothing away."""
    entries, sizes = attributes.get("value", attributes.get("entries")), []
    while isinstance(entries, list):
        sizes.append(len(entries))
        entries = entries[0]
    return all(held in (1, size) for held, size in zip(reversed(sizes), reversed(shape), strict=False))


def mask_kind(mask: Tensor) -> str:
    """'open', 'causal', or '' for another one or a table that is no mask; in a boolean one True lets through, as attention has it.

    Examples
    --------
    >>> mask_kind(torch.zeros(3, 3)), mask_kind(torch.full((3, 3), -torch.inf).triu(1)), mask_kind(torch.eye(3).bool())
    ('open', 'causal', '')
    """
    if mask.dim() < 2 or not (mask.dtype == torch.bool or bool(((mask == 0) | (mask <= HIDDEN)).all())):
        return ""
    shown = mask if mask.dtype == torch.bool else mask == 0
    return next((kind for kind in ("open", "causal") if torch.equal(shown, _mask(kind, mask.shape))), "")


def _mask(kind: str, shape: Sequence[int]) -> Tensor:
    shown = torch.ones([int(size) for size in shape[-2:]], dtype=torch.bool)
    return (shown.tril() if kind == "causal" else shown).expand([int(size) for size in shape])


def _without_copies(tensor: Tensor) -> Tensor:
    """Axes along which nothing changes, cut down to one."""
    for axis in range(tensor.dim()):
        first = tensor.narrow(axis, 0, 1)
        if torch.equal(first.expand_as(tensor), tensor):
            tensor = first
    return tensor
