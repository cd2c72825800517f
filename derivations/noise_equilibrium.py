# sources: ziyin2024implicit, ziyin2023law, own

# %% [markdown]
# # The law of balance and the noise equilibrium, exactly
#
# **Claim.** Mini-batch noise moves Noether charges, and moves them *systematically*. `ziyin2024implicit` describes SGD by a stochastic
# differential equation and finds, for a symmetry $L(e^{sA}\theta) = L(\theta)$ and $C = \langle\theta, A\theta\rangle$,
#
# $$ \dot C = -4\gamma C + \sigma^2\,\mathrm{Tr}[\Sigma A], \qquad \sigma^2 = \eta/S, $$
#
# with weight decay $\gamma|\theta|^2$ in the loss; `ziyin2023law` has, for a product $uw$ and $T = \eta/S$, the **law of balance**
#
# $$ \tfrac{d}{dt}\left(|u|^2 - |w|^2\right) = -T\left(u^\top C_1 u - w^\top C_2 w\right). $$
#
# Ours (own) holds at any step size and for any mini-batch: with $Q = \frac12 C$, $\lambda = 2\gamma$ and
# $\kappa = 1/S$ (with replacement; $(N-S)/(S(N-1))$ without),
#
# $$ \mathbb E[Q'\,|\,\theta] = (1-\eta\lambda)^2\,Q + \eta^2\left(Q(\bar g) + \tfrac12\kappa\,\mathrm{Tr}[A\Sigma]\right). $$
#
# The published law is its limit of small steps. That drops $Q(\bar g)$, the charge of the mean gradient, which leads early in training, and
# the decay's second order. Training comes to rest, from any start, where the *noise* of two layers balances,
# $U^\top\mathbb E[R R^\top]U = W\,\mathbb E[R^\top R]\,W^\top$ with $R = \partial\ell/\partial(UW)$, and not where their norms do.
#
# **Assumptions.** The loss of each sample has the symmetry. SGD without momentum. The law of one step assumes nothing else; the equilibrium
# assumes that the run is stationary.

# %%
import os
from collections.abc import Mapping
from pathlib import Path

import matplotlib
import sympy as sp
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

import noetherflow as nf
from noetherflow.numeric.ensembles import Ensemble, Records, Variant, draw_batches, train
from noetherflow.numeric.palette import ACCENTS, BAD, INK, MUTED, STYLE
from noetherflow.numeric.statistics import Verdict, decay_rates, judge
from noetherflow.symbolic.balance import CHARGE, CURRENT, derive_balance
from noetherflow.symbolic.noise import MEAN, TEMPERATURE, Spread, derive_drift
from noetherflow.symbolic.noise_limits import diffusion, stationary
from noetherflow.symbolic.pairings import Inner
from noetherflow.symbolic.product_noise import product_balance
from noetherflow.symbolic.rules import GRADIENT, sgd_form

torch.set_num_threads(1)  # rounding then depends on no scheduler
ETA, DECAY, S = *sp.symbols("eta lambda", real=True), sp.Symbol("S", positive=True)
SQUARE, TRACE = Inner(MEAN, MEAN), Spread(GRADIENT)

# %% [markdown]
# ## 1. The drift, derived
#
# The exact balance law of gradient descent is quadratic in the mini-batch gradient $g$. Its expectation needs
# $\mathbb E\langle g, Ag\rangle = \langle\bar g, A\bar g\rangle + \kappa\,\mathrm{Tr}[A\Sigma]$ and invariance for each sample,
# $\langle\xi, g_i\rangle = 0$. Invariance also says $\Sigma\xi = 0$: what fluctuates is of order $\eta^2$, and in the limit of small steps
# the charge has no martingale part.

# %%
law = derive_balance((sgd_form(momentum=False, nesterov=False, maximize=False),), False, True)
drift = derive_drift(law)
exact = (1 - ETA * DECAY) ** 2 * CHARGE + ETA**2 * (SQUARE / 2 + TRACE / (2 * S))
assert sp.expand(drift.expected[CHARGE].subs(CURRENT, 0) - exact) == 0
assert sp.expand(drift.fluctuation).coeff(ETA, 1) == 0

limit = diffusion(drift)
published = -2 * DECAY * CHARGE + TEMPERATURE * TRACE / 2  # half of the published equation, with λ = 2γ
assert sp.expand(limit.rate.subs(CURRENT, 0) - published) == 0
assert limit.dropped["mean gradient"] == ETA * SQUARE / 2
assert limit.dropped["decay to second order"] == ETA * DECAY**2 * CHARGE

rest = stationary(drift)  # 2λ(1 - ηλ/2) Q = η E[Q(g)]
assert sp.cancel(rest.charge.subs(CURRENT, 0) - ETA * (SQUARE + TRACE / S) / 2 / (2 * DECAY * (1 - ETA * DECAY / 2))) == 0
drift.equations[0]

