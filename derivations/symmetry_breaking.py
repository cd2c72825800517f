# sources: ziyin2024symmetry, ziyin2025parameter, own, xiao2017fashion

# %% [markdown]
# # Breaking from a symmetric start
#
# **Claim** (`ziyin2024symmetry`). The points that a symmetry of the parameters fixes form a subspace which gradient descent does not leave,
# for every batch: units that start identical stay identical. Whether noise leaves it is decided by the Hessian across it.
#
# **What is shown here** (own).
#
# 1. The fixed subspace is kept by *every* rule that commutes with the symmetry, and a rule's equations say with which it commutes.
# 2. A perturbation $\delta$ across it obeys $\delta_{t+1} = (1-\eta H_\perp(\theta_t))\,\delta_t$ along the symmetric run, for momentum
#    and Adam the tangent of their own steps. What is left out is, relative to $\delta$, of order $\varepsilon^2$ for the swap of *two*
#    units and of order $\varepsilon$ for three or more.
# 3. "Bit-identical for ever" is a statement about arithmetic, not only about symmetry: it holds where every unit is computed by the same
#    sequence of operations. Blocked matrix products do not do that; they seed a breaking of one rounding, which grows at the same rate.
# 4. Which of the $N!$ copies a run chooses is carried by the perturbation: permuted noise gives the permuted network, and exchangeable
#    noise chooses all copies equally often.
#
# **Assumptions.** Twice differentiable networks (tanh); buffers that are symmetric at the start, as zeros are.

# %%
import os
from itertools import permutations
from pathlib import Path

import matplotlib
import sympy as sp
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from torch import Tensor, nn

import noetherflow as nf
from noetherflow.numeric.palette import ACCENTS, BAD, GOOD, INK, MUTED, STYLE
from noetherflow.symbolic.discrete_elements import swap, swaps
from noetherflow.symbolic.rules import sgd_form

torch.set_num_threads(1)  # rounding then depends on no scheduler

# %% [markdown]
# ## 1. Two exchanged numbers
#
# A function that is the same for $(a, b)$ and $(b, a)$ is a function $F(s, p)$ of $s = a+b$ and $p = ab$. At $a = b = w$ its gradient has
# equal entries, and across the diagonal the second derivative is $H_\perp = f_{aa} - f_{ab} = -F_p$. The difference of the slopes at
# $w \pm \varepsilon$ is odd in $\varepsilon$, so the linear law misses a *third* order. Three exchanged numbers have a symmetric cubic
# $\sum a_i^3$ whose slope across is even: there the law misses a second order.

# %%
a, b, w, s, p, small = sp.symbols("a b w s p epsilon", real=True)
F = sp.Function("F")
sums = {s: a + b, p: a * b}
F_s, F_p = (sp.diff(F(s, p), variable) for variable in (s, p))
f_a, f_b = (F_s + b * F_p), (F_s + a * F_p)  # chain rule
difference = sp.expand(f_a - f_b)
assert sp.simplify(difference - (b - a) * F_p) == 0
assert difference.subs({a: w, b: w}) == 0, "the diagonal is kept"
across = (sp.diff(difference.subs({a: w + small, b: w - small}), small) / 2).subs(small, 0)
assert sp.simplify(across + F_p) == 0, "H⊥ = -F_p"
# with F_p itself a function of s = 2w and p = w² - ε², the difference is odd in ε:
G = sp.Function("G")
odd = -2 * small * G(2 * w, w**2 - small**2)
assert sp.simplify(odd.subs(small, -small) + odd) == 0

contrast = sp.Matrix([1, 1, -2])
cubic_slope = sp.Matrix([3 * (w + small * c) ** 2 for c in contrast])
second = sp.expand((contrast.T * cubic_slope)[0]).coeff(small, 2)
assert second == -18, "not zero: quadratic terms lead from contrasts to contrasts"

# %% [markdown]
# ### Momentum
#
# In the tangent of SGD with momentum, $g$ becomes $h\delta$. Eliminating the buffer leaves a recursion over two steps, whose roots are the
# growth factors; for $h<0$ one is larger than one.

