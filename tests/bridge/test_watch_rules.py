"""Laws of torch.optim's other rules against real runs: every option, every family, and every way to be wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sympy as sp
import torch
from support.budgets import check_budget
from support.nets import train, watched
from support.rule_cases import MATRIX_RULES, RULES, SHAPES, Make, alone, halved, matrices, mixed, perceptron
from torch import nn, optim

import noetherflow as nf
from noetherflow.bridge import optimizer_readers
from noetherflow.bridge.optimizers import READERS
from noetherflow.bridge.watch import Watch
from noetherflow.errors import RunError
from noetherflow.symbolic.forms import Form
from noetherflow.symbolic.nonlinear import Larger
from noetherflow.symbolic.rules_adaptive import BETA1, EPS, H, M, V, adam_form, nadam_form, rmsprop_form

Build = Callable[[], nn.Module]
ALL = RULES | MATRIX_RULES


def run_of(make: Make, build: Build = perceptron, steps: int = 10, **options: Any) -> Watch:
    return watched(build, make, SHAPES[build], steps, **options)


def net_for(name: str, otherwise: Build = perceptron) -> Build:
    return matrices if name in MATRIX_RULES else otherwise


def averages(name: str) -> bool:
    """Whether a rule keeps a running average of gradients in all of its groups."""
    return name.startswith(("adam", "amsgrad", "nadam", "muon", "rmsprop, centred"))


@pytest.mark.parametrize("name", ALL)
def test_every_rule_holds_to_rounding(name: str) -> None:
    run = run_of(ALL[name], net_for(name, mixed), scheduled="tensor" not in name, clip=0.5)
    report = run.report()
    assert report.holds, report.sentence()
    check_budget(run, report)
    kinds = {"rescale", "linear", "translation"} | (set() if name in MATRIX_RULES else {"scale", "null"})
    kinds |= {"rotation"} if averages(name) else set()  # the others leave angular momenta without a law
    assert {f.kind for f in report.families} == kinds
    for family in report.families:
        if family.kind != "null":  # a gradient that is rounding and nothing else is divided by its own size: the charge moves by noise
            assert family.residual <= 1e-13 * family.scale
            assert family.motion >= 1e6 * family.residual
        assert ("kinetic_symmetry_breaking" in family.motion_parts) == (family.kind != "rotation")


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *((name, torch.float32) for name in ("adamw", "adam, fused", "nadam", "rmsprop, centred with momentum", "adagrad", "adadelta")),
        *((name, torch.bfloat16) for name in ("amsgrad", "rmsprop", "muon")),
    ],
)
def test_every_dtype_is_within_its_bound_and_the_bound_is_not_loose(name: str, dtype: torch.dtype) -> None:
    report = run_of(ALL[name], net_for(name, mixed), 20, dtype=dtype, scheduled=True).report()
    assert report.holds, report.sentence()
    moving = [f for f in report.families if f.residual > 0]
    assert moving
    assert all(f.ratio >= 1e-3 for f in moving), "the bound is more than a thousand times the residual"


# --- wrong laws


@pytest.mark.parametrize(
    ("name", "kind", "dtype"),
    [
        *(("adamw", kind, torch.float64) for kind in ("weight_decay", "momentum", "gradient", "sign", "generator")),
        *(("adamw", kind, torch.float32) for kind in ("weight_decay", "sign", "generator")),
        *(("rmsprop, centred with momentum", kind, torch.float64) for kind in ("weight_decay", "momentum", "generator")),
        *(("muon", kind, torch.float64) for kind in ("weight_decay", "momentum", "generator")),
        *(("adadelta", kind, torch.float64) for kind in ("gradient", "sign")),
    ],
)
def test_every_sabotage_is_caught(name: str, kind: str, dtype: torch.dtype) -> None:
    report = run_of(ALL[name], net_for(name), 30, dtype=dtype, watching={"sabotage": kind}).report()
    assert not report.holds
    assert "rescale" in {f.kind for f in report.failed}


def test_a_rule_whose_eps_current_is_left_out_fails_for_the_scale_alone() -> None:
    report = run_of(RULES["rmsprop, momentum"], mixed, watching={"sabotage": "eps"}).report()
    assert {f.kind for f in report.failed} == {"scale"}


def changed(form: Form, vector: str, expression: sp.Expr) -> Form:
    return replace(form, equations=tuple((v, expression if v.name == vector else e) for v, e in form.equations))


WRONG: dict[str, tuple[Make, Callable[[Any], Form]]] = {
    "decay coupled that is not": (RULES["adamw"], lambda o: adam_form(decoupled=False)),
    "decay decoupled that is not": (RULES["adam, coupled decay"], lambda o: adam_form(decoupled=True)),
    "decay dropped": (RULES["adamw"], lambda o: changed(adam_form(decoupled=True), "u", sp.sympify(adam_form().equations[-2][0]))),
    "largest average forgotten": (RULES["amsgrad"], lambda o: adam_form(maximize=True)),
    "descending instead of ascending": (RULES["amsgrad"], lambda o: adam_form(amsgrad=True)),
    "average of another momentum": (
        RULES["adam"],
        lambda o: changed(adam_form(), "m'", (BETA1 + sp.Rational(1, 1000)) * M + (1 - BETA1) * H),
    ),
    "eps under the root": (
        RULES["adam, no momentum"],
        lambda o: changed(adam_form(), "d", H / sp.sqrt(adam_form().equations[2][0] / adam_form().hyperparameters[-1][1] + EPS)),
    ),
    "no Nesterov momentum": (RULES["nadam"], lambda o: replace(nadam_form(), equations=_without_nesterov())),
    "not centred": (RULES["rmsprop, centred"], lambda o: rmsprop_form(maximize=True)),
    "square of the last gradient": (RULES["rmsprop"], lambda o: changed(rmsprop_form(), "v'", Larger(V, H**2))),
}


def _without_nesterov() -> tuple[Any, ...]:
    form = nadam_form()
    (step,) = [e for v, e in form.equations if v.name == "d"]
    return changed(form, "d", step.xreplace({H: dict(form.buffers)[M]})).equations


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_update_equation_is_rejected(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, form = WRONG[what]
    kind = type(make(perceptron()))
    monkeypatch.setitem(READERS, kind, replace(READERS[kind], make=form))  # type: ignore[type-var]
    report = run_of(make, steps=6).report()
    assert not report.holds
    assert {"rescale", "translation"} <= {f.kind for f in report.failed}


@pytest.mark.parametrize("name", ["correction1", "correction2", "beta1", "beta2", "eps", "lr"])
def test_a_wrong_number_is_rejected(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    known = optimizer_readers.ADAM.numbers

    class Wrong(optimizer_readers.TableReader):
        def values(self, options: Any, state: Any) -> dict[str, float]:
            found = super().values(options, state)
            return found | {name: found[name] * (1.1 if name == "eps" else 1.0001)}

    wrong = Wrong(optimizer_readers.ADAM.make, optimizer_readers.ADAM.plain, optimizer_readers.ADAM.keys, known)
    monkeypatch.setitem(READERS, optim.Adam, wrong)
    assert not run_of(RULES["adam"], steps=6).report().holds


@pytest.mark.parametrize("name", ["adam", "rmsprop, momentum", "adadelta", "muon"])
def test_a_generator_that_is_no_symmetry_is_rejected(name: str) -> None:
    """Tanh is not homogeneous: a rescaling law put on it by hand must fail, though every first-order expansion is true of it."""
    bias = net_for(name) is perceptron
    torch.manual_seed(0)
    relu, tanh = (nn.Sequential(nn.Linear(5, 4, bias=bias), kind, nn.Linear(4, 3, bias=bias)).double() for kind in (nn.ReLU(), nn.Tanh()))
    graph = nf.trace(relu, torch.zeros(12, 5).double())
    optimizer = ALL[name](tanh)
    run = nf.watch(tanh, optimizer, "cross_entropy", torch.zeros(12, 5).double())
    graph.graph["identities"] = {id(p): n for n, p in tanh.named_parameters()}
    from_relu = nf.derive(graph, nf.rule_of(optimizer))
    run.monitor.__init__(list(from_relu), type(run.monitor.state)(tanh, optimizer, tuple(graph.parameters)), {})  # type: ignore[misc]
    with run:
        train(tanh, optimizer, (12, 5), 12)
    assert not run.report().holds


# --- the momentum itself


@pytest.mark.parametrize("name", ["adam", "adamw", "nadam", "rmsprop, momentum", "muon"])
def test_the_momentum_obeys_its_recursion(name: str) -> None:
    """⟨ξ(θ), m⟩ from the generators and the optimizer's state, beside what was carried from the start without a gradient."""
    run = run_of(ALL[name], net_for(name))
    parameters = {n: p.detach() for n, p in run.model.named_parameters()}
    checked = 0
    for bundle, prediction in zip(run.monitor.bundles, run.monitor.predictions, strict=True):
        (k,) = bundle.balance.momenta
        predicted = sum(prediction.momenta[k.name].values(), torch.zeros(()))
        vector = bundle.balance.buffer_of(k, 0).name
        for law, start in zip(bundle.laws, bundle.starts, strict=False):
            if law.symmetry.matrix:
                continue
            for i in range(int(law.count)):
                direction = torch.zeros(law.symmetry.dimension, dtype=torch.float64)
                direction[i] = 1.0
                moved = law.symmetry.tangent(parameters, direction)
                measured = sum(float((x * run.monitor.state.buffers(n)[vector]).sum()) for n, x in moved.items())
                size = sum(float((x * run.monitor.state.buffers(n)[vector]).abs().sum()) for n, x in moved.items())
                assert abs(measured - float(predicted[start + i])) <= 1e-13 * size
                checked += abs(measured) > 1e-9 * size
    assert checked, "a momentum that is not just zero"


