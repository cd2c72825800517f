# sources: own, kosson2024rotational, vanlaarhoven2017regularization, wan2021spherical, loshchilov2019decoupled, gould2024continuous

# %% [markdown]
# # Rotational equilibrium: where the norm of a normalised layer comes to rest, and how far it turns with every step
#
# **Claim** (`kosson2024rotational`; for SGD `vanlaarhoven2017regularization`, `wan2021spherical`). Weight decay and gradients bring the
# norm of a weight in front of a normalisation to a value of its own, and from then on the weight turns by the same angle in every step,
# on average: $\sqrt{2\eta\lambda}$ for SGD, $\sqrt{2\eta\lambda/(1+\beta)}$ with momentum, $\sqrt{2\eta\lambda(1-\beta)/(1+\beta)}$ for
# AdamW.
#
# **What is shown here** (own). These are the fixed points of the exact balance law of $\frac12r^2$. The law is linear, so means obey it
# with nothing dropped. With $\rho = 1-\eta\lambda$ and $p$ the buffer after the step,
#
# | rule | $\mathbb E\,r^2$ | $\mathbb E\langle\theta,\theta'\rangle/\mathbb E\,r^2$, any gradients |
# |---|---|---|
# | SGD | $\frac{\eta}{2\lambda-\eta\lambda^2}\,\mathbb E|g|^2$ | $\rho$ |
# | SGD, momentum, coupled decay | $\frac{\eta(1+\beta)}{2\lambda}\,\mathbb E|p|^2$ | $1-\frac{\eta\lambda}{1+\beta}$ |
# | AdamW | $\frac{\eta}{2\lambda-\eta\lambda^2}\frac{1+\beta\rho}{1-\beta\rho}\mathbb E|p|^2$ | $\frac{\beta+\rho}{1+\beta\rho}$ |
#
# The last row is that of any momentum with decoupled decay. The second column knows neither the network nor its gradients, whether they
# are white or not. AdamW's metric breaks the symmetry; what that adds to its norm is measured as a current, and the law with it is exact
# again.
#
# **Assumptions.** Exact scale invariance (normalisation without $\varepsilon$); a stationary state, constant hyper-parameters. For $r^4$
# and angles: fluctuations of $r$ small.

# %%
import math
import os
from pathlib import Path
from typing import NamedTuple

import matplotlib
import sympy as sp
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from noetherflow.numeric.palette import ACCENTS, BAD, INK, MUTED, STYLE
from noetherflow.symbolic.balance import CHARGE, CURRENT, derive_balance
from noetherflow.symbolic.pairings import Inner, Vector
from noetherflow.symbolic.rules import GRADIENT, sgd_form
from noetherflow.symbolic.stationary import decoupled_form, equilibrium, in_basics

torch.set_num_threads(1)
eta, decay, beta, tau = sp.symbols("eta lambda mu tau", real=True)
rho = 1 - eta * decay
P = Vector("b'")
FORMS = {
    "SGD": sgd_form(momentum=False, nesterov=False, maximize=False),
    "SGD, momentum": sgd_form(momentum=True, nesterov=False, maximize=False),
    "AdamW": decoupled_form(momentum=True),
}
RESTS = {name: equilibrium(form) for name, form in FORMS.items()}

# %% [markdown]
# ## 1. The fixed points
#
# For $A = 1$ the second-order pairings of $u = g + \lambda\theta$ hold $\langle\theta,\theta\rangle = 2Q$, $\langle\theta,g\rangle = J =
# 0$ and $\langle\theta,b\rangle = K$; what is left is one pairing. For plain SGD the law becomes $Q' = (1-\eta\lambda)^2Q +
# \frac12\eta^2|g|^2$, and in general the fixed point is the solution of two linear equations.

# %%
plain = derive_balance((FORMS["SGD"],), False, True)
(step,) = plain.equations
assert sp.expand(in_basics(plain, step.rhs).subs(CURRENT, 0) - rho**2 * CHARGE - eta**2 * Inner(GRADIENT, GRADIENT) / 2) == 0

