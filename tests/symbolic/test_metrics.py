"""Which charges survive which metric: decided by curvature, and held against real flows of small networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import sympy as sp
import torch
from torch import Tensor, nn

import noetherflow as nf
from noetherflow.errors import RuleError
from noetherflow.numeric.integrate import integrate
from noetherflow.symbolic.charges import charge, charge_count
from noetherflow.symbolic.metrics import ARGUMENT, ENTROPY, Adagrad, Adam, Diagonal, Euclidean, Metric, Mirror, Natural, RMSProp
from noetherflow.symbolic.one_forms import curvature, curvatures, derivative
from noetherflow.symbolic.survival import Charge, Constraint, antiderivative, survives, written
from noetherflow.symbolic.survival_table import what_survives
from noetherflow.symbolic.symmetries import Symmetry

I, J, Z, I2, J2 = sp.symbols("i j z i_2 j_2", integer=True)  # noqa: E741  # the letters of indices
P, R, X = (sp.IndexedBase(name) for name in "PRX")
PHI = sp.Function("phi")
GENERAL = Mirror(PHI(ARGUMENT), name="any mirror")
Point = dict[str, Tensor]


class Deep(nn.Module):
    """Every kind of family: matrices, shifts behind weights, translations, scales, rotations through gains, rescalings."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm = nn.Linear(3, 4), nn.Linear(4, 5), nn.LayerNorm(5)
        self.c, self.d, self.e = nn.Linear(5, 3), nn.Linear(3, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden: Tensor = self.c(self.norm(self.b(self.a(x))))
        out: Tensor = self.e(torch.relu(self.d(hidden)))
        return out


@pytest.fixture(scope="module")
def deep() -> tuple[Symmetry, ...]:
    return tuple(nf.symmetries(nf.trace(Deep(), torch.zeros(7, 3), loss="cross_entropy")))


def of_kind(symmetries: tuple[Symmetry, ...], kind: str) -> Symmetry:
    return next(s for s in symmetries if s.kind == kind)


# --- derivatives of indexed expressions


def test_a_summed_index_that_meets_the_entry_takes_its_value() -> None:
    rows = sp.Sum(X[I, Z] * P[Z, J], (Z, 0, 3))
    assert derivative(rows, P[I2, J2]) == X[I, I2] * sp.KroneckerDelta(J, J2)
    assert derivative(rows, R[I2, J2]) == 0
    assert derivative(P[I, J] ** 2 * rows, P[I2, J2]).coeff(sp.KroneckerDelta(I, I2)) != 0


@pytest.mark.parametrize("seed", range(4))
def test_derivatives_agree_with_those_of_written_out_sums(seed: int) -> None:
    """A product of sums and functions over two indices, entry by entry at size 2."""
    x = sp.Rational(seed + 1, 3)
    expression = sp.sin(P[I, J]) * sp.Sum(X[I, Z] * P[Z, J] ** 2, (Z, 0, 1)) + x * P[I, J] * sp.Sum(P[I, Z] * R[Z], (Z, 0, 1))
    for i, j, k, m in ((0, 0, 0, 0), (0, 1, 1, 1), (1, 0, 1, 1), (1, 1, 0, 1)):
        place = {I: i, J: j, I2: k, J2: m}
        expected = expression.subs({I: i, J: j}).doit()
        marks = {P[a, b]: sp.Symbol(f"p{a}{b}") for a in range(2) for b in range(2)}
        expected = sp.diff(expected.xreplace(marks), marks[P[k, m]])
        found = derivative(expression, P[I2, J2]).subs(place).doit().xreplace(marks)
        assert sp.simplify(found - expected) == 0


def test_curvature_is_that_of_the_textbook() -> None:
    assert curvature((P[I], P[I]), (P[I], P[I])) == 0
    rotation = sp.Sum(X[I, Z] * P[Z], (Z, 0, 3))
    assert sp.expand(curvature((P[I], rotation), (P[I], rotation)) - (X[I, I2] - X[I2, I])) == 0
    assert curvatures([(P[I], R[I]), (R[I], P[I])]) == {}, "P dR + R dP"
    assert curvatures([(P[I], R[I]), (R[I], -P[I])]) != {}
    assert curvatures([(P[I], R[I])], [R[I]]) != {}, "R does not move"


# --- the Euclidean metric: what the package says without metrics


def test_the_euclidean_metric_agrees_with_the_laws(deep: tuple[Symmetry, ...]) -> None:
    assert {s.kind for s in deep} >= {"linear", "affine", "translation", "scale", "rescale", "rotation"}
    for symmetry in deep:
        found = survives(symmetry, Euclidean())
        assert isinstance(found, Charge) == (charge_count(symmetry) != 0), symmetry.name
        if isinstance(found, Charge):
            assert found.count == charge_count(symmetry)
            assert sp.simplify(sp.expand((found.expression - charge(symmetry)).doit())) == 0
            assert found.generators == ("symmetric" if symmetry.matrix else "all")


def test_rotations_have_no_charge_under_any_metric(deep: tuple[Symmetry, ...]) -> None:
    rotation = of_kind(deep, "rotation")
    for metric in (Euclidean(), Diagonal({"b.weight": 2}), GENERAL, Natural(), Adam()):
        found = survives(rotation, metric)
        assert isinstance(found, Constraint)
        assert found.curvature


# --- other metrics


def test_mirror_descent_keeps_translations_in_dual_coordinates_and_dual_potentials(deep: tuple[Symmetry, ...]) -> None:
    w, e = sp.IndexedBase("d.weight"), sp.IndexedBase("e.weight")
    (translation,) = (s for s in deep if s.parameters == ("e.weight",))
    shift = survives(translation, GENERAL)
    assert isinstance(shift, Charge)
    assert shift.expression == sp.Sum(sp.Derivative(PHI(e[J, I]), e[J, I]), (J, 0, 1))
    found = survives(of_kind(deep, "rescale"), GENERAL)
    rescale = next(survives(s, GENERAL) for s in deep if s.parameters == ("d.weight", "d.bias", "e.weight"))
    assert isinstance(found, Charge)
    assert isinstance(rescale, Charge)
    dual = w[I, J] * sp.Derivative(PHI(w[I, J]), w[I, J]) - PHI(w[I, J])
    (into,) = (s for s in rescale.expression.atoms(sp.Sum) if w in s.atoms(sp.IndexedBase))
    assert sp.expand(into.function - dual) == 0


def test_entropy_turns_squares_into_sums(deep: tuple[Symmetry, ...]) -> None:
    (rescale,) = (s for s in deep if s.parameters == ("d.weight", "d.bias", "e.weight"))
    found = survives(rescale, Mirror(ENTROPY))
    assert str(found) == "charge: d.bias[i] + Σ_j d.weight[i, j] - Σ_j e.weight[j, i]"


def test_a_mirror_leaves_a_matrix_family_its_diagonal(deep: tuple[Symmetry, ...]) -> None:
    matrix = of_kind(deep, "linear")
    for metric, generators, count in (
        (Euclidean(), "symmetric", 10),
        (Diagonal({"a.weight": 3, "b.weight": sp.Symbol("c")}), "symmetric", 10),
        (Mirror(ENTROPY), "diagonal", 4),
        (GENERAL, "diagonal", 4),
    ):
        found = survives(matrix, metric)
        assert isinstance(found, Charge)
        assert (found.generators, found.count) == (generators, count)


@pytest.mark.parametrize("metric", [RMSProp(), Adagrad(), Adam()], ids=lambda m: m.name)
def test_adaptive_metrics_leave_constraints_only(deep: tuple[Symmetry, ...], metric: Metric) -> None:
    for symmetry in deep:
        found = survives(symmetry, metric)
        assert isinstance(found, Constraint), symmetry.name
        assert all(curl != 0 for curl in found.curvature.values())


def test_a_metric_that_forgets_its_history_would_not() -> None:
    """The same root of v, but of a v that is a function of the entry: a mirror again."""
    symmetries = tuple(nf.symmetries(nf.trace(nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)), torch.zeros(4, 2))))
    (rescale,) = (s for s in symmetries if s.kind == "rescale")
    assert isinstance(survives(rescale, Mirror(sp.Rational(4, 15) * ARGUMENT ** sp.Rational(5, 2))), Charge)
    assert isinstance(survives(rescale, Adam()), Constraint)


