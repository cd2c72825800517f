"""Listening to the functions that chosen modules call in their own forward pass, in order, and to nothing else.

A function mode is on while such a module runs and off while it waits for another module that it called. It is put on by a hook before the
forward pass and taken off by one after it, whether the pass ends or fails. Passes without gradients are not listened to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode, _get_current_function_mode

from noetherflow.bridge.norm_functions import Chains, Form, Heard, hear_function


@dataclass
class Frame:
    """One call of a module that is not over; without chains, of one whose functions are not wanted."""

    module: nn.Module
    chains: Chains | None
    heard: list[Heard] = field(default_factory=list)


class Listener(TorchFunctionMode):
    """Hears the normalisations that modules call as functions.

    Parameters
    ----------
    over : callable
        Called at the end of each call of a module that is listened to, with its path and what was heard, in order.

    Examples
    --------
    >>> class Head(nn.Module):
    ...     def forward(self, x):
    ...         return torch.tanh(nn.functional.layer_norm(x, (3,)))
    >>> model, found = nn.Sequential(nn.Linear(2, 3), Head()), []
    >>> listener = Listener(lambda path, heard: found.append((path, [str(form) for h in heard for form in h.inputs])))
    >>> listener.attach({"1": model[1]}, {"1": {}})
    >>> _ = model(torch.zeros(4, 2))
    >>> found
    [('1', ['layer_norm of 3 (2 axes, eps 1e-05)'])]
    >>> listener.detach()
    """

    def __init__(self, over: Callable[[str, list[Heard]], None]) -> None:
        super().__init__()
        self._over, self._on = over, False
        self._frames: list[Frame] = []
        self._handles: list[Any] = []

    def attach(self, modules: Mapping[str, nn.Module], forms: Mapping[str, Mapping[Form, torch.dtype]]) -> None:
        """Listen to modules, each for torch's functions and for chains of the given forms."""
        own = {id(module) for module in modules.values()}
        for path, module in modules.items():
            self._handles.append(module.register_forward_pre_hook(partial(self._begin, forms[path])))
            self._handles.append(module.register_forward_hook(partial(self._end, path), always_call=True))
        for child in _below(modules.values()):
            if id(child) not in own:
                self._handles.append(child.register_forward_pre_hook(partial(self._begin, None)))
                self._handles.append(child.register_forward_hook(partial(self._end, ""), always_call=True))

    def detach(self) -> None:
        """Stop listening."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.reset()

    def reset(self) -> None:
        """Forget passes that were broken off in a way that calls no hooks."""
        self._frames.clear()
        self._switch()

    def _begin(self, forms: Mapping[Form, torch.dtype] | None, module: nn.Module, inputs: Any) -> None:
        wanted = forms is not None and torch.is_grad_enabled() and not torch.compiler.is_compiling()
        self._frames.append(Frame(module, Chains(forms or {}) if wanted else None))
        self._switch()

    def _end(self, path: str, module: nn.Module, inputs: Any, output: Any) -> None:
        while self._frames and self._frames[-1].module is not module:
            self._frames.pop()
        frame = self._frames.pop() if self._frames else None
        self._switch()
        if frame is not None and frame.chains is not None and output is not None:  # None: the pass failed
            self._over(path, frame.heard)

    def _switch(self) -> None:
        """On if the innermost module is one to listen to. A mode that the module's own code put on over this one stays where it is."""
        wanted = bool(self._frames) and self._frames[-1].chains is not None
        if wanted and not self._on:
            self.__enter__()  # type: ignore[no-untyped-call]
            self._on = True
        elif self._on and not wanted and _get_current_function_mode() is self:  # type: ignore[no-untyped-call]
            self.__exit__(None, None, None)
            self._on = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the function, and note it if it is a normalisation."""
        options = kwargs or {}
        result = func(*args, **options)
        frame = self._frames[-1] if self._frames else None
        if frame is not None and frame.chains is not None:
            heard = hear_function(func, args, options, result) or frame.chains.hear(func, args, result)
            if heard is not None:
                frame.heard.append(heard)
        return result


def _below(modules: Iterable[nn.Module]) -> list[nn.Module]:
    found = {id(child): child for module in modules for child in module.modules() if child is not module}
    return list(found.values())
