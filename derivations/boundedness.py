# sources: gluch2021noether, du2018algorithmic, own, xiao2017fashion

# %% [markdown]
# # Homogeneous activations bound all layers by one: by which one, and how tightly
#
# **Claim** (`gluch2021noether`; for networks without biases `du2018algorithmic`). With homogeneous activations gradient flow conserves
# $\|W_l\|^2-\|W_{l+1}\|^2$, so the norms of all layers are bounded if and only if one of them is.
#
# **What is shown here** (own). The charges are derived from the network, with biases and for every degree $k$:
#
# $$ \|W_l\|^2 + |b_l|^2 - k\,\|W_{l+1}\|^2 = 2Q_l . $$
#
# Without biases the claim holds, as an inequality that is nearly an equality. **With biases it needs a condition**: a bound of the *last*
# layer bounds all, a bound of any other one only what comes before it. A gradient flow with a constant first layer and an unbounded second
# is given below. Under gradient descent the charges drift by $\frac12\eta^2\sum Q(g)$, exactly, and the energy balance bounds that for all
# times: while $\eta\langle g,\bar Hg\rangle\le|g|^2$,
#
# $$ |2Q_l(n)-2Q_l(0)| \le \max(1,k)\cdot2\eta\,\big(f_0-f_n\big). $$
#
# **Assumptions.** Gradient flow, or descent at a constant rate; no weight decay (which bounds norms by itself).

# %%
import os
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
import sympy as sp
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

import noetherflow as nf
from noetherflow.numeric.palette import ACCENTS, BAD, GOOD, INK, MUTED, STYLE
from noetherflow.numeric.rounding import confidence, unit_roundoff
from noetherflow.symbolic.energy import SLOPE, Dot, loss_step
from noetherflow.symbolic.laws import Laws
from noetherflow.symbolic.norm_bounds import NormBounds, NormRelation, norm_bounds, norm_relations
from noetherflow.symbolic.rules import sgd_form

torch.set_num_threads(1)  # rounding then depends on no scheduler
torch.set_default_dtype(torch.float64)

# %% [markdown]
# ## 1. Charges and bounds, from the networks


# %%
class Deep(nn.Module):
    """Linear layers with relu(h)^k, or another function, between them."""

    def __init__(self, degree: int = 1, bias: bool = False, activation: object = torch.relu, frozen: int | None = None) -> None:
        super().__init__()
        widths = (49, 32, 32, 32, 10)
        self.layers = nn.ModuleList(nn.Linear(i, o, bias=bias) for i, o in pairwise(widths))
        self.degree, self.activation = degree, activation
        if frozen is not None:
            self.layers[frozen].requires_grad_(False)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = inputs
        for layer in self.layers[:-1]:
            hidden = self.activation(layer(hidden)) ** self.degree
        return self.layers[-1](hidden)


def built(**options: object) -> Deep:
    torch.manual_seed(0)
    network = Deep(**options)
    with torch.no_grad():
        for layer, gain in zip(network.layers, (0.9, 1.2, 1.0, 1.8), strict=True):  # apart, so that a spread is seen
            layer.weight *= gain
    return network


def laws_of(network: nn.Module) -> Laws:
    return nf.derive(nf.trace(network, torch.zeros(2, 49)))


def weight(layer: int) -> str:
    return f"layers.{layer}.weight"


NORM = {name: sp.Symbol(f"|layers.{name}|^2", nonnegative=True) for name in ("0.weight", "1.weight", "2.weight", "3.weight", "0.bias")}
charges = sp.symbols("2Q_0:3", real=True)
for degree in (1, 2, 3):
    for bias in (False, True):
        relations = norm_relations(laws_of(built(degree=degree, bias=bias)))
        assert len(relations) == 3
        for k, relation in enumerate(relations):
            found = {block.parameter: w for block, w in relation.weights}
            assert found == {weight(k): 1, weight(k + 1): -degree} | ({f"layers.{k}.bias": 1} if bias else {})

plain = laws_of(built())
for k in range(4):
    assert norm_bounds(plain, weight(k)).unreached == (), "without biases any layer bounds all"
