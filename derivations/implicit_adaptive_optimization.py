# sources: tanaka2021noether, li2020exponential, own, xiao2017fashion

# %% [markdown]
# # Normalisation makes SGD an adaptive optimizer: what is exact in this, and what over-predicts
#
# **Claim** (`tanaka2021noether`, equations 15 to 18). In front of a normalisation the weight's norm acts as the denominator of an
# adaptive optimizer: its direction moves with an effective step size $\eta/(\mu r^2)$, and $r^4$ is an exponential average of squared
# gradients
#
# $$ r^4(t) = e^{-4kt/\mu}\,r^4(0) + \frac{4m}{\mu^3}\int_0^t e^{-4k(t-s)/\mu}\,|\hat g(s)|^2\,ds \tag{17} $$
#
# as RMSProp's denominator is, $\sqrt{G}$ for $r^2$.
#
# **What is shown here.** The form of the average is right. Its prefactor is not, for mini-batches with momentum: $\dot q$ was replaced by
# $-g/\mu$, as if gradients persisted for $1/(1-\beta)$ steps. The exact law gives, for gradients with autocorrelation $C_j$, $1 + 2\sum_j
# \beta^jC_j$ over $(1-\beta)^2$: between 100 for white and 1900 for persistent gradients at $\beta = 0.9$ (own). And one equivalence is
# exact in discrete time (`li2020exponential`): weight decay *is* a step size that grows exponentially.
#
# **Assumptions.** Exact scale invariance (a normalisation without $\varepsilon$), constant hyper-parameters.

# %%
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
import sympy as sp
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

import noetherflow as nf
from noetherflow.numeric.palette import ACCENTS, BAD, GOOD, INK, MUTED, STYLE
from noetherflow.symbolic.flows import TIME
from noetherflow.symbolic.implicit_steps import (
    CORRELATION,
    GRADIENT_SQUARED,
    NORM_SQUARED,
    buffer_power,
    norm_average,
    norm_growth,
    norm_motion,
    rmsprop_average,
    schedule_without_decay,
)
from noetherflow.symbolic.lagrangians import FRICTION, MASS, SPRING
from noetherflow.symbolic.rules import sgd_form
from noetherflow.symbolic.solutions import STEPS

torch.set_num_threads(1)  # rounding then depends on no scheduler
eta, decay, beta, tau = sp.symbols("eta lambda mu tau", real=True)
PLAIN = sgd_form(momentum=False, nesterov=False, maximize=False)
HEAVY_BALL = sgd_form(momentum=True, nesterov=False, maximize=False)

# %% [markdown]
# ## 1. Equations 15 and 16: steps on the sphere
#
# In polar coordinates of a plane, $f = F(\varphi)$: the damped motion's angular equation is, without inertia, $\mu\dot\varphi = -F'/r^2$.
# In discrete time a step of SGD with decay turns by $\tan\angle = \eta|\hat g|/(\rho\,r^2)$ with $\rho = 1-\eta\lambda$, exactly.

# %%
r, phi, r1, phi1, r2, phi2 = sp.symbols("r phi r_1 phi_1 r_2 phi_2", real=True)
slope = sp.Symbol("F_1", real=True)  # F'(φ)
position = sp.Matrix([r * sp.cos(phi), r * sp.sin(phi)])
outward, along = position / r, sp.Matrix([-sp.sin(phi), sp.cos(phi)])


def rate(x: sp.Matrix) -> sp.Matrix:
    """d/dt along a motion, with r_1, r_2 for the derivatives of r."""
    pairs = ((r, r1), (phi, phi1), (r1, r2), (phi1, phi2))
    return sum((x.diff(a) * b for a, b in pairs), sp.zeros(2, 1))


velocity = rate(position)
motion = MASS * rate(velocity) + FRICTION * velocity + SPRING * position + slope / r * along
angular = sp.simplify(motion.dot(along))
assert sp.expand(angular - (MASS * (r * phi2 + 2 * r1 * phi1) + FRICTION * r * phi1 + slope / r)) == 0
(direction,) = sp.solve(angular.subs(MASS, 0), phi1)
assert sp.simplify(direction + slope / (FRICTION * r**2)) == 0, "effective step 1/(μ r²) in time η · step"

