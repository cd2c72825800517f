# sources: marcotte2024keep, tanaka2021noether, own, higham2019probabilistic, xiao2017fashion

# %% [markdown]
# # Angular momentum: what a rotation has in place of a charge
#
# **Claim** (`marcotte2024keep`, for two-layer linear networks). Along the momentum flow
# $\ddot\theta + \gamma\dot\theta + \nabla f(\theta) = 0$ an antisymmetric generator $\xi(\theta) = A\theta$ of a symmetry of $f$
# conserves $e^{\gamma t}\langle A\theta, \dot\theta\rangle$, and a symmetric one conserves nothing.
#
# **Claim** (own). At any step size, for every mini-batch and without remainder, SGD with buffer $b$ (after the step, as $\theta$ is) obeys
#
# $$ K := \langle A\theta, b\rangle: \qquad K' = \mu K \quad\text{(heavy ball, any weight decay, any dampening)}, \tag{1} $$
#
# $$ K' = \mu(1 - \eta\lambda)\,K + \eta\mu\,\langle A b, g\rangle \quad\text{(Nesterov)}, \tag{2} $$
#
# and without momentum the step itself is bound, $\langle A\theta, \theta' - \theta\rangle = 0$. All rotations of a stream of width $n$ are
# one matrix equation for $K = \sum_P (b_P P^\top - P b_P^\top)$.
#
# **Assumptions.** The symmetry holds for each batch that is used; $A$ is antisymmetric and constant: no gain between the rotation and the
# weights. `tanaka2021noether` have the limit (1) as $m\dot P + \mu P = 0$.

# %%
import os
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import sympy as sp
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

import noetherflow as nf
from noetherflow.bridge.momentum_monitor import MomentumMonitor
from noetherflow.bridge.watch import Watch
from noetherflow.numeric.findings import FamilyRecord
from noetherflow.numeric.palette import ACCENTS, BAD, GOOD, INK, STYLE
from noetherflow.numeric.recorded import open_run
from noetherflow.symbolic.angular import ANGULAR, Wedge, derive_momentum
from noetherflow.symbolic.balance import CURRENT
from noetherflow.symbolic.lagrangians import heavy_ball
from noetherflow.symbolic.pairings import Vector
from noetherflow.symbolic.rules import GRADIENT, sgd_form

torch.set_num_threads(1)  # rounding then depends on no scheduler
torch.set_default_dtype(torch.float64)
eta, decay, mu, tau = sp.symbols("eta lambda mu tau", real=True)

# %% [markdown]
# ## 1. By hand
#
# With $b' = \mu b + (1-\tau)(g + \lambda\theta)$ and $\theta' = \theta - \eta u$,
#
# $$ K' = \langle A\theta, b'\rangle - \eta\langle A u, b'\rangle . $$
#
# $\langle A\theta,\theta\rangle = 0$ takes the decay away, $\langle A\theta, g\rangle = 0$ the gradient: the first term is $\mu K$.
# For heavy ball $u = b'$ and the second vanishes. For Nesterov $u = g + \lambda\theta + \mu b'$ leaves
# $-\eta\langle A(g + \lambda\theta), \mu b\rangle$. The package expands the same from the rule's update equations.

# %%
forms = {name: sgd_form(momentum=name != "plain", nesterov=name == "nesterov", maximize=False) for name in ("plain", "heavy", "nesterov")}
laws = {name: derive_momentum((form,), True).equations[0].rhs for name, form in forms.items()}
assert sp.expand(laws["heavy"] - (mu * ANGULAR + (1 - tau) * CURRENT)) == 0
assert sp.expand(laws["nesterov"] - (mu * (1 - eta * decay) * ANGULAR + (1 - tau) * CURRENT + eta * mu * Wedge(Vector("b"), GRADIENT))) == 0
assert sp.expand(laws["plain"] + eta * CURRENT) == 0

# %% [markdown]
# ## 2. The flow
#
# The Lagrangian of heavy ball gives $m\dot P + \mu P = 0$ for a rotation, with decay (a spring $k$) and all; a rescaling keeps its kinetic
# breaking. The limit of (1) and (2) with $\mu = 1 - \gamma h$, $\eta = h^2$ is the published law.

# %%
ball = heavy_ball(2)
x, y = ball.coordinates
rotation, rescaling = ball.noether((-y, x)), ball.noether((x, -y))
assert rotation.kinetic_breaking == rotation.explicit_breaking == 0
assert rotation.charge is None
assert rescaling.kinetic_breaking != 0
t = sp.Symbol("t", nonnegative=True)
gamma = sp.Symbol("gamma", positive=True)
published = sp.Eq(sp.Derivative(sp.exp(gamma * t) * sp.Function("P")(t), t), 0)

# %% [markdown]
# ## 3. A real network
#
# A residual stream that RMSNorms read without gains: all its rotations are symmetries, $n(n-1)/2$ of them. It learns Fashion-MNIST
# (`xiao2017fashion`). The buffers are pushed at the start, so that there is an angular momentum; from rest it is zero and stays zero.

# %%
WIDTH, HIDDEN, STEPS, BATCH, RATE, BETA, DECAY = 16, 32, 60, 32, 0.05, 0.9, 1e-2
IMAGES = nf.data.fashion_mnist_subset()


