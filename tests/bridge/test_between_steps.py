"""A symmetry-aware optimizer: the function of every move is the same, memory is carried along, and the orbit's start is forgotten."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import noetherflow as nf
from noetherflow.bridge.teleport import squared_gradient
from noetherflow.errors import ModelError

X = torch.randn(40, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
Y = torch.arange(40) % 3
STEPS = 30
# rounding of some thousand terms, amplified over the steps of a run that learns
EXACT = 2.0**-53 * 2**14

RULES: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True),
    "decay": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.01),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, eps=0.0),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, eps=0.0, momentum=0.9),
}


def net(seed: int = 0, scrambled: float = 0.0) -> nn.Sequential:
    """A network at some place of its orbit."""
    torch.default_generator.manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    (family,) = nf.symmetries(nf.trace(model, X))
    direction = scrambled * torch.randn(8, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    model.load_state_dict({**model.state_dict(), **family.transform(dict(model.named_parameters()), direction)})
    return model


def run(model: nn.Module, rule: str, every: int | None) -> Tensor:
    """Outputs after every step, moved to balance before the first."""
    optimizer = RULES[rule](model.parameters())
    moving = nf.between_steps(optimizer, model, nf.trace(model, X), every=every) if every else None
    if moving is not None:
        moving.move()
    outputs = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        F.cross_entropy(model(X), Y).backward()
        optimizer.step()
        outputs.append(model(X).detach())
    return torch.stack(outputs)


@pytest.mark.parametrize("rule", ["sgd", "momentum", "decay"])
def test_with_rebalancing_a_run_forgets_its_place_on_the_orbit(rule: str) -> None:
    there, scrambled = (run(net(scrambled=s), rule, 1) for s in (0.0, 1.0))
    assert float((there - scrambled).abs().max()) < EXACT * float(there.abs().max())
    plain = [run(net(scrambled=s), rule, None) for s in (0.0, 1.0)]
    assert float((plain[0] - plain[1]).abs().max()) > 0.1 * float(plain[0].abs().max()), "without it, it does not"


@pytest.mark.parametrize("rule", sorted(RULES))
def test_a_move_and_its_way_back_leave_the_optimizer_where_it_was(rule: str) -> None:
    """What is remembered goes along by g⁻ᵀ (squares by its square): one move there and one back are none."""
    model = net(scrambled=0.5)
    optimizer = RULES[rule](model.parameters())
    moving = nf.between_steps(optimizer, model, nf.trace(model, X), every=10**6)
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(model(X), Y).backward()
        optimizer.step()
    before = {(n, k): t.clone() for n, p in enumerate(model.parameters()) for k, t in optimizer.state[p].items() if torch.is_tensor(t)}
    moved = moving.move()
    assert moved is not None
    during = {(n, k): t.clone() for n, p in enumerate(model.parameters()) for k, t in optimizer.state[p].items() if torch.is_tensor(t)}
    for element in reversed(moved.elements):
        moving._carry(type(element)(element.family, -element.value))
    after = {(n, k): t for n, p in enumerate(model.parameters()) for k, t in optimizer.state[p].items() if torch.is_tensor(t)}
    for key, old in before.items():
        assert torch.allclose(after[key], old, rtol=1e-12, atol=0), key
    buffers = [key for key in before if key[1] != "step" and key[0] < 3]
    assert all(not torch.allclose(during[key], before[key]) for key in buffers)
    assert bool(buffers) == (rule != "sgd")


@pytest.mark.parametrize("rule", ["momentum", "adam"])
def test_gradients_at_the_new_point_are_what_memory_was_carried_to(rule: str) -> None:
    """Memory of one gradient: after a move it is the memory of the gradient there."""
    model = net(scrambled=0.8)
    optimizer = RULES[rule](model.parameters())
    optimizer.zero_grad()
    F.cross_entropy(model(X), Y).backward()
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer.step()
    with torch.no_grad():  # back to where the gradient was taken
        for name, p in model.named_parameters():
            p.copy_(start[name])
    nf.between_steps(optimizer, model, nf.trace(model, X)).move()
    model.zero_grad()
    F.cross_entropy(model(X), Y).backward()
    for p in model.parameters():
        assert p.grad is not None
        state = optimizer.state[p]
        if rule == "momentum":
            assert torch.allclose(state["momentum_buffer"], p.grad, rtol=1e-9, atol=1e-14)
        else:
            assert torch.allclose(state["exp_avg"], 0.1 * p.grad, rtol=1e-9, atol=1e-14)
            assert torch.allclose(state["exp_avg_sq"], 0.001 * p.grad**2, rtol=1e-9, atol=1e-14)


def test_matrix_families_carry_momentum_too() -> None:
    torch.default_generator.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 2, bias=False), nn.Linear(2, 3, bias=False)).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    F.cross_entropy(model(X), Y).backward()
    start = [p.detach().clone() for p in model.parameters()]
    optimizer.step()
    with torch.no_grad():
        for p, old in zip(model.parameters(), start, strict=True):
            p.copy_(old)
    moved = nf.between_steps(optimizer, model, nf.trace(model, X)).move()
    assert moved is not None
    assert moved.after < 0.99 * moved.before
    model.zero_grad()
    F.cross_entropy(model(X), Y).backward()
    for p in model.parameters():
        assert p.grad is not None
        assert torch.allclose(optimizer.state[p]["momentum_buffer"], p.grad, rtol=1e-9, atol=1e-14)
    adam = nf.between_steps(torch.optim.Adam(model.parameters()), model, nf.trace(model, X))
    assert adam.move() is None
    assert list(adam.left.values()) == ["averages of squares cannot be carried by matrices"]


def test_teleportation_goes_where_the_gradient_is_larger() -> None:
    model = net()
    optimizer = RULES["sgd"](model.parameters())
    objective = squared_gradient(model, F.cross_entropy, X, Y)
    with nf.between_steps(optimizer, model, nf.trace(model, X), every=2, objective=objective, steps=3) as moving:
        for _ in range(4):
            optimizer.zero_grad()
            F.cross_entropy(model(X), Y).backward()
            optimizer.step()
    assert [move.step for move in moving.moves] == [2, 4]
    assert all(move.after > move.before for move in moving.moves)
    optimizer.step()
    assert len(moving.moves) == 2, "it ended with the block"


def test_without_symmetries_nothing_moves() -> None:
    """Negative control: on the twin it is plain gradient descent, bit for bit."""
    outputs = []
    for every in (None, 1):
        twin = nf.without_symmetries(net(), X).model
        outputs.append(run(twin, "momentum", every))
    assert torch.equal(*outputs)


def test_what_cannot_be_carried_is_refused() -> None:
    model = net()
    optimizer = torch.optim.Adadelta(model.parameters())
    with nf.between_steps(optimizer, model, X):
        F.cross_entropy(model(X), Y).backward()
        optimizer.step()
        with pytest.raises(ModelError, match=r"Adadelta remembers \['acc_delta'\]"):
            optimizer.step()
    with pytest.raises(ModelError, match="every=0"):
        nf.between_steps(optimizer, model, X, every=0)
    with pytest.raises(ModelError, match="not the model's"):
        nf.between_steps(optimizer, net(), X)
