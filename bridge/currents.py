"""Predicted currents beside measured ones: ⟨ξ, ∇L⟩ of a family, from what breaks it and from the gradient.

One forward and backward pass of the traced program gives z and ∂L/∂y wherever a family is broken (`replay`). From these alone its current
is predicted; the measured one is ⟨ξ, ∇L⟩ with the gradient of that same pass. The two agree to rounding, or the family is wrong.

Source: own (`derivations/broken_symmetries.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial, singledispatch
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from noetherflow.bridge.current_sites import Pass, at_class_site, at_function, at_normalization
from noetherflow.bridge.replay import replay
from noetherflow.bridge.trace import Loss, trace
from noetherflow.errors import RunError
from noetherflow.symbolic.broken import BrokenSymmetry, broken_symmetries
from noetherflow.symbolic.class_shifts import ClassShift, class_shifts
from noetherflow.symbolic.gauge import symmetries
from noetherflow.symbolic.graph import ArchitectureGraph
from noetherflow.symbolic.picks import index_of
from noetherflow.symbolic.symmetries import Symmetry
from noetherflow.symbolic.tying import UntiedSymmetry, untied_symmetries

Family = Symmetry | BrokenSymmetry | ClassShift | UntiedSymmetry
Gradients = Mapping[str, Tensor]


@dataclass(frozen=True)
class Current:
    """The current of one family, one entry per generator.

    Attributes
    ----------
    family : Symmetry, BrokenSymmetry, ClassShift or UntiedSymmetry
    predicted, measured : Tensor, shape (dimension,)
        In float64.
    size : float
        Largest sum of the sizes of what a generator's measured current adds up (and of mean gradients): what rounding is relative to.
    """

    family: Family
    predicted: Tensor
    measured: Tensor
    size: float

    @property
    def symmetry(self) -> Symmetry:
        """The family's action on parameters."""
        return self.family if isinstance(self.family, Symmetry) else self.family.symmetry

    @property
    def error(self) -> float:
        """Largest difference between prediction and measurement, relative to `size`."""
        difference = float((self.predicted - self.measured).abs().amax())
        return difference / self.size if self.size else (float("inf") if difference else 0.0)


class Currents(Sequence[Current]):
    """The currents of several families in one pass.

    Attributes
    ----------
    missing : dict
        Family's name -> why its current could not be predicted.
    """

    def __init__(self, members: Sequence[Current], missing: Mapping[str, str]) -> None:
        self._members, self.missing = tuple(members), dict(missing)

    def __getitem__(self, item: Any) -> Any:
        return self._members[item]

    def __len__(self) -> int:
        return len(self._members)

    def __iter__(self) -> Iterator[Current]:
        return iter(self._members)

    @property
    def worst(self) -> float:
        """Largest error of all."""
        return max((current.error for current in self), default=0.0)

    def __repr__(self) -> str:
        rows = [
            f"  {c.symmetry.name}: predicted {_shown(c.predicted)}, measured {_shown(c.measured)}, error {c.error:.1e} of {c.size:.3g}"
            for c in self
        ]
        missing = [f"  not predicted: {name} ({why})" for name, why in self.missing.items()]
        return "\n".join([f"{len(self)} families, largest error {self.worst:.1e}", *rows, *missing])


