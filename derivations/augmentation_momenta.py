# sources: gluch2021noether, marcotte2023abide, own, higham2019probabilistic, xiao2017fashion

# %% [markdown]
# # Augmented data: momenta that vanish, gradients that follow, and laws that are added
#
# **Claim** (`gluch2021noether`, made precise). Let a circle act on the inputs, $x \mapsto e^{s\Omega}x$, and let $W$ be the layer that
# reads them. For any data and any loss
#
# $$ \langle W\Omega, \nabla_W L\rangle = \operatorname{tr}\big(\Omega^\top W^\top\nabla_W L\big) = F'(0), \qquad
# F(s) = L(\theta; e^{s\Omega}x). \tag{1} $$
#
# So it vanishes exactly if the loss is stationary along the orbit of the data: if it is averaged over the *whole* circle. It does not for
# one batch, nor for random elements (mean zero, a variance), nor for a finite group. Over $n$ equispaced elements it is the aliasing error
# $\sum_{m\ne0,\;n\mid m} im\,c_m$ of $F$'s Fourier coefficients (own): zero from $n = 2pk+1$ on for outputs of degree $p$ in the inputs
# under mean square, $k$ the largest frequency; exponentially small for analytic networks; of order $1/n$ for ReLU.
#
# **Claim** (own). A finite group gives $\nabla L(W\rho) = \nabla L(W)\rho$ instead. And the symmetry of data *adds* conserved functions
# exactly as far as brackets do not undo the restriction: for linear networks under mean square the row space of $W$ on what the group
# mixes, $h(n-h)$ laws if $h < n$ units read it; none for the same data and another loss.
#
# **Assumptions.** The inputs are read by linear layers alone, biases or not; the action is orthogonal; targets do not move.

# %%
import math
import os
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
from noetherflow.bridge.absorbed_actions import absorbed
from noetherflow.errors import DataError
from noetherflow.numeric.input_groups import Circle, circle_of, cyclic_shifts, generated, polar_images, ring_rotations
from noetherflow.numeric.order import fit_order
from noetherflow.numeric.palette import ACCENTS, BAD, GOOD, INK, MUTED, STYLE
from noetherflow.numeric.rounding import confidence, unit_roundoff
from noetherflow.symbolic.angular import ANGULAR, derive_momentum
from noetherflow.symbolic.balance import CURRENT
from noetherflow.symbolic.input_actions import input_actions
from noetherflow.symbolic.orbit_averages import aliasing_bound, kept_by_average
from noetherflow.symbolic.row_spaces import added_laws, linear_flow, minor_rates
from noetherflow.symbolic.rules import sgd_form

torch.set_num_threads(1)  # rounding then depends on no scheduler
torch.set_default_dtype(torch.float64)

# %% [markdown]
# ## 1. What absorbs an action
#
# A frame $P$ is put between the inputs and all that reads them; the symmetries of the framed network that move $P \mapsto e^{s\Omega}P$ say
# what the other parameters must do. For a first layer: $W \mapsto We^{s\Omega}$, biases at rest.

# %%
net = nn.Sequential(nn.Flatten(), nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 2))
(action,) = input_actions(nf.trace(net, torch.zeros(4, 1, 1, 3)))
W, X, G = sp.Matrix(2, 3, sp.symbols("w:6")), sp.Matrix(3, 3, sp.symbols("x:9")), sp.Matrix(2, 3, sp.symbols("g:6"))
written = sp.expand(sp.trace(X.T * W.T * G))
w, x, g = sp.IndexedBase("1.weight"), sp.IndexedBase("X"), sp.IndexedBase("G_1.weight")
entries = {w[i, j]: W[i, j] for i in range(2) for j in range(3)} | {g[i, j]: G[i, j] for i in range(2) for j in range(3)}
entries |= {x[i, j]: X[i, j] for i in range(3) for j in range(3)}
derived = sp.expand(action.restriction.lhs.doit().xreplace(entries))
assert action.readers == ("1.weight",)
assert derived == written
assert derived != sp.expand(sp.trace(X * W.T * G)), "the transpose matters: with an antisymmetric Ω it is the sign"
turned = sp.expand(derived.subs({X[i, j]: -X[j, i] for i in range(3) for j in range(i + 1)} | {X[i, i]: 0 for i in range(3)}))
M = W.T * G
assert sp.expand(turned - sum(X[i, j] * (M - M.T)[i, j] for i in range(3) for j in range(i + 1, 3))) == 0, "all rotations: WᵀG is symmetric"


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.outer(inputs + torch.tanh(self.inner(inputs)))


