"""How the ATen operations that torch keeps whole are named: windows, normalisation, embedding, attention, recurrent layers, losses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch

from noetherflow.bridge.reading import Arguments, Reader, Readers, Reading, part, reshaped, sequence, shape_of

READERS: Final = Readers()
ZEROS: Final = (torch.ops.aten.zeros.default, torch.ops.aten.zeros_like.default, torch.ops.aten.new_zeros.default)
RECURRENT: Final = (torch.ops.aten.lstm.input, torch.ops.aten.gru.input)


# --- windows


@READERS.reads("conv1d", "conv2d", "conv3d")
def _convolution(a: Arguments) -> Reading:
    slots = {"input": a["input"], "weight": a["weight"], "bias": a["bias"]}
    settings = {name: a[name] for name in ("groups", "stride", "padding", "dilation")}
    return Reading("convolution", slots, {**settings, "padded": _padded(a)})


@READERS.reads("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def _transposed(a: Arguments) -> Reading:
    slots = {"input": a["input"], "weight": a["weight"], "bias": a["bias"]}
    settings = {name: a[name] for name in ("groups", "stride", "padding", "output_padding", "dilation")}
    return Reading("transposed_convolution", slots, {**settings, "padded": _padded(a)})


def _padded(a: Arguments) -> bool:
    """Whether zeros are put around the input."""
    if isinstance(a["padding"], str):
        return a["padding"] == "same" and any(size > 1 for size in shape_of(a["weight"])[2:])
    return any(a["padding"])


def _pool(operation: str, dims: int, *, average: bool) -> Reader:
    def reader(a: Arguments) -> Reading:
        padded = average and any(sequence(a.get("padding", 0))) and a.get("count_include_pad", True)
        uniform = not padded and a.get("divisor_override") is None
        return Reading(operation, {"input": a["self"]}, {"dims": dims, "uniform": uniform, **_windows(a, dims)})

    return reader


def _windows(a: Arguments, dims: int) -> dict[str, Any]:
    """Sizes of a pool's windows along its last axes, which an evaluation of the graph needs; none for an adaptive one."""
    if "kernel_size" not in a.values:
        return {}

    def every(value: Any) -> list[int]:
        numbers = list(sequence(value))
        return numbers if len(numbers) == dims else numbers * dims

    kernel = every(a["kernel_size"])
    given = {"stride": every(a["stride"]) if a.get("stride") else kernel, "padding": every(a["padding"])}
    divisor = {"divisor": a["divisor_override"]} if a.get("divisor_override") else {}
    return {"kernel": kernel, **given, "dilation": every(a.get("dilation", 1)), **divisor}


for _d in (1, 2, 3):
    READERS[f"max_pool{_d}d"] = READERS[f"max_pool{_d}d_with_indices"] = _pool("max_pool", _d, average=False)
    READERS[f"adaptive_max_pool{_d}d"] = _pool("adaptive_max_pool", _d, average=False)
    READERS[f"avg_pool{_d}d"] = _pool("average_pool", _d, average=True)
    READERS[f"adaptive_avg_pool{_d}d"] = _pool("adaptive_average_pool", _d, average=True)


# --- normalisation


@READERS.reads("batch_norm")
def _batch_norm(a: Arguments) -> Reading:
    return Reading("batch_norm", _normed(a), {"training": bool(a["training"]), "eps": a["eps"]})


@READERS.reads("layer_norm")
def _layer_norm(a: Arguments) -> Reading:
    return Reading("layer_norm", _normed(a), {"dims": len(a["normalized_shape"]), "eps": a["eps"]})


@READERS.reads("rms_norm")
def _rms_norm(a: Arguments) -> Reading:
    eps = torch.finfo(a.result.dtype).eps if a["eps"] is None else a["eps"]
    return Reading("rms_norm", {"input": a["input"], "weight": a["weight"]}, {"dims": len(a["normalized_shape"]), "eps": eps})


@READERS.reads("group_norm")
def _group_norm(a: Arguments) -> Reading:
    return Reading("group_norm", _normed(a), {"groups": a["num_groups"], "eps": a["eps"]})


@READERS.reads("instance_norm")
def _instance_norm(a: Arguments) -> Reading | None:
    return Reading("instance_norm", _normed(a), {"eps": a["eps"]}) if a["use_input_stats"] else None


def _normed(a: Arguments) -> dict[str, Any]:
    return {"input": a["input"], "weight": a["weight"], "bias": a["bias"]}


