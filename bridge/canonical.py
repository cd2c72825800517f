"""A canonical form of a model's continuous orbit: one point that all models of the orbit have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from noetherflow.bridge.group_elements import Element, Tensors, act_all, pairing, projected, tangent, zeros
from noetherflow.bridge.minimum_norm import Movers, conjugate_gradients, stacked
from noetherflow.bridge.orbits import Left, Moved, Orbit, Source, orbit_of
from noetherflow.bridge.rebalance import balance, finished
from noetherflow.errors import ModelError
from noetherflow.symbolic.actions import Action
from noetherflow.symbolic.symmetries import Symmetry

EXACTLY = 1e-15  # of a linear solve: to rounding
CENTRED = 1e-9  # shift charges after scaling, relative: larger ones are not rounding


def canonical(
    model: nn.Module,
    symmetries: Source,
    *,
    scale_norm: float = 1.0,
    strict: bool = True,
    approximate: bool = False,
    inplace: bool = False,
) -> Moved:
    """Carry a model to the canonical point of its continuous orbit: its function is unchanged, its gauge is fixed.

    1. shifts    (translation, null) the point orthogonal to the orbit: the charges Σ θ are zero
    2. scales    rescale and linear families balanced (charges zero), each generator of a pure scale at norm `scale_norm`, all together
    3. frames    what GL(n) leaves free at the balanced point is O(n): the Gram matrix of what writes the axis is made diagonal, largest
                 eigenvalue first, and the entry of largest magnitude in each row of the first such parameter positive

    Two models that differ by a continuous symmetry have the same canonical form, to rounding. Not divided out: permutations and signs of
    units, and families named in ``.left``. Sign flips of a linear axis are divided out, although GL(n) is not connected.

    The form is not unique where eigenvalues of a Gram matrix coincide (equal singular values of a balanced linear layer), or where two
    entries of a row tie for the largest magnitude: there any choice is as good, and rounding makes it. Zero eigenvalues do no harm.

    Parameters
    ----------
    model, symmetries, strict, approximate, inplace
        As for `noetherflow.rebalance`. Scales before a normalisation with an eps are divided out only with ``approximate=True``.
    scale_norm : float
        Norm given to what each generator of a pure scale moves.

    Returns
    -------
    Moved
        ``.model``; ``.left``, the families that were not divided out, with reasons.

    Raises
    ------
    ModelError
        As for `noetherflow.rebalance`: an orbit without a point of least norm has no canonical form.

    Examples
    --------
    >>> import noetherflow as nf
    >>> model = nf.models.MLP([4, 3, 4], "linear", bias=False).double()
    >>> found = nf.symmetries(nf.trace(model, torch.randn(5, 4).double()))
    >>> other = nf.models.MLP([4, 3, 4], "linear", bias=False).double()
    >>> _ = other.load_state_dict(found[0].transform(dict(model.named_parameters()), torch.randn(9).double()))
    >>> a, b = (canonical(m, found).model.layers[0].weight for m in (model, other))
    >>> torch.allclose(a, b)
    True
    """
    orbit = orbit_of(model, symmetries, approximate=approximate)
    form = canonical_form(orbit, scale_norm=scale_norm, strict=strict)
    return finished(orbit, form.elements, form.left, inplace=inplace)


@dataclass(frozen=True)
class Form:
    """The way to the canonical point.

    Attributes
    ----------
    elements : tuple of Element
    tensors : mapping of str to Tensor
        What the families move, at the canonical point, in float64.
    left : dict
    """

    elements: tuple[Element, ...]
    tensors: Tensors
    left: Left


def canonical_form(orbit: Orbit, *, scale_norm: float = 1.0, strict: bool = True) -> Form:
    """The three stages of `canonical`, on the tensors that an orbit moves."""
    start = orbit.tensors()
    shifts = centre(orbit.of_form("shift"), start)
    centred = act_all(shifts, start)
    balanced = balance(orbit, centred, scale_norm=scale_norm, strict=strict)
    tensors = act_all(balanced.elements, centred)
    _check_centred(orbit.of_form("shift"), tensors)
    turns, left = frames([f for f in orbit.of_form("matrix") if f not in balanced.left], tensors)
    return Form((*shifts, *balanced.elements, *turns), act_all(turns, tensors), {**orbit.left, **balanced.left, **left})


def centre(families: Sequence[Symmetry], tensors: Tensors) -> list[Element]:
    """Shifts that bring tensors to the point of their orbit nearest to zero: a least-squares problem."""
    if not families:
        return []
    like = [zeros(f, next(iter(tensors.values())).device) for f in families]
    movers = Movers(families, [None] * len(families), [None] * len(families))

    def normal(vector: Tensor) -> Tensor:
        moved = tangent(families, tensors, movers.split(vector, like))
        return movers.flat([pairing(f, tensors, moved) for f in families])

    solution = conjugate_gradients(normal, -movers.slope(tensors), lambda v: v, EXACTLY)
    return [Element(f, c) for f, c in zip(families, movers.split(solution, like), strict=True)]


def _check_centred(families: Sequence[Symmetry], tensors: Tensors) -> None:
    """Scales must carry what is orthogonal to the shifts to itself; symmetries that are a group do."""
    # an entry that was shifted to zero is rounding of what it was: the largest parameter is what all are compared with
    largest = max((float(t.abs().max()) for t in tensors.values() if t.numel()), default=0.0)
    size = {name: torch.full_like(t, largest) for name, t in tensors.items()}
    for family in families:
        charge, bound = projected(family, pairing(family, tensors, tensors)), pairing(family, size, size, power=2)
        if bool((charge.abs() > CENTRED * bound).any()):
            raise ModelError(
                f"The shifts of '{family.name}' and the model's scales do not close to a group: no canonical form of its orbit is known. "
                "Please report the architecture.",
                family=family.name,
            )


def frames(families: Sequence[Symmetry], tensors: Tensors) -> tuple[list[Element], Left]:
    """Rotations of balanced linear families to the frame of their Gram matrix, signs fixed; and families whose signs stay open."""
    turns = [_turn(f, tensors) for f in families]
    turned = act_all(turns, tensors)
    flips: list[Element] = []
    open_families = list(families)
    while ready := [(f, a) for f in open_families if (a := _anchor(f, open_families)) is not None]:
        family, anchor = ready[0]
        flip = _flip(family, anchor, turned)
        turned = flip.act(turned)
        flips.append(flip)
        open_families.remove(family)
    left: Left = dict.fromkeys(open_families, "the signs of its frame are open: each of its parameters has another axis with open signs")
    return [*turns, *flips], left


def _turn(family: Symmetry, tensors: Tensors) -> Element:
    writers = [action for action in family.actions if action.weight > 0]
    # singular vectors rather than eigenvectors of the Gram matrix, whose small eigenvalues are lost to rounding
    triangle = torch.linalg.qr(stacked(family, tensors, writers).mT, mode="r").R
    vectors = torch.linalg.svd(triangle.mT, full_matrices=True).U
    return Element(family, vectors.mT, vectors)


def _anchor(family: Symmetry, open_families: Sequence[Symmetry]) -> Action | None:
    """The first of a family's actions whose block of a parameter has no other axis with open signs."""
    taken = [(a.parameter, a.patch) for f in open_families for a in f.actions]
    return next((a for a in family.actions if taken.count((a.parameter, a.patch)) == 1), None)


def _flip(family: Symmetry, anchor: Action, tensors: Tensors) -> Element:
    rows = stacked(family, tensors, [anchor])
    largest = rows.gather(-1, rows.abs().argmax(-1, keepdim=True)).squeeze(-1)
    signs = torch.where(largest < 0, -1.0, 1.0).to(rows)
    return Element(family, torch.diag_embed(signs), torch.diag_embed(signs))
