"""Folding the gains of normalisations into what reads them: the point of an orbit where every gain is one in size."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Final

import torch
from torch import Tensor, nn

from noetherflow.bridge.group_elements import Element
from noetherflow.bridge.orbits import Left, Moved, Orbit, Source, orbit_of
from noetherflow.bridge.trace import trace
from noetherflow.errors import ModelError
from noetherflow.symbolic.actions import Action
from noetherflow.symbolic.graph import ArchitectureGraph
from noetherflow.symbolic.symmetries import Symmetry

NORMS: Final = frozenset({"batch_norm", "layer_norm", "rms_norm", "group_norm", "instance_norm"})


def fold_gains(
    model: nn.Module, symmetries: Source, gains: Collection[str] | None = None, *, approximate: bool = False, inplace: bool = False
) -> Moved:
    """Set the gains of normalisations to one and multiply the weights that read them instead; the function is unchanged.

    Uses rescale families that move one gain each: γ_j and β_j up, the readers' columns j down (their charge is γ_j² + β_j² - ‖U_·j‖²
    over two). With a_j = -log|γ_j| the gain becomes ±1: a scale is positive, so a negative gain stays negative. Left alone, and named in
    ``.left``: a zero gain (no scale changes it), a family that moves several gains at once (all normalisations that write one residual
    stream share its scale), and a gain that no family moves (what reads it is not homogeneous).

    Parameters
    ----------
    model, symmetries, approximate, inplace
        As for `noetherflow.rebalance`.
    gains : collection of str, optional
        Their names. If absent: parameters in the slot "weight" of a normalisation in the graph (so give the graph or example inputs).

    Returns
    -------
    Moved
        ``.before`` and ``.after``: the largest ``abs(abs(gain) - 1)`` over all gains.

    Raises
    ------
    ModelError
        If the parameters do not match, a named gain does not exist, or gains can be read from no graph.

    Examples
    --------
    >>> import noetherflow as nf
    >>> model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)).double()
    >>> _ = nn.init.uniform_(model[1].weight, 0.5, 2.0)
    >>> x = torch.randn(8, 3).double()
    >>> folded = fold_gains(model, nf.trace(model, x)).model
    >>> [round(gain, 12) for gain in folded[1].weight.tolist()], torch.allclose(folded(x), model(x))
    ([1.0, 1.0, 1.0, 1.0], True)
    """
    if isinstance(symmetries, Tensor | tuple):
        symmetries = trace(model, *(symmetries if isinstance(symmetries, tuple) else (symmetries,)))
    orbit = orbit_of(model, symmetries, approximate=approximate)
    names = _names(orbit, symmetries, gains)
    folding = _Folding(orbit, names)
    for family in orbit.of_form("scale"):
        folding.use(family)
    before = _farthest(model, names)
    moved = orbit.carried(folding.elements, inplace=inplace)
    moving: Left = {f: why for f, why in orbit.left.items() if isinstance(f, Symmetry) and names & set(f.parameters)}
    return Moved(moved, tuple(folding.elements), before, _farthest(moved, names), {**moving, **folding.left, **folding.unmoved()})


def _names(orbit: Orbit, source: Source, gains: Collection[str] | None) -> set[str]:
    if gains is not None:
        unknown = sorted(set(gains) - set(orbit.parameters()))
        if unknown:
            raise ModelError(f"Gains {unknown[:4]} are not parameters of {type(orbit.model).__name__}.", unknown=unknown)
        return set(gains)
    if not isinstance(source, ArchitectureGraph):
        raise ModelError(
            f"Which parameters are gains is read from a graph; got {type(source).__name__}. Give the graph, or name the gains."
        )
    nodes = (source.nodes[n] for n in source)
    return {data["parameters"]["weight"] for data in nodes if data["operation"] in NORMS and "weight" in data["parameters"]}


def _farthest(model: nn.Module, names: set[str]) -> float:
    own = dict(model.named_parameters(remove_duplicate=False))
    return max((float((own[n].detach().to(torch.float64).abs() - 1).abs().max()) for n in names), default=0.0)


@dataclass
class _Folding:
    """Collects the elements that fold, one family after the other."""

    orbit: Orbit
    names: set[str]
    elements: list[Element] = field(default_factory=list)
    left: Left = field(default_factory=dict)
    folded: list[Action] = field(default_factory=list)

    def use(self, family: Symmetry) -> None:
        """Fold the one gain that a family moves, if it is one."""
        moving = [action for action in family.actions if action.parameter in self.names]
        if not moving:
            return
        (first, *others) = moving
        if others:
            self.left[family] = f"it moves {len(moving)} gains at once: {', '.join(dict.fromkeys(a.parameter for a in moving))}"
        elif len(first.places) < len(first.patch.indices) or family.zero_mean:
            self.left[family] = f"one generator moves several entries of '{first.parameter}'"
        elif any(first.parameter == done.parameter and first.patch == done.patch for done in self.folded):
            self.left[family] = f"'{first.parameter}' was folded through another family"
        else:
            self._fold(family, first)

    def _fold(self, family: Symmetry, action: Action) -> None:
        gain = action.patch.view(self.orbit.tensors()[action.parameter]).abs()
        logarithm = torch.where(gain > 0, gain, 1.0).log() / -float(action.weight)
        self.elements.append(Element(family, logarithm.permute(action.places)))
        self.folded.append(action)
        if bool((gain == 0).any()):
            zero = (gain == 0).nonzero().squeeze(-1).tolist()
            self.left[action.parameter] = f"entries {zero} are zero, which no scale changes"

    def unmoved(self) -> Left:
        """Gains that no family moves."""
        met = {name for f in (*self.orbit.families, *self.orbit.left) if isinstance(f, Symmetry) for name in f.parameters}
        return {**dict.fromkeys(sorted(self.names - met), "no family moves this gain")}
