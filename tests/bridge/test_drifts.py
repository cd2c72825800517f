"""Drifts of real models: against the average over every mini-batch, to rounding, and against seeded ensembles; the law of balance."""

from __future__ import annotations

import itertools
from functools import lru_cache
from typing import Any

import pytest
import sympy as sp
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

import noetherflow as nf
from noetherflow.bridge.drifts import ExpectedStep, expected_step, gradient_moments, paired
from noetherflow.errors import RuleError, RunError
from noetherflow.numeric.draws import draw_batches
from noetherflow.numeric.ensembles import Ensemble, Variant, train, variants
from noetherflow.numeric.rounding import confidence, unit_roundoff
from noetherflow.numeric.statistics import decay_rates, judge
from noetherflow.symbolic.forms import GRADIENT
from noetherflow.symbolic.laws import Law
from noetherflow.symbolic.noise import MEAN, Spread
from noetherflow.symbolic.pairings import Inner

SAMPLES, BATCH = 7, 2
RULES: dict[str, dict[str, Any]] = {
    "plain": {},
    "decay": {"weight_decay": 0.2},
    "momentum": {"momentum": 0.9, "weight_decay": 0.2},
    "dampened": {"momentum": 0.8, "dampening": 0.3},
    "nesterov": {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
}
# options of the second layer's parameters, where they have a group of their own
GROUPS: dict[str, dict[str, Any]] = {
    "rates": {"lr": 0.05},
    "no decay": {"lr": 0.3, "weight_decay": 0.0},
    "momenta": {"momentum": 0.5, "dampening": 0.2},
}
MODELS = {"relu": ([3, 4, 2], "relu"), "linear": ([3, 3, 2], "linear")}


def optimizer_of(network: nn.Module, rule: str, groups: str = "") -> torch.optim.SGD:
    first, second = (list(layer.parameters()) for layer in network.layers)  # type: ignore[union-attr]
    split = [{"params": first}, {"params": second, **GROUPS.get(groups, {})}] if groups else [{"params": first + second}]
    return torch.optim.SGD(split, lr=0.2, **RULES[rule])


@lru_cache
def law_of(model: str, rule: str, groups: str = "") -> Law:
    network = nf.models.MLP(*MODELS[model]).double()
    optimizer = optimizer_of(network, rule, groups)
    return nf.derive(nf.trace(network, torch.randn(SAMPLES, 3, dtype=torch.float64), loss="mse"), nf.rule_of(optimizer))[0]


class World:
    """A small network, seven samples, and every mini-batch of two of them."""

    def __init__(self, model: str, rule: str, *, replace: bool, warmup: int, groups: str = "") -> None:
        torch.manual_seed(3)
        self.options = {"lr": 0.2, **RULES[rule]}
        widths, activation = MODELS[model]
        self.model = nf.models.MLP(widths, activation).double()
        self.x, self.y = torch.randn(SAMPLES, 3, dtype=torch.float64), torch.randn(SAMPLES, 2, dtype=torch.float64)
        rows = range(SAMPLES)
        drawn = itertools.product(rows, repeat=BATCH) if replace else itertools.combinations(rows, BATCH)
        self.rows, self.replace, self.warmup = torch.tensor(list(drawn)), replace, warmup
        self.law, self.groups = law_of(model, rule, groups), {n: GROUPS[groups] for n in ("layers.1.weight", "layers.1.bias") if groups}

    def steps(self) -> tuple[ExpectedStep, Tensor]:
        """The expected step, and the true mean of Q' - Q over every mini-batch."""
        ensemble = Ensemble(lambda _: self.model, nn.functional.mse_loss, [Variant(**self.options)] * len(self.rows), groups=self.groups)
        for x, y in draw_batches(self.x, self.y, BATCH, [5], self.warmup):
            ensemble.step(x[0], y[0])
        moments = gradient_moments(self.model, nn.functional.mse_loss, self.x, self.y, ensemble.parameters(0))
        found = expected_step(self.law, moments, BATCH, replace=self.replace, buffers=ensemble.momenta(0), first=not self.warmup)
        ensemble.step(self.x[self.rows], self.y[self.rows], per_run=True)
        after = ensemble.record(lambda p: found.measured(self.law.symmetry, p))
        return found, after.mean(0) - found.charge


@pytest.mark.parametrize(
    ("model", "rule", "replace"),
    [("relu", rule, True) for rule in RULES] + [("linear", rule, False) for rule in ("decay", "momentum")] + [("relu", "plain", False)],
)
def test_the_expected_step_is_the_mean_over_every_mini_batch(model: str, rule: str, replace: bool) -> None:
    for warmup in (0, 3) if "momentum" in RULES[rule] else (0,):
        found, truth = World(model, rule, replace=replace, warmup=warmup).steps()
        # some hundred roundings of numbers of the size of the squared weights
        bound = confidence(1000) * unit_roundoff(torch.float64) * 100**0.5 * 50
        assert float((found.change - truth).abs().max()) < bound < 1e-12
        diffusion = [found.diffusion] if rule in ("plain", "momentum") else []
        for sibling in (*diffusion, found.change - found.terms["noise"] / 3, found.change - found.terms["noise"]):
            assert float((sibling - truth).abs().max()) > 1e6 * bound


@pytest.mark.parametrize(("model", "rule", "groups"), [("linear", "momentum", "no decay"), ("relu", "momentum", "momenta")])
def test_the_expected_step_across_parameter_groups(model: str, rule: str, groups: str) -> None:
    found, truth = World(model, rule, replace=True, warmup=3, groups=groups).steps()
    assert len(law_of(model, rule, groups).groups) == 2
    bound = confidence(1000) * unit_roundoff(torch.float64) * 100**0.5 * 50
    assert float((found.change - truth).abs().max()) < bound
    alone, _ = World(model, rule, replace=True, warmup=3).steps()
    for sibling in (alone.change, found.change - found.terms["noise"] / 3):  # as if all had the first group's options
        assert float((sibling - truth).abs().max()) > 1e6 * bound


def test_with_and_without_replacement_differ_by_the_finite_population_factor() -> None:
    with_, without = (World("relu", "plain", replace=replace, warmup=0).steps() for replace in (True, False))
    factor = (SAMPLES - BATCH) / (SAMPLES - 1)
    assert torch.allclose(without[0].terms["noise"], factor * with_[0].terms["noise"], rtol=1e-12, atol=0)
    assert float((with_[0].change - without[1]).abs().max()) > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(("model", "rule", "warmup"), [("linear", "plain", 0), ("relu", "momentum", 4)])
def test_an_ensemble_confirms_a_drift_and_rejects_its_siblings(model: str, rule: str, warmup: int) -> None:
    world = World(model, rule, replace=True, warmup=0)
    optimizer = torch.optim.SGD(world.model.parameters(), **world.options)
    report = nf.verify_drift(world.model, optimizer, "mse", world.x, world.y, batch=BATCH, runs=2500, warmup=warmup)
    assert report.holds, report
    verdict = next(iter(report.verdicts.values()))
    assert set(verdict.rejected) == {"diffusion limit", "noise x 1.5", "noise / 1.5"}
    few = nf.verify_drift(world.model, optimizer, "mse", world.x, world.y, batch=BATCH, runs=5, warmup=warmup)
    assert not few.holds
    assert "undecided" in str(few)


def test_a_loss_that_is_no_mean_over_samples_is_refused() -> None:
    x, y = torch.randn(6, 3).double(), torch.randn(6, 2).double()
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).double()
    for loss, broken in ((nn.functional.mse_loss, nn.BatchNorm1d), (nn.MSELoss(reduction="sum"), nn.Identity)):
        network = nn.Sequential(
            nn.Linear(3, 2), nn.BatchNorm1d(2, track_running_stats=False) if broken is nn.BatchNorm1d else nn.Identity()
        )
        with pytest.raises((RuleError, ValueError), match=r"mean of its samples|more than 1 value"):
            gradient_moments(network.double(), loss, x, y)
    assert gradient_moments(model.eval(), nn.functional.mse_loss, x, y).mean["0.weight"].shape == (2, 3)


