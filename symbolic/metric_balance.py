"""Rules that divide entry by entry: the charge under their own metric, whose law needs no measured source but the metric's drift.

If the step's nonlinear part is d = M⁻¹ L with a positive diagonal M and L linear in θ, g and buffers, then ⟨Mξ, d⟩ = ⟨ξ, L⟩, which
invariance and the momenta K give without a gradient. With M held at the value it has in the step, and A diagonal (so M A is symmetric),

    P(θ) = ½⟨θ, M A θ⟩  (or ⟨a, M θ⟩),      P(θ + Δ) - P(θ) = ⟨Mξ, Δ⟩ + ½⟨Δ, M A Δ⟩,      ⟨d, M A d⟩ = ⟨d, A L⟩,

exact at any step size. From one step to the next M changes, and with it P by the drift P[M'](θ') - P[M](θ'), which is measured. Momentum
that gathers d (RMSprop's) has a momentum of its own under the metric, G = ⟨Mξ, b⟩, with a drift likewise.

A generator without a charge under M (a rotation) keeps the constraint ⟨Mξ(θ), d⟩ = ⟨ξ(θ), L⟩ in every step.

Source: own; marcotte2024keep for charges under a constant metric.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import sympy as sp

from noetherflow.symbolic.balance import CHARGE, CURRENT, DISCRETIZATION, EXPLICIT, METRIC, MOMENTUM
from noetherflow.symbolic.forms import STEP, THETA, Form
from noetherflow.symbolic.kinetic_balance import Motion
from noetherflow.symbolic.nonlinear import Magnitude, Orthogonal, Sign, structure
from noetherflow.symbolic.pairings import Along, Inner, NotLinear, Vector, inner, parts

METRIC_CHARGE, METRIC_MOMENTUM = sp.symbols("P G", real=True)
DRIFT = sp.Symbol("dP", real=True)


@dataclass(frozen=True)
class MetricBalance:
    """One step of a charge under a rule's own metric.

    Attributes
    ----------
    form : Form
    metric : sympy.Expr
        M, entry by entry, in the form's vectors and hyper-parameters.
    direction, followed : Vector, expression
        d and L.
    charge : sympy.Expr
        P(θ') with M as it was in the step, in P, Q, J, K and pairings by A. The drift of M is added to it.
    momentum : sympy.Expr or None
        ⟨M ξ(θ'), b'⟩ likewise, for rules that gather d; G is ⟨M ξ(θ), b⟩ with this step's M.
    momenta : tuple of equations
        The recursions of K, as in the law of the Euclidean charge.
    """

    form: Form
    metric: sp.Expr
    direction: Vector
    followed: sp.Expr
    charge: sp.Expr
    momentum: sp.Expr | None
    momenta: tuple[sp.Eq, ...]

    @property
    def equations(self) -> tuple[sp.Eq, ...]:
        """P' with the drift of M, named dP, in it; then G' where there is one, and the recursions of K."""
        gathered = () if self.momentum is None else (sp.Eq(sp.Symbol("G'"), self.momentum),)
        return (sp.Eq(sp.Symbol("P'"), self.charge + DRIFT), *gathered, *self.momenta)

    @property
    def terms(self) -> Mapping[str, sp.Expr]:
        """Mechanism -> its part of P' - P."""
        return booked(sp.expand(self.charge - METRIC_CHARGE), self.form) | {METRIC: DRIFT}

    def latex(self) -> str:
        """The equations, aligned, after the metric."""
        rows = [rf"M &= {sp.latex(self.metric)}", *(rf"{sp.latex(e.lhs)} &= {sp.latex(e.rhs)}" for e in self.equations)]
        return r"\begin{aligned}" + r"\\ ".join(rows) + r"\end{aligned}"


@dataclass(frozen=True)
class MetricConstraint:
    """What any generator keeps under a rule's own metric: ⟨Mξ(θ), d⟩ = ⟨ξ(θ), L⟩.

    Attributes
    ----------
    form : Form
    metric : sympy.Expr
    direction, followed : Vector, expression
        d and L.
    along : sympy.Expr
        ⟨ξ, L⟩ in J, ⟨ξ(θ), θ⟩ (zero for a rotation) and the momenta K = ⟨ξ(θ), m⟩ before the step.
    """

    form: Form
    metric: sp.Expr
    direction: Vector
    followed: sp.Expr
    along: sp.Expr

    @property
    def equations(self) -> tuple[sp.Eq, ...]:
        """The constraint on D = ⟨Mξ(θ), d⟩."""
        return (sp.Eq(sp.Symbol("D", real=True), self.along, evaluate=False),)

    @property
    def terms(self) -> Mapping[str, sp.Expr]:
        """Mechanism -> its part of D."""
        return booked(sp.expand(self.along), self.form, default=MOMENTUM)

    def latex(self) -> str:
        """The constraint, after the metric."""
        return rf"M = {sp.latex(self.metric)},\quad D = {sp.latex(self.along)}"


def booked(expression: sp.Expr, form: Form, default: str = DISCRETIZATION) -> dict[str, sp.Expr]:
    """Split a sum by mechanism: the current, decay, momenta, and the rest."""
    decays = {s for s, mechanism in form.mechanisms if mechanism == "weight_decay"}
    out: dict[str, sp.Expr] = {}
    for term in (t for t in sp.Add.make_args(expression) if t != 0):
        name = _mechanism(term.free_symbols, decays, default)
        out[name] = out.get(name, sp.S.Zero) + term
    return {name: sp.factor(part) for name, part in out.items()}


def _mechanism(symbols: Iterable[sp.Symbol], decays: Iterable[sp.Symbol], default: str) -> str:
    found = set(symbols)
    if CURRENT in found:
        return EXPLICIT
    if found & set(decays):
        return "weight_decay"
    remembered = any(s == METRIC_MOMENTUM or (s.name.split("_")[0] == "K" and not isinstance(s, Vector)) for s in found)
    return MOMENTUM if remembered else default


@lru_cache(maxsize=64)
def derive_metric_balance(form: Form, linear: bool) -> MetricBalance | None:
    """The law under the metric that a form's equations show; None if they show none.

    Parameters
    ----------
    form : Form
    linear : bool
        Whether the charge is ⟨a, Mθ⟩ (A = 0) rather than ½⟨θ, M A θ⟩ with A diagonal.

    Returns
    -------
    MetricBalance or None
        Exact: no order in η is dropped.

    Examples
    --------
    >>> from noetherflow.symbolic.rules_adaptive import rmsprop_form
    >>> law = derive_metric_balance(rmsprop_form(), False)
    >>> law.metric, law.charge
    (epsilon + sqrt(v'), -J*eta + P - 2*Q*eta*lambda + eta**2*Inner(d, h)/2)
    """
    motion, step, metric = Motion(form, 0, 1, linear), _step(form), own_metric(form)
    if step is None or metric is None:
        return None
    followed = structure(form).atoms[step.direction]
    theta, eta = METRIC_CHARGE if linear else 2 * METRIC_CHARGE, form.rate
    along = motion.along(followed) + step.memory * METRIC_MOMENTUM
    second, own = sp.S.Zero, sp.S.Zero
    if not linear:
        own = inner(step.direction, followed) if step.buffer is None else Inner(step.buffer, _weighted(step.buffer))
        second = step.decay**2 * theta + 2 * step.decay * along + own
    charge = METRIC_CHARGE - eta * (step.decay * theta + along) + eta**2 * second / 2
    momentum = None if step.buffer is None else sp.expand(along - eta * own)
    recursions = [(before, after) for before, after in motion.buffers if after != step.buffer]
    momenta = tuple(sp.Eq(sp.Symbol(f"{motion.momentum(b).name}'"), motion.after(after)) for b, after in recursions)
    return MetricBalance(form, metric, step.direction, followed, sp.expand(charge), momentum, momenta)


@lru_cache(maxsize=64)
def derive_metric_constraint(form: Form) -> MetricConstraint | None:
    """The constraint that every generator keeps under the metric that a form's equations show; None if they show none.

    Examples
    --------
    >>> from noetherflow.symbolic.rules_adaptive import rmsprop_form
    >>> derive_metric_constraint(rmsprop_form()).along
    J + lambda*Along(theta)
    """
    step, metric = _step(form), own_metric(form)
    if step is None or metric is None:
        return None
    followed = structure(form).atoms[step.direction]
    along = Motion(form, 0, 1, True).along(followed).xreplace({CHARGE: Along(THETA)})
    return MetricConstraint(form, metric, step.direction, followed, sp.expand(along))


def own_metric(form: Form) -> sp.Expr | None:
    """M, entry by entry, if the step's one nonlinear part divides a linear vector by it; None if it does not."""
    step = _step(form)
    if step is None or Motion(form, 0, 1, True).atoms != (step.direction,):
        return None
    followed, expression = structure(form).atoms[step.direction], dict(form.equations)[step.direction]
    if followed == 0 or expression.atoms(Orthogonal):
        return None
    return Magnitude(followed) if isinstance(expression, Sign) else followed / expression


@dataclass(frozen=True)
class _Step:
    """The step as λ θ + d, or as a buffer b' = memory b + d."""

    direction: Vector
    decay: sp.Expr
    memory: sp.Expr
    buffer: Vector | None


def _step(form: Form) -> _Step | None:
    table, atoms = dict(form.equations), structure(form).atoms
    if not _is_combination(table[STEP]):
        return None
    shown = parts(table[STEP])
    decay = shown.pop(THETA, sp.S.Zero)
    if len(shown) != 1 or next(iter(shown.values())) != 1:
        return None
    (vector,) = shown
    if vector in atoms:
        return _Step(vector, decay, sp.S.Zero, None)
    for before, after in form.buffers:
        made = parts(table[after]) if after == vector and after not in atoms else {}
        directions = [v for v in made if v in atoms]
        if decay == 0 and len(directions) == 1 and set(made) == {before, *directions} and made[directions[0]] == 1:
            return _Step(directions[0], decay, made[before], after)
    return None


def _is_combination(expression: sp.Expr) -> bool:
    try:
        parts(expression)
    except NotLinear:
        return False
    return True


def _weighted(vector: Vector) -> Vector:
    """M times a vector, entry by entry."""
    return Vector(f"M {vector.name}", rf"M {vector.shown}")
