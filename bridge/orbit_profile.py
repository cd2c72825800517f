"""How steep and how sharp a loss is along an orbit, and where finite steps and noise push a run along it.

On an orbit θ_s = exp(sA) θ the loss is constant and its derivatives are not. Differentiating L(exp(sA) θ) = L(θ),

    ∇L(θ_s) = exp(-sA)ᵀ ∇L(θ),    ∇²L(θ_s) = exp(-sA)ᵀ ∇²L(θ) exp(-sA),

for each sample's loss and for the mean: what is known at one point is known on the whole orbit. With A symmetric,

    d/ds E|g_B|² = -2 E⟨g_B, A g_B⟩ = -4 E Q(g_B),    Q(θ) = ½⟨θ, Aθ⟩,

while the exact law of a step, E Q' - Q = η² E Q(g_B), moves a run by Δs = η² E Q(g_B) / |Aθ|² along the orbit. Hence

    Δs = -(η²/4) (d/ds E|g_B|²) / |Aθ|²:

finite steps and noise go down the gradient of E|g_B|² = |ḡ|² + κ Tr Σ, always (own; the same as the modified loss f + η/4 E|g_B|²
restricted to an orbit, but from the charge's exact law). Where the noise is label noise at an interpolating minimum, Σ is proportional to
the Hessian, and the flattest point of the orbit is where a run comes to rest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import grad, vmap

from noetherflow.bridge.group_elements import Element, exponential, pairing, projected, tangent, zeros
from noetherflow.bridge.orbits import Source, orbit_of
from noetherflow.errors import ModelError
from noetherflow.numeric.curvature import Product, hessian_product, largest_eigenvalue
from noetherflow.numeric.model_loss import check_loss, loss_at
from noetherflow.numeric.palette import ACCENTS, MUTED
from noetherflow.numeric.progress import shown
from noetherflow.symbolic.symmetries import Symmetry

PLACES: Final = tuple(np.linspace(-1.0, 1.0, 21))
Floats = NDArray[np.float64]
Vectors = dict[str, Tensor]


@dataclass(frozen=True)
class OrbitProfile:
    """Derivatives of a loss along one orbit, θ_s = exp(s a·A) θ.

    Attributes
    ----------
    family : Symmetry
    direction : Tensor
        a, coordinates in the family.
    places : array, shape (points,)
        s.
    loss, squared_gradient, noise, sharpness : array, shape (points,)
        Measured at θ_s: L, |ḡ|², Tr Σ (of single samples, with Σ over N), and the largest eigenvalue of the Hessian.
    predicted : dict of str to array
        ``squared_gradient``, ``noise``, ``sharpness`` once more, from the derivatives at s = 0 alone.
    velocity : float
        |ξ(θ)|² at s = 0.
    slopes : dict of str to float
        d/ds of ``squared_gradient`` and ``noise`` at s = 0, exact.
    """

    family: Symmetry
    direction: Tensor
    places: Floats
    loss: Floats
    squared_gradient: Floats
    noise: Floats
    sharpness: Floats
    predicted: Mapping[str, Floats]
    velocity: float
    slopes: Mapping[str, float] = field(default_factory=dict)

    def drift(self, lr: float, noise_factor: float = 0.0) -> float:
        """Δs of one step of gradient descent from s = 0, to leading order: η² E Q(g_B) / |ξ|².

        Parameters
        ----------
        lr : float
            η.
        noise_factor : float
            κ, the covariance of a mini-batch gradient over that of single samples: 1/S for S samples drawn with replacement, zero for
            full batches.
        """
        slope = self.slopes["squared_gradient"] + noise_factor * self.slopes["noise"]
        return -(lr**2) / 4 * slope / self.velocity

    def flattest(self, of: str = "sharpness") -> float:
        """The place, among those asked for, where a measured quantity is least."""
        return float(self.places[int(np.argmin(getattr(self, of)))])

    def table(self) -> list[dict[str, float]]:
        """One row a place."""
        names = ("places", "loss", "squared_gradient", "noise", "sharpness")
        columns = [getattr(self, name) for name in names]
        return [dict(zip(names, map(float, row), strict=True)) for row in zip(*columns, strict=True)]

    def plot(self, axes: Axes) -> Axes:
        """Each quantity over its value at the place nearest zero; predictions dotted."""
        here = int(np.argmin(np.abs(self.places)))
        for name, colour in zip(("squared_gradient", "noise", "sharpness"), ACCENTS, strict=False):
            values = getattr(self, name)
            axes.plot(self.places, values / values[here], color=colour, linewidth=3, alpha=0.4, label=name.replace("_", " "))
            axes.plot(self.places, self.predicted[name] / values[here], color=colour, linestyle=":", linewidth=1.4)
        axes.axvline(0.0, color=MUTED, linewidth=0.7)
        axes.set(title=f"Along {self.family.name}", xlabel="place s on the orbit", ylabel="relative to s = 0")
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.legend()
        return axes

    def __repr__(self) -> str:
        ends = f"s in [{self.places.min():.3g}, {self.places.max():.3g}]"
        ranges = [f"{n.replace('_', ' ')} {getattr(self, n).min():.4g} to {getattr(self, n).max():.4g}" for n in self.predicted]
        way = "+" if self.drift(1.0, 1.0) > 0 else "-"
        rest = f"single samples drift towards {way}s, flattest at {self.flattest():.3g}"
        return f"Orbit of {self.family.name}, {ends}: {', '.join(ranges)}; {rest}"


def orbit_profile(
    model: nn.Module,
    source: Source,
    inputs: Tensor,
    targets: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor],
    *,
    family: int = 0,
    direction: Tensor | None = None,
    at: Sequence[float] = PLACES,
) -> OrbitProfile:
    """Measure a loss's derivatives along an orbit, beside what they are predicted to be, and the drift of finite steps and noise.

    Parameters
    ----------
    model : nn.Module
        In float64. Not changed. Without layers that mix samples (batch normalisation), if noise is to be what mini-batches add.
    source : Symmetries, ArchitectureGraph, Tensor or tuple
        Where its symmetries come from, as for `noetherflow.rebalance`.
    inputs, targets : Tensor
        N samples along axis 0.
    loss : callable
        Of output and target, averaging over samples.
    family : int
        Which of the families that can move the model (those with a finite action by scales or matrices).
    direction : Tensor, optional
        Coordinates a in the family, symmetric for matrix families. Absent: the one along which E|g|² of single samples falls fastest.
    at : sequence of float
        Places s.

    Returns
    -------
    OrbitProfile

    Raises
    ------
    ModelError
        If the model is not in float64, has no such family, or the direction does not fit.
    RunError
        If the loss fails on the data or on a single sample (a norm over the batch), is not finite, or is random (dropout).

    Notes
    -----
    Predictions are exact: they agree with what is measured to rounding. `drift` is exact for the charge, to leading order for s.

    Examples
    --------
    >>> import noetherflow as nf
    >>> torch.set_default_dtype(torch.float64)
    >>> model, x, y = nf.models.MLP([3, 8, 2]).double(), torch.randn(20, 3), torch.randn(20, 2)
    >>> profile = orbit_profile(model, nf.trace(model, x), x, y, nn.functional.mse_loss, at=(-0.5, 0.0, 0.5))
    >>> torch.set_default_dtype(torch.float32)
    >>> bool(np.ptp(profile.loss) < 1e-12), profile.drift(0.1, 1.0) > 0
    (True, True)
    """
    if any(p.dtype != torch.float64 for p in model.parameters()):
        raise ModelError("A profile along an orbit is measured in float64: give model.double(), with inputs in float64.")
    orbit = orbit_of(model, source)
    scaled = [f for f in orbit.families if f.actions[0].form != "shift"]
    if not 0 <= family < len(scaled):
        names = [f.name for f in scaled]
        raise ModelError(f"No family number {family}: the model has {len(names)} families of scales and matrices, {names[:6]}.")
    problem = _Problem(model, loss, inputs, targets)
    chosen = scaled[family]
    if not len(at):
        raise ModelError("A profile has one place or more; got none.")
    coordinates = problem.steepest(chosen) if direction is None else direction.to(torch.float64)
    _check(chosen, coordinates)
    return _profile(problem, chosen, coordinates, np.asarray(at, dtype=np.float64))


class _Problem:
    """A loss as a function of its parameters, with its derivatives at one point."""

    def __init__(self, model: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], inputs: Tensor, targets: Tensor) -> None:
        self.model, self.loss, self.inputs, self.targets = model, loss, inputs, targets
        self.point = {name: p.detach().clone() for name, p in model.named_parameters()}
        check_loss(lambda: self.mean(self.point))

    def mean(self, point: Mapping[str, Tensor]) -> Tensor:
        return loss_at(self.model, point, (self.inputs,), (self.targets,), self.loss)

    def samples(self, point: Mapping[str, Tensor]) -> Vectors:
        """Gradients of single samples, shape (N, *shape)."""

        def one(p: Vectors, x: Tensor, y: Tensor) -> Tensor:
            return loss_at(self.model, p, (x[None],), (y[None],), self.loss)

        return vmap(grad(one), in_dims=(None, 0, 0))(dict(point), self.inputs, self.targets)  # type: ignore[no-any-return]

    def steepest(self, family: Symmetry) -> Tensor:
        """The direction of length one along which E|g_i|² falls fastest: that of the pairings E⟨g_i, A g_i⟩."""
        gradients = self.samples(self.point)
        total = torch.stack([pairing(family, own, own) for own in _each(gradients)]).mean(0)
        found = projected(family, total)
        length: Tensor = found.norm()
        return found / length

    def moments(self, gradients: Vectors) -> tuple[float, float]:
        """|ḡ|² and Tr Σ of single samples."""
        mean = sum(float(g.mean(0).square().sum()) for g in gradients.values())
        return mean, sum(float((g - g.mean(0)).square().sum()) for g in gradients.values()) / len(self.inputs)


def _each(gradients: Vectors) -> list[Vectors]:
    return [dict(zip(gradients, own, strict=True)) for own in zip(*gradients.values(), strict=True)]


def _check(family: Symmetry, coordinates: Tensor) -> None:
    shape = zeros(family, coordinates.device).shape
    if coordinates.shape == shape and torch.allclose(projected(family, coordinates), coordinates) and bool(coordinates.any()):
        return
    means = f", of zero mean along indices {sorted(family.zero_mean)}" if family.zero_mean else ""
    kind = ", symmetric" if family.matrix else means
    raise ModelError(f"A direction in {family.name} has shape {tuple(shape)}{kind}, and is not zero; got {coordinates}.")


def _profile(problem: _Problem, family: Symmetry, direction: Tensor, at: Floats) -> OrbitProfile:
    """All of it, place by place."""
    gradients = problem.samples(problem.point)
    product = hessian_product(problem.mean, problem.point)
    rows = []
    for s in shown(list(at), "profile along an orbit", len(at)):
        there = exponential(family, float(s) * direction).act(problem.point)
        back = exponential(family, -float(s) * direction)
        measured = (
            float(problem.mean(there)),
            *problem.moments(problem.samples(there)),
            _sharpness(hessian_product(problem.mean, there), there),
        )

        def carried(v: Mapping[str, Tensor], back: Element = back) -> Vectors:
            return back.act(product(back.act(v)))

        told = (*problem.moments(vmap(back.act)(gradients)), _sharpness(carried, problem.point))
        rows.append((*measured, *told))
    loss, square, noise, sharp, *told_columns = np.array(rows).T
    predicted: dict[str, Floats] = dict(zip(("squared_gradient", "noise", "sharpness"), told_columns, strict=True))
    return OrbitProfile(family, direction, at, loss, square, noise, sharp, predicted, *_at_start(problem, family, direction, gradients))


def _sharpness(product: Product, like: Mapping[str, Tensor]) -> float:
    return largest_eigenvalue(product, like)


def _at_start(problem: _Problem, family: Symmetry, direction: Tensor, gradients: Vectors) -> tuple[float, dict[str, float]]:
    """|ξ|², and the slopes -2⟨ḡ, A ḡ⟩ and -2 Tr[A Σ]."""
    velocity = sum(float(x.square().sum()) for x in tangent([family], problem.point, [direction]).values())
    mean = {name: g.mean(0) for name, g in gradients.items()}
    whole = torch.stack([pairing(family, own, own) for own in _each(gradients)]).mean(0)
    of_mean = pairing(family, mean, mean)
    slopes = {"squared_gradient": of_mean, "noise": whole - of_mean}
    return velocity, {name: -2 * float((direction * value).sum()) for name, value in slopes.items()}
