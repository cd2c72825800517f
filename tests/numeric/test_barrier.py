"""Merging and barriers: exact copies have none, the excess is the integral of curvature, and what cannot be merged is refused."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import noetherflow as nf
from noetherflow.errors import ModelError, RunError
from noetherflow.numeric.merging import Batch, estimate_statistics

CROSS_ENTROPY = nn.functional.cross_entropy
ROUNDING = 1e-13  # of a loss of size one: a mean of some hundred terms, each of some hundred roundings of 1e-16, in random directions


def images(count: int = 200) -> list[Batch]:
    return list(nf.data.fashion_mnist_subset().batches(count, seed=0, steps=1))


def trained(model: nn.Module, seed: int, steps: int = 60) -> nn.Module:
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for x, y in nf.data.fashion_mnist_subset().batches(100, seed=seed, steps=steps):
        optimizer.zero_grad()
        CROSS_ENTROPY(model(x), y).backward()
        optimizer.step()
    return model


def permuted(model: nn.Module, x: Tensor, seed: int = 0) -> nn.Module:
    group, other = nf.discrete_symmetries(nf.trace(model, x)), copy.deepcopy(model)
    there = {**dict(other.named_parameters()), **dict(other.named_buffers())}
    other.load_state_dict(group.transform(there, group.random(seed)), strict=False)
    return other


def mlp(seed: int, activation: str = "tanh", hidden: tuple[int, ...] = (24,)) -> nn.Module:
    return nf.models.build("mlp", seed=seed, widths=(784, *hidden, 10), activation=activation)


def test_merging_is_linear_and_exact_at_its_ends() -> None:
    a, b = mlp(0), mlp(1)
    assert all(torch.equal(p, q) for p, q in zip(nf.merge(a, b, 0.0).parameters(), a.parameters(), strict=True))
    assert all(torch.equal(p, q) for p, q in zip(nf.merge(a, b, 1.0).parameters(), b.parameters(), strict=True))
    quarter = dict(nf.merge(a, b, 0.25).named_parameters())
    for (name, p), q in zip(a.named_parameters(), b.parameters(), strict=True):
        assert torch.equal(quarter[name], (0.75 * p.double() + 0.25 * q.double()).float())


def test_tied_parameters_stay_tied() -> None:
    a, b = (nf.models.TiedMLP(5, 4, 5) for _ in range(2))
    merged = nf.merge(a, b)
    assert sum(p.numel() for p in merged.parameters()) == sum(p.numel() for p in a.parameters())


def test_what_cannot_be_merged_is_refused() -> None:
    with pytest.raises(ModelError, match="not of one architecture"):
        nf.merge(mlp(0), mlp(0, hidden=(25,)))
    with pytest.raises(ModelError, match="not of one architecture"):
        nf.merge(mlp(0), mlp(0, hidden=(24, 24)))
    with pytest.raises(ModelError, match="finite"):
        nf.merge(mlp(0), mlp(0), float("nan"))
    with pytest.raises(RunError, match="no batches"):
        nf.barrier(mlp(0), mlp(1), iter(()), CROSS_ENTROPY)
    with pytest.raises(RunError, match="at least 3"):
        nf.barrier(mlp(0), mlp(1), images(), CROSS_ENTROPY, points=2)
    broken = mlp(1)
    nn.init.constant_(broken.get_parameter("layers.0.weight"), float("nan"))
    with pytest.raises(ModelError, match="loss at weight"):
        nf.barrier(mlp(0), broken, images(), CROSS_ENTROPY)


def convolutional(seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        first = nn.Conv2d(1, 6, 5, stride=2), nn.BatchNorm2d(6), nn.ReLU()
        second = nn.Conv2d(6, 10, 5, stride=2), nn.BatchNorm2d(10), nn.ReLU()
        return nn.Sequential(*first, *second, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(40, 10))


@pytest.mark.parametrize("kind", ["tanh", "relu", "batch_norm"])
def test_a_permuted_copy_has_a_barrier_before_alignment_and_none_after(kind: str) -> None:
    batches = images(100)
    x = batches[0][0]
    model = trained(convolutional(0) if kind == "batch_norm" else mlp(0, kind), 0).double()
    other = permuted(model, x.double())
    before = nf.barrier(model, other, batches, CROSS_ENTROPY, points=5)
    after = nf.barrier(model, nf.align(model, other, x.double(), continuous=False).model, batches, CROSS_ENTROPY, points=5)
    assert before.height > 0.1
    assert after.height < ROUNDING
    assert before.losses[0] == pytest.approx(before.losses[-1], abs=ROUNDING)
    assert before.reestimated == (kind == "batch_norm")
    # a random element moved b somewhere else: its barrier does not fall
    wrong = nf.barrier(model, permuted(other, x.double(), 7), batches, CROSS_ENTROPY, points=5)
    assert wrong.height > 0.1


def test_alignment_lowers_the_barrier_of_two_trained_networks_by_the_factor_of_their_curvatures() -> None:
    batches = images(100)
    a, b = (trained(mlp(s, hidden=(16,)), s) for s in (0, 1))
    aligned = nf.align(a, b, batches[0][0]).model
    measured = [nf.barrier(a, other, batches, CROSS_ENTROPY, points=3).excesses[1] for other in (b, aligned)]
    coarse, found = ([nf.line_curvature(a, other, batches, CROSS_ENTROPY, nodes=n) for other in (b, aligned)] for n in (16, 32))
    for rough, fine, excess in zip(coarse, found, measured, strict=True):
        # Gauss-Legendre converges geometrically for a function analytic along the line: half the nodes are off by more than all
        assert abs(fine.excess - excess) < abs(rough.excess - excess) / 10 + ROUNDING
        assert abs(fine.excess - excess) < abs(rough.excess - fine.excess) + ROUNDING
    assert measured[0] / measured[1] == pytest.approx(found[0].excess / found[1].excess, rel=1e-4)
    assert measured[0] > 3 * measured[1]
    for f in found:
        assert f.lowered < 0 < f.excess < f.raised  # the convex loss only lowers the line
    # wrong siblings: the kernel of the ends' mean alone, 1/8 of the curvature at the middle
    middle = nf.line_curvature(a, b, batches, CROSS_ENTROPY, nodes=1)
    assert abs(middle.excess - measured[0]) > 0.05 * measured[0]


def test_curvature_is_not_seen_in_the_kinks_of_a_relu() -> None:
    batches = images()
    a, b = (trained(mlp(s, "relu"), s) for s in (0, 1))
    measured = nf.barrier(a, b, batches, CROSS_ENTROPY, points=3).excesses[1]
    assert abs(nf.line_curvature(a, b, batches, CROSS_ENTROPY, nodes=16).excess - measured) > 0.02 * measured


def test_one_convex_bowl_has_no_barrier() -> None:
    batches = images()
    a, b = (nn.Sequential(nn.Flatten(), nn.Linear(784, 10)) for _ in range(2))
    found = nf.barrier(a, b, batches, CROSS_ENTROPY, points=9)
    assert found.height == 0
    assert min(found.excesses) < 0
    curvature = nf.line_curvature(a, b, batches, CROSS_ENTROPY, weight=0.25, nodes=16)
    assert curvature.raised == pytest.approx(0, abs=ROUNDING)
    assert curvature.excess == pytest.approx(found.excesses[2], abs=1e-8)


def test_statistics_on_the_line_are_not_those_between() -> None:
    batches = images(100)
    a, b = (trained(convolutional(s), s).double() for s in (0, 1))
    measured = nf.barrier(a, b, batches, CROSS_ENTROPY, points=3)
    x, y = batches[0][0].double(), batches[0][1]
    estimated = nf.merge(a, b, batches=[(x, y)]).eval()
    stale = nf.merge(a, b).eval()
    assert float(CROSS_ENTROPY(estimated(x), y).detach()) == pytest.approx(measured.losses[1], abs=ROUNDING)
    assert float(CROSS_ENTROPY(stale(x), y).detach()) != pytest.approx(measured.losses[1], abs=1e-2)
    with pytest.raises(ModelError, match="running statistics"):
        nf.line_curvature(a, b, batches, CROSS_ENTROPY)


def test_statistics_are_means_over_batches_and_modes_stay() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5)).double()
    x = [torch.randn(8, 3, dtype=torch.float64) for _ in range(2)]
    estimate_statistics(model, [(batch, batch) for batch in x])
    torch.testing.assert_close(model[0].running_mean, (x[0].mean(0) + x[1].mean(0)) / 2)
    torch.testing.assert_close(model[0].running_var, (x[0].var(0) + x[1].var(0)) / 2)
    assert model.training
    assert model[0].momentum == 0.1


def test_a_barrier_can_be_read() -> None:
    found = nf.barrier(mlp(0), mlp(1), images(), CROSS_ENTROPY, points=5)
    assert found.weights == (0.0, 0.25, 0.5, 0.75, 1.0)
    assert found.excesses[0] == 0 == found.excesses[-1]
    assert found.height == max(0.0, *found.excesses)
    assert len(found.table().splitlines()) == 6
    assert "Barrier of" in found._repr_html_()
    assert len(found.plot().axes) == 2
    squares = nf.barrier(nn.Linear(3, 1), nn.Linear(3, 1), [(torch.randn(4, 3), torch.randn(4, 1))], nn.functional.mse_loss, points=3)
    assert squares.accuracies is None
    assert len(squares.plot().axes) == 1
    assert np.isfinite(squares.losses).all()


def test_buffers_that_differ_move_along_the_line_and_are_refused() -> None:
    """`merge` has them on the line, derivatives by the parameters do not see it: the prediction was wrong by a third."""

    class Scaled(nn.Module):
        def __init__(self, scale: float) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 3)
            self.register_buffer("scale", torch.tensor(scale))

        def forward(self, x: Tensor) -> Tensor:
            return self.scale * torch.tanh(self.inner(x))

    torch.manual_seed(0)
    batch = torch.randn(9, 4), torch.randn(9, 3)
    with pytest.raises(ModelError, match="scale"):
        nf.line_curvature(Scaled(1.0), Scaled(3.0), [batch], nn.functional.mse_loss)
    alike = Scaled(2.0), Scaled(2.0)
    measured = nf.barrier(*alike, [batch], nn.functional.mse_loss, points=3).excesses[1]
    assert nf.line_curvature(*alike, [batch], nn.functional.mse_loss).excess == pytest.approx(measured, abs=1e-12)


def test_statistics_come_from_batches_that_can_tell_them() -> None:
    """From none they were silently reset to mean zero and variance one."""
    norm = nn.BatchNorm1d(4)
    for batches in ([], iter(())):
        with pytest.raises(RunError, match="no batches"):
            nf.merge(norm, norm, batches=batches)
    with pytest.raises(RunError, match="more than 1 value"):
        nf.merge(norm, norm, batches=[(torch.randn(1, 4), torch.zeros(1))])
    with pytest.raises(RunError, match="empty"):
        nf.barrier(norm, norm, [(torch.randn(0, 4), torch.zeros(0, 4))], nn.functional.mse_loss)
