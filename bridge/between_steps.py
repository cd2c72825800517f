"""A symmetry-aware optimizer: between its steps, the model is carried along its orbit.

Any optimizer of torch.optim goes on as it is; every few steps the model is rebalanced, or teleported towards an objective. The function
does not change, the point that the next step starts from does. What the optimizer remembers is carried along: with θ -> gθ a gradient
goes to g⁻ᵀ times it, so averages of gradients (momentum) do, and averages of squared gradients are scaled by the squares.

With rebalancing before every step, the functions that a run goes through do not depend on where on the orbit it was started (own).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final

import torch
from torch import Tensor, nn

from noetherflow.bridge.group_elements import Element
from noetherflow.bridge.orbits import Left, Moved, Orbit, Source, orbit_of
from noetherflow.bridge.rebalance import rebalance
from noetherflow.bridge.teleport import Objective, teleport
from noetherflow.errors import ModelError
from noetherflow.symbolic.symmetries import Symmetries

AVERAGES: Final = frozenset({"momentum_buffer", "exp_avg"})
SQUARES: Final = frozenset({"exp_avg_sq", "square_avg", "max_exp_avg_sq", "sum"})
IDLE: Final = frozenset({"step"})


@dataclass(frozen=True, slots=True)
class Move:
    """One move along the orbit.

    Attributes
    ----------
    step : int
        Steps of the optimizer before it.
    before, after : float
        The norm of all parameters; of teleportation, the objective.
    """

    step: int
    before: float
    after: float


class BetweenSteps:
    """Moves along a model's orbit between the steps of an optimizer; see `between_steps`.

    Attributes
    ----------
    moves : list of Move
    left : dict
        Families that are not used, and why.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, orbit: Orbit, every: int, objective: Objective | None, options: Any) -> None:
        self.optimizer, self.every, self.objective = optimizer, every, objective
        self.moves: list[Move] = []
        self._model, self._options, self._steps = orbit.model, options, 0
        families = [f for f in orbit.families if not (f.matrix and self._keeps_squares())]
        self._symmetries = Symmetries(families, {}, {})
        self.left: Left = dict(orbit.left)
        self.left |= {f: "averages of squares cannot be carried by matrices" for f in orbit.families if f not in families}
        self._handles = [optimizer.register_step_pre_hook(self._before), optimizer.register_step_post_hook(self._after)]

    def __enter__(self) -> BetweenSteps:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.remove()

    def remove(self) -> None:
        """Let the optimizer go on alone."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def move(self) -> Moved | None:
        """Move now, and carry along what the optimizer remembers; None if there is no symmetry to move along."""
        if not len(self._symmetries):
            return None
        if self.objective is None:
            moved = rebalance(self._model, self._symmetries, strict=False, inplace=True, **self._options)
        else:
            moved = teleport(self._model, self._symmetries, self.objective, inplace=True, **self._options)
        for element in moved.elements:
            self._carry(element)
        self.moves.append(Move(self._steps, moved.before, moved.after))
        return moved

    def _keeps_squares(self) -> bool:
        return not isinstance(self.optimizer, torch.optim.SGD)

    def _before(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        unknown = {name for state in optimizer.state.values() for name in state} - AVERAGES - SQUARES - IDLE
        if unknown:
            raise ModelError(
                f"{type(optimizer).__name__} remembers {sorted(unknown)}, which it is not known how to carry along. Use SGD, Adam, AdamW, "
                "RMSprop or Adagrad."
            )

    def _after(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        self._steps += 1
        if self._steps % self.every == 0:
            self.move()

    @torch.no_grad()
    def _carry(self, element: Element) -> None:
        """Averages of gradients by g⁻ᵀ, averages of their squares by the squares of scales."""
        own = dict(self._model.named_parameters())
        states = {name: self.optimizer.state.get(own[name], {}) for name in element.family.parameters}
        for key in {key for state in states.values() for key in state} & (AVERAGES | SQUARES):
            back = contragredient(element, 2 if key in SQUARES else 1)
            kept = {name: state.get(key) for name, state in states.items()}
            given = {
                name: (torch.zeros_like(own[name]) if t is None else t).to(element.value.device, torch.float64) for name, t in kept.items()
            }
            for name, tensor in back.act(given).items():
                if (buffer := kept[name]) is not None:
                    buffer.copy_(tensor)


def contragredient(element: Element, power: int = 1) -> Element:
    """The element that acts on gradients, g⁻ᵀ; of scales, its square for squared gradients.

    Examples
    --------
    >>> import noetherflow as nf
    >>> (family,) = nf.symmetries(nf.trace(nf.models.MLP([3, 4, 2]), torch.randn(5, 3)))
    >>> back = contragredient(Element(family, torch.ones(4, dtype=torch.float64)))
    >>> back.value.tolist()
    [-1.0, -1.0, -1.0, -1.0]
    """
    if element.inverse is not None:
        return Element(element.family, element.inverse.mT, element.value.mT)
    if element.family.actions[0].form == "shift":
        return Element(element.family, torch.zeros_like(element.value))
    return Element(element.family, -power * element.value)


def between_steps(
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    source: Source,
    *,
    every: int = 1,
    objective: Objective | None = None,
    approximate: bool = False,
    **options: Any,
) -> BetweenSteps:
    """Make an optimizer symmetry-aware: every few steps the model is carried along its orbit, the function unchanged.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
        SGD in any form; Adam, AdamW, RMSprop or Adagrad for symmetries by scales (matrix families are then left alone). The training loop
        stays as it is.
    model : nn.Module
    source : Symmetries, ArchitectureGraph, Tensor or tuple
        Where its symmetries come from, as for `noetherflow.rebalance`.
    every : int
        Steps from one move to the next.
    objective : callable, optional
        Absent: the model is rebalanced (`noetherflow.rebalance`). Given: it is teleported to where this is larger
        (`noetherflow.teleport`), from all parameters by name to a scalar.
    approximate : bool
        Also use families that an eps breaks.
    **options
        For `noetherflow.rebalance` or `noetherflow.teleport`.

    Returns
    -------
    BetweenSteps
        ``.moves``, ``.left``; ``.move()`` moves at once, ``.remove()`` ends it; also a context manager.

    Raises
    ------
    ModelError
        If the symmetries are not the model's, `every` is below one, or (at a step) the optimizer keeps what cannot be carried along.

    Notes
    -----
    `noetherflow.watch` does not know of the moves: do not watch such a run. Laws start anew at each move.

    Examples
    --------
    >>> import noetherflow as nf
    >>> model, x = nf.models.MLP([3, 8, 2]).double(), torch.randn(20, 3).double()
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    >>> with between_steps(optimizer, model, nf.trace(model, x), every=5) as moving:
    ...     for _ in range(20):
    ...         optimizer.zero_grad()
    ...         model(x).square().mean().backward()
    ...         optimizer.step()
    >>> len(moving.moves), all(move.after <= move.before for move in moving.moves)
    (4, True)
    """
    if every < 1:
        raise ModelError(f"The model can move every step or less often; got every={every}.")
    foreign = _foreign(optimizer, model.parameters())
    if foreign:
        raise ModelError(f"The optimizer has {foreign} parameters that are not the model's. Give the optimizer of this model.")
    return BetweenSteps(optimizer, orbit_of(model, source, approximate=approximate), every, objective, options)


def _foreign(optimizer: torch.optim.Optimizer, parameters: Iterable[Tensor]) -> int:
    own = {id(p) for p in parameters}
    return sum(id(p) not in own for group in optimizer.param_groups for p in group["params"])
