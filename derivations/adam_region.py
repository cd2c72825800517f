# sources: gould2024continuous, kingma2015adam, own, xiao2017fashion

# %% [markdown]
# # How large Adam's updates can get: the stability region, exactly
#
# **Claim** (`gould2024continuous`). In continuous time Adam's update $u = m/\sqrt v$ is bounded by
#
# $$ \|u_n\|_\infty \le \frac{\sqrt{1-\gamma^{n+1}}}{1-\beta^{n+1}}\,\frac{1-\beta}\beta\sqrt{\frac\gamma{1-\gamma}}\;B_n,\qquad
# B_n^2 = \frac{1-e^{-nC}}C,\quad C = \frac{2(1-\beta)}\beta - \frac{1-\gamma}\gamma, $$
#
# which stays finite exactly if $C > 0$, that is $\gamma > \beta/(2-\beta)$: the stability region.
#
# **What is shown here** (own). In discrete time the bound is
#
# $$ \sup\frac{|m_n|}{\sqrt{v_n}} = \frac{1-\beta}{\sqrt{1-\gamma}}\sqrt{\textstyle\sum_{j<n}(\beta^2/\gamma)^j}, $$
#
# **attained** by gradients that grow as $(\gamma/\beta)^k$, at every $n$ by the same sequence. It stays finite exactly if $\gamma >
# \beta^2$. The published region is smaller by a strip of width $\beta(1-\beta)^2/(2-\beta)$, in which updates are bounded, by numbers as
# small as two or three. The strip comes from the rates that stand for $\beta$ and $\gamma$ in continuous time; with $-\ln\beta$ and
# $-\ln\gamma$ it vanishes. The paper's equation of motion for the weights is derived too, with the order to which each term is right.
#
# **Assumptions.** Adam's $\varepsilon = 0$ (a positive one makes updates smaller); no assumption on the gradients.

# %%
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib
import numpy as np
import sympy as sp
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

import noetherflow as nf
from noetherflow.numeric.order import fit_order
from noetherflow.numeric.palette import ACCENTS, BAD, GOOD, INK, MUTED, STYLE
from noetherflow.symbolic.adam_bounds import (
    BETA,
    GAMMA,
    LAG,
    SPAN,
    WINDOW,
    correction,
    growth,
    kernel,
    kernel_rates,
    published_rates,
    squared_bound,
    worst_gradient,
)
from noetherflow.symbolic.adam_flow import POWER, WEIGHT, exact_root, slow_root, weight_equation
from noetherflow.symbolic.flows import TIME
from noetherflow.symbolic.rules_adaptive import adam_form

torch.set_num_threads(1)

# %% [markdown]
# ## 1. The exact bound
#
# The averages unroll to $m_n = \sum_j a_jg_{n-j}$, $v_n = \sum_jw_jg_{n-j}^2$ with $a_j = (1-\beta)\beta^j$, $w_j = (1-\gamma)\gamma^j$.

# %%
assert sp.simplify(kernel(BETA) - (1 - BETA) * BETA**LAG) == 0
g = sp.symbols("g_1:5")
m, v = sp.S.Zero, sp.S.Zero
for gradient in g:
    m, v = BETA * m + (1 - BETA) * gradient, GAMMA * v + (1 - GAMMA) * gradient**2
a, w = (lambda j: kernel(BETA).subs(LAG, j)), (lambda j: kernel(GAMMA).subs(LAG, j))
assert sp.expand(m - sum(a(j) * g[3 - j] for j in range(4))) == 0
assert sp.expand(v - sum(w(j) * g[3 - j] ** 2 for j in range(4))) == 0

# %% [markdown]
# **Cauchy and Schwarz**, as Lagrange's identity (here for four steps, with $A$ for the sum of the pairs' squares):
#
# $$ \Big(\sum\tfrac{a_j^2}{w_j}\Big)\Big(\sum w_jg_j^2\Big) - \Big(\sum a_jg_j\Big)^2
# = \sum_{i<j}w_iw_j\Big(\tfrac{a_i}{w_i}g_j-\tfrac{a_j}{w_j}g_i\Big)^2 \ge 0, $$
#
# with equality exactly for $g_{n-j}\propto a_j/w_j \propto (\beta/\gamma)^j$. The sum on the left is geometric.