# %%
form = sgd_form(momentum=True, nesterov=False, maximize=False)
equations, numbers = dict(form.equations), dict(form.hyperparameters)
eta, mu, h, now, then = sp.symbols("eta mu h delta_now delta_then", real=True)
plain = {numbers["lr"]: eta, numbers["momentum"]: mu, numbers["weight_decay"]: 0, numbers["dampening"]: 0}
names = {str(v): v for v in (*equations, *(before for before, _ in form.buffers))}
buffer = (then - now) / eta  # what the last step was made of
after = equations[names["b'"]].subs(plain).subs({names["b"]: buffer, names["h"]: h * now})
following = sp.expand(now - eta * after)
assert sp.expand(following - ((1 + mu - eta * h) * now - mu * then)) == 0
root = sp.Symbol("r")
characteristic = root**2 - (1 + mu - eta * h) * root + mu
assert sp.expand(characteristic.subs(root, 1) - eta * h) == 0, "negative at r = 1 for h < 0: a root lies above"

# %% [markdown]
# ## 2. Which rules keep the fixed subspace
#
# Read off the update equations: linear rules commute with every orthogonal symmetry, functions of entries with permutations (and with signs
# if they are odd), Muon with what acts on whole rows and columns.

# %%
kept = {name: nf.equivariance(rule) for name, rule in (("SGD", nf.rules.SGD(momentum=0.9)), ("AdamW", nf.rules.AdamW()))}
entropic = nf.equivariance(nf.rules.MirrorDescent())
assert kept["SGD"].rotations
assert kept["SGD"].signs
assert kept["AdamW"].permutations
assert kept["AdamW"].signs
assert not kept["AdamW"].rotations
assert {str(v): parity for v, parity in kept["AdamW"].parities.items()} == {"m": -1, "v": 1}, "m turns with θ, v does not"
assert entropic.permutations
assert not entropic.signs
[str(found) for found in (*kept.values(), entropic)]

# %% [markdown]
# ## 3. Escape on real images
#
# 100 images of Fashion-MNIST (`xiao2017fashion`) averaged to 7 × 7, a tanh network of 4 units of which 2 (or 3) start identical. The
# prediction is made from the symmetric run alone.

# %%
DATA = nf.data.fashion_mnist_subset()


def batches(size: int, steps: int, pool: int = 4, dtype: torch.dtype = torch.float64) -> list[tuple[Tensor, Tensor]]:
    stream = DATA.batches(size, seed=0, steps=steps, dtype=dtype)
    return [(nn.functional.avg_pool2d(images, pool).flatten(1), labels) for images, labels in stream]


def duplicated(model: nn.Module, units: tuple[int, ...]) -> nn.Module:
    """The same model, its units made equal to the first of them."""
    with torch.no_grad():
        first, last = model.layers
        for unit in units[1:]:
            first.weight[unit], first.bias[unit] = first.weight[units[0]], first.bias[units[0]]
            last.weight[:, unit] = last.weight[:, units[0]]
    return model


def network(units: tuple[int, ...], hidden: int = 4, inputs: int = 49) -> nn.Module:
    torch.manual_seed(0)
    return duplicated(nf.models.MLP([inputs, hidden, 10], "tanh").double(), units)


