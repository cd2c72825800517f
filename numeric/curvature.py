"""Curvature of a function of parameters: Hessian-vector products, and extreme eigenvalues by Lanczos' method.

Products come in two forms: of tensors by name, one after the other through one graph (`hessian_product`), and of many flat vectors at once
(`hessian_times`). Lanczos keeps its basis and orthogonalises anew at every step, which for the few
steps that an extreme eigenvalue takes costs little and leaves no ghosts; a Ritz pair's residual bounds its error (Parlett, The symmetric
eigenvalue problem).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

import torch
from torch import Tensor
from torch.func import grad, vjp, vmap

from noetherflow.errors import RunError

Vector: TypeAlias = Mapping[str, Tensor]
Function: TypeAlias = Callable[[Vector], Tensor]
Product: TypeAlias = Callable[[Vector], dict[str, Tensor]]

TOLERANCE: Final = 1e-10
MOST_STEPS: Final = 200
CHUNK: Final = 64  # directions at a time: bounds memory


def hessian_product(function: Function, point: Vector) -> Product:
    """The Hessian of a function at a point as an operator, v -> H v.

    Parameters
    ----------
    function : callable of a mapping (name -> Tensor) to a scalar Tensor
    point : mapping of str to Tensor

    Examples
    --------
    >>> product = hessian_product(lambda p: (p["x"] ** 3).sum(), {"x": torch.tensor([1.0, 2.0])})
    >>> product({"x": torch.tensor([1.0, 1.0])})["x"].tolist()
    [6.0, 12.0]
    """
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in point.items()}
    own = list(leaves.values())
    slopes = torch.autograd.grad(function(leaves), own, create_graph=True, allow_unused=True, materialize_grads=True)
    bent = [s for s in slopes if s.requires_grad]

    def product(vector: Vector) -> dict[str, Tensor]:
        along = [vector[name] for name, s in zip(leaves, slopes, strict=True) if s.requires_grad]
        if not bent:
            return {name: torch.zeros_like(tensor) for name, tensor in point.items()}
        found = torch.autograd.grad(bent, own, along, retain_graph=True, allow_unused=True, materialize_grads=True)
        return dict(zip(leaves, found, strict=True))

    return product


def slope_and_product(value: Callable[[Tensor], Tensor], point: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """∇L and H v of a function of one flat vector, shapes (P,); may be vmapped.

    Examples
    --------
    >>> slope, bent = slope_and_product(lambda x: (x**3).sum(), torch.tensor([1.0, 2.0]), torch.tensor([1.0, 1.0]))
    >>> slope.tolist(), bent.tolist()
    ([3.0, 12.0], [6.0, 12.0])
    """
    found: Any = vjp(grad(value), point)  # torch's type allows for a third part
    return found[0], found[1](direction)[0]  # H is symmetric


def hessian_times(value: Callable[[Tensor], Tensor], point: Tensor, directions: Tensor) -> Tensor:
    """H v for each row v of `directions`, shape (m, P)."""
    found: Tensor = vmap(lambda v: slope_and_product(value, point, v)[1], chunk_size=CHUNK)(directions)
    return found


def largest_eigenvalue(product: Product, like: Vector, *, tolerance: float = TOLERANCE, smallest: bool = False) -> float:
    """The largest (or the smallest) eigenvalue of a symmetric operator.

    Parameters
    ----------
    product : callable
        v -> H v.
    like : mapping of str to Tensor
        Names, shapes and dtypes of its vectors.
    tolerance : float
        Of the residual ‖H x - λ x‖ over the largest Ritz value in size, which bounds the distance of λ from an eigenvalue.
    smallest : bool

    Raises
    ------
    RunError
        If the residual does not reach the tolerance.

    Examples
    --------
    >>> scale = torch.arange(1.0, 31.0, dtype=torch.float64)
    >>> operator = lambda v: {"x": scale * v["x"]}
    >>> round(largest_eigenvalue(operator, {"x": scale}), 9), round(largest_eigenvalue(operator, {"x": scale}, smallest=True), 9)
    (30.0, 1.0)
    """
    size = sum(t.numel() for t in like.values())
    basis = [_flat(_start(like))]
    diagonal: list[float] = []
    beside: list[float] = []
    residual = scale = 0.0
    for _ in range(min(size, MOST_STEPS)):
        image = _flat(product(_named(basis[-1], like)))
        if not bool(image.isfinite().all()):
            raise RunError("The operator's values are not finite, so it has no largest eigenvalue here. Has the run diverged?")
        diagonal.append(float(image @ basis[-1]))
        value, weight, scale = _ritz(diagonal, beside, smallest)
        rest = _orthogonal(image, torch.stack(basis))
        beside.append(float(rest.norm()))
        residual = beside[-1] * weight
        if residual <= tolerance * scale:
            return value
        basis.append(rest / beside[-1])
    raise RunError(
        f"Lanczos' method did not converge in {len(diagonal)} steps: residual {residual:.3g} of {scale:.3g}, "
        f"with {tolerance:.3g} asked. Use float64, or a larger tolerance.",
        residual=residual,
    )


def _ritz(diagonal: list[float], beside: list[float], smallest: bool) -> tuple[float, float, float]:
    """The extreme eigenvalue of the tridiagonal matrix, the last entry of its vector in size, and the matrix's norm."""
    matrix = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    if beside:
        off = torch.tensor(beside, dtype=torch.float64)
        matrix = matrix + torch.diag(off, 1) + torch.diag(off, -1)
    values, vectors = torch.linalg.eigh(matrix)
    place = 0 if smallest else -1
    return float(values[place]), float(vectors[-1, place].abs()), float(values.abs().max())


def _orthogonal(vector: Tensor, basis: Tensor) -> Tensor:
    """What a basis leaves of a vector; twice is enough (Kahan)."""
    for _ in range(2):
        vector = vector - basis.T @ (basis @ vector)
    return vector


def _start(like: Vector) -> dict[str, Tensor]:
    """The same generic vector every time, of length one."""
    drawn = torch.Generator().manual_seed(0)
    found = {name: torch.randn(t.shape, generator=drawn, dtype=torch.float64).to(t.device) for name, t in like.items()}
    length = torch.stack([t.square().sum() for t in found.values()]).sum().sqrt()
    return {name: t / length for name, t in found.items()}


def _flat(vector: Vector) -> Tensor:
    return torch.cat([t.detach().to(torch.float64).reshape(-1) for t in vector.values()])


def _named(flat: Tensor, like: Vector) -> dict[str, Tensor]:
    parts = torch.split(flat, [t.numel() for t in like.values()])
    return {name: part.view(t.shape).to(t.dtype) for (name, t), part in zip(like.items(), parts, strict=True)}
