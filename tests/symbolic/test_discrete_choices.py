"""Experts that a network chooses by size: E! (N!)^E, and no permutation of experts where anything tells them apart.

Scores are numbers in general: none tie.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from math import factorial

import pytest
import torch
from support import zoo
from support.real_models import TOLERANCE, Judge, exact
from torch import Tensor, nn
from torch.nn import functional as F

import noetherflow as nf
from noetherflow.symbolic.discrete import DiscreteSymmetries
from noetherflow.symbolic.discrete_elements import swap

EXPERTS, HIDDEN, WIDTH = 3, 5, 4
INSIDE = factorial(HIDDEN) ** EXPERTS
REFLECTION = 2  # of the linear space between the experts and the reader
EXACT = 1e-13  # outputs are of size one to ten: a few hundred roundings of 1e-16

Choice = Callable[["Mixture", Tensor], tuple[Tensor, Tensor]]


def chosen(scores: Tensor, **options: bool) -> tuple[Tensor, Tensor]:
    """The two best."""
    values, index = scores.topk(2, -1, **options)
    return values, index


def gathered(scores: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """The probabilities of chosen experts."""
    return scores.softmax(-1).gather(-1, index), index


# Weights and indices of the experts of each sample, from a router's scores.
CHOICES: dict[str, Choice] = {
    "topk of softmax": lambda m, s: chosen(s.softmax(-1)),
    "softmax of topk": lambda m, s: ((found := chosen(s))[0].softmax(-1), found[1]),
    "smallest": lambda m, s: chosen(s.softmax(-1), largest=False),
    "best": lambda m, s: gathered(s, s.argmax(-1, keepdim=True)),
    "maximum": lambda m, s: s.softmax(-1).max(-1, keepdim=True)[:2],
    "sorted": lambda m, s: s.softmax(-1).sort(-1, descending=True)[:2],
    "with a trained bias": lambda m, s: gathered(s, chosen(s + m.trained)[1]),
    # these tell experts apart
    "with a fixed bias": lambda m, s: gathered(s, chosen(s + m.fixed)[1]),
    "in no order": lambda m, s: chosen(s.softmax(-1), sorted=False),
}

# What is made of the experts' outputs y, shape (batch, slot, width).
ENDS: dict[str, Callable[[Mixture, Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "sum": lambda m, x, y, w, i: (y * w.unsqueeze(-1)).sum(1),
    "einsum": lambda m, x, y, w, i: torch.einsum("nk,nkd->nd", w, y),
    "matmul": lambda m, x, y, w, i: (w.unsqueeze(1) @ y)[:, 0],
    "by rank": lambda m, x, y, w, i: y[:, 0] - 2 * y[:, 1],
    "with a table": lambda m, x, y, w, i: (y + m.table(i)).sum(1),
    # these tell experts apart
    "with their numbers": lambda m, x, y, w, i: (y + i.to(y.dtype).unsqueeze(-1)).sum(1),
    "with a fixed table": lambda m, x, y, w, i: (y + m.fixed_table[i]).sum(1),
    "with a longer table": lambda m, x, y, w, i: (y + m.longer[i]).sum(1),
    "with the next": lambda m, x, y, w, i: (y + m.experts(x, (i + 1) % EXPERTS)).sum(1),
}


class Mixture(nn.Module):
    """The chosen experts of a router, their weights stacked, and a reader."""

    fixed: Tensor
    fixed_table: Tensor

    def __init__(self, choice: str = "topk of softmax", end: str = "sum") -> None:
        super().__init__()
        self.choice, self.end = choice, end
        self.router, self.read, self.table = nn.Linear(WIDTH, EXPERTS), nn.Linear(WIDTH, 6), nn.Embedding(EXPERTS, WIDTH)
        self.up, self.down = nn.Parameter(torch.randn(EXPERTS, HIDDEN, WIDTH)), nn.Parameter(torch.randn(EXPERTS, WIDTH, HIDDEN))
        self.trained, self.longer = nn.Parameter(torch.randn(EXPERTS)), nn.Parameter(torch.randn(2 * EXPERTS, WIDTH))
        self.register_buffer("fixed", torch.randn(EXPERTS))
        self.register_buffer("fixed_table", torch.randn(EXPERTS, WIDTH))

    def experts(self, x: Tensor, index: Tensor) -> Tensor:
        """Shape (batch, slot, width)."""
        hidden = F.silu(torch.einsum("nd,nkhd->nkh", x, self.up[index]))
        return torch.einsum("nkh,nkdh->nkd", hidden, self.down[index])

    def forward(self, x: Tensor) -> Tensor:
        """Shape (batch, 6)."""
        weights, index = CHOICES[self.choice](self, self.router(x))
        return self.read(ENDS[self.end](self, x, self.experts(x, index), weights, index))


class Dense(Mixture):
    """The same with all experts computed, and gates of zero for those that are not chosen."""

    def forward(self, x: Tensor) -> Tensor:
        """Shape (batch, 6)."""
        weights, index = CHOICES[self.choice](self, self.router(x))
        gates = (F.one_hot(index, EXPERTS).to(x.dtype) * weights.unsqueeze(-1)).sum(1)
        hidden = F.silu(torch.einsum("nd,ehd->neh", x, self.up))
        return self.read(torch.einsum("neh,edh,ne->nd", hidden, self.down, gates))


def built(*how: str, kind: type[Mixture] = Mixture) -> tuple[nn.Module, Tensor, DiscreteSymmetries]:
    torch.manual_seed(0)
    model, x = kind(*how).double(), torch.randn(9, WIDTH, dtype=torch.float64)
    return model, x, nf.discrete_symmetries(nf.trace(model, x))


def change(model: nn.Module, x: Tensor, point: dict[str, Tensor]) -> float:
    return float((torch.func.functional_call(model, point, (x,)) - model(x)).detach().abs().max())


def point_of(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.detach() for n, p in model.named_parameters()}


def of_experts(found: DiscreteSymmetries) -> list[int]:
    return [i for i, f in enumerate(found) if f.kind == "permutation" and f.sizes == (EXPERTS,)]


@pytest.mark.parametrize(
    ("choice", "end"), [*((c, "sum") for c in list(CHOICES)[:-2]), *(("topk of softmax", e) for e in list(ENDS)[1:-4])]
)
def test_experts_and_units_inside_each_are_permuted(choice: str, end: str) -> None:
    model, x, found = built(choice, end)
    assert found.order == factorial(EXPERTS) * INSIDE * REFLECTION
    point = point_of(model)
    for seed in range(3):
        assert change(model, x, found.transform(point, found.random(seed))) < EXACT
    (factor,) = of_experts(found)
    moved = found.transform(point, swap(found, factor, 0, 1))
    assert {n for n, p in moved.items() if not torch.equal(p, point[n])} >= {"router.weight", "up", "down"}
    for left in ("router.weight", "up", "down"):
        assert change(model, x, {**moved, left: point[left]}) > 1e-3


@pytest.mark.parametrize(
    ("choice", "end", "order"),
    [
        ("with a fixed bias", "sum", INSIDE * REFLECTION),
        ("topk of softmax", "with their numbers", None),
        ("topk of softmax", "with a fixed table", None),
        ("topk of softmax", "with a longer table", None),
        ("topk of softmax", "with the next", INSIDE * REFLECTION),
    ],
)
def test_what_tells_experts_apart_lets_none_be_interchanged(choice: str, end: str, order: int | None) -> None:
    model, x, found = built(choice, end)
    assert not of_experts(found)
    assert order in (None, found.order)
    assert found.order % INSIDE == 0
    point = point_of(model)
    for seed in range(3):
        assert change(model, x, found.transform(point, found.random(seed))) < EXACT
    _, _, wrong = built()
    assert change(model, x, wrong.transform(point, swap(wrong, of_experts(wrong)[0], 0, 1))) > 1e-3


def test_a_choice_in_no_order_is_not_looked_through() -> None:
    """Not found, although a sum over slots would not see their order."""
    model, x, found = built("in no order")
    assert not of_experts(found)
    assert change(model, x, found.transform(point_of(model), found.random(0))) < EXACT


def test_ties_are_broken_by_number() -> None:
    """The condition of the theorem is needed: with equal scores the first experts are taken, whichever they are."""
    model, x, found = built()
    for parameter in model.router.parameters():
        nn.init.zeros_(parameter)
    moved = found.transform(point_of(model), swap(found, of_experts(found)[0], 0, 2))
    assert change(model, x, moved) > 1e-3


def test_experts_that_are_computed_all_and_gated_have_the_same_group() -> None:
    model, x, found = built(kind=Dense)
    assert found.order == factorial(EXPERTS) * INSIDE * REFLECTION
    assert change(model, x, found.transform(point_of(model), found.random(2))) < EXACT


class Ranked(nn.Module):
    """The largest hidden units, in order, and a reader with a weight for each rank."""

    def __init__(self) -> None:
        super().__init__()
        self.write, self.read = nn.Linear(WIDTH, HIDDEN), nn.Linear(2, 6)

    def forward(self, x: Tensor) -> Tensor:
        """Shape (batch, 6)."""
        return self.read(self.write(x).topk(2, -1).values)


def test_units_are_permuted_under_their_ranks_and_ranks_are_not() -> None:
    torch.manual_seed(0)
    model, x = Ranked().double(), torch.randn(9, WIDTH, dtype=torch.float64)
    found, point = nf.discrete_symmetries(nf.trace(model, x)), point_of(model)
    assert found.order == factorial(HIDDEN)
    assert change(model, x, found.transform(point, found.random(1))) < EXACT
    assert change(model, x, {**point, "read.weight": point["read.weight"].flip(-1)}) > 1e-3


def test_alignment_carries_experts_back() -> None:
    model, x, found = built()
    other = copy.deepcopy(model)
    other.load_state_dict(found.transform(point_of(model), found.random(4)), strict=False)
    group = nf.symmetries(nf.trace(model, x))
    assert nf.align(model, other, x, continuous=False).after == 0
    assert nf.distance(model, other, group) > 1
    assert nf.distance(model, other, group, discrete=found) < 1e-12


def test_experts_of_a_real_model() -> None:
    """Mixtral: 4! for the experts of each layer and 24! for the units inside each; the router alone is no symmetry."""
    torch.manual_seed(0)
    model, inputs, keywords = zoo.build("mixtral")
    model = exact(model)
    found = nf.discrete_symmetries(nf.trace(model, *inputs, kwargs=keywords))
    assert found.formula == "24!^8 · 4!^2 · 2^283"
    assert not found.opaque
    judge, point = Judge(model, inputs, keywords), point_of(model)
    factor = next(i for i, f in enumerate(found) if f.sizes == (4,) and "model.layers.0.mlp.gate.weight" in str(f))
    moved = found.transform(point, swap(found, factor, 0, 1))
    with torch.no_grad():
        before = judge.terms(point)
        assert float((judge.terms(moved) - before).abs().max()) < TOLERANCE * float(before.abs().max())
        gate = {**point, "model.layers.0.mlp.gate.weight": moved["model.layers.0.mlp.gate.weight"]}
        assert float((judge.terms(gate) - before).abs().max()) > 1e3 * TOLERANCE * float(before.abs().max())
