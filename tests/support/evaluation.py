"""What a traced graph computes, node by node: a slow reference that shows whether the operations were read as what they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from noetherflow.symbolic.graph import ArchitectureGraph

Values = Mapping[str, Tensor]
Rule = Callable[[Values, Mapping[str, Any], tuple[int, ...]], Tensor]


def parameter(*shape: int) -> nn.Parameter:
    """A random parameter in double precision."""
    return nn.Parameter(torch.randn(shape, dtype=torch.float64))


def steps(graph: ArchitectureGraph) -> list[str]:
    """The operations of a graph in the order of computation, without its ends and what is given."""
    found = [graph.nodes[n]["operation"] for n in graph.topological_order()]
    return [operation for operation in found if operation not in ("input", "output", "constant")]


def evaluate(graph: ArchitectureGraph, model: nn.Module, *inputs: Tensor) -> dict[str, Tensor]:
    """Every node's value; the parameters are the model's, the inputs fill the graph's inputs in order."""
    parameters = dict(model.named_parameters())
    remaining = iter(inputs)
    values: dict[str, Tensor] = {}
    for node in graph.topological_order():
        data = graph.nodes[node]
        if data["operation"] == "input":
            values[node] = next(remaining)
            continue
        slots = {slot: values[producer] for slot, producer in graph.inputs_of(node).items()}
        slots |= {slot: parameters[name] for slot, name in data["parameters"].items()}
        values[node] = RULES[data["operation"]](slots, data["attributes"], data["shape"])
        assert data["operation"] == "output" or tuple(values[node].shape) == data["shape"], node
    return values


def _elementwise(function: Callable[[Tensor], Tensor]) -> Rule:
    return lambda v, a, shape: function(v["input"])


def _binary(function: Callable[[Tensor, Tensor], Tensor]) -> Rule:
    return lambda v, a, shape: function(v["input"], v["other"])


def _reduced(function: Callable[..., Tensor]) -> Rule:
    return lambda v, a, shape: function(v["input"], a.get("dims", list(range(v["input"].dim())))).reshape(shape)


def _linear(v: Values, a: Mapping[str, Any], shape: tuple[int, ...]) -> Tensor:
    return F.linear(v["input"], v["weight"].t() if a.get("transposed") else v["weight"], v.get("bias"))


def _convolution(v: Values, a: Mapping[str, Any], shape: tuple[int, ...]) -> Tensor:
    function = (F.conv1d, F.conv2d, F.conv3d)[v["weight"].dim() - 3]
    return function(v["input"], v["weight"], v.get("bias"), a["stride"], a["padding"], a["dilation"], a["groups"])


def _transposed_convolution(v: Values, a: Mapping[str, Any], shape: tuple[int, ...]) -> Tensor:
    function: Any = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[v["weight"].dim() - 3]
    more = (a["stride"], a["padding"], a["output_padding"], a["groups"], a["dilation"])
    return function(v["input"], v["weight"], v.get("bias"), *more)


def _slice(v: Values, a: Mapping[str, Any], shape: tuple[int, ...]) -> Tensor:
    return v["input"].narrow(a["dim"], a["start"], a["length"])


