"""Groups that act linearly and orthogonally on the inputs of a network: circles with a generator, and finite groups.

What is no group action is refused: a picture turned by interpolation is not, since turning it twice is not turning it by the sum.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import torch
from torch import Tensor

from noetherflow.errors import DataError
from noetherflow.numeric.polar_images import polar_images
from noetherflow.numeric.rounding import confidence, unit_roundoff

__all__ = [
    "Circle",
    "FiniteGroup",
    "circle_of",
    "closed",
    "cyclic_shifts",
    "generated",
    "polar_images",
    "representation_defects",
    "ring_rotations",
]

LARGEST_ORDER: Final = 4096


@dataclass(frozen=True, eq=False)
class Circle:
    """A circle group s -> exp(s Ω), of period 2π.

    Parameters
    ----------
    generator : Tensor, shape (d, d)
        Ω, antisymmetric, with whole frequencies (eigenvalues ± i m): else its elements are no closed circle.
    name : str

    Raises
    ------
    DataError
        The generator is not of that kind.

    Examples
    --------
    >>> turn = Circle(torch.tensor([[0.0, -1.0], [1.0, 0.0]]))
    >>> turn.frequency, turn.element(math.pi / 2).round().tolist()
    (1, [[0.0, -1.0], [1.0, 0.0]])
    """

    generator: Tensor
    name: str = "circle"

    def __post_init__(self) -> None:
        omega = self.generator.double()
        object.__setattr__(self, "generator", omega)
        if omega.dim() != 2 or omega.shape[0] != omega.shape[1] or not omega.numel():
            raise DataError(f"A generator is a square matrix; got shape {tuple(omega.shape)}.", shape=tuple(omega.shape))
        if not float((omega + omega.T).abs().max()) <= _rounding(omega):
            raise DataError("The generator is not antisymmetric, so its group does not act orthogonally. Give Ω with Ωᵀ = -Ω.")
        values = self._spectrum[0]
        if float((values - values.round()).abs().max()) > _rounding(omega):
            raise DataError(
                f"The generator's frequencies {sorted({round(float(v), 6) for v in values.abs()})[:6]} are not whole numbers, so its "
                "elements do not close at 2π. Divide it by their common unit; without one it generates no circle but a larger torus.",
                frequencies=values,
            )

    @cached_property
    def _spectrum(self) -> tuple[Tensor, Tensor]:
        """Frequencies m and vectors V with i Ω = V m V*."""
        values, vectors = torch.linalg.eigh(1j * self.generator)
        return values, vectors

    @property
    def size(self) -> int:
        """Numbers that it acts on, d."""
        return len(self.generator)

    @property
    def frequency(self) -> int:
        """The largest frequency m."""
        return int(self._spectrum[0].abs().max().round())

    @cached_property
    def deviation(self) -> float:
        """By how much the generator of the computed elements may differ from `generator`, as a standard deviation of its entries.

        The eigenvectors V are unitary, and diagonalise Ω, to rounding only; an error E of V shows as Ω E - E Ω.
        """
        values, vectors = self._spectrum
        made = ((vectors * (-1j * values.round())) @ vectors.mH).real
        unitary = vectors.mH @ vectors - torch.eye(self.size, dtype=torch.float64)
        apart, skewed = float((made - self.generator).square().mean().sqrt()), float(unitary.abs().square().mean().sqrt())
        return math.hypot(apart, 2 * self.frequency * skewed, unit_roundoff(torch.float64) * self.frequency)

    def element(self, angle: float) -> Tensor:
        """exp(angle Ω), shape (d, d), orthogonal to rounding."""
        values, vectors = self._spectrum
        return ((vectors * torch.exp(-1j * angle * values.round())) @ vectors.mH).real

    def equispaced(self, number: int) -> list[float]:
        """Angles 2πk/n: a cyclic subgroup (or its image, if frequencies have a common factor)."""
        return [2 * math.pi * k / number for k in range(number)]

    def random(self, number: int, seed: int) -> list[float]:
        """Independent angles, uniform on the circle."""
        drawn = torch.rand(number, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        return [2 * math.pi * float(s) for s in drawn]


@dataclass(frozen=True, eq=False)
class FiniteGroup:
    """A finite group of orthogonal matrices.

    Parameters
    ----------
    elements : Tensor, shape (order, d, d)
        The identity first. Made by `generated`, which closes what it is given.
    generators : tuple of Tensor
    name : str
    """

    elements: Tensor
    generators: tuple[Tensor, ...]
    name: str = "finite group"

    @property
    def order(self) -> int:
        """Number of elements."""
        return len(self.elements)

    @property
    def size(self) -> int:
        """Numbers that it acts on, d."""
        return self.elements.shape[-1]


def generated(*generators: Tensor, name: str = "finite group") -> FiniteGroup:
    """The finite group that orthogonal matrices generate: all their products.

    Raises
    ------
    DataError
        A matrix is not orthogonal, sizes differ, or there are more than `LARGEST_ORDER` products.

    Examples
    --------
    >>> flip, quarter = torch.tensor([[1.0, 0.0], [0.0, -1.0]]), torch.tensor([[0.0, -1.0], [1.0, 0.0]])
    >>> generated(flip, quarter).order
    8
    """
    matrices = tuple(g.double() for g in generators)
    if not matrices or len({g.shape for g in matrices}) > 1 or not matrices[0].numel():
        raise DataError(f"Generators are square matrices of one size, one or more; got shapes {[tuple(g.shape) for g in matrices]}.")
    for g in matrices:
        if g.dim() != 2 or not float((g @ g.T - torch.eye(len(g), dtype=g.dtype)).abs().max()) <= _rounding(g):
            raise DataError("An element does not act orthogonally: ρ ρᵀ is not the identity to rounding.", shape=tuple(g.shape))
    size = len(matrices[0])
    elements = torch.eye(size, dtype=torch.float64)[None]
    fresh = elements
    while len(fresh):
        products = torch.cat([fresh @ g for g in matrices])
        fresh = _not_among(products, elements)
        elements = torch.cat([elements, fresh])
        if len(elements) > LARGEST_ORDER:
            raise DataError(f"More than {LARGEST_ORDER} products of the generators differ: they generate no (small) finite group.")
    return FiniteGroup(elements, matrices, name)


def closed(elements: Tensor) -> bool:
    """Whether products of any two matrices are among them, to rounding: a finite set of invertible ones is then a group.

    Told by one random linear function of the entries, which separates different matrices with probability one.

    Examples
    --------
    >>> closed(cyclic_shifts(4).elements), closed(cyclic_shifts(4).elements[:3])
    (True, False)
    """
    if not elements.numel() or not bool(elements.isfinite().all()):
        return False
    drawn = torch.randn(elements.shape[1:], generator=torch.Generator().manual_seed(0), dtype=elements.dtype)
    told = (elements * drawn).sum((1, 2)).sort().values
    products = (elements.mT @ drawn).flatten(1) @ elements.flatten(1).T  # ⟨R, ρσ⟩ = ⟨ρᵀR, σ⟩
    above = torch.searchsorted(told, products.flatten()).clamp(max=len(told) - 1)
    nearest = torch.minimum((told[above] - products.flatten()).abs(), (told[(above - 1).clamp(min=0)] - products.flatten()).abs())
    return bool((nearest <= 1e-6).all())  # as in `_not_among`


def _not_among(products: Tensor, elements: Tensor) -> Tensor:
    """Products that are new, each once. Elements of a finite group differ by far more than rounding."""
    new: list[Tensor] = []
    known = elements.flatten(1)
    for product in products:
        if float((known - product.flatten()).norm(dim=1).min()) > 1e-6:  # far above rounding of unit rows, far below any difference
            new.append(product)
            known = torch.cat([known, product.flatten()[None]])
    return torch.stack(new) if new else products[:0]


def cyclic_shifts(size: int) -> FiniteGroup:
    """The cyclic group of translations of `size` places on a ring.

    >>> cyclic_shifts(5).order
    5
    """
    return generated(torch.eye(size, dtype=torch.float64).roll(1, 0), name=f"shifts of {size} places")


def ring_rotations(rings: int, angles: int) -> Circle:
    """Planar rotations of images sampled on polar rings (`noetherflow.numeric.polar_images`), ring by ring, as an exact action.

    On a ring of an odd number of angles every function is one trigonometric polynomial of degree (angles - 1)/2, which is turned exactly;
    by 2π / angles its samples move on by one place.

    Raises
    ------
    DataError
        For an even number: the highest frequency has no derivative on the grid.

    Examples
    --------
    >>> turn = ring_rotations(1, 5)
    >>> turn.element(2 * math.pi / 5).round(decimals=9).abs().argmax(0).tolist()
    [1, 2, 3, 4, 0]
    """
    if angles % 2 == 0 or angles < 3:
        raise DataError(f"A ring of {angles} angles has no exact rotation; take an odd number, 3 or more.", angles=angles)
    steps = torch.arange(angles, dtype=torch.float64)
    waves = torch.arange(1, (angles - 1) // 2 + 1, dtype=torch.float64)
    differences = 2 * math.pi * (steps[:, None] - steps) / angles
    # minus the derivative: a picture turned by s has at angle φ what it had at φ - s
    ring = (2 / angles) * (waves * torch.sin(differences[..., None] * waves)).sum(-1)
    return Circle(torch.kron(torch.eye(rings, dtype=torch.float64), ring), f"rotations of {rings} rings")


def circle_of(rotation: Callable[[float], Tensor], samples: int, *, name: str = "circle") -> Circle:
    """The circle group that a function of the angle is, or an error that says why it is none.

    Parameters
    ----------
    rotation : callable
        angle -> matrix, shape (d, d).
    samples : int
        Odd, more than twice the largest frequency.

    Raises
    ------
    DataError
        The matrices are not orthogonal, or do not compose.

    Examples
    --------
    >>> wave = lambda s: torch.tensor([[math.cos(2 * s), -math.sin(2 * s)], [math.sin(2 * s), math.cos(2 * s)]], dtype=torch.float64)
    >>> circle_of(wave, 7).frequency
    2
    """
    defects = representation_defects(rotation, (0.4, 1.0, 2.3))
    worst = max(defects, key=lambda what: defects[what])
    example = rotation(0.4).double()
    if defects[worst] > _rounding(example):
        raise DataError(
            f"This is no orthogonal group action: {worst} fails by {defects[worst]:.1e}. Turning by interpolation on a square grid never "
            "is one; sample pictures on polar rings (noetherflow.numeric.polar_images) and turn these.",
            defects=defects,
        )
    if samples % 2 == 0:
        raise DataError(f"The derivative needs an odd number of samples; got {samples}.", samples=samples)
    # the derivative at 0 of the trigonometric interpolant; row 0 of the derivative matrix of a ring, up to its sign
    weights = -ring_rotations(1, samples).generator[0]
    generator = torch.stack([w * rotation(2 * math.pi * k / samples).double() for k, w in enumerate(weights)]).sum(0)
    circle = Circle((generator - generator.T) / 2, name)
    if float((circle.element(0.4) - example).abs().max()) > _rounding(generator):
        raise DataError(f"The action has frequencies above {(samples - 1) // 2}; give more samples.", samples=samples)
    return circle


def representation_defects(rotation: Callable[[float], Tensor], angles: Sequence[float]) -> dict[str, float]:
    """By how much a function of the angle misses being an orthogonal group action, largest entry: each law by its name."""
    found = {"ρ(s)ρ(s)ᵀ = 1": 0.0, "ρ(s)ρ(t) = ρ(s+t)": 0.0}
    for s in angles:
        a = rotation(s).double()
        found["ρ(s)ρ(s)ᵀ = 1"] = max(found["ρ(s)ρ(s)ᵀ = 1"], float((a @ a.T - torch.eye(len(a), dtype=a.dtype)).abs().max()))
        for t in angles:
            product = a @ rotation(t).double() - rotation(s + t).double()
            found["ρ(s)ρ(t) = ρ(s+t)"] = max(found["ρ(s)ρ(t) = ρ(s+t)"], float(product.abs().max()))
    return found


def _rounding(matrix: Tensor) -> float:
    """What rounding may leave in an entry of a product of such matrices: d terms of the size of the largest squared row, each rounded."""
    size = max(1.0, float(matrix.norm(dim=1).max())) ** 2
    return confidence(matrix.numel()) * math.sqrt(len(matrix)) * unit_roundoff(torch.float64) * size
