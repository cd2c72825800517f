# sources: own, kunin2021neural, tanaka2021noether, xiao2017fashion

# %% [markdown]
# # Momentum makes an oscillator of every charge: exactly, in discrete time, and how well in continuous time
#
# **Claim** (`kunin2021neural`, `tanaka2021noether`). Under SGD with momentum $\beta$, dampening $d$ and weight decay $\lambda$ a
# translation charge is a damped harmonic oscillator; scale and rescale charges are the same oscillator with $2\lambda$ for $\lambda$ and
# a forcing.
#
# **What is shown here** (own). The closed forms are exact in *discrete* time: $q_k$ is a power of a matrix whose eigenvalues are the
# roots of
#
# $$ z^2 - (1+\beta-\eta(1-d)\lambda)\,z + \beta = 0, $$
#
# in three regimes, and forcings enter by a discrete convolution with measured $\langle b', Ab'\rangle$. The differential equation is what
# this recursion is the **central difference scheme** of, with no further approximation. It therefore errs by the *second* order of its
# step if it starts where the recursion does. A buffer at rest means rest **half a step before** the first step; started at rest *at* the
# first step, as published, it errs by the first order.
#
# **Assumptions.** Constant hyper-parameters, one parameter group, an exact symmetry, a buffer that starts at zero.

# %%
import os
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import mpmath
import numpy as np
import sympy as sp
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from numpy.typing import NDArray
from torch import Tensor

import noetherflow as nf
from noetherflow.numeric.order import Order, fit_order
from noetherflow.numeric.palette import ACCENTS, BAD, INK, MUTED, STYLE
from noetherflow.numeric.rounding import confidence, unit_roundoff
from noetherflow.symbolic.balance import derive_balance
from noetherflow.symbolic.flows import TIME
from noetherflow.symbolic.oscillators import REGIMES, SPEED, START
from noetherflow.symbolic.pairings import Inner
from noetherflow.symbolic.rules import sgd_form
from noetherflow.symbolic.solutions import STEPS, Solution, solve_homogeneous

torch.set_num_threads(1)  # rounding then depends on no scheduler
Array = NDArray[np.float64]
eta, beta, d, decay = sp.symbols("eta mu tau lambda", real=True)
Q0, K0 = sp.symbols("Q_0 K_0", real=True)
HEAVY_BALL = sgd_form(momentum=True, nesterov=False, maximize=False)
z = sp.Symbol("z")

# %% [markdown]
# ## 1. The recursion and its roots
#
# The balance law of the charge is derived from the update equations of the rule; nothing else enters.

# %%
TRANSLATION, QUADRATIC = (solve_homogeneous(derive_balance((HEAVY_BALL,), linear, True)) for linear in (True, False))
assert sp.expand(TRANSLATION.characteristic.as_expr() - (z**2 - (1 + beta - eta * (1 - d) * decay) * z + beta)) == 0
assert sp.expand(QUADRATIC.characteristic.as_expr() - TRANSLATION.characteristic.as_expr().subs(decay, 2 * decay)) == 0
(kick,) = QUADRATIC.sources.atoms(Inner)
assert not TRANSLATION.sources.atoms(Inner), "a translation charge has no forcing"

# %% [markdown]
# By Cayley and Hamilton $M^k = U_kM - \beta U_{k-1}$ with $U_{k+1} = T U_k - \beta U_{k-1}$, $U_0 = 0$, $U_1 = 1$:
#
# | discriminant $T^2/4-\beta$ | $U_k$ |
# |---|---|
# | $<0$, underdamped | $\beta^{(k-1)/2}\,\sin k\varphi/\sin\varphi$, with $\cos\varphi = T/2\sqrt\beta$ |
# | $=0$, critical | $k\,(T/2)^{k-1}$ |
# | $>0$, overdamped | $(z_+^k - z_-^k)/(z_+ - z_-)$ |
#
# Each is checked against powers of the matrix, at the hyper-parameters of the runs below.

