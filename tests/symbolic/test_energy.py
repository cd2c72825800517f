"""The energy of a motion and of one step, in exact rational arithmetic."""

import pytest
import sympy as sp

from noetherflow.errors import RuleError
from noetherflow.symbolic.energy import NOISE, SLOPE, Curvature, Dot, EnergyStep, energy, loss_step, mechanical_step
from noetherflow.symbolic.flows import TIME
from noetherflow.symbolic.forms import GRADIENT, STEP, THETA, Form
from noetherflow.symbolic.lagrangians import FRICTION, MASS, Lagrangian, damped, heavy_ball
from noetherflow.symbolic.pairings import Vector
from noetherflow.symbolic.rules import sgd_form
from noetherflow.symbolic.rules_adaptive import adam_form
from noetherflow.symbolic.rules_directed import sgdw_form

R = sp.Rational
x, y, s = sp.symbols("x y s")
LOSS = x**4 / 4 - x * y**2 + y**3 / 3 + x * y - 2 * y
NUMBERS = {"eta": R(1, 7), "mu": R(3, 5), "tau": R(1, 4), "lambda": R(2, 9)}
BEFORE, AFTER, CHANGE = Vector("b"), Vector("b'"), Vector("b' - b")
POINT, BUFFER = sp.Matrix([R(3, 4), R(-2, 3)]), sp.Matrix([R(1, 5), R(7, 8)])

FORMS = {
    "plain": sgd_form(momentum=False, nesterov=False, maximize=False),
    "momentum": sgd_form(momentum=True, nesterov=False, maximize=False),
    "nesterov": sgd_form(momentum=True, nesterov=True, maximize=False),
    "ascent": sgd_form(momentum=True, nesterov=False, maximize=True),
}


def gradient(at: sp.Matrix) -> sp.Matrix:
    return sp.Matrix([LOSS.diff(v) for v in (x, y)]).subs(dict(zip((x, y), at, strict=True)), simultaneous=True)


def value(at: sp.Matrix) -> sp.Expr:
    return LOSS.subs(dict(zip((x, y), at, strict=True)), simultaneous=True)


def exact(form: Form, noise: sp.Matrix = sp.zeros(2, 1)) -> dict[Vector, sp.Matrix]:  # noqa: B008  # never changed
    """All vectors of one step, and the point after it."""
    slope = gradient(POINT)
    vectors = {THETA: POINT, SLOPE: slope, NOISE: noise, GRADIENT: slope + noise, BEFORE: BUFFER}
    for name, expression in form.equations:
        numbers = {v: NUMBERS[v.name] for v in expression.free_symbols if v not in vectors}
        vectors[name] = sp.zeros(2, 1)
        for v in expression.free_symbols & vectors.keys():
            vectors[name] += sp.expand(expression).coeff(v, 1).subs(numbers) * vectors[v]
    vectors[CHANGE] = vectors.get(AFTER, BUFFER) - BUFFER
    return vectors


def bent(vectors: dict[Vector, sp.Matrix]) -> sp.Expr:
    """⟨u, H̄ u⟩."""
    path = POINT - s * NUMBERS["eta"] * vectors[STEP]
    hessian = sp.hessian(LOSS, (x, y)).subs(dict(zip((x, y), path, strict=True)), simultaneous=True)
    return sp.integrate(sp.expand(2 * (1 - s) * (vectors[STEP].T * hessian * vectors[STEP])[0]), (s, 0, 1))


def evaluated(expression: sp.Expr, vectors: dict[Vector, sp.Matrix], curvature: sp.Expr = sp.S.Zero) -> sp.Expr:
    dots = {pair: vectors[pair.args[0]].dot(vectors[pair.args[1]]) for pair in expression.atoms(Dot)}
    out = expression.xreplace(dots).replace(Curvature, lambda _: curvature)
    return out.subs({v: NUMBERS[v.name] for v in out.free_symbols})


