"""The Lagrangian route: a learning rule's motion, and how a broken symmetry of its kinetic energy moves the Noether charge.

A Lagrangian e^γ(t) (T(q, v, t) - V(q, t)) is written over coordinates q, velocities v and time, with an abstract loss f(q) inside V. By
differentiation come the Euler-Lagrange equation and, for a generator ξ(q) (any function, also nonlinear), Noether's theorem for the
momentum P = ⟨∂T/∂v, ξ⟩,

    d/dt (e^γ P) = e^γ (δ_ξ T - δ_ξ V),      δ_ξ T = ⟨∂T/∂q, ξ⟩ + ⟨∂T/∂v, Dξ v⟩  (kinetic symmetry breaking).

Invariance of the loss, ⟨∇f, ξ⟩ = 0, is imposed as a rewrite: one partial derivative of f is replaced by the others. What is left of δ_ξ V
is explicit breaking, such as weight decay. The Bregman Lagrangian of wibisono2016variational, T = e^α D_h(q + e^-α v, q), gives the motion
of tanaka2021noether, equation 10, and a quadratic h its special cases.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import sympy as sp

from noetherflow.errors import RuleError
from noetherflow.symbolic.flows import TIME

MASS, FRICTION, SPRING = sp.symbols("m mu k", positive=True)


@dataclass(frozen=True)
class Noether:
    """How a generator's momentum moves: d/dt P + γ' P = kinetic_breaking + explicit_breaking.

    Attributes
    ----------
    generator : tuple of expressions
        ξ(q).
    momentum : sympy.Expr
        P = ⟨∂T/∂v, ξ⟩.
    friction : sympy.Expr
        γ'.
    kinetic_breaking : sympy.Expr
        δ_ξ T: zero where the kinetic energy has the symmetry of the loss.
    explicit_breaking : sympy.Expr
        -δ_ξ V after invariance of the loss.
    charge : sympy.Expr or None
        Q(q) with P = dQ/dt, if the mass M = ∂²T/∂v² depends on q alone and Mξ is closed; None: only a velocity is bound.
    """

    generator: tuple[sp.Expr, ...]
    momentum: sp.Expr
    friction: sp.Expr
    kinetic_breaking: sp.Expr
    explicit_breaking: sp.Expr
    charge: sp.Expr | None

    @property
    def equation(self) -> sp.Eq:
        """The motion, with P as a function of time."""
        p = sp.Function("P")(TIME)
        return sp.Eq(p.diff(TIME) + self.friction * p, self.kinetic_breaking + self.explicit_breaking)


@dataclass(frozen=True)
class Lagrangian:
    """e^growth (kinetic - potential).

    Attributes
    ----------
    coordinates, velocities : tuple of sympy.Symbol
    kinetic : sympy.Expr
        T(q, v, t).
    potential : sympy.Expr
        V(q, t), with `loss` in it.
    growth : sympy.Expr
        γ(t).
    loss : sympy.Expr
        f(q), an undefined function.

    Examples
    --------
    >>> ball = heavy_ball(2)
    >>> x, y = ball.coordinates
    >>> rotation = ball.noether((-y, x))
    >>> rotation.kinetic_breaking, rotation.explicit_breaking, rotation.charge
    (0, 0, None)
    >>> ball.noether((x, -y)).equation.rhs
    -k*(q_0**2 - q_1**2) + m*(v_0**2 - v_1**2)
    """

    coordinates: tuple[sp.Symbol, ...]
    velocities: tuple[sp.Symbol, ...]
    kinetic: sp.Expr
    potential: sp.Expr
    growth: sp.Expr
    loss: sp.Expr

    @property
    def expression(self) -> sp.Expr:
        """The Lagrangian."""
        return sp.exp(self.growth) * (self.kinetic - self.potential)

    @cached_property
    def accelerations(self) -> tuple[sp.Symbol, ...]:
        """Symbols for v'."""
        made: tuple[sp.Symbol, ...] = sp.symbols(f"a_:{len(self.coordinates)}", real=True)
        return made

    @cached_property
    def equations(self) -> tuple[sp.Expr, ...]:
        """Euler-Lagrange: e^-γ (d/dt ∂L/∂v - ∂L/∂q), which vanishes on a motion."""
        whole, pairs = self.expression, zip(self.coordinates, self.velocities, strict=True)
        residuals = [self.along_motion(sp.diff(whole, v)) - sp.diff(whole, q) for q, v in pairs]
        return tuple(sp.expand(sp.simplify(residual * sp.exp(-self.growth))) for residual in residuals)

    def along_motion(self, quantity: sp.Expr) -> sp.Expr:
        """d/dt of a function of q, v and t, with accelerations as symbols."""
        out = sp.diff(quantity, TIME)
        for q, v, a in zip(self.coordinates, self.velocities, self.accelerations, strict=True):
            out += sp.diff(quantity, q) * v + sp.diff(quantity, v) * a
        return out

    def on_shell(self, quantity: sp.Expr) -> sp.Expr:
        """A quantity with the accelerations that the Euler-Lagrange equation gives."""
        matrix = sp.Matrix(self.equations).jacobian(self.accelerations)
        rest = sp.Matrix(self.equations).subs(dict.fromkeys(self.accelerations, 0))
        found = matrix.LUsolve(-rest)
        return quantity.subs(dict(zip(self.accelerations, found, strict=True)))

    def invariant(self, quantity: sp.Expr, generator: Sequence[sp.Expr]) -> sp.Expr:
        """A quantity after ⟨∇f, ξ⟩ = 0 has replaced one partial derivative of the loss by the others."""
        slopes = [sp.diff(self.loss, q) for q in self.coordinates]
        k = next(i for i, x in enumerate(generator) if x != 0)
        others = sum(x * s for i, (x, s) in enumerate(zip(generator, slopes, strict=True)) if i != k)
        return sp.simplify(quantity.subs(slopes[k], -others / generator[k]))

    def noether(self, generator: Sequence[sp.Expr]) -> Noether:
        """Noether's theorem with kinetic symmetry breaking, for a generator of a symmetry of the loss.

        Parameters
        ----------
        generator : sequence of expressions
            ξ(q), one for each coordinate.

        Raises
        ------
        RuleError
            If it has another length, vanishes, or depends on more than the coordinates.
        """
        self._check(generator)
        q, v = sp.Matrix(self.coordinates), sp.Matrix(self.velocities)
        xi, by_v = sp.Matrix(generator), sp.Matrix([sp.diff(self.kinetic, x) for x in self.velocities])
        by_q = sp.Matrix([sp.diff(self.kinetic, x) for x in self.coordinates])
        potential = sp.Matrix([sp.diff(self.potential, x) for x in self.coordinates])
        return Noether(
            tuple(generator),
            sp.factor_terms(sp.simplify(by_v.dot(xi))),
            sp.simplify(sp.diff(self.growth, TIME)),
            sp.factor_terms(sp.simplify(by_q.dot(xi) + by_v.dot(xi.jacobian(q) * v))),
            sp.factor_terms(-self.invariant(potential.dot(xi), generator)),
            self._charge(xi),
        )

    def _charge(self, xi: sp.Matrix) -> sp.Expr | None:
        mass = sp.hessian(self.kinetic, self.velocities)
        if mass.free_symbols & {*self.velocities, TIME}:
            return None  # P is no time derivative of a function of q
        form = (mass * xi).applyfunc(sp.simplify)
        curl = form.jacobian(self.coordinates)
        if not (curl - curl.T).applyfunc(sp.simplify).is_zero_matrix:
            return None
        s = sp.Dummy("s", positive=True)
        scaled = form.subs({x: s * x for x in self.coordinates}, simultaneous=True)
        return sp.simplify(sp.integrate(sp.expand(scaled.dot(sp.Matrix(self.coordinates))), (s, 0, 1)))

    def _check(self, generator: Sequence[sp.Expr]) -> None:
        known = {*self.coordinates}
        strange = {s for x in generator for s in sp.sympify(x).free_symbols if s in {*self.velocities, TIME}}
        if len(generator) != len(self.coordinates) or all(x == 0 for x in generator) or strange:
            raise RuleError(
                f"A generator has one component for each of {sorted(map(str, known))}, not all zero, without velocities and time; "
                f"got {list(generator)}.",
                generator=tuple(generator),
            )


