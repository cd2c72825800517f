"""The architecture graph: building it, its errors, and its JSON."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
import sympy as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from noetherflow.errors import GraphError
from noetherflow.symbolic.gauge import symmetries
from noetherflow.symbolic.gauge_table import RULES, rule
from noetherflow.symbolic.graph import ArchitectureGraph, Size
from noetherflow.symbolic.operations import OPERATIONS


def mlp(*widths: Size, activation: str = "relu", bias: bool = True, loss: str | None = None) -> ArchitectureGraph:
    """A perceptron drawn by hand."""
    graph = ArchitectureGraph()
    at = graph.add_operation("x", "input", shape=(8, widths[0]))
    for layer, (inputs, outputs) in enumerate(pairwise(widths)):
        parameters = {"weight": graph.add_parameter(f"w{layer}", (outputs, inputs))}
        if bias:
            parameters["bias"] = graph.add_parameter(f"b{layer}", (outputs,))
        at = graph.add_operation(f"z{layer}", "linear", {"input": at}, parameters, shape=(8, outputs))
        if layer < len(widths) - 2:
            at = graph.add_operation(f"a{layer}", activation, {"input": at}, shape=(8, outputs))
    graph.add_operation("end", loss or "output", {"input" if loss else "0": at})
    return graph


# --- JSON

_names = st.text(min_size=1, max_size=6)
_sizes = st.one_of(
    st.integers(1, 5), st.sampled_from([sp.Symbol("n"), sp.Symbol("n", integer=True, positive=True), 2 * sp.Symbol("m") + 1])
)
_shapes = st.lists(_sizes, max_size=3).map(tuple)
_json = st.recursive(st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), _names), st.lists, max_leaves=4)


@st.composite
def graphs(draw: st.DrawFn) -> ArchitectureGraph:
    """Any graph: parameters, shared ones, aliases, operations known and unknown, attributes of any kind."""
    graph = ArchitectureGraph()
    parameters = draw(st.lists(_names, unique=True, max_size=3))
    for name in parameters:
        graph.add_parameter(name, draw(_shapes), draw(st.sampled_from(["float32", "bfloat16"])), draw(st.booleans()))
    if parameters:
        graph.aliases.update(dict.fromkeys(draw(st.lists(_names, max_size=2)), parameters[0]))
    for name in draw(st.lists(_names, min_size=1, max_size=5, unique=True)):
        inputs = draw(st.dictionaries(_names, st.sampled_from(list(graph)), max_size=2)) if len(graph) else {}
        held = draw(st.dictionaries(_names, st.sampled_from(parameters), max_size=2)) if parameters else {}
        held = {slot: parameter for slot, parameter in held.items() if slot not in inputs}
        attributes = draw(st.dictionaries(st.sampled_from(["eps", "groups", "padding", "p"]), _json, max_size=2))
        graph.add_operation(name, "custom.op", inputs, held, shape=draw(_shapes), module=draw(_names), **attributes)
    return graph


@settings(max_examples=150, derandomize=True, deadline=None)
@given(graphs())
def test_json_holds_the_whole_graph(graph: ArchitectureGraph) -> None:
    again = ArchitectureGraph.from_json(graph.to_json())
    assert again.parameters == graph.parameters
    assert again.aliases == graph.aliases
    assert dict(again.nodes(data=True)) == dict(graph.nodes(data=True))
    assert sorted(again.edges(keys=True)) == sorted(graph.edges(keys=True))
    assert again.to_json() == graph.to_json()


def test_symmetries_survive_json() -> None:
    graph = mlp(3, 5, 2, loss="cross_entropy")
    assert repr(symmetries(ArchitectureGraph.from_json(graph.to_json()))) == repr(symmetries(graph))


@pytest.mark.parametrize(
    "text", ["", "[1, 2]", "null", "{}", '{"format": 1}', '{"format": 99}', '{"format": 1, "parameters": [3]}', "not JSON"]
)
def test_what_is_not_the_json_of_a_graph_is_refused(text: str) -> None:
    with pytest.raises(GraphError, match=r"not the JSON of an architecture graph|Graph format"):
        ArchitectureGraph.from_json(text)


def test_json_with_a_dangling_edge_is_refused() -> None:
    data = json.loads(mlp(3, 2).to_json())
    data["nodes"][1]["inputs"]["input"] = "nowhere"
    with pytest.raises(GraphError, match="reads from 'nowhere'"):
        ArchitectureGraph.from_json(json.dumps(data))


# --- errors


def test_names_are_unique() -> None:
    graph = mlp(3, 2)
    with pytest.raises(GraphError, match="Parameter 'w0' is already"):
        graph.add_parameter("w0", (1,))
    with pytest.raises(GraphError, match="Node 'x' is already") as caught:
        graph.add_operation("x", "input")
    assert caught.value.node == "x"


@pytest.mark.parametrize(
    ("operation", "inputs", "parameters", "message"),
    [
        ("linear", {"input": "x"}, {}, "it takes .'input', 'weight'. and optionally .'bias'."),
        ("linear", {"input": "x", "other": "x"}, {"weight": "w0"}, "got the slots"),
        ("relu", {}, {}, "it takes"),
        ("concatenate", {"left": "x"}, {}, "numbered slots"),
        ("relu", {"input": "nowhere"}, {}, "reads from 'nowhere'"),
        ("linear", {"input": "x"}, {"weight": "nowhere"}, "call add_parameter first"),
    ],
)
def test_slots_and_names_are_checked(operation: str, inputs: dict[str, str], parameters: dict[str, str], message: str) -> None:
    with pytest.raises(GraphError, match=message):
        mlp(3, 2).add_operation("new", operation, inputs, parameters)


def test_a_cycle_is_refused() -> None:
    graph = mlp(3, 4, 2)
    graph.add_edge("a0", "z0", key="again", shape=(8, 4), dtype="float32")
    with pytest.raises(GraphError, match="has a cycle"):
        symmetries(graph)


def test_an_edge_of_another_shape_is_refused() -> None:
    graph = mlp(3, 2)
    graph.nodes["x"]["shape"] = (8, 7)
    with pytest.raises(GraphError, match="has shape"):
        symmetries(graph)


def test_an_empty_graph_is_refused() -> None:
    with pytest.raises(GraphError, match="graph is empty"):
        symmetries(ArchitectureGraph())


def test_an_operation_without_what_its_rule_reads_is_refused() -> None:
    graph = ArchitectureGraph()
    graph.add_parameter("w", (4, 3))
    graph.add_operation("p", "parameter", {}, {"weight": "w"}, shape=(4, 3))
    graph.add_operation("y", "permute", {"input": "p"}, shape=(3, 4))
    with pytest.raises(GraphError, match="'permute' at 'y' cannot be read"):
        symmetries(graph)


def test_a_rule_for_an_operation_outside_the_vocabulary_is_refused() -> None:
    with pytest.raises(ValueError, match="not in the vocabulary"):
        rule("no_such_operation")(lambda program, call: call["input"])


def test_every_operation_of_the_vocabulary_has_a_gauge_rule() -> None:
    assert set(RULES) == set(OPERATIONS)


# --- sizes that are symbols


def test_a_symbolic_width_gives_a_symbolic_dimension() -> None:
    n = sp.Symbol("n", integer=True, positive=True)
    (hidden,) = symmetries(mlp(3, n, 2))
    assert (hidden.kind, hidden.dimension) == ("rescale", n)
    matrices, shifts = symmetries(mlp(3, n, 2, activation="identity"))
    assert (matrices.kind, sp.expand(matrices.dimension - n**2)) == ("linear", 0)
    assert (shifts.kind, shifts.dimension) == ("affine", n)


def test_a_symbolic_result_agrees_with_every_number() -> None:
    n = sp.Symbol("n", integer=True, positive=True)
    symbolic = symmetries(mlp(3, n, 7, 2, loss="cross_entropy"))
    for width in (2, 5, 11):
        assert sp.sympify(symbolic.dimension).subs(n, width) == symmetries(mlp(3, width, 7, 2, loss="cross_entropy")).dimension


def test_a_symbolic_family_does_not_act_on_tensors() -> None:
    (hidden,) = symmetries(mlp(3, sp.Symbol("n"), 2))
    with pytest.raises(GraphError, match="substitute numbers"):
        hidden.coefficients([0.0])


def test_shared_parameters_are_found_by_their_uses() -> None:
    graph = mlp(4, 4, bias=False)
    graph.add_operation("again", "linear", {"input": "z0"}, {"weight": "w0"}, shape=(8, 4))
    assert sorted(graph.uses_of("w0")) == [("again", "weight"), ("z0", "weight")]
