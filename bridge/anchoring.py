"""Removing mirrors by an anchor: parameters measured from a fixed random point, so that decay pulls there and not to a symmetric one."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from noetherflow.errors import ModelError


class Shift(nn.Module):
    """θ = θ' + θ₀ with a fixed θ₀: the parametrisation of one parameter.

    Examples
    --------
    >>> shift = Shift(torch.tensor([1.0]))
    >>> shift(torch.tensor([2.0])), shift.right_inverse(torch.tensor([3.0]))
    (tensor([3.]), tensor([2.]))
    """

    anchor: Tensor

    def __init__(self, anchor: Tensor) -> None:
        super().__init__()
        self.register_buffer("anchor", anchor)

    def forward(self, own: Tensor) -> Tensor:
        """θ of θ'."""
        return own + self.anchor

    def right_inverse(self, value: Tensor) -> Tensor:
        """θ' of θ."""
        return value - self.anchor


def anchored(model: nn.Module, scale: float = 0.01, seed: int = 0) -> nn.Module:
    """A copy of a model whose weight decay pulls to a random point θ₀: loss + ½λ|θ - θ₀|² has no mirror, whatever the loss has.

    The network computes the same function, and can compute all that it could. Its trained parameters are θ' = θ - θ₀ (torch's
    parametrisations: ``weight`` is still there, ``parametrizations.weight.original`` is trained). Without decay nothing changes: descent on
    the loss does not see where θ is measured from, so collapse by noise alone is not removed.

    Parameters
    ----------
    model : nn.Module
        Without parametrisations. Not changed.
    scale : float
        Standard deviation of the entries of θ₀.
    seed : int

    Returns
    -------
    nn.Module

    Raises
    ------
    ModelError
        If a scale is not positive, a module has parametrizations, or a parameter is shared (its places would get anchors of their own).

    Notes
    -----
    Source: own. The amplitude that is left is derived in `noetherflow.symbolic.pitchfork`.

    Examples
    --------
    >>> import noetherflow as nf
    >>> model, x = nf.models.MLP([3, 4, 2], "tanh"), torch.randn(5, 3)
    >>> free = anchored(model, 0.1)
    >>> bool(torch.allclose(free(x), model(x), atol=1e-6)), len(nf.mirrors(nf.trace(model, x))), len(nf.mirrors(nf.trace(free, x)))
    (True, 2, 0)
    """
    if not scale > 0:
        raise ModelError(f"An anchor needs a positive scale; got {scale}. At zero it is where plain decay pulls to.", scale=scale)
    written = [name for name, m in model.named_modules() if parametrize.is_parametrized(m)]
    if written:
        raise ModelError(f"Modules {written[:4]} have parametrizations already. Take them off first (remove_parametrizations).")
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    if len(names) > len(list(model.parameters())):
        raise ModelError("The model shares a parameter between modules: its places would get anchors of their own. Untie it first.")
    out, drawn = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    for module in list(out.modules()):
        for name, parameter in list(module.named_parameters(recurse=False)):
            if parameter.requires_grad:
                anchor = scale * torch.randn(parameter.shape, generator=drawn, dtype=torch.float64)
                parametrize.register_parametrization(module, name, Shift(anchor.to(parameter.dtype)))
    return out
