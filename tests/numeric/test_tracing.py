"""Traced programs give the same bits as what they were traced from, with fewer operations; in-place changes stay what they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from noetherflow.errors import RunError
from noetherflow.numeric.products import products, with_products
from noetherflow.numeric.tracing import traced

GENERATOR = torch.Generator().manual_seed(4)
X, W = (torch.randn(shape, generator=GENERATOR, dtype=torch.float64) for shape in ((3, 5, 4), (3, 2, 4)))


def loss_gradient(weights: Tensor, inputs: Tensor) -> Tensor:
    """Of a small network, run by run."""
    loss = lambda w, x: nn.functional.mse_loss(torch.relu(x @ w.T + 1), torch.ones(5, 2, dtype=torch.float64))  # noqa: E731
    return torch.func.vmap(torch.func.grad(loss))(weights, inputs)


PROGRAMS: dict[str, Callable[..., Any]] = {
    "gradient": loss_gradient,
    "products by one": lambda w, x: (
        1 * w + w * torch.ones_like(w),
        w.view(3, 2, 4).transpose(1, 2).transpose(2, 1),
        w * torch.ones_like(x[:1, :1]),
    ),
    "a product that broadcasts": lambda w, x: w[:, :1] * torch.ones_like(w),
    "an integer and a truth": lambda w, x: ((w > 0) * 1).sum() + torch.ones_like(w > 0).sum(),
    "a copy that is changed": lambda w, x: ((1 * w).add_(1), w),
    "ones that are changed": lambda w, x: torch.ones_like(w).add_(1) * w,
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_traced_program_gives_the_same_bits(name: str) -> None:
    weights, inputs = W.clone(), X.clone()
    program = traced(PROGRAMS[name], weights, inputs)
    for scale in (1.0, -0.7):
        expected, found = (f((scale * W).clone(), X.clone()) for f in (PROGRAMS[name], program))
        pairs = zip(expected, found, strict=True) if isinstance(expected, tuple) else [(expected, found)]
        assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in pairs)
    assert torch.equal(weights, W)
    assert torch.equal(inputs, X)


def test_what_does_nothing_is_taken_out() -> None:
    whole: Any = make_fx(loss_gradient)(W, X)
    simple: Any = traced(loss_gradient, W, X)
    assert len(simple.graph.nodes) < 0.75 * len(whole.graph.nodes)
    assert not any(node.target is torch.ops.aten.mse_loss.default for node in simple.graph.nodes)


def test_in_place_changes_reach_the_arguments_at_a_call_and_not_before() -> None:
    total = torch.zeros(3, dtype=torch.float64)
    program = traced(lambda t, w: t.add_(w.sum((1, 2))) * 1, total, W)
    assert not total.any()
    program(total, W)
    program(total, W)
    assert torch.allclose(total, 2 * W.sum((1, 2)))


def test_control_flow_on_values_is_refused() -> None:
    with pytest.raises(RunError, match="control flow that depends on data"):
        traced(lambda w: w if w.sum() > 0 else -w, W)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_products_are_those_of_torch_to_rounding(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(shape, generator=generator, dtype=dtype) for shape in ((6, 5, 9), (6, 7, 9)))
    plain = traced(lambda a, b: torch.bmm(a, b.mT), a, b)
    exact = torch.bmm(a.double(), b.double().mT)
    assert products not in {node.target for node in plain.graph.nodes}
    quick = with_products(plain)
    assert products in {node.target for node in quick.graph.nodes}
    bound = 9 * torch.finfo(dtype).eps * torch.bmm(a.double().abs(), b.double().abs().mT)
    assert bool(((quick(a, b) - exact).abs() <= bound).all())
    assert quick(a, b).dtype == dtype
