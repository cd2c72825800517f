# sources: own, hairer2006geometric, miyagawa2022toward, kunin2021neural

# %% [markdown]
# # The differential equation that a training run follows, to any order in its step size
#
# **Claim** (own; for plain gradient descent `miyagawa2022toward`, after `hairer2006geometric`, chapter IX). The steps
# of SGD with any of its options follow the flow of a **modified equation** $\dot\theta = F_0 + \eta F_1 + \eta^2 F_2 + \dots$ whose terms
# are elementary differentials of the loss. With $p$ terms it predicts a run at a fixed time $t = \eta\cdot\text{step}$ with an error of
# order $\eta^p$, **provided** it starts where the run belongs: with momentum that is not at $\theta_0$ but at
# $\theta_0 + \eta\frac{\mu}{(1-\mu)^2}\,g + \dots$. The motion of a Noether charge along it follows from invariance alone.
#
# **Assumptions.** Constant hyper-parameters, one batch (or full batches), a loss that is smooth where the run goes. Series in $\eta$ are
# asymptotic: more terms help for small $\eta$ only.

# %%
import os
from itertools import product
from pathlib import Path

import matplotlib
import sympy as sp
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from torch import Tensor, nn

import noetherflow as nf
from noetherflow.bridge.differentials import first_buffers, follow, loss_of
from noetherflow.numeric.order import Order, fit_order
from noetherflow.numeric.palette import ACCENTS, BAD, INK, MUTED, STYLE
from noetherflow.symbolic.balance import CHARGE
from noetherflow.symbolic.differentials import Differential
from noetherflow.symbolic.modified import ModifiedEquation, modified_equation
from noetherflow.symbolic.modified_charges import charge_motion
from noetherflow.symbolic.pairings import Inner
from noetherflow.symbolic.rules import THETA, sgd_form

torch.set_num_threads(1)  # rounding then depends on no scheduler
ETA, DECAY, MU = sp.symbols("eta lambda mu", real=True)
G = Differential()
PLAIN = sgd_form(momentum=False, nesterov=False, maximize=False)
HEAVY_BALL = sgd_form(momentum=True, nesterov=False, maximize=False)

# %% [markdown]
# ## 1. Backward error analysis
#
# One looks for a field $F$ and for what the buffer is along it, $B(\theta)$, both power series in $\eta$, such that
#
# $$ e^{\eta D[F]}\theta = \theta - \eta\,u(\theta, g, B), \qquad B\ \text{carried by the flow} = b'(\theta, g, B). $$
#
# With $H = \nabla^2 f$ and all derivatives at $\theta$, the first three terms for gradient descent are the published ones:
#
# $$ \dot\theta = -g - \tfrac{\eta}{2} Hg - \eta^2\left(\tfrac13 HHg + \tfrac1{12}\nabla^3f[g,g]\right) + O(\eta^3), $$
#
# and weight decay is the same with $g + \lambda\theta$ for $g$, so that for example $F_1 = -\frac12(H+\lambda)(g + \lambda\theta)$.

# %%
descent = modified_equation(PLAIN, 3, weight_decay=0).field
assert descent[:2] == (-G, -Differential(G) / 2)
assert sp.expand(descent[2] + Differential(Differential(G)) / 3 + Differential(G, G) / 12) == 0
decayed = modified_equation(PLAIN, 2).field[1]
f, hf = G + DECAY * THETA, Differential(G) + DECAY * Differential(THETA)
assert sp.expand(decayed + (hf + DECAY * f) / 2) == 0

# %% [markdown]
# ## 2. A check that is exact: quadratic losses
#
# If $H$ is constant, every step multiplies an eigenvector by a number $z$, and the flow by $e^{t\sigma}$ with
# $\sigma = \ln z / \eta$. With momentum $z$ is the root of $z^2 - (1+\mu-\eta h)z + \mu = 0$ that tends to one. The coefficients of
# $g, Hg, HHg, \dots$ must be those of the series of $\ln z$.

# %%
h, z = sp.symbols("h z")


def chains(equation: ModifiedEquation) -> sp.Expr:
    """η σ from the coefficients of g, Hg, HHg, ..."""
    tree, total = G, sp.S.Zero
    for power, term in enumerate(equation.field):
        total += sp.expand(term).coeff(tree) * (ETA * h) ** (power + 1)
        tree = Differential(tree)
    return total