# %%
R = sp.Rational
RUNS = {
    "underdamped": {eta: R(1, 2), beta: R(19, 20), decay: R(1, 50), d: R(1, 5)},
    "critical": {eta: R(1, 2), beta: R(81, 100), decay: R(1, 50), d: 0},  # ηλ(1 - d) = (1 - √β)²
    "overdamped": {eta: R(1, 2), beta: R(1, 2), decay: R(1, 100), d: 0},
}
for regime, values in RUNS.items():
    assert TRANSLATION.regime(values) == regime
    motion, matrix = TRANSLATION.motion(regime).subs(values), TRANSLATION.matrix.subs(values)
    for k in (0, 1, 2, 7, 40):
        power = (matrix**k * sp.Matrix([1, R(-1, 7)]))[0]
        assert abs(sp.N(motion.subs({STEPS: k, Q0: 1, K0: R(-1, 7)}) - power, 40)) < 1e-30, regime

# %% [markdown]
# ## 2. The differential equation behind it
#
# Grouped around step $n$, the recursion $q_{n+1} - T q_n + \beta q_{n-1} = F$ *is*
#
# $$ m\,\frac{q_{n+1}-2q_n+q_{n-1}}{\eta^2} + \mu\,\frac{q_{n+1}-q_{n-1}}{2\eta} + k\,q_n = f,\qquad
# m = \tfrac{\eta(1+\beta)}2,\ \mu = 1-\beta,\ k = (1-d)\lambda, $$
#
# the central difference scheme of $m\ddot q + \mu\dot q + kq = f$. For scale and rescale charges $k = 2(1-d)\lambda$ and
# $f = \frac{\eta(1+\beta)}2\langle b, Ab\rangle$.

# %%
ball, forced = TRANSLATION.oscillator, QUADRATIC.oscillator
before, now, ahead = sp.symbols("before now ahead")
scheme = ball.mass * (ahead - 2 * now + before) / eta**2 + ball.friction * (ahead - before) / (2 * eta) + ball.spring * now
assert sp.expand(eta * scheme - (ahead - TRANSLATION.trace * now + beta * before)) == 0
assert (sp.expand(ball.mass - eta * (1 + beta) / 2), sp.expand(ball.friction - 1 + beta)) == (0, 0)
assert (sp.expand(ball.spring - (1 - d) * decay), sp.expand(forced.spring - 2 * (1 - d) * decay)) == (0, 0)
J = sp.Symbol("J", real=True)
assert sp.expand(forced.forcing.subs(J, 0) - forced.mass * kick) == 0

# %% [markdown]
# The published frequencies follow, for $t = \eta(1-d)\cdot$step there and $t = \eta\cdot$step here:
# $\gamma = \frac{1-\beta}{\eta(1+\beta)}$ and $\omega^2 = \frac{2(1-d)\lambda}{\eta(1+\beta)}$ (twice that for scale and
# rescale). The three solutions are solutions, with the start they should have.

# %%
assert sp.cancel(ball.damping - (1 - beta) / (eta * (1 + beta))) == 0
assert sp.cancel(ball.frequency_squared - 2 * (1 - d) * decay / (eta * (1 + beta))) == 0
for regime in REGIMES:
    values = {eta: R(1, 2), beta: R(1, 2), d: 0, decay: {"underdamped": 2, "critical": R(1, 6), "overdamped": R(1, 100)}[regime]}
    assert ball.regime(values) == regime
    x = ball.motion(regime).subs(values)
    m, mu, k = (c.subs(values) for c in (ball.mass, ball.friction, ball.spring))
    assert sp.simplify(m * x.diff(TIME, 2) + mu * x.diff(TIME) + k * x) == 0
    assert (sp.simplify(x.subs(TIME, 0)), sp.simplify(x.diff(TIME).subs(TIME, 0))) == (START, SPEED)

# %% [markdown]
# **Where it starts.** A buffer at rest, $K_0 = 0$, makes the charge one step earlier, $q_{-1}$, equal to $q_0$: the recursion is at rest in
# the middle of that step.

