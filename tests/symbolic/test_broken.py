"""Broken symmetries: the families are those of the network in which the functions pass changes, and their defects are derived."""

from __future__ import annotations

from collections.abc import Iterable

import mpmath
import pytest
import sympy as sp

from noetherflow.errors import GraphError
from noetherflow.symbolic import defects
from noetherflow.symbolic.broken import CURVED, broken_symmetries
from noetherflow.symbolic.class_shifts import class_shifts, shift_defect
from noetherflow.symbolic.defects import CHANGES, FUNCTIONS, Z, defect, function
from noetherflow.symbolic.gauge import symmetries
from noetherflow.symbolic.gauge_table import RULES
from noetherflow.symbolic.graph import ArchitectureGraph
from noetherflow.symbolic.tying import untied, untied_symmetries

SETTINGS = {"power": {"exponent": 3}, "clamp": {"min": -1, "max": 0.5}, "softplus": {"beta": 2, "threshold": 3}, "elu": {"alpha": 0.5}}
POINTS = ("-3.7", "-1.9", "-0.3", "0.2", "1.4", "2.6", "6.8")


def mlp(*operations: str, **attributes: object) -> ArchitectureGraph:
    """x -> linear -> operations -> linear."""
    graph = ArchitectureGraph()
    for name, shape in {"w1": (5, 3), "b1": (5,), "w2": (2, 5), "b2": (2,)}.items():
        graph.add_parameter(name, shape)
    graph.add_operation("x", "input", shape=(8, 3))
    last = graph.add_operation("h", "linear", {"input": "x"}, {"weight": "w1", "bias": "b1"}, shape=(8, 5))
    for i, operation in enumerate(operations):
        last = graph.add_operation(f"f{i}", operation, {"input": last}, shape=(8, 5), **(attributes if i == 0 else {}))
    graph.add_operation("y", "linear", {"input": last}, {"weight": "w2", "bias": "b2"}, shape=(8, 2))
    return graph


def kinds(found: Iterable[object]) -> list[tuple[str, int, tuple[str, ...]]]:
    """Kind, dimension and parameters of families."""
    families = [getattr(one, "symmetry", one) for one in found]
    return [(s.kind, s.dimension, s.parameters) for s in families]


# --- defects


def by_differences(f: sp.Expr, change: str, z: mpmath.mpf) -> mpmath.mpf:
    """d/ds [f(changed z) - changed f(z)] at 0, of numbers."""
    value = sp.lambdify(Z, f, modules="mpmath")
    changed = {"scale": lambda t, s: mpmath.exp(s) * t, "shift": lambda t, s: t + s}[change]
    return mpmath.diff(lambda s: value(changed(z, s)) - changed(value(z), s), 0)


@pytest.mark.parametrize("change", list(CHANGES))
@pytest.mark.parametrize("operation", list(FUNCTIONS))
def test_a_defect_is_the_derivative_of_what_is_missed(operation: str, change: str) -> None:
    f = function(operation, SETTINGS.get(operation, {}))
    derived = sp.lambdify(Z, defect(f, change), modules="mpmath")
    with mpmath.workdps(40):
        points = [mpmath.mpf(point) for point in POINTS if operation != "logarithm" or float(point) > 0]
        assert all(abs(derived(z) - by_differences(f, change, z)) < 1e-15 for z in points)


@pytest.mark.parametrize("change", list(CHANGES))
def test_the_wrong_sign_is_seen(change: str) -> None:
    f = function("gelu", {})
    with mpmath.workdps(40):
        z = mpmath.mpf("0.7")
        assert abs(-sp.lambdify(Z, defect(f, change), modules="mpmath")(z) - by_differences(f, change, z)) > 0.01


def test_what_passes_has_no_defect() -> None:
    assert {name for name in FUNCTIONS if defect(function(name, SETTINGS.get(name, {})), "scale") == 0} == {"relu", "absolute"}
    assert defect(Z, "shift") == 0


def test_known_forms() -> None:
    gaussian = sp.exp(-(Z**2) / 2) / sp.sqrt(2 * sp.pi)
    assert sp.simplify(defect(function("gelu", {}), "scale") - Z**2 * gaussian) == 0
    logistic = 1 / (1 + sp.exp(-Z))
    assert sp.simplify((defect(function("silu", {}), "scale") - Z**2 * logistic * (1 - logistic)).rewrite(sp.exp)) == 0
    assert sp.simplify(defect(function("power", {"exponent": 2}), "shift") - (2 * Z - 1)) == 0
    assert shift_defect() == 1


def test_every_function_is_an_operation_with_a_rule() -> None:
    assert set(FUNCTIONS) <= set(RULES)
    assert set(FUNCTIONS) > CURVED


# --- families