def currents(
    model: nn.Module,
    *inputs: Any,
    loss: Loss,
    target: Any = None,
    families: Iterable[Family] | None = None,
    clip_value: float | None = None,
    kwargs: Mapping[str, Any] | None = None,
) -> Currents:
    """Predict what breaks every family on a batch, and measure it.

    Parameters
    ----------
    model : nn.Module
        Left as it is. Currents are as exact as the numbers it computes with: in float64 the errors are of the order of 1e-15.
    *inputs
        Of the forward pass.
    loss : str, nn.Module or callable
        "cross_entropy", "mse", or called as ``loss(output, target)``, or ``loss(output)`` where there is no target.
    target : optional
    families : iterable, optional
        Symmetries, or what `broken_symmetries`, `class_shifts` and `untied_symmetries` find; all of those, if absent.
    clip_value : float, optional
        Clip every entry of the gradient to this size first, as ``torch.nn.utils.clip_grad_value_`` does: ξ · (clipped - unclipped), summed
        over the clipped entries, comes on top.
    kwargs : mapping, optional
        Keyword inputs of the forward pass.

    Returns
    -------
    Currents

    Raises
    ------
    TraceError
        If the model does not export with its loss.
    RunError
        If the loss is None.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(3, 5), nn.GELU(), nn.Linear(5, 2)).double()
    >>> found = currents(model, torch.randn(8, 3).double(), loss="mse", target=torch.randn(8, 2).double())
    >>> [(c.symmetry.kind, c.symmetry.dimension, c.error < 1e-13) for c in found]
    [('rescale', 5, True), ('affine', 5, True)]
    """
    if loss is None:
        raise RunError("A current is measured on a gradient. Give loss='cross_entropy', 'mse', or a callable loss(output, target).")
    graph = trace(model, *inputs, loss=loss, kwargs=kwargs)
    chosen = _all_families(graph) if families is None else list(families)
    nodes = dict.fromkeys(node for family in chosen for node in _nodes(family) if node in graph)
    wanted = [*nodes, *(producer for node in nodes for producer in graph.inputs_of(node).values())]
    readers = {site.reader for family in chosen if isinstance(family, ClassShift) for site in family.sites}
    wanted += [producer for node in readers for producer in graph.inputs_of(node).values()]
    wanted += [index_of(graph, chosen_at) for family in chosen for chosen_at in _choosing(family)]
    ran = replay(model, inputs, loss, target, kwargs=kwargs, values=wanted, pulled=list(nodes))
    ran.values.update(_given(graph, (inputs, dict(kwargs or {}))))
    there = Pass(graph, ran, {name: p.detach().double() for name, p in model.named_parameters()})
    gradients = {name: g.double() for name, g in ran.gradients(model).items()}
    return _compared(chosen, there, gradients, clip_value)


def _all_families(graph: ArchitectureGraph) -> list[Family]:
    return [*symmetries(graph), *broken_symmetries(graph), *class_shifts(graph), *untied_symmetries(graph)]


def _compared(families: Iterable[Family], there: Pass, gradients: Gradients, clip_value: float | None) -> Currents:
    found, missing = [], {}
    clip = partial(torch.clamp, min=-clip_value, max=clip_value) if clip_value is not None else lambda g: g
    clipped = {name: clip(g) for name, g in gradients.items()}
    cut = {name: clipped[name] - g for name, g in gradients.items()}
    for family in families:
        try:
            predicted = predict(family, there) + along(family, there.parameters, cut)
        except RunError as err:
            missing[_symmetry(family).name] = str(err)
            continue
        found.append(Current(family, predicted, along(family, there.parameters, clipped), _size(family, there.parameters, clipped)))
    return Currents(found, missing)


def _symmetry(family: Family) -> Symmetry:
    return family if isinstance(family, Symmetry) else family.symmetry


def _nodes(family: Family) -> list[str]:
    own = [] if isinstance(family, Symmetry | UntiedSymmetry) else [site.node for site in family.sites]
    return [*own, *(site.node for site in _symmetry(family).breaking)]


def _choosing(family: Family) -> list[str]:
    """Nodes that pick by indices which tell the family's charges apart."""
    picked = [site.picked for site in _symmetry(family).breaking]
    picked += [site.picked for site in family.sites] if isinstance(family, BrokenSymmetry) else []
    return [chosen.node for each in picked for chosen in each]


def _given(graph: ArchitectureGraph, inputs: Any) -> dict[str, Tensor]:
    """What was given to the nodes that are the model's inputs."""
    nodes = [node for node in graph if graph.nodes[node]["operation"] == "input"]
    tensors = [leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor)]
    return dict(zip(nodes, tensors, strict=True)) if len(nodes) == len(tensors) else {}


# --- predicted


@singledispatch
def predict(family: Any, there: Pass) -> Tensor:
    """The current of every generator of a family, from the values and gradients at what breaks it.

    Raises
    ------
    RunError
        If one of these is not known, or is not what the family takes it to be.
    """
    raise TypeError(f"{type(family).__name__} is no family; give symmetries, or what broken_symmetries finds.")


@predict.register
def _(family: Symmetry, there: Pass) -> Tensor:
    return _on_generators(family, [at_normalization(site, there) for site in family.breaking], there)


@predict.register
def _(family: BrokenSymmetry, there: Pass) -> Tensor:
    parts = [at_function(site, there) for site in family.sites]
    return predict(family.symmetry, there) + _on_generators(family.symmetry, parts, there)


