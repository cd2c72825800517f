"""The point of an orbit that has given charges: rebalancing with another target than zero."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from noetherflow.bridge.group_elements import Tensors, pairing, zeros
from noetherflow.bridge.minimum_norm import minimum_norm
from noetherflow.bridge.orbits import Left, Moved, Orbit
from noetherflow.errors import ModelError
from noetherflow.symbolic.symmetries import Symmetry


def move_to_charges(orbit: Orbit, charges: Mapping[Symmetry, Tensor], *, inplace: bool = False) -> Moved:
    """Move a model along its orbit to where some families of scales have given charges; exact to rounding.

    Only these families act, all together; others' charges change where they share parameters. The point is the minimum of a convex
    function, ½ ‖θ‖² - Σ 2 Q a over the logarithms a of scales: a rescale family reaches any charges if no generator has parameters on one
    side only, a pure scale any positive ones.

    Parameters
    ----------
    orbit : Orbit
    charges : mapping of Symmetry to Tensor
        Families of kind 'rescale' or 'scale', each with its charges ``Q = ½ Σ weight · ‖block‖²``, shape `sizes`.
    inplace : bool

    Returns
    -------
    Moved
        ``.before`` and ``.after``: the largest deviation from the charges asked for.

    Raises
    ------
    ModelError
        If a family cannot be used, or its charges cannot be reached.

    Examples
    --------
    >>> import torch
    >>> import noetherflow as nf
    >>> model = nf.models.MLP([3, 4, 2], bias=False).double()
    >>> found = nf.symmetries(nf.trace(model, torch.randn(5, 3).double()))
    >>> first, second = nf.teleport(model, found, {found[0]: torch.tensor([0.0, 1.0, 2.0, -3.0])}).model.layers
    >>> charges = (first.weight.norm(dim=1) ** 2 - second.weight.norm(dim=0) ** 2) / 2
    >>> torch.allclose(charges, torch.tensor([0.0, 1.0, 2.0, -3.0]).double())
    True
    """
    families = list(charges)
    for family in families:
        _check(orbit, family, charges[family])
    tensors = orbit.tensors()
    wanted = [charges[f].detach().to(zeros(f, next(iter(tensors.values())).device)) for f in families]
    elements = minimum_norm(families, tensors, [2 * q for q in wanted])
    moved = orbit.carried(elements, inplace=inplace)
    after = Orbit(moved, orbit.families, {}).tensors()
    idle: Left = dict.fromkeys((f for f in orbit.families if f not in charges), "no charges were asked of it")
    return Moved(moved, tuple(elements), _deviation(families, tensors, wanted), _deviation(families, after, wanted), {**orbit.left, **idle})


def _deviation(families: Sequence[Symmetry], tensors: Tensors, wanted: Sequence[Tensor]) -> float:
    pairs = zip(families, wanted, strict=True)
    return max((float((pairing(f, tensors, tensors) / 2 - q).abs().max()) for f, q in pairs), default=0.0)


def _check(orbit: Orbit, family: Symmetry, wanted: Tensor) -> None:
    if family not in orbit.of_form("scale") or family.zero_mean:
        why = orbit.left.get(family, "it is not a family of this model's scales, each free")
        raise ModelError(f"'{family.name}' cannot be given charges: {why}.", family=family.name)
    if tuple(wanted.shape) != tuple(family.sizes):
        raise ModelError(
            f"'{family.name}' has charges of shape {tuple(family.sizes)}; got {tuple(wanted.shape)}.",
            family=family.name,
        )
