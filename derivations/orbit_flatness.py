# sources: own, zhao2023symmetries, ziyin2024implicit, xiao2017fashion

# %% [markdown]
# # Finite steps and noise move a run along its orbits, towards where gradients are small
#
# **Claim** (own). Along an orbit $\theta_s = e^{sA}\theta$ of a symmetry of every sample's loss, with $A$ symmetric, the loss is constant
# (`zhao2023symmetries` has the flat directions) and its derivatives are $g_s = e^{-sA}g$, $H_s = e^{-sA}He^{-sA}$. A step of SGD
# moves along the orbit by
#
# $$ \Delta s = -\frac{\eta^2}{4}\,\frac{\frac{d}{ds}\mathbb E|g_B|^2}{|A\theta|^2} + O(\eta^3), $$
#
# with $g_B$ the mini-batch gradient: *always down* the gradient's mean square, which is what finite steps add to the noise equilibrium of
# `ziyin2024implicit`. At an interpolating minimum with label noise $\mathbb E|g_B|^2\propto\mathrm{Tr}\,H$, so a run comes to rest at the
# flattest point of its orbit. And gradient descent at step size $\eta$ can rest only where $\lambda_{\max}(H_s) < 2/\eta$: from sharper
# points of the same orbit, with the same function, it escapes and comes to rest at flatter ones.
#
# **Assumptions.** An exact symmetry by scales or symmetric matrices; no layer that mixes samples; for the last two statements a minimum.

# %%
import os
from functools import lru_cache
from pathlib import Path

import matplotlib
import numpy as np
import sympy as sp
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor, nn
from torch.func import functional_call

import noetherflow as nf
from noetherflow.numeric.curvature import hessian_product, largest_eigenvalue
from noetherflow.numeric.order import fit_order
from noetherflow.numeric.palette import ACCENTS, BAD, GOOD, INK, MUTED, STYLE
from noetherflow.numeric.statistics import judge
from noetherflow.symbolic.balance import CURRENT, derive_balance
from noetherflow.symbolic.noise import BATCH, MEAN, Spread, derive_drift
from noetherflow.symbolic.pairings import Inner
from noetherflow.symbolic.rules import GRADIENT, sgd_form

torch.set_num_threads(1)  # rounding then depends on no scheduler
torch.set_default_dtype(torch.float64)

# %% [markdown]
# ## 1. Down the gradient's mean square
#
# The exact balance law of SGD gives the step of the charge. With $dQ/ds = |A\theta|^2$ it is a step along the orbit, and since
# $\frac{d}{ds}\langle g_s, g_s\rangle = -2\langle g, Ag\rangle$ it goes down the mean square of $g_B$.

# %%
ETA, velocity = sp.Symbol("eta", real=True), sp.Symbol("v", positive=True)  # v = |Aθ|²
drift = derive_drift(derive_balance((sgd_form(momentum=False, nesterov=False, maximize=False),), False, True))
of_charge = drift.change.subs({CURRENT: 0, sp.Symbol("lambda", real=True): 0})
mean_square = Inner(MEAN, MEAN) + Spread(GRADIENT) / BATCH  # ⟨ḡ, A ḡ⟩ + Tr[AΣ]/S = E⟨g_B, A g_B⟩
assert sp.expand(of_charge - ETA**2 / 2 * mean_square) == 0
slope = -2 * mean_square  # d/ds E|g_B|² at s = 0
assert sp.expand(of_charge / velocity - (-(ETA**2) / 4 * slope / velocity)) == 0

# %% [markdown]
# For a rescaling, $A$ diagonal with entries $a_e$, the slope is that of $\sum_ee^{-2sa_e}g_e^2$: convex in $s$, with one flattest place.

# %%
s = sp.Symbol("s", real=True)
a, g = sp.symbols("a g", real=True)
assert sp.diff((sp.exp(-s * a) * g) ** 2, s).subs(s, 0) == -2 * a * g**2
assert sp.simplify(sp.diff((sp.exp(-s * a) * g) ** 2, s, 2) - 4 * a**2 * sp.exp(-2 * s * a) * g**2) == 0, "convex"

# %% [markdown]
# ## 2. A trained network and its orbit
#
# A network with ReLU units trained for a while on images of Fashion-MNIST (`xiao2017fashion`), 7 × 7, in float64. Gradients, their
# covariance and the Hessian's largest eigenvalue along an orbit are predicted from its starting point alone, to rounding (each is a sum of
# fewer than 2¹² products); with $e^{+sA}$ for $e^{-sA}$ they are not.


