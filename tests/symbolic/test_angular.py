"""Laws of angular momenta against exact rational arithmetic: the remainder is zero, not small; and a wrong law leaves one."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise

import pytest
import sympy as sp
import torch
from torch import nn

import noetherflow as nf
from noetherflow.sources import references
from noetherflow.symbolic import rules
from noetherflow.symbolic.angular import ANGULAR, DISPLACEMENT, MomentumBalance, Wedge, derive_momentum, own
from noetherflow.symbolic.balance import CURRENT, in_group
from noetherflow.symbolic.graph import ArchitectureGraph
from noetherflow.symbolic.laws import Laws, derive
from noetherflow.symbolic.momenta import MomentumLaw, momentum, turns
from noetherflow.symbolic.momentum_flow import FRICTION
from noetherflow.symbolic.pairings import NotLinear, Vector, parts
from noetherflow.symbolic.rules import GRADIENT, SGD, STEP, THETA, Form, sgd_form
from noetherflow.symbolic.symmetries import Symmetry

FORMS = {
    "plain": sgd_form(momentum=False, nesterov=False, maximize=False),
    "momentum": sgd_form(momentum=True, nesterov=False, maximize=False),
    "nesterov": sgd_form(momentum=True, nesterov=True, maximize=False),
    "maximize": sgd_form(momentum=True, nesterov=False, maximize=True),
}
SIZE = 3
Values = dict[sp.Symbol, list[Fraction]]
H, BEFORE, AFTER = Vector("h"), Vector("b"), Vector("b'")
ETA, DECAY, MU, TAU = sp.symbols("eta lambda mu tau", real=True)


def odd_form() -> Form:
    """A rule nobody published: decay in the buffer alone, and a step that mixes both."""
    equations = ((H, GRADIENT), (AFTER, MU * BEFORE + (1 - TAU) * H + THETA / 7), (STEP, AFTER / 3 + H))
    return replace(FORMS["momentum"], name="odd", equations=equations)


def decoupled_form() -> Form:
    """Weight decay beside the step, as in SGDW."""
    return replace(
        FORMS["momentum"], name="decoupled", equations=((AFTER, MU * BEFORE + (1 - TAU) * GRADIENT), (STEP, AFTER + DECAY * THETA))
    )


def signed_form() -> Form:
    """A step that is no combination of vectors; the buffer is one."""
    return replace(
        FORMS["momentum"], name="signed", equations=((AFTER, MU * BEFORE + (1 - TAU) * (GRADIENT + DECAY * THETA)), (STEP, AFTER**3))
    )


FURTHER = {"odd": odd_form(), "decoupled": decoupled_form(), "signed": signed_form()}


def rational(generator: random.Random) -> Fraction:
    return Fraction(generator.randint(-9, 9), generator.randint(1, 7))


def dot(x: Sequence[Fraction], y: Sequence[Fraction]) -> Fraction:
    return sum((a * b for a, b in zip(x, y, strict=True)), Fraction(0))


def exact(value: Fraction) -> sp.Rational:
    return sp.Rational(value.numerator, value.denominator)


@dataclass
class Side:
    """One parameter group: an antisymmetric A, hyper-parameters and state in rational numbers."""

    form: Form
    matrix: list[list[Fraction]]
    hyper: dict[sp.Symbol, Fraction]
    vectors: Values

    def wedge(self, x: Sequence[Fraction], y: Sequence[Fraction]) -> Fraction:
        """⟨A x, y⟩."""
        return dot([dot(row, x) for row in self.matrix], y)

    def combine(self, expression: sp.Expr) -> list[Fraction]:
        """A vector from its equation, entry by entry, so that it need not be linear."""
        numbers = {s: exact(v) for s, v in self.hyper.items()}
        out = []
        for i in range(SIZE):
            entry = expression.subs(numbers | {v: exact(x[i]) for v, x in self.vectors.items()})
            out.append(Fraction(str(entry)))
        return out

    def step(self) -> None:
        """The rule as it stands, with what it leaves."""
        for vector, expression in self.form.equations:
            self.vectors[vector] = self.combine(expression)
        self.vectors[DISPLACEMENT] = [-self.hyper[self.form.rate] * u for u in self.vectors[STEP]]

    def finish(self) -> None:
        self.vectors[THETA] = [t + d for t, d in zip(self.vectors[THETA], self.vectors[DISPLACEMENT], strict=True)]
        for before, after in self.form.buffers:
            self.vectors[before] = self.vectors[after]


def side(form: Form, generator: random.Random, shared: Mapping[str, Fraction]) -> Side:
    rows = [[rational(generator) for _ in range(SIZE)] for _ in range(SIZE)]
    matrix = [[rows[i][j] - rows[j][i] for j in range(SIZE)] for i in range(SIZE)]
    hyper = {symbol: shared.get(name, rational(generator) or Fraction(1, 3)) for name, symbol in form.hyperparameters}
    if hyper.get(TAU) == 1:
        hyper[TAU] = Fraction(1, 5)
    vectors = {v: [rational(generator) for _ in range(SIZE)] for v in (THETA, *(before for before, _ in form.buffers))}
    return Side(form, matrix, hyper, vectors)


def numbers(balance: MomentumBalance, sides: Sequence[Side]) -> dict[sp.Expr, sp.Rational]:
    """Every symbol and pairing of a law just before the step ends."""
    groups = len(sides)
    out: dict[sp.Expr, Fraction] = {CURRENT: sum((s.wedge(s.vectors[THETA], s.vectors[GRADIENT]) for s in sides), Fraction(0))}
    for p, s in enumerate(sides):
        out |= {in_group(symbol, p, groups): value for symbol, value in s.hyper.items()} | dict(s.hyper)
        for x in s.vectors:
            for y in s.vectors:
                pairing = Wedge(*(in_group(v, p, groups) for v in (x, y)))
                if isinstance(pairing, Wedge):
                    out[pairing] = s.wedge(s.vectors[x], s.vectors[y])
    return {k: exact(v) for k, v in out.items()}


def held(balance: MomentumBalance, sides: Sequence[Side], vector: int) -> list[sp.Rational]:
    """Each group's momentum with its buffer before (0) or after (1) the step; zero where it has none."""
    pairs = [(s, b[vector]) if b else None for s, b in zip(sides, balance.buffers, strict=True)]
    return [exact(p[0].wedge(p[0].vectors[THETA], p[0].vectors[p[1]])) if p else sp.S.Zero for p in pairs]