step = position - eta * (slope / r * along + decay * position)
tangent = sp.simplify(step.dot(along) / step.dot(outward))
assert sp.simplify(tangent + eta * slope / ((1 - eta * decay) * r**2)) == 0

# %% [markdown]
# ## 2. Equations 17 and 18
#
# Noether's theorem for the scale, $m\,(r^2)\ddot{} + \mu\,(r^2)\dot{} = -2k\,r^2 + 2m|\dot q|^2$, is exact for the damped motion.
# Equation 17 drops the first term and puts $|\dot q|^2 = |\hat g|^2/(\mu r)^2$. With $m = \eta(1+\beta)/2$ and $\mu = 1-\beta$ its
# prefactor is $2\eta(1+\beta)/(1-\beta)^3$. RMSProp's $G$ is the same kind of average: $1-\gamma$ for $4k\eta/\mu$, other prefactors.

# %%
R_, S_ = NORM_SQUARED(TIME), GRADIENT_SQUARED(TIME)
assert norm_motion() == sp.Eq(MASS * R_.diff(TIME, 2) + FRICTION * R_.diff(TIME), -2 * SPRING * R_ + 2 * MASS * S_)
equation_17 = norm_average()
assert (equation_17.decay, equation_17.gain) == (4 * SPRING / FRICTION, 4 * MASS / FRICTION**3)
momentum_17 = norm_average(eta * (1 + beta) / 2, 1 - beta)
assert sp.cancel(momentum_17.gain - 2 * eta * (1 + beta) / (1 - beta) ** 3) == 0

gamma = sp.Symbol("gamma")
equation_18 = rmsprop_average(gamma, eta)
(dictionary,) = sp.solve(equation_18.decay - equation_17.decay, gamma)
assert sp.simplify(1 - dictionary - 4 * SPRING * eta / FRICTION) == 0
assert sp.simplify(equation_18.gain.subs(gamma, dictionary) - equation_17.gain) != 0, "the form is the same, the prefactor is not"

# %% [markdown]
# ## 3. What momentum really adds
#
# Without decay the balance law makes $r^2$ grow by $\eta^2\frac{1+\beta}{1-\beta}\,\mathbb E|p|^2$ a step, $p$ the buffer. For gradients
# with $C_j = \rho^j$ that is $\eta^2\,\mathbb E|g|^2$ times
#
# $$ \frac{1+\beta\rho}{(1-\beta)^2(1-\beta\rho)}:\qquad \frac1{(1-\beta)^2}\ (\rho = 0),\qquad \frac{1+\beta}{(1-\beta)^3}\ (\rho\to1).
# $$
#
# Equation 17 is the second limit. The first is what plain SGD does with a step of the same effective size: no amplification at all.

# %%
assert sp.cancel(norm_growth(HEAVY_BALL) - (1 + beta) / (1 - beta)) == 0
assert norm_growth(PLAIN) == 1
amplification = norm_growth(HEAVY_BALL) * buffer_power(beta)
assert sp.cancel(amplification - (1 + beta * CORRELATION) / ((1 - beta) ** 2 * (1 - beta * CORRELATION))) == 0
persistent, white = (sp.cancel(amplification.subs(CORRELATION, x)) for x in (1, 0))
assert sp.cancel(eta * persistent - momentum_17.gain / 2) == 0, "(r²)˙ = gain |ĝ|² / 2r², and equation 17 is persistent gradients"
assert (persistent.subs(beta, sp.Rational(9, 10)), white.subs(beta, sp.Rational(9, 10))) == (1900, 100)

# %% [markdown]
# ## 4. Weight decay is a growing step size: exactly
#
# Let $c$ be the slow root of a translation charge, $z^2 - (1+\beta-\eta\lambda)z + \beta = 0$, $c = 1-\eta\lambda$ without momentum. Then
# $\theta_k = c^k\varphi_k$, where $\varphi$ is trained by the same rule with the same $\beta$, **without** decay, at $\eta_k =
# \eta\,c^{-2k-1}$. For scale invariance gives $g(\theta_k) = c^{-k}g(\varphi_k)$, and $T = c + \beta/c$:

