# sources: mianjy2018implicit, own, xiao2017fashion

# %% [markdown]
# # Dropout: the penalty that it adds, the symmetry that it removes
#
# **Claim.** Dropout of hidden units with probability $p$ adds to a mean square behind a linear layer, on average over its masks and
# exactly,
#
# $$ R = \frac\rho2\sum_i|u_i|^2\,\mathbb E\,h_i^2, \qquad \rho = \frac p{1-p}. $$
#
# For two linear layers `mianjy2018implicit` shows that it equalises the products $|u_i||v_i|$ of the hidden units' norms. As symmetry
# breaking (own): without dropout the network has all of $GL(r)$, and each mask leaves only the $r$ rescalings, whose charges stay exact for
# every draw; the charge of any other generator $B$ is moved by the explicit current
#
# $$ J_{ij} = \rho\,(G_{ij}K_{ii} - K_{ij}G_{jj}), \qquad G = V\,\mathbb E[xx^\top]\,V^\top,\; K = U^\top U, $$
#
# and training ends where the penalty is least on the orbit, $R = \frac\rho{2r}\|UV\,\mathbb E[xx^\top]^{1/2}\|_*^2$: singular values are
# lowered by one threshold that depends on all of them, and small ones die.
#
# **Assumptions.** Masks are independent; mean squares for what is exact; white inputs for the closed form of the minimum.

# %%
import os
from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
import sympy as sp
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

import noetherflow as nf
from noetherflow.numeric.palette import ACCENTS, BAD, GOOD, INK, MUTED, STYLE
from noetherflow.numeric.statistics import judge
from noetherflow.symbolic.dropout import PROBABILITY, RATIO, mask_moment, masked_mean, penalty, shrinkage

torch.set_num_threads(1)  # rounding then depends on no scheduler
torch.set_default_dtype(torch.float64)

# %% [markdown]
# ## 1. What the masks add
#
# A mask has mean one and variance $\rho$. A square loss has degree two in the masks, so that variances are all that enters; a loss of
# degree three has more, and a mask of the same variance drawn from a normal distribution would not have it.

# %%
assert mask_moment(1) == 0
assert sp.simplify(mask_moment(2) - RATIO) == 0
assert sp.simplify(mask_moment(3)) != 0
z, h, u, w = (sp.symbols(f"{name}1:4") for name in "zhuw")
residuals = [1 - sum(a * b * m for a, b, m in zip(row, h, z, strict=True)) for row in (u, w)]
square = sum(r**2 for r in residuals) / 2
clean = square.subs(dict.fromkeys(z, 1))
added = sp.simplify(masked_mean(square, list(z)) - clean)
assert sp.simplify(added - penalty(square, list(z))) == 0
assert sp.simplify(added - RATIO / 2 * sum((a**2 + b**2) * x**2 for a, b, x in zip(u, w, h, strict=True))) == 0
cube = residuals[0] ** 3
assert sp.simplify(masked_mean(cube, list(z)) - cube.subs(dict.fromkeys(z, 1)) - penalty(cube, list(z))) != 0, "only to leading order"

# %% [markdown]
# ## 2. What they remove
#
# The graph knows: with active dropout between two linear layers the group is that of the rescalings, without it $GL(r)$. Permutations stay,
# in distribution.


# %%
def images(count: int, size: int) -> tuple[Tensor, Tensor]:
    ((pictures, labels),) = nf.data.fashion_mnist_subset().batches(count, seed=0, steps=1, dtype=torch.float64)
    pooled = nn.functional.adaptive_avg_pool2d(pictures, size).flatten(1)
    return pooled - pooled.mean(0), nn.functional.one_hot(labels, 10).to(torch.float64) - 0.1


def half_square(output: Tensor, target: Tensor) -> Tensor:
    return (output - target).square().sum(1).mean() / 2


