"""How the operations of `torch.export` are named in an architecture graph: functions of single elements, sums and products.

One entry per ATen operation. One without an entry, here or in the tables of shapes and blocks, is kept under its own name, and is opaque.
"""

from __future__ import annotations

from string import ascii_letters
from typing import Any, Final

import torch

from noetherflow.bridge.constant_values import described
from noetherflow.bridge.reading import Arguments, Reader, Readers, Reading, broadcast, common_shape, is_number, scaled, shape_of

READERS: Final = Readers()


def _unary(operation: str, **attributes: Any) -> Reader:
    return lambda a: Reading(operation, {"input": a.subject}, attributes)


for _name, _operation in {
    "relu": "relu",
    "tanh": "tanh",
    "silu": "silu",
    "sigmoid": "sigmoid",
    "relu6": "relu6",
    "exp": "exponential",
    "log": "logarithm",
    "sin": "sine",
    "cos": "cosine",
    "erf": "error_function",
    "special_erf": "error_function",
    "hardsigmoid": "hard_sigmoid",
    "hardswish": "hard_swish",
    "mish": "mish",
    "abs": "absolute",
    "neg": "negate",
    "contiguous": "identity",
    "clone": "identity",
    "alias": "identity",
    "lift_fresh_copy": "identity",
    "to": "identity",
    "_to_copy": "identity",
    "type_as": "identity",
}.items():
    READERS[_name] = _unary(_operation)

# Numbers that a function has beside its input: the gauge rules need none of them, an evaluation of the graph does.
SELU: Final = {"alpha": 1.6732632423543772, "scale": 1.0507009873554805}


@READERS.reads("leaky_relu")
def _leaky_relu(a: Arguments) -> Reading:
    return Reading("leaky_relu", {"input": a["self"]}, {"slope": a["negative_slope"]})


@READERS.reads("softplus")
def _softplus(a: Arguments) -> Reading:
    return Reading("softplus", {"input": a["self"]}, {"beta": a["beta"], "threshold": a["threshold"]})


@READERS.reads("elu", "selu", "celu")
def _elu(a: Arguments) -> Reading:
    if a.name == "celu":
        return Reading("elu", {"input": a["self"]}, {"alpha": a["alpha"], "input_scale": 1 / a["alpha"]})
    return Reading("elu", {"input": a["self"]}, SELU if a.name == "selu" else {"alpha": a["alpha"]})


for _name, _exponent in {"square": 2, "sqrt": 0.5, "rsqrt": -0.5, "reciprocal": -1}.items():
    READERS[_name] = _unary("power", exponent=_exponent)


@READERS.reads("pow.Tensor_Scalar")
def _power(a: Arguments) -> Reading | None:
    return Reading("power", {"input": a["self"]}, {"exponent": a["exponent"]}) if is_number(a["exponent"]) else None


@READERS.reads("gelu")
def _gelu(a: Arguments) -> Reading:
    return Reading("gelu", {"input": a["self"]}, {"approximate": a["approximate"]})


@READERS.reads("hardtanh")
def _hardtanh(a: Arguments) -> Reading:
    bounds = {"min": a["min_val"], "max": a["max_val"]}
    return Reading("relu6", {"input": a["self"]}) if (*bounds.values(),) == (0, 6) else Reading("clamp", {"input": a["self"]}, bounds)


@READERS.reads("clamp", "clip", "clamp_min", "clamp_max")
def _clamp(a: Arguments) -> Reading | None:
    bounds = {"min": a.get("min"), "max": a.get("max")}
    if not all(bound is None or is_number(bound) for bound in bounds.values()):
        return None
    if bounds == {"min": 0, "max": None}:
        return Reading("relu", {"input": a["self"]})
    return Reading("clamp", {"input": a["self"]}, bounds)


@READERS.reads("prelu")
def _prelu(a: Arguments) -> Reading:
    return Reading("prelu", {"input": a["self"], "weight": a["weight"]})


@READERS.reads("glu")
def _glu(a: Arguments) -> Reading:
    dim = a["dim"] % len(a.shape)
    length = a.shape[dim]
    value, gate = (Reading("slice", {"input": a["self"]}, {"dim": dim, "start": i * length, "length": length}, a.shape) for i in (0, 1))
    return Reading("multiply", {"input": value, "other": Reading("sigmoid", {"input": gate}, shape=a.shape)})


@READERS.reads("dropout", "feature_dropout")
def _dropout(a: Arguments) -> Reading:
    active = a["train"] and a["p"]
    return Reading("dropout", {"input": a.subject}, {"p": a["p"]}) if active else Reading("identity", {"input": a.subject})


