"""What a first user gets wrong is refused in words, networks with state are taken, and nothing that was given is changed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import noetherflow as nf
from noetherflow.bridge.landscape import Landscape
from noetherflow.errors import NoetherflowError, RunError
from noetherflow.symbolic.discrete_elements import swap

Problem = tuple[nn.Module, Tensor, Tensor]
TURN = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
CIRCLE = nf.input_groups.Circle(torch.block_diag(TURN, TURN))


def perceptron(middle: nn.Module, *more: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), *more, middle, nn.Linear(5, 3)).double()


def samples(count: int = 6) -> tuple[Tensor, Tensor]:
    drawn = torch.Generator().manual_seed(1)
    x = torch.randn(count, 4, generator=drawn, dtype=torch.float64)
    return x, torch.randint(0, 3, (count,), generator=drawn)


def symmetric(model: nn.Module) -> tuple[nn.Module, Any]:
    group = nf.discrete_symmetries(nf.trace(model, samples()[0]))
    there = nf.fixed_subspace(group, swap(group, 0, 0, 1), model)
    at = copy.deepcopy(model)
    at.load_state_dict(there.project(model), strict=False)
    return at, there


def energy(model: nn.Module, x: Tensor, y: Tensor) -> Any:
    own = copy.deepcopy(model)
    return nf.energy_balance(own, torch.optim.SGD(own.parameters(), lr=0.1, momentum=0.9), [(x, y)] * 2)


def hessian(model: nn.Module, x: Tensor, y: Tensor) -> Any:
    at, there = symmetric(model)
    return nf.transverse_hessian(at, x, y, subspace=there).eigenvalues()


def escaped(model: nn.Module, x: Tensor, y: Tensor) -> Any:
    at, there = symmetric(model)
    across = torch.arange(sum(p.numel() for p in at.parameters())).double()
    sgd = lambda p: torch.optim.SGD(p, lr=0.1)  # noqa: E731 - a rule in one line
    return nf.escape(at, sgd, [(x, y)] * 3, loss="cross_entropy", subspace=there, direction=across)


def grown(model: nn.Module, x: Tensor, y: Tensor) -> Any:
    mirror = nf.mirrors(nf.trace(model, samples()[0]))[0].mirror(0, 1)
    return nf.transverse_growth(model, mirror, x, y, "cross_entropy", rate=0.1, steps=4, runs=2, warmup=1)


ASKED: dict[str, Callable[[nn.Module, Tensor, Tensor], Any]] = {
    "energy_balance": energy,
    "transverse_hessian": hessian,
    "escape": escaped,
    "transverse_growth": grown,
    "augmentation_momenta": lambda m, x, y: nf.augmentation_momenta(m, (x, y), "cross_entropy", CIRCLE, elements=3),
    "augmentation_equivariance": lambda m, x, y: nf.augmentation_equivariance(m, (x, y), "cross_entropy", nf.input_groups.cyclic_shifts(4)),
    "barrier": lambda m, x, y: nf.barrier(m, m, [(x, y)], nn.functional.cross_entropy, points=3),
    "line_curvature": lambda m, x, y: nf.line_curvature(m, m, [(x, y)], nn.functional.cross_entropy, nodes=2),
}
EMPTY, SHORT, WIDE, COARSE = samples(0), (samples()[0], samples()[1][:3]), (torch.randn(6, 7).double(), samples()[1]), samples()
DATA = {"no samples": EMPTY, "too few targets": SHORT, "too many inputs": WIDE, "whole numbers": (COARSE[0].long(), COARSE[1])}


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("name", ASKED)
def test_data_that_do_not_fit_are_refused_in_words(name: str, data: str) -> None:
    with pytest.raises(NoetherflowError):
        ASKED[name](perceptron(nn.Tanh()), *DATA[data])


@pytest.mark.parametrize("name", ["energy_balance", "transverse_hessian", "escape", "transverse_growth"])
def test_a_random_loss_is_refused_and_leaves_random_numbers_as_they_were(name: str) -> None:
    model = perceptron(nn.Tanh(), nn.Dropout(0.5))
    before = torch.get_rng_state()
    model_before = copy.deepcopy(model.state_dict())
    with pytest.raises(RunError, match="dropout"):
        ASKED[name](model, *samples())
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(t, model_before[n]) for n, t in model.state_dict().items())


@pytest.mark.parametrize("name", ["energy_balance", "transverse_hessian", "escape", "barrier"])
def test_running_statistics_are_no_obstacle_and_do_not_move(name: str) -> None:
    model = perceptron(nn.Tanh(), nn.BatchNorm1d(5))
    before = copy.deepcopy(model.state_dict())
    assert ASKED[name](model, *samples()) is not None
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_across_a_batch_norm_the_hessian_is_that_of_differences() -> None:
    at, there = symmetric(perceptron(nn.Tanh(), nn.BatchNorm1d(5)))
    x, y = samples()
    found = nf.transverse_hessian(at, x, y, subspace=there)
    direction = there.vectors.transverse()[0]

    def second(step: float) -> float:
        before, here, after = (float(found.value(found.theta + s * step * direction)) for s in (-1, 0, 1))
        return (before - 2 * here + after) / step**2

    # extrapolated once: the error is of fourth order in the step, 1e-9 here, and rounding 1e-16 over its square
    expected = (4 * second(2.5e-4) - second(5e-4)) / 3
    assert float(direction @ found.times(direction)) == pytest.approx(expected, abs=1e-7)


def test_another_models_optimizer_and_frozen_models_are_refused() -> None:
    model, batch = perceptron(nn.Tanh()), samples()
    with pytest.raises(RunError, match="not the model's"):
        nf.energy_balance(model, torch.optim.SGD(perceptron(nn.Tanh()).parameters(), lr=0.1), [batch])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(RunError, match="no trainable"):
        nf.energy_balance(model.requires_grad_(False), optimizer, [batch])


@pytest.mark.parametrize("loss", [lambda o, y: nn.functional.cross_entropy(o, y, reduction="none"), lambda o, y: 1.0])
def test_a_loss_is_one_number(loss: Callable[..., Any]) -> None:
    with pytest.raises(RunError, match="must be one number"):
        Landscape(perceptron(nn.Tanh()), loss, *samples())


def test_groups_elements_and_losses_of_the_wrong_kind_are_refused() -> None:
    model, batch, shifts = perceptron(nn.Tanh()), samples(), nf.input_groups.cyclic_shifts(4)
    asked: list[Callable[[], Any]] = [
        lambda: nf.augmentation_momenta(model, batch, "cross_entropy", shifts),  # type: ignore[arg-type]
        lambda: nf.augmentation_momenta(model, batch, "hinge", CIRCLE),
        lambda: nf.augmentation_momenta(model, batch, "cross_entropy", CIRCLE, elements=0),
        lambda: nf.augmentation_equivariance(model, batch, "cross_entropy", CIRCLE),  # type: ignore[arg-type]
        lambda: nf.augmentation_equivariance(model, batch, "cross_entropy", shifts, elements=[]),
        lambda: nf.augmentation_equivariance(model, batch, "cross_entropy", shifts, elements=[4]),
        lambda: nf.augmented_laws(nn.Linear(4, 1).double(), shifts.elements, "hinge"),
        lambda: nf.augmented_laws(nn.Linear(4, 1).double(), shifts.elements[:2]),  # no group: products are missing
        lambda: nf.augmented_laws(nn.Linear(5, 1).double(), shifts.elements),
        lambda: nf.input_groups.generated(),
        lambda: nf.input_groups.generated(torch.eye(2), torch.eye(3)),
        lambda: nf.input_groups.generated(torch.full((2, 2), torch.nan)),
        lambda: nf.input_groups.Circle(torch.full((2, 2), torch.nan)),
        lambda: nf.input_groups.cyclic_shifts(0),
        lambda: nf.input_groups.ring_rotations(0, 3),
        lambda: nf.neural_tangent_kernel(nn.LSTM(4, 3).double(), samples()[0]),
        lambda: nf.neural_tangent_kernel(model, samples(0)[0]),
    ]
    for ask in asked:
        with pytest.raises(NoetherflowError):
            ask()


def test_a_gradient_of_what_is_not_used_is_zero() -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Linear(4, 3), nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(self.used(x))

    shifts = nf.input_groups.cyclic_shifts(4)
    assert nf.augmentation_equivariance(Idle().double(), samples(), "cross_entropy", shifts).holds


def test_a_profile_needs_a_place_and_a_direction() -> None:
    model, (x, y) = perceptron(nn.ReLU()), samples()
    for wrong in ({"at": ()}, {"direction": torch.zeros(5)}):
        with pytest.raises(NoetherflowError):
            nf.orbit_profile(model, nf.trace(model, x), x, y, nn.functional.cross_entropy, **wrong)
    dropped = nn.Sequential(model, nn.Dropout(0.5), nn.Linear(3, 3).double())
    with pytest.raises(RunError, match="dropout"):
        nf.orbit_profile(dropped, nf.trace(dropped, x), x, y, nn.functional.cross_entropy)


class Attending(nn.Module):
    """Fused attention, whose kernels cannot be differentiated twice."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.qkv, self.head = nn.Embedding(7, 4), nn.Linear(4, 12), nn.Linear(4, 7)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.tokens(x)).unflatten(-1, (3, 2, 2)).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.head(mixed.transpose(1, 2).flatten(2))