RANK = 6
raw, Y = images(200, 4)
X = torch.linalg.svd(raw, full_matrices=False).U * len(raw) ** 0.5  # white
torch.default_generator.manual_seed(0)
model = nn.Sequential(nn.Linear(16, RANK, bias=False), nn.Dropout(0.2), nn.Linear(RANK, 10, bias=False))
found = nf.dropout_penalty(model, X[:40], Y[:40], half_square, draws=2000)
assert [s.kind for s in found.without] == ["linear"]
assert [s.kind for s in found.with_dropout] == ["rescale"]
assert found.generators_removed == RANK**2 - RANK
assert found.discrete_with.order == sp.factorial(RANK) * 2**RANK, "permutations and signs of units"
penalty_verdict = found.measured.holds(found.total)
assert penalty_verdict, found
assert not found.measured.holds(0.0)
assert not found.measured.holds(found.total * (1 - 0.2)), "the variance is p/(1-p), not p"
found

# %% [markdown]
# ## 3. The current, and which charges stay
#
# $\frac{d}{dt}R$ along $V\to e^{tB}V$, $U\to Ue^{-tB}$. The diagonal vanishes: rescalings are kept.

# %%
K, G, B = (sp.Matrix(2, 2, sp.symbols(f"{name}_11 {name}_12 {name}_21 {name}_22")) for name in "KGB")
symmetric = {K[1, 0]: K[0, 1], G[1, 0]: G[0, 1]}
t = sp.Symbol("t")
moved_k, moved_g = K - t * (B.T * K + K * B), G + t * (B * G + G * B.T)  # to first order
along = sp.diff(sum(moved_k[i, i] * moved_g[i, i] for i in range(2)), t).subs(t, 0) * RATIO / 2
told = RATIO * sum(B[i, j] * (G[i, j] * K[i, i] - K[i, j] * G[j, j]) for i in range(2) for j in range(2))
assert sp.simplify((along - told).subs(symmetric)) == 0
assert all(sp.diff(told, B[i, i]).subs(symmetric) == 0 for i in range(2))

# %% [markdown]
# On the images, with the layer's own dropout: for each of 3,000 draws the pairing of the gradient with the rescalings vanishes to
# rounding (a sum of fewer than $2^{12}$ products), and the mean of its pairing with the other symmetric generators is the current. Zero,
# and the current with $p$ for $\rho$, are rejected.

# %%
RHO = float(RATIO.subs(PROBABILITY, 0.2))
ROUNDING = 2.0**-53 * 2**12


def current(u: Tensor, v: Tensor, ratio: float) -> Tensor:
    """J for symmetric generators, (r, r), for white inputs."""
    k, g = u.mT @ u, v @ v.mT
    j = ratio * (g * k.diagonal()[:, None] - k * g.diagonal()[None, :])
    return (j + j.mT) / 2


model.train()
pairings = []
for seed in range(3000):
    torch.default_generator.manual_seed(seed)
    model.zero_grad()
    half_square(model(X), Y).backward()
    v, u = model[0].weight, model[2].weight
    pairing = v.grad @ v.mT - u.mT @ u.grad  # Σ B_ij of ⟨ξ_B, g⟩
    pairings.append(((pairing + pairing.mT) / 2).detach())
draws = torch.stack(pairings)
off = torch.triu(torch.ones(RANK, RANK), 1).bool()
size = float(draws[:, off].abs().mean())
kept = float(draws.diagonal(dim1=1, dim2=2).abs().max()) / size
expected = current(model[2].weight.detach(), model[0].weight.detach(), RHO)[off].numpy()
off_diagonal = judge(draws[:, off].numpy(), expected, {"no current": 0.0, "p for ρ": expected * 0.8}, confidence=0.999)
assert kept < ROUNDING, kept
assert off_diagonal.holds, off_diagonal
print(off_diagonal)

# %% [markdown]
# Gradient descent on the averaged loss: $Q' - Q = -\eta J + \frac{\eta^2}2(G_VG_V^\top - G_U^\top G_U)$ for $Q = \frac12(VV^\top-U^\top
# U)$, at every step to rounding.


# %%
S = Y.mT @ X / len(X)