# %%
alpha, omega, x = sp.symbols("a_0:4"), sp.symbols("w_0:4", positive=True), sp.symbols("x_0:4")
left = sum(p**2 / q for p, q in zip(alpha, omega, strict=True)) * sum(q * y**2 for q, y in zip(omega, x, strict=True))
left -= sum(p * y for p, y in zip(alpha, x, strict=True)) ** 2
right = sum(omega[i] * omega[j] * (alpha[i] / omega[i] * x[j] - alpha[j] / omega[j] * x[i]) ** 2 for j in range(4) for i in range(j))
assert sp.expand(left - right) == 0
assert sp.simplify(worst_gradient() - (BETA / GAMMA) ** LAG) == 0
assert sp.simplify(growth() - BETA**2 / GAMMA) == 0
for steps in (1, 2, 4):
    exact = sum(a(j) ** 2 / w(j) for j in range(steps))
    assert sp.cancel(squared_bound(sp.Integer(steps)) - exact) == 0
    attained = {g_: worst_gradient().subs(LAG, j) for j, g_ in enumerate(reversed(x[:steps]))}
    top = sum(a(j) * attained[g_] for j, g_ in enumerate(reversed(x[:steps])))
    bottom = sum(w(j) * attained[g_] ** 2 for j, g_ in enumerate(reversed(x[:steps])))
    assert sp.cancel(top**2 / bottom - exact) == 0, "attained"
assert sp.simplify(squared_bound(WINDOW, gamma=BETA**2) - WINDOW * (1 - BETA) ** 2 / (1 - BETA**2)) == 0, "on the boundary it grows as n"

# %% [markdown]
# With bias correction $u_1 = \pm1$, as it must be. At the defaults $\beta = 0.9$, $\gamma = 0.999$ no gradients whatever make an update
# larger than 7.27 steps.

# %%
assert (
    sp.simplify(
        (squared_bound(sp.Integer(1)) * correction(sp.Integer(1)) ** 2).subs({BETA: sp.Rational(9, 10), GAMMA: sp.Rational(4, 5)}) - 1
    )
    == 0
)


def bound_of(n: float, beta: float, gamma: float, corrected: bool = True) -> float:
    """The exact bound as a number; n may be infinite where it stays finite."""
    ratio = beta**2 / gamma
    total = n if ratio == 1 else (1 - ratio**n) / (1 - ratio)
    factor = math.sqrt(1 - gamma**n) / (1 - beta**n) if corrected else 1.0
    return (1 - beta) / math.sqrt(1 - gamma) * math.sqrt(total) * factor


default = bound_of(math.inf, 0.9, 0.999)
told = sp.sqrt(squared_bound(WINDOW)) * correction(WINDOW)
assert abs(float(told.subs({BETA: 0.9, GAMMA: 0.999, WINDOW: 30})) - bound_of(30, 0.9, 0.999)) < 1e-9
assert abs(default - 7.27) < 0.005, default

# %% [markdown]
# ## 2. The bound in continuous time, and where the strip comes from
#
# With exponential kernels of rates $\kappa$ and $\kappa'$ the same inequality gives $\frac{\kappa^2}{\kappa'}\frac{1-e^{-nC}}C$, $C =
# 2\kappa-\kappa'$. The published rates are $\frac{1-\beta}\beta$ and $\frac{1-\gamma}\gamma$, from reading $m_n - m_{n-1} =
# \frac{1-\beta}\beta(g_n - m_n)$ as a derivative.