STEPS = 80
FULL = batches(100, 1) * STEPS
RULES = {
    "gradient descent": lambda parameters: torch.optim.SGD(parameters, lr=0.4),
    "momentum": lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=1e-3),
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, lr=0.005),
}
SIZES = [5e-5 / 2**k for k in range(4)]
pair = network((0, 1))
GRAPH = nf.trace(pair, FULL[0][0])
GROUP = nf.discrete_symmetries(GRAPH)
direction = torch.randn(sum(q.numel() for q in pair.parameters()), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
of_two = nf.fixed_subspace(GROUP, swap(GROUP, 0, 0, 1), pair)
assert of_two.transverse_dimension == 49 + 1 + 10, "one difference of two units: what it reads, its bias, what it writes"
escapes = {
    name: nf.escape(pair, make, FULL, subspace=of_two, direction=direction, sizes=SIZES if name != "AdamW" else SIZES[:1])
    for name, make in RULES.items()
}
triple = network((0, 1, 2))
of_three = nf.fixed_subspace(GROUP, swaps(GROUP, 0, (0, 1, 2)), triple)
three = nf.escape(triple, RULES["gradient descent"], FULL, subspace=of_three, direction=direction, sizes=SIZES)
orders = {"two units": escapes["gradient descent"].order, "two units, momentum": escapes["momentum"].order, "three units": three.order}
assert abs(orders["two units"].slope - 2) < 0.1, orders
assert abs(orders["three units"].slope - 1) < 0.1, orders
assert all(run.leak < 1e-12 and run.mismatch < 1e-12 for run in (*escapes.values(), three)), "rounding of 80 steps, some 1e-15 each"
assert all(float(run.growth[-1]) > 1 for run in escapes.values()), "it grows"
escapes, {name: str(order) for name, order in orders.items()}

# %% [markdown]
# ### Wrong siblings, and when the symmetric run becomes unstable
#
# With $H_\perp$ the law is exact step by step. With the Hessian of the first step for all steps, with one that is not restricted to the
# complement (its lowest curvature), or with the wrong sign, it is rejected. Across three identical units every eigenvalue comes twice.

# %%
walking = network((0, 1))
descent = RULES["gradient descent"](walking.parameters())
ETA = descent.param_groups[0]["lr"]
basis = of_two.vectors.transverse()
delta = basis @ direction
delta = delta / delta.norm()
told = {"H⊥(θ_t)": delta.clone(), "H⊥ of the start": delta.clone(), "wrong sign": delta.clone()}
growths: dict[str, list[float]] = {name: [1.0] for name in told}
lowest, restricted, whole_lowest, start = [], [], [], None
for step, (images, labels) in enumerate(FULL):
    there = nf.transverse_hessian(walking, images, labels, subspace=of_two)
    matrix = there.matrix()
    start = matrix if start is None else start
    for name, curvature in (("H⊥(θ_t)", matrix), ("H⊥ of the start", start), ("wrong sign", -matrix)):
        told[name] = told[name] - ETA * curvature @ told[name]
        growths[name].append(float(told[name].norm()))
    if step % 4 == 0:
        lowest.append((step, float(torch.linalg.eigvalsh(matrix)[0])))
    descent.zero_grad()
    nn.functional.cross_entropy(walking(images), labels).backward()
    descent.step()
predicted = escapes["gradient descent"].growth
agreement = float((torch.tensor(growths["H⊥(θ_t)"], dtype=torch.float64) / predicted - 1).abs().max())
siblings = {name: abs(values[-1] / float(predicted[-1]) - 1) for name, values in growths.items() if name != "H⊥(θ_t)"}
assert agreement < 1e-10, agreement  # two ways of the same products: rounding of 80 steps of 60 terms, with condition below 1e3
assert min(siblings.values()) > 0.2, siblings
eigenvalues = nf.transverse_hessian(triple, *FULL[0], subspace=of_three).eigenvalues()
twice = float((eigenvalues[::2] - eigenvalues[1::2]).abs().max() / eigenvalues.abs().max())
assert twice < 1e-12, twice
single = nf.transverse_hessian(triple, *FULL[0], subspace=nf.fixed_subspace(GROUP, swap(GROUP, 0, 0, 1), triple)).eigenvalues()
assert float((single - eigenvalues[::2]).abs().max() / eigenvalues.abs().max()) < 1e-12, "the same rates as for one pair"
onset = next((step for step, value in lowest if value < 0), None)
agreement, siblings, twice, onset

# %% [markdown]
# An unrestricted Hessian cannot replace $H_\perp$: the block along the subspace has curvatures of its own.

# %%
probe = nf.transverse_hessian(pair, *FULL[0], subspace=of_two)
along = torch.linalg.qr(torch.eye(len(direction), dtype=torch.float64) - basis.T @ basis).Q[:, : of_two.dimension]
mixed = float((basis @ torch.stack([probe.whole(v) for v in along.T[:40]]).T).abs().max())
assert mixed < 1e-12 * float(probe.matrix().abs().max()) * len(direction), mixed  # no block between the two: H P = P H
mixed

# %% [markdown]
# ## 4. To the last bit, or to rounding
#
# A network that computes every unit by the same operations in the same order keeps identical units identical to the last bit, over
# minibatches, under all three rules. `torch.nn.Linear` calls a blocked matrix product: units at the edge of a block are summed in another
# order, so a difference of one rounding appears, and the escape rate does the rest. Dropout masks of single units, and step sizes of
# single units, break the symmetry at once.


# %%
class Unitwise(nn.Module):
    """A tanh network without matrix products: each unit by the same sums. Sizes are multiples of 16, so that no loop has a remainder."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.bias = nn.Parameter(torch.randn(16, 16).double() / 4), nn.Parameter(torch.zeros(16).double())
        self.outer, self.drop = nn.Parameter(torch.randn(16, 10).double() / 4), nn.Dropout(dropout)
        with torch.no_grad():
            for part in (self.inner, self.bias, self.outer):
                part[11] = part[2]

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = torch.tanh((inputs[:, None] * self.inner).sum(-1) + self.bias)
        return (self.drop(hidden)[:, :, None] * self.outer).sum(1)

    def apart(self) -> float:
        return max(float((part[2] - part[11]).detach().abs().max()) for part in (self.inner, self.bias, self.outer))


MINI = batches(32, 250, pool=7)


def separation(model: Unitwise, make: object, uneven: bool = False) -> list[float]:
    optimizer, found = make(model.parameters()), []
    for images, labels in MINI:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        if uneven:
            model.inner.grad[11] *= 1.01  # a step size of its own: no function of entries alone
        optimizer.step()
        found.append(model.apart())
    return found


bitwise = {name: separation(Unitwise(), make) for name, make in RULES.items()}
assert all(max(values) == 0.0 for values in bitwise.values()), "identical to the last bit"
broken = {
    "dropout": separation(Unitwise(0.2), RULES["gradient descent"]),
    "uneven": separation(Unitwise(), RULES["gradient descent"], True),
}
assert min(values[9] for values in broken.values()) > 1e-4, broken

LONG = 700
blocked = network((0, 5), hidden=6)  # the first and the last unit of a layer
group = nf.discrete_symmetries(nf.trace(blocked, FULL[0][0]))
ends = nf.fixed_subspace(group, swap(group, 0, 0, 5), blocked)
blocked_run, blocked_optimizer = [], RULES["gradient descent"](blocked.parameters())
images, labels = FULL[0]
for _ in range(LONG):
    blocked_optimizer.zero_grad()
    nn.functional.cross_entropy(blocked(images), labels).backward()
    blocked_optimizer.step()
    blocked_run.append(ends.breaking(blocked) ** 0.5)
# One step: each gradient is a sum of 100 products of factors that are sums of 49, 10 and 6 terms; each term rounds once.
assert blocked_run[0] < (100 + 49 + 10 + 6) * 2.0**-53, blocked_run[0]
max(map(max, bitwise.values())), broken["dropout"][9], blocked_run[0], blocked_run[-1]

# %% [markdown]
# ## 5. Which of the N! copies
#
# Three identical units and a perturbation of size $10^{-3}$, in 600 runs side by side. The perturbation of a run, permuted, gives the
# permuted run; for two units, whose sum does not depend on the order, to the last bit. A run's copy is the permutation that brings its
# units nearest to those of one fixed run. Exchangeable perturbations choose every copy with probability 1/6, by symmetry; one that
# treats the units unequally does not, and neither does a rule with a step size for each unit.

# %%
RUNS, WIDTH = 600, 3
images, labels = batches(200, 1, pool=7)[0]
chosen = (labels == 0) | (labels == 6)  # T-shirts and shirts
INPUTS, TARGETS = images[chosen], (labels[chosen] == 0).double() * 2 - 1
INPUTS = (INPUTS - INPUTS.mean(0)) / INPUTS.std()


def trained(perturbation: Tensor, steps: int = 300, rates: Tensor | None = None) -> Tensor:
    """Units after a run, shape (runs, units, 18): what they read, their bias, what they write."""
    base = torch.cat([torch.linspace(-0.2, 0.3, 17), torch.tensor([0.4])]).double()
    units = base + perturbation
    scale = torch.ones(units.shape[1], dtype=torch.float64) if rates is None else rates
    for _ in range(steps):
        hidden = torch.tanh(torch.einsum("rud,nd->rnu", units[..., :16], INPUTS) + units[:, None, :, 16])
        error = ((hidden * units[:, None, :, 17]).sum(-1) - TARGETS) / len(TARGETS)
        slope = error[..., None] * units[:, None, :, 17] * (1 - hidden**2)
        reads = torch.einsum("rnu,nd->rud", slope, INPUTS)
        moved = torch.cat([reads, slope.sum(1)[..., None], torch.einsum("rn,rnu->ru", error, hidden)[..., None]], -1)
        units = units - 0.1 * scale[:, None] * moved
    return units


ORDERS = list(permutations(range(WIDTH)))


def copies(units: Tensor) -> Tensor:
    """One-hot, shape (runs, 6): the permutation that brings a run's units nearest to those of the reference."""
    distances = torch.stack([(units[:, order] - REFERENCE).square().sum((1, 2)) for order in ORDERS], 1)
    return nn.functional.one_hot(distances.argmin(1), len(ORDERS)).double()


generator = torch.Generator().manual_seed(3)
noise = 1e-3 * torch.randn(RUNS + 1, WIDTH, 18, generator=generator, dtype=torch.float64)
final = trained(noise)
REFERENCE, final = final[-1], final[:-1]
turned = trained(noise[:40, [2, 0, 1]])
equivariant = float((turned - final[:40, [2, 0, 1]]).abs().max() / final.abs().max())
two = trained(noise[:40, :2])
bits = float((trained(noise[:40, [1, 0]]) - two[:, [1, 0]]).abs().max() / two.abs().max())
apart = float((final[:, 0] - final[:, 1]).norm(dim=-1).median())
spread = float((final - final.mean(1, keepdim=True)).norm(dim=(1, 2)).median() / noise[0].norm())

uniform, double = [1 / 6] * 6, [2 / 7, *[1 / 7] * 5]
fair = copies(final).numpy()
uneven = copies(trained(noise[:-1] * torch.tensor([2.0, 1.0, 0.0]).double()[:, None])).numpy()
paced = copies(trained(noise[:-1], rates=torch.tensor([1.1, 1.0, 0.9]).double())).numpy()
verdicts = {
    "exchangeable": nf.statistics.judge(fair, uniform, {"one copy twice as often": double}),
    "unequal noise": nf.statistics.judge(uneven, uniform, {"one copy twice as often": double}),
    "unequal step sizes": nf.statistics.judge(paced, uniform, {"one copy twice as often": double}),
}
# each of 300 steps rounds once, and what it rounds grows at most as the perturbations did
assert equivariant < 300 * spread * 2.0**-53, (equivariant, spread)
assert bits == 0.0, bits
assert min(apart / 0.1, spread / 10) > 1, (apart, spread)
assert verdicts["exchangeable"].status == "holds", verdicts
assert verdicts["unequal noise"].status == "fails", verdicts
assert verdicts["unequal step sizes"].status == "fails", verdicts
{name: str(verdict) for name, verdict in verdicts.items()}, equivariant, bits

# %% [markdown]
# ### The choice is made at the start
#
# Along the direction that grows most, three units have two contrasts: a plane. Perturbations in it, coloured by the copy that their run
# ends in, show six sectors that the permutations exchange.

# %%
CONTRASTS = torch.tensor([[1.0, -1.0, 0.0], [1.0, 1.0, -2.0]], dtype=torch.float64)
CONTRASTS = CONTRASTS / CONTRASTS.norm(dim=1, keepdim=True)
tiny = 1e-6 * noise[:40]
before, later = (torch.einsum("ku,rud->rkd", CONTRASTS, t).flatten(0, 1) for t in (tiny, trained(tiny)))
most = torch.linalg.svd(torch.linalg.lstsq(before, later).solution)
plane = torch.einsum("ku,rud,d->rk", CONTRASTS, noise[:-1], most.U[:, 0]) / 1e-3
leading = float(most.S[0] / most.S[1])
chosen_copy = torch.from_numpy(fair).argmax(1)
leading

# %% [markdown]
# ## 6. The figure


# %%
def draw_growth(axes: Axes) -> None:
    for (name, run), colour in zip(escapes.items(), ACCENTS, strict=False):
        axes.semilogy(run.measured[0], color=colour, linewidth=4, alpha=0.35)
        axes.semilogy(run.growth, color=colour, linewidth=1.2, label=name)
    for name, style in (("H⊥ of the start", ":"), ("wrong sign", "--")):
        axes.semilogy(growths[name], color=BAD, linewidth=1, linestyle=style, label=name)
    axes.set(title="Escape: predicted (thin), measured (broad)", xlabel="step", ylabel="‖δ‖ / ‖δ₀‖", ylim=(1e-3, 3e3))
    axes.legend(fontsize=7, loc="lower right", ncols=2)


def draw_lowest(axes: Axes) -> None:
    steps, values = zip(*lowest, strict=True)
    axes.plot(steps, values, "o-", color=ACCENTS[0], markersize=3, linewidth=1.2)
    axes.axhline(0, color=INK, linewidth=0.8)
    axes.fill_between(steps, values, 0, color=ACCENTS[0], alpha=0.12, linewidth=0)
    axes.text(0.97, 0.08, "unstable across", transform=axes.transAxes, ha="right", color=MUTED)
    axes.set(title="Lowest eigenvalue of H⊥ on the symmetric run", xlabel="step", ylabel="λ")


def draw_orders(axes: Axes) -> None:
    runs = {"two units": escapes["gradient descent"], "two units, momentum": escapes["momentum"], "three units": three}
    for (name, run), colour in zip(runs.items(), (ACCENTS[0], ACCENTS[1], ACCENTS[3]), strict=True):
        axes.loglog(run.sizes, run.errors, "o-", color=colour, markersize=4, linewidth=1.2, label=f"{name}: {run.order.slope:.3f}")
    axes.set(title="What the linear law leaves out, and its order", xlabel="size ε of the perturbation", ylabel="relative error")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_ylim(top=3)
    axes.legend(loc="upper left")


def draw_bits(axes: Axes) -> None:
    floor = 1e-19
    for (name, values), colour in zip(broken.items(), (ACCENTS[3], ACCENTS[1]), strict=True):
        label = "dropout of single units" if name == "dropout" else "a step size of its own"
        axes.loglog(range(1, len(values) + 1), values, color=colour, linewidth=1.3, label=label)
    axes.loglog(range(1, LONG + 1), [max(v, floor) for v in blocked_run], color=ACCENTS[0], linewidth=1.3, label="blocked matrix products")
    axes.loglog(range(1, len(MINI) + 1), [floor] * len(MINI), color=GOOD, linewidth=2.5, label="unit by unit: exactly 0")
    axes.set(title="Two identical units drift apart", xlabel="step", ylabel="distance", ylim=(3e-20, 1e3))
    axes.legend(loc="upper left", fontsize=7, ncols=2)


def draw_copies(axes: Axes) -> None:
    cases = (("exchangeable", fair, GOOD), ("unequal noise", uneven, ACCENTS[1]), ("unequal step sizes", paced, ACCENTS[3]))
    for k, (name, counted, colour) in enumerate(cases):
        interval = nf.statistics.mean_interval(counted)
        places = [i + 0.27 * (k - 1) for i in range(len(ORDERS))]
        axes.bar(places, interval.mean, 0.25, yerr=interval.half, color=colour, ecolor=MUTED, error_kw={"linewidth": 0.8}, label=name)
    axes.axhline(1 / 6, color=INK, linewidth=0.8, linestyle="--")
    axes.set(title="Which of the 3! copies, 600 runs", xlabel="permutation of the units", ylabel="share of runs")
    axes.set_xticks(range(len(ORDERS)), ["".join(str(i + 1) for i in order) for order in ORDERS])
    axes.legend(loc="upper left")


def draw_plane(axes: Axes) -> None:
    for k, order in enumerate(ORDERS):
        points = plane[chosen_copy == k]
        axes.scatter(points[:, 0], points[:, 1], s=7, color=ACCENTS[k], label="".join(str(i + 1) for i in order), linewidths=0)
    axes.set(title="The choice is made at the start", xlabel="first contrast of the perturbation", ylabel="second contrast", aspect="equal")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), markerscale=2, title="copy", title_fontsize=8)


