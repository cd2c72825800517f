"""Rebalancing: the point of least norm on a model's orbit, where the charge of every rescaling and every GL(n) family is zero."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from noetherflow.bridge.group_elements import Element, Tensors, pairing
from noetherflow.bridge.minimum_norm import minimum_norm
from noetherflow.bridge.orbits import Left, Moved, Orbit, Source, orbit_of
from noetherflow.errors import ModelError
from noetherflow.symbolic.symmetries import Symmetry

NO_MINIMUM = "nothing balances it: the norm has no least value but zero"


def rebalance(
    model: nn.Module,
    symmetries: Source,
    *,
    scale_norm: float | None = None,
    strict: bool = True,
    approximate: bool = False,
    inplace: bool = False,
) -> Moved:
    """Carry a model to the point of least norm of its orbit: its function is unchanged, its rescale and linear charges are zero.

    The norm is convex along the orbit (a sum of exponentials in the logarithms of scales; for GL(n) along its one-parameter groups, Kempf
    and Ness), and stationary exactly where the charges vanish. All families are balanced together, by Newton's method, to rounding. For a
    deep linear network this is the balanced point of arora2018optimization, for ReLU networks that of saul2023weight.

    A pure scale that nothing compensates (a weight before BatchNorm) can make the norm as small as one likes: it is left alone, or set to
    `scale_norm`. Translations and null directions are left alone as well (`noetherflow.canonical` removes them).

    Parameters
    ----------
    model : nn.Module
        Any module; float64 is used inside, its parameters keep their dtypes.
    symmetries : Symmetries, ArchitectureGraph, Tensor or tuple
        ``nf.symmetries(graph)``, the graph of ``nf.trace(model, ...)``, or example inputs to trace.
    scale_norm : float, optional
        Norm given to what each generator of a pure scale moves (a filter before BatchNorm): the root of Σ weight · ‖block‖², its weights
        one as a rule. What is zero stays zero.
    strict : bool
        Where the least norm is not attained, raise (default), or leave the family (of dead units: those generators) alone. That is so for a
        unit that is written and never read, and for linear layers of unequal rank, such as a hidden layer wider than the output.
    approximate : bool
        Also use families that the eps of a normalisation breaks; the function then changes by the order of eps / variance.
    inplace : bool
        Move `model` itself instead of a copy. An optimizer's momentum buffers do not move along: start its state anew.

    Returns
    -------
    Moved
        ``.model``; ``.before`` and ``.after``, the norm of all parameters; ``.left``, the families that were not used, with reasons.

    Raises
    ------
    ModelError
        If the parameters do not match the symmetries, or the least norm is not attained (a rank lost between two layers, a dead unit).

    Examples
    --------
    >>> import noetherflow as nf
    >>> model = nf.models.MLP([3, 8, 2]).double()
    >>> x = torch.randn(5, 3).double()
    >>> moved = rebalance(model, nf.trace(model, x))
    >>> bool(moved.after < moved.before), torch.allclose(moved.model(x), model(x), rtol=0, atol=1e-12)
    (True, True)
    >>> first, second = (layer for layer in moved.model.layers)
    >>> torch.allclose(first.weight.norm(dim=1)**2 + first.bias**2, second.weight.norm(dim=0)**2)
    True
    """
    orbit = orbit_of(model, symmetries, approximate=approximate)
    found = balance(orbit, orbit.tensors(), scale_norm=scale_norm, strict=strict)
    return finished(orbit, found.elements, {**orbit.left, **found.left, **_unmoved(orbit)}, inplace=inplace)


@dataclass(frozen=True)
class Balanced:
    """Group elements that balance, and the families that were left out, with reasons."""

    elements: tuple[Element, ...]
    left: Left


def balance(orbit: Orbit, tensors: Tensors, *, scale_norm: float | None, strict: bool) -> Balanced:
    """Elements that carry tensors to the least norm; pure scales to `scale_norm`, if given.

    Raises
    ------
    ModelError
        As for `rebalance`.
    """
    if scale_norm is not None and not scale_norm > 0:
        raise ModelError(f"A pure scale cannot be given the norm {scale_norm}. Give a positive one, or None to leave it alone.")
    candidates = (*orbit.of_form("scale"), *orbit.of_form("matrix"))
    left: Left = {f: NO_MINIMUM for f in candidates if _only_shrinks(f) and (f.matrix or scale_norm is None)}
    families = [f for f in candidates if f not in left]
    sides = {f: _sides(f, tensors) for f in families}
    targets = {f: scale_norm**2 * sides[f].squeeze(0).sign() for f in families if scale_norm and _only_shrinks(f)}
    left |= {f: _lonely(f, lonely, strict) for f in families if bool((lonely := (sides[f] == 0).any(0) & (sides[f] > 0).any(0)).any())}
    while True:
        held = [(sides[f] == 0).any(0) for f in families]
        try:
            return Balanced(tuple(minimum_norm(families, tensors, [targets.get(f) for f in families], held)), left)
        except ModelError as err:
            if strict:
                raise
            left[err.data["symmetry"]] = str(err)
            families.remove(err.data["symmetry"])


def finished(orbit: Orbit, elements: Sequence[Element], left: Left, *, inplace: bool) -> Moved:
    """The result of a tool that reports the norm."""
    before = orbit.norm()
    model = orbit.carried(elements, inplace=inplace)
    return Moved(model, tuple(elements), before, Orbit(model, (), {}).norm(), left)


def _only_shrinks(family: Symmetry) -> bool:
    """Whether a family only shrinks: all weights have one sign, and no mean is held at zero."""
    return len({action.weight > 0 for action in family.actions}) == 1 and not family.zero_mean


def _sides(family: Symmetry, tensors: Tensors) -> Tensor:
    """Sums of squares that each generator of a family of scales moves up, and down; one row for each sign that it has."""
    if family.matrix or family.zero_mean:
        return torch.ones(1)  # what is wrong with these, if anything, is seen when their least norm is sought
    signs = sorted({bool(action.weight > 0) for action in family.actions})
    own = [tuple(action for action in family.actions if bool(action.weight > 0) == sign) for sign in signs]
    return torch.stack([pairing(replace(family, actions=actions), tensors, tensors).abs() for actions in own])


def _lonely(family: Symmetry, lonely: Tensor, strict: bool) -> str:
    what = f"generators {_numbers(lonely)} have parameters on one side only (units written and never read, or read and never written)"
    if not strict:
        return f"{what} and stayed where they were"
    raise ModelError(
        f"The orbit has no point of least norm: of '{family.name}', {what}. Zero their other side, remove these units, "
        "or pass strict=False to leave them alone.",
        symmetry=family,
        generators=lonely.nonzero().tolist(),
    )


def _numbers(held: Tensor) -> str:
    found = [i[0] if len(i) == 1 else tuple(i) for i in held.nonzero().tolist()]
    return ", ".join(map(str, found[:6])) + (", ..." if len(found) > 6 else "")


def _unmoved(orbit: Orbit) -> Left:
    return dict.fromkeys(orbit.of_form("shift"), "shifts are not part of rebalancing")