@READERS.reads("alpha_dropout", "feature_alpha_dropout")
def _alpha_dropout(a: Arguments) -> Reading | None:
    return None if a["train"] and a["p"] else Reading("identity", {"input": a.subject})  # what is dropped becomes a constant, not zero


# --- tensors that take only their shape, or nothing, from what they are called on


@READERS.reads(
    *("zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like"),
    *("new_zeros", "new_ones", "new_full", "new_empty", "new_empty_strided"),
    *("zero.default", "fill.Scalar", "uniform.default", "normal.default", "exponential.default", "bernoulli.float", "bernoulli.p"),
)
def _filled(a: Arguments) -> Reading:
    return Reading("constant", {})


# --- choices by data


@READERS.reads("masked_fill.Scalar")
def _masked(a: Arguments) -> Reading | None:
    slots, mask = {"input": broadcast(a["self"], a.shape)}, a["mask"]
    return Reading("masked", slots, {"value": a["value"]}, data=(mask,), mask=(mask, True))


@READERS.reads("where.self", "where.ScalarSelf", "where.ScalarOther", "where.Scalar")
def _where(a: Arguments) -> Reading | None:
    x, y = a["self"], a["other"]
    numbers = [value for value in (x, y) if is_number(value)]
    tensors = [broadcast(value, a.shape) for value in (x, y) if not is_number(value)]
    if not numbers:
        return Reading("select", dict(zip(("input", "other"), tensors, strict=True)), data=(a["condition"],), mask=(a["condition"], True))
    if not tensors:
        return None
    condition = a["condition"]
    return Reading("masked", {"input": tensors[0]}, {"value": numbers[0]}, data=(condition,), mask=(condition, is_number(x)))


@READERS.reads("tril", "triu")
def _triangle(a: Arguments) -> Reading:
    return Reading("masked", {"input": a["self"]}, {"value": 0.0, **_outside(a)})


def _outside(a: Arguments) -> dict[str, Any]:
    every = torch.ones(a.shape[-2:], dtype=torch.bool)
    hidden = described(~(every.tril(a["diagonal"]) if a.name == "tril" else every.triu(a["diagonal"])))
    return {"mask": hidden} if hidden else {}


@READERS.reads("maximum", "max.other")
def _maximum(a: Arguments) -> Reading:
    return Reading("maximum", {"input": a["self"], "other": a["other"]})


@READERS.reads("minimum", "min.other")
def _minimum(a: Arguments) -> Reading:
    return Reading("minimum", {"input": a["self"], "other": a["other"]})


# --- sums


def _sum_of(operation: str, first: Any, second: Any, factor: Any) -> Reading | None:
    """`first ± factor * second`; None where the factor is no number that scales."""
    if is_number(second):
        second, factor = second * factor, 1
    return Reading(operation, {"input": first, "other": scaled(second, factor)}) if factor else None


@READERS.reads("add")
def _add(a: Arguments) -> Reading | None:
    return _sum_of("add", a["self"], a["other"], a.get("alpha", 1))


@READERS.reads("sub", "subtract")
def _subtract(a: Arguments) -> Reading | None:
    return _sum_of("subtract", a["self"], a["other"], a.get("alpha", 1))


@READERS.reads("rsub")
def _subtract_from(a: Arguments) -> Reading | None:
    return _sum_of("subtract", a["other"], a["self"], a.get("alpha", 1))


@READERS.reads("sum.dim_IntList", "sum.default")
def _sum(a: Arguments) -> Reading:
    return Reading("sum", {"input": a["self"]}, _dims(a))


@READERS.reads("mean.dim", "mean.default")
def _mean(a: Arguments) -> Reading:
    return Reading("mean", {"input": a["self"]}, _dims(a))


def _dims(a: Arguments) -> dict[str, Any]:
    return {"dims": list(a["dim"])} if a.get("dim") else {}


@READERS.reads("var.correction", "std.correction")
def _variance(a: Arguments) -> Reading | None:
    """The mean of (x - mean)²: of a population, with no degree of freedom taken off."""
    x, shape = a["self"], shape_of(a["self"])
    if a["correction"] != 0 or not a["dim"] or not a["keepdim"]:
        return None
    dims = {"dims": list(a["dim"])}
    centred = Reading("subtract", {"input": x, "other": Reading("mean", {"input": x}, dims, a.shape)}, shape=shape)
    variance = Reading("mean", {"input": Reading("power", {"input": centred}, {"exponent": 2}, shape)}, dims, a.shape)
    return variance if a.name == "var" else Reading("power", {"input": variance}, {"exponent": 0.5})


