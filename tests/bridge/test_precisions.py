"""Models that compute parts of themselves in a coarser type: laws that meet it are bounded by it, and no others are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support import zoo
from support.cases import Block
from support.nets import watched
from torch import Tensor, nn
from torch.nn import functional as F

import noetherflow as nf
from noetherflow.bridge.precisions import Met, dtype_inside, types_met
from noetherflow.numeric.report import Report

Single, Double, Brain = torch.float32, torch.float64, torch.bfloat16


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)


def layers(forward: Callable[[Any, Tensor], Tensor], **further: nn.Module) -> Callable[[], nn.Module]:
    return lambda: Block(forward, a=nn.Linear(5, 8), b=nn.Linear(8, 6), c=nn.Linear(6, 3), **further)


# What of a network is computed in float32, and the families that meet it.
CASTS: dict[str, tuple[Callable[[], nn.Module], set[str]]] = {
    "nothing": (layers(lambda s, x: s.c(F.relu(s.b(F.relu(s.a(x)))))), set()),
    "between the first two layers": (
        layers(lambda s, x: s.c(F.relu(s.b(F.relu(s.a(x).float()).double())))),
        {"rescale a.weight +2"},
    ),
    "between the last two layers": (
        layers(lambda s, x: s.c(F.relu(s.b(F.relu(s.a(x)))).float().double())),
        {"rescale b.weight +2"},
    ),
    "behind all layers": (layers(lambda s, x: s.c(F.relu(s.b(F.relu(s.a(x))))).float()), {"translation c.weight", "translation c.bias"}),
    "in front of them": (layers(lambda s, x: s.c(F.relu(s.b(F.relu(s.a(x.float().double())))))), set()),
    "a gate of its own": (
        layers(lambda s, x: s.c(F.relu(s.b(F.relu(s.a(x)))) * s.gate(x).float().softmax(-1).double()), gate=nn.Linear(5, 6)),
        {"translation gate.weight", "translation gate.bias"},
    ),
    "a norm that says nothing of it": (
        layers(lambda s, x: s.c(F.relu(s.b(F.layer_norm(s.a(x).float(), (8,)).double())))),
        {"scale a.weight +1", "translation a.weight", "translation a.bias", "translation b.weight"},
    ),
}


# Rotations of what that norm reads pass through it, so their angular momentum meets the type that it computes in.
TURNING: dict[str, set[str]] = {"a norm that says nothing of it": {"rotation a.weight +2"}}


def coarse(report: Report) -> set[str]:
    """The families whose bound is not that of float64."""
    return {f.name for f in report.families if f.bound > 1e-12 * f.scale}


@pytest.mark.parametrize("name", CASTS)
def test_the_laws_that_meet_a_coarser_type_and_no_others_are_bounded_by_it(name: str) -> None:
    build, expected = CASTS[name]
    run = watched(build, sgd, (16, 5), 12, accumulate=2)
    report = run.report()
    assert report.holds, report.sentence()
    assert {law.name for law in run.laws if run._sources.met[law.symmetry.number] != Met()} == expected
    assert coarse(report) == expected | TURNING.get(name, set())
    told = [note for note in report.notes if "computes in torch.float32 where these laws pass" in note]
    assert len(told) == bool(expected)
    assert all(f"'{name}'" in told[0] for name in expected)
    assert all(f.ratio >= 1e-4 for f in report.families if f.residual > 0)


@pytest.mark.parametrize("name", [name for name, (_, expected) in CASTS.items() if expected])
def test_they_need_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounded by the parameters' own type, some of them would fail, and only they."""
    monkeypatch.setattr("noetherflow.bridge.sources.types_met", lambda graph, laws, measured: {law.symmetry.number: Met() for law in laws})
    build, expected = CASTS[name]
    failed = {f.name for f in watched(build, sgd, (16, 5), 12, accumulate=2).report().failed}
    assert failed
    assert failed <= expected


@pytest.mark.parametrize("kind", ["weight_decay", "momentum", "sign", "generator"])
def test_what_is_wrong_is_still_found_out(kind: str) -> None:
    build, expected = CASTS["between the first two layers"]
    report = watched(build, sgd, (16, 5), 12, watching={"sabotage": kind}).report()
    assert expected <= {f.name for f in report.failed}


