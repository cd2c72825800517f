"""What tracing leaves opaque, what it takes for data, and which blocks it enters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.cases import Block
from support.evaluation import parameter, steps
from torch import Tensor, nn
from torch.nn import functional as F

from noetherflow.bridge.trace import trace
from noetherflow.symbolic.gauge import symmetries
from noetherflow.symbolic.graph import ArchitectureGraph

Function = Callable[[Any, Tensor], Tensor]


def graph_of(function: Function, shape: tuple[int, ...] = (4, 6), **parts: Any) -> ArchitectureGraph:
    return trace(Block(function, **parts), torch.randn(shape, dtype=torch.float64))


# --- what is not read stays opaque


OPAQUE: dict[str, tuple[Function, str]] = {
    "a mask that parameters decide": (lambda s, x: (x * s.g).masked_fill(s.g > 0, 0.0), "aten.masked_fill"),
    "a choice that parameters decide": (lambda s, x: torch.where(x * s.g > 0, x, -x), "aten.where"),
    "columns that parameters decide": (lambda s, x: x[:, s.g.argsort()], "aten.argsort"),
    "two tensors of indices": (lambda s, x: (x * s.g)[torch.tensor([0, 1]), torch.tensor([2, 3])], "aten.index"),
    "power by a tensor": (lambda s, x: x ** (s.g), "aten.pow"),
    "bounds that are tensors": (lambda s, x: (x * s.g).clamp(max=s.g), "aten.clamp"),
    "rounded quotient": (lambda s, x: torch.div(x * s.g, 2.0, rounding_mode="floor"), "aten.div"),
    "product with zero": (lambda s, x: (x * s.g) * 0.0, "aten.mul"),
    "padding with ones": (lambda s, x: F.pad(x * s.g, (1, 1), value=1.0), "aten.pad"),
    "unbiased variance": (lambda s, x: (x * s.g).var(1), "aten.var"),
    "other lengths": (lambda s, x: torch.linalg.vector_norm(x * s.g, 1, dim=1), "aten.linalg_vector_norm"),
    "detached": (lambda s, x: (x * s.g).detach(), "aten.detach"),
    "flattened repetition": (lambda s, x: (x * s.g).repeat_interleave(2), "aten.repeat_interleave"),
    "an einsum that broadcasts": (lambda s, x: torch.einsum("ij,ij->i", x * s.g, x[:, :1]), "aten.einsum"),
    "running statistics": (
        lambda s, x: F.instance_norm((x * s.g)[None], s.g[:4].detach(), s.g[:4].detach().exp(), use_input_stats=False),
        "aten.instance_norm",
    ),
    "a number taken out of a tensor": (lambda s, x: x * s.g.sum().item(), "aten.item"),
}


@pytest.mark.parametrize("name", list(OPAQUE))
def test_what_is_not_exactly_an_operation_stays_opaque_and_holds_its_parameters(name: str) -> None:
    function, operation = OPAQUE[name]
    graph = graph_of(function, g=parameter(6))
    assert operation in steps(graph)
    assert symmetries(graph).dimension == 0


def test_rows_that_parameters_choose_are_rows_of_a_table() -> None:
    def route(s: Any, x: Tensor) -> Tensor:
        chosen = (x @ s.router).argmax(-1)
        return torch.bmm(s.experts[chosen], x[..., None])

    graph = graph_of(route, router=parameter(6, 3), experts=parameter(3, 2, 6))
    ((node, found),) = ((n, d) for n, d in graph.nodes(data=True) if d["operation"] == "index_select")
    assert ({*graph.inputs_of(node), *found["parameters"]}, found["shape"]) == ({"input", "index"}, (4, 2, 6))
    assert "aten.argmax" in steps(graph)


def test_an_in_place_fill_forgets_what_was_there() -> None:
    def drop_path(s: Any, x: Tensor) -> Tensor:
        y = x * s.g
        return y * y.new_empty((4, 1)).bernoulli_(0.9) + torch.zeros_like(y)

    assert steps(graph_of(drop_path, g=parameter(6))) == ["multiply", "multiply", "add"]


# --- contexts


def test_a_block_without_gradients_is_entered_where_only_data_come_in() -> None:
    def forward(s: Any, x: Tensor) -> Tensor:
        with torch.no_grad():
            table = x.cos() * 2.0
        return table * s.g

    graph = graph_of(forward, g=parameter(6))
    assert steps(graph) == ["cosine", "scale", "multiply"]


def test_a_block_without_gradients_is_opaque_where_parameters_come_in() -> None:
    def forward(s: Any, x: Tensor) -> Tensor:
        with torch.no_grad():
            table = s.g.cos()
        return x * table * s.g

    graph = graph_of(forward, g=parameter(6))
    assert "aten.wrap_with_set_grad_enabled" in steps(graph)
    assert symmetries(graph).dimension == 0


def test_a_block_of_another_precision_is_entered() -> None:
    def forward(s: Any, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            h = s.a(x).relu()
        return s.b(h.float())

    model = Block(forward, a=nn.Linear(6, 5), b=nn.Linear(5, 2))
    graph = trace(model, torch.zeros(4, 6))
    assert [n for n in steps(graph) if n != "identity"] == ["linear", "relu", "linear"]
    assert symmetries(graph).dimension == 5


def test_a_view_that_leaves_a_block_is_still_a_view() -> None:
    def forward(s: Any, x: Tensor) -> Tensor:
        h = s.a(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            view = h.view(-1)
        view.tanh_()
        return s.b(h)

    graph = trace(Block(forward, a=nn.Linear(6, 5), b=nn.Linear(5, 2)), torch.zeros(4, 6))
    assert symmetries(graph).dimension == 0


# --- data


def test_arithmetic_on_data_is_one_constant_and_inputs_stay() -> None:
    def forward(s: Any, ids: Tensor) -> Tensor:
        positions = torch.arange(5).expand(2, 5) + 1
        mask = (positions[:, None] <= positions[:, :, None]).float().log()
        h = s.e(ids.view(-1, 5)) + s.p(positions)
        return F.scaled_dot_product_attention(h, h, h, mask)

    graph = trace(Block(forward, e=nn.Embedding(7, 4), p=nn.Embedding(7, 4)), torch.zeros(2, 5, dtype=torch.long))
    assert steps(graph) == ["reshape", "embedding", "embedding", "add", "attention"]
    kinds = {n: d["operation"] for n, d in graph.nodes(data=True)}
    assert sorted(kinds.values()).count("constant") == 2
    assert [kinds[n] for n in graph.inputs_of("embedding").values()] == ["reshape"]
    assert "input" in kinds.values()


def test_what_is_computed_from_floating_point_inputs_is_shown() -> None:
    assert steps(graph_of(lambda s, x: s.a(x.exp() + torch.arange(6).double().sin()), a=nn.Linear(6, 2).double())) == [
        "exponential",
        "add",
        "linear",
    ]