direct = input_actions(nf.trace(Residual(), torch.zeros(4, 3)))
channels = input_actions(nf.trace(nn.Conv2d(3, 4, 3), torch.zeros(1, 3, 8, 8)), axis=1)
assert direct == (), "a residual path around the first layer lets nothing through"
assert [a.algebra for a in channels] == ["matrices"]
action.restriction

# %% [markdown]
# ## 2. What an average over equispaced elements leaves
#
# $\frac1n\sum_k e^{2\pi imk/n}$ is one if $n$ divides $m$, else zero. For $F$ analytic and bounded by $M$ in a strip of half-width $a$,
# $|c_m| \le Me^{-a|m|}$ and what is left sums to the bound below.

# %%
assert [[kept_by_average(m, n) for m in range(7)] for n in (3, 5)] == [[1, 0, 0, 1, 0, 0, 1], [1, 0, 0, 0, 0, 1, 0]]
M_, n_, a_ = sp.Symbol("M", positive=True), sp.Symbol("n", integer=True, positive=True), sp.Symbol("a", positive=True)
bound = aliasing_bound()
assert sp.limit(bound.subs({a_: 1, M_: 1}) * sp.exp(n_) / n_, n_, sp.oo) == 2
bound

# %% [markdown]
# ## 3. Real images
#
# 24 images of Fashion-MNIST (`xiao2017fashion`), sampled on 3 polar rings of 11 angles. On a ring of an odd number of angles every function
# is a trigonometric polynomial, which a rotation turns exactly: a representation of the circle with frequencies up to 5, whose steps of
# $2\pi/11$ are shifts. Turning by interpolation on the square grid is no group action, and is refused.

# %%
RINGS, ANGLES, WIDTH = 3, 11, 16
((pictures, labels),) = nf.data.fashion_mnist_subset().batches(24, seed=0, steps=1, dtype=torch.float64)
images, targets = polar_images(pictures, RINGS, ANGLES), nn.functional.one_hot(labels, 10).double()
rotations = ring_rotations(RINGS, ANGLES)


def interpolated(angle: float, size: int = 6) -> Tensor:
    """The matrix of bilinear turning on a square grid."""
    cosine, sine = math.cos(angle), math.sin(angle)
    places = torch.tensor([[cosine, -sine, 0.0], [sine, cosine, 0.0]]).expand(size * size, 2, 3)
    pixels = torch.eye(size * size).reshape(-1, 1, size, size)
    grid = nn.functional.affine_grid(places, list(pixels.shape), align_corners=False)
    return nn.functional.grid_sample(pixels, grid, align_corners=False).flatten(1).T


try:
    circle_of(interpolated, 31)
    refused = ""
except DataError as error:
    refused = str(error)
assert "no orthogonal group action" in refused
assert circle_of(rotations.element, 11).frequency == rotations.frequency == 5
shift = torch.block_diag(*[torch.eye(ANGLES).roll(1, 0)] * RINGS)
assert float((rotations.element(2 * math.pi / ANGLES) - shift).abs().max()) < 1e-13


