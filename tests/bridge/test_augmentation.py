"""Momenta of augmented data, equivariant gradients, and the laws that symmetric data add."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import noetherflow as nf
from noetherflow.bridge.absorbed_actions import absorbed
from noetherflow.bridge.augmentation_equivariance import augmentation_equivariance
from noetherflow.bridge.augmentation_momenta import _Run, augmentation_momenta
from noetherflow.bridge.augmented_laws import augmented_laws
from noetherflow.errors import ModelError
from noetherflow.numeric.input_groups import Circle, cyclic_shifts, generated, ring_rotations
from noetherflow.numeric.polar_images import polar_images
from noetherflow.symbolic.row_spaces import added_laws

RINGS, ANGLES = 2, 7
GROUP = ring_rotations(RINGS, ANGLES)
SIZE = RINGS * ANGLES
PLANE = Circle(torch.tensor([[0.0, -1.0], [1.0, 0.0]]))


class Square(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        return inputs * inputs


class TwoReaders(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(SIZE, 4), nn.Linear(SIZE, 4, bias=False), nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.out(torch.tanh(self.a(inputs)) * torch.sigmoid(self.b(inputs)))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.out = nn.Linear(SIZE, SIZE), nn.Linear(SIZE, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.out(inputs + torch.tanh(self.a(inputs)))


def pictures(count: int = 6) -> tuple[Tensor, Tensor]:
    """Real images on rings, with three labels."""
    ((images, labels),) = nf.data.fashion_mnist_subset().batches(count, seed=0, steps=1, dtype=torch.float64)
    return polar_images(images, RINGS, ANGLES), labels % 3


def perceptron(activation: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(SIZE, 5), activation, nn.Linear(5, 3)).double()


def one_hot(labels: Tensor) -> Tensor:
    return nn.functional.one_hot(labels, 3).double()


@pytest.mark.parametrize(("activation", "degree"), [(nn.Identity(), 1), (Square(), 2)])
def test_polynomial_networks_are_exact_from_the_derived_number_on(activation: nn.Module, degree: int) -> None:
    images, labels = pictures()
    batch, number = (images, one_hot(labels)), 2 * degree * 3 + 1
    found = augmentation_momenta(perceptron(activation), batch, "mse", GROUP)
    assert found.exact_elements == len(found.angles) == number
    assert found.vanishes
    assert found.identity <= 1
    fewer = augmentation_momenta(perceptron(activation), batch, "mse", GROUP, elements=number - 1)
    assert abs(fewer.momentum) > 1e6 * fewer.bound
    assert augmentation_momenta(perceptron(activation), batch, "mse", GROUP, elements=3 * number).vanishes


def test_one_batch_a_finite_group_and_random_elements_leave_a_momentum() -> None:
    model, batch = perceptron(nn.Tanh()), pictures()
    whole = augmentation_momenta(model, batch, "cross_entropy", GROUP, elements=160)
    assert whole.vanishes
    assert whole.size > 1e6 * whole.bound
    for elements in (1, ANGLES, GROUP.random(40, seed=1)):
        found = augmentation_momenta(model, batch, "cross_entropy", GROUP, elements=elements)
        assert abs(found.momentum) > 1e6 * found.bound
        assert found.identity <= 1, "it is the slope of the loss all the same"
    assert found.interval.holds(0.0)
    assert not found.interval.holds(whole.size)
    with pytest.raises(ModelError, match="no independent"):
        _ = whole.interval


@pytest.mark.parametrize(
    ("make", "readers"),
    [
        (TwoReaders, ("a.weight", "b.weight")),
        (lambda: nn.Sequential(nn.LayerNorm(SIZE), nn.Linear(SIZE, 4), nn.Tanh(), nn.Linear(4, 3)), ("0.bias", "1.weight")),
        (lambda: nn.Sequential(nn.Linear(SIZE, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3)), ("0.weight",)),
    ],
)
def test_readers_are_found_and_the_identity_holds(make: type[nn.Module], readers: tuple[str, ...]) -> None:
    torch.manual_seed(2)
    model = make().double()
    with torch.no_grad():  # gains and biases in general position
        for p in model.parameters():
            p.add_(0.1 * torch.rand_like(p))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = augmentation_momenta(model, pictures(), "cross_entropy", GROUP, elements=5)
    assert found.readers == readers
    assert found.identity <= 1
    assert found.size > 1e6 * found.bound
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_channels_of_a_convolution() -> None:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 16, 3)).double()
    batch = torch.randn(4, 3, 6, 6, dtype=torch.float64), torch.tensor([0, 1, 2, 0])
    found = augmentation_momenta(model, batch, "cross_entropy", ring_rotations(1, 3), elements=60, axis=1)
    assert found.readers == ("0.weight",)
    assert found.identity <= 1
    with pytest.raises(ModelError, match="commutes with sliding"):
        augmentation_momenta(model, batch, "cross_entropy", GROUP)


def test_a_generator_of_the_wrong_sign_is_rejected() -> None:
    images, labels = pictures()
    model = perceptron(nn.Tanh())
    site = absorbed(model, images, GROUP)
    assert site.direction is not None
    wrong = replace(site, direction=-site.direction)
    rows = [
        _Run(s, GROUP.generator, model, nn.functional.cross_entropy, (images, labels), torch.Generator().manual_seed(0)).at(
            GROUP.element(0.7)
        )
        for s in (site, wrong)
    ]
    limit = 10 * (rows[0].rounding + rows[0].slope_rounding)  # ten standard deviations of both
    assert abs(rows[0].momentum - rows[0].slope) < limit
    assert abs(rows[1].momentum - rows[1].slope) > 1e6 * limit


def test_a_residual_network_absorbs_nothing() -> None:
    torch.manual_seed(0)
    with pytest.raises(ModelError, match="absorbs"):
        augmentation_momenta(Residual().double(), pictures(), "cross_entropy", GROUP)


def test_single_precision_is_refused() -> None:
    images, labels = pictures()
    with pytest.raises(ModelError, match="float64"):
        augmentation_momenta(perceptron(nn.Tanh()).float(), (images.float(), labels), "cross_entropy", GROUP)


def test_tables_and_figures() -> None:
    found = augmentation_momenta(perceptron(nn.Tanh()), pictures(), "cross_entropy", GROUP, elements=9)
    assert [set(row) for row in found.table()] == [{"angle", "momentum", "slope", "rounding"}] * 9
    assert "absorbed by 0.weight" in str(found)
    assert len(found.plot().axes) == 1
    assert len(found.spectrum) == 5


def test_gradients_of_finite_averages_are_equivariant() -> None:
    model, batch = perceptron(nn.ReLU()), pictures()
    shifts = generated(torch.block_diag(*[torch.eye(ANGLES).roll(1, 0)] * RINGS), name="shifts of rings")
    assert augmentation_equivariance(model, batch, "cross_entropy", shifts).holds
    part = augmentation_equivariance(model, batch, "cross_entropy", shifts, elements=[0, 2, 3])
    assert max(part.defects) > 1e6 * max(part.bounds)


def test_fixed_weights_stay_fixed_and_so_does_their_gradient() -> None:
    images, labels = pictures()
    model = perceptron(nn.Tanh())
    shifts = [GROUP.element(s) for s in GROUP.equispaced(ANGLES)]
    seen = torch.cat([images @ e.T for e in shifts])
    weight = model.get_parameter("0.weight")
    with torch.no_grad():
        weight.copy_(torch.stack([weight @ e for e in shifts]).mean(0))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    for turned in (seen, images):
        for _ in range(10):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(turned), labels.repeat(len(turned) // len(images))).backward()
            optimizer.step()
        assert weight.grad is not None
        for tensor in (weight.detach(), weight.grad):
            moved = float((tensor - tensor @ shifts[1]).norm() / tensor.norm())
            # sums over 42 images, ten steps, ten times a momentum's gain
            assert (moved < 42 * 100 * 2.0**-53) == (turned is seen), moved


def two_layers(inputs: int, units: int, activation: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, units, bias=False), activation, nn.Linear(units, 1, bias=False)).double()


def quartic(output: Tensor, target: Tensor) -> Tensor:
    return (output - target).pow(4).sum()


def polygon(corners: int) -> Tensor:
    return torch.stack([PLANE.element(s) for s in PLANE.equispaced(corners)])


PLACES = torch.eye(4)
PERMUTATIONS = generated(PLACES[[1, 0, 2, 3]], PLACES[[1, 2, 3, 0]]).elements


@pytest.mark.parametrize(
    ("model", "elements", "loss", "added"),
    [
        (two_layers(4, 1, nn.Identity()), PERMUTATIONS, "mse", added_laws(1, 3)),
        (two_layers(4, 2, nn.Identity()), PERMUTATIONS, "mse", added_laws(2, 3)),
        (two_layers(4, 2, nn.Identity()), PERMUTATIONS, quartic, 0),
        (two_layers(4, 1, nn.Tanh()), PERMUTATIONS, "mse", 0),
        (two_layers(4, 2, nn.Identity()), cyclic_shifts(4).elements, "mse", 0),
        (two_layers(2, 1, Square()), polygon(5), "mse", added_laws(1, 2)),
        (two_layers(2, 1, Square()), polygon(4), "mse", 0),
        (two_layers(2, 1, nn.Tanh()), polygon(128), "mse", added_laws(1, 2)),
        (two_layers(2, 2, nn.Tanh()), polygon(128), "mse", 0),
    ],
)
def test_laws_that_symmetric_data_add(model: nn.Module, elements: Tensor, loss: str, added: int) -> None:
    found = augmented_laws(model, elements, loss)
    assert found.added == added
    counted = nf.completeness(model, torch.zeros(1, elements.shape[-1], dtype=torch.float64), loss="mse")
    assert found.without == counted.laws_possible, "without the group it is the count of nf.completeness"


def test_wide_networks_are_not_counted() -> None:
    with pytest.raises(ModelError, match="narrower"):
        augmented_laws(two_layers(4, 60, nn.Tanh()), PERMUTATIONS)