def remainders(balance: MomentumBalance, sides: Sequence[Side], generator: random.Random, steps: int = 3) -> list[sp.Expr]:
    """Law minus truth over a few steps of the real rule."""
    out = []
    for _ in range(steps):
        for s in sides:
            s.vectors[GRADIENT] = [rational(generator) for _ in range(SIZE)]
        before = held(balance, sides, 0)
        for s in sides:
            s.step()
        table = numbers(balance, sides)
        weights = [sp.sympify(w).xreplace(table) for w in balance.weights]
        table |= {own(p, len(sides)): k for p, k in enumerate(before)}
        table[ANGULAR] = sp.Add(*(w * k for w, k in zip(weights, before, strict=True)))
        (equation,) = balance.equations
        bound = [exact(s.wedge(s.vectors[THETA], s.vectors[DISPLACEMENT])) for s in sides]
        for s in sides:
            s.finish()
        after = [k if b else d for k, d, b in zip(held(balance, sides, 0), bound, balance.buffers, strict=True)]
        out.append(equation.rhs.xreplace(table) - sp.Add(*(w * k for w, k in zip(weights, after, strict=True))))
    return out


@pytest.mark.parametrize("name", [*FORMS, *FURTHER])
def test_the_law_of_one_group_is_exact(name: str) -> None:
    generator = random.Random(1)
    form = (FORMS | FURTHER)[name]
    balance = derive_momentum((form,), True)
    assert balance.closed
    assert remainders(balance, [side(form, generator, {})], generator, 2 if name == "signed" else 4) == [0] * (2 if name == "signed" else 4)


PAIRS = [("plain", "plain"), ("momentum", "momentum"), ("nesterov", "nesterov"), ("momentum", "plain"), ("plain", "momentum")]