def test_what_has_no_drift_to_verify_is_refused() -> None:
    x, y = torch.randn(6, 3).double(), torch.randn(6, 2).double()
    model = nf.models.MLP([3, 4, 2]).double()
    with pytest.raises(RunError, match="maximize=False"):
        nf.verify_drift(model, torch.optim.SGD(model.parameters(), lr=0.1, maximize=True), "mse", x, y, batch=2)
    smooth = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    with pytest.raises(RunError, match="no law with a quadratic charge"):
        nf.verify_drift(smooth, torch.optim.SGD(smooth.parameters(), lr=0.1), "mse", x, y, batch=2)
    with pytest.raises(RunError, match="needs a loss"):
        nf.verify_drift(model, torch.optim.SGD(model.parameters(), lr=0.1), None, x, y, batch=2)


@pytest.mark.slow
def test_an_ensemble_confirms_a_drift_across_parameter_groups() -> None:
    world = World("relu", "momentum", replace=True, warmup=0)
    optimizer = optimizer_of(world.model, "momentum", "momenta")
    report = nf.verify_drift(world.model, optimizer, "mse", world.x, world.y, batch=BATCH, runs=2500, warmup=4)
    assert report.holds, report
    assert set(next(iter(report.verdicts.values())).rejected) == {"noise x 1.5", "noise / 1.5"}


