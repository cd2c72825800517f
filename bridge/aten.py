"""How the operations of `torch.export` are named in an architecture graph: one entry per ATen operation.

An entry reads the operation's arguments by the names of its schema and says which standard operation it is, which arguments fill which
slots, and which attributes its gauge rule needs. An ATen operation without an entry is kept under its own name, and is opaque.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final


@dataclass(frozen=True, slots=True)
class Reading:
    """A standard operation, its slots (values are export nodes, constants or None) and its attributes."""

    operation: str
    slots: Mapping[str, Any]
    attributes: Mapping[str, Any] = field(default_factory=dict)


Arguments = Mapping[str, Any]
Reader = Callable[[Arguments], Reading | None]
READERS: Final[dict[str, Reader]] = {}


def reads(*names: str) -> Callable[[Reader], Reader]:
    """Register a reader for ATen operations, named without overload ("relu") or with it ("max.dim")."""

    def register(function: Reader) -> Reader:
        READERS.update(dict.fromkeys(names, function))
        return function

    return register


def read(name: str, overload: str, arguments: Arguments) -> Reading | None:
    """The reading of one call, or None if the table has none for it."""
    reader = READERS.get(f"{name}.{overload}") or READERS.get(name)
    return reader(arguments) if reader else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _first(a: Arguments) -> Any:
    return a.get("self", a.get("input", a.get("x")))


def _unary(operation: str) -> Reader:
    return lambda a: Reading(operation, {"input": _first(a)})


for _names, _operation in {
    ("relu",): "relu",
    ("leaky_relu",): "leaky_relu",
    ("tanh",): "tanh",
    ("gelu",): "gelu",
    ("silu",): "silu",
    ("sigmoid",): "sigmoid",
    ("softplus",): "softplus",
    ("relu6",): "relu6",
    ("abs",): "absolute",
    ("neg",): "negate",
    ("flatten", "reshape", "view", "_unsafe_view", "unsqueeze", "squeeze", "unflatten", "view_as", "reshape_as"): "reshape",
    ("contiguous", "clone", "alias", "lift_fresh_copy"): "identity",
    ("expand", "expand_as", "broadcast_to"): "expand",
}.items():
    READERS.update(dict.fromkeys(_names, _unary(_operation)))


@reads("to", "_to_copy", "type_as")
def _cast(a: Arguments) -> Reading | None:
    return Reading("identity", {"input": _first(a)})


@reads("hardtanh")
def _hardtanh(a: Arguments) -> Reading:
    return Reading("relu6", {"input": a["self"]})


@reads("prelu")
def _prelu(a: Arguments) -> Reading:
    return Reading("prelu", {"input": a["self"], "weight": a["weight"]})


@reads("pow.Tensor_Scalar")
def _power(a: Arguments) -> Reading | None:
    return Reading("power", {"input": a["self"]}, {"exponent": a["exponent"]}) if _is_number(a["exponent"]) else None


@reads("square")
def _square(a: Arguments) -> Reading:
    return Reading("power", {"input": a["self"]}, {"exponent": 2})


@reads("dropout", "feature_dropout")
def _dropout(a: Arguments) -> Reading:
    active = a["train"] and a["p"]
    return Reading("dropout", {"input": _first(a)}, {"p": a["p"]}) if active else Reading("identity", {"input": _first(a)})


@reads("alpha_dropout", "feature_alpha_dropout")
def _alpha_dropout(a: Arguments) -> Reading | None:
    return None if a["train"] and a["p"] else Reading("identity", {"input": _first(a)})  # what is dropped becomes a constant, not zero


@reads("view.dtype")
def _reinterpreted(a: Arguments) -> Reading | None:
    return None  # the same bits as another type


# --- multilinear


@reads("linear")
def _linear(a: Arguments) -> Reading:
    return Reading("linear", {"input": a["input"], "weight": a["weight"], "bias": a["bias"]})


@reads("conv1d", "conv2d", "conv3d")
def _convolution(a: Arguments) -> Reading:
    slots = {"input": a["input"], "weight": a["weight"], "bias": a["bias"]}
    return Reading("convolution", slots, {"groups": a["groups"], "stride": a["stride"], "padding": a["padding"], "dilation": a["dilation"]})


@reads("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def _transposed(a: Arguments) -> Reading:
    slots = {"input": a["input"], "weight": a["weight"], "bias": a["bias"]}
    return Reading("transposed_convolution", slots, {"groups": a["groups"], "stride": a["stride"], "padding": a["padding"]})


@reads("add")
def _add(a: Arguments) -> Reading | None:
    return Reading("add", {"input": a["self"], "other": a["other"]}) if a.get("alpha", 1) == 1 else None


@reads("sub")
def _subtract(a: Arguments) -> Reading | None:
    return Reading("subtract", {"input": a["self"], "other": a["other"]}) if a.get("alpha", 1) == 1 else None


@reads("mul")
def _multiply(a: Arguments) -> Reading | None:
    if _is_number(a["other"]):
        return Reading("scale", {"input": a["self"]}, {"factor": a["other"]}) if a["other"] else None
    return Reading("multiply", {"input": a["self"], "other": a["other"]})


@reads("div")
def _divide(a: Arguments) -> Reading | None:
    if _is_number(a["other"]) and a["other"] and not a.get("rounding_mode"):
        return Reading("scale", {"input": a["self"]}, {"factor": 1 / a["other"]})
    return None


@reads("matmul", "bmm", "mm")
def _matmul(a: Arguments) -> Reading:
    return Reading("matmul", {"input": a["self"], "other": a.get("other", a.get("mat2"))})


@reads("sum.dim_IntList", "sum.default")
def _sum(a: Arguments) -> Reading:
    return Reading("sum", {"input": a["self"]}, _dims(a))


def _dims(a: Arguments) -> dict[str, Any]:
    return {"dims": list(a["dim"])} if a.get("dim") else {}


@reads("mean.dim", "mean.default")
def _mean(a: Arguments) -> Reading:
    return Reading("mean", {"input": a["self"]}, _dims(a))


# --- windows


def _pool(operation: str, dims: int, *, average: bool) -> Reader:
    def reader(a: Arguments) -> Reading:
        padded = average and any(_sequence(a.get("padding", 0))) and a.get("count_include_pad", True)
        uniform = not padded and a.get("divisor_override") is None
        return Reading(operation, {"input": a["self"]}, {"dims": dims, "uniform": uniform})

    return reader


def _sequence(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else [value]


for _d in (1, 2, 3):
    READERS[f"max_pool{_d}d"] = READERS[f"max_pool{_d}d_with_indices"] = _pool("max_pool", _d, average=False)
    READERS[f"adaptive_max_pool{_d}d"] = _pool("adaptive_max_pool", _d, average=False)
    READERS[f"avg_pool{_d}d"] = _pool("average_pool", _d, average=True)
    READERS[f"adaptive_avg_pool{_d}d"] = _pool("adaptive_average_pool", _d, average=True)


# --- normalisation


@reads("batch_norm")
def _batch_norm(a: Arguments) -> Reading:
    slots = {"input": a["input"], "weight": a["weight"], "bias": a["bias"]}
    return Reading("batch_norm", slots, {"training": bool(a["training"]), "eps": a["eps"]})


@reads("softmax", "_softmax", "log_softmax", "_log_softmax")
def _softmax(a: Arguments) -> Reading:
    return Reading("softmax", {"input": a["self"]}, {"dim": a["dim"]})


# --- shapes


@reads("permute")
def _permute(a: Arguments) -> Reading:
    return Reading("permute", {"input": a["self"]}, {"dims": [d % len(a["dims"]) for d in a["dims"]]})


@reads("transpose.int", "t")
def _transpose(a: Arguments) -> Reading:
    rank = a["self"].meta["val"].dim()
    dims = list(range(rank))
    i, j = (a["dim0"] % rank, a["dim1"] % rank) if "dim0" in a else (0, rank - 1)
    dims[i], dims[j] = dims[j], dims[i]
    return Reading("permute", {"input": a["self"]}, {"dims": dims})


@reads("cat")
def _concatenate(a: Arguments) -> Reading:
    return Reading("concatenate", {str(i): t for i, t in enumerate(a["tensors"])}, {"dim": a["dim"]})


@reads("slice.Tensor")
def _slice(a: Arguments) -> Reading | None:
    size = a["self"].meta["val"].shape[a["dim"]]
    start, stop, _ = slice(a["start"], a["end"]).indices(size)
    if a["step"] != 1 or stop <= start:
        return None
    if stop - start == size:
        return Reading("identity", {"input": a["self"]})
    return Reading("slice", {"input": a["self"]}, {"dim": a["dim"], "start": start, "length": stop - start})


# --- losses


@reads("cross_entropy_loss")
def _cross_entropy(a: Arguments) -> Reading:
    return Reading("cross_entropy", {"input": a["self"], "target": a["target"], "weight": a["weight"]})


@reads("mse_loss")
def _mean_square(a: Arguments) -> Reading:
    return Reading("mean_square", {"input": a["self"], "target": a["target"]})