# %% [markdown]
# ## 2. Products of weights
#
# Where a loss sees $UW$ only, $G_U = RW^\top$ and $G_W = U^\top R$, so that with $Q = \frac12(WW^\top - U^\top U)$
#
# $$ Q' = (1-\eta\lambda)^2 Q + \tfrac{\eta^2}{2}\left(U^\top RR^\top U - WR^\top RW^\top\right). $$
#
# For scalars this is $C' = C(1 - \eta^2 r^2)$: the imbalance decays, at a rate that the noise sets. For one sample of an affine map,
# $RR^\top = |x|^2rr^\top$ and $R^\top R = |r|^2xx^\top$.

# %%
scalar = product_balance(1, 1, 1)
u, w, r = (sp.Matrix(m)[0] for m in (scalar.outer, scalar.inner, scalar.gradient))
one_step = sp.Matrix(scalar.step.subs(DECAY, 0))[0]
assert sp.expand(one_step - (w**2 - u**2) / 2 * (1 - ETA**2 * r**2)) == 0
general = product_balance(*sp.symbols("o h i", integer=True, positive=True))
general.equilibrium

# %% [markdown]
# ## 3. Real data
#
# Four hundred of scikit-learn's handwritten digits, pooled to 4 × 4 and standardised; two labels to regress on: is the digit above four,
# and is it odd? Everything below is trained by SGD with mini-batches of one or two, hundreds of runs at once, seeds fixed.

# %%
images = nf.data.digits()
SAMPLES = 400
pooled = nn.functional.avg_pool2d(images.images.double().reshape(-1, 1, 8, 8), 2).reshape(-1, 16)[:SAMPLES]
inputs = (pooled - pooled.mean(0)) / pooled.std(0)
inputs = inputs / inputs.square().sum(1).mean().sqrt()  # E|x|² = 1
digits = images.labels[:SAMPLES]
labels = torch.stack([digits > 4, digits % 2 == 1], dim=1).double() * 2 - 1
Parameters = Mapping[str, Tensor]