def of_tokens(output: Tensor, target: Tensor) -> Tensor:
    return nn.functional.cross_entropy(output.movedim(-1, 1), target)


def test_second_derivatives_of_fused_attention() -> None:
    torch.manual_seed(0)
    a, b, tokens = Attending().double(), Attending().double(), torch.randint(0, 7, (3, 5))
    batch, graph = (tokens, tokens.roll(1, 1)), nf.trace(a, tokens)
    own = copy.deepcopy(a)
    assert nf.energy_balance(own, torch.optim.AdamW(own.parameters(), lr=0.01), [batch] * 2).holds
    profile = nf.orbit_profile(a, graph, *batch, of_tokens, at=(0.0, 0.3))
    # an eigenvalue of size one, at two points of the orbit: matrix exponentials and products of some hundred terms
    assert abs(profile.sharpness - profile.predicted["sharpness"]).max() < 1e-10
    walked = nf.barrier(a, b, [batch], of_tokens, points=3)
    assert nf.line_curvature(a, b, [batch], of_tokens).excess == pytest.approx(walked.excesses[1], abs=1e-12)
    land = Landscape(a, of_tokens, *batch)
    product = land.hessian_times(land.start, torch.eye(len(land.start), dtype=torch.float64)[:2])
    assert torch.allclose(product[0, 1], product[1, 0], atol=1e-14)


def test_the_axis_of_classes_is_the_one_that_targets_lack() -> None:
    torch.manual_seed(0)
    model = Attending().double()
    for length, told in ((5, True), (7, False)):  # seven tokens, seven classes: not told apart
        tokens = torch.randint(0, 7, (3, length))
        with torch.no_grad():
            targets = model(tokens).argmax(-1)
        walked = nf.barrier(model, model, [(tokens, targets)], of_tokens, points=3)
        assert walked.accuracies == ((1.0, 1.0, 1.0) if told else None)
