"""What normalisations, attention, rotary embeddings and recurrent layers compute, written out so that any derivative can be taken."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor

Values = Mapping[str, Tensor]
Rule = Callable[[Values, Mapping[str, Any], tuple[int, ...]], Tensor]


def standardised(v: Values, a: Mapping[str, Any], dims: Sequence[int], *, centre: bool = True) -> Tensor:
    """(x - mean) / sqrt(variance + eps) along some axes, then gain and bias along the channels (axis 1)."""
    x = _unit(v["input"], dims, a["eps"], centre=centre)
    channels = [-1 if d == 1 else 1 for d in range(x.dim())]
    x = x * v["weight"].reshape(channels) if "weight" in v else x
    return x + v["bias"].reshape(channels) if "bias" in v else x


def _unit(x: Tensor, dims: Sequence[int], eps: float | None, *, centre: bool = True) -> Tensor:
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    x = x - x.mean(list(dims), keepdim=True) if centre else x
    return x * ((x * x).mean(list(dims), keepdim=True) + eps) ** -0.5


def _trailing_norm(*, centre: bool) -> Rule:
    """Over the last axes, gain and bias with their shape: LayerNorm and RMSNorm."""

    def rule(v: Values, a: Mapping[str, Any], shape: tuple[int, ...]) -> Tensor:
        x = _unit(v["input"], range(len(shape) - a["dims"], len(shape)), a["eps"], centre=centre)
        x = x * v["weight"] if "weight" in v else x
        return x + v["bias"] if "bias" in v else x

    return rule


def _group_norm(v: Values, a: Mapping[str, Any], shape: tuple[int, ...]) -> Tensor:
    x = v["input"]
    split = x.reshape([x.shape[0], a["groups"], -1, *x.shape[2:]])
    whole = _unit(split, range(2, split.dim()), a["eps"]).reshape(shape)
    channels = [-1 if d == 1 else 1 for d in range(len(shape))]
    whole = whole * v["weight"].reshape(channels) if "weight" in v else whole
    return whole + v["bias"].reshape(channels) if "bias" in v else whole


def _unit_norm(v: Values, a: Mapping[str, Any], shape: tuple[int, ...]) -> Tensor:
    x = v["input"]
    return x / (x * x).sum(a["dim"], keepdim=True).sqrt().clamp(min=a["eps"])


def _weight_norm(v: Values, a: Mapping[str, Any], shape: tuple[int, ...]) -> Tensor:
    direction = v["direction"]
    others = [d for d in range(direction.dim()) if d != a["dim"]]
    whole: Tensor = v["magnitude"] * direction * (direction * direction).sum(others, keepdim=True) ** -0.5
    return whole


def _attention(v: Values, a: Mapping[str, Any], shape: tuple[int, ...]) -> Tensor:
    """softmax(s q kᵀ + mask) v. Of its dropout masks the one that drops nothing is taken: it is one of those that occur."""
    q, k, value = v["query"], v["key"], v["value"]
    if a["grouped"]:
        k, value = (x.repeat_interleave(q.shape[-3] // x.shape[-3], -3) for x in (k, value))
    scale: float = q.shape[-1] ** -0.5 if a["scale"] is None else a["scale"]
    scores = q @ k.mT * scale
    if "mask" in v:
        scores = scores + v["mask"] if v["mask"].is_floating_point() else scores.masked_fill(~v["mask"], -torch.inf)
    if a["causal"]:
        scores = scores.masked_fill(torch.ones(scores.shape[-2:]).tril() == 0, -torch.inf)
    return scores.softmax(-1) @ value


def _rotary(v: Values, a: Mapping[str, Any], shape: tuple[int, ...]) -> Tensor:
    """(a, b) becomes (a cos - b sin, b cos + a sin); a table of full width repeats over the pair."""
    axis = -2 if a["pairing"] == "halves" else -1
    split = [2, shape[-1] // 2] if a["pairing"] == "halves" else [shape[-1] // 2, 2]
    first, second = v["input"].reshape([*shape[:-1], *split]).unbind(axis)
    cosine, sine = (
        t if t.shape[-1] == shape[-1] // 2 else t.reshape([*t.shape[:-1], *split]).select(axis, 0) for t in (v["cosine"], v["sine"])
    )
    return torch.stack([first * cosine - second * sine, second * cosine + first * sine], axis).flatten(-2)


def _recurrent(cell: Callable[[Tensor, Tensor, tuple[Tensor, Tensor]], tuple[Tensor, Tensor]]) -> Rule:
    """One layer in one direction, from a zero state if none is given; the cell takes what comes from input and state."""

    def rule(v: Values, a: Mapping[str, Any], shape: tuple[int, ...]) -> Tensor:
        time = 1 if a["batch_first"] else 0
        x = v["input"].flip(time) if a["reverse"] else v["input"]
        zero = x.new_zeros(x.shape[1 - time], shape[-1])
        hidden, memory = v.get("hidden", zero), v.get("memory", zero)
        outputs = []
        for step in x.unbind(time):
            above = step @ v["weight_ih"].mT + v.get("bias_ih", 0.0)
            beside = hidden @ v["weight_hh"].mT + v.get("bias_hh", 0.0)
            hidden, memory = cell(above, beside, (hidden, memory))
            outputs.append(memory if a.get("gives") == "memory" else hidden)
        y = torch.stack(outputs, time)
        return y.flip(time) if a["reverse"] else y

    return rule


def _lstm_cell(above: Tensor, beside: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    i, f, g, o = (above + beside).chunk(4, -1)
    memory = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
    return o.sigmoid() * memory.tanh(), memory


def _gru_cell(above: Tensor, beside: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    (r, z, n), (hr, hz, hn) = above.chunk(3, -1), beside.chunk(3, -1)
    update = (z + hz).sigmoid()
    new = (n + (r + hr).sigmoid() * hn).tanh()
    return (1 - update) * new + update * state[0], state[1]


BLOCKS: Final[dict[str, Rule]] = {
    "layer_norm": _trailing_norm(centre=True),
    "rms_norm": _trailing_norm(centre=False),
    "group_norm": _group_norm,
    "instance_norm": lambda v, a, shape: standardised(v, a, range(2, len(shape))),
    "unit_norm": _unit_norm,
    "weight_norm": _weight_norm,
    "attention": _attention,
    "rotary": _rotary,
    "lstm_layer": _recurrent(_lstm_cell),
    "gru_layer": _recurrent(_gru_cell),
    "rnn_layer": _recurrent(lambda above, beside, state: ((above + beside).tanh(), state[1])),
}
