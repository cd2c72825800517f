"""The point of least norm on an orbit: where the charges of its rescalings and GL(n) families vanish.

    f(g) = ½ ‖g θ‖² - ⟨target, log g⟩

is convex along the one-parameter subgroups exp(tX) with symmetric X (for scales: a sum of exponentials; for matrices: Kempf and Ness). Its
slope is 2 Q - target with the charges Q, its curvature 2 ‖ξ_X(θ)‖². So Newton's method needs only the generator and its adjoint: each step
is a least-squares problem, solved by conjugate gradients with every family's own block of the curvature as preconditioner. With targets,
the charges come out as target / 2. Source: own; for rescalings alone saul2023weight.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from noetherflow.bridge.group_elements import (
    Coordinates,
    Element,
    Tensors,
    act_all,
    exponential,
    lead,
    pairing,
    projected,
    tangent,
    zeros,
)
from noetherflow.errors import ModelError
from noetherflow.symbolic.actions import Action
from noetherflow.symbolic.symmetries import Symmetry

STEPS = 200  # of Newton; a scale that is off by exp(s) takes about 2 s of them
LONGEST = 1.0  # no step changes a scale by more than exp of this, so that the quadratic model is near
SHORTEST = 1e-7  # after a step of this length the error is its square
NOISE = (
    0.05  # steps up to this length that no longer shrink, at a slope of QUIET times ½ ‖θ‖², follow rounding; an escape takes longer ones
)
QUIET = 1e-12
ENOUGH_DECREASE = 1e-4
ROUNDING = 1e-10  # of f: a decrease below this share cannot be seen in f, and is not asked for
ROUGHEST, FINEST = 0.1, 1e-10  # residuals of the linear solves, relative: the square of the last step, so that convergence stays quadratic
SMALLEST = 1e-13  # a curvature below this share of the family's largest is taken as none: singular values below 3e-7 of the largest

Linear = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Movers:
    """Families that move together, with what they may not do.

    Parameters
    ----------
    families : sequence of Symmetry
    targets : sequence of Tensor or None
        For each family the slope that is wanted instead of zero: twice the charges.
    held : sequence of Tensor or None
        For each family a mask of generators that stay at the identity.
    """

    families: Sequence[Symmetry]
    targets: Sequence[Tensor | None]
    held: Sequence[Tensor | None]

    def flat(self, coordinates: Sequence[Tensor]) -> Tensor:
        """One vector, projected on what the families have and may use."""
        parts = []
        for family, held, c in zip(self.families, self.held, coordinates, strict=True):
            allowed = projected(family, c)
            parts.append((allowed if held is None else allowed.masked_fill(held, 0.0)).reshape(-1))
        return torch.cat(parts)

    def split(self, vector: Tensor, like: Sequence[Tensor]) -> Coordinates:
        """The vector as an array for each family."""
        return [v.reshape(c.shape) for v, c in zip(torch.split(vector, [c.numel() for c in like]), like, strict=True)]

    def value(self, tensors: Tensors, travelled: Sequence[Tensor]) -> float:
        """f, up to a constant; `travelled` are the coordinates moved since the start (only those of scales count)."""
        names = dict.fromkeys(name for family in self.families for name in family.parameters)
        total = sum(float(tensors[name].square().sum()) for name in names) / 2
        return total - sum(float((t * a).sum()) for t, a in zip(self.targets, travelled, strict=True) if t is not None)

    def slope(self, tensors: Tensors) -> Tensor:
        """Derivative of f along every generator."""
        found = [pairing(f, tensors, tensors) for f in self.families]
        return self.flat([q if t is None else q - t for q, t in zip(found, self.targets, strict=True)])


def minimum_norm(
    families: Sequence[Symmetry],
    tensors: Tensors,
    targets: Sequence[Tensor | None] | None = None,
    held: Sequence[Tensor | None] | None = None,
) -> list[Element]:
    """The group elements, one for each family, that carry tensors to the point of least norm of their orbit; exact to rounding.

    Parameters
    ----------
    families : sequence of Symmetry
        With actions of form 'scale' or 'matrix'.
    tensors : mapping of str to Tensor
        The parameters that they move, in float64.
    targets : sequence of Tensor or None, optional
        For a family of scales: twice the charges that its generators shall have (zero if absent).
    held : sequence of Tensor or None, optional
        For a family of scales: the generators that stay where they are.

    Raises
    ------
    ModelError
        If the least norm is not attained: a factor of a GL(n) family has a lower rank than its partner, or a scale escapes to infinity. The
        family is the error's `symmetry`.
    """
    if not families:
        return []
    movers = Movers(families, targets or [None] * len(families), held or [None] * len(families))
    small_families, small = compressed(families, tensors)
    movers = replace(movers, families=small_families)
    like = [zeros(f, next(iter(tensors.values())).device) for f in families]
    travelled, step, start = like, like, small
    elements = [exponential(f, c) for f, c in zip(families, like, strict=True)]
    _refuse_lost_rank(families, movers.families, small, None)
    length = torch.inf
    for _ in range(STEPS):
        step = _newton_step(movers, small, travelled, like, accuracy=min(max(length**2, FINEST), ROUGHEST))
        elements = [exponential(f, c).after(e) for f, c, e in zip(families, step, elements, strict=True)]
        small = _moved(movers, small, step)
        travelled = [a + c for a, c in zip(travelled, step, strict=True)]
        before, length = length, max(float(c.abs().max()) for c in step)
        stalled = before / 2 < length <= NOISE and float(movers.slope(small).abs().max()) <= QUIET * movers.value(small, like)
        if length <= SHORTEST or stalled:
            _refuse_lost_rank(families, movers.families, start, small)
            return elements
    worst = max(zip(families, step, strict=True), key=lambda pair: float(pair[1].abs().max()))[0]
    raise ModelError(
        f"The orbit has no point of least norm that Newton's method could reach in {STEPS} steps; '{worst.name}' still moves. "
        "Some combination of scales makes part of the parameters vanish (zeros in a weight that others would have to balance), "
        "or the values are not finite. Remove the units that compute nothing, or pass strict=False to leave this family alone.",
        symmetry=worst,
    )


def _moved(movers: Movers, tensors: Tensors, step: Sequence[Tensor]) -> dict[str, Tensor]:
    return act_all([exponential(f, c) for f, c in zip(movers.families, step, strict=True)], tensors)


def _newton_step(movers: Movers, tensors: Tensors, travelled: Sequence[Tensor], like: Sequence[Tensor], *, accuracy: float) -> Coordinates:
    slope = movers.slope(tensors)
    bases = [_Block.of(family, tensors) for family in movers.families]

    def curvature(v: Tensor) -> Tensor:
        along = tangent(movers.families, tensors, movers.split(v, like))
        return 2 * movers.flat([pairing(f, tensors, along) for f in movers.families])

    def precondition(v: Tensor) -> Tensor:
        return movers.flat([b.solve(c) for b, c in zip(bases, movers.split(v, like), strict=True)])

    direction = conjugate_gradients(curvature, -slope, precondition, accuracy)
    direction = direction * min(1.0, LONGEST / max(float(direction.abs().max()), LONGEST))
    before, gain = movers.value(tensors, travelled), float(direction @ slope)
    fraction = 1.0
    while -gain > ROUNDING * abs(before) and fraction > SHORTEST:
        step = movers.split(fraction * direction, like)
        after = movers.value(_moved(movers, tensors, step), [a + c for a, c in zip(travelled, step, strict=True)])
        if after <= before + ENOUGH_DECREASE * fraction * gain:
            break
        fraction /= 2
    return movers.split(fraction * direction, like)


@dataclass(frozen=True)
class _Block:
    """One family's own block of the curvature: Q -> X with D X = Q for scales, S X + X S = Q for matrices."""

    values: Tensor
    vectors: Tensor | None = None

    @classmethod
    def of(cls, family: Symmetry, tensors: Tensors) -> _Block:
        if not family.matrix:
            return cls(2 * pairing(family, tensors, tensors, power=2))
        values, vectors = torch.linalg.eigh(_gram(family, tensors))
        return cls(values[..., :, None] + values[..., None, :], vectors)

    def solve(self, right: Tensor) -> Tensor:
        """Divide by what curvature there is. Masses of scales are sums of squares; eigenvalues far below the largest are its rounding."""
        if self.vectors is None:
            return _quotient(right, self.values, self.values > 0)
        inside = self.vectors.mT @ right @ self.vectors
        seen = self.values > SMALLEST * self.values.amax((-1, -2), keepdim=True)
        return self.vectors @ _quotient(inside, self.values, seen) @ self.vectors.mT


