"""Explicit breaking by a normalisation's eps: the exact current, derived.

A normalisation y = gain * x / sqrt(mean(x²) + eps) (x centred, if it is) is unchanged by x -> e^s x at eps = 0. At eps > 0 the result
changes by the *defect* dy/ds, and the invariance identity reads, by the chain rule, exactly

    ⟨ξ, ∇L⟩ = J = Σ coefficient · ⟨defect, ∂L/∂y⟩ .

SymPy differentiates; the defect is a factor times the normalised tensor itself, so that the current needs the variance of the forward pass
and ⟨gain x̂, ∂L/∂y⟩, which is gain · ∂L/∂gain. Source: own (THEORY 15.2).
"""

from __future__ import annotations

from functools import lru_cache

import sympy as sp

VARIANCE, EPS = sp.symbols("sigma2 epsilon", positive=True)


@lru_cache(maxsize=1)
def scale_defect() -> sp.Expr:
    """(d/ds of the normalised tensor under x -> e^s x) / (normalised tensor), in the variance and eps.

    Examples
    --------
    >>> scale_defect()
    epsilon/(epsilon + sigma2)
    """
    x, s = sp.symbols("x s", real=True)
    scaled = sp.exp(s) * x / sp.sqrt(sp.exp(2 * s) * VARIANCE + EPS)
    return sp.factor(sp.simplify(sp.diff(scaled, s).subs(s, 0) / scaled.subs(s, 0)))