@predict.register
def _(family: ClassShift, there: Pass) -> Tensor:
    parts = [at_class_site(site, there) for site in family.sites]
    return predict(family.symmetry, there) + _on_generators(family.symmetry, parts, there)


@predict.register
def _(family: UntiedSymmetry, there: Pass) -> Tensor:
    gradients = [(use, there.of_use(use)) for use in family.differing]
    point, leading = _point(family, there.parameters), family.leading

    def difference(direction: Tensor) -> Tensor:
        moved = family.symmetry.tangent(point, direction)
        return _sum(((moved[leading[use.parameter]] - moved.get(use.name, 0.0)) * g).sum() for use, g in gradients)

    return predict(family.symmetry, there) + _adjoint(family.symmetry, difference, there.device)


def _on_generators(symmetry: Symmetry, parts: Sequence[Tensor], there: Pass) -> Tensor:
    """From currents per index of a family to currents per generator."""
    sizes = [int(size) for size in symmetry.sizes]
    if not parts:
        return torch.zeros(int(symmetry.dimension), dtype=torch.float64, device=there.device)
    total = _sum(part.reshape(sizes) for part in parts)
    return _adjoint(symmetry, lambda direction: (symmetry.coefficients(direction) * total).sum(), there.device)


# --- measured


def along(family: Family, params: Gradients, gradients: Gradients) -> Tensor:
    """⟨ξ, g⟩ for every generator of a family: exact up to rounding.

    Parameters
    ----------
    family : Symmetry, BrokenSymmetry, ClassShift or UntiedSymmetry
    params, gradients : mapping of str to Tensor
        By name, in float64.
    """
    symmetry, point = _symmetry(family), _point(family, params)
    leading = {name: p for p, name in family.leading.items()} if isinstance(family, UntiedSymmetry) else {}
    split = {use.name for use in family.uses} - set(leading) if isinstance(family, UntiedSymmetry) else set()

    def pairing(direction: Tensor) -> Tensor:
        moved = {leading.get(name, name): change for name, change in symmetry.tangent(point, direction).items() if name not in split}
        return _sum((change * gradients[name]).sum() for name, change in moved.items() if name in gradients)

    return _adjoint(symmetry, pairing, next(iter(params.values())).device)


def _point(family: Family, params: Gradients) -> dict[str, Tensor]:
    """Parameters by name, with every use of a shared one under its own."""
    uses = family.uses if isinstance(family, UntiedSymmetry) else ()
    return {**params, **{use.name: params[use.parameter] for use in uses}}


def _adjoint(symmetry: Symmetry, pairing: Callable[[Tensor], Tensor], device: torch.device) -> Tensor:
    """The vector of a linear function of directions."""
    direction = torch.zeros(int(symmetry.dimension), dtype=torch.float64, device=device, requires_grad=True)
    value = pairing(direction)
    return torch.autograd.grad(value, direction)[0] if value.requires_grad else torch.zeros_like(direction)


def _sum(parts: Iterable[Tensor]) -> Tensor:
    total = list(parts)
    return torch.stack(total).sum(0) if total else torch.zeros((), dtype=torch.float64)


def _size(family: Family, params: Gradients, gradients: Gradients) -> float:
    """Σ |ξ| (|g| + γ) of the generator for which it is largest, action by action; γ is the root mean square of all gradients.

    A gradient that vanishes identically is a sum whose rounding does not: γ stands for its summands.
    """
    count = sum(g.numel() for g in gradients.values())
    spread = float(_sum((g * g).sum() for g in gradients.values()) / max(1, count)) ** 0.5
    around = {name: g.abs() + spread for name, g in gradients.items()}
    point = {name: p.abs() for name, p in params.items()}
    return float(_sum(along(part, point, around).abs() for part in _single_actions(family)).amax())


def _single_actions(family: Family) -> list[Family]:
    symmetry = _symmetry(family)
    parts = [replace(symmetry, actions=(action,)) for action in symmetry.actions]
    return [replace(family, symmetry=part) if isinstance(family, UntiedSymmetry) else part for part in parts]


def _shown(values: Tensor) -> str:
    return f"[{', '.join(f'{float(v):.3g}' for v in values[:3])}{', ...' if len(values) > 3 else ''}]"