class Square(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        return inputs * inputs


class Case(NamedTuple):
    model: nn.Module
    loss: str
    targets: Tensor


def network(activation: nn.Module, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(RINGS * ANGLES, WIDTH), activation, nn.Linear(WIDTH, 10))


CASES = {
    "linear, mean square": Case(network(nn.Identity()), "mse", targets),
    "square, mean square": Case(network(Square()), "mse", targets),
    "tanh, cross-entropy": Case(network(nn.Tanh()), "cross_entropy", labels),
    "ReLU, cross-entropy": Case(network(nn.ReLU()), "cross_entropy", labels),
}


def momenta(name: str, elements: int | list[float] | None):
    case = CASES[name]
    return nf.augmentation_momenta(case.model, (images, case.targets), case.loss, rotations, elements=elements)


# %% [markdown]
# Polynomial networks: exact from $2pk+1$ equispaced elements on, and not with one fewer. One batch, a random set, and the finite group of
# the grid's own shifts (11 elements) leave a momentum.

# %%
exact = {name: momenta(name, None) for name in ("linear, mean square", "square, mean square")}
fewer = {name: momenta(name, len(found.angles) - 1) for name, found in exact.items()}
assert [len(found.angles) for found in exact.values()] == [11, 21]
for name, found in exact.items():
    assert found.vanishes, found
    assert not fewer[name].vanishes, fewer[name]
    assert max(found.identity, fewer[name].identity) <= 1, "equation (1) holds for any data"
    print(found, f"  one element fewer: {fewer[name].momentum:.1e}", sep="\n")
single, shifts, drawn = (momenta("tanh, cross-entropy", e) for e in (1, 11, rotations.random(60, seed=1)))
for wrong in (single, shifts, drawn):
    assert abs(wrong.momentum) > 1e6 * wrong.bound, wrong
    assert wrong.identity <= 1
assert drawn.interval.holds(0.0), drawn.interval
print(f"one batch {single.momentum:.2e}, 11 shifts {shifts.momentum:.2e}, 60 random {drawn.interval}")

# %% [markdown]
# Analytic networks: the aliasing error falls exponentially. The Fourier coefficients of the loss itself, from forward passes alone, predict
# it: its mean square over all first angles is $2\sum_{j\ge1}(jn)^2|c_{jn}|^2$. ReLU: as $1/n$.

# %%
GRID = {name: 336 if "cross" in name else 168 for name in CASES}  # a grid holds those of its divisors, from every first angle
around = {name: momenta(name, number) for name, number in GRID.items()}


def aliasing(name: str, number: int) -> float:
    """Root mean square of the average over `number` elements, from all first angles on the grid."""
    found = around[name].momenta
    return float(found.reshape(number, -1).mean(0).square().mean().sqrt())


def slopes(model: nn.Module, number: int) -> Tensor:
    """F'(s) at equispaced angles, which the momenta are, by equation (1): all in one backward pass."""
    seen = torch.cat([images @ rotations.element(s).T for s in rotations.equispaced(number)]).requires_grad_()
    loss = nn.functional.cross_entropy(model(seen), labels.repeat(number), reduction="sum") / len(images)
    (by_inputs,) = torch.autograd.grad(loss, seen)
    return (by_inputs * (seen.detach() @ rotations.generator.T)).reshape(number, -1).sum(1)


FINE, KINKED = 1008, [n for n in range(12, 127) if 1008 % n == 0]
several = torch.stack([slopes(network(nn.ReLU(), seed), FINE) for seed in range(8)])
kinks = [float(several.reshape(len(several), n, -1).mean(1).square().mean().sqrt()) for n in KINKED]
relu = fit_order([1 / n for n in KINKED], kinks)
NUMBERS = {name: [n for n in range(3, 57) if number % n == 0] for name, number in GRID.items()}
errors = {name: [aliasing(name, n) for n in numbers] for name, numbers in NUMBERS.items()}
TANH = "tanh, cross-entropy"
with torch.no_grad():
    model = CASES[TANH].model
    turned_images = (images @ rotations.element(s).T for s in around[TANH].angles)
    losses = torch.stack([nn.functional.cross_entropy(model(turn), labels) for turn in turned_images])
coefficients = torch.fft.rfft(losses).abs() / len(losses)
frequencies = torch.arange(len(coefficients))


def told(number: int) -> float:
    kept = (frequencies % number == 0) & (frequencies > 0)
    return float((2 * (frequencies * coefficients)[kept].square().sum()).sqrt())


def decay(places: list[int], sizes: list[float]) -> tuple[float, float]:
    """Slope of ln(size) against place, and its standard error."""
    (slope, _), covariance = np.polyfit(np.array(places, dtype=float), np.log(sizes), 1, cov=True)
    return float(-slope), float(covariance[0, 0] ** 0.5)


rate, uncertainty = decay(NUMBERS[TANH], errors[TANH])

# a coefficient is a mean of rounded losses, times its frequency at most 168; momenta have the bound that is measured with them
slack = 168 * unit_roundoff(torch.float64) * float(losses.max()) * confidence(168) + around[TANH].bound
misses = [abs(e - told(n)) / slack for e, n in zip(errors[TANH], NUMBERS[TANH], strict=True)]
print(f"tanh: falls by exp(-{rate:.3f} ± {uncertainty:.3f}) an element; ReLU: order {relu}")
assert max(misses) <= 1, misses
assert abs(errors[TANH][0] - told(NUMBERS[TANH][1])) > 1e6 * slack, "the frequencies of another number do not fit"
assert rate > 10 * uncertainty, (rate, uncertainty)
assert abs(relu.slope - 1) < 3 * relu.uncertainty < 0.4, relu

# %% [markdown]
# ## 4. Momentum along a run
#
# Heavy ball with a buffer $b$ keeps $K = \langle W\Omega, b\rangle$ by $K' = \mu K + (1-\tau)J$, whatever the weight decay, where $J$ is
# the momentum of the gradient that is used: from rest nothing, if each step averages over enough elements; with random elements an
# autoregression that is driven by their aliasing errors.

# %%
heavy = derive_momentum((sgd_form(momentum=True, nesterov=False, maximize=False),), True).equations[0].rhs
mu, tau = sp.symbols("mu tau", real=True)
assert sp.expand(heavy - (mu * ANGULAR + (1 - tau) * CURRENT)) == 0
STEPS, RATE, BETA, DECAY = 40, 0.02, 0.9, 1e-2


class Run(NamedTuple):
    angular: Tensor  # K after each step
    current: Tensor  # J in each step
    limits: Tensor  # rounding of K


def trained(elements: int | None) -> Run:
    """The square network under heavy ball; with the exact average, or with two random elements a step."""
    model = network(Square(), seed=3)
    site = absorbed(model, images, rotations)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=BETA, weight_decay=DECAY)
    ks, js, limits = [0.0], [], [0.0]
    weight = model[0].weight
    for step in range(STEPS):
        angles = rotations.equispaced(elements) if elements else rotations.random(2, seed=step)
        seen = torch.cat([site.act(rotations.element(s), images) for s in angles])
        optimizer.zero_grad()
        nn.functional.mse_loss(model(seen), targets.repeat(len(angles), 1)).backward()
        js.append(float((weight.detach() @ rotations.generator * weight.grad).sum()))
        optimizer.step()
        buffer = optimizer.state[weight]["momentum_buffer"]
        ks.append(float((weight.detach() @ rotations.generator * buffer).sum()))
        # W', b' and the products are rounded, each by u of its size; Ω is at most its largest frequency
        limits.append(4 * unit_roundoff(torch.float64) * rotations.frequency * float(weight.detach().norm() * buffer.norm()))
    return Run(*(torch.tensor(v) for v in (ks, js, limits)))


