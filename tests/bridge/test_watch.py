"""Laws against real optimizers: every option of SGD, every dtype, clipping, accumulation, groups, schedules; and every way to be wrong."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from support.budgets import check_budget
from support.nets import INPUTS, convnet, linear_net, train, watched
from torch import nn

import noetherflow as nf
from noetherflow.bridge.sabotage import SABOTAGES
from noetherflow.errors import RuleError, RunError
from noetherflow.numeric.models import TiedMLP
from noetherflow.numeric.recorder import open_run

SGD = torch.optim.SGD


def halves(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    parameters = list(model.parameters())
    return parameters[::2], parameters[1::2]


def two_groups(first: dict[str, float], second: dict[str, float], **common: object) -> Callable[[nn.Module], torch.optim.Optimizer]:
    def make(model: nn.Module) -> torch.optim.Optimizer:
        even, odd = halves(model)
        return SGD([{"params": even, **first}, {"params": odd, **second}], lr=0.05, **common)  # type: ignore[arg-type]

    return make


OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "plain": lambda m: SGD(m.parameters(), lr=0.05),
    "decay": lambda m: SGD(m.parameters(), lr=0.05, weight_decay=0.01),
    "momentum": lambda m: SGD(m.parameters(), lr=0.05, momentum=0.9),
    "momentum and decay": lambda m: SGD(m.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01),
    "dampening": lambda m: SGD(m.parameters(), lr=0.05, momentum=0.8, dampening=0.4, weight_decay=0.01),
    "nesterov": lambda m: SGD(m.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.01),
    "maximize": lambda m: SGD(m.parameters(), lr=0.01, momentum=0.9, weight_decay=0.01, maximize=True),
    "nesterov maximize": lambda m: SGD(m.parameters(), lr=0.01, momentum=0.9, nesterov=True, maximize=True),
    "foreach off": lambda m: SGD(m.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01, foreach=False),
    "group rates": two_groups({"lr": 0.05}, {"lr": 0.02}),
    "group decays": two_groups({"weight_decay": 0.01}, {"weight_decay": 0.0}, momentum=0.9),
    "group rates, nesterov": two_groups({"lr": 0.05, "weight_decay": 0.01}, {"lr": 0.02}, momentum=0.9, nesterov=True),
    "group dampenings": two_groups({"dampening": 0.5}, {"dampening": 0.1}, momentum=0.9),
    "group momenta": two_groups({"momentum": 0.9, "weight_decay": 0.01}, {"momentum": 0.5, "lr": 0.02}),
    "momentum in one group": two_groups({"momentum": 0.9}, {"momentum": 0.0}, weight_decay=0.01),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("build", [convnet, linear_net])
def test_every_option_of_sgd_holds_to_rounding(name: str, build: Callable[[], nn.Module]) -> None:
    run = watched(build, OPTIMIZERS[name], INPUTS[build.__name__], scheduled=True, clip=0.5, accumulate=2)
    report = run.report()
    assert report.holds, report.sentence()
    assert all(f.residual <= 1e-11 * f.scale for f in report.families)
    check_budget(run, report)
    rescaled = [f for f in report.families if f.kind in ("rescale", "linear")]
    assert rescaled
    assert all(f.motion >= 1e-5 * f.scale for f in rescaled)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["plain", "momentum and decay", "nesterov"])
def test_every_dtype_is_within_its_bound_and_the_bound_is_not_loose(dtype: torch.dtype, name: str) -> None:
    report = watched(convnet, OPTIMIZERS[name], INPUTS["convnet"], 60, dtype=dtype, scheduled=True).report()
    assert report.holds, report.sentence()
    moving = [f for f in report.families if f.residual > 0]
    assert moving
    assert all(f.ratio >= 1e-3 for f in moving), "the bound is more than a thousand times the residual"


@pytest.mark.parametrize("kind", sorted(set(SABOTAGES) - {"untie"}))
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_every_sabotage_is_caught(kind: str, dtype: torch.dtype) -> None:
    if kind == "eps" and dtype is torch.float32:
        pytest.skip("at unit variance eps moves the charge by less than a float32 roundoff per step")
    report = watched(convnet, OPTIMIZERS["momentum and decay"], INPUTS["convnet"], 60, dtype=dtype, watching={"sabotage": kind}).report()
    assert not report.holds
    failed = {f.kind for f in report.failed}
    expected = {"weight_decay": {"scale", "null", "rescale", "translation"}, "momentum": {"scale", "rescale"}, "sign": {"scale", "rescale"}}
    assert expected.get(kind, {"scale"} if kind == "eps" else {"rescale"}) <= failed
    assert all(f.first_step is not None for f in report.failed)


def test_a_sabotage_names_the_families_at_fault_and_no_others() -> None:
    report = watched(convnet, OPTIMIZERS["momentum"], INPUTS["convnet"], watching={"sabotage": "gradient"}).report()
    assert {f.name for f in report.failed} == {"rescale 4.weight +2", "rescale 7.weight +2"}  # the layer 7 that was scaled, on both sides


def test_untying_a_shared_weight_is_caught() -> None:
    def build() -> nn.Module:
        return TiedMLP(6, 4, 3)

    assert watched(build, OPTIMIZERS["momentum"], (16, 6)).report().holds
    report = watched(build, OPTIMIZERS["momentum"], (16, 6), watching={"sabotage": "untie"}).report()
    assert [f.name for f in report.failed] == ["rescale first.weight +4"]


def test_a_generator_that_is_no_symmetry_is_rejected_whatever_its_first_order_expansion_says() -> None:
    """tanh is not homogeneous: a rescaling law put on it by hand must fail."""
    torch.manual_seed(0)
    relu = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)).double()
    tanh = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    graph = nf.trace(relu, torch.zeros(16, 5).double())
    optimizer = SGD(tanh.parameters(), lr=0.05)
    run = nf.watch(tanh, optimizer, "cross_entropy", torch.zeros(16, 5).double())
    assert [law.symmetry.kind for law in run.laws] == ["translation", "translation"]
    graph.graph["identities"] = {id(p): n for n, p in tanh.named_parameters()}
    from_relu = nf.derive(graph, nf.rule_of(optimizer))
    run.monitor.__init__(list(from_relu), type(run.monitor.state)(tanh, optimizer, tuple(graph.parameters)), {})  # type: ignore[misc]
    with run:
        train(tanh, optimizer, (16, 5), 20)
    assert not run.report().holds


# --- how a run is used


def test_every_mechanism_of_a_rule_is_in_its_budget() -> None:
    run = watched(convnet, OPTIMIZERS["nesterov"], INPUTS["convnet"], scheduled=True)
    report = run.report()
    check_budget(run, report)
    for family in report.families:
        assert {"weight_decay", "momentum"} <= set(family.motion_parts)
        assert ("discretization" in family.motion_parts) or family.kind in ("translation", "null")


def test_a_resumed_run_is_the_run_that_was_not_interrupted(tmp_path: Path) -> None:
    shape = INPUTS["convnet"]

    def fresh() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = convnet().double()
        return model, OPTIMIZERS["momentum and decay"](model)

    model, optimizer = fresh()
    with nf.watch(model, optimizer, "cross_entropy", torch.zeros(shape).double(), directory=tmp_path / "whole") as whole:
        train(model, optimizer, shape, 10, seed=1)
        train(model, optimizer, shape, 10, seed=2)
    model, optimizer = fresh()
    with nf.watch(model, optimizer, "cross_entropy", torch.zeros(shape).double(), directory=tmp_path / "parts") as first:
        train(model, optimizer, shape, 10, seed=1)
    states = model.state_dict(), optimizer.state_dict(), first.state_dict()
    torch.save(states, tmp_path / "checkpoint.pt")
    states = torch.load(tmp_path / "checkpoint.pt", weights_only=False)
    model, optimizer = fresh()
    model.load_state_dict(states[0])
    optimizer.load_state_dict(states[1])
    second = nf.watch(model, optimizer, "cross_entropy", torch.zeros(shape).double(), directory=tmp_path / "parts")
    second.load_state_dict(states[2])
    with second:
        train(model, optimizer, shape, 10, seed=2)
    a, b = whole.report(), second.report()
    assert b.holds
    assert [f.residual for f in a.families] == [f.residual for f in b.families]
    assert [dict(f.motion_parts) for f in a.families] == [dict(f.motion_parts) for f in b.families]
    assert open_run(tmp_path / "parts").steps.tolist() == open_run(tmp_path / "whole").steps.tolist() == list(range(21))


def test_attaching_in_the_middle_of_training_starts_from_the_buffer_as_it_is() -> None:
    torch.manual_seed(0)
    model = convnet().double()
    optimizer = OPTIMIZERS["momentum and decay"](model)
    train(model, optimizer, INPUTS["convnet"], 5)
    with nf.watch(model, optimizer, "cross_entropy", torch.zeros(INPUTS["convnet"]).double()) as run:
        train(model, optimizer, INPUTS["convnet"], 20, seed=3)
    assert run.report().holds


def test_the_first_forward_pass_can_stand_for_example_inputs() -> None:
    torch.manual_seed(0)
    model = convnet().double()
    optimizer = OPTIMIZERS["momentum"](model)
    with nf.watch(model, optimizer, "cross_entropy") as run:
        train(model, optimizer, INPUTS["convnet"], 5)
    assert run.report().holds
    assert len(run.report().families) == 7


def test_evaluation_between_steps_changes_nothing() -> None:
    torch.manual_seed(0)
    model = convnet().double()
    optimizer = OPTIMIZERS["momentum"](model)

    def evaluate(step: int) -> None:
        model.eval()
        with torch.no_grad():
            model(torch.randn(8, 1, 8, 8).double())
        model.train()
        with torch.no_grad():
            model(torch.randn(8, 1, 8, 8).double())

    with nf.watch(model, optimizer, "cross_entropy", torch.zeros(INPUTS["convnet"]).double()) as run:
        train(model, optimizer, INPUTS["convnet"], 10, after=evaluate)
    assert run.report().holds


def test_autocast_is_noticed_and_its_coarser_rounding_allowed_for() -> None:
    torch.manual_seed(0)
    model = convnet()
    optimizer = OPTIMIZERS["momentum and decay"](model)
    with nf.watch(model, optimizer, "cross_entropy", torch.zeros(INPUTS["convnet"])) as run:
        for _ in range(30):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                loss = nn.functional.cross_entropy(model(torch.randn(INPUTS["convnet"])).float(), torch.randint(0, 3, (16,)))
            loss.backward()
            optimizer.step()
    report = run.report()
    assert report.holds, report.sentence()
    assert max(f.residual / f.scale for f in report.families) > 1e-6, "in float32 alone it would be smaller"
    assert min(f.ratio for f in report.families) >= 1e-3


def test_hooks_are_taken_off_and_the_model_is_left_as_it_was() -> None:
    torch.manual_seed(0)
    model = convnet().double()
    optimizer = OPTIMIZERS["momentum"](model)
    with nf.watch(model, optimizer, "cross_entropy", torch.zeros(INPUTS["convnet"]).double()):
        pass
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


def test_memory_is_per_charge_not_per_step() -> None:
    torch.manual_seed(0)
    model = convnet().double()
    optimizer = OPTIMIZERS["nesterov"](model)

    def held(run: object) -> int:
        found = run.state_dict()  # type: ignore[attr-defined]
        tensors = [t for p in found["predictions"] for t in _tensors(p)] + [t for p in found["tallies"] for t in _tensors(p)]
        return sum(t.numel() for t in tensors)

    sizes = []
    with nf.watch(model, optimizer, "cross_entropy", torch.zeros(INPUTS["convnet"]).double()) as run:
        for seed in range(3):
            train(model, optimizer, INPUTS["convnet"], 5, seed=seed)
            sizes.append(held(run))
    assert all(a == b for a, b in pairwise(sizes))


def _tensors(value: object) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    members = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else []
    return [t for member in members for t in _tensors(member)]


# --- bad input


def test_a_model_with_nan_is_refused() -> None:
    model = convnet()
    with torch.no_grad():
        dict(model.named_parameters())["4.weight"].view(-1)[0] = torch.nan
    with pytest.raises(RunError, match=r"'4.weight'.*not finite"):
        nf.watch(model, SGD(model.parameters(), lr=0.1), example_inputs=torch.zeros(2, 1, 8, 8))


def test_an_optimizer_of_another_model_is_refused() -> None:
    model, other = convnet(), convnet()
    with pytest.raises(RunError, match="not parameters of this model"):
        nf.watch(model, SGD(other.parameters(), lr=0.1), example_inputs=torch.zeros(2, 1, 8, 8))
    with pytest.raises(RunError, match=r"does not move \['4.weight'"):
        nf.watch(model, SGD(list(model.parameters())[:4], lr=0.1), example_inputs=torch.zeros(2, 1, 8, 8))


def test_a_rule_it_does_not_know_is_refused_by_name() -> None:
    model = convnet()
    with pytest.raises(RuleError, match=r"Rprop.*Known: Adadelta.*SGD"):
        nf.watch(model, torch.optim.Rprop(model.parameters()), example_inputs=torch.zeros(2, 1, 8, 8))

    class Faster(SGD):
        pass

    with pytest.raises(RuleError, match="Faster"):
        nf.rule_of(Faster(model.parameters(), lr=0.1))


def test_another_loss_than_the_named_one_is_refused_at_the_first_step() -> None:
    torch.manual_seed(0)
    model = convnet().double()
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = SGD(model.parameters(), lr=0.1)
    inputs = torch.randn(INPUTS["convnet"]).double()
    with nf.watch(model, optimizer, "cross_entropy", inputs):
        model(inputs).square().mean().backward()
        with pytest.raises(RunError, match="not the cross-entropy that was named"):
            optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)), "nothing was lost: no step was made"


def test_a_missing_gradient_is_refused() -> None:
    model = convnet().double()
    optimizer = SGD(model.parameters(), lr=0.1)
    inputs = torch.zeros(INPUTS["convnet"]).double()
    with nf.watch(model, optimizer, "cross_entropy", inputs), pytest.raises(RunError, match="No gradient for"):
        optimizer.step()


def test_an_unwritable_folder_is_refused_before_the_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    model = convnet().double()
    run = nf.watch(
        model, SGD(model.parameters(), lr=0.1), example_inputs=torch.zeros(2, 1, 8, 8).double(), directory=tmp_path / "file" / "run"
    )
    with pytest.raises(RunError, match="file"):
        run.__enter__()


def test_a_model_without_laws_is_refused_with_its_opaque_operations() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    with pytest.raises(RunError, match="No conservation law"):
        nf.watch(model, SGD(model.parameters(), lr=0.1), example_inputs=torch.zeros(2, 3))


def test_a_run_that_diverges_fails_and_says_so() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
    optimizer = SGD(model.parameters(), lr=1e20)
    with nf.watch(model, optimizer, example_inputs=torch.zeros(16, 5)) as run:
        for _ in range(10):
            optimizer.zero_grad()
            model(torch.randn(16, 5)).square().mean().backward()
            optimizer.step()
    report = run.report()
    assert not report.holds
    assert "not finite" in report.failed[0].reason