def _rearranged(v: Values, a: Mapping[str, Any], shape: tuple[int, ...]) -> Tensor:
    """Those rearrangements whose attributes say which they are."""
    x, dim = v["input"], a["dims"][0]
    if "step" in a:
        return x.movedim(dim, 0)[a["start"] :: a["step"]].movedim(0, dim)
    if "repeats" in a:
        return x.repeat_interleave(a["repeats"], dim)
    assert a["tiled"]
    return x.repeat([size // before for size, before in zip(shape, x.shape, strict=True)])


def _attention(v: Values, a: Mapping[str, Any], shape: tuple[int, ...]) -> Tensor:
    options = {"is_causal": a["causal"], "scale": a["scale"], "enable_gqa": a["grouped"]}
    return F.scaled_dot_product_attention(v["query"], v["key"], v["value"], v.get("mask"), a["dropout"], **options)


def _rotary(v: Values, a: Mapping[str, Any], shape: tuple[int, ...]) -> Tensor:
    """(a, b) becomes (a cos - b sin, b cos + a sin); a table of full width repeats over the pair."""
    axis = -2 if a["pairing"] == "halves" else -1
    split = (2, shape[-1] // 2) if a["pairing"] == "halves" else (shape[-1] // 2, 2)
    first, second = v["input"].unflatten(-1, split).unbind(axis)
    tables = [t if t.shape[-1] == shape[-1] // 2 else t.unflatten(-1, split).select(axis, 0) for t in (v["cosine"], v["sine"])]
    cosine, sine = tables
    return torch.stack([first * cosine - second * sine, second * cosine + first * sine], axis).flatten(-2)


def _trailing(v: Values, a: Mapping[str, Any]) -> list[int]:
    return list(v["input"].shape[v["input"].dim() - a["dims"] :])


def _weight_norm(v: Values, a: Mapping[str, Any], shape: tuple[int, ...]) -> Tensor:
    others = [d for d in range(v["direction"].dim()) if d != a["dim"]]
    return v["magnitude"] * v["direction"] / torch.linalg.vector_norm(v["direction"], dim=others, keepdim=True)


def _recurrent(kind: Callable[..., Any]) -> Rule:
    def rule(v: Values, a: Mapping[str, Any], shape: tuple[int, ...]) -> Tensor:
        time = 1 if a["batch_first"] else 0
        x = v["input"].flip(time) if a["reverse"] else v["input"]
        state = torch.zeros(1, x.shape[1 - time], shape[-1], dtype=x.dtype)
        weights = [v[name] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh") if name in v]
        state_or_states = (state, state) if kind is torch.lstm else state
        y = kind(x, state_or_states, weights, len(weights) == 4, 1, 0.0, False, False, a["batch_first"])[0]
        return y.flip(time) if a["reverse"] else y

    return rule


RULES: Final[dict[str, Rule]] = {
    "output": lambda v, a, shape: v["0"],
    "constant": lambda v, a, shape: torch.tensor(a["value"], dtype=torch.float64),
    "parameter": lambda v, a, shape: v["weight"],
    "linear": _linear,
    "convolution": _convolution,
    "transposed_convolution": _transposed_convolution,
    "add": _binary(torch.add),
    "subtract": _binary(torch.sub),
    "multiply": _binary(torch.mul),
    "divide": _binary(torch.div),
    "matmul": _binary(torch.matmul),
    "maximum": _binary(torch.maximum),
    "minimum": _binary(torch.minimum),
    "einsum": lambda v, a, shape: torch.einsum(a["equation"], *(v[str(i)] for i in range(len(v)))),
    "negate": _elementwise(torch.neg),
    "scale": lambda v, a, shape: v["input"] * a["factor"],
    "sum": _reduced(torch.sum),
    "mean": _reduced(torch.mean),
    "embedding": lambda v, a, shape: F.embedding(v["input"], v["weight"]),
    "index_select": lambda v, a, shape: v["input"].index_select(a["dim"], v["index"].reshape(-1)).reshape(shape),
    "gather": lambda v, a, shape: v["input"].gather(a["dim"], v["index"]),
    "relu": _elementwise(F.relu),
    "leaky_relu": _elementwise(F.leaky_relu),
    "absolute": _elementwise(torch.abs),
    "power": lambda v, a, shape: v["input"] ** a["exponent"],
    "relu6": _elementwise(F.relu6),
    "tanh": _elementwise(torch.tanh),
    "gelu": lambda v, a, shape: F.gelu(v["input"], approximate=a["approximate"]),
    "silu": _elementwise(F.silu),
    "sigmoid": _elementwise(torch.sigmoid),
    "softplus": _elementwise(F.softplus),
    "exponential": _elementwise(torch.exp),
    "logarithm": _elementwise(torch.log),
    "sine": _elementwise(torch.sin),
    "cosine": _elementwise(torch.cos),
    "error_function": _elementwise(torch.erf),
    "hard_sigmoid": _elementwise(F.hardsigmoid),
    "hard_swish": _elementwise(F.hardswish),
    "elu": _elementwise(F.elu),
    "mish": _elementwise(F.mish),
    "clamp": lambda v, a, shape: v["input"].clamp(a["min"], a["max"]),
    "rearrange": _rearranged,
    "layer_norm": lambda v, a, shape: F.layer_norm(v["input"], _trailing(v, a), v.get("weight"), v.get("bias"), a["eps"]),
    "rms_norm": lambda v, a, shape: F.rms_norm(v["input"], _trailing(v, a), v.get("weight"), a["eps"]),
    "group_norm": lambda v, a, shape: F.group_norm(v["input"], a["groups"], v.get("weight"), v.get("bias"), a["eps"]),
    "instance_norm": lambda v, a, shape: F.instance_norm(v["input"], None, None, v.get("weight"), v.get("bias"), eps=a["eps"]),
    "batch_norm": lambda v, a, shape: F.batch_norm(v["input"], None, None, v.get("weight"), v.get("bias"), a["training"], 0.1, a["eps"]),
    "unit_norm": lambda v, a, shape: F.normalize(v["input"], dim=a["dim"], eps=a["eps"]),
    "weight_norm": _weight_norm,
    "softmax": lambda v, a, shape: v["input"].softmax(a["dim"]),
    "log_softmax": lambda v, a, shape: v["input"].log_softmax(a["dim"]),
    "attention": _attention,
    "rotary": _rotary,
    "lstm_layer": _recurrent(torch.lstm),
    "gru_layer": _recurrent(torch.gru),
    "identity": _elementwise(lambda x: x),
    "reshape": lambda v, a, shape: v["input"].reshape(shape),
    "permute": lambda v, a, shape: v["input"].permute(a["dims"]),
    "expand": lambda v, a, shape: v["input"].expand(shape),
    "slice": _slice,
    "concatenate": lambda v, a, shape: torch.cat([v[str(i)] for i in range(len(v))], a["dim"]),
}
