# sources: ziyin2022exact, own

# %% [markdown]
# # Weight decay kills a network continuously, at a jump, or not at all: by its depth
#
# **Claim** (`ziyin2022exact`). Let a linear network of $D$ hidden layers be trained with weight decay $\gamma$. As $\gamma$ grows, its
# function goes to zero without a transition for $D = 0$, in a second-order transition at $\gamma_c = b$ for $D = 1$, and in a
# first-order transition for $D\ge2$, at
#
# $$ \gamma_c = \frac bD\Big(\frac{b(D-1)}{aD}\Big)^{\frac{D-1}{D+1}},\qquad s^* = \frac{b(D-1)}{aD}, $$
#
# with $a = \mathbb E[x^2]$, $b = |\mathbb E[xy]|$ and $s^*$ the size of the jump.
#
# **What is shown here** (own). All of this is derived for a symbolic depth from the balance of the layers. And what a *training run*
# shows is not $\gamma_c$, where the two minima are equally deep, but the end of the minimum that it sits in: a run that follows a
# growing decay falls at
#
# $$ \gamma_{sp} = \frac{b(D+1)}{2D}\Big(\frac{b(D-1)}{2aD}\Big)^{\frac{D-1}{D+1}} = \gamma_c\,\frac{D+1}2\,2^{-\frac{D-1}{D+1}},\qquad
# s_{sp} = \tfrac12s^*, $$
#
# and one that starts near enough to zero stays there at any $\gamma > 0$.
#
# **Assumptions.** Whitened inputs (or one input); square loss; equal decay on all layers.

# %%
import os
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import accumulate, pairwise
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
import sympy as sp
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from torch import Tensor

from noetherflow.numeric.order import Order, fit_order
from noetherflow.numeric.palette import ACCENTS, BAD, GOOD, INK, MUTED, STYLE
from noetherflow.symbolic.phase_transitions import (
    CURVATURE,
    DECAY,
    DEPTH,
    GAIN,
    SIGNAL,
    balanced_decay,
    potential,
    stationary_decay,
    transition,
)

torch.set_num_threads(1)
torch.set_flush_denormal(True)  # products of dead layers underflow
a, b, gamma, s, D = CURVATURE, GAIN, DECAY, SIGNAL, DEPTH

# %% [markdown]
# ## 1. From balance to one variable
#
# With decay the charges $w_i^2 - w_{i+1}^2$ decay, so the layers of a trained chain are balanced; and at a given product $s = \prod w_i$
# the sum $\sum w_i^2$ is least there: stationarity with a multiplier $\nu$ says $2w_i^2 = \nu s$ for every $i$. Hence
#
# $$ F(s) = as^2 - 2bs + \gamma(D+1)\,s^{2/(D+1)}. $$

# %%
w = sp.symbols("w_0:4", positive=True)
nu = sp.Symbol("nu", positive=True)
for layers in (2, 3, 4):
    chain = w[:layers]
    lagrangian = sum(x**2 for x in chain) - nu * (sp.prod(chain) - s)
    for x in chain:
        assert sp.expand(x * sp.diff(lagrangian, x) - (2 * x**2 - nu * sp.prod(chain))) == 0
    balanced = s ** sp.Rational(1, layers)
    assert sp.simplify(layers * balanced**2 - balanced_decay(layers - 1)) == 0
    uneven = sp.prod([2, sp.Rational(1, 2)]) * balanced**2 + (layers - 2) * balanced**2  # same product, w_0 doubled and w_1 halved
    assert sp.simplify((4 + sp.Rational(1, 4) - 2) * balanced**2) != 0, "another split costs more"

# %% [markdown]
# ## 2. The order of the transition
#
# Near zero the decay goes as $s^{2/(D+1)}$ against a gain of $-2bs$: higher power, equal, lower.

# %%
none, continuous = transition(0), transition(1)
assert (none.order, none.critical) == (None, None)
(alone,) = sp.solve(sp.diff(potential(0), s), s)
assert sp.simplify(alone - b / (a + gamma)) == 0, "smooth in γ"
assert (continuous.order, continuous.critical, continuous.jump) == (2, b, 0)
(single,) = sp.solve(sp.diff(potential(1), s), s)
assert sp.simplify(single - (b - gamma) / a) == 0, "a kink at γ = b"

deep = transition(D)
published_critical = b / D * (b * (D - 1) / (a * D)) ** ((D - 1) / (D + 1))
published_jump = b * (D - 1) / (a * D)
assert deep.order == 1
assert sp.simplify(deep.jump - published_jump) == 0
for depth in (2, 3, 4, 7):
    exact = transition(depth)
    for value, symbolic in ((exact.critical, published_critical), (exact.critical, deep.critical), (exact.jump, published_jump)):
        assert sp.simplify(value - symbolic.subs(D, depth)) == 0
    level = potential(depth).subs({gamma: exact.critical, s: exact.jump})
    slope = sp.diff(potential(depth), s).subs({gamma: exact.critical, s: exact.jump})
    assert (sp.simplify(level), sp.simplify(slope)) == (0, 0), "as deep as s = 0, and stationary"

