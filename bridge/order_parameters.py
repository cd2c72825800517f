"""Order parameters of permutations and signs: how far each class of units is from being symmetric, at one point of parameter space.

Source: ziyin2025parameter for the order parameter Δ; own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from math import factorial, prod
from typing import Any, Final

import torch
from torch import Tensor, nn

from noetherflow.bridge.canonical import canonical_form
from noetherflow.bridge.distance import all_parameters
from noetherflow.bridge.orbits import Left, orbit_of
from noetherflow.bridge.units import cells, distances, gram, grams, overlaps, same, signs_of_units
from noetherflow.errors import ModelError
from noetherflow.symbolic.discrete import DiscreteSymmetries, discrete_symmetries
from noetherflow.symbolic.discrete_factors import Factor, Permutations, Signs, Transpositions
from noetherflow.symbolic.graph import ArchitectureGraph

RESOLUTION: Final = 1e-6
"""Units nearer than this share of their root mean square norm count as one: far above float64 rounding, far below what trains apart."""

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class ClassOrder:
    """Order parameters of the units that one factor of permutations exchanges.

    Attributes
    ----------
    factor : Permutations
    distances : Tensor, shape (copies, N, N)
        ‖θ - (i j) θ‖ / √2 at the canonical point, least over signs of single units where these are symmetries.
    overlaps : Tensor, shape (copies, N, N)
        Cosines between units at the canonical point.
    breaking : float
        Δ = Σ‖ψ_i - ψ̄‖² / Σ‖ψ_i‖²: 0 if all units are equal, 1 if their mean vanishes.
    participation : float
        (Σλ)² / Σλ² of the Gram matrix of units, averaged over copies: how many directions they span, 1 to N.
    orbits : tuple of tuple of list
        For each copy the classes of units that are nearer than the resolution.
    cells : tuple of tuple of list
        For each copy the classes of units that are identical to the last bit, up to signs, in the parameters as given.
    stabilizer : int
        Number of permutations of units, with signs where these are symmetries, that leave the parameters as given unchanged to the last
        bit, counting the group that swaps of two units generate: all of them, but where a tensor carries the index twice (a recurrent
        weight that is circulant is left by cyclic shifts, and by no swap). Elements that move other classes along as well may do so too;
        they are not counted.
    """

    factor: Permutations
    distances: Tensor
    overlaps: Tensor
    breaking: float
    participation: float
    orbits: tuple[tuple[list[int], ...], ...]
    cells: tuple[tuple[list[int], ...], ...]
    stabilizer: int

    @property
    def distinct(self) -> int:
        """Number of distinct units, of all copies."""
        return sum(map(len, self.orbits))

    @property
    def units(self) -> int:
        """Number of units, of all copies."""
        return self.factor.copies * self.factor.sizes[-1]

    @property
    def nearest(self) -> float:
        """The least distance of two units."""
        apart = ~torch.eye(self.factor.sizes[-1], dtype=torch.bool)
        return float(self.distances[:, apart].min())

    @property
    def parameters(self) -> str:
        """Names of what the factor moves."""
        return ", ".join(dict.fromkeys(placed.parameter for placed in self.factor.actions))


@dataclass(frozen=True, slots=True, eq=False)
class OrderParameters:
    """Order parameters of all classes of units of a network at one point.

    Attributes
    ----------
    classes : tuple of ClassOrder
    signs : mapping of int to int
        Number of a factor of signs -> how many of its elements leave the parameters unchanged to the last bit.
    resolution : float
        Units nearer than this share of their root mean square norm count as one orbit.
    left : dict
        Continuous families that were not divided out, with reasons.
    """

    classes: tuple[ClassOrder, ...]
    signs: Mapping[int, int]
    resolution: float
    left: Left

    def table(self) -> list[dict[str, Any]]:
        """One row per class, ready for ``pandas.DataFrame``."""
        return [
            {
                "parameters": c.parameters,
                "units": c.units,
                "distinct": c.distinct,
                "breaking": c.breaking,
                "nearest": c.nearest,
                "participation": c.participation,
                "stabilizer": c.stabilizer,
            }
            for c in self.classes
        ]

    def __str__(self) -> str:
        lines = [f"Order parameters of {len(self.classes)} classes (units count as one below {self.resolution:g} of their size)"]
        for c in self.classes:
            lines.append(
                f"  {c.distinct} of {c.units} units distinct, Δ = {c.breaking:.3g}, nearest {c.nearest:.3g}, "
                f"participation {c.participation:.3g}, stabilizer of order {c.stabilizer}: {c.parameters}"
            )
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return f"<pre>{escape(str(self))}</pre>"


@torch.no_grad()
def order_parameters(
    model: nn.Module,
    graph: ArchitectureGraph,
    *,
    resolution: float = RESOLUTION,
    modulo: bool = True,
    approximate: bool = False,
    group: DiscreteSymmetries | None = None,
) -> OrderParameters:
    """How far the units, channels and heads of a network are from being identical, class by class.

    Units are compared modulo the continuous symmetries: the parameters are first carried to the canonical point of their orbit
    (`noetherflow.canonical`), so that two ReLU units that differ by a rescaling are one. Stabilizers are of the parameters as given, to
    the last bit. All of it is derived from the actions of `noetherflow.discrete_symmetries`; names of layers play no part.

    Parameters
    ----------
    model : nn.Module
    graph : ArchitectureGraph
        Of ``nf.trace``.
    resolution : float
        Units that are nearer than this share of their root mean square norm count as one orbit.
    modulo : bool
        False compares the parameters as given.
    approximate : bool
        Divide out scales before a normalisation with an eps too.
    group : DiscreteSymmetries, optional
        If it has been derived already.

    Returns
    -------
    OrderParameters
        ``.classes``, one for each factor of permutations; ``.table()``. Exact to rounding.

    Raises
    ------
    ModelError
        If the model does not match the graph.

    Examples
    --------
    >>> import noetherflow as nf
    >>> model, x = nf.models.MLP([3, 4, 2]).double(), torch.randn(5, 3).double()
    >>> _ = [nn.init.constant_(p, 0.1) for p in model.parameters()]
    >>> found = order_parameters(model, nf.trace(model, x)).classes[0]
    >>> found.distinct, found.stabilizer, round(found.participation, 9)
    (1, 24, 1.0)
    """
    discrete = discrete_symmetries(graph) if group is None else group
    orbit = orbit_of(model, graph, approximate=approximate)
    given = all_parameters(orbit, {})
    left: Left = {}
    there: Tensors = given
    if modulo:
        form = canonical_form(orbit, strict=False)
        there, left = all_parameters(orbit, form.tensors), form.left
    permuted = [f for f in discrete if isinstance(f, Permutations) and not isinstance(f, Transpositions)]
    classes = tuple(_class(f, discrete, given, there, resolution) for f in permuted)
    signs = {number: _unmoved_signs(f, given) for number, f in enumerate(discrete) if isinstance(f, Signs) and not f.reflected}
    return OrderParameters(classes, signs, resolution, left)


def _class(factor: Permutations, group: DiscreteSymmetries, given: Tensors, there: Tensors, resolution: float) -> ClassOrder:
    signs = signs_of_units(factor, group)
    parts = grams(factor, there)
    whole = gram(parts)
    if not bool(whole.isfinite().all()):
        raise ModelError(f"Units of {sorted({p.parameter for p in factor.actions})[:3]} are not finite: the run has diverged.")
    apart = distances(factor, there, signs)
    size = float(whole.diagonal(dim1=-2, dim2=-1).mean().clamp(min=0).sqrt())
    own = tuple(tuple(cells(near)) for near in same(factor, given, signs))
    return ClassOrder(
        factor,
        apart.cpu(),
        overlaps(parts).cpu(),
        _breaking(whole),
        float(_participation(whole).mean()),
        tuple(tuple(cells(near)) for near in apart <= resolution * size),
        own,
        prod(factorial(len(cell)) for copy in own for cell in copy) * _flips(factor, signs, given),
    )


def _breaking(whole: Tensor) -> float:
    """Σ‖ψ_i - ψ̄‖² / Σ‖ψ_i‖² from inner products, N ‖ψ̄‖² being the sum of them all over N; no less than zero."""
    trace = whole.diagonal(dim1=-2, dim2=-1).sum()
    if float(trace) == 0:
        return 0.0
    n = whole.shape[-1]
    centre = torch.eye(n).to(whole) - 1 / n
    return max(0.0, float((centre * whole).sum() / trace))


def _participation(whole: Tensor) -> Tensor:
    trace, square = whole.diagonal(dim1=-2, dim2=-1).sum(-1), whole.square().sum((-2, -1))
    return torch.where(square > 0, trace.square() / square.where(square > 0, torch.ones_like(square)), torch.zeros_like(square))


def _flips(factor: Permutations, signs: list[Signs], tensors: Tensors) -> int:
    """Signs of single units that change nothing."""
    return int(prod(2 ** int(_vanishing(f, tensors).sum()) for f in signs))


def _vanishing(factor: Signs, tensors: Tensors) -> Tensor:
    """Where all that a sign changes is zero."""
    dead = torch.ones(factor.sizes, dtype=torch.bool)
    for placed in factor.actions:
        block = placed.patch.view(tensors[placed.parameter])
        moved = block.movedim(placed.places, tuple(range(len(placed.places))))
        dead &= ~moved.reshape(*factor.sizes, -1).ne(0).any(-1).cpu()
    return dead


def _unmoved_signs(factor: Factor, tensors: Tensors) -> int:
    assert isinstance(factor, Signs)
    free = torch.tensor(factor.free(), dtype=torch.bool).reshape(factor.sizes)
    return int(2 ** int((_vanishing(factor, tensors) & free).sum()))
