"""Normalisations that a forward pass makes without a module of their own, recognised as they are called.

Two ways: one of torch's functions (``F.layer_norm``, ``torch.group_norm``, ...), which says itself what it does, or a written-out
chain, x / sqrt(mean(x²) + eps). A chain is recognised at its last operation, by value: a tensor times (or over) one that is constant
along its last axes, whose result is, to rounding, the tensor as the graph normalises it. Nothing else is known of it and nothing else is
needed: what the eps lets through depends on the values and on the gradient at the result alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional as F

from noetherflow.bridge.gradient_hooks import on_gradient, without_gradients
from noetherflow.bridge.norm_layout import Layout
from noetherflow.bridge.norm_modules import ROUNDINGS, normalized, working_dtype
from noetherflow.numeric.rounding import unit_roundoff

_BATCH: Final = ("input", "weight", "bias", "running_mean", "running_var")
_FUNCTIONS: Final[dict[Callable[..., Any], tuple[str, tuple[str, ...]]]] = {
    F.layer_norm: ("layer_norm", ("input", "normalized_shape", "weight", "bias", "eps")),
    torch.layer_norm: ("layer_norm", ("input", "normalized_shape", "weight", "bias", "eps")),
    F.rms_norm: ("rms_norm", ("input", "normalized_shape", "weight", "eps")),
    torch.rms_norm: ("rms_norm", ("input", "normalized_shape", "weight", "eps")),
    F.group_norm: ("group_norm", ("input", "num_groups", "weight", "bias", "eps")),
    torch.group_norm: ("group_norm", ("input", "num_groups", "weight", "bias", "eps")),
    F.batch_norm: ("batch_norm", ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")),
    torch.batch_norm: ("batch_norm", (*_BATCH, "training", "momentum", "eps")),
    F.instance_norm: ("instance_norm", ("input", "running_mean", "running_var", "weight", "bias", "use_input_stats", "momentum", "eps")),
    torch.instance_norm: ("instance_norm", (*_BATCH, "use_input_stats", "momentum", "eps")),
}
"""Function -> the operation, and the names of its arguments in order."""

_DEFAULTS: Final[dict[str, Any]] = {"training": False, "use_input_stats": True, "eps": 1e-5}
_PRODUCTS: Final = frozenset({"mul", "multiply", "__mul__", "__rmul__"})
_QUOTIENTS: Final = frozenset({"div", "divide", "true_divide", "__div__", "__truediv__"})
_DIFFERENCES: Final = frozenset({"sub", "subtract", "__sub__"})


@dataclass(frozen=True, slots=True)
class Form:
    """What a normalisation does, as far as a call can show it.

    Parameters
    ----------
    layout : Layout
    eps : float
    sizes : tuple of int
        Of the axes that are normalised, or the channels.
    training : bool
        BatchNorm takes the statistics of the batch.

    Examples
    --------
    >>> str(Form(Layout("group_norm", 4, groups=2), 1e-5, (8,)))
    'group_norm of 8 in 2 groups (4 axes, eps 1e-05)'
    """

    layout: Layout
    eps: float
    sizes: tuple[int, ...]
    training: bool = True

    def __str__(self) -> str:
        groups = f" in {self.layout.groups} groups" if self.layout.operation == "group_norm" else ""
        frozen = "" if self.training else ", not of the batch"
        sizes = " x ".join(map(str, self.sizes))
        return f"{self.layout.operation} of {sizes}{groups} ({self.layout.rank} axes, eps {self.eps:g}{frozen})"


def normalised_sizes(layout: Layout, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Sizes of the axes that LayerNorm and RMSNorm normalise; the channels of the others."""
    return tuple(shape[layout.rank - layout.dims :]) if layout.on_features else tuple(shape[1:2])