# %%
def images(count: int, size: int) -> tuple[Tensor, Tensor]:
    ((pictures, labels),) = nf.data.fashion_mnist_subset().batches(count, seed=0, steps=1, dtype=torch.float64)
    pooled = nn.functional.adaptive_avg_pool2d(pictures, size).flatten(1)
    return (pooled - pooled.mean(0)) / pooled.std(), labels


x, y = images(200, 7)
torch.default_generator.manual_seed(0)
model = nn.Sequential(nn.Linear(49, 16), nn.ReLU(), nn.Linear(16, 10))
sgd = torch.optim.SGD(model.parameters(), lr=0.2)
for _ in range(100):
    sgd.zero_grad()
    nn.functional.cross_entropy(model(x), y).backward()
    sgd.step()
profile = nf.orbit_profile(model, nf.trace(model, x), x, y, nn.functional.cross_entropy, at=np.linspace(-1, 1, 11))
ROUNDING = 2.0**-53 * 2**12
apart = {name: float(np.abs(told / getattr(profile, name) - 1).max()) for name, told in profile.predicted.items()}
turned = {name: float(np.abs(told[::-1] / getattr(profile, name) - 1).max()) for name, told in profile.predicted.items()}
assert max(apart.values()) < ROUNDING, apart
assert min(turned.values()) > 1e9 * max(apart.values()), turned
assert float(np.ptp(profile.loss)) < ROUNDING, profile.loss
profile

# %% [markdown]
# ## 3. The step along the orbit
#
# All mini-batches of one sample are tried, so that the expectation is exact. The place on the orbit of the old point that has the expected
# new charge is found by bisection; it differs from the prediction by a higher order, and has its sign. What the *mean* gradient alone
# would do, without noise, misses it by far.

# %%
(family, *_) = nf.symmetries(nf.trace(model, x))
weights = {name: p.detach().clone() for name, p in model.named_parameters()}


def charge(point: dict[str, Tensor]) -> Tensor:
    """⟨a, Q⟩ of rescalings: (in - out)/2 for every unit, with the direction's weights."""
    inward = point["0.weight"].square().sum(1) + point["0.bias"].square()
    return profile.direction @ (inward - point["2.weight"].square().sum(0)) / 2


def sample_gradients(point: dict[str, Tensor]) -> dict[str, Tensor]:
    def loss(p: dict[str, Tensor], one: Tensor, label: Tensor) -> Tensor:
        return nn.functional.cross_entropy(functional_call(model, p, (one[None],)), label[None])

    return torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(point, x, y)


@lru_cache
def place(rate: float) -> float:
    """E Δs: where the expected charge is met on the orbit of the start."""
    gradients = sample_gradients(weights)
    wanted = float(torch.stack([charge({k: weights[k] - rate * gradients[k][n] for k in weights}) for n in range(len(x))]).mean())
    low, high = -1.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if float(charge(family.transform(weights, middle * profile.direction))) < wanted else (low, middle)
    return middle


RATES = [0.2 / 2**k for k in range(5)]
moved = [place(rate) for rate in RATES]
told = [profile.drift(rate, 1.0) for rate in RATES]
order = fit_order(RATES, [abs(m - t) for m, t in zip(moved, told, strict=True)])
without_noise = [profile.drift(rate) for rate in RATES]
assert all(m > 0 for m in moved)
assert order.slope > 3.5, order  # the leading term is of order two, the next even one of order four
assert abs(without_noise[-1] / moved[-1] - 1) > 0.5
moved[-1] / told[-1], str(order)

# %% [markdown]
# ## 4. Label noise: to rest at the flattest point
#
# Mean squares on real images, with noise $\sigma$ added to the labels anew at every step: then $\mathbb E|g_B|^2 = |\bar g|^2 +
# \frac{\sigma^2}N\mathrm{Tr}\,H$ with Gauss' and Newton's $H$, and at an interpolating minimum the second term is all. A run ends where
# $\frac{d}{ds}\mathbb E|g_B|^2 = 0$ on average. Twenty-four runs, of starts whose norms are spread between the layers by factors up to 2.5;
# over the last third of each run the slope, all units scaled together and relative to $\mathbb E|g_B|^2$, vanishes within its interval. At
# the points of the same orbits where each unit's norms are balanced it does not.

# %%
SAMPLES, HIDDEN, SIGMA = 12, 8, 1.0
inputs, labels = images(SAMPLES, 4)
goal = (labels % 2 * 2 - 1).to(torch.float64)[:, None]
Pair = tuple[Tensor, Tensor]