def _quotient(right: Tensor, values: Tensor, where: Tensor) -> Tensor:
    return torch.where(where, right / torch.where(where, values, 1.0), 0.0)


def _gram(family: Symmetry, tensors: Tensors) -> Tensor:
    """Sum of P Pᵀ over all that a matrix family moves, shape (spectators..., n, n)."""
    stack = stacked(family, tensors, family.actions)
    return stack @ stack.mT


def stacked(family: Symmetry, tensors: Tensors, actions: Sequence[Action]) -> Tensor:
    """Some of the blocks that a matrix family moves, side by side, shape (spectators..., n, all)."""
    return torch.cat([lead(a, a.patch.view(tensors[a.parameter])) for a in actions], -1)


def _refuse_lost_rank(named: Sequence[Symmetry], families: Sequence[Symmetry], start: Tensors, end: Tensors | None) -> None:
    """A rank that the limit lacks was not lost by any group element: the limit lies outside the orbit. Before there is a limit: of zero."""
    for symmetry, family in zip(named, families, strict=True):
        if not family.matrix:
            continue
        sides = [[a for a in family.actions if sign * a.weight > 0] for sign in (1, -1)]
        ranks = [torch.linalg.matrix_rank(stacked(family, start, side)) for side in sides]
        if end is None:
            lost = torch.minimum(*ranks) == 0
            attained = torch.where(lost, 0, torch.maximum(*ranks))
        else:  # eigenvalues of the Gram matrix below SMALLEST were not moved by Newton's method
            attained = torch.linalg.matrix_rank(stacked(family, end, family.actions), rtol=SMALLEST**0.5)
        if bool((torch.maximum(*ranks) > attained).any()):
            raise ModelError(
                f"The orbit of '{family.name}' has no point of least norm: what writes its axis has rank {ranks[0].tolist()}, what reads "
                f"it {ranks[1].tolist()}; as the norm is lowered, singular values of these fall below {SMALLEST**0.5:.0e} of the largest. "
                "These directions are written and never read, or read and never written: project them away, or pass strict=False to leave "
                "this family alone.",
                symmetry=symmetry,
                ranks=[r.tolist() for r in ranks],
            )


