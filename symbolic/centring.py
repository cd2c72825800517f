"""Functions that are odd about their value at zero: sigmoid(-z) = 1 - sigmoid(z).

With h(z) = sigmoid(z) - 1/2, which is odd, what a linear layer makes of sigmoids is

    u sigmoid(z) + c = u h(z) + (c + u 1/2) ,

so that the network is one with an odd function and the centred bias c + u 1/2. Its signs are signs of rows of the layer in front and of
columns of u, with the centred bias as it is: the bias itself goes from c to c + u_j where unit j changes sign. That is a linear map of the
parameters, an involution, but no reflection: it changes their norm. It asks that u and c are read there and nowhere else.

Source: own.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

from noetherflow.symbolic.discrete_factors import Centre
from noetherflow.symbolic.gauge_table import Call
from noetherflow.symbolic.graph import ArchitectureGraph
from noetherflow.symbolic.primitives import Program, Value

# Functions f with f(-z) = 2 f(0) - f(z), and their values at zero.
ABOUT: Final = {"sigmoid": 0.5, "hard_sigmoid": 0.5}


def centres(graph: ArchitectureGraph) -> dict[str, Centre]:
    """Node of such a function -> the bias that takes its value at zero, where one linear layer alone reads it."""
    uses = Counter(name for _, data in graph.nodes(data=True) for name in data["parameters"].values())
    found = {node: _centre(graph, node, uses) for node, data in graph.nodes(data=True) if data["operation"] in ABOUT}
    return {node: centre for node, centre in found.items() if centre is not None}


def centred_rule(program: Program, call: Call) -> Value:
    """The odd part of the function; its value at zero is in the bias."""
    return program.apply(call.node, call["input"], None, odd=True)


def _centre(graph: ArchitectureGraph, node: str, uses: Counter[str]) -> Centre | None:
    reader = node
    while len(readers := list(graph.successors(reader))) == 1 and graph.nodes[readers[0]]["operation"] == "identity":
        reader = readers[0]
    if len(readers) != 1 or graph.nodes[readers[0]]["operation"] != "linear" or list(graph.inputs_of(readers[0])) != ["input"]:
        return None
    data = graph.nodes[readers[0]]
    bias, weight = (data["parameters"].get(slot, "") for slot in ("bias", "weight"))
    fit = all(name and graph.parameters[name].trainable and uses[name] == 1 for name in (bias, weight))
    plain = not data["attributes"].get("transposed")
    return Centre(bias, weight, ABOUT[graph.nodes[node]["operation"]]) if fit and plain else None