with matplotlib.rc_context(STYLE):
    figure = Figure(figsize=(12.5, 7), layout="constrained")
    panels = (draw_growth, draw_lowest, draw_orders, draw_bits, draw_copies, draw_plane)
    for draw, axes in zip(panels, figure.subplots(2, 3).flat, strict=True):
        draw(axes)
    if folder := os.environ.get("NOETHERFLOW_FIGURES"):
        figure.savefig(Path(folder, "symmetry_breaking.png"), dpi=150)
figure

# %% [markdown]
# ## Verdict

# %%
claims = {
    "rules keep fixed subspaces as their equations say": kept["AdamW"].permutations and not kept["AdamW"].rotations,
    "the tangent of the step predicts the escape; wrong siblings do not": agreement < 1e-10 and min(siblings.values()) > 0.2,
    "the error is of order 2 for two units": abs(orders["two units"].slope - 2) < 0.1,
    "the error is of order 1 for three units": abs(orders["three units"].slope - 1) < 0.1,
    "rates across three units come twice": twice < 1e-12,
    "identical to the last bit where units are computed alike": all(max(values) == 0.0 for values in bitwise.values()),
    "dropout and unequal steps break": min(values[9] for values in broken.values()) > 1e-4,
    "permuted noise gives the permuted run": bits == 0.0 and equivariant < 300 * spread * 2.0**-53,
    "all copies are chosen alike": verdicts["exchangeable"].status == "holds",
    "unequal noise and unequal steps choose": all(verdicts[name].status == "fails" for name in ("unequal noise", "unequal step sizes")),
}
failed = [claim for claim, holds in claims.items() if not holds]
if failed:
    raise AssertionError(f"Symmetry breaking fails: {'; '.join(failed)}. {siblings} {orders} {verdicts} {equivariant}")
