# sources: own, gluch2021noether, tanaka2021noether, hairer2006geometric, xiao2017fashion

# %% [markdown]
# # Symmetry in time: the energy balance of learning, exact in its steps, and the kernel that breaks it
#
# **Claim** (`gluch2021noether`; `tanaka2021noether` for the Lagrangian). Gradient flow loses loss at the rate
# $\dot f = -\|\nabla f\|^2 = -\partial f^\top K\,\partial f$, with the neural tangent kernel $K = JJ^\top$ and the gradient $\partial f$ by
# the outputs.
#
# **What is shown here** (own). One step of *any* rule, of any size, has the exact balance
#
# $$ f(\theta')-f(\theta) = -\eta\langle\nabla f, u\rangle + \tfrac12\eta^2\langle u,\bar H u\rangle
#    + \sum_{\rm kinks}(1-s_k)\,\big[\tfrac{df}{ds}\big]_k ,\qquad \bar H = \int_0^1 2(1-s)\,H(\theta-s\eta u)\,ds, $$
#
# whose first term the rule's own equations split by mechanism; momentum has a mechanical energy $f + \frac\eta2\mu|b|^2$ that falls by
# squares of buffers; and in the space of outputs a step of gradient descent is
#
# $$ f(\theta')-f(\theta) = -\eta\,\bar\partial f^{\,\top}\,\bar K\,\partial f, \qquad
#    \bar K = \Big(\int_0^1 J(\theta+s\Delta)ds\Big)J(\theta)^\top,
#    \qquad \bar\partial f = \int_0^1\partial f(z+s(z'-z))\,ds, $$
#
# with the residual at the *midpoint* on one side for the square loss. A frozen kernel has the same law at all times; its motion is what
# breaks that. How fast it moves with the width $m$ is a matter of parity: $1/m$ if the initial distribution has a symmetry that turns the
# sign of the network, $1/\sqrt m$ if not.
#
# **Assumptions.** The published rate: gradient flow and a differentiable loss. The step: $f$ continuous, with two derivatives apart from
# kinks. $\bar H$ alone is *not* enough for ReLU networks.

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
from matplotlib.ticker import NullFormatter
from torch import Tensor, nn

import noetherflow as nf
from noetherflow.numeric.energy_report import EnergyReport
from noetherflow.numeric.intervals import Interval, mean_interval
from noetherflow.numeric.order import fit_order
from noetherflow.numeric.palette import ACCENTS, BAD, GOOD, INK, MUTED, STYLE
from noetherflow.numeric.rounding import confidence, unit_roundoff
from noetherflow.numeric.segments import mean_gradient
from noetherflow.symbolic.energy import SLOPE, Curvature, Dot, energy, loss_step, mechanical_step
from noetherflow.symbolic.flows import TIME
from noetherflow.symbolic.forms import STEP, THETA
from noetherflow.symbolic.lagrangians import FRICTION, MASS, damped, heavy_ball
from noetherflow.symbolic.pairings import Vector
from noetherflow.symbolic.rules import sgd_form

torch.set_num_threads(1)  # rounding then depends on no scheduler
torch.set_default_dtype(torch.float64)

# %% [markdown]
# ## 1. Continuous time
#
# The Lagrangian of a learning rule is $e^{\gamma(t)}(T-V)$: shifts of time are no symmetry of it. Noether's theorem for them has
# $-\partial_t$ of it on the right, and what is left is the friction $-\dot\gamma\langle\partial T/\partial v, v\rangle$.

# %%
ball = heavy_ball(2)
spent = energy(ball)
assert sp.simplify(ball.on_shell(ball.along_motion(spent.expression)) - spent.rate) == 0
assert sp.expand(spent.friction + FRICTION * sum(v**2 for v in ball.velocities)) == 0
assert spent.driving == 0

a, b, c = sp.symbols("a b c", positive=True)
metric = sp.Matrix([[a, b], [b, c]])
curved = damped(MASS * metric, FRICTION * TIME / MASS)
lost = energy(curved)
assert sp.simplify(curved.on_shell(curved.along_motion(lost.expression)) - lost.rate) == 0

# %% [markdown]
# Without mass the motion is the gradient flow $\mu Mv = -\nabla f$, and the loss itself is the energy: $\dot f = -\mu\langle v, Mv\rangle
# = -\frac1\mu\langle\nabla f, M^{-1}\nabla f\rangle$. The metric's *inverse* measures the gradient.