@pytest.mark.parametrize("operation", sorted(CURVED - {"clamp"}))
def test_a_hidden_layer_has_a_scale_and_a_shift_per_unit(operation: str) -> None:
    found = broken_symmetries(mlp(operation))
    assert kinds(found) == [("rescale", 5, ("w1", "b1", "w2")), ("affine", 5, ("b1", "b2"))]
    assert [[(site.node, site.coefficient, site.places, site.sizes) for site in one.sites] for one in found] == [
        [("f0", 1, (1,), (8, 5))]
    ] * 2
    assert [one.sites[0].defect for one in found] == [defect(function(operation, {}), change) for change in ("scale", "shift")]
    assert kinds(symmetries(mlp(operation))) == []


def test_what_is_exact_is_not_repeated() -> None:
    assert broken_symmetries(mlp("relu")) == ()
    assert kinds(broken_symmetries(mlp("relu"), at=["relu"])) == [("affine", 5, ("b1", "b2"))]
    assert broken_symmetries(mlp("negate"), at=None) == ()


def test_only_what_is_named_is_read_otherwise() -> None:
    graph = mlp("gelu", "tanh")
    assert broken_symmetries(graph, at=["gelu"]) == broken_symmetries(graph, at=["f1"]) == ()
    both = broken_symmetries(graph)
    assert kinds(both) == [("rescale", 5, ("w1", "b1", "w2")), ("affine", 5, ("b1", "b2"))]
    assert [[site.node for site in one.sites] for one in both] == [["f0", "f1"]] * 2
    delta, z = sp.symbols("delta_f1 z_f1", real=True)
    assert sp.simplify(both[1].current.coeff(delta) + sp.tanh(z) ** 2) == 0


def test_the_change_in_front_of_a_site_is_followed() -> None:
    scale, shift = broken_symmetries(mlp("scale", "gelu", factor=-3))
    assert [site.coefficient for site in scale.sites] == [1]
    assert [site.coefficient for site in shift.sites] == [3]
    assert [(a.parameter, a.weight) for a in shift.symmetry.actions] == [("b1", -1), ("b2", -3)]
    (power,) = broken_symmetries(mlp("power", "gelu", exponent=2), at=["gelu"])
    assert [(a.parameter, a.weight) for a in power.symmetry.actions] == [("w1", 1), ("b1", 1), ("w2", -2)]
    assert power.sites[0].coefficient == 2


def test_a_shift_that_depends_on_the_data_is_left_out() -> None:
    graph = ArchitectureGraph()
    graph.add_parameter("w", (5, 3))
    graph.add_operation("x", "input", shape=(8, 3))
    graph.add_operation("h", "linear", {"input": "x"}, {"weight": "w"}, shape=(8, 5))
    graph.add_operation("a", "gelu", {"input": "h"}, shape=(8, 5))
    graph.add_operation("n", "layer_norm", {"input": "a"}, shape=(8, 5), eps=0.1)
    (scale,) = broken_symmetries(graph)  # were gelu linear, w + 1 vᵀ would be a symmetry too
    assert kinds([scale]) == [("scale", 1, ("w",))]
    assert [site.node for site in scale.symmetry.breaking] == ["n"]


def test_a_gate_breaks_its_own_side_only() -> None:
    graph = ArchitectureGraph()
    for name, shape in {"gate": (5, 3), "up": (5, 3), "down": (2, 5)}.items():
        graph.add_parameter(name, shape)
    graph.add_operation("x", "input", shape=(8, 3))
    graph.add_operation("g", "linear", {"input": "x"}, {"weight": "gate"}, shape=(8, 5))
    graph.add_operation("s", "silu", {"input": "g"}, shape=(8, 5))
    graph.add_operation("u", "linear", {"input": "x"}, {"weight": "up"}, shape=(8, 5))
    graph.add_operation("m", "multiply", {"input": "s", "other": "u"}, shape=(8, 5))
    graph.add_operation("y", "linear", {"input": "m"}, {"weight": "down"}, shape=(8, 2))
    assert kinds(symmetries(graph)) == [("rescale", 5, ("up", "down"))]
    assert kinds(broken_symmetries(graph)) == [("rescale", 5, ("gate", "down"))]


@pytest.mark.parametrize(("name", "message"), [("gelu", "No operation and no node"), ("linear", "no known function")])
def test_a_name_that_is_no_function_is_refused(name: str, message: str) -> None:
    with pytest.raises(GraphError, match=message):
        broken_symmetries(mlp("tanh"), at=[name])


# --- nothing is typed in


def test_the_current_follows_the_function(monkeypatch: pytest.MonkeyPatch) -> None:
    delta, z = sp.symbols("delta_f0 z_f0", real=True)
    assert broken_symmetries(mlp("tanh"))[1].current == -delta * sp.tanh(z) ** 2
    monkeypatch.setitem(defects.FUNCTIONS, "tanh", lambda _: sp.sin(2 * Z))
    scale, shift = (one.current for one in broken_symmetries(mlp("tanh")))
    assert sp.expand(scale - delta * (2 * z * sp.cos(2 * z) - sp.sin(2 * z))) == 0
    assert sp.expand(shift - delta * (2 * sp.cos(2 * z) - 1)) == 0


