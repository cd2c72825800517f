"""Angular momenta in real runs: every option of SGD, every kind of family, buffers that exist already; and every way to be wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import sympy as sp
import torch
from support.attention import rotary
from support.nets import train, watched
from torch import Tensor, nn
from torch.nn import functional as F

import noetherflow as nf
from noetherflow.bridge.momentum_bundles import bundle_momenta
from noetherflow.bridge.watch import Watch
from noetherflow.numeric.findings import FamilyRecord
from noetherflow.numeric.recorder import open_run
from noetherflow.numeric.report import Report
from noetherflow.symbolic.momenta import MomentumLaw

SGD = torch.optim.SGD
EPS = 1e-5


class Stream(nn.Module):
    """A residual stream that norms without gains read: RMSNorm, or LayerNorm (whose rotations fix the mean)."""

    def __init__(self, norm: str = "rms", width: int = 6, hidden: int = 8) -> None:
        super().__init__()
        kind = nn.RMSNorm if norm == "rms" else nn.LayerNorm
        self.embed, self.out = nn.Linear(5, width, bias=False), nn.Linear(width, 3)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.norms = nn.ModuleList(kind(width, eps=EPS, elementwise_affine=False) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x + self.down(F.relu(self.up(self.norms[0](x))))
        return self.out(self.norms[1](x))


class Heads(nn.Module):
    """Two heads of queries and keys, normed without gains or turned by RoPE, and a linear pair of values and outputs."""

    def __init__(self, norm: bool, rope: bool) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(5, 8, bias=False) for _ in range(3))
        self.o, self.out, self.rope = nn.Linear(8, 5), nn.Linear(5, 3), rope
        self.q_norm, self.k_norm = (nn.RMSNorm(4, eps=EPS, elementwise_affine=False) if norm else nn.Identity() for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (2, 4)).transpose(-2, -3) for layer in (self.q, self.k, self.v))
        q, k = self.q_norm(q), self.k_norm(k)
        q, k = (rotary(q), rotary(k)) if self.rope else (q, k)
        y = F.scaled_dot_product_attention(q, k, v).transpose(-2, -3).flatten(-2)
        return self.out((x + self.o(y)).mean(1))


BUILDS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "stream": (Stream, (16, 5)),
    "centred stream": (partial(Stream, "layer"), (16, 5)),
    "normed heads": (partial(Heads, True, False), (16, 3, 5)),
    "phases": (partial(Heads, False, True), (16, 3, 5)),
    "phases of normed heads": (partial(Heads, True, True), (16, 3, 5)),
}
KINDS = {
    "stream": "rotation",
    "centred stream": "rotation",
    "normed heads": "rotation",
    "phases": "complex",
    "phases of normed heads": "complex",
}
COUNTS = {"stream": 15, "centred stream": 10, "normed heads": 2 * 6, "phases": 2 * 2, "phases of normed heads": 2 * 2}


def halves(model: nn.Module, first: dict[str, float], second: dict[str, float], **common: object) -> torch.optim.Optimizer:
    """Two parameter groups, every other parameter in each."""
    parameters = list(model.parameters())
    return SGD([{"params": parameters[::2], **first}, {"params": parameters[1::2], **second}], lr=0.05, **common)  # type: ignore[arg-type]


OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "plain": lambda m: SGD(m.parameters(), lr=0.05),
    "decay": lambda m: SGD(m.parameters(), lr=0.05, weight_decay=0.01),
    "momentum": lambda m: SGD(m.parameters(), lr=0.05, momentum=0.9),
    "momentum and decay": lambda m: SGD(m.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01),
    "dampening": lambda m: SGD(m.parameters(), lr=0.05, momentum=0.8, dampening=0.4, weight_decay=0.01),
    "nesterov": lambda m: SGD(m.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.01),
    "nesterov maximize": lambda m: SGD(m.parameters(), lr=0.01, momentum=0.9, nesterov=True, maximize=True),
    "group rates": lambda m: halves(m, {"lr": 0.05}, {"lr": 0.02, "weight_decay": 0.01}),
    "group rates, momentum": lambda m: halves(m, {"lr": 0.05}, {"lr": 0.02, "weight_decay": 0.01}, momentum=0.9),
    "group rates, nesterov": lambda m: halves(m, {"lr": 0.05}, {"lr": 0.02, "weight_decay": 0.01}, momentum=0.9, nesterov=True),
    "group dampenings": lambda m: halves(m, {"dampening": 0.5}, {"dampening": 0.1}, momentum=0.9),
    "group momenta": lambda m: halves(m, {"momentum": 0.9, "weight_decay": 0.01}, {"momentum": 0.5, "lr": 0.02}),
    "momentum in one group": lambda m: halves(m, {"momentum": 0.9}, {"momentum": 0.0}, weight_decay=0.01),
    "momentum in the other": lambda m: halves(m, {"momentum": 0.0}, {"momentum": 0.9}, weight_decay=0.01),
}


def momenta(report: Report) -> list[FamilyRecord]:
    return [family for family in report.families if family.quantity == "momenta"]


def pushed(name: str, option: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, torch.optim.Optimizer, tuple[int, ...]]:
    """A model in the middle of training, whose buffers something has turned: the angular momentum is not zero."""
    build, shape = BUILDS[name]
    torch.manual_seed(0)
    model = build().to(dtype)
    optimizer = OPTIMIZERS[option](model)
    train(model, optimizer, shape, 3, seed=5)
    for parameter in model.parameters():
        buffer = optimizer.state[parameter].get("momentum_buffer")
        if buffer is not None:
            buffer.add_(0.05 * torch.randn(buffer.shape, dtype=torch.float64).to(dtype))
    return model, optimizer, shape


def watched_from_there(
    name: str,
    option: str,
    *,
    dtype: torch.dtype = torch.float64,
    steps: int = 10,
    change: Callable[[MomentumLaw], MomentumLaw] | None = None,
    sabotage: str | None = None,
    before: Callable[[nn.Module], None] | None = None,
) -> Watch:
    """Watch a pushed model; with other laws than the derived ones, or with something done to its gradients."""
    model, optimizer, shape = pushed(name, option, dtype)
    run = nf.watch(model, optimizer, "cross_entropy", torch.zeros(shape, dtype=dtype), sabotage=sabotage)
    if change is not None:
        monitor = run.momenta
        monitor.__init__([change(law) for law in monitor.laws], monitor.state, monitor.lengths)  # type: ignore[misc]
    if before is not None:
        optimizer.register_step_pre_hook(lambda *_: before(model))
    with run:
        train(model, optimizer, shape, steps, seed=3)
    return run


# --- they hold


@pytest.mark.parametrize(("name", "option"), [*(("stream", o) for o in OPTIMIZERS), ("phases of normed heads", "group momenta")])
def test_every_option_of_sgd_holds_to_rounding(name: str, option: str) -> None:
    build, shape = BUILDS[name]
    report = watched(build, OPTIMIZERS[option], shape, 10, scheduled=True, clip=0.5, accumulate=2).report()
    assert report.holds, report.sentence()
    first = momenta(report)[0]
    assert (first.kind, first.charges) == (KINDS[name], COUNTS[name])
    assert option.startswith("momentum in") or first.residual <= 1e-13 * first.scale, "1/η weighs what has no buffer"
    assert all(f.ratio >= 1e-3 for f in momenta(report)), "the bound is more than a thousand times the residual"


@pytest.mark.parametrize(("option", "dtype"), [("momentum and decay", torch.float64), ("nesterov", torch.float32)])
@pytest.mark.parametrize("name", BUILDS)
def test_every_kind_of_family_holds_and_its_bound_is_not_loose(name: str, option: str, dtype: torch.dtype) -> None:
    report = watched_from_there(name, option, dtype=dtype).report()
    found = momenta(report)
    assert (found[0].kind, found[0].charges) == (KINDS[name], COUNTS[name])
    assert all(f.verdict == "exact" for f in found), report.sentence()
    assert all(f.ratio >= 1e-3 for f in found)
    assert all(f.motion > 1e3 * f.bound for f in found), "there is something to predict"


def test_from_rest_heavy_ball_stays_at_zero_and_nesterov_does_not() -> None:
    for option, dtype, moves in (
        ("momentum and decay", torch.float32, False),
        ("dampening", torch.float64, False),
        ("nesterov", torch.float32, True),
    ):
        run = watched(Stream, OPTIMIZERS[option], (16, 5), 10, dtype=dtype)
        (found,) = momenta(run.report())
        assert found.verdict == "exact"
        assert (found.motion > 100 * found.bound) is moves, (option, found)


def matrix(model: Stream, optimizer: torch.optim.Optimizer) -> Tensor:
    """K of the stream, written out."""
    total = torch.zeros(6, 6, dtype=torch.float64)
    for parameter, reads in ((model.embed.weight, False), (model.down.weight, False), (model.down.bias, False), (model.up.weight, True)):
        total += _part(parameter, optimizer, reads)
    return total + _part(model.out.weight, optimizer, reads=True)


def _part(parameter: nn.Parameter, optimizer: torch.optim.Optimizer, reads: bool) -> Tensor:
    b, p = optimizer.state[parameter]["momentum_buffer"].double(), parameter.detach().double()
    b, p = (b.T, p.T) if reads else (b, p)
    b, p = (x.reshape(6, -1) for x in (b, p))
    return b @ p.T - p @ b.T


def test_buffers_that_exist_already_are_seen_to_decay_as_powers_of_the_momentum() -> None:
    """K_n = μⁿ K_0 with weight decay and dampening, against a matrix that knows nothing of the package."""
    model, optimizer, shape = pushed("stream", "dampening")
    start, rows = matrix(model, optimizer), []
    with nf.watch(model, optimizer, "cross_entropy", torch.zeros(shape).double()) as run:
        train(model, optimizer, shape, 30, seed=3, after=lambda _: rows.append(matrix(model, optimizer)))
    assert start.abs().max() > 0.05
    for n, row in enumerate(rows, start=1):
        assert float((row - 0.8**n * start).abs().max()) < 1e-14
    (found,) = momenta(run.report())
    upper = float(torch.triu(start, 1).sum())
    assert found.motion_parts == pytest.approx({"momentum": -(1 - 0.8**30) * upper}, rel=1e-12)
    (bundle,) = bundle_momenta(run.laws.momenta)
    assert torch.allclose(bundle.upper(start.reshape(-1)), run.momenta.tallies[0][0].initial.reshape(-1), atol=1e-15)


def test_parts_of_the_budget_sum_to_the_motion() -> None:
    for option in ("nesterov", "group dampenings", "momentum in one group"):
        for family in momenta(watched_from_there("stream", option).report()):
            assert sum(family.motion_parts.values()) == pytest.approx(family.total_motion, rel=1e-9, abs=1e-13)
            assert {"momentum"} <= set(family.motion_parts) <= {"momentum", "weight_decay", "discretization", "metric"}


def test_a_group_at_rest_takes_nothing_from_the_others() -> None:
    for option in ({}, {"momentum": 0.9}):
        report = watched(Stream, lambda m, o=option: halves(m, {"lr": 0.0}, {"lr": 0.05}, **o), (16, 5), 8).report()  # type: ignore[misc]
        assert all(f.verdict == "exact" for f in momenta(report)), report.sentence()


def test_autocast_is_allowed_for() -> None:
    torch.manual_seed(0)
    model = Stream()
    optimizer = OPTIMIZERS["momentum"](model)
    with nf.watch(model, optimizer, "cross_entropy", torch.zeros(16, 5)) as run:
        for _ in range(15):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                loss = F.cross_entropy(model(torch.randn(16, 5)).float(), torch.randint(0, 3, (16,)))
            loss.backward()
            optimizer.step()
    (found,) = momenta(run.report())
    assert found.verdict == "exact"
    assert found.residual > 1e-6 * found.scale, "in float32 alone it would be smaller"


# --- and every wrong sibling fails


def backwards(law: MomentumLaw) -> MomentumLaw:
    """The consumer turned the wrong way."""
    *others, last = law.symmetry.actions
    return replace(law, symmetry=replace(law.symmetry, actions=(*others, replace(last, weight=-last.weight))))


def faster(law: MomentumLaw) -> MomentumLaw:
    """A momentum factor that is 1 % too large."""
    mu = sp.Symbol("mu", real=True)
    terms = {m: t.xreplace({mu: mu * sp.Rational(101, 100)}) if m == "momentum" else t for m, t in law.balance.terms.items()}
    return replace(law, balance=replace(law.balance, terms=terms))


def uncentred(law: MomentumLaw) -> MomentumLaw:
    """All rotations, also those that move the mean that LayerNorm takes off."""
    return replace(law, symmetry=replace(law.symmetry, centred=False))


def clipped(model: nn.Module) -> None:
    """Clip by value, which no rotation commutes with."""
    nn.utils.clip_grad_value_(model.parameters(), 1e-3)


WRONG = {
    "backwards": partial(watched_from_there, "stream", change=backwards),
    "clipped": partial(watched_from_there, "stream", before=clipped),
    "centre": partial(watched_from_there, "centred stream", change=uncentred),
    "generator": partial(watched_from_there, "stream", sabotage="generator"),
    "gradient": partial(watched_from_there, "stream", sabotage="gradient"),
}


@pytest.mark.parametrize(
    ("option", "dtype"), [("plain", torch.float32), ("momentum and decay", torch.float64), ("nesterov", torch.float32)]
)
@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_generator_and_a_wrong_gradient_are_rejected(kind: str, option: str, dtype: torch.dtype) -> None:
    (found,) = momenta(WRONG[kind](option=option, dtype=dtype).report())
    assert found.verdict == "failed"
    assert found.first_step is not None
    assert "entry (" in found.reason


@pytest.mark.parametrize(("option", "dtype"), [("momentum and decay", torch.float64), ("nesterov", torch.float32)])
def test_a_wrong_momentum_factor_and_a_forgotten_momentum_are_rejected(option: str, dtype: torch.dtype) -> None:
    for run in (partial(watched_from_there, change=faster), partial(watched_from_there, sabotage="momentum")):
        (found,) = momenta(run("stream", option, dtype=dtype).report())
        assert found.verdict == "failed"


def test_a_wrong_sign_of_what_nesterov_leaves_is_rejected() -> None:
    for sabotage, option in (("weight_decay", "nesterov"), ("sign", "group rates, nesterov")):
        report = watched_from_there("stream", option, sabotage=sabotage).report()
        assert momenta(report)[0].verdict == "failed", (sabotage, option)


@pytest.mark.parametrize("name", ["normed heads", "phases"])
def test_heads_and_phases_can_fail_too(name: str) -> None:
    found = momenta(watched_from_there(name, "momentum", change=backwards).report())
    assert found[0].verdict == "failed"


def test_without_the_normalisation_a_rotation_put_on_by_hand_fails() -> None:
    """ReLU where the norm was: the derived law of the one network is false for the other."""

    class Bare(Stream):
        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.embed(x))
            return self.out(x + self.down(F.relu(self.up(x))))

    torch.manual_seed(0)
    model, bare = Stream().double(), Bare().double()
    bare.load_state_dict(model.state_dict())
    optimizer = OPTIMIZERS["momentum"](bare)
    run = nf.watch(bare, optimizer, "cross_entropy", torch.zeros(16, 5).double())
    assert not run.laws.momenta
    graph = nf.trace(model, torch.zeros(16, 5).double())
    graph.graph["identities"] = {id(p): n for n, p in bare.named_parameters()}
    borrowed = nf.derive(graph, nf.rule_of(optimizer)).momenta
    state = type(run.monitor.state)(bare, optimizer, tuple(graph.parameters))
    run.momenta.__init__(borrowed, state, {})  # type: ignore[misc]
    with run:
        train(bare, optimizer, (16, 5), 10)
    (found,) = momenta(run.report())
    assert found.verdict == "failed"


# --- reports and resumed runs


def test_they_stand_in_the_report_beside_the_charges(tmp_path: Path) -> None:
    build, shape = BUILDS["normed heads"]
    run = watched(build, OPTIMIZERS["nesterov"], shape, 10, watching={"directory": tmp_path / "run"})
    report = run.report()
    names = [f.name for f in momenta(report)]
    assert names == ["rotation q.weight +1", "rotation in linear v.weight +1"]
    assert "angular momenta over 10 steps" in report.sentence()
    assert Report.from_json(report.to_json(tmp_path / "report.json")) == report
    page = report.to_html(tmp_path / "report.html").read_text()
    assert all(name in page for name in names)
    rows = {row["family"]: row for row in report.table()}
    assert rows[names[0]]["kind"] == "rotation"
    assert {row["mechanism"] for row in report.budget() if row["family"] == names[0]} >= {"momentum", "discretization"}
    stored = open_run(tmp_path / "run")
    for name, blocks in zip(names, (2, 2), strict=True):
        gap = abs(stored.column("measured", name) - stored.column("predicted", name))
        assert gap.shape == (11, blocks)
        assert (gap <= stored.column("bound", name)).all()
        assert abs(stored.column("measured", name)).max() > 0


def test_what_is_kept_does_not_grow_with_the_matrix_or_the_steps() -> None:
    torch.manual_seed(0)
    model = Stream().double()
    optimizer = OPTIMIZERS["nesterov"](model)
    with nf.watch(model, optimizer, "cross_entropy", torch.zeros(16, 5).double()) as run:
        train(model, optimizer, (16, 5), 3)
        early = _numbers(run.momenta.state_dict())
        train(model, optimizer, (16, 5), 9, seed=2)
        assert _numbers(run.momenta.state_dict()) == early
    assert len(run.monitor.tallies[0].state_dict()["measured"]) > 0
    assert run.momenta.tallies[0][0].measured.shape == (1,)


def _numbers(value: object) -> int:
    if isinstance(value, Tensor):
        return value.numel()
    members = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else []
    return sum(_numbers(member) for member in members)


@pytest.mark.parametrize("option", ["nesterov"])
def test_a_resumed_run_is_the_run_that_was_not_interrupted(option: str, tmp_path: Path) -> None:
    def fresh() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = Stream().double()
        return model, OPTIMIZERS[option](model)

    example = torch.zeros(16, 5).double()
    model, optimizer = fresh()
    with nf.watch(model, optimizer, "cross_entropy", example) as whole:
        train(model, optimizer, (16, 5), 6, seed=1)
        train(model, optimizer, (16, 5), 6, seed=2)
    model, optimizer = fresh()
    with nf.watch(model, optimizer, "cross_entropy", example) as first:
        train(model, optimizer, (16, 5), 6, seed=1)
    torch.save((model.state_dict(), optimizer.state_dict(), first.state_dict()), tmp_path / "checkpoint.pt")
    states = torch.load(tmp_path / "checkpoint.pt", weights_only=False)
    model, optimizer = fresh()
    model.load_state_dict(states[0])
    optimizer.load_state_dict(states[1])
    second = nf.watch(model, optimizer, "cross_entropy", example)
    second.load_state_dict(states[2])
    with second:
        train(model, optimizer, (16, 5), 6, seed=2)
    a, b = momenta(whole.report()), momenta(second.report())
    assert [f.residual for f in a] == [f.residual for f in b]
    assert [dict(f.motion_parts) for f in a] == [dict(f.motion_parts) for f in b]
    assert [f.steps for f in b] == [12]