@pytest.mark.slow
def test_a_stationary_ensemble_meets_the_condition_with_momentum() -> None:
    """E[loss · Q] = E[gain] in a stationary state of real runs: charges, gradients, noise and buffers fluctuate, their means agree."""
    rule = "momentum"
    world, options = World("linear", rule, replace=True, warmup=0), {**RULES[rule], "lr": 0.02, "weight_decay": 0.05}
    family, runs = world.law.symmetry, variants(seed=range(450), **options)
    ensemble = Ensemble(lambda v: nf.models.MLP(*MODELS["linear"]), nn.functional.mse_loss, runs)
    shapes = {name: p.shape for name, p in ensemble.parameters(0).items()}
    rows, columns = torch.triu_indices(3, 3)

    def lost(p: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return nn.functional.mse_loss(functional_call(world.model, p, (x,)), y)

    def sources(p: dict[str, Tensor]) -> Tensor:
        """2Q, ⟨ḡ, Aḡ⟩, Tr[AΣ] and ḡ itself."""
        samples = vmap(grad(lost), (None, 0, 0))(p, world.x[:, None], world.y[:, None])
        mean = {n: g.mean(0) for n, g in samples.items()}
        spread = vmap(lambda d: paired(family, d, d))({n: g - mean[n] for n, g in samples.items()}).mean(0)
        pairs = torch.stack([paired(family, p, p), paired(family, mean, mean), spread])[:, rows, columns]
        return torch.cat([pairs.flatten(), *(mean[n].flatten() for n in shapes)])

    taken = []
    for number, (x, y) in enumerate(draw_batches(world.x, world.y, BATCH, [v.seed for v in runs], 800)):
        ensemble.step(x, y, per_run=True)
        if number >= 400 and number % 20 == 0:
            pairs, flat = ensemble.record(sources).split([18, sum(shape.numel() for shape in shapes.values())], 1)
            pieces = zip(shapes.items(), flat.split([shape.numel() for shape in shapes.values()], 1), strict=True)
            mean = {n: piece.view(-1, *shape) for (n, shape), piece in pieces}
            held = [ensemble.momenta(run) for run in range(len(runs))]
            buffer = {n: torch.stack([b[n] for b in held]) for n in shapes}
            memory = vmap(lambda b, g: paired(family, b, g))(buffer, mean)[:, rows, columns]
            taken.append(torch.cat([pairs.view(-1, 3, 6), memory[:, None]], 1))
    twice_q, mean_square, spread, memory = torch.stack(taken).mean(0).unbind(1)

    def sides(name: str) -> tuple[float, Tensor, Tensor]:
        """What multiplies Q, and the gain with and without the buffer's part."""
        optimizer = torch.optim.SGD(world.model.parameters(), **{**RULES[name], "lr": 0.02, "weight_decay": 0.05})
        own = nf.derive(nf.trace(world.model, world.x, loss="mse"), nf.rule_of(optimizer))[0]
        found, group = own.stationary(BATCH), own.rule.groups[0]
        table = {symbol: float(group.values[n]) for n, symbol in group.form.hyperparameters}
        gain = sp.expand(found.gain)
        known = {Inner(MEAN, MEAN): mean_square, Spread(GRADIENT): spread}
        plain = sum((float(gain.coeff(pair).xreplace(table)) * x for pair, x in known.items()), torch.zeros(()))
        pairs = [pair for pair in gain.atoms(Inner) if pair not in known]
        return float(found.loss.xreplace(table)), plain, plain + sum(float(gain.coeff(pair).xreplace(table)) * memory for pair in pairs)

    (loss, without, gain), (other_loss, _, other) = sides(rule), sides("plain")
    siblings = {"no momentum": other * loss / other_loss, "buffers without memory": without, "half more": 1.5 * gain}
    verdict = judge((loss * twice_q / 2).numpy(), gain.numpy(), {n: x.numpy() for n, x in siblings.items()}, confidence=0.999)
    assert verdict.holds, verdict


class Product(nn.Module):
    """f(x) = u w x."""

    def __init__(self, u: float, w: float) -> None:
        super().__init__()
        self.u, self.w = (nn.Parameter(torch.tensor(v, dtype=torch.float64)) for v in (u, w))

    def forward(self, x: Tensor) -> Tensor:
        return self.u * self.w * x


@pytest.mark.slow
def test_the_imbalance_of_a_product_decays_at_the_rate_of_the_noise() -> None:
    """C = u² - w² of f = u w x: C' = C (1 - η² r²) exactly, so its rate is the mean of -ln(1 - η² r²) over the noise: three starts."""
    generator = torch.Generator().manual_seed(2)
    x = torch.ones(40, 1, dtype=torch.float64)
    y = 1 + torch.randn(40, 1, generator=generator, dtype=torch.float64)
    eta, starts = 0.05, [(2.0, 0.5), (0.6, 1.5), (1.2, 1.0)]
    runs = variants(lr=eta, width=range(3), seed=range(100))

    def half_square(output: Tensor, target: Tensor) -> Tensor:
        return (output - target).square().mean() / 2

    ensemble = Ensemble(lambda v: Product(*starts[v.width]), half_square, runs)
    residual = lambda p: p["u"] * p["w"] * x - y  # noqa: E731
    record = {
        "C": lambda p: p["u"] ** 2 - p["w"] ** 2,
        "rate": lambda p: -torch.log1p(-(eta**2) * residual(p) ** 2).mean(),
    }
    found = train(ensemble, draw_batches(x, y, 1, [v.seed for v in runs], 600), record, per_run=True)
    rates = decay_rates(found.steps, found["C"])
    predicted = found["rate"][:, :-1].mean(1).numpy()
    for width in range(3):
        own = found.where(width=width).numpy()
        siblings = {"conserved": 0.0, "twice": 2 * predicted[own], "half": predicted[own] / 2, "a fifth more": 1.2 * predicted[own]}
        assert judge(rates[own], predicted[own], siblings, confidence=0.999).holds
    # the exact step: no fit, no noise
    once = Ensemble(lambda v: Product(*starts[v.width]), half_square, runs[::100])
    before = once.record(record["C"])
    r = torch.stack([residual(once.parameters(i))[0, 0] for i in range(3)])
    once.step(x[:1], y[:1])
    exact = before * (1 - eta**2 * r**2)
    assert float((once.record(record["C"]) - exact).abs().max()) < 1e-14