pairings = {"SGD": Inner(GRADIENT, GRADIENT), "SGD, momentum": Inner(P, P), "AdamW": Inner(P, P)}
displayed = {
    "SGD": (eta / (2 * decay - eta * decay**2), rho),
    "SGD, momentum": (eta * (1 + beta) / (2 * decay * (1 - tau)), 1 - eta * decay * (1 - tau) / (1 + beta)),
    "AdamW": (eta / (2 * decay - eta * decay**2) * (1 + beta * rho) / (1 - beta * rho), (beta + rho) / (1 + beta * rho)),
}
for name, (factor, cosine) in displayed.items():
    assert sp.cancel(RESTS[name].norm_squared.subs(CURRENT, 0) - factor * pairings[name]) == 0, name
    assert sp.cancel(RESTS[name].cosine - cosine) == 0, name

# %% [markdown]
# Gradients of a scale-invariant loss go as $1/r$, so $|p|^2 = |\hat p|^2/r^2$ and $r^4$ is the same factor times $|\hat p|^2$, $\hat p$
# at unit norm. To leading order in $\eta\lambda$ the published angles come out; they do not depend on the dampening of AdamW's average.

# %%
hat = Vector("g_hat")
assert sp.cancel(RESTS["SGD"].norm_fourth - eta * Inner(hat, hat) / (2 * decay - eta * decay**2)) == 0
published = {
    "SGD": 2 * eta * decay,
    "SGD, momentum": 2 * eta * decay / (1 + beta),
    "AdamW": 2 * eta * decay * (1 - beta) / (1 + beta),
}
for name, squared in published.items():
    assert sp.cancel((RESTS[name].angle ** 2).subs(tau, 0) - squared) == 0, name

# %% [markdown]
# **White gradients.** A buffer of uncorrelated gradients has $\mathbb E|p|^2 = \frac{(1-\tau)^2}{1-\beta^2}\mathbb E|g|^2$. That gives
# SGD's $r^4 = \frac{\eta}{2\lambda(1-\beta)}\mathbb E|\hat g|^2$ with momentum, and for AdamW, whose normalised gradients have
# $\mathbb E|g|^2 = d$ in $d$ dimensions, $r^2 = \frac{\eta d}{2\lambda}$, whatever $\beta$.

# %%
sample, remembered, size = sp.symbols("G S d", positive=True)
(white,) = sp.solve(beta**2 * remembered + (1 - tau) ** 2 * sample - remembered, remembered)
momentum_white = (displayed["SGD, momentum"][0] * white).subs(tau, 0)
assert sp.cancel(momentum_white - eta * sample / (2 * decay * (1 - beta))) == 0
adam_white = (displayed["AdamW"][0] * white).subs({tau: beta, sample: size})
assert sp.cancel(sp.limit(adam_white / eta, eta, 0) - size / (2 * decay)) == 0

# %% [markdown]
# **What a dropped cross term costs.** `gould2024continuous` keeps AdamW's $r^2$ as an average of $\eta^2|u|^2$ alone and neglects
# $\langle\theta,u\rangle$, which would leave $r^2 = \frac{\eta}{2\lambda}|u|^2$. At rest the neglected term is $\frac{2\beta}{1-\beta}$
# times the one that is kept, to leading order: the norm is off by $\frac{1+\beta}{1-\beta}$, 19 for $\beta = 0.9$.

# %%
kept_only = eta / (2 * decay)
lost = sp.limit(sp.cancel(displayed["AdamW"][0] / kept_only), eta, 0)
assert sp.cancel(lost - (1 + beta) / (1 - beta)) == 0
assert sp.cancel(lost - 1 - 2 * beta / (1 - beta)) == 0
assert lost.subs(beta, sp.Rational(9, 10)) == 19

# %% [markdown]
# ## 2. Trained layers
#
# Sixteen small networks at a time: three filters with batch statistics, a tanh, a readout, noisy targets that a teacher gives; each
# network has its own weight decay, over a decade, and starts at another norm. After 300 steps, 800 more are recorded. All steps are
# those of `torch.optim`'s SGD and AdamW, written out.

# %%
NETS, FILTERS, INPUTS, BATCH = 16, 3, 8, 12
BURN, KEPT = 300, 800
# simultaneous 99 % intervals for six statements: Student's t with 15 degrees of freedom at 1 % / 6, two-sided
T_QUANTILE = 3.83


