"""Constants that a graph keeps: masks, positions and buffers as the module has them, and never what it does not know."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.cases import Block
from support.evaluation import evaluate
from torch import Tensor, nn
from torch.nn import functional as F

import noetherflow as nf
from noetherflow.bridge.constant_values import KEPT, described, tensor_of
from noetherflow.bridge.evaluation import Unevaluable
from noetherflow.symbolic.graph import ArchitectureGraph

SIZE = 5
WINDOW = torch.ones(SIZE, SIZE, dtype=torch.bool).tril().triu(-1)


def attend(s: Any, x: Tensor, mask: Tensor | None = None, *, causal: bool = False) -> Tensor:
    y: Tensor = F.scaled_dot_product_attention(s.q(x), s.k(x), s.v(x), attn_mask=mask, is_causal=causal)
    return y


def scores(s: Any, x: Tensor) -> Tensor:
    y: Tensor = s.q(x) @ s.k(x).mT
    return y


def written(s: Any, x: Tensor) -> Tensor:
    """A mask written into memory that the forward pass made."""
    mask = torch.zeros(SIZE, SIZE, dtype=x.dtype)
    mask[:, 3:] = -torch.inf
    return attend(s, x, mask)


FORWARDS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "none": attend,
    "open": lambda s, x: attend(s, x, torch.ones(SIZE, SIZE, dtype=torch.bool)),
    "causal": lambda s, x: attend(s, x, torch.ones(SIZE, SIZE, dtype=torch.bool).tril()),
    "causal by a flag": lambda s, x: attend(s, x, causal=True),
    "window of a buffer": lambda s, x: attend(s, x, s.window),
    "distances": lambda s, x: attend(s, x, -0.5 * (torch.arange(SIZE)[:, None] - torch.arange(SIZE)).abs().to(x.dtype)),
    "minus infinity": lambda s, x: attend(s, x, torch.full((SIZE, SIZE), -torch.inf, dtype=x.dtype).triu(1)),
    "filled": lambda s, x: scores(s, x).masked_fill(~s.window, -torch.inf).softmax(-1) @ s.v(x),
    "chosen": lambda s, x: torch.where(s.window, scores(s, x), -torch.inf).softmax(-1) @ s.v(x),
    "chosen the other way round": lambda s, x: torch.where(~s.window, -torch.inf, scores(s, x)).softmax(-1) @ s.v(x),
    "triangle": lambda s, x: scores(s, x).tril(-1) @ s.v(x) + scores(s, x).triu(1) @ s.v(x),
    "written": written,
    "scaled positions": lambda s, x: s.q(x) * torch.arange(3.0, dtype=x.dtype),
}

SAME = ({"none", "open"}, {"causal", "causal by a flag", "minus infinity"}, {"filled", "chosen", "chosen the other way round"})


def block(forward: Callable[[Any, Tensor], Tensor], **more: Any) -> nn.Module:
    torch.manual_seed(0)
    model = Block(forward, **{name: nn.Linear(3, 3) for name in "qkv"}, **more)
    model.register_buffer("window", WINDOW.clone())
    return model.double()


@pytest.mark.parametrize("name", FORWARDS)
def test_a_graph_with_its_constants_computes_what_the_module_does(name: str) -> None:
    x, model = torch.randn(2, SIZE, 3, dtype=torch.float64), block(FORWARDS[name])
    graph = nf.trace(model, x)
    again = ArchitectureGraph.from_json(graph.to_json())
    (end,) = (n for n in graph if not graph.out_degree(n))
    for one in (graph, again):
        torch.testing.assert_close(evaluate(one, model, x)[end], model(x))
    alike = next((names for names in SAME if name in names), {name})
    assert {other for other, f in FORWARDS.items() if torch.allclose(evaluate(graph, model, x)[end], block(f)(x))} == alike


def unknown_in_place(s: Any, x: Tensor) -> Tensor:
    table = torch.zeros(3, dtype=x.dtype)
    table.add_(x.detach().mean((0, 1)))
    y: Tensor = s.q(x) * table.clone()
    return y


def counting(s: Any, x: Tensor) -> Tensor:
    y: Tensor = s.q(x) * s.steps
    s.steps.add_(1.0)
    return y


UNKNOWN: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "random": lambda s, x: attend(s, x, torch.rand(SIZE, SIZE, dtype=x.dtype)),
    "written with data": unknown_in_place,
    "updated by each pass": counting,
    "mask of the data": lambda s, x: scores(s, x).masked_fill(x.mean(-1, keepdim=True) > 0, 0.0),
    "not filled": lambda s, x: s.q(x) * torch.empty(3, dtype=x.dtype),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_is_drawn_or_changes_is_not_kept(name: str) -> None:
    model, x = block(UNKNOWN[name]), torch.randn(2, SIZE, 3, dtype=torch.float64)
    model.register_buffer("steps", torch.ones(3, dtype=torch.float64))
    graph = nf.trace(model, x)
    with pytest.raises((Unevaluable, KeyError)):
        evaluate(graph, model, x)
    assert torch.equal(model.steps, torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize("mask", [torch.ones(2, 90, 90).bool(), torch.ones(90, 90).bool().tril(), torch.zeros(90, 90), torch.arange(9)])
def test_a_description_holds_the_constant_and_its_leading_blocks(mask: Tensor) -> None:
    found = tensor_of(described(mask), mask.shape)
    assert torch.equal(found, mask if mask.dtype == torch.bool else mask.double())
    smaller = [min(size, 4) for size in mask.shape]
    assert torch.equal(tensor_of(described(mask), smaller), found[tuple(map(slice, smaller))])


def test_large_tables_that_are_no_masks_are_not_kept() -> None:
    table = torch.randn(2 * KEPT)
    assert described(table) == {}
    assert described(torch.ones(90, 90).bool().tril(-1)) == {}
    assert described(torch.tensor([0.0, torch.nan])) == {}


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_masks_made_in_the_forward_pass_are_known_without_weights(device: str) -> None:
    with torch.device(device):
        model = Block(lambda s, x: attend(s, x, torch.ones(SIZE, SIZE, dtype=torch.bool, device=device).tril()), q=nn.Linear(3, 3))
        model.k, model.v = nn.Linear(3, 3), nn.Linear(3, 3)
        x = torch.zeros(2, SIZE, 3)
    (mask,) = (d for _, d in nf.trace(model, x).nodes(data=True) if d["operation"] == "constant")
    assert mask["attributes"]["entries"] == torch.ones(SIZE, SIZE).tril().bool().tolist()
