# sources: own, zhao2022symmetry, saul2023weight, xiao2017fashion

# %% [markdown]
# # A symmetry-aware optimizer: what moving along the orbit between steps is worth
#
# **Claim** (own). Gradient descent depends on where on its orbit a network stands, its function does not. Carried along the orbit to the
# balanced point (`saul2023weight`) before every step, with momentum carried along by $g^{-\top}$, a run goes through functions that do
# *not* depend on the place that it was started at. From a start that is out of balance this learns faster than plain SGD at the best step
# size of each; from a standard initialisation, which is nearly balanced, the two are the same: rebalancing repairs, it does not
# accelerate. Teleportation to larger gradients (`zhao2022symmetry`) speeds up the first steps.
#
# **Assumptions.** A network with ReLU units, whose balanced point is unique. The comparison is of one task: 14 × 14 images of Fashion-MNIST
# (`xiao2017fashion`), mini-batches, several seeds, the same grid of step sizes for all.

# %%
import os
import time
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
import sympy as sp
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F

import noetherflow as nf
from noetherflow.bridge.teleport import squared_gradient
from noetherflow.numeric.palette import ACCENTS, BAD, GOOD, INK, MUTED, STYLE
from noetherflow.numeric.statistics import judge
from noetherflow.symbolic.symmetries import Symmetries

torch.set_num_threads(1)  # rounding then depends on no scheduler

# %% [markdown]
# ## 1. Why the place matters
#
# For $f = uwx$ at a minimum of the mean square, the curvature across the valley is $\mathbb E x^2\,(u^2+w^2)$. Along the orbit
# $(e^{-s}u, e^sw)$ it is least where $u^2 = w^2$: the balanced point bears the largest step, $\eta < 2/(2|uw|\,\mathbb E x^2)$.

# %%
u, w, s, x2, y = sp.symbols("u w s x2 y", positive=True)
loss = x2 * (u * w - y) ** 2 / 2
hessian = sp.hessian(loss, (u, w)).subs(y, u * w)
values = [value for value in hessian.eigenvals() if value != 0]
assert [sp.simplify(value - x2 * (u**2 + w**2)) for value in values] == [0]
curvature = values[0].subs({u: u * sp.exp(-s), w: w * sp.exp(s)}, simultaneous=True)
flattest = sp.log(u / w) / 2
assert sp.simplify(sp.diff(curvature, s).subs(s, flattest)) == 0
assert sp.simplify(curvature.subs(s, flattest) - 2 * x2 * u * w) == 0

# %% [markdown]
# ## 2. The start is forgotten, exactly
#
# Two starts on one orbit, the second with every hidden unit scaled by $e^{\xi}$, $\xi$ normal. With rebalancing at once and before each
# step their outputs agree to rounding all along, with momentum and weight decay; without it they do not.

# %%
IMAGES = nf.data.fashion_mnist_subset()
SIDE, HIDDEN, BATCH = 14, 32, 50


class Run(NamedTuple):
    losses: list[float]
    seconds: list[float]
    outputs: list[Tensor]