def test_a_parameter_that_no_gradient_moves_stays_under_adam_too() -> None:
    model = nn.MultiheadAttention(4, 2, batch_first=True)

    class Self(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.inner(x, x, x, need_weights=False)[0]
            return out

    (null,) = (s for s in nf.symmetries(nf.trace(Self(), torch.zeros(2, 3, 4))) if s.kind == "null")
    found = survives(null, Adam())
    assert isinstance(found, Charge)
    assert found.count == 4


def test_the_fisher_matrix_does_not_see_a_symmetry_but_its_blocks_do(deep: tuple[Symmetry, ...]) -> None:
    (rescale,) = (s for s in deep if s.parameters == ("d.weight", "d.bias", "e.weight"))
    layers = Natural(blocks=[frozenset({"d.weight", "d.bias"}), frozenset({"e.weight", "e.bias"})], name="layer blocks")
    whole = Natural(blocks=[frozenset({"d.weight", "d.bias", "e.weight"})], name="one block")
    assert isinstance(survives(rescale, layers), Constraint)
    assert isinstance(survives(rescale, whole), Charge)
    euclidean = survives(rescale, Euclidean())
    natural = survives(rescale, Natural())
    assert isinstance(euclidean, Charge)
    assert isinstance(natural, Charge)
    assert natural.expression == euclidean.expression
    (translation,) = (s for s in deep if s.parameters == ("e.weight",))
    assert isinstance(survives(translation, layers), Charge), "one block holds all of it"


# --- real flows: each charge stands still under its own metric and moves under the others


class Flow:
    """A ReLU net with positive weights on a smooth piece, its flow under a metric by an eighth-order integrator."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)).double()
        self.inputs = torch.rand(6, 2, generator=generator, dtype=torch.float64) + 0.2
        self.targets = torch.rand(6, 2, generator=generator, dtype=torch.float64) + 1.5
        shapes = {name: p.shape for name, p in self.model.named_parameters()}
        self.start = {name: torch.rand(shape, generator=generator, dtype=torch.float64) + 0.5 for name, shape in shapes.items()}
        self.symmetry = next(s for s in nf.symmetries(nf.trace(self.model, self.inputs)) if s.kind == "rescale")

    def named(self, flat: Tensor) -> Point:
        pieces = torch.split(flat, [t.numel() for t in self.start.values()])
        return {name: piece.reshape(t.shape) for (name, t), piece in zip(self.start.items(), pieces, strict=True)}

    def sample_gradients(self, flat: Tensor) -> Tensor:
        def loss(point: Tensor, x: Tensor, y: Tensor) -> Tensor:
            out = torch.func.functional_call(self.model, self.named(point), (x[None],))
            return ((out[0] - y) ** 2).mean()

        gradients: Tensor = torch.vmap(torch.func.grad(loss), (None, 0, 0))(flat, self.inputs, self.targets)
        return gradients

    def end(self, velocity: Callable[[Tensor, Tensor], Tensor], time: float = 0.12) -> Point:
        flat = torch.cat([t.reshape(-1) for t in self.start.values()])
        return self.named(integrate(lambda x: velocity(x, self.sample_gradients(x)), flat, time, 40))


def evaluated(expression: sp.Expr, point: Mapping[str, Tensor]) -> float:
    """A charge of the first hidden unit, entry by entry."""
    explicit = expression.subs(I, 0).doit()
    entries = {x: float(point[str(x.base)][tuple(int(i) for i in x.indices)]) for x in explicit.atoms(sp.Indexed)}
    return float(explicit.xreplace(entries))


METRICS: dict[str, Metric] = {
    "Euclidean": Euclidean(),
    "step sizes": Diagonal({"0.weight": sp.Rational(1, 2), "0.bias": sp.Rational(1, 2)}, "step sizes"),
    "entropic": Mirror(ENTROPY, name="entropic"),
    "mixed": Mirror(ENTROPY, {"2.weight": ARGUMENT**2 / 2}, "mixed"),
    "quartic": Mirror(ARGUMENT**4 / 12 + ARGUMENT**2 / 2, name="quartic"),
}


def lifted(name: str, flow: Flow) -> Callable[[Tensor, Tensor], Tensor]:
    """θ' = -M⁻¹ g, written out by hand."""
    names = [n for n, t in flow.start.items() for _ in range(t.numel())]
    first = torch.tensor([n.startswith("0") for n in names])
    second = torch.tensor([n == "2.weight" for n in names])
    inverse: dict[str, Callable[[Tensor], Tensor]] = {
        "Euclidean": torch.ones_like,
        "step sizes": lambda x: torch.where(first, 2.0, 1.0).to(x),
        "entropic": lambda x: x,
        "mixed": lambda x: torch.where(second, torch.ones_like(x), x),
        "quartic": lambda x: 1 / (1 + x**2),
    }
    return lambda x, gradients: -inverse[name](x) * gradients.mean(0)


@pytest.mark.parametrize("name", METRICS)
def test_a_charge_stands_still_under_its_own_metric_only(name: str) -> None:
    flow = Flow()
    end = flow.end(lifted(name, flow))
    assert max(float((end[n] - t).abs().max()) for n, t in flow.start.items()) > 0.05
    for other, metric in METRICS.items():
        found = survives(flow.symmetry, metric)
        assert isinstance(found, Charge)
        drift = abs(evaluated(found.expression, end) - evaluated(found.expression, flow.start))
        assert drift < 1e-11 if other == name else drift > 1e-3, (other, drift)


def test_damped_natural_gradient_conserves_the_euclidean_charge_and_its_blocks_do_not() -> None:
    flow = Flow()
    found = survives(flow.symmetry, Natural())
    assert isinstance(found, Charge)
    first = torch.tensor([n.startswith("0") for n, t in flow.start.items() for _ in range(t.numel())])
    together = (first[:, None] == first[None, :]).double()
    drifts = []
    for mask in (torch.ones_like(together), together, torch.eye(len(first)).double()):

        def velocity(x: Tensor, gradients: Tensor, mask: Tensor = mask) -> Tensor:
            fisher = gradients.T @ gradients / len(gradients) * mask
            return -torch.linalg.solve(fisher + 0.3 * torch.eye(len(x), dtype=x.dtype), gradients.mean(0))

        end = flow.end(velocity)
        drifts.append(abs(evaluated(found.expression, end) - evaluated(found.expression, flow.start)))
    whole, blocks, diagonal = drifts
    assert whole < 1e-11
    assert min(blocks, diagonal) > 1e-4


# --- tables and edges


def test_the_table_tells_what_adam_loses() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2, bias=False))
    laws = nf.derive(nf.trace(model, torch.zeros(4, 2), loss="cross_entropy"))
    table = what_survives(laws, [Euclidean(), Adam()])
    assert [len(row.families) for row in table.rows] == [2, 1]
    assert table.lost("Euclidean", "Adam") == table.rows
    assert table.lost("Adam", "Euclidean") == ()
    text = repr(table)
    assert text.count("constraint") == 2
    assert "Euclidean  charge: 0.bias[i]²/2 + Σ_j 0.weight[i, j]²/2 - Σ_j 2.weight[j, i]²/2" in text
    assert table._repr_html_().count("<tr>") == 3
    with pytest.raises(RuleError, match="no metric"):
        table.lost("Euclidean", "Lion")


