"""The two convolutional networks of the literature's experiments, with torchvision's structure and names, at any width.

VGG-16 (simonyan2015very, configuration D) with and without BatchNorm is the test bed of kunin2021neural; ResNet-18 (he2016deep) that of
marcotte2025transformative. `width` scales every hidden channel count, so that the same structure also runs where memory is small.
"""

from collections.abc import Iterator
from typing import Final

import torch
from torch import Tensor, nn

from noetherflow.errors import ModelError

# Output channels of each convolution at width 1; a pool halves the image.
VGG16_STAGES: Final = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
RESNET18_STAGES: Final = (64, 128, 256, 512)
# Standard deviation of VGG's convolution biases at the start; torchvision sets them to zero. In front of BatchNorm their gradient vanishes:
# a bias that starts at zero stays at rounding level, and its law (it can only decay) would be a statement about rounding alone.
VGG_BIAS_DEVIATION: Final = 0.05


class VGG16(nn.Module):
    """VGG-16, configuration D: thirteen 3 x 3 convolutions with biases in five stages, each ended by a max-pool, then three linear layers.

    Parameters
    ----------
    batch_norm
        Put a BatchNorm between each convolution and its ReLU.
    classes, channels
        Width of the output and channels of the input.
    width
        Factor on every number of hidden channels.
    hidden
        Width of the two hidden linear layers (4096 in the paper).
    dropout
        Probability of dropping a unit of a hidden linear layer.
    image
        Height and width of the inputs, at least 32. What the five pools leave is averaged to one pixel.

    Examples
    --------
    >>> model = VGG16(batch_norm=True, width=0.125, hidden=16)
    >>> tuple(model(torch.zeros(2, 1, 32, 32)).shape)
    (2, 10)
    """

    def __init__(
        self,
        batch_norm: bool,
        classes: int = 10,
        channels: int = 1,
        width: float = 1.0,
        hidden: int = 512,
        dropout: float = 0.5,
        image: int = 32,
    ) -> None:
        super().__init__()
        if image < 32:
            raise ModelError(f"VGG-16 was asked for {image} pixels; its five pools need at least 32. Pad the images to 32.", image=image)
        last = _scaled(VGG16_STAGES[-1][-1], width)
        self.features = nn.Sequential(*_vgg_layers(channels, width, batch_norm))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(
            nn.Linear(last, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(hidden, hidden),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(hidden, classes),
        )
        _draw_convolutions(self)
        _draw_hidden_linear(self.classifier)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits, shape (n, classes), of images of shape (n, channels, image, image)."""
        logits: Tensor = self.classifier(torch.flatten(self.avgpool(self.features(inputs)), 1))
        return logits


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions around which the input is carried; `downsample` carries it where the shape changes."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.downsample: nn.Module | None = None
        if stride != 1 or channels_in != channels_out:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride, bias=False),
                nn.BatchNorm2d(channels_out),
            )

    def forward(self, inputs: Tensor) -> Tensor:
        """Output of shape (n, channels_out, height / stride, width / stride)."""
        hidden = self.relu(self.bn1(self.conv1(inputs)))
        hidden = self.bn2(self.conv2(hidden))
        hidden += inputs if self.downsample is None else self.downsample(inputs)
        output: Tensor = self.relu(hidden)
        return output


class ResNet18(nn.Module):
    """ResNet-18 as torchvision builds it: a stem of stride 4, four stages of two `BasicBlock` each, an average, a linear layer.

    Parameters
    ----------
    classes, channels
        Width of the output and channels of the input.
    width
        Factor on every number of hidden channels.

    Examples
    --------
    >>> model = ResNet18(width=0.125)
    >>> tuple(model(torch.zeros(2, 1, 28, 28)).shape), list(dict(model.layer2[0].named_children()))[-1]
    ((2, 10), 'downsample')
    """

    def __init__(self, classes: int = 10, channels: int = 1, width: float = 1.0) -> None:
        super().__init__()
        first, second, third, fourth = (_scaled(c, width) for c in RESNET18_STAGES)
        self.conv1 = nn.Conv2d(channels, first, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(first)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = _resnet_stage(first, first, stride=1)
        self.layer2 = _resnet_stage(first, second, stride=2)
        self.layer3 = _resnet_stage(second, third, stride=2)
        self.layer4 = _resnet_stage(third, fourth, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(fourth, classes)
        _draw_convolutions(self)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits, shape (n, classes), of images of shape (n, channels, height, width)."""
        hidden = self.maxpool(self.relu(self.bn1(self.conv1(inputs))))
        hidden = self.layer4(self.layer3(self.layer2(self.layer1(hidden))))
        logits: Tensor = self.fc(torch.flatten(self.avgpool(hidden), 1))
        return logits


def _scaled(count: int, width: float) -> int:
    scaled = round(count * width)
    if scaled < 1:
        raise ModelError(
            f"A layer of {count} channels scaled by width {width} has none left. Give a width of {1 / count} or more.", width=width
        )
    return scaled


def _vgg_layers(channels: int, width: float, batch_norm: bool) -> Iterator[nn.Module]:
    for stage in VGG16_STAGES:
        for count in stage:
            out = _scaled(count, width)
            yield nn.Conv2d(channels, out, 3, padding=1)
            if batch_norm:
                yield nn.BatchNorm2d(out)
            yield nn.ReLU(inplace=True)
            channels = out
        yield nn.MaxPool2d(2, stride=2)


def _resnet_stage(channels_in: int, channels_out: int, stride: int) -> nn.Sequential:
    return nn.Sequential(BasicBlock(channels_in, channels_out, stride), BasicBlock(channels_out, channels_out, 1))


def _draw_convolutions(model: nn.Module) -> None:
    """Draw convolutions as torchvision does: normal, of the variance that keeps gradients' size through a ReLU (he2015delving, fan_out)."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.normal_(module.bias, std=VGG_BIAS_DEVIATION)


def _draw_hidden_linear(classifier: nn.Sequential) -> None:
    """Draw all linear layers but the last, normal with the variance that keeps signals' size through a ReLU (he2015delving, fan_in).

    torchvision's deviation of 0.01 is meant for 4096 units. With a few hundred it shrinks signals and gradients so much that VGG-16 without
    BatchNorm does not begin to learn. The output layer keeps torch's own start.
    """
    *hidden, _ = (layer for layer in classifier if isinstance(layer, nn.Linear))
    for layer in hidden:
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.zeros_(layer.bias)