@lru_cache
def batches(seed: int, steps: int, dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
    drawn = IMAGES.batches(BATCH, seed=seed, steps=steps, dtype=dtype)
    return [(F.adaptive_avg_pool2d(images, SIDE).flatten(1), labels) for images, labels in drawn]


known: dict[torch.dtype, Symmetries] = {}


def network(seed: int, scrambled: float, dtype: torch.dtype) -> nn.Sequential:
    torch.default_generator.manual_seed(seed)
    sizes = (SIDE**2, HIDDEN, HIDDEN, 10)
    model = nn.Sequential(nn.Linear(*sizes[:2]), nn.ReLU(), nn.Linear(*sizes[1:3]), nn.ReLU(), nn.Linear(*sizes[2:])).to(dtype)
    drawn = torch.Generator().manual_seed(seed)
    if dtype not in known:
        known[dtype] = nf.symmetries(nf.trace(model, torch.zeros(2, SIDE**2, dtype=dtype)))
    for family in known[dtype]:
        direction = scrambled * torch.randn(HIDDEN, generator=drawn, dtype=dtype)
        model.load_state_dict({**model.state_dict(), **family.transform(dict(model.named_parameters()), direction)})
    return model


def trained(model: nn.Sequential, seed: int, rate: float, steps: int, between: str = "", decay: float = 0.0) -> Run:
    """SGD with momentum; 'exact' and 'balance' move at once and after each, or every fortieth, step; 'teleport' only at once."""
    dtype = next(model.parameters()).dtype
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9, weight_decay=decay)
    ((probe, labels),) = batches(99, 1, dtype)
    every = {"balance": 40, "exact": 1, "teleport": 10**9}.get(between)
    moving = None
    if every:
        objective = squared_gradient(model, F.cross_entropy, probe, labels) if between == "teleport" else None
        options = {"steps": 10, "radius": 0.5} if objective else {}
        moving = nf.between_steps(optimizer, model, known[dtype], every=every, objective=objective, **options)
        moving.move()
    found, start = Run([], [], []), time.process_time()
    for images, target in batches(seed, steps, dtype):
        optimizer.zero_grad()
        value = F.cross_entropy(model(images), target)
        value.backward()
        optimizer.step()
        found.losses.append(float(value.detach()))
        found.seconds.append(time.process_time() - start)
        if decay:
            found.outputs.append(model(probe).detach())
    return found


def apart(between: str) -> float:
    """Largest difference of outputs from the two starts, relative to the outputs."""
    runs = [trained(network(0, scrambled, torch.float64), 0, 0.02, 40, between, 1e-3).outputs for scrambled in (0.0, 0.7)]
    first, second = (torch.stack(outputs) for outputs in runs)
    return float((first - second).abs().max() / first.abs().max())


ROUNDING = 2.0**-53 * 2**14  # of sums of some hundred terms, amplified by 40 steps that learn
differences = {name: apart(name) for name in ("exact", "")}
assert differences["exact"] < ROUNDING, differences
assert differences[""] > 1e6 * ROUNDING, differences
differences

# %% [markdown]
# ## 3. Loss against steps and seconds
#
# Mean loss of the last 30 of 120 steps, in single precision, each rule at the best of the same two step sizes. With rebalancing one start
# is as good as another (section 2), so it is run once; charges move by $\eta^2$ only, so every fortieth step will do. Plain SGD is run from
# the standard initialisation and from a scrambled one.

# %%
RATES, STEPS, SEEDS, SCRAMBLED = (0.015, 0.03), 120, range(6), 1.4
histories: dict[tuple[float, str], Run] = {}


def tuned(scrambled: float, between: str) -> np.ndarray:
    """Logarithms of the final losses of all seeds, at the step size that is best on average."""
    best = np.full(len(SEEDS), np.inf)
    for rate in RATES:
        runs = [trained(network(seed, scrambled, torch.float32), seed, rate, STEPS, between) for seed in SEEDS]
        finals = np.log([np.mean(run.losses[-30:]) for run in runs])
        if np.isfinite(finals).all() and finals.mean() < best.mean():
            best = finals
            histories[scrambled, between] = runs[0]
    return best


balanced = tuned(0.0, "balance")
plain = {start: tuned(start, "") for start in (0.0, SCRAMBLED)}
gains = {start: finals - balanced for start, finals in plain.items()}
# What a start out of balance costs plain SGD: the mean over seeds is the estimate, and nothing is the sibling to reject.
cost = judge(gains[SCRAMBLED], float(gains[SCRAMBLED].mean()), {"nothing": 0.0})
standard = float(gains[0.0].mean())
assert cost.rejected["nothing"], cost
assert gains[SCRAMBLED].mean() > 0, cost
assert abs(standard) < gains[SCRAMBLED].mean() / 3, (standard, cost)
overhead = histories[0.0, "balance"].seconds[-1] / histories[0.0, ""].seconds[-1]
histories[0.0, "teleport"] = trained(network(0, 0.0, torch.float32), 0, 0.03, STEPS, "teleport")
f"lost by a start out of balance: {cost.interval} of log loss; from the standard start {standard:.3f}; seconds × {overhead:.2f}"

