"""The momentum of augmented data: ⟨ξ_Ω(θ), ∇L⟩ for every element of a circle that acts on the inputs, and their average.

For any data and any loss it is the loss's derivative along the orbit of the data (`noetherflow.symbolic.input_actions`, equation 1):

    ⟨ξ_Ω(θ), ∇L(θ; ρ(s) x)⟩ = F'(s),   F(s) = L(θ; ρ(s) x) .

It is zero only for the average over the whole circle; not for one batch, nor for a random finite set, where it has mean zero and a
variance; over n equispaced elements it is the aliasing error of `noetherflow.symbolic.orbit_averages`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, Final, NamedTuple

import matplotlib
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from noetherflow.bridge.absorbed_actions import Absorbed, absorbed
from noetherflow.bridge.replay import loss_function
from noetherflow.errors import ModelError
from noetherflow.numeric.input_groups import Circle
from noetherflow.numeric.intervals import Interval, mean_interval
from noetherflow.numeric.model_loss import loss_at
from noetherflow.numeric.palette import ACCENTS, BAD, GOOD, INK, STYLE
from noetherflow.numeric.progress import shown
from noetherflow.numeric.rounding import confidence, unit_roundoff
from noetherflow.symbolic.orbit_averages import exact_elements

USUAL: Final = 64
SHIFT: Final = 2.0**-20
"""Relative change at which the response to rounding is measured: far above rounding, far below what bends it."""

Loss = str | Callable[[Any, Tensor], Tensor]


@dataclass(frozen=True)
class AugmentationMomenta:
    """Momenta of a batch under elements of a circle.

    Attributes
    ----------
    group : str
    readers : tuple of str
        Parameters that absorb the action.
    angles : tuple of float
    momenta : Tensor, shape (elements,)
        ⟨ξ_Ω, ∇L⟩ of the batch turned by each angle.
    slopes : Tensor, shape (elements,)
        F'(s) by differentiating the data: equal to `momenta` for any data, and found without the first layer.
    deviations : Tensor, shape (2, elements)
        Standard deviations of the rounding of both.
    shared : float
        Standard deviation of what the rounding of the group's elements does to all of them alike.
    equispaced : bool
    exact_elements : int or None
        From this many equispaced elements on the average is exactly zero (polynomial networks with mean-square loss); None: never exactly.
    """

    group: str
    readers: tuple[str, ...]
    angles: tuple[float, ...]
    momenta: Tensor
    slopes: Tensor
    deviations: Tensor
    shared: float
    equispaced: bool
    exact_elements: int | None

    @property
    def momentum(self) -> float:
        """Of the loss averaged over the elements."""
        return float(self.momenta.mean())

    @property
    def bound(self) -> float:
        """What rounding may leave of `momentum`."""
        return confidence(1) * math.hypot(float(self.deviations[0].norm()) / len(self.angles), self.shared)

    @property
    def vanishes(self) -> bool:
        """Whether the averaged momentum is zero to rounding."""
        return abs(self.momentum) <= self.bound

    @property
    def size(self) -> float:
        """Root mean square of the single elements' momenta: what the average takes away."""
        return float(self.momenta.square().mean().sqrt())

    @property
    def identity(self) -> float:
        """Largest |momentum - slope of the loss along the data's orbit|, over its rounding bound: at most 1."""
        limits = confidence(len(self.angles)) * self.deviations.square().sum(0).sqrt()
        return float(((self.momenta - self.slopes).abs() / limits).max())

    @property
    def interval(self) -> Interval:
        """Of the momentum over independent random elements, by Student: it holds zero, the average over the circle."""
        if self.equispaced:
            raise ModelError("Equispaced elements are no independent samples. Give random angles (group.random) for an interval.")
        return mean_interval(self.momenta.numpy())

    @property
    def spectrum(self) -> Tensor:
        """|Coefficients| of F' at frequencies 0, 1, ..., n/2, from n equispaced elements; frequencies above n/2 fold onto them."""
        if not self.equispaced:
            raise ModelError("A spectrum needs equispaced elements; give their number.")
        coefficients: Tensor = torch.fft.rfft(self.momenta).abs() / len(self.angles)
        return coefficients

    def table(self) -> list[dict[str, Any]]:
        """One row an element: angle, momentum, slope, and the standard deviation of its rounding."""
        columns = zip(self.angles, self.momenta.tolist(), self.slopes.tolist(), self.deviations[0].tolist(), strict=True)
        return [{"angle": s, "momentum": m, "slope": f, "rounding": d} for s, m, f, d in columns]

    def plot(self, path: Path | str | None = None) -> Figure:
        """Draw the momentum of every element and their mean; with a path, save it there too."""
        with matplotlib.rc_context(STYLE):
            figure = Figure(figsize=(5, 3), layout="constrained")
            axes = figure.subplots()
            axes.plot(
                self.angles,
                self.slopes.numpy(),
                "-" if self.equispaced else ".",
                color=ACCENTS[4],
                label="dL/ds along the orbit of the data",
            )
            axes.plot(self.angles, self.momenta.numpy(), ".", color=ACCENTS[0], label="⟨ξ, ∇L⟩ of one element")
            colour = GOOD if self.vanishes else BAD
            axes.axhline(self.momentum, color=colour, label=f"mean {self.momentum:.1e} (rounding {self.bound:.0e})")
            axes.axhline(0, color=INK, linewidth=0.5)
            axes.set(title=f"Momentum under {self.group}", xlabel="angle of the element", ylabel="momentum")
            axes.legend()
        if path is not None:
            figure.savefig(path, dpi=150)
        return figure

    def __str__(self) -> str:
        kind = "equispaced" if self.equispaced else "given"
        exact = "no number is exact" if self.exact_elements is None else f"exact from {self.exact_elements} equispaced"
        state = "zero to rounding" if self.vanishes else "not zero"
        return "\n".join(
            [
                f"{self.group}, absorbed by {', '.join(self.readers)}: momentum {self.momentum:.2e}, {state} ({self.bound:.0e})",
                f"  {len(self.angles)} {kind} elements ({exact}); of single ones {self.size:.2e}",
                f"  momentum = slope along the data's orbit: {self.identity:.2g} of the rounding bound",
            ]
        )

    def _repr_html_(self) -> str:
        return f"<pre>{escape(str(self))}</pre>"