def of_mixtral(sabotage: str | None = None) -> tuple[Report, set[str]]:
    """A run of transformers' Mixtral, whose routers take their softmax in float32; with the names of what eps moves."""
    torch.manual_seed(0)
    model, inputs, options = zoo.build("mixtral")
    logits = Block(lambda s, *tokens: s.inner(*tokens, **options).logits, inner=model).double()
    optimizer = sgd(logits)
    with nf.watch(logits, optimizer, "cross_entropy", inputs, sabotage=sabotage) as run:
        for _ in range(6):
            optimizer.zero_grad()
            output = logits(torch.randint(0, zoo.VOCABULARY, inputs[0].shape))
            F.cross_entropy(output.flatten(0, 1), torch.randint(0, zoo.VOCABULARY, output.shape[:2]).flatten()).backward()
            optimizer.step()
    report = run.report()
    return report, {f.name for f in report.families if f.budget.get("explicit_breaking", 0.0) > 0}


ROUTERS = {f"translation inner.model.layers.{i}.mlp.gate.weight" for i in (0, 1)}


@pytest.mark.slow
def test_mixtral_holds() -> None:
    report, moved = of_mixtral()
    assert report.holds, report.sentence()
    assert all(f.ratio >= 1e-3 for f in report.families if f.residual > 0)
    assert [name.split()[0] for name in moved] == ["scale"]
    assert coarse(report) == moved | ROUTERS


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "found"), [("weight_decay", ROUTERS), ("eps", {"scale inner.model.embed_tokens.weight +4"})])
def test_a_sabotaged_mixtral_fails(kind: str, found: set[str]) -> None:
    failed = {f.name for f in of_mixtral(kind)[0].failed}
    assert found <= failed
    assert kind != "eps" or failed == found


# --- nodes that stand for several operations


def written_out(x: Tensor, inside: torch.dtype) -> Tensor:
    y = x.to(inside)
    return (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-5)).to(x.dtype)


def attending(x: Tensor, inside: torch.dtype) -> Tensor:
    return torch.softmax(x @ x.transpose(-1, -2), -1, dtype=inside).to(x.dtype) @ x


@pytest.mark.parametrize(
    ("function", "operation", "own", "normalised"),
    [
        (lambda s, x: s.g * written_out(s.a(x), Single), "rms_norm", Double, Single),
        (lambda s, x: s.g * written_out(s.a(x), Brain), "rms_norm", Double, Brain),
        (lambda s, x: s.g * written_out(s.a(x), Double), "rms_norm", Double, Double),
        (lambda s, x: attending(s.a(x), Single), "attention", Double, Single),
        (lambda s, x: attending(s.a(x).float(), Brain), "attention", Single, Brain),
        (lambda s, x: F.gelu(s.a(x).float(), approximate="tanh").double() * 1.0, "gelu", Single, Single),
    ],
)
def test_what_is_gathered_keeps_the_types_of_its_parts(
    function: Callable[[Any, Tensor], Tensor], operation: str, own: torch.dtype, normalised: torch.dtype
) -> None:
    model = Block(function, a=nn.Linear(5, 8), g=nn.Parameter(torch.ones(8))).double()
    graph = nf.trace(model, torch.zeros(2, 4, 5).double())
    (node,) = (n for n, data in graph.nodes(data=True) if data["operation"] == operation)
    assert dtype_inside(graph, node, normalizing=False) is own
    assert dtype_inside(graph, node, normalizing=True) is normalised


def test_a_law_whose_reach_is_not_known_meets_everything() -> None:
    build, _ = CASTS["between the first two layers"]
    graph = nf.trace(build().double(), torch.zeros(4, 5).double(), loss="cross_entropy")
    laws = list(nf.derive(graph, nf.rules.SGD(lr=0.1)))
    known = types_met(graph, laws, ())
    assert {met.passed for met in known.values()} == {Single, Double}
    for law in laws:
        object.__setattr__(law.symmetry, "reach", type(law.symmetry.reach)())
    assert {met.passed for met in types_met(graph, laws, ()).values()} == {Single}