# %% [markdown]
# ## 3. Where a run falls
#
# The stationary points with $s > 0$ lie at $\gamma = (b-as)\,s^{(D-1)/(D+1)}$, which has its maximum at half the jump. There the minimum
# meets the barrier and both end; near it $s - s_{sp}$ goes as $\sqrt{\gamma_{sp}-\gamma}$.

# %%
assert sp.simplify(stationary_decay(D) - (b - a * s) * s ** ((D - 1) / (D + 1))) == 0
assert sp.simplify(deep.last - deep.jump / 2) == 0
for depth in (2, 3, 4, 7):
    exact = transition(depth)
    ratio = sp.Rational(depth + 1, 2) * 2 ** (-sp.Rational(depth - 1, depth + 1))
    assert sp.simplify(exact.spinodal / exact.critical - ratio) == 0
    assert ratio > 1
    curve = stationary_decay(depth)
    assert sp.simplify(sp.diff(curve, s).subs(s, exact.last)) == 0
    assert sp.simplify(sp.diff(curve, s, 2).subs({s: exact.last, a: 1, b: 1})) < 0

# %% [markdown]
# ## 4. Networks
#
# Four whitened inputs, hidden layers of three units, targets $y = \beta^*\!\cdot x$ plus noise, $|\beta^*| = b$; full gradients with
# momentum, the decay as a gradient of $\gamma\sum\|W\|^2$ beside the mean square error. All decays of a scan are trained side by side,
# once from a large start and once from a small one.

# %%
INPUTS, HIDDEN, SAMPLES, GAIN_VALUE = 4, 3, 64, 0.8
LARGE, SMALL, STEPS = 1.3, 0.05, 450
drawn = torch.Generator().manual_seed(0)
raw = torch.randn(SAMPLES, INPUTS, generator=drawn, dtype=torch.float64)
X = torch.linalg.qr(raw).Q * SAMPLES**0.5
direction = torch.randn(INPUTS, 1, generator=drawn, dtype=torch.float64)
noise = torch.randn(SAMPLES, 1, generator=drawn, dtype=torch.float64)
noise = 0.3 * (noise - X @ (X.T @ noise) / SAMPLES)
Y = X @ (GAIN_VALUE * direction / direction.norm()) + noise
at = {a: 1, b: sp.Rational(str(GAIN_VALUE))}
assert torch.allclose(X.T @ X / SAMPLES, torch.eye(INPUTS, dtype=torch.float64), atol=1e-12)
assert abs(float((X.T @ Y / SAMPLES).norm()) - GAIN_VALUE) < 1e-12


class Trained(NamedTuple):
    """For each decay of a scan: s = |function|, F (the loss above that of s = 0), and the largest imbalance of neighbouring layers."""

    decays: np.ndarray
    signal: np.ndarray
    level: np.ndarray
    imbalance: np.ndarray


def products(weights: Sequence[Tensor]) -> list[Tensor]:
    """W_0, W_1 W_0, ..., the last of them the network's function."""
    return list(accumulate(weights, lambda made, x: x @ made))


def train(depth: int, decays: Sequence[float], size: float, steps: int) -> Trained:
    """Large starts learn without decay first, which then grows to its value in 100 steps; small ones have it from the start."""
    start = torch.Generator().manual_seed(depth)
    widths = [INPUTS, *[HIDDEN] * depth, 1]
    weights = [torch.randn(o, i, generator=start, dtype=torch.float64) for i, o in pairwise(widths)]
    weights = [(size * x / x.norm()).expand(len(decays), -1, -1).clone() for x in weights]
    buffers = [torch.zeros_like(x) for x in weights]
    scale = torch.tensor(decays, dtype=torch.float64)[:, None, None]
    covariance = Y.T @ X / SAMPLES
    for n in range(steps):
        grown = min(max((n - 50) / 100, 0), 1) if size == LARGE else 1.0
        below = products(weights)
        above = 2 * (below[-1] - covariance)  # gradient of E(y - βx)² by β, for whitened x
        for layer in reversed(range(depth + 1)):
            x, own = weights[layer], above @ below[layer - 1].mT if layer else above
            above = x.mT @ above
            x.sub_(buffers[layer].mul_(0.9).add_(own + 2 * grown * scale * x), alpha=0.04)
    beta, norms = products(weights)[-1].squeeze(1), torch.stack([x.square().sum((1, 2)) for x in weights])
    error = (Y.T - beta @ X.T).square().mean(1) - Y.square().mean()
    level = error + scale.flatten() * norms.sum(0)
    return Trained(np.array(decays), beta.norm(dim=1).numpy(), level.numpy(), (norms - norms.mean(0)).abs().amax(0).numpy())


