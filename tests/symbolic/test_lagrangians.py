"""Noether's theorem with kinetic symmetry breaking, against the published equations and against motions in numbers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import sympy as sp
import torch
from torch import Tensor

from noetherflow.errors import RuleError
from noetherflow.numeric.integrate import integrate
from noetherflow.symbolic.flows import TIME
from noetherflow.symbolic.lagrangians import FRICTION, MASS, SPRING, Lagrangian, bregman, damped, heavy_ball

X, Y = Q = sp.symbols("q_:2", real=True)
VX, VY = V = sp.symbols("v_:2", real=True)
ALPHA, BETA, GAMMA = (sp.Function(name)(TIME) for name in ("alpha", "beta", "gamma"))
ETA, MOMENTUM = sp.symbols("eta beta", positive=True)
SQUARE = (X**2 + Y**2) / 2
COEFFICIENTS = sp.symbols("c_:6")
COUPLED = sum(c * monomial for c, monomial in zip(COEFFICIENTS, (X**3, X**2 * Y, X * Y**2, X**2 * Y**2, X**2 / 2, Y**2 / 2), strict=True))
GENERATORS = {
    "translation": (sp.Integer(2), sp.Integer(-3)),
    "scale": (X, Y),
    "rescale": (X, -Y),
    "rotation": (-Y, X),
    "affine": (X + 2 * Y + 1, 3 * Y - 2),
    "nonlinear": (X**2, Y + X * Y),
}


def gradient_of(expression: sp.Expr) -> sp.Matrix:
    return sp.Matrix([sp.diff(expression, x) for x in Q])


# --- Euler-Lagrange: the table of rules (tanaka2021noether, table 1)


def test_the_rules_of_the_table_come_out() -> None:
    slopes = gradient_of(heavy_ball(2).loss)
    rules = {
        "Nesterov": (sp.log(2) - sp.log(TIME), 2 * sp.log(TIME) - sp.log(4), 2 * sp.log(TIME), lambda a, v: a + 3 / TIME * v),
        "damped": (-sp.log(MASS), sp.log(MASS), FRICTION * TIME / MASS, lambda a, v: MASS * a + FRICTION * v),
    }
    for alpha, beta, gamma, left in rules.values():
        rule = bregman(SQUARE, alpha, beta, gamma)
        for residual, a, v, slope in zip(rule.equations, rule.accelerations, V, slopes, strict=True):
            factor = sp.simplify(sp.expand(residual).coeff(slope))
            assert sp.simplify(residual / factor - left(a, v) - slope) == 0


def test_gradient_descent_with_momentum_has_mass_friction_and_spring() -> None:
    mass = ETA * (1 + MOMENTUM) / 2
    by_schedule = bregman(SQUARE, -sp.log(mass), sp.log(mass), 2 * (1 - MOMENTUM) * TIME / (ETA * (1 + MOMENTUM)), SPRING)
    by_constants = heavy_ball(2, mass, 1 - MOMENTUM, SPRING)
    for one, other in zip(by_schedule.equations, by_constants.equations, strict=True):
        assert sp.simplify(one - other) == 0
    a, v = by_constants.accelerations[0], VX
    assert sp.simplify(by_constants.equations[0] - (mass * a + (1 - MOMENTUM) * v + SPRING * X + gradient_of(by_constants.loss)[0])) == 0


def test_no_mass_leaves_natural_gradient_flow() -> None:
    """m → 0 with a coupled h: μ ∇²h(q) v + ∇f = 0."""
    rule = bregman(COUPLED, -sp.log(MASS), sp.log(MASS), FRICTION * TIME / MASS)
    fisher = sp.hessian(COUPLED, Q)
    expected = FRICTION * fisher * sp.Matrix(V) + gradient_of(rule.loss)
    for residual, limit in zip(rule.equations, expected, strict=True):
        assert sp.simplify(residual.subs(MASS, 0) - limit) == 0


# --- the general law (tanaka2021noether, equation 10)


def divergence_step() -> tuple[sp.Matrix, sp.Matrix]:
    """Δ_h = ∇h(q + e^-α v) - ∇h(q), and ∇²h(q) v, written out."""
    slope = gradient_of(COUPLED)
    ahead = {x: x + sp.exp(-ALPHA) * v for x, v in zip(Q, V, strict=True)}
    return slope.subs(ahead, simultaneous=True) - slope, sp.hessian(COUPLED, Q) * sp.Matrix(V)


@pytest.mark.parametrize("name", ["rotation", "affine", "nonlinear"])
def test_noethers_learning_dynamics_for_any_coupled_potential(name: str) -> None:
    """d/dt⟨Δ, ξ⟩ + γ'⟨Δ, ξ⟩ = ⟨Δ, ξ'⟩ + e^α ⟨Δ - e^-α ∇²h v, ξ⟩ with general α(t), γ(t)."""
    xi = sp.Matrix(GENERATORS[name])
    law = bregman(COUPLED, ALPHA, BETA, GAMMA).noether(tuple(xi))
    step, pushed = divergence_step()
    published = step.dot(xi.jacobian(Q) * sp.Matrix(V)) + sp.exp(ALPHA) * (step - sp.exp(-ALPHA) * pushed).dot(xi)
    assert sp.simplify(law.momentum - step.dot(xi)) == 0
    assert law.friction == GAMMA.diff(TIME)
    assert sp.simplify(sp.expand(law.kinetic_breaking - published)) == 0
    assert law.explicit_breaking == 0
    without = step.dot(xi.jacobian(Q) * sp.Matrix(V))
    assert sp.simplify(sp.expand(law.kinetic_breaking - without)) != 0, "the second term is there"


@pytest.mark.parametrize("name", GENERATORS)
def test_the_law_holds_on_the_motion(name: str) -> None:
    """d/dt P with the accelerations of the Euler-Lagrange equation: nothing is left; with another generator's invariance something is."""
    metric = sp.Matrix([[1 + X**2, X * Y / 2], [X * Y / 2, 2 + Y**2]])
    rule = damped(metric, GAMMA, SPRING)
    generator = GENERATORS[name]
    law = rule.noether(generator)
    motion = rule.on_shell(rule.along_motion(law.momentum)) + law.friction * law.momentum - law.kinetic_breaking - law.explicit_breaking
    assert rule.invariant(motion, generator) == 0
    assert rule.invariant(motion, (Y**2 + 1, X + 3)) != 0