class Run(NamedTuple):
    """Histories, shape (steps, networks, filters, inputs) without the burn-in, and r² of all steps."""

    eta: float
    decay: Tensor
    beta: float
    weights: Tensor
    steps: Tensor
    norms: Tensor

    @property
    def values(self) -> dict[str, float | Tensor]:
        return {"eta": self.eta, "lambda": self.decay[:, None], "mu": self.beta}

    def mean_square(self) -> Tensor:
        return self.steps.square().sum(-1).mean(0)

    def norm_squared(self) -> Tensor:
        return self.weights[:-1].square().sum(-1).mean(0)

    def turn(self) -> Tensor:
        """1 - E⟨θ, θ'⟩ / E r², shape (networks, filters)."""
        dot = (self.weights[:-1] * self.weights[1:]).sum(-1).mean(0)
        return 1 - dot / self.norm_squared()

    def angle(self) -> Tensor:
        """Root mean square angle of a step."""
        cosine = torch.nn.functional.cosine_similarity(self.weights[:-1], self.weights[1:], dim=-1)
        return torch.acos(cosine).square().mean(0).sqrt()


def train(name: str, rate: float, turns: Tensor, momentum: float, seed: int) -> Run:
    """`turns` are ηλ of the networks."""
    drawn = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=drawn, dtype=torch.float64)

    decays = turns / rate
    start = torch.logspace(-0.4, 0.4, NETS, dtype=torch.float64)[torch.randperm(NETS, generator=drawn)]
    weight = (normal(NETS, FILTERS, INPUTS) * start[:, None, None] * (0.1 if name == "AdamW" else 0.5)).requires_grad_()
    readout, teacher = normal(NETS, 1, FILTERS), normal(NETS, INPUTS, 1)
    buffer, second = torch.zeros_like(weight), torch.zeros_like(weight)
    weights, steps, norms = [], [], []
    lam = decays[:, None, None]
    for n in range(1, BURN + KEPT + 1):
        x = normal(NETS, BATCH, INPUTS)
        y = torch.sin(x @ teacher).squeeze(-1) + 0.5 * normal(NETS, BATCH)
        z = x @ weight.transpose(1, 2)
        z = (z - z.mean(1, keepdim=True)) / z.var(1, unbiased=False, keepdim=True).sqrt()
        loss = ((torch.tanh(z) * readout).sum(-1) - y).square().mean(1).sum()
        (g,) = torch.autograd.grad(loss, weight)
        with torch.no_grad():
            if name == "AdamW":
                buffer = momentum * buffer + (1 - momentum) * g
                second = 0.99 * second + 0.01 * g**2
                p = buffer / (1 - momentum**n) / (second / (1 - 0.99**n)).sqrt()
                new = (1 - rate * lam) * weight - rate * p
            else:
                buffer = momentum * buffer + g + lam * weight
                p = buffer if momentum else g
                new = weight - rate * buffer
            if n > BURN:
                weights.append(weight.clone())
                steps.append(p.clone())
            norms.append(weight.square().sum(-1).mean(1))
            weight.copy_(new)
    weights.append(weight.detach().clone())
    return Run(rate, decays, momentum, torch.stack(weights), torch.stack(steps), torch.stack(norms))


TURNS = torch.logspace(-2, -1, NETS, dtype=torch.float64)
runs = {
    "SGD": train("SGD", 0.05, TURNS, 0.0, seed=0),
    "SGD, momentum": train("SGD, momentum", 0.01, TURNS, 0.9, seed=1),
    "AdamW": train("AdamW", 0.005, TURNS, 0.9, seed=2),
}


def predicted(expression: sp.Expr, run: Run, dampening: float = 0.0, **measured: Tensor) -> Tensor:
    """A derived expression at the hyper-parameters of each network; shape (networks, 1) or (networks, filters)."""
    pairing = sp.Symbol("S")
    opened = expression.replace(Inner, lambda *_: pairing)
    at = run.values | {"tau": dampening, "S": measured.get("S", torch.zeros(1)), "J": measured.get("J", torch.zeros(1))}
    symbols = sorted(opened.free_symbols, key=str)
    return sp.lambdify(symbols, opened, "math")(*(at[s.name] for s in symbols))


def interval(ratio: Tensor) -> tuple[float, float]:
    """Mean over networks (each the mean of its filters) and half the width of the interval."""
    each = ratio.mean(1)
    return float(each.mean()), T_QUANTILE * float(each.std()) / math.sqrt(len(each))


