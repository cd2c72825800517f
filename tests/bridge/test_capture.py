"""The parts of a capture: rows of statistics, their places among charges, clipping, the noise of what cancels, Gram matrices of heads."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from noetherflow.bridge.bias_noise import BiasNoise, users
from noetherflow.bridge.clipping import Clipping, references
from noetherflow.bridge.kernels_heads import block_gram, reduce_all
from noetherflow.bridge.kernels_torch import Request, reduce
from noetherflow.bridge.norm_layout import Layout
from noetherflow.bridge.norm_modules import Normalization, fitted, normalized
from noetherflow.bridge.norm_noise import norm_noise
from noetherflow.bridge.placing import Placing
from noetherflow.errors import RunError
from noetherflow.symbolic.actions import Index, Patch

EPS = 1e-2
X = torch.randn(3, 4, 5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.5

LAYOUTS: dict[str, tuple[Layout, Tensor]] = {
    "batch_norm": (Layout("batch_norm", 4), F.batch_norm(X, None, None, training=True, eps=EPS)),
    "layer_norm": (Layout("layer_norm", 4), F.layer_norm(X, (2,), eps=EPS)),
    "layer_norm of two axes": (Layout("layer_norm", 4, dims=2), F.layer_norm(X, (5, 2), eps=EPS)),
    "layer_norm, channels first": (
        Layout("layer_norm", 4, channels_first=True),
        F.layer_norm(X.movedim(1, -1), (4,), eps=EPS).movedim(-1, 1),
    ),
    "rms_norm": (Layout("rms_norm", 4), F.rms_norm(X, (2,), eps=EPS)),
    "group_norm": (Layout("group_norm", 4, groups=2), F.group_norm(X, 2, eps=EPS)),
    "instance_norm": (Layout("instance_norm", 4), F.instance_norm(X, eps=EPS)),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_rows_are_normalised_as_torch_normalises(name: str) -> None:
    layout, expected = LAYOUTS[name]
    values, variance = normalized(layout, X, EPS, torch.float64)
    torch.testing.assert_close(values, layout.rows(expected), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(variance, layout.rows(X).var(-1, unbiased=False) if layout.centred else layout.rows(X).square().mean(-1))


@pytest.mark.parametrize("name", LAYOUTS)
def test_gains_lie_along_the_channels_that_rows_are_made_of(name: str) -> None:
    layout, _ = LAYOUTS[name]
    count = layout.channel_count(X)
    gain = torch.arange(1.0, count + 1, dtype=torch.float64)
    channels = layout.channels(layout.rows(X), count)
    torch.testing.assert_close(layout.channels(layout.rows(layout.gained(X, gain)), count), channels * gain.unsqueeze(1))
    torch.testing.assert_close(layout.channels(layout.rows(layout.shifted_back(X, gain)), count), channels - gain.unsqueeze(1))
    assert layout.per_row(torch.ones(count, dtype=torch.float64), layout.rows(X)).shape == layout.rows(X).shape[:-1]


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_module_is_taken_for_what_its_output_says(name: str) -> None:
    layout, expected = LAYOUTS[name]
    traced = Layout(layout.operation, layout.rank, layout.dims, layout.groups)
    norm = Normalization(name, "", traced, EPS, None, ())
    gain = torch.linspace(0.5, 2, layout.channel_count(X), dtype=torch.float64)
    found = fitted(norm, X, layout.gained(expected, gain), None)
    assert found is not None
    assert found.layout == layout
    assert found.dtype is torch.float64
    torch.testing.assert_close(found.gain, gain)
    rounded = fitted(norm, X, layout.gained(expected.float(), gain), None)
    assert rounded is not None
    assert rounded.dtype is torch.float32
    shifted = layout.gained(expected, gain) + 0.1
    assert fitted(norm, X, shifted, None) is None
    assert fitted(norm, X, shifted, torch.full_like(gain, 0.1)) is not None
    assert fitted(norm, X, torch.tanh(expected), None) is None
    assert fitted(norm, X, expected[:2], None) is None
    other_eps = Normalization(name, "", traced, 10 * EPS, None, ())
    assert (fitted(other_eps, X, expected, None) is None) == (name != "batch_norm")  # one statistic a channel: eps is part of the gain


@pytest.mark.parametrize("name", LAYOUTS)
def test_noise_is_that_of_the_gradient_that_autograd_finds(name: str) -> None:
    """The sizes of single elements, from the formula for ∂L/∂x, against autograd's own ∂L/∂x."""
    layout, _ = LAYOUTS[name]
    slopes = torch.randn(X.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x = X.clone().requires_grad_()
    values, variance = normalized(layout, x, EPS, torch.float64)
    (values * layout.rows(slopes)).sum().backward()
    p = layout.rows(slopes) * (variance.detach() + EPS).rsqrt().unsqueeze(-1)
    noise = norm_noise(layout, X, slopes, EPS)
    assert x.grad is not None
    torch.testing.assert_close(noise.shift_elements, p.square().sum(-1) + layout.rows(x.grad).square().sum(-1), rtol=1e-3, atol=1e-6)


# --- places


def test_statistics_are_summed_onto_the_indices_of_a_family() -> None:
    statistics = torch.arange(24.0).reshape(4, 6)
    groups = Placing("norm", Patch((0, 0), (Index(0, 4, 1, 0), Index(1, 6, 1, 1))), (1,), (4, 6))
    torch.testing.assert_close(groups.summed(statistics), statistics.sum(0))
    torch.testing.assert_close(groups.summed(statistics[:2]), statistics[:2].sum(0))
    tail = Placing("norm", Patch((0, 2), (Index(0, 4, 1, 0), Index(1, 4, 1, 1))), (), (4, 6))
    torch.testing.assert_close(tail.summed(statistics), statistics[:, 2:].sum().reshape(1))
    pairs = Placing("norm", Patch((0, 0), (Index(0, 4, 1, 0), Index(1, 3, 2, 1), Index(1, 2, 1, 2))), (2, 1), (4, 6))
    torch.testing.assert_close(pairs.summed(statistics), statistics.sum(0).reshape(3, 2).T.reshape(-1))
    single = Placing("norm", Patch((0, 0), (Index(1, 6, 1, 1),)), (), (1, 6))
    torch.testing.assert_close(single.summed(statistics), statistics.sum().reshape(1))


@pytest.mark.parametrize("sizes", [(4, 5), (4, 8), (4,)], ids=str)
def test_statistics_of_another_size_along_a_family_are_refused(sizes: tuple[int, ...]) -> None:
    groups = Placing("norm", Patch((0, 0), (Index(0, 4, 1, 0), Index(1, 6, 1, 1))), (1,), (4, 6))
    part = Placing("norm", Patch((0, 2), (Index(0, 4, 1, 0), Index(1, 4, 1, 1))), (), (4, 6))
    for placing in (groups, part):
        with pytest.raises(RunError, match=r"'norm' have shape .* traced with \(4, 6\)"):
            placing.summed(torch.ones(sizes))


# --- what multiplies gradients


def test_clipping_is_read_off_what_accumulated() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)).double()
    names = references(model, ["1.bias"])
    assert names == ("0.bias", "1.weight", "0.weight")
    clipping = Clipping(model, names)
    clipping.attach()
    for _ in range(2):
        model(torch.ones(5, 4).double()).square().sum().backward()
    assert clipping.factor(names) == pytest.approx(1, rel=1e-14)
    before = nn.utils.clip_grad_norm_(model.parameters(), 0.5)
    assert clipping.factor(names) == pytest.approx(float(0.5 / (before + 1e-6)), rel=1e-12)
    clipping.detach()
    clipping.clear()
    assert clipping.factor(names) == 1.0
    assert not any(p._post_accumulate_grad_hooks for p in model.parameters())


