"""Elementary differentials of real networks: automatic differentiation evaluates what a modified equation is made of.

∇^{k+1}f [x_1, ..., x_k] is the gradient of s_k, where s_0 = f and s_i = ⟨∇s_{i-1}, x_i⟩ with x_i held fixed: k + 1 passes backward, each
through the one before. Whole tensors throughout; for piecewise smooth networks (ReLU) it is the derivative on the piece that a point is in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import sympy as sp
import torch
from torch import Tensor, nn

from noetherflow.errors import RuleError
from noetherflow.numeric.integrate import integrate
from noetherflow.numeric.model_loss import loss_at
from noetherflow.symbolic.differentials import Differential
from noetherflow.symbolic.modified import ModifiedEquation, resolved
from noetherflow.symbolic.pairings import parts
from noetherflow.symbolic.rules import THETA, Form

Point: TypeAlias = Mapping[str, Tensor]
Loss: TypeAlias = Callable[[Point], Tensor]
Weights: TypeAlias = Mapping[sp.Expr, float]


def loss_of(model: nn.Module, criterion: Callable[[Tensor, Tensor], Tensor], inputs: Tensor, targets: Tensor) -> Loss:
    """The loss of a model on one batch as a function of its parameters by name."""

    def loss(point: Point) -> Tensor:
        return loss_at(model, point, (inputs,), (targets,), criterion)

    return loss


class Evaluation:
    """Elementary differentials of a loss at one point, each computed once.

    Parameters
    ----------
    loss : callable of a mapping (name -> Tensor) to a scalar Tensor
    point : mapping of str to Tensor
        θ.

    Examples
    --------
    >>> point = {"x": torch.tensor([1.0, 2.0])}
    >>> at = Evaluation(lambda p: (p["x"] ** 3).sum(), point)
    >>> g = Differential()
    >>> [at(tree)["x"].tolist() for tree in (g, Differential(g), Differential(g, g))]
    [[3.0, 12.0], [18.0, 144.0], [54.0, 864.0]]
    """

    def __init__(self, loss: Loss, point: Point) -> None:
        self._point = {name: tensor.detach().requires_grad_() for name, tensor in point.items()}
        self._contracted: dict[tuple[sp.Expr, ...], tuple[Tensor, ...]] = {(): self._gradient(loss(self._point))}
        self._found: dict[sp.Expr, dict[str, Tensor]] = {THETA: {name: tensor.detach() for name, tensor in point.items()}}

    def __call__(self, tree: sp.Expr) -> dict[str, Tensor]:
        """One elementary differential (or θ), by parameter name."""
        if tree not in self._found:
            if not isinstance(tree, Differential):
                raise RuleError(f"'{tree}' is not a vector at a point: only θ and elementary differentials are.", tree=tree)
            values = self._contraction(tree.args)
            self._found[tree] = {name: value.detach() for name, value in zip(self._point, values, strict=True)}
        return self._found[tree]

    def combination(self, weights: Weights) -> dict[str, Tensor]:
        """A linear combination of differentials."""
        out = {name: torch.zeros_like(tensor) for name, tensor in self._found[THETA].items()}
        for tree, weight in weights.items():
            for name, value in self(tree).items():
                out[name] = out[name] + weight * value
        return out

    def _contraction(self, arguments: tuple[sp.Expr, ...]) -> tuple[Tensor, ...]:
        if arguments not in self._contracted:
            before = self._contraction(arguments[:-1])
            along = self(arguments[-1])
            total = sum((value * x).sum() for value, x in zip(before, along.values(), strict=True))
            self._contracted[arguments] = self._gradient(total)
        return self._contracted[arguments]

    def _gradient(self, scalar: Any) -> tuple[Tensor, ...]:
        inputs = tuple(self._point.values())
        if not scalar.requires_grad:  # what is constant along every parameter
            return tuple(torch.zeros_like(x) for x in inputs)
        return torch.autograd.grad(scalar, inputs, create_graph=True, materialize_grads=True)


def weights_at(terms: Sequence[sp.Expr], numbers: Mapping[sp.Symbol, float], rate: float) -> dict[sp.Expr, float]:
    """Σ η^j terms[j] as numbers: tree -> coefficient.

    Raises
    ------
    RuleError
        If a hyper-parameter has no number.
    """
    out: dict[sp.Expr, float] = {}
    for power, term in enumerate(terms):
        for summand in sp.Add.make_args(sp.expand(term)):
            for tree in (x for x in sp.Mul.make_args(summand) if isinstance(x, Differential) or x == THETA):
                coefficient = (summand / tree).xreplace(dict(numbers))
                if coefficient.free_symbols:
                    raise RuleError(
                        f"No number for {sorted(map(str, coefficient.free_symbols))}: give every hyper-parameter of the equation.",
                        missing=coefficient.free_symbols,
                    )
                out[tree] = out.get(tree, 0.0) + rate**power * float(coefficient)
    return out


def first_buffers(form: Form) -> tuple[sp.Expr, ...]:
    """The buffers of torch.optim.SGD before its first step, as if there were one: the step that makes a buffer has no dampening.

    Examples
    --------
    >>> from noetherflow.symbolic.rules import sgd_form
    >>> first_buffers(sgd_form(momentum=True, nesterov=False, maximize=False))
    (lambda*tau*theta/mu + tau*g/mu,)
    """
    dampening = dict(form.hyperparameters).get("dampening", sp.Symbol("tau"))
    out = []
    for before, after in form.buffers:
        made = parts(resolved(form, after))
        out.append(sp.Add(*(sp.cancel((c.subs(dampening, 0) - c) / made[before]) * v for v, c in made.items() if v != before)))
    return tuple(out)


def follow(
    equation: ModifiedEquation,
    loss: Loss,
    point: Point,
    values: Mapping[str, float],
    time: float,
    *,
    steps: int = 8,
    buffers: Sequence[sp.Expr] = (),
) -> dict[str, Tensor]:
    """Predict a run from the continuous side: the modified equation's flow, from the point that belongs to the run's start.

    Parameters
    ----------
    equation : ModifiedEquation
    loss : callable of a mapping (name -> Tensor) to a scalar Tensor
    point : mapping of str to Tensor
        Where the run starts.
    values : mapping of str to float
        Hyper-parameters by name, the step size ``lr`` among them.
    time : float
        η times the number of steps.
    steps : int
        Of the integrator (`noetherflow.numeric.integrate`, eighth order); make them so many that its error does not show.
    buffers : sequence of combinations of θ and g
        The buffers that the run starts with: zero by default, `first_buffers` for torch's SGD with dampening.

    Returns
    -------
    dict of str to Tensor
        Parameters after that time; the error is O(η^p) for an equation with p terms.
    """
    rate = values["lr"]
    numbers = {symbol: values[name] for name, symbol in equation.form.hyperparameters if symbol != equation.form.rate}
    start = Evaluation(loss, point).combination(weights_at(equation.start(*buffers), numbers, rate))
    field = weights_at(equation.field, numbers, rate)

    def velocity(flat: Tensor) -> Tensor:
        return _flat(Evaluation(loss, _named(flat, point)).combination(field))

    return _named(integrate(velocity, _flat(start), time, steps), point)


def _flat(point: Point) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in point.values()])


def _named(flat: Tensor, like: Point) -> dict[str, Tensor]:
    pieces = torch.split(flat, [tensor.numel() for tensor in like.values()])
    return {name: piece.reshape(tensor.shape) for (name, tensor), piece in zip(like.items(), pieces, strict=True)}