def holds(found: tuple[float, float], value: float = 1.0) -> bool:
    return abs(found[0] - value) <= found[1]


# %% [markdown]
# ### Norms
#
# Measured over predicted $\mathbb E\,r^2$, from the measured $\mathbb E|p|^2$. With $\hat p$ at unit norm instead, $r^4$ may err by
# twice the squared fluctuation of $r^2$, which is measured.

# %%
norm_ratio, fourth_ratio, slack = {}, {}, {}
for name in ("SGD", "SGD, momentum"):
    run = runs[name]
    norm_ratio[name] = interval(run.norm_squared() / predicted(RESTS[name].norm_squared, run, S=run.mean_square()))
    squares = run.weights[:-1].square().sum(-1)
    unit = (run.steps.square().sum(-1) * squares).mean(0)
    fourth_ratio[name] = interval(squares.mean(0) ** 2 / predicted(RESTS[name].norm_fourth, run, S=unit))
    slack[name] = float((squares.var(0) / squares.mean(0) ** 2).mean())
assert all(map(holds, norm_ratio.values())), norm_ratio
fourth_holds = all(abs(mean - 1) <= half + slack[name] for name, (mean, half) in fourth_ratio.items())
assert fourth_holds, (fourth_ratio, slack)
halved = {name: (mean / 2, half / 2) for name, (mean, half) in fourth_ratio.items()}
assert not any(abs(mean - 1) <= half + slack[name] for name, (mean, half) in halved.items()), (halved, slack)
norm_ratio, fourth_ratio, slack

# %% [markdown]
# ### AdamW: the metric breaks the symmetry, by a current
#
# $p = \beta p_{\text{before}} + (1-\beta)\tilde g$ *defines* the gradient $\tilde g$ that AdamW's normalised update averages. It is not
# orthogonal to $\theta$, for $1/\sqrt v$ differs from weight to weight: $J = \langle\theta,\tilde g\rangle \ne 0$. The same fixed point
# with the measured mean of $J$ holds; without it the norm is off by some per cent, with $\eta d/2\lambda$ likewise, without the momentum
# factor by far.

# %%
run = runs["AdamW"]
scaled = (run.steps[1:] - run.beta * run.steps[:-1]) / (1 - run.beta)
current = (run.weights[1:-1] * scaled).sum(-1).mean(0)
measured = run.norm_squared()
with_current = predicted(RESTS["AdamW"].norm_squared, run, run.beta, S=run.mean_square(), J=current)
isotropic = predicted(RESTS["AdamW"].norm_squared, run, run.beta, S=run.mean_square())
adam_ratio = {
    "with the current": interval(measured / with_current),
    "without it": interval(measured / isotropic),
    "ηd/2λ": interval(measured / (run.eta * INPUTS / (2 * run.decay[:, None]))),
    "cross term dropped": interval(measured / (run.eta / (2 * run.decay[:, None]) * run.mean_square())),
}
assert holds(adam_ratio["with the current"]), adam_ratio
assert adam_ratio["with the current"][1] < 0.05, adam_ratio
assert not holds(adam_ratio["cross term dropped"]), adam_ratio
assert adam_ratio["cross term dropped"][0] > 5, adam_ratio
adam_ratio

# %% [markdown]
# ### Turns
#
# $1 - \mathbb E\langle\theta,\theta'\rangle/\mathbb E\,r^2$ over its prediction from $\eta\lambda$ and $\beta$ alone. For plain SGD it
# needs no average at all, $\langle\theta,\theta'\rangle = \rho\,r^2$ in every step. AdamW's is again the law with the current. The
# momentum factors of the other rules are rejected.

# %%
turn_ratio = {name: interval(runs[name].turn() / (1 - predicted(RESTS[name].cosine, runs[name]))) for name in ("SGD", "SGD, momentum")}
dot = predicted(RESTS["AdamW"].dot, run, run.beta, S=run.mean_square(), J=current)
turn_ratio["AdamW"] = interval(run.turn() / (1 - dot / with_current))
siblings = {
    "SGD's turn for momentum": interval(
        runs["SGD, momentum"].turn() / runs["SGD, momentum"].values["eta"] / runs["SGD, momentum"].decay[:, None]
    ),
    "coupled decay's turn for AdamW": interval(run.turn() * (1 + run.beta) / (run.eta * run.decay[:, None])),
}
assert all(map(holds, turn_ratio.values())), turn_ratio
assert not any(map(holds, siblings.values())), siblings
turn_ratio, siblings

