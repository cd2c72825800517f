"""Exact arithmetic modulo a prime on torch's own operations: integers held in float64, reduced behind every operation.

`Modulo` is a dispatch mode. It sits below autograd and below torch.func's grad, jvp and vmap, so derivatives of any order are exact too.
Residues are balanced, |r| <= p / 2; a contraction of k products is exact as long as k (p / 2)^2 < 2^53, which is checked from the shapes.
A division by a number multiplies by its inverse. A number that is no integer stands for the rational that its floating-point value is.
What is no polynomial (exp, sqrt, a quotient of tensors, a comparison) is refused.

Source: own; that a rank modulo p bounds the rank over the rationals from below is elementary (a minor that is not 0 modulo p is not 0).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from math import prod
from typing import Any, Final

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from noetherflow.errors import ModelError

# The largest primes below 2^22 and 2^20: contractions of 2,048 and of 32,768 products are exact.
PRIMES: Final = (4194301, 1048573)
EXACT: Final = 2**53
SHIFTS: Final = (6, 12, 24)  # powers of two that are tried as a common denominator

# Operations that only move entries, by name without overload: nothing to reduce.
# fmt: off
MOVES: Final = frozenset({
    "alias", "as_strided", "broadcast_in_dim", "broadcast_to", "cat", "chunk", "clone", "constant_pad_nd", "convert_element_type",
    "copy_", "detach", "diag_embed", "diagonal", "diagonal_backward", "_efficientzerotensor", "empty", "empty_like", "empty_strided",
    "expand", "expand_copy", "fill_", "flip", "full", "full_like", "gather", "index", "index_select", "is_same_size", "lift_fresh_copy",
    "movedim", "narrow", "new_empty", "new_empty_strided", "new_full", "new_ones", "new_zeros", "ones", "ones_like", "permute",
    "repeat", "reshape", "_reshape_alias", "scalar_tensor", "select", "select_backward", "select_scatter", "slice", "slice_backward",
    "slice_scatter", "split", "split_with_sizes", "squeeze", "stack", "t", "to", "_to_copy", "transpose", "tril", "triu", "unbind",
    "unfold", "unsafe_chunk", "unsafe_split", "_unsafe_view", "unsqueeze", "view", "view_copy", "view_of", "zero_", "zeros",
    "zeros_like",
})
# fmt: on
# Operations that are right modulo p once their result is reduced: sums, and products of residues.
SUMS: Final = frozenset(
    {"add", "add_", "sub", "sub_", "rsub", "neg", "neg_", "sum", "scatter_add", "scatter_add_", "index_add", "index_add_", "index_put"}
)
PRODUCTS: Final = frozenset({"mul", "mul_"})
CONTRACTIONS: Final = frozenset({"mm", "bmm", "mv", "dot", "addmm", "baddbmm", "addmv"})


class NotPolynomial(ModelError):
    """An operation that has no meaning modulo a prime."""


class ContractionTooLong(ModelError):
    """More products are summed at once than stay exact modulo this prime."""


def reduced(x: Tensor, prime: int) -> Tensor:
    """Balanced residues of exact integers below 2^53, in place.

    >>> reduced(torch.tensor([9.0, -9.0, 3.0], dtype=torch.float64), 7)
    tensor([ 2., -2.,  3.], dtype=torch.float64)
    """
    return x.sub_(torch.round(x * (1.0 / prime)).mul_(prime))


def residue(value: float, prime: int) -> float:
    """The balanced residue of the rational number that a floating-point number is.

    >>> residue(0.5, 7)
    -3.0
    """
    exact = Fraction(value)
    if exact.denominator % prime == 0:
        raise ModelError(f"{value} has no residue modulo {prime}. Use another prime.", value=value, prime=prime)
    r = exact.numerator * pow(exact.denominator, -1, prime) % prime
    return float(r if r <= prime // 2 else r - prime)


def residues(values: Tensor, prime: int) -> Tensor:
    """`residue` of every entry, in float64.

    >>> residues(torch.tensor([[0.5, -0.25]], dtype=torch.float64), 7)
    tensor([[-3., -2.]], dtype=torch.float64)
    """
    for shift in (0, *SHIFTS):
        scaled = values.to(torch.float64) * 2.0**shift
        if torch.equal(scaled, scaled.round()) and bool((scaled.abs() < EXACT).all()):
            return reduced(reduced(scaled, prime) * residue(2.0**-shift, prime), prime)
    return torch.tensor([residue(v, prime) for v in values.flatten().tolist()], dtype=torch.float64).reshape(values.shape)


def length_limit(prime: int) -> int:
    """How many products of balanced residues can be summed exactly in float64."""
    return (EXACT - 1) // (prime // 2 + 1) ** 2


class Modulo(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's own class has no annotations
    """Every operation inside is exact modulo a prime, or refused.

    Parameters
    ----------
    prime : int
        One of `PRIMES`, or another below 2^27.

    Raises
    ------
    NotPolynomial
        At an operation that is no polynomial, or has no rule here.
    ContractionTooLong
        At a contraction that would not stay exact.

    Examples
    --------
    >>> x = torch.tensor([[3000.0, 5.0]], dtype=torch.float64)
    >>> with Modulo(10007):
    ...     half = (x @ x.T) / 2
    >>> half
    tensor([[1866.]], dtype=torch.float64)
    """

    def __init__(self, prime: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.prime = prime
        self.limit = length_limit(prime)

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        """One operation: its scalars as residues, its result reduced."""
        name, options = func.__name__.split(".")[0], dict(kwargs or {})
        if name in MOVES:
            return _double(func(*args, **options), name)
        special = SPECIAL.get(name)
        if special is not None:
            return special(self, func, args, options)
        if name in PRODUCTS or name in SUMS:
            self._check_sum(name, args)
            return self._reduced(func(*self._scalars(args), **self._options(options)), name)
        if name in CONTRACTIONS:
            return self._contracted(func, name, args, options)
        if not any(isinstance(a, Tensor) and a.is_floating_point() for a in (*args, *options.values())):
            out = func(*args, **options)  # indices and masks are what they are
            if isinstance(out, Tensor) and not out.is_floating_point():
                return out
        raise NotPolynomial(f"'{name}' is no polynomial operation, so it has no meaning modulo a prime.", operation=name)

    def _reduced(self, out: Any, name: str) -> Any:
        return reduced(out, self.prime) if _double(out, name).is_floating_point() else out

    def _scalars(self, args: Sequence[Any]) -> list[Any]:
        return [self._scalar(a) for a in args]

    def _scalar(self, a: Any) -> Any:
        """Numbers, also those that torch has wrapped as tensors without axes, as residues; all else as it is."""
        if isinstance(a, float):
            return residue(a, self.prime)
        if isinstance(a, int):  # an axis, too, is left as it is
            return a if abs(a) <= self.prime // 2 else int(residue(a, self.prime))
        if isinstance(a, Tensor) and a.dim() == 0 and type(a) is Tensor and not a._is_zerotensor():
            value = a.item()
            return a if value == int(value) and abs(value) <= self.prime else residue(value, self.prime)
        return a

    def _options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        return {k: self._scalar(v) if k == "alpha" else v for k, v in options.items()}

    def _check_sum(self, name: str, args: Sequence[Any]) -> None:
        if name == "sum" and args[0].numel() * self.prime >= EXACT:
            raise ContractionTooLong(f"A sum of {args[0].numel():,} numbers is not exact modulo {self.prime}.", prime=self.prime)

    def _contracted(self, func: Any, name: str, args: Sequence[Any], options: Mapping[str, Any]) -> Any:
        if any(options.get(factor, 1) != 1 for factor in ("alpha", "beta")):
            raise NotPolynomial(f"'{name}' with factors {dict(options)} has no rule modulo a prime. Multiply by them.", operation=name)
        left = args[1] if name in ("addmm", "baddbmm", "addmv") else args[0]
        length = left.shape[-1]
        if length > self.limit - 1:
            raise ContractionTooLong(
                f"{length:,} products are summed at once; modulo {self.prime} only {self.limit - 1:,} are exact. Use a smaller prime.",
                length=length,
                prime=self.prime,
            )
        return self._reduced(func(*args, **options), name)


def _double(out: Any, name: str) -> Any:
    for tensor in out if isinstance(out, tuple | list) else (out,):
        if isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.dtype != torch.float64:
            raise NotPolynomial(f"'{name}' gives {tensor.dtype}; exact arithmetic is in float64.", operation=name)
    return out


Special = Callable[[Modulo, Any, Sequence[Any], Mapping[str, Any]], Any]


def _divided(mode: Modulo, func: Any, args: Sequence[Any], options: Mapping[str, Any]) -> Any:
    """By a number: times its inverse."""
    x, by = args[0], args[1]
    if isinstance(by, Tensor):
        if by.dim() != 0 or options.get("rounding_mode"):
            raise NotPolynomial("A quotient of tensors is no polynomial.", operation="div")
        by = float(by)
    return reduced(x * _inverse(by, mode.prime), mode.prime)


def _inverse(value: float, prime: int) -> float:
    r = int(residue(value, prime)) % prime
    if r == 0:
        raise NotPolynomial(f"A division by {value}, which is zero modulo {prime}.", operation="div")
    inverse = pow(r, -1, prime)
    return float(inverse if inverse <= prime // 2 else inverse - prime)


def _mean(mode: Modulo, func: Any, args: Sequence[Any], options: Mapping[str, Any]) -> Any:
    x, dims = args[0], (args[1] if len(args) > 1 else None)
    keep = bool(args[2]) if len(args) > 2 else bool(options.get("keepdim", False))
    axes = [d % x.dim() for d in dims] if dims else list(range(x.dim()))
    total = reduced(x.sum(axes, keepdim=keep), mode.prime)
    return reduced(total * _inverse(prod(x.shape[d] for d in axes), mode.prime), mode.prime)


def _power(mode: Modulo, func: Any, args: Sequence[Any], options: Mapping[str, Any]) -> Any:
    """By repeated multiplication."""
    x, exponent = args[0], args[1]
    if not isinstance(exponent, int | float) or exponent != int(exponent) or not 0 <= exponent <= 64 or not isinstance(x, Tensor):
        raise NotPolynomial(f"The power {exponent} is no polynomial.", operation="pow")
    out = torch.ones_like(x)
    for _ in range(int(exponent)):
        out = reduced(out * x, mode.prime)
    return out


SPECIAL: Final[dict[str, Special]] = {"div": _divided, "mean": _mean, "pow": _power}
