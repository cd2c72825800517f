"""What dropout adds to a loss on average, predicted and measured, and which symmetries its masks remove.

Each dropout layer is replaced by a product with masks z that can be differentiated. The prediction is ½ ρ Σ ∂²L/∂z² at z = 1 with
ρ = p/(1 - p) (`noetherflow.symbolic.dropout`): the whole average for losses of degree two in the masks, its leading order in ρ otherwise.
The measurement draws masks. Symmetries are derived twice, from the graph with dropout and from that without.

Source: own; mianjy2018implicit for two linear layers.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from noetherflow.bridge.trace import trace
from noetherflow.errors import ModelError
from noetherflow.numeric.intervals import Interval, mean_interval
from noetherflow.numeric.model_loss import check_loss, loss_at
from noetherflow.numeric.progress import shown
from noetherflow.symbolic.discrete import DiscreteSymmetries, discrete_symmetries
from noetherflow.symbolic.dropout import PROBABILITY, RATIO
from noetherflow.symbolic.gauge import symmetries
from noetherflow.symbolic.symmetries import Symmetries, Symmetry

DRAWS: Final = 1000
LAYERS: Final = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
Masks = dict[str, Tensor]


@dataclass(frozen=True)
class DropoutPenalty:
    """What a network's dropout adds to a loss, and what it removes.

    Attributes
    ----------
    loss : float
        Without masks, L(1).
    predicted : dict of str to float
        Layer (and ``#k`` for its k-th call) -> its part of ½ ρ Σ ∂²L/∂z².
    measured : Interval
        E L(z) - L(1) over drawn masks.
    without, with_dropout : Symmetries
        Continuous symmetries of the network without its dropout, and of every single draw of masks.
    discrete_without, discrete_with : DiscreteSymmetries
        Permutations and signs, the latter in distribution: permuted masks are as likely.
    """

    loss: float
    predicted: Mapping[str, float]
    measured: Interval
    without: Symmetries
    with_dropout: Symmetries
    discrete_without: DiscreteSymmetries
    discrete_with: DiscreteSymmetries

    @property
    def total(self) -> float:
        """The sum of all layers' parts."""
        return sum(self.predicted.values())

    @property
    def removed(self) -> tuple[Symmetry, ...]:
        """Families that the network has only without dropout; what is left of them is among `with_dropout`."""
        left = {(s.kind, s.parameters, str(s.dimension)) for s in self.with_dropout}
        return tuple(s for s in self.without if (s.kind, s.parameters, str(s.dimension)) not in left)

    @property
    def generators_removed(self) -> Any:
        """How many generators fewer."""
        return sum(s.dimension for s in self.without) - sum(s.dimension for s in self.with_dropout)

    def __repr__(self) -> str:
        lines = [f"Dropout adds {self.total:.6g} to a loss of {self.loss:.6g} (predicted), {self.measured} (measured)"]
        lines += [f"  {name}: {part:.6g}" for name, part in self.predicted.items()]
        lines.append(f"  removes {self.generators_removed} generators" if self.removed else "  removes no continuous symmetry")
        return "\n".join([*lines, *(f"    of {s.kind} {s.parameters}" for s in self.removed)])


def dropout_penalty(
    model: nn.Module, inputs: Tensor, targets: Tensor, loss: Callable[[Tensor, Tensor], Tensor], *, draws: int = DRAWS, seed: int = 0
) -> DropoutPenalty:
    """Say what dropout adds to a loss on average and which symmetries it removes.

    Parameters
    ----------
    model : nn.Module
        With ``nn.Dropout`` layers (or their 1d, 2d, 3d forms), which are taken as active whatever their mode; other layers are left in the
        mode that they are in. Not changed. Dropout inside attention or recurrent layers, called as a function, or of another kind
        (AlphaDropout) must be off.
    inputs, targets : Tensor
        One batch.
    loss : callable
        Of output and target.
    draws : int
        How many times all masks are drawn for the measurement.
    seed : int

    Returns
    -------
    DropoutPenalty

    Raises
    ------
    ModelError
        If there is no dropout layer with 0 < p < 1, or one with p = 1.
    RunError
        If the loss is random without the layers' masks, fails on the data, or is not finite.

    Notes
    -----
    The prediction takes one Hessian-vector product for each mask entry (in chunks): for batches of some thousand masked values.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.2), nn.Linear(4, 1))
    >>> found = dropout_penalty(model, torch.randn(6, 3), torch.randn(6, 1), nn.functional.mse_loss)
    >>> found.measured.holds(found.total), [s.kind for s in found.removed]
    (True, ['linear', 'affine'])
    """
    layers = {name: m for name, m in model.named_modules() if isinstance(m, LAYERS) and m.p > 0}
    whole = [name for name, m in layers.items() if m.p == 1]
    if whole:
        raise ModelError(f"Dropout with p = 1 ({', '.join(whole)}) leaves nothing to average over. Give 0 < p < 1.", layers=whole)
    if not layers:
        raise ModelError("The model has no dropout layer with 0 < p < 1, so nothing is masked. Dropout called as a function is not seen.")
    bare, active = (_with_dropout(model, on) for on in (False, True))
    own = {name: m for name, m in bare.named_modules() if name in layers}
    evaluate = _Masked(bare, own, inputs, targets, loss)
    clean, ones = check_loss(evaluate.bare), evaluate.met()
    predicted = {name: float(RATIO.subs(PROBABILITY, _probability(own, name))) / 2 * evaluate.bent(ones, name) for name in ones}
    random = torch.Generator().manual_seed(seed)
    values = [evaluate(_drawn(ones, own, random)) - clean for _ in shown(range(draws), "dropout masks", draws)]
    without, masked = (trace(m, inputs) for m in (bare, active))
    groups = symmetries(without), symmetries(masked), discrete_symmetries(without), discrete_symmetries(masked)
    return DropoutPenalty(clean, predicted, mean_interval(values), *groups)


def _with_dropout(model: nn.Module, on: bool) -> nn.Module:
    found = copy.deepcopy(model)
    for module in found.modules():
        if isinstance(module, LAYERS):
            module.train(on)
    return found


def _probability(layers: Mapping[str, nn.Module], call: str) -> float:
    layer = layers[_layer(call)]
    assert isinstance(layer, LAYERS)
    return layer.p


def _layer(call: str) -> str:
    return call.split("#")[0]


class _Masked:
    """A loss as a function of masks, one for every call of a dropout layer."""

    def __init__(
        self, model: nn.Module, layers: Mapping[str, nn.Module], inputs: Tensor, targets: Tensor, loss: Callable[..., Tensor]
    ) -> None:
        self.model, self.layers, self.inputs, self.targets, self.loss = model, layers, inputs, targets, loss

    def bare(self) -> Tensor:
        """L(1)."""
        return self._loss()

    def met(self) -> Masks:
        """Masks of ones, of the shapes that are met."""
        found: Masks = {}
        with torch.no_grad(), self._listening(lambda name, x: found.setdefault(name, _ones(self.layers[_layer(name)], x))):
            self._loss()
        return found

    def __call__(self, masks: Masks) -> float:
        with torch.no_grad(), self._listening(lambda name, x: masks[name]):
            return float(self._loss())

    def bent(self, ones: Masks, name: str) -> float:
        """Σ ∂²L/∂z² over the masks of one call."""
        leaf = ones[name].clone().requires_grad_()
        with self._listening(lambda call, x: leaf if call == name else ones[call]):
            (slope,) = torch.autograd.grad(self._loss(), leaf, create_graph=True)
        if not slope.requires_grad:
            return 0.0
        total = 0.0
        for start in range(0, leaf.numel(), 256):
            units = torch.eye(leaf.numel(), dtype=leaf.dtype)[start : start + 256].view(-1, *leaf.shape)
            (rows,) = torch.autograd.grad(slope, leaf, units, is_grads_batched=True, retain_graph=True)
            total += float((rows * units).sum())
        return total

    def _loss(self) -> Tensor:
        return loss_at(self.model, {}, (self.inputs,), (self.targets,), self.loss)

    @contextmanager
    def _listening(self, mask: Callable[[str, Tensor], Tensor]) -> Iterator[None]:
        calls: dict[str, int] = dict.fromkeys(self.layers, 0)

        def hook(name: str) -> Callable[..., Tensor]:
            def masked(module: nn.Module, given: Any, output: Tensor) -> Tensor:
                calls[name] += 1
                return output * mask(name if calls[name] == 1 else f"{name}#{calls[name]}", output)

            return masked

        handles = [module.register_forward_hook(hook(name)) for name, module in self.layers.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _ones(layer: nn.Module, x: Tensor) -> Tensor:
    """One mask for every value, or for every channel of every sample: torch masks the first two axes, whatever the layer is called, or the
    first where it takes the input for a single sample.
    """
    if isinstance(layer, nn.Dropout):
        return torch.ones_like(x)
    single = (isinstance(layer, nn.Dropout1d) and x.dim() == 2) or (isinstance(layer, nn.Dropout3d) and x.dim() == 4)
    masked = x.shape[: 1 if single else 2]
    return torch.ones([*masked, *[1] * (x.dim() - len(masked))], dtype=x.dtype, device=x.device)


def _drawn(ones: Masks, layers: Mapping[str, nn.Module], random: torch.Generator) -> Masks:
    kept = {name: 1 - _probability(layers, name) for name in ones}
    return {name: torch.bernoulli(kept[name] * one, generator=random) / kept[name] for name, one in ones.items()}
