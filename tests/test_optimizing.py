"""The optimizers that the command line builds, and one verification with each kind of law."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

import noetherflow as nf
from noetherflow.cli import main, parser
from noetherflow.optimizing import OPTIMIZERS, built, described


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_every_optimizer_is_built_with_its_usual_step_size_and_has_a_rule(name: str) -> None:
    chosen = parser().parse_args(["verify", "--optimizer", name, "--momentum", "0.8"])
    optimizer = built(chosen, nn.Linear(2, 2))
    assert optimizer.defaults["lr"] == OPTIMIZERS[name].lr
    assert nf.rule_of(optimizer).groups[0].values["weight_decay"] == 5e-4
    assert described(chosen).startswith(type(optimizer).__name__)
    given = parser().parse_args(["verify", "--optimizer", name, "--lr", "0.5"])
    assert built(given, nn.Linear(2, 2)).defaults["lr"] == 0.5


@pytest.mark.parametrize("name", ["adamw", "adadelta"])
def test_the_command_line_verifies_it_and_sees_a_sabotage(name: str, tmp_path: Path) -> None:
    options = [
        "verify",
        "--model",
        "mlp",
        "--data",
        "digits",
        "--optimizer",
        name,
        "--steps",
        "5",
        "--batch",
        "8",
        "--output",
        str(tmp_path),
    ]
    assert main(options) == 0
    assert main([*options, "--sabotage", "sign"]) == 1
