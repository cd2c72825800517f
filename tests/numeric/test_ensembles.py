"""Ensembles against torch.optim.SGD, run by run: what is left is rounding, measured by what roundings of the parameters do to torch."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import noetherflow as nf
from noetherflow.errors import RunError
from noetherflow.numeric.draws import BLOCK, draw_batches, draw_indices
from noetherflow.numeric.ensembles import Ensemble, Variant, train, variants
from noetherflow.numeric.rounding import unit_roundoff

STEPS, BATCH = 15, 5
Params = dict[str, Tensor]
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "decay": {"weight_decay": 0.1},
    "momentum": {"momentum": 0.8, "weight_decay": 0.05},
    "dampened": {"momentum": 0.8, "dampening": 0.4},
    "nesterov": {"momentum": 0.8, "nesterov": True, "weight_decay": 0.05},
}
MIXED = [Variant(lr=0.02 + 0.02 * n, seed=n, width=width, **OPTIONS[name]) for n, name in enumerate(OPTIONS) for width in (3, 5)]


class Tied(nn.Module):
    """A layer in two places, a frozen bias, and a norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.shared, self.norm = nn.Linear(4, width), nn.Linear(width, width), nn.LayerNorm(width)
        self.last = nn.Linear(width, 2)
        self.last.bias.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.shared(self.norm(torch.tanh(self.shared(self.first(x))))))


MODELS: dict[str, Callable[[Variant], nn.Module]] = {
    "relu": lambda v: nf.models.MLP([4, v.width, v.width, 2]),
    "batch norm": lambda v: nn.Sequential(nn.Linear(4, v.width), nn.BatchNorm1d(v.width), nn.ReLU(), nn.Linear(v.width, 2)),
    "convolution": lambda v: nn.Sequential(nn.Unflatten(1, (1, 4)), nn.Conv1d(1, v.width, 3), nn.Flatten(), nn.Linear(2 * v.width, 2)),
    "tied": lambda v: Tied(v.width),
}


def data(outputs: int, runs: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(5)
    shapes = ((runs, BATCH, 4), (runs, BATCH, outputs))
    return [tuple(torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes) for _ in range(STEPS)]


def alone(
    factory: Callable[[Variant], nn.Module], variant: Variant, batches: Sequence[tuple[Tensor, Tensor]], jitter: float = 0.0
) -> Params:
    """The run in torch; with jitter, the parameters are moved by that relative size before each step, as roundings would move them."""
    torch.manual_seed(variant.seed)
    model = factory(variant).double()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], **variant.options)
    generator = torch.Generator().manual_seed(1)
    for x, y in batches:
        for p in model.parameters():
            p.data *= 1 + jitter * (2 * torch.rand(p.shape, generator=generator, dtype=torch.float64) - 1)
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def distance(a: Params, b: Params) -> float:
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


@pytest.mark.parametrize("per_run", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_every_run_is_torchs_to_rounding(name: str, per_run: bool) -> None:
    """Sums in another order: ten roundings of every parameter a step are allowed, and no more is needed."""
    batches = data(2, len(MIXED))
    ensemble = Ensemble(MODELS[name], nn.functional.mse_loss, MIXED)
    for x, y in batches:
        ensemble.step(x if per_run else x[0], y if per_run else y[0], per_run=per_run)
    for run, variant in enumerate(MIXED):
        own = [(x[run if per_run else 0], y[run if per_run else 0]) for x, y in batches]
        truth = alone(MODELS[name], variant, own)
        bound = distance(truth, alone(MODELS[name], variant, own, jitter=10 * unit_roundoff(torch.float64)))
        assert distance(ensemble.parameters(run), truth) <= bound < 1e-13


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("plain", {"lr": 0.0500001}),
        ("decay", {"weight_decay": 0.1000001}),
        ("momentum", {"momentum": 0.8000001}),
        ("dampened", {"dampening": 0.4000001}),
        ("nesterov", {"nesterov": False}),
        ("dampened", {"dampening": 0.0}),
    ],
)
def test_a_run_with_slightly_other_options_is_not_it(name: str, change: dict[str, Any]) -> None:
    variant = Variant(lr=0.05, width=3, **OPTIONS[name])
    batches = data(2, 1)
    ensemble = Ensemble(MODELS["relu"], nn.functional.mse_loss, [variant])
    for x, y in batches:
        ensemble.step(x, y, per_run=True)
    own = [(x[0], y[0]) for x, y in batches]
    bound = distance(*(alone(MODELS["relu"], variant, own, jitter=j) for j in (0, 10 * unit_roundoff(torch.float64))))
    assert distance(ensemble.parameters(0), alone(MODELS["relu"], variant, own)) <= bound
    assert distance(ensemble.parameters(0), alone(MODELS["relu"], replace(variant, **change), own)) > 100 * bound