last = norm_bounds(plain, weight(3))
(first_block,) = (block for block in last.bounds if block.parameter == weight(0))
assert sp.expand(last.bounds[first_block] - sum(charges) - NORM["3.weight"]) == 0
assert laws_of(built(activation=torch.tanh)).charges == 0
print(last)

# %% [markdown]
# **Max and min.** Along a chain without biases $\|W_i\|^2-\|W_j\|^2$ is a sum of charges exactly, so
# $\max_l\|W_l\|^2 \le \min_l\|W_l\|^2 + \max_{i\le j}\,|2Q_i+\dots+2Q_{j-1}|$, with equality at all times.
#
# ## 2. With biases the claim fails
#
# A bounded layer bounds what comes before it. The last layer bounds all but its own bias, which no charge holds.

# %%
biased = laws_of(built(bias=True))
unreached = [tuple(block.parameter for block in norm_bounds(biased, weight(k)).unreached) for k in range(4)]
assert unreached[3] == ()
assert [weight(3) in names for names in unreached] == [True, True, True, False]
assert unreached[1] == ("layers.1.bias", "layers.2.weight", "layers.2.bias", "layers.3.weight")
unreached

# %% [markdown]
# **A gradient flow that does it.** One hidden ReLU unit, one sample with input $0$, logistic loss: $f = \log(1+e^{-v\,\mathrm{relu}(b)})$.
# The gradient by $w$ is zero; from $b = v > 0$ the flow stays on $b = v$ (the charge $b^2+w^2-v^2$), where
# $\dot b = b\,/(1+e^{b^2})$. That never stops: as $\dot b>0$ everywhere, a limit would be a zero of the right-hand side, and there is none.
# So the first layer is constant while the second grows beyond every bound, with the charge conserved.

# %%
b, v, w = sp.symbols("b v w", positive=True)
lost = sp.log(1 + sp.exp(-v * b))
flow = {x: -sp.diff(lost, x) for x in (b, v, w)}
charge_rate = sp.diff(b**2 + w**2 - v**2, b) * flow[b] + sp.diff(b**2 + w**2 - v**2, v) * flow[v] + sp.diff(b**2 + w**2 - v**2, w) * flow[w]
assert sp.simplify(charge_rate) == 0
assert flow[w] == 0
assert sp.simplify(flow[b].subs(v, b) - b / (1 + sp.exp(b**2))) == 0
assert sp.simplify(flow[b] - flow[v]).subs(v, b) == 0, "b = v is kept"
# time to reach B is ∫ (1 + e^{b²}) / b db, finite for every B: by series e^{b²} <= e^{B²}
B = sp.Symbol("B", positive=True)
assert sp.integrate((1 + sp.exp(B**2)) / b, (b, 1, B)).subs(B, 3).is_finite


def tiny(steps: int, rate: float) -> list[tuple[float, float, float]]:
    net = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 1, bias=False))
    with torch.no_grad():
        net[0].weight.fill_(0.7)
        net[0].bias.fill_(0.5)
        net[2].weight.fill_(0.5)
    seen = []
    for step in range(steps):
        if step & (step - 1) == 0:  # powers of two
            seen.append((step + 1, float(net[0].weight.detach()), float(net[2].weight.detach())))
        loss = nn.functional.softplus(-net(torch.zeros(1, 1))).sum()
        gradients = torch.autograd.grad(loss, list(net.parameters()))
        with torch.no_grad():
            for p, g in zip(net.parameters(), gradients, strict=True):
                p -= rate * g
    return seen


escape = tiny(2**12 + 1, 0.5)
assert all(first == 0.7 for _, first, _ in escape), "the first layer has not moved at all"
growth = np.array([second for _, _, second in escape])
assert (np.diff(growth[4:]) > 0.05).all(), "each doubling of time adds: v² grows as log t"

# %% [markdown]
# ## 3. Steps of finite size
#
# The exact law adds $\eta^2\sum_P w_P|g_P|^2$ to $2Q_l$. Every family has weights of size $\max(1,k)$ at most and no parameter twice, so
# the drift of a step is at most $\max(1,k)\,\eta^2|g|^2$. The energy balance has
# $f'-f = -\eta|g|^2+\frac12\eta^2\langle g,\bar Hg\rangle \le -\frac12\eta|g|^2$ while $\eta\langle g,\bar Hg\rangle\le|g|^2$; added up,
# $\sum\eta^2|g|^2\le2\eta(f_0-f_n)$.