# --- how a run is used


def test_a_run_that_goes_on_in_another_process_gives_the_same_verdict(tmp_path: Path) -> None:
    def fresh() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = mixed().double()
        return model, RULES["adamw"](model)

    inputs = torch.zeros(SHAPES[mixed]).double()
    model, optimizer = fresh()
    with nf.watch(model, optimizer, "cross_entropy", inputs, directory=tmp_path / "a") as whole:
        train(model, optimizer, SHAPES[mixed], 8)
        train(model, optimizer, SHAPES[mixed], 8, seed=2)
    model, optimizer = fresh()
    with nf.watch(model, optimizer, "cross_entropy", inputs, directory=tmp_path / "b") as first:
        train(model, optimizer, SHAPES[mixed], 8)
    kept = first.state_dict(), model.state_dict(), optimizer.state_dict()
    model, optimizer = fresh()
    second = nf.watch(model, optimizer, "cross_entropy", inputs, directory=tmp_path / "b")
    second.load_state_dict(kept[0])
    model.load_state_dict(kept[1])
    optimizer.load_state_dict(kept[2])
    with second:
        train(model, optimizer, SHAPES[mixed], 8, seed=2)
    a, b = whole.report(), second.report()
    assert a.holds
    assert [f.residual for f in a.families] == [f.residual for f in b.families]
    assert [f.ratio for f in a.families] == pytest.approx([f.ratio for f in b.families], rel=0.01)  # norms' noise is measured afresh
    assert [dict(f.motion_parts) for f in a.families] == [dict(f.motion_parts) for f in b.families]