full, random = trained(exact["square, mean square"].exact_elements), trained(None)
step = sp.lambdify((ANGULAR, CURRENT, mu, tau), heavy)
limit = confidence(2 * STEPS)
residuals = {
    name: (p.angular[1:] - step(p.angular[:-1], p.current, BETA, 0.0)).abs() / (limit * p.limits[1:])
    for name, p in {"full": full, "random": random}.items()
}
alone = (random.angular[1:] - BETA * random.angular[:-1]).abs() / (limit * random.limits[1:])
# kept up by μ, roundings of all steps add to at most 1/(1 - μ) of the largest
at_rest = float(full.angular.abs().max() / (limit * full.limits.max() / (1 - BETA)))
assert max(float(r.max()) for r in residuals.values()) <= 1, residuals
assert at_rest <= 1, at_rest
assert float(alone.max()) > 1e6, "without the current the law fails"
print(f"|K| with the full average {float(full.angular.abs().max()):.1e}, with random elements {float(random.angular.abs().max()):.1e}")

# %% [markdown]
# ## 5. A finite group: an equivariant gradient
#
# The affine maps $i \mapsto ai+b$ of the 13 places of one ring: 156 permutations that mix all functions of mean zero irreducibly. The
# averaged gradient is carried along, the momentum of a rotation is not zero.

