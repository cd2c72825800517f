"""Prediction from the continuous side against torch.optim's own runs: the error falls with the derived order, fitted over four octaves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import sympy as sp
import torch
from torch import Tensor, nn

import noetherflow as nf
from noetherflow.bridge.differentials import Evaluation, Loss, first_buffers, follow, loss_of, weights_at
from noetherflow.errors import RuleError
from noetherflow.numeric.order import Order, fit_order
from noetherflow.symbolic.differentials import Differential
from noetherflow.symbolic.modified import ModifiedEquation, modified_equation
from noetherflow.symbolic.modified_charges import charge_motion
from noetherflow.symbolic.pairings import Inner
from noetherflow.symbolic.rules import THETA, Form, sgd_form

OCTAVES = 4
TIME = 0.5
G = Differential()
Params = dict[str, Tensor]
RULES: dict[str, tuple[dict[str, Any], int]] = {
    "gradient descent": ({"weight_decay": 0.1}, 10),
    "heavy ball": ({"momentum": 0.6, "weight_decay": 0.1}, 60),
    "dampened": ({"momentum": 0.6, "dampening": 0.3, "weight_decay": 0.1}, 60),
    "nesterov": ({"momentum": 0.6, "weight_decay": 0.1, "nesterov": True}, 60),
}


class World:
    """A small net, tanh and then two linear layers with a matrix of charges between them, one batch, in float64."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(3)
        self.model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3, bias=False), nn.Linear(3, 2)).double()
        with torch.no_grad():
            for p in self.model.parameters():
                p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64) * 0.6)
        self.inputs = torch.randn(12, 3, generator=generator, dtype=torch.float64)
        self.targets = torch.randn(12, 2, generator=generator, dtype=torch.float64)
        self.start = {name: p.detach().clone() for name, p in self.model.named_parameters()}

    @property
    def loss(self) -> Loss:
        return loss_of(self.model, nn.functional.mse_loss, self.inputs, self.targets)

    def run(self, options: Mapping[str, Any], steps: int) -> Params:
        with torch.no_grad():
            for name, p in self.model.named_parameters():
                p.copy_(self.start[name])
        optimizer = torch.optim.SGD(self.model.parameters(), **options)
        for _ in range(steps):
            optimizer.zero_grad()
            nn.functional.mse_loss(self.model(self.inputs), self.targets).backward()
            optimizer.step()
        return {name: p.detach().clone() for name, p in self.model.named_parameters()}

    def form(self, options: Mapping[str, Any]) -> Form:
        return nf.rule_of(torch.optim.SGD(self.model.parameters(), lr=0.1, **options)).groups[0].form


def numbers(options: Mapping[str, Any], rate: float) -> dict[str, float]:
    return {"momentum": 0.0, "dampening": 0.0, "weight_decay": 0.0, "lr": rate} | {k: v for k, v in options.items() if k != "nesterov"}


def distance(x: Params, y: Params) -> float:
    return float(sum(((x[name] - y[name]) ** 2).sum() for name in x) ** 0.5)


def generator(x: Params) -> Params:
    """A x for the symmetric generator diag(1, 2, 3) + off-diagonal ones of the layer behind tanh: W2 <- X W2, (W3) <- -W3 X."""
    matrix = torch.tensor([[1.0, 0.5, 0.0], [0.5, 2.0, -1.0], [0.0, -1.0, 3.0]], dtype=torch.float64)
    out = {name: torch.zeros_like(value) for name, value in x.items()}
    return out | {"2.weight": matrix @ x["2.weight"], "3.weight": -x["3.weight"] @ matrix}


def pair(x: Params, y: Params) -> float:
    """⟨x, A y⟩."""
    moved = generator(y)
    return float(sum((x[name] * moved[name]).sum() for name in x))


def charges(x: Params) -> Tensor:
    """½(W2 W2ᵀ - W3ᵀ W3), all charges of the layer: one alone may cross its prediction."""
    return (x["2.weight"] @ x["2.weight"].T - x["3.weight"].T @ x["3.weight"]) / 2


def errors_of(world: World, name: str, equation: ModifiedEquation, buffers: Sequence[sp.Expr] | None = None) -> dict[str, Order]:
    """Orders of the error of the parameters and of the matrix of charges at a fixed time."""
    options, first = RULES[name]
    rates = [TIME / (first * 2**octave) for octave in range(OCTAVES)]
    found: dict[str, list[float]] = {"parameters": [], "charges": []}
    for octave, rate in enumerate(rates):
        end = world.run(options | {"lr": rate}, first * 2**octave)
        given = first_buffers(equation.form) if buffers is None else buffers
        predicted = follow(equation, world.loss, world.start, numbers(options, rate), TIME, buffers=given)
        found["parameters"].append(distance(end, predicted))
        found["charges"].append(float((charges(end) - charges(predicted)).norm()))
    return {kind: fit_order(rates, errors) for kind, errors in found.items()}


@pytest.mark.slow
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("name", RULES)
def test_a_run_is_predicted_to_the_derived_order(name: str, order: int) -> None:
    world = World()
    for fitted in errors_of(world, name, modified_equation(world.form(RULES[name][0]), order)).values():
        assert abs(fitted.slope - order) < 0.1, fitted