# --- special cases for momentum and weight decay


def test_a_translation_is_a_damped_oscillator() -> None:
    law = heavy_ball(2).noether(GENERATORS["translation"])
    n = 2 * X - 3 * Y
    assert law.charge == MASS * n
    assert law.kinetic_breaking == 0
    assert sp.expand(law.explicit_breaking + SPRING * n) == 0
    assert law.friction == FRICTION / MASS


def test_a_rotation_keeps_its_angular_momentum_but_for_friction_even_with_decay() -> None:
    law = heavy_ball(2).noether(GENERATORS["rotation"])
    assert (law.kinetic_breaking, law.explicit_breaking) == (0, 0)
    assert law.charge is None, "a velocity is bound, no function of q"
    assert sp.simplify(sp.dsolve(law.equation).rhs / sp.exp(-FRICTION * TIME / MASS)).diff(TIME) == 0


@pytest.mark.parametrize(("name", "square"), [("scale", lambda a, b: a**2 + b**2), ("rescale", lambda a, b: a**2 - b**2)])
def test_scale_and_rescale_are_forced_oscillators(name: str, square: Callable[[sp.Expr, sp.Expr], sp.Expr]) -> None:
    """m C'' + μ C' = -2k C + 2m (|v₁|² ± |v₂|²) for C = |q₁|² ± |q₂|²."""
    law = heavy_ball(2).noether(GENERATORS[name])
    c = square(X, Y)
    assert sp.expand(law.charge - MASS * c / 2) == 0
    assert sp.expand(2 * law.explicit_breaking + 2 * SPRING * c) == 0
    assert sp.expand(2 * law.kinetic_breaking - 2 * MASS * square(VX, VY)) == 0
    assert sp.expand(2 * law.kinetic_breaking - 2 * MASS * square(VX, -2 * VY)) != 0