# %% [markdown]
# ## 3. The figure

# %%


def draw_norms(axes: Axes) -> None:
    sgd = runs["SGD"]
    expected = predicted(RESTS["SGD"].norm_squared, sgd, S=sgd.mean_square()).mean(1)
    for net, colour in zip((0, 5, 10, 15), ACCENTS, strict=False):
        axes.semilogy(sgd.norms[:, net], color=colour, linewidth=0.8, label=f"ηλ = {float(TURNS[net]):.3f}")
        axes.axhline(float(expected[net]), color=colour, linewidth=1.2, linestyle="--")
    axes.set(title="SGD: r², and where the law puts it", xlabel="step", ylabel="mean r² of a network")
    axes.legend(ncols=2)


def draw_agreement(axes: Axes) -> None:
    sets = {name: (runs[name], predicted(RESTS[name].norm_squared, runs[name], S=runs[name].mean_square())) for name in norm_ratio}
    sets["AdamW, with J"] = (run, with_current)
    for (name, (found, told)), colour in zip(sets.items(), ACCENTS, strict=False):
        axes.loglog(told.flatten(), found.norm_squared().flatten(), "o", color=colour, markersize=3, label=name)
    dropped = run.eta / (2 * run.decay[:, None]) * run.mean_square()
    axes.loglog(dropped.flatten(), measured.flatten(), "x", color=BAD, markersize=4, label="AdamW, cross term dropped")
    ends = [float(dropped.min()) * 0.8, max(float(t.max()) for _, t in sets.values()) * 1.2]
    axes.loglog(ends, ends, color=INK, linewidth=0.8)
    axes.set(title="Every filter", xlabel="predicted r²", ylabel="measured r²")
    axes.legend()


def draw_turns(axes: Axes) -> None:
    fine = torch.logspace(-2.1, -0.9, 50, dtype=torch.float64)
    for (name, found), colour in zip(runs.items(), ACCENTS, strict=False):
        axes.loglog(TURNS, found.angle().mean(1), "o", color=colour, markersize=4, label=name)
        curve = predicted(RESTS[name].cosine, found._replace(decay=fine / found.eta)).flatten()
        axes.loglog(fine, torch.acos(curve), color=colour, linewidth=1)
        lead = sp.lambdify((eta, decay, beta), sp.sqrt(published[name]), "math")
        axes.loglog(fine, [lead(1.0, float(x), found.beta) for x in fine], color=MUTED, linewidth=0.8, linestyle=":")
    axes.plot([], [], color=MUTED, linestyle=":", label="leading order")
    axes.set(title="Angle of a step", xlabel="ηλ", ylabel="root mean square angle")
    axes.legend()


with matplotlib.rc_context(STYLE):
    figure = Figure(figsize=(11.5, 3.5), layout="constrained")
    for draw, axes in zip((draw_norms, draw_agreement, draw_turns), figure.subplots(1, 3), strict=True):
        draw(axes)
    if folder := os.environ.get("NOETHERFLOW_FIGURES"):
        figure.savefig(Path(folder, "rotational_equilibrium.png"), dpi=150)
figure

# %% [markdown]
# ## Verdict

# %%
claims = {
    "r² rests where the balance law puts it": all(map(holds, norm_ratio.values())),
    "r⁴ too, up to its fluctuations": fourth_holds,
    "AdamW's with the current of its metric": holds(adam_ratio["with the current"]),
    "dropping the cross term misses most of AdamW's norm": adam_ratio["cross term dropped"][0] > 5,
    "turns depend on ηλ and the momentum alone": all(map(holds, turn_ratio.values())),
    "other rules' turns are rejected": not any(map(holds, siblings.values())),
}
failed = [claim for claim, true in claims.items() if not true]
if failed:
    raise AssertionError(
        f"Rotational equilibrium fails: {'; '.join(failed)}. {norm_ratio} {fourth_ratio} {adam_ratio} {turn_ratio} {siblings}"
    )
