"""One model carried onto another of its architecture: by permutations and signs, then by the continuous symmetries."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from noetherflow.bridge.canonical import Form, canonical_form
from noetherflow.bridge.distance import about_centres, all_parameters
from noetherflow.bridge.group_elements import Element
from noetherflow.bridge.orbits import Moved, Orbit, orbit_of
from noetherflow.bridge.trace import trace
from noetherflow.bridge.weight_matching import Step, matched
from noetherflow.errors import ModelError
from noetherflow.symbolic.discrete import discrete_symmetries
from noetherflow.symbolic.discrete_factors import Factor, Values, about_zero, acted
from noetherflow.symbolic.graph import ArchitectureGraph


@torch.no_grad()
def align(
    model_a: nn.Module,
    model_b: nn.Module,
    source: ArchitectureGraph | Tensor | tuple[Any, ...],
    *,
    scale_norm: float = 1.0,
    strict: bool = True,
    approximate: bool = False,
    continuous: bool = True,
    restarts: int = 0,
) -> Moved:
    """Carry a model onto another one of its architecture, its function unchanged.

    Both are brought to their canonical points (`noetherflow.canonical`). There b's units, channels and heads are matched with a's, signs
    chosen, and what GL(n) leaves is rotated towards a; then b takes a's way back from its canonical point. A model that differs from a by
    an element of the two groups comes out as a, to rounding, unless rows tie. For others the matching is a local optimum: exact within
    each class with all others held, and the same every time. Taking a's balance is then no descent: for two networks that were trained
    apart, ``continuous=False`` may end nearer, and with a lower barrier (`noetherflow.barrier`; derivations/permutation_barrier.py).

    Parameters
    ----------
    model_a, model_b : nn.Module
        Of one architecture. Neither is changed.
    source : ArchitectureGraph, or example inputs to trace
        Of either model.
    scale_norm, strict, approximate
        As for `noetherflow.canonical`. Scales before a normalisation with an eps are divided out only with ``approximate=True``.
    continuous : bool
        False uses permutations and signs only, on the parameters as they are: what a model differs by in its continuous symmetries stays.
    restarts : int
        Further starts of the matching, random ones that are the same every time; the nearest end of all is kept. Worth their time where
        several hidden layers follow one another: with one class of units the matching is exact without them.

    Returns
    -------
    Moved
        ``.model``, b carried onto a; ``.before`` and ``.after``, distances of its parameters from a's; ``.left``, continuous families
        that were not used, with reasons. The permutations are not among ``.elements``, which are continuous.

    Raises
    ------
    ModelError
        If a model does not match the graph, or its orbit has no canonical point.

    Examples
    --------
    >>> import noetherflow as nf
    >>> model, x = nf.models.MLP([3, 8, 2]).double(), torch.randn(5, 3).double()
    >>> graph = nf.trace(model, x)
    >>> group, other = nf.discrete_symmetries(graph), nf.models.MLP([3, 8, 2]).double()
    >>> _ = other.load_state_dict(group.transform(dict(model.named_parameters()), group.random(0)))
    >>> found = align(model, other, graph)
    >>> found.before > 1, found.after < 1e-12
    (True, True)
    """
    graph = _graph(model_a, source)
    if not continuous:
        return _permuted(model_a, model_b, graph, restarts)
    group = tuple(discrete_symmetries(graph))
    models = (about_centres(copy.deepcopy(m).to(torch.float64), group) for m in (model_a, model_b))
    orbits = [orbit_of(m, graph, approximate=approximate) for m in models]
    forms = [canonical_form(orbit, scale_norm=scale_norm, strict=strict) for orbit in orbits]
    fixed, moving = (all_parameters(orbit, form.tensors) for orbit, form in zip(orbits, forms, strict=True))
    steps, _ = matched(about_zero(group), orbits[1].of_form("matrix"), fixed, moving, restarts)
    found = about_centres(_carried(orbits[1], forms, steps), group, back=True)
    return _like(model_a, model_b, found, forms, tuple(step for step in steps if isinstance(step, Element)))


def _permuted(model_a: nn.Module, model_b: nn.Module, graph: ArchitectureGraph, restarts: int) -> Moved:
    """B after the permutations and signs that bring it nearest, as far as the matching finds."""
    orbits = [Orbit(copy.deepcopy(model).to(torch.float64), (), {}) for model in (model_a, model_b)]
    fixed, moving = (all_parameters(orbit, {}) for orbit in orbits)
    steps, _ = matched(tuple(discrete_symmetries(graph)), (), fixed, moving, restarts)
    nothing = (Form((), {}, {}), Form((), {}, {}))
    return _like(model_a, model_b, _carried(orbits[1], nothing, steps), nothing, ())


def _graph(model: nn.Module, source: Any) -> ArchitectureGraph:
    if isinstance(source, ArchitectureGraph):
        return source
    if isinstance(source, Tensor | tuple):
        return trace(model, *(source if isinstance(source, tuple) else (source,)))
    raise ModelError(f"Permutations are derived from a graph; got {type(source).__name__}. Give nf.trace(model, x), or example inputs x.")


def _carried(orbit: Orbit, forms: Sequence[Form], steps: Sequence[Step | Element]) -> nn.Module:
    """B to its canonical point, matched and rotated there, and a's way back."""
    model = orbit.carried(forms[1].elements, inplace=False)
    here = Orbit(model, orbit.families, orbit.left)
    for step in steps:
        if isinstance(step, Element):
            here.carried([step], inplace=True)
        else:
            _permute(model, *step)
    back = [Element(e.family, *((-e.value,) if e.inverse is None else (e.inverse, e.value))) for e in reversed(forms[0].elements)]
    return here.carried(back, inplace=True)


def _permute(model: nn.Module, factor: Factor, values: Values) -> None:
    """Act on parameters and running statistics in place."""
    there = {**dict(model.named_parameters()), **dict(model.named_buffers())}  # a state_dict has tied parameters twice
    for name, tensor in acted(factor, values, acted(factor, values, there), buffers=True).items():
        there[name].copy_(tensor)


def _like(model_a: nn.Module, model_b: nn.Module, found: nn.Module, forms: Sequence[Form], turns: tuple[Element, ...]) -> Moved:
    """The result in b's own types, and how near it is."""
    model = copy.deepcopy(model_b)
    model.load_state_dict(found.state_dict())
    before, after = (_apart(model_a, other) for other in (model_b, model))
    return Moved(model, (*forms[1].elements, *turns), before, after, {**forms[0].left, **forms[1].left})


def _apart(a: nn.Module, b: nn.Module) -> float:
    theirs = dict(b.named_parameters())
    squares = [(p.to(torch.float64) - theirs[name].to(p.device, torch.float64)).square().sum().cpu() for name, p in a.named_parameters()]
    return float(torch.stack(squares).sum().sqrt()) if squares else 0.0
