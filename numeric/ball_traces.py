"""A function of tensors, written with torch.func's derivatives, enclosed in balls.

The elementary operations that the function comes to are recorded below autograd and below torch.func, where derivatives of any order are
written out, and each is then carried out on balls. A tensor that is neither an argument nor a constant nor the result of a recorded
operation is refused, and so is a number that is read off a tensor: nothing gets past the record. Balls must agree with what float64 gives
for the same record; a rule that is wrong shows there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeAlias

from torch import Tensor
from torch.func import functionalize
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from noetherflow.numeric.ball_rules import BY_MEMORY, enclosed
from noetherflow.numeric.balls import Ball, NotEnclosed

# float64 rounds as often as the balls' midpoints do; the functions of its libraries err by up to four units, the balls' by one.
AGREES: Final = 16.0
# Some of them lose digits that the balls keep (1 + erf x for x < 0), relative to what they are added to; a wrong rule differs by more.
LOST: Final = 2.0**-40
READS: Final = frozenset({"_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero"})

Step: TypeAlias = tuple[Any, Sequence[Any], Mapping[str, Any], Any]


def enclosure(function: Callable[..., Tensor], *args: Any, constants: Sequence[Tensor] = ()) -> Ball:
    """The ball of a function's exact value.

    Parameters
    ----------
    function : callable
        Of nested tuples and dicts of tensors, to one tensor. Constants in it that are no short binary fractions stand for any number within
        2^-50 of them (`Ball.constant`).
    *args
        In float64 (others are refused) or of integers; taken as exact.
    constants : sequence of Tensor
        Those that the function reads beside its arguments, as constants. Any other is refused: it may be a value that was not recorded.

    Raises
    ------
    NotEnclosed
        At an operation without a rule, a border between two pieces, a result that is not finite, or one far from float64's.

    Examples
    --------
    The derivative of x³ at 2:

    >>> import torch
    >>> from torch.func import grad
    >>> ball = enclosure(grad(lambda x: (x**3).sum()), torch.tensor([2.0], dtype=torch.float64))
    >>> ball.contains(torch.tensor([12.0])), bool(ball.radius < 1e-13)
    (True, True)
    """
    leaves, form = tree_flatten(args)
    record = Record([*leaves, *constants])
    with record:
        out = functionalize(lambda *flat: function(*tree_unflatten(flat, form)))(*leaves)
    known = {id(x): Ball.exact(x) if x.is_floating_point() else x for x in leaves}
    known |= {id(x): Ball.constant(x.double()) if x.is_floating_point() else x for x in (*constants, *record.literals)}
    found = _carried_out(record.needed_for(out), known, out)
    _check(found, out)
    return found


class Record(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's own class has no annotations
    """The operations inside, one after the other.

    Parameters
    ----------
    known : sequence of Tensor
        Arguments and constants.

    Attributes
    ----------
    steps : list of (operation, args, options, results)
        Their tensors are kept, so that each has an identity of its own.
    literals : list of Tensor
        Numbers that stand in the function's text.
    """

    def __init__(self, known: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.steps: list[Step] = []
        self.literals: list[Tensor] = []
        self._known = {id(x) for x in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        """One operation."""
        options = dict(kwargs or {})
        name = func.__name__.split(".")[0]
        if name in READS or func._schema.is_mutable:  # what is written into a view would change what others read, past the record
            raise NotEnclosed(f"'{name}' reads a number off a tensor or writes into one; neither has a rule in balls.", operation=name)
        for x in _tensors((args, options)):
            if id(x) in self._known:
                continue
            if not name.startswith("lift_fresh"):
                raise NotEnclosed(f"A tensor of shape {tuple(x.shape)} is neither an argument nor a constant nor computed from them.")
            self.literals.append(x)
        out = func(*args, **options)
        self._known |= {id(x) for x in _tensors(out)}
        self.steps.append((func, args, options, out))
        return out

    def needed_for(self, out: Tensor) -> list[Step]:
        """The steps that a result depends on."""
        needed, found = {id(out)}, []
        for step in reversed(self.steps):
            _, args, options, results = step
            if any(id(x) in needed for x in _tensors(results)):
                needed |= {id(x) for x in _tensors((args, options))}
                found.append(step)
        return found[::-1]


def _tensors(values: Any) -> list[Tensor]:
    return [x for x in tree_leaves(values) if isinstance(x, Tensor)]


def _given(values: Any, known: Mapping[int, Any]) -> Any:
    return tree_map(lambda x: known[id(x)] if isinstance(x, Tensor) else x, values)


def _carried_out(steps: Sequence[Step], known: dict[int, Any], out: Tensor) -> Ball:
    """Every step on balls; each is forgotten after its last use."""
    last = {id(x): k for k, (_, args, options, _) in enumerate(steps) for x in _tensors((args, options))}
    for k, (func, args, options, results) in enumerate(steps):
        name = func.__name__.split(".")[0]
        if name in BY_MEMORY and (not args[0].is_contiguous() or args[0].storage_offset()):
            raise NotEnclosed(f"'{name}' of a tensor whose entries do not lie in order has no rule in ball arithmetic.", operation=name)
        values = enclosed(name, func, *_given((list(args), options), known))
        pairs = [(results, values)] if isinstance(results, Tensor) else zip(results, values, strict=True)
        known |= {id(x): value for x, value in pairs}
        for x in _tensors((args, options)):
            if last[id(x)] == k and x is not out:
                known.pop(id(x), None)
    found: Ball = known[id(out)]
    return found


def _check(found: Ball, measured: Tensor) -> None:
    if not bool(found.radius.isfinite().all() & found.middle.isfinite().all()):
        raise NotEnclosed("The balls are not finite: they grew too wide on the way.")
    if not measured.numel():
        return
    far = (found.middle - measured).abs() > AGREES * found.radius + LOST * measured.abs().amax()
    if bool(far.any()):
        raise NotEnclosed(
            f"{int(far.sum())} of {far.numel()} balls do not hold what float64 gives: a rule of noetherflow.numeric.ball_rules is wrong, "
            "or float64 has lost all digits here.",
            entries=int(far.sum()),
        )