def slope_parts(p: Pair, noisy: float = SIGMA) -> tuple[Tensor, Tensor]:
    """Parts of E|g_B|² by units: gradients of the output weights, which grow with s, and of the input weights; shape (runs, units)."""
    hidden = torch.relu(inputs @ p[0].mT)
    error = (hidden @ p[1].mT - goal) / SAMPLES
    behind = (hidden > 0) * p[1]
    mean = (error * behind).mT @ inputs
    out = (error.mT @ hidden).squeeze(1).square() + noisy**2 / SAMPLES**2 * hidden.square().sum(1)
    into = mean.square().sum(2) + noisy**2 / SAMPLES**2 * (behind.square() * inputs.square().sum(1)[:, None]).sum(1)
    return out, into


def at_balance(p: Pair) -> tuple[Tensor, Tensor]:
    """The same where |w_in| = |w_out| for each unit: gradients of one grow by what the other's shrink by."""
    squared = p[1].squeeze(1).abs() / p[0].norm(dim=2)
    out, into = slope_parts(p)
    return out * squared, into / squared


def slope_over(parts: list[tuple[Tensor, Tensor]]) -> Tensor:
    """The mean of d/ds E|g_B|² over that of E|g_B|², for every run."""
    out, into = (torch.stack(part).sum((0, 2)) for part in zip(*parts, strict=True))
    return 2 * (out - into) / (out + into)


def trained(runs: int, rate: float, steps: int, seed: int, every: int) -> list[Pair]:
    """Many runs at once, weights (runs, hidden, 16) and (runs, 1, hidden); full batches, noisy labels."""
    drawn = torch.Generator().manual_seed(seed)
    spread = torch.logspace(-0.2, 0.2, runs)[:, None, None]
    p = (0.5 * spread * torch.randn(runs, HIDDEN, 16, generator=drawn), 0.5 / spread * torch.randn(runs, 1, HIDDEN, generator=drawn))
    kept = [p]
    for step in range(1, steps + 1):
        hidden = torch.relu(inputs @ p[0].mT)  # (runs, samples, hidden)
        error = (hidden @ p[1].mT - goal - SIGMA * torch.randn(runs, SAMPLES, 1, generator=drawn)) / SAMPLES
        p = (p[0] - rate * ((error * p[1]) * (hidden > 0)).mT @ inputs, p[1] - rate * error.mT @ hidden)
        if step % every == 0:
            kept.append(p)
    return kept


