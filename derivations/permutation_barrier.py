# sources: own, entezari2022role, ainsworth2023git, frankle2020linear, xiao2017fashion

# %% [markdown]
# # Copies under permutation, and the barrier between two networks
#
# **Claim** (`entezari2022role`, `ainsworth2023git`). Two networks trained from different seeds are separated by a barrier of the loss on
# the straight line between them; after the hidden units of one are permuted to match the other's, most of it is gone.
#
# **What is shown here** (own). Every network has $\prod_l N_l!$ copies of the same function (times $2^{N_l}$ where the activation is
# odd); the number follows from the graph. With $\delta$ the difference of the parameters and $\ell(s)$ the loss at $\theta_a + s\delta$,
# the excess over the chord is *exactly*
#
# $$ \ell(t) - (1-t)\,\ell(0) - t\,\ell(1) = -\int_0^1 K(t,s)\,\ell''(s)\,ds,\qquad K(t,s) = \min\{s(1-t),\,t(1-s)\}, $$
#
# at the middle $-\frac18\,\delta^\top\bar H\delta$ with a mean Hessian $\bar H$. The sign matters: with *one* positive Hessian there is
# no barrier, whatever the distance. With $f$ the outputs, $\ell'' = f'^\top(\nabla^2\mathrm{loss})f' + \langle\nabla\mathrm{loss},
# f''\rangle$, and for a loss that is convex in the outputs the first part only lowers the line. So a barrier is made by the curvature of
# the outputs alone, and alignment lowers it by the factor by which $\delta^\top\bar H\delta$ changes.
#
# **Assumptions.** A loss convex in the outputs; the formula asks for two derivatives along the line (tanh has them, ReLU has not).

# %%
import copy
import os
from math import factorial, log10
from pathlib import Path

import matplotlib
import sympy as sp
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

import noetherflow as nf
from noetherflow.numeric.palette import ACCENTS, BAD, GOOD, INK, MUTED, STYLE

torch.set_num_threads(1)
LOSS = nn.functional.cross_entropy
IMAGES = nf.data.fashion_mnist_subset()
BATCHES = list(IMAGES.batches(500, seed=0, steps=1))
WIDTHS = (8, 32, 128)

# %% [markdown]
# ## 1. How many copies
#
# Nothing is looked up: the classes of units are found in the traced graph. A random permutation hits the right one of 128 units with
# probability $1/128!$.


# %%
def network(width: int, activation: str, seed: int, layers: int = 1) -> nn.Module:
    return nf.models.build("mlp", seed=seed, widths=(784, *[width] * layers, 10), activation=activation)


groups = {(kind, n): nf.discrete_symmetries(nf.trace(network(n, kind, 0), BATCHES[0][0])) for kind in ("relu", "tanh") for n in WIDTHS}
assert all(groups["relu", n].order == factorial(n) for n in WIDTHS)
assert all(groups["tanh", n].order == factorial(n) * 2**n for n in WIDTHS)
counts = {n: (log10(factorial(n)), n * log10(2)) for n in WIDTHS}
deep = nf.discrete_symmetries(nf.trace(network(32, "relu", 0, layers=2), BATCHES[0][0]))
assert deep.order == factorial(32) ** 2
counts

# %% [markdown]
# ## 2. The excess is an integral of curvature
#
# $K(t,\cdot)$ is Green's function of $-d^2/ds^2$ with zero ends. Checked on all powers up to $s^7$; both sides are linear in $\ell$.

# %%
s, t = sp.symbols("s t", positive=True)


def integral(curvature: sp.Expr) -> sp.Expr:
    return -sp.integrate(s * (1 - t) * curvature, (s, 0, t)) - sp.integrate(t * (1 - s) * curvature, (s, t, 1))


for power in range(8):
    line = s**power
    excess = line.subs(s, t) - (1 - t) * line.subs(s, 0) - t * line.subs(s, 1)
    assert sp.expand(excess - integral(line.diff(s, 2))) == 0