def test_momenta_are_torchs_buffers() -> None:
    variant = Variant(lr=0.1, momentum=0.7, dampening=0.2)
    model = nn.Linear(4, 2).double()
    ensemble = Ensemble(lambda v: model, nn.functional.mse_loss, [variant, replace(variant, momentum=0.0)])
    mine = copy.deepcopy(model)
    optimizer = torch.optim.SGD(mine.parameters(), **variant.options)
    assert not ensemble.momenta(0)["weight"].any()
    for x, y in data(2, 1)[:3]:
        ensemble.step(x[0], y[0])
        optimizer.zero_grad()
        nn.functional.mse_loss(mine(x[0]), y[0]).backward()
        optimizer.step()
    assert distance(ensemble.momenta(0), {n: optimizer.state[p]["momentum_buffer"] for n, p in mine.named_parameters()}) < 1e-14
    plain = Ensemble(lambda v: model, nn.functional.mse_loss, [Variant(lr=0.1)])
    assert not plain.momenta(0)["weight"].any()


def test_records_are_taken_where_they_should_and_in_the_order_of_variants() -> None:
    runs = variants(lr=[0.1, 0.2], width=[3, 5], seed=[0, 1])
    ensemble = Ensemble(MODELS["relu"], nn.functional.mse_loss, runs)
    norm: Callable[[Any], Any] = lambda p: sum((w**2).sum() for w in p.values())  # noqa: E731
    found = train(ensemble, [(x[0], y[0]) for x, y in data(2, 1)[:7]], {"norm": norm}, every=3)
    assert found.steps.tolist() == [0, 3, 6]
    assert found["norm"].shape == (8, 3)
    again = Ensemble(MODELS["relu"], nn.functional.mse_loss, runs)
    assert [float(norm(again.parameters(run))) for run in range(8)] == pytest.approx(found["norm"][:, 0].tolist(), rel=1e-13)
    assert torch.unique(found["norm"][:, 0]).numel() == 4
    assert found.where(width=3, lr=0.2).nonzero().flatten().tolist() == [4, 5]
    with pytest.raises(RunError, match="one shape in every run"):
        ensemble.record(lambda p: p["layers.0.weight"].sum(1))
    with pytest.raises(RunError, match="every=1 or more"):
        train(ensemble, [], {}, every=0)


def test_draws_depend_on_the_seed_alone() -> None:
    for replace_ in (True, False):
        many = list(draw_indices(12, 4, [3, 1, 3], 2 * BLOCK + 3, replace=replace_))
        few = list(draw_indices(12, 4, [1], BLOCK + 1, replace=replace_))
        assert len(many) == 2 * BLOCK + 3
        assert all(torch.equal(a[1], b[0]) and torch.equal(a[0], a[2]) for a, b in zip(many, few, strict=False))
        counts = torch.stack(many)[:, :2].flatten().bincount(minlength=12)
        # each of n draws hits one of 12 with probability 1/12; five standard deviations
        n = counts.sum()
        assert bool(((counts - n / 12).abs() < 5 * (n / 12 * 11 / 12) ** 0.5).all())
    assert all(len(set(rows.tolist())) == 4 for batch in draw_indices(12, 4, [0, 1], 9, replace=False) for rows in batch)
    assert any(len(set(rows.tolist())) < 4 for batch in draw_indices(12, 4, [0, 1], 9) for rows in batch)
    x = torch.arange(24.0).reshape(12, 2)
    for a, b in draw_batches(x, torch.arange(12), 4, [0, 1], 2):
        assert torch.equal(a[..., 0] / 2, b.float())


class Branching(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) if input.sum() > 0 else -super().forward(input)


def step(model: nn.Module, runs: Sequence[Variant] = (Variant(lr=0.1),), **options: Any) -> None:
    Ensemble(lambda v: model, nn.functional.mse_loss, runs).step(torch.ones(2, 5, 4), torch.ones(2, 5, 2), **options)


@pytest.mark.parametrize(
    ("attempt", "said"),
    [
        (lambda: step(Branching(4, 2)), "control flow that depends on data"),
        (lambda: step(nn.Sequential(nn.Linear(4, 2), nn.Dropout())), "no random operations"),
        (lambda: step(nn.Linear(4, 2).requires_grad_(False)), "no trainable parameter"),
        (lambda: step(nn.Linear(4, 2), per_run=True), "one along the first axis for each of 1 runs"),
        (lambda: Ensemble(MODELS["relu"], nn.functional.mse_loss, []), "at least one variant"),
        (lambda: Ensemble(MODELS["relu"], nn.functional.mse_loss, MIXED).parameters(99), "no run 99"),
        (lambda: variants(lr=0.1, beta=3), r"no setting \['beta'\]"),
        (lambda: variants(lr=[], seed=0), "so there is no run"),
        (lambda: variants(lr=-0.1), "not negative"),
        (lambda: variants(lr=0.1, dampening=float("nan")), "finite options"),
        (lambda: variants(lr=0.1, nesterov=True), "Nesterov momentum needs"),
        (lambda: list(draw_indices(3, 4, [0], 1, replace=False)), "Cannot draw"),
    ],
)
def test_what_cannot_be_is_refused(attempt: Callable[[], Any], said: str) -> None:
    with pytest.raises(RunError, match=said):
        attempt()