# %%
c, gk, before, now = sp.symbols("c g before now")
size = eta * c ** (-2 * STEPS - 1)
for schedule, damping in ((schedule_without_decay(PLAIN), sp.S.Zero), (schedule_without_decay(HEAVY_BALL), beta)):
    trace = 1 + damping - eta * decay * (1 - tau if damping else 1)
    assert sp.simplify(schedule.root + damping / schedule.root - trace) == 0, "T = c + β/c"
    assert sp.simplify(schedule.step_size - size.subs(c, schedule.root)) == 0
    # with φ_k now, φ_{k-1} before: θ_{k+1} by the rule with decay, and φ_{k+1} by the rule without, b_k = (φ_{k-1} - φ_k) / η_{k-1}
    next_theta = (c + damping / c) * c**STEPS * now - damping * c ** (STEPS - 1) * before - eta * c ** (-STEPS) * gk
    next_phi = now - size * (damping * (before - now) / size.subs(STEPS, STEPS - 1) + gk)
    assert sp.simplify(sp.powsimp(sp.expand(next_theta - c ** (STEPS + 1) * next_phi))) == 0

# %% [markdown]
# A run with decay that starts from rest has $\theta_{-1} = \theta_0$, so $\varphi_{-1} = c\,\varphi_0$: the buffer of the run without
# decay must start at $b_0 = -\frac{1-c}{\eta c}\,\varphi_0$.

# %%
heavy = schedule_without_decay(HEAVY_BALL)
earlier = 1 + heavy.step_size.subs(STEPS, -1) * heavy.buffer  # φ_{-1} / φ_0
assert sp.simplify(earlier - heavy.root) == 0
assert schedule_without_decay(PLAIN).buffer == 0

# %% [markdown]
# ## 5. Real runs: a normalised layer learns Fashion-MNIST
#
# 49 averaged pixels (`xiao2017fashion`, the images that are shipped), 12 normalised tanh units, a softmax readout that is trained with a
# step size and without decay of its own. SGD as in `torch.optim`, written out.

# %%
BETA = 0.9


class Data(NamedTuple):
    inputs: Tensor
    labels: Tensor

    def batch(self, size: int, drawn: torch.Generator) -> "Data":
        if size == len(self.labels):
            return self
        chosen = torch.randint(len(self.labels), (size,), generator=drawn)
        return Data(self.inputs[chosen], self.labels[chosen])


(pair,) = nf.data.fashion_mnist_subset().batches(256, seed=0, steps=1, dtype=torch.float64)
DATA = Data(torch.nn.functional.avg_pool2d(pair[0], 4).flatten(1), pair[1])


class Net(NamedTuple):
    hidden: Tensor
    readout: Tensor

    @classmethod
    def drawn(cls, seed: int) -> "Net":
        drawn = torch.Generator().manual_seed(seed)
        hidden, readout = (torch.randn(*shape, generator=drawn, dtype=torch.float64) for shape in ((12, 49), (10, 12)))
        return cls(0.14 * hidden, 0.3 * readout)

    def gradients(self, data: Data) -> tuple[Tensor, Tensor]:
        hidden, readout = (w.detach().requires_grad_() for w in self)
        z = data.inputs @ hidden.T
        z = (z - z.mean(0)) / z.var(0, unbiased=False).sqrt()
        loss = torch.nn.functional.cross_entropy(torch.tanh(z) @ readout.T, data.labels)
        return torch.autograd.grad(loss, (hidden, readout))


class History(NamedTuple):
    """Hidden weights before each step and after the last; gradients and buffers of each step."""

    hidden: Tensor
    gradients: Tensor
    buffers: Tensor

    @property
    def norms(self) -> Tensor:
        """r² of the layer's rows, shape (steps + 1, rows)."""
        return self.hidden.square().sum(-1)


