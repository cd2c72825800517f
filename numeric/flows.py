"""The flows whose laws can be counted, as families of vector fields: one field for each sample, all of them brought to one point.

    gradient    θ' = -χ(θ)                                  the fields are the gradients χ themselves
    metric      θ' = -M(θ)⁻¹ χ(θ), M diagonal               mirror flows, step sizes of parameter groups
    momentum    θ' = v,  v' = -γ v - χ(θ),  t' = 1          laws may depend on time and velocity

Along a momentum flow the fields of all samples are X + Y_s, with the same X: their span holds X, so that the samples alone need be drawn.

Source: marcotte2024keep, sections 2 and 3.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

import torch
from torch import Tensor
from torch.func import grad

from noetherflow.numeric.brackets import Derivative, Field, Params, Sample, Scalar, derivative, symmetric_derivative

TIME: Final = "t"
VELOCITY: Final = "v:"
Draw = Callable[[str, tuple[int, ...]], Tensor]
"""(label, shape) -> numbers for coordinates that are no parameters."""


class Flow(Protocol):
    """What a flow must say of itself."""

    def state(self, point: Params, draw: Draw) -> Params:
        """All coordinates that the flow moves, at a point."""
        ...

    def field(self, function: Scalar) -> Field:
        """The vector field of a sample, (state, sample) -> velocity of the state; `function` is ⟨w, F(θ; x)⟩."""
        ...

    def along(self, function: Scalar) -> Derivative:
        """The field's derivative along a vector."""
        ...


@dataclass(frozen=True)
class GradientFlow:
    """θ' = -∇f(θ)."""

    def state(self, point: Params, draw: Draw) -> Params:
        """The parameters."""
        return point

    def field(self, function: Scalar) -> Field:
        """The gradient."""
        return grad(function)

    def along(self, function: Scalar) -> Derivative:
        """The Hessian, which is symmetric."""
        return symmetric_derivative(grad(function))


@dataclass(frozen=True)
class MetricFlow:
    """θ' = -M(θ)⁻¹ ∇f(θ) with a diagonal metric.

    Parameters
    ----------
    inverse : mapping of str to callable
        Parameter -> the inverse of M's entries, as a function of the parameter's; 1 where none is given.

    Examples
    --------
    >>> entropic = MetricFlow({"w": lambda w: w})
    >>> entropic.field(lambda t, s: (t["w"] * s).sum())({"w": torch.tensor([2.0])}, torch.tensor([3.0]))
    {'w': tensor([6.])}
    """

    inverse: Mapping[str, Callable[[Tensor], Tensor]] = field(default_factory=dict)

    def state(self, point: Params, draw: Draw) -> Params:
        """The parameters."""
        return point

    def field(self, function: Scalar) -> Field:
        """M⁻¹ times the gradient."""
        gradient = grad(function)

        def velocity(theta: Params, sample: Sample) -> Params:
            g = gradient(theta, sample)
            return {name: self.inverse[name](theta[name]) * g[name] if name in self.inverse else g[name] for name in theta}

        return velocity

    def along(self, function: Scalar) -> Derivative:
        """By reverse mode, twice."""
        return derivative(self.field(function))


@dataclass(frozen=True)
class MomentumFlow:
    """θ'' + γ θ' + ∇f(θ) = 0, in time, parameters and velocities.

    Parameters
    ----------
    friction : int
        γ, in units of the inverse time; not 0, where energy would be conserved as well.

    Examples
    --------
    >>> flow = MomentumFlow(friction=2)
    >>> state = flow.state({"w": torch.tensor([5.0])}, lambda label, shape: torch.full(shape, 3.0))
    >>> flow.field(lambda t, s: (t["w"] * s).sum())(state, torch.tensor([7.0]))
    {'t': tensor(1.), 'w': tensor([3.]), 'v:w': tensor([-13.])}
    """

    friction: int = 1

    def state(self, point: Params, draw: Draw) -> Params:
        """Time 0, the parameters, and a velocity for each."""
        first = next(iter(point.values()))
        return {TIME: first.new_zeros(()), **point, **{VELOCITY + name: draw(VELOCITY + name, tuple(p.shape)) for name, p in point.items()}}

    def field(self, function: Scalar) -> Field:
        """(1, v, -γ v - ∇f)."""
        gradient = grad(function)

        def velocity(state: Params, sample: Sample) -> Params:
            theta = {name: state[name] for name in state if VELOCITY + name in state}
            v = {name: state[VELOCITY + name] for name in theta}
            g = gradient(theta, sample)
            pushed = {VELOCITY + name: -self.friction * v[name] - g[name] for name in theta}
            return {TIME: torch.ones_like(state[TIME]), **v, **pushed}

        return velocity

    def along(self, function: Scalar) -> Derivative:
        """By reverse mode, twice."""
        return derivative(self.field(function))
