"""Normalisations and attention in real runs: the currents that eps lets through, what rounding leaves, and every way to get them wrong."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from support import zoo
from support.cases import Block
from support.nets import watched
from torch import Tensor, nn
from torch.nn import functional as F

import noetherflow as nf
from noetherflow.bridge import capture
from noetherflow.numeric import models
from noetherflow.numeric.report import Report

EPS = 1e-2
SGD = torch.optim.SGD

OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "plain": lambda m: SGD(m.parameters(), lr=0.05),
    "momentum and decay": lambda m: SGD(m.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01),
    "nesterov": lambda m: SGD(m.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.01),
}


class LlamaLike(nn.Module):
    """RMSNorm as models write it: a chain of operations, the epsilon under a name of its own."""

    def __init__(self, width: int, eps: float = EPS) -> None:
        super().__init__()
        self.weight, self.variance_epsilon = nn.Parameter(torch.ones(width)), eps

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))


class ChannelsFirst(nn.LayerNorm):
    """LayerNorm over axis 1 of images, as convolutional networks use it."""

    def forward(self, input: Tensor) -> Tensor:
        return F.layer_norm(input.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps).permute(0, 3, 1, 2)


class Bounded(nn.Module):
    """A normalisation alone, until its output is bounded behind it."""

    bounded = False

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        y = F.layer_norm(x, (self.width,), eps=EPS)
        return torch.tanh(y) if self.bounded else y


def perceptron(*norms: nn.Module) -> nn.Sequential:
    widths = [8] * (len(norms) + 1)
    layers = [layer for norm, i, o in zip(norms, [5, *widths], widths, strict=False) for layer in (nn.Linear(i, o), norm, nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(8, 3))


def images(*norms: nn.Module) -> nn.Sequential:
    layers = [layer for norm, i in zip(norms, (1, 4, 4), strict=False) for layer in (nn.Conv2d(i, 4, 3), norm, nn.ReLU(inplace=True))]
    left = 8 - 2 * len(norms)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * left**2, 3))


def shared() -> nn.Module:
    """One norm at two places, under two names."""
    norm = nn.LayerNorm(8, eps=EPS)
    return Block(
        lambda s, x: s.last(s.again(s.inner(F.relu(s.norm(s.first(x)))))),
        first=nn.Linear(5, 8),
        norm=norm,
        inner=nn.Linear(8, 8),
        again=norm,
        last=nn.Linear(8, 3),
    )


def attention(heads: int, groups: int, width: int, x: Tensor, *layers: nn.Module) -> Tensor:
    query, key, value, project = layers
    parts = [layer(x).unflatten(2, (n, width // heads)).transpose(1, 2) for layer, n in ((query, heads), (key, groups), (value, groups))]
    return project(F.scaled_dot_product_attention(*parts, is_causal=True, enable_gqa=groups < heads).transpose(1, 2).flatten(2))


def transformer(norm: Callable[..., nn.Module] = nn.LayerNorm, groups: int = 2, eps: float = EPS) -> nn.Module:
    """One pre-norm block: heads (or groups of them), a perceptron, positions, biases everywhere."""
    width, heads = 8, 2
    narrow = groups * width // heads

    def forward(s: Block, x: Tensor) -> Tensor:
        x = s.embed(x) + s.positions
        x = x + attention(heads, groups, width, s.norm1(x), s.query, s.key, s.value, s.project)
        x = x + s.narrow(F.relu(s.widen(s.norm2(x))))
        return s.head(s.norm(x).mean(1))

    return Block(
        forward,
        embed=nn.Linear(5, width),
        positions=nn.Parameter(0.1 * torch.randn(6, width)),
        norm1=norm(width, eps=eps),
        query=nn.Linear(width, width),
        key=nn.Linear(width, narrow),
        value=nn.Linear(width, narrow),
        project=nn.Linear(width, width),
        norm2=norm(width, eps=eps),
        widen=nn.Linear(width, 12),
        narrow=nn.Linear(12, width),
        norm=norm(width, eps=eps),
        head=nn.Linear(width, 3),
    )


def encoder() -> nn.Module:
    """torch's own block; its key bias starts at zero, so nothing but the sizes behind it can tell how far rounding takes it."""
    layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.1, batch_first=True, norm_first=True, layer_norm_eps=EPS)
    return Block(
        lambda s, x: s.head(s.norm(s.layer(s.embed(x))).mean(1)),
        embed=nn.Linear(5, 8),
        layer=layer,
        norm=nn.LayerNorm(8),
        head=nn.Linear(8, 3),
    )


