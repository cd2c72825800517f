"""The tensors that a rule's vectors are made of: θ, g and the buffer of each parameter, and the combinations that a form makes of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import sympy as sp
import torch
from torch import Tensor, nn

from noetherflow.bridge.optimizers import reader_of
from noetherflow.bridge.printing import Compiled, compile_expressions
from noetherflow.errors import RunError
from noetherflow.symbolic.pairings import Vector, parts
from noetherflow.symbolic.rules import GRADIENT, STEP, THETA, Form

THETA_NAME, GRADIENT_NAME, BUFFER_NAME = "theta", "gradient", "buffer"


@dataclass(frozen=True)
class Combinations:
    """A form's vectors as linear combinations of the tensors at hand before the step."""

    form: Form

    @cached_property
    def _compiled(self) -> Compiled:
        tensors = {THETA: THETA_NAME, GRADIENT: GRADIENT_NAME, **{before: BUFFER_NAME for before, _ in self.form.buffers}}
        out: dict[tuple[str, ...], sp.Expr] = {}
        for vector in (STEP, *(after for _, after in self.form.buffers)):
            for source, coefficient in parts(self._expanded(vector)).items():
                out[vector.name, tensors[source]] = coefficient
        return compile_expressions(out)

    def _expanded(self, vector: Vector) -> sp.Expr:
        table = dict(self.form.equations)
        out = table[vector]
        while made := [v for v in out.free_symbols if v in table]:
            out = out.xreplace({v: table[v] for v in made})
        return sp.expand(out)

    def numbers(self, values: Mapping[str, float], *, buffered: bool) -> dict[str, dict[str, float]]:
        """Coefficients for one step; without a buffer yet its part is zero."""
        found = self._compiled({symbol: values[name] for name, symbol in self.form.hyperparameters})
        out: dict[str, dict[str, float]] = {}
        for (vector, tensor), coefficient in found.items():
            if buffered or tensor != BUFFER_NAME:
                out.setdefault(vector, {})[tensor] = float(coefficient)
        return out


@dataclass
class State:
    """A model's parameters beside the optimizer that moves them."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        self._reader = reader_of(self.optimizer)
        known = dict(self.model.named_parameters(remove_duplicate=False))
        self._parameters = {name: known[name] for name in self.names}

    def buffer(self, name: str) -> Tensor | None:
        """The momentum buffer of a parameter."""
        return self._reader.buffer(self.optimizer.state.get(self._parameters[name], {}))

    def vectors(self, names: Iterable[str], *, gradients: bool, buffers: bool) -> dict[str, dict[str, Tensor]]:
        """Parameter name -> its tensors by vector name."""
        out = {}
        for name in names:
            parameter = self._parameters[name]
            out[name] = {THETA_NAME: parameter.detach()}
            if gradients and parameter.grad is not None:
                out[name][GRADIENT_NAME] = parameter.grad.detach()
            buffer = self.buffer(name) if buffers else None
            if buffer is not None:
                out[name][BUFFER_NAME] = buffer.detach()
        return out

    def dtype(self, name: str) -> torch.dtype:
        """Element type of a parameter."""
        return self._parameters[name].dtype

    def hyperparameters(self, *, first: bool) -> dict[int, dict[str, float]]:
        """Each group's values for the coming step."""
        return {g: self._reader.values(options, first=first) for g, options in enumerate(self.optimizer.param_groups)}

    def missing_gradients(self) -> list[str]:
        """Parameters that laws need and that got no gradient."""
        return [name for name, p in self._parameters.items() if p.grad is None]

    def has_buffers(self) -> bool:
        """Whether the optimizer has made its buffers; all of them or none.

        Raises
        ------
        RunError
            If some parameters have one and others do not.
        """
        keeping = {id(p) for o in self.optimizer.param_groups if self._reader.form(o).buffers for p in o["params"]}
        needed = [name for name, p in self._parameters.items() if id(p) in keeping]
        without = [name for name in needed if self.buffer(name) is None]
        if without and len(without) < len(needed):
            raise RunError(
                f"Some parameters have momentum buffers and others do not: {without[:4]}. They must start together.", without=without
            )
        return not without and bool(needed)


def check(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Refuse a model and an optimizer that do not belong together, or that cannot be watched.

    Raises
    ------
    RunError
        Saying which parameters are at fault and what to do.
    """
    reader_of(optimizer)
    named = dict(model.named_parameters())
    own = {id(p): name for name, p in named.items()}
    held = [p for options in optimizer.param_groups for p in options["params"]]
    foreign = [tuple(p.shape) for p in held if id(p) not in own]
    if foreign:
        raise RunError(
            f"The optimizer holds {len(foreign)} tensors that are not parameters of this model (shapes {foreign[:4]}). "
            "Build the optimizer from this model's parameters(), after moving or copying the model.",
            shapes=foreign,
        )
    left = [name for name, p in named.items() if p.requires_grad and id(p) not in {id(q) for q in held}]
    if left:
        raise RunError(
            f"The optimizer does not move {left[:6]}. Give it these parameters, or freeze them with requires_grad_(False).", left=left
        )
    bad = [name for name, p in named.items() if not bool(torch.isfinite(p.detach()).all())]
    if bad:
        raise RunError(
            f"Parameters {bad[:6]} hold values that are not finite. Load a sound checkpoint or initialise again.", parameters=bad
        )
