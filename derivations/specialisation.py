# sources: own, xiao2017fashion

# %% [markdown]
# # Specialisation: when identical units become different
#
# **Claim** (own). A network whose units start identical first learns as a network of *one* unit. It comes to rest at that network's
# minimum $\theta^*$, a saddle of the whole, which it leaves along the lowest eigenvector of the Hessian across the fixed subspace. Under
# gradient descent a perturbation of size $\varepsilon$ then grows by $1 + \eta|\lambda|$ a step, so units become different at the step
#
# $$ T(\varepsilon) = \text{const} + \frac{\ln(1/\varepsilon)}{\ln(1+\eta|\lambda_{\min}(H_\perp)|)} . $$
#
# Their selectivity for classes changes at this step and not before.
#
# **Assumptions.** A smooth network (tanh); full batches; a perturbation small enough for the symmetric run to come to rest first. Before
# rest the slope is not that of the saddle, and for noise that keeps coming the last kick counts, not the first.

# %%
import itertools
import math
import os
from pathlib import Path

import matplotlib
import sympy as sp
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

import noetherflow as nf
from noetherflow.numeric.palette import ACCENTS, BAD, GOOD, INK, MUTED, STYLE
from noetherflow.numeric.selectivity import onset, selectivity
from noetherflow.symbolic.discrete_elements import swaps

torch.set_num_threads(1)  # rounding then depends on no scheduler

# %% [markdown]
# ## 1. The time of an escape

# %%
eta, rate, size, level, start, steps = sp.symbols("eta lambda epsilon ell c T", positive=True)
grown = start * size * (1 + eta * rate) ** steps
(when,) = sp.solve(sp.Eq(sp.log(start) + sp.log(size) + steps * sp.log(1 + eta * rate), sp.log(level)), steps)
slope = sp.simplify(-sp.diff(when, size) * size)
assert sp.simplify(slope - 1 / sp.log(1 + eta * rate)) == 0
assert sp.simplify(when.subs(size, size / 10) - when - sp.log(10) / sp.log(1 + eta * rate)) == 0, "ten times smaller: a fixed time later"

# %% [markdown]
# ## 2. Real images
#
# Fashion-MNIST (`xiao2017fashion`), 200 images averaged to 14 × 14, six tanh units; weight decay lets the symmetric run come to rest.

