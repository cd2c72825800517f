"""How far rounding alone can move an angular momentum in one step: the standard deviations that its bound is made of.

With unit roundoff u of the parameters, P their rows and B those of the buffer, for the entry (i, j) of K and one step:

- the update θ' = fl(θ - η u) rounds twice, each time by at most u|θ'|; K pairs that up with b': σ² = 2 u² Σ_k (P_ik² B_jk² + P_jk² B_ik²)
- a gradient entry sums M products in the accumulation dtype (roundoff a) and comes out of passes that round activations (`PASSES`), as the
  buffer is rounded: σ² = (M a² + PASSES u²) Σ_k (P_ik² G_jk² + P_jk² G_ik²), with |G| ≤ |B'| + |B| + λ|P| in rows' lengths (rows of
  tables that indices pick are summed in other ways, `noise`)
- the evaluation itself, in float64

Sums of fourth order are known exactly every `REFRESH` steps; in between their ratio to products of rows' squared lengths, at most 1, is
kept, the largest seen. Where the momentum is that of the step itself, Δ takes the place of B, and the update's rounding pairs up with P.

Source: higham2019probabilistic for independent roundings; own for the sums.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from noetherflow.bridge.kernels_heads import LARGEST
from noetherflow.bridge.momentum_bundles import MomentumBundle
from noetherflow.bridge.noise import DOUBLE, Precision

Vectors = Mapping[str, Mapping[str, Tensor]]


@dataclass(frozen=True)
class Rows:
    """Squared lengths of the rows that one group's momentum is made of, each of shape (size,).

    Attributes
    ----------
    theta : Tensor
        Of the parameters.
    partner : Tensor
        Of the buffer after the step, or of the step.
    gradient : Tensor
        A bound on what of the gradient came into the partner.
    """

    theta: Tensor
    partner: Tensor
    gradient: Tensor


def step_variance(bundle: MomentumBundle, rows: Rows, ratios: Mapping[str, Tensor], precision: Precision, *, lasting: bool) -> Tensor:
    """Variance that one step adds to the momentum of one group.

    Parameters
    ----------
    bundle : MomentumBundle
    rows : Rows
    ratios : mapping of str to Tensor, shape (size,)
        "partner" and "theta": fourth-order sums over products of rows' lengths, of the parameters with the partner and with themselves.
    precision : Precision
        Its lengths have shape (size,).
    lasting : bool
        Whether the momentum is that of a buffer.

    Returns
    -------
    Tensor, shape (count,)
    """
    gradient = precision.per_entry * ratios["partner"] * bundle.outer(rows.theta, rows.gradient)
    paired = ("partner", rows.partner) if lasting else ("theta", rows.theta)
    update = 2 * precision.unit**2 * ratios[paired[0]] * bundle.outer(rows.theta, paired[1])
    return bundle.upper(gradient + update, squares=True)


def evaluation_variance(bundle: MomentumBundle, rows: Rows) -> Tensor:
    """Variance of the rounding of the measurement itself, shape (count,)."""
    return (4 * DOUBLE) ** 2 * size_squared(bundle, rows)


def size_squared(bundle: MomentumBundle, rows: Rows) -> Tensor:
    """Square of the scale of a momentum, |P_i|²|B_j|² + |P_j|²|B_i|², shape (count,)."""
    return bundle.upper(bundle.outer(rows.theta, rows.partner), squares=True)


def fourth_order(bundle: MomentumBundle, position: int, vectors: Vectors, x: str, y: str) -> Tensor:
    """Σ_k (x_ik² y_jk² + x_jk² y_ik²) over the parameters of one group, as whole matrices.

    Parameters
    ----------
    bundle : MomentumBundle
    position : int
        Of the group.
    vectors : mapping
        Parameter name -> its tensors by vector name; "moved" is what "theta" is beyond "before".
    x, y : str
        Two vectors.

    Returns
    -------
    Tensor, shape (size,)
        Float64.
    """
    device = next(tensor.device for tensors in vectors.values() for tensor in tensors.values())
    out = torch.zeros(bundle.size, dtype=torch.float64, device=device)
    for law, start, (blocks, n) in zip(bundle.laws, bundle.starts, bundle.shapes, strict=False):
        place = out[start : start + blocks * n * n].view(blocks, n, n)
        for action in law.symmetry.actions:
            if law.group_of[action.parameter] == bundle.groups[position]:
                tensors = {name: action.patch.view(tensor) for name, tensor in vectors[action.parameter].items()}
                lead = tuple(range(len(action.places)))
                flat = {name: t.movedim(action.places, lead).reshape(blocks, n, -1) for name, t in tensors.items()}
                product = _squares(flat, x, y)
                place += float(action.weight) ** 2 * (product + product.mT)
    return out


def _squares(tensors: Mapping[str, Tensor], x: str, y: str) -> Tensor:
    """x² (y²)ᵀ of every block, a part of the columns at a time."""
    first = next(iter(tensors.values()))
    blocks, n, columns = first.shape
    out = first.new_zeros((blocks, n, n), dtype=torch.float64)
    step = max(1, LARGEST // max(1, blocks * n))
    for start in range(0, columns, step):
        chunk = {name: tensor[..., start : start + step].double() for name, tensor in tensors.items()}
        if "moved" in (x, y):
            chunk["moved"] = chunk["theta"] - chunk["before"]
        out += chunk[x].square() @ chunk[y].square().mT
    return out


def ratio(fourth: Tensor, product: Tensor, before: Tensor | None) -> Tensor:
    """A fourth-order sum over a product of rows' lengths, and the larger of it and the one before.

    Examples
    --------
    >>> ratio(torch.tensor([1.0, 0.0]), torch.tensor([4.0, 0.0]), None)
    tensor([0.2500, 1.0000])
    """
    found = torch.where(product > 0, fourth / product.clamp(min=torch.finfo(torch.float64).tiny), 1.0).clamp(max=1.0)
    return found if before is None else torch.maximum(found, before)