@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_the_law_across_groups_is_exact_and_its_weights_are_found(first: str, second: str, same: bool) -> None:
    if same and first != second:
        pytest.skip("different rules have no momentum in common")
    generator = random.Random(2)
    shared = {"momentum": Fraction(4, 5), "dampening": Fraction(0 if first == "nesterov" else 1, 7)} if same else {}
    balance = derive_momentum((FORMS[first], FORMS[second]), same)
    assert balance.closed is (first == second == "plain" or (same and first == "momentum"))
    assert remainders(balance, [side(FORMS[n], generator, shared) for n in (first, second)], generator) == [0] * 3


def test_what_each_rule_makes_of_it() -> None:
    """Heavy ball multiplies by μ whatever the decay; Nesterov leaves a pairing and lets decay in; plain steps are bound."""
    (heavy,), (nesterov,), (plain,) = (derive_momentum((FORMS[name],), True).equations for name in ("momentum", "nesterov", "plain"))
    assert sp.expand(heavy.rhs - (MU * ANGULAR + (1 - TAU) * CURRENT)) == 0
    source = Wedge(BEFORE, GRADIENT)
    assert sp.expand(nesterov.rhs - (MU * (1 - ETA * DECAY) * ANGULAR + (1 - TAU) * CURRENT + ETA * MU * source)) == 0
    assert sp.expand(plain.rhs + ETA * CURRENT) == 0


def test_for_heavy_ball_the_combination_that_closes_knows_no_step_size() -> None:
    """Charges are weighed with 1/η, momenta with what of the gradient comes into the buffer; different momenta close in no combination."""
    heavy = FORMS["momentum"]
    assert derive_momentum((heavy, heavy), True).weights == (1, 1)
    apart = derive_momentum((heavy, heavy), False)
    tau = sp.symbols("tau_0 tau_1", real=True)
    assert sp.simplify(apart.weights[1] - (1 - tau[0]) / (1 - tau[1])) == 0
    assert not apart.closed
    eta = sp.symbols("eta_0 eta_1", real=True)
    assert sp.simplify(derive_momentum((FORMS["plain"],) * 2, True).weights[1] - eta[0] / eta[1]) == 0


@pytest.mark.parametrize("mechanism", ["momentum", "weight_decay", "discretization", "explicit_breaking"])
def test_a_wrong_sibling_of_the_law_leaves_a_remainder(mechanism: str) -> None:
    generator = random.Random(3)
    balance = derive_momentum((FORMS["nesterov"],), True)
    wrong = replace(balance, terms=dict(balance.terms) | {mechanism: -balance.terms[mechanism]})
    assert any(x != 0 for x in remainders(wrong, [side(FORMS["nesterov"], generator, {})], generator))


def test_the_law_of_another_rule_leaves_a_remainder() -> None:
    generator = random.Random(4)
    forms = FORMS | FURTHER
    for name, other in (("momentum", "odd"), ("nesterov", "momentum"), ("momentum", "nesterov"), ("momentum", "decoupled")):
        assert any(x != 0 for x in remainders(derive_momentum((forms[name],), True), [side(forms[other], generator, {})], generator)), name