RUNS, EVERY, LAST = 24, 100, 20_000
history = trained(RUNS, 0.1, LAST, 1, EVERY)
late = history[-LAST // EVERY // 3 :]
steepness = torch.stack([slope_over([slope_parts(p)]) for p in history])
steepness_balanced = torch.stack([slope_over([at_balance(p)]) for p in history])
siblings = {"norms balanced": slope_over([at_balance(p) for p in late]).numpy()}
rest = judge(slope_over([slope_parts(p) for p in late]).numpy(), 0.0, siblings, confidence=0.999)
assert rest.holds, rest
print(rest)

# %% [markdown]
# ## 5. Large steps: which points of an orbit gradient descent can rest at
#
# Two linear layers at a minimum of the mean square on 200 images, carried along their orbit to $\theta_s$ and pushed by $10^{-6}$. The
# step size is fixed. Predicted from the Hessian at $s=0$ alone: $\theta_s$ is left if and only if $\eta\,\lambda_{\max}(H_s) > 2$. Runs
# that leave come to rest with the *same function* at a place where $\eta\lambda_{\max}\le2$.

# %%
inputs, labels = images(200, 4)
left, values, right = torch.linalg.svd(inputs, full_matrices=False)
white = left * len(inputs) ** 0.5
wanted = nn.functional.one_hot(labels, 10).to(torch.float64) - 0.1
best = wanted.mT @ white / len(inputs)
linear = nn.Sequential(nn.Linear(16, 9, bias=False), nn.Linear(9, 10, bias=False))
u, sigma, v = torch.linalg.svd(best)
with torch.no_grad():
    linear[0].weight.copy_(sigma[:9].sqrt()[:, None] * v[:9])
    linear[1].weight.copy_(u[:, :9] * sigma[:9].sqrt())


def square(output: Tensor, target: Tensor) -> Tensor:
    return (output - target).square().sum(1).mean() / 2


PLACES = np.linspace(0.33, 1.01, 16)
orbit = nf.orbit_profile(linear, nf.trace(linear, white), white, wanted, square, direction=torch.eye(9), at=PLACES)
start = {name: p.detach().clone() for name, p in linear.named_parameters()}
(carry, *_) = nf.symmetries(nf.trace(linear, white))
STEP = 2 / float(np.interp(0.75, PLACES, orbit.predicted["sharpness"]))


def loss_at(point: dict[str, Tensor]) -> Tensor:
    return square(functional_call(linear, point, (white,)), wanted)


def descended(place: float, steps: int = 1200) -> tuple[float, float, float]:
    """How far gradient descent goes from θ_s, over the push; the final loss above the minimum; and the final sharpness."""
    theta = carry.transform(start, torch.eye(9).flatten() * place)
    drawn = torch.Generator().manual_seed(0)
    u, w = (theta[k] + 1e-6 * torch.randn(theta[k].shape, generator=drawn) for k in ("1.weight", "0.weight"))
    u0, w0 = u.clone(), w.clone()
    for _ in range(steps):
        error = u @ w - best  # inputs are white
        u, w = u - STEP * error @ w.mT, w - STEP * u.mT @ error
    end = {"0.weight": w, "1.weight": u}
    pushed = torch.cat([(u0 - theta["1.weight"]).flatten(), (w0 - theta["0.weight"]).flatten()]).norm()
    away = float(torch.cat([(u - u0).flatten(), (w - w0).flatten()]).norm() / pushed)
    return away, float(loss_at(end) - loss_at(start)), largest_eigenvalue(hessian_product(loss_at, end), end)


ends = [descended(float(place)) for place in PLACES]
away, above, sharp = (np.array(column) for column in zip(*ends, strict=True))
steady = STEP * orbit.predicted["sharpness"] < 2
assert min(steady.sum(), (~steady).sum()) > 5
assert (away[steady] < 2).all(), "a stable push does not grow: its change is below twice its length"
assert (away[~steady] > 1e3).all(), away
assert (STEP * sharp < 2).all(), "all come to rest where steps are stable"
assert np.abs(above).max() < ROUNDING, "with the loss of the minimum, hence its function"
edge = [descended(float(np.interp(2 * near / STEP, orbit.predicted["sharpness"], PLACES)))[0] for near in (0.99, 1.01)]
assert edge[0] < 2, edge
assert edge[1] > 100, edge
shrunk = sharp[~steady] / orbit.predicted["sharpness"][~steady]
assert shrunk.max() < 1
away, edge

# %% [markdown]
# ## 6. The figure

# %%


def draw_rest(axes: Axes) -> None:
    steps = EVERY * np.arange(len(history))
    for run in range(RUNS):
        axes.plot(steps, steepness[:, run], color=ACCENTS[0], linewidth=0.7, alpha=0.5)
    axes.plot(steps, steepness_balanced.mean(1), color=BAD, linestyle="--", linewidth=1.4, label="if norms were balanced")
    axes.plot([], [], color=ACCENTS[0], label="24 runs")
    axes.axhline(0, color=INK, linewidth=0.8)
    axes.set(title="Label noise: to the flattest point", xlabel="step", ylabel=r"$d\,\log\,E|g|^2/ds$")
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.legend(loc="upper right")


def draw_edge(axes: Axes) -> None:
    started = STEP * orbit.predicted["sharpness"]
    for k in np.flatnonzero(~steady):
        axes.annotate("", (PLACES[k], STEP * sharp[k]), (PLACES[k], started[k]), arrowprops={"arrowstyle": "->", "color": MUTED, "lw": 0.8})
    axes.plot(PLACES, started, color=INK, linewidth=1, label="start, predicted")
    axes.plot(PLACES[steady], STEP * sharp[steady], "o", color=GOOD, markersize=5, label="stays")
    axes.plot(PLACES[~steady], STEP * sharp[~steady], "o", color=BAD, markersize=5, label="leaves, comes to rest")
    axes.axhline(2, color=MUTED, linestyle=":", linewidth=1)
    axes.set(title="Large steps leave sharp points", xlabel="place s on the orbit", ylabel=r"$\eta\,\lambda_{\max}$")
    axes.legend(loc="upper left")


with matplotlib.rc_context(STYLE):
    figure = Figure(figsize=(11.5, 3.5), layout="constrained")
    first, second, third = figure.subplots(1, 3)
    profile.plot(first)
    draw_rest(second)
    draw_edge(third)
    if folder := os.environ.get("NOETHERFLOW_FIGURES"):
        figure.savefig(Path(folder, "orbit_flatness.png"), dpi=150)
figure

# %% [markdown]
# ## Verdict

# %%
claims = {
    "derivatives along an orbit are those of one point, carried": max(apart.values()) < ROUNDING,
    "a step moves down the gradient's mean square, by the predicted amount": order.slope > 3.5 and min(moved) > 0,
    "label noise comes to rest at the flattest point": rest.holds,
    "gradient descent rests only where 2/η allows": bool(
        (away[steady] < 2).all() and (away[~steady] > 1e3).all() and edge[0] < 2 < edge[1]
    ),
}
failed = [claim for claim, holds in claims.items() if not holds]
if failed:
    raise AssertionError(f"Flatness along orbits fails: {'; '.join(failed)}. {apart} {order} {rest} {away} {edge}")
