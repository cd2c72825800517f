"""Graphs evaluated: pools, functions made of pieces, and operations that need what a graph does not keep."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from support.cases import Block
from support.evaluation import evaluate
from torch import Tensor, nn
from torch.nn import functional as F

import noetherflow as nf
from noetherflow.bridge import evaluation
from noetherflow.bridge.evaluation import RULES, Unevaluable
from noetherflow.bridge.pieces import PIECES
from noetherflow.symbolic.operations import OPERATIONS

IMAGE = (2, 3, 7, 8)
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "max pool": lambda x: F.max_pool2d(x, 3, 2, padding=1),
    "max pool, dilated": lambda x: F.max_pool2d(x, 2, 1, dilation=2),
    "max pool, ceiling": lambda x: F.max_pool2d(x, 2, 2, ceil_mode=True),
    "adaptive max pool": lambda x: F.adaptive_max_pool2d(x, (7, 4)),
    "average pool": lambda x: F.avg_pool2d(x, (2, 3), (2, 1)),
    "average pool, padded": lambda x: F.avg_pool2d(x, 3, 2, padding=1),
    "average pool, own divisor": lambda x: F.avg_pool2d(x, 2, divisor_override=3),
    "adaptive average pool": lambda x: F.adaptive_avg_pool2d(x, (1, 2)),
    "leaky": lambda x: F.leaky_relu(x, 0.3),
    "clamp": lambda x: x.clamp(-0.5, 0.25) + x.clamp(min=0.1) + x.clamp(max=0.2) + F.relu6(9 * x),
    "hard": lambda x: F.hardswish(4 * x) + F.hardsigmoid(5 * x),
    "extremes": lambda x: torch.maximum(x, 0.3 * x) + torch.minimum(x, x * x) + x.abs(),
    "elu": lambda x: F.elu(x, 0.7) + F.selu(x) + F.celu(x, 0.4) + F.softplus(x, 2.0),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_graph_computes_what_torch_does(name: str) -> None:
    x = torch.randn(IMAGE, dtype=torch.float64)
    model = Block(lambda s, x: FUNCTIONS[name](s.first(x)), first=nn.Conv2d(3, 3, 1).double())
    graph = nf.trace(model, x)
    (end,) = (n for n in graph if not graph.out_degree(n))
    torch.testing.assert_close(evaluate(graph, model, x)[end], model(x))


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("padding", ["same", "valid", (1, 0)])
def test_convolutions_of_every_padding(padding: object) -> None:
    x = torch.randn(2, 4, 6, 7, dtype=torch.float64)
    model = nn.Conv2d(4, 6, (2, 3), padding=padding, dilation=(1, 2), groups=2).double()
    graph = nf.trace(model, x)
    (end,) = (n for n in graph if not graph.out_degree(n))
    torch.testing.assert_close(evaluate(graph, model, x)[end], model(x))


TRANSPOSED: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "line": (nn.ConvTranspose1d(4, 6, 3), (2, 4, 5)),
    "line without a batch": (nn.ConvTranspose1d(4, 6, 3, stride=2, bias=False), (4, 5)),
    "stride, padding, output padding": (
        nn.ConvTranspose2d(4, 6, (2, 3), stride=(2, 3), padding=(1, 2), output_padding=(1, 2)),
        (2, 4, 5, 4),
    ),
    "groups": (nn.ConvTranspose2d(4, 6, 3, groups=2, padding=1), (2, 4, 5, 6)),
    "dilation": (nn.ConvTranspose2d(4, 6, (2, 3), dilation=(3, 2), stride=2), (2, 4, 3, 4)),
    "cropped": (nn.ConvTranspose2d(4, 2, 2, stride=3, padding=2), (1, 4, 4, 4)),
    "volume": (nn.ConvTranspose3d(2, 2, 2, stride=2), (1, 2, 2, 3, 2)),
}


@pytest.mark.parametrize("name", TRANSPOSED)
def test_transposed_convolutions(name: str) -> None:
    model, shape = TRANSPOSED[name]
    model, x = model.double(), torch.randn(shape, dtype=torch.float64)
    graph = nf.trace(model, x)
    (end,) = (n for n in graph if not graph.out_degree(n))
    torch.testing.assert_close(evaluate(graph, model, x)[end], model(x))


def test_a_transposed_convolution_with_its_kernel_the_other_way_round_is_another() -> None:
    model, x = nn.ConvTranspose1d(2, 3, 3, stride=2).double(), torch.randn(1, 2, 4, dtype=torch.float64)
    graph = nf.trace(model, x)
    (end,) = (n for n in graph if not graph.out_degree(n))
    turned = dict(model.named_parameters()) | {"weight": model.weight.flip(2)}
    assert not torch.allclose(evaluation.evaluate(graph, turned, [x])[end], model(x))


@pytest.mark.parametrize("name", ["max pool", "max pool, dilated", "adaptive max pool", "leaky", "clamp", "hard", "extremes"])
def test_a_pattern_that_is_found_gives_the_function_and_another_one_does_not(name: str) -> None:
    x, other = (torch.randn(IMAGE, dtype=torch.float64, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    model = Block(lambda s, x: FUNCTIONS[name](s.first(x)), first=nn.Conv2d(3, 3, 1).double())
    graph = nf.trace(model, x)
    parameters = dict(model.named_parameters())
    (end,) = (n for n in graph if not graph.out_degree(n))

    def patterns(at: Tensor) -> dict[str, Tensor]:
        values = evaluation.evaluate(graph, parameters, [at])
        found = {}
        for node, data in graph.nodes(data=True):
            if data["operation"] in PIECES:
                slots = evaluation.slots_of(graph, node, values, parameters)
                found[node] = PIECES[data["operation"]].pattern(slots, data["attributes"], data["shape"])
        return found

    torch.testing.assert_close(evaluation.evaluate(graph, parameters, [x], patterns(x))[end], model(x))
    assert not torch.allclose(evaluation.evaluate(graph, parameters, [x], patterns(other))[end], model(x))


def test_every_rule_is_of_an_operation_there_is() -> None:
    assert set(RULES) | set(PIECES) <= set(OPERATIONS)
    assert not set(RULES) & set(PIECES)


@pytest.mark.parametrize(
    ("function", "what"),
    [
        (lambda s, x: s.first(x).masked_fill(x > 0, 0.0), "masked"),
        (lambda s, x: s.first(x).roll(1, 1), "rearrange"),
        (lambda s, x: s.first(x) * torch.rand(4, dtype=x.dtype), "constant"),
        (lambda s, x: F.dropout(s.first(x), 0.5), "dropout"),
    ],
)
def test_what_the_graph_does_not_keep_is_refused(function: Callable[..., Tensor], what: str) -> None:
    x = torch.randn(5, 4, dtype=torch.float64)
    model = Block(function, first=nn.Linear(4, 4).double())
    with pytest.raises(Unevaluable, match=what):
        evaluate(nf.trace(model, x), model, x)
