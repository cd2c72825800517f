"""Hold the drift of every charge to a seeded ensemble of real steps, wrong siblings included."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from noetherflow.bridge.drifts import ExpectedStep, expected_step, gradient_moments
from noetherflow.bridge.optimizers import rule_of
from noetherflow.bridge.trace import Loss, trace
from noetherflow.bridge.verify import LOSS_FUNCTIONS
from noetherflow.errors import RunError
from noetherflow.numeric.draws import draw_batches
from noetherflow.numeric.ensembles import Ensemble, Variant
from noetherflow.numeric.rounding import confidence as sure
from noetherflow.numeric.rounding import unit_roundoff
from noetherflow.numeric.statistics import Verdict, judge
from noetherflow.symbolic.laws import Law, derive

DIFFUSION, MORE, LESS = "diffusion limit", "noise x 1.5", "noise / 1.5"


@dataclass(frozen=True)
class DriftReport:
    """Verdicts on the drift of each law.

    Attributes
    ----------
    verdicts : mapping of str to Verdict
        Law -> whether the measured mean of Q' is the expected one and the wrong siblings are rejected.
    steps : mapping of str to ExpectedStep
    """

    verdicts: Mapping[str, Verdict]
    steps: Mapping[str, ExpectedStep]

    @property
    def holds(self) -> bool:
        """Whether every verdict holds."""
        return all(verdict.holds for verdict in self.verdicts.values())

    def __str__(self) -> str:
        return "\n".join(f"{name}: {verdict}" for name, verdict in self.verdicts.items())


def verify_drift(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: Loss,
    inputs: Tensor,
    targets: Tensor,
    *,
    batch: int,
    runs: int = 1000,
    warmup: int = 0,
    replace: bool = True,
    seed: int = 0,
    confidence: float = 0.999,
) -> DriftReport:
    """Measure the mean step of every charge under mini-batches, and hold the derived drift to it.

    All runs make `warmup` steps on the same mini-batches, so that they stand at one point with one momentum buffer; then each makes one
    step on a mini-batch of its own. The mean of Q' over the runs is judged against E[Q'], which is derived and evaluated without sampling,
    with three wrong siblings: the diffusion limit (for laws within one parameter group), and noise by a factor 1.5 too large and too small.

    Parameters
    ----------
    model : nn.Module
        In training mode or not; left as it is. Its loss must be a mean over samples.
    optimizer : torch.optim.SGD
        Its options and parameter groups; its state is not used and not changed.
    loss : str or callable
        "cross_entropy", "mse", or called as ``loss(output, targets)``.
    inputs, targets : Tensor
        The samples.
    batch : int
    runs : int
    warmup : int
    replace : bool
        Whether a sample may be drawn twice into one mini-batch.
    seed : int
        The runs have seeds from this one on.
    confidence : float
        Of the intervals of each law (one true law in a thousand is called false).

    Returns
    -------
    DriftReport
        One verdict for each law with quadratic charges.

    Raises
    ------
    RunError
        If there are no such laws, or the optimizer ascends.

    Examples
    --------
    >>> import noetherflow as nf
    >>> _ = torch.manual_seed(0)
    >>> model = nf.models.MLP([3, 4, 2]).double()
    >>> x, y = torch.randn(12, 3).double(), torch.randn(12, 2).double()
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> print(nf.verify_drift(model, optimizer, "mse", x, y, batch=2, runs=4000).holds)
    True
    """
    function, laws = _problem(model, optimizer, loss, inputs)
    ensemble = _ensemble(model, optimizer, function, [seed + run for run in range(runs)])
    for x, y in draw_batches(inputs, targets, batch, [seed - 1], warmup, replace=replace):
        ensemble.step(x[0], y[0])
    moments = gradient_moments(model, function, inputs, targets, ensemble.parameters(0))
    buffers = ensemble.momenta(0)
    steps = {law.name: expected_step(law, moments, batch, replace=replace, buffers=buffers, first=not warmup) for law in laws}
    for x, y in draw_batches(inputs, targets, batch, [v.seed for v in ensemble.variants], 1, replace=replace):
        ensemble.step(x, y, per_run=True)
    return DriftReport({law.name: _verdict(law, steps[law.name], ensemble, confidence) for law in laws}, steps)


def _problem(
    model: nn.Module, optimizer: torch.optim.Optimizer, loss: Loss, inputs: Tensor
) -> tuple[Callable[[Any, Tensor], Tensor], list[Law]]:
    """The loss as a function, and the laws that noise moves."""
    function = LOSS_FUNCTIONS[loss] if isinstance(loss, str) else loss
    if function is None:
        raise RunError(f"A drift needs a loss: one of {sorted(LOSS_FUNCTIONS)}, or a callable loss(output, targets).")
    if any(options.get("maximize") for options in optimizer.param_groups):
        raise RunError("The drift is verified for descent; build the optimizer with maximize=False, and give the loss the other sign.")
    laws = [law for law in derive(trace(model, inputs, loss=loss), rule_of(optimizer)) if not law.linear]
    if not laws:
        raise RunError("The model has no law with a quadratic charge, so noise moves none of its charges.")
    return function, laws


def _ensemble(
    model: nn.Module, optimizer: torch.optim.Optimizer, function: Callable[[Any, Tensor], Tensor], seeds: Sequence[int]
) -> Ensemble:
    """Runs that all start at the model, each parameter with the options of its group."""
    first, *others = optimizer.param_groups
    options_of = {id(p): {name: group[name] for name in _OPTIONS} for group in others for p in group["params"]}
    groups = {name: options_of[id(p)] for name, p in model.named_parameters() if id(p) in options_of}
    variants = [Variant(seed=seed, **{name: first[name] for name in _OPTIONS}) for seed in seeds]
    return Ensemble(lambda _: model, function, variants, groups=groups)


_OPTIONS = ("lr", "momentum", "dampening", "weight_decay", "nesterov")


def _verdict(law: Law, step: ExpectedStep, ensemble: Ensemble, confidence: float) -> Verdict:
    after = ensemble.record(lambda parameters: step.measured(law.symmetry, parameters))
    moved = _distinct(law, after - step.charge)
    predicted, noise = _distinct(law, step.change), _distinct(law, step.terms["noise"])
    siblings = {MORE: predicted + noise / 2, LESS: predicted - noise / 3}
    siblings |= {DIFFUSION: _distinct(law, step.diffusion)} if len(law.groups) == 1 else {}
    wrong = {name: value.numpy() for name, value in siblings.items()}
    return judge(moved.numpy(), predicted.numpy(), wrong, confidence=confidence, resolution=_rounding(law, step, ensemble))


def _rounding(law: Law, step: ExpectedStep, ensemble: Ensemble) -> float:
    """What rounding may move a measured charge by (a unit that no sample switches on has no other fluctuation)."""
    here = ensemble.parameters(0)
    squares = sum(abs(step.weights[name]) * float(here[name].square().sum()) for name in law.symmetry.parameters)
    return sure(len(ensemble.variants)) * unit_roundoff(torch.float64) * squares


def _distinct(law: Law, charges: Tensor) -> Tensor:
    """A matrix of charges is symmetric: its entries on and above the diagonal."""
    if not law.symmetry.matrix:
        return charges
    i, j = torch.triu_indices(*charges.shape[-2:])
    return charges[..., i, j]
