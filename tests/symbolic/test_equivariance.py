"""Which symmetries a rule respects: read off its equations, and tried on real steps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import noetherflow as nf
from noetherflow.symbolic import rules
from noetherflow.symbolic.forms import Rule

ENTRYWISE = ("permutations", "signs")
TABLE: dict[str, tuple[Rule, tuple[str, ...]]] = {
    "sgd": (rules.SGD(momentum=0.9, nesterov=True), ("rotations", *ENTRYWISE)),
    "ahead": (rules.NesterovLookahead(), ("rotations", *ENTRYWISE)),
    "natural": (rules.NaturalGradient(), ("rotations", *ENTRYWISE)),
    "muon": (rules.Muon(), ("rotations", *ENTRYWISE)),
    "adamw": (rules.AdamW(), ENTRYWISE),
    "amsgrad": (rules.AMSGrad(), ENTRYWISE),
    "rmsprop": (rules.RMSprop(centered=True), ENTRYWISE),
    "lion": (rules.Lion(), ENTRYWISE),
    "hypentropy": (rules.MirrorDescent(rules.hypentropy()), ENTRYWISE),
    "entropy": (rules.MirrorDescent(), ("permutations",)),
}


@pytest.mark.parametrize("name", TABLE)
def test_what_a_rule_respects_follows_from_its_equations(name: str) -> None:
    rule, wanted = TABLE[name]
    found = nf.equivariance(rule)
    assert [kind for kind in ("rotations", *ENTRYWISE) if getattr(found, kind)] == list(wanted)
    assert found.whole_axes == (name == "muon")


def test_a_second_moment_does_not_turn_with_the_signs() -> None:
    assert {str(v): parity for v, parity in nf.equivariance(rules.RMSprop(centered=True, momentum=0.9)).parities.items()} == {
        "v": 1,
        "m": -1,
        "b": -1,
    }


def stepped(theta: Tensor, kind: type[torch.optim.Optimizer], turn: Tensor) -> Tensor:
    """Three steps on f(Rᵀθ), for which R maps the runs of f to runs."""
    parameter = torch.nn.Parameter(turn @ theta)
    optimizer = kind([parameter], lr=0.05)  # type: ignore[call-arg]
    for _ in range(3):
        optimizer.zero_grad()
        ((turn.mT @ parameter) ** 4 / 4 + (turn.mT @ parameter)[0] * (turn.mT @ parameter)[1]).sum().backward()
        optimizer.step()
    return turn.mT @ parameter.detach()


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.RMSprop])
def test_steps_commute_with_what_is_said_and_with_nothing_more(kind: type[torch.optim.Optimizer]) -> None:
    theta = torch.tensor([0.5, -1.2, 0.8], dtype=torch.float64)
    found = nf.equivariance(nf.rule_of(kind([torch.nn.Parameter(theta)])))  # type: ignore[call-arg]
    c, s = torch.cos(torch.tensor(0.7)), torch.sin(torch.tensor(0.7))
    turns = {
        "permutations": torch.eye(3)[[2, 0, 1]],
        "signs": torch.diag(torch.tensor([1.0, -1.0, -1.0])),
        "rotations": torch.tensor([[c, -s, 0], [s, c, 0], [0, 0, 1]]),
    }
    plain = stepped(theta, kind, torch.eye(3, dtype=torch.float64))
    for name, turn in turns.items():
        exact = torch.linalg.qr(turn.double()).Q  # orthogonal to float64 rounding
        gap = float((stepped(theta, kind, exact) - plain).abs().max())
        # three steps of some ten roundings each, against a step size of 0.05
        assert (gap < 100 * 2.0**-53) == getattr(found, name), (name, gap)