def changed(equation: ModifiedEquation, tree: sp.Expr, power: int, factor: sp.Rational) -> ModifiedEquation:
    """The equation with one coefficient off by a factor."""
    series = equation.series
    terms = series.terms | {(power, tree): series.terms[power, tree] * series.domain.from_sympy(factor)}
    return replace(equation, series=replace(series, terms=terms))


@pytest.mark.parametrize(
    ("name", "tree", "power"), [("gradient descent", Differential(G, G), 2), ("heavy ball", Differential(G), 1)], ids=["D3f(g, g)", "H(g)"]
)
def test_a_coefficient_off_by_a_half_lowers_the_order(name: str, tree: sp.Expr, power: int) -> None:
    world = World()
    right = modified_equation(world.form(RULES[name][0]), power + 1)
    fitted = errors_of(world, name, changed(right, tree, power, sp.Rational(3, 2)))["parameters"]
    assert abs(fitted.slope - power) < 0.1, "the error is that of an equation without the term"


@pytest.mark.parametrize(
    ("name", "other"), [("heavy ball", "nesterov"), ("nesterov", "heavy ball")], ids=["Nesterov's equation", "heavy ball's equation"]
)
def test_the_equation_of_another_rule_predicts_to_first_order_only(name: str, other: str) -> None:
    world = World()
    equation = modified_equation(world.form(RULES[other][0]), 2)
    assert abs(errors_of(world, name, equation)["parameters"].slope - 1) < 0.1


def test_without_its_own_start_a_run_with_momentum_is_predicted_to_first_order_only() -> None:
    """The flow from θ itself misses by η μ/(1 - μ)² g, however many terms it has."""
    world = World()
    right = modified_equation(world.form(RULES["heavy ball"][0]), 2)

    class FromTheta(ModifiedEquation):
        def start(self, *buffers: sp.Expr) -> tuple[sp.Expr, ...]:
            return (THETA, sp.S.Zero)

    wrong = FromTheta(right.form, right.order, right.series, right.buffers)
    assert abs(errors_of(world, "heavy ball", wrong)["parameters"].slope - 1) < 0.1
    dampened = modified_equation(world.form(RULES["dampened"][0]), 2)
    at_rest = errors_of(world, "dampened", dampened, buffers=())["parameters"]
    assert abs(at_rest.slope - 1) < 0.1, "torch's first step has no dampening: a buffer that starts at rest is another run"


# --- the pieces


def test_differentials_are_those_of_finite_differences() -> None:
    """Central differences in exact directions: H v and ∇³f [v, v] of a real net, to the differences' own order."""
    world = World()
    at = Evaluation(world.loss, world.start)
    g = at(G)
    for tree, stencil in ((Differential(G), {1: 0.5, -1: -0.5}), (Differential(G, G), {1: 1.0, 0: -2.0, -1: 1.0})):
        exact, errors, widths = at(tree), [], [0.08, 0.04, 0.02, 0.01]
        for h in widths:
            total = {name: torch.zeros_like(value) for name, value in g.items()}
            for place, weight in stencil.items():
                there = Evaluation(world.loss, {name: value + place * h * g[name] for name, value in world.start.items()})(G)
                total = {name: total[name] + weight / h ** len(tree.args) * there[name] for name in total}
            errors.append(distance(exact, total))
        assert abs(fit_order(widths, errors).slope - 2) < 0.1


@pytest.mark.parametrize("momentum", [False, True], ids=["plain", "momentum"])
def test_invariance_reduces_the_motion_of_a_charge(momentum: bool) -> None:
    """⟨ξ(θ), F⟩ evaluated as it stands equals the derived pairings, power by power, to rounding; not for a wrong generator."""
    world = World()
    equation = modified_equation(sgd_form(momentum=momentum, nesterov=False, maximize=False), 3)
    values = {symbol: 0.3 for name, symbol in equation.form.hyperparameters if name != "lr"}
    at = Evaluation(world.loss, world.start)
    for power, motion in enumerate(charge_motion(equation, linear=False)):
        field = at.combination(weights_at((equation.field[power],), values, 1.0))
        known = {pairing: pair(at(pairing.args[0]), at(pairing.args[1])) for pairing in sorted(motion.atoms(Inner), key=str)}
        known |= {sp.Symbol("Q", real=True): pair(world.start, world.start) / 2} | values
        expected = float(motion.xreplace(known))
        size = distance(field, {name: torch.zeros_like(v) for name, v in field.items()})
        assert abs(pair(field, world.start) - expected) < 1e-13 * max(1.0, size)
        wrong = pair(field, world.start | {"3.weight": 1.001 * world.start["3.weight"]})
        assert abs(wrong - expected) > 1e-6


def test_a_loss_without_curvature_has_no_higher_differentials() -> None:
    point = {"x": torch.ones(3, dtype=torch.float64), "unused": torch.ones(2, dtype=torch.float64)}
    at = Evaluation(lambda p: 2 * p["x"].sum(), point)
    assert at(G)["x"].tolist() == [2.0, 2.0, 2.0]
    assert all(not value.any() for tree in (Differential(G), Differential(G, G)) for value in at(tree).values())


def test_what_is_no_vector_or_has_no_number_is_refused() -> None:
    at = Evaluation(lambda p: (p["x"] ** 2).sum(), {"x": torch.ones(1)})
    with pytest.raises(RuleError, match="not a vector"):
        at(sp.Symbol("b"))
    with pytest.raises(RuleError, match="No number for"):
        weights_at((sp.Symbol("mu") * G,), {}, 0.1)
