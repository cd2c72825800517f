# sources: marcotte2024keep, own, xiao2017fashion

# %% [markdown]
# # Mirror flows: their charges, and what steps of finite size do to them
#
# **Claim** (`marcotte2024keep`). A change of metric changes the charges. In non-negative matrix factorization $UV^\top$ under the mirror
# flow $\dot\theta = -\theta\odot\nabla f$ the conserved functions are the $r$ differences $\mathbf 1^\top u_k - \mathbf 1^\top v_k$; in
# an input-convex network (mirror flow on $U\ge0$, gradient flow on the rest) they are $\mathbf 1^\top u_k - \frac12(|v_k|^2+b_k^2)$.
#
# **What is shown here** (own). With a potential $\varphi$ on each parameter the charge of a scaling $\xi_e = c_e\theta_e$ is
# $Q = \sum_ec_e(\theta_e\varphi'(\theta_e) - \varphi(\theta_e))$, and a step of mirror descent changes it by Bregman divergences,
# exactly:
#
# $$ Q' - Q = \sum_ec_e\,D_\varphi(\theta_e, \theta'_e). $$
#
# So exponentiated gradients (mirror descent with entropy) *drift*, by a known amount of first order in $\eta$ at a fixed time, while the
# plain multiplicative step $\theta' = \theta\odot(1-\eta g)$ of the same flow conserves the charges to the last digit; and entropy is
# the only potential for which a plain step does.
#
# **Assumptions.** An exact scaling symmetry, and parameters that stay in the potential's domain.

# %%
import os
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import matplotlib
import sympy as sp
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from torch import Tensor, nn

import noetherflow as nf
from noetherflow.numeric.order import Order, fit_order
from noetherflow.numeric.palette import ACCENTS, BAD, GOOD, INK, MUTED, STYLE
from noetherflow.symbolic.metrics import ARGUMENT, ENTROPY, Euclidean, Mirror
from noetherflow.symbolic.mirror_steps import (
    AFTER,
    RATE,
    SLOPE,
    change,
    divergence,
    euler_step,
    exact_potentials,
    mirror_step,
    scale_density,
)
from noetherflow.symbolic.survival import Charge, survives

torch.set_num_threads(1)  # rounding then depends on no scheduler
x, y = ARGUMENT, AFTER

# %% [markdown]
# ## 1. The charges, from the networks and their metrics
#
# `noetherflow` reads the two networks, finds their symmetries, and asks of each whether it keeps a charge under the metric. For $UV^\top$
# the family is all of $GL(r)$; under the gradient flow its symmetric generators have charges, under the mirror flow the diagonal ones
# only.