def test_the_published_exponent_of_the_scale_breaking_is_wrong() -> None:
    """δ_ξ T = e^-α |v|² for a scale; the submission of tanaka2021noether prints e^-2α."""
    law = bregman(SQUARE, ALPHA, BETA, GAMMA).noether(GENERATORS["scale"])
    speed = VX**2 + VY**2
    assert sp.simplify(law.kinetic_breaking - sp.exp(-ALPHA) * speed) == 0
    assert sp.simplify(law.kinetic_breaking - sp.exp(-2 * ALPHA) * speed) != 0
    ours = bregman(SQUARE, -sp.log(MASS), sp.log(MASS), FRICTION * TIME / MASS).noether(GENERATORS["scale"])
    assert sp.simplify(ours.kinetic_breaking - MASS * speed) == 0, "with m = e^-α it is what the damped equation gives: m |v|²"


def test_a_charge_needs_a_closed_form_not_just_a_symmetry() -> None:
    """The one-form ∇²h ξ: entropy closes a rescaling to a sum; a coupled h closes nothing by itself."""
    entropic = damped(sp.diag(1 / X, 1 / Y), sp.S.Zero).noether(GENERATORS["rescale"])
    assert sp.simplify(entropic.charge - (X - Y)) == 0
    coupled = damped(sp.hessian(X**4 + X**2 * Y**2 + Y**4, Q), sp.S.Zero).noether(GENERATORS["rescale"])
    assert coupled.charge is None


# --- numbers


def accelerated(rule: Lagrangian, loss: sp.Expr, values: dict[sp.Symbol, float]) -> Callable[[Tensor], Tensor]:
    """The motion's right-hand side for an explicit loss."""
    slopes = {sp.diff(rule.loss, x): sp.diff(loss, x) for x in Q}
    right = [sp.lambdify((*Q, *V), rule.on_shell(a).xreplace(slopes).subs(values)) for a in rule.accelerations]
    return lambda s: torch.stack([s[2], s[3], *(torch.as_tensor(f(*s), dtype=s.dtype) for f in right)])


@pytest.mark.parametrize(("name", "loss"), [("rescale", (X * Y - 1) ** 2), ("rotation", (SQUARE - 1) ** 2), ("scale", X * Y / SQUARE)])
def test_momenta_move_as_derived_in_a_motion(name: str, loss: sp.Expr) -> None:
    """P integrated along with the motion from its own equation equals P measured at the end; not for a wrong coefficient."""
    values = {MASS: 0.3, FRICTION: 0.4, SPRING: 0.2}
    rule = heavy_ball(2)
    law = rule.noether(GENERATORS[name])
    motion = accelerated(rule, loss, values)
    momentum, breaking = (sp.lambdify((*Q, *V), e.subs(values)) for e in (law.momentum, law.kinetic_breaking + law.explicit_breaking))
    start = torch.tensor([1.2, -0.7, 0.3, 0.5], dtype=torch.float64)
    start = torch.cat([start, torch.as_tensor([momentum(*start)], dtype=start.dtype)])
    for factor in (1.0, 1.01):

        def together(s: Tensor, factor: float = factor) -> Tensor:
            own = factor * (breaking(*s[:4]) - 0.4 / 0.3 * s[4])
            return torch.cat([motion(s[:4]), torch.as_tensor(own, dtype=s.dtype)[None]])

        end = integrate(together, start, 1.5, 40)
        gap = abs(float(end[4] - momentum(*end[:4])))
        assert gap < 1e-10 if factor == 1.0 else gap > 1e-4, gap


# --- edges


@pytest.mark.parametrize("generator", [(X,), (sp.S.Zero, sp.S.Zero), (VX, Y), (TIME, Y)], ids=["short", "zero", "velocity", "time"])
def test_a_generator_is_a_vector_field_on_the_coordinates(generator: tuple[sp.Expr, ...]) -> None:
    with pytest.raises(RuleError, match="one component for each"):
        heavy_ball(2).noether(generator)