def train(
    steps: int, sizes: Callable[[int], float], weight_decay: float, momentum: float, batch: int, start: float = 0.0, seed: int = 0
) -> History:
    """`start` is b_0 over the first weight."""
    net, drawn = Net.drawn(seed), torch.Generator().manual_seed(seed + 100)
    buffer = start * net.hidden
    hidden, gradients, buffers = [net.hidden], [], []
    for k in range(steps):
        g, g_readout = net.gradients(DATA.batch(batch, drawn))
        buffer = momentum * buffer + g + (weight_decay * net.hidden if momentum else 0)
        kept = net.hidden if momentum else (1 - sizes(k) * weight_decay) * net.hidden  # one rounding less, the same without momentum
        net = Net(kept - sizes(k) * buffer, net.readout - 0.02 * g_readout)
        hidden.append(net.hidden)
        gradients.append(g)
        buffers.append(buffer)
    return History(*(torch.stack(x) for x in (hidden, gradients, buffers)))


# %% [markdown]
# ### The growing step size
#
# With a decay and without, with momentum and without. What rounding alone does to such a run is measured by starting it again from
# weights that differ in the last bit: the equivalence holds to that. At $\rho = 1/2$ every scale is a power of two, and the two runs
# agree **bit for bit**. A schedule that starts a step late and, with momentum, a buffer at rest are rejected.

# %%
RATE, DECAY, LONG = 0.05, 0.4, 120


def equivalent(momentum: float, wrong_power: int = 0, at_rest: bool = False) -> Tensor:
    """|c^k φ_k - θ_k| over |θ_k| at every step."""
    form = HEAVY_BALL if momentum else PLAIN
    found, values = schedule_without_decay(form), {eta: RATE, decay: DECAY, beta: momentum, tau: 0}
    root = float(found.root.subs(values))
    first = 0.0 if at_rest else float(found.buffer.subs(values))
    grown = train(LONG, lambda k: RATE * root ** (-2 * k - 1 + wrong_power), 0.0, momentum, batch=32, start=first)
    scales = torch.tensor([root**k for k in range(LONG + 1)], dtype=torch.float64)[:, None, None]
    return relative(scales * grown.hidden, decayed[momentum].hidden)


def relative(x: Tensor, y: Tensor) -> Tensor:
    return (x - y).flatten(1).norm(dim=1) / y.flatten(1).norm(dim=1)


decayed = {momentum: train(LONG, lambda k: RATE, DECAY, momentum, batch=32) for momentum in (0.0, 0.4)}
nudged = Net.drawn
spread, gaps, rejected = {}, {}, {}
for momentum in decayed:
    Net.drawn = classmethod(lambda cls, seed: Net(nudged(seed).hidden * (1 + 2.0**-52), nudged(seed).readout))
    spread[momentum] = float(relative(train(LONG, lambda k: RATE, DECAY, momentum, batch=32).hidden, decayed[momentum].hidden).max())
    Net.drawn = nudged
    gaps[momentum] = float(equivalent(momentum).max())
    rejected[f"a step late, β = {momentum}"] = float(equivalent(momentum, wrong_power=1).max())
rejected["buffer at rest"] = float(equivalent(0.4, at_rest=True).max())
assert all(gaps[m] < 100 * spread[m] for m in gaps), (gaps, spread)
assert min(rejected.values()) > 1e-3, rejected

halved = train(20, lambda k: 0.25, 2.0, 0.0, batch=32).hidden
doubled = train(20, lambda k: 0.25 * 2.0 ** (2 * k + 1), 0.0, 0.0, batch=32).hidden
bitwise = all(torch.equal(a, b * 2.0**-k) for k, (a, b) in enumerate(zip(halved, doubled, strict=True)))
assert bitwise
gaps, spread, rejected

# %% [markdown]
# ### Equation 17, measured
#
# Growth of $r^2$ (the median row) over a run with momentum 0.9, against equation 17 with the measured $|\hat g|^2$ and against the same
# average with the measured buffer in place of $g/\mu$. Full batches are as predicted where steps are small; mini-batches are not.