assert sp.factor(integral(sp.S.One)) == t * (t - 1) / 2, "negative: a bowl sags"
assert integral(sp.S.One).subs(t, sp.Rational(1, 2)) == -sp.Rational(1, 8)
f, loss = sp.Function("f")(s), sp.Function("loss")
x = sp.Symbol("x")
slope, bend = (loss(x).diff(x, k).subs(x, f) for k in (1, 2))
assert sp.simplify(loss(f).diff(s, 2).doit() - (bend * f.diff(s) ** 2 + slope * f.diff(s, 2)).doit()) == 0

# %% [markdown]
# ## 3. A permuted copy
#
# Two hidden layers of 32 units, trained; then a random element of the group. The line between the two copies has a barrier, although
# both compute one function. Alignment finds the element again, and the barrier is gone to rounding (the losses are means over 500
# images, each rounded some hundred times at $2^{-53}$).
#
# Wrong siblings: the first layer's permutation used for the second, a random element, and rows that move without their readers.


# %%
def trained(model: nn.Module, seed: int, steps: int = 120) -> nn.Module:
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for images, labels in IMAGES.batches(100, seed=seed, steps=steps):
        optimizer.zero_grad()
        LOSS(model(images), labels).backward()
        optimizer.step()
    return model


def moved(model: nn.Module, point: dict[str, Tensor]) -> nn.Module:
    other = copy.deepcopy(model)
    other.load_state_dict({name: p.detach() for name, p in point.items()})
    return other


def height(a: nn.Module, b: nn.Module, points: int = 11) -> float:
    return nf.barrier(a, b, BATCHES, LOSS, points=points).height


original = trained(network(32, "relu", 0, layers=2), 0).double()
point = dict(original.named_parameters())
element = deep.random(3)
image = moved(original, deep.transform(point, element))
first, second = element.values
swapped = moved(original, deep.transform(dict(image.named_parameters()), type(element)((second, first))))
elsewhere = moved(original, deep.transform(dict(image.named_parameters()), deep.random(8)))
copies = {
    "before": nf.barrier(original, image, BATCHES, LOSS, points=11),
    "aligned": nf.barrier(original, nf.align(original, image, BATCHES[0][0].double(), continuous=False).model, BATCHES, LOSS, points=11),
    "classes confused": nf.barrier(original, swapped, BATCHES, LOSS, points=11),
    "a random element": nf.barrier(original, elsewhere, BATCHES, LOSS, points=11),
}
COPY_ROUNDING = 100 * 2.0**-53 * max(copies["before"].losses)
assert copies["aligned"].height < COPY_ROUNDING, copies["aligned"].height
assert abs(copies["before"].losses[0] - copies["before"].losses[-1]) < COPY_ROUNDING
wrong_heights = {name: found.height for name, found in copies.items() if name != "aligned"}
assert min(wrong_heights.values()) > 0.3, wrong_heights
left_behind = dict(point) | {name: dict(image.named_parameters())[name] for name in ("layers.0.weight", "layers.0.bias")}
unmoved = nf.barrier(original, moved(original, left_behind), BATCHES, LOSS, points=3)
assert unmoved.losses[-1] > unmoved.losses[0] + 0.3, "rows without their readers are another function"
{name: found.height for name, found in copies.items()}

# %% [markdown]
# ## 4. Two networks, really trained
#
# From different seeds, on different orders of the images. tanh: permutations and signs. ReLU: permutations, then permutations with the
# continuous rescaling of units as well.

# %%
pairs = {(kind, n): tuple(trained(network(n, kind, seed), seed) for seed in (0, 1)) for kind in ("relu", "tanh") for n in WIDTHS}
results, lines, distances = {}, {}, {}
for (kind, n), (a, b) in pairs.items():
    shift = {"before": None, "aligned": nf.align(a, b, BATCHES[0][0], continuous=False)}
    if kind == "relu":
        shift["rescaled"] = nf.align(a, b, BATCHES[0][0])
    for name, found in shift.items():
        other = b if found is None else found.model
        lines[kind, n, name] = nf.barrier(a, other, BATCHES, LOSS, points=11)
        results[kind, n, name] = lines[kind, n, name].height
        distances[kind, n, name] = shift["aligned"].before if found is None else found.after
for kind, n in pairs:
    assert results[kind, n, "aligned"] < results[kind, n, "before"] / 3, (kind, n)
    assert distances[kind, n, "aligned"] < distances[kind, n, "before"]
