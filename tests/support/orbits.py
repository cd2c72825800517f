"""Networks for tools on orbits, what is measured on them without those tools, and random points of their orbits."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import torch
from support.nets import convnet
from torch import Tensor, nn
from torch.nn import functional as F

import noetherflow as nf
from noetherflow.symbolic.symmetries import Symmetries, Symmetry

EPS: Final = 1e-30  # of BatchNorm: its scale laws are exact
EXACT: Final = 1e-10  # relative; what the tools promise of the function in float64
HANDLED: Final = frozenset({"rescale", "scale", "linear", "translation", "null"})


@dataclass(frozen=True)
class Net:
    """A network in float64 with a batch and its symmetries."""

    model: Any
    inputs: Tensor
    graph: nf.ArchitectureGraph
    symmetries: Symmetries


def _with_drawn_norms(model: nn.Module) -> nn.Module:
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d | nn.LayerNorm):
            part.eps = EPS
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias)
    return model


class Transformer(nn.Module):
    """One pre-norm block on vectors: two heads whose queries, keys and values lie in one weight, and a gated layer."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(8), nn.LayerNorm(8)
        self.attend, self.out = nn.Linear(8, 24), nn.Linear(8, 8)
        self.gate, self.up, self.down = nn.Linear(8, 6), nn.Linear(8, 6), nn.Linear(6, 8)

    def forward(self, x: Tensor) -> Tensor:
        """Same shape as the input: (batch, tokens, 8)."""
        heads = [part.unflatten(-1, (2, 4)).transpose(1, 2) for part in self.attend(self.norm1(x)).chunk(3, -1)]
        x = x + self.out(F.scaled_dot_product_attention(*heads, is_causal=True).transpose(1, 2).flatten(2))
        normed = self.norm2(x)
        return x + self.down(F.silu(self.gate(normed)) * self.up(normed))


BUILDERS: Final[dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]]] = {
    "mlp": (lambda: nf.models.MLP([5, 8, 6, 3]), (9, 5)),
    "tied": (lambda: nf.models.TiedMLP(5, 6, 3), (9, 5)),
    "deep_linear": (lambda: nf.models.MLP([4, 3, 3, 4], "linear", bias=False), (9, 4)),
    "wide_linear": (lambda: nf.models.MLP([2, 5, 2], "linear", bias=False), (9, 2)),
    "convnet": (lambda: _with_drawn_norms(convnet()), (6, 1, 8, 8)),
    "transformer": (lambda: _with_drawn_norms(Transformer()), (4, 5, 8)),
    "resnet": (lambda: _with_drawn_norms(nf.models.build("resnet18", width=0.125)), (4, 1, 28, 28)),
}


@cache
def net(name: str, seed: int = 0) -> Net:
    """A network by name; made once, so tests must not change it."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        build, shape = BUILDERS[name]
        model, inputs = build().double(), torch.randn(shape, dtype=torch.float64)
        output(model, inputs)
        graph = nf.trace(model, inputs, loss="cross_entropy" if name == "convnet" else None)
        return Net(model, inputs, graph, nf.symmetries(graph))


def output(model: nn.Module, inputs: Tensor) -> Tensor:
    """What a copy computes in the mode that the model is in: running statistics stay as they are."""
    return copy.deepcopy(model)(inputs).detach()


def change(model: nn.Module, other: nn.Module, inputs: Tensor, *, up_to_shift: bool = False) -> float:
    """Largest difference of two models' outputs, relative; up to one number for all classes where a softmax follows."""
    a, b = (o.log_softmax(-1) if up_to_shift else o for o in (output(m, inputs) for m in (model, other)))
    return float((a - b).abs().max() / a.abs().max())


def parameters(model: nn.Module) -> dict[str, Tensor]:
    """Detached, by name."""
    return {name: p.detach() for name, p in model.named_parameters()}


def farthest(model: nn.Module, other: nn.Module) -> float:
    """Largest difference of two models' parameters."""
    a, b = parameters(model), parameters(other)
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def charges(symmetry: Symmetry, model: nn.Module) -> tuple[Tensor, Tensor]:
    """⟨ξ(θ), θ⟩ for every generator of a family, and the sizes that cancel in it, by the family's own `tangent`."""
    own = parameters(model)
    sizes = {name: p.abs() for name, p in own.items()}
    direction = torch.zeros(symmetry.dimension, dtype=torch.float64, requires_grad=True)
    paired = sum((t * own[name]).sum() for name, t in symmetry.tangent(own, direction).items())
    (values,) = torch.autograd.grad(paired, direction)
    rows = [symmetry.tangent(sizes, e) for e in torch.eye(symmetry.dimension, dtype=torch.float64)[:40]]
    return values, torch.stack([sum((t.abs() * sizes[n]).sum() for n, t in row.items()) for row in rows]).max()


def imbalance(symmetries: Symmetries, model: nn.Module, kinds: tuple[str, ...] = ("rescale", "linear")) -> float:
    """Largest charge of some kinds of families, relative to what cancels in it."""
    measured = [charges(s, model) for s in symmetries if s.kind in kinds]
    return max((float(q.abs().max() / size) for q, size in measured), default=0.0)


def elsewhere(case: Net, seed: int, size: float = 0.3) -> Any:
    """The model at a random point of its orbit, by the own `transform` of every family that tools use."""
    generator = torch.Generator().manual_seed(seed)
    moved = parameters(case.model)
    for symmetry in (s for s in case.symmetries if s.kind in HANDLED):
        moved = symmetry.transform(moved, size * torch.randn(symmetry.dimension, generator=generator, dtype=torch.float64))
    model = copy.deepcopy(case.model)
    model.load_state_dict(moved, strict=False)
    return model