def test_equal_layers_share_a_row() -> None:
    class Stack(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3), nn.Tanh()) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = layer(x)
            return x

    table = what_survives(nf.symmetries(nf.trace(Stack(), torch.zeros(4, 3))), [Euclidean()])
    (row,) = table.rows
    assert "3 families" in row.name


def test_tables_need_metrics_that_can_be_told_apart() -> None:
    for metrics in ([], [Euclidean(), Euclidean()]):
        with pytest.raises(RuleError, match="different names"):
            what_survives([], metrics)


def test_a_flat_potential_is_refused() -> None:
    with pytest.raises(RuleError, match="second derivative"):
        Mirror(3 * ARGUMENT)


def test_antiderivatives_are_checked() -> None:
    x = sp.Symbol("x", positive=True)
    assert antiderivative(PHI(x).diff(x, 2), x) == PHI(x).diff(x)
    assert sp.simplify(antiderivative(x**2 * PHI(x).diff(x, 3), x).diff(x) - x**2 * PHI(x).diff(x, 3)) == 0
    with pytest.raises(RuleError, match="No antiderivative"):
        antiderivative(PHI(x), x)


def test_charges_are_written_on_one_line() -> None:
    assert written(-sp.Sum(P[I, J] ** 2, (J, 0, 2)) / 2) == "-Σ_j P[i, j]²/2"
    assert written(sp.Sum(P[I] - R[I], (I, 0, 2))) == "Σ_i (P[i] - R[i])"