def augmentation_momenta(
    model: nn.Module,
    batch: tuple[Tensor, Tensor],
    loss: Loss,
    group: Circle,
    *,
    elements: int | Sequence[float] | None = None,
    axis: int | None = None,
    seed: int = 0,
) -> AugmentationMomenta:
    """Measure the momenta of a batch augmented by a circle of linear actions on its inputs.

    Parameters
    ----------
    model : nn.Module
        In float64; deterministic (dropout off). Its parameters, buffers and gradients are left as they are.
    batch : (inputs, targets)
    loss : "cross_entropy", "mse" or callable
        As ``loss(output, targets)``; a number. Targets are not turned.
    group : Circle
        Of `noetherflow.input_groups`.
    elements : int or sequence of float, optional
        A number of equispaced elements, or angles. By default as many as are exact for a polynomial network, else 64.
    axis : int, optional
        The axis that the group mixes; 1 for channels. By default all numbers of an example, or the last axis.
    seed : int
        Of the changes by which the response to rounding is measured.

    Returns
    -------
    AugmentationMomenta
        Exact to a rounding bound: every contraction is taken as that of operands changed by relative roundings (backward errors,
        independent), and the momentum's response to such changes is measured.

    Raises
    ------
    ModelError
        The model is not in float64, the group is no circle, nothing in the model absorbs it, or there are no elements or samples.
    RunError
        The loss is unknown, or fails on the data.

    Notes
    -----
    Source: gluch2021noether for the restriction under the full average; own for the identity, the aliasing error and the conditions.

    Examples
    --------
    >>> import noetherflow as nf
    >>> model = nf.models.build("mlp", seed=0, widths=(5, 4, 2), activation="tanh").double()
    >>> x, y = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).double(), torch.tensor([0, 1, 1])
    >>> found = augmentation_momenta(model, (x, y), "cross_entropy", nf.input_groups.ring_rotations(1, 5))
    >>> found.vanishes, found.identity <= 1, found.size > 1e3 * found.bound
    (True, True, True)
    """
    coarse = [name for name, p in model.named_parameters() if p.dtype != torch.float64]
    if coarse or batch[0].dtype != torch.float64:
        raise ModelError(f"Momenta are measured in float64; {coarse[:4] or 'the inputs'} are not. Use .double().", parameters=coarse)
    if not isinstance(group, Circle):
        raise ModelError(f"A momentum needs a circle; got {type(group).__name__}. For a finite group ask nf.augmentation_equivariance.")
    site = absorbed(model, batch[0], group, axis)
    squared = loss in ("mse", nn.functional.mse_loss)
    exact = exact_elements(site.graph, group.frequency) if squared else None
    number = (exact or USUAL) if elements is None else elements
    angles = group.equispaced(number) if isinstance(number, int) else list(number)
    if not angles:
        raise ModelError("A momentum is measured at one element or more; got none.")
    run = _Run(site, group.generator, model, loss_function(loss), batch, torch.Generator().manual_seed(seed))
    rows = [run.at(group.element(s)) for s in shown(angles, "momenta", len(angles))]
    momenta, slopes = (torch.tensor([getattr(r, name) for r in rows], dtype=torch.float64) for name in ("momentum", "slope"))
    deviations = torch.tensor([[getattr(r, name) for r in rows] for name in ("rounding", "slope_rounding")], dtype=torch.float64)
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    averaged = {name: torch.stack([r.gradients[name] for r in rows]).mean(0) for name in site.action.readers}
    shared = group.deviation * site.response(parameters, averaged, run.drawn)
    return AugmentationMomenta(
        group.name, site.action.readers, tuple(angles), momenta, slopes, deviations, shared, isinstance(number, int), exact
    )