@lru_cache
def number(expression: sp.Expr) -> float:
    return float(expression.subs(at))


expected = {depth: transition(depth) for depth in range(4)}
scans: dict[int, tuple[Trained, Trained]] = {}
for depth in range(4):
    middle = number(expected[depth].critical) if depth else GAIN_VALUE
    decays = [middle * f for f in (0.2, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 1.02, 1.05, 1.1, 1.15, 1.25, 1.35, 1.5)]
    scans[depth] = (train(depth, decays, LARGE, STEPS), train(depth, decays, SMALL, STEPS))

# %% [markdown]
# **Layers are balanced**, as their charges decayed, and where $s > 0$ it lies on the derived curve.


# %%
@lru_cache
def decay_along(depth: int) -> Callable[[float], float]:
    """γ(s) of the stationary points."""
    return sp.lambdify(s, stationary_decay(depth).subs(at))


def branch(depth: int, decay: float) -> float:
    """The larger stationary s at a decay, zero where there is none."""
    if depth == 0:
        return GAIN_VALUE / (1 + decay)
    curve = decay_along(depth)
    low, high = number(expected[depth].last), GAIN_VALUE
    if depth and decay >= number(expected[depth].spinodal):
        return 0.0
    for _ in range(60):  # γ(s) falls from the spinodal to s = b/a
        mid = (low + high) / 2
        low, high = (mid, high) if curve(mid) > decay else (low, mid)
    return low


worst, unbalanced = 0.0, 0.0
for depth, (large, _) in scans.items():
    told = np.array([branch(depth, float(g)) for g in large.decays])
    far = np.abs(large.decays / (number(expected[depth].spinodal) if depth else np.inf) - 1) > 0.03  # slow close to an end
    worst = max(worst, float(np.abs(large.signal - told)[far].max()))
    unbalanced = max(unbalanced, float(large.imbalance[far].max()))
assert worst < 1e-3, worst
assert unbalanced < 1e-3, unbalanced

# %% [markdown]
# **Transitions.** $\gamma_c$ where the trained $F$ crosses zero, $s^*$ there; where the run that follows the large start falls; and what
# the small start does.


# %%
def crossing(x: np.ndarray, y: np.ndarray) -> float:
    """Where a rising y passes zero, by interpolation between the neighbours."""
    k = int(np.flatnonzero((y[:-1] < 0) & (y[1:] >= 0))[0])
    return float(x[k] - y[k] * (x[k + 1] - x[k]) / (y[k + 1] - y[k]))


measured: dict[int, dict[str, float]] = {}
for depth in (2, 3):
    critical, spinodal = number(expected[depth].critical), number(expected[depth].spinodal)
    fine = train(depth, [critical * f for f in (0.97, 0.99, 1.01, 1.03)], LARGE, STEPS)
    where = crossing(fine.decays, fine.level)
    edge = train(depth, [spinodal * f for f in (0.97, 0.99, 1.01, 1.03)], LARGE, 2 * STEPS)
    alive = edge.signal > 0.5 * number(expected[depth].last)
    small = scans[depth][1]
    measured[depth] = {
        "γ_c": where / critical,
        "s*": float(np.interp(where, fine.decays, fine.signal)) / number(expected[depth].jump),
        "falls between": float(alive.tolist() == [True, True, False, False]),
        "small start": float(small.signal.max()),
    }
second = scans[1][0]
linear = np.polyfit(second.decays[:5], second.signal[:5], 1)
measured[1] = {"γ_c": float(-linear[1] / linear[0]) / number(expected[1].critical), "slope": float(linear[0])}
assert all(abs(measured[depth][key] - 1) < 2e-3 for depth in (2, 3) for key in ("γ_c", "s*")), measured
assert all(measured[depth]["falls between"] == 1.0 for depth in (2, 3)), measured
assert all(measured[depth]["small start"] < 1e-6 for depth in (2, 3)), measured
assert abs(measured[1]["γ_c"] - 1) < 1e-3, measured
assert abs(measured[1]["slope"] + 1) < 1e-3, measured
assert scans[0][0].signal.min() > 0.3, "D = 0: no transition"
measured

# %% [markdown]
# A wrong depth is rejected: the formula for $D = 2$ misplaces the transition of three hidden layers, and the order parameter of $D = 1$
# vanishes with slope one, that of $D\ge2$ with the root of the distance from $\gamma_{sp}$.