# %%
slopes = sp.Matrix([sp.diff(curved.loss, q) for q in curved.coordinates])
still = [equation.subs(MASS, 0) for equation in curved.equations]
velocity = sp.solve(still, curved.velocities)
rate = lost.rate.subs(velocity)
assert sp.simplify(rate + (slopes.T * metric.inv() * slopes)[0] / FRICTION) == 0
assert sp.simplify(rate + (slopes.T * metric * slopes)[0] / FRICTION) != 0, "the metric itself for its inverse is another rate"

# %% [markdown]
# ## 2. One step
#
# What the rule's update equations say, and a check in exact rational numbers: a polynomial loss, whose $\bar H$ is integrated by SymPy.

# %%
plain, momentum, nesterov = (sgd_form(momentum=m, nesterov=n, maximize=False) for m, n in ((False, False), (True, False), (True, True)))
eta, mu = momentum.rate, sp.Symbol("mu", real=True)
assert loss_step(plain).terms["gradient"] == -eta * Dot(SLOPE, SLOPE)
after, before = Vector("b'"), Vector("b")
difference = Vector("b' - b")
for form, turning in ((momentum, mu / 2), (nesterov, mu * (2 + mu) / 2)):
    told = {name: term.subs(sp.Symbol("tau", real=True), 0) for name, term in mechanical_step(form).terms.items()}
    assert sp.simplify(told["friction"] + eta * (1 - mu) * Dot(after, after)) == 0
    assert sp.simplify(told["turning"] + eta * turning * Dot(difference, difference)) == 0
{form.name: mechanical_step(form).stored for form in (momentum, nesterov)}

# %%
x, y, s = sp.symbols("x y s")
POLYNOMIAL = x**4 / 4 - x * y**2 + y**3 / 3 + x * y - 2 * y
R = sp.Rational
NUMBERS = {"eta": R(1, 7), "mu": R(3, 5), "tau": R(0), "lambda": R(2, 9)}


def exact_step(form: object) -> tuple[dict[object, sp.Matrix], sp.Expr, sp.Expr]:
    """Vectors of a step, the change of the loss, and ⟨u, H̄ u⟩, all rational."""
    point, old = sp.Matrix([R(3, 4), R(-2, 3)]), sp.Matrix([R(1, 5), R(7, 8)])
    at = dict(zip((x, y), point, strict=True))
    gradient = sp.Matrix([POLYNOMIAL.diff(v) for v in (x, y)]).subs(at)
    vectors: dict[object, sp.Matrix] = {THETA: point, SLOPE: gradient, Vector("noise"): sp.zeros(2, 1), Vector("g"): gradient, before: old}
    for name, expression in form.equations:
        numbers = {v: NUMBERS[v.name] for v in expression.free_symbols if v not in vectors}
        vectors[name] = sum(
            (expression.coeff(v, 1).subs(numbers) * vectors[v] for v in expression.free_symbols & vectors.keys()), sp.zeros(2, 1)
        )
    vectors[difference] = vectors.get(after, old) - old
    moved = point - NUMBERS["eta"] * vectors[STEP]
    path = point - s * NUMBERS["eta"] * vectors[STEP]
    hessian = sp.hessian(POLYNOMIAL, (x, y)).subs(dict(zip((x, y), path, strict=True)), simultaneous=True)
    bent = sp.integrate(sp.expand(2 * (1 - s) * (vectors[STEP].T * hessian * vectors[STEP])[0]), (s, 0, 1))
    change = POLYNOMIAL.subs(dict(zip((x, y), moved, strict=True)), simultaneous=True) - POLYNOMIAL.subs(at)
    return vectors, change, bent


def evaluated(expression: sp.Expr, vectors: dict[object, sp.Matrix], bent: sp.Expr) -> sp.Expr:
    dots = {pair: vectors[pair.args[0]].dot(vectors[pair.args[1]]) for pair in expression.atoms(Dot)}
    out = expression.xreplace(dots).replace(Curvature, lambda _: bent)
    return out.subs({v: NUMBERS[v.name] for v in out.free_symbols})