class _Row(NamedTuple):
    momentum: float
    slope: float
    rounding: float
    slope_rounding: float
    gradients: dict[str, Tensor]


class _Pairings(NamedTuple):
    momentum: float
    slope: float
    terms: float
    slope_terms: float
    gradients: dict[str, Tensor]


@dataclass(frozen=True)
class _Run:
    site: Absorbed
    omega: Tensor
    model: nn.Module
    loss: Callable[[Any, Tensor], Tensor]
    batch: tuple[Tensor, Tensor]
    drawn: torch.Generator

    def at(self, element: Tensor) -> _Row:
        """Both pairings for one element, with the standard deviations of their rounding."""
        inputs = self.site.act(element, self.batch[0])
        parameters = {name: p.detach() for name, p in self.model.named_parameters()}
        here = self.pairings(parameters, inputs)
        there = self.pairings({name: self._shifted(p, fan(p)) for name, p in parameters.items()}, self._shifted(inputs, len(element)))
        unit = unit_roundoff(torch.float64)
        response, slope_response = ((a - b) / SHIFT for a, b in zip(there[:2], here[:2], strict=True))
        roundings = unit * math.hypot(response, here.terms), unit * math.hypot(slope_response, here.slope_terms)
        return _Row(here.momentum, here.slope, *roundings, here.gradients)

    def pairings(self, parameters: dict[str, Tensor], inputs: Tensor) -> _Pairings:
        leaves = {name: p.clone().requires_grad_() for name, p in parameters.items()}
        x = inputs.clone().requires_grad_()
        value = loss_at(self.model, leaves, (x,), self.batch[1:], self.loss)
        names = self.site.action.readers
        *gradients, by_inputs = torch.autograd.grad(value, [*(leaves[name] for name in names), x])
        xi = self.site.generator(parameters)
        products = torch.cat([(xi[name] * g).flatten() for name, g in zip(names, gradients, strict=True)])
        slopes = (by_inputs * self.site.act(self.omega, inputs)).flatten()
        found = dict(zip(names, gradients, strict=True))
        return _Pairings(float(products.sum()), float(slopes.sum()), _roundings(products), _roundings(slopes), found)

    def _shifted(self, tensor: Tensor, roundings: int) -> Tensor:
        """Each entry changed by a relative amount, as by so many roundings of SHIFT instead of the unit."""
        noise = torch.randn(tensor.shape, generator=self.drawn, dtype=tensor.dtype)
        return tensor * (1 + SHIFT * math.sqrt(roundings) * noise)


def _roundings(products: Tensor) -> float:
    """Of a sum in units of one rounding: each product has three (two factors made, one product), partial sums by pairs log2(n)."""
    return math.sqrt(3 + math.log2(max(2, len(products)))) * float(products.norm())


def fan(parameter: Tensor) -> int:
    """Roundings of contractions with a parameter: forward over its inputs, backward over its outputs, and those of what follows."""
    return 4 + (parameter.numel() // parameter.shape[0] + parameter.shape[0] if parameter.dim() > 1 else 0)
