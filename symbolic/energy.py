"""Energy: what the symmetry in time leaves of a conserved quantity, in a motion and in one step of a learning rule.

A Lagrangian e^γ(t) (T - V) depends on time, so its energy E = ⟨∂T/∂v, v⟩ - T + V is not conserved. Noether's theorem for t -> t + s gives

    dE/dt = -γ' ⟨∂T/∂v, v⟩ - ∂/∂t (T - V),

friction from the growth γ, and work from what else depends on time. For the heavy ball it is -μ |v|².

One step θ' = θ - η u of any rule changes a loss f, twice differentiable along the step, by

    f(θ') - f(θ) = -η ⟨∇f, u⟩ + ½ η² ⟨u, H̄ u⟩,      H̄ = ∫₀¹ 2 (1 - s) H(θ - s η u) ds,                                   (1)

exactly (Taylor's theorem with the integral remainder). The rule's update equations split the first term by mechanism. With momentum the
gradient can be eliminated, as it is a combination of b' and b; E = f + kinetic |b|² then falls by squares of the buffers alone. Where f has
kinks along the step, as with ReLU, (1) lacks a term (1 - s) [jump of df/ds] for each. Source: own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import sympy as sp

from noetherflow.errors import RuleError
from noetherflow.symbolic.flows import TIME
from noetherflow.symbolic.forms import GRADIENT, STEP, THETA, Form
from noetherflow.symbolic.lagrangians import Lagrangian
from noetherflow.symbolic.nonlinear import structure
from noetherflow.symbolic.pairings import Vector, parts

SLOPE: Final = Vector("slope", r"\nabla f")
NOISE: Final = Vector("noise", r"\varepsilon")
DESCENT, WEIGHT_DECAY, MOMENTUM, DIRECTION = "gradient", "weight_decay", "momentum", "direction"
BATCH_NOISE, CURVATURE, FRICTION_LOSS, TURNING = "noise", "curvature", "friction", "turning"


class Dot(sp.Function):  # type: ignore[misc]  # sympy has no type information
    """⟨x, y⟩ of two vectors."""

    nargs = 2

    @classmethod
    def eval(cls, x: sp.Expr, y: sp.Expr) -> sp.Expr | None:
        """Symmetric: arguments in one order."""
        return cls(y, x) if y.name < x.name else None

    def _latex(self, printer: Any, exp: str | None = None) -> str:
        body = r"\left\langle {}, {}\right\rangle".format(*(printer.doprint(v) for v in self.args))
        return body if exp is None else rf"{body}^{{{exp}}}"


class Curvature(sp.Function):  # type: ignore[misc]
    """⟨x, H̄ x⟩ with the mean Hessian of the step, weighted by 2 (1 - s)."""

    nargs = 1

    def _latex(self, printer: Any, exp: str | None = None) -> str:
        x = printer.doprint(self.args[0])
        body = rf"\left\langle {x}, \bar H {x}\right\rangle"
        return body if exp is None else rf"{body}^{{{exp}}}"


@dataclass(frozen=True)
class Energy:
    """Energy of a motion, and what it loses.

    Attributes
    ----------
    expression : sympy.Expr
        E(q, v, t) = ⟨∂T/∂v, v⟩ - T + V.
    friction : sympy.Expr
        -γ' ⟨∂T/∂v, v⟩: from the growth of the Lagrangian.
    driving : sympy.Expr
        -∂/∂t (T - V): zero where nothing else depends on time.
    """

    expression: sp.Expr
    friction: sp.Expr
    driving: sp.Expr

    @property
    def rate(self) -> sp.Expr:
        """dE/dt along a motion."""
        return self.friction + self.driving


def energy(lagrangian: Lagrangian) -> Energy:
    """Energy of a Lagrangian that depends on time, with its rate; exact for every motion.

    Examples
    --------
    >>> from noetherflow.symbolic.lagrangians import heavy_ball
    >>> found = energy(heavy_ball(1))
    >>> found.friction, found.driving
    (-mu*v_0**2, 0)
    """
    kinetic, velocities = lagrangian.kinetic, lagrangian.velocities
    doubled = sp.Add(*(v * sp.diff(kinetic, v) for v in velocities))
    return Energy(
        sp.expand(doubled - kinetic + lagrangian.potential),
        sp.simplify(-sp.diff(lagrangian.growth, TIME) * doubled),
        sp.simplify(-sp.diff(kinetic - lagrangian.potential, TIME)),
    )


@dataclass(frozen=True)
class EnergyStep:
    """One step of an energy, split by mechanism.

    Attributes
    ----------
    form : Form
    stored : sympy.Expr
        What is added to the loss f to make the energy E, in `Dot`s of θ and buffers before the step; zero for the loss itself.
    terms : mapping of str to expression
        Mechanism -> its part of E' - E, in `Dot` and `Curvature`. Exact, no order in η is dropped.
    """

    form: Form
    stored: sp.Expr
    terms: Mapping[str, sp.Expr]

    @property
    def change(self) -> sp.Expr:
        """E' - E."""
        return sp.Add(*self.terms.values())


