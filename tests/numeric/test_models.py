"""Models: structure against the published ones, initial weights, and that each really learns."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from noetherflow.errors import ModelError
from noetherflow.numeric.data import fashion_mnist_subset
from noetherflow.numeric.models import ACTIVATIONS, MLP, MODELS, VGG16, ResNet18, TiedMLP, build

# Small enough to train in a test; perceptrons are small anyway.
SMALL: dict[str, dict[str, Any]] = {
    "resnet18": {"width": 0.125},
    "vgg16": {"width": 0.125, "hidden": 32},
    "vgg16_bn": {"width": 0.125, "hidden": 32},
}


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def batches(name: str, size: int, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    return fashion_mnist_subset().batches(size=size, seed=0, steps=steps, size_px=MODELS[name].image)


@pytest.mark.parametrize("name", list(MODELS))
def test_a_model_takes_the_images_it_asks_for(name: str) -> None:
    inputs, _ = next(batches(name, 4, 1))
    assert build(name, seed=0, **SMALL.get(name, {}))(inputs).shape == (4, 10)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(MODELS))
def test_a_model_learns_a_batch_by_heart(name: str) -> None:
    without_noise = {"dropout": 0.0} if name.startswith("vgg") else {}
    model = build(name, seed=0, **SMALL.get(name, {}), **without_noise)
    # Adam: the plain VGG's signals shrink through 16 layers, and plain SGD leaves the plateau when rounding decides.
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    ((inputs, labels),) = batches(name, 16, 1)
    losses = [2.3]  # guessing costs log 10
    while losses[-1] > 1.0 and len(losses) <= 400:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] <= 1.0


def test_counts_of_parameters_are_the_published_ones() -> None:
    assert parameters(ResNet18(classes=1000, channels=3)) == 11_689_512
    assert parameters(VGG16(False, channels=3).features) == 14_714_688
    assert parameters(VGG16(True, channels=3).features) == 14_723_136


def test_resnet_has_the_published_names() -> None:
    names = dict(ResNet18(width=0.125).named_parameters())
    expected = ["conv1.weight", "bn1.bias", "layer1.0.conv1.weight", "layer2.0.downsample.0.weight", "layer4.1.bn2.weight", "fc.bias"]
    assert set(expected) <= set(names)
    assert len(names) == 62
    assert not any("downsample" in name for name in names if name.startswith("layer1"))


def test_resnet_halves_the_image_five_times() -> None:
    model = ResNet18(width=0.125)
    shapes: list[tuple[int, ...]] = []
    for layer in (model.maxpool, model.layer1, model.layer2, model.layer3, model.layer4):
        layer.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(output.shape[1:])))
    model(torch.zeros(2, 1, 224, 224))
    assert shapes == [(8, 56, 56), (8, 56, 56), (16, 28, 28), (32, 14, 14), (64, 7, 7)]


@pytest.mark.parametrize(("batch_norm", "layers"), [(False, 31), (True, 44)])
def test_vgg_is_configuration_d(batch_norm: bool, layers: int) -> None:
    features = VGG16(batch_norm, width=0.125).features
    assert len(features) == layers
    assert [type(m).__name__ for m in features].count("MaxPool2d") == 5
    assert [m.out_channels for m in features if isinstance(m, nn.Conv2d)] == [8, 8, 16, 16, *[32] * 3, *[64] * 6]


def test_convolutions_start_as_torchvision_starts_them() -> None:
    torch.manual_seed(0)
    for model in (ResNet18(), VGG16(True)):
        for conv in (m for m in model.modules() if isinstance(m, nn.Conv2d) and m.weight.numel() > 1000):
            expected = (2 / (conv.out_channels * conv.kernel_size[0] ** 2)) ** 0.5
            # The sample deviation of n normal values has relative standard error 1/√(2n); 5 of them.
            assert conv.weight.std().item() == pytest.approx(expected, rel=5 / (2 * conv.weight.numel()) ** 0.5)


@pytest.mark.parametrize("batch_norm", [False, True])
def test_vgg_convolutions_start_with_biases_that_are_not_zero(batch_norm: bool) -> None:
    biases = [m.bias for m in VGG16(batch_norm, width=0.25).modules() if isinstance(m, nn.Conv2d)]
    assert all(bias is not None and 0.02 < bias.abs().mean() < 0.08 for bias in biases)


def test_mlp_is_its_formula() -> None:
    model = MLP([3, 4, 2], activation="tanh")
    inputs = torch.randn(5, 3)
    first, last = model.layers
    assert isinstance(first, nn.Linear)
    assert isinstance(last, nn.Linear)
    expected = torch.tanh(inputs @ first.weight.T + first.bias) @ last.weight.T + last.bias
    torch.testing.assert_close(model(inputs), expected)
    assert not any("bias" in name for name, _ in MLP([3, 4, 2], bias=False).named_parameters())


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
def test_every_activation_is_used(activation: str) -> None:
    model = MLP([3, 4, 2], activation=activation)
    torch.testing.assert_close(
        model(torch.ones(1, 3)), model.layers[1](ACTIVATIONS[activation]()(model.layers[0](torch.ones(1, 3)))), rtol=0, atol=0
    )


def test_the_tied_layer_is_one_parameter_used_twice() -> None:
    model = TiedMLP(3, 4, 2)
    calls = []
    model.shared.register_forward_hook(lambda module, inputs, output: calls.append(1))
    untied = MLP([3, 4, 4, 4, 2])
    untied.layers[0], untied.layers[1], untied.layers[2], untied.layers[3] = model.first, model.shared, model.shared, model.last
    inputs = torch.randn(5, 3)
    torch.testing.assert_close(model(inputs), untied(inputs), rtol=0, atol=0)
    assert len(calls) == 4
    assert parameters(model) == 16 + 20 + 10


def test_a_seed_fixes_the_weights_and_leaves_the_global_state_alone() -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first, second, third = (build("mlp", seed=seed, widths=(4, 3, 2)) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    weights = [next(m.parameters()) for m in (first, second, third)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    build("mlp", widths=(4, 3, 2))
    assert not torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("name", "overrides", "match"),
    [
        ("vgg19", {}, "Registered are"),
        ("mlp", {"width": 2}, "width"),
        ("mlp", {"widths": (3,)}, "two or more"),
        ("mlp", {"activation": "step"}, "Known are"),
        ("tied_mlp", {"hidden": 0}, "positive"),
        ("vgg16", {"image": 28}, "at least 32"),
        ("resnet18", {"width": 0.001}, "none left"),
    ],
)
def test_what_cannot_be_built_is_refused_with_a_reason(name: str, overrides: dict[str, Any], match: str) -> None:
    with pytest.raises(ModelError, match=match):
        build(name, **overrides)
