"""The weight decay at which a mirror's subspace begins to attract training, and what happens just below it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape
from typing import Any, Final

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from torch import Tensor, nn

from noetherflow.bridge.landscape import Landscape, LossFunction
from noetherflow.bridge.mirrors import Mirror
from noetherflow.bridge.subspaces import Stationary, Subspace
from noetherflow.errors import RunError
from noetherflow.numeric.palette import ACCENTS, BAD, MUTED, STYLE
from noetherflow.numeric.progress import activity
from noetherflow.symbolic.pitchfork import COUPLING, DECAY, QUARTIC, STIFFNESS, quartic_level

GROWTH: Final = 1.3  # from one decay that is tried to the next
FLOOR: Final = 1e-4  # lowest decay that is tried, relative to the largest transverse curvature
MOST: Final = 120  # decays in all
RESOLUTION: Final = 1e-8  # of λ_c, relative: above what stationary points are known to


@dataclass(frozen=True)
class CriticalDecay:
    """Where a mirror's subspace begins to attract.

    Attributes
    ----------
    mirror : Mirror
    decay : float
        λ_c (torch's weight_decay), to a relative 1e-8: -λ_min of the transverse Hessian, at the stationary point that λ_c itself has.
        Zero if the subspace attracts at every decay that was tried.
    rate : float
        d(λ_min + λ) / dλ there: one if the stationary point did not move.
    quartic : float
        B: positive for a continuous transition, negative for a jump.
    point : Stationary
        There: parameters, all transverse curvatures, the softest direction.
    path : tuple of Stationary
        Everything that was looked at, by decay.
    """

    mirror: Mirror
    decay: float
    rate: float
    quartic: float
    point: Stationary
    path: tuple[Stationary, ...]

    @property
    def order(self) -> int:
        """2 for a continuous transition (|Oᵀθ| leaves zero as a square root), 1 for a jump."""
        return 2 if self.quartic > 0 else 1

    @property
    def largest_rate(self) -> float:
        """Step size at which full-batch descent at λ_c leaves the subspace by oscillation: 2 / (λ_max + λ)."""
        return 2 / (float(self.point.curvatures[-1]) + self.point.decay)

    def amplitude(self, decay: float) -> float:
        """|Oᵀθ| predicted at a decay: zero from λ_c on, √((λ_c - λ) rate / 4B) below it, to leading order.

        Raises
        ------
        RunError
            If the transition is a jump: its size is not decided near the subspace.
        """
        if self.order == 1:
            raise RunError(f"The transition at decay {self.decay:.4g} is a jump (B = {self.quartic:.3g}): there is no small amplitude.")
        return math.sqrt(max(0.0, (self.decay - decay) * self.rate / (4 * self.quartic)))

    def table(self) -> list[dict[str, Any]]:
        """One row for each decay that was looked at: decay, curvature (λ_min), level (λ_min + λ), attractive."""
        return [
            {"decay": p.decay, "curvature": float(p.curvatures[0]), "level": p.level, "attractive": p.level > 0}
            for p in sorted(self.path, key=lambda p: p.decay)
        ]

    def plot(self) -> Figure:
        """Draw λ_min + λ against λ, with the zero that is λ_c."""
        rows = self.table()
        with matplotlib.rc_context(STYLE):
            figure = Figure(figsize=(4.2, 3.0), layout="constrained")
            axes = figure.subplots()
            axes.plot([r["decay"] for r in rows], [r["level"] for r in rows], "o-", color=ACCENTS[0], markersize=3.5, linewidth=1)
            axes.axhline(0, color=MUTED, linewidth=0.7)
            axes.axvline(self.decay, color=BAD, linewidth=0.9, linestyle=":", label=f"λ_c = {self.decay:.4g}")
            axes.set(title="Attractive where positive", xlabel="weight decay λ", ylabel="λ_min(OᵀHO) + λ", xscale="log")
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.legend()
        return figure

    def __str__(self) -> str:
        kind = "continuous" if self.order == 2 else "a jump"
        return (
            f"{self.mirror.name}: attractive from weight decay {self.decay:.6g} on; the transition is {kind} (B = {self.quartic:.4g}); "
            f"step sizes below {self.largest_rate:.4g}"
        )

    def _repr_html_(self) -> str:
        return f"<pre>{escape(str(self))}</pre>"


def critical_decay(model: nn.Module, mirror: Mirror, inputs: Tensor, targets: Tensor, loss: str | LossFunction) -> CriticalDecay:
    """The weight decay above which a mirror's subspace is locally attractive.

    With loss + ½λ|θ|² (torch's coupled weight_decay) the subspace Oᵀθ = 0 attracts gradient flow near a stationary point in it if and only
    if λ_min(OᵀHO) + λ > 0, and descent with step size η if moreover η (λ_max(OᵀHO) + λ) < 2. The point moves with λ, so λ_c = -λ_min is
    solved for self-consistently. Momentum changes neither sign.

    Local: below λ_c runs leave; above it a minimum elsewhere may live on (always, for some λ, where the transition is a jump).
    If λ_min + λ has several zeros, that nearest the decay which makes the given point neutral is found; `path` shows what was looked at.

    Parameters
    ----------
    model : nn.Module
        Not changed. Descents inside the subspace start at its projection: give a model trained near the decay of interest.
    mirror : Mirror
        Of ``nf.mirrors(nf.trace(model, inputs))``.
    inputs, targets : Tensor
        All samples.
    loss : 'mse', 'cross_entropy' or callable of (output, targets)
        Three times differentiable along the subspace, four times across it: not at the kinks of ReLU.

    Returns
    -------
    CriticalDecay

    Raises
    ------
    RunError
        If the mirror does not belong to the model, or no stationary point is reached.

    Notes
    -----
    Source: ziyin2024symmetry (attraction by decay); own (self-consistency, order and amplitude, `noetherflow.symbolic.pitchfork`).

    Examples
    --------
    >>> import torch
    >>> import noetherflow as nf
    >>> model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
    >>> x, y = torch.tensor([[1.0], [-1.0]]), torch.tensor([[0.3], [-0.3]])
    >>> (family,) = nf.mirrors(nf.trace(model, x))
    >>> found = nf.critical_decay(model, family.mirror(), x, y, lambda out, y: ((out - y) ** 2).mean() / 2)
    >>> round(found.decay, 7), round(found.amplitude(0.2) ** 2, 7)  # E[xy], and 2 (E[xy] - λ) / E[x²]
    (0.3, 0.2)
    """
    subspace = Subspace(Landscape(model, loss, inputs, targets), mirror)
    with activity("looking for the critical decay"):
        path = _bracket(subspace)
        while len(path) < MOST and (decay := _next(path)) is not None:
            path.append(_probe(subspace, path, decay))
        point = min(path, key=lambda p: abs(p.level))
        rate, quartic = _normal_form(subspace, point)
    return CriticalDecay(mirror, 0.0 if path[0].level > 0 else point.decay, rate, quartic, point, tuple(path))


def _bracket(subspace: Subspace) -> list[Stationary]:
    """Stationary points up to the first decay that attracts, the first from one that does not (if one was found)."""
    start = subspace.landscape.start
    curvatures, _ = subspace.modes(subspace.project(start))
    largest = float(curvatures.abs().max())
    if largest == 0:
        raise RunError("The transverse Hessian vanishes at the given point: every decay attracts there (a jump may lie elsewhere).")
    lowest = FLOOR * largest
    path = [subspace.stationary(max(-float(curvatures[0]), lowest), start)]
    while path[0].level > 0 and path[0].decay > lowest:
        path.insert(0, subspace.stationary(max(path[0].decay / GROWTH, lowest), start))
    while path[-1].level <= 0:
        path.append(_probe(subspace, path, path[-1].decay * GROWTH))
    return path


def _probe(subspace: Subspace, path: list[Stationary], decay: float) -> Stationary:
    """The stationary point at a decay, from the nearest one at a lower decay: what decay has put out would not come back."""
    lower = [p for p in path if p.decay <= decay]
    nearest = max(lower, key=lambda p: p.decay).theta if lower else subspace.landscape.start
    return subspace.stationary(decay, nearest)


def _next(path: list[Stationary]) -> float | None:
    """The decay to look at next, between the last that repels and the first that attracts; None if λ_c is known."""
    below = max((p for p in path if p.level <= 0), key=lambda p: p.decay, default=None)
    if below is None:
        return None
    above = min((p for p in path if p.decay > below.decay), key=lambda p: p.decay)
    best, other = sorted(path, key=lambda p: abs(p.level))[:2]
    step = -best.level * (other.decay - best.decay) / (other.level - best.level) if other.level != best.level else 0.0
    if abs(step) <= RESOLUTION * best.decay or above.decay - below.decay <= RESOLUTION * above.decay:
        return None
    secant = best.decay + step
    inside = below.decay < secant < above.decay and len(path) % 4 != 3  # every fourth time the middle: no jump of the levels stops that
    return secant if inside else (below.decay + above.decay) / 2


def _normal_form(subspace: Subspace, point: Stationary) -> tuple[float, float]:
    """(d(λ_min + λ)/dλ, B): how fast the subspace gains attraction, and what holds the amplitude."""
    v, theta, decay = point.direction, point.theta, point.decay
    coupling = subspace.project(subspace.landscape.contracted(theta, v, v))
    relaxed = subspace.solve(theta, decay, coupling)  # t·(H + λ)⁻¹t is t²/(K + λ) of the one relaxed direction that is derived with
    quartic = float(subspace.landscape.contracted(theta, v, v, v) @ v)
    symbols = {QUARTIC: quartic, COUPLING: float(coupling @ relaxed) ** 0.5, STIFFNESS: 1, DECAY: 0}
    return 1 - float(relaxed @ theta), float(quartic_level().subs(symbols))