# %%
earlier = (TRANSLATION.matrix.inv() * sp.Matrix([Q0, 0]))[0]
following = (TRANSLATION.matrix * sp.Matrix([Q0, 0]))[0]
assert sp.simplify(following - TRANSLATION.trace * Q0 + beta * earlier) == 0
q_before = sp.Symbol("q_before")
(found,) = sp.solve(following - TRANSLATION.trace * Q0 + beta * q_before, q_before)
assert sp.simplify(found - Q0) == 0

# %% [markdown]
# **The order.** A mode $e^{\sigma t}$ of the scheme has
#
# $$ m\,\frac{2\cosh\eta\sigma-2}{\eta^2} + \mu\,\frac{\sinh\eta\sigma}\eta + k = 0, $$
#
# which is the oscillator's $m\sigma^2+\mu\sigma+k$ and $\eta^2(\frac m{12}\sigma^4+\frac\mu6\sigma^3) + \dots$: second order for every
# $\sigma$ that stays bounded. With $\beta$ fixed that is the slow root alone: the fast one is $e^{-2(1-\beta)/(1+\beta)}$ a step instead
# of $\beta$ however small $\eta$ is, but dies within a few steps. With $\beta = 1-c\sqrt\eta$ it is both roots, in the time
# $\sqrt\eta\cdot$step of the oscillator, and the regime stays what it is.

# %%
sigma, m, mu, k = sp.symbols("sigma m mu k")
mode = m * (2 * sp.cosh(eta * sigma) - 2) / eta**2 + mu * sp.sinh(eta * sigma) / eta + k
discrete_mode = (sp.exp(2 * eta * sigma) - TRANSLATION.trace * sp.exp(eta * sigma) + beta) * sp.exp(-eta * sigma) / eta
own = mode.subs({m: ball.mass, mu: ball.friction, k: ball.spring})
assert sp.simplify((discrete_mode - own).rewrite(sp.exp)) == 0
gap = sp.series(mode, eta, 0, 3).removeO() - (m * sigma**2 + mu * sigma + k)
assert sp.expand(gap - eta**2 * (m * sigma**4 / 12 + mu * sigma**3 / 6)) == 0

# %% [markdown]
# ## 3. Real runs: a network with all three kinds of charges
#
# A ReLU layer feeds a layer whose outputs are normalised (as BatchNorm does, without $\varepsilon$), and a softmax classifier: sums of the
# classifier's weights over classes (*translation*), squared norms of the normalised rows (*scale*), and the balance of each ReLU unit
# (*rescale*). It learns Fashion-MNIST (`xiao2017fashion`, the images that are shipped), averaged to 7 × 7, with `torch.optim.SGD`.

# %%
IMAGES = nf.data.fashion_mnist_subset()
WIDTH, HIDDEN, CLASSES, BATCH = 8, 6, 10, 32