# %%
class ConvexInInputs(nn.Module):
    """relu(V x + b), then U ≥ 0."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(3, 4), nn.Linear(4, 2, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.outer(torch.relu(self.inner(inputs)))


RANK = 3
product = nn.Sequential(nn.Linear(5, RANK, bias=False), nn.Linear(RANK, 4, bias=False))  # Vᵀ, then U
(linear,) = nf.symmetries(nf.trace(product, torch.zeros(2, 5)))
(rescale,) = nf.symmetries(nf.trace(ConvexInInputs(), torch.zeros(2, 3)))
entropy = Mirror(ENTROPY, name="entropy")
mixed = Mirror(ENTROPY, {"inner.weight": x**2 / 2, "inner.bias": x**2 / 2}, name="entropy on U")
kept = {
    name: survives(s, metric)
    for name, s, metric in (("gradient flow", linear, Euclidean()), ("factorization", linear, entropy), ("convex network", rescale, mixed))
}
assert all(isinstance(charge, Charge) for charge in kept.values())
assert (kept["gradient flow"].generators, kept["gradient flow"].count) == ("symmetric", RANK * (RANK + 1) // 2)
assert (kept["factorization"].generators, kept["factorization"].count) == ("diagonal", RANK)
i, j = sp.symbols("i j", integer=True)
inner, outer, bias = (sp.IndexedBase(name) for name in ("inner.weight", "outer.weight", "inner.bias"))
told = kept["convex network"].expression
claimed = sp.Sum(inner[i, j] ** 2 / 2, (j, 0, 2)) + bias[i] ** 2 / 2 - sp.Sum(outer[j, i], (j, 0, 1))
assert sp.simplify(sp.expand((told - claimed).doit())) == 0, "(|v|² + b²)/2 - Σ u, the sign by producers minus consumers"
{name: str(charge) for name, charge in kept.items()}

# %% [markdown]
# ## 2. The exact discrete law
#
# Mirror descent moves $\varphi'(\theta') = \varphi'(\theta) - \eta g$. For *any* potential, after invariance has taken
# $\sum_ec_e\theta_eg_e = 0$, an entry's part of $Q'-Q$ is $q(\theta') - q(\theta) + \theta(\varphi'(\theta) - \varphi'(\theta'))$ with
# $q = \theta\varphi'-\varphi$: the Bregman divergence from $\theta'$ to $\theta$.

# %%
phi = sp.Function("phi")
q = sp.Lambda(x, scale_density(phi(x)))
slope = sp.Lambda(x, phi(x).diff(x))
assert sp.simplify(q(x).diff(x) - x * phi(x).diff(x, 2)) == 0
eta_g = slope(x) - slope(y)  # the step
assert sp.expand(q(y).doit() - q(x) + x * eta_g.doit() - divergence(phi(x), x, y).doit()) == 0

POTENTIALS = {"Euclidean": x**2 / 2, "entropy": ENTROPY, "Burg": -sp.log(x)}
for potential in POTENTIALS.values():
    step = mirror_step(potential)
    assert sp.simplify(change(potential, step) - divergence(potential, x, step)) == 0
assert mirror_step(ENTROPY) == x * sp.exp(-RATE * SLOPE), "exponentiated gradients"
assert sp.simplify(change(ENTROPY, mirror_step(ENTROPY)) - x * (sp.exp(-RATE * SLOPE) - 1 + RATE * SLOPE)) == 0
assert change(x**2 / 2, mirror_step(x**2 / 2)) == RATE**2 * SLOPE**2 / 2, "gradient descent: ½η² Σ c g²"

# %% [markdown]
# A divergence is positive, so what has $c = +1$ pushes the charge up and what has $c = -1$ pushes it down, as with gradient descent. A
# *shift* $\xi_e = c_e$ has the charge $\sum c_e\varphi'(\theta_e)$, which mirror descent does not change at all.
#
# ## 3. The plain step
#
# $\theta' = \theta - \eta g/\varphi''$ is the Euler step of the same flow. The second order of an entry's part is
# $\frac12\eta^2g^2(\theta\varphi'')'/\varphi''^2$. It vanishes for $\varphi'' = c/\theta$ alone, and then all orders do.

# %%
second = sp.diff(phi(x), x, 2)
density_slope = x * second
euler = -RATE * SLOPE / second
expanded = density_slope * euler + sp.diff(density_slope, x) * euler**2 / 2 + RATE * x * SLOPE
assert sp.simplify(expanded - RATE**2 * SLOPE**2 * sp.diff(x * second, x) / second**2 / 2) == 0
assert exact_potentials() == sp.Symbol("C1") / x
assert sp.expand(euler_step(ENTROPY) - x * (1 - RATE * SLOPE)) == 0
assert change(ENTROPY, euler_step(ENTROPY)) == 0
assert all(change(p, euler_step(p)) != 0 for name, p in POTENTIALS.items() if name != "entropy")

# %% [markdown]
# ## 4. Real runs: images factorized
#
# 60 images of Fashion-MNIST (`xiao2017fashion`, those that are shipped), averaged to 7 × 7, as $UV^\top$ with $r = 4$, by full
# gradients. Every step of every potential is predicted by its divergences to rounding: sums of $n$ terms of about the charge's size,
# each step. A law with $D_\varphi(\theta', \theta)$, the divergence the other way round, is rejected, and so is the Euclidean charge
# under entropy.

# %%
(pair,) = nf.data.fashion_mnist_subset().batches(60, seed=0, steps=1, dtype=torch.float64)
DATA = nn.functional.avg_pool2d(pair[0] - pair[0].amin(), 4).flatten(1)
DATA = DATA / DATA.mean()
RATIO = 4


def gradients(u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Of ½|X - U Vᵀ|² / 60."""
    residual = (u @ v.T - DATA) / len(DATA)
    return residual @ v, residual.T @ u


def factors(seed: int = 0) -> tuple[Tensor, Tensor]:
    drawn = torch.Generator().manual_seed(seed)
    return tuple(0.3 + 0.6 * torch.rand(n, RATIO, generator=drawn, dtype=torch.float64) for n in DATA.shape)


compiled = lru_cache(sp.lambdify)


class Rule(NamedTuple):
    """A potential with one of its steps."""

    name: str
    potential: sp.Expr
    step: sp.Expr

    def moved(self, theta: Tensor, gradient: Tensor, rate: float) -> Tensor:
        return compiled((x, SLOPE, RATE), self.step, "torch")(theta, gradient, rate)

    def charge(self, u: Tensor, v: Tensor) -> Tensor:
        density = compiled(x, scale_density(self.potential), "torch")
        return density(u).sum(0) - density(v).sum(0)

    def predicted(self, before: tuple[Tensor, Tensor], after: tuple[Tensor, Tensor], turned: bool = False) -> Tensor:
        bregman = compiled((x, y), divergence(self.potential), "torch")
        u, v = (bregman(b, a) if turned else bregman(a, b) for a, b in zip(before, after, strict=True))
        return u.sum(0) - v.sum(0)


