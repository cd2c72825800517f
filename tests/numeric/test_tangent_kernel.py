"""The tangent kernel against a slow reference, its velocity against differences of falling size, and the identity of one step."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from noetherflow.errors import ModelError, RunError
from noetherflow.numeric.models import MLP
from noetherflow.numeric.order import fit_order
from noetherflow.numeric.rounding import confidence, unit_roundoff
from noetherflow.numeric.segments import mean_gradient, segment
from noetherflow.numeric.tangent_kernel import TangentKernel, neural_tangent_kernel


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def network(activation: str = "tanh") -> nn.Module:
    torch.manual_seed(1)
    return MLP([6, 7, 5, 3], activation=activation).double()


def small_conv() -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Softplus(), nn.Flatten(), nn.Linear(48, 2)).double().eval()


def reference(model: nn.Module, inputs: Tensor) -> Tensor:
    """One backward pass for each output."""
    rows = []
    for out in model(inputs).flatten():
        gradients = torch.autograd.grad(out, list(model.parameters()), retain_graph=True)
        rows.append(torch.cat([g.flatten() for g in gradients]))
    return torch.stack(rows) @ torch.stack(rows).T


def rounding(kernel: TangentKernel) -> float:
    terms = sum(p.numel() for p in kernel.parameters.values())
    return confidence(kernel.matrix.numel()) * unit_roundoff(torch.float64) * terms**0.5 * float(kernel.matrix.diagonal().max())


CASES = {"tanh": (network(), drawn(9, 6)), "relu": (network("relu"), drawn(9, 6)), "conv": (small_conv(), drawn(5, 1, 6, 6))}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("chunk", [2, 4, 32])
def test_matrix_and_products_are_those_of_the_jacobian(name: str, chunk: int) -> None:
    model, inputs = CASES[name]
    kernel = neural_tangent_kernel(model, inputs, chunk=chunk)
    wanted, bound = reference(model, inputs), rounding(kernel)
    v = drawn(len(wanted), seed=3)
    assert float((kernel.matrix - wanted).abs().max()) < bound
    assert float((kernel.product(v) - wanted @ v).abs().max()) < bound * float(v.abs().sum())
    assert float((kernel.matrix - wanted.T.roll(1, 0)).abs().max()) > 1e6 * bound, "another order of outputs is another matrix"
    assert all(p.grad is None for p in model.parameters())


def test_velocity_is_the_derivative_of_the_matrix() -> None:
    model, inputs = CASES["tanh"]
    kernel = neural_tangent_kernel(model, inputs)
    direction = {n: drawn(*p.shape, seed=k) for k, (n, p) in enumerate(kernel.parameters.items())}
    steps = [0.04 / 2**k for k in range(5)]

    def difference(h: float) -> Tensor:
        ends = [kernel.at({n: p + s * h * direction[n] for n, p in kernel.parameters.items()}).matrix for s in (1, -1)]
        return (ends[0] - ends[1]) / (2 * h)

    errors = [float((difference(h) - kernel.velocity(direction)).norm()) for h in steps]
    assert abs(fit_order(steps, errors).slope - 2) < 0.1
    half = [float((difference(h) - kernel.velocity(direction) / 2).norm()) for h in steps]
    assert abs(fit_order(steps, half).slope) < 0.1, "one of the two terms alone does not converge"


def test_a_network_that_is_linear_in_its_parameters_has_a_kernel_at_rest() -> None:
    model = MLP([6, 3]).double()
    kernel = neural_tangent_kernel(model, drawn(4, 6))
    assert float(kernel.velocity({n: torch.ones_like(p) for n, p in kernel.parameters.items()}).abs().max()) == 0
    tanh, inputs = CASES["tanh"]
    moving = neural_tangent_kernel(tanh, inputs)
    assert float(moving.velocity({n: torch.ones_like(p) for n, p in moving.parameters.items()}).abs().max()) > 0.1


def test_one_step_of_descent_moves_outputs_by_the_averaged_kernel() -> None:
    model, inputs = CASES["tanh"]
    kernel, target, rate = neural_tangent_kernel(model, inputs), drawn(27, seed=9), 0.3
    z = kernel.outputs()
    slope = 2 * (z - target) / len(z)
    change = {n: -rate * g for n, g in kernel.pulled(slope).items()}
    end = kernel.at({n: p + change[n] for n, p in kernel.parameters.items()})
    moved = -rate * kernel.averaged_product(change, slope, nodes=32)
    bound = rounding(kernel) * float(slope.abs().sum())
    assert float((end.outputs() - z - moved).abs().max()) < bound
    for wrong in (kernel, end):
        assert float((end.outputs() - z + rate * wrong.product(slope)).abs().max()) > 1e6 * bound
    f = [float((out - target).square().mean()) for out in (z, end.outputs())]
    midpoint = 2 * ((z + end.outputs()) / 2 - target) / len(z)
    assert abs(f[1] - f[0] - float(midpoint @ moved)) < bound * float(midpoint.abs().sum()) + f[0] * 64 * unit_roundoff(torch.float64)
    assert abs(f[1] - f[0] - float(slope @ moved)) > 1e6 * bound


def test_the_mean_gradient_gives_the_change_of_a_function() -> None:
    start, end = drawn(5), drawn(5, seed=1) * 2
    f = lambda z: torch.logsumexp(z, 0)  # noqa: E731  # one expression, used three times
    errors = [abs(float(f(end) - f(start) - mean_gradient(f, start, end, nodes=n) @ (end - start))) for n in (2, 24)]
    assert errors[1] < 64 * unit_roundoff(torch.float64) * float(f(end).abs() + 5)
    assert errors[0] > 1e6 * unit_roundoff(torch.float64), "two nodes are not enough"


def test_a_segment_of_a_function_with_a_kink_books_the_kink() -> None:
    """f = |x - 1|, from 0 along 2: φ = |2 s - 1| has φ' jump by 4 at s = ½, which adds (1 - ½) · 4 = 2 to -2 + 0."""
    found = segment(lambda p: (p["x"] - 1).abs(), {"x": torch.tensor(0.0).double()}, {"x": torch.tensor(2.0).double()})
    assert (found.slope, round(found.work, 12), found.curvature, round(found.kinks, 12)) == (-2.0, 0.0, 0.0, 2.0)


