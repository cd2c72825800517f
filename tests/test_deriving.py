"""``noetherflow derive``: models of the project's own and of the user's, tables, JSON, drawings, and wrong input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from noetherflow.cli import main
from noetherflow.deriving import load
from noetherflow.errors import ModelError

MODULE = """
import torch
from torch import nn

def block():
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.randn(5, 3)

def stream():
    class Stream(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.out = nn.Linear(3, 4, bias=False), nn.Linear(4, 2)
            self.norm = nn.RMSNorm(4, elementwise_affine=False)

        def forward(self, x):
            return self.out(self.norm(self.embed(x)))

    return Stream(), torch.randn(5, 3)

def nothing():
    return nn.Linear(3, 4)
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(MODULE)
    return path


def test_a_model_of_the_users_own(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "new folder" / "laws.json"
    assert main(["derive", f"{file}:block", "--loss", "mse", "--json", str(output), "--graph", str(tmp_path / "graph.svg")]) == 0
    shown = capsys.readouterr().out
    assert "rescale" in shown
    assert "1 law, 4 charges; 4 generators" in shown
    assert json.loads(output.read_text())["charges"] == 4
    assert (tmp_path / "graph.svg").read_text().startswith("<svg")


def test_angular_momenta_stand_under_the_charges(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "laws.json"
    assert main(["derive", f"{file}:stream", "--json", str(output), "--latex"]) == 0
    shown = capsys.readouterr().out
    assert "rotation embed.weight, out.weight: 6" in shown
    assert r"K = \left(b_{\mathtt{embed.weight}}" in shown
    assert "6 angular momenta of rotations" in " ".join(shown.split())
    (rotation,) = (family for family in json.loads(output.read_text())["families"] if family["kind"] == "rotation")
    assert rotation["charges"] == 0
    assert rotation["angular_momentum"]["count"] == 6
    assert rotation["angular_momentum"]["balance"] == ["Eq(K', J*(1 - tau) + K*mu)"]


def test_json_to_the_terminal_is_json_and_nothing_else(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["derive", f"{file}:block", "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["families"]


def test_latex_stands_under_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["derive", "mlp", "--latex"]) == 0
    assert r"\tfrac12\|" in capsys.readouterr().out


@pytest.mark.parametrize("target", ["nosuch", "nosuch.py:block", "{file}:missing", "{file}:nothing"])
def test_what_is_not_a_model_is_named(target: str, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = target.format(file=file)
    with pytest.raises(ModelError):
        load(target)
    assert main(["derive", target]) == 2
    assert "noetherflow derive:" in capsys.readouterr().err


def test_a_file_that_cannot_be_written_is_an_error(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "taken").write_text("")
    assert main(["derive", f"{file}:block", "--json", str(tmp_path / "taken" / "laws.json")]) == 2
    assert "cannot be written" in capsys.readouterr().err
