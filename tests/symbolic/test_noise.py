"""Drifts against every mini-batch that there is, in exact arithmetic; their limits; and wrong siblings, which leave a remainder."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping
from dataclasses import replace

import pytest
import sympy as sp

from noetherflow.errors import RuleError
from noetherflow.symbolic.balance import CHARGE, CURRENT, derive_balance
from noetherflow.symbolic.flows import gradient_flow
from noetherflow.symbolic.graph import ArchitectureGraph
from noetherflow.symbolic.laws import derive
from noetherflow.symbolic.noise import MEAN, TEMPERATURE, Drift, Spread, derive_drift, sampling_factor
from noetherflow.symbolic.noise_limits import diffusion, stationary
from noetherflow.symbolic.pairings import Inner, Vector, parts
from noetherflow.symbolic.product_noise import imbalance, product_balance
from noetherflow.symbolic.rules import GRADIENT, SGD, STEP, THETA, Form, sgd_form

PLAIN = sgd_form(momentum=False, nesterov=False, maximize=False)
FORMS = {
    "plain": PLAIN,
    "momentum": sgd_form(momentum=True, nesterov=False, maximize=False),
    "nesterov": sgd_form(momentum=True, nesterov=True, maximize=False),
    "maximize": sgd_form(momentum=True, nesterov=False, maximize=True),
}
SIZE, SAMPLES = 3, 4
BUFFER = Vector("b")
ETA, DECAY, MU, TAU = sp.symbols("eta lambda mu tau", real=True)
SPREAD = Spread(GRADIENT)
SQUARE = Inner(MEAN, MEAN)
Numbers = dict[sp.Expr, sp.Rational]


class World:
    """One state, four per-sample gradients, hyper-parameters and a generator, all rational; nothing here is taken from the drift."""

    def __init__(self, form: Form, linear: bool, seed: int, *, exact_symmetry: bool = False) -> None:
        draw = random.Random(seed)

        def rational() -> sp.Rational:
            return sp.Rational(draw.randint(-9, 9), draw.randint(1, 7))

        def vector() -> sp.Matrix:
            return sp.Matrix([rational() for _ in range(SIZE)])

        self.form = form
        half = sp.Matrix(SIZE, SIZE, lambda i, j: 0 if linear else rational())
        self.A, self.a = half + half.T, vector() if linear else sp.zeros(SIZE, 1)
        self.theta, self.buffer = vector(), vector()
        self.gradients = [vector() for _ in range(SAMPLES)]
        if exact_symmetry:
            xi = self.xi()
            self.gradients = [g - xi * (xi.dot(g) / xi.dot(xi)) for g in self.gradients]
        self.hyper = {symbol: sp.Rational(draw.randint(1, 9), 10) for _, symbol in form.hyperparameters}

    def xi(self) -> sp.Matrix:
        return self.A * self.theta + self.a

    def pair(self, x: sp.Matrix, y: sp.Matrix) -> sp.Rational:
        return (x.T * self.A * y)[0]

    def charge(self, theta: sp.Matrix) -> sp.Rational:
        return self.pair(theta, theta) / 2 + self.a.dot(theta)

    def after(self, g: sp.Matrix) -> Numbers:
        """The state after one step of the rule as it stands."""
        known: dict[sp.Symbol, sp.Matrix] = {THETA: self.theta, BUFFER: self.buffer, GRADIENT: g}
        for name, expression in self.form.equations:
            terms = [c.xreplace(self.hyper) * known[v] for v, c in parts(expression).items()]
            known[name] = sum(terms[1:], terms[0])
        theta = self.theta - self.hyper[self.form.rate] * known[STEP]
        out: Numbers = {CHARGE: self.charge(theta)}
        if self.form.buffers:
            b = known[Vector("b'")]
            out |= {sp.Symbol("K", real=True): (self.A * theta + self.a).dot(b), Inner(BUFFER, BUFFER): self.pair(b, b)}
        return out

    def numbers(self) -> Numbers:
        """What a drift may ask for."""
        mean = sum(self.gradients[1:], self.gradients[0]) / SAMPLES
        apart = [g - mean for g in self.gradients]
        known: Numbers = dict(self.hyper)
        known |= {CHARGE: self.charge(self.theta), CURRENT: self.xi().dot(mean), SQUARE: self.pair(mean, mean)}
        known |= {SPREAD: sum(self.pair(d, d) for d in apart) / SAMPLES, Inner(BUFFER, MEAN): self.pair(self.buffer, mean)}
        known |= {sp.Symbol("K", real=True): self.xi().dot(self.buffer), Inner(BUFFER, BUFFER): self.pair(self.buffer, self.buffer)}
        return known

    def average(self, batch: int, *, replacement: bool) -> Numbers:
        """The state after a step, averaged over every mini-batch."""
        rows = range(SAMPLES)
        drawn = list(itertools.product(rows, repeat=batch) if replacement else itertools.combinations(rows, batch))
        found = [self.after(sum((self.gradients[i] for i in own), sp.zeros(SIZE, 1)) / batch) for own in drawn]
        return {key: sum(f[key] for f in found) / len(found) for key in found[0]}


def value(expression: sp.Expr, numbers: Mapping[sp.Expr, sp.Expr]) -> sp.Rational:
    return expression.xreplace({a: numbers[a] for a in expression.atoms(Inner, Spread, sp.Symbol) if a in numbers})


def remainders(drift: Drift, world: World, batch: int, *, replacement: bool) -> list[sp.Rational]:
    truth, numbers = world.average(batch, replacement=replacement), world.numbers()
    return [sp.nsimplify(truth[x] - value(expression, numbers)) for x, expression in drift.expected.items()]


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("name", FORMS)
def test_a_drift_is_the_average_over_all_mini_batches(name: str, linear: bool) -> None:
    """Nothing left, with and without replacement, whether or not the symmetry is broken, from one sample to all of them."""
    balance = derive_balance((FORMS[name],), linear, True)
    for seed, (batch, replacement) in enumerate([(1, True), (2, True), (2, False), (4, False)]):
        world = World(FORMS[name], linear, seed, exact_symmetry=seed == 1)
        drift = derive_drift(balance, batch, None if replacement else SAMPLES)
        left = remainders(drift, world, batch, replacement=replacement)
        assert left == [0] * len(left)
        assert len(left) == (1 if name == "plain" else 2 if linear else 3)


def test_wrong_siblings_leave_a_remainder() -> None:
    world, drift = World(PLAIN, False, 7), derive_drift(derive_balance((PLAIN,), False, True), 2)
    assert remainders(drift, world, 2, replacement=True) == [0]
    siblings = {
        "without replacement": derive_drift(drift.balance, 2, SAMPLES).expected,
        "without the mean gradient": {CHARGE: drift.expected[CHARGE].subs(SQUARE, 0)},
        "twice the noise": {CHARGE: drift.expected[CHARGE].subs(SPREAD, 2 * SPREAD)},
        "first order of the decay": {CHARGE: drift.expected[CHARGE] - ETA**2 * DECAY**2 * CHARGE},
    }
    for name, expected in siblings.items():
        assert remainders(replace(drift, expected=expected), world, 2, replacement=True) != [0], name
    assert remainders(drift, world, 2, replacement=False) != [0]


def test_the_drift_of_gradient_descent_is_the_published_one() -> None:
    """E[Q'] = (1 - ηλ)² Q + η² (Q(ḡ) + Tr[AΣ] / 2S)."""
    s = sp.Symbol("S", positive=True)
    drift = derive_drift(derive_balance((PLAIN,), False, True))
    known = (1 - ETA * DECAY) ** 2 * CHARGE + ETA**2 * (SQUARE / 2 + SPREAD / (2 * s))
    assert sp.expand(drift.expected[CHARGE].subs(CURRENT, 0) - known) == 0
    assert drift.terms["noise"] == ETA**2 * SPREAD / (2 * s)
    assert sp.expand(sum(drift.terms.values()) - drift.change) == 0
    assert drift.open == ()


@pytest.mark.parametrize("name", FORMS)
def test_nothing_of_first_order_fluctuates(name: str) -> None:
    """Σξ = 0: what one mini-batch adds to the expectation is of order η², also through momentum; checked on every mini-batch."""
    drift = derive_drift(derive_balance((FORMS[name],), False, True), 2)
    spread = sp.expand(drift.fluctuation)
    assert spread != 0
    assert spread.coeff(ETA, 0) == spread.coeff(ETA, 1) == 0
    world = World(FORMS[name], False, 3, exact_symmetry=True)
    numbers = world.numbers()
    mean = sum(world.gradients[1:], world.gradients[0]) / SAMPLES
    for i, j in itertools.combinations(range(SAMPLES), 2):
        g = (world.gradients[i] + world.gradients[j]) / 2
        vectors = {"gbar": mean, "epsilon": g - mean, "b": world.buffer}
        pairs = {p: world.pair(*(vectors[v.name] for v in p.args)) for p in spread.atoms(Inner)}
        expected = value(drift.expected[CHARGE], numbers)
        assert world.after(g)[CHARGE] == expected + value(spread, numbers | pairs)


@pytest.mark.parametrize("name", FORMS)
def test_momenta_leave_one_pairing_open(name: str) -> None:
    drift = derive_drift(derive_balance((FORMS[name],), False, True))
    assert set(drift.open) == (set() if name == "plain" else {Inner(BUFFER, MEAN)})
    assert derive_drift(derive_balance((FORMS[name],), True, True)).sources == (CURRENT,)


@pytest.mark.parametrize("name", FORMS)
def test_the_stationary_state_is_one_that_a_step_leaves_alone(name: str) -> None:
    drift = derive_drift(derive_balance((FORMS[name],), False, True), 3)
    found = stationary(drift)
    draw = random.Random(5)
    numbers: Numbers = {s: sp.Rational(draw.randint(1, 9), 20) for s in (ETA, DECAY, MU, TAU, *drift.sources)}
    numbers[CHARGE] = value(found.charge, numbers)
    numbers |= {x: value(expression, numbers) for x, expression in found.momenta.items()}
    assert [sp.nsimplify(value(expression, numbers) - numbers[x]) for x, expression in drift.expected.items()] == [0] * len(drift.expected)
    numbers[CHARGE] *= sp.Rational(11, 10)
    assert value(drift.change, numbers) != 0


def test_stationary_charges() -> None:
    """2λ(1 - ηλ/2) Q = η E[Q(g)]; with momentum the factor (1 + μ)/(1 - μ) of inertia, and the correlation that does not close."""
    gradient = (SQUARE + SPREAD / 2) / 2  # E[Q(g)] of two samples
    plain = stationary(derive_drift(derive_balance((PLAIN,), False, True), 2)).charge.subs(CURRENT, 0)
    assert sp.cancel(plain - ETA * gradient / (2 * DECAY * (1 - ETA * DECAY / 2))) == 0
    ball = stationary(derive_drift(derive_balance((FORMS["momentum"],), False, True), 2)).charge.subs({CURRENT: 0, TAU: 0})
    both = 2 * gradient + 2 * MU * Inner(BUFFER, MEAN)
    assert sp.cancel(ball - ETA * (1 + MU) * both / (2 * DECAY * (1 - MU) * (2 * (1 + MU) - ETA * DECAY))) == 0
    still = stationary(derive_drift(derive_balance((sgd_form(momentum=False, nesterov=False, maximize=False),), False, True), 2))
    undecayed = sp.cancel(still.gain.subs({CURRENT: 0}) / ETA / (2 * SQUARE + SPREAD))
    assert undecayed.is_number
    with pytest.raises(RuleError, match="within one parameter group"):
        stationary(derive_drift(derive_balance((PLAIN, PLAIN), False, True)))


@pytest.mark.parametrize("name", FORMS)
def test_the_diffusion_limit_and_what_it_drops_are_everything(name: str) -> None:
    """At momenta at rest; and at zero temperature the limit is the gradient flow that is derived elsewhere."""
    drift = derive_drift(derive_balance((FORMS[name],), False, True))
    limit = diffusion(drift)
    rest = stationary(drift).momenta
    whole = drift.change.xreplace(rest) / ETA
    warm = whole.subs(SPREAD, TEMPERATURE * SPREAD / (ETA * drift.factor))
    numbers = {
        s: sp.Rational(k + 2, 23)
        for k, s in enumerate([ETA, DECAY, MU, TAU, CHARGE, TEMPERATURE, sp.Symbol("S", positive=True), *drift.sources])
    }
    assert value(warm - limit.rate - sum(limit.dropped.values()), numbers) == 0
    assert all(sp.cancel(part.subs(ETA, 0)) == 0 for part in limit.dropped.values())
    flow = gradient_flow(drift.balance).rhs.subs(sp.Function("Q")(sp.Symbol("t", nonnegative=True)), CHARGE)
    assert sp.cancel(limit.rate.subs(TEMPERATURE, 0) - flow) == 0


def test_the_published_diffusion() -> None:
    """dC/dt = -4γC + σ² Tr[ΣA] for C = 2Q, decay 2γ, σ² = η/S."""
    limit = diffusion(derive_drift(derive_balance((PLAIN,), False, True)))
    assert sp.expand(limit.rate.subs(CURRENT, 0) - (-2 * DECAY * CHARGE + TEMPERATURE * SPREAD / 2)) == 0
    assert set(limit.dropped) == {"mean gradient", "decay to second order", "current to second order"}
    assert limit.dropped["mean gradient"] == ETA * SQUARE / 2
    ball = diffusion(derive_drift(derive_balance((FORMS["momentum"],), False, True)))
    speed = (1 - TAU) / (1 - MU)
    assert sp.cancel(ball.rate.subs(CURRENT, 0) - (-2 * DECAY * speed * CHARGE + TEMPERATURE * speed**2 * SPREAD / 2)) == 0
    assert "buffer with mean gradient" in ball.dropped


def test_two_groups_pair_group_by_group() -> None:
    drift = derive_drift(derive_balance((PLAIN, PLAIN), False, True), 1)
    assert {str(s) for s in drift.sources} >= {"Spread(g_0)", "Spread(g_1)", "Inner(gbar_0, gbar_0)", "Inner(gbar_1, theta_1)"}
    eta = sp.symbols("eta_0 eta_1", real=True)
    noise = sum(e * eta[0] * Spread(Vector(f"g_{p}")) / 2 for p, e in enumerate(eta))
    assert sp.expand(drift.terms["noise"] - noise) == 0


def test_what_is_not_linear_or_cannot_be_drawn_is_refused() -> None:
    h = Vector("h")
    odd = replace(PLAIN, name="odd", equations=((h, GRADIENT), (STEP, sp.Symbol("c") * h**2)))
    with pytest.raises(RuleError, match="linear in the gradient"):
        derive_drift(replace(derive_balance((PLAIN,), False, True), forms=(odd,)))
    for batch, population in ((5, 4), (0, None), (1, 1)):
        with pytest.raises(RuleError, match="No mini-batch"):
            sampling_factor(batch, population)
    assert sampling_factor(2, 4) == sp.Rational(1, 3)


def test_a_law_gives_its_drift_and_its_stationary_condition() -> None:
    graph = ArchitectureGraph()
    graph.add_parameter("w1", (5, 3))
    graph.add_parameter("w2", (2, 5))
    graph.add_operation("x", "input", shape=(8, 3))
    graph.add_operation("h", "linear", {"input": "x"}, {"weight": "w1"}, shape=(8, 5))
    graph.add_operation("y", "linear", {"input": "h"}, {"weight": "w2"}, shape=(8, 2))
    (law,) = derive(graph, SGD(weight_decay=sp.Symbol("lambda")))
    assert law.drift(4, 8).expected == derive_drift(law.balance, 4, 8).expected
    assert "Sigma" in law.drift().latex()
    assert law.drift().equations[0].lhs == sp.Symbol("E[Q']")
    assert law.stationary(4).charge == stationary(law.drift(4)).charge


def test_the_balance_of_a_product_is_exact_on_numbers() -> None:
    """Every mini-batch of two of three rational samples: the average of Q' is the expectation; two siblings are not."""
    draw = random.Random(11)
    outputs, hidden, inputs = 2, 3, 2

    def matrix(rows: int, columns: int) -> sp.Matrix:
        return sp.Matrix(rows, columns, lambda i, j: sp.Rational(draw.randint(-5, 5), draw.randint(1, 4)))

    u, w, samples = matrix(outputs, hidden), matrix(hidden, inputs), [matrix(outputs, inputs) for _ in range(3)]
    eta, decay = sp.Rational(1, 3), sp.Rational(1, 5)
    law = product_balance(outputs, hidden, inputs, batch=2, population=3)

    def stepped(r: sp.Matrix) -> sp.Matrix:
        return sp.Matrix(imbalance((1 - eta * decay) * u - eta * r * w.T, (1 - eta * decay) * w - eta * u.T * r))

    drawn = [(samples[i] + samples[j]) / 2 for i, j in itertools.combinations(range(3), 2)]
    truth = sum((stepped(r) for r in drawn), sp.zeros(hidden)) / 3
    mean = sum(samples, sp.zeros(outputs, inputs)) / 3
    known = {
        "U": u,
        "W": w,
        "Rbar": mean,
        "C_out": sum((r * r.T for r in samples), sp.zeros(outputs)) / 3 - mean * mean.T,
        "C_in": sum((r.T * r for r in samples), sp.zeros(inputs)) / 3 - mean.T * mean,
    }

    def number(expression: sp.Expr) -> sp.Matrix:
        values = {s: sp.ImmutableMatrix(known[s.name]) for s in expression.atoms(sp.MatrixSymbol)}
        return sp.Matrix(expression.subs({ETA: eta, DECAY: decay}).xreplace(values).doit())

    assert number(law.expected) == truth
    assert number(product_balance(outputs, hidden, inputs, batch=2).expected) != truth
    known["C_in"], known["C_out"] = 2 * known["C_in"], 2 * known["C_out"]
    assert number(law.expected) != truth