falls = {n: results["tanh", n, "before"] / results["tanh", n, "aligned"] for n in WIDTHS}
assert falls[8] < falls[32] < falls[128], "the wider, the more of the barrier was permutation"
results

# %% [markdown]
# With the continuous rescaling the second network also takes the first one's balance between the two layers of every unit. That makes
# a copy of one network exact (`nf.align`), but for two different ones it is no descent, neither of the distance nor of the barrier: at
# 128 units both are larger than with permutations alone.

# %%
farther = {n: distances["relu", n, "rescaled"] / distances["relu", n, "aligned"] for n in WIDTHS}
higher = {n: results["relu", n, "rescaled"] / results["relu", n, "aligned"] for n in WIDTHS}
assert farther[128] > 1, farther
assert higher[128] > 1, higher
farther, higher

# %% [markdown]
# ### By what factor
#
# From second derivatives alone, at no point of which a loss was compared: the excess at the middle, before and after. Its error must fall
# geometrically with the nodes; with all of them it is below the change from half of them. Wrong siblings: one node (the curvature at
# two points), and $+\frac18\delta^\top H\delta$ at the ends, the bowl around either network.

# %%
NODES = {"before": 16, "aligned": 8}
curvature, halves, factors = {}, {}, {}
for n in WIDTHS:
    a, b = pairs["tanh", n]
    others = {"before": b, "aligned": nf.align(a, b, BATCHES[0][0], continuous=False).model}
    for name, other in others.items():
        curvature[n, name] = nf.line_curvature(a, other, BATCHES, LOSS, nodes=NODES[name])
        halves[n, name] = nf.line_curvature(a, other, BATCHES, LOSS, nodes=NODES[name] // 2)
    predicted = curvature[n, "before"].excess / curvature[n, "aligned"].excess
    measured = lines["tanh", n, "before"].excesses[5] / lines["tanh", n, "aligned"].excesses[5]
    factors[n] = predicted, measured
errors = {key: abs(found.excess - lines["tanh", *key].excesses[5]) for key, found in curvature.items()}
bounds = {key: abs(found.excess - halves[key].excess) for key, found in curvature.items()}
assert all(errors[key] < bounds[key] for key in errors), (errors, bounds)
assert all(found.lowered < 0 < found.excess < found.raised for found in curvature.values())
few = nf.line_curvature(*pairs["tanh", 32], BATCHES, LOSS, nodes=1)
at_ends = curvature[32, "before"].gauss_newton
bowl = (at_ends[0] + at_ends[-1]) / 2 / 8
one_node = abs(few.excess - lines["tanh", 32, "before"].excesses[5])
assert one_node > 10 * bounds[32, "before"], one_node
assert abs(bowl - lines["tanh", 32, "before"].excesses[5]) > 10 * bounds[32, "before"], bowl
factors, errors, bounds

# %% [markdown]
# ### No random permutation does it
#
# 19 random elements for the network of width 32. If the one that was found were no better than they, it would be the lowest of 20 with
# probability 1/20.

# %%
a, b = pairs["tanh", 32]
start = dict(b.named_parameters())
random_heights = [height(a, moved(b, groups["tanh", 32].transform(start, groups["tanh", 32].random(k))), 5) for k in range(19)]
assert min(random_heights) > 3 * results["tanh", 32, "aligned"], random_heights
min(random_heights), max(random_heights), results["tanh", 32, "before"]

# %% [markdown]
# ## 5. The figure

# %%


def draw_lines(axes: Axes) -> None:
    for name, colour, label in (("before", BAD, "as trained"), ("aligned", GOOD, "units matched")):
        lines["tanh", 32, name].draw(axes, f"two seeds, {label}", colour)
    axes.plot(copies["before"].weights, copies["before"].losses, color=BAD, linewidth=1, linestyle="--", label="a permuted copy")
    axes.plot(copies["aligned"].weights, copies["aligned"].losses, color=GOOD, linewidth=1, linestyle="--", label="the copy, matched")
    axes.set(title="Loss along the line", xlabel="weight of the second network", ylabel="cross-entropy")
    axes.set_ylim(0, 1.75 * max(*lines["tanh", 32, "before"].losses, *copies["before"].losses))
    axes.legend(loc="upper center", ncols=2, fontsize=7)


def draw_widths(axes: Axes) -> None:
    shown = (
        ("relu", "before", BAD, "o-", "ReLU, as trained"),
        ("tanh", "before", ACCENTS[1], "s-", "tanh, as trained"),
        ("relu", "rescaled", ACCENTS[3], "^--", "ReLU, matched and rescaled"),
        ("relu", "aligned", GOOD, "o-", "ReLU, matched"),
        ("tanh", "aligned", ACCENTS[0], "s-", "tanh, matched"),
    )
    for kind, name, colour, style, label in shown:
        heights = [max(results[kind, n, name], 1e-4) for n in WIDTHS]
        axes.plot(WIDTHS, heights, style, color=colour, markersize=4, linewidth=1.1, label=label)
    axes.set(title="Barrier against width", xlabel="hidden units N", ylabel="barrier", xscale="log", yscale="log", ylim=(5e-4, 60))
    axes.set_xticks(WIDTHS, [f"{n}\n{n}! ≈ $10^{{{counts[n][0]:.0f}}}$" for n in WIDTHS])
    axes.minorticks_off()
    axes.legend(loc="upper right", fontsize=7)


def draw_parts(axes: Axes) -> None:
    places = list(range(2 * len(WIDTHS)))
    keys = [(n, name) for n in WIDTHS for name in ("before", "aligned")]
    axes.bar(places, [curvature[key].raised for key in keys], color=[BAD, GOOD] * len(WIDTHS), width=0.6, alpha=0.45)
    axes.bar(places, [curvature[key].lowered for key in keys], color=MUTED, width=0.6, alpha=0.45)
    axes.plot(
        places, [curvature[key].excess for key in keys], "_", color=INK, markersize=18, markeredgewidth=1.5, label="sum: predicted excess"
    )
    axes.plot(places, [lines["tanh", *key].excesses[5] for key in keys], "o", color=ACCENTS[0], markersize=4.5, label="measured")
    axes.axhline(0, color=INK, linewidth=0.7)
    axes.set_xticks(places, [f"N = {n}\n{name}" for n, name in keys], fontsize=7)
    axes.set(title="tanh: curvature of outputs ↑, of the loss ↓", ylabel="part of the excess at the middle")
    axes.set_ylim(None, 1.45 * max(found.raised for found in curvature.values()))
    for k, n in enumerate(WIDTHS):
        axes.text(2 * k + 0.5, 1.08 * curvature[n, "before"].raised, f"falls {factors[n][0]:.1f} ×", ha="center", fontsize=8)
    axes.legend(loc="upper right", fontsize=7)


with matplotlib.rc_context(STYLE):
    figure = Figure(figsize=(12.2, 3.7), layout="constrained")
    for draw, axes in zip((draw_lines, draw_widths, draw_parts), figure.subplots(1, 3, width_ratios=(1, 1, 1.25)), strict=True):
        draw(axes)
    if folder := os.environ.get("NOETHERFLOW_FIGURES"):
        figure.savefig(Path(folder, "permutation_barrier.png"), dpi=150)
figure

# %% [markdown]
# ## Verdict

# %%
claims = {
    "the number of copies follows from the graph": deep.order == factorial(32) ** 2,
    "a permuted copy has a barrier, and none after alignment": copies["aligned"].height < COPY_ROUNDING < 0.3 < copies["before"].height,
    "wrong permutations leave it": min(wrong_heights.values()) > 0.3,
    "alignment lowers the barrier of two trained networks": all(results[k, n, "aligned"] < results[k, n, "before"] / 3 for k, n in pairs),
    "by the factor that their curvatures state": all(errors[key] < bounds[key] for key in errors),
    "the loss' own curvature only lowers the line": all(found.lowered < 0 for found in curvature.values()),
    "a bowl around the ends does not state it": abs(bowl - lines["tanh", 32, "before"].excesses[5]) > 10 * bounds[32, "before"],
    "random permutations do not lower it": min(random_heights) > 3 * results["tanh", 32, "aligned"],
}
failed = [claim for claim, holds in claims.items() if not holds]
if failed:
    raise AssertionError(f"The barrier's derivation fails: {'; '.join(failed)}. {results} {factors} {errors} {bounds} {copies}")