for form in (plain, momentum, nesterov):
    vectors, change, bent = exact_step(form)
    law = loss_step(form)
    assert evaluated(law.change, vectors, bent) == change, form.name
    assert evaluated(law.change - law.terms["curvature"], vectors, bent) != change, "½η² dropped"
    at_start = (vectors[STEP].T * sp.hessian(POLYNOMIAL, (x, y)).subs({x: R(3, 4), y: R(-2, 3)}) * vectors[STEP])[0]
    assert evaluated(law.change, vectors, at_start) != change, "the Hessian at the start for its mean"
for form in (momentum, nesterov):
    vectors, change, bent = exact_step(form)
    law = mechanical_step(form)
    stored = [
        evaluated(law.stored, vectors | extra, bent)
        for extra in ({}, {before: vectors[after], THETA: vectors[THETA] - NUMBERS["eta"] * vectors[STEP]})
    ]
    whole = change + stored[1] - stored[0]
    assert evaluated(law.change, vectors, bent) == whole, form.name
    assert evaluated(law.change - 2 * law.terms["friction"], vectors, bent) != whole, "friction of the other sign"

# %% [markdown]
# ## 3. Real runs
#
# A tanh network on Fashion-MNIST (`xiao2017fashion`), SGD with momentum and weight decay, large steps. Nothing is fitted, and the change of
# the loss enters the prediction nowhere. Leaving out a part is rejected by many orders of magnitude.

# %%
IMAGES = nf.data.fashion_mnist_subset()
batches = [(nn.functional.avg_pool2d(i, 4), t) for i, t in IMAGES.batches(64, seed=0, steps=20, dtype=torch.float64)]
model = nf.models.build("mlp", seed=0, widths=(49, 16, 10), activation="tanh").double()
optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.8, weight_decay=1e-2)
report: EnergyReport = nf.energy_balance(model, optimizer, batches, population=batches[0])
own = nf.energy_balance(model, optimizer, batches[:8])  # each step's own loss: then there is a mechanical energy
rejected = {name: min(r.without(name) for r in report.steps[1:]) for name in ("gradient", "noise", "momentum", "weight_decay", "curvature")}
mechanical = {
    name: min(abs(r.mechanical_residual + 2 * r.mechanical_parts[name]) / r.bound for r in own.steps[1:])
    for name in ("friction", "turning")
}
assert report.holds, report
assert own.holds, own
assert all(r.smooth for r in report.steps)
assert min(rejected.values()) > 1e4, rejected
assert min(mechanical.values()) > 1e4, mechanical
report, rejected, mechanical

# %% [markdown]
# ### In the space of outputs
#
# Full-batch gradient descent, square loss and cross-entropy. The identity has the *averaged* kernel and the *averaged* gradient; the kernel
# at either end, or the residual at the start, is wrong in second order. The bound: a sum of $n$ products of numbers that round $\sqrt
# {\text{terms}}$ times each.

# %%
pixels, labels = batches[0][0].flatten(1)[:32], batches[0][1][:32]
ONE_HOT = nn.functional.one_hot(labels, 10).to(pixels)
LOSSES = {
    "square loss": lambda z: nn.functional.mse_loss(z.reshape(-1, 10), ONE_HOT),
    "cross-entropy": lambda z: nn.functional.cross_entropy(z.reshape(-1, 10), labels),
}


def output_gradient(loss: object, z: Tensor) -> Tensor:
    leaf = z.detach().requires_grad_()
    return torch.autograd.grad(loss(leaf), leaf)[0]


def output_space(loss: object, step: float) -> dict[str, float]:
    """One step of gradient descent: |prediction - measured change| in bounds of rounding, of the identity and of wrong siblings."""
    net = nf.models.build("mlp", seed=1, widths=(49, 16, 10), activation="tanh").double()
    kernel = nf.neural_tangent_kernel(net, pixels)
    z = kernel.outputs().detach()
    pulled = output_gradient(loss, z)
    change = {name: -step * g for name, g in kernel.pulled(pulled).items()}
    there = kernel.at({name: p + change[name] for name, p in kernel.parameters.items()})
    moved = there.outputs().detach()
    mean, averaged = mean_gradient(loss, z, moved, nodes=40), kernel.averaged_product(change, pulled, nodes=40)
    measured = float(loss(moved) - loss(z))
    told = {
        "identity": mean @ averaged,
        "kernel at the start": mean @ kernel.product(pulled),
        "kernel at the end": mean @ there.product(pulled),
        "residual at the start": pulled @ averaged,
    }
    scale = float(mean.norm() * averaged.norm()) * step + float(loss(z) + (z * pulled).abs().sum())
    bound = confidence(len(told)) * np.sqrt(49 * 4 + len(z)) * unit_roundoff(torch.float64) * scale
    return {name: abs(measured + step * float(value)) / bound for name, value in told.items()}


