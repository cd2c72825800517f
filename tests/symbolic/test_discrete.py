"""Permutations and signs: how many there are, that they are symmetries, and that nothing close to them is."""

from __future__ import annotations

import copy
from dataclasses import replace
from math import factorial, log
from random import Random
from typing import Any

import pytest
import torch
from support.block_cases import BLOCK_CASES
from support.cases import CASES
from support.invariance import Probe
from torch import nn
from torch.nn import functional as F

import noetherflow as nf
from noetherflow.errors import GraphError
from noetherflow.symbolic.discrete import DiscreteSymmetries, GroupElement
from noetherflow.symbolic.discrete_factors import Factor, acted

EXACT = 1e-10
BY_NAME = {case.name: case for case in (*CASES, *BLOCK_CASES)}

# Orders by hand, from what acts on each class: n! for permutations, 2 for every sign or reflection.
ORDERS = {
    "relu_mlp": factorial(5) * factorial(4),
    "tanh_mlp": factorial(5) * 2**5,
    "frozen_middle": 1,
    "linear_pair": 2,  # GL(n) has two components
    "deep_linear": 4,
    "swiglu": factorial(3) * 2**3,
    "bilinear_product": factorial(3) * 4**3,
    "grouped_conv": 2**2 * 2**4,  # two channels in each of two groups, whose order the pixels in front fix
    "conv_bn_relu_conv": factorial(3) * 2**3,  # a filter and the gain behind its normalisation
    "residual_relu": factorial(4) * factorial(5),
    "attention_fused": factorial(2) * 4**2,  # heads, with a reflection of queries and keys and one of values in each
    "attention_grouped": factorial(2) * factorial(2) ** 2 * 4**2,
    "attention_rotary": factorial(2) * 2**2,  # the signs of RoPE's pairs are rotations
    "llama": factorial(2) * factorial(3) * 2 * 2 * 2**12 * 2**3,
    "experts": factorial(3) * factorial(2) ** 3,
    "routed_top_1": factorial(3) * factorial(2) ** 3,
    "group_norm": factorial(2) * factorial(3) ** 2 * 2**2,
    "lstm": factorial(2) * 2**2 * 2,  # the last for the linear space between the embedding and the layer
}
# All kinds of factors, in networks that depend on all of their parameters.
SOUND = (
    *("relu_mlp", "tanh_mlp", "conv_bn_relu_conv", "grouped_conv", "downsample_block", "swiglu", "deep_linear"),
    *("attention_grouped", "attention_latent", "attention_written_out", "attention_rotary_normed"),
    *("llama_tied", "gpt2", "experts", "routed_top_2_gated_with_biases", "weight_norm_of_rows"),
)


def probed(name: str) -> tuple[Probe, DiscreteSymmetries]:
    case = BY_NAME[name]
    torch.manual_seed(0)
    model, inputs = case.build().double(), case.inputs()
    probe = Probe(model, inputs if case.tokens else inputs.double(), case.loss)
    return probe, nf.discrete_symmetries(nf.trace(model, probe.inputs, loss=case.loss))


def change(probe: Probe, before: dict[str, Any], after: dict[str, Any]) -> float:
    a, b = probe.terms(before), probe.terms(after)
    return float((a.sum() - b.sum()).abs() / a.abs().sum())


@pytest.mark.parametrize("name", ORDERS)
def test_orders_are_those_counted_by_hand(name: str) -> None:
    _, found = probed(name)
    assert found.order == ORDERS[name]
    assert found.log_order == pytest.approx(log(ORDERS[name]))


@pytest.mark.parametrize("name", SOUND)
def test_random_elements_leave_the_function_unchanged_and_parts_of_them_do_not(name: str) -> None:
    probe, found = probed(name)
    point = probe.point(1)
    for seed in range(3):
        assert change(probe, point, found.transform(point, found.random(seed))) < EXACT
    for factor in found:
        values = _not_the_identity(factor)
        assert change(probe, point, acted(factor, values, point)) < EXACT
        names = {p.parameter for p in factor.actions}
        halves = [replace(factor, actions=tuple(p for p in factor.actions if p.parameter != left)) for left in names]
        assert max(change(probe, point, acted(half, values, point)) for half in halves) > 1e-6, factor


def _not_the_identity(factor: Factor) -> tuple[int, ...]:
    return next(values for values in map(factor.random, map(Random, range(100))) if values != factor.identity)


def test_a_sign_does_not_pass_a_relu() -> None:
    tanh, relu = (nf.models.MLP([5, 6, 3], kind).double() for kind in ("tanh", "relu"))
    inputs = torch.randn(7, 5, dtype=torch.float64)
    graphs = [nf.trace(model, inputs) for model in (tanh, relu)]
    signed, plain = map(nf.discrete_symmetries, graphs)
    assert [f.kind for f in signed] == ["permutation", "sign"]
    assert [f.kind for f in plain] == ["permutation"]
    point = {n: p.detach() for n, p in relu.named_parameters()}
    moved = signed.transform(point, GroupElement((signed[0].identity, (0, 1, 0, 0, 0, 0))))
    assert change(Probe(relu, inputs), point, moved) > 1e-3


