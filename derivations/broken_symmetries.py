# sources: own, zhao2023symmetries, xiao2017fashion

# %% [markdown]
# # Broken symmetries: what GELU does instead of ReLU, exactly
#
# **Claim** (own). A hidden unit $y = f(z)$, $z = \langle w, x\rangle + b$, read with weights $u$, has the rescaling symmetry
# $(w, b, u) \to (e^s w, e^s b, e^{-s} u)$ if $f$ is positively homogeneous. If it is not, for *any* $f$, any data and any loss,
#
# $$ \langle\xi, \nabla L\rangle \;=\; J \;:=\; \Big\langle \frac{\partial L}{\partial y},\; z f'(z) - f(z)\Big\rangle , \tag{1} $$
#
# summed over the batch (and the positions): the *current* that explicit breaking lets through. Under SGD the unit's charge
# $Q = \tfrac12(|w|^2 + b^2 - |u|^2)$ then obeys, at every step and every step size, without remainder,
#
# $$ Q' - Q \;=\; -\eta J + \tfrac12\eta^2\langle g, A g\rangle , \qquad A = \mathrm{diag}(1, 1, -1). \tag{2} $$
#
# `zhao2023symmetries` give conserved quantities of such networks where the input is the identity matrix and the flow is continuous.
# (1) and (2) ask for neither; what is not conserved is accounted for.
#
# **Proof of (1) in one line.** Behind the unit stands $u f(z)$, which becomes $e^{-s} u f(e^s z)$; its derivative at $s = 0$ is
# $u\,(z f'(z) - f(z))$, and $\partial L/\partial y$ is $u$ applied to what stands behind. The same line with $z \to z + t$ gives the
# shift $(b, c) \to (b + t, c - u t)$, whose defect is $f'(z) - 1$.

# %%
import os
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib
import numpy as np
import sympy as sp
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

import noetherflow as nf
from noetherflow.bridge.elementwise import evaluate
from noetherflow.numeric.palette import ACCENTS, BAD, INK, STYLE
from noetherflow.symbolic.balance import CHARGE, CURRENT, derive_balance
from noetherflow.symbolic.broken import broken_symmetries
from noetherflow.symbolic.defects import Z, defect, function
from noetherflow.symbolic.pairings import Inner
from noetherflow.symbolic.rules import STEP, sgd_form

torch.set_num_threads(1)  # rounding then depends on no scheduler
torch.set_default_dtype(torch.float64)
NAMES = ("gelu", "silu", "tanh", "softplus")
f = {name: function(name, {}) for name in NAMES}

# %% [markdown]
# ## 1. The defect
#
# Both lines of the proof, for a function that is not named.

# %%
s, t, u = sp.symbols("s t u", real=True)
any_f = sp.Function("f")
behind = sp.diff(sp.exp(-s) * u * any_f(sp.exp(s) * Z), s).subs(s, 0).doit()
slope = sp.Symbol("slope")
euler = u * (Z * slope - any_f(Z))
assert sp.simplify(behind.replace(sp.Derivative, lambda *_: slope).replace(sp.Subs, lambda *_: slope) - euler) == 0

for g in f.values():
    by_hand = sp.diff(sp.exp(-s) * g.subs(Z, sp.exp(s) * Z), s).subs(s, 0)
    assert sp.simplify(by_hand - defect(g, "scale")) == 0
    assert sp.simplify(sp.diff(g, Z) - 1 - defect(g, "shift")) == 0

# %% [markdown]
# What SymPy makes of the functions that are in use, with $\varphi$ the normal density and $\sigma$ the logistic function:
#
# | $f$ | $z f'(z) - f(z)$ | |
# |---|---|---|
# | GELU | $z^2 \varphi(z)$ | never negative |
# | SiLU | $z^2 \sigma(z)\,(1 - \sigma(z))$ | never negative |
# | tanh | $z\,(1 - \tanh^2 z) - \tanh z$ | of the sign of $-z$ |
# | softplus | $-H(\sigma(z))$, the entropy of a coin with bias $\sigma(z)$ | never positive |
#
# All of them are bounded, as each of these functions is nearly linear or nearly constant far from zero.

# %%
normal = sp.exp(-(Z**2) / 2) / sp.sqrt(2 * sp.pi)
logistic = 1 / (1 + sp.exp(-Z))
entropy = -logistic * sp.log(logistic) - (1 - logistic) * sp.log(1 - logistic)
smooth = sp.log(1 + sp.exp(Z))  # softplus, below the threshold from which torch takes it to be z
closed = {
    "gelu": sp.simplify(defect(f["gelu"], "scale") - Z**2 * normal),
    "silu": sp.simplify((defect(f["silu"], "scale") - Z**2 * logistic * (1 - logistic)).rewrite(sp.exp)),
    "tanh": sp.simplify(defect(f["tanh"], "scale") - (Z * (1 - sp.tanh(Z) ** 2) - sp.tanh(Z))),
    "softplus": sp.simplify(sp.expand_log(Z * logistic - smooth + entropy, force=True)),
}
points = [sp.Rational(k, 3) for k in range(-12, 13) if k]
assert {name: closed[name] for name in ("gelu", "silu", "tanh")} == {"gelu": 0, "silu": 0, "tanh": 0}
assert all(abs(sp.N(closed["softplus"].subs(Z, p), 30)) < 1e-25 for p in points)
assert all(abs(sp.N((defect(f["softplus"], "scale") - (Z * logistic - smooth)).subs(Z, p), 30)) < 1e-25 for p in points)
assert all(sp.sign(sp.N(defect(f["tanh"], "scale").subs(Z, p))) == -sp.sign(p) for p in points)
assert defect(function("relu", {}), "scale") == 0, "ReLU passes"

