# sources: saxe2014exact, kunin2024get, arora2018optimization, du2018algorithmic, own, xiao2017fashion

# %% [markdown]
# # Deep linear networks: a conserved imbalance, and the exact solutions that follow from it
#
# **Claim.** Gradient flow conserves $W_lW_l^\top - W_{l+1}^\top W_{l+1}$ (`du2018algorithmic`). A balanced two-layer network learns each
# mode of its data along a logistic curve (`saxe2014exact`), one of $N$ layers by $\dot s = Ns^{2-2/N}(S-s)$ (`arora2018optimization`).
# For $f = a\,w^\top x$ with rates $\eta_a,\eta_w$ the conserved $\delta = \eta_wa^2-\eta_a|w|^2$ closes the motion of $\beta = aw$
# (`kunin2024get`):
#
# $$ \dot\beta = -\Big[\tfrac{\kappa+\delta}2 + \tfrac{\kappa-\delta}2\hat\beta\hat\beta^\top\Big]\nabla_\beta L,\qquad
# \kappa = \sqrt{\delta^2+4\eta_a\eta_w|\beta|^2}. $$
#
# **What is shown here.** All of it from the layers' equations, with a closed form for unbalanced layers. In steps of finite size the
# imbalance moves by a second-order term that is known exactly (own), and the solutions predict real runs with an error of first order in
# the step.
#
# **Assumptions.** Whitened inputs, square loss; for the modes, layers that are aligned with the data at the start.

# %%
import os
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
import sympy as sp
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from torch import Tensor, nn

import noetherflow as nf
from noetherflow.numeric.integrate import integrate
from noetherflow.numeric.order import Order, fit_order
from noetherflow.numeric.palette import ACCENTS, BAD, INK, MUTED, STYLE
from noetherflow.symbolic.balance import derive_balance
from noetherflow.symbolic.deep_linear import (
    FIRST,
    IMBALANCE,
    INNER,
    OUTER,
    SIGNAL,
    SQUARE,
    STRENGTH,
    balanced_motion,
    function_metric,
    layer_norms,
    logistic,
    unbalanced,
    unbalanced_motion,
)
from noetherflow.symbolic.flows import TIME
from noetherflow.symbolic.rules import sgd_form

torch.set_num_threads(1)  # rounding then depends on no scheduler
R = sp.Rational

# %% [markdown]
# ## 1. The imbalance
#
# `noetherflow` finds $GL(r)$ between any two layers, with $r(r+1)/2$ charges. Across two parameter groups with step sizes $\eta_a$,
# $\eta_w$ the conserved combination weights the second by $\eta_a/\eta_w$: up to a factor that is $\delta$.

