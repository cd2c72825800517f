"""Twins without symmetries: the same function, no direction left unseen, no law left standing."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import noetherflow as nf
from noetherflow.errors import ModelError


class Attention(nn.Module):
    """Two heads, from the parts."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(4, 4, bias=False) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (2, 2)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        return self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "relu": (lambda: nf.models.MLP([5, 8, 3]), (200, 5)),
    "linear": (lambda: nn.Sequential(nn.Linear(5, 2), nn.Linear(2, 3)), (200, 5)),
    "three layers": (
        lambda: nn.Sequential(nn.Linear(4, 5), nn.LeakyReLU(0.2), nn.Linear(5, 6), nn.LeakyReLU(0.2), nn.Linear(6, 2)),
        (200, 4),
    ),
    "convolution": (lambda: nn.Sequential(nn.Conv1d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2)), (200, 1, 6)),
    "attention": (Attention, (40, 5, 4)),
    "tanh": (lambda: nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)), (200, 5)),
}


def net(name: str) -> tuple[nn.Module, Tensor]:
    torch.default_generator.manual_seed(0)
    make, shape = NETS[name]
    return make().double(), 4 * torch.randn(shape, dtype=torch.float64)  # wide: each unit is on for some samples and off for others


@pytest.mark.parametrize("name", sorted(NETS))
def test_no_direction_is_left_and_the_function_is_the_same(name: str) -> None:
    """Measured by the rank of the Jacobian, which knows no theory: all that the twin does not see are the weights that it holds."""
    model, x = net(name)
    twin = nf.without_symmetries(model, x)
    before, after = (nf.unexplained(m, [x]) for m in (model, twin.model))
    assert before.measured == twin.removed
    assert after.measured == twin.count
    assert min(before.gap, after.gap) > 1e6
    assert torch.equal(twin.model(x), model(x))
    assert twin.count >= twin.removed
    group = nf.discrete_symmetries(nf.trace(twin.model, x))
    assert (len(nf.symmetries(nf.trace(twin.model, x))), group.order) == (0, 1)
    assert twin.order == nf.discrete_symmetries(nf.trace(model, x)).order > 1


def test_as_few_weights_are_held_as_there_are_generators() -> None:
    model, x = net("three layers")
    twin = nf.without_symmetries(model, x)
    assert twin.count == twin.removed == 5 + 6
    held = next(iter(twin.held))
    one_less = {name: mask.clone() for name, mask in twin.held.items()}
    one_less[held].view(-1)[int(one_less[held].flatten().nonzero()[0])] = False
    loose = nf.without_symmetries(model, x).model
    for name, mask in one_less.items():
        module = loose.get_submodule(name.rpartition(".")[0])
        module.parametrizations[name.rpartition(".")[2]][0].mask.copy_(mask)  # type: ignore[index, operator, union-attr]
    assert nf.unexplained(loose, [x]).measured == twin.count - 1 + 1, "one direction is back"


def test_what_is_held_does_not_move_and_the_rest_learns() -> None:
    model, x = net("relu")
    twin = nf.without_symmetries(model, x)
    optimizer = torch.optim.SGD(twin.model.parameters(), lr=0.1, momentum=0.9)
    weights = [layer.weight for layer in twin.model.layers]  # type: ignore[union-attr]
    for _ in range(20):
        optimizer.zero_grad()
        twin.model(x).square().mean().backward()
        optimizer.step()
    for name, layer, old in zip(("layers.0.weight", "layers.1.weight"), twin.model.layers, weights, strict=True):  # type: ignore[arg-type]
        moved = layer.weight != old
        assert not (moved & twin.held[name]).any()
        assert moved[~twin.held[name]].all()


def test_no_law_of_the_original_holds_in_the_twin() -> None:
    """The exact law of each charge, on the twin's own effective weights: off by far more than rounding; on the original it holds."""
    model, x = net("relu")
    twin = nf.without_symmetries(model, x).model
    y, rate = torch.arange(200) % 3, 0.1

    def charges(m: nn.Module) -> Tensor:
        first, second = (layer for layer in m.layers)  # type: ignore[union-attr]
        return (first.weight.square().sum(1) + first.bias.square() - second.weight.square().sum(0)).detach() / 2

    def miss(m: nn.Module) -> Tensor:
        before = charges(m)
        effective = [t for layer in m.layers for t in (layer.weight, layer.bias)]  # type: ignore[union-attr]
        old = [t.detach().clone() for t in effective]
        F.cross_entropy(m(x), y).backward()
        with torch.no_grad():
            for p in m.parameters():
                p.sub_(rate * p.grad)  # type: ignore[operator]
        new = [t.detach() for layer in m.layers for t in (layer.weight, layer.bias)]  # type: ignore[union-attr]
        w, b, u, _ = ((o - n) / rate for o, n in zip(old, new, strict=True))
        return (charges(m) - before - rate**2 / 2 * (w.square().sum(1) + b.square() - u.square().sum(0))).abs()

    rounding = 2.0**-53 * 2**8
    assert float(miss(model).max()) < rounding
    assert float(miss(twin).min()) > 1e6 * rounding


def test_too_many_generators_are_refused() -> None:
    model = nn.Sequential(nn.Linear(60, 60), nn.Linear(60, 60))
    with pytest.raises(ModelError, match="generators are too many"):
        nf.without_symmetries(model, torch.randn(2, 60))


def test_units_whose_gains_are_all_one_are_told_apart() -> None:
    """Gains that start at one were held and nothing else: the units could still be exchanged."""

    class Gains(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.gain, self.outer = nn.Linear(3, 5), nn.Parameter(torch.ones(5)), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.outer(torch.relu(self.gain * torch.tanh(self.inner(x))))

    torch.manual_seed(0)
    model = Gains().double()
    graph = nf.trace(model, torch.randn(6, 3).double())
    assert nf.discrete_symmetries(graph).order == 120 * 2**5  # permutations, and signs of gain and weights
    twin = nf.without_symmetries(model, graph)
    values = {name: p.detach() * twin.held.get(name, torch.zeros(1)) for name, p in model.named_parameters()}
    units = [values["inner.weight"], values["inner.bias"], values["gain"], values["outer.weight"].T]
    for i, j in combinations(range(5), 2):
        assert any(not torch.equal(t[i], t[j]) for t in units), (i, j)
