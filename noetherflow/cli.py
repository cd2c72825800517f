"""The command line: ``noetherflow verify | derive | report | list``.

Exit status: 0 if every law holds, 1 if one does not, 2 if the command could not be carried out.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

import noetherflow
from noetherflow.bridge.certificate import Certificate
from noetherflow.bridge.completeness import completeness
from noetherflow.bridge.law_verdict import Completeness
from noetherflow.bridge.optimizers import rule_of
from noetherflow.bridge.rechecking import check_certificate
from noetherflow.bridge.sabotage import SABOTAGES
from noetherflow.bridge.trace import trace
from noetherflow.bridge.verify import verify
from noetherflow.counting import friction, metric
from noetherflow.deriving import load, show
from noetherflow.errors import DataError, ModelError, NoetherflowError, ReportError, RunError
from noetherflow.numeric import data, models
from noetherflow.numeric.progress import activity
from noetherflow.numeric.report import Report
from noetherflow.optimizing import OPTIMIZERS, built, described
from noetherflow.symbolic.display import to_json
from noetherflow.symbolic.drawing import draw_svg
from noetherflow.symbolic.laws import derive

DATA = ("fashion-mnist", "fashion-mnist-subset", "digits", "cifar10")
DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16}
SCHEDULES = ("cosine", "constant")


def parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    top = argparse.ArgumentParser(prog="noetherflow", description="Derives and verifies the conservation laws of learning.")
    top.add_argument("--version", action="version", version=f"noetherflow {noetherflow.__version__}")
    commands = top.add_subparsers(dest="command", required=True)
    _verify_options(
        commands.add_parser("verify", help="train a network on real images and hold the run to its laws", formatter_class=_Formatter)
    )
    _derive_options(
        commands.add_parser("derive", help="print a network's symmetries, charges and balance laws", formatter_class=_Formatter)
    )
    _completeness_options(
        commands.add_parser("completeness", help="count a small network's laws, with a certificate", formatter_class=_Formatter)
    )
    report = commands.add_parser("report", help="show a stored report again", formatter_class=_Formatter)
    report.add_argument("folder", type=Path, help="folder of a verification (it holds report.json)")
    report.add_argument("--html", type=Path, help="write the page here")
    commands.add_parser("list", help="list models, data, optimizers and sabotages", formatter_class=_Formatter)
    return top


class _Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Defaults behind every option."""


def _model_options(one: argparse.ArgumentParser) -> None:
    one.add_argument("--model", default="resnet18", choices=sorted(models.MODELS), help="network")
    one.add_argument("--width", type=float, default=1.0, help="factor on the widths of a convolutional network or the transformer")
    one.add_argument("--batch", type=int, default=16, help="images in a batch")
    one.add_argument("--loss", default="cross_entropy", choices=["cross_entropy", "mse"], help="loss; mse is taken against one-hot labels")


def _verify_options(one: argparse.ArgumentParser) -> None:
    _model_options(one)
    one.add_argument(
        "--data", default="fashion-mnist", choices=DATA, help="real images; the full set if it is on the machine, else a shipped subset"
    )
    one.add_argument("--data-root", type=Path, help="folder of the data set (needed for cifar10)")
    one.add_argument("--optimizer", default="sgd", choices=sorted(OPTIMIZERS), help="torch.optim's own")
    usual = ", ".join(f"{choice.lr:g} for {name}" for name, choice in OPTIMIZERS.items())
    one.add_argument("--lr", type=float, help=f"step size at the start; if absent, {usual}")
    one.add_argument("--momentum", type=float, default=0.9, help="of sgd and rmsprop; of adam and its like the first beta")
    one.add_argument("--dampening", type=float, default=0.0)
    one.add_argument("--weight-decay", type=float, default=5e-4)
    one.add_argument(
        "--nesterov", action=argparse.BooleanOptionalAction, default=True, help="(sgd only, with momentum and without dampening)"
    )
    one.add_argument("--maximize", action="store_true", help="ascend instead of descend")
    one.add_argument("--schedule", default="cosine", choices=SCHEDULES, help="of the step size")
    one.add_argument("--clip", type=float, default=1.0, help="largest norm of the gradient; 0 for none")
    one.add_argument("--accumulate", type=int, default=1, help="batches per step")
    one.add_argument("--steps", type=int, default=200, help="optimizer steps")
    one.add_argument("--dtype", default="float64", choices=sorted(DTYPES), help="of parameters and images")
    one.add_argument("--device", default="cpu", help="cpu or cuda")
    one.add_argument("--seed", type=int, default=0)
    one.add_argument("--output", type=Path, default=Path("noetherflow-report"), help="folder for the report and the trajectories")
    one.add_argument(
        "--sabotage", choices=sorted(SABOTAGES), help="break the laws on purpose: " + "; ".join(f"{k}: {v}" for k, v in SABOTAGES.items())
    )
    one.add_argument("--verbose", action="store_true", help="one line for every family")


