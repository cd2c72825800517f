"""Whether noise makes a mirror's subspace attractive: the growth of a transverse perturbation along SGD in the subspace."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import vmap

from noetherflow.bridge.landscape import Landscape, LossFunction
from noetherflow.bridge.mirrors import Mirror
from noetherflow.bridge.subspaces import Subspace
from noetherflow.errors import RunError
from noetherflow.numeric.curvature import slope_and_product
from noetherflow.numeric.draws import draw_batches
from noetherflow.numeric.intervals import Interval, mean_interval
from noetherflow.numeric.progress import shown


@dataclass(frozen=True)
class Growth:
    """How fast a transverse perturbation grows under SGD.

    Attributes
    ----------
    exponents : ndarray, shape (runs,)
        Mean of ln(|δ'| / |δ|) a step, one for each independent run.
    interval : Interval
        Of their mean.
    logarithms : Tensor, shape (runs, steps)
        ln|δ| since the start of the count.
    """

    exponents: np.ndarray
    interval: Interval
    logarithms: Tensor

    @property
    def collapses(self) -> bool | None:
        """Whether runs near the subspace end in it; None where the interval holds zero."""
        if self.interval.holds(0.0):
            return None
        return bool(self.interval.mean < 0)

    def __str__(self) -> str:
        verdict = {True: "collapses onto the subspace", False: "leaves the subspace", None: "undecided: more steps or runs"}
        return f"growth {self.interval} a step: {verdict[self.collapses]}"


def transverse_growth(
    model: nn.Module,
    mirror: Mirror,
    inputs: Tensor,
    targets: Tensor,
    loss: str | LossFunction,
    *,
    rate: float,
    decay: float = 0.0,
    batch: int = 1,
    steps: int = 1000,
    runs: int = 16,
    warmup: int = 100,
    seed: int = 0,
) -> Growth:
    """Largest Lyapunov exponent across a mirror's subspace, along SGD that runs inside it.

    Each run takes its own mini-batches (with replacement). θ makes real steps in the subspace, δ the linearised ones,
    δ' = (I - η (H_B(θ) + λ)) δ: a product of random matrices, whose growth decides whether what is near the subspace ends in it.

    Parameters
    ----------
    model : nn.Module
        Not changed; all runs start at its projection.
    mirror : Mirror
    inputs, targets : Tensor
    loss : 'mse', 'cross_entropy' or callable of (output, targets)
    rate, decay : float
        η, λ (coupled weight decay).
    batch, steps, runs, warmup, seed : int
        `warmup` steps are made before counting.

    Returns
    -------
    Growth
        Sampled; of the linearised dynamics: exact for infinitely small distances.

    Raises
    ------
    RunError
        For reflections inside continuous rotations (their growth holds that of rotations, which is zero), or if a run diverges.

    Notes
    -----
    Source: ziyin2024symmetry (the criterion); own (along the moving point).

    Examples
    --------
    >>> import noetherflow as nf
    >>> model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
    >>> x, y = torch.tensor([[1.0], [1.0]]), torch.tensor([[1.2], [-0.8]])
    >>> (family,) = nf.mirrors(nf.trace(model, x))
    >>> half = lambda out, y: ((out - y) ** 2).mean() / 2
    >>> [transverse_growth(model, family.mirror(), x, y, half, rate=r, runs=8, steps=400).collapses for r in (0.1, 0.6)]
    [False, True]
    """
    if steps < 1 or runs < 2 or warmup < 0:
        raise RunError(f"An exponent and its interval need a step or more and two or more runs; got {steps} steps and {runs} runs.")
    if mirror.turned:
        raise RunError("A reflection inside continuous rotations has neutral directions, whose growth is zero. Take a sign or a swap.")
    subspace = Subspace(Landscape(model, loss, inputs, targets), mirror)
    land, basis = subspace.landscape, subspace.basis

    def step(theta: Tensor, delta: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        slope, bent = slope_and_product(lambda t: land.value(t, x, y), theta, delta)
        return theta - rate * (slope + decay * theta), delta - rate * (bent + decay * delta)

    seeds = [seed + run for run in range(runs)]
    drawn = torch.Generator().manual_seed(seed)
    theta = subspace.project(land.start).repeat(runs, 1)
    delta = torch.randn(runs, len(basis), generator=drawn, dtype=torch.float64) @ basis
    delta = delta / delta.norm(dim=1, keepdim=True)
    sizes = []
    batches = draw_batches(land.inputs, land.targets, batch, seeds, steps + warmup)
    for x, y in shown(batches, "following perturbations", steps + warmup):
        theta, delta = vmap(step)(theta, delta, x, y)
        theta, delta = theta - theta @ basis.T @ basis, delta @ basis.T @ basis
        sizes.append(delta.norm(dim=1))
        delta = delta / sizes[-1][:, None]
    grown = torch.stack(sizes, 1)[:, warmup:].log().cumsum(1)
    if not bool(theta.isfinite().all()) or not bool(grown.isfinite().all()):
        raise RunError(f"SGD with step size {rate:.3g} diverges inside the subspace. Take a smaller one.", rate=rate)
    exponents = (grown[:, -1] / steps).numpy()
    # what the direction δ starts with: at most a few units of ln|δ| in all, which is not growth
    return Growth(exponents, mean_interval(exponents, resolution=math.log(2) / steps), grown)
