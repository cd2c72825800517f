"""Normalisations called as functions inside larger modules: their currents captured in real runs, and no law checked in doubt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.cases import Block
from support.nets import watched
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import _get_current_function_mode
from torch.utils.checkpoint import checkpoint

import noetherflow as nf
from noetherflow.bridge import capture
from noetherflow.bridge.norm_functions import Chains, Form
from noetherflow.bridge.norm_layout import Layout
from noetherflow.bridge.watch import Watch
from noetherflow.numeric.report import Report

EPS = 1e-2
WIDTH = 8
VECTORS, IMAGES, ROWS = (16, 5), (6, 1, 8, 8), (4, 6, 5)


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)


def chain(x: Tensor, eps: float = EPS) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)


def centred(x: Tensor) -> Tensor:
    c = x - x.mean(-1, keepdim=True)
    return c / ((c * c).mean(-1, keepdim=True) + EPS).sqrt()


def parameter(size: int) -> nn.Parameter:
    return nn.Parameter(torch.rand(size) + 0.5)


def vectors(norm: Callable[[Any, Tensor], Tensor]) -> Callable[[], nn.Module]:
    """A perceptron that normalises in its own forward pass, and writes over the result in place."""
    return lambda: Block(
        lambda s, x: s.last(F.relu(norm(s, s.first(x)), inplace=True)),
        first=nn.Linear(5, WIDTH),
        last=nn.Linear(WIDTH, 3),
        gain=parameter(WIDTH),
        shift=parameter(WIDTH),
    )


def images(norm: Callable[[Any, Tensor], Tensor]) -> Callable[[], nn.Module]:
    return lambda: Block(
        lambda s, x: s.last(F.relu(norm(s, s.first(x)), inplace=True).flatten(1)),
        first=nn.Conv2d(1, 4, 3),
        last=nn.Linear(144, 3),
        gain=parameter(4),
        shift=parameter(4),
    )


class Attention(nn.Module):
    """Query and key normalised in between: one written out, one by torch's function, each with its gain."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.project = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))
        self.of_query, self.of_key = parameter(4), parameter(4)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (layer(x).unflatten(2, (2, 4)).transpose(1, 2) for layer in (self.query, self.key, self.value))
        query, key = self.of_query * chain(query), F.rms_norm(key, (4,), self.of_key, EPS)
        return self.project(F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


class Part(nn.Module):
    """A layer of a residual stream that normalises what it reads, and may be called several times."""

    def __init__(self, repeat: bool = False) -> None:
        super().__init__()
        self.layer, self.repeat = nn.Linear(WIDTH, WIDTH), repeat

    def forward(self, x: Tensor) -> Tensor:
        y = F.layer_norm(self.layer(x), (WIDTH,), eps=EPS)
        return torch.tanh(F.layer_norm(y, (WIDTH,), eps=EPS) if self.repeat else y)


def stream(kind: Callable[..., Any] = Part) -> nn.Module:
    """Functions in the outer module and in the inner ones, a module with two names, a norm that is a module."""
    part = kind()
    return Block(
        lambda s, x: s.last(s.again(s.norm(s.middle(s.part(F.rms_norm(s.first(x), (WIDTH,), None, 2 * EPS)))))),
        first=nn.Linear(5, WIDTH),
        part=part,
        middle=nn.Linear(WIDTH, WIDTH),
        norm=nn.LayerNorm(WIDTH, eps=EPS),
        again=part,
        last=nn.Linear(WIDTH, 3),
    )


def attending() -> nn.Module:
    return Block(
        lambda s, x: s.last(F.layer_norm(s.inner(F.rms_norm(s.first(x), (WIDTH,), eps=EPS)) + s.first(x), (WIDTH,), eps=EPS).mean(1)),
        first=nn.Linear(5, WIDTH),
        inner=Attention(),
        last=nn.Linear(WIDTH, 3),
    )


def twice() -> nn.Module:
    return Block(
        lambda s, x: s.last(F.layer_norm(s.inner(F.relu(F.layer_norm(s.first(x), (WIDTH,), s.gain, s.shift, EPS))), (WIDTH,), eps=2 * EPS)),
        first=nn.Linear(5, WIDTH),
        inner=nn.Linear(WIDTH, WIDTH),
        last=nn.Linear(WIDTH, 3),
        gain=parameter(WIDTH),
        shift=parameter(WIDTH),
    )


def outside(s: Any, x: Tensor) -> Tensor:
    return F.layer_norm(x, (WIDTH,), eps=EPS) * s.gain + s.shift


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "layer_norm": (vectors(lambda s, x: F.layer_norm(x, (WIDTH,), s.gain, s.shift, EPS)), VECTORS),
    "torch.layer_norm": (vectors(lambda s, x: torch.layer_norm(x, (WIDTH,), eps=EPS) + s.gain * s.shift), VECTORS),
    "layer_norm, gain and shift behind it": (vectors(outside), VECTORS),
    "rms_norm": (vectors(lambda s, x: F.rms_norm(x, (WIDTH,), s.gain, EPS) + s.shift), VECTORS),
    "batch_norm": (images(lambda s, x: F.batch_norm(x, None, None, s.gain, s.shift, True, 0.1, EPS)), IMAGES),
    "group_norm": (images(lambda s, x: F.group_norm(x, 2, s.gain, s.shift, EPS)), IMAGES),
    "instance_norm": (images(lambda s, x: F.instance_norm(x, weight=s.gain, bias=s.shift, eps=EPS)), IMAGES),
    "written out": (vectors(lambda s, x: s.gain * chain(x) + s.shift), VECTORS),
    "written out, centred": (vectors(lambda s, x: s.gain * centred(x) + s.shift), VECTORS),
    "twice": (twice, VECTORS),
    "query and key": (attending, ROWS),
    "in modules within modules": (stream, VECTORS),
}