# %% [markdown]
# ## 2. Predicted and measured, on real images
#
# `noetherflow` reads the network with its functions replaced by ones that pass the change, solves for the symmetries that appear, and
# writes down the current at every site. From one pass over a batch of Fashion-MNIST (`xiao2017fashion`) it predicts $J$ of every
# hidden unit, and measures $\langle\xi, \nabla L\rangle$ from the gradient of the same pass.

# %%
IMAGES = nf.data.fashion_mnist_subset()
LAYERS = {"gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh, "softplus": nn.Softplus, "relu": nn.ReLU}
HIDDEN, BATCH, STEPS, ETA = 24, 64, 150, 0.2


def network(name: str) -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(196, HIDDEN), LAYERS[name](), nn.Linear(HIDDEN, 10))


images, labels = next(iter(IMAGES.batches(BATCH, seed=0, steps=1, dtype=torch.float64)))
errors, sizes = {}, {}
for name in NAMES:
    graph = nf.trace(network(name), images, loss="cross_entropy")
    scale, shift = broken_symmetries(graph)
    assert (scale.symmetry.kind, scale.symmetry.dimension, shift.symmetry.dimension) == ("rescale", HIDDEN, HIDDEN)
    assert scale.sites[0].defect == defect(f[name], "scale")
    found = nf.currents(network(name), images, loss="cross_entropy", target=labels, families=[scale, shift])
    errors[name] = found.worst
    sizes[name] = float(found[0].measured.abs().amax()) / found[0].size
    assert errors[name] < 1e-13
    assert sizes[name] > 1e-4, "the current is there to be seen"
assert broken_symmetries(nf.trace(network("relu"), images, loss="cross_entropy")) == ()
print("errors, relative to what is summed:", {name: f"{value:.0e}" for name, value in errors.items()})

# %% [markdown]
# **The current of another function is not the measured one.**

# %%
mistaken = {}
for name, other in zip(NAMES, (*NAMES[1:], NAMES[0]), strict=True):
    scale = broken_symmetries(nf.trace(network(name), images, loss="cross_entropy"))[0]
    wrong = replace(scale, sites=tuple(replace(site, defect=defect(f[other], "scale")) for site in scale.sites))
    (found,) = nf.currents(network(name), images, loss="cross_entropy", target=labels, families=[wrong])
    mistaken[name] = found.error
    assert mistaken[name] > 1e-4

# %% [markdown]
# ## 3. A run: the balance law with its current
#
# (2) is what `noetherflow` derives from the update of SGD; $\langle\xi, g\rangle$ enters as the current.

# %%
balance = derive_balance((sgd_form(momentum=False, nesterov=False, maximize=False),), linear=False, same_momentum=True)
(equation,) = balance.equations
eta, decay = sp.symbols("eta lambda", real=True)
assert sp.expand(equation.rhs.subs(decay, 0) - (CHARGE - eta * CURRENT + eta**2 * Inner(STEP, STEP) / 2)) == 0

# %% [markdown]
# Each charge is predicted from step 0 to the end: the current comes from $z$ and $\partial L/\partial y$, the second-order term from the
# gradient; the charge is never looked at again.


# %%
@dataclass(frozen=True, slots=True)
class Run:
    """Charges of all hidden units at every step: measured, predicted, and predicted without the current."""

    measured: np.ndarray
    predicted: np.ndarray
    without: np.ndarray
    losses: list[float]

    def residual(self, of: np.ndarray) -> np.ndarray:
        return np.abs(of - self.measured).max(axis=1)