@lru_cache(maxsize=256)
def loss_step(form: Form) -> EnergyStep:
    """How one step of a rule changes a loss f, booked by what moved the parameters.

    The gradient that the rule sees is g = ∇f(θ) + ε: ε is zero where f is the loss of the step's own batch, and gradient noise where f is
    another one, such as the loss of all data.

    Parameters
    ----------
    form : Form
        Of any rule. What is not linear in θ, g and buffers (Adam's quotient) stands for itself, as "direction".

    Examples
    --------
    >>> from noetherflow.symbolic.rules import sgd_form
    >>> loss_step(sgd_form(momentum=False, nesterov=False, maximize=False)).terms
    {'gradient': -eta*Dot(slope, slope), 'noise': -eta*Dot(noise, slope), 'weight_decay': -eta*lambda*Dot(slope, theta), \
'curvature': eta**2*Curvature(u)/2}
    """
    table = structure(form).linear
    step: sp.Expr = STEP
    while made := [v for v in step.free_symbols if v in table]:
        step = sp.expand(step.xreplace({v: table[v] for v in made}))
    before = {vector for vector, _ in form.buffers}
    terms: dict[str, sp.Expr] = {}
    for vector, coefficient in sorted(parts(step).items(), key=lambda pair: _rank(pair[0], before)):
        if vector == GRADIENT:
            terms[DESCENT] = -form.rate * coefficient * Dot(SLOPE, SLOPE)
            terms[BATCH_NOISE] = -form.rate * coefficient * Dot(SLOPE, NOISE)
            continue
        mechanism = WEIGHT_DECAY if vector == THETA else MOMENTUM if vector in before else DIRECTION
        terms[mechanism] = terms.get(mechanism, sp.S.Zero) - form.rate * coefficient * Dot(SLOPE, vector)
    terms[CURVATURE] = form.rate**2 * Curvature(STEP) / 2
    return EnergyStep(form, sp.S.Zero, terms)


def _rank(vector: Vector, before: set[Vector]) -> int:
    return 0 if vector == GRADIENT else 1 if vector == THETA else 2 if vector in before else 3


@lru_cache(maxsize=256)
def mechanical_step(form: Form) -> EnergyStep:
    """How one step of a rule with momentum changes its mechanical energy E = f + ½ λ |θ|² + kinetic: no gradient enters.

    From the buffer's equation h = g + λθ is a combination of b' and b. With -η ⟨h, u⟩ written in squares,

        E' - E = -η/(1 - τ) ((1 - μ) |b'|² + turning · |b' - b|²) + ½ η² (⟨u, H̄ u⟩ + λ |u|²)

    for both torch's momentum and Nesterov's: the friction is the 1 - μ of the continuous motion.

    Parameters
    ----------
    form : Form
        Of SGD with momentum, f the loss whose gradient the rule sees.

    Raises
    ------
    RuleError
        If the rule has no single linear buffer from which its gradient can be told.

    Examples
    --------
    >>> from noetherflow.symbolic.rules import sgd_form
    >>> found = mechanical_step(sgd_form(momentum=True, nesterov=False, maximize=False))
    >>> found.stored, found.terms["friction"]
    (-eta*mu*Dot(b, b)/(2*(tau - 1)) + lambda*Dot(theta, theta)/2, -eta*(mu - 1)*Dot(b', b')/(tau - 1))
    """
    (before, after), pulled, decay = _buffer(form)
    step = sp.expand(form.in_terms_of_state(STEP).xreplace({GRADIENT: pulled - decay * THETA}))
    a, b = parts(pulled), parts(step)
    if THETA in b:
        raise RuleError(f"The step of {form.name} has weight decay apart from its gradient; no energy f + ½ λ |θ|² belongs to it.")
    new = a.get(after, 0) * b.get(after, 0)
    old = a.get(before, 0) * b.get(before, 0)
    crossed = -(a.get(after, 0) * b.get(before, 0) + a.get(before, 0) * b.get(after, 0)) / 2
    # new |b'|² - 2 crossed ⟨b, b'⟩ + old |b|², with 2 ⟨b, b'⟩ = |b|² + |b'|² - |b' - b|² and all of |b|² put into the kinetic energy
    kinetic, eta = form.rate * (crossed - old), form.rate
    change = Vector(f"{after.name} - {before.name}", f"({after.shown} - {before.shown})")
    terms = {
        FRICTION_LOSS: sp.factor(-eta * (new - 2 * crossed + old)) * Dot(after, after),
        TURNING: sp.factor(-eta * crossed) * Dot(change, change),
        CURVATURE: eta**2 * (Curvature(STEP) + decay * Dot(STEP, STEP)) / 2,
    }
    return EnergyStep(form, sp.factor(kinetic) * Dot(before, before) + decay * Dot(THETA, THETA) / 2, terms)


def _buffer(form: Form) -> tuple[tuple[Vector, Vector], sp.Expr, sp.Expr]:
    """The buffer, h = g + λθ in terms of it, and λ."""
    found = structure(form)
    if len(form.buffers) != 1 or found.atoms:
        raise RuleError(
            f"A mechanical energy needs a rule with one momentum buffer and a step linear in it; {form.name} has {len(form.buffers)} "
            f"and {len(found.atoms)} vectors that are not linear. Use loss_step, which holds for every rule.",
            form=form.name,
        )
    ((before, after),) = form.buffers
    inside = parts(sp.expand(_expanded(dict(form.equations)[after], form)))
    gain = inside.pop(GRADIENT, sp.S.Zero)
    decay = inside.pop(THETA, sp.S.Zero)
    if gain == 0 or set(inside) != {before}:
        raise RuleError(f"The buffer of {form.name} does not tell its gradient: it is {form.in_terms_of_state(after)}.", form=form.name)
    return (before, after), sp.expand((after - inside[before] * before) / gain), sp.cancel(decay / gain)


def _expanded(expression: sp.Expr, form: Form) -> sp.Expr:
    table = dict(form.equations)
    while made := [v for v in expression.free_symbols if v in table]:
        expression = sp.expand(expression.xreplace({v: table[v] for v in made}))
    return expression