MIRRORS = [Rule(name, potential, mirror_step(potential)) for name, potential in POTENTIALS.items()]
EULER = Rule("multiplicative", ENTROPY, euler_step(ENTROPY))
EXPONENTIATED = MIRRORS[1]


def trained(rule: Rule, rate: float, steps: int) -> list[tuple[Tensor, Tensor]]:
    points = [factors()]
    for _ in range(steps):
        u, v = points[-1]
        points.append(tuple(rule.moved(w, g, rate) for w, g in zip((u, v), gradients(u, v), strict=True)))
    return points


exactness, turned, motion = {}, {}, {}
for rule in MIRRORS:
    points = trained(rule, 0.01, 150)
    charges = torch.stack([rule.charge(*p) for p in points])
    sizes = sum(compiled(x, scale_density(rule.potential), "torch")(w).abs().sum() for w in points[0])
    for store, flag in ((exactness, False), (turned, True)):
        told = torch.stack([rule.predicted(a, b, flag) for a, b in pairwise(points)])
        store[rule.name] = float((charges[1:] - charges[:-1] - told).abs().max() / (2.0**-53 * sizes))
    motion[rule.name] = float((charges[-1] - charges[0]).abs().max() / (2.0**-53 * sizes))
# in units of one rounding of the whole sum: each of its terms and factors rounds a few times
assert max(exactness.values()) < 16, exactness
assert min(turned[name] for name in ("entropy", "Burg")) > 1e6, turned
assert min(motion.values()) > 1e9, motion
exactness, turned

# %% [markdown]
# ### Drift, and its order
#
# At a fixed time the drift of the entropy's charge falls as $\eta$ under exponentiated gradients; under the multiplicative step it is
# rounding at every step size. The squared norms that gradient flow conserves move by $O(1)$ under either.

# %%
TIME = 1.5
RATES = [0.04 / 2**k for k in range(4)]


def drift(rule: Rule, of: Rule, rate: float) -> float:
    points = trained(rule, rate, round(TIME / rate))
    return float((of.charge(*points[-1]) - of.charge(*points[0])).abs().max())


drifts = {
    "exponentiated gradients": [drift(EXPONENTIATED, EXPONENTIATED, rate) for rate in RATES],
    "multiplicative step": [drift(EULER, EXPONENTIATED, rate) for rate in RATES],
    "gradient descent, ½|u|² − ½|v|²": [drift(MIRRORS[0], MIRRORS[0], rate) for rate in RATES],
    "exponentiated gradients, ½|u|² − ½|v|²": [drift(EXPONENTIATED, MIRRORS[0], rate) for rate in RATES],
}
orders: dict[str, Order] = {name: fit_order(RATES, drifts[name]) for name in ("exponentiated gradients", "gradient descent, ½|u|² − ½|v|²")}
other = drifts["exponentiated gradients, ½|u|² − ½|v|²"]
still = max(drifts["multiplicative step"]) / float(factors()[0].sum())
assert all(abs(order.slope - 1) < 0.1 for order in orders.values()), orders
assert still < 2.0**-53 * (TIME / RATES[-1]) ** 0.5 * 16, still
assert other[-1] > 0.9 * other[0], "it does not vanish with η"
assert other[-1] > 100 * drifts["exponentiated gradients"][-1]
{name: str(order) for name, order in orders.items()}, still

# %% [markdown]
# ### The input-convex network
#
# Mirror descent on $U$ and gradient descent on $V, b$, in one law: $Q' - Q = \frac12\eta^2(|g_v|^2+g_b^2) - \sum D_\varphi(u, u')$ for
# every unit. The published combination without the bias, or with $|v|^2$ for $\frac12|v|^2$, drifts by far more.


# %%
def convex_run(rate: float, steps: int) -> tuple[Tensor, Tensor, Tensor]:
    """Charges (steps + 1, units), their predicted changes, and the charge without the bias."""
    drawn = torch.Generator().manual_seed(1)
    v, b, u = (0.5 * torch.randn(*s, generator=drawn, dtype=torch.float64) for s in ((8, 49), (8,), (10, 8)))
    v, u = v / 4, u.abs() + 0.1
    charges, changes, biasless = [], [], []
    for _ in range(steps + 1):
        charges.append((v.square().sum(1) + b.square()) / 2 - u.sum(0))
        biasless.append(v.square().sum(1) / 2 - u.sum(0))
        w = [t.clone().requires_grad_() for t in (v, b, u)]
        loss = nn.functional.cross_entropy(torch.relu(DATA @ w[0].T + w[1]) @ w[2].T, pair[1])
        g_v, g_b, g_u = torch.autograd.grad(loss, w)
        new = EXPONENTIATED.moved(u, g_u, rate)
        bregman = compiled((x, y), divergence(ENTROPY), "torch")(u, new).sum(0)
        changes.append(rate**2 * (g_v.square().sum(1) + g_b.square()) / 2 - bregman)
        v, b, u = v - rate * g_v, b - rate * g_b, new
    return torch.stack(charges), torch.stack(changes)[:-1], torch.stack(biasless)