outputs = {name: output_space(loss, 3.0) for name, loss in LOSSES.items()}
assert all(found["identity"] < 1 for found in outputs.values()), outputs
assert all(min(v for k, v in found.items() if k != "identity") > 1e6 for found in outputs.values()), outputs
z0, z1, target = sp.symbols("z_0 z_1 t")
assert sp.expand((z1 - target) ** 2 - (z0 - target) ** 2 - 2 * ((z0 + z1) / 2 - target) * (z1 - z0)) == 0, "the midpoint"
outputs

# %% [markdown]
# ### ReLU: the Hessian misses the kinks
#
# In two layers, $w_2\cdot\mathrm{relu}(w_1x+b_1)$, pre-activations are linear along a step: every kink is known, and between kinks
# the square loss is a polynomial of degree four in $s$, so five nodes integrate it exactly. The work of the gradient is the change of
# the loss, to rounding; Taylor's second-order term with $\bar H$ is not, by $\sum(1-s_k)\,[df/ds]_k$.

# %%
generator = torch.Generator().manual_seed(3)
W1, B1, W2 = (torch.randn(*size, generator=generator) * scale for size, scale in (((8, 49), 0.3), ((8,), 0.3), ((8,), 0.6)))
goal = (labels < 5).to(pixels)


def relu_loss(w1: Tensor, b1: Tensor, w2: Tensor) -> Tensor:
    return nn.functional.mse_loss(torch.relu(pixels @ w1.T + b1) @ w2, goal)


leaves = [w.clone().requires_grad_() for w in (W1, B1, W2)]
relu_gradient = torch.autograd.grad(relu_loss(*leaves), leaves)


class Kinked(NamedTuple):
    change: float
    slope: float
    work: float
    curvature: float
    jumps: float
    scale: float
    kinks: int


def relu_step(step: float) -> Kinked:
    moves = [-step * g for g in relu_gradient]
    first = pixels @ W1.T + B1
    motion = pixels @ moves[0].T + moves[1]
    places = -(first / motion)
    inside = np.sort(places[(places > 0) & (places < 1)].numpy())
    edges = np.concatenate([[0.0], inside, [1.0]])

    def derivatives(at: float) -> tuple[float, float]:
        t = torch.tensor(at, requires_grad=True)
        f = relu_loss(*(w + t * m for w, m in zip((W1, B1, W2), moves, strict=True)))
        (slope,) = torch.autograd.grad(f, t, create_graph=True)
        return float(slope.detach()), float(torch.autograd.grad(slope, t)[0])

    nodes, weights = np.polynomial.legendre.leggauss(5)
    work = curvature = jumps = 0.0
    polynomials = []
    for low, high in pairwise(edges):
        at = low + (high - low) * (nodes + 1) / 2
        values = np.array([derivatives(float(t)) for t in at])
        work += float(weights @ values[:, 0]) * (high - low) / 2
        curvature += float(weights @ ((1 - at) * values[:, 1])) * (high - low) / 2
        polynomials.append(np.polynomial.Polynomial.fit(nodes, values[:, 0], 4))  # exact: degree 3 in s
    for k, t in enumerate(inside):
        jumps += (1 - t) * float(polynomials[k + 1](-1.0) - polynomials[k](1.0))
    end = float(relu_loss(*(w + m for w, m in zip((W1, B1, W2), moves, strict=True))))
    start = float(relu_loss(W1, B1, W2))
    slope = -step * float(sum(g.square().sum() for g in relu_gradient))
    return Kinked(end - start, slope, work, curvature, jumps, start + end + abs(slope) + abs(curvature), len(inside))