def test_a_segment_tells_smooth_from_kinked_by_refinement_alone() -> None:
    start, change = {"x": drawn(3)}, {"x": drawn(3, seed=5)}
    smooth = segment(lambda p: torch.sin(p["x"]).sum(), start, change)
    kinked = segment(lambda p: torch.relu(p["x"] - torch.linspace(-1, 1, 7).double()[:, None]).sum(), start, change)
    assert smooth.quadrature < 1e-13
    assert abs(smooth.kinks) < 1e-13
    assert kinked.quadrature > 1e-6
    exact = sum(
        torch.relu(start["x"] + t * change["x"] - c).sum() * s for t, s in ((1, 1), (0, -1)) for c in torch.linspace(-1, 1, 7).double()
    )
    assert abs(kinked.work - float(exact)) < kinked.quadrature


def test_refusals() -> None:
    model, inputs = CASES["tanh"]
    with pytest.raises(RunError, match="chunk=0"):
        neural_tangent_kernel(model, inputs, chunk=0)
    with pytest.raises(ModelError, match="batch norm in training"):
        neural_tangent_kernel(small_conv().train(), drawn(5, 1, 6, 6))
    with pytest.raises(ModelError, match="dropout"):
        neural_tangent_kernel(nn.Sequential(nn.Dropout(0.5), nn.Linear(6, 3)).double(), inputs)
    with pytest.raises(ModelError, match="no trainable parameter"):
        neural_tangent_kernel(network().requires_grad_(False), inputs)
    assert np.isfinite(neural_tangent_kernel(model.float(), inputs.float()).matrix.numpy()).all()
    model.double()