charges, changes, biasless = convex_run(0.05, 150)
mixed_error = float((charges[1:] - charges[:-1] - changes).abs().max() / (2.0**-53 * charges.abs().max()))
without_bias = float((biasless[1:] - biasless[:-1] - changes).abs().max() / (2.0**-53 * charges.abs().max()))
assert mixed_error < 16 * 8, mixed_error
assert without_bias > 1e6, without_bias
mixed_error, without_bias

# %% [markdown]
# ## 5. The figure

# %%
HISTORY = {rule.name: torch.stack([rule.charge(*p) for p in trained(rule, 0.02, 150)]) for rule in (EXPONENTIATED, EULER)}


def draw_charges(axes: Axes) -> None:
    points = trained(EXPONENTIATED, 0.02, 150)
    told = torch.stack([EXPONENTIATED.predicted(a, b) for a, b in pairwise(points)]).cumsum(0)
    for k, colour in zip(range(RATIO), ACCENTS, strict=False):
        drifted, fixed = (HISTORY[name][:, k] - HISTORY[name][0, k] for name in ("entropy", "multiplicative"))
        axes.plot(drifted, color=colour, linewidth=4, alpha=0.35)
        axes.plot(range(1, 151), told[:, k], color=colour, linewidth=1.2)
        axes.plot(fixed, color=GOOD, linewidth=1.2, linestyle="--")
    axes.plot([], [], color=MUTED, linewidth=4, alpha=0.4, label="exponentiated gradients")
    axes.plot([], [], color=INK, linewidth=1.2, label="Σ of divergences")
    axes.plot([], [], color=GOOD, linestyle="--", label="multiplicative step")
    axes.set(title="Charges 1ᵀuₖ − 1ᵀvₖ", xlabel="step", ylabel="change since the start")
    axes.legend()


def draw_drifts(axes: Axes) -> None:
    for (name, values), colour in zip(drifts.items(), (ACCENTS[0], GOOD, ACCENTS[1], BAD), strict=True):
        label = f"{name}: {orders[name].slope:.2f}" if name in orders else name
        axes.loglog(RATES, [max(value, 1e-16) for value in values], "o-", color=colour, markersize=4, linewidth=1, label=label)
    axes.set(title="Drift at a fixed time", xlabel="step size η", ylabel="largest |Q(T) − Q(0)|", ylim=(1e-16, 1e7))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.legend(loc="upper left", fontsize=7)


def draw_convex(axes: Axes) -> None:
    told = changes.cumsum(0)
    for k, colour in zip(range(5), ACCENTS, strict=False):
        axes.plot(charges[:, k] - charges[0, k], color=colour, linewidth=4, alpha=0.35)
        axes.plot(range(1, len(told) + 1), told[:, k], color=colour, linewidth=1.2)
        axes.plot(biasless[:, k] - biasless[0, k], color=MUTED, linewidth=0.8, linestyle=":")
    axes.plot([], [], color=INK, linewidth=1.2, label="½η²|g|² − Σ divergences")
    axes.plot([], [], color=MUTED, linestyle=":", label="charge without the bias")
    axes.set(title="An input-convex network", xlabel="step", ylabel="change since the start")
    axes.legend()


with matplotlib.rc_context(STYLE):
    figure = Figure(figsize=(11.5, 3.5), layout="constrained")
    for draw, axes in zip((draw_charges, draw_drifts, draw_convex), figure.subplots(1, 3), strict=True):
        draw(axes)
    if folder := os.environ.get("NOETHERFLOW_FIGURES"):
        figure.savefig(Path(folder, "mirror_flow_laws.png"), dpi=150)
figure

# %% [markdown]
# ## Verdict

# %%
claims = {
    "the published charges follow from network and metric": kept["factorization"].count == RANK
    and isinstance(kept["convex network"], Charge),
    "mirror descent changes them by divergences, to rounding": max(exactness.values()) < 16,
    "the divergence the other way round is rejected": min(turned[name] for name in ("entropy", "Burg")) > 1e6,
    "exponentiated gradients drift by the first order": all(abs(order.slope - 1) < 0.1 for order in orders.values()),
    "the multiplicative step does not drift": still < 1e-13,
    "the law mixes metrics": mixed_error < 128 and without_bias > 1e6,
}
failed = [claim for claim, holds in claims.items() if not holds]
if failed:
    raise AssertionError(f"Mirror flow laws fail: {'; '.join(failed)}. {exactness} {turned} {orders} {still} {mixed_error}")
