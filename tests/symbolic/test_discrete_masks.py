"""Heads under masks and constants: interchanged where all heads share them, along whatever else these change."""

from __future__ import annotations

from math import factorial

import pytest
import torch
from support import zoo
from support.real_models import TOLERANCE, Judge, exact
from torch import Tensor, nn

import noetherflow as nf
from noetherflow.symbolic.discrete_elements import swap
from noetherflow.symbolic.told_apart import changes

HEADS, WIDTH, LENGTH = 4, 8, 5
SIGNS = 4**HEADS  # queries and keys, and values, of every head have a reflection
EXACT = 1e-13  # outputs are of size one: a few hundred roundings of 1e-16


class Masked(nn.Module):
    """Attention written by hand, hidden or shifted in one way."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.register_buffer("later", torch.ones(LENGTH, LENGTH).triu(1).bool())
        self.register_buffer("by_head", torch.rand(HEADS, LENGTH, LENGTH).tril(-1) > 0.5)
        self.register_buffer("bias", torch.randn(1, 1, LENGTH, LENGTH).expand(2, HEADS, LENGTH, LENGTH).clone())
        self.register_buffer("slopes", torch.randn(HEADS, 1, 1))

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        """Shape (batch, position, width)."""
        q, k, v = (f(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        p = self.hidden(q @ k.transpose(-1, -2), padding).softmax(-1)
        if self.how == "afterwards":
            p = p.masked_fill(self.later, 0.0)
        return self.o((p @ v).transpose(1, 2).flatten(2))

    def hidden(self, scores: Tensor, padding: Tensor | None) -> Tensor:
        """Scores, some of them changed."""
        low = float("-inf")
        return {
            "causal": lambda: scores.masked_fill(self.later, low),
            "made": lambda: scores.masked_fill(torch.ones(LENGTH, LENGTH).tril() == 0, low),
            "where": lambda: torch.where(self.later, -1e30, scores),
            "where both": lambda: torch.where(self.later, torch.full_like(scores, -1e30), scores),
            "padding": lambda: scores.masked_fill(padding[:, None, None, :] if padding is not None else self.later, low),
            "constant": lambda: scores + self.bias,
            "afterwards": lambda: scores,
            "mask by head": lambda: scores.masked_fill(self.by_head, low),
            "constant by head": lambda: scores + self.slopes,
            "scale by head": lambda: scores * self.slopes,
        }[self.how]()


def built(how: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    torch.manual_seed(0)
    model, x = Masked(how).double(), torch.randn(2, LENGTH, WIDTH, dtype=torch.float64)
    return model, (x, torch.arange(LENGTH).expand(2, LENGTH) > 3) if how == "padding" else (x,)


def change(model: nn.Module, inputs: tuple[Tensor, ...], point: dict[str, Tensor]) -> float:
    return float((torch.func.functional_call(model, point, inputs) - model(*inputs)).detach().abs().max())


@pytest.mark.parametrize("how", ["causal", "made", "where", "where both", "padding", "constant", "afterwards"])
def test_a_mask_that_heads_share_lets_them_be_interchanged(how: str) -> None:
    model, inputs = built(how)
    found = nf.discrete_symmetries(nf.trace(model, *inputs))
    point = {n: p.detach() for n, p in model.named_parameters()}
    assert found.order == factorial(HEADS) * SIGNS
    for seed in range(3):
        assert change(model, inputs, found.transform(point, found.random(seed))) < EXACT


@pytest.mark.parametrize("how", ["mask by head", "scale by head"])
def test_a_mask_of_every_head_by_itself_tells_heads_apart(how: str) -> None:
    model, inputs = built(how)
    found, wrong = (nf.discrete_symmetries(nf.trace(m, *x)) for m, x in ((model, inputs), built("causal")))
    point = {n: p.detach() for n, p in model.named_parameters()}
    assert found.order == SIGNS
    assert change(model, inputs, found.transform(point, found.random(1))) < EXACT
    assert change(model, inputs, wrong.transform(point, swap(wrong, 0, 0, 1))) > 1e-3


def test_a_constant_of_every_head_that_softmax_does_not_see_is_not_looked_through() -> None:
    """Not found, although the softmax takes it away: a constant tells apart what it is added to, whatever comes later."""
    model, inputs = built("constant by head")
    assert nf.discrete_symmetries(nf.trace(model, *inputs)).order == SIGNS


def test_heads_that_share_a_table_of_positions_move_together() -> None:
    """T5 has one table for its encoder's layers and one for its decoder's: 4! for each, and 4! for each cross-attention."""
    torch.manual_seed(0)
    model, inputs, keywords = zoo.build("t5")
    model = exact(model)
    found = nf.discrete_symmetries(nf.trace(model, *inputs, kwargs=keywords))
    heads = [f for f in found if f.kind == "permutation" and f.sizes == (HEADS,)]
    moved = [{p.parameter for p in f.actions} for f in heads]
    assert len(heads) == 4
    assert sum(any("relative_attention_bias" in name for name in names) for names in moved) == 2
    judge, point = Judge(model, inputs, keywords), {n: p.detach() for n, p in model.named_parameters()}
    with torch.no_grad():
        before = judge.terms(point)
        element = swap(found, list(found).index(heads[0]), 0, 1)
        after = found.transform(point, element)
        alone = {n: point[n] if ".block.1." in n else p for n, p in after.items()}
        assert float((judge.terms(after) - before).abs().max()) < TOLERANCE * float(before.abs().max())
        assert float((judge.terms(alone) - before).abs().max()) > 1e3 * TOLERANCE * float(before.abs().max())


def test_what_is_not_known_changes_along_every_axis() -> None:
    assert changes({"entries": [[1.0], [2.0]]}, 3) == [False, True, False]
    assert changes({"kind": "open"}, 3) == [False] * 3
    assert changes({}, 2) == changes({"entries": [[[1.0]]]}, 2) == [True, True]


class Positions(nn.Module):
    """The same input at every position, told apart by a table alone; attention over all of them, or over earlier ones; their mean."""

    def __init__(self, length: int, how: str) -> None:
        super().__init__()
        self.table, self.how = nn.Parameter(torch.randn(length, WIDTH)), how
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.register_buffer("earlier", torch.ones(length, length).tril().bool())

    def forward(self, x: Tensor) -> Tensor:
        """Shape (batch, width)."""
        y = torch.tanh(x[:, None, :] + self.table)
        q, k, v = self.q(y), self.k(y), self.v(y)
        if self.how == "by hand":
            return ((q @ k.mT).masked_fill(~self.earlier, float("-inf")).softmax(-1) @ v).mean(1)
        mask = self.earlier if self.how == "mask" else None
        return nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=self.how == "flag").mean(1)


@pytest.mark.parametrize("length", [5, 80])  # its entries are kept; its kind alone
@pytest.mark.parametrize("how", ["open", "by hand", "mask", "flag"])
def test_a_causal_mask_tells_positions_apart(length: int, how: str) -> None:
    """Rows of the table are interchanged where attention sees all of them, and are not under a mask, large or small."""
    torch.manual_seed(0)
    model, x = Positions(length, how).double(), torch.randn(3, WIDTH, dtype=torch.float64)
    group = nf.discrete_symmetries(nf.trace(model, x))
    moving = [f for f in group if f.kind == "permutation" and "table" in {a.parameter for a in f.actions} and f.sizes[-1] == length]
    assert len(moving) == int(how == "open")
    rows = {"table": model.table.detach().roll(1, 0)}
    assert (change(model, (x,), rows) < EXACT) == (how == "open")
    for seed in range(3):
        assert change(model, (x,), group.transform(dict(model.named_parameters()), group.random(seed))) < EXACT