# %% [markdown]
# ## 4. A network without symmetries has nowhere to go
#
# The negative control: in the twin of the same network with as few weights held as remove its symmetries, moving is nothing, bit for bit.

# %%
twins = [nf.without_symmetries(network(0, 0.0, torch.float64), torch.zeros(2, SIDE**2, dtype=torch.float64)).model for _ in range(2)]
ends = []
for twin, aware in zip(twins, (False, True), strict=True):
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.03, momentum=0.9)
    if aware:
        assert nf.between_steps(optimizer, twin, torch.zeros(2, SIDE**2, dtype=torch.float64)).move() is None
    for images, target in batches(0, 40, torch.float64)[:5]:
        optimizer.zero_grad()
        F.cross_entropy(twin(images), target).backward()
        optimizer.step()
    ends.append(torch.cat([p.detach().flatten() for p in twin.parameters()]))
nowhere = torch.equal(*ends)
assert nowhere

# %% [markdown]
# ## 5. The figure

# %%
SHOWN = {
    (0.0, "balance"): ("rebalanced, any start", GOOD),
    (0.0, ""): ("plain, standard start", INK),
    (SCRAMBLED, ""): ("plain, scrambled start", BAD),
    (0.0, "teleport"): ("teleported once, η = 0.03", ACCENTS[1]),
}


def smooth(values: list[float]) -> np.ndarray:
    return np.convolve(values, np.ones(8) / 8, "valid")


def draw_forgotten(axes: Axes) -> None:
    for scrambled, colour in ((0.0, ACCENTS[0]), (0.7, ACCENTS[1])):
        for between, style in (("exact", "-"), ("", ":")):
            outputs = torch.stack(trained(network(0, scrambled, torch.float64), 0, 0.02, 40, between, 1e-3).outputs)
            width = 4 if between and not scrambled else 1.4
            axes.plot(outputs[:, 0, 0], color=colour, linestyle=style, linewidth=width, alpha=0.4 if width > 2 else 1)
    for style, name in (("-", "rebalanced: one curve"), (":", "plain: two")):
        axes.plot([], [], color=INK, linestyle=style, label=name)
    axes.set(title="One output, two starts on one orbit", xlabel="step", ylabel="logit")
    axes.legend()


def draw_steps(axes: Axes) -> None:
    for key, (name, colour) in SHOWN.items():
        axes.plot(smooth(histories[key].losses), color=colour, linewidth=1.3, label=name)
    axes.set(title="Loss against steps", xlabel="step", ylabel="mini-batch loss, smoothed", yscale="log")
    axes.legend()


def draw_seconds(axes: Axes) -> None:
    for key, (_, colour) in SHOWN.items():
        axes.plot(histories[key].seconds[7:], smooth(histories[key].losses), color=colour, linewidth=1.3)
    axes.axvline(0, color=MUTED, linewidth=0.6)
    axes.set(title="Loss against seconds", xlabel="seconds of one core", yscale="log")


with matplotlib.rc_context(STYLE):
    figure = Figure(figsize=(11.5, 3.5), layout="constrained")
    for draw, axes in zip((draw_forgotten, draw_steps, draw_seconds), figure.subplots(1, 3), strict=True):
        draw(axes)
    if folder := os.environ.get("NOETHERFLOW_FIGURES"):
        figure.savefig(Path(folder, "symmetry_aware_optimizer.png"), dpi=150)
figure

# %% [markdown]
# ## Verdict

# %%
claims = {
    "with rebalancing the start on the orbit is forgotten": differences["exact"] < ROUNDING < differences[""],
    "a start out of balance costs plain SGD, the standard start does not": cost.rejected["nothing"]
    and abs(standard) < gains[SCRAMBLED].mean() / 3,
    "without symmetries nothing moves": nowhere,
}
failed = [claim for claim, holds in claims.items() if not holds]
if failed:
    raise AssertionError(f"The symmetry-aware optimizer fails: {'; '.join(failed)}. {differences} {cost} {standard}")