def gradients(u: Tensor, v: Tensor, ratio: Tensor) -> tuple[Tensor, Tensor]:
    """Of the averaged loss by U and V, for white inputs; one ρ for every run along the leading axis."""
    error = u @ v - S
    k, g = u.square().sum(-2, keepdim=True), v.square().sum(-1, keepdim=True)
    return error @ v.mT + ratio * u * g.mT, u.mT @ error + ratio * k.mT * v


def descended(ratios: list[float], steps: int, rate: float, watch: Callable[..., None] | None = None) -> tuple[Tensor, Tensor]:
    drawn = torch.Generator().manual_seed(0)
    ratio = torch.tensor(ratios)[:, None, None]
    u, v = 0.3 * torch.randn(10, RANK, generator=drawn), 0.3 * torch.randn(RANK, 16, generator=drawn)
    u, v = u.expand(len(ratios), -1, -1), v.expand(len(ratios), -1, -1)
    for _ in range(steps):
        by_u, by_v = gradients(u, v, ratio)
        new = u - rate * by_u, v - rate * by_v
        if watch is not None:
            watch(*(x[0] for x in (u, v, by_u, by_v, *new)))
        u, v = new
    return u, v


def charge(u: Tensor, v: Tensor) -> Tensor:
    return (v @ v.mT - u.mT @ u) / 2


RATE = 0.2
errors: list[tuple[float, float]] = []
paths: list[tuple[Tensor, Tensor]] = []


def check(u: Tensor, v: Tensor, by_u: Tensor, by_v: Tensor, u2: Tensor, v2: Tensor) -> None:
    second = RATE**2 / 2 * (by_v @ by_v.mT - by_u.mT @ by_u)
    left = charge(u2, v2) - charge(u, v) - second
    j = current(u, v, RHO)
    scale = float(torch.maximum(v.square().sum(), u.square().sum()))
    errors.append((float((left + RATE * j).abs().max()) / scale, float(left.abs().max()) / scale))
    paths.append((u.norm(dim=0) * v.norm(dim=1), charge(u2, v2)))


descended([RHO], 3000, RATE, check)
with_current, without = (max(column) for column in zip(*errors, strict=True))
assert with_current < ROUNDING, with_current
assert without > 1e9 * with_current, without

# %% [markdown]
# ## 4. The minimum
#
# On an orbit $\sum_ia_i^2\ge\frac1r(\sum_ia_i)^2$ for $a_i = |u_i||v_i|$, and $\sum_i a_i\ge\|UV\|_*$; rotations reach both at once. What
# is minimised over $M = UV$ is then $\frac12\|M-S\|^2+\frac\rho{2r}\|M\|_*^2$, whose singular values the shrinkage gives.

# %%
s = list(sp.symbols("s1:5", positive=True))
r = sp.Symbol("r", positive=True)
m = shrinkage(s, 3, r)
assert all(sp.simplify(m[k] - s[k] + RATIO / r * sum(m)) == 0 for k in range(3)), "stationary"

singular = torch.linalg.svdvals(S)


def predicted(p: float, units: float = RANK) -> np.ndarray:
    """Singular values of the minimum, the largest number that stay positive."""
    values = [sp.Float(float(x), 30) for x in singular]
    for kept in range(RANK, 0, -1):
        lowered = shrinkage(values, kept, sp.Float(units, 30), RATIO.subs(PROBABILITY, sp.Float(p, 30)))
        if lowered[-1] > 0:
            return np.array([*map(float, lowered), *[0.0] * (RANK - kept)])
    return np.zeros(RANK)


