"""The distance of two models of one architecture, modulo the continuous symmetries of their parameters."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from noetherflow.bridge.canonical import canonical_form
from noetherflow.bridge.group_elements import Tensors
from noetherflow.bridge.orbits import Left, Orbit, Source, orbit_of
from noetherflow.bridge.weight_matching import matched
from noetherflow.symbolic.discrete import DiscreteSymmetries
from noetherflow.symbolic.discrete_factors import Factor, ShiftedSigns, about_zero, centred


class Distance(float):
    """A distance, a number like any other, with what it is made of.

    Attributes
    ----------
    parameters : dict of str to float
        The part of each parameter; the square root of the sum of their squares is the distance.
    left : dict
        Families (and parameters) that were not divided out, and why.
    """

    parameters: Mapping[str, float]
    left: Left

    def __new__(cls, parameters: Mapping[str, float], left: Left) -> Distance:
        """The root of the sum of squares."""
        self = super().__new__(cls, sum(d * d for d in parameters.values()) ** 0.5)
        self.parameters, self.left = dict(parameters), dict(left)
        return self


def distance(
    model_a: nn.Module,
    model_b: nn.Module,
    symmetries: Source,
    *,
    scale_norm: float = 1.0,
    strict: bool = True,
    approximate: bool = False,
    discrete: DiscreteSymmetries | None = None,
) -> Distance:
    """How far two models are apart, modulo the continuous symmetries of their parameters, and discrete ones if they are given.

    d(a, b) = min over K of ‖a* - k b*‖, where a* and b* are the canonical points of the two orbits (`noetherflow.canonical`): shifts
    removed, pure scales at norm `scale_norm`, rescalings and GL(n) balanced. At balanced points only rotations K of linear axes are left,
    which do not change norms; so d is symmetric, the same for any two models of the two orbits, and zero on one orbit. It is not the
    infimum over both orbits, which is no distance: where a scale is free to shrink, that infimum is zero between any two functions.

    The minimum over K is sought from the canonical frames by alternating orthogonal Procrustes problems. Where linear families share no
    parameter it is exact; where they do (three linear layers in a row) it is a local minimum, hence an upper bound. Permutations and
    signs of units are divided out if `discrete` is given, by the matching of `noetherflow.align`: an upper bound, zero on one orbit unless
    rows tie; otherwise two models that differ by them have a positive distance. Signs that shift a bias (of a unit with a sigmoid: c goes
    to c + u_j) change norms; so where `discrete` has them such biases are compared as c + u 1/2, which is what they leave as it is.

    Parameters
    ----------
    model_a, model_b : nn.Module
        Of one architecture. Neither is changed. Buffers are not compared.
    symmetries : Symmetries, ArchitectureGraph, Tensor or tuple
        Of either model; see `noetherflow.rebalance`.
    scale_norm, strict, approximate
        As for `noetherflow.canonical`.
    discrete : DiscreteSymmetries, optional
        ``nf.discrete_symmetries(graph)``: divide these out as well.

    Returns
    -------
    Distance
        A float; ``.parameters``, the part of each parameter; ``.left``, the families that were not divided out, with reasons.

    Raises
    ------
    ModelError
        If a model does not match the symmetries, or its orbit has no canonical point.

    Examples
    --------
    >>> import noetherflow as nf
    >>> a, b = (nf.models.build("mlp", seed=s, widths=(3, 8, 2)).double() for s in (0, 1))
    >>> found = nf.symmetries(nf.trace(a, torch.randn(5, 3).double()))
    >>> moved = nf.rebalance(a, found).model
    >>> bool(distance(a, moved, found) < 1e-12), bool(distance(a, b, found) > 1)
    (True, True)
    """
    orbits = [orbit_of(about_centres(m, discrete or ()), symmetries, approximate=approximate) for m in (model_a, model_b)]
    forms = [canonical_form(orbit, scale_norm=scale_norm, strict=strict) for orbit in orbits]
    fixed, there = (all_parameters(orbit, form.tensors) for orbit, form in zip(orbits, forms, strict=True))
    _, there = matched(about_zero(discrete or ()), orbits[0].of_form("matrix"), fixed, there)
    parts = {name: float((fixed[name] - there[name].to(fixed[name].device)).norm()) for name in fixed}
    return Distance(parts, {**forms[0].left, **forms[1].left})


@torch.no_grad()
def about_centres(model: nn.Module, factors: Sequence[Factor], *, back: bool = False) -> nn.Module:
    """A model whose parameters are those that signs act on without a shift, or one made of such a model again: a copy if any differs."""
    if not any(isinstance(factor, ShiftedSigns) for factor in factors):
        return model
    tensors, out = dict(model.named_parameters()), copy.deepcopy(model)
    theirs = dict(out.named_parameters())
    for name, tensor in centred(factors, tensors, back=back).items():
        theirs[name].copy_(tensor)
    return out


def all_parameters(orbit: Orbit, tensors: Tensors) -> dict[str, Tensor]:
    """All parameters in float64, those that the families move as given."""
    return {name: p.detach().to(torch.float64) for name, p in orbit.model.named_parameters()} | dict(tensors)
