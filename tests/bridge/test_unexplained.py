"""What is missing is said: how many directions, and in which parameters."""

from __future__ import annotations

import pytest
import torch
from support.block_cases import BLOCK_CASES
from support.cases import CASES, Block
from support.measured import data_of, logit_differences, moved
from torch import nn

from noetherflow.bridge.trace import trace
from noetherflow.bridge.unexplained import unexplained
from noetherflow.errors import ModelError
from noetherflow.numeric.functional_rank import jacobian_rows
from noetherflow.symbolic.gauge import symmetries


def data(*shape: int, batches: int = 8) -> list[torch.Tensor]:
    return [3 * torch.randn(16, *shape, dtype=torch.float64) for _ in range(batches)]


def test_nothing_is_missing_where_all_is_derived() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4)).double()
    count = unexplained(model, data(3), "cross_entropy")
    assert (count.measured, count.found, count.missing, count.basis, count.shares) == (5 + 6, 11, 0, (), {})
    assert count.gap > 1e9


def test_a_missing_family_is_named_by_its_parameters() -> None:
    """A length that is written out: f(x) = b tanh(a x / |a|), where nothing says that the norm of a vector does not see its scale."""
    torch.manual_seed(0)
    model = Block(
        lambda s, x: s.b(torch.tanh(x @ (s.a / s.a.abs().amax()))),
        a=nn.Parameter(torch.randn(3, 4, dtype=torch.float64)),
        b=nn.Linear(4, 2).double(),
    )
    count = unexplained(model, data(3))
    assert count.missing == 1
    assert list(count.shares) == ["a"]
    (direction,) = count.basis
    cosine = (direction["a"] * model.a.detach()).sum() / direction["a"].norm() / model.a.detach().norm()
    assert abs(abs(float(cosine)) - 1) < 1e-12
    assert "missing 1, in\n    a: 100%" in str(count)


# Rows of the case table of which something is missing, and the parameters that what is missing lies in.
MISSING: dict[str, set[str]] = {
    "linear_shared_twice": {"first.weight", "inner.weight", "last.weight"},
    "two_heads_cross_entropy": {"a.weight", "b.weight", "first.bias", "first.weight"},
    "attention_relative_causal": {"relative"},
    "post_norm_layer_norm": {
        "attentions.0.k.weight",
        "attentions.0.o.bias",
        "attentions.0.o.weight",
        "attentions.0.q.bias",
        "attentions.0.q.weight",
        "attentions.0.v.weight",
        "feeds.0.first.weight",
        "feeds.0.second.bias",
        "feeds.0.second.weight",
        "head.weight",
        "norms.0.bias",
        "norms.0.weight",
        "norms.1.bias",
        "tokens.weight",
    },
    "weight_norm_of_columns": {"0.bias", "0.direction", "0.magnitude", "2.weight"},
    "weight_norm_twice": {"0.bias", "0.magnitude", "2.direction", "2.magnitude"},
    "routed_to_the_next_behind": {"down", "up"},
    "tables_multiplied_with_head": {"head.weight", "tables.0.weight", "tables.1.weight"},
}


def test_every_row_of_which_something_is_missing_is_looked_at() -> None:
    assert {case.name for case in [*CASES, *BLOCK_CASES] if case.missing} == MISSING.keys()


@pytest.mark.parametrize("name", MISSING)
def test_what_is_missing_of_the_case_table_is_counted_and_located(name: str) -> None:
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    case = next(c for c in [*CASES, *BLOCK_CASES] if c.name == name)
    model = moved(case.build())
    batches = list(data_of(case, model))
    count = unexplained(model, batches, case.loss)
    broken = sum(s.dimension for s in symmetries(trace(model, batches[0], loss=case.loss)) if s.breaking)
    assert (count.missing, count.gap > 1e9) == (case.missing + broken, True)
    assert {n for n, share in count.shares.items() if share > 1e-3} == MISSING[name]
    assert f"missing {count.missing}, in\n    {next(iter(count.shares))}: " in str(count)
    others = list(data_of(case, model))
    assert all(seen(model, others, direction, case.loss) < 1e-9 for direction in count.basis)
    assert seen(model, others, {n: torch.randn_like(p) for n, p in model.named_parameters()}, case.loss) > 1e-3


def seen(model: nn.Module, batches: list[torch.Tensor], direction: dict[str, torch.Tensor], loss: str | None) -> float:
    """By how much a direction changes the outputs on data that it was not measured on, to first order."""
    rows, sizes = jacobian_rows(model, batches, readout=logit_differences if loss else None)
    flat = torch.cat([direction[n].reshape(-1) if n in direction else torch.zeros(size) for n, size in sizes.items()])
    return float((rows @ flat).abs().amax() / rows.norm(dim=0).amax())


def test_what_eps_breaks_is_not_counted_as_found() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4, eps=0.1), nn.Tanh(), nn.Linear(4, 2)).double()
    count = unexplained(model, data(3))
    assert count.missing == 0
    assert any(name.startswith("scale") for name in count.broken)


def test_a_scalar_parameter_is_counted_like_any_other() -> None:
    torch.manual_seed(0)
    model = Block(lambda s, x: s.g * s.a(x), g=nn.Parameter(torch.tensor(1.3, dtype=torch.float64)), a=nn.Linear(3, 2).double())
    count = unexplained(model, data(3))
    assert (count.measured, count.missing) == (1, 0)


def test_single_precision_and_no_data_are_refused() -> None:
    with pytest.raises(ModelError, match="float64"):
        unexplained(nn.Linear(3, 2, dtype=torch.float32), [torch.randn(8, 3, dtype=torch.float32)])
    with pytest.raises(ModelError, match="No batches"):
        unexplained(nn.Linear(3, 2).double(), [])