# %%
chain = nn.Sequential(nn.Linear(5, 3, bias=False), nn.Linear(3, 4, bias=False), nn.Linear(4, 2, bias=False))
laws = nf.derive(nf.trace(chain, torch.zeros(2, 5)))
assert sorted(law.count for law in laws) == [3 * 4 // 2, 4 * 5 // 2]
plain = sgd_form(momentum=False, nesterov=False, maximize=False)
first, second = derive_balance((plain, plain), linear=False, same_momentum=True).weights
eta_0, eta_1 = sp.symbols("eta_0 eta_1", real=True)
assert (first, sp.simplify(second - eta_0 / eta_1)) == (1, 0)

# %% [markdown]
# ## 2. Modes
#
# One mode of strength $S$, loss $\frac12(S-s)^2$, $s = \prod a_i$: $\dot a_i = (S-s)\,s/a_i$.

# %%
a, b = sp.symbols("a b", positive=True)
layers = sp.symbols("a_1:4", positive=True)
product = sp.prod(layers)
velocity = [sp.diff(product, x) * (STRENGTH - product) for x in layers]
assert sp.expand(layers[0] * velocity[0] - layers[1] * velocity[1]) == 0, "a_i² - a_j² is conserved"
moved = sum(sp.diff(product, x) * v for x, v in zip(layers, velocity, strict=True))
assert sp.simplify(moved.subs(dict.fromkeys(layers, SIGNAL ** R(1, 3))) - balanced_motion(3)) == 0

S, s0 = STRENGTH, FIRST
saxe = S * sp.exp(2 * S * TIME) / (sp.exp(2 * S * TIME) - 1 + S / s0)
assert sp.simplify(logistic() - saxe) == 0

# %% [markdown]
# **Two unbalanced layers**, $\delta = a^2-b^2$: $\dot s = \sqrt{\delta^2+4s^2}\,(S-s)$. With $s = \frac\delta2\sinh\varphi$ and $u =
# e^\varphi$, $\dot u = 2Su-\frac\delta2(u^2-1)$ has constant coefficients, and
#
# $$ \frac{u-p}{u-q}\propto e^{-\sqrt{4S^2+\delta^2}\,t},\qquad p, q = \frac{2S\pm\sqrt{4S^2+\delta^2}}\delta. $$

# %%
total = (a**2 + b**2) * (S - a * b)
assert sp.simplify(unbalanced_motion().subs({IMBALANCE: a**2 - b**2, SIGNAL: a * b}) ** 2 - total**2) == 0
u = sp.Symbol("u", positive=True)
from_u = IMBALANCE * (u - 1 / u) / 4
speed = sp.diff(from_u, u) * (2 * S * u - IMBALANCE * (u**2 - 1) / 2)
assert sp.simplify(speed - IMBALANCE * (u + 1 / u) / 2 * (S - from_u)) == 0, "√(δ² + 4s²) = δ cosh φ"
curve = unbalanced()
for delta in (R(3, 2), R(-1, 5)):
    at = {S: 2, s0: R(1, 5), IMBALANCE: delta}
    there = curve.subs(at).subs(TIME, R(1, 3))
    slope = curve.subs(at).diff(TIME).subs(TIME, R(1, 3))
    assert abs(sp.N(slope - unbalanced_motion().subs(at).subs(SIGNAL, there), 30)) < 1e-25
    assert abs(sp.N(curve.subs(at).subs(TIME, 0) - R(1, 5), 30)) < 1e-25

# %% [markdown]
# ## 3. One hidden unit
#
# $\dot a = -\eta_aw^\top\nabla$, $\dot w = -\eta_wa\nabla$ with $\nabla = \nabla_\beta L$.

# %%
eta_a, eta_w = OUTER, INNER
w, grad = sp.Matrix(sp.symbols("w_1:3", real=True)), sp.Matrix(sp.symbols("g_1:3", real=True))
a_dot, w_dot = -eta_a * w.dot(grad), -eta_w * a * grad
assert sp.expand(2 * eta_w * a * a_dot - 2 * eta_a * w.dot(w_dot)) == 0, "δ is conserved"
step = sp.Symbol("h", positive=True)
delta_of = eta_w * (a + step * a_dot) ** 2 - eta_a * (w + step * w_dot).dot(w + step * w_dot)
exact_change = step**2 * eta_a * eta_w * (eta_a * w.dot(grad) ** 2 - eta_w * a**2 * grad.dot(grad))
assert sp.expand(delta_of - (eta_w * a**2 - eta_a * w.dot(w)) - exact_change) == 0, "exact at any step size"

outer_square, inner_square = layer_norms()
kappa = sp.sqrt(IMBALANCE**2 + 4 * eta_a * eta_w * SQUARE)
assert sp.simplify(eta_w * outer_square - (kappa + IMBALANCE) / 2) == 0
assert sp.simplify(eta_a * inner_square - (kappa - IMBALANCE) / 2) == 0
beta = sp.Matrix(sp.symbols("beta_1:3", real=True))
published = (kappa + IMBALANCE) / 2 * sp.eye(2) + (kappa - IMBALANCE) / 2 * beta * beta.T / SQUARE
assert sp.simplify(function_metric(beta) - published.subs(SQUARE, beta.dot(beta))) == sp.zeros(2, 2)
direct = a * w_dot + a_dot * w
assert sp.expand(direct + (eta_w * a**2 * sp.eye(2) + eta_a * w * w.T) * grad) == sp.zeros(2, 1)

# %% [markdown]
# ## 4. Real runs: modes of Fashion-MNIST
#
# 49 averaged pixels, whitened, predict ten classes (`xiao2017fashion`, the images that are shipped). Two and three layers of six hidden
# units start aligned with the singular vectors of $\mathbb E[yx^\top]$, behind rotations of the hidden layers. Gradient descent at four
# step sizes; the error at a fixed time, over all six modes, against the closed form.

# %%
(pair,) = nf.data.fashion_mnist_subset().batches(512, seed=0, steps=1, dtype=torch.float64)
pixels = nn.functional.avg_pool2d(pair[0], 4).flatten(1)
INPUTS = torch.linalg.qr(pixels - pixels.mean(0)).Q * len(pixels) ** 0.5
TARGETS = 4 * (nn.functional.one_hot(pair[1], 10).double() - 0.1)
COVARIANCE = TARGETS.T @ INPUTS / len(INPUTS)
LEFT, STRENGTHS, RIGHT = torch.linalg.svd(COVARIANCE, full_matrices=False)
MODES = 6
drawn = torch.Generator().manual_seed(0)


def rotation() -> Tensor:
    return torch.linalg.qr(torch.randn(MODES, MODES, generator=drawn, dtype=torch.float64)).Q


TURNS = [rotation(), rotation()]


def aligned(sizes: list[float]) -> list[Tensor]:
    """Layers W_1, ..., W_N with all modes of a layer of one size."""
    frames = [RIGHT[:MODES].T, *TURNS[: len(sizes) - 1], LEFT[:, :MODES]]
    return [size * after @ before.T for size, (before, after) in zip(sizes, pairwise(frames), strict=True)]


class Run(NamedTuple):
    """s of every mode at every step, and the imbalances' residual against their exact law, in roundings."""

    signals: Tensor
    residual: float
    drift: float


def descend(sizes: list[float], rate: float, time: float) -> Run:
    weights = aligned(sizes)
    signals, residual, drift = [], 0.0, 0.0
    charges = first_charges = [x @ x.T - y.T @ y for x, y in pairwise(weights)]
    for _ in range(round(time / rate)):
        signals.append(modes(weights))
        tracked = [x.requires_grad_() for x in weights]
        loss = (INPUTS @ chained(tracked).T - TARGETS).square().sum() / (2 * len(INPUTS))
        gradients = torch.autograd.grad(loss, tracked)
        weights = [x.detach() - rate * g for x, g in zip(weights, gradients, strict=True)]
        told = [c + rate**2 * (g @ g.T - k.T @ k) for c, (g, k) in zip(charges, pairwise(gradients), strict=True)]
        charges = [x @ x.T - y.T @ y for x, y in pairwise(weights)]
        size = max(float(x.square().sum()) for x in weights) * 2.0**-53
        residual = max(residual, *(float((c - p).abs().max()) / size for c, p in zip(charges, told, strict=True)))
        drift = max(float((c - f).abs().max()) for c, f in zip(charges, first_charges, strict=True))
    signals.append(modes(weights))
    return Run(torch.stack(signals), residual, drift)


def chained(weights: list[Tensor]) -> Tensor:
    out = weights[0]
    for x in weights[1:]:
        out = x @ out
    return out


def modes(weights: list[Tensor]) -> Tensor:
    return (LEFT[:, :MODES].T @ chained(weights).detach() @ RIGHT[:MODES].T).diagonal()


def three_layers(strength: float, start: float, time: float) -> float:
    velocity = sp.lambdify(SIGNAL, balanced_motion(3).subs(STRENGTH, strength))
    return float(integrate(velocity, torch.tensor([start], dtype=torch.float64), time, 20))


BALANCED = sp.lambdify((S, s0, TIME), logistic(), "math")
UNBALANCED = sp.lambdify((S, s0, TIME, IMBALANCE), curve, "math")


def closed(name: str, sizes: list[float], time: float) -> Tensor:
    start = float(np.prod(sizes))
    strengths = [float(x) for x in STRENGTHS[:MODES]]
    if name == "three layers":
        return torch.tensor([three_layers(x, start, time) for x in strengths])
    delta = sizes[1] ** 2 - sizes[0] ** 2
    return torch.tensor([BALANCED(x, start, time) if delta == 0 else UNBALANCED(x, start, time, delta) for x in strengths])


# W_1's size first; δ = a² - b² with a in the last layer
STARTS = {
    "balanced": [0.2, 0.2],
    "first layer larger": [1.2, 1 / 30],
    "last layer larger": [1 / 30, 1.2],
    "three layers": [0.45, 0.45, 0.45],
}
END = 2.0
RATES = [0.1 / 2**k for k in range(4)]
errors, runs, worst = {}, {}, 0.0
for name, sizes in STARTS.items():
    told = closed(name, sizes, END)
    errors[name] = []
    for rate in RATES:
        run = descend(sizes, rate, END)
        errors[name].append(float((run.signals[-1] - told).abs().max()))
        worst = max(worst, run.residual)
        runs[name, rate] = run
orders: dict[str, Order] = {name: fit_order(RATES, found) for name, found in errors.items()}
assert all(abs(order.slope - 1) < 0.1 for order in orders.values()), orders
drift_order = fit_order(RATES, [runs["first layer larger", rate].drift for rate in RATES])
assert worst < 8 * 49**0.5, worst
assert abs(drift_order.slope - 1) < 0.1, drift_order
{name: str(order) for name, order in orders.items()}, worst, str(drift_order)

# %% [markdown]
# The wrong sibling, the balanced curve for unbalanced layers of the same function, misses by far at every step size.

# %%
sibling = float((runs["first layer larger", RATES[-1]].signals[-1] - closed("balanced", STARTS["balanced"], END)).abs().max())
assert sibling > 50 * errors["first layer larger"][-1], (sibling, errors)
assert abs(np.prod(STARTS["first layer larger"]) - np.prod(STARTS["balanced"])) < 1e-12

# %% [markdown]
# ## 5. Real runs: lazy, rich, delayed
#
# $f = aw^\top x$ with different rates and the same $\beta_0$ for every $\delta$, one from which $a$ keeps its sign (where $a = 0$,
# $\hat\beta$ has no limit). The motion of $\beta$ alone predicts the trained
# $\beta$ to first order in the step; with $-\delta$ for $\delta$ it is another motion. $\delta$ itself obeys its exact law.

# %%
DATA = torch.randn(40, 2, generator=drawn, dtype=torch.float64) * torch.tensor([1.0, 0.5])
LABELS = DATA @ torch.tensor([0.4, 1.6], dtype=torch.float64) + 0.1 * torch.randn(40, generator=drawn, dtype=torch.float64)
BETA_0 = torch.tensor([0.3, 0.1], dtype=torch.float64)
RATE_A, RATE_W = 0.7, 1.3


def gradient(point: Tensor) -> Tensor:
    return DATA.T @ (DATA @ point - LABELS) / len(DATA)


@lru_cache
def split(delta: float) -> tuple[Tensor, Tensor]:
    """a, w with a given δ and β_0."""
    norms = [float(x.subs({IMBALANCE: delta, SQUARE: float(BETA_0 @ BETA_0), OUTER: RATE_A, INNER: RATE_W})) for x in layer_norms()]
    outer = torch.tensor(norms[0], dtype=torch.float64).sqrt()
    return outer, BETA_0 / outer


def trained(delta: float, rate: float, time: float) -> tuple[Tensor, float]:
    """β at every step, and the residual of δ's exact law in roundings."""
    outer, inner = split(delta)
    path, residual = [outer * inner], 0.0
    for _ in range(round(time / rate)):
        slope = gradient(outer * inner)
        g_a, g_w = inner @ slope, outer * slope
        before = RATE_W * outer**2 - RATE_A * inner @ inner
        outer, inner = outer - rate * RATE_A * g_a, inner - rate * RATE_W * g_w
        told = before + rate**2 * RATE_A * RATE_W * (RATE_A * g_a**2 - RATE_W * g_w @ g_w)
        after = RATE_W * outer**2 - RATE_A * inner @ inner
        residual = max(residual, float((after - told).abs() / (2.0**-53 * (RATE_W * outer**2 + RATE_A * inner @ inner))))
        path.append(outer * inner)
    return torch.stack(path), residual


METRIC = sp.lambdify((*beta, IMBALANCE), function_metric(beta).subs({OUTER: RATE_A, INNER: RATE_W}).tolist(), "math")


def flow(delta: float, time: float) -> Tensor:
    return integrate(lambda x: -torch.tensor(METRIC(*x.tolist(), delta), dtype=torch.float64) @ gradient(x), BETA_0, time, 12)


DELTAS = (2.0, 0.0, -2.0)
LATE, STEPS = 1.5, [0.05 / 2**k for k in range(4)]
unit_errors = {delta: [float((trained(delta, h, LATE)[0][-1] - flow(delta, LATE)).norm()) for h in STEPS] for delta in DELTAS}
unit_orders = {delta: fit_order(STEPS, found) for delta, found in unit_errors.items()}
residual = max(trained(delta, STEPS[0], LATE)[1] for delta in DELTAS)
turned = min(float((trained(delta, STEPS[-1], LATE)[0][-1] - flow(-delta, LATE)).norm()) / unit_errors[delta][-1] for delta in (2.0, -2.0))
assert all(abs(order.slope - 1) < 0.1 for order in unit_orders.values()), unit_orders
assert residual < 16, residual
assert turned > 20, turned
{delta: str(order) for delta, order in unit_orders.items()}, residual, turned

# %% [markdown]
# ## 6. The figure

# %%


def draw_modes(axes: Axes) -> None:
    for (name, dashes), shade in zip((("balanced", "-"), ("first layer larger", "--")), (1.0, 0.8), strict=True):
        run = runs[name, RATES[-1]]
        times = np.arange(len(run.signals)) * RATES[-1]
        marks = np.linspace(0, END, 9)
        curves = torch.stack([closed(name, STARTS[name], float(t)) for t in marks])
        for mode, colour in zip((0, 2, 5), ACCENTS, strict=False):
            axes.plot(times, run.signals[:, mode], color=colour, linestyle=dashes, linewidth=1.3, alpha=shade)
            axes.plot(marks, curves[:, mode], "o" if name == "balanced" else "s", color=colour, markersize=3.5)
    axes.plot([], [], color=INK, label="run, balanced")
    axes.plot([], [], color=INK, linestyle="--", label="run, first layer larger")
    axes.plot([], [], "o", color=INK, markersize=4, label="closed form")
    axes.set(title="Three of six modes, same start", xlabel="time", ylabel="s")
    axes.legend(fontsize=7)


def draw_orders(axes: Axes) -> None:
    for (name, found), colour in zip(errors.items(), ACCENTS, strict=False):
        axes.loglog(RATES, found, "o-", color=colour, markersize=4, linewidth=1, label=f"{name}: {orders[name].slope:.2f}")
    for delta, colour in zip(DELTAS, (INK, MUTED, BAD), strict=True):
        label = f"β, δ = {delta:g}: {unit_orders[delta].slope:.2f}"
        axes.loglog(STEPS, unit_errors[delta], "s--", color=colour, markersize=3.5, linewidth=0.9, label=label)
    axes.set(title="Solutions against runs", xlabel="step size", ylabel="error at the end")
    axes.set_ylim(min(map(min, (*errors.values(), *unit_errors.values()))) / 40, None)
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.legend(loc="lower right", fontsize=6.8, ncols=2)


def draw_paths(axes: Axes) -> None:
    for delta, colour, name in zip(DELTAS, ACCENTS, ("lazy", "rich", "delayed"), strict=False):
        path = trained(delta, 0.02, 8.0)[0]
        axes.plot(*path.T, color=colour, linewidth=3.5, alpha=0.35)
        axes.plot(*torch.stack([flow(delta, float(t)) for t in np.linspace(0.001, 8, 9)]).T, "o", color=colour, markersize=3.5)
        axes.plot([], [], color=colour, label=f"δ = {delta:g}, {name}")
    axes.plot(*BETA_0, "*", color=INK, markersize=8)
    axes.set(title="β: runs, and its own motion (dots)", xlabel="β₁", ylabel="β₂")
    axes.legend()


with matplotlib.rc_context(STYLE):
    figure = Figure(figsize=(11.5, 3.5), layout="constrained")
    for draw, axes in zip((draw_modes, draw_orders, draw_paths), figure.subplots(1, 3), strict=True):
        draw(axes)
    if folder := os.environ.get("NOETHERFLOW_FIGURES"):
        figure.savefig(Path(folder, "balanced_deep_linear.png"), dpi=150)
figure

# %% [markdown]
# ## Verdict

# %%
claims = {
    "imbalances move by their exact second-order law": worst < 8 * 49**0.5 and residual < 16,
    "and drift by the first order at a fixed time": abs(drift_order.slope - 1) < 0.1,
    "modes follow the closed forms to first order": all(abs(order.slope - 1) < 0.1 for order in orders.values()),
    "the balanced curve is wrong for unbalanced layers": sibling > 50 * errors["first layer larger"][-1],
    "β moves by itself and δ": all(abs(order.slope - 1) < 0.1 for order in unit_orders.values()),
    "not by -δ": turned > 20,
}
failed = [claim for claim, holds in claims.items() if not holds]
if failed:
    raise AssertionError(
        f"Deep linear solutions fail: {'; '.join(failed)}. {orders} {worst} {drift_order} {unit_orders} {residual} {turned}"
    )