# %%
published, own = published_rates(), kernel_rates()
before, after = sp.symbols("before after")
assert sp.simplify((BETA * before + (1 - BETA) * g[0] - after).subs(before, after - published.momentum * (g[0] - after))) == 0
C = 2 * (1 - BETA) / BETA - (1 - GAMMA) / GAMMA
assert sp.simplify(published.margin - C) == 0
paper = ((1 - BETA) / BETA) ** 2 * GAMMA / (1 - GAMMA) * (1 - sp.exp(-SPAN * C)) / C
assert sp.simplify(published.squared_bound() - paper) == 0
(threshold,) = sp.solve(published.margin, GAMMA)
assert sp.simplify(threshold - BETA / (2 - BETA)) == 0
assert sp.simplify(threshold - BETA**2 - BETA * (1 - BETA) ** 2 / (2 - BETA)) == 0, "the width of the strip"

# %% [markdown]
# But a kernel $\beta^j$ decays at the rate $-\ln\beta = \frac{1-\beta}\beta - \frac12(1-\beta)^2 + \dots$, and with its own rates the
# threshold is the discrete one. As $\beta, \gamma \to 1$ the two bounds agree.

# %%
assert sp.solve(own.margin, GAMMA) == [BETA**2]
small = sp.Symbol("delta", positive=True)
assert sp.series(-sp.log(1 - small) - small / (1 - small), small, 0, 3).removeO() == -(small**2) / 2
ratio = sp.symbols("q", positive=True)  # 1 - γ = q (1 - β)
limits = [
    sp.limit(f.subs(GAMMA, 1 - ratio * small).subs(BETA, 1 - small).subs(ratio, sp.Rational(1, 2)) / small, small, 0)
    for f in ((1 - BETA) ** 2 / (1 - GAMMA) / (1 - growth()) * small, published.momentum**2 / published.square / published.margin * small)
]
assert limits[0] == limits[1], limits

# %% [markdown]
# | $\beta$ | $\gamma$ | $C$ | published | exact |
# |---|---|---|---|---|
# | 0.9 | 0.999 | + | bounded | bounded by 7.27 |
# | 0.9 | 0.815 | − | **unbounded** | bounded by 2.97 |
# | 0.5 | 0.3 | − | **unbounded** | bounded by 1.46 |
# | 0.9 | 0.805 | − | unbounded | unbounded |

# %%
strip = {(0.9, 0.815): 2.97, (0.5, 0.3): 1.46}
numbers = {pair: bound_of(math.inf, *pair, corrected=False) for pair in strip}
for (beta, gamma), value in strip.items():
    assert gamma < beta / (2 - beta), "unstable by the published criterion"
    assert gamma > beta**2
    assert abs(numbers[beta, gamma] - value) < 0.005, numbers
assert 0.805 < 0.9**2

# %% [markdown]
# ## 3. torch's Adam, driven by the worst gradients
#
# One parameter, $\varepsilon = 0$, gradients $(\gamma/\beta)^k$: `torch.optim.Adam` moves by the bound times its step size at *every*
# step. In the strip the motion stays below its limit; where $\gamma < \beta^2$ it grows without one. Sums of positive numbers keep
# relative errors below a few roundings a step. The published criterion, and a bound with $\beta/\gamma$ for $\beta^2/\gamma$, are
# rejected.


# %%
def driven(beta: float, gamma: float, steps: int, gradient: Callable[[int], float]) -> list[float]:
    """|u| of every step."""
    parameter = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([parameter], lr=1.0, betas=(beta, gamma), eps=0.0)
    moved = []
    for k in range(steps):
        start = float(parameter.detach())
        parameter.grad = torch.tensor([gradient(k)], dtype=torch.float64)
        optimizer.step()
        moved.append(abs(float(parameter.detach()) - start))
        with torch.no_grad():
            parameter.zero_()
    return moved


