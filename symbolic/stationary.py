"""Where a scale family comes to rest: stationary norms, and how far a weight turns with every step.

For a scale symmetry A = 1: the charge is ½r², invariance says ⟨θ, g⟩ = J = 0, and g(cθ) = g(θ)/c. In a stationary state the means of Q
and K do not change, and their law is linear, so it determines them by the means of second-order pairings, with nothing dropped:

    E[Q'] = E[Q],  E[K'] = E[K]        →  E[r²] by E⟨p, p⟩,   E⟨θ, θ'⟩ / E[r²] by ηλ and the momentum *alone*.

For r⁴, and for angles instead of mean cosines, one more thing is needed: that r moves little about its mean.

Source: own. Special cases: kosson2024rotational (white gradients, to leading order in ηλ); vanlaarhoven2017regularization and
wan2021spherical for SGD.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import sympy as sp

from noetherflow.errors import RuleError
from noetherflow.symbolic.balance import CHARGE, CURRENT, Balance, derive_balance
from noetherflow.symbolic.modified import resolved
from noetherflow.symbolic.pairings import Inner, Vector, inner, parts
from noetherflow.symbolic.rules import GRADIENT, STEP, THETA, Form


@dataclass(frozen=True)
class Equilibrium:
    """Means of a stationary scale family.

    Attributes
    ----------
    form : Form
    norm_squared : sympy.Expr
        E[r²] in the means of pairings of what the step is made of, and of J (zero, unless a metric breaks the symmetry); exact.
    dot : sympy.Expr
        E⟨θ, θ'⟩ in the same.

    Examples
    --------
    >>> from noetherflow.symbolic.rules import sgd_form
    >>> plain = equilibrium(sgd_form(momentum=False, nesterov=False, maximize=False))
    >>> plain.norm_fourth
    -eta*Inner(g_hat, g_hat)/(lambda*(eta*lambda - 2))
    >>> plain.cosine
    -eta*lambda + 1
    """

    form: Form
    norm_squared: sp.Expr
    dot: sp.Expr

    @property
    def norm_fourth(self) -> sp.Expr:
        """r⁴ in pairings at unit norm, p = p_hat / r; without J. Exact for constant r, else to leading order in its fluctuation."""
        hats = {v: Vector(f"{v.name}_hat", rf"\hat{{{v.shown}}}") for v in self.norm_squared.free_symbols if isinstance(v, Vector)}
        return sp.factor(self.norm_squared.subs(CURRENT, 0).xreplace(hats))

    @property
    def cosine(self) -> sp.Expr:
        """E⟨θ, θ'⟩ / E[r²] for J = 0: of consecutive weights, exact.

        Raises
        ------
        RuleError
            If it depends on more than the hyper-parameters (several second-order pairings: Nesterov's momentum).
        """
        found = sp.factor(sp.cancel((self.dot / self.norm_squared).subs(CURRENT, 0)))
        if left := found.atoms(Inner):
            raise RuleError(f"The turn of {self.form.name} depends on measured pairings {left}, not on hyper-parameters alone.")
        return found

    @property
    def angle(self) -> sp.Expr:
        """Angle per step to leading order in the weight decay, √(2(1 - cosine))."""
        decay = dict(self.form.hyperparameters)["weight_decay"]
        leading = sp.factor(sp.diff(2 * (1 - self.cosine), decay).subs(decay, 0))
        return sp.sqrt(decay * leading)


def decoupled_form(*, momentum: bool) -> Form:
    """SGD with decoupled weight decay: b' = μ b + (1 - τ) g, θ' = (1 - ηλ) θ - η b' (loshchilov2019decoupled, algorithm 1).

    With τ = μ it is also AdamW for a family whose second moments are alike and move slowly: b is then the normalised update.
    """
    eta, decay, mu, tau = sp.symbols("eta lambda mu tau", real=True)
    before, after = Vector("b"), Vector("b'")
    equations: tuple[tuple[Vector, sp.Expr], ...] = ((STEP, GRADIENT + decay * THETA),)
    if momentum:
        equations = ((after, mu * before + (1 - tau) * GRADIENT), (STEP, after + decay * THETA))
    return Form(
        name="SGD with decoupled weight decay" + (" and momentum" if momentum else ""),
        equations=equations,
        buffers=((before, after),) if momentum else (),
        rate=eta,
        hyperparameters=(("lr", eta), ("weight_decay", decay), *((("momentum", mu), ("dampening", tau)) if momentum else ())),
        mechanisms=((decay, "weight_decay"), (mu, "momentum"), (tau, "momentum")),
    )


@lru_cache(maxsize=64)
def equilibrium(form: Form) -> Equilibrium:
    """Derive the stationary state of a scale family from its balance law.

    Parameters
    ----------
    form : Form
        With at most one buffer.

    Raises
    ------
    RuleError
        If nothing pulls the norm back (the rule's weight decay does not enter).
    """
    balance = derive_balance((form,), False, True)
    state = (CHARGE, *balance.momenta)
    changes = [sp.expand(in_basics(balance, row) - x) for row, x in zip(_rows(balance), state, strict=True)]
    matrix = sp.Matrix([[change.coeff(x, 1) for x in state] for change in changes])
    if sp.expand(matrix.det()) == 0:
        raise RuleError(f"{form.name} has no stationary norm: without weight decay nothing pulls it back.", form=form.name)
    pushes = (sp.Matrix(changes) - matrix * sp.Matrix(state)).applyfunc(sp.expand)
    at_rest = dict(zip(state, matrix.LUsolve(-pushes), strict=True))
    turned = 2 * CHARGE + in_basics(balance, -form.rate * inner(THETA, form.step()))
    return Equilibrium(form, sp.factor(2 * at_rest[CHARGE]), sp.factor(turned.xreplace(at_rest)))


def _rows(balance: Balance) -> list[sp.Expr]:
    return [equation.rhs for equation in balance.equations]


def in_basics(balance: Balance, expression: sp.Expr) -> sp.Expr:
    """Second-order pairings for A = 1 in those of gradients and buffers: ⟨θ, θ⟩ = 2Q, ⟨θ, g⟩ = J, ⟨θ, b⟩ = K."""
    (form,) = balance.forms
    table = {pair: inner(*(_made_of(form, v) for v in pair.args)) for pair in expression.atoms(Inner)}
    opened = sp.expand(expression.xreplace(table))
    along = {pair: _along_theta(balance, *pair.args) for pair in opened.atoms(Inner) if THETA in pair.args}
    return sp.expand(opened.xreplace(along))


def _made_of(form: Form, vector: Vector) -> sp.Expr:
    """A vector in θ, g and the buffers after the step."""
    kept = {after for _, after in form.buffers}
    return form.in_terms_of_state(vector) if vector in dict(form.equations) and vector not in kept else vector


def _along_theta(balance: Balance, x: Vector, y: Vector) -> sp.Expr:
    """⟨θ, v⟩, with v as it was before the step."""
    (form,) = balance.forms
    other = y if x == THETA else x
    made = resolved(form, other) if other in dict(form.equations) else other
    values = {THETA: 2 * CHARGE, GRADIENT: CURRENT} | {before: k for (before, _), k in zip(form.buffers, balance.momenta, strict=True)}
    return sp.Add(*(c * values[v] for v, c in parts(made).items()))
