"""Currents on charges that lie along an index which data choose: rows of tables, experts of samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.cases import Block
from support.routed import Routed, Tables
from torch import Tensor, nn
from torch.nn import functional as F

import noetherflow as nf
from noetherflow.bridge.choices import Choices
from noetherflow.bridge.currents import Currents, currents
from noetherflow.bridge.placing import Placing
from noetherflow.errors import RunError
from noetherflow.numeric.report import Report
from noetherflow.symbolic.actions import Index, Patch
from noetherflow.symbolic.picks import Chosen
from noetherflow.symbolic.symmetries import Symmetry

ROWS, WIDTH, POSITIONS = 5, 3, 4
Function = Callable[[Any, Tensor], Tensor]


@pytest.fixture(autouse=True)
def _double() -> None:
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)


def tokens(batch: int = 6) -> Tensor:
    return torch.randint(ROWS, (batch, POSITIONS))


def net(function: Function, norm: nn.Module, **options: Any) -> nn.Module:
    return Block(function, e=nn.Embedding(ROWS, WIDTH, **options), norm=norm, head=nn.Linear(WIDTH, 4))


def plain(s: Any, t: Tensor) -> Tensor:
    return s.head(s.norm(s.e(t)))


def twice(s: Any, t: Tensor) -> Tensor:
    """The same table, read by other tokens in its second call."""
    return s.head(s.norm(s.e(t))) * s.head(s.norm(s.e(t.flip(0))))


def turned(s: Any, t: Tensor) -> Tensor:
    return s.head(s.norm(s.e(t).transpose(0, 1))).transpose(0, 1)


def flat(s: Any, t: Tensor) -> Tensor:
    return s.head(s.norm(s.e(t.reshape(-1)))).reshape(*t.shape, -1)


def by_function(s: Any, t: Tensor) -> Tensor:
    return s.head(F.layer_norm(s.e(t), (WIDTH,), eps=0.02))


FUNCTIONS: dict[str, Function] = {f.__name__: f for f in (plain, twice, turned, flat, by_function)}
NORMS: dict[str, Callable[[], nn.Module]] = {
    "rms_norm": lambda: nn.RMSNorm(WIDTH, eps=0.02),
    "layer_norm": lambda: nn.LayerNorm(WIDTH, eps=0.02),
}


def trained(model: nn.Module, dtype: torch.dtype = torch.float64, **watching: Any) -> Report:
    """Two micro-batches a step, of other sizes than the one that was traced."""
    model.to(dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=0.01)
    with nf.watch(model, optimizer, "mse", tokens(), **watching) as run:
        for step in range(12):
            optimizer.zero_grad()
            for batch in (5 + step % 3, 7):
                output = model(tokens(batch))
                F.mse_loss(output, torch.ones_like(output)).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
    return run.report()


def scale_of(report: Report) -> Any:
    (found,) = (f for f in report.families if f.name.startswith("scale e.weight"))
    return found


# --- in a run


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_scale_of_every_row_is_held_to_its_current(name: str, norm: str, dtype: torch.dtype) -> None:
    report = trained(net(FUNCTIONS[name], NORMS[norm]()), dtype)
    assert report.holds, report.sentence()
    assert (scale_of(report).charges, scale_of(report).verdict) == (ROWS, "exact")
    assert scale_of(report).ratio > 1e-3


@pytest.mark.parametrize("name", FUNCTIONS)
def test_without_its_current_it_fails(name: str) -> None:
    report = trained(net(FUNCTIONS[name], NORMS["layer_norm"]()), sabotage="eps")
    assert [f.name for f in report.failed] == [scale_of(report).name]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_current_of_other_rows_is_rejected(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = Choices.latest
    monkeypatch.setattr(Choices, "latest", lambda self, placings: {p: (t + 1) % ROWS for p, t in right(self, placings).items()})
    report = trained(net(FUNCTIONS[name], NORMS["rms_norm"]()))
    assert [f.name for f in report.failed] == [scale_of(report).name]


def test_a_padding_row_has_no_law_and_the_others_hold() -> None:
    report = trained(net(plain, NORMS["rms_norm"](), padding_idx=1))
    assert report.holds, report.sentence()
    assert {f.verdict for f in report.families} == {"exact"}
    assert sum(f.charges for f in report.families if f.name.startswith("scale e.weight")) == ROWS - 1


def test_tokens_that_are_overwritten_after_the_call_are_those_that_were_read() -> None:
    def forward(s: Any, t: Tensor) -> Tensor:
        t = t.clone()
        rows = s.e(t.clone())
        t.zero_()
        return s.head(s.norm(rows))

    assert trained(net(forward, NORMS["rms_norm"]())).holds


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (lambda s, t: s.head(s.norm(F.embedding(t, s.e.weight))), "no nn.Embedding shows it"),
        (lambda s, t: s.head(s.norm(s.e.weight[t])), "no nn.Embedding shows it"),
    ],
)
def test_what_no_module_shows_is_said(function: Function, why: str) -> None:
    report = trained(net(function, NORMS["rms_norm"]()))
    assert scale_of(report).verdict == "not checked"
    assert why in scale_of(report).reason


# --- on one batch


def compared(model: nn.Module, inputs: Tensor) -> Currents:
    return currents(model, inputs, loss="mse", target=torch.randn_like(model(inputs)))


@pytest.mark.parametrize(
    "options", [{"picks": "index"}, {"picks": "select"}, {"picks": "embedding"}, {"picks": "several"}, {"gated": True}]
)
def test_every_hidden_unit_of_every_expert_has_its_current(options: dict[str, Any]) -> None:
    found = compared(Routed(4, 2, 3, 2, F.gelu, **options), torch.randn(16, 4))
    (units,) = (c for c in found if float(c.measured.abs().amax()) > 1e-6)
    assert (found.missing, units.symmetry.dimension, units.error < 1e-13) == ({}, 6, True)


def test_the_currents_of_other_experts_are_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    spread = Placing._spread
    monkeypatch.setattr(Placing, "_spread", lambda self, indices, sizes: spread(self, indices, sizes) + 1)
    assert compared(Routed(4, 2, 3, 2, F.gelu), torch.randn(16, 4)).worst > 1e-4


@pytest.mark.parametrize("name", [*FUNCTIONS, "of a parameter"])
def test_every_row_has_its_current(name: str) -> None:
    function = FUNCTIONS.get(name, lambda s, t: s.head(s.norm(s.e.weight[t])))
    found = compared(net(function, NORMS["layer_norm"]()), tokens())
    (rows,) = (c for c in found if isinstance(c.family, Symmetry) and c.symmetry.kind == "scale")
    assert (found.missing, rows.symmetry.dimension, found.worst < 1e-13) == ({}, ROWS, True)
    assert float(rows.measured.abs().amin()) > 1e-8


def test_indices_of_which_a_part_alone_chose_are_not_followed() -> None:
    found = compared(Routed(4, 2, 3, 2, F.gelu, picks="gather"), torch.randn(16, 4))
    assert ["a part of a tensor" in why for why in found.missing.values()] == [True]


def test_products_of_rows_have_their_currents() -> None:
    model = Tables(lambda t, x: F.rms_norm(t[0](x) * t[1](x), (WIDTH,), eps=0.02), ROWS, WIDTH, 2, head=4)
    found = compared(model, tokens())
    assert any(c.symmetry.breaking and c.symmetry.dimension == ROWS for c in found)
    assert (found.missing, found.worst < 1e-13) == ({}, True)


# --- placing


def test_statistics_are_added_where_they_were_chosen() -> None:
    """Slow reference: one statistic after another, on a family that runs along the position, too, and lacks the first row."""
    patch = Patch((0, 0, 1), (Index(0, 6, 1, 0), Index(1, 4, 1, 1), Index(2, ROWS - 1, 1, 2)))
    placing = Placing("norm", patch, (2, 1), (6, 4, ROWS), (Chosen("e", ((1, 4, 1), (0, 6, 1))),))
    statistics, index = torch.randn(7, 4), torch.randint(ROWS, (4, 7))
    expected = torch.zeros(ROWS, 4)
    for n in range(7):
        for t in range(4):
            expected[index[t, n], t] += statistics[n, t]
    torch.testing.assert_close(placing.summed(statistics, index), expected[1:].reshape(-1))
    torch.testing.assert_close(placing.summed(statistics, index - ROWS), expected[1:].reshape(-1))


def test_indices_that_do_not_fit_are_refused() -> None:
    patch = Patch((0, 0), (Index(0, 6, 1, 0), Index(1, ROWS, 1, 2)))
    placing = Placing("norm", patch, (1,), (6, ROWS), (Chosen("e", ((0, 6, 1),)),))
    with pytest.raises(RunError, match="Give example_inputs of the shape"):
        placing.summed(torch.ones(6), torch.zeros(7, dtype=torch.long))
    with pytest.raises(RunError, match="what data chose is not known"):
        placing.summed(torch.ones(6))
