"""What a normalisation's forward and backward pass tell, captured as they happen: the variance, and the gradient that its eps lets through.

For BatchNorm the predicted current of a scale of channel c is eps / (var_c + eps) · gain_c · ∂L/∂gain_c (symbolic.currents). Micro-batches
have variances of their own, so currents are summed where gradients are: in the backward pass. Clipping and loss scaling multiply all
gradients afterwards; the factor is read off the gain's own gradient. Nothing is captured in evaluation or without gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from noetherflow.bridge.norm_noise import NormNoise, norm_noise
from noetherflow.bridge.printing import compile_expressions
from noetherflow.errors import RunError
from noetherflow.symbolic.currents import EPS, VARIANCE, scale_defect

_DEFECT = compile_expressions({("defect",): scale_defect()})


@dataclass
class Record:
    """Sums over the micro-batches since the last step, per channel, in float64.

    Attributes
    ----------
    current : Tensor or None
        Σ defect · gain · ∂L/∂gain, before clipping.
    gain_gradient : Tensor or None
        Σ ∂L/∂gain, before clipping.
    noise : NormNoise or None
        Sizes that rounding acts on, where they were measured.
    reference : float
        Mean square of the gain's and the shift's gradients: what the noise goes with between measurements.
    """

    current: Tensor | None = None
    gain_gradient: Tensor | None = None
    noise: NormNoise | None = None
    reference: float = 0.0


@dataclass
class Capture:
    """Hooks on the normalisations that laws need.

    Parameters
    ----------
    model : nn.Module
    modules : sequence of (path, calls)
        Modules, and how often each is called in one forward pass.
    producers : sequence of str
        Modules whose weight makes what is normalised; the size of their inputs is measured with the noise.
    measuring : bool
        Whether the noise is measured in the coming step; it costs a pass over the activations, so it is done now and then.
    """

    model: nn.Module
    modules: Sequence[tuple[str, int]]
    producers: Sequence[str] = ()
    measuring: bool = True
    input_squares: dict[str, float] = field(default_factory=dict)
    records: dict[tuple[str, int], Record] = field(default_factory=dict)
    _per_reference: dict[tuple[str, int], NormNoise] = field(default_factory=dict)
    _handles: list[Any] = field(default_factory=list)
    _calls: dict[str, int] = field(default_factory=dict)

    def attach(self) -> None:
        """Put the hooks on."""
        for path, calls in self.modules:
            module = self.model.get_submodule(path)
            self._handles.append(module.register_forward_hook(self._hook(path, calls)))

        for path in self.producers:
            module = self.model.get_submodule(path)
            self._handles.append(module.register_forward_pre_hook(self._measure_input(path)))

    def detach(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def clear(self) -> None:
        """Forget what was summed: a step is over."""
        self.records.clear()
        self._calls.clear()

    def current(self, path: str, call: int) -> Tensor | None:
        """The current of one call per channel, as the optimizer sees it (after clipping); None if nothing was captured."""
        record = self.records.get((path, call))
        if record is None or record.current is None:
            return None
        return record.current * self._clipping(path, record)

    def noise(self, path: str, call: int) -> NormNoise | None:
        """Sizes that rounding acts on in this step (after clipping): measured, or the largest so far per gradient of the gain."""
        record = self.records.get((path, call))
        if record is None:
            return None
        known = self._per_reference.get((path, call))
        if record.noise is not None and record.reference > 0:
            now = record.noise.scaled(1 / record.reference)
            self._per_reference[path, call] = known = now if known is None else known.larger(now)
        found = record.noise if known is None or record.reference == 0 else known.scaled(record.reference)
        return None if found is None else found.scaled(self._clipping(path, record) ** 2)

    def _clipping(self, path: str, record: Record) -> float | Tensor:
        gain = getattr(self.model.get_submodule(path), "weight", None)
        before = record.gain_gradient
        if gain is None or gain.grad is None or before is None:
            return 1.0
        after = gain.grad.detach().to(torch.float64)
        size = (before * before).sum()
        return (after * before).sum() / size if size > 0 else 1.0

    def _measure_input(self, path: str) -> Any:
        def forward(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if self.measuring and module.training and torch.is_grad_enabled():
                found = float(inputs[0].detach().double().square().mean())
                self.input_squares[path] = max(found, self.input_squares.get(path, 0.0))

        return forward

    def _hook(self, path: str, calls: int) -> Any:
        def forward(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if not (module.training and torch.is_grad_enabled() and output.requires_grad):
                return
            call = self._calls.get(path, 0)
            self._calls[path] = call + 1
            record = self.records.setdefault((path, call % calls), Record())
            self._on_backward(module, inputs[0].detach(), output, record)

        return forward

    def _on_backward(self, module: Any, inputs: Tensor, output: Tensor, record: Record) -> None:
        gain, inverse = module.weight, _inverse_deviation(module, inputs, output)
        eps = float(module.eps)
        defect = _DEFECT({EPS: eps, VARIANCE: inverse.pow(-2) - eps})[("defect",)]
        measured = inputs if self.measuring or gain is None or not gain.requires_grad else None
        own = None if gain is not None and gain.requires_grad else _without_shift(output.detach(), module.bias)

        def backward(grad_inputs: Sequence[Tensor | None], grad_outputs: Sequence[Tensor]) -> None:
            with torch.no_grad():
                if own is not None:
                    pulled = _per_channel(grad_outputs[0], own)
                else:
                    gradient = _given(grad_inputs[1]).to(torch.float64, copy=True)  # a copy: clipping works in place
                    record.gain_gradient = _plus(record.gain_gradient, gradient)
                    pulled = gradient * _given(gain).detach().to(torch.float64)
                record.current = _plus(record.current, defect * pulled)
                record.reference += sum(float(g.double().square().mean()) for g in grad_inputs[1:3] if g is not None)
                if measured is not None and grad_inputs[0] is not None:
                    slope = inverse if gain is None else inverse * gain.detach().double()
                    noise = norm_noise(measured, grad_outputs[0], grad_inputs[0], slope)
                    record.noise = noise if record.noise is None else record.noise + noise

        _given(output.grad_fn).register_hook(backward)


def _inverse_deviation(module: Any, inputs: Tensor, output: Tensor) -> Tensor:
    """1 / sqrt(var + eps) per channel in float64: what the forward pass saved, or the variance anew where it did not."""
    saved = getattr(output.grad_fn, "_saved_result2", None)
    if isinstance(saved, Tensor) and saved.shape == (inputs.shape[1],):
        return saved.detach().to(torch.float64)
    dims = [d for d in range(inputs.dim()) if d != 1]
    return (inputs.to(torch.float64).var(dims, unbiased=False) + float(module.eps)).rsqrt()


def _without_shift(output: Tensor, shift: Tensor | None) -> Tensor:
    """The gained, normalised tensor before its shift is added, as a copy that in-place operations behind it cannot change."""
    return output.clone() if shift is None else output - shift.detach().reshape(1, -1, *[1] * (output.dim() - 2))


def _given(value: Any) -> Any:
    """A value that the backward pass of a trained normalisation always has."""
    if value is None:
        raise RunError("The normalisation's output has no gradient function; it was made without gradients or detached.")
    return value


def _plus(total: Tensor | None, more: Tensor) -> Tensor:
    return more if total is None else total + more


def _per_channel(a: Tensor, b: Tensor) -> Tensor:
    dims = [d for d in range(a.dim()) if d != 1]
    return (a.detach() * b).sum(dims, dtype=torch.float64)