class Heard:
    """A normalisation that was called.

    Whoever finds out what it is says what its gradient is wanted for (`take`), at the end of the forward pass; until then the gradient is
    hooked in any case, since what is written over the result in place would hide it.

    Parameters
    ----------
    inputs : mapping of Form to Tensor
        What it does, and to what; a written chain may fit several forms that differ by less than rounding.
    output : Tensor
        The result, its gain applied if that is the function's own.
    weight : Tensor or None
        That gain.
    """

    def __init__(self, inputs: Mapping[Form, Tensor], output: Tensor, weight: Tensor | None) -> None:
        self.inputs, self.weight = {form: x.detach() for form, x in inputs.items()}, weight
        self.take: Callable[[Tensor], None] | None = None
        on_gradient(output, without_gradients(self._backward))

    def _backward(self, gradient: Tensor) -> None:
        if self.take is not None:
            self.take(gradient)


def hear_function(function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> Heard | None:
    """A call of one of torch's normalisations; None if it is another function, or nothing that is trained comes in."""
    operation, names = _FUNCTIONS.get(function, ("", ()))
    if not operation or not isinstance(result, Tensor) or not result.requires_grad:
        return None
    given = {**_DEFAULTS, **dict(zip(names, args, strict=False)), **kwargs}
    x, shape = given["input"], given.get("normalized_shape")
    if operation == "instance_norm" and not given["use_input_stats"]:
        return None  # read as an affine map of frozen numbers, which nothing absorbs
    eps = given["eps"] if "eps" in kwargs or len(args) > names.index("eps") or operation != "rms_norm" else None
    layout = Layout(operation, x.dim(), 1 if shape is None else len(shape), given.get("num_groups", 1))
    training = operation != "batch_norm" or bool(given["training"])
    form = Form(layout, torch.finfo(result.dtype).eps if eps is None else float(eps), normalised_sizes(layout, tuple(x.shape)), training)
    return Heard({form: x}, result, given.get("weight"))


class Chains:
    """Written-out normalisations of one forward pass.

    Parameters
    ----------
    forms : mapping of Form to torch.dtype
        Those to look for, with the coarsest type that they are computed in.
    """

    def __init__(self, forms: Mapping[Form, torch.dtype]) -> None:
        self._forms = forms
        self._differences: dict[int, tuple[Tensor, Tensor]] = {}  # identity of x - m -> (x - m, x): held, so that it stays its own

    def hear(self, function: Any, args: tuple[Any, ...], result: Any) -> Heard | None:
        """The end of a chain; None if the call is something else."""
        name = getattr(function, "__name__", "")
        if not self._forms or not isinstance(result, Tensor) or not result.requires_grad or len(args) < 2:
            return None
        first, second = args[:2]
        if not isinstance(first, Tensor) or not isinstance(second, Tensor):
            return None
        if name in _DIFFERENCES and first.shape == result.shape:
            self._differences[id(result)] = result, first
        if name not in _PRODUCTS and name not in _QUOTIENTS:
            return None
        for x, factor in [(first, second), (second, first)][: 2 if name in _PRODUCTS else 1]:
            found = [self._source(form, x, factor, result) for form in self._forms]
            fitting = {form: source for form, source in zip(self._forms, found, strict=True) if source is not None}
            if fitting:
                return Heard(fitting, result, None)
        return None

    def _source(self, form: Form, x: Tensor, factor: Tensor, result: Tensor) -> Tensor | None:
        """What is normalised, if a result is that."""
        layout = form.layout
        kept = layout.rank - layout.dims
        if x.dim() != layout.rank or x.shape != result.shape or tuple(x.shape[kept:]) != form.sizes:
            return None
        if tuple(factor.shape) != (*x.shape[:kept], *[1] * layout.dims):
            return None
        if layout.centred:
            _, source = self._differences.get(id(x), (x, None))
        else:
            source = x
        return source if source is not None and self._fits(form, source, x, factor, result) else None

    def _fits(self, form: Form, source: Tensor, *involved: Tensor) -> bool:
        result, layout = involved[-1], form.layout
        coarsest = max((self._forms[form], source.dtype, *(t.dtype for t in involved)), key=unit_roundoff)
        with torch.no_grad():
            working = working_dtype(source, result)
            rows, variance = normalized(layout, source, form.eps, working)
            raw = layout.rows(source).to(working) * (variance + form.eps).rsqrt().unsqueeze(-1).to(working)
            difference = float((layout.rows(result).to(working) - rows).norm())
            return difference <= ROUNDINGS * unit_roundoff(coarsest) * float(rows.norm() + raw.norm())
