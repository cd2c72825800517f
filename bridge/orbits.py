"""A model's orbit: the families of symmetries that can move it, and the model at another point of its orbit.

All tools on orbits share one convention. A model comes back as a copy (``inplace=True`` moves the model itself, whose parameters stay the
same objects). Arithmetic is float64, results have the parameters' own dtypes. Shared parameters stay shared; a frozen one is never moved,
because no derived family moves it. Running statistics of normalisations move along, so that evaluation mode computes the same too. What an
optimizer keeps (momentum buffers, second moments) and the gradients in ``.grad`` do not move: start the optimizer's state anew.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from noetherflow.bridge.group_elements import Element, act_all
from noetherflow.bridge.trace import trace
from noetherflow.errors import ModelError
from noetherflow.symbolic.actions import Action
from noetherflow.symbolic.gauge import symmetries as derive_symmetries
from noetherflow.symbolic.graph import ArchitectureGraph
from noetherflow.symbolic.symmetries import Symmetries, Symmetry

# What is asked of a model's symmetries: themselves, the graph they are derived from, or example inputs to trace (as a tuple if several).
Source = Symmetries | ArchitectureGraph | Tensor | tuple[Any, ...]
# Families, and names of parameters, that were left alone, and why.
Left = dict[Symmetry | str, str]

UNDERSTOOD: Final[Mapping[str, frozenset[str]]] = {
    "scale": frozenset({"rescale", "scale"}),
    "shift": frozenset({"translation", "null"}),
    "matrix": frozenset({"linear"}),
}


@dataclass(frozen=True)
class Moved:
    """A model at another point of its orbit.

    Attributes
    ----------
    model : nn.Module
    elements : tuple of Element
        The group elements that were applied, in this order.
    before, after : float
        What the tool changed, at the two points: the norm of the parameters, unless it says otherwise.
    left : dict
        Families (and names of parameters) that were left alone, and why.
    """

    model: nn.Module
    elements: tuple[Element, ...]
    before: float
    after: float
    left: Left

    def __repr__(self) -> str:
        used = {element.family.number for element in self.elements}
        lines = [f"Moved along {len(used)} families: {self.before:.6g} -> {self.after:.6g}"]
        return "\n".join([*lines, *(f"  left alone: {described(s)} ({why})" for s, why in self.left.items())])


def described(what: Symmetry | str) -> str:
    """A family or a parameter by name."""
    return what if isinstance(what, str) else what.name


@dataclass(frozen=True)
class Orbit:
    """A model and the families that may move it.

    Attributes
    ----------
    model : nn.Module
    families : tuple of Symmetry
    left : dict
        Families that may not, and why.
    """

    model: nn.Module
    families: tuple[Symmetry, ...]
    left: Left

    def of_form(self, form: str) -> tuple[Symmetry, ...]:
        """Families whose actions have one form."""
        return tuple(f for f in self.families if f.actions[0].form == form)

    def parameters(self) -> dict[str, nn.Parameter]:
        """All parameters by every name they have."""
        return dict(self.model.named_parameters(remove_duplicate=False))

    def tensors(self) -> dict[str, Tensor]:
        """Float64 copies of the parameters that the families move, on one device."""
        names = dict.fromkeys(name for family in self.families for name in family.parameters)
        own = self.parameters()
        device = next((own[name].device for name in names), torch.device("cpu"))
        return {name: own[name].detach().to(device, torch.float64, copy=True) for name in names}

    def norm(self) -> float:
        """Euclidean norm of all parameters."""
        squares = [p.detach().to(torch.float64).square().sum().cpu() for p in self.model.parameters()]
        return float(torch.stack(squares).sum().sqrt()) if squares else 0.0

    @torch.no_grad()
    def carried(self, elements: Iterable[Element], *, inplace: bool) -> nn.Module:
        """The model after some group elements, applied one after the other; exact to rounding.

        Raises
        ------
        ModelError
            If a result is not finite in the parameter's dtype; nothing is then changed.
        """
        elements = tuple(elements)
        moved = {name: t for name, t in act_all(elements, self.tensors()).items() if any(name in e.family.parameters for e in elements)}
        own = self.parameters()
        rounded = {name: t.to(own[name].dtype) for name, t in moved.items()}
        bad = [name for name, t in rounded.items() if not bool(t.isfinite().all())]
        if bad:
            raise ModelError(
                f"The point of the orbit is out of reach: {bad[:4]} would not be finite in {own[bad[0]].dtype}. Move less far.",
                parameters=bad,
            )
        target = self.model if inplace else copy.deepcopy(self.model)
        there = dict(target.named_parameters(remove_duplicate=False))
        for name, tensor in rounded.items():
            there[name].copy_(tensor)
        for element in elements:
            _carry_statistics(target, element)
        return target


def orbit_of(model: nn.Module, symmetries: Source, *, approximate: bool = False) -> Orbit:
    """Check that symmetries are a model's, and sort out those that can move it.

    Parameters
    ----------
    model : nn.Module
    symmetries : Symmetries, ArchitectureGraph, or example inputs to trace
    approximate : bool
        Also use families that an eps breaks: they hold at eps = 0; moving along them changes the function by the order of eps / variance.

    Raises
    ------
    ModelError
        If the parameters do not match.
    """
    found = _symmetries(model, symmetries)
    if isinstance(symmetries, ArchitectureGraph):
        _check_graph(model, symmetries)
    _check_parameters(model, found)
    left: Left = {s: why for s in found if (why := _unusable(s, approximate))}
    return Orbit(model, tuple(s for s in found if s not in left), left)


def _symmetries(model: nn.Module, source: Source) -> Symmetries:
    if isinstance(source, Symmetries):
        return source
    if isinstance(source, ArchitectureGraph):
        return derive_symmetries(source)
    if isinstance(source, Tensor | tuple):
        return derive_symmetries(trace(model, *(source if isinstance(source, tuple) else (source,))))
    raise ModelError(
        f"The symmetries were given as {type(source).__name__}. Give nf.symmetries(graph), the graph of nf.trace, or example inputs."
    )


def _unusable(symmetry: Symmetry, approximate: bool) -> str:
    forms = {action.form for action in symmetry.actions}
    form = next(iter(forms)) if len(forms) == 1 else ""
    if symmetry.kind not in UNDERSTOOD.get(form, ()):
        return f"kind '{symmetry.kind}' with actions {sorted(forms)} is not handled"
    if any(action.factors or action.image for action in symmetry.actions):
        return "its generators depend on other parameters, which is not handled"
    if not isinstance(symmetry.dimension, int):
        return f"its size {symmetry.dimension} is symbolic"
    if symmetry.breaking and not approximate:
        first, *others = dict.fromkeys(site.module or site.node for site in symmetry.breaking)
        more = f" and of {len(others)} others" if others else ""
        return f"the eps of {first}{more} breaks it; approximate=True uses it all the same"
    return ""


def _check_graph(model: nn.Module, graph: ArchitectureGraph) -> None:
    own = dict(model.named_parameters())
    missing, foreign = sorted(set(graph.parameters) - set(own)), sorted(set(own) - set(graph.parameters))
    if missing or foreign:
        raise ModelError(
            f"The graph is of another model: it has parameters {missing[:4]} that {type(model).__name__} lacks, and lacks {foreign[:4]}. "
            "Trace this model.",
            missing=missing,
            foreign=foreign,
        )
    for name, parameter in graph.parameters.items():
        if tuple(own[name].shape) != tuple(parameter.shape) or own[name].requires_grad != parameter.trainable:
            raise ModelError(
                f"Parameter '{name}' is {_described(own[name].shape, own[name].requires_grad)} in the model, "
                f"{_described(parameter.shape, parameter.trainable)} in the graph. Trace the model as it is now.",
                parameter=name,
            )


def _described(shape: Sequence[Any], trainable: bool) -> str:
    return f"{tuple(shape)}, {'trainable' if trainable else 'frozen'}"


def _check_parameters(model: nn.Module, symmetries: Symmetries) -> None:
    own = dict(model.named_parameters(remove_duplicate=False))
    names = list(dict.fromkeys(name for s in symmetries for name in s.parameters))
    missing = [name for name in names if name not in own]
    if missing:
        raise ModelError(
            f"The symmetries move {missing[:4]}, which {type(model).__name__} does not have. Derive them from a trace of this model.",
            missing=missing,
        )
    _refuse(own, names, lambda p: not p.requires_grad, "are frozen in the model but moved by its symmetries")
    _refuse(own, names, lambda p: not p.is_floating_point() or p.is_meta, "hold no real numbers (meta, integer or complex)")
    if len({id(own[name]) for name in names}) < len(names):
        raise ModelError("Parameters that the symmetries move apart are one tensor in the model. Trace the model as it is now.")
    for symmetry in symmetries:
        for action in symmetry.actions:
            _check_patch(action, own[action.parameter])


def _refuse(own: Mapping[str, nn.Parameter], names: Sequence[str], bad: Any, what: str) -> None:
    found = [name for name in names if bad(own[name])]
    if found:
        raise ModelError(f"Parameters {found[:4]} {what}. Trace the model as it is now.", parameters=found)


def _check_patch(action: Action, parameter: Tensor) -> None:
    reach = [offset + 1 for offset in action.patch.offsets]
    for index in action.patch.indices:
        reach[index.axis] += (index.size - 1) * index.stride
    if len(reach) != parameter.dim() or any(r > n for r, n in zip(reach, parameter.shape, strict=True)):
        raise ModelError(
            f"The symmetries act on a block of '{action.parameter}' that reaches to {tuple(reach)}; the model's has shape "
            f"{tuple(parameter.shape)}. Trace this model.",
            parameter=action.parameter,
        )


def _carry_statistics(model: nn.Module, element: Element) -> None:
    """Running mean and variance of a normalisation that does not see a change of its input follow that change."""
    for site in dict.fromkeys((s.module, s.coefficient, s.patch, s.places) for s in element.family.absorbers if not s.picked):
        module = dict(model.named_modules()).get(site[0])
        mean, variance = getattr(module, "running_mean", None), getattr(module, "running_var", None)
        if isinstance(mean, Tensor) and isinstance(variance, Tensor):
            _carry_site(mean, variance, element, *site[1:])


def _carry_site(mean: Tensor, variance: Tensor, element: Element, coefficient: Any, patch: Any, places: tuple[int, ...]) -> None:
    action = Action("", patch, places, coefficient, element.family.actions[0].form)
    change = float(coefficient) * action.spread(element.value).to(mean.device)
    at_mean, at_variance = patch.view(mean), patch.view(variance)
    if action.form == "shift":
        at_mean.add_(change)
        return
    at_mean.copy_(change.exp() * at_mean)
    at_variance.copy_((2 * change).exp() * at_variance)