def test_a_changed_update_equation_changes_the_law(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is looked up: the rule's equations are patched, and `derive` gives another law, which is exact for the patched rule."""
    graph = residual_graph()
    (plain,) = derive(graph, SGD(momentum=MU)).momenta
    monkeypatch.setattr(rules, "sgd_form", lambda **_: odd_form())
    (patched,) = derive(graph, rules.SGD(momentum=MU)).momenta
    assert patched.balance.equations != plain.balance.equations
    assert patched.balance.sources == (Wedge(BEFORE, GRADIENT),)
    generator = random.Random(5)
    assert remainders(patched.balance, [side(odd_form(), generator, {})], generator) == [0] * 3


def test_a_rule_without_any_average_and_without_a_linear_step_has_no_law() -> None:
    cubed = replace(FORMS["plain"], name="cubed", equations=((STEP, GRADIENT**3),))
    with pytest.raises(NotLinear, match="cubed"):
        derive_momentum((cubed,), True)
    assert parts(derive_momentum((signed_form(),), True).sources[0].args[0]) == {DISPLACEMENT: 1}


# --- in the limit


def test_in_a_momentum_flow_the_momentum_decays_exponentially_and_without_momentum_it_is_zero() -> None:
    t = sp.Symbol("t", nonnegative=True)
    p = sp.Function("P")(t)
    decaying = sp.Eq(sp.Derivative(sp.exp(FRICTION * t) * p, t), 0)
    for form in (SGD(momentum=MU), SGD(momentum=MU, nesterov=True), SGD(momentum=MU, dampening=TAU, weight_decay=DECAY)):
        (law,) = derive(residual_graph(), form).momenta
        assert law.flow == decaying
    (bound,) = derive(residual_graph(), SGD()).momenta
    assert bound.flow == sp.Eq(p, 0)


def test_the_flow_is_the_limit_of_the_closed_form() -> None:
    """K_n = μⁿ K_0 with μ = 1 - γ h at n = t/h: the error of e^(-γt) against h has slope 1."""
    (law,) = derive(residual_graph(), SGD(momentum=MU)).momenta
    solution = law.solution()
    assert solution is not None
    n, h, gamma, t = sp.Symbol("n", integer=True, nonnegative=True), sp.Symbol("h", positive=True), sp.Rational(3, 2), 2
    value = solution.rhs.subs({sp.Symbol("K_0", real=True): 1, MU: 1 - gamma * h})
    errors = [abs(float(value.subs({n: sp.Integer(t * 20 * 2**k), h: sp.Rational(1, 20 * 2**k)}) - sp.exp(-gamma * t))) for k in range(5)]
    slopes = [float(sp.log(a / b, 2)) for a, b in pairwise(errors)]
    assert slopes[-1] == pytest.approx(1, abs=0.1)
    assert derive(residual_graph(), SGD(momentum=MU, nesterov=True)).momenta[0].solution() is None


def test_frictions_that_differ_are_told_apart() -> None:
    heavy = FORMS["momentum"]
    law = MomentumLaw(Symmetry("rotation", (), ()), rules.Rule(()), {}, derive_momentum((heavy, heavy), False))
    assert law.flow is not None
    assert {str(s) for s in law.flow.rhs.free_symbols} >= {"gamma_0", "gamma_1", "P_0", "P_1"}
    mixed = replace(law, balance=derive_momentum((heavy, FORMS["plain"]), False))
    assert mixed.flow is None


# --- whole graphs


def residual_graph(gain: bool = False) -> ArchitectureGraph:
    """A stream that RMSNorms read: embedding, one block, output."""
    graph = ArchitectureGraph()
    n = sp.Symbol("n", integer=True, positive=True)
    for name, shape in {"embed": (n, 3), "up": (7, n), "down": (n, 7), "out": (2, n)}.items():
        graph.add_parameter(name, shape)
    for name in ("gain_1", "gain_2") if gain else ():
        graph.add_parameter(name, (n,))
    stream = graph.add_operation(
        "e", "linear", {"input": graph.add_operation("x", "input", shape=(8, 3))}, {"weight": "embed"}, shape=(8, n)
    )
    normed = [{"weight": f"gain_{i}"} if gain else {} for i in (1, 2)]
    first = graph.add_operation("n1", "rms_norm", {"input": stream}, normed[0], shape=(8, n), dims=1, eps=0.0)
    hidden = graph.add_operation("u", "linear", {"input": first}, {"weight": "up"}, shape=(8, 7))
    hidden = graph.add_operation("a", "relu", {"input": hidden}, shape=(8, 7))
    added = graph.add_operation("d", "linear", {"input": hidden}, {"weight": "down"}, shape=(8, n))
    stream = graph.add_operation("s", "add", {"input": stream, "other": added}, shape=(8, n))
    second = graph.add_operation("n2", "rms_norm", {"input": stream}, normed[1], shape=(8, n), dims=1, eps=0.0)
    end = graph.add_operation("o", "linear", {"input": second}, {"weight": "out"}, shape=(8, 2))
    graph.add_operation("end", "output", {"0": end})
    return graph


def test_the_momentum_of_a_stream_of_width_n_is_one_matrix() -> None:
    laws = derive(residual_graph(), SGD(momentum=MU))
    (law,) = laws.momenta
    n = sp.Symbol("n", integer=True, positive=True)
    assert (law.kind, law.name, law.symmetry.kind) == ("rotation", "rotation embed +3", "rotation")
    assert sp.simplify(law.count - n * (n - 1) / 2) == 0
    i, i2 = sp.symbols("i i_2", integer=True)
    assert {str(s) for s in law.momentum.free_symbols} >= {"embed", "b_embed", "out", "b_out", "i", "i_2"}
    assert sp.simplify((law.momentum + law.momentum.xreplace({i: i2, i2: i})).doit()) == 0
    assert law.symmetry.number not in {charge.symmetry.number for charge in laws}
    assert r"^\top" in law.latex()
    assert all(key in references() for key in law.source)


def test_behind_a_gain_a_rotation_has_no_law_and_is_counted_as_a_symmetry() -> None:
    laws = derive(residual_graph(gain=True), SGD())
    assert [s.kind for s in laws.symmetries if s.rotation] == ["rotation"]
    assert laws.momenta == ()


class Linear(nn.Module):
    """Two matrix families, and what a bias takes back."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 4), nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.c(self.b(self.a(x)))
        return out


@pytest.fixture(scope="module")
def linear() -> Laws:
    return nf.derive(nf.trace(Linear(), torch.zeros(7, 5)), nf.rules.SGD(momentum=0.9))


def test_iterating_and_counting_charges_is_as_before(linear: Laws) -> None:
    assert {law.symmetry.kind for law in linear} == {"linear"}
    assert len(linear) == 2
    assert linear.charges == sum(law.count for law in linear)
    assert not any(isinstance(law, MomentumLaw) for law in linear)


def test_a_matrix_family_has_charges_for_its_symmetric_half_and_momenta_for_the_other(linear: Laws) -> None:
    """Together they are as many as the generators of the family: 16 = 10 + 6."""
    first, second = linear.momenta
    assert (first.kind, first.name, first.count) == ("rotation", "rotation in linear a.weight +2", 6)
    assert second.count == 15
    charges = {law.symmetry.number: law.count for law in linear}
    assert first.count + charges[first.symmetry.number] == first.symmetry.dimension == 16
    affine = [s for s in linear.symmetries if s.kind == "affine"]
    assert affine
    assert not any(turns(s) for s in affine)


def test_the_momentum_is_read_off_the_generator(linear: Laws) -> None:
    """⟨ξ(θ), b⟩ of the tangent of an antisymmetric X is ½⟨X, K⟩, for the producer's X P and the consumer's -Xᵀ P alike."""
    torch.manual_seed(0)
    for law in linear.momenta:
        n = int(law.symmetry.sizes[-1])
        params = {name: torch.randn(p.shape, dtype=torch.float64) for name, p in Linear().named_parameters()}
        buffers = {name: torch.randn(p.shape, dtype=torch.float64) for name, p in params.items()}
        x = torch.randn(n, n, dtype=torch.float64)
        x = x - x.T
        tangent = law.symmetry.tangent(params, x.reshape(-1))
        paired = sum(float((change * buffers[name]).sum()) for name, change in tangent.items())
        assert paired == pytest.approx(float((x * evaluated(law, params, buffers, n)).sum() / 2), rel=1e-12)


def evaluated(law: MomentumLaw, params: Mapping[str, torch.Tensor], buffers: Mapping[str, torch.Tensor], n: int) -> torch.Tensor:
    """K from its indexed expression, entry by entry."""
    whole = law.momentum.doit()
    tensors = dict(params) | {f"b_{name}": b for name, b in buffers.items()}
    i, j = (sp.Symbol(s, integer=True) for s in ("i", "i_2"))
    out = torch.zeros(n, n, dtype=torch.float64)
    for row in range(n):
        for column in range(n):
            entry = whole.subs({i: row, j: column})
            known = {x: float(tensors[str(x.base)][tuple(int(k) for k in x.indices)]) for x in entry.atoms(sp.Indexed)}
            out[row, column] = float(entry.xreplace({k: sp.Float(v, 20) for k, v in known.items()}))
    return out


def test_only_antisymmetric_operators_turn() -> None:
    laws = derive(residual_graph(), SGD())
    rotation = next(s for s in laws.symmetries if s.rotation)
    assert turns(rotation)
    action = rotation.actions[0]
    assert not turns(replace(rotation, actions=(replace(action, form="scale"),))), "its operator is symmetric"
    assert not turns(replace(rotation, kind="affine"))
    backwards = momentum(rotation, action) + momentum(rotation, replace(action, weight=-action.weight))
    assert sp.simplify(backwards.doit()) == 0