class Stream(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out = nn.Linear(196, WIDTH, bias=False), nn.Linear(WIDTH, 10)
        self.up, self.down = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)
        self.norms = nn.ModuleList(nn.RMSNorm(WIDTH, elementwise_affine=False) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(nn.functional.avg_pool2d(x, 2).flatten(1))
        x = x + self.down(torch.relu(self.up(self.norms[0](x))))
        return self.out(self.norms[1](x))


def trained(options: dict, *, push: bool, wrong: bool = False, clip: float = 0.0) -> Watch:
    """A watched run; with one consumer turned the wrong way, or with gradients clipped by value."""
    torch.manual_seed(3)
    model = Stream()
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, **options)
    for p in model.parameters() if push else ():
        optimizer.state[p]["momentum_buffer"] = 0.02 * torch.randn(p.shape)
    example, _ = next(iter(IMAGES.batches(BATCH, seed=0, steps=1, dtype=torch.float64)))
    run = nf.watch(model, optimizer, "cross_entropy", example)
    if wrong:
        (law,) = run.laws.momenta
        *others, last = law.symmetry.actions
        turned = replace(law, symmetry=replace(law.symmetry, actions=(*others, replace(last, weight=-last.weight))))
        MomentumMonitor.__init__(run.momenta, [turned], run.momenta.state, run.momenta.lengths)
    with run:
        for images, labels in IMAGES.batches(BATCH, seed=1, steps=STEPS, dtype=torch.float64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            if clip:
                nn.utils.clip_grad_value_(model.parameters(), clip)
            optimizer.step()
    return run


def found(run: Watch) -> FamilyRecord:
    (family,) = (f for f in run.report().families if f.quantity == "momenta")
    return family


OPTIONS = {
    "plain": {"weight_decay": DECAY},
    "heavy ball": {"momentum": BETA, "weight_decay": DECAY},
    "Nesterov": {"momentum": BETA, "weight_decay": DECAY, "nesterov": True},
}
runs = {name: trained(options, push=name != "plain") for name, options in OPTIONS.items()}
families = {name: found(run) for name, run in runs.items()}
flows = {name: run.laws.momenta[0].flow for name, run in runs.items()}
for name, family in families.items():
    assert family.charges == WIDTH * (WIDTH - 1) // 2
    assert family.verdict == "exact", (name, family)
    print(f"{name}: motion {family.motion:.1e}, residual {family.residual:.0e}, {family.ratio:.2f} of the bound")
assert flows["heavy ball"] == flows["Nesterov"] == published
assert flows["plain"] == sp.Eq(sp.Function("P")(t), 0)

# %% [markdown]
# Heavy ball shrinks the whole matrix by $\mu^n$, to rounding, though weights decay; for Nesterov that is wrong by what (2) adds.

# %%
paths = {name: open_run(run.directory).column("measured", families[name].name)[:, 0] for name, run in runs.items()}
powers = BETA ** np.arange(STEPS + 1)
gap = {name: float(np.abs(path - path[0] * powers).max() / abs(path[0])) for name, path in paths.items() if name != "plain"}
assert gap["heavy ball"] < 1e-12, gap
assert gap["Nesterov"] > 1e-3, gap

# %% [markdown]
# From rest there is none, and there it is the wrong laws that show: a consumer turned the wrong way, or gradients clipped by value.

# %%
rest = found(trained(OPTIONS["heavy ball"], push=False))
turned = found(trained(OPTIONS["heavy ball"], push=False, wrong=True))
clipped = found(trained(OPTIONS["heavy ball"], push=False, clip=1e-3))
assert rest.verdict == "exact"
assert rest.motion < 1e-13 * rest.scale
assert turned.verdict == clipped.verdict == "failed", (turned, clipped)

# %% [markdown]
# ## 4. The figure

# %%


def draw_paths(axes: Axes) -> None:
    for (name, path), colour in zip(((n, p) for n, p in paths.items() if n != "plain"), (GOOD, ACCENTS[0]), strict=True):
        axes.semilogy(np.abs(path / path[0]), color=colour, linewidth=1.6, label=f"{name}, measured")
    axes.semilogy(powers, color=INK, linewidth=0.8, linestyle=(0, (4, 3)), label=r"$\mu^n$")
    axes.set(title="One angular momentum of the stream", xlabel="step", ylabel=r"$|K_n / K_0|$")
    axes.legend(loc="lower left")


def draw_ratios(axes: Axes) -> None:
    shown = {"plain": families["plain"], "heavy ball": families["heavy ball"], "Nesterov": families["Nesterov"], "from rest": rest}
    ratios = {name: f.ratio for name, f in shown.items()} | {"turned the wrong way": turned.ratio, "clipped by value": clipped.ratio}
    axes.barh(list(ratios), list(ratios.values()), color=[GOOD if r <= 1 else BAD for r in ratios.values()])
    axes.axvline(1, color=INK, linewidth=0.8)
    axes.set(title="Largest residual over its bound", xscale="log")
    axes.invert_yaxis()


with matplotlib.rc_context(STYLE):
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    for draw, axes in zip((draw_paths, draw_ratios), figure.subplots(1, 2), strict=True):
        draw(axes)
    if folder := os.environ.get("NOETHERFLOW_FIGURES"):
        figure.savefig(Path(folder, "angular_momentum.png"), dpi=150)
figure

# %% [markdown]
# ## Verdict

# %%
claims = {
    "the published law of the momentum flow is the limit of the discrete one": flows["heavy ball"] == flows["Nesterov"] == published,
    "the discrete laws hold to rounding in real runs": all(family.verdict == "exact" for family in families.values()),
    "heavy ball shrinks it by the momentum, whatever the decay": gap["heavy ball"] < 1e-12,
    "Nesterov does not": gap["Nesterov"] > 1e-3,
    "from rest it is zero": rest.verdict == "exact" and rest.motion < 1e-13 * rest.scale,
    "a wrong rotation and clipping by value are rejected": turned.ratio > 1 and clipped.ratio > 1,
}
failed = [claim for claim, holds in claims.items() if not holds]
if failed:
    raise AssertionError(f"The law of angular momentum fails: {'; '.join(failed)}. Gaps: {gap}.")