# %%
descent = loss_step(sgd_form(momentum=False, nesterov=False, maximize=False))
eta, square = descent.form.rate, sp.Symbol("square", positive=True)
assert descent.terms["gradient"].subs(Dot(SLOPE, SLOPE), square) == -eta * square
curvature = eta**2 * (square / eta) / 2  # η ⟨g, H̄ g⟩ at its largest
assert sp.simplify(descent.terms["gradient"].subs(Dot(SLOPE, SLOPE), square) + curvature + eta * square / 2) == 0

# %% [markdown]
# ## 4. Real runs
#
# 200 images of Fashion-MNIST (`xiao2017fashion`), averaged to 7 × 7, by full gradients.

# %%
(batch,) = nf.data.fashion_mnist_subset().batches(200, seed=0, steps=1, dtype=torch.float64)
PIXELS, LABELS = nn.functional.avg_pool2d(batch[0], 4).flatten(1), batch[1]
RATE, STEPS = 0.03, 500


class Run(NamedTuple):
    norms: np.ndarray  # ‖W_l‖², shape (steps + 1, layers)
    charges: np.ndarray  # 2 Q_l as measured with the relations, shape (steps + 1, relations)
    told: np.ndarray  # 2 Q_l by the exact law, from the start and the gradients
    losses: np.ndarray
    points: list[dict[str, Tensor]]
    descending: bool


def trained(network: Deep, relations: tuple[NormRelation, ...], rate: float = RATE) -> Run:
    names = dict(network.named_parameters())
    told = [np.array([r.measured(names) for r in relations])]
    norms, measured, losses, points, squares = [], [], [], [], []
    for step in range(STEPS + 1):
        loss = nn.functional.cross_entropy(network(PIXELS), LABELS)
        norms.append([float(names[weight(k)].detach().square().sum()) for k in range(4)])
        measured.append([r.measured(names) for r in relations])
        losses.append(float(loss.detach()))
        points.append({n: p.detach().clone() for n, p in names.items()})
        if step == STEPS:
            break
        moving = {n: p for n, p in names.items() if p.requires_grad}
        found = dict(zip(moving, torch.autograd.grad(loss, list(moving.values())), strict=True))
        gradients = {n: found.get(n, torch.zeros_like(p)) for n, p in names.items()}
        told.append(told[-1] + rate**2 * np.array([r.measured(gradients) for r in relations]))
        with torch.no_grad():
            for n, g in gradients.items():
                names[n] -= rate * g
        squares.append(sum(float(g.square().sum()) for g in gradients.values()))
    # the condition on the step, as the energy balance has it: what is lost is half of η|g|² or more
    descending = bool((np.diff(losses) <= -rate * np.array(squares) / 2 + 64 * unit_roundoff(torch.float64)).all())
    return Run(np.array(norms), np.array(measured), np.array(told), np.array(losses), points, descending)


def spread(charges: np.ndarray) -> np.ndarray:
    """The largest difference of squared norms that the charges of a chain allow, at each step."""
    sums = np.concatenate([np.zeros((len(charges), 1)), np.cumsum(charges, 1)], 1)
    return sums.max(1) - sums.min(1)


