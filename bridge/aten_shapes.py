"""How ATen operations that move entries are named: views, permutations, pieces, and rearrangements of positions."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, Final

import torch

from noetherflow.bridge.reading import Arguments, Readers, Reading, broadcast, part, reshaped, sequence, shape_of

READERS: Final = Readers()


# --- views


@READERS.reads(
    *("flatten", "reshape", "view", "_unsafe_view", "unsqueeze", "squeeze", "unflatten", "view_as", "reshape_as", "ravel", "_reshape_alias")
)
def _reshape(a: Arguments) -> Reading:
    return Reading("reshape", {"input": a.subject})


@READERS.reads("view.dtype")
def _reinterpreted(a: Arguments) -> Reading | None:
    return None  # the same bits as another type


@READERS.reads("expand", "expand_as", "broadcast_to")
def _expand(a: Arguments) -> Reading:
    return Reading("expand", {"input": a.subject})


@READERS.reads("broadcast_tensors")
def _broadcast_tensors(a: Arguments) -> Reading:
    return Reading("expand", {"input": a["tensors"][a.index]})


@READERS.reads("permute")
def _permute(a: Arguments) -> Reading:
    return Reading("permute", {"input": a["self"]}, {"dims": [d % len(a["dims"]) for d in a["dims"]]})


@READERS.reads("transpose.int", "swapaxes", "swapdims", "t", "mT", "numpy_T", "adjoint")
def _transpose(a: Arguments) -> Reading | None:
    rank = len(a.shape)
    dims = list(range(rank))
    if a.name == "numpy_T":
        return Reading("permute", {"input": a["self"]}, {"dims": dims[::-1]})
    if rank < 2:
        return Reading("identity", {"input": a["self"]})
    i, j = (a.get("dim0", a.get("axis0", -2)) % rank, a.get("dim1", a.get("axis1", -1)) % rank)
    dims[i], dims[j] = dims[j], dims[i]
    return Reading("permute", {"input": a["self"]}, {"dims": dims})


@READERS.reads("movedim", "moveaxis")
def _move(a: Arguments) -> Reading:
    rank = len(a.shape)
    goes = {d % rank: s % rank for s, d in zip(sequence(a["source"]), sequence(a["destination"]), strict=True)}
    rest = iter([d for d in range(rank) if d not in goes.values()])
    return Reading("permute", {"input": a["self"]}, {"dims": [goes[d] if d in goes else next(rest) for d in range(rank)]})


# --- pieces


@READERS.reads("chunk", "split", "split_with_sizes", "tensor_split")
def _split(a: Arguments) -> Reading:
    dim = a.get("dim", 0)
    start = sum(piece.shape[dim] for piece in a.output[: a.index])
    return _piece(a, dim, start, a.shape[dim])


@READERS.reads("select.int", "unbind")
def _select(a: Arguments) -> Reading | None:
    dim = a.get("dim", 0)
    index = a.get("index", a.index)
    if not isinstance(index, int):
        return None  # chosen by the data of the moment
    return _piece(a, dim, index % shape_of(a["self"])[dim], 1)


@READERS.reads("narrow")
def _narrow(a: Arguments) -> Reading:
    return _piece(a, a["dim"], a["start"] % shape_of(a["self"])[a["dim"]], a["length"])


def _piece(a: Arguments, dim: int, start: int, length: int) -> Reading:
    taken = reshaped(part(a["self"], dim, start, length), a.shape)
    return taken if isinstance(taken, Reading) else Reading("reshape", {"input": taken})


@READERS.reads("slice.Tensor")
def _slice(a: Arguments) -> Reading | None:
    start, stop, step = slice(a["start"], a["end"], a["step"]).indices(shape_of(a["self"])[a["dim"]])
    if stop <= start:
        return Reading("constant", {})  # no entries at all
    if step != 1:
        return _moved(a["self"], [a["dim"]], uniform=True, start=start, step=step)
    taken = part(a["self"], a["dim"], start, stop - start)
    return taken if isinstance(taken, Reading) else Reading("identity", {"input": taken})


@READERS.reads("cat", "concat", "concatenate")
def _concatenate(a: Arguments) -> Reading:
    tensors = [t for t in a["tensors"] if prod(shape_of(t))]
    if len(tensors) < 2:
        return Reading("identity", {"input": (tensors or a["tensors"])[0]})
    return Reading("concatenate", {str(i): t for i, t in enumerate(tensors)}, {"dim": a["dim"] % len(a.shape)})


@READERS.reads("stack")
def _stack(a: Arguments) -> Reading:
    dim = a["dim"] % len(a.shape)
    shape = (*a.shape[:dim], 1, *a.shape[dim + 1 :])
    return Reading("concatenate", {str(i): reshaped(t, shape) for i, t in enumerate(a["tensors"])}, {"dim": dim})


# --- rearrangements of positions


def _moved(tensor: Any, dims: Sequence[int], *, uniform: bool, **attributes: Any) -> Reading:
    rank = len(shape_of(tensor))
    return Reading("rearrange", {"input": tensor}, {"dims": [d % rank for d in dims], "uniform": uniform, **attributes})


@READERS.reads("roll", "flip")
def _roll(a: Arguments) -> Reading | None:
    return _moved(a["self"], a["dims"], uniform=True) if a["dims"] else None


@READERS.reads("cumsum")
def _cumulated(a: Arguments) -> Reading:
    return _moved(a["self"], [a["dim"]], uniform=False)


@READERS.reads(
    *("upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d"),
    *("_upsample_nearest_exact1d", "_upsample_nearest_exact2d", "_upsample_nearest_exact3d", "upsample_bicubic2d"),
)
def _upsample(a: Arguments) -> Reading:
    rank = len(a.shape)
    return _moved(a.subject, range(2, rank), uniform=True)


@READERS.reads("pad", "constant_pad_nd")
def _pad(a: Arguments) -> Reading | None:
    widths = list(zip(a["pad"][::2], a["pad"][1::2], strict=True))
    padded = [len(a.shape) - 1 - i for i, width in enumerate(widths) if any(width)]
    zeros = a.get("mode", "constant") == "constant"
    if zeros and a.get("value"):
        return None
    grown = any(side > 0 for width in widths for side in width)
    return _moved(a["self"], sorted(padded), uniform=not (zeros and grown)) if padded else Reading("identity", {"input": a["self"]})


@READERS.reads("repeat", "tile")
def _repeat(a: Arguments) -> Reading:
    counts = list(a.get("repeats", a.get("dims")))
    rank = len(a.shape)
    counts = [1] * (rank - len(counts)) + counts
    shape = [1] * (rank - len(shape_of(a["self"]))) + list(shape_of(a["self"]))
    wide = [count if size == 1 else size for size, count in zip(shape, counts, strict=True)]
    tensor = reshaped(a["self"], shape)
    if wide != shape:
        tensor = Reading("expand", {"input": tensor}, shape=tuple(wide))
    moved = [d for d in range(rank) if wide[d] != a.shape[d]]
    if moved:
        return _moved(tensor, moved, uniform=True, tiled=True)
    return tensor if isinstance(tensor, Reading) else Reading("identity", {"input": tensor})


@READERS.reads("repeat_interleave.self_int")
def _interleave(a: Arguments) -> Reading | None:
    return None if a["dim"] is None else _moved(a["self"], [a["dim"]], uniform=True, repeats=a["repeats"])


# --- what indices take out of one axis: the choice may depend on parameters, which are held where it is made


@READERS.reads("index_select")
def _index_select(a: Arguments) -> Reading | None:
    return _picked(a, a["dim"] % len(a.shape), a["index"]) if a.shape and len(shape_of(a["index"])) == 1 else None


@READERS.reads("index.Tensor")
def _index(a: Arguments) -> Reading | None:
    used = [(dim, index) for dim, index in enumerate(a["indices"]) if index is not None]
    if len(used) != 1 or used[0][1].meta["val"].dtype == torch.bool:
        return None
    return _picked(a, *used[0])


def _picked(a: Arguments, dim: int, index: Any) -> Reading:
    return Reading("index_select", {"input": a["self"], "index": index}, {"dim": dim})


@READERS.reads("gather")
def _gather(a: Arguments) -> Reading | None:
    return Reading("gather", {"input": a["self"], "index": a["index"]}, {"dim": a["dim"] % len(a.shape)}) if a.shape else None


@READERS.reads("take_along_dim")
def _taken(a: Arguments) -> Reading | None:
    whole, index = shape_of(a["self"]), shape_of(a["indices"])
    if a["dim"] is None or len(whole) != len(index):
        return None
    dim = a["dim"] % len(whole)
    table = broadcast(a["self"], tuple(whole[i] if i == dim else size for i, size in enumerate(a.shape)))
    return Reading("gather", {"input": table, "index": broadcast(a["indices"], a.shape)}, {"dim": dim})


@READERS.reads("pixel_shuffle")
def _pixel_shuffle(a: Arguments) -> Reading:
    r, (*lead, channels, height, width) = a["upscale_factor"], shape_of(a["self"])
    split = reshaped(a["self"], (*lead, channels // r**2, r, r, height, width))
    n = len(lead)
    shape = (*lead, channels // r**2, height, r, width, r)
    moved = Reading("permute", {"input": split}, {"dims": [*range(n), n, n + 3, n + 1, n + 4, n + 2]}, shape)
    return Reading("reshape", {"input": moved})