class Told(nn.Module):
    """Units of one layer, something that may tell them apart, and a reader."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.write, self.read = how, nn.Linear(4, 6), nn.Linear(6, 3)
        self.slope = nn.PReLU(6)
        self.register_buffer("mask", torch.arange(6) % 2 == 0)
        self.register_buffer("scale", torch.arange(1.0, 7.0).double())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Shape (batch, 3)."""
        h = self.write(x)
        if self.how == "mask":
            h = h.masked_fill(self.mask, 0.0)
        if self.how == "scale":
            h = h * self.scale
        if self.how == "pool":
            h = F.avg_pool1d(h[:, None], 3, 1, 1)[:, 0]
        if self.how == "slope":
            return self.read(self.slope(h))
        return self.read(h.roll(1, -1).relu() if self.how == "roll" else h.cumsum(-1) if self.how == "cumsum" else h.relu())


@pytest.mark.parametrize(
    ("how", "order"), [("none", 720), ("slope", 720), ("cumsum", 2), *((how, 1) for how in ("mask", "scale", "pool", "roll"))]
)
def test_what_tells_units_apart_lets_no_permutation_through(how: str, order: int) -> None:
    model, inputs = Told(how).double(), torch.randn(9, 4, dtype=torch.float64)
    nn.init.normal_(model.slope.weight)
    found = nf.discrete_symmetries(nf.trace(model, inputs))
    assert found.order == order
    point = {n: p.detach() for n, p in model.named_parameters()}
    assert change(Probe(model, inputs), point, found.transform(point, found.random(0))) < EXACT


@pytest.mark.parametrize("ending", [nn.Softmax(-1), nn.LogSoftmax(-1)])
def test_outputs_and_classes_are_told_apart(ending: nn.Module) -> None:
    model = nn.Sequential(nn.Linear(4, 3), ending)
    assert nf.discrete_symmetries(nf.trace(model, torch.randn(5, 4))).order == 1
    assert nf.discrete_symmetries(nf.trace(nn.Linear(4, 3), torch.randn(5, 4), loss="cross_entropy")).order == 1


def test_running_statistics_go_along() -> None:
    torch.manual_seed(1)
    model = nf.models.build("resnet18", width=0.125).double()
    images = torch.randn(6, 1, 28, 28, dtype=torch.float64)
    for _ in range(3):
        model(images)
    found = nf.discrete_symmetries(nf.trace(model, images))
    other, forgetful = copy.deepcopy(model).eval(), copy.deepcopy(model).eval()
    element = found.random(0)
    point = {n: p.detach() for n, p in model.named_parameters()}
    other.load_state_dict(found.transform(point | dict(model.named_buffers()), element))
    forgetful.load_state_dict(found.transform(point, element), strict=False)
    want = model.eval()(images).detach()
    assert float((other(images).detach() - want).abs().max() / want.abs().max()) < EXACT
    assert float((forgetful(images).detach() - want).abs().max() / want.abs().max()) > 1e-3


def test_orders_at_real_size() -> None:
    with torch.device("meta"):
        mlp, images = nf.models.MLP([784, 512, 256, 10]), torch.empty(2, 784)
        resnet, pixels = nf.models.build("resnet18"), torch.empty(2, 1, 28, 28)
    assert nf.discrete_symmetries(nf.trace(mlp, images)).order == factorial(512) * factorial(256)
    # One class per stage for its stream and one inside each of two blocks; a sign for every channel that a convolution makes, which the
    # gain of its normalisation takes back.
    widths = (64, 128, 256, 512)
    channels = 64 + sum(4 * n for n in widths) + sum(widths[1:])
    permutations = [factorial(n) ** 3 for n in widths]
    order = nf.discrete_symmetries(nf.trace(resnet, pixels)).order
    assert order == permutations[0] * permutations[1] * permutations[2] * permutations[3] * 2**channels


def test_orders_of_transformers_at_real_width() -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed (the extra 'models' has it)")
    tokens, layers = torch.zeros(1, 8, dtype=torch.long, device="meta"), 1
    with torch.device("meta"):
        gpt2 = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_layer=layers, use_cache=False))
        sizes = {"hidden_size": 512, "intermediate_size": 1024, "num_attention_heads": 16, "num_key_value_heads": 4, "vocab_size": 99}
        llama = transformers.LlamaForCausalLM(transformers.LlamaConfig(num_hidden_layers=layers, use_cache=False, **sizes))
    # Tied embeddings behind a norm with gains: the stream's rotations are gone, its permutations are left, and one sign for all of it.
    block = factorial(12) * 4**12 * factorial(3072) * 2 ** (2 * 768)
    assert nf.discrete_symmetries(nf.trace(gpt2, tokens)).order == factorial(768) * 2 * block**layers
    block = factorial(4) * factorial(4) ** 4 * 2**4 * factorial(1024) * 2**1024 * 2 ** (2 * 512)
    assert nf.discrete_symmetries(nf.trace(llama, tokens)).order == 2 * 2**512 * block**layers


def test_an_element_of_another_group_and_symbolic_sizes_are_refused() -> None:
    _, found = probed("relu_mlp")
    _, other = probed("tanh_mlp")
    with pytest.raises(GraphError, match="another group"):
        found.transform({}, other.random(0))
    with pytest.raises(GraphError, match="not among the parameters"):
        found.transform({}, found.random(0))
    assert found.random(3) == found.random(3) != found.random(4)