for mu in (sp.Integer(0), sp.Rational(1, 2), sp.Rational(9, 10)):
    form, values = (HEAVY_BALL, {"momentum": mu, "dampening": 0}) if mu else (PLAIN, {})
    roots = sp.solve(z**2 - (1 + mu - ETA * h) * z + mu, z)
    (slow,) = (r for r in roots if r.subs(ETA, 0) == 1)
    series = sp.series(sp.log(slow), ETA, 0, 5).removeO()
    assert sp.simplify(sp.expand(chains(modified_equation(form, 4, weight_decay=0, **values)) - series)) == 0

# %% [markdown]
# ## 3. Momentum: what is added, and where to start
#
# With momentum the first correction is multiplied by $(1+\mu)/(1-\mu)^3$: 1900 for $\mu = 0.9$. Plain steps of the effective size
# $\eta/(1-\mu)$ would have $1/(1-\mu)^2 = 100$; the factor $(1+\mu)/(1-\mu) = 19$ that is left is inertia. A run from rest reaches the flow
# within a few steps, but beside $\theta_0$.

# %%
momentum = modified_equation(HEAVY_BALL, 2, weight_decay=0, dampening=0)
assert sp.cancel(sp.expand(momentum.field[1]).coeff(Differential(G)) + (1 + MU) / (2 * (1 - MU) ** 3)) == 0
assert sp.cancel(momentum.start()[1] - MU / (1 - MU) ** 2 * G) == 0
assert ((1 + MU) / (1 - MU) ** 3).subs(MU, sp.Rational(9, 10)) == 1900

# %% [markdown]
# ## 4. Charges
#
# Differentiating $\langle\nabla f(\theta), A\theta\rangle = 0$ along $x_1, \dots, x_k$ gives
# $\langle A\theta, \nabla^{k+1}f[x_1,\dots,x_k]\rangle = -\sum_i \langle Ax_i, \nabla^kf[\dots]\rangle$ (without $x_i$), and with it
#
# $$ \dot Q = \tfrac{\eta}{2}\langle g, Ag\rangle + \tfrac{\eta^2}{2}\langle g, AHg\rangle + O(\eta^3), \qquad
# \dot Q = \tfrac{\eta}{2}\tfrac{1+\mu}{(1-\mu)^3}\langle g, Ag\rangle + O(\eta^2)\ \text{ with momentum.} $$
#
# A translation charge knows no gradient at any order: it decays at the rate $\ln(1-\eta\lambda)/\eta$, to the last term.

# %%
assert charge_motion(modified_equation(PLAIN, 3, weight_decay=0), linear=False) == (0, Inner(G, G) / 2, Inner(G, Differential(G)) / 2)
amplified = charge_motion(momentum, linear=False)[1]
assert sp.cancel(amplified.coeff(Inner(G, G)) - (1 + MU) / (1 - MU) ** 3 / 2) == 0
translation = sum(ETA**j * term for j, term in enumerate(charge_motion(modified_equation(PLAIN, 5), linear=True)))
assert sp.expand(ETA * translation - CHARGE * sp.series(sp.log(1 - ETA * DECAY), ETA, 0, 6).removeO()) == 0

# %% [markdown]
# ## 5. Real runs
#
# A tanh network with two linear layers behind, in float64, trained by `torch.optim.SGD` from rest. The elementary differentials are
# evaluated by automatic differentiation, the flow is integrated to an error that does not show, and the difference to the run at
# $t = 1/2$ is fitted over four octaves of the step size.

# %%
TIME, OCTAVES = 0.5, 4
RUNS = {"gradient descent": ({"weight_decay": 0.1}, 10), "momentum 0.6": ({"weight_decay": 0.1, "momentum": 0.6}, 60)}
drawn = torch.Generator().manual_seed(3)
model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3, bias=False), nn.Linear(3, 2)).double()
with torch.no_grad():
    for p in model.parameters():
        p.copy_(0.6 * torch.randn(p.shape, generator=drawn, dtype=torch.float64))
inputs, targets = (torch.randn(12, n, generator=drawn, dtype=torch.float64) for n in (3, 2))
start = {name: p.detach().clone() for name, p in model.named_parameters()}
loss = loss_of(model, nn.functional.mse_loss, inputs, targets)


def train(steps: int, **options: float) -> dict[str, Tensor]:
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(start[name])
    optimizer = torch.optim.SGD(model.parameters(), **options)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(inputs), targets).backward()
        optimizer.step()
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def gap(x: dict[str, Tensor], y: dict[str, Tensor]) -> float:
    return float(sum(((x[name] - y[name]) ** 2).sum() for name in x) ** 0.5)