# %%
PLACES = 13
ring = polar_images(pictures, 1, PLACES)
moves = torch.eye(PLACES)
affine = generated(moves.roll(1, 0), moves[[2 * i % PLACES for i in range(PLACES)]], name="affine maps of 13 places")
assert affine.order == PLACES * (PLACES - 1)


def small(activation: nn.Module, outputs: int = 10) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(PLACES, 2, bias=False), activation, nn.Linear(2, outputs, bias=False))


equivariant = nf.augmentation_equivariance(small(nn.Tanh()), (ring, labels), "cross_entropy", affine)
half = nf.augmentation_equivariance(small(nn.Tanh()), (ring, labels), "cross_entropy", affine, elements=range(78))
assert equivariant.holds, equivariant
assert not half.holds, half
print(equivariant, half, sep="\n")

# %% [markdown]
# ## 6. Laws that are added
#
# Velocity restrictions are integrated as far as their brackets allow. If $\nabla L = \Lambda W$ on what the group mixes, all maximal minors
# of $W$ have one rate, so their ratios are conserved. Under mean square a linear network sees second moments alone, and these are
# isotropic there by Schur's lemma: $dW/dt = -c\,v^\top v\,W$. Counted on random data with the symmetry by ranks of Lie brackets
# (`marcotte2023abide`), the rest of the table is what that leaves.

# %%
assert len(minor_rates(2, 3)) == 1
flow = linear_flow(2, 1, 3)
rows = sp.Matrix(2, 4, lambda i, j: sp.Symbol(f"W[{i}, {j}]"))[:, 1:]
minors = [rows[:, [i, j]].det() for i in range(3) for j in range(i)]
along = [sp.cancel(sum(sp.diff(m, e) * flow.get(e, 0) for e in m.free_symbols) / m) for m in minors]
assert len(set(map(sp.expand, along))) == 1
fixed_part = sp.Symbol("W[0, 0]") * sp.Symbol("W[1, 1]") - sp.Symbol("W[1, 0]") * sp.Symbol("W[0, 1]")
mixed = sum(sp.diff(fixed_part, e) * flow[e] for e in fixed_part.free_symbols)
assert sp.expand(mixed - along[0] * fixed_part) != 0, "a minor with a column that the group fixes has another rate"


def two_layers(inputs: int, units: int, activation: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, units, bias=False), activation, nn.Linear(units, 1, bias=False))


def quartic(output: Tensor, target: Tensor) -> Tensor:
    return (output - target).pow(4).sum()


plane = Circle(torch.tensor([[0.0, -1.0], [1.0, 0.0]]))
polygon = {n: torch.stack([plane.element(s) for s in plane.equispaced(n)]) for n in (4, 5, 128)}
unit = torch.eye(4)
triple = torch.eye(3)[[1, 0, 2]], torch.eye(3)[[1, 2, 0]]
permutations = generated(unit[[1, 0, 2, 3]], unit[[1, 2, 3, 0]]).elements
COUNTS = {
    "linear, 1 unit, S₄, mean square": (two_layers(4, 1, nn.Identity()), permutations, "mse", added_laws(1, 3)),
    "linear, 2 units, S₄, mean square": (two_layers(4, 2, nn.Identity()), permutations, "mse", added_laws(2, 3)),
    "linear, 2 units, S₃, mean square": (two_layers(3, 2, nn.Identity()), generated(*triple).elements, "mse", added_laws(2, 2)),
    "linear, 2 units, S₄, quartic": (two_layers(4, 2, nn.Identity()), permutations, quartic, 0),
    "tanh, 1 unit, S₄, mean square": (two_layers(4, 1, nn.Tanh()), permutations, "mse", 0),
    "linear, 2 units, shifts of 4, mean square": (two_layers(4, 2, nn.Identity()), cyclic_shifts(4).elements, "mse", 0),
    "square, 1 unit, pentagon, mean square": (two_layers(2, 1, Square()), polygon[5], "mse", added_laws(1, 2)),
    "square, 1 unit, square, mean square": (two_layers(2, 1, Square()), polygon[4], "mse", 0),
    "tanh, 1 unit, pentagon, mean square": (two_layers(2, 1, nn.Tanh()), polygon[5], "mse", 0),
    "tanh, 1 unit, circle, mean square": (two_layers(2, 1, nn.Tanh()), polygon[128], "mse", added_laws(1, 2)),
    "tanh, 2 units, circle, mean square": (two_layers(2, 2, nn.Tanh()), polygon[128], "mse", 0),
}
counted = {name: nf.augmented_laws(model, elements, loss) for name, (model, elements, loss, _) in COUNTS.items()}
for name, found in counted.items():
    print(f"{name}: {found.without} laws on all data, {found.added} added")
    assert found.added == COUNTS[name][-1], (name, found)

