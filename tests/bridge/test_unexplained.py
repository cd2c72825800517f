"""What is missing is said: how many directions, and in which parameters."""

from __future__ import annotations

import pytest
import torch
from support.block_cases import BLOCK_CASES
from support.cases import Block
from torch import nn

from noetherflow.bridge.unexplained import unexplained
from noetherflow.errors import ModelError


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


def test_the_known_gap_of_the_case_table_is_located() -> None:
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(2)
    case = next(c for c in BLOCK_CASES if c.name == "weight_norm_of_columns")
    count = unexplained(case.build(), [case.inputs(3.0) for _ in range(12)])
    assert (count.missing, count.found) == (case.missing, case.dimension)
    assert set(count.shares) <= {n for n, _ in case.build().named_parameters()}


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