STEPS = 150
PAIRS = {"defaults": (0.9, 0.999), "in the strip": (0.9, 0.815), "in the strip, short": (0.5, 0.3), "outside": (0.9, 0.75)}
attained = {name: driven(*pair, STEPS, lambda k, pair=pair: (pair[1] / pair[0]) ** k) for name, pair in PAIRS.items()}
bounds = {name: [bound_of(n, *pair) for n in range(1, STEPS + 1)] for name, pair in PAIRS.items()}
excess = {
    name: max(abs(u / b - 1) / n for n, (u, b) in enumerate(zip(attained[name], bounds[name], strict=True), start=1)) for name in PAIRS
}
roundings = 16 * 2.0**-53  # relative, a step: eight operations of Adam and eight of the bound
assert max(excess.values()) < roundings, excess
assert max(attained["in the strip"]) < 2.97 * 1.01
assert max(attained["in the strip, short"]) < 1.46 * 1.01
assert attained["outside"][-1] > 2 * attained["outside"][STEPS // 2] > 4


def sibling(n: int, beta: float, gamma: float) -> float:
    """β/γ for β²/γ."""
    return bound_of(n, beta, gamma) * math.sqrt(sum((beta / gamma) ** j for j in range(n)) / sum((beta**2 / gamma) ** j for j in range(n)))


wrong = abs(attained["defaults"][-1] / sibling(STEPS, *PAIRS["defaults"]) - 1)
assert wrong > 0.1, wrong
heavy = np.random.default_rng(0).standard_t(2, (20, 60)).tolist()
signs = [driven(0.9, 0.815, 60, row.__getitem__) for row in heavy]
assert all(u <= b * (1 + 1e-12) for run in signs for u, b in zip(run, bounds["in the strip"], strict=False)), (
    "no gradients exceed the bound"
)

# %% [markdown]
# ## 4. A real run in the strip
#
# A network learns Fashion-MNIST (`xiao2017fashion`, the images that are shipped) with Adam at momentum 0.9 and several $\gamma$ across
# the strip. In it, and at $\gamma$ below it as well, the largest update of any weight at any step respects the exact bound. From
# $\gamma$ in the strip upwards it comes within a factor of four of it: the bound is about real gradients.

# %%
IMAGES = nf.data.fashion_mnist_subset()
(batch,) = IMAGES.batches(512, seed=0, steps=1, dtype=torch.float64)
INPUTS, LABELS = nn.functional.avg_pool2d(batch[0], 4).flatten(1), batch[1]


def largest_updates(beta: float, gamma: float, steps: int) -> list[float]:
    """max |u| over all weights at every step; Adam written out, ε = 0, weights without a gradient left alone."""
    drawn = torch.Generator().manual_seed(0)
    weights = [(0.2 * torch.randn(*s, generator=drawn, dtype=torch.float64)).requires_grad_() for s in ((16, 49), (16,), (10, 16))]
    averages = [(torch.zeros_like(w), torch.zeros_like(w)) for w in weights]
    largest = []
    for n in range(1, steps + 1):
        chosen = torch.randint(len(LABELS), (32,), generator=drawn)
        hidden = torch.tanh(INPUTS[chosen] @ weights[0].T + weights[1])
        loss = nn.functional.cross_entropy(hidden @ weights[2].T, LABELS[chosen])
        updates: list[Tensor] = []
        with torch.no_grad():
            for w, gradient, (first, second) in zip(weights, torch.autograd.grad(loss, weights), averages, strict=True):
                first.mul_(beta).add_(gradient, alpha=1 - beta)
                second.mul_(gamma).addcmul_(gradient, gradient, value=1 - gamma)
                u = first / (1 - beta**n) / (second / (1 - gamma**n)).sqrt().clamp_min(1e-150)
                w.sub_(0.002 * u)
                updates.append(u)
        largest.append(max(float(u.abs().max()) for u in updates))
    return largest


SCAN = (0.999, 0.95, 0.85, 0.815, 0.78, 0.72)
RUN = 150
real = {gamma: largest_updates(0.9, gamma, RUN) for gamma in SCAN}
closeness = {gamma: max(u / bound_of(n, 0.9, gamma) for n, u in enumerate(us, start=1)) for gamma, us in real.items()}
assert all(c <= 1 + 1e-9 for c in closeness.values()), closeness
assert min(max(us[10:]) / max(bound_of(n, 0.9, gamma) for n in range(10, RUN)) for gamma, us in real.items() if gamma > 0.81) > 0.25
{gamma: (round(max(us), 3), round(bound_of(RUN, 0.9, gamma), 3)) for gamma, us in real.items()}

# %% [markdown]
# ## 5. The weights in continuous time
#
# The same paper writes AdamW's weights as a motion with inertia,
# $\lambda\theta + \eta^{p-1}\dot\theta + \tfrac12\eta^{2p-1}\ddot\theta = -u$ at $t = n\eta^p$. It is
# Taylor's theorem for the update, cut after two terms; each term makes the decay right to one power of $\eta$ more, of
# $\ln(1-\eta\lambda)/\eta$ that it really is. torch's AdamW under gradients of one sign ($u = 1$) confirms both orders.

# %%
ADAMW = adam_form(decoupled=True)
ETA, LAMBDA = ADAMW.rate, dict(ADAMW.hyperparameters)["weight_decay"]
motion = LAMBDA * WEIGHT + ETA ** (POWER - 1) * WEIGHT.diff(TIME) + ETA ** (2 * POWER - 1) * WEIGHT.diff(TIME, 2) / 2
assert sp.simplify(weight_equation(ADAMW).lhs - motion) == 0
misses = [sp.series(slow_root(ADAMW, terms) - exact_root(ADAMW), ETA, 0, 3).removeO() for terms in (1, 2)]
assert sp.expand(misses[0] - LAMBDA**2 * ETA / 2 - LAMBDA**3 * ETA**2 / 3) == 0
assert sp.expand(misses[1] + LAMBDA**3 * ETA**2 / 6) == 0


def weight_errors(terms: int, rates: Sequence[float], decay: float = 0.5, time: float = 2.0) -> list[float]:
    """Distance of torch's weight after a time from the slow motion of the truncated equation."""
    root = slow_root(ADAMW, terms).subs(LAMBDA, decay)
    errors = []
    for rate in rates:
        weight = torch.ones(1, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.AdamW([weight], lr=rate, betas=(0.0, 0.5), eps=0.0, weight_decay=decay)
        for _ in range(round(time / rate)):
            weight.grad = torch.ones_like(weight)
            optimizer.step()
        predicted = (1 + 1 / decay) * math.exp(float(root.subs(ETA, rate)) * time) - 1 / decay
        errors.append(abs(float(weight.detach()) - predicted))
    return errors


RATES = [0.1 / 2**i for i in range(4)]
weight_orders = {terms: fit_order(RATES, weight_errors(terms, RATES)).slope for terms in (1, 2)}
assert all(abs(slope - terms) < 0.1 for terms, slope in weight_orders.items()), weight_orders
weight_orders

# %% [markdown]
# ## 6. The figure

# %%


def draw_regions(axes: Axes) -> None:
    beta, gamma = np.meshgrid(np.linspace(0.01, 0.995, 300), np.linspace(0.01, 0.995, 300))
    inside = gamma > beta**2
    limit = np.where(inside, (1 - beta) / np.sqrt(1 - gamma) / np.sqrt(np.where(inside, 1 - beta**2 / gamma, 1)), np.nan)
    axes.contourf(beta, gamma, np.where(inside, 1.0, np.nan), levels=[0.5, 1.5], colors=[GOOD], alpha=0.12)
    lines = axes.contour(beta, gamma, limit, levels=[1.5, 2, 3, 7], colors=MUTED, linewidths=0.7)
    axes.clabel(lines, fontsize=6.5)
    line = np.linspace(0.01, 1, 200)
    axes.plot(line, line**2, color=GOOD, linewidth=1.6, label="γ = β², exact")
    axes.plot(line, line / (2 - line), color=BAD, linewidth=1.4, linestyle="--", label="γ = β/(2−β), published")
    axes.fill_between(line, line**2, line / (2 - line), color=BAD, alpha=0.25, linewidth=0)
    for pair in ((0.9, 0.999), (0.9, 0.815), (0.5, 0.3), (0.9, 0.75)):
        axes.plot(*pair, "o", color=INK, markersize=4)
    axes.set(title="Bounded updates, and how large", xlabel="β", ylabel="γ", xlim=(0, 1.02), ylim=(0, 1.02))
    axes.legend(loc="upper left", bbox_to_anchor=(0, 0.72), fontsize=7.5)


def draw_attained(axes: Axes) -> None:
    n = np.arange(1, STEPS + 1)
    for (name, pair), colour in zip(PAIRS.items(), ACCENTS, strict=False):
        axes.loglog(n, bounds[name], color=colour, linewidth=1.2, label=f"({pair[0]}, {pair[1]}), {name}")
        marks = [0, 1, 2, 4, 9, 19, 49, 99, 149]
        axes.loglog(n[marks], [attained[name][i] for i in marks], "o", color=colour, markersize=3.5)
    margin = published.margin.subs({BETA: 0.9, GAMMA: 0.815})
    there = sp.lambdify(SPAN, sp.sqrt(paper.subs({BETA: 0.9, GAMMA: 0.815})))
    scale = np.sqrt(1 - 0.815 ** (n + 1)) / (1 - 0.9 ** (n + 1))
    axes.loglog(
        n,
        scale * [float(there(float(k))) for k in n],
        color=BAD,
        linestyle="--",
        linewidth=1.1,
        label=f"published, C = {float(margin):.3f}",
    )
    axes.set(title="torch's Adam under the worst gradients", xlabel="step n", ylabel="|update| / η")
    axes.legend(fontsize=7)


def draw_real(axes: Axes) -> None:
    axes.axvspan(0.81, 0.9 / 1.1, color=BAD, alpha=0.25, linewidth=0)
    fine = np.linspace(0.7, 0.9995, 200)
    axes.semilogy(fine, [bound_of(RUN, 0.9, float(x)) for x in fine], color=INK, linewidth=1.2, label=f"exact bound, n = {RUN}")
    axes.semilogy(SCAN, [max(us) for us in real.values()], "o", color=ACCENTS[0], label="largest in a real run")
    axes.text(0.822, 40, "strip", color=BAD, fontsize=8)
    axes.set(title="A network, β = 0.9", xlabel="γ", ylabel="largest |update| / η")
    axes.legend()


def panels(draws: Sequence[Callable[[Axes], None]]) -> Figure:
    drawn = Figure(figsize=(11.5, 3.6), layout="constrained")
    for draw, axes in zip(draws, drawn.subplots(1, len(draws)), strict=True):
        draw(axes)
    return drawn


with matplotlib.rc_context(STYLE):
    figure = panels((draw_regions, draw_attained, draw_real))
    if folder := os.environ.get("NOETHERFLOW_FIGURES"):
        figure.savefig(Path(folder, "adam_region.png"), dpi=150)
figure

# %% [markdown]
# ## Verdict

# %%
claims = {
    "the bound is attained by torch's Adam, to rounding, at every step": max(excess.values()) < roundings,
    "in the strip updates are bounded": max(attained["in the strip"]) < 3 and max(attained["in the strip, short"]) < 1.5,
    "beyond γ = β² they are not": attained["outside"][-1] > 2 * attained["outside"][STEPS // 2] > 4,
    "a wrong ratio is rejected": wrong > 0.1,
    "a real run respects the bound": all(c <= 1 + 1e-9 for c in closeness.values()),
    "each term of the weights' equation adds an order": all(abs(slope - terms) < 0.1 for terms, slope in weight_orders.items()),
    "the strip is that of the rates": sp.solve(own.margin, GAMMA) == [BETA**2] and threshold != BETA**2,
}
failed = [claim for claim, holds in claims.items() if not holds]
if failed:
    raise AssertionError(f"Adam's region fails: {'; '.join(failed)}. {excess} {closeness}")
