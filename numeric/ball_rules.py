"""What torch's operations do to balls: one rule for each operation that networks and their derivatives are made of, and no default.

A rule stands for the operation over the real numbers: `tanh_backward` for the derivative of tanh, not for what float64 makes of it. An
operation without a rule is refused. Indices and masks are plain tensors; a mask that is read off balls must be the same for all numbers in
them, or it is refused too. In that sense functions with pieces (clamp, ReLU) are enclosed where it is clear which piece holds.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor

from noetherflow.numeric import ball_functions as functions
from noetherflow.numeric.balls import Ball, NotEnclosed, product
from noetherflow.numeric.modular import MOVES

Rule = Callable[..., Any]

# Entries that an operation makes, rather than moves.
# fmt: off
CONSTANTS: Final = frozenset({
    "constant_pad_nd", "_efficientzerotensor", "fill", "full", "full_like", "new_full", "new_ones", "new_zeros", "ones", "ones_like",
    "scalar_tensor", "zeros", "zeros_like", "arange", "eye", "empty_like",
})
# fmt: on
IN_PLACE: Final = frozenset({"copy_", "fill_", "zero_"})
# Midpoints and radii may lie in memory otherwise than the recorded tensor: what counts is the order of entries.
BY_MEMORY: Final = frozenset({"as_strided", "as_strided_scatter"})


def enclosed(name: str, func: Any, args: Sequence[Any], options: Mapping[str, Any]) -> Any:
    """One operation on balls and plain tensors.

    Parameters
    ----------
    name : str
        Without overload: 'mul'.
    func : callable
        The operation itself, for what only moves entries.
    args, options
        As torch would be given them, with a `Ball` for every tensor of real numbers.

    Raises
    ------
    NotEnclosed
        If it has no rule, or the balls are too wide for it.

    Examples
    --------
    >>> x = Ball.exact(torch.tensor([1.0, 2.0], dtype=torch.float64))
    >>> enclosed("mul", torch.ops.aten.mul.Tensor, (x, x), {}).middle
    tensor([1., 4.], dtype=torch.float64)
    """
    if name in CONSTANTS:
        return _made(name, func, args, options)
    if name in ("view", "_unsafe_view", "_reshape_alias"):
        func, args = torch.reshape, args[:2]
    if name in BY_MEMORY:  # of a tensor that the caller has seen to lie in order
        args = [_in_order(args[0]), *args[1:]]
    try:
        if not _any_ball([*args, *options.values()]):
            return _plain(name, func(*args, **options))
        if name in (MOVES | BY_MEMORY | {"lift_fresh"}) - CONSTANTS - IN_PLACE:
            return _moved(func, args, options)
        if name not in RULES:
            raise NotEnclosed(f"'{name}' has no rule in ball arithmetic. Add one to noetherflow.numeric.ball_rules.", operation=name)
        return RULES[name](*args, **options)
    except (TypeError, AttributeError, RuntimeError) as err:
        raise NotEnclosed(f"'{name}' has a rule in ball arithmetic, but not for what it was given: {err}", operation=name) from err


def _any_ball(values: Sequence[Any]) -> bool:
    return any(isinstance(v, Ball) or (isinstance(v, list | tuple) and _any_ball(v)) for v in values)


def _part(values: Any, part: str) -> Any:
    if isinstance(values, Ball):
        return getattr(values, part)
    if isinstance(values, list | tuple):
        return type(values)(_part(v, part) for v in values)
    return {k: _part(v, part) for k, v in values.items()} if isinstance(values, dict) else values


def _paired(middle: Any, radius: Any) -> Any:
    if isinstance(middle, list | tuple):
        return [_paired(m, r) for m, r in zip(middle, radius, strict=True)]
    if middle.dtype != torch.float64:
        raise NotEnclosed(f"A conversion to {middle.dtype} has no rule in ball arithmetic, which is in float64.")
    return Ball(middle, radius)


def _in_order(x: Any) -> Any:
    def copy(part: Tensor) -> Tensor:  # from the start of a memory of its own
        return part.clone(memory_format=torch.contiguous_format)

    return Ball(copy(x.middle), copy(x.radius)) if isinstance(x, Ball) else copy(x)


def _moved(func: Any, args: Sequence[Any], options: Mapping[str, Any]) -> Any:
    parts = [func(*_part(list(args), part), **_part(dict(options), part)) for part in ("middle", "radius")]
    return _paired(*parts)


def _made(name: str, func: Any, args: Sequence[Any], options: Mapping[str, Any]) -> Any:
    if name == "empty_like":  # is written over: whatever it holds, it is nothing that is read
        func, name = torch.zeros_like, "zeros_like"
    if name == "constant_pad_nd":
        if len(args) > 2 and args[2] != 0:
            raise NotEnclosed(f"A padding with {args[2]} has no rule in ball arithmetic.", operation=name)
        return _moved(func, args, options)
    if _any_ball([*args[1:], *options.values()]):
        raise NotEnclosed(f"'{name}' with a computed number has no rule in ball arithmetic.", operation=name)
    return _plain(name, func(*_part(list(args), "middle"), **_part(dict(options), "middle")))


def _plain(name: str, out: Any) -> Any:
    """What was made from constants alone: constants, if they are real numbers."""
    if isinstance(out, list | tuple):
        return [_plain(name, x) for x in out]
    if isinstance(out, Tensor) and out.is_floating_point():
        if name not in CONSTANTS | MOVES:
            raise NotEnclosed(f"'{name}' of constants gives numbers that are not enclosed.", operation=name)
        return Ball.constant(out.double())
    return out


def _decided(compare: Callable[[Tensor, Tensor], Tensor], *, at_border: bool = False) -> Rule:
    """A comparison that comes out the same for all numbers of the balls; of equal numbers, if exact, where no border is between pieces."""

    def rule(x: Any, other: Any) -> Tensor:
        a, b = _real(x), _real(other)
        exact, difference = (a.radius == 0) & (b.radius == 0) & at_border, a - b
        if not bool((exact | (difference.middle.abs() > difference.radius)).all()):
            raise NotEnclosed("A comparison is not decided: some number lies on the border of two pieces, or the balls are too wide.")
        return compare(a.middle, b.middle)

    return rule


def _real(x: Any) -> Ball:
    return x if isinstance(x, Ball) else Ball.constant(torch.as_tensor(x, dtype=torch.float64))


def _add(x: Any, y: Any, *, alpha: float = 1) -> Ball:
    return _real(x) + (_real(y) * alpha if alpha != 1 else _real(y))


def _sum(x: Ball, axes: Sequence[int] | None = None, keepdim: bool = False, *, dtype: Any = None) -> Ball:
    return x.sum(list(axes) if axes else list(range(x.middle.dim())), keepdim=keepdim)


def _mean(x: Ball, axes: Sequence[int] | None = None, keepdim: bool = False, *, dtype: Any = None) -> Ball:
    total = _sum(x, axes, keepdim)
    return total / (x.middle.numel() / total.middle.numel())


def _added(multiply: Callable[[Tensor, Tensor], Tensor]) -> Rule:
    def rule(x: Ball, a: Ball, b: Ball, *, beta: float = 1, alpha: float = 1) -> Ball:
        return x * beta + product(a, b, multiply) * alpha

    return rule


def _multiplied(multiply: Callable[[Tensor, Tensor], Tensor]) -> Rule:
    return lambda a, b: product(_real(a), _real(b), multiply)


def _power(x: Ball, exponent: float) -> Ball:
    if exponent == 2:
        return x * x
    return functions.power(x, exponent)


def _where(condition: Tensor, x: Any, y: Any) -> Ball:
    a, b = _real(x), _real(y)
    return Ball(torch.where(condition, a.middle, b.middle), torch.where(condition, a.radius, b.radius))


def _filled(x: Ball, mask: Tensor, value: float) -> Ball:
    return _where(mask, _real(value), x)


def _softmax(x: Ball, axis: int, half: bool = False) -> Ball:
    """e^(x - c) over its sum, for any c: here the largest midpoint. What a mask has put to minus infinity is zero."""
    hidden = (x.middle == -torch.inf) & (x.radius == 0)  # not what has overflowed
    top = x.middle.amax(axis, keepdim=True)
    grown = functions.named("exp")(_where(hidden, _real(0.0), x) - Ball.exact(torch.where(hidden, 0.0, top)))
    kept = _where(hidden, _real(0.0), grown)
    return kept / kept.sum([axis], keepdim=True)


def _softmax_backward(g: Ball, y: Ball, axis: int, dtype: Any = None) -> Ball:
    return y * (g - (g * y).sum([axis], keepdim=True))


def _log_softmax(x: Ball, axis: int, half: bool = False) -> Ball:
    centred = x - Ball.exact(x.middle.amax(axis, keepdim=True))
    return centred - functions.named("log")(functions.named("exp")(centred).sum([axis], keepdim=True))


def _log_softmax_backward(g: Ball, y: Ball, axis: int, dtype: Any = None) -> Ball:
    return g - functions.named("exp")(y) * g.sum([axis], keepdim=True)


def _softplus(x: Ball, beta: float = 1, threshold: float = 20) -> Ball:
    linear = _decided(torch.gt)(x * beta, threshold)
    small = _where(linear, _real(0.0), x * beta)
    return _where(linear, x, functions.named("log1p")(functions.named("exp")(small)) / beta)


def _softplus_backward(g: Ball, x: Ball, beta: float, threshold: float) -> Ball:
    linear = _decided(torch.gt)(x * beta, threshold)
    return _where(linear, g, g * functions.sigmoid(x * beta))


def _clamp(x: Ball, least: float | None = None, most: float | None = None) -> Ball:
    low = x if least is None else _where(_decided(torch.lt)(x, least), _real(least), x)
    return low if most is None else _where(_decided(torch.gt)(low, most), _real(most), low)


def _relu(x: Ball) -> Ball:
    return _where(_decided(torch.gt)(x, 0.0), x, _real(0.0))


def _threshold_backward(g: Ball, x: Ball, threshold: float) -> Ball:
    """By the value of the ReLU, which is exactly zero where it is closed."""
    return _where(_decided(torch.gt, at_border=True)(x, threshold), g, _real(0.0))


def _sign(x: Ball) -> Ball:
    return _where(_decided(torch.gt)(x, 0.0), _real(1.0), _real(-1.0))


RULES: Final[dict[str, Rule]] = {
    "add": _add,
    "sub": lambda x, y, alpha=1: _add(x, y, alpha=-alpha),
    "rsub": lambda x, y, alpha=1: _add(y, x, alpha=-alpha),
    "neg": operator.neg,
    "mul": lambda x, y: _real(x) * _real(y),
    "div": lambda x, y: _real(x) / _real(y),
    "reciprocal": lambda x: _real(1.0) / x,
    "sum": _sum,
    "mean": _mean,
    "pow": _power,
    "sqrt": functions.named("sqrt"),
    "rsqrt": functions.named("rsqrt"),
    **{name: functions.named(name) for name in ("exp", "expm1", "log", "log1p", "sin", "cos", "tanh", "erf", "cosh", "sinh")},
    "sigmoid": functions.sigmoid,
    "silu": lambda x: x * functions.sigmoid(x),
    "gelu": lambda x, approximate="none": functions.gelu(x, approximate=approximate == "tanh"),
    "tanh_backward": lambda g, y: g * (_real(1.0) - y * y),
    "sigmoid_backward": lambda g, y: g * (y * (_real(1.0) - y)),
    "gelu_backward": lambda g, x, approximate="none": g * functions.gelu_slope(x, approximate=approximate == "tanh"),
    "softplus": _softplus,
    "softplus_backward": _softplus_backward,
    "_softmax": _softmax,
    "_softmax_backward_data": _softmax_backward,
    "_log_softmax": _log_softmax,
    "_log_softmax_backward_data": _log_softmax_backward,
    "mm": _multiplied(torch.mm),
    "bmm": _multiplied(torch.bmm),
    "mv": _multiplied(torch.mv),
    "dot": _multiplied(torch.dot),
    "addmm": _added(torch.mm),
    "baddbmm": _added(torch.bmm),
    "addmv": _added(torch.mv),
    "where": _where,
    "masked_fill": _filled,
    "copy": lambda x, y: _where(torch.ones_like(_real(x).middle) > 0, y, x),
    "clamp": _clamp,
    "clamp_min": _clamp,
    "relu": _relu,
    "threshold_backward": _threshold_backward,
    "sgn": _sign,
    "sign": _sign,
    "abs": lambda x: x * _sign(x),
    **{name: _decided(getattr(torch, name)) for name in ("gt", "ge", "lt", "le")},
    "eq": _decided(torch.eq, at_border=True),
    "ne": _decided(torch.ne, at_border=True),
}