kinked = [relu_step(step) for step in (0.003, 0.006, 0.012, 0.024)]
round_off = [confidence(4) * np.sqrt(49 * 3 * (k.kinks + 1)) * unit_roundoff(torch.float64) * k.scale for k in kinked]
with_jumps = [abs(k.change - k.slope - k.curvature - k.jumps) / r for k, r in zip(kinked, round_off, strict=True)]
without = [abs(k.change - k.slope - k.curvature) / r for k, r in zip(kinked, round_off, strict=True)]
by_work = [abs(k.change - k.work) / r for k, r in zip(kinked, round_off, strict=True)]
assert all(k.kinks > 3 for k in kinked), kinked
assert max(by_work) < 1, by_work
assert max(with_jumps) < 1, with_jumps
assert min(without) > 1e6, without
kinked

# %% [markdown]
# ## 4. The kernel moves
#
# Under gradient flow $\dot K = \dot JJ^\top + J\dot J^\top$ with $\dot J = -(\partial J)\nabla f$. For
# $f_c = m^{-1/2}\sum_j\phi_c(w_j, a_j)$ with independent units and $K = m^{-1}\sum_j\kappa(w_j,a_j)$,
#
# $$ \dot K = -m^{-3/2}\sum_c\partial f_c\sum_j\langle\nabla\kappa,\nabla\phi_c\rangle_j . $$
#
# The sum over units grows as $m$, hence $\dot K\sim m^{-1/2}$, unless its mean vanishes. It does if the distribution of $(w_j,a_j)$ has a
# symmetry under which $\phi$ changes sign: then $\kappa$ does not, and the pairing is odd. Then it grows as $\sqrt m$, and
# $\dot K\sim m^{-1}$. The symmetry $a\to-a$ is that of every standard initialisation.

# %%
sigma = sp.Function("sigma")
w, readout, u1, u2, u3 = sp.symbols("w a x_1 x_2 x_3")


def pair_of_gradients(feature: object) -> sp.Expr:
    """⟨∇κ, ∇φ⟩ of one unit with one input number."""
    phi = [readout * feature(w * u) for u in (u1, u2, u3)]
    kappa = sum(sp.diff(phi[0], v) * sp.diff(phi[1], v) for v in (w, readout))
    return sp.expand(sum(sp.diff(kappa, v) * sp.diff(phi[2], v) for v in (w, readout)).doit())


assert sp.expand(pair_of_gradients(sigma) + pair_of_gradients(sigma).subs(readout, -readout)) == 0, "odd under a -> -a"
assert sp.simplify(pair_of_gradients(sp.tanh) + pair_of_gradients(sp.tanh).subs(w, -w)) == 0, "for odd σ also under w -> -w"
softplus = sp.Lambda(x, sp.log(1 + sp.exp(x)))
here = {w: R(1, 2), readout: 1, u1: 1, u2: 2, u3: -1}
assert abs(sp.N((pair_of_gradients(softplus) + pair_of_gradients(softplus).subs(w, -w)).subs(here))) > 0.1, "not for softplus"

# %% [markdown]
# Measured: softplus networks of widths 64 to 1,024 on 16 images, 12 steps of full gradients on ±1 targets; readouts from $N(0,1)$, or from
# $|N(0,1)|$, which has no such symmetry (outputs at the start taken off, so that the residual is the same). Each seed gives one slope.

# %%
sixteen = nn.functional.normalize(batches[1][0].flatten(1)[:16]) * 7
signs = (batches[1][1][:16] < 5).to(pixels) * 2 - 1
WIDTHS = [64, 128, 256, 512, 1024]
SEEDS, STEPS = 8, 12


class Shallow(nn.Module):
    """m^-1/2 Σ a_j softplus(w_j · x / √d)."""

    def __init__(self, width: int, seed: int, even: bool) -> None:
        super().__init__()
        drawn = torch.Generator().manual_seed(seed)
        self.w = nn.Parameter(torch.randn(width, 49, generator=drawn))
        a = torch.randn(width, generator=drawn)
        self.a = nn.Parameter(a if even else a.abs())

    def forward(self, inputs: Tensor) -> Tensor:
        return nn.functional.softplus(inputs @ self.w.T / 7) @ self.a / len(self.a) ** 0.5


class Moved(NamedTuple):
    rate: float  # |K'(0)| / |K| along fixed signs
    drift: float  # |K(T) - K(0)| / |K|
    apart: float  # outputs against those of the frozen kernel