def test_a_function_that_passes_scales_leaves_no_broken_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(defects.FUNCTIONS, "tanh", lambda _: sp.Piecewise((2 * Z, Z > 0), (3 * Z, True)))
    assert kinds(broken_symmetries(mlp("tanh"))) == [("affine", 5, ("b1", "b2"))]


# --- class shifts


def z_loss(*between: str, shape: tuple[int, ...] = (8,), **attributes: object) -> ArchitectureGraph:
    """Cross-entropy and a logsumexp of the same logits."""
    graph = ArchitectureGraph()
    graph.add_parameter("w", (5, 3))
    graph.add_parameter("b", (5,))
    graph.add_operation("x", "input", shape=(8, 3))
    graph.add_operation("logits", "linear", {"input": "x"}, {"weight": "w", "bias": "b"}, shape=(8, 5))
    graph.add_operation("ce", "cross_entropy", {"input": "logits"}, shape=())
    last = "logits"
    for operation in between:
        last = graph.add_operation(f"{operation}_1", operation, {"input": last}, shape=(8, 5), **attributes)
    graph.add_operation("lse", "aten.logsumexp", {"0": last}, shape=shape)
    graph.add_operation("square", "power", {"input": "lse"}, shape=shape, exponent=2)
    graph.add_operation("z", "mean", {"input": "square"}, shape=())
    graph.add_operation("loss", "add", {"input": "ce", "other": "z"}, shape=())
    return graph


@pytest.mark.parametrize("shape", [(8,), (8, 1)])
def test_class_shifts_are_those_that_a_logsumexp_sees(shape: tuple[int, ...]) -> None:
    assert kinds(symmetries(z_loss(shape=shape))) == []
    found = class_shifts(z_loss(shape=shape))
    assert kinds(found) == [("translation", 3, ("w",)), ("translation", 1, ("b",))]
    assert [(site.reader, site.weighted, site.coefficient) for one in found for site in one.sites] == [
        ("logits", True, 1),
        ("logits", False, 1),
    ]


def test_a_factor_in_front_of_a_logsumexp_counts() -> None:
    found = class_shifts(z_loss("scale", factor=0.5))
    assert [site.coefficient for one in found for site in one.sites] == [sp.Rational(1, 2)] * 2


def test_no_class_shift_where_it_is_not_one() -> None:
    assert class_shifts(z_loss(shape=(5,))) == ()  # summed over the samples
    assert class_shifts(z_loss("tanh")) == ()
    assert class_shifts(mlp("gelu")) == ()


# --- tying


def tied(other: str) -> ArchitectureGraph:
    """An embedding whose table, or another one, makes the logits."""
    graph = ArchitectureGraph()
    for name in sorted({"e", other}):
        graph.add_parameter(name, (7, 3))
    graph.add_operation("x", "input", shape=(8,), dtype="int64")
    graph.add_operation("h", "embedding", {"input": "x"}, {"weight": "e"}, shape=(8, 3))
    graph.add_operation("n", "rms_norm", {"input": "h"}, shape=(8, 3))
    graph.add_operation("y", "linear", {"input": "n"}, {"weight": other}, shape=(8, 7))
    graph.add_operation("ce", "cross_entropy", {"input": "y"}, shape=())
    return graph


def test_untied_families_are_those_of_the_network_with_two_tables() -> None:
    found = untied_symmetries(tied("e"))
    renamed = [(kind, size, tuple("u" if name == "e at y" else name for name in names)) for kind, size, names in kinds(found)]
    assert sorted(renamed) == sorted(kinds(symmetries(tied("u"))))
    assert untied_symmetries(tied("u")) == ()
    assert [use.name for use in untied(tied("e"))[1]] == ["e", "e at y"]


def test_the_first_use_that_moves_leads() -> None:
    leading = {one.symmetry.parameters: one.leading for one in untied_symmetries(tied("e"))}
    assert leading["e",] == {"e": "e"}
    assert leading["e at y",] == {"e": "e at y"}


def test_what_moves_all_uses_alike_is_exact() -> None:
    graph = ArchitectureGraph()
    graph.add_parameter("w", (4, 4))
    graph.add_operation("x", "input", shape=(8, 4))
    graph.add_operation("a", "linear", {"input": "x"}, {"weight": "w"}, shape=(8, 4))
    graph.add_operation("b", "linear", {"input": "x"}, {"weight": "w"}, shape=(8, 4))
    graph.add_operation("sum", "add", {"input": "a", "other": "b"}, shape=(8, 4))
    graph.add_operation("n", "rms_norm", {"input": "sum"}, shape=(8, 4))
    assert ("scale", 1, ("w",)) in kinds(symmetries(graph))
    assert all(one.differing and one.symmetry.kind != "scale" for one in untied_symmetries(graph))