network = built()
chain = norm_relations(plain)
relu = trained(network, chain)
gaps = relu.norms.max(1) - relu.norms.min(1)
allowed = spread(relu.told)
entries = sum(p.numel() for p in network.parameters())
# each step rounds every entry once, and the sums of squares once more
bound = confidence(STEPS * 3) * unit_roundoff(torch.float64) * np.sqrt(2 * STEPS + entries) * relu.norms.sum(1).max()
exactness = float(np.abs(gaps - allowed).max() / bound)
start_only = float(np.abs(gaps - spread(relu.told[:1])).max() / bound)
growth_of_norms = float(relu.norms[-1].min() / relu.norms[0].min())
drift = np.abs(relu.told - relu.told[0]).max(1)
by_energy = 2 * RATE * (relu.losses[0] - relu.losses)
assert exactness < 1, exactness
assert start_only > 1e6, "without the ½η² the spread is not exact"
assert growth_of_norms > 1.5, "the norms move: the bound is no statement about rest"
assert relu.descending
assert (drift <= by_energy + bound).all()
fast = trained(built(), chain, rate=0.1)  # steps beyond the condition: at the edge of stability curvature takes all that is gained
beyond = float((np.abs(fast.told - fast.told[0]).max(1)[1:] / (0.2 * (fast.losses[0] - fast.losses[1:]))).max())
assert not fast.descending
assert beyond > 1, "the condition on the step is needed"
exactness, start_only, growth_of_norms, float((drift[1:] / by_energy[1:]).max()), beyond

# %% [markdown]
# **With biases**, from the last layer: $\|W_l\|^2\le\|W_L\|^2+\sum2Q$. Tight up to the share that biases have
# in the norms. With the bias left out of the charge the exact law (its own drift included) is false.

# %%
with_bias = built(bias=True)
biased_relations = norm_relations(biased)
biasless = tuple(NormRelation(r.name, r.charge, tuple((b, w) for b, w in r.weights if "bias" not in b.parameter)) for r in biased_relations)
biased_run = trained(with_bias, biased_relations + biasless)
bounds: NormBounds = norm_bounds(biased, weight(3))
SAMPLED = list(range(0, STEPS + 1, 20))
ratios = []
for step in SAMPLED:
    point = biased_run.points[step]
    limits = bounds.evaluated({r.name: float(q) for r, q in zip(biased_relations, biased_run.told[step], strict=False)}, point)
    ratios.append([float(point[weight(k)].square().sum()) / limits[weight(k)] for k in range(3)])
tightness = np.array(ratios)
errors = np.abs(biased_run.charges - biased_run.told).max(0) / float(bound)
law_error, moved_without = float(errors[:3].max()), float(errors[3:].min())
assert law_error < 1, law_error
assert tightness.max() < 1, tightness.max()
assert tightness.min() > 0.85, tightness.min()
assert moved_without > 1e6, moved_without
float(tightness.min()), float(tightness.max()), law_error, moved_without

# %% [markdown]
# **Degree two.** $\mathrm{relu}(h)^2$: $\|W_l\|^2\le2\|W_{l+1}\|^2+2Q_l$, an equality with weight two, and false with weight one.

# %%
squared = built(degree=2)
with torch.no_grad():
    for parameter in squared.parameters():
        parameter *= 1.5  # products of degree up to 15 would start at a saddle
degree_two = norm_relations(laws_of(squared))
power = trained(squared, degree_two, rate=0.01)
power_error = float(np.abs(power.charges - power.told).max() / bound)
one_for_two = power.norms[:, :-1] - power.norms[:, 1:]
wrong_degree = float(np.abs(one_for_two - one_for_two[0] - (power.told - power.told[0])).max() / bound)
assert power_error < 1, power_error
assert wrong_degree > 1e6, wrong_degree
power_error, wrong_degree, power.losses[[0, -1]]

# %% [markdown]
# **Where there is no symmetry** the same bound fails: tanh, and a ReLU network whose second layer is held fixed (the symmetry-removed twin;
# its own relation is gone, as `nf.derive` says). The bound that is tried is that of the ReLU chain, with its own exact drift.

# %%
controls = {"tanh": built(activation=torch.tanh), "second layer fixed": built(frozen=1)}
control_runs = {name: trained(net, chain) for name, net in controls.items()}


def beyond_bounds(run: Run) -> list[float]:
    """How far any layer is above its bound by any other one, at sampled steps."""
    every = [norm_bounds(plain, weight(given)) for given in range(4)]
    out = []
    for step in SAMPLED:
        charges_then = {r.name: float(q) for r, q in zip(chain, run.told[step], strict=True)}
        limits = [bounds.evaluated(charges_then, run.points[step]) for bounds in every]
        out.append(max(run.norms[step, k] - limit[weight(k)] for limit in limits for k in range(4)))
    return out


