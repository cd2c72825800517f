"""The continuous-time limit of a balance law: η → 0 at fixed t = η · step.

Momentum relaxes in a few steps, which take no time in the limit: K sits at the fixed point of its own recursion. What is left of
(Q' - Q)/η is the flow. Source: own (derived here from the discrete law, so that the two cannot disagree); the momentum factor
(1 - τ)/(1 - μ) is that of tanaka2021noether, section 3. A buffer that gathers η g instead of g (Nesterov's with the gradient ahead) is
itself of order η: its pairings and its K count so.
"""

from __future__ import annotations

import sympy as sp

from noetherflow.symbolic.balance import CHARGE, Balance
from noetherflow.symbolic.forms import GRADIENT, Form
from noetherflow.symbolic.pairings import Inner, NotLinear, Vector, parts

TIME = sp.Symbol("t", nonnegative=True)


def gradient_flow(balance: Balance) -> sp.Eq:
    """dQ/dt as η → 0, exact in the limit; the error of using it at finite η is O(η) at fixed t.

    Returns
    -------
    sympy.Eq
        ``Derivative(Q(t), t) == ...`` in the hyper-parameters, Q and the current J.

    Examples
    --------
    >>> from noetherflow.symbolic.balance import derive_balance
    >>> from noetherflow.symbolic.rules import sgd_form
    >>> gradient_flow(derive_balance((sgd_form(momentum=False, nesterov=False, maximize=False),), False, True))
    Eq(Derivative(Q(t), t), -J - 2*lambda*Q(t))
    """
    rate = balance.forms[0].rate if len(balance.forms) == 1 else sp.Symbol("eta", real=True)
    ratios = _ratios(balance, rate)
    moves = sp.Add(*balance.charge_terms.values())
    moves += sp.Add(*(balance.momentum_in_charge[k] * _at_rest(balance, k, ratios, rate) for k in balance.momenta))
    first_order = sp.expand(counted(balance, moves).xreplace(ratios)).coeff(rate, 1)
    q = sp.Function("Q")(TIME)
    return sp.Eq(sp.Derivative(q, TIME), sp.factor_terms(sp.simplify(first_order)).subs(CHARGE, q))


def counted(balance: Balance, expression: sp.Expr) -> sp.Expr:
    """An expression in which every pairing of a buffer that is of order η^p by itself has its power of η written out."""
    if len(balance.forms) != 1:
        return expression
    form = balance.forms[0]
    powers = _powers(form)
    table = {pair: form.rate ** sum(powers.get(v, 0) for v in pair.args) * pair for pair in expression.atoms(Inner)}
    return expression.xreplace(table)


def _powers(form: Form) -> dict[Vector, int]:
    """Buffer, before and after a step -> the power of η that the gradient has in it."""
    out: dict[Vector, int] = {}
    table = dict(form.equations)
    for before, after in form.buffers:
        made = table[after]
        while inside := [v for v in made.free_symbols if v in table and v not in {a for _, a in form.buffers}]:
            made = sp.expand(made.xreplace({v: table[v] for v in inside}))
        try:
            weight = parts(made).get(GRADIENT, sp.S.One)
        except NotLinear:
            continue
        out |= dict.fromkeys((before, after), min(int(sp.degree(term, form.rate)) for term in sp.Add.make_args(sp.expand(weight))))
    return out


def _ratios(balance: Balance, rate: sp.Symbol) -> dict[sp.Symbol, sp.Expr]:
    if len(balance.forms) == 1:
        return {}
    return {sp.Symbol(f"{rate.name}_{p}", real=True): rate * sp.Symbol(f"r_{p}", positive=True) for p in range(len(balance.forms))}


def _at_rest(balance: Balance, k: sp.Symbol, ratios: dict[sp.Symbol, sp.Expr], rate: sp.Symbol) -> sp.Expr:
    """Where the recursion of K comes to rest, to its own leading order in η."""
    power = _powers(balance.forms[0]).get(balance.buffer_of(k, 0), 0) if len(balance.forms) == 1 else 0
    terms = sp.expand(counted(balance, sp.Add(*balance.momentum_terms[k].values())).xreplace(ratios)).coeff(rate, power)
    return rate**power * terms / (1 - balance.momentum_factor[k].xreplace(ratios).subs(rate, 0))
