"""How far float64 can be from the exact value of a polynomial, whatever cancels on the way.

Every operation is carried out on absolute values, differences as sums. If M comes out where the polynomial has v, and N roundings at most
have gone into a number, float64 is within γ_N M of v, γ_N = N u / (1 − N u) <= 2 N u. A product has the roundings of both factors.

Source: own; elementary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from noetherflow.numeric.modular import CONTRACTIONS, MOVES, NotPolynomial

aten: Final = torch.ops.aten
AS_SUMS: Final[dict[str, Any]] = {"sub": aten.add, "rsub": aten.add}
SUMS: Final = frozenset({"add", "scatter_add", "index_add", "index_put", *AS_SUMS})
NUMBERS: Final = frozenset({"add", *AS_SUMS})  # of which an argument may be a number


class Majorant(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's own class has no annotations
    """Every operation inside is on absolute values, also of what goes in.

    Attributes
    ----------
    roundings : int
        N, of all that was computed.

    Raises
    ------
    NotPolynomial
        At an operation that is no polynomial, or has no rule here.

    Examples
    --------
    >>> x = torch.tensor([3.0, 4.0], dtype=torch.float64)
    >>> with Majorant() as sizes:
    ...     y = (x - 1.0) @ x - 10.0
    >>> float(y), sizes.roundings
    (42.0, 7)
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.roundings = 0
        self._of: dict[int, tuple[Tensor, int]] = {}  # tensors are kept, so that each has an identity of its own

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        """One operation, and the roundings in what it gives."""
        name, options = func.__name__.split(".")[0], dict(kwargs or {})
        if func._schema.is_mutable and args[0].is_floating_point():  # would change what others have read
            raise NotPolynomial(f"'{name}' writes into a tensor, which has no majorant.", operation=name)
        args = [self._sized(a) for a in args]
        if name in MOVES or name == "lift_fresh":
            out = func(*args, **options)
            made = name == "lift_fresh" or "full" in name or name == "scalar_tensor"
            return self._noted(self._sized(out) if made else out, max(map(self._in, args), default=0))
        return self._noted(*self._computed(name, func, args, {k: self._sized(v) for k, v in options.items()}))

    def _computed(self, name: str, func: Any, args: list[Any], options: dict[str, Any]) -> tuple[Any, int]:
        before = [self._in(a) for a in args]
        if name == "neg":
            return args[0], before[0]
        if name in SUMS:
            numbers = [_positive(a) for a in args] if name in NUMBERS else args
            return AS_SUMS.get(name, func)(*numbers, **{k: abs(v) for k, v in options.items()}), max(before) + 2  # one for alpha
        if name == "mul" or (name == "div" and _is_number(args[1]) and not options):
            return func(*map(_positive, args)), sum(before) + 1
        if name in ("sum", "mean"):
            out = func(*args, **options)
            return out, before[0] + args[0].numel() // max(out.numel(), 1)
        if name == "pow" and _is_natural(args[1]):
            return func(*args, **options), int(args[1]) * (before[0] + 1)
        if name in CONTRACTIONS:
            left = args[1] if name in ("addmm", "baddbmm", "addmv") else args[0]
            return func(*args, **options), sum(before) + left.shape[-1] + 1
        if not any(isinstance(a, Tensor) and a.is_floating_point() for a in (*args, *options.values())):
            out = func(*args, **options)
            if isinstance(out, Tensor) and not out.is_floating_point():
                return out, 0  # indices and masks are what they are
        raise NotPolynomial(f"'{name}' is no polynomial operation, so it has no majorant.", operation=name)

    def _in(self, a: Any) -> int:
        if isinstance(a, list | tuple):
            return max(map(self._in, a), default=0)
        return self._of.get(id(a), (None, 0))[1] if isinstance(a, Tensor) else 0

    def _sized(self, a: Any) -> Any:
        """Absolute values of what was not computed here: arguments, numbers in the text, torch's own tensors of them."""
        if isinstance(a, float):
            return abs(a)
        return a.abs() if isinstance(a, Tensor) and a.is_floating_point() and id(a) not in self._of else a

    def _noted(self, out: Any, roundings: int) -> Any:
        for x in out if isinstance(out, list | tuple) else (out,):
            self._of[id(x)] = (x, roundings)
        self.roundings = max(self.roundings, roundings)
        return out


def _positive(a: Any) -> Any:
    """Integers, too."""
    return a if isinstance(a, bool) or (isinstance(a, Tensor) and a.dtype == torch.bool) else abs(a)


def _is_natural(a: Any) -> bool:
    return isinstance(a, int | float) and a == int(a) and a >= 0


def _is_number(a: Any) -> bool:
    return not isinstance(a, Tensor) or a.dim() == 0