# %%
HIDDEN, SIDE, RATE, DECAY = 6, 14, 0.1, 0.05
(pair,) = nf.data.fashion_mnist_subset().batches(200, seed=0, steps=1, dtype=torch.float64)
INPUTS, LABELS = nn.functional.avg_pool2d(pair[0], 28 // SIDE).flatten(1), pair[1]
CLASSES = 10
EPSILONS = [1e-5 / 10**k for k in range(5)]
REST, STEPS, EVERY, LEVEL = 1500, 1000, 10, 0.03


class Run:
    """Networks side by side: reads (runs, units, pixels), biases, writes (runs, units, classes), biases of the classes."""

    def __init__(self, runs: int) -> None:
        drawn = torch.Generator().manual_seed(0)
        one = torch.randn(SIDE**2 + 1 + CLASSES, generator=drawn, dtype=torch.float64) * 0.05
        units = one.expand(runs, HIDDEN, -1).clone()
        self.reads, self.bias, self.writes = (part.clone() for part in units.split([SIDE**2, 1, CLASSES], -1))
        self.classes = torch.zeros(runs, CLASSES, dtype=torch.float64)

    def perturb(self, sizes: list[float]) -> None:
        """The same direction in every run, of different sizes."""
        drawn = torch.Generator().manual_seed(1)
        noise = torch.randn(HIDDEN, SIDE**2 + 1 + CLASSES, generator=drawn, dtype=torch.float64)
        noise = (noise - noise.mean(0)) / (noise - noise.mean(0)).norm()
        for part, change in zip((self.reads, self.bias, self.writes), noise.split([SIDE**2, 1, CLASSES], -1), strict=True):
            part += torch.tensor(sizes, dtype=torch.float64)[:, None, None] * change

    def hidden(self) -> Tensor:
        """Shape (runs, images, units)."""
        return torch.tanh((self.reads @ INPUTS.T + self.bias).mT)

    def step(self) -> Tensor:
        """One step of gradient descent on cross-entropy with weight decay; the size of the step, one a run."""
        hidden = self.hidden()
        error = (hidden @ self.writes + self.classes[:, None]).softmax(-1)
        error[:, torch.arange(len(LABELS)), LABELS] -= 1
        error = error / len(LABELS)
        slope = (error @ self.writes.mT) * (1 - hidden**2)
        gradients = (slope.mT @ INPUTS, slope.sum(1)[..., None], hidden.mT @ error, error.sum(1))
        parts = (self.reads, self.bias, self.writes, self.classes)
        changes = [RATE * (g + DECAY * part) for g, part in zip(gradients, parts, strict=True)]
        for part, change in zip(parts, changes, strict=True):
            part -= change
        return torch.stack([change.flatten(1).square().sum(1) for change in changes]).sum(0).sqrt()

    def tie(self) -> None:
        """Back onto the fixed subspace: rounding alone would leave it in time."""
        for part in (self.reads, self.bias, self.writes):
            part.copy_(part.mean(1, keepdim=True).expand_as(part))

    def spread(self) -> Tensor:
        """√Σ‖ψ_i - ψ̄‖² of each run: how far its units are apart."""
        squares = [(part - part.mean(1, keepdim=True)).square().sum((1, 2)) for part in (self.reads, self.bias, self.writes)]
        return torch.stack(squares).sum(0).sqrt()

    def network(self, run: int) -> nn.Module:
        """One of the networks as a module."""
        model = nf.models.MLP([SIDE**2, HIDDEN, CLASSES], "tanh").double()
        values = (self.reads[run], self.bias[run, :, 0], self.writes[run].T, self.classes[run])
        with torch.no_grad():
            for parameter, value in zip(model.parameters(), values, strict=True):
                parameter.copy_(value)
        return model


def escape_rate(run: Run) -> float:
    """η times the lowest eigenvalue across all permutations of the units, weight decay included, negative."""
    model = run.network(0)
    group = nf.discrete_symmetries(nf.trace(model, INPUTS))
    subspace = nf.fixed_subspace(group, swaps(group, 0, (0, 1)), model)  # one pair will do: the others have the same rates
    return -RATE * (nf.transverse_hessian(model, INPUTS, LABELS, subspace=subspace).lowest + DECAY)


rest = Run(1)
for _ in range(REST):
    rest.step()
    rest.tie()
rates = [escape_rate(rest)]

runs = Run(len(EPSILONS))
for name in ("reads", "bias", "writes", "classes"):
    getattr(runs, name).copy_(getattr(rest, name).expand_as(getattr(runs, name)))
runs.perturb(EPSILONS)
spreads, records, selective, shuffled = [runs.spread()], [0], [], []
mixed = LABELS[torch.randperm(len(LABELS), generator=torch.Generator().manual_seed(5))]
for step in range(STEPS + 1):
    if step % EVERY == 0:
        first_run = runs.hidden()[0]
        selective.append(selectivity(first_run, LABELS))
        shuffled.append(selectivity(first_run, mixed))
        records.append(step)
    runs.step()
    spreads.append(runs.spread())
for _ in range(STEPS):
    rest.step()
    rest.tie()
rates.append(escape_rate(rest))
SPREAD, SELECTIVE, SHUFFLED = torch.stack(spreads), torch.stack(selective), torch.stack(shuffled)
records = records[1:]

# %% [markdown]
# ### The step at which units differ
#
# Ten times smaller perturbations take a fixed number of steps longer, between the predictions of the saddle's rate at the start and at
# the end of the window (the symmetric run still creeps). The lowest curvature of the start, of the unrestricted Hessian, or of one unit
# alone would give others.

# %%
onsets = [onset(range(len(SPREAD)), SPREAD[:, k].log().tolist(), math.log(LEVEL)) for k in range(len(EPSILONS))]
waits = [later - earlier for earlier, later in itertools.pairwise(onsets)]
told = sorted(math.log(10) / math.log1p(rate) for rate in rates)
fresh = Run(1)
wrong = math.log(10) / math.log1p(escape_rate(fresh)) if escape_rate(fresh) > 0 else math.inf
between = [rates[0] + (rates[1] - rates[0]) * (early + late) / 2 / STEPS for early, late in itertools.pairwise(onsets)]
local = [math.log(10) / math.log1p(rate) for rate in between]
gaps = [abs(wait / one - 1) for wait, one in zip(waits, local, strict=True)]
assert all(told[0] < wait < told[1] for wait in waits), (waits, told)
# the rate moves by a quarter over the window; what a line leaves of it is of second order in that, a few per cent at most
assert max(gaps) < 0.02, (waits, local)
assert all(abs(wait / wrong - 1) > 0.5 for wait in waits), (waits, wrong)
waits, local, wrong

# %% [markdown]
# ### Selectivity
#
# The share of a unit's variance that the class explains. Until the escape all six units have the same; then they part. Shuffled labels
# give what chance gives, $(C-1)/(n-1)$ on average over labellings.

# %%
ranges = (SELECTIVE.amax(1) - SELECTIVE.amin(1)).tolist()
parted = onset(records, ranges, 0.01)
chance = (CLASSES - 1) / (len(LABELS) - 1)
calm = max(r for r, step in zip(ranges, records, strict=True) if step < onsets[0] - 3 * waits[0])
assert calm < 1e-3, "a thousand times smaller than the level at three decades before the onset"
assert abs(parted - onsets[0]) < 2 * waits[0], (parted, onsets[0])
assert float(SELECTIVE[-1].min()) > 3 * float(SHUFFLED[-1].max()) > 0, (SELECTIVE[-1], SHUFFLED[-1])
model = runs.network(0)
final = nf.order_parameters(model, nf.trace(model, INPUTS)).classes[0]
assert final.distinct == HIDDEN
assert final.stabilizer == 1
parted, chance, ranges[0], ranges[-1], final.participation

# %% [markdown]
# ## 3. The figure


# %%
def draw_spread(axes: Axes) -> None:
    for k, size in enumerate(EPSILONS):
        axes.semilogy(SPREAD[:, k], color=ACCENTS[k], linewidth=1.2, label=f"{size:.0e}")
        axes.plot(onsets[k], LEVEL, "o", color=ACCENTS[k], markersize=4)
    axes.axhline(LEVEL, color=MUTED, linewidth=0.8, linestyle="--")
    axes.set(title="How far the units are apart", xlabel="step after the perturbation", ylabel="√Σ‖ψᵢ − ψ̄‖²")
    axes.legend(title="ε", title_fontsize=8, loc="lower right", ncols=2)


def draw_waits(axes: Axes) -> None:
    decades = [-math.log10(size) for size in EPSILONS]
    told_onsets = [onsets[0]]
    for one in local:
        told_onsets.append(told_onsets[-1] + one)
    axes.plot(decades, onsets, "o", color=ACCENTS[0], markersize=6, label="measured")
    axes.plot(decades, told_onsets, color=GOOD, linewidth=1.3, label="ln 10 / ln(1 + η|λ|) a decade")
    axes.plot(decades, [onsets[0] + wrong * k for k in range(len(decades))], color=BAD, linestyle="--", label="with the λ of the start")
    axes.set(title="The step at which they differ", xlabel="log₁₀ 1/ε", ylabel="step", ylim=(200, None))
    axes.legend(loc="upper left")


def draw_selectivity(axes: Axes) -> None:
    for unit in range(HIDDEN):
        axes.plot(records, SELECTIVE[:, unit], color=ACCENTS[unit], linewidth=1.3)
    axes.plot(records, SHUFFLED.mean(1), color=MUTED, linewidth=1, linestyle=":", label="labels shuffled")
    axes.axvline(onsets[0], color=INK, linewidth=0.8, linestyle="--", label="units differ")
    axes.set(title=f"Selectivity η² of the six units, ε = {EPSILONS[0]:.0e}", xlabel="step after the perturbation", ylim=(0, 1.02))
    axes.legend(loc="center right")


def draw_filter(axes: Axes, weights: Tensor, title: str) -> None:
    shown = weights.reshape(SIDE, SIDE).numpy()
    reach = abs(shown).max()
    axes.imshow(shown, cmap="RdBu_r", vmin=-reach, vmax=reach, interpolation="nearest")
    axes.set(title=title, xticks=[], yticks=[])
    axes.grid(False)


with matplotlib.rc_context(STYLE):
    figure = Figure(figsize=(12.5, 6.2), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(1.7, 1))
    for draw, axes in zip((draw_spread, draw_waits, draw_selectivity), above.subplots(1, 3), strict=True):
        draw(axes)
    pictures = below.subplots(1, HIDDEN + 1)
    draw_filter(pictures[0], rest.reads[0, 0], "all six, before")
    for unit, axes in enumerate(pictures[1:]):
        draw_filter(axes, runs.reads[0, unit], f"unit {unit + 1}, after")
    if folder := os.environ.get("NOETHERFLOW_FIGURES"):
        figure.savefig(Path(folder, "specialisation.png"), dpi=150)
figure

# %% [markdown]
# ## Verdict

# %%
claims = {
    "each decade of ε costs the steps that the rate across tells": max(gaps) < 0.02,
    "and not what the start's rate tells": all(abs(wait / wrong - 1) > 0.5 for wait in waits),
    "selectivities are equal before and part at the onset": calm < 1e-3 and abs(parted - onsets[0]) < 2 * waits[0],
    "selectivity is far above that of shuffled labels": float(SELECTIVE[-1].min()) > 3 * float(SHUFFLED[-1].max()),
    "all units are different in the end": final.distinct == HIDDEN,
}
failed = [claim for claim, holds in claims.items() if not holds]
if failed:
    raise AssertionError(f"Specialisation fails: {'; '.join(failed)}. {onsets} {waits} {local} {parted}")