# %% [markdown]
# A circle adds a law for *every* loss where one unit reads a plane: the phase of its weights. With two units there is the
# restriction, but no law.
#
# The row space of a real run, heavy ball and weight decay included: 2 units on the ring of 13, $2\cdot(12-2) = 20$ laws.

# %%


def row_space_motion(activation: nn.Module, loss: str, elements: Tensor, steps: int = 40) -> tuple[list[float], float]:
    """Sines of the largest angle between the row space of W on functions of mean zero and that at the start; W's worst condition."""
    model = small(activation)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    seen = torch.cat([ring @ e.T for e in elements])
    aims = torch.cat([targets if loss == "mse" else labels] * len(elements))
    measure = nn.functional.mse_loss if loss == "mse" else nn.functional.cross_entropy
    bases, condition = [], 1.0
    for _ in range(steps + 1):
        weight = model[0].weight.detach()
        centred = weight - weight.mean(1, keepdim=True)
        bases.append(torch.linalg.qr(centred.T)[0])
        condition = max(condition, float(torch.linalg.cond(centred)))
        optimizer.zero_grad()
        measure(model(seen), aims).backward()
        optimizer.step()
    away = torch.eye(PLACES) - bases[0] @ bases[0].T
    return [float(torch.linalg.matrix_norm(away @ b, 2)) for b in bases], condition


runs = {
    "linear, mean square": row_space_motion(nn.Identity(), "mse", affine.elements),
    "linear, cross-entropy": row_space_motion(nn.Identity(), "cross_entropy", affine.elements),
    "tanh, mean square": row_space_motion(nn.Tanh(), "mse", affine.elements),
    "linear, half of the group": row_space_motion(nn.Identity(), "mse", affine.elements[::2]),
}
motions = {name: motion for name, (motion, _) in runs.items()}
# every step rounds 13 columns and gradients that are sums over 156 elements of 24 images; angles feel it by the condition of W
still = confidence(40) * runs["linear, mean square"][1] * unit_roundoff(torch.float64) * math.sqrt(40 * 13 * 156 * 24)
assert max(motions["linear, mean square"]) < still, (max(motions["linear, mean square"]), still)
assert min(m[-1] for name, m in motions.items() if name != "linear, mean square") > 1e6 * still
{name: motion[-1] for name, motion in motions.items()}

# %% [markdown]
# ## 7. The figure

# %%
COLOURS = dict(zip(CASES, (GOOD, ACCENTS[0], ACCENTS[1], BAD), strict=True))


def draw_orbit(axes: Axes) -> None:
    found = around[TANH]
    axes.plot(found.angles, found.slopes, color=ACCENTS[4], linewidth=4, alpha=0.5, label=r"$dL/ds$ along the data's orbit")
    axes.plot(found.angles, found.momenta, color=INK, linewidth=1, label=r"$\langle W\Omega, \nabla_W L\rangle$, one element")
    axes.axhline(found.momentum, color=GOOD, linewidth=1.2, linestyle="--", label=f"mean of 336: {found.momentum:.0e}")
    low, high = axes.get_ylim()
    axes.set(title="Momentum of one turned batch (tanh)", xlabel="angle", ylabel="momentum", ylim=(low, high + 0.45 * (high - low)))
    axes.legend(loc="upper right", fontsize=7)