def moved_by_eps(report: Report) -> dict[str, float]:
    """Family -> how much its current moved it, in bounds."""
    return {f.name: f.budget["explicit_breaking"] / f.bound for f in report.families if f.budget.get("explicit_breaking", 0.0) > 0}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", NETS)
def test_the_laws_hold_to_rounding_and_fail_without_the_currents(name: str, dtype: torch.dtype) -> None:
    build, shape = NETS[name]
    report = watched(build, sgd, shape, 6, dtype=dtype, scheduled=True, clip=0.5, accumulate=2).report()
    assert report.holds, report.sentence()
    assert all(f.verdict == "exact" for f in report.families)
    assert all(f.ratio >= 1e-3 for f in report.families if f.residual > 0), "the bound is more than a thousand times the residual"
    moved = moved_by_eps(report)
    assert moved
    assert min(moved.values()) > (1e6 if dtype is torch.float64 else 3)
    broken = watched(build, sgd, shape, 6, dtype=dtype, scheduled=True, clip=0.5, accumulate=2, watching={"sabotage": "eps"})
    assert {f.name for f in broken.report().failed} == set(moved)


@pytest.mark.parametrize("name", ["rms_norm", "group_norm", "written out, centred", "twice"])
def test_the_variance_with_the_other_denominator_is_rejected(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = capture.normalized

    def unbiased(layout: Layout, x: Tensor, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        values, variance = plain(layout, x, eps, dtype)
        return values, variance * values.shape[-1] / (values.shape[-1] - 1)

    monkeypatch.setattr(capture, "normalized", unbiased)
    build, shape = NETS[name]
    report = watched(build, sgd, shape, 5).report()
    assert {f.name for f in report.failed} == set(moved_by_eps(report))
    assert report.failed


# --- loops as people write them


def run_of(model: nn.Module, shape: tuple[int, ...], loop: Callable[[Callable[..., None]], None]) -> Watch:
    """A watched run whose loop is given a step: one backward pass for each size of a micro-batch, then the optimizer."""
    torch.manual_seed(1)
    optimizer = sgd(model)

    def step(*sizes: int) -> None:
        optimizer.zero_grad()
        for size in sizes or shape[:1]:
            F.cross_entropy(model(torch.randn(size, *shape[1:]).double()), torch.randint(0, 3, (size,))).backward()
        optimizer.step()

    with nf.watch(model, optimizer, "cross_entropy", torch.zeros(shape).double()) as run:
        loop(step)
    return run


def built(build: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return build().double()


def test_micro_batches_of_other_sizes_count_in_full() -> None:
    run = run_of(built(stream), VECTORS, lambda step: [step(16, 9 + i % 3, 4) for i in range(6)])  # type: ignore[func-returns-value]
    assert run.report().holds, run.report().sentence()
    assert moved_by_eps(run.report())


class Fragile(Part):
    """Fails after it has normalised, if it is told to."""

    error: BaseException | None = None

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        if self.error is not None:
            raise self.error
        return y


@pytest.mark.parametrize("error", [ValueError("on purpose"), KeyboardInterrupt()], ids=["an error", "an interrupt"])
def test_a_pass_that_fails_leaves_no_trace(error: BaseException) -> None:
    model = built(lambda: stream(Fragile))

    def loop(step: Callable[..., None]) -> None:
        step()
        model.part.error = error  # type: ignore[union-attr]
        with pytest.raises(type(error)):
            step()
        model.part.error = None  # type: ignore[union-attr]
        step()
        assert _get_current_function_mode() is None  # type: ignore[no-untyped-call]
        step()

    run = run_of(model, VECTORS, loop)
    assert run.report().holds, run.report().sentence()
    assert run.monitor.step == 3


def test_passes_that_are_not_trained_on_leave_the_currents_alone() -> None:
    """Evaluation with and without gradients; in it the first module normalises by other statistics."""
    model = built(
        lambda: Block(
            lambda s, x: s.last(F.relu(F.batch_norm(s.first(x), s.mean, s.variance, s.gain, None, s.training, 0.1, EPS))),
            first=nn.Linear(5, WIDTH),
            last=nn.Linear(WIDTH, 3),
            gain=parameter(WIDTH),
        )
    )
    model.register_buffer("mean", torch.zeros(WIDTH).double())
    model.register_buffer("variance", torch.ones(WIDTH).double())

    def loop(step: Callable[..., None]) -> None:
        for _ in range(4):
            model.eval()
            model(torch.randn(VECTORS).double())
            model.train()
            with torch.no_grad():
                model(torch.randn(VECTORS).double())
            step()

    report = run_of(model, VECTORS, loop).report()
    assert report.holds, report.sentence()
    assert moved_by_eps(report)


def test_a_pass_that_is_computed_again_counts_once() -> None:
    def build() -> nn.Module:
        return Block(
            lambda s, x: s.last(checkpoint(s.part, torch.tanh(s.first(x)), use_reentrant=False)),
            first=nn.Linear(5, WIDTH),
            part=Part(),
            last=nn.Linear(WIDTH, 3),
        )

    report = run_of(built(build), VECTORS, lambda step: [step() for _ in range(4)]).report()  # type: ignore[func-returns-value]
    assert report.holds, report.sentence()
    assert moved_by_eps(report)


# --- what cannot be told is not checked


def doubtful(change: Callable[[Any], None], build: Callable[[], nn.Module] = stream) -> list[Any]:
    """What is not checked, if something changes after the first step; nothing may fail."""
    model = built(build)

    def loop(step: Callable[..., None]) -> None:
        step()
        change(model)
        step()
        step()

    report = run_of(model, VECTORS, loop).report()
    assert not report.failed
    assert not report.holds
    return [f for f in report.families if f.verdict == "not checked"]


def test_another_number_of_normalisations_is_not_checked() -> None:
    unchecked = doubtful(lambda model: setattr(model.part, "repeat", True))
    assert [f.name for f in unchecked] == ["scale part.layer.weight +1"]
    assert "(module 'part')" in unchecked[0].reason or "(module 'again')" in unchecked[0].reason
    assert "traced with 1 normalisation called as a function in a call, and 2 could be recognised in the run" in unchecked[0].reason
    assert "module of its own" in unchecked[0].reason


class Tunable(nn.Module):
    """A layer behind a norm whose gain and eps may be others than they were."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.eps, self.other = nn.Linear(5, WIDTH), EPS, False
        self.gain = parameter(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(F.layer_norm(self.layer(x), (WIDTH,), self.gain * 1.0 if self.other else self.gain, None, self.eps))


class TunableChain(Tunable):
    """The same, written out."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.gain * chain(self.layer(x), self.eps))


@pytest.mark.parametrize(
    ("kind", "attribute", "value", "why"),
    [
        (
            Tunable,
            "eps",
            2 * EPS,
            r"was traced as layer_norm of 8 (2 axes, eps 0.01), and was layer_norm of 8 (2 axes, eps 0.02) in the run",
        ),
        (Tunable, "other", True, "has another gain in the run than the one that was traced"),
        (TunableChain, "eps", 2 * EPS, "traced with 1 normalisation called as a function in a call, and 0 could be recognised in the run"),
    ],
)
def test_another_normalisation_is_not_checked(kind: type[Tunable], attribute: str, value: object, why: str) -> None:
    def build() -> nn.Module:
        return nn.Sequential(kind(), nn.Linear(WIDTH, 3))

    (unchecked,) = doubtful(lambda model: setattr(model[0], attribute, value), build)
    assert unchecked.kind == "scale"
    assert why in unchecked.reason


def test_one_that_nothing_reads_makes_the_others_doubtful() -> None:
    """The graph has no node for it, so the calls cannot be told apart by their order."""

    def forward(s: Any, x: Tensor) -> Tensor:
        F.layer_norm(s.first(x), (WIDTH,), eps=EPS)
        return s.last(F.layer_norm(s.first(x), (WIDTH,), eps=EPS))

    unchecked = doubtful(lambda model: None, lambda: Block(forward, first=nn.Linear(5, WIDTH), last=nn.Linear(WIDTH, 3)))
    assert [f.kind for f in unchecked] == ["scale"]
    assert "traced with 1 normalisation called as a function in a call, and 2 could be recognised" in unchecked[0].reason


# --- who is listened to


def test_no_module_is_listened_to_that_does_nothing_but_normalise() -> None:
    def functions(model: nn.Module) -> list[str]:
        with nf.watch(model, sgd(model), "cross_entropy", torch.zeros(VECTORS)) as run:
            return list(run._sources.capture.functions)

    class Alone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(WIDTH))

        def forward(self, x: Tensor) -> Tensor:
            return chain(x) * (1 + self.weight)

    assert functions(nn.Sequential(nn.Linear(5, WIDTH), nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), Alone(), nn.Linear(WIDTH, 3))) == []
    assert set(functions(stream())) == {"", "part"}


def test_a_chain_is_heard_by_what_it_computes() -> None:
    form = Form(Layout("rms_norm", 2), EPS, (WIDTH,))
    other = Form(Layout("layer_norm", 2), EPS, (WIDTH,))
    x = torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(0)).double().requires_grad_()
    root = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPS)

    def heard(function: Any, *operands: Tensor, after: Callable[[Chains], object] = lambda chains: None) -> list[Form]:
        chains = Chains({form: torch.float64, other: torch.float64})
        after(chains)
        found = chains.hear(function, operands, function(*operands))
        return [] if found is None else list(found.inputs)

    assert heard(torch.mul, x, root) == heard(torch.mul, root, x) == heard(torch.div, x, 1 / root) == [form]
    assert heard(torch.div, x, root) == heard(torch.mul, x, root * 1.001) == heard(torch.mul, x, root.expand(4, WIDTH)) == []
    assert heard(torch.mul, x.detach(), root.detach()) == []
    mean = x.mean(-1, keepdim=True)
    difference = x - mean
    inverse = torch.rsqrt(difference.pow(2).mean(-1, keepdim=True) + EPS)
    noted = heard(torch.mul, difference, inverse, after=lambda chains: chains.hear(torch.sub, (x, mean), difference))
    assert set(noted) == {form, other}  # what is centred already is the same in both; the graph says which is meant
    assert heard(torch.mul, difference, inverse) == [form]
