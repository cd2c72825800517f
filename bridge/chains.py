"""Chains of operations that are one operation of the vocabulary: normalisations, attention and GELU as models write them.

Each is recognised at its last node, by what that is computed from; the node then becomes the one operation. A chain that is not exactly of
the form stays as its single operations.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isclose, pi, sqrt

import torch

from noetherflow.bridge.matching import Matcher
from noetherflow.bridge.norm_layout import NORMALIZATIONS
from noetherflow.bridge.precisions import INSIDE, NORMALISED
from noetherflow.bridge.rotations import gather_rotation
from noetherflow.symbolic.graph import ArchitectureGraph


def gather(graph: ArchitectureGraph, buffers: Mapping[str, torch.Tensor]) -> None:
    """Replace chains by the operations they are.

    Parameters
    ----------
    graph : ArchitectureGraph
        Changed in place; nodes that nothing reads any more stay in it.
    buffers : mapping
        Constant node -> its tensor, where it is known.
    """
    _name_values(graph)
    matcher = Matcher(graph)
    for node in graph.topological_order():
        for recognise in (_root_mean_square, _unit_norm, _centred, _gained, _shifted, _unshifted, _attention, _gelu):
            recognise(matcher, node)
        gather_rotation(matcher, node, buffers)
    graph.graph["origins"] = {node: matcher.origin(node) for node in graph if matcher.operation(node) in NORMALIZATIONS}


# A parameter that is itself normalised is read twice, by its norm and by the quotient: then its value gets a node, as a tensor has


def _name_values(graph: ArchitectureGraph) -> None:
    uses: dict[str, list[tuple[str, str]]] = {}
    for node, data in graph.nodes(data=True):
        for slot, name in data["parameters"].items():
            uses.setdefault(name, []).append((node, slot))
    for name, places in uses.items():
        operations = {graph.nodes[node]["operation"] for node, _ in places}
        if not operations & {"power", "mean"} or not operations & {"multiply", "divide", "subtract"}:
            continue
        shape, dtype = graph.parameters[name].shape, graph.parameters[name].dtype
        value = graph.add_operation(f"{name} value", "parameter", parameters={"weight": name}, shape=shape, dtype=dtype)
        for node, slot in places:
            if graph.nodes[node]["operation"] in ("power", "mean", "multiply", "divide", "subtract"):
                del graph.nodes[node]["parameters"][slot]
                graph.add_edge(value, node, key=slot, shape=shape, dtype=dtype)


# x / sqrt(mean(x²) + eps) along the last axes


def _root_mean_square(m: Matcher, node: str) -> None:
    for x, inverse in _quotients(m, node, -0.5):
        inner, eps = _and_eps(m, inverse)
        dims = _trailing(m, inner, x)
        squared = m.made_by(_keeping(m, inner), "mean")
        if dims and eps is not None and squared and _is_square(m, squared["input"], x) and m.shape(node) == m.shape(x):
            m.replace(node, "rms_norm", {"input": x}, dims=dims, eps=eps)
            m.origins[node] = m.origin(node, written=True)
            return


def _quotients(m: Matcher, node: str, exponent: float) -> list[tuple[str, str]]:
    """(x, y) with the value x * y**exponent, written as a product or as a quotient; exponent is negative."""
    found = [(x, slots["input"]) for x, factor in m.pairs(node, "multiply") if (slots := m.made_by(factor, "power", exponent=exponent))]
    for x, divisor in m.pairs(node, "divide"):
        slots = m.made_by(divisor, "power", exponent=-exponent)
        if slots:
            found.append((x, slots["input"]))
    return found


def _and_eps(m: Matcher, node: str) -> tuple[str, float | None]:
    """(y, eps) of a value y + eps; eps is zero where nothing is added and None where it is no known number."""
    if m.operation(node) != "add":
        return node, 0.0
    for value, added in m.pairs(node, "add"):
        if m.number(added) is not None:
            return value, m.number(added)
    return node, None


def _keeping(m: Matcher, node: str) -> str:
    """The mean behind a view that puts its axes of size one back."""
    behind = m.made_by(node, "reshape") or {}
    return behind.get("input", node)


def _trailing(m: Matcher, node: str, x: str) -> int:
    """Over how many last axes of x a mean is taken, its axes kept with size one; 0 if it is of another kind."""
    mean, rank = m.source(_keeping(m, node)), len(m.shape(x))
    dims = m.attribute(mean, "dims", list(range(rank)))
    count = len(dims)
    last = sorted(d % rank for d in dims) == list(range(rank - count, rank)) if rank else False
    return count if last and m.shape(node) == (*m.shape(x)[: rank - count], *[1] * count) else 0


def _is_square(m: Matcher, node: str, x: str) -> bool:
    raised = m.made_by(node, "power", exponent=2)
    if raised:
        return m.same(raised["input"], x)
    return any(m.same(a, x) and m.same(b, x) for a, b in m.pairs(node, "multiply"))


# The same of what was centred along the same axes: LayerNorm


def _centred(m: Matcher, node: str) -> None:
    if m.operation(node) != "rms_norm" or m.graph.nodes[node]["parameters"]:
        return
    (centred,) = m.graph.predecessors(node)
    for x, mean in m.pairs(centred, "subtract"):
        averaged = m.made_by(_keeping(m, mean), "mean")
        if averaged and m.same(averaged["input"], x) and _trailing(m, mean, x) == m.attribute(node, "dims"):
            m.replace(node, "layer_norm", {"input": x}, **m.graph.nodes[node]["attributes"])
            return


# A gain and a shift of the size of the normalised axes belong to the norm, if nothing else reads it


def _gained(m: Matcher, node: str) -> None:
    norm, gain = _with_parameter(m, node, "multiply")
    if gain and m.operation(norm) in ("rms_norm", "layer_norm") and not m.graph.nodes[norm]["parameters"]:
        _absorb(m, node, norm, "weight", gain)


def _shifted(m: Matcher, node: str) -> None:
    norm, shift = _with_parameter(m, node, "add")
    if shift and m.operation(norm) == "layer_norm" and "bias" not in m.graph.nodes[norm]["parameters"]:
        _absorb(m, node, norm, "bias", shift)


def _with_parameter(m: Matcher, node: str, operation: str) -> tuple[str, str]:
    """The value and the parameter that an operation joins; empty names if it is another one."""
    held, inputs = m.graph.nodes[node]["parameters"], m.graph.inputs_of(node)
    if m.operation(node) != operation or len(held) != 1 or len(inputs) != 1:
        return "", ""
    return m.source(next(iter(inputs.values()))), next(iter(held.values()))


def _absorb(m: Matcher, node: str, norm: str, slot: str, parameter: str) -> None:
    dims, shape = m.attribute(norm, "dims"), m.shape(norm)
    if m.graph.parameters[parameter].shape != shape[len(shape) - dims :] or m.shape(node) != shape or not m.used_once(norm):
        return
    data, origin = m.graph.nodes[norm], m.origin(norm)
    attributes = {name: value for name, value in data["attributes"].items() if name not in (INSIDE, NORMALISED)}  # noted anew
    m.replace(node, m.operation(norm), m.graph.inputs_of(norm), {**data["parameters"], slot: parameter}, [norm], **attributes)
    m.origins[node] = origin


# x / max(|x|, eps) along one axis, as torch.nn.functional.normalize writes it, or x / |x|


def _unit_norm(m: Matcher, node: str) -> None:
    for x, divisor in m.pairs(node, "divide"):
        length = (m.made_by(divisor, "expand") or {}).get("input", divisor)
        bound = m.made_by(length, "clamp", max=None)
        eps, length = (float(m.attribute(length, "min")), bound["input"]) if bound else (0.0, length)
        rooted = m.made_by(length, "power", exponent=0.5)
        summed = m.made_by(rooted["input"], "sum") if rooted and "input" in rooted else None
        if not rooted or not summed or "input" not in summed or not _is_square(m, summed["input"], x):
            continue
        dims, shape = m.attribute(rooted["input"], "dims", []), m.shape(x)
        if len(dims) == 1 and m.shape(length) == tuple(1 if i == dims[0] % len(shape) else size for i, size in enumerate(shape)):
            m.replace(node, "unit_norm", {"input": x}, dim=dims[0] % len(shape), eps=eps)
            return


# softmax(x - m) is softmax(x) for every m that is the same along the axis, such as the largest x


def _unshifted(m: Matcher, node: str) -> None:
    operation = m.operation(node)
    if operation not in ("softmax", "log_softmax"):
        return
    shape, dim = m.shape(node), m.attribute(node, "dim")
    (shifted,) = map(m.source, m.graph.predecessors(node)) if not m.graph.nodes[node]["parameters"] else ("",)
    for x, shift in m.pairs(shifted, "subtract") if shifted else ():
        if m.shape(x) == shape and len(m.shape(shift)) == len(shape) and m.shape(shift)[dim] == 1:
            m.replace(node, operation, {"input": x}, **m.graph.nodes[node]["attributes"])
            return


# softmax(scale * q kᵀ + mask) v along the last axis, dropout on the probabilities


def _attention(m: Matcher, node: str) -> None:
    slots = m.made_by(node, "matmul") or {}
    if set(slots) != {"input", "other"}:
        return
    dropped = m.made_by(slots["input"], "dropout")
    dropout = m.attribute(slots["input"], "p") if dropped else 0.0
    probabilities, value = dropped["input"] if dropped else slots["input"], slots["other"]
    scores = (m.made_by(probabilities, "softmax") or {}).get("input", "")
    if not scores or m.attribute(probabilities, "dim") not in (-1, len(m.shape(scores)) - 1):
        return
    for products, mask in [(scores, ""), *m.pairs(scores, "add")]:
        found = _query_and_key(m, products, value)
        if found and m.shape(products) == m.shape(scores):
            query, key, scale = found
            inputs = {"query": query, "key": key, "value": value, **({"mask": mask} if mask else {})}
            softmax = m.between(probabilities, [scores])
            m.replace(node, "attention", inputs, {}, softmax, causal=False, dropout=dropout, scale=scale, grouped=False)
            return


def _query_and_key(m: Matcher, node: str, value: str) -> tuple[str, str, float] | None:
    """(q, k, factor) of factor * q kᵀ, all of one shape but for their positions and the value's width."""
    scaled = m.made_by(node, "scale") or {}
    factor, node = (m.attribute(node, "factor"), scaled["input"]) if scaled else (1.0, node)
    slots = m.made_by(node, "matmul") or {}
    if set(slots) != {"input", "other"}:
        return None
    query, turned = slots["input"], slots["other"]
    rank = len(m.shape(query))
    dims = [*range(rank - 2), rank - 1, rank - 2]
    key = (m.made_by(turned, "permute", dims=dims) or {}).get("input", "") if rank > 2 else ""
    if not key or not m.shape(query)[:-2] == m.shape(key)[:-2] == m.shape(value)[:-2] or m.shape(key)[-2] != m.shape(value)[-2]:
        return None
    return query, key, factor


# x/2 (1 + tanh(√(2/π) (x + 0.044715 x³)))


def _gelu(m: Matcher, node: str) -> None:
    for half, gate in m.pairs(node, "multiply"):
        x = (m.made_by(half, "scale", factor=0.5) or {}).get("input", "")
        bounded = next((b for b, one in m.pairs(gate, "add") if m.number(one) == 1), "")
        inner = (m.made_by(bounded, "tanh") or {}).get("input", "") if bounded else ""
        if x and inner and _is_gelu_argument(m, inner, x):
            m.replace(node, "gelu", {"input": x}, approximate="tanh")
            return


def _is_gelu_argument(m: Matcher, node: str, x: str) -> bool:
    argument = (m.made_by(node, "scale") or {}).get("input", "")
    if not argument or not isclose(m.attribute(node, "factor"), sqrt(2 / pi), rel_tol=1e-6):
        return False
    for same, cubic in m.pairs(argument, "add"):
        cube = (m.made_by(cubic, "scale", factor=0.044715) or {}).get("input", "")
        raised = m.made_by(cube, "power", exponent=3) if cube else None
        if raised and m.same(raised["input"], x) and m.same(same, x):
            return True
    return False
