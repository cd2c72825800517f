"""How the ATen operations that torch keeps whole are named: windows, normalisation, embedding, attention, recurrent layers, losses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import torch

from noetherflow.bridge.reading import Arguments, Reader, Readers, Reading, part, reshaped, sequence, shape_of

READERS: Final = Readers()


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


@READERS.reads("lstm.input", "gru.input", "rnn_tanh.input", "rnn_relu.input")
def _recurrent(a: Arguments) -> Reading | None:
    """Its results are the states of the last layer, the last state of every layer, and the last memory of every layer of an LSTM."""
    state = tuple(sequence(a["hx"]))
    each = 4 if a["has_biases"] else 2
    directions = 2 if a["bidirectional"] else 1
    if len(a["params"]) != each * directions * a["num_layers"]:
        return None  # projections have more parameters
    hidden, finals = a["input"], list[Any]()
    for layer in range(a["num_layers"]):
        if layer and a["train"] and a["dropout"]:
            hidden = Reading("dropout", {"input": hidden}, {"p": a["dropout"]}, shape_of(hidden))
        runs = [_run(a, hidden, layer * directions + d, each, reverse=bool(d)) for d in range(directions)]
        finals += [_final(a, _memories(run) if a.index == 2 else run, reverse=bool(d)) for d, run in enumerate(runs)]
        hidden = _beside(runs, -1)
    answer = hidden if a.index == 0 else _beside(finals, -len(shape_of(finals[0])))
    return Reading(answer.operation, answer.slots, answer.attributes, data=state)


def _run(a: Arguments, source: Any, number: int, each: int, *, reverse: bool) -> Reading:
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")[:each]
    weights = dict(zip(names, a["params"][number * each : (number + 1) * each], strict=True))
    width = shape_of(weights["weight_hh"])[1]
    settings = {"reverse": reverse, "batch_first": a["batch_first"]}
    slots, shape = {"input": source, **weights, **_start(a, number)}, (*shape_of(source)[:-1], width)
    if a.name == "rnn_relu":
        return _unrolled(slots, 1 if a["batch_first"] else 0, shape, reverse=reverse)
    return Reading(f"{a.name.removesuffix('_tanh')}_layer", slots, settings, shape)


def _unrolled(slots: dict[str, Any], time: int, shape: tuple[int, ...], *, reverse: bool) -> Reading:
    """Step by step, h <- relu(W x + b + U h + c): units behind a ReLU can be scaled, and its pieces are told one by one."""
    above = Reading("linear", {"input": slots["input"], "weight": slots["weight_ih"], "bias": slots.get("bias_ih")}, shape=shape)
    one = tuple(1 if axis == time else size for axis, size in enumerate(shape))
    hidden = reshaped(slots["hidden"], one) if "hidden" in slots else None
    states: dict[int, Reading] = {}
    for step in sorted(range(shape[time]), reverse=reverse):
        beside = slots.get("bias_hh")
        if hidden is not None:
            beside = Reading("linear", {"input": hidden, "weight": slots["weight_hh"], "bias": beside}, shape=one)
        here = part(above, time, step, 1)
        both = here if beside is None else Reading("add", {"input": here, "other": beside}, shape=one)
        hidden = states[step] = Reading("relu", {"input": both}, shape=one)
    return Reading("concatenate", {str(i): states[i] for i in range(shape[time])}, {"dim": time}, shape)


def _start(a: Arguments, number: int) -> dict[str, Any]:
    """The state a run starts in, where that is not known to be zero."""
    state = dict(zip(("hidden", "memory"), sequence(a["hx"]), strict=False))
    if all(given in a.zeros for given in state.values()):
        return {}
    return {slot: reshaped(part(given, 0, number, 1), shape_of(given)[1:]) for slot, given in state.items()}


def _memories(run: Reading) -> Reading:
    """What an LSTM's cells hold, in place of what they let out."""
    return replace(run, attributes={**run.attributes, "gives": "memory"})


def _final(a: Arguments, run: Reading, *, reverse: bool) -> Any:
    """The state a run ends in, as torch returns it: time, the batch's neighbour, first and of size one."""
    shape = shape_of(run)
    time = 1 if a["batch_first"] and len(shape) == 3 else 0
    last = part(run, time, 0 if reverse else shape[time] - 1, 1)
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