def quadratic(tensors: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    w, b, v = tensors
    return ((w**2).sum(1) + b**2 - (v**2).sum(0)) / 2


def trained(name: str) -> Run:
    model = network(name)
    first, last = model[2], model[4]
    parts = (first.weight, first.bias, last.weight)
    optimizer = torch.optim.SGD(model.parameters(), lr=ETA)
    missed = defect(function(name, {}), "scale")
    measured = [quadratic(parts).detach()]
    predicted, without, losses = [measured[0]], [measured[0]], []
    for x, y in IMAGES.batches(BATCH, seed=1, steps=STEPS, dtype=torch.float64):
        z = first(model[1](model[0](x)))
        hidden = model[3](z)
        hidden.retain_grad()
        loss = nn.functional.cross_entropy(last(hidden), y)
        optimizer.zero_grad()
        loss.backward()
        current = (hidden.grad * evaluate(missed, z.detach())).sum(0)
        second = ETA**2 * quadratic(tuple(p.grad for p in parts))
        optimizer.step()
        measured.append(quadratic(parts).detach())
        predicted.append(predicted[-1] - ETA * current + second)
        without.append(without[-1] + second)
        losses.append(float(loss.detach()))
    return Run(*(torch.stack(rows).numpy() for rows in (measured, predicted, without)), losses)


runs = {name: trained(name) for name in LAYERS}
motion = {name: float(np.abs(run.measured - run.measured[0]).max()) for name, run in runs.items()}
remains = {name: float(run.residual(run.predicted).max()) for name, run in runs.items()}
dropped = {name: float(run.residual(run.without).max()) for name, run in runs.items()}
for name, run in runs.items():
    assert np.mean(run.losses[-20:]) < 0.7 * run.losses[0], "the network learns"
    assert remains[name] < 1e-12, (name, remains)
    assert dropped[name] > 1e-2 * motion[name] or name == "relu", "without the current the law fails"
assert dropped["relu"] < 1e-12, "ReLU has none"
for name in LAYERS:
    print(f"{name}: motion {motion[name]:.2g}, residual {remains[name]:.0e}, without the current {dropped[name]:.0e}")

# %% [markdown]
# ## Figure
#
# Left: the defects. Middle: the charge that moves most under each function, measured and predicted from step 0. Right: the largest
# residual of any charge, with the current and (dotted) without it.

# %%
LABELS = {"gelu": "GELU", "silu": "SiLU", "tanh": "tanh", "softplus": "softplus", "relu": "ReLU"}
grid = torch.linspace(-6, 6, 400)


def draw_defects(axes: Axes) -> None:
    for colour, name in zip(ACCENTS, LAYERS, strict=False):
        axes.plot(grid, evaluate(defect(function(name, {}), "scale"), grid), color=colour, linewidth=1.6, label=LABELS[name])
    axes.set(title="Defect z f′(z) − f(z)", xlabel="z")
    axes.legend(loc="lower left")


def draw_charges(axes: Axes) -> None:
    for colour, (name, run) in zip(ACCENTS, runs.items(), strict=False):
        unit = int(np.argmax(np.ptp(run.measured, axis=0)))
        start = run.measured[0, unit]
        axes.plot(run.measured[:, unit] - start, color=colour, linewidth=4, alpha=0.35, label=LABELS[name])
        axes.plot(run.predicted[:, unit] - start, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
    axes.plot([], [], color=INK, linewidth=0.8, linestyle=(0, (4, 3)), label="predicted")
    axes.set(title="Charges, measured and predicted", xlabel="step", ylabel="Q − Q(0)")
    axes.legend(loc="best")


def draw_residuals(axes: Axes) -> None:
    for colour, (name, run) in zip(ACCENTS, runs.items(), strict=False):
        axes.semilogy(np.maximum(run.residual(run.predicted)[1:], 1e-17), color=colour, linewidth=1.1, label=LABELS[name])
        if name != "relu":
            axes.semilogy(np.maximum(run.residual(run.without)[1:], 1e-17), color=colour, linewidth=1.1, linestyle=":")
    axes.semilogy([], [], color=BAD, linewidth=1.1, linestyle=":", label="without the current")
    axes.set(title="Largest |measured − predicted|", xlabel="step", ylim=(1e-17, 1e3))
    axes.legend(loc="center", bbox_to_anchor=(0.5, 0.55), ncols=2)


with matplotlib.rc_context(STYLE):
    figure = Figure(figsize=(11.5, 3.5), layout="constrained")
    for draw, axes in zip((draw_defects, draw_charges, draw_residuals), figure.subplots(1, 3), strict=True):
        draw(axes)
    if folder := os.environ.get("NOETHERFLOW_FIGURES"):
        figure.savefig(Path(folder, "broken_symmetries.png"), dpi=150)
figure

# %% [markdown]
# ## Verdict

# %%
claims = {
    "the defects have the closed forms of the table": all(closed[name] == 0 for name in ("gelu", "silu", "tanh")),
    "predicted and measured currents agree to rounding": max(errors.values()) < 1e-13,
    "they are there to be seen": min(sizes.values()) > 1e-4,
    "another function's current is rejected": min(mistaken.values()) > 1e-4,
    "the balance law with its current has no remainder over a run": max(remains.values()) < 1e-12,
    "without the current it fails": all(dropped[name] > 1e-2 * motion[name] for name in NAMES),
    "and ReLU has no current": dropped["relu"] < 1e-12,
}
failed = [claim for claim, holds in claims.items() if not holds]
if failed:
    raise AssertionError(f"The general replacement law fails: {'; '.join(failed)}. Residuals: {remains}. Errors: {errors}.")
