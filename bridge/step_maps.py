"""A rule's step as a function of tensors, from its form: (θ, g, buffers) -> (θ', buffers'), entry by entry and differentiable."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import sympy as sp
import torch
from torch import Tensor

from noetherflow.errors import RuleError
from noetherflow.symbolic.forms import GRADIENT, STEP, THETA, Form
from noetherflow.symbolic.nonlinear import Orthogonal

State = Mapping[str, Tensor]

TORCH: Final = [{"Sign": torch.sign, "Magnitude": torch.abs, "Larger": torch.maximum}, "torch"]


@dataclass(frozen=True, slots=True)
class StepMap:
    """One step of a rule.

    Attributes
    ----------
    form : Form
    function : callable
        Of θ, g, the buffers before and the hyper-parameters, in this order: u and the buffers after.
    """

    form: Form
    function: Callable[..., list[Tensor]]

    def start(self, theta: Tensor) -> dict[str, Tensor]:
        """Parameters, and buffers of zeros."""
        return {THETA.name: theta, **{before.name: torch.zeros_like(theta) for before, _ in self.form.buffers}}

    def __call__(self, state: State, gradient: Tensor, numbers: Mapping[str, float]) -> dict[str, Tensor]:
        """The state after a step.

        Parameters
        ----------
        state : mapping of str to Tensor
            θ and the buffers by the names of their vectors.
        gradient : Tensor
            At θ.
        numbers : mapping of str to float
            Hyper-parameters by the form's names.
        """
        theta = state[THETA.name]
        values = [torch.as_tensor(numbers[name], dtype=theta.dtype) for name, _ in self.form.hyperparameters]
        befores = [state[before.name] for before, _ in self.form.buffers]
        step, *afters = self.function(theta, gradient, *befores, *values)
        moved = theta - numbers["lr"] * step
        return {THETA.name: moved, **{before.name: after for (before, _), after in zip(self.form.buffers, afters, strict=True)}}


@lru_cache(maxsize=64)
def step_map(form: Form) -> StepMap:
    """Compile a form.

    Raises
    ------
    RuleError
        If a step takes orthogonal factors or the Fisher matrix, which are no functions of entries, or gradients elsewhere than at θ.

    Examples
    --------
    >>> from noetherflow.symbolic.rules import sgd_form
    >>> rule = step_map(sgd_form(momentum=True, nesterov=False, maximize=False))
    >>> numbers = {"lr": 0.5, "weight_decay": 0.0, "momentum": 0.9, "dampening": 0.0}
    >>> rule(rule.start(torch.ones(2)), 2 * torch.ones(2), numbers)
    {'theta': tensor([0., 0.]), 'b': tensor([2., 2.])}
    """
    if form.invariant or form.point != THETA or any(expression.has(Orthogonal) for _, expression in form.equations):
        raise RuleError(
            f"A step of {form.name} is no function of single entries of θ, its gradient there and the buffers. Give a rule that is: SGD, "
            "Adam, RMSprop and the like.",
            form=form.name,
        )
    given = [THETA, GRADIENT, *(before for before, _ in form.buffers), *(symbol for _, symbol in form.hyperparameters)]
    made = [STEP, *(after for _, after in form.buffers)]
    hidden = {symbol: sp.Dummy(f"x{i}") for i, symbol in enumerate(given)}  # names such as b' are no names of arguments
    body = [_opened(form, vector).xreplace(hidden) for vector in made]
    function: Any = sp.lambdify([hidden[s] for s in given], body, modules=TORCH, cse=True)
    return StepMap(form, function)


def _opened(form: Form, vector: sp.Symbol) -> sp.Expr:
    table: Mapping[Any, sp.Expr] = dict(form.equations)
    out = sp.sympify(table[vector])
    while inner := [v for v in out.free_symbols if v in table]:
        out = out.xreplace({v: table[v] for v in inner})
    return out