PROBABILITIES = (0.05, 0.2, 0.35, 0.5, 0.65, 0.8)
together = descended([float(RATIO.subs(PROBABILITY, p)) for p in PROBABILITIES], 24_000, 0.2)
ends = dict(zip(PROBABILITIES, zip(*together, strict=True), strict=True))
measured = {p: torch.linalg.svdvals(u @ v)[:RANK].numpy() for p, (u, v) in ends.items()}
misses = {p: float(np.abs(measured[p] - predicted(p)).max() / float(singular[0])) for p in PROBABILITIES}
ranks = {p: int((measured[p] > 1e-3 * float(singular[0])).sum()) for p in PROBABILITIES}
products = {p: u.norm(dim=0) * v.norm(dim=1) for p, (u, v) in ends.items()}
spread = {p: float(a.std() / a.mean()) for p, a in products.items()}
assert max(misses.values()) < 1e-3, misses
assert max(spread.values()) < 1e-2, spread
assert ranks == {p: int((predicted(p) > 1e-3 * float(singular[0])).sum()) for p in PROBABILITIES}, ranks
assert len(set(ranks.values())) > 2, "small singular values die one after the other"
rank_free = {p: float(np.abs(measured[p] - predicted(p, 1.0)).max() / float(singular[0])) for p in PROBABILITIES}
plain = {p: float(np.abs(measured[p] - singular[:RANK].numpy()).max() / float(singular[0])) for p in PROBABILITIES}
assert min(rank_free.values()) > 0.02, "without 1/r"
assert min(plain.values()) > 0.01, "without dropout"
misses, spread, ranks

# %% [markdown]
# ## 5. The figure

# %%
STEPS = range(1, len(paths) + 1)


def draw_products(axes: Axes) -> None:
    values = torch.stack([a for a, _ in paths])
    for k in range(RANK):
        axes.plot(STEPS, values[:, k], color=ACCENTS[0], linewidth=1.2)
    axes.set(xscale="log", yscale="log", title=r"Products $|u_i||v_i|$, $p=0.2$", xlabel="step", ylabel="one line a hidden unit")


def draw_charges(axes: Axes) -> None:
    values = torch.stack([q for _, q in paths])
    moved = values - values[0]
    for i in range(RANK):
        axes.plot(STEPS, moved[:, i, i], color=GOOD, linewidth=1.4)
        for j in range(i):
            axes.plot(STEPS, moved[:, i, j], color=BAD, linewidth=0.8, alpha=0.7)
    axes.plot([], [], color=GOOD, label="rescalings: kept (½η² only)")
    axes.plot([], [], color=BAD, label="off the diagonal: removed")
    axes.set(title="Charges under dropout", xlabel="step", ylabel="change since the start", xscale="log")
    axes.legend(loc="upper left")


def draw_minimum(axes: Axes) -> None:
    line = np.linspace(0.01, 0.9, 60)
    told = np.array([predicted(float(p)) for p in line])
    for k in range(RANK):
        axes.plot(line, told[:, k], color=INK, linewidth=0.9)
        axes.plot(PROBABILITIES, [measured[p][k] for p in PROBABILITIES], "o", color=ACCENTS[1], markersize=4)
    axes.plot([], [], color=INK, label="predicted")
    axes.plot([], [], "o", color=ACCENTS[1], label="trained")
    axes.axhline(0, color=MUTED, linewidth=0.7)
    axes.set(title="Singular values of the trained map", xlabel="dropout probability p", ylabel="singular value")
    axes.legend()


with matplotlib.rc_context(STYLE):
    figure = Figure(figsize=(11.5, 3.5), layout="constrained")
    for draw, axes in zip((draw_products, draw_charges, draw_minimum), figure.subplots(1, 3), strict=True):
        draw(axes)
    if folder := os.environ.get("NOETHERFLOW_FIGURES"):
        figure.savefig(Path(folder, "dropout.png"), dpi=150)
figure

# %% [markdown]
# ## Verdict

# %%
claims = {
    "the penalty is as derived": penalty_verdict,
    "each mask keeps the rescalings and nothing else": kept < ROUNDING and found.generators_removed == RANK**2 - RANK,
    "the other charges move by the current": off_diagonal.holds and with_current < ROUNDING,
    "training ends at the least penalty of the orbit": max(misses.values()) < 1e-3 and max(spread.values()) < 1e-2,
}
failed = [claim for claim, holds in claims.items() if not holds]
if failed:
    raise AssertionError(f"Dropout fails: {'; '.join(failed)}. {found} {kept} {off_diagonal} {with_current} {misses} {spread}")
