"""What a graph computes, node by node, on tensors.

Every rule is written so that it can be differentiated any number of times, mapped over many samples, and, where the operation is a
polynomial, evaluated modulo a prime (`noetherflow.numeric.modular`). Functions with pieces (ReLU, maxima) can be given which piece holds:
see `noetherflow.bridge.pieces`. A graph does not keep everything: large tables that are not parameters, masks made from inputs and running
statistics are not in it, and an operation that needs them is refused rather than guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, TypeAlias, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from noetherflow.bridge.constant_values import tensor_of
from noetherflow.bridge.evaluation_blocks import BLOCKS, standardised
from noetherflow.bridge.pieces import PIECES
from noetherflow.bridge.windows import average_pool, convolution, transposed_convolution
from noetherflow.errors import GraphError
from noetherflow.symbolic.graph import ArchitectureGraph

Values: TypeAlias = Mapping[str, Tensor]
Rule: TypeAlias = Callable[[Values, Mapping[str, Any], tuple[int, ...]], Tensor]

LOSSES: Final = ("cross_entropy", "mean_square")


class Unevaluable(GraphError):
    """A node that cannot be computed from what the graph holds."""


def evaluate(
    graph: ArchitectureGraph, parameters: Values, inputs: Values | Iterable[Tensor], patterns: Values | None = None
) -> dict[str, Tensor]:
    """Every node's value.

    Parameters
    ----------
    graph : ArchitectureGraph
        With integer sizes.
    parameters : mapping of str to Tensor
        By name.
    inputs : mapping of str to Tensor, or the tensors themselves
        For the graph's inputs, by node or in their order. By node, others may be given as well; what they are is then not computed.
    patterns : mapping of str to Tensor, optional
        Node -> which piece of its function holds where (`noetherflow.bridge.pieces`); by its own input if absent.

    Returns
    -------
    dict of str to Tensor
        A loss at the end has no value here: it needs targets that the graph may not hold.

    Raises
    ------
    Unevaluable
        At an operation without a rule, or one that needs data which the graph does not keep.

    Examples
    --------
    >>> graph = ArchitectureGraph()
    >>> _ = graph.add_parameter("w", (1, 2)), graph.add_operation("x", "input", shape=(3, 2))
    >>> _ = graph.add_operation("y", "linear", {"input": "x"}, {"weight": "w"}, shape=(3, 1))
    >>> evaluate(graph, {"w": torch.ones(1, 2)}, [torch.eye(3, 2)])["y"].flatten()
    tensor([1., 1., 0.])
    """
    given = cast(Values, inputs) if isinstance(inputs, Mapping) else {}
    remaining: Iterator[Tensor] = iter(()) if isinstance(inputs, Mapping) else iter(inputs)
    values: dict[str, Tensor] = {}
    for node in graph.topological_order():
        operation = graph.nodes[node]["operation"]
        if node in given:
            values[node] = given[node]
        elif operation == "input":
            values[node] = next(remaining)
        elif operation not in LOSSES:
            values[node] = _value(graph, node, slots_of(graph, node, values, parameters), (patterns or {}).get(node))
    return values


def slots_of(graph: ArchitectureGraph, node: str, values: Values, parameters: Values) -> dict[str, Tensor]:
    """What a node reads, by slot."""
    inputs = {slot: values[producer] for slot, producer in graph.inputs_of(node).items()}
    return inputs | {slot: parameters[name] for slot, name in graph.nodes[node]["parameters"].items()}


def _value(graph: ArchitectureGraph, node: str, slots: dict[str, Tensor], pattern: Tensor | None) -> Tensor:
    data = graph.nodes[node]
    operation, attributes, shape = data["operation"], data["attributes"], data["shape"]
    piece = PIECES.get(operation)
    if piece is None and operation not in RULES:
        raise Unevaluable(f"There is no rule by which to compute '{operation}' at '{node}'.", node=node, operation=operation)
    try:
        if piece is not None:
            pattern = piece.pattern(slots, attributes, shape) if pattern is None else pattern
            value = piece.value(slots, attributes, shape, pattern)
        else:
            value = RULES[operation](slots, attributes, shape)
    except (KeyError, NotImplementedError) as err:
        raise Unevaluable(
            f"'{operation}' at '{node}' needs what the graph does not hold ({err}), so it cannot be computed from the graph alone.",
            node=node,
            operation=operation,
        ) from err
    if operation != "output" and tuple(value.shape) != shape:
        raise Unevaluable(f"'{operation}' at '{node}' gives {tuple(value.shape)}; the graph says {shape}.", node=node, operation=operation)
    return value


def _elementwise(function: Callable[[Tensor], Tensor]) -> Rule:
    return lambda v, a, shape: function(v["input"])


def _binary(function: Callable[[Tensor, Tensor], Tensor]) -> Rule:
    return lambda v, a, shape: function(v["input"], v["other"])


def _reduced(function: Callable[..., Tensor]) -> Rule:
    return lambda v, a, shape: function(v["input"], a.get("dims", list(range(v["input"].dim())))).reshape(shape)


def _linear(v: Values, a: Mapping[str, Any], shape: tuple[int, ...]) -> Tensor:
    product = v["input"] @ (v["weight"] if a.get("transposed") else v["weight"].mT)
    return product + v["bias"] if "bias" in v else product


def _constant(v: Values, a: Mapping[str, Any], shape: tuple[int, ...]) -> Tensor:
    return tensor_of(a, shape)


def _masked(v: Values, a: Mapping[str, Any], shape: tuple[int, ...]) -> Tensor:
    """With zeros it is a product, so that it is exact modulo a prime as well."""
    hidden = tensor_of(a["mask"], shape)
    return v["input"].where(~hidden, a["value"]) if a["value"] else v["input"] * (~hidden).double()


def _embedding(v: Values, a: Mapping[str, Any], shape: tuple[int, ...]) -> Tensor:
    """Rows by a product with ones and zeros; a padding row, which training never moves, counts as zero."""
    picked = F.one_hot(v["input"].long(), v["weight"].shape[0]).to(v["weight"].dtype)
    if a.get("padding_idx") is not None:
        picked = picked * (torch.arange(picked.shape[-1]) != a["padding_idx"]).to(picked.dtype)
    return picked @ v["weight"]


def _power(v: Values, a: Mapping[str, Any], shape: tuple[int, ...]) -> Tensor:
    exponent = a["exponent"]
    return v["input"] ** (int(exponent) if float(exponent).is_integer() else exponent)


def _slice(v: Values, a: Mapping[str, Any], shape: tuple[int, ...]) -> Tensor:
    return v["input"].narrow(a["dim"], a["start"], a["length"])


def _rearranged(v: Values, a: Mapping[str, Any], shape: tuple[int, ...]) -> Tensor:
    """Those rearrangements whose attributes say which they are."""
    x, dim = v["input"], a["dims"][0]
    if "step" in a:
        return x.movedim(dim, 0)[a["start"] :: a["step"]].movedim(0, dim)
    if "repeats" in a:
        return x.repeat_interleave(a["repeats"], dim)
    if not a["tiled"]:
        raise KeyError("which rearrangement")
    return x.repeat([size // before for size, before in zip(shape, x.shape, strict=True)])


def _elu(v: Values, a: Mapping[str, Any], shape: tuple[int, ...]) -> Tensor:
    alpha, outer, inner = (float(a.get(name, 1.0)) for name in ("alpha", "scale", "input_scale"))
    return outer * (F.relu(v["input"]) + alpha * torch.expm1(inner * v["input"].clamp(max=0.0)))


RULES: Final[dict[str, Rule]] = {
    "output": lambda v, a, shape: v["0"],
    "constant": _constant,
    "parameter": lambda v, a, shape: v["weight"],
    "linear": _linear,
    "convolution": convolution,
    "transposed_convolution": transposed_convolution,
    "add": _binary(torch.add),
    "subtract": _binary(torch.sub),
    "multiply": _binary(torch.mul),
    "divide": _binary(torch.div),
    "matmul": _binary(torch.matmul),
    "einsum": lambda v, a, shape: torch.einsum(a["equation"], *(v[str(i)] for i in range(len(v)))),
    "negate": _elementwise(torch.neg),
    "scale": lambda v, a, shape: v["input"] * a["factor"],
    "sum": _reduced(torch.sum),
    "mean": _reduced(torch.mean),
    "embedding": _embedding,
    "index_select": lambda v, a, shape: v["input"].index_select(a["dim"], v["index"].long().reshape(-1)).reshape(shape),
    "gather": lambda v, a, shape: v["input"].gather(a["dim"], v["index"].long()),
    "masked": _masked,
    "power": _power,
    "average_pool": average_pool,
    "adaptive_average_pool": average_pool,
    "tanh": _elementwise(torch.tanh),
    "gelu": lambda v, a, shape: F.gelu(v["input"], approximate=a["approximate"]),
    "silu": _elementwise(F.silu),
    "sigmoid": _elementwise(torch.sigmoid),
    "softplus": lambda v, a, shape: F.softplus(v["input"], a.get("beta", 1.0), a.get("threshold", 20.0)),
    "exponential": _elementwise(torch.exp),
    "logarithm": _elementwise(torch.log),
    "sine": _elementwise(torch.sin),
    "cosine": _elementwise(torch.cos),
    "error_function": _elementwise(torch.erf),
    "elu": _elu,
    "mish": _elementwise(lambda x: x * torch.tanh(F.softplus(x))),
    "rearrange": _rearranged,
    "softmax": lambda v, a, shape: v["input"].softmax(a["dim"]),
    "log_softmax": lambda v, a, shape: v["input"].log_softmax(a["dim"]),
    "identity": _elementwise(lambda x: x),
    "reshape": lambda v, a, shape: v["input"].reshape(shape),
    "permute": lambda v, a, shape: v["input"].permute(a["dims"]),
    "expand": lambda v, a, shape: v["input"].expand(shape),
    "slice": _slice,
    "concatenate": lambda v, a, shape: torch.cat([v[str(i)] for i in range(len(v))], a["dim"]),
    **BLOCKS,
    "batch_norm": lambda v, a, shape: standardised(v, a, [0, *range(2, len(shape))]) if a["training"] else _running(),
}


def _running() -> Tensor:
    raise KeyError("running statistics")
