"""The tensors that a rule's vectors are made of: θ, g and the buffers of each parameter."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from noetherflow.bridge.combinations import GRADIENT_NAME, THETA_NAME, buffer_name
from noetherflow.bridge.optimizers import reader_of
from noetherflow.errors import RunError
from noetherflow.symbolic.forms import Form


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
        self._forms: dict[int, Form] = {}
        for options in self.optimizer.param_groups:
            self._forms |= dict.fromkeys(map(id, options["params"]), self._reader.form(options))

    def _kept(self, parameter: Tensor) -> Mapping[str, Any]:
        kept: Mapping[str, Any] = self.optimizer.state.get(parameter, {})
        return kept

    def buffers(self, name: str) -> dict[str, Tensor]:
        """The buffers of a parameter by vector, those that its form has and that exist."""
        parameter = self._parameters[name]
        found = self._reader.buffers(self._kept(parameter))
        return {before.name: found[before.name] for before, _ in self._forms[id(parameter)].buffers if before.name in found}

    def vectors(self, names: Iterable[str], *, gradients: bool, buffers: bool, given: bool = False) -> dict[str, dict[str, Tensor]]:
        """Parameter name -> its tensors by name; `given`: with the vectors of the coming step that are no functions of entries."""
        out: dict[str, dict[str, Tensor]] = {}
        options_of = {id(p): options for options in self.optimizer.param_groups for p in options["params"]} if given else {}
        for name in names:
            parameter = self._parameters[name]
            out[name] = {THETA_NAME: parameter.detach()}
            if gradients and parameter.grad is not None:
                out[name][GRADIENT_NAME] = parameter.grad.detach()
            if buffers:
                out[name] |= {buffer_name(vector): tensor.detach() for vector, tensor in self.buffers(name).items()}
            if given:
                out[name] |= self._reader.given(options_of[id(parameter)], parameter, self._kept(parameter))
        return out

    def dtype(self, name: str) -> torch.dtype:
        """Element type of a parameter."""
        return self._parameters[name].dtype

    def hyperparameters(self) -> dict[int, dict[str, float]]:
        """Each group's values for the coming step."""
        watched = {id(p) for p in self._parameters.values()}
        out = {}
        for g, options in enumerate(self.optimizer.param_groups):
            first = next((p for p in options["params"] if id(p) in watched), None)
            out[g] = self._reader.values(options, None if first is None else self._kept(first))
        return out

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
        needed = [name for name, p in self._parameters.items() if self._forms[id(p)].buffers]
        without = [name for name in needed if len(self.buffers(name)) < len(self._forms[id(self._parameters[name])].buffers)]
        if without and len(without) < len(needed):
            raise RunError(
                f"Some parameters have momentum buffers and others do not: {without[:4]}. They must start together.", without=without
            )
        return not without and bool(needed)

    def check_steps(self) -> None:
        """Refuse parameters of one group that have made different numbers of steps: corrections of the start would differ.

        Raises
        ------
        RunError
            Naming the group.
        """
        watched = {id(p) for p in self._parameters.values()}
        for g, options in enumerate(self.optimizer.param_groups):
            steps = {float(kept["step"]) for p in options["params"] if id(p) in watched and "step" in (kept := self._kept(p))}
            if len(steps) > 1:
                raise RunError(
                    f"Parameters of group {g} have made different numbers of steps ({sorted(steps)[:4]}). Give them groups of their own.",
                    steps=steps,
                )


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
