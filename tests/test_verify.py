"""The main job end to end: real networks on real images, every law held to rounding, every sabotage caught; and the command line."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.func import functional_call

import noetherflow as nf
from noetherflow.bridge.sabotage import SABOTAGES
from noetherflow.cli import main
from noetherflow.errors import RunError
from noetherflow.numeric.models import MODELS, build
from noetherflow.numeric.report import Report

STEPS = 120


def real_run(name: str, dtype: torch.dtype, batch: int, steps: int, *, width: float = 1.0, sabotage: str | None = None) -> Report:
    """SGD with momentum 0.9, weight decay 5e-4, Nesterov, a cosine schedule and clipping, on Fashion-MNIST."""
    model = build(name, seed=0, width=width).to(dtype)
    with torch.no_grad():  # at zero, where torch starts them, the difference of two BatchNorms' shifts is a charge that stays zero
        generator = torch.Generator().manual_seed(0)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.bias.normal_(0, 0.1, generator=generator)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4, nesterov=True)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    batches = nf.data.fashion_mnist_subset().batches(batch, 0, steps, MODELS[name].image, dtype)
    return nf.verify(model, optimizer, batches, steps, scheduler=scheduler, clip=1.0, sabotage=sabotage)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "batch", "width"), [("resnet18", 16, 1.0), ("vgg16_bn", 8, 0.5)])
def test_float64_holds_to_eleven_digits_while_the_charges_move(name: str, batch: int, width: float) -> None:
    report = real_run(name, torch.float64, batch, STEPS, width=width)
    assert report.holds, report.sentence()
    assert all(f.steps == STEPS for f in report.families)
    assert all(f.residual < 1e-11 * f.scale for f in report.families)
    assert all(f.motion >= 1e-4 * f.scale for f in report.families)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "batch"), [("resnet18", 16), ("vgg16_bn", 8)])
def test_float32_is_within_its_bound_and_the_bound_is_not_loose(name: str, batch: int) -> None:
    report = real_run(name, torch.float32, batch, 60, width=0.5)
    assert report.holds, report.sentence()
    assert all(f.ratio >= 1e-3 for f in report.families), "the bound is more than a thousand times the residual"


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(set(SABOTAGES) - {"untie"}))
def test_every_sabotage_of_a_real_run_is_caught_and_named(kind: str) -> None:
    report = real_run("resnet18", torch.float64, 8, 10, width=0.125, sabotage=kind)
    assert not report.holds
    kinds = {f.kind for f in report.failed}
    assert (
        kinds
        == {
            "weight_decay": {"scale", "rescale", "translation"},
            "momentum": {"scale", "rescale", "translation"},
            "gradient": {"rescale", "scale"},  # of the scaled layer alone: its eps current is scaled with its gradient
            "sign": {"scale", "rescale"},
            "generator": {"rescale", "translation"},
            "eps": {"scale"},
            "hold": {"scale", "rescale", "translation"},
        }[kind]
    )
    if kind == "gradient":
        (layer,) = set.intersection(*(set(f.parameters) for f in report.failed))
        assert {f.name for f in report.failed} == {f.name for f in report.families if layer in f.parameters}


@pytest.mark.parametrize("name", ["mlp", "tied_mlp", "resnet18", "vgg16", "vgg16_bn"])
def test_finite_transformations_leave_the_loss_of_a_real_batch_unchanged(name: str) -> None:
    torch.manual_seed(0)
    narrow = {} if "mlp" in name else {"width": 0.125}
    model = build(name, seed=0, **narrow).double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-30  # the scale laws are exact symmetries at eps = 0, which torch refuses
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # one mask for both evaluations
    images, labels = next(iter(nf.data.fashion_mnist_subset().batches(16, 0, 1, MODELS[name].image, torch.float64)))
    params = {n: p.detach() for n, p in model.named_parameters()}

    def loss(values: dict[str, torch.Tensor]) -> float:
        return float(nn.functional.cross_entropy(functional_call(model, values, (images,)), labels))

    before = loss(params)
    generator = torch.Generator().manual_seed(3)
    for symmetry in nf.symmetries(nf.trace(model, images, loss="cross_entropy")):
        direction = 0.3 * torch.randn(symmetry.dimension, generator=generator, dtype=torch.float64)
        moved = symmetry.transform(params, direction)
        assert any(not torch.equal(moved[n], params[n]) for n in symmetry.parameters)
        assert abs(loss(moved) - before) <= 1e-10 * abs(before), symmetry.name


def test_a_loader_with_accumulation_and_the_users_own_loss() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10)).double()
    data = torch.utils.data.TensorDataset(torch.randn(96, 8, 8).double(), torch.randint(0, 10, (96,)))
    loader = torch.utils.data.DataLoader(data, batch_size=8, shuffle=True)

    def smooth(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(output, target, label_smoothing=0.1)

    report = nf.verify(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), loader, steps=6, loss=smooth, accumulate=2)
    assert report.holds, report.sentence()
    assert [f.kind for f in report.families] == ["rescale", "translation", "translation"]


def mlp_with(**options: object) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, o: nf.verify(m, o, []), "no batches"),
        (lambda m, o: nf.verify(m, o, [(torch.zeros(2, 4), torch.zeros(2).long())], steps=3), "ended after 1 of 3"),
        (lambda m, o: nf.verify(m, o, [(torch.zeros(2, 4), torch.zeros(2).long())], loss="hinge"), "Unknown loss 'hinge'"),
        (lambda m, o: nf.verify(m, o, [(torch.zeros(2, 4), torch.zeros(2).long())], loss=None), "needs a loss"),
        (lambda m, o: nf.verify(m.to("meta"), o, [(torch.zeros(2, 4), torch.zeros(2).long())]), "on meta, the batches on"),
        (lambda m, o: nf.verify(m, o, [(torch.zeros(2, 4), torch.zeros(2).long())], sabotage="fire"), "Unknown sabotage"),
    ],
)
def test_bad_calls_say_what_to_do(call: Callable[..., object], message: str) -> None:
    with pytest.raises(RunError, match=message):
        call(*mlp_with())


# --- the command line

QUICK = ["--model", "mlp", "--batch", "16", "--steps", "5", "--data", "fashion-mnist-subset"]


def test_the_command_writes_a_report_and_its_status_is_the_verdict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", *QUICK, "--output", str(tmp_path / "good")]) == 0
    assert "laws hold" in " ".join(capsys.readouterr().out.split())
    assert main(["verify", *QUICK, "--output", str(tmp_path / "bad"), "--sabotage", "sign"]) == 1
    assert "laws fail" in " ".join(capsys.readouterr().out.split())
    assert main(["report", str(tmp_path / "bad"), "--html", str(tmp_path / "again.html")]) == 1
    for page in (tmp_path / "good/report.html", tmp_path / "again.html"):
        text = page.read_text()
        assert "<svg" in text
        assert "://" not in text.replace("http://www.w3.org", ""), "the page asks for nothing from outside"
    assert Report.from_json(tmp_path / "good/report.json").holds


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["verify", *QUICK, "--device", "cuda"], "no CUDA device"),
        (["verify", *QUICK, "--output", "/proc/nowhere"], "cannot be written"),
        (["verify", *QUICK, "--data", "cifar10"], "--data-root"),
        (["verify", *QUICK, "--width", "0.5"], "mlp has none"),
        (["verify", *QUICK, "--sabotage", "untie"], "no shared linear layer"),
        (["verify", *QUICK, "--steps", "0"], "at least 1"),
        (["report", "/nowhere"], "report.json"),
    ],
)
def test_bad_commands_exit_with_2_and_say_why(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    if torch.cuda.is_available() and "cuda" in arguments:
        pytest.skip("there is a CUDA device here")
    extra = [] if "--output" in arguments or arguments[0] == "report" else ["--output", str(tmp_path)]
    assert main([*arguments, *extra]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_derive_and_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["derive", "--model", "mlp", "--graph", str(tmp_path / "graph.json"), "--latex"]) == 0
    out = capsys.readouterr().out
    assert "rescale" in out
    assert "4 laws, 257 charges" in out, "128 + 64 hidden units; 64 column sums and 1 bias sum over the classes"
    assert nf.ArchitectureGraph.from_json((tmp_path / "graph.json").read_text()).parameters
    assert main(["list"]) == 0
    assert all(name in capsys.readouterr().out for name in islice(MODELS, 1))