def _state(size: int) -> tuple[tuple[sp.Symbol, ...], tuple[sp.Symbol, ...], sp.Expr]:
    q, v = sp.symbols(f"q_:{size}", real=True), sp.symbols(f"v_:{size}", real=True)
    return q, v, sp.Function("f", real=True)(*q)


def damped(metric: sp.Matrix, growth: sp.Expr, decay: sp.Expr = sp.S.Zero) -> Lagrangian:
    """e^γ (½⟨v, M v⟩ - f - ½k|q|²), with M a matrix of expressions in the coordinates q_0, q_1, ...

    Parameters
    ----------
    metric : sympy.Matrix, shape (n, n)
        Symmetric.
    growth : sympy.Expr
        γ(t).
    decay : sympy.Expr
        k.
    """
    q, v, f = _state(metric.rows)
    velocity = sp.Matrix(v)
    kinetic = sp.expand((velocity.T * metric * velocity)[0] / 2)
    return Lagrangian(q, v, kinetic, f + decay * sum(x**2 for x in q) / 2, growth, f)


def heavy_ball(size: int, mass: sp.Expr = MASS, friction: sp.Expr = FRICTION, decay: sp.Expr = SPRING) -> Lagrangian:
    """M q'' + μ q' + ∇f + k q = 0: gradient descent with momentum β has m = η(1 + β)/2 and μ = 1 - β at t = η · step."""
    return damped(mass * sp.eye(size), friction * TIME / mass, decay)


def bregman(potential: sp.Expr, alpha: sp.Expr, beta: sp.Expr, gamma: sp.Expr, decay: sp.Expr = sp.S.Zero) -> Lagrangian:
    """e^(α + γ) (D_h(q + e^-α v, q) - e^β f(q)), with D_h the Bregman divergence of a convex h.

    Parameters
    ----------
    potential : sympy.Expr
        h in q_0, q_1, ... (real symbols).
    alpha, beta, gamma : sympy.Expr
        Functions of time.
    decay : sympy.Expr
        k of ½k|q|², added to the loss.
    """
    q, v, f = _state(len(potential.free_symbols & set(sp.symbols("q_:16", real=True))))
    ahead = {x: x + sp.exp(-alpha) * y for x, y in zip(q, v, strict=True)}
    slope = sum(sp.diff(potential, x) * (ahead[x] - x) for x in q)
    divergence = potential.subs(ahead, simultaneous=True) - potential - slope
    loss = sp.exp(alpha + beta) * (f + decay * sum(x**2 for x in q) / 2)
    return Lagrangian(q, v, sp.exp(alpha) * divergence, loss, gamma, f)
