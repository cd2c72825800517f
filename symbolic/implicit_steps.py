"""Normalisation as an adaptive optimizer: what a scale-invariant weight's norm does to its step size.

A scale-invariant loss has g(cθ) = g(θ)/c. Three consequences, each derived from a rule's own equations:

    steps on the sphere   μ q̂˙ = -ĝ / r²: an effective step η/(μ r²), with r⁴ an exponential average of |ĝ|² as RMSProp's (Eqs. 15-18)
    weight decay          is a growing step size: θ_k = c^k φ_k with φ trained without decay at η_k = η c^(-2k-1); exact in discrete time
    momentum              feeds r² by (1 + 2 Σ β^j C_j) / (1 - β)², with C_j the autocorrelation of the gradients

Source: tanaka2021noether, Eqs. 15-18; li2020exponential, theorem 2.1, for the growing step size (the first buffer: own); own for the last.
"""

from __future__ import annotations

from dataclasses import dataclass

import sympy as sp

from noetherflow.errors import RuleError
from noetherflow.symbolic.balance import CURRENT, derive_balance
from noetherflow.symbolic.flows import TIME
from noetherflow.symbolic.lagrangians import FRICTION, MASS, SPRING, heavy_ball
from noetherflow.symbolic.pairings import Inner
from noetherflow.symbolic.rules import Form
from noetherflow.symbolic.solutions import STEPS, solve_homogeneous

CORRELATION = sp.Symbol("rho", real=True)
NORM_SQUARED, GRADIENT_SQUARED = sp.Function("R"), sp.Function("S")


@dataclass(frozen=True)
class ExponentialAverage:
    """w˙ = -decay w + gain S(t): w(t) = e^(-decay t) w(0) + gain ∫ e^(-decay (t - s)) S(s) ds.

    Attributes
    ----------
    decay, gain : sympy.Expr

    Examples
    --------
    >>> average = ExponentialAverage(sp.Symbol("a"), sp.Symbol("b"))
    >>> average.solution(sp.Integer(1), sp.Integer(0))
    exp(-a*t)
    """

    decay: sp.Expr
    gain: sp.Expr

    def solution(self, start: sp.Expr, source: sp.Expr) -> sp.Expr:
        """w(t), given w(0) and S as an expression in t."""
        s = sp.Symbol("s", nonnegative=True)
        past = sp.Integral(sp.exp(-self.decay * (TIME - s)) * source.subs(TIME, s), (s, 0, TIME)) if source != 0 else sp.S.Zero
        return sp.exp(-self.decay * TIME) * start + self.gain * past


def norm_motion() -> sp.Eq:
    """M (r²)¨ + μ (r²)˙ = -2k r² + 2M |q˙|²: Noether's theorem for the scale of a damped motion, exact for that motion.

    Returns
    -------
    sympy.Eq
        In R(t) = r² and S(t) = |q˙|².
    """
    ball = heavy_ball(2)
    law = ball.noether(ball.coordinates)
    r, speed = NORM_SQUARED(TIME), GRADIENT_SQUARED(TIME)
    table = {sum(x**2 for x in ball.coordinates): r, sum(x**2 for x in ball.velocities): speed}
    momentum = MASS * sp.Derivative(r, TIME) / 2  # ⟨m q˙, q⟩
    left = sp.Derivative(momentum, TIME).doit() + law.friction * momentum
    right = (law.kinetic_breaking + law.explicit_breaking).subs(table)
    return sp.Eq(sp.expand(2 * left), sp.expand(2 * right))


def norm_average(mass: sp.Expr = MASS, friction: sp.Expr = FRICTION, spring: sp.Expr = SPRING) -> ExponentialAverage:
    """r⁴ as an average of |ĝ|², Eq. 17 of tanaka2021noether.

    Truncated: the inertia M (r²)¨ is dropped and q˙ taken for -g/μ, which supposes that gradients persist for longer than 1/(1 - β) steps.
    """
    motion = norm_motion()
    r, source = sp.symbols("r_squared S_hat", positive=True)
    slow = motion.rhs.subs(GRADIENT_SQUARED(TIME), source / (FRICTION**2 * r)).subs(NORM_SQUARED(TIME), r) / FRICTION
    fourth = sp.expand(2 * r * slow)  # (r⁴)˙ = 2 r² (r²)˙
    at = {MASS: mass, FRICTION: friction, SPRING: spring}
    return ExponentialAverage(sp.factor(-fourth.coeff(r, 2).subs(at)), sp.factor(fourth.coeff(source, 1).subs(at)))


