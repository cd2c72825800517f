"""Predicted currents against measured ones, to rounding, on real modules; and wrong ones, which must be told apart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import sympy as sp
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import noetherflow as nf
from noetherflow.bridge.currents import Currents, along, currents
from noetherflow.bridge.elementwise import evaluate
from noetherflow.bridge.replay import replay
from noetherflow.errors import GraphError, RunError, TraceError
from noetherflow.symbolic import defects
from noetherflow.symbolic.broken import BrokenSymmetry, broken_symmetries
from noetherflow.symbolic.class_shifts import ClassShift
from noetherflow.symbolic.defects import FUNCTIONS, Z, defect, function
from noetherflow.symbolic.gauge import symmetries
from noetherflow.symbolic.tying import UntiedSymmetry

EXACT = 1e-12
WRONG = 1e-6
"""What a wrong current misses by, at the least, relative to the sizes that are summed."""


@pytest.fixture(autouse=True)
def _doubles() -> None:
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)


class SwiGLU(nn.Module):
    """A gated layer between norms whose eps matters."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 6)
        self.norm, self.end = nn.RMSNorm(6, eps=0.1), nn.LayerNorm(6, eps=0.2)
        self.gate, self.up, self.down = (nn.Linear(a, b, bias=False) for a, b in ((6, 8), (6, 8), (8, 6)))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        h = self.norm(x)
        return self.end(x + self.down(F.silu(self.gate(h)) * self.up(h)))


class TiedBlock(nn.Module):
    """Token embeddings that are also the classifier, and a norm that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.norm = nn.Embedding(17, 6), nn.RMSNorm(6)
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        h = self.table(x)
        h = h + self.b(F.gelu(self.a(self.norm(h))))
        return F.linear(self.norm(h), self.table.weight)


def mlp(*activation: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, 7), *activation, nn.Linear(7, 3))


def convnet() -> nn.Sequential:
    """SiLU in place, and the eps of BatchNorm and GroupNorm."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4, eps=0.1),
        nn.SiLU(inplace=True),
        nn.Conv2d(4, 6, 3),
        nn.SiLU(inplace=True),
        nn.Conv2d(6, 4, 1),
        nn.GroupNorm(2, 4, eps=0.1),
        nn.Flatten(),
        nn.Linear(64, 3),
    )


def transformer() -> nn.Module:
    return nn.TransformerEncoderLayer(8, 2, 12, dropout=0.1, activation="gelu", batch_first=True, norm_first=True)


