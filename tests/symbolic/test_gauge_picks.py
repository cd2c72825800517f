"""Indices that data choose: what is picked by the same indices may compensate row by row, what is picked by others may not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import sympy as sp
import torch
from support import zoo
from support.blocks import EPS
from support.cases import Block
from support.invariance import Probe, violations
from support.routed import PICKS, TABLES, Routed, Tables
from torch import Tensor, nn
from torch.nn import functional as F

from noetherflow.bridge.currents import currents
from noetherflow.bridge.trace import trace
from noetherflow.symbolic.gauge import symmetries
from noetherflow.symbolic.graph import ArchitectureGraph, Size
from noetherflow.symbolic.primitives import Program
from noetherflow.symbolic.symmetries import Symmetries

Function = Callable[[Any, Tensor], Tensor]
ROWS, WIDTH = 5, 3


@pytest.fixture(autouse=True)
def _double() -> None:
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)


def two_tables(function: Function, **options: Any) -> nn.Module:
    """A function of two tables a and b of five rows and an input of indices."""
    parts = {name: nn.Embedding(ROWS, WIDTH, **options) for name in ("a", "b")}
    return Block(function, **parts)


def found_in(model: nn.Module, inputs: Tensor) -> Symmetries:
    """The symmetries, each checked on the model."""
    found = symmetries(trace(model, inputs))
    assert violations(Probe(model, inputs), found) == []
    return found


def tokens() -> Tensor:
    return torch.randint(ROWS, (6, 4))


# --- the same indices, or others


def overwritten_between(s: Any, i: Tensor) -> Tensor:
    i = i.clone()
    first = s.a(i)
    i[:, 0] = 0
    return first * s.b(i)


# What both tables have in common passes whatever the indices are: WIDTH generators.
OF_ROWS: dict[str, tuple[Function, int]] = {
    "as they are": (lambda s, i: s.a(i) * s.b(i), ROWS * WIDTH),
    "flat": (lambda s, i: s.a(i) * s.b(i.reshape(-1)).reshape(*i.shape, WIDTH), ROWS * WIDTH),
    "turned, and turned back": (lambda s, i: s.a(i) * s.b(i.t().contiguous().t()), ROWS * WIDTH),
    "copied": (lambda s, i: s.a(i) * s.b(i.clone()), ROWS * WIDTH),
    "repeated": (
        lambda s, i: s.a(i).unsqueeze(-1) * s.b.weight.gather(0, i.reshape(-1, 1).expand(-1, WIDTH)).reshape(*i.shape, 1, WIDTH),
        ROWS,
    ),
    "with the positions moved afterwards": (lambda s, i: s.a(i).transpose(0, 1) * s.b(i).transpose(0, 1), ROWS * WIDTH),
    "and the rows averaged afterwards": (lambda s, i: (s.a(i) * s.b(i)).mean(1), ROWS * WIDTH),
    "through a function that passes scales": (lambda s, i: s.a(i).relu().sqrt() * s.b(i).relu(), ROWS * WIDTH),
    "beside another value": (lambda s, i: s.a(i) * i.unsqueeze(-1) * s.b(i), ROWS * WIDTH),
    "glued and cut": (lambda s, i: torch.cat([s.a(i), s.a(i)], -1)[..., :WIDTH] * s.b(i), ROWS * WIDTH),
    "transposed": (lambda s, i: s.a(i[:, :4]) * s.b(i[:4].t().reshape(-1)[: i.numel()].reshape(4, 4).repeat(2, 1)[:6]), WIDTH),
    "flipped": (lambda s, i: s.a(i) * s.b(i.flip(0)), WIDTH),
    "rolled": (lambda s, i: s.a(i) * s.b(i.roll(1, 1)), WIDTH),
    "sorted": (lambda s, i: s.a(i) * s.b(i.sort(-1).values), WIDTH),
    "counted from the other end": (lambda s, i: s.a(i) * s.b(ROWS - 1 - i), WIDTH),
    "of neighbours": (lambda s, i: s.a(i[:, 1:]) * s.b(i[:, :-1]), WIDTH),
    "for all pairs of positions": (lambda s, i: s.a(i).unsqueeze(2) * s.b(i).unsqueeze(1), WIDTH),
    "with the rows moved on one side": (lambda s, i: s.a(i).roll(1, 0) * s.b(i), WIDTH),
    "with the rows averaged on one side": (lambda s, i: s.a(i).mean(1, keepdim=True) * s.b(i), WIDTH),
    "with the rows normalised together": (lambda s, i: F.normalize(s.a(i), dim=1, eps=EPS) * s.b(i), WIDTH),
    "cut into pieces that are swapped": (lambda s, i: torch.cat([s.a(i)[:, 2:], s.a(i)[:, :2]], 1) * s.b(i), WIDTH),
    "overwritten between": (overwritten_between, WIDTH),
}


@pytest.mark.parametrize("name", list(OF_ROWS))
def test_rows_compensate_where_the_same_indices_pick_them(name: str) -> None:
    function, dimension = OF_ROWS[name]
    model, inputs = two_tables(function), tokens()
    differentiable = function is not overwritten_between  # torch keeps the indices for the gradient and refuses
    found = found_in(model, inputs) if differentiable else symmetries(trace(model, inputs))
    assert (found.dimension, found.opaque) == (dimension, {})


def test_claims_of_one_index_are_rejected_of_two() -> None:
    """Negative control: the symmetries of E[t] * F[t], claimed of E[t] * F[t'] for neighbours t and t'."""
    one, two = Tables(TABLES["product"], ROWS, WIDTH, 2), Tables(TABLES["neighbours"], ROWS, WIDTH, 2)
    claimed = symmetries(trace(one, tokens()))
    assert claimed.dimension == ROWS * WIDTH
    assert len(violations(Probe(two, tokens()), claimed)) == 2 * len(claimed) > 0


@pytest.mark.parametrize("picks", ["turned", "next", "sorted"])
def test_claims_of_one_expert_are_rejected_of_another_behind(picks: str) -> None:
    same, other = Routed(4, 2, 3, 2), Routed(4, 2, 3, 2, picks=picks)
    claimed = [s for s in symmetries(trace(same, torch.randn(8, 4))) if "down" in s.parameters]
    assert [s.dimension for s in claimed] == [6]
    assert len(violations(Probe(other, torch.randn(8, 4)), Symmetries(claimed, {}, {}))) == 2


def test_every_way_to_pick_is_in_a_table() -> None:
    assert set(PICKS) == {"index", "select", "gather", "embedding", "several", "turned", "next", "sorted"}


# --- tables of different sizes, padding, one row


def test_tables_of_different_sizes_do_not_share_a_row() -> None:
    model = Block(lambda s, i: s.a(i) * s.b(i), a=nn.Embedding(ROWS, WIDTH), b=nn.Embedding(ROWS + 1, WIDTH))
    assert found_in(model, tokens()).dimension == WIDTH


def test_a_padding_row_stays_and_the_others_compensate() -> None:
    found = found_in(two_tables(lambda s, i: s.a(i) * s.b(i), padding_idx=1), tokens())
    assert (found.dimension, found.opaque) == ((ROWS - 1) * WIDTH, {})


def test_rows_that_are_added_shift_against_each_other_beside_a_table_of_positions() -> None:
    model = Block(lambda s, i: s.a(i) + s.p + s.b(i), a=nn.Embedding(ROWS, 3), b=nn.Embedding(ROWS, 3), p=nn.Parameter(torch.randn(4, 3)))
    assert found_in(model, tokens()).dimension == ROWS * 3 + 3


def test_hash_routing_by_tokens() -> None:
    """Indices computed from tokens, read flat and as they are: the graph keeps that they are one."""

    def forward(s: Any, t: Tensor) -> Tensor:
        i = (7 * t + 3) % 3
        h = torch.einsum("btd,bthd->bth", s.e(t), s.up[i]).relu()
        return torch.bmm(s.down[i.reshape(-1)], h.reshape(-1, 2, 1)).squeeze(-1)

    up, down = nn.Parameter(torch.randn(3, 2, 4)), nn.Parameter(torch.randn(3, 4, 2))
    found = found_in(Block(forward, e=nn.Embedding(ROWS, 4), up=up, down=down), tokens())
    assert [(s.kind, s.dimension) for s in found] == [("linear", 4 * 4), ("rescale", 3 * 2)]


@pytest.mark.parametrize("n", [2, 7, sp.Symbol("n", integer=True, positive=True)])
def test_any_number_of_experts(n: Size) -> None:
    graph = ArchitectureGraph()
    for name in ("up", "down"):
        graph.add_parameter(name, (n, 3))
    graph.add_operation("i", "input", shape=(8,), dtype="int64")
    graph.add_operation("u", "index_select", {"index": "i"}, {"input": "up"}, shape=(8, 3), dim=0)
    graph.add_operation("d", "index_select", {"index": "i"}, {"input": "down"}, shape=(8, 3), dim=0)
    graph.add_operation("y", "multiply", {"input": "u", "other": "d"}, shape=(8, 3))
    assert sp.simplify(symmetries(graph).dimension - 3 * n) == 0


# --- where eps breaks them


def test_a_scale_of_every_row_says_what_chose() -> None:
    model = Tables(lambda t, x: F.rms_norm(t[0](x), (WIDTH,), eps=1e-3), ROWS, WIDTH, 1, head=4)
    (scale,) = (s for s in symmetries(trace(model, tokens())) if s.kind == "scale")
    (site,) = scale.breaking
    assert (scale.dimension, site.sizes, [chosen.by for chosen in site.picked]) == (ROWS, (6, 4, ROWS), [((0, 6, 1), (1, 4, 1))])


def test_a_norm_behind_tables_that_no_family_tells_apart_is_seen_as_before() -> None:
    norm = nn.LayerNorm(WIDTH, eps=1e-3)
    parts = {"e": nn.Embedding(ROWS, WIDTH), "p": nn.Embedding(4, WIDTH), "head": nn.Linear(WIDTH, 4)}
    model = Block(lambda s, x: s.head(s.norm(s.e(x) + s.p(torch.arange(4)))), norm=norm, **parts)
    inputs = tokens()
    (scale,) = (s for s in symmetries(trace(model, inputs)) if s.kind == "scale")
    assert [(site.picked, site.sizes) for site in scale.breaking] == [((), (6, 4))]
    found = currents(model, inputs, loss="mse", target=torch.randn(6, 4, 4), families=[scale])
    assert (found.missing, found.worst < 1e-13, float(found[0].measured.abs().amax()) > 1e-6) == ({}, True, True)


# --- real models


@pytest.mark.slow
@pytest.mark.parametrize(("name", "hidden"), [("mixtral", 24), ("qwen3_moe", 6)])
def test_every_hidden_unit_of_every_expert_has_a_scale(name: str, hidden: int) -> None:
    torch.set_default_dtype(torch.float32)
    model, inputs, keywords = zoo.build(name)
    found = symmetries(trace(model, *inputs, kwargs=keywords))
    between = [s for s in found if len(s.parameters) == 2 and s.parameters[0].endswith("gate_up_proj")]
    assert [(s.kind, s.dimension, s.parameters[1].rsplit(".")[-1]) for s in between] == [("rescale", 4 * hidden, "down_proj")] * 2
    assert found.opaque == {}


def test_experts_of_a_lora_mixture_have_matrices_of_their_own() -> None:
    found = found_in(Routed(4, 2, 3, 1, nn.Identity()), torch.randn(8, 4))
    assert [(s.kind, s.sizes) for s in found if "up" in s.parameters] == [("linear", (3, 2))]


def test_a_sum_that_was_taken_back_with_its_operation_is_made_again() -> None:
    program = Program()
    table, index = program.fresh((ROWS, WIDTH)), program.fresh((8,), fixed=True)
    picked = program.pick("rows", table, ["v", "d"], "v", index, ["n"], ["n", "d"])
    (pick,), before = picked.picks, len(program.steps)
    first, again = program.close("sum", picked, pick), program.close("other", picked, pick)
    assert (first.root, first.picks, len(program.steps)) == (again.root, (), before + 1)
    del program.steps[before:]
    assert program.close("sum", picked, pick).root != first.root
    assert len(program.steps) == before + 1
