"""The optimizers that the command line builds, and one verification with each kind of law."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import noetherflow as nf
from noetherflow.cli import main, parser
from noetherflow.errors import RunError
from noetherflow.numeric.companions import Companions, muon_with_adamw
from noetherflow.optimizing import OPTIMIZERS, built, described


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_every_optimizer_is_built_with_its_usual_step_size_and_has_a_rule(name: str) -> None:
    chosen = parser().parse_args(["verify", "--optimizer", name, "--momentum", "0.8"])
    optimizer = built(chosen, nn.Linear(2, 2))
    assert optimizer.defaults["lr"] == OPTIMIZERS[name].lr
    assert nf.rule_of(optimizer).groups[0].values["weight_decay"] == 5e-4
    assert described(chosen).startswith(OPTIMIZERS[name].build.__name__)
    given = parser().parse_args(["verify", "--optimizer", name, "--lr", "0.5"])
    assert built(given, nn.Linear(2, 2)).defaults["lr"] == 0.5


@pytest.mark.parametrize("name", ["adamw", "muon"])
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


def test_muon_takes_matrices_and_leaves_the_rest_to_its_companion() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3))
    both = muon_with_adamw(model, lr=0.02, weight_decay=0.1)
    assert [(g["optimizer"], len(g["params"]), g["lr"], g["weight_decay"]) for g in both.param_groups] == [
        ("Muon", 1, 0.02, 0.1),
        ("AdamW", 3, 1e-3, 0.1),
    ]
    assert type(muon_with_adamw(nn.Linear(3, 2, bias=False))) is torch.optim.Muon
    with pytest.raises(RunError, match="moves matrices"):
        muon_with_adamw(nn.Conv2d(1, 1, 3))
    with pytest.raises(RunError, match="no step yet"):
        Companions()
    chosen = parser().parse_args(["verify", "--optimizer", "muon", "--maximize"])
    with pytest.raises(RunError, match="does not ascend"):
        built(chosen, model)


def test_companions_share_their_state_and_go_on_from_a_stored_one() -> None:
    def stepped(steps: int, *, stored: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)
        model = nn.Linear(3, 2)
        optimizer = muon_with_adamw(model)
        for step in range(steps):
            if stored and step == 2:
                kept, optimizer = optimizer.state_dict(), muon_with_adamw(model)
                optimizer.load_state_dict(kept)
            optimizer.zero_grad()
            model(torch.ones(4, 3) * (step + 1)).square().mean().backward()
            optimizer.step()
        assert len(optimizer.state) == 2
        return [p.detach() for p in model.parameters()]

    for whole, resumed in zip(stepped(4, stored=False), stepped(4, stored=True), strict=True):
        assert torch.equal(whole, resumed)