def test_attaching_in_the_middle_of_training_starts_from_the_state_as_it_is() -> None:
    torch.manual_seed(0)
    model = mixed().double()
    optimizer = RULES["adamw"](model)
    train(model, optimizer, SHAPES[mixed], 5)
    with nf.watch(model, optimizer, "cross_entropy", torch.zeros(SHAPES[mixed]).double()) as run:
        train(model, optimizer, SHAPES[mixed], 10, seed=3)
    assert run.report().holds


@pytest.mark.parametrize("make", [RULES["adamw"], halved(optim.AdamW, {"weight_decay": 0.1}, {"weight_decay": 0.0})])
def test_a_warm_up_from_a_step_size_of_zero(make: Make) -> None:
    torch.manual_seed(0)
    model = mixed().double()
    optimizer = make(model)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(step / 4, 1.0))
    with nf.watch(model, optimizer, "cross_entropy", torch.zeros(SHAPES[mixed]).double()) as run:
        train(model, optimizer, SHAPES[mixed], 10, scheduler=scheduler)
    assert run.report().holds


def test_parameters_of_one_group_that_started_at_different_steps_are_refused() -> None:
    torch.manual_seed(0)
    model = perceptron().double()
    optimizer = alone(optim.Adam, lr=1e-3)(model)
    train(model, optimizer, SHAPES[perceptron], 2)
    optimizer.state[next(model.parameters())]["step"] += 1
    with (
        nf.watch(model, optimizer, "cross_entropy", torch.zeros(SHAPES[perceptron]).double()),
        pytest.raises(RunError, match="different numbers of steps"),
    ):
        train(model, optimizer, SHAPES[perceptron], 1)


def test_orthogonal_factors_are_those_of_torch() -> None:
    """One step of the real optimizer from rest: the direction handed to the law, times the step size, is the motion."""
    torch.manual_seed(0)
    for shape in ((5, 3), (3, 5), (4, 4)):
        w = nn.Parameter(torch.randn(shape, dtype=torch.float64))
        before, w.grad = w.detach().clone(), torch.randn(shape, dtype=torch.float64)
        optimizer = optim.Muon([w], lr=0.1, weight_decay=0.0)
        direction = READERS[optim.Muon].given(optimizer.param_groups[0], w, {})["d"]
        optimizer.step()
        assert torch.allclose(before - w.detach(), 0.1 * direction, rtol=0, atol=1e-15)
