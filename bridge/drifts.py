"""Drifts of real models: the expected step of every charge of a law, from per-sample gradients.

A drift (`noetherflow.symbolic.noise`) asks for the mean gradient and the covariance of per-sample gradients, each paired with a generator.
Per-sample gradients come from `torch.func`; pairings are those of `noetherflow.bridge.group_elements`; the algebra around them is printed
from SymPy. Nothing is sampled: the expectation is over every mini-batch that may be drawn from the data.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import sympy as sp
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from noetherflow.bridge.group_elements import pairing
from noetherflow.bridge.printing import compile_expressions
from noetherflow.errors import RuleError
from noetherflow.numeric.rounding import confidence, unit_roundoff
from noetherflow.symbolic.balance import CHARGE, CURRENT, EXPLICIT, in_group
from noetherflow.symbolic.forms import GRADIENT, THETA
from noetherflow.symbolic.laws import Law
from noetherflow.symbolic.noise import MEAN, TEMPERATURE, Drift, Spread
from noetherflow.symbolic.noise_limits import diffusion
from noetherflow.symbolic.pairings import Inner
from noetherflow.symbolic.symmetries import Symmetry

Tensors: TypeAlias = Mapping[str, Tensor]
Loss: TypeAlias = Callable[[Any, Tensor], Tensor]


@dataclass(frozen=True)
class GradientMoments:
    """Per-sample gradients at one point.

    Attributes
    ----------
    point : mapping of str to Tensor
        θ, in float64.
    samples : mapping of str to Tensor, shape (N, ...)
        One gradient a sample.
    mean : mapping of str to Tensor
        ḡ.
    """

    point: Tensors
    samples: Tensors
    mean: Tensors

    def spread(self, family: Symmetry, within: Collection[str] | None = None) -> Tensor:
        """Tr[AΣ] for every generator, Σ the covariance over the N samples, of the parameters `within`, or of all; exact to rounding."""
        chosen = self.samples if within is None else _within(within, self.samples)
        apart = {name: g - (self.mean[name] if within is None or name in within else 0.0) for name, g in chosen.items()}
        return vmap(lambda d: paired(family, d, d))(apart).mean(0)


def gradient_moments(model: nn.Module, loss: Loss, inputs: Tensor, targets: Tensor, point: Tensors | None = None) -> GradientMoments:
    """Per-sample gradients of a model at its parameters, or at a point.

    Parameters
    ----------
    model : nn.Module
    loss : callable of (output, targets)
        The mean over a batch of what single samples lose.
    inputs, targets : Tensor
        All samples that mini-batches are drawn from.
    point : mapping of str to Tensor, optional
        Trainable parameters by name.

    Raises
    ------
    RuleError
        If the loss of a batch is not the mean of its samples' losses (a norm over the batch, or a sum): mini-batch gradients are then no
        means of per-sample gradients.

    Examples
    --------
    >>> model = nn.Linear(3, 1).double()
    >>> x, y = torch.randn(10, 3).double(), torch.randn(10, 1).double()
    >>> moments = gradient_moments(model, nn.functional.mse_loss, x, y)
    >>> moments.samples["weight"].shape, moments.mean["weight"].shape
    (torch.Size([10, 1, 3]), torch.Size([1, 3]))
    """
    own = {n: p.detach().double() for n, p in model.named_parameters() if p.requires_grad} if point is None else dict(point)
    others = {n: t.detach() for n, t in [*model.named_parameters(), *model.named_buffers()] if n not in own}
    others = {n: t.double() if t.is_floating_point() else t for n, t in others.items()}
    x, y = (t.double() if t.is_floating_point() else t for t in (inputs, targets))

    def lost(parameters: Tensors, x: Tensor, y: Tensor) -> Tensor:
        return loss(functional_call(model, {**parameters, **others}, (x,)), y)

    samples = vmap(grad(lost), (None, 0, 0))(own, x[:, None], y[:, None])
    moments = GradientMoments(own, samples, {name: g.mean(0) for name, g in samples.items()})
    _check_mean(moments, grad(lost)(own, x, y))
    return moments


def _check_mean(moments: GradientMoments, whole: Tensors) -> None:
    """Rounding grows with the sizes of what is summed; a batch norm is off by far more."""
    scale = torch.cat([g.flatten(1) for g in moments.samples.values()], dim=1).abs().max()
    worst = max(float((whole[name] - mean).abs().max()) for name, mean in moments.mean.items())
    size = sum(g.numel() for g in moments.samples.values())
    if not worst <= confidence(size) * unit_roundoff(torch.float64) * size**0.5 * float(scale) * 10:
        raise RuleError(
            f"The gradient of a batch differs from the mean of its samples' gradients by {worst:.1e}: the loss of a batch is no mean over "
            "samples (a norm over the batch, or reduction='sum'). Put such norms in eval mode, or average the loss.",
            difference=worst,
        )


def paired(family: Symmetry, x: Tensors, y: Tensors) -> Tensor:
    """⟨x, A y⟩ for every generator; a matrix of pairings of the symmetric ones for a matrix family."""
    out = pairing(family, x, y)
    return (out + out.mT) / 2 if family.matrix else out


@dataclass(frozen=True)
class ExpectedStep:
    """The expected step of a law's charges at one point; all tensors have the family's shape, float64.

    Attributes
    ----------
    drift : Drift
    numbers : mapping of sympy.Expr to number or Tensor
        Every symbol and pairing of the drift at this point.
    weights : mapping of str to float
        Weight of each parameter in the conserved combination: those of its parameter group (as 1/η for gradient descent).
    """

    drift: Drift
    numbers: Mapping[sp.Expr, Any]
    weights: Mapping[str, float]

    @property
    def charge(self) -> Tensor:
        """Q."""
        found: Tensor = self.numbers[CHARGE]
        return found

    @cached_property
    def terms(self) -> Mapping[str, Tensor]:
        """Mechanism -> its part of E[Q'] - Q."""
        return self._evaluated({name: part for name, part in self.drift.terms.items() if name != EXPLICIT})

    @cached_property
    def change(self) -> Tensor:
        """E[Q'] - Q."""
        return sum(self.terms.values(), torch.zeros_like(self.charge))

    def measured(self, family: Symmetry, parameters: Tensors) -> Tensor:
        """The charges of a point, with these weights."""
        weighted = {name: self.weights.get(name, 0.0) * p for name, p in parameters.items()}
        return paired(family, weighted, parameters) / 2

    @cached_property
    def diffusion(self) -> Tensor:
        """What the limit of a stochastic differential equation has for it, η · dQ/dt: a wrong sibling at finite η.

        Raises
        ------
        RuleError
            Across parameter groups, which have several rates.
        """
        rate = self.drift.balance.forms[0].rate
        return self._evaluated({"": rate * diffusion(self.drift).rate.subs(TEMPERATURE, rate * self.drift.factor)})[""]

    def _evaluated(self, parts: Mapping[str, sp.Expr]) -> dict[str, Tensor]:
        plain: dict[tuple[str, ...], Any] = {
            (name,): part.xreplace({x: _spread(x.args[0].name) for x in part.atoms(Spread)}) for name, part in parts.items()
        }
        found = compile_expressions(plain)(self.numbers)
        return {key[0]: torch.as_tensor(value) + torch.zeros_like(self.charge) for key, value in found.items()}


def expected_step(
    law: Law, moments: GradientMoments, batch: int, *, replace: bool = True, buffers: Tensors | None = None, first: bool = False
) -> ExpectedStep:
    """Evaluate the drift of a law's charges.

    Parameters
    ----------
    law : Law
        Of a rule with numbers, such as ``nf.rule_of(optimizer)``.
    moments : GradientMoments
    batch : int
        Samples in a mini-batch.
    replace : bool
        Whether a sample may be drawn twice into one mini-batch.
    buffers : mapping of str to Tensor, optional
        Momentum buffers before the step; zero if absent.
    first : bool
        Whether this step makes the buffers (torch.optim.SGD has no dampening there).

    Returns
    -------
    ExpectedStep
        Exact to rounding: the expectation over all mini-batches, for an exact symmetry. Across parameter groups ⟨ξ, ḡ⟩ of each
        group is measured too, but only where weight decay multiplies it once more, to second order in step sizes: to first order only
        their sum occurs, which is zero.

    Examples
    --------
    >>> import noetherflow as nf
    >>> model = nf.models.MLP([3, 4, 2]).double()
    >>> x, y = torch.randn(20, 3).double(), torch.randn(20, 2).double()
    >>> rule = nf.rule_of(torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.01))
    >>> law = nf.derive(nf.trace(model, x, loss="mse"), rule)[0]
    >>> step = expected_step(law, gradient_moments(model, nn.functional.mse_loss, x, y), batch=4)
    >>> sorted(step.terms), step.change.shape
    (['discretization', 'noise', 'weight_decay'], torch.Size([4]))
    """
    size = len(next(iter(moments.samples.values())))
    drift = law.drift(batch, None if replace else size)
    numbers = _hyperparameters(law, first=first)
    weights = [float(sp.sympify(w).xreplace(numbers)) for w in law.balance.weights]
    numbers |= _pairings(law, moments, buffers or {}, numbers, weights)
    return ExpectedStep(drift, numbers, {name: weights[law.groups.index(g)] for name, g in law.group_of.items()})


def _spread(gradient: str) -> sp.Symbol:
    """What Tr[AΣ] of a group is called: its gradient's name says which group."""
    return sp.Symbol(f"spread of {gradient}", real=True)


def _hyperparameters(law: Law, *, first: bool) -> dict[sp.Expr, Any]:
    """By the names that the law has for them, numbered where there are several groups."""
    out: dict[sp.Expr, Any] = {}
    for p, g in enumerate(law.groups):
        own = law.rule.groups[g]
        for name, symbol in own.form.hyperparameters:
            value = 0.0 if first and name == "dampening" else float(own.values[name])
            out |= {symbol: value, in_group(symbol, p, len(law.groups)): value}  # the plain name is of what all groups share
    return out


def _pairings(
    law: Law, moments: GradientMoments, buffers: Tensors, hyper: Mapping[sp.Expr, Any], weights: Sequence[float]
) -> dict[sp.Expr, Any]:
    family, groups = law.symmetry, len(law.groups)
    numbers: dict[sp.Expr, Any] = {CURRENT: 0.0}  # by invariance; never measured
    resting = {name: torch.zeros_like(value) for name, value in moments.point.items()}
    for p, g in enumerate(law.groups):
        own = {name for name, group in law.group_of.items() if group == g}
        at, mean, b = (_within(own, x) for x in (moments.point, moments.mean, {**resting, **buffers}))
        vectors = {THETA: at, MEAN: mean} | {before: b for before, _ in law.balance.forms[p].buffers}
        for (v, x), (w, y) in itertools.combinations_with_replacement(vectors.items(), 2):
            numbers[Inner(in_group(v, p, groups), in_group(w, p, groups))] = 0.0 if law.linear else paired(family, x, y)
        numbers[_spread(in_group(GRADIENT, p, groups).name)] = 0.0 if law.linear else moments.spread(family, own)
        numbers[sp.Symbol(f"Q_{p}", real=True)] = paired(family, at, at) / (1 if law.linear else 2)
        for k, shares in law.balance.momentum_weights.items():
            share = float(sp.sympify(shares[p]).xreplace(dict(hyper)))
            numbers[k] = numbers.get(k, 0.0) + share * paired(family, at, b)
    numbers[CHARGE] = sum(w * numbers[sp.Symbol(f"Q_{p}", real=True)] for p, w in enumerate(weights))
    return numbers


def _within(names: Collection[str], tensors: Tensors) -> dict[str, Tensor]:
    """Tensors with zeros for all others: their pairings are those of one group."""
    return {name: value if name in names else torch.zeros_like(value) for name, value in tensors.items()}