above = {name: beyond_bounds(run) for name, run in {"ReLU": relu, **control_runs}.items()}
excess = {name: max(values) / float(bound) for name, values in above.items()}
assert norm_relations(laws_of(controls["tanh"])) == ()
held = {block.parameter for r in norm_relations(laws_of(controls["second layer fixed"])) for block, _ in r.weights}
assert weight(1) not in held, held
assert excess["ReLU"] < 1, excess
assert min(excess["tanh"], excess["second layer fixed"]) > 1e6, excess
excess

# %% [markdown]
# ## 5. The figure


# %%
def draw_chain(axes: Axes) -> None:
    for k, colour in zip(range(4), ACCENTS, strict=False):
        axes.plot(relu.norms[:, k], color=colour, linewidth=1.4, label=f"layer {k + 1}")
    axes.plot(relu.norms.min(1) + allowed, color=INK, linewidth=1, linestyle="--", label="least + spread")
    axes.set(title="ReLU, no biases", xlabel="step", ylabel="‖W‖²")
    axes.legend()


def draw_bias(axes: Axes) -> None:
    for k, colour in zip(range(3), ACCENTS, strict=False):
        axes.plot(SAMPLED, tightness[:, k], color=colour, linewidth=1.4, label=f"layer {k + 1}")
    axes.axhline(1, color=INK, linewidth=1, linestyle="--")
    axes.set(title="ReLU with biases", xlabel="step", ylabel="‖W‖² over its bound by the last layer", ylim=(None, 1.01))
    axes.legend(loc="lower left", ncols=3, bbox_to_anchor=(0, 0.72))


def draw_controls(axes: Axes) -> None:
    for (name, values), colour in zip(above.items(), (GOOD, BAD, ACCENTS[3]), strict=True):
        axes.plot(SAMPLED, values, color=colour, linewidth=1.5, label=name)
    axes.axhline(0, color=MUTED, linewidth=0.8)
    axes.set(title="Beyond the bounds of the ReLU chain", xlabel="step", ylabel="largest ‖W‖² − bound by another layer")
    axes.legend()


def draw_escape(axes: Axes) -> None:
    times = [t for t, _, _ in escape]
    axes.semilogx(times, [second**2 for _, _, second in escape], "o-", color=BAD, markersize=3, linewidth=1.2, label="second layer")
    axes.semilogx(times, [first**2 for _, first, _ in escape], "o-", color=GOOD, markersize=3, linewidth=1.2, label="first layer")
    axes.set(title="With a bias: first bounded, second not", xlabel="step", ylabel="‖W‖²")
    axes.legend(loc="upper left")


with matplotlib.rc_context(STYLE):
    figure = Figure(figsize=(11.5, 6.4), layout="constrained")
    for draw, axes in zip((draw_chain, draw_bias, draw_controls, draw_escape), figure.subplots(2, 2).flat, strict=True):
        draw(axes)
    if folder := os.environ.get("NOETHERFLOW_FIGURES"):
        figure.savefig(Path(folder, "boundedness.png"), dpi=150)
figure

# %% [markdown]
# ## Verdict

# %%
claims = {
    "without biases any layer bounds all, with equality of greatest and least + spread": exactness < 1 and start_only > 1e6,
    "with biases only the last layer does": unreached[3] == () and all(unreached[:3]),
    "a first layer can stay while the second escapes": growth[-1] > 2 and all(first == 0.7 for _, first, _ in escape),
    "the drift of charges stays below 2η times the loss that was spent": bool((drift <= by_energy + bound).all()),
    "for steps that descend, not for larger ones": relu.descending and not fast.descending and beyond > 1,
    "the bound from the last layer is nearly tight": tightness.min() > 0.85 and tightness.max() < 1,
    "the bias belongs to the charge, the degree to its weight": moved_without > 1e6 and wrong_degree > 1e6,
    "without the symmetry the bound is broken": excess["ReLU"] < 1 and min(excess["tanh"], excess["second layer fixed"]) > 1e6,
}
failed = [claim for claim, holds in claims.items() if not holds]
if failed:
    raise AssertionError(f"Boundedness fails: {'; '.join(failed)}. {exactness} {start_only} {tightness.min()} {growth} {excess}")
