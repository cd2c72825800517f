"""A function of tensors, written with torch.func's derivatives, enclosed in balls.

torch records the elementary operations that the function comes to, derivatives of any order written out, and each is then carried out on
balls. Nothing is carried out that was not recorded: a value that the function reads off a tensor to decide what to do next stops the
recording. Balls must agree with what float64 gives for the same record; a rule that is wrong shows there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor
from torch.func import functionalize
from torch.fx import GraphModule, Interpreter, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_flatten, tree_unflatten

from noetherflow.numeric.ball_rules import BY_MEMORY, enclosed
from noetherflow.numeric.balls import Ball, NotEnclosed

# float64 rounds as often as the balls' midpoints do, and the functions of its libraries err by up to four units where the balls' err by one.
AGREES: Final = 16.0
# Some of its functions lose digits that the balls keep (1 + erf x for x < 0), relative to what they are added to; a wrong rule differs by more.
LOST: Final = 2.0**-40


def enclosure(function: Callable[..., Tensor], *args: Any, constants: Sequence[Tensor] = ()) -> Ball:
    """The ball of a function's exact value.

    Parameters
    ----------
    function : callable
        Of nested tuples and dicts of tensors, to one tensor. Constants in it that are no short binary fractions stand for any number within
        2^-50 of them (`Ball.constant`).
    *args
        In float64 or of integers; taken as exact.
    constants : sequence of Tensor
        Those that the function reads beside its arguments, as constants. Any other is refused: it may be a value that was not recorded.

    Raises
    ------
    NotEnclosed
        At an operation without a rule, a border between two pieces, a result that is not finite, or one far from float64's.

    Examples
    --------
    The derivative of x³ at 2:

    >>> from torch.func import grad
    >>> ball = enclosure(grad(lambda x: (x**3).sum()), torch.tensor([2.0], dtype=torch.float64))
    >>> ball.contains(torch.tensor([12.0])), bool(ball.radius < 1e-13)
    (True, True)
    """
    leaves, form = tree_flatten(args)
    recorded = make_fx(functionalize(lambda *flat: function(*tree_unflatten(flat, form))))(*leaves)
    recorded.graph.eliminate_dead_code()
    recorded.recompile()
    found: Ball = _Balls(recorded, constants).run(*(Ball.exact(x) if x.is_floating_point() else x for x in leaves))
    _check(found, recorded(*leaves))
    return found


def _check(found: Ball, measured: Tensor) -> None:
    if not bool(found.radius.isfinite().all() & found.middle.isfinite().all()):
        raise NotEnclosed("The balls are not finite: they grew too wide on the way.")
    far = (found.middle - measured).abs() > AGREES * found.radius + LOST * measured.abs().amax()
    if bool(far.any()):
        raise NotEnclosed(
            f"{int(far.sum())} of {far.numel()} balls do not hold what float64 gives: a rule of noetherflow.numeric.ball_rules is wrong, or "
            "float64 has lost all digits here.",
            entries=int(far.sum()),
        )


class _Balls(Interpreter):
    """Carries a record out on balls."""

    def __init__(self, recorded: GraphModule, constants: Sequence[Tensor]) -> None:
        super().__init__(recorded)
        self.extra_traceback = False
        self.constants = constants
        of_text = [n for n in recorded.graph.nodes if n.op == "get_attr" and all("lift_fresh" in str(user.target) for user in n.users)]
        self.literals = {n.target for n in of_text}  # numbers that stand in the function's text; torch lifts nothing else

    def run_node(self, n: Node) -> Any:
        """One node; what reads memory by strides is understood for tensors that lie in order."""
        name = getattr(n.target, "__name__", "").split(".")[0]
        if name in BY_MEMORY and not (isinstance(n.args[0], Node) and n.args[0].meta["val"].is_contiguous()):
            raise NotEnclosed(f"'{name}' of a tensor whose entries do not lie in order has no rule in ball arithmetic.", operation=name)
        return super().run_node(n)

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        """A tensor that is no argument."""
        value = super().get_attr(target, args, kwargs)
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        given = any(value.shape == c.shape and torch.equal(value, c) for c in self.constants)
        if target not in self.literals and not given:
            raise NotEnclosed(f"A tensor of shape {tuple(value.shape)} is neither an argument nor a constant nor computed from them.")
        return Ball.constant(value)

    def call_function(self, target: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """One recorded operation."""
        return enclosed(target.__name__.split(".")[0], target, args, kwargs)