def draw_aliasing(axes: Axes) -> None:
    for name, numbers in NUMBERS.items():
        axes.loglog(numbers, errors[name], "o-", color=COLOURS[name], markersize=3, linewidth=1, label=name)
    axes.loglog(NUMBERS[TANH], [told(n) for n in NUMBERS[TANH]], color=INK, linewidth=1, linestyle=":", label="tanh, told by the loss")
    axes.set(title="Average over n equispaced elements", xlabel="n", ylabel="|momentum|", ylim=(1e-18, 30))
    axes.set_xticks([4, 8, 16, 32, 64], ["4", "8", "16", "32", "64"])
    axes.minorticks_off()
    axes.legend(loc="lower left", fontsize=7)


def draw_run(axes: Axes) -> None:
    law = [0.0]
    for j in random.current.tolist():
        law.append(step(law[-1], j, BETA, 0.0))
    axes.plot(random.angular, color=BAD, linewidth=4, alpha=0.4, label="2 random elements a step")
    axes.plot(law, color=INK, linewidth=1, label=r"$K' = \mu K + J$")
    axes.plot(full.angular, color=GOOD, linewidth=1.5, label=f"21 equispaced: below {float(full.angular.abs().max()):.0e}")
    axes.set(title="Heavy ball from rest (square network)", xlabel="step", ylabel=r"$K = \langle W\Omega, b\rangle$")
    axes.legend(fontsize=7)


def draw_rows(axes: Axes) -> None:
    for (name, motion), colour in zip(motions.items(), (GOOD, ACCENTS[0], ACCENTS[1], MUTED), strict=True):
        axes.semilogy(range(1, len(motion)), motion[1:], color=colour, label=name)
    axes.axhline(still, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
    axes.text(40, still * 1.6, "rounding", ha="right", color=MUTED, fontsize=7)
    axes.set(title="Row space under 156 permutations of pixels", xlabel="step", ylabel="sine of its angle to the start", ylim=(1e-17, 1e3))
    axes.legend(loc="center right", fontsize=7, bbox_to_anchor=(1, 0.52))


with matplotlib.rc_context(STYLE):
    figure = Figure(figsize=(9, 6.4), layout="constrained")
    for draw, axes in zip((draw_orbit, draw_aliasing, draw_run, draw_rows), figure.subplots(2, 2).flat, strict=True):
        draw(axes)
    if folder := os.environ.get("NOETHERFLOW_FIGURES"):
        figure.savefig(Path(folder, "augmentation_momenta.png"), dpi=150)
figure

# %% [markdown]
# ## Verdict

# %%
claims = {
    "the momentum is the slope along the data's orbit, for any data": max(f.identity for f in (*exact.values(), single, shifts, drawn))
    <= 1,
    "polynomial networks: zero from 2pk+1 elements on, and not with one fewer": all(f.vanishes for f in exact.values())
    and not any(f.vanishes for f in fewer.values()),
    "one batch, random elements and a finite group leave a momentum": not any(f.vanishes for f in (single, shifts, drawn)),
    "random elements have mean zero": drawn.interval.holds(0.0),
    "tanh: the aliasing error that the loss's coefficients tell, exponentially small": max(misses) <= 1 and rate > 10 * uncertainty,
    "ReLU: order 1": abs(relu.slope - 1) < 3 * relu.uncertainty < 0.4,
    "heavy ball keeps it by K' = μK + J": max(float(r.max()) for r in residuals.values()) <= 1 < float(alone.max()),
    "finite groups: an equivariant gradient": equivariant.holds and not half.holds,
    "laws are added as derived, and no others": all(counted[name].added == row[-1] for name, row in COUNTS.items()),
    "the row space stays, under mean square alone": max(motions["linear, mean square"]) < still < motions["linear, cross-entropy"][-1],
}
failed = [claim for claim, holds in claims.items() if not holds]
if failed:
    raise AssertionError(f"Augmented data: {'; '.join(failed)}.")