def test_a_parameter_without_gradient_does_not_hide_the_factor() -> None:
    model = nn.ParameterDict({"dead": torch.zeros(1), "alive": torch.ones(3)})
    clipping = Clipping(model, ("dead", "alive"))
    clipping.attach()
    (model["dead"] * 0 + model["alive"].sum()).sum().backward()
    for parameter in model.values():
        parameter.grad.mul_(0.25)
    assert clipping.factor(("dead", "alive")) == 0.25
    assert clipping.factor(("dead",)) == 1.0


# --- biases that nothing feels


def test_a_bias_is_found_where_it_is_used_in_pieces() -> None:
    bias = nn.Parameter(torch.zeros(6))
    first, second = bias.split([2, 4])
    x = torch.ones(3, 2, requires_grad=True)
    out = (x + first).sum() * (torch.ones(3, 4) + second.view(4)).sum()
    found = sorted((start, node.name()) for node, start in users(out.grad_fn, bias))
    assert found == [(0, "AddBackward0"), (2, "AddBackward0")]
    assert list(users(out.grad_fn, nn.Parameter(torch.zeros(6)))) == []


def test_squares_of_a_bias_are_those_of_the_gradients_that_cancel_in_it() -> None:
    layer = nn.Linear(4, 3).double()
    noise = BiasNoise(nn.ModuleDict({"layer": layer}), {"layer": ["layer.bias"]})
    noise.attach()
    slopes = torch.tensor([[1.0, 2.0, 3.0], [-1.0, -2.0, -3.0]]).double()
    (layer(torch.ones(2, 4).double()) * slopes).sum().backward()
    assert layer.bias.grad is not None
    assert not layer.bias.grad.any()
    found = noise.squares("layer.bias")
    assert found is not None
    torch.testing.assert_close(found, torch.tensor([[4.0, 16.0, 36.0], [2.0, 8.0, 18.0]]).double())
    noise.clear()
    noise.measuring = False
    (layer(torch.ones(2, 4).double()) * 2 * slopes).sum().backward()
    torch.testing.assert_close(noise.squares("layer.bias"), 4 * found)
    noise.detach()
    assert not layer._forward_hooks


# --- one Gram matrix for every head


@pytest.mark.parametrize("keep", [(0, 2), (2, 0), (1, 2, 0)], ids=str)
def test_gram_matrices_of_blocks_are_those_of_each_block(keep: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("noetherflow.bridge.kernels_heads.LARGEST", 7)
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(3, 4, 5, 2, generator=generator, dtype=torch.float64) for name in ("a", "b")}
    combinations = {"u": {"a": 2.0, "b": -1.0}}
    wanted = [
        Request("gram", "a", "a", keep),
        Request("gram", "u", "b", keep),
        Request("pairing", "a", "b", (0,)),
        Request("gram", "a", "b", (1,)),
    ]
    found = reduce_all(reduce, tensors, combinations, wanted)
    a, b = (t.movedim(keep, tuple(range(len(keep)))).flatten(len(keep)) for t in tensors.values())
    torch.testing.assert_close(found[0], a @ a.mT)
    torch.testing.assert_close(found[1], (2 * a - b) @ b.mT)
    torch.testing.assert_close(found[2], (tensors["a"] * tensors["b"]).sum((1, 2, 3)))
    torch.testing.assert_close(found[3], torch.einsum("ijkl,inkl->jn", tensors["a"], tensors["b"]))
    assert not torch.allclose(block_gram(tensors, combinations, wanted[1]), found[1].mT)