def cross_attention() -> nn.Module:
    """Keys and values of one tensor, queries of another: the packed bias is used in pieces."""

    def forward(s: Block, x: Tensor) -> Tensor:
        x = s.embed(x)
        context = x[:, :3].contiguous()
        return s.head(s.norm(x + s.attention(x, context, context, need_weights=False)[0]).mean(1))

    parts = {"embed": nn.Linear(5, 8), "norm": nn.LayerNorm(8, eps=EPS), "head": nn.Linear(8, 3)}
    return Block(forward, attention=nn.MultiheadAttention(8, 2, batch_first=True), **parts)


VECTORS, IMAGES, ROWS = (16, 5), (6, 1, 8, 8), (4, 6, 5)
NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "LayerNorm": (lambda: perceptron(nn.LayerNorm(8, eps=EPS), nn.LayerNorm(8, eps=EPS, elementwise_affine=False)), VECTORS),
    "RMSNorm": (lambda: perceptron(nn.RMSNorm(8, eps=EPS), nn.RMSNorm(8, eps=EPS, elementwise_affine=False)), VECTORS),
    "GroupNorm": (lambda: images(nn.GroupNorm(2, 4, eps=EPS), nn.GroupNorm(1, 4, eps=EPS, affine=False)), IMAGES),
    "InstanceNorm": (lambda: images(nn.InstanceNorm2d(4, eps=EPS, affine=True), nn.InstanceNorm2d(4, eps=EPS)), IMAGES),
    "BatchNorm without gain": (lambda: images(nn.BatchNorm2d(4, eps=EPS, affine=False)), IMAGES),
    "a chain in a module": (lambda: perceptron(LlamaLike(8), LlamaLike(8)), VECTORS),
    "channels first": (lambda: images(ChannelsFirst(4, eps=EPS)), IMAGES),
    "shared": (shared, VECTORS),
    "transformer": (transformer, ROWS),
    "transformer with RMSNorm, grouped heads": (partial(transformer, nn.RMSNorm, 1), ROWS),
    "encoder": (encoder, ROWS),
    "cross attention": (cross_attention, ROWS),
}


def moved_by_eps(report: Report) -> dict[str, float]:
    """Family -> how much its current moved it, in bounds."""
    return {f.name: f.budget["explicit_breaking"] / f.bound for f in report.families if f.budget.get("explicit_breaking", 0.0) > 0}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", NETS)
def test_every_law_holds_to_rounding_while_eps_moves_the_scales(name: str, optimizer: str) -> None:
    build, shape = NETS[name]
    report = watched(build, OPTIMIZERS[optimizer], shape, scheduled=True, clip=0.5, accumulate=2).report()
    assert report.holds, report.sentence()
    assert all(f.verdict == "exact" for f in report.families)
    assert all(f.residual <= 1e-11 * f.scale or f.residual <= 1e-15 for f in report.families)
    moved = moved_by_eps(report)
    assert moved
    assert min(moved.values()) > 1e3


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", NETS)
def test_every_dtype_is_within_its_bound_and_the_bound_is_not_loose(name: str, dtype: torch.dtype) -> None:
    build, shape = NETS[name]
    report = watched(build, OPTIMIZERS["momentum and decay"], shape, 40, dtype=dtype, clip=0.5).report()
    assert report.holds, report.sentence()
    moving = [f for f in report.families if f.residual > 0]
    assert moving
    assert all(f.ratio >= 1e-3 for f in moving), "the bound is more than a thousand times the residual"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen3", "t5"])
