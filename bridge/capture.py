"""What a normalisation's forward and backward pass tell, captured as they happen: the variance, and the gradient that its eps lets through.

For every statistic t (a channel of BatchNorm; a sample and position of LayerNorm) the predicted current of a scale of the input is
eps / (var_t + eps) · ⟨ŷ_t, ∂L/∂ŷ_t⟩, ŷ the normalised tensor (symbolic.currents). ∂L/∂ŷ is the gain times ∂L/∂y; for BatchNorm ⟨ŷ, ∂L/∂ŷ⟩
is gain · ∂L/∂gain, which costs no pass over the activations. Micro-batches have variances of their own, so currents are summed where
gradients are: in the backward pass. What multiplies gradients afterwards is read elsewhere (`noetherflow.bridge.clipping`). Nothing is
captured without gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from noetherflow.bridge.choices import Choices
from noetherflow.bridge.expected_norms import Expected, difference, written_forms
from noetherflow.bridge.gradient_hooks import on_gradient, without_gradients
from noetherflow.bridge.listening import Listener
from noetherflow.bridge.norm_functions import Heard
from noetherflow.bridge.norm_layout import Layout
from noetherflow.bridge.norm_modules import Normalization, fitted, is_torch_norm, normalized, working_dtype
from noetherflow.bridge.norm_noise import NormNoise, norm_noise
from noetherflow.bridge.placing import Placing
from noetherflow.bridge.printing import compile_expressions
from noetherflow.errors import RunError
from noetherflow.symbolic.currents import EPS, VARIANCE, scale_defect

T = TypeVar("T")

_DEFECT = compile_expressions({("defect",): scale_defect()})


@dataclass
class Record:
    """Sums over the micro-batches since the last step at one normalisation, in float64.

    Attributes
    ----------
    currents : dict of Placing to Tensor
        Σ defect · ⟨ŷ, ∂L/∂ŷ⟩, before clipping, on the charges of each placing.
    noise : dict of Placing to NormNoise
        Sizes that rounding acts on, where they were measured.
    reference : float
        Mean square of the gradient behind the normalisation: what the noise goes with between measurements.
    problem : str
        Why it could not be captured.
    """

    currents: dict[Placing, Tensor] = field(default_factory=dict)
    noise: dict[Placing, NormNoise] = field(default_factory=dict)
    reference: float = 0.0
    problem: str = ""

    def add(self, placings: Sequence[Placing], current: Tensor, noise: NormNoise | None, chosen: Mapping[Placing, Tensor]) -> None:
        """Add what the statistics of one backward pass contribute, at the places that indices chose in its forward pass."""
        for placing in placings:
            summed = partial(placing.summed, indices=chosen.get(placing))
            placed = summed(current)
            self.currents[placing] = self.currents[placing] + placed if placing in self.currents else placed
            if noise is not None:
                more = noise.mapped(summed)
                self.noise[placing] = self.noise[placing] + more if placing in self.noise else more


@dataclass
class Capture:
    """Hooks on the normalisations that laws need.

    Parameters
    ----------
    model : nn.Module
    calls : mapping of str to sequence of Normalization
        Module that is a normalisation -> its calls in one forward pass, in order.
    producers : sequence of str
        Modules whose weight makes what is normalised; the size of their inputs is measured with the noise.
    functions : mapping of str to (sequence of sequence of Expected)
        Module that normalises by functions -> for each of its calls in one forward pass, in order, what it normalises.
    choices : Choices, optional
        What chooses the indices that charges lie along.
    measuring : bool
        Whether the noise is measured in the coming step; it costs a pass over the activations, so it is done now and then.
    """

    model: nn.Module
    calls: Mapping[str, Sequence[Normalization]]
    producers: Sequence[str] = ()
    functions: Mapping[str, Sequence[Sequence[Expected]]] = field(default_factory=dict)
    choices: Choices = field(default_factory=lambda: Choices(nn.Identity()))
    measuring: bool = True
    input_squares: dict[str, float] = field(default_factory=dict)
    records: dict[str, Record] = field(default_factory=dict)
    _per_reference: dict[tuple[str, Placing], NormNoise] = field(default_factory=dict)
    _handles: list[Any] = field(default_factory=list)
    _count: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.listener = Listener(self._over)

    def attach(self) -> None:
        """Put the hooks on."""
        self.choices.attach()
        self._handles.append(self.model.register_forward_pre_hook(self._start))
        for path in self.calls:
            module = self.model.get_submodule(path)
            self._handles.append(module.register_forward_hook(partial(self._forward, path), with_kwargs=True))

        self.listener.attach(
            {path: self.model.get_submodule(path) for path in self.functions},
            {path: written_forms(calls) for path, calls in self.functions.items()},
        )
        for path in self.producers:
            module = self.model.get_submodule(path)
            self._handles.append(module.register_forward_pre_hook(partial(self._measure_input, path)))

    def detach(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.choices.detach()
        self.listener.detach()

    def clear(self) -> None:
        """Forget what was summed: a step is over."""
        self.records.clear()
        self._count.clear()
        self.listener.reset()

    def problem(self, node: str) -> str:
        """Why a normalisation was not captured in this step, or ''."""
        record = self.records.get(node)
        return "nothing was captured of it" if record is None else record.problem

    def current(self, placing: Placing) -> Tensor | None:
        """The current of one call per charge, before clipping; None if nothing was captured."""
        record = self.records.get(placing.node)
        return None if record is None else record.currents.get(placing)

    def noise(self, placing: Placing) -> NormNoise | None:
        """Sizes that rounding acts on in this step, before clipping: measured, or the largest so far per gradient behind it."""
        record = self.records.get(placing.node)
        if record is None:
            return None
        measured = record.noise.get(placing)
        known = self._per_reference.get((placing.node, placing))
        if measured is not None and record.reference > 0:
            now = measured.scaled(1 / record.reference)
            self._per_reference[placing.node, placing] = known = now if known is None else known.larger(now)
        return measured if known is None or record.reference == 0 else known.scaled(record.reference)

    def _measure_input(self, path: str, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if self.measuring and torch.is_grad_enabled() and inputs and isinstance(inputs[0], Tensor) and inputs[0].is_floating_point():
            found = float(inputs[0].detach().double().square().mean())
            self.input_squares[path] = max(found, self.input_squares.get(path, 0.0))

    def _forward(self, path: str, module: Any, inputs: tuple[Any, ...], options: dict[str, Any], output: Any) -> None:
        frozen = not module.training and getattr(module, "running_mean", None) is not None
        if frozen or not torch.is_grad_enabled() or not isinstance(output, Tensor) or not output.requires_grad:
            return
        norm = self._due(path, self.calls[path])
        record = self.records.setdefault(norm.node, Record())
        x = next((t for t in (*inputs, *options.values()) if isinstance(t, Tensor)), None)
        if x is None or x.dim() != norm.layout.rank:
            record.problem = f"its input has shape {None if x is None else tuple(x.shape)}, not the rank {norm.layout.rank} that was traced"
        elif norm.layout.operation == "batch_norm" and is_torch_norm(module) and module.affine and module.weight.requires_grad:
            self._watch_gain(norm, record, module, x.detach(), output)
        elif is_torch_norm(module):
            self._watch_output(norm, record, norm.layout, getattr(module, "weight", None), x.detach(), output)
        else:
            self._watch_unknown(norm, record, x.detach(), output)

    def _due(self, path: str, calls: Sequence[T]) -> T:
        """What the coming call of a module was traced as."""
        number = self._count.get(path, 0)
        self._count[path] = number + 1
        return calls[number % len(calls)]

    def _start(self, module: nn.Module, inputs: Any) -> None:
        if torch.is_grad_enabled():
            self._count.clear()

    # --- three kinds of modules

    def _watch_gain(self, norm: Normalization, record: Record, module: Any, x: Tensor, output: Tensor) -> None:
        """BatchNorm: gain · ∂L/∂gain, and the deviation that the forward pass saved."""
        variance = _saved_variance(output, norm.eps, x)
        measured, chosen = x if self.measuring else None, self.choices.latest(norm.placings)

        def backward(grad_inputs: Sequence[Tensor | None], grad_outputs: Sequence[Tensor]) -> None:
            gain = module.weight.detach()
            pulled = _given(grad_inputs[1]).to(torch.float64) * gain.to(torch.float64)
            record.reference += sum(float(g.double().square().mean()) for g in grad_inputs[1:3] if g is not None)
            noise = None if measured is None else norm_noise(norm.layout, measured, norm.layout.gained(grad_outputs[0], gain), norm.eps)
            self._take(norm, record, variance, pulled, noise, chosen)

        _given(output.grad_fn).register_hook(without_gradients(backward))

    def _watch_output(self, norm: Normalization, record: Record, layout: Layout, gain: Tensor | None, x: Tensor, output: Tensor) -> None:
        on_gradient(output, without_gradients(self._puller(norm, record, layout, gain, x)))

    def _puller(self, norm: Normalization, record: Record, layout: Layout, gain: Tensor | None, x: Tensor) -> Callable[[Tensor], None]:
        """⟨ŷ, gain ∂L/∂y⟩, of the input normalised anew, as a function of ∂L/∂y."""
        measured, working, chosen = self.measuring, working_dtype(x), self.choices.latest(norm.placings)
        gain = None if gain is None else gain.detach()

        def backward(gradient: Tensor) -> None:
            hat = layout.gained(gradient.to(working), gain)
            values, variance = normalized(layout, x, norm.eps, working)
            record.reference += float(gradient.square().mean(dtype=torch.float64))
            noise = norm_noise(layout, x, hat, norm.eps) if measured else None
            self._take(norm, record, variance, (values * layout.rows(hat)).sum(-1, dtype=torch.float64), noise, chosen)

        return backward

    def _watch_unknown(self, norm: Normalization, record: Record, x: Tensor, output: Tensor) -> None:
        """A gain that only the module knows is fitted, at every pass: it may be trained, or be none at all."""
        shift = None if norm.shift is None else self.model.get_parameter(norm.shift).detach()
        found = fitted(norm, x, output.detach(), shift)
        if found is None:
            record.problem = (
                f"the output of the module '{norm.path}' is not a gain times its normalised input, so what its eps lets through cannot be "
                "captured. Write the normalisation as a module of its own (torch.nn.LayerNorm, RMSNorm, ...)"
            )
        else:
            self._watch_output(norm, record, found.layout, found.gain, x, output)

    # --- functions

    def _over(self, path: str, heard: list[Heard]) -> None:
        """A call of a module that normalises by functions is over: what was heard is what was traced, or none of it is known."""
        expected = self._due(path, self.functions[path])
        problem = difference(expected, heard)
        if problem and not heard:
            self._refuse(expected, problem)
        for found in heard if problem else ():
            found.take = lambda _: self._refuse(expected, problem)  # only if a gradient comes: not every pass is trained on
        for wanted, found in zip(expected, heard, strict=True) if not problem else ():
            if wanted.norm.placings:
                record = self.records.setdefault(wanted.norm.node, Record())
                found.take = self._puller(wanted.norm, record, wanted.form.layout, found.weight, found.inputs[wanted.form])

    def _refuse(self, expected: Sequence[Expected], problem: str) -> None:
        for wanted in expected:
            self.records.setdefault(wanted.norm.node, Record()).problem = problem

    def _take(
        self,
        norm: Normalization,
        record: Record,
        variance: Tensor,
        pulled: Tensor,
        noise: NormNoise | None,
        chosen: Mapping[Placing, Tensor],
    ) -> None:
        defect = _DEFECT({EPS: norm.eps, VARIANCE: variance})[("defect",)]
        try:
            record.add(norm.placings, defect * pulled, noise, chosen)
        except RunError as err:  # raised later, where the law is known: not in the middle of somebody's backward pass
            record.problem = str(err)


def _saved_variance(output: Tensor, eps: float, x: Tensor) -> Tensor:
    """Variance per channel in float64: from what the forward pass saved, or anew where it did not."""
    saved = getattr(output.grad_fn, "_saved_result2", None)
    if isinstance(saved, Tensor) and saved.shape == (x.shape[1],):
        return saved.detach().to(torch.float64).pow(-2) - eps
    dims = [d for d in range(x.dim()) if d != 1]
    return x.to(torch.float64).var(dims, unbiased=False)


def _given(value: Any) -> Any:
    """A value that the backward pass of a trained normalisation always has."""
    if value is None:
        raise RunError("The normalisation's output has no gradient function; it was made without gradients or detached.")
    return value