def z_loss(logits: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(logits, target) + 0.01 * torch.logsumexp(logits, -1).square().mean()


@dataclass(frozen=True)
class Case:
    """A model, its batch, and how many families of each kind are broken by something."""

    build: Callable[[], nn.Module]
    inputs: Callable[[], Tensor]
    target: Callable[[], Tensor]
    loss: Any
    broken: int


def images() -> Tensor:
    return torch.randn(6, 1, 8, 8)


def labels(*shape: int, classes: int = 3) -> Callable[[], Tensor]:
    return lambda: torch.randint(0, classes, shape)


def normal(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(shape)


CASES = {
    "gelu": Case(lambda: mlp(nn.GELU()), normal(16, 5), normal(16, 3), "mse", 2),
    "gelu by tanh": Case(lambda: mlp(nn.GELU("tanh")), normal(16, 5), normal(16, 3), "mse", 2),
    "silu": Case(lambda: mlp(nn.SiLU()), normal(16, 5), labels(16), "cross_entropy", 2),
    "tanh": Case(lambda: mlp(nn.Tanh()), normal(16, 5), labels(16), "cross_entropy", 2),
    "softplus": Case(lambda: mlp(nn.Softplus()), normal(16, 5), normal(16, 3), "mse", 2),
    "sigmoid": Case(lambda: mlp(nn.Sigmoid()), normal(16, 5), normal(16, 3), "mse", 2),
    "two functions": Case(lambda: mlp(nn.GELU(), nn.Tanh()), normal(16, 5), normal(16, 3), "mse", 2),
    "dropout": Case(lambda: mlp(nn.GELU(), nn.Dropout(0.3)), normal(16, 5), normal(16, 3), "mse", 1),
    "convolutions": Case(convnet, images, labels(6), "cross_entropy", 6),
    "transformer": Case(transformer, normal(3, 5, 8), normal(3, 5, 8), "mse", 1),
    "swiglu": Case(SwiGLU, normal(4, 5, 6), normal(4, 5, 6), "mse", 2),
    "z-loss": Case(lambda: mlp(nn.ReLU()), normal(16, 5), labels(16), z_loss, 2),
    "tied": Case(TiedBlock, lambda: torch.randint(0, 17, (3, 6)), labels(3, 6, classes=17), "cross_entropy", 6),
}


def measured(name: str, **options: Any) -> Currents:
    case = CASES[name]
    model = case.build()
    return currents(model, case.inputs(), loss=case.loss, target=case.target(), **options)


@pytest.mark.parametrize("name", list(CASES))
def test_predicted_and_measured_currents_agree(name: str) -> None:
    found = measured(name)
    assert found.missing == {}
    assert found.worst < EXACT
    moved = [one for one in found if float(one.measured.abs().amax()) > WRONG * one.size]
    assert len(moved) == CASES[name].broken
    assert all(isinstance(one.family, BrokenSymmetry | ClassShift | UntiedSymmetry) or one.symmetry.breaking for one in moved)


def test_currents_in_single_precision_agree_to_its_rounding() -> None:
    torch.set_default_dtype(torch.float32)
    found = measured("gelu")
    assert EXACT < found.worst < 1e-5


def test_the_general_replacement_law() -> None:
    """E[δ_k (z_k σ'(z_k) - σ(z_k))] per hidden unit k, with δ_k = ⟨u_k, ∂L/∂out⟩, written out by hand."""
    model, x, y = mlp(nn.SiLU()), torch.randn(16, 5), torch.randn(16, 3)
    scale = next(one for one in currents(model, x, loss="mse", target=y) if one.symmetry.kind == "rescale")
    z = model[0](x).detach().requires_grad_()
    (slope,) = torch.autograd.grad(F.silu(z).sum(), z)
    output_gradient = 2 * (model(x) - y).detach() / y.numel()
    delta = output_gradient @ model[2].weight.detach()
    by_hand = (delta * (z * slope - F.silu(z))).sum(0).detach()
    assert torch.allclose(scale.predicted, by_hand, rtol=0, atol=1e-15)
    assert torch.allclose(scale.measured, by_hand, rtol=0, atol=1e-15)


def test_a_z_loss_moves_class_sums_by_its_own_current() -> None:
    """Σ over the classes of ∂L/∂W is 2 c E[LSE h]."""
    model, x = mlp(nn.ReLU()), torch.randn(16, 5)
    found = currents(model, x, loss=z_loss, target=torch.randint(0, 3, (16,)))
    weight, bias = (one for one in found if isinstance(one.family, ClassShift))
    hidden = torch.relu(model[0](x)).detach()
    log_sums = model(x).detach().logsumexp(-1)
    assert torch.allclose(weight.predicted, 2 * 0.01 * (log_sums[:, None] * hidden).mean(0), rtol=0, atol=1e-15)
    assert torch.allclose(bias.measured, 2 * 0.01 * log_sums.mean(0, keepdim=True), rtol=0, atol=1e-15)


def test_tied_tables_are_moved_by_the_use_that_does_not_scale() -> None:
    """The writers' scale, which the untied network has, leaves ⟨W, ∂L/∂W as the classifier reads it⟩ = ⟨logits, ∂L/∂logits⟩."""
    model, tokens, target = TiedBlock(), torch.randint(0, 17, (3, 6)), torch.randint(0, 17, (3, 6))
    found = currents(model, tokens, loss="cross_entropy", target=target)
    (scale,) = (one for one in found if isinstance(one.family, UntiedSymmetry) and one.symmetry.kind == "scale")
    assert scale.symmetry.parameters == ("table.weight", "b.weight", "b.bias")
    logits = model(tokens).detach().requires_grad_()
    (delta,) = torch.autograd.grad(F.cross_entropy(logits.movedim(-1, 1), target), logits)
    eps_share = next(one for one in found if one.symmetry.breaking and one.symmetry.kind == "rescale")
    assert float(eps_share.measured.abs().amax()) < 1e-10  # eps of the norms is that of the dtype, and adds nothing here
    assert torch.allclose(scale.measured, (logits * delta).sum(), rtol=1e-12)


def test_clipping_by_value_adds_what_it_cuts_off() -> None:
    model, x, y, limit = mlp(nn.ReLU()), torch.randn(16, 5), torch.randn(16, 3), 0.01
    (rescale,) = currents(model, x, loss="mse", target=y, clip_value=limit)
    F.mse_loss(model(x), y).backward()
    nn.utils.clip_grad_value_(model.parameters(), limit)
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    by_torch = along(rescale.family, {name: p.detach() for name, p in model.named_parameters()}, gradients)
    assert float(by_torch.abs().amax()) > 1e-3 * rescale.size
    assert torch.allclose(rescale.measured, by_torch, rtol=0, atol=EXACT * rescale.size)
    assert rescale.error < EXACT
    (unclipped,) = currents(model, x, loss="mse", target=y)
    assert float((unclipped.predicted - rescale.measured).abs().amax()) > 1e-3 * rescale.size


def test_inputs_may_be_given_by_name() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp(nn.GELU())

        def forward(self, x: Tensor, *, shift: Tensor) -> Tensor:
            return self.net(x + shift)

    model, x, y = Named(), torch.randn(16, 5), torch.randn(16, 3)
    found = currents(model, x, loss="mse", target=y, kwargs={"shift": torch.ones(5)})
    assert len(found) == 2
    assert found.worst < EXACT


# --- wrong ones


def wrong_siblings(one: BrokenSymmetry) -> dict[str, BrokenSymmetry]:
    """A broken symmetry with something wrong about its first site."""
    first, *rest = one.sites
    other = defect(function("softplus", {}), "scale")
    return {
        "sign": replace(one, sites=(replace(first, defect=-first.defect), *rest)),
        "another function": replace(one, sites=(replace(first, defect=other), *rest)),
        "a site left out": replace(one, sites=tuple(rest)),
        "the coefficient": replace(one, sites=(replace(first, coefficient=2 * first.coefficient), *rest)),
        "the charge's term alone": replace(one, sites=(replace(first, defect=Z * sp.diff(first.function, Z)), *rest)),
    }


@pytest.mark.parametrize("fault", ["sign", "another function", "a site left out", "the coefficient", "the charge's term alone"])
@pytest.mark.parametrize("name", ["gelu", "silu", "tanh", "two functions", "convolutions", "swiglu"])
def test_a_wrong_current_is_rejected(name: str, fault: str) -> None:
    case = CASES[name]
    model, x, y = case.build(), case.inputs(), case.target()
    scales = [one for one in broken_symmetries(nf.trace(model, x, loss=case.loss)) if one.symmetry.kind in ("rescale", "scale")]
    right = currents(model, x, loss=case.loss, target=y, families=scales)
    wrong = currents(model, x, loss=case.loss, target=y, families=[wrong_siblings(one)[fault] for one in scales])
    assert right.worst < EXACT
    assert all(one.error > WRONG for one in wrong)


def test_an_eps_left_out_is_rejected() -> None:
    model, x, y = SwiGLU(), torch.randn(4, 5, 6), torch.randn(4, 5, 6)
    (scale,) = (s for s in symmetries(nf.trace(model, x, loss="mse")) if s.breaking)
    exact, half = scale, replace(scale, absorbers=scale.absorbers[:-1])
    found = currents(model, x, loss="mse", target=y, families=[exact, half])
    assert found[0].error < EXACT < WRONG < found[1].error


def test_a_use_left_out_is_rejected() -> None:
    model, tokens, target = TiedBlock(), torch.randint(0, 17, (3, 6)), torch.randint(0, 17, (3, 6))
    families = [one.family for one in currents(model, tokens, loss="cross_entropy", target=target)]
    (scale,) = (f for f in families if isinstance(f, UntiedSymmetry) and f.symmetry.kind == "scale")
    kept = tuple(use for use in scale.uses if use.name in scale.symmetry.parameters or use.parameter != "table.weight")
    found = currents(model, tokens, loss="cross_entropy", target=target, families=[scale, replace(scale, uses=kept)])
    assert found[0].error < EXACT < WRONG < found[1].error


# --- the function that is differentiated is the one that is computed


def test_another_function_than_the_model_computes_is_refused() -> None:
    x, y = torch.randn(16, 5), torch.randn(16, 3)
    families = broken_symmetries(nf.trace(mlp(nn.GELU()), x, loss="mse"))
    found = currents(mlp(nn.GELU("tanh")), x, loss="mse", target=y, families=families)
    assert len(found) == 0
    assert all("does not compute" in why for why in found.missing.values())


def test_a_changed_expression_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(defects.FUNCTIONS, "tanh", lambda _: sp.tanh(2 * Z))
    assert set(measured("tanh").missing) == {"rescale 0.weight +2", "affine 0.bias +1"}


TORCH: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "softplus": F.softplus,
    "elu": F.elu,
    "clamp": lambda x: x.clamp(-1, 0.5),
    "tanh": torch.tanh,
    "silu": F.silu,
    "sigmoid": torch.sigmoid,
    "mish": F.mish,
    "exponential": torch.exp,
    "logarithm": torch.log,
    "sine": torch.sin,
    "cosine": torch.cos,
    "error_function": torch.erf,
    "relu": F.relu,
    "relu6": F.relu6,
    "hard_sigmoid": F.hardsigmoid,
    "hard_swish": F.hardswish,
    "absolute": torch.abs,
    "power": lambda x: x**2,
}
# torch differentiates it with 1/6 in single precision, also where it computes in double.
ROUGH = {"hard_sigmoid": 1e-7}


@pytest.mark.parametrize("operation", list(FUNCTIONS))
def test_functions_and_defects_are_those_of_torch(operation: str) -> None:
    z = torch.linspace(-30, 30, 4001)
    z = (z.abs() + 0.1 if operation == "logarithm" else z).requires_grad_()
    y = TORCH[operation](z)
    (slope,) = torch.autograd.grad(y.sum(), z)
    f, point, value = function(operation, {"exponent": 2, "min": -1, "max": 0.5}), z.detach(), y.detach()
    bound = ROUGH.get(operation, 1e-13) * (1 + value.abs() + (point * slope).abs())
    assert bool(((evaluate(f, point) - value).abs() <= 1e-13 * (1 + value.abs())).all())
    assert bool(((evaluate(defect(f, "scale"), point) - (point * slope - value)).abs() <= bound).all())
    assert bool(((evaluate(defect(f, "shift"), point) - (slope - 1)).abs() <= bound).all())


def test_an_expression_without_a_tensor_function_is_refused() -> None:
    with pytest.raises(GraphError, match="gamma"):
        evaluate(sp.gamma(Z), torch.ones(2))


# --- the pass


def test_a_pass_leaves_the_model_as_it_is_and_gives_its_gradient() -> None:
    model, x, y = convnet(), images(), torch.randint(0, 3, (6,))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    ran = replay(model, (x,), "cross_entropy", y)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    assert ran.loss == pytest.approx(loss.item(), rel=1e-14)
    gradients = ran.gradients(model)
    assert all(torch.allclose(gradients[name], p.grad, rtol=0, atol=1e-14) for name, p in model.named_parameters() if p.grad is not None)


def test_gradients_of_the_uses_of_a_shared_parameter_add_up() -> None:
    model, tokens, target = TiedBlock(), torch.randint(0, 17, (3, 6)), torch.randint(0, 17, (3, 6))
    ran = replay(model, (tokens,), "cross_entropy", target)
    assert len([use for use in ran.uses if use[0] == "table.weight"]) == 2
    F.cross_entropy(model(tokens).movedim(-1, 1), target).backward()
    assert model.table.weight.grad is not None
    assert torch.allclose(ran.gradients(model)["table.weight"], model.table.weight.grad, rtol=0, atol=1e-15)


def test_families_of_another_batch_size_serve() -> None:
    model = convnet()
    families = broken_symmetries(nf.trace(model, images()[:2], loss="cross_entropy"))
    found = currents(model, images(), loss="cross_entropy", target=torch.randint(0, 3, (6,)), families=families)
    assert len(found) == len(families)
    assert found.worst < EXACT


@pytest.mark.parametrize(("loss", "message"), [(None, "measured on a gradient"), ("hinge", "Unknown loss")])
def test_a_loss_is_needed(loss: Any, message: str) -> None:
    with pytest.raises((RunError, TraceError), match=message):
        currents(mlp(nn.GELU()), torch.randn(4, 5), loss=loss)


def test_currents_are_printed() -> None:
    assert str(measured("gelu")).startswith("2 families, largest error ")