class FromTheStart(ModifiedEquation):
    """A wrong sibling: the flow starts where the run does."""

    def start(self, *buffers: sp.Expr) -> tuple[sp.Expr, ...]:
        return (THETA,)


errors: dict[tuple[str, int], list[float]] = {}
naive: list[float] = []
step_sizes: dict[str, list[float]] = {}
for kind, (options, first) in RUNS.items():
    form = nf.rule_of(torch.optim.SGD(model.parameters(), lr=0.1, **options)).groups[0].form
    step_sizes[kind] = [TIME / (first * 2**octave) for octave in range(OCTAVES)]
    for octave, rate in enumerate(step_sizes[kind]):
        end = train(first * 2**octave, lr=rate, **options)
        values = {"momentum": 0.0, "dampening": 0.0, "lr": rate} | options
        for terms in (1, 2, 3):
            equation = modified_equation(form, terms)
            predicted = follow(equation, loss, start, values, TIME, buffers=first_buffers(form))
            errors.setdefault((kind, terms), []).append(gap(end, predicted))
        if form.buffers:
            known = modified_equation(form, 2)
            wrong = FromTheStart(known.form, known.order, known.series, known.buffers)
            naive.append(gap(end, follow(wrong, loss, start, values, TIME)))

orders: dict[tuple[str, int], Order] = {key: fit_order(step_sizes[key[0]], found) for key, found in errors.items()}
misplaced = fit_order(step_sizes["momentum 0.6"], naive)
assert all(abs(fitted.slope - terms) < 0.1 for (_, terms), fitted in orders.items()), orders
assert abs(misplaced.slope - 1) < 0.1, misplaced
{" with ".join(map(str, key)): str(fitted) for key, fitted in orders.items()} | {"from the run's own start": str(misplaced)}

# %% [markdown]
# ## 6. The figure

# %%


def draw(axes: Axes, kind: str) -> None:
    for terms, colour in zip((1, 2, 3), ACCENTS, strict=False):
        fitted = orders[kind, terms]
        axes.loglog(step_sizes[kind], errors[kind, terms], "o", color=colour)
        line = [fitted.factor * rate**fitted.slope for rate in step_sizes[kind]]
        axes.loglog(step_sizes[kind], line, color=colour, linewidth=1, label=f"{terms} term{'s' * (terms > 1)}: slope {fitted}")
    if kind == "momentum 0.6":
        axes.loglog(step_sizes[kind], naive, "x--", color=BAD, linewidth=1, label=f"2 terms, flow from θ₀: {misplaced}")
    axes.set(title=kind.capitalize(), xlabel="step size η", ylabel="|run − prediction|", ylim=(errors[kind, 3][-1] / 300, None))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.legend(loc="lower right", fontsize=8)


def draw_amplification(axes: Axes) -> None:
    factor = sp.lambdify(MU, (1 + MU) / (1 - MU) ** 3)
    momenta = [i / 100 for i in range(96)]
    axes.semilogy(momenta, [factor(m) for m in momenta], color=INK, label=r"$(1+\mu)/(1-\mu)^3$, derived")
    axes.semilogy(momenta, [1 / (1 - m) ** 2 for m in momenta], color=MUTED, linestyle=":", label=r"$1/(1-\mu)^2$, plain steps as long")
    axes.set(title="Momentum feeds a charge", xlabel="momentum μ", ylabel="rate against plain descent")
    axes.legend(loc="upper left", fontsize=8)


with matplotlib.rc_context(STYLE):
    figure = Figure(figsize=(11.5, 3.5), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    draw(left, "gradient descent")
    draw(middle, "momentum 0.6")
    draw_amplification(right)
    if folder := os.environ.get("NOETHERFLOW_FIGURES"):
        figure.savefig(Path(folder, "modified_equation.png"), dpi=150)
figure

# %% [markdown]
# ## Verdict

# %%
claims = {
    "each term of the equation gives one order": all(abs(orders[key].slope - key[1]) < 0.1 for key in product(RUNS, (1, 2, 3))),
    "with momentum only from its own start": abs(misplaced.slope - 1) < 0.1,
    "a charge is moved by second-order pairings alone": charge_motion(momentum, linear=False)[0] == 0,
}
failed = [claim for claim, holds in claims.items() if not holds]
if failed:
    raise AssertionError(f"The modified equation fails: {'; '.join(failed)}. Orders: {orders}.")
