"""Explicit breaking by a normalisation's eps: the exact current, derived.

A normalisation y = gain * x / sqrt(mean(x²) + eps) (x centred, if it is) is unchanged by x -> e^s x at eps = 0. At eps > 0 the result
changes by the *defect* dy/ds, and the invariance identity reads, by the chain rule, exactly

    ⟨ξ, ∇L⟩ = J = Σ coefficient · ⟨defect, ∂L/∂y⟩ .

SymPy differentiates; the defect is a factor times the normalised tensor itself, with a factor of its own for every statistic t that the
normalisation takes: a channel (BatchNorm), a sample and position (LayerNorm, RMSNorm), a sample and group (GroupNorm). So the current needs
the statistic's variance (or mean square) in the forward pass, and how the loss reacts to the normalised tensor ŷ, before gain and shift:

    J = Σ_t coefficient · eps / (σ²_t + eps) · ⟨ŷ_t, ∂L/∂ŷ_t⟩ .

σ² is the variance that the normalisation divides by (the biased one). Source: own (THEORY 15.2).
"""

from __future__ import annotations

from functools import lru_cache

import sympy as sp

VARIANCE, EPS = sp.symbols("sigma2 epsilon", positive=True)


@lru_cache(maxsize=1)
def scale_defect() -> sp.Expr:
    """(d/ds of the normalised tensor under x -> e^s x) / (normalised tensor), in the variance and eps.

    Centring commutes with the scale, so x may stand for what is centred already.

    Examples
    --------
    >>> scale_defect()
    epsilon/(epsilon + sigma2)
    """
    x, s = sp.symbols("x s", real=True)
    scaled = sp.exp(s) * x / sp.sqrt(sp.exp(2 * s) * VARIANCE + EPS)
    return sp.factor(sp.simplify(sp.diff(scaled, s).subs(s, 0) / scaled.subs(s, 0)))