def moved(vectors: dict[Vector, sp.Matrix]) -> sp.Matrix:
    return POINT - NUMBERS["eta"] * vectors[STEP]


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("noise", [sp.zeros(2, 1), sp.Matrix([R(1, 3), R(-5, 2)])], ids=["own batch", "noise"])
def test_a_step_of_the_loss_is_exact_and_needs_every_term(name: str, noise: sp.Matrix) -> None:
    form = FORMS[name]
    vectors = exact(form, noise)
    law, curvature = loss_step(form), bent(vectors)
    change = value(moved(vectors)) - value(POINT)
    assert evaluated(law.change, vectors, curvature) == change
    for mechanism, term in law.terms.items():
        part = evaluated(term, vectors, curvature)
        assert part != 0 or mechanism == "noise", mechanism
        assert part == 0 or evaluated(law.change - term, vectors, curvature) != change
    at_start = (vectors[STEP].T * sp.hessian(LOSS, (x, y)).subs(dict(zip((x, y), POINT, strict=True))) * vectors[STEP])[0]
    assert evaluated(law.change, vectors, at_start) != change, "the Hessian at the start is not its mean"


@pytest.mark.parametrize("name", ["momentum", "nesterov", "ascent"])
def test_mechanical_energy_falls_by_squares_of_buffers(name: str) -> None:
    form = FORMS[name]
    vectors, law = exact(form), mechanical_step(form)
    later = vectors | {BEFORE: vectors[AFTER], THETA: moved(vectors)}
    gain, curvature = value(moved(vectors)) - value(POINT), bent(vectors)
    change = gain + evaluated(law.stored, later) - evaluated(law.stored, vectors)
    assert not any(SLOPE in pair.args or NOISE in pair.args for pair in law.change.atoms(Dot)), "no gradient enters"
    assert evaluated(law.change, vectors, curvature) == change
    assert evaluated(law.change - 2 * law.terms["friction"], vectors, curvature) != change, "friction of the other sign"
    assert evaluated(law.change - law.terms["turning"], vectors, curvature) != change
    assert evaluated(law.change, vectors, curvature) != gain, "the loss alone, without what is stored"


def test_discrete_friction_is_the_continuous_one() -> None:
    mu, eta, tau = (sp.Symbol(n, real=True) for n in ("mu", "eta", "tau"))
    for name in ("momentum", "nesterov"):
        friction = mechanical_step(FORMS[name]).terms["friction"].subs(tau, 0)
        assert sp.simplify(friction + eta * (1 - mu) * Dot(AFTER, AFTER)) == 0


def test_what_is_not_linear_stands_for_itself() -> None:
    terms = loss_step(adam_form(decoupled=True)).terms
    assert set(terms) == {"weight_decay", "direction", "curvature"}


def test_rules_without_mechanical_energy_are_refused() -> None:
    for form in (FORMS["plain"], adam_form(decoupled=True)):
        with pytest.raises(RuleError, match="momentum buffer"):
            mechanical_step(form)
    with pytest.raises(RuleError, match="apart from its gradient"):
        mechanical_step(sgdw_form(momentum=True))


def lagrangians() -> dict[str, Lagrangian]:
    a, b, c = sp.symbols("a b c", positive=True)
    q = sp.symbols("q_0", real=True)
    clock = damped(sp.Matrix([[MASS * (1 + q**2)]]), 3 * sp.log(TIME))
    return {
        "heavy ball": heavy_ball(2),
        "metric": damped(MASS * sp.Matrix([[a, b], [b, c]]), FRICTION * TIME / MASS),
        "curved, Nesterov's clock": clock,
        "driven": damped(sp.Matrix([[MASS]]), FRICTION * TIME / MASS, decay=sp.exp(-TIME)),
    }


@pytest.mark.parametrize("name", lagrangians())
def test_energy_of_a_motion_changes_at_its_rate(name: str) -> None:
    motion = lagrangians()[name]
    found = energy(motion)
    measured = motion.on_shell(motion.along_motion(found.expression))
    assert sp.simplify(measured - found.rate) == 0
    assert sp.simplify(measured + found.friction - found.driving) != 0, "friction of the other sign"
    assert (found.driving != 0) == (name == "driven")


def test_terms_are_sympy_with_latex() -> None:
    found: EnergyStep = loss_step(FORMS["momentum"])
    assert r"\bar H" in sp.latex(found.change)
    assert r"\nabla f" in sp.latex(found.change)