def trained(width: int, seed: int, even: bool) -> Moved:
    start = nf.neural_tangent_kernel(Shallow(width, seed, even), sixteen)
    frozen = start.matrix
    first = 0.0 if even else start.outputs()
    step = 8 / float(torch.linalg.eigvalsh(frozen)[-1])
    velocity = start.velocity({name: -g for name, g in start.pulled(signs / 16).items()})
    residual = start.outputs() - first - signs
    linear, point = residual.clone(), start.parameters
    for _ in range(STEPS):
        here = start.at(point)
        pulled = here.pulled((here.outputs() - first - signs) / 16)
        point = {name: p - step * pulled[name] for name, p in point.items()}
        linear = linear - step / 16 * frozen @ linear
    end = start.at(point)
    size = frozen.norm()
    apart = (end.outputs() - first - signs - linear).norm() / residual.norm()
    return Moved(float(velocity.norm() / size), float((end.matrix - frozen).norm() / size), float(apart))


runs = {
    even: np.array([[trained(width, 1000 * seed + width, even) for width in WIDTHS] for seed in range(SEEDS)]) for even in (True, False)
}
orders: dict[tuple[str, bool], Interval] = {
    (quantity, even): mean_interval([fit_order(WIDTHS, runs[even][seed, :, k]).slope for seed in range(SEEDS)])
    for even in (True, False)
    for k, quantity in enumerate(Moved._fields)
}
for quantity in ("rate", "drift"):
    assert orders[quantity, True].holds(-1), orders
    assert not orders[quantity, True].holds(-0.5), orders
    assert orders[quantity, False].holds(-0.5), orders
    assert not orders[quantity, False].holds(-1), orders
{key: str(value) for key, value in orders.items()}

# %% [markdown]
# ### What a frozen kernel keeps
#
# With $K$ fixed each step is the same linear map, and the residual's eigenmodes are $(1-\eta\lambda_k)^n$ (here $\lambda_k$ are eigenvalues
# of $K/16$). For the network that is linear in its parameters that is exact, mode by mode, $e^{-\eta\lambda_kn}$ is not, and the real
# network departs by what its kernel's motion makes.

# %%
base = nf.neural_tangent_kernel(Shallow(128, 5, True), sixteen)
values, vectors_k = torch.linalg.eigh(base.matrix / 16)
RATE, COUNT = 1.2 / float(values[-1]), 40
offset = {name: torch.zeros_like(p) for name, p in base.parameters.items()}
linear_modes, real_modes, point = [], [], base.parameters
for _ in range(COUNT + 1):
    linear_residual = base.outputs() + base.pushed(offset) - signs
    here = base.at(point)
    real_residual = here.outputs() - signs
    linear_modes.append(vectors_k.T @ linear_residual)
    real_modes.append(vectors_k.T @ real_residual)
    offset = {name: o - RATE * g for (name, o), g in zip(offset.items(), base.pulled(linear_residual / 16).values(), strict=True)}
    point = {name: p - RATE * g for (name, p), g in zip(point.items(), here.pulled(real_residual / 16).values(), strict=True)}
modes, real = torch.stack(linear_modes), torch.stack(real_modes)
counts = torch.arange(COUNT + 1)[:, None]
told = modes[0] * (1 - RATE * values) ** counts
exponential = modes[0] * torch.exp(-RATE * values * counts)
# a step rounds sums of 16 residuals, which the kernel's pull and push make out of up to 128 · 50 parameters
mode_bound = confidence(modes.numel()) * np.sqrt(COUNT * (128 + 50 + 16)) * unit_roundoff(torch.float64) * float(modes[0].norm())
frozen_error = float((modes - told).abs().max()) / mode_bound
exponential_error, real_error = (float((m - told).abs().max()) / mode_bound for m in (exponential, real))
assert frozen_error < 1, frozen_error
assert min(exponential_error, real_error) > 1e6
frozen_error, exponential_error, real_error

# %% [markdown]
# ## 5. The figure


# %%
def draw_parts(axes: Axes) -> None:
    at = range(1, len(report.steps) + 1)
    axes.plot(at, np.cumsum([r.change for r in report.steps]), color=INK, linewidth=4, alpha=0.3, label="measured")
    axes.plot(at, np.cumsum([r.predicted for r in report.steps]), color=INK, linewidth=1, label="predicted")
    for name, colour in zip(("gradient", "noise", "momentum", "curvature"), ACCENTS, strict=False):
        axes.plot(at, np.cumsum([r.parts[name] for r in report.steps]), color=colour, linewidth=1.2, label=name)
    axes.set(title="What moved the loss", xlabel="step", ylabel="change since the start", xticks=range(0, 21, 5))
    axes.legend(ncols=2, loc="lower left")