class TwoLayers(nn.Module):
    """f(x) = U W x; the scale moves a start along its orbit."""

    def __init__(self, hidden: int, outputs: int, width: int, scale: float) -> None:
        super().__init__()
        self.W = nn.Parameter(0.3 * scale * torch.randn(hidden, width, dtype=torch.float64))
        self.U = nn.Parameter(0.3 / scale * torch.randn(outputs, hidden, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.W.T @ self.U.T


def half_square(output: Tensor, target: Tensor) -> Tensor:
    return (output - target).square().sum(-1).mean() / 2


def moments(p: Parameters) -> tuple[Tensor, Tensor, Tensor]:
    """E[R Rᵀ], E[Rᵀ R] and R̄ over the samples."""
    residual = inputs @ (p["U"] @ p["W"]).T - labels
    lengths, losses = inputs.square().sum(1, keepdim=True), residual.square().sum(1, keepdim=True)
    return (lengths * residual).T @ residual / SAMPLES, (losses * inputs).T @ inputs / SAMPLES, residual.T @ inputs / SAMPLES


def norm_imbalance(p: Parameters) -> Tensor:
    """2Q = W Wᵀ - Uᵀ U."""
    return p["W"] @ p["W"].T - p["U"].T @ p["U"]


def forces(p: Parameters) -> Tensor:
    """2/η² times what a step does to Q: through the mean gradient, and through the noise of single samples (of S of them: a part in S)."""
    out, into, mean = moments(p)
    both = p["U"].T @ out @ p["U"] - p["W"] @ into @ p["W"].T
    square = p["U"].T @ (mean @ mean.T) @ p["U"] - p["W"] @ (mean.T @ mean) @ p["W"].T
    return torch.stack([square, both - square])


def upper(matrices: Tensor) -> Tensor:
    """The distinct entries of symmetric 2 × 2 matrices."""
    return torch.stack([matrices[..., 0, 0], matrices[..., 0, 1], matrices[..., 1, 1]], dim=-1)


# %% [markdown]
# ## 4. The drift along a run
#
# $Q_k - Q_0 - \sum_j \mathbb E[Q_{j+1} - Q_j\,|\,\theta_j]$ has mean zero: 150 runs of 150 steps from one start, mini-batches of eight. The
# diffusion limit, with the noise alone, is rejected by the same runs, and so is a factor two.

# %%
RATE, EARLY, SIZE = 0.2, 150, 8
together = [Variant(lr=RATE, seed=1000 + n) for n in range(150)]


def one_start(_: Variant) -> nn.Module:
    torch.default_generator.manual_seed(0)
    return TwoLayers(2, 2, 16, 1.0)


ensemble = Ensemble(one_start, half_square, together)
batches = draw_batches(inputs, labels, SIZE, [v.seed for v in together], EARLY)
early: Records = train(ensemble, batches, {"2Q": norm_imbalance, "force": forces}, per_run=True)
moved = upper(early["2Q"][:, -1] - early["2Q"][:, 0])
from_mean, from_noise = (RATE**2 * upper(early["force"][:, :-1]).cumsum(1)).unbind(2)  # (runs, steps, charges)
drifts = {"derived": from_mean + from_noise / SIZE, "diffusion limit": from_noise / SIZE}
along_the_run: Verdict = judge(
    moved.numpy(),
    drifts["derived"][:, -1].numpy(),
    {"diffusion limit": drifts["diffusion limit"][:, -1].numpy(), "twice": 2 * drifts["derived"][:, -1].numpy(), "conserved": 0.0},
    confidence=0.999,
)
assert along_the_run.holds, along_the_run
print(along_the_run)

# %% [markdown]
# ## 5. The law of balance: a decay that noise sets
#
# One input (the first principal component), one hidden unit: $f = uwx$. The imbalance $C = u^2 - w^2$ decays at the rate
# $-\mathbb E\ln(1-\eta^2x^2r^2)$, whose limit of small steps is the published $\eta\,T\,\mathbb E[x^2r^2]$ a step; three starts,
# mini-batches of one.

# %%
component = torch.linalg.svd(inputs, full_matrices=False).Vh[0]
line, target = (inputs @ component)[:, None], labels[:, :1]
line = line / line.std()
STARTS = ((1.5, 0.2), (0.4, 1.3), (1.0, 0.7))
SLOW, LONG = 0.05, 1000
apart = [Variant(lr=SLOW, width=start, seed=5000 + 100 * start + n) for start in range(3) for n in range(60)]


def scalar_start(variant: Variant) -> nn.Module:
    model = TwoLayers(1, 1, 1, 1.0)
    for parameter, value in zip((model.U, model.W), STARTS[variant.width], strict=True):
        nn.init.constant_(parameter, value)
    return model


def scalar_rate(p: Parameters) -> Tensor:
    residual = line * p["U"][0, 0] * p["W"][0, 0] - target
    return -torch.log1p(-((SLOW * line * residual) ** 2)).mean()


ensemble = Ensemble(scalar_start, half_square, apart)
batches = draw_batches(line, target, 1, [v.seed for v in apart], LONG)
imbalances = {"C": lambda p: (p["U"] ** 2 - p["W"] ** 2)[0, 0], "rate": scalar_rate}
decays = train(ensemble, batches, imbalances, every=5, per_run=True)
measured = decay_rates(decays.steps, decays["C"])
predicted = decays["rate"][:, :-1].mean(1).numpy()
balance_verdicts = []
for start in range(3):
    own = decays.where(width=start).numpy()
    siblings = {"half": predicted[own] / 2, "twice": 2 * predicted[own], "conserved": 0.0}
    balance_verdicts.append(judge(measured[own], predicted[own], siblings, confidence=0.999))
    print(balance_verdicts[-1])
assert all(verdict.holds for verdict in balance_verdicts)

# %% [markdown]
# ## 6. The noise equilibrium, from four starts
#
# Two hidden units, starts whose norms are spread by factors up to nine between the layers, without weight decay and with $\lambda = 0.002$.
# Where training is stationary the exact drift must vanish on average:
# $U^\top\mathbb E[RR^\top]U - W\,\mathbb E[R^\top R]W^\top = 2\lambda(2-\eta\lambda)Q/\eta$. The point of the same function with balanced
# norms ($2Q = 0$, from the singular values of $UW$) is the wrong sibling, and so is leaving out the decay where there is one.

# %%
SCALES, LAST, RELAXED, EVERY, DECAYS = (0.5, 1.0, 2.0, 3.0), 6000, 3500, 50, (0.0, 0.002)
spread = [
    Variant(lr=RATE, width=start, weight_decay=decay, seed=20_000 + 1000 * start + 100 * d + n)
    for start in range(4)
    for d, decay in enumerate(DECAYS)
    for n in range(12)
]
ensemble = Ensemble(lambda v: TwoLayers(2, 2, 16, SCALES[v.width]), half_square, spread)
batches = draw_batches(inputs, labels, 1, [v.seed for v in spread], LAST)
whole = {"2Q": norm_imbalance, "force": forces, "W": lambda p: p["W"], "U": lambda p: p["U"]}
late = train(ensemble, batches, whole, every=EVERY, per_run=True)


def trace(matrices: Tensor) -> Tensor:
    return matrices.diagonal(dim1=-2, dim2=-1).sum(-1)


def norm_balanced(parameters: Parameters) -> dict[str, Tensor]:
    """The same function with balanced norms."""
    left, values, right = torch.linalg.svd(parameters["U"] @ parameters["W"], full_matrices=False)
    return {"U": left * values.sqrt(), "W": values.sqrt()[:, None] * right}


after = late.steps >= RELAXED
force = late["force"][:, after].sum(2).mean(1)
charges = late["2Q"][:, after].mean(1) / 2
flat = {name: late[name][:, after].flatten(0, 1) for name in ("U", "W")}
elsewhere = torch.vmap(lambda p: forces(norm_balanced(p)).sum(0))(flat).reshape(len(spread), -1, 2, 2).mean(1)
equilibrium: dict[float, Verdict] = {}
for decay in DECAYS:
    own = late.where(weight_decay=decay)
    balanced = 2 * decay * (2 - RATE * decay) * charges[own] / RATE
    wrong = {"norm balance": trace(elsewhere[own]).numpy()}
    if decay:
        wrong["decay left out"] = 0.0
    equilibrium[decay] = judge(trace(force[own]).numpy(), trace(balanced).numpy(), wrong, confidence=0.999)
    print(f"λ = {decay}:", equilibrium[decay])
assert all(verdict.holds for verdict in equilibrium.values())

# no start is remembered: in every start's runs alone the same holds, and norms stay far from balance
for start in range(4):
    own = late.where(width=start, weight_decay=0.0)
    alone = judge(trace(force[own]).numpy(), 0.0, {"norm balance": trace(elsewhere[own]).numpy()}, confidence=0.999)
    assert alone.holds, (start, alone)
    assert judge(trace(charges[own]).numpy(), 0.0, {"far away": 100.0}).status == "fails"


# %% [markdown]
# ## 7. The figure


# %%
def draw_drift(axes: Axes) -> None:
    steps = early.steps[1:]
    axes.plot(steps, trace(early["2Q"] - early["2Q"][:, :1]).mean(0)[1:], color=INK, label="150 runs, mean")
    for (name, values), (colour, style) in zip(drifts.items(), ((ACCENTS[0], "--"), (BAD, ":")), strict=True):
        axes.plot(steps, (values[..., 0] + values[..., 2]).mean(0), color=colour, linestyle=style, linewidth=2, label=name)
    axes.set(title="Drift of a charge", xlabel="step", ylabel=r"Tr $(2Q_k - 2Q_0)$")
    axes.legend(loc="best", fontsize=8)


def draw_decay(axes: Axes) -> None:
    for start, colour in zip(range(3), ACCENTS, strict=False):
        own = decays.where(width=start)
        axes.semilogy(decays.steps, decays["C"][own].abs().log().mean(0).exp(), color=colour, label=f"from u, w = {STARTS[start]}")
        line_of = decays["C"][own, 0].abs().mean() * (-predicted[own.numpy()].mean() * decays.steps).exp()
        axes.semilogy(decays.steps, line_of, color=INK, linestyle=":", linewidth=1)
    axes.set(title="Law of balance: u² − w² decays", xlabel="step", ylabel="|u² − w²|, geometric mean")
    axes.legend(loc="lower left", fontsize=8)


def draw_equilibrium(axes: Axes) -> None:
    for start, colour in zip(range(4), ACCENTS, strict=False):
        own = late.where(width=start, weight_decay=0.0)
        axes.plot(late.steps, trace(late["force"][own].sum(2)).mean(0), color=colour, label=f"noise, scale {SCALES[start]}")
        axes.plot(late.steps, trace(late["2Q"][own]).mean(0) / 10, color=colour, linestyle=":", linewidth=1)
    axes.axhline(0, color=MUTED, linewidth=0.8)
    axes.set(title="Noise balances, norms (dotted, ÷10) don't", xlabel="step", ylabel="imbalance", ylim=(-3, 3.2))
    axes.legend(loc="lower right", fontsize=8)


with matplotlib.rc_context(STYLE):
    figure = Figure(figsize=(11.5, 3.5), layout="constrained")
    for axes, draw in zip(figure.subplots(1, 3), (draw_drift, draw_decay, draw_equilibrium), strict=True):
        draw(axes)
    if folder := os.environ.get("NOETHERFLOW_FIGURES"):
        figure.savefig(Path(folder, "noise_equilibrium.png"), dpi=150)
figure

# %% [markdown]
# ## Verdict

# %%
claims = {
    "the drift along a run": along_the_run.holds,
    "the law of balance": all(verdict.holds for verdict in balance_verdicts),
    "noise equilibrium without decay": equilibrium[0.0].holds,
    "noise equilibrium with decay": equilibrium[0.002].holds,
    "the published law is the limit of small steps": sp.expand(limit.rate.subs(CURRENT, 0) - published) == 0,
}
failed = [claim for claim, holds in claims.items() if not holds]
if failed:
    raise AssertionError(f"The noise equilibrium fails: {'; '.join(failed)}. {along_the_run}; {balance_verdicts}; {equilibrium}.")