def conjugate_gradients(matrix: Linear, right: Tensor, precondition: Linear, accuracy: float) -> Tensor:
    """Solve a positive semi-definite system to a relative residual; what lies in its preconditioner's null space is left out."""
    solution, residual = torch.zeros_like(right), right
    z = precondition(residual)
    direction, product = z, float(residual @ z)
    wanted = accuracy**2 * product
    for _ in range(2 * right.numel() + 10):
        if product <= wanted or product <= 0.0:
            break
        image = matrix(direction)
        curvature = float(direction @ image)
        if curvature <= 0.0:
            break
        solution = solution + product / curvature * direction
        residual = residual - product / curvature * image
        z = precondition(residual)
        product, before = float(residual @ z), product
        direction = z + product / before * direction
    return solution


def compressed(families: Sequence[Symmetry], tensors: Tensors) -> tuple[list[Symmetry], dict[str, Tensor]]:
    """The same problem on smaller tensors: axes along which only scales act, and none differs, are replaced by their norm."""
    actions: dict[str, list[Action]] = {}
    for family in families:
        for action in family.actions:
            actions.setdefault(action.parameter, []).append(action)
    out = dict(tensors)
    idle: dict[str, list[int]] = {}
    for name, own in actions.items():
        if all(a.form == "scale" and a.patch.covers(tensors[name]) for a in own):
            carried = {d for a in own for d in a.places}
            idle[name] = [d for d in range(tensors[name].dim()) if d not in carried]
            if idle[name]:
                out[name] = torch.linalg.vector_norm(tensors[name], dim=idle[name], keepdim=True)
    return [replace(f, actions=tuple(_shrunk(a, idle.get(a.parameter, [])) for a in f.actions)) for f in families], out


def _shrunk(action: Action, idle: Sequence[int]) -> Action:
    if not idle:
        return action
    indices = tuple(replace(index, size=1) if d in idle else index for d, index in enumerate(action.patch.indices))
    return replace(action, patch=replace(action.patch, indices=indices))