def draw_identity(axes: Axes) -> None:
    names = list(outputs["square loss"])
    for shift, (loss, found), colour in zip((-0.18, 0.18), outputs.items(), ACCENTS, strict=False):
        axes.barh(np.arange(len(names)) + shift, [max(found[n], 1e-4) for n in names], 0.34, left=1e-5, color=colour, label=loss)
    axes.axvline(1, color=BAD, linewidth=1, linestyle="--")
    axes.set_xscale("log")
    axes.set_yticks(range(len(names)), names)
    axes.set(title="One large step, by the kernel", xlabel="error in bounds of rounding", ylim=(len(names) - 0.4, -1.4))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.legend(loc="upper left", ncols=2)


def draw_widths(axes: Axes) -> None:
    for even, colour, name in ((True, GOOD, "a ~ N(0, 1)"), (False, BAD, "a ~ |N(0, 1)|")):
        for seed in range(SEEDS):
            axes.loglog(WIDTHS, runs[even][seed, :, 1], color=colour, linewidth=0.6, alpha=0.35)
        middle = np.exp(np.log(runs[even][:, :, 1]).mean(0))
        axes.loglog(
            WIDTHS,
            middle,
            "o",
            color=colour,
            markersize=4,
            label=f"{name}: slope {float(orders['drift', even].mean):.2f}".replace("-", "−"),
        )
        power = -1 if even else -0.5
        axes.loglog(WIDTHS, middle[0] * (np.array(WIDTHS) / WIDTHS[0]) ** power, "--", color=MUTED, linewidth=1)
    axes.set(title="Drift of the kernel", xlabel="width m", ylabel="|K(T) − K(0)| / |K(0)|", xticks=WIDTHS, xticklabels=map(str, WIDTHS))
    axes.minorticks_off()
    axes.legend()


def draw_modes(axes: Axes) -> None:
    for k, colour in zip((15, 14, 12, 8), ACCENTS, strict=False):
        axes.semilogy(real[:, k].abs(), color=colour, linewidth=4, alpha=0.3)
        axes.semilogy(told[:, k].abs(), color=colour, linewidth=1.2, label=f"mode {16 - k}")
    axes.plot([], [], color=MUTED, linewidth=4, alpha=0.4, label="network")
    axes.set(title="Modes of the residual, frozen kernel", xlabel="step", ylabel="size", ylim=(1e-6, None))
    axes.legend(ncols=2, loc="lower left")


with matplotlib.rc_context(STYLE):
    figure = Figure(figsize=(11.5, 6.6), layout="constrained")
    for draw, axes in zip((draw_parts, draw_identity, draw_widths, draw_modes), figure.subplots(2, 2).flat, strict=True):
        draw(axes)
    if folder := os.environ.get("NOETHERFLOW_FIGURES"):
        figure.savefig(Path(folder, "energy_balance.png"), dpi=150)
figure

# %% [markdown]
# ## Verdict

# %%
claims = {
    "friction is what the time in the Lagrangian leaves of its energy": spent.driving == 0 and rate != 0,
    "every step's change is predicted to rounding, every part is needed": report.holds and min(rejected.values()) > 1e4,
    "the mechanical energy falls by squares of buffers": own.holds and min(mechanical.values()) > 1e4,
    "the averaged kernel gives the change at any step size": all(found["identity"] < 1 for found in outputs.values()),
    "the kernel at either end does not": all(min(f["kernel at the start"], f["kernel at the end"]) > 1e6 for f in outputs.values()),
    "ReLU's kinks are missing in the Hessian, and nothing else": max(with_jumps) < 1 and min(without) > 1e6,
    "the kernel drifts as 1/m by parity, as 1/√m without": orders["drift", True].holds(-1) and orders["drift", False].holds(-0.5),
    "a frozen kernel's modes are powers": frozen_error < 1 and exponential_error > 1e6,
}
failed = [claim for claim, holds in claims.items() if not holds]
if failed:
    raise AssertionError(f"The energy balance fails: {'; '.join(failed)}. {report} {outputs} {orders} {kinked}")