@READERS.reads("_weight_norm")
def _weight_norm(a: Arguments) -> Reading | None:
    if a["dim"] == -1:
        return None  # torch's name for the norm of the whole tensor
    return Reading("weight_norm", {"direction": a["v"], "magnitude": a["g"]}, {"dim": a["dim"] % len(a.shape)})


@READERS.reads("softmax", "_softmax")
def _softmax(a: Arguments) -> Reading:
    return Reading("softmax", {"input": a["self"]}, {"dim": a["dim"]})


@READERS.reads("log_softmax", "_log_softmax")
def _log_softmax(a: Arguments) -> Reading:
    return Reading("log_softmax", {"input": a["self"]}, {"dim": a["dim"]})


# --- tables and attention


@READERS.reads("embedding")
def _embedding(a: Arguments) -> Reading | None:
    if a["scale_grad_by_freq"]:
        return None  # what torch calls the gradient is then not that of the function
    row = a["padding_idx"]
    return Reading("embedding", {"weight": a["weight"], "input": a["indices"]}, {"padding_idx": None if row < 0 else row})


@READERS.reads("scaled_dot_product_attention")
def _attention(a: Arguments) -> Reading:
    slots = {"query": a["query"], "key": a["key"], "value": a["value"], "mask": a["attn_mask"]}
    settings = {"causal": a["is_causal"], "dropout": a["dropout_p"], "scale": a["scale"], "grouped": a["enable_gqa"]}
    return Reading("attention", slots, settings)


# --- recurrent layers: one node for each layer and direction, side by side where both directions run


@READERS.reads("lstm.input", "gru.input")
def _recurrent(a: Arguments) -> Reading | None:
    state = tuple(sequence(a["hx"]))
    each = 4 if a["has_biases"] else 2
    directions = 2 if a["bidirectional"] else 1
    if len(a["params"]) != each * directions * a["num_layers"] or a.index not in (0, 1):
        return None  # projections have more parameters; the state of the cells has no name
    hidden, finals = a["input"], []
    for layer in range(a["num_layers"]):
        if layer and a["train"] and a["dropout"]:
            hidden = Reading("dropout", {"input": hidden}, {"p": a["dropout"]}, shape_of(hidden))
        runs = [_run(a, hidden, (layer * directions + d) * each, each, reverse=bool(d)) for d in range(directions)]
        finals += [_final(a, run) for run in runs]
        hidden = _beside(runs, -1)
    answer = hidden if a.index == 0 else _beside(finals, -len(shape_of(finals[0])))
    return Reading(answer.operation, answer.slots, answer.attributes, data=state)


def _run(a: Arguments, source: Any, first: int, each: int, *, reverse: bool) -> Reading:
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")[:each]
    weights = dict(zip(names, a["params"][first : first + each], strict=True))
    width = shape_of(weights["weight_hh"])[1]
    settings = {"reverse": reverse, "batch_first": a["batch_first"], "from_zero": all(map(_is_zero, sequence(a["hx"])))}
    return Reading(f"{a.name}_layer", {"input": source, **weights}, settings, (*shape_of(source)[:-1], width))


def _is_zero(state: Any) -> bool:
    """Whether an export node is made of zeros, as torch's own start is, and nobody else has it who may write into it."""
    made = getattr(state, "op", "") == "call_function" and state.target in ZEROS
    return made and all(user.target in RECURRENT for user in state.users)


def _final(a: Arguments, run: Reading) -> Any:
    """The state a run ends in, as torch returns it: time, the batch's neighbour, first and of size one."""
    shape = shape_of(run)
    time = 1 if a["batch_first"] and len(shape) == 3 else 0
    last = part(run, time, 0 if run.attributes["reverse"] else shape[time] - 1, 1)
    return reshaped(last, (1, *(size for i, size in enumerate(shape) if i != time)))


def _beside(pieces: Sequence[Any], dim: int) -> Any:
    if len(pieces) == 1:
        return pieces[0]
    shape = list(shape_of(pieces[0]))
    dim %= len(shape)
    shape[dim] = sum(shape_of(piece)[dim] for piece in pieces)
    return Reading("concatenate", {str(i): piece for i, piece in enumerate(pieces)}, {"dim": dim}, tuple(shape))


# --- losses


@READERS.reads("cross_entropy_loss")
def _cross_entropy(a: Arguments) -> Reading:
    return Reading("cross_entropy", {"input": a["self"], "target": a["target"], "weight": a["weight"]})


@READERS.reads("mse_loss")
def _mean_square(a: Arguments) -> Reading:
    return Reading("mean_square", {"input": a["self"], "target": a["target"]})