@READERS.reads("linalg_vector_norm", "norm.ScalarOpt_dim")
def _length(a: Arguments) -> Reading | None:
    order, dim = a.get("ord", a.get("p")), a["dim"]
    if order not in (None, 2) or not dim:
        return None
    squares = Reading("power", {"input": a.subject}, {"exponent": 2}, shape_of(a.subject))
    return Reading("power", {"input": Reading("sum", {"input": squares}, _dims(a), a.shape)}, {"exponent": 0.5})


# --- products


@READERS.reads("mul", "multiply")
def _multiply(a: Arguments) -> Reading | None:
    if is_number(a["other"]):
        return Reading("scale", {"input": a["self"]}, {"factor": a["other"]}) if a["other"] else None
    return Reading("multiply", {"input": a["self"], "other": a["other"]})


@READERS.reads("div", "divide", "true_divide")
def _divide(a: Arguments) -> Reading | None:
    if a.get("rounding_mode"):
        return None
    if is_number(a["other"]):
        return Reading("scale", {"input": a["self"]}, {"factor": 1 / a["other"]}) if a["other"] else None
    return Reading("divide", {"input": a["self"], "other": a["other"]})


@READERS.reads("addcmul", "addcdiv")
def _add_product(a: Arguments) -> Reading | None:
    shape = common_shape(a["tensor1"], a["tensor2"])
    operation = "multiply" if a.name == "addcmul" else "divide"
    product = Reading(operation, {"input": a["tensor1"], "other": a["tensor2"]}, shape=shape)
    return _sum_of("add", a["self"], product, a["value"])


@READERS.reads("lerp")
def _interpolate(a: Arguments) -> Reading | None:
    start, end, weight = a["self"], a["end"], a["weight"]
    if shape_of(start) != shape_of(end):
        return None
    way = Reading("subtract", {"input": end, "other": start}, shape=shape_of(start))
    if is_number(weight):
        return _sum_of("add", start, way, weight)
    shape = common_shape(weight, way)
    return Reading("add", {"input": start, "other": Reading("multiply", {"input": way, "other": weight}, shape=shape)})


@READERS.reads("linear")
def _linear(a: Arguments) -> Reading:
    return Reading("linear", {"input": a["input"], "weight": a["weight"], "bias": a["bias"]})


@READERS.reads("matmul", "bmm", "mm", "mv", "dot")
def _matmul(a: Arguments) -> Reading:
    other = next(x for name in ("other", "mat2", "vec", "tensor") if (x := a.get(name)) is not None)
    return Reading("matmul", {"input": a["self"], "other": other})


@READERS.reads("addmm", "baddbmm")
def _add_matmul(a: Arguments) -> Reading | None:
    bias, left, right = a["self"], a.get("mat1", a.get("batch1")), a.get("mat2", a.get("batch2"))
    if a["beta"] == a["alpha"] == 1 and a.name == "addmm" and len(shape_of(bias)) == 1 and shape_of(bias) == a.shape[-1:]:
        return Reading("linear", {"input": left, "weight": right, "bias": bias}, {"transposed": True})
    if not a["beta"] or not a["alpha"]:
        return None
    product = Reading("matmul", {"input": left, "other": right}, shape=a.shape)
    return Reading("add", {"input": scaled(bias, a["beta"]), "other": scaled(product, a["alpha"])})


@READERS.reads("einsum")
def _einsum(a: Arguments) -> Reading | None:
    shapes = [shape_of(tensor) for tensor in a["tensors"]]
    equation = written_out(a["equation"], [len(shape) for shape in shapes])
    sizes: dict[str, int] = {}
    for letters, shape in zip(equation.partition("->")[0].split(","), shapes, strict=True):
        if any(sizes.setdefault(letter, size) != size for letter, size in zip(letters, shape, strict=True)):
            return None  # torch also broadcasts sizes of one
    return Reading("einsum", {str(i): tensor for i, tensor in enumerate(a["tensors"])}, {"equation": equation})


def written_out(equation: str, ranks: list[int]) -> str:
    """An einsum equation without spaces and ellipses, its result named.

    Examples
    --------
    >>> written_out("...ij, jk", [3, 2]), written_out("bh...,h->b...", [3, 1])
    ('aij,jk->aik', 'bha,h->ba')
    """
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    free = [letter for letter in ascii_letters if letter not in equation]
    counts = [rank - len(term.replace("...", "")) for term, rank in zip(terms, ranks, strict=True) if "..." in term]
    dots = free[: max(counts, default=0)]
    written = [
        term.replace("...", "".join(dots[len(dots) - rank + len(term.replace("...", "")) :]))
        for term, rank in zip(terms, ranks, strict=True)
    ]
    if not arrow:
        letters = "".join(terms).replace("...", "")
        right = "..." + "".join(sorted(letter for letter in set(letters) if letters.count(letter) == 1))
    return f"{','.join(written)}->{right.replace('...', ''.join(dots))}"