# %%
misplaced = number(expected[2].critical) / number(expected[3].critical)
assert abs(misplaced - 1) > 0.1
distances = [0.2, 0.14, 0.1, 0.07, 0.05]
roots: dict[int, Order] = {}
for depth in (2, 3):
    spinodal, last = number(expected[depth].spinodal), number(expected[depth].last)
    near = train(depth, [spinodal * (1 - x**2) for x in distances], LARGE, 3 * STEPS)
    roots[depth] = fit_order([x**2 for x in distances], list(near.signal - last))
lines = train(1, [number(expected[1].critical) * (1 - x) for x in distances], LARGE, STEPS)
linear_order = fit_order(distances, list(lines.signal))
assert all(abs(order.slope - 0.5) < 0.05 for order in roots.values()), roots
assert abs(linear_order.slope - 1) < 0.02, linear_order
{depth: str(order) for depth, order in roots.items()}, str(linear_order)

# %% [markdown]
# ## 5. The figure

# %%


def draw_landscapes(axes: Axes) -> None:
    line = np.linspace(0, 0.9, 300)
    for depth, colour in zip((1, 2, 3), ACCENTS, strict=False):
        height = sp.lambdify((s, gamma), potential(depth).subs(at))
        critical = number(expected[depth].critical)
        axes.plot(line, height(line, critical), color=colour, linewidth=1.3, label=f"D = {depth}")
        if depth > 1:
            axes.plot(number(expected[depth].jump), 0, "o", color=colour, markersize=4)
    axes.axhline(0, color=MUTED, linewidth=0.7)
    axes.set(title="F(s) at γ_c", xlabel="s", ylabel="F", ylim=(-0.03, 0.25))
    axes.legend()


def draw_order_parameters(axes: Axes) -> None:
    for depth, colour in zip(range(4), (MUTED, *ACCENTS), strict=False):
        large, small = scans[depth]
        line = np.linspace(large.decays[0], large.decays[-1], 300)
        axes.plot(line, [branch(depth, float(g)) for g in line], color=colour, linewidth=1.1, label=f"D = {depth}")
        axes.plot(large.decays, large.signal, "o", color=colour, markersize=4)
        if depth > 1:
            axes.plot(small.decays, small.signal, "x", color=colour, markersize=4)
            axes.axvline(number(expected[depth].critical), color=colour, linewidth=0.8, linestyle=":")
    axes.set(title="Trained networks: large start (o), small (x)", xlabel="weight decay γ", ylabel="s")
    axes.legend(title="γ_c dotted", title_fontsize=8)


def draw_phases(axes: Axes) -> None:
    depths = np.arange(2, 13)
    lower, upper = ([number(x.subs(D, int(depth))) for depth in depths] for x in (deep.critical, deep.spinodal))
    axes.fill_between(depths, 0, lower, color=GOOD, alpha=0.12, linewidth=0)
    axes.fill_between(depths, lower, upper, color=BAD, alpha=0.2, linewidth=0)
    axes.plot(depths, lower, "o-", color=INK, markersize=3.5, linewidth=1, label="γ_c: minima equally deep")
    axes.plot(depths, upper, "s--", color=BAD, markersize=3.5, linewidth=1, label="γ_sp: runs fall here")
    axes.plot([1], [GAIN_VALUE], "D", color=ACCENTS[0], markersize=5, label="D = 1: continuous")
    axes.text(5.5, 0.06, "alive", color=GOOD)
    axes.set(title="Where deep chains die", xlabel="hidden layers D", ylabel="weight decay γ", ylim=(0, None))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.legend()


with matplotlib.rc_context(STYLE):
    figure = Figure(figsize=(11.5, 3.5), layout="constrained")
    for draw, axes in zip((draw_landscapes, draw_order_parameters, draw_phases), figure.subplots(1, 3), strict=True):
        draw(axes)
    if folder := os.environ.get("NOETHERFLOW_FIGURES"):
        figure.savefig(Path(folder, "phase_transitions.png"), dpi=150)
figure

# %% [markdown]
# ## Verdict

# %%
claims = {
    "γ_c and the jump are the published ones, for a symbolic depth": sp.simplify(deep.jump - published_jump) == 0,
    "trained networks lie on the derived curves": worst < 1e-3 and unbalanced < 1e-3,
    "minima are equally deep at γ_c": all(abs(measured[depth][key] - 1) < 2e-3 for depth in (2, 3) for key in ("γ_c", "s*")),
    "runs fall at γ_sp, not there": all(measured[depth]["falls between"] == 1.0 for depth in (2, 3)),
    "D = 1 is continuous, D = 0 nothing": abs(linear_order.slope - 1) < 0.02 and scans[0][0].signal.min() > 0.3,
    "small starts of deep chains stay at zero": all(measured[depth]["small start"] < 1e-6 for depth in (2, 3)),
}
failed = [claim for claim, holds in claims.items() if not holds]
if failed:
    raise AssertionError(f"Phase transitions fail: {'; '.join(failed)}. {measured} {roots} {linear_order} {worst} {unbalanced}")
