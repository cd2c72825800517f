"""The class shift, and what a z-loss makes of it: a current where a logarithm of a sum of exponentials sees the logits.

W <- W + 1 v^T and b <- b + s add one number to all logits of a sample, which cross-entropy does not see. A logsumexp of the same logits
does: it moves by that number times

    defect = d/dt log Σ_i exp(x_i + t) = 1 ,

so that with y its value and h what the last linear map reads, Σ over the classes of ∂L/∂W = J = Σ_t ∂L/∂y_t h_t. For the z-loss
c E[y²], ∂L/∂y = 2 c y / N, and J = 2 c E[y h]. Source: own (THEORY 15.3).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final

import sympy as sp

from noetherflow.symbolic.actions import Action, Patch
from noetherflow.symbolic.gauge import lower, symmetries, symmetries_of
from noetherflow.symbolic.gauge_table import Call, rational
from noetherflow.symbolic.graph import ArchitectureGraph
from noetherflow.symbolic.primitives import Program, Value
from noetherflow.symbolic.symmetries import Symmetry

LOGSUMEXP: Final = ("logsumexp", "aten.logsumexp")
"""The operation's names: in the vocabulary, and as an operation that the vocabulary lacks."""
PASSING: Final = frozenset({"identity", "scale", "negate", "reshape"})


@dataclass(frozen=True, slots=True)
class ClassSite:
    """A logsumexp that sees a shift of all logits of a sample.

    Parameters
    ----------
    node : str
    coefficient : sympy.Rational
        Change of the logits per unit of the generator (and of the reader's entries).
    reader : str
        The linear map that makes the logits.
    weighted : bool
        Whether the shift is v · h_t, with h what the reader reads, rather than the same for all samples.
    patch : Patch
        The part of the features of h that the family acts on.
    places : tuple of int
        For each index of the family, the dimension of the patch that carries it.
    """

    node: str
    coefficient: sp.Rational
    reader: str
    weighted: bool
    patch: Patch
    places: tuple[int, ...]


@dataclass(frozen=True)
class ClassShift:
    """A class shift that exists but for a logsumexp of the logits.

    Attributes
    ----------
    symmetry : Symmetry
    sites : tuple of ClassSite
    """

    symmetry: Symmetry
    sites: tuple[ClassSite, ...]


@lru_cache(maxsize=1)
def shift_defect() -> sp.Expr:
    """Derivative of log Σ exp(x_i + t) by t, at t = 0.

    Examples
    --------
    >>> shift_defect()
    1
    """
    i, n = sp.symbols("i n", integer=True, positive=True)
    t = sp.Symbol("t", real=True)
    value = sp.log(sp.Sum(sp.exp(sp.IndexedBase("x", real=True)[i] + t), (i, 1, n)))
    return sp.simplify(sp.diff(value, t).subs(t, 0))


def class_shifts(graph: ArchitectureGraph) -> tuple[ClassShift, ...]:
    """The shifts of the last linear map that exist but for what a logsumexp sees of its result.

    Left out where anything but a view or a factor stands between the linear map and the logsumexp, or where it is taken along another axis
    than the last.

    Examples
    --------
    >>> graph = ArchitectureGraph()
    >>> _ = graph.add_parameter("w", (5, 3)), graph.add_operation("x", "input", shape=(8, 3))
    >>> _ = graph.add_operation("logits", "linear", {"input": "x"}, {"weight": "w"}, shape=(8, 5))
    >>> _ = graph.add_operation("ce", "cross_entropy", {"input": "logits"}, shape=())
    >>> _ = graph.add_operation("lse", "aten.logsumexp", {"0": "logits"}, shape=(8,))
    >>> _ = graph.add_operation("square", "power", {"input": "lse"}, shape=(8,), exponent=2)
    >>> _ = graph.add_operation("z", "mean", {"input": "square"}, shape=())
    >>> _ = graph.add_operation("loss", "add", {"input": "ce", "other": "z"}, shape=())
    >>> [(f.symmetry.kind, f.symmetry.dimension, f.symmetry.parameters, f.sites[0].weighted) for f in class_shifts(graph)]
    [('translation', 3, ('w',), True)]
    """
    nodes = [node for node in graph.topological_order() if _is_over_classes(graph, node)]
    if not nodes:
        return ()
    exact = {family.actions for family in symmetries(graph)}
    program = lower(graph, dict.fromkeys(nodes, _absorbing))
    found: list[ClassShift] = []
    for family in symmetries_of(program, graph):
        if family.actions not in exact and all(action.form == "shift" and not action.factors for action in family.actions):
            sites = [list(_sites(graph, action, nodes)) for action in family.actions]
            if all(sites):
                found.append(ClassShift(replace(family, number=len(found)), tuple(site for some in sites for site in some)))
    return tuple(found)


def _absorbing(program: Program, call: Call) -> Value:
    """As if it did not see what all classes have in common."""
    (x,) = call.values.values()
    program.normalize(call.node, x, [len(x.axes) - 1], scale=False, shift=True)
    return program.fresh(call.shape, fixed=True)


def _is_over_classes(graph: ArchitectureGraph, node: str) -> bool:
    """Whether a node is a logsumexp along the last axis, as far as shapes and attributes tell."""
    data = graph.nodes[node]
    if data["operation"] not in LOGSUMEXP or len(graph.inputs_of(node)) != 1:
        return False
    (producer,) = graph.inputs_of(node).values()
    before, after = graph.nodes[producer]["shape"], data["shape"]
    last = len(before) - 1
    known = data["attributes"].get("dims", [last])
    return [d % len(before) for d in known] == [last] and after in (before[:-1], (*before[:-1], 1))


def _sites(graph: ArchitectureGraph, action: Action, nodes: Sequence[str]) -> Iterator[ClassSite]:
    for node in nodes:
        reader, factor = _reader(graph, node)
        data = graph.nodes[reader] if reader else {"parameters": {}, "attributes": {}}
        slot = next((slot for slot, name in data["parameters"].items() if name == action.parameter), None)
        classes = 1 if slot == "weight" and data["attributes"].get("transposed") else 0
        if slot is None or any(action.patch.indices[d].axis == classes for d in action.places):
            continue
        features = [d for d, index in enumerate(action.patch.indices) if index.axis != classes]
        indices = tuple(replace(action.patch.indices[d], axis=0) for d in features)
        offsets = tuple(offset for axis, offset in enumerate(action.patch.offsets) if axis != classes)
        places = tuple(features.index(d) for d in action.places)
        yield ClassSite(node, action.weight * factor, reader, slot == "weight", Patch(offsets, indices), places)


def _reader(graph: ArchitectureGraph, node: str) -> tuple[str, sp.Rational]:
    """The operation that makes the logits of a logsumexp, and the factor between."""
    factor = sp.S.One
    (node,) = graph.inputs_of(node).values()
    while graph.nodes[node]["operation"] in PASSING and len(graph.inputs_of(node)) == 1:
        data = graph.nodes[node]
        (before,) = graph.inputs_of(node).values()
        if data["operation"] == "reshape" and data["shape"][-1] != graph.nodes[before]["shape"][-1]:
            break
        factor *= {"scale": rational(data["attributes"].get("factor", 1)), "negate": sp.S.NegativeOne}.get(data["operation"], sp.S.One)
        node = before
    return node if graph.nodes[node]["operation"] == "linear" else "", factor