# %%
def averaged(run: History, rate: float, spring: float, source: str) -> Tensor:
    """r² by the exponential average, from measured |ĝ|² ('gradient') or from |p|² r² ('buffer'); a left sum over the steps."""
    squares = run.norms[:-1] * (run.gradients if source == "gradient" else run.buffers).square().sum(-1)
    mass, friction = rate * (1 + BETA) / 2, 1 - BETA
    gain = 4 * mass / friction ** (3 if source == "gradient" else 1)
    fall, fourth = np.exp(-4 * spring * rate / friction), [run.norms[0] ** 2]
    for square in squares:
        fourth.append(fall * (fourth[-1] + gain * rate * square))
    return torch.stack(fourth).sqrt()


CASES = {  # (η, batch, weight decay)
    "full batch, η/4": (0.002, 256, 0.0),
    "full batch": (0.008, 256, 0.0),
    "batch 64": (0.008, 64, 0.0),
    "batch 16": (0.008, 16, 0.0),
    "batch 16, decay": (0.008, 16, 0.02),
}
table, curves = {}, {}
for name, (rate_, size_, spring_) in CASES.items():
    run = train(350, lambda k, rate_=rate_: rate_, spring_, BETA, size_, seed=3)
    told = {"measured": run.norms} | {source: averaged(run, rate_, spring_, source) for source in ("gradient", "buffer")}
    table[name] = {key: float((x[-1] / x[0]).median()) for key, x in told.items()}
    curves[name] = {key: (x / x[0]).median(dim=1).values for key, x in told.items()}
growth = {name: (row["gradient"] - 1) / (row["measured"] - 1) for name, row in table.items() if CASES[name][2] == 0}
fed = {name: row["buffer"] / row["measured"] for name, row in table.items()}
for name, row in table.items():
    print(f"{name:16s} measured {row['measured']:6.3f}   equation 17 {row['gradient']:6.3f}   fed with the buffer {row['buffer']:6.3f}")
over_predicts = (
    growth["batch 16"] > 4 and growth["batch 64"] > 1.5 and table["batch 16, decay"]["gradient"] > 2 * table["batch 16, decay"]["measured"]
)
assert over_predicts, table
assert growth["full batch, η/4"] < 1.25, table
assert all(abs(ratio - 1) < 0.03 for ratio in fed.values()), table
growth

# %% [markdown]
# ### The amplification, from the gradients' correlation
#
# $\sum_k|p_k|^2$ is a double sum over gradients, so the growth of $r^2$ is $\big(1 + 2\sum_{j\ge1}\beta^jC_j\big)/(1-\beta)^2$ times
# $\eta^2\sum|g|^2$ up to the ends of the run: a straight line from 100 to 1900 in the mean correlation
# $\frac{1-\beta}\beta\sum\beta^jC_j$.

# %%
mean_correlation = (
    sp.summation(beta ** sp.Symbol("j") * CORRELATION ** sp.Symbol("j"), (sp.Symbol("j"), 1, sp.oo)).args[0][0] * (1 - beta) / beta
)
line = (1 + 2 * beta / (1 - beta) * mean_correlation) / (1 - beta) ** 2
assert sp.simplify(line - amplification) == 0


def measured_amplification(run: History, rate: float) -> tuple[float, float]:
    """(mean correlation, growth over η² Σ|g|²), both over the whole layer."""
    flat = run.gradients.flatten(1)
    power = flat.square().sum()
    products = [float((flat[j:] * flat[: len(flat) - j]).sum() / power) for j in range(1, 120)]
    correlation = (1 - BETA) / BETA * sum(BETA**j * x for j, x in enumerate(products, start=1))
    return correlation, float((run.norms[-1] - run.norms[0]).sum() / (rate**2 * power))


points = [measured_amplification(train(350, lambda k: 1e-4, 0.0, BETA, size, seed=5), 1e-4) for size in (4, 16, 64, 128, 256)]
on_line = [(1 + 2 * BETA / (1 - BETA) * x) / (1 - BETA) ** 2 for x, _ in points]
amplified = [y / told for (_, y), told in zip(points, on_line, strict=True)]
assert all(abs(ratio - 1) < 0.1 for ratio in amplified), (points, amplified)
assert points[0][1] < 400 < 1000 < points[-1][1] < 1900, points
points

