"""Models that real runs train: perceptrons, and a registry of every architecture with the image size it wants.

>>> sorted(MODELS)
['mlp', 'resnet18', 'tied_mlp', 'transformer', 'vgg16', 'vgg16_bn']
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from noetherflow.errors import ModelError
from noetherflow.numeric.convnets import VGG16, BasicBlock, ResNet18
from noetherflow.numeric.transformers import RowTransformer

__all__ = ["ACTIVATIONS", "MLP", "MODELS", "VGG16", "BasicBlock", "ModelSpec", "ResNet18", "RowTransformer", "TiedMLP", "build"]

ACTIVATIONS: Final[dict[str, Callable[[], nn.Module]]] = {
    "gelu": nn.GELU,
    "leaky_relu": nn.LeakyReLU,
    "linear": nn.Identity,
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "tanh": nn.Tanh,
}


class MLP(nn.Module):
    """Linear layers with one activation between them.

    Parameters
    ----------
    widths
        Width of the input, of every hidden layer, and of the output: two numbers or more.
    activation
        A key of `ACTIVATIONS`.
    bias
        Give every layer a bias.

    Raises
    ------
    ModelError
        The widths or the activation are not of that kind.

    Examples
    --------
    >>> model = MLP([784, 32, 10])
    >>> tuple(model(torch.zeros(2, 1, 28, 28)).shape), [name for name, _ in model.named_parameters()][:2]
    ((2, 10), ['layers.0.weight', 'layers.0.bias'])
    """

    def __init__(self, widths: Sequence[int], activation: str = "relu", bias: bool = True) -> None:
        super().__init__()
        if len(widths) < 2 or min(widths) < 1:
            raise ModelError(
                f"An MLP of widths {list(widths)} has no layer. Give two or more positive widths, input first.", widths=tuple(widths)
            )
        self.layers = nn.ModuleList(nn.Linear(i, o, bias=bias) for i, o in itertools.pairwise(widths))
        self.activation = _activation(activation)

    def forward(self, inputs: Tensor) -> Tensor:
        """Output, shape (n, widths[-1]), of inputs of shape (n, widths[0]) or of images with as many values."""
        hidden = _flat(inputs)
        for layer in self.layers[:-1]:
            hidden = self.activation(layer(hidden))
        output: Tensor = self.layers[-1](hidden)
        return output


class TiedMLP(nn.Module):
    """A perceptron whose two hidden square layers are one shared `nn.Linear`: one parameter with two places in the graph.

    Parameters
    ----------
    inputs, hidden, outputs
        Widths.
    activation
        A key of `ACTIVATIONS`.
    bias
        Give every layer a bias.

    Examples
    --------
    >>> model = TiedMLP(6, 4, 3)
    >>> sorted(name for name, _ in model.named_parameters())
    ['first.bias', 'first.weight', 'last.bias', 'last.weight', 'shared.bias', 'shared.weight']
    """

    def __init__(self, inputs: int, hidden: int, outputs: int, activation: str = "relu", bias: bool = True) -> None:
        super().__init__()
        if min(inputs, hidden, outputs) < 1:
            raise ModelError(
                f"A TiedMLP of widths {inputs}, {hidden}, {outputs} has an empty layer. Give three positive widths.",
                widths=(inputs, hidden, outputs),
            )
        self.first = nn.Linear(inputs, hidden, bias=bias)
        self.shared = nn.Linear(hidden, hidden, bias=bias)
        self.last = nn.Linear(hidden, outputs, bias=bias)
        self.activation = _activation(activation)

    def forward(self, inputs: Tensor) -> Tensor:
        """Output, shape (n, outputs), of inputs of shape (n, inputs) or of images with as many values."""
        hidden = self.activation(self.first(_flat(inputs)))
        for _ in range(2):
            hidden = self.activation(self.shared(hidden))
        output: Tensor = self.last(hidden)
        return output


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One entry of the registry.

    Parameters
    ----------
    builder
        Makes the module; keyword arguments override its defaults.
    image
        Height and width of the images it wants: the `size_px` of `ImageSet.batches`.
    channels
        Colour channels it expects unless overridden.
    """

    builder: Callable[..., nn.Module]
    image: int
    channels: int = 1


MODELS: Final[dict[str, ModelSpec]] = {
    "mlp": ModelSpec(functools.partial(MLP, widths=(784, 128, 64, 10)), image=28),
    "resnet18": ModelSpec(ResNet18, image=28),
    "tied_mlp": ModelSpec(functools.partial(TiedMLP, inputs=784, hidden=64, outputs=10), image=28),
    "transformer": ModelSpec(RowTransformer, image=28),
    "vgg16": ModelSpec(functools.partial(VGG16, batch_norm=False), image=32),
    "vgg16_bn": ModelSpec(functools.partial(VGG16, batch_norm=True), image=32),
}


def build(name: str, seed: int | None = None, **overrides: Any) -> nn.Module:
    """Build a registered model.

    Parameters
    ----------
    name
        A key of `MODELS`.
    seed
        Seed of the initial weights, which are drawn on the CPU. The global random state is then left as it was; None draws from that state.
    **overrides
        Arguments of the model's class.

    Returns
    -------
    nn.Module
        In training mode.

    Raises
    ------
    ModelError
        The name is unknown, or the class has no such argument.

    Examples
    --------
    >>> model = build("mlp", seed=0, widths=(784, 16, 10))
    >>> sum(p.numel() for p in model.parameters())
    12730
    """
    if name not in MODELS:
        raise ModelError(f"No model is called {name!r}. Registered are: {', '.join(sorted(MODELS))}.", name=name)
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.default_generator.manual_seed(seed)
        try:
            return MODELS[name].builder(**overrides)
        except TypeError as error:
            raise ModelError(f"The model {name!r} cannot be built with {overrides}: {error}.", name=name, overrides=overrides) from error


def _activation(name: str) -> nn.Module:
    if name not in ACTIVATIONS:
        raise ModelError(f"No activation is called {name!r}. Known are: {', '.join(ACTIVATIONS)}.", name=name)
    return ACTIVATIONS[name]()


def _flat(inputs: Tensor) -> Tensor:
    """Flatten images to vectors; vectors pass untouched, so that a trace of them shows no reshaping."""
    return inputs.flatten(1) if inputs.dim() > 2 else inputs