def batches(seed: int, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    for images, labels in IMAGES.batches(BATCH, seed=seed, steps=steps, dtype=torch.float64):
        yield torch.nn.functional.avg_pool2d(images, 4).flatten(1), labels


def network(seed: int) -> dict[str, Tensor]:
    drawn = torch.Generator().manual_seed(seed)
    shapes = {"w1": (WIDTH, 49), "b1": (WIDTH,), "w2": (HIDDEN, WIDTH), "v": (CLASSES, HIDDEN)}
    scale = {"w1": 0.3, "b1": 0.1, "w2": 0.5, "v": 0.5}
    return {
        name: (scale[name] * torch.randn(shape, generator=drawn, dtype=torch.float64)).requires_grad_() for name, shape in shapes.items()
    }


def loss_of(p: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    hidden = torch.relu(x @ p["w1"].T + p["b1"]) @ p["w2"].T
    normed = (hidden - hidden.mean(0)) / hidden.var(0, unbiased=False).sqrt()
    return torch.nn.functional.cross_entropy(torch.relu(normed) @ p["v"].T, y)


def quadratic(p: dict[str, Tensor]) -> Tensor:
    """⟨x, Ax⟩ for every scale and rescale charge, 2Q for x = θ."""
    units = p["w1"].square().sum(1) + p["b1"].square() - p["w2"].square().sum(0)
    return torch.cat([p["w2"].square().sum(1), units])


class Record:
    """Charges before each step and after the last, and kicks of each step."""

    def __init__(self, values: dict[sp.Symbol, sp.Expr], steps: int, seed: int = 0) -> None:
        p, hyper = network(seed), {s.name: float(v) for s, v in values.items()}
        optimizer = torch.optim.SGD(p.values(), lr=hyper["eta"], momentum=hyper["mu"], dampening=hyper["tau"], weight_decay=hyper["lambda"])
        for w in p.values():  # torch makes the buffer at the first step without dampening; a buffer at rest is dampened from the start
            optimizer.state[w]["momentum_buffer"] = torch.zeros_like(w)
        linear, charges, kicks, sizes = [p["v"].detach().sum(0).clone()], [quadratic(p).detach()], [], []
        for x, y in batches(seed, steps):
            optimizer.zero_grad()
            loss_of(p, x, y).backward()
            optimizer.step()
            buffers = {name: optimizer.state[w]["momentum_buffer"] for name, w in p.items()}
            linear.append(p["v"].detach().sum(0).clone())
            charges.append(quadratic(p).detach())
            kicks.append(quadratic(buffers))
            sizes.append(max(float(w.detach().norm()) + hyper["eta"] * float(buffers[n].norm()) for n, w in p.items()))
        self.translation, self.charges, self.kicks = (torch.stack(x).numpy() for x in (linear, charges, kicks))
        self.size = max(sizes)


def sequence(expression: sp.Expr, values: dict[sp.Symbol, sp.Expr], steps: Array) -> Array:
    """A closed form at given steps, evaluated with 40 digits: near the critical regime it is a difference of large numbers."""
    told = sp.lambdify(STEPS, sp.N(expression.subs(values), 40), "mpmath")
    with mpmath.workdps(40):
        return np.array([float(told(mpmath.mpf(int(k)))) for k in steps])


def rounding_bound(law: Solution, regime: str, values: dict[sp.Symbol, sp.Expr], record: Record, power: int) -> Array:
    """Each step rounds the network's θ and b' by u times their size, a handful of operations each; the law carries these on."""
    steps = len(record.kicks)
    carried = np.max(
        [np.abs(sequence(law.motion(regime).subs({Q0: a, K0: b}), values, np.arange(steps))) for a, b in ((1, 0), (0, 1))], axis=0
    )
    operations = 8 * (WIDTH + CLASSES)
    one = np.sqrt(operations) * unit_roundoff(torch.float64) * record.size**power
    return confidence(record.charges.size) * one * np.sqrt(1 + np.concatenate([[0], np.cumsum(carried**2)]))


STEPS_RUN = 120
runs = {regime: Record(values, STEPS_RUN) for regime, values in RUNS.items()}
at = np.arange(STEPS_RUN + 1)

# %% [markdown]
# ### Translation: nothing is measured but the start
#
# $q_k$ for 120 steps, from $q_0$ alone, within the rounding of the run. The same form without the dampening, or with the spring
# $2\lambda$ of a quadratic charge, is far off.

# %%
translation_ratio: dict[str, float] = {}
siblings: dict[str, float] = {}
for regime, values in RUNS.items():
    record, unit = runs[regime], TRANSLATION.motion(regime).subs({Q0: 1, K0: 0})
    error = np.abs(sequence(unit, values, at)[:, None] * record.translation[0] - record.translation).max(1)
    bound = rounding_bound(TRANSLATION, regime, values, record, power=1)
    translation_ratio[regime] = float((error / bound).max())
    wrong = values | {decay: 2 * values[decay]}
    other = TRANSLATION.motion(TRANSLATION.regime(wrong)).subs({Q0: 1, K0: 0})
    off = np.abs(sequence(other, wrong, at)[:, None] * record.translation[0] - record.translation).max(1)
    siblings[f"{regime}, 2λ for λ"] = float((off / bound).max())
undamped = RUNS["underdamped"] | {d: 0}
off = sequence(TRANSLATION.motion("underdamped").subs({Q0: 1, K0: 0}), undamped, at)[:, None] * runs["underdamped"].translation[0]
siblings["dampening forgotten"] = float(
    (
        np.abs(off - runs["underdamped"].translation).max(1) / rounding_bound(TRANSLATION, "underdamped", undamped, runs["underdamped"], 1)
    ).max()
)
assert max(translation_ratio.values()) < 1, translation_ratio
assert min(siblings.values()) > 1e6, siblings
translation_ratio

# %% [markdown]
# ### Scale and rescale: a discrete convolution
#
# $Q_k = Q^{\text{free}}_k + \sum_{j<k} G_{k-j}\,\langle b'_j, Ab'_j\rangle$, with $G$ the response of the same matrix to a unit of forcing.
# Shifting the convolution by one step, the sort of slip that a Riemann sum hides, is rejected.


# %%
def convolved(record: Record, regime: str, values: dict[sp.Symbol, sp.Expr], shift: int = 0) -> Array:
    free = sequence(QUADRATIC.motion(regime).subs({Q0: 1, K0: 0}), values, at)
    response = sequence(QUADRATIC.response(regime, kick), values, at[1:] + shift)
    pushed = np.stack([np.convolve(response, column)[:STEPS_RUN] for column in record.kicks.T], axis=1)
    return free[:, None] * record.charges[0] / 2 + np.vstack([np.zeros_like(pushed[:1]), pushed])


quadratic_ratio: dict[str, float] = {}
for regime, values in RUNS.items():
    own = QUADRATIC.regime(values)  # 2λ: another regime than that of the translation charges, perhaps
    bound = rounding_bound(QUADRATIC, own, values, runs[regime], power=2)
    measured = runs[regime].charges / 2
    quadratic_ratio[f"{regime} ({own})"] = float((np.abs(convolved(runs[regime], own, values) - measured).max(1) / bound).max())
    siblings[f"{regime}, convolution shifted"] = float(
        (np.abs(convolved(runs[regime], own, values, shift=1) - measured).max(1) / bound).max()
    )
assert max(quadratic_ratio.values()) < 1, quadratic_ratio
assert min(siblings.values()) > 1e6, siblings
quadratic_ratio

# %% [markdown]
# ## 4. The differential equation, and its order
#
# Runs of the same network at four step sizes up to a fixed time, once in the scaling $\beta = 1-c\sqrt\eta$ that keeps the regime, once
# at fixed $\beta$. The oscillator that is at rest *at* the first step, as published, is off by the first order; at rest half a step
# before, by the second.

# %%
C, LAMBDA, END = R(3, 5), R(4), 3


def oscillator_errors(values: dict[sp.Symbol, sp.Expr], steps: int) -> tuple[float, float]:
    """Error at the end, relative to the start: at rest at the first step, and half a step before."""
    record = Record(values, steps)
    regime = ball.regime(values)
    unit = sp.lambdify(TIME, sp.N(ball.motion(regime, sp.S.One, sp.S.Zero).subs(values), 30), "numpy")
    rate, measured = float(values[eta]), record.translation / np.abs(record.translation[0]).max()
    first, end = measured[0], rate * steps
    return tuple(float(np.abs(unit(end + shift) * first - measured[-1]).max()) for shift in (0, rate / 2))


HALVINGS = [R(1, 16) / 2**i for i in range(4)]
kept, fixed = [], []
for h in HALVINGS:
    kept.append(oscillator_errors({eta: h**2, beta: 1 - C * h, decay: LAMBDA, d: 0}, int(END / h)))
FIXED = [R(1, 25) / 2**i for i in range(4)]
for small in FIXED:
    values = {eta: small, beta: R(1, 2), decay: R(1, 2), d: 0}
    fixed.append(oscillator_errors(values, int(R(2) / small)))
orders: dict[str, Order] = {}
for name, sizes, errors in (("β = 1 − c√η", HALVINGS, kept), ("β = 1/2", FIXED, fixed)):
    for i, start in enumerate(("at rest at step 0", "half a step before")):
        orders[f"{name}, {start}"] = fit_order([float(x) for x in sizes], [e[i] for e in errors])
{name: str(order) for name, order in orders.items()}

# %%
assert all(abs(order.slope - (1 if "at rest" in name else 2)) < 0.1 for name, order in orders.items()), orders

# %% [markdown]
# ## 5. The figure

# %%


def draw_regimes(axes: Axes) -> None:
    for (regime, values), colour in zip(RUNS.items(), ACCENTS, strict=False):
        record = runs[regime]
        i = int(np.abs(record.translation[0]).argmax())
        axes.plot(record.translation[:, i] / record.translation[0, i], color=colour, linewidth=4, alpha=0.3)
        axes.plot(sequence(TRANSLATION.motion(regime).subs({Q0: 1, K0: 0}), values, at), color=colour, linewidth=1.2, label=regime)
    axes.plot([], [], color=MUTED, linewidth=4, alpha=0.4, label="measured")
    axes.set(title="Translation charges, closed form from q₀", xlabel="step", ylabel="q / q₀")
    axes.legend()


def draw_forced(axes: Axes) -> None:
    regime, values = "underdamped", RUNS["underdamped"]
    record, told = runs[regime], 2 * convolved(runs[regime], QUADRATIC.regime(values), values)
    for i, colour, label in ((0, ACCENTS[0], "scale |w|²"), (HIDDEN, ACCENTS[3], "rescale |in|² − |out|²")):
        axes.plot(record.charges[:, i], color=colour, linewidth=4, alpha=0.3)
        axes.plot(told[:, i], color=colour, linewidth=1.2, label=label)
    axes.set(title="Forced by measured ⟨b′, Ab′⟩", xlabel="step", ylabel="charge")
    axes.legend()


def draw_orders(axes: Axes) -> None:
    sets = ((HALVINGS, kept, "β = 1 − c√η", "o-"), (FIXED, fixed, "β = 1/2", "s--"))
    for sizes, errors, name, marks in sets:
        for i, (start, colour) in enumerate((("at rest at step 0", BAD), ("half a step before", INK))):
            label = f"{name}, {start}: {orders[f'{name}, {start}'].slope:.2f}"
            axes.loglog([float(x) for x in sizes], [e[i] for e in errors], marks, color=colour, markersize=4, linewidth=1, label=label)
    axes.set(title="Oscillator against runs", xlabel="time step: √η (circles), η (squares)", ylabel="error / |q₀|")
    axes.set_ylim(min(e[1] for e in (*kept, *fixed)) / 60, None)
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.legend(loc="lower right", fontsize=6.8)


with matplotlib.rc_context(STYLE):
    figure = Figure(figsize=(11.5, 3.5), layout="constrained")
    for draw, axes in zip((draw_regimes, draw_forced, draw_orders), figure.subplots(1, 3), strict=True):
        draw(axes)
    if folder := os.environ.get("NOETHERFLOW_FIGURES"):
        figure.savefig(Path(folder, "momentum_oscillator.png"), dpi=150)
figure

# %% [markdown]
# ## Verdict

# %%
claims = {
    "translation charges follow the power of the matrix within rounding, in all three regimes": max(translation_ratio.values()) < 1,
    "scale and rescale charges follow its convolution with measured pairings": max(quadratic_ratio.values()) < 1,
    "wrong siblings are far off": min(siblings.values()) > 1e6,
    "the published start errs by the first order, half a step earlier by the second": all(
        abs(order.slope - (1 if "at rest" in name else 2)) < 0.1 for name, order in orders.items()
    ),
}
failed = [claim for claim, holds in claims.items() if not holds]
if failed:
    raise AssertionError(f"The oscillator fails: {'; '.join(failed)}. {translation_ratio} {quadratic_ratio} {siblings} {orders}")