# %% [markdown]
# ## 6. The figure

# %%


def draw_equivalence(axes: Axes) -> None:
    root = 1 - RATE * DECAY
    grown = train(LONG, lambda k: RATE * root ** (-2 * k - 1), 0.0, 0.0, batch=32)
    axes.semilogy(decayed[0.0].norms.mean(1), color=ACCENTS[0], linewidth=4, alpha=0.35, label="with decay, η")
    axes.semilogy(grown.norms.mean(1), color=ACCENTS[1], linewidth=1.3, label=r"no decay, $\eta\,c^{-2k-1}$")
    scales = torch.tensor([root ** (2 * k) for k in range(LONG + 1)], dtype=torch.float64)
    axes.semilogy(scales * grown.norms.mean(1), color=INK, linewidth=1, linestyle="--", label=r"$c^{2k}$ times that")
    axes.set(title="Weight decay is a growing step", xlabel="step", ylabel="mean r²")
    axes.legend()


def draw_equation_17(axes: Axes) -> None:
    for name, dashes in (("batch 16", "-"), ("full batch", "--")):
        for key, colour, label in (
            ("measured", INK, "measured"),
            ("gradient", BAD, "equation 17"),
            ("buffer", GOOD, "fed with the buffer"),
        ):
            axes.plot(curves[name][key], color=colour, linestyle=dashes, linewidth=1.2, label=f"{label}, {name}")
    axes.set(title="Growth of r², momentum 0.9", xlabel="step", ylabel="r² / r²(0), median row")
    axes.legend(fontsize=7)


def draw_amplification(axes: Axes) -> None:
    x = np.linspace(0, 1, 50)
    axes.plot(x, (1 + 2 * BETA / (1 - BETA) * x) / (1 - BETA) ** 2, color=INK, linewidth=1, label="derived")
    axes.plot(*zip(*points, strict=True), "o", color=GOOD, label="runs, batches 4 to 256")
    axes.axhline(1900, color=BAD, linewidth=1.2, linestyle="--", label="equation 17")
    axes.axhline(100, color=MUTED, linewidth=0.9, linestyle=":", label="plain SGD, same effective step")
    axes.set(
        title="What momentum adds to r²", xlabel="mean correlation of gradients", ylabel=r"growth / $\eta^2\,\Sigma|g|^2$", ylim=(0, 2100)
    )
    axes.legend(loc="lower right", bbox_to_anchor=(1, 0.06), fontsize=7)


with matplotlib.rc_context(STYLE):
    figure = Figure(figsize=(11.5, 3.5), layout="constrained")
    for draw, axes in zip((draw_equivalence, draw_equation_17, draw_amplification), figure.subplots(1, 3), strict=True):
        draw(axes)
    if folder := os.environ.get("NOETHERFLOW_FIGURES"):
        figure.savefig(Path(folder, "implicit_adaptive_optimization.png"), dpi=150)
figure

# %% [markdown]
# ## Verdict

# %%
claims = {
    "r⁴ and RMSProp's G are averages of one form, with other prefactors": equation_18.decay.subs(gamma, dictionary).equals(
        equation_17.decay
    ),
    "weight decay is a growing step size, to rounding": all(gaps[m] < 100 * spread[m] for m in gaps),
    "and bit for bit where scales are powers of two": bitwise,
    "other schedules are rejected": min(rejected.values()) > 1e-3,
    "equation 17 over-predicts growth for mini-batches, not for full ones": over_predicts and growth["full batch, η/4"] < 1.25,
    "fed with the buffer it does not": all(abs(ratio - 1) < 0.03 for ratio in fed.values()),
    "momentum amplifies as the gradients' correlation says": all(abs(ratio - 1) < 0.1 for ratio in amplified),
}
failed = [claim for claim, holds in claims.items() if not holds]
if failed:
    raise AssertionError(f"Implicit adaptive optimization fails: {'; '.join(failed)}. {table} {gaps} {rejected} {points}")