def _derive_options(one: argparse.ArgumentParser) -> None:
    one.add_argument("target", nargs="?", metavar="MODEL", help="a model listed here, or FILE.py:FUNCTION that returns (model, inputs)")
    _model_options(one)
    one.add_argument("--latex", action="store_true", help="formulas in LaTeX")
    one.add_argument("--json", type=Path, help="write families, generators, charges and balance laws here ('-': to the terminal)")
    one.add_argument("--graph", type=Path, help="write the architecture graph here: .json or .svg")


def _completeness_options(one: argparse.ArgumentParser) -> None:
    one.add_argument(
        "target", nargs="?", metavar="MODEL", help="FILE.py:FUNCTION that returns (model, inputs), or a model of noetherflow list"
    )
    one.add_argument("--width", type=float, default=1.0, help="factor on the widths of a listed convolutional network or the transformer")
    one.add_argument("--batch", type=int, default=2, help="images in a batch of a listed model")
    one.add_argument("--loss", default="none", choices=["none", "cross_entropy", "mse"], help="none: laws that hold for every loss")
    one.add_argument("--without-eps", action="store_true", help="count for eps = 0 in every normalisation")
    one.add_argument("--twin", action="store_true", help="count for a twin of smaller width, also if the network is small enough")
    one.add_argument("--balls", action="store_true", help="prove the count of a smooth network in ball arithmetic; needs python-flint")
    one.add_argument("--seed", type=int, default=0)
    one.add_argument("--certificate", type=Path, help="write a certificate here")
    one.add_argument(
        "--metric",
        action="append",
        metavar="METRIC",
        help="count along the flow of a metric: 'natural' (the whole Fisher matrix), or a mirror potential in x such as 'x*log(x)'; "
        "again as PARAMETER=POTENTIAL for single parameters",
    )
    one.add_argument(
        "--friction", type=friction, metavar="N", help="count along the momentum flow with this friction, an integer of at least 1"
    )
    one.add_argument("--check", type=Path, metavar="FILE", help="compute a certificate again instead")
    one.add_argument(
        "--model",
        dest="module",
        metavar="MODEL",
        help="with --check: the module that the certificate is of (needed where its graph does not hold all that it computes with)",
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Parameters
    ----------
    arguments : sequence of str, optional
        Those of the process if absent.

    Returns
    -------
    int
        Exit status.
    """
    chosen = parser().parse_args(arguments)
    commands = {"verify": _verify, "derive": _derive, "completeness": _completeness, "report": _report, "list": _list}
    try:
        return commands[chosen.command](chosen, Console())
    except NoetherflowError as err:
        Console(stderr=True).print(f"noetherflow {chosen.command}: {err}", style="red", markup=False, highlight=False)
        return 2
    except KeyboardInterrupt:
        Console(stderr=True).print(f"Stopped. What was recorded so far lies in {getattr(chosen, 'output', '.')}.", markup=False)
        return 130


def _verify(chosen: argparse.Namespace, console: Console) -> int:
    _check(chosen)
    output = _writable(chosen.output)
    model, spec = _built(chosen)
    model = model.to(chosen.device, DTYPES[chosen.dtype])
    images = _images(chosen)
    batches = images.batches(
        chosen.batch, chosen.seed, chosen.steps * chosen.accumulate, spec.image, DTYPES[chosen.dtype], torch.device(chosen.device)
    )
    pairs = ((x, y if chosen.loss == "cross_entropy" else torch.nn.functional.one_hot(y, images.classes).to(x.dtype)) for x, y in batches)
    optimizer = built(chosen, model)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, chosen.steps) if chosen.schedule == "cosine" else None
    console.print(
        f"Training {chosen.model} on {len(images):,} images ({images.name}) for {chosen.steps} steps in {chosen.dtype} ...", highlight=False
    )
    begun = time.monotonic()
    report = verify(
        model,
        optimizer,
        pairs,
        chosen.steps,
        chosen.loss,
        scheduler=scheduler,
        clip=chosen.clip or None,
        accumulate=chosen.accumulate,
        directory=output / "run",
        settings=_settings(chosen, images),
        sabotage=chosen.sabotage,
    )
    report.render(console, verbose=chosen.verbose)
    report.to_json(output / "report.json")
    page = report.to_html(output / "report.html")
    console.print(f"{time.monotonic() - begun:.0f} s. The report: {page}", highlight=False, soft_wrap=True)
    return 0 if report.holds else 1


def _check(chosen: argparse.Namespace) -> None:
    if chosen.device.startswith("cuda") and not torch.cuda.is_available():
        raise RunError(f"'{chosen.device}' was asked for, but torch sees no CUDA device here. Use --device cpu.", device=chosen.device)
    if min(chosen.steps, chosen.batch, chosen.accumulate) < 1:
        raise RunError("--steps, --batch and --accumulate must be at least 1.", steps=chosen.steps, batch=chosen.batch)
    if chosen.nesterov and (chosen.momentum <= 0 or chosen.dampening != 0):
        chosen.nesterov = False


def _writable(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".probe"
        probe.write_text("")
        probe.unlink()
    except OSError as err:
        raise ReportError(
            f"The output folder '{folder}' cannot be written: {err.strerror}. Choose another with --output.", folder=str(folder)
        ) from err
    run = folder / "run"
    for old in ("meta.json", "rows.f64"):
        (run / old).unlink(missing_ok=True)
    return folder


def _built(chosen: argparse.Namespace) -> tuple[torch.nn.Module, models.ModelSpec]:
    widened = {"width": chosen.width} if chosen.model.startswith(("vgg", "resnet", "transformer")) else {}
    if not widened and chosen.width != 1.0:
        raise RunError(f"--width is for the convolutional networks and the transformer; {chosen.model} has none.", model=chosen.model)
    return models.build(chosen.model, seed=getattr(chosen, "seed", 0), **widened), models.MODELS[chosen.model]


def _images(chosen: argparse.Namespace) -> Any:
    if chosen.data == "cifar10":
        if chosen.data_root is None:
            raise DataError("cifar10 is read from a folder you have: name it with --data-root.")
        if not chosen.model.startswith(("vgg", "resnet")):
            raise DataError(f"cifar10 has three colour channels; {chosen.model} takes one.")
        return data.cifar10(chosen.data_root)
    if chosen.data == "digits":
        return data.digits()
    if chosen.data == "fashion-mnist-subset":
        return data.fashion_mnist_subset()
    return data.fashion_mnist(root=chosen.data_root)


def _settings(chosen: argparse.Namespace, images: Any) -> dict[str, str]:
    return {
        "title": f"{chosen.model}: conservation laws against a real run" + (f" (sabotaged: {chosen.sabotage})" if chosen.sabotage else ""),
        "model": chosen.model + (f", width {chosen.width:g}" if chosen.width != 1 else ""),
        "data": f"{images.name}, {len(images):,} images, batches of {chosen.batch}",
        "optimizer": described(chosen),
        "schedule": chosen.schedule,
        "clipping": f"gradient norm at most {chosen.clip:g}" if chosen.clip else "none",
        "loss": chosen.loss,
        "dtype": chosen.dtype,
        "steps": str(chosen.steps),
        "seed": str(chosen.seed),
        "versions": f"noetherflow {noetherflow.__version__}, torch {torch.__version__}",
    }


def _derive(chosen: argparse.Namespace, console: Console) -> int:
    model, inputs = _named(chosen, chosen.target or chosen.model)
    with activity(f"Tracing {chosen.target or chosen.model}"):
        graph = trace(model, *inputs, loss=chosen.loss)
    with activity("Deriving its symmetries and laws"):
        laws = derive(graph, rule_of(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)))
    if str(chosen.json) == "-":
        print(to_json(laws))
        return 0
    show(laws, console, latex=chosen.latex)
    if chosen.json is not None:
        _write(chosen.json, to_json(laws))
    if chosen.graph is not None:
        _write(chosen.graph, graph.to_json() if chosen.graph.suffix == ".json" else draw_svg(graph, laws.symmetries))
    return 0


def _completeness(chosen: argparse.Namespace, console: Console) -> int:
    if chosen.check is not None:
        found = _checked(chosen)
        console.print("The certificate holds: every number was computed again.", style="bold", highlight=False)
    elif chosen.module is not None:
        raise ModelError(f"--model is for --check; to count the laws of {chosen.module}, name it without --model.")
    elif chosen.target is None:
        raise ModelError("Name a model (FILE.py:FUNCTION, or one of noetherflow list), or a certificate with --check.")
    else:
        found = _counted(chosen)
    console.print(str(found), highlight=False, markup=False, soft_wrap=True)
    if chosen.certificate is not None:
        console.print(f"The certificate: {found.certificate.save(chosen.certificate)}", highlight=False, soft_wrap=True)
    return 0 if found.complete else 1


def _checked(chosen: argparse.Namespace) -> Completeness:
    if chosen.metric or chosen.friction is not None:
        raise ModelError("--check: the certificate says along which flow it was counted. Leave --metric and --friction out.")
    if chosen.module and chosen.target:
        raise ModelError(f"--check got two models, {chosen.target} and {chosen.module}. Name one.")
    certificate, named = Certificate.load(chosen.check), chosen.module or chosen.target
    model, inputs = _named(chosen, named) if named else (None, ())
    with activity(f"Computing {chosen.check} again"):
        return check_certificate(certificate, model, *inputs)


def _counted(chosen: argparse.Namespace) -> Completeness:
    model, inputs = _named(chosen, chosen.target)
    options = {
        "loss": None if chosen.loss == "none" else chosen.loss,
        "metric": metric(chosen.metric, [name for name, _ in model.named_parameters()]),
        "friction": chosen.friction,
        "without_eps": chosen.without_eps,
    }
    with activity(f"Counting the laws of {chosen.target}"):
        return completeness(model, *inputs, **options, twin=chosen.twin or None, balls=chosen.balls, seed=chosen.seed)


def _named(chosen: argparse.Namespace, name: str) -> tuple[torch.nn.Module, tuple[Any, ...]]:
    """A model by its name here, or the user's own, with inputs."""
    if name not in models.MODELS:
        return load(name)
    chosen.model = name
    model, spec = _built(chosen)
    return model, (torch.zeros(chosen.batch, spec.channels, spec.image, spec.image),)


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    except OSError as err:
        raise ReportError(f"'{path}' cannot be written: {err.strerror}. Choose another.", path=str(path)) from err


def _report(chosen: argparse.Namespace, console: Console) -> int:
    report = Report.from_json(chosen.folder / "report.json")
    report.render(console)
    if chosen.html is not None:
        console.print(f"The report: {report.to_html(chosen.html)}", highlight=False, soft_wrap=True)
    return 0 if report.holds else 1


def _list(chosen: argparse.Namespace, console: Console) -> int:
    rows = {
        "models": ", ".join(sorted(models.MODELS)),
        "data": ", ".join(DATA),
        "optimizers": ", ".join(OPTIMIZERS),
        "sabotages": ", ".join(sorted(SABOTAGES)),
    }
    for name, members in rows.items():
        console.print(f"{name:12s}{members}", highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
