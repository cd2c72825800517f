"""Phase transitions that weight decay causes: whether and how a chain of layers dies as its decay grows.

A chain of D hidden layers fits y by s times the best direction, loss a s² - 2b s with a = E[x²], b = E[xy] > 0. Under gradient flow its
D + 1 layers are balanced (their charges decay), and at a given product s = Π w_i the decay γ Σ w_i² is least where they are:

    F(s) = a s² - 2b s + γ (D + 1) s^(2/(D + 1)),        s ≥ 0.

Near s = 0 the decay goes as s², s, or a lower power than the gain -2b s: no transition, a continuous one, a jump. For a jump three decays
matter: at γ_c the two minima are equally deep; s = 0 is a minimum at every γ > 0; the other minimum lives on until γ_sp > γ_c, where a
training run that follows it falls.
Source: ziyin2022exact for the orders and γ_c; own for the derivation and γ_sp.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import sympy as sp

from noetherflow.errors import RuleError

SIGNAL: Final = sp.Symbol("s", positive=True)
CURVATURE, GAIN, DECAY = sp.symbols("a b gamma", positive=True)
DEPTH: Final = sp.Symbol("D", positive=True)


@dataclass(frozen=True)
class Transition:
    """What happens as the decay grows.

    Attributes
    ----------
    order : int or None
        1 or 2; None if nothing does.
    critical : sympy.Expr or None
        γ_c.
    jump : sympy.Expr
        s just below γ_c; zero for a continuous transition.
    spinodal : sympy.Expr or None
        γ_sp, where the minimum with s > 0 ends.
    last : sympy.Expr
        s there.

    Examples
    --------
    >>> transition(1)
    Transition(order=2, critical=b, jump=0, spinodal=b, last=0)
    >>> transition(2).critical, transition(2).jump
    (2**(2/3)*b**(4/3)/(4*a**(1/3)), b/(2*a))
    """

    order: int | None
    critical: sp.Expr | None
    jump: sp.Expr
    spinodal: sp.Expr | None
    last: sp.Expr


def balanced_decay(depth: int | sp.Expr) -> sp.Expr:
    """Least Σ w_i² over D + 1 layers with product s: all w_i² are equal (stationarity: w_i² = multiplier · s / 2 for every i).

    Examples
    --------
    >>> balanced_decay(1)
    2*s
    """
    layers = sp.sympify(depth) + 1
    return layers * SIGNAL ** (2 / layers)


def potential(depth: int | sp.Expr) -> sp.Expr:
    """F(s).

    Examples
    --------
    >>> potential(2)
    a*s**2 - 2*b*s + 3*gamma*s**(2/3)
    """
    return CURVATURE * SIGNAL**2 - 2 * GAIN * SIGNAL + DECAY * balanced_decay(depth)


def stationary_decay(depth: int | sp.Expr) -> sp.Expr:
    """γ at which a given s > 0 is stationary.

    Examples
    --------
    >>> stationary_decay(1)
    -a*s + b
    """
    slope = sp.diff(potential(depth), SIGNAL)
    at_zero = slope.subs(DECAY, 0)
    return sp.simplify(-at_zero / sp.diff(slope, DECAY))


@lru_cache(maxsize=64)
def transition(depth: int | sp.Expr) -> Transition:
    """Derive the transition.

    Parameters
    ----------
    depth : int or sympy.Expr
        D ≥ 0; a positive symbol stands for D ≥ 2.

    Raises
    ------
    RuleError
        If it is negative.
    """
    layers = sp.sympify(depth) + 1
    if layers.is_number and layers < 1:
        raise RuleError(f"A chain has D ≥ 0 hidden layers; got {depth}.", depth=depth)
    path = stationary_decay(depth)
    if layers == 1:  # the decay is as smooth as the loss: s = b / (a + γ) for every γ
        return Transition(None, None, sp.S.Zero, None, sp.S.Zero)
    if layers == 2:  # F'(0+) = 2γ - 2b: s leaves zero where it changes sign
        return Transition(2, path.subs(SIGNAL, 0), sp.S.Zero, path.subs(SIGNAL, 0), sp.S.Zero)
    # equally deep: F = 0 with γ that makes s stationary; F / s is then linear in s
    level = sp.simplify(potential(depth).subs(DECAY, path) / SIGNAL)
    (jump,) = sp.solve(level, SIGNAL)
    # the last stationary point: the logarithm of γ(s) is stationary
    (last,) = sp.solve(sp.numer(sp.together(sp.simplify(sp.diff(path, SIGNAL) / path))), SIGNAL)
    critical, spinodal = (sp.simplify(path.subs(SIGNAL, s)) for s in (jump, last))
    return Transition(1, critical, sp.factor(jump), spinodal, sp.factor(last))
