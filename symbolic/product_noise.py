"""The noise balance of a product of weights: what mini-batches do to ½(W Wᵀ - Uᵀ U) where a network contains U W.

The loss sees P = U W only; with R = ∂f/∂P of a mini-batch the chain rule gives G_U = R Wᵀ and G_W = Uᵀ R, and one step of SGD moves
Q = ½(W Wᵀ - Uᵀ U) to

    Q' = (1 - ηλ)² Q + (η²/2) (Uᵀ R Rᵀ U - W Rᵀ R Wᵀ)

exactly: what is of first order cancels. The expectation over mini-batches has E[R Rᵀ] = R̄ R̄ᵀ + κ C_out and E[Rᵀ R] = R̄ᵀ R̄ + κ C_in, with
κ as in `noetherflow.symbolic.noise` and C_out, C_in the covariances of per-sample R, summed over columns and over rows. Without decay it
rests where Uᵀ E[R Rᵀ] U = W E[Rᵀ R] Wᵀ, which is not Uᵀ U = W Wᵀ unless both second moments are multiples of one identity. For an affine
map of inputs x with output gradients r, one sample has R Rᵀ = |x|² r rᵀ and Rᵀ R = |r|² x xᵀ.

Source: own (the discrete law); its limit of small steps is ziyin2023law (one hidden unit) and ziyin2024implicit.
"""

from __future__ import annotations

from dataclasses import dataclass

import sympy as sp

from noetherflow.symbolic.noise import BATCH, Count, sampling_factor

ETA, DECAY = sp.symbols("eta lambda", real=True)


@dataclass(frozen=True)
class ProductBalance:
    """The exact law of one product of weights, in SymPy's matrix expressions.

    Attributes
    ----------
    outer, inner : sympy.MatrixSymbol
        U (outputs × hidden) and W (hidden × inputs).
    gradient : sympy.MatrixSymbol
        R, of the loss of a mini-batch by U W.
    step : sympy.MatrixExpr
        Q' of one mini-batch.
    expected : sympy.MatrixExpr
        E[Q'] in the mean R̄ and the covariances C_out, C_in of per-sample gradients.
    """

    outer: sp.MatrixSymbol
    inner: sp.MatrixSymbol
    gradient: sp.MatrixSymbol
    step: sp.MatrixExpr
    expected: sp.MatrixExpr

    @property
    def charge(self) -> sp.MatrixExpr:
        """Q = ½(W Wᵀ - Uᵀ U)."""
        return imbalance(self.outer, self.inner)

    @property
    def equilibrium(self) -> sp.Eq:
        """Where mini-batches move Q no more on average, without decay: noise balance, with second moments M_out, M_in of R."""
        u, w = self.outer, self.inner
        return sp.Eq(u.T * _moment("M_out", u.shape[0]) * u, w * _moment("M_in", w.shape[1]) * w.T, evaluate=False)


def product_balance(
    outputs: Count, hidden: Count, inputs: Count, *, batch: Count = BATCH, population: Count | None = None
) -> ProductBalance:
    """Derive the noise balance of a product.

    Parameters
    ----------
    outputs, hidden, inputs : int or expression
        Sizes.
    batch, population
        As for `noetherflow.symbolic.noise.sampling_factor`.

    Returns
    -------
    ProductBalance
        Exact.

    Examples
    --------
    >>> law = product_balance(1, 1, 1)
    >>> u, w, r = (sp.Matrix(m)[0] for m in (law.outer, law.inner, law.gradient))
    >>> sp.factor(sp.Matrix(law.step.subs(DECAY, 0))[0] / sp.Matrix(law.charge)[0])  # C' = C (1 - η² r²)
    -(eta*R[0, 0] - 1)*(eta*R[0, 0] + 1)
    """
    u, w, r = sp.MatrixSymbol("U", outputs, hidden), sp.MatrixSymbol("W", hidden, inputs), sp.MatrixSymbol("R", outputs, inputs)
    # f changes by Tr[Rᵀ d(UW)] and no more
    first_order = sp.Trace(r.T * u * w)
    moved = [(1 - ETA * DECAY) * p - ETA * first_order.diff(p) for p in (u, w)]
    exact = imbalance(*moved)
    second = _quadratic(u, w, r * r.T, r.T * r)
    remainder = (exact - second).expand().doit()
    assert remainder == sp.ZeroMatrix(hidden, hidden), remainder
    mean, factor = sp.MatrixSymbol("Rbar", outputs, inputs), sampling_factor(batch, population)
    moments = mean * mean.T + factor * _moment("C_out", outputs), mean.T * mean + factor * _moment("C_in", inputs)
    return ProductBalance(u, w, r, second, _quadratic(u, w, *moments))


def imbalance(outer: sp.MatrixExpr, inner: sp.MatrixExpr) -> sp.MatrixExpr:
    """½(W Wᵀ - Uᵀ U)."""
    return (inner * inner.T - outer.T * outer) / 2


def _quadratic(u: sp.MatrixExpr, w: sp.MatrixExpr, out: sp.MatrixExpr, into: sp.MatrixExpr) -> sp.MatrixExpr:
    return (1 - ETA * DECAY) ** 2 * imbalance(u, w) + ETA**2 / 2 * (u.T * out * u - w * into * w.T)


def _moment(name: str, size: Count) -> sp.MatrixSymbol:
    return sp.MatrixSymbol(name, size, size)