def rmsprop_average(smoothing: sp.Expr, rate: sp.Expr) -> ExponentialAverage:
    """G of RMSProp, G' = ρ G + (1 - ρ) g², at t = η · step, Eq. 18 of tanaka2021noether."""
    old, square = sp.symbols("G g_squared")
    change = sp.expand((smoothing * old + (1 - smoothing) * square - old) / rate)
    return ExponentialAverage(sp.factor(-change.coeff(old, 1)), sp.factor(change.coeff(square, 1)))


@dataclass(frozen=True)
class Schedule:
    """A run without weight decay that is, up to its scale, a run with it.

    Attributes
    ----------
    root : sympy.Expr
        c: θ_k = c^k φ_k.
    step_size : sympy.Expr
        η_k in k.
    buffer : sympy.Expr
        b_0 / φ_0 of the run without decay, where the run with decay starts from rest; zero without momentum.
    """

    root: sp.Expr
    step_size: sp.Expr
    buffer: sp.Expr


def schedule_without_decay(form: Form) -> Schedule:
    """The growing step size that replaces weight decay on scale-invariant weights.

    θ_{k+1} - T θ_k + D θ_{k-1} = -ηw g(θ_k) with T = c + D/c: divided by c^(k+1), and with g(θ_k) = c^-k g(φ_k),

        φ_{k+1} - φ_k = (D/c²) (φ_k - φ_{k-1}) - η c^(-2k-1) w g(φ_k),

    which is the same rule without decay at η_k = η c^(-2k-1), momentum included. From rest θ_{-1} = θ_0, that is φ_{-1} = c φ_0: a buffer
    that is not at rest.

    Parameters
    ----------
    form : Form
        SGD, with momentum or not, without Nesterov's.

    Raises
    ------
    RuleError
        If the step is not the buffer, or the gradient.

    Examples
    --------
    >>> from noetherflow.symbolic.rules import sgd_form
    >>> schedule_without_decay(sgd_form(momentum=False, nesterov=False, maximize=False))
    Schedule(root=-eta*lambda + 1, step_size=eta*(-eta*lambda + 1)**(-2*k - 1), buffer=0)
    """
    plain = not form.buffers
    if not plain and form.step() != form.buffers[0][1]:
        raise RuleError(f"The step of {form.name} mixes gradient and buffer, whose recursion is another.", form=form.name)
    solution = solve_homogeneous(derive_balance((form,), True, True))
    root = solution.trace / 2 + sp.sqrt(solution.discriminant) if not plain else solution.trace
    eta = form.rate
    # φ_0 - φ_{-1} = -η_{-1} b_0 with η_{-1} = η c and φ_{-1} = c φ_0
    buffer = sp.S.Zero if plain else -(1 - root) / (eta * root)
    return Schedule(root, eta * root ** (-2 * STEPS - 1), buffer)


def norm_growth(form: Form) -> sp.Expr:
    """E[r'² - r²] / (η² E|p|²) without weight decay, once K has settled: (1 + β)/(1 - β) for SGD with momentum, p the buffer. Exact."""
    (pair,) = derive_balance((form,), False, True).charge_terms["discretization"].atoms(Inner)
    solution = solve_homogeneous(derive_balance((form,), False, True))
    free = {dict(form.hyperparameters)["weight_decay"]: 0, CURRENT: 0}
    matrix, sources = (x.subs(free) for x in (solution.matrix, solution.sources))
    moved = sources[0] + (matrix[0, 1] * sources[1] / (1 - matrix[1, 1]) if matrix.rows == 2 else 0)
    return sp.factor(2 * sp.expand(moved).coeff(pair, 1) / form.rate**2)


def buffer_power(momentum: sp.Expr, correlation: sp.Expr = CORRELATION) -> sp.Expr:
    """E|p|² / E|g|² of p = Σ β^j g_{k-j} for gradients with autocorrelation C_j = ρ^j; exact in a stationary state.

    Examples
    --------
    >>> beta = sp.Symbol("beta")
    >>> [sp.factor(buffer_power(beta, sp.Integer(c))) for c in (0, 1)]
    [-1/((beta - 1)*(beta + 1)), (beta - 1)**(-2)]
    """
    power, cross = sp.symbols("P X")
    # P = β² P + 2β X + 1 with X = E⟨p, g_next⟩ = ρ (β X + 1)
    found = sp.solve([momentum**2 * power + 2 * momentum * cross + 1 - power, correlation * (momentum * cross + 1) - cross], [power, cross])
    return sp.factor(found[power])
