"""Gradient fields of a network's outputs and their brackets: what can move its parameters, whatever the data.

A sample s (inputs, gates, cotangents) gives the field V_s(θ) = ∇_θ ⟨w_s, F(θ; x_s)⟩. Under gradient flow every velocity is a combination of
such fields, so a conserved quantity is constant along each of them, hence along their brackets

    [X, Y] = DY·X − DX·Y,

and the number of independent conserved quantities near a generic θ is D − dim Lie{V_s}(θ). Lie{V_s} is spanned by the right-normed brackets
[V_a, [V_b, ... V_z]]; if those of one length bring nothing new near θ, longer ones bring nothing either.

Source: marcotte2023abide, section 2 (Frobenius); the recursion is elementary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.func import grad, vjp, vmap

Params: TypeAlias = dict[str, Tensor]
Sample: TypeAlias = Any
Scalar: TypeAlias = Callable[[Params, Sample], Tensor]
Field: TypeAlias = Callable[[Params, Sample], Params]
Derivative: TypeAlias = Callable[[Params, Sample, Params], Params]


def nested(field: Field, level: int, along: Derivative | None = None) -> Field:
    """The right-normed bracket of level + 1 fields of one family; its sample is (s_0, (s_1, (... s_level))).

    Parameters
    ----------
    field : callable
        (point, sample) -> the vector there; the gradient of ⟨w, F(θ; x)⟩, or what another flow makes of it.
    level : int
        0 for the field itself.
    along : callable, optional
        (point, sample, x) -> the field's derivative along x, if there is a cheaper way to it than for any field.

    Returns
    -------
    callable
        (point, sample) -> the vector there. As exact as the arithmetic that it is evaluated in.

    Examples
    --------
    [x ∂_x, y ∂_x + x ∂_y] = x ∂_y − y ∂_x: two gradient fields give a rotation, which is the gradient of no function.

    >>> theta = {"x": torch.tensor(2.0), "y": torch.tensor(5.0)}
    >>> field = nested(grad(lambda t, s: s[0] * t["x"] ** 2 / 2 + s[1] * t["x"] * t["y"]), 1)
    >>> {name: float(v) for name, v in field(theta, (torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]))).items()}
    {'x': -5.0, 'y': 2.0}
    """
    along = along or derivative(field)
    whole = field
    for step in range(level):
        whole = _bracket(field, along, whole, along if step == 0 else derivative(whole))
    return whole


def _bracket(first: Field, along_first: Derivative, second: Field, along_second: Derivative) -> Field:
    def bracket(theta: Params, sample: Sample) -> Params:
        one, two = sample
        x, y = first(theta, one), second(theta, two)
        there, back = along_second(theta, two, x), along_first(theta, one, y)
        return {name: there[name] - back[name] for name in theta}

    return bracket


# Derivatives are taken by reverse mode: forward mode makes tensors of zeros that cost more than the arithmetic on small networks.


def symmetric_derivative(gradient: Field) -> Derivative:
    """D(∇f)·x = ∇⟨∇f, x⟩: the derivative of a gradient is symmetric."""
    return lambda theta, sample, x: grad(lambda t: _inner(gradient(t, sample), x))(theta)


def derivative(field: Field) -> Derivative:
    """DZ·x of any field: u -> ⟨DZᵀu, x⟩ is linear, and this is its gradient."""

    def along(theta: Params, sample: Sample, x: Params) -> Params:
        def pulled(u: Params) -> Tensor:
            return _inner(vjp(lambda t: field(t, sample), theta)[1](u)[0], x)

        found: Params = grad(pulled)({name: torch.zeros_like(v) for name, v in theta.items()})
        return found

    return along


def _inner(a: Params, b: Params) -> Tensor:
    return torch.stack([(a[name] * b[name]).sum() for name in a]).sum()


def rows(field: Field, theta: Params, level: int, samples: Sample, along: Derivative | None = None) -> Tensor:
    """Brackets of one level for many samples at once.

    Parameters
    ----------
    field, level, along
        As for `nested`.
    theta : dict of str to Tensor
    samples
        As for `nested`, each tensor with one more axis in front, of size n.

    Returns
    -------
    Tensor, shape (n, D)
        Columns are the parameters' entries in the order of `theta`.
    """
    found = vmap(nested(field, level, along), in_dims=(None, 0))(theta, samples)
    return flattened(found, lead=1)


def flattened(tensors: Params, *, lead: int = 0) -> Tensor:
    """All parameters' entries along one axis, behind `lead` axes.

    >>> flattened({"a": torch.zeros(2, 3), "b": torch.ones(1)})
    tensor([0., 0., 0., 0., 0., 0., 1.])
    """
    return torch.cat([t.flatten(lead) if t.dim() > lead else t.unsqueeze(-1) for t in tensors.values()], lead)
