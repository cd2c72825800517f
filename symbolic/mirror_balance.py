"""The exact law of a charge under a mirror metric, derived from a rule's update equations and its potential.

The charge of ξ_e = c_e s(θ_e), s = θ (a scaling) or 1 (a shift), is Q = Σ c_e q(θ_e) with q' = φ'' s. One step θ → y(θ, h) has

    Q' - Q = r ⟨ξ(θ), h⟩ + Σ c_e R(θ_e, h_e),        r = ∂q(y)/∂h / s(θ) at h = 0,        R = q(y) - q(θ) - r s(θ) h,

and invariance gives ⟨ξ, h⟩ without a gradient. r must be one number for all entries: this is what it means that the rule moves along the
metric. R holds no first order of h; for the exact mirror step it is the Bregman divergence D_φ(θ, y), and for a shift nothing at all.
A generator without a charge (a rotation, X outside of the diagonal) keeps a constraint of the same kind,

    ⟨ξ(θ), φ'(θ') - φ'(θ)⟩ = r ⟨ξ(θ), h⟩ + ⟨ξ(θ), R⟩,        R = φ'(y) - φ'(θ) - r h,

whose R vanishes for the exact step. Source: own; marcotte2024keep for the charges of the flow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal

import sympy as sp

from noetherflow.errors import RuleError
from noetherflow.symbolic.balance import CHARGE, CURRENT, DISCRETIZATION, EXPLICIT
from noetherflow.symbolic.forms import GRADIENT, STEP, THETA, Form
from noetherflow.symbolic.metrics import ARGUMENT
from noetherflow.symbolic.mirror_steps import SLOPE
from noetherflow.symbolic.nonlinear import structure
from noetherflow.symbolic.pairings import Along, Vector, parts
from noetherflow.symbolic.survival import antiderivative

Kind = Literal["scaling", "shift", "constraint"]
REMAINDER: Final = sp.Symbol("R", real=True)
VELOCITY: Final = sp.Symbol("D", real=True)


@dataclass(frozen=True)
class MirrorBalance:
    """One step of a charge under a mirror metric, or of a constraint.

    Attributes
    ----------
    form : Form
    kind : str
        'scaling', 'shift', or 'constraint' for generators without a charge.
    followed : Vector
        h.
    density : sympy.Expr
        q in `ARGUMENT`; φ' for a constraint.
    remainder : sympy.Expr
        R in `ARGUMENT` (θ_e) and `SLOPE` (h_e): summed with the generator's coefficients it is the symbol R of the law.
    terms : mapping of str to expression
        Mechanism -> its part of Q' - Q (of D for a constraint).
    """

    form: Form
    kind: Kind
    followed: Vector
    density: sp.Expr
    remainder: sp.Expr
    terms: Mapping[str, sp.Expr]

    @property
    def equations(self) -> tuple[sp.Eq, ...]:
        """The law: Q', or the constraint on D = ⟨ξ(θ), φ'(θ') - φ'(θ)⟩."""
        whole = sp.Add(*self.terms.values())
        if self.kind == "constraint":
            return (sp.Eq(VELOCITY, whole, evaluate=False),)
        return (sp.Eq(sp.Symbol("Q'"), CHARGE + whole),)

    def latex(self) -> str:
        """The equation, with what R is a sum of."""
        (law,) = self.equations
        shown = rf"{sp.latex(law.lhs)} = {sp.latex(law.rhs)}"
        return shown if self.remainder == 0 else rf"{shown},\quad R_e = {sp.latex(self.remainder)}"


@lru_cache(maxsize=64)
def derive_mirror_balance(form: Form, kind: Kind) -> MirrorBalance:
    """Derive the law of a charge, or of a constraint, under the metric ∇²φ of a form's potential.

    Parameters
    ----------
    form : Form
        With a potential; its step a function of θ and of one vector that is linear in θ and g.
    kind : str

    Returns
    -------
    MirrorBalance
        Exact: no order in η is dropped.

    Raises
    ------
    RuleError
        If the rule has no potential or keeps buffers, or does not move along the metric.

    Examples
    --------
    >>> from noetherflow.symbolic.metrics import ENTROPY
    >>> from noetherflow.symbolic.rules_mirror import mirror_form
    >>> derive_mirror_balance(mirror_form(ENTROPY, plain=True), "scaling").equations
    (Eq(Q', -J*eta + Q - eta*lambda*Along(theta)),)
    """
    potential, followed, after = _read(form)
    scale = {"scaling": ARGUMENT, "shift": sp.S.One, "constraint": sp.S.One}[kind]
    density = sp.diff(potential, ARGUMENT) if kind != "scaling" else _density(potential)
    q = sp.Lambda(ARGUMENT, density)
    rate = sp.simplify(sp.diff(q(after), SLOPE).subs(SLOPE, 0) / scale)
    if ARGUMENT in rate.free_symbols:
        raise RuleError(
            f"{form.name} does not move along the metric of the potential {potential}: its step moves the charge along {followed} "
            f"at the rate {rate}, which is no number. Give the potential that belongs to the step.",
            rate=rate,
        )
    remainder = _simplified(q(after) - density - rate * scale * SLOPE)
    terms = {DISCRETIZATION: REMAINDER if remainder != 0 else sp.S.Zero} | _first_order(form, followed, rate)
    return MirrorBalance(form, kind, followed, density, remainder, {name: term for name, term in terms.items() if term != 0})


def _simplified(expression: sp.Expr) -> sp.Expr:
    """SymPy undoes log of exp by itself, but not arsinh of sinh, which is as exact for real numbers."""
    out = sp.simplify(sp.expand(expression))
    return sp.simplify(out.replace(lambda e: isinstance(e, sp.asinh) and isinstance(e.args[0], sp.sinh), lambda e: e.args[0].args[0]))


def _density(potential: sp.Expr) -> sp.Expr:
    return antiderivative(ARGUMENT * sp.simplify(sp.diff(potential, ARGUMENT, 2)), ARGUMENT)


def _first_order(form: Form, followed: Vector, rate: sp.Expr) -> dict[str, sp.Expr]:
    """The first order by invariance: ⟨ξ, g⟩ = J, and ⟨ξ, θ⟩ needs no gradient."""
    table, out = dict(form.equations), sp.sympify(followed)
    while made := [v for v in out.free_symbols if v in table]:
        out = sp.expand(out.xreplace({v: table[v] for v in made}))
    found = parts(out)
    return {
        EXPLICIT: sp.factor(rate * found.get(GRADIENT, sp.S.Zero)) * CURRENT,
        "weight_decay": sp.factor(rate * found.get(THETA, sp.S.Zero)) * Along(THETA),
    }


def _read(form: Form) -> tuple[sp.Expr, Vector, sp.Expr]:
    """Potential, h, and y(θ, h)."""
    step = dict(form.equations).get(STEP, sp.S.Zero)
    others = sorted((v for v in step.atoms(Vector) if v != THETA), key=str)
    known = {GRADIENT, *structure(form).linear}
    if form.potential is None or form.buffers or len(others) != 1 or others[0] not in known:
        raise RuleError(
            f"A law under a mirror metric needs a potential, no buffers, and a step that is a function of θ and of one linear vector; "
            f"{form.name} has the potential {form.potential}, buffers {form.buffers} and the step {step}.",
            form=form.name,
        )
    after = (THETA - form.rate * step).xreplace({THETA: ARGUMENT, others[0]: SLOPE})
    return form.potential, others[0], sp.simplify(after)