def test_models_of_transformers_hold_to_rounding(name: str, dtype: torch.dtype) -> None:
    """Their RMSNorm casts to float32 inside, in a float64 model too: the laws it absorbs, and no others, hold to that."""
    torch.manual_seed(0)
    model, inputs, options = zoo.build(name)
    logits = Block(lambda s, *tokens: s.inner(*tokens, **options).logits, inner=model).to(dtype)
    optimizer = OPTIMIZERS["momentum and decay"](logits)
    with nf.watch(logits, optimizer, "cross_entropy", inputs) as run:
        for _ in range(12):
            optimizer.zero_grad()
            output = logits(torch.randint(0, zoo.VOCABULARY, inputs[0].shape))
            F.cross_entropy(output.flatten(0, 1), torch.randint(0, zoo.VOCABULARY, output.shape[:2]).flatten()).backward()
            nn.utils.clip_grad_norm_(logits.parameters(), 0.5)
            optimizer.step()
    report = run.report()
    assert report.holds, report.sentence()
    assert moved_by_eps(report)
    assert all(f.ratio >= 1e-3 for f in report.families if f.residual > 0)
    if dtype is torch.float64:
        coarse = {f.name for f in report.families if f.kind != "null" and f.bound > 1e-11 * f.scale}
        assert coarse == (set() if name == "gpt2" else set(moved_by_eps(report)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_registered_transformer_holds_on_real_images(dtype: torch.dtype) -> None:
    model = models.build("transformer", seed=0, width=0.5).to(dtype)
    optimizer = OPTIMIZERS["nesterov"](model)
    batches = nf.data.fashion_mnist_subset().batches(8, 0, 20, models.MODELS["transformer"].image, dtype)
    report = nf.verify(model, optimizer, batches, 20, clip=1.0)
    assert report.holds, report.sentence()
    assert {f.kind for f in report.families if f.quantity == "charges"} == {"translation", "scale", "rescale", "linear", "null"}
    assert {f.kind for f in report.families if f.quantity == "momenta"} == {"rotation"}
    assert all(f.ratio >= 1e-3 for f in report.families if f.residual > 0)
    assert max(moved_by_eps(report).values()) > (1e6 if dtype is torch.float64 else 1)


# --- what must be rejected


@pytest.mark.parametrize("name", NETS)
def test_without_the_currents_exactly_the_scales_fail(name: str) -> None:
    build, shape = NETS[name]
    known = moved_by_eps(watched(build, OPTIMIZERS["momentum and decay"], shape).report())
    report = watched(build, OPTIMIZERS["momentum and decay"], shape, watching={"sabotage": "eps"}).report()
    assert {f.name for f in report.failed} == set(known)


def test_the_default_eps_shows_where_activations_are_small() -> None:
    def build() -> nn.Module:
        model = perceptron(nn.LayerNorm(8))
        with torch.no_grad():
            for parameter in model[0].parameters():
                parameter.mul_(0.03)
        return model

    assert watched(build, OPTIMIZERS["plain"], VECTORS).report().holds
    for dtype in (torch.float64, torch.float32):
        report = watched(build, OPTIMIZERS["plain"], VECTORS, dtype=dtype, watching={"sabotage": "eps"}).report()
        assert [f.kind for f in report.failed] == ["scale"]


@pytest.mark.parametrize("name", ["LayerNorm", "RMSNorm", "GroupNorm", "InstanceNorm", "transformer"])
def test_the_variance_with_the_other_denominator_is_rejected(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = capture.normalized

    def unbiased(layout: capture.Layout, x: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        values, variance = plain(layout, x, eps, dtype)
        return values, variance * values.shape[-1] / (values.shape[-1] - 1)

    build, shape = NETS[name]
    known = moved_by_eps(watched(build, OPTIMIZERS["plain"], shape).report())
    monkeypatch.setattr(capture, "normalized", unbiased)
    assert {f.name for f in watched(build, OPTIMIZERS["plain"], shape).report().failed} == set(known)


@pytest.mark.parametrize("kind", ["weight_decay", "momentum", "sign", "generator", "gradient"])
def test_every_sabotage_of_a_transformer_is_caught(kind: str) -> None:
    report = watched(transformer, OPTIMIZERS["momentum and decay"], ROWS, watching={"sabotage": kind}).report()
    assert not report.holds
    expected = {"weight_decay": {"scale", "null", "translation"}, "generator": {"rescale", "linear"}, "gradient": {"rescale", "linear"}}
    assert expected.get(kind, {"scale", "rescale", "linear"}) <= {f.kind for f in report.failed}


def test_scaling_the_gradient_of_one_layer_is_not_taken_for_clipping() -> None:
    """The factor is read off parameters that a law does not move, so its own gradient is not excused by itself."""
    torch.manual_seed(0)
    model = perceptron(nn.LayerNorm(8, eps=EPS, elementwise_affine=False)).double()
    optimizer = OPTIMIZERS["plain"](model)
    with nf.watch(model, optimizer, "cross_entropy", torch.zeros(VECTORS).double()) as run:
        for _ in range(5):
            optimizer.zero_grad()
            F.cross_entropy(model(torch.randn(VECTORS).double()), torch.randint(0, 3, (16,))).backward()
            for parameter in model[0].parameters():
                parameter.grad.mul_(1.001)  # type: ignore[union-attr]
            optimizer.step()
    assert [f.kind for f in run.report().failed] == ["scale"]


# --- what cannot be captured is said


def test_a_law_whose_current_cannot_be_captured_is_not_checked_and_says_why() -> None:
    """A module that does more in the run than in the trace."""
    torch.manual_seed(0)
    model = perceptron(Bounded(8)).double()
    optimizer = OPTIMIZERS["plain"](model)
    with nf.watch(model, optimizer, "cross_entropy", torch.zeros(VECTORS).double()) as run:
        model[1].bounded = True  # type: ignore[assignment]
        for _ in range(3):
            optimizer.zero_grad()
            F.cross_entropy(model(torch.randn(VECTORS).double()), torch.randint(0, 3, (16,))).backward()
            optimizer.step()
    report = run.report()
    (unchecked,) = [f for f in report.families if f.verdict == "not checked"]
    assert unchecked.kind == "scale"
    assert "is not a gain times its normalised input" in unchecked.reason
    assert "module '1'" in unchecked.reason
    assert "module of its own" in unchecked.reason
    assert not report.failed
    assert not report.holds


def test_batches_of_other_sizes_than_the_traced_one_count_in_full() -> None:
    torch.manual_seed(0)
    model = perceptron(nn.LayerNorm(8, eps=EPS), nn.RMSNorm(8, eps=EPS)).double()
    optimizer = OPTIMIZERS["momentum and decay"](model)
    with nf.watch(model, optimizer, "cross_entropy", torch.zeros(VECTORS).double()) as run:
        for step in range(20):
            optimizer.zero_grad()
            for size in (16, 9 + step % 3):
                F.cross_entropy(model(torch.randn(size, 5).double()), torch.randint(0, 3, (size,))).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
    assert run.report().holds, run.report().sentence()


def test_evaluation_passes_leave_the_currents_alone() -> None:
    torch.manual_seed(0)
    model = shared().double()
    optimizer = OPTIMIZERS["momentum and decay"](model)
    with nf.watch(model, optimizer, "cross_entropy", torch.zeros(VECTORS).double()) as run:
        for _ in range(10):
            optimizer.zero_grad()
            with torch.no_grad():
                model(torch.randn(VECTORS).double())
            F.cross_entropy(model(torch.randn(VECTORS).double()), torch.randint(0, 3, (16,))).backward()
            optimizer.step()
    assert run.report().holds, run.report().sentence()
