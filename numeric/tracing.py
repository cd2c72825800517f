"""Batched functions as lists of tensor operations: traced once, without what batching leaves behind.

`torch.func` composes `vmap` and `grad` by dispatching every operation through several layers at every call. Traced by `make_fx`, what is
left is the operations themselves. For small models the cost of a call is their number, so those that do nothing are taken out: views that
keep a shape, two transpositions in a row, products by one, and what is then unused (such as the value of a loss whose gradient is asked
for). None of this changes a bit of a result.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from noetherflow.errors import RunError

__all__ = ["traced"]

ATEN: Final = torch.ops.aten
RESHAPES: Final = (ATEN.view.default, ATEN._unsafe_view.default, ATEN.expand.default, ATEN.reshape.default)


def traced(program: Callable[..., Any], *examples: Tensor) -> fx.GraphModule:
    """A function of tensors as the list of operations that it carries out on tensors of the examples' shapes.

    Parameters
    ----------
    program : callable
    *examples : Tensor
        Left as they are, also where the program changes them in place.

    Raises
    ------
    RunError
        If what the program does depends on values, or is random.

    Examples
    --------
    >>> twice = traced(lambda x: torch.func.vmap(lambda row: 2 * row)(x), torch.ones(3, 2))
    >>> twice(torch.full((3, 2), 5.0)).sum()
    tensor(60.)
    """
    kept = [example.clone() for example in examples]
    try:
        with torch.no_grad():
            graph: fx.GraphModule = make_fx(program)(*examples)
    except (RuntimeError, ValueError, TypeError) as error:
        raise RunError(
            f"This cannot be run as one batched program: {str(error).splitlines()[0]} Models and functions need plain tensor operations "
            "of one run: no control flow that depends on data, no .item(), no random operations (dropout in eval mode is none).",
        ) from error
    finally:
        for example, value in zip(examples, kept, strict=True):
            example.copy_(value)  # tracing runs the program, and with it in-place changes such as those of running means
    _simplify(graph.graph)
    graph.recompile()
    return graph


def _simplify(graph: fx.Graph) -> None:
    """Replace nodes by an input that they equal, then drop what nothing uses."""
    pure = not any(_mutates(node) for node in graph.nodes)
    ones: set[fx.Node] = set()
    for node in list(graph.nodes):
        if node.target is ATEN.ones_like.default or (node.target in RESHAPES and node.args[0] in ones):
            ones.add(node)
        # a product by one is a copy: where something is changed in place, copies must stay copies
        same = _view_of(node) or (_product_by_one(node, ones) if pure else None)
        if same is not None:
            node.replace_all_uses_with(same)
    graph.eliminate_dead_code()


def _view_of(node: fx.Node) -> fx.Node | None:
    """The input that a view shows unchanged."""
    if node.target in RESHAPES and _alike(node, node.args[0]):
        return _node(node.args[0])
    inner = _node(node.args[0]) if node.target is ATEN.transpose.int else None
    if inner is not None and inner.target is ATEN.transpose.int and set(inner.args[1:]) == set(node.args[1:]):
        return _node(inner.args[0])
    return None


def _product_by_one(node: fx.Node, ones: set[fx.Node]) -> fx.Node | None:
    if node.target is ATEN.mul.Scalar and node.args[1] == 1 and _alike(node, node.args[0]):
        return _node(node.args[0])
    if node.target is ATEN.mul.Tensor:
        for factor, other in (node.args, node.args[::-1]):
            if other in ones and _alike(node, factor):
                return _node(factor)
    return None


def _alike(node: fx.Node, other: Any) -> bool:
    """Whether two nodes have tensors of one shape and dtype."""
    a, b = (n.meta.get("val") if isinstance(n, fx.Node) else None for n in (node, other))
    return isinstance(a, Tensor) and isinstance(b, Tensor) and a.shape == b.shape and a.dtype == b.dtype


def _node(value: Any) -> fx.Node | None:
    return value if isinstance(value, fx.Node) else None


def _mutates(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and bool(schema.is_mutable)
