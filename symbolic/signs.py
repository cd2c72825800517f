"""Which tensors may change sign, index by index: the sign of a tensor obeys linear equations over the field of two elements.

They are those of scales (`noetherflow.symbolic.scalings`) with degrees modulo two, except where a function has a degree for positive
factors only, or a parity without a degree:

    apply       an odd function (tanh, sine, an odd power) hands the sign on, an even one (absolute, cosine) swallows it, no other has any
    contract    a maximum has none
    normalize   a root mean square swallows nothing: what is normalised keeps its sign, index by index; a mean asks that it be constant
                along the normalised indices; a softmax has none

A sign is a function of a tensor's indices. It splits uniquely into parts that depend on a set of indices and are zero where one of them
is zero, which takes the place of the parts of zero mean: half of an even number of values may be negative.

Source: own; for perceptrons known since Hecht-Nielsen (1990) and Chen, Lu and Hecht-Nielsen (1993).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import sympy as sp

from noetherflow.symbolic.axes import AxisTable
from noetherflow.symbolic.equations import Statement, each, equal_pieces, pinned, stated, summed, unchanged
from noetherflow.symbolic.graph import ArchitectureGraph
from noetherflow.symbolic.linear_systems import Atoms, Systems
from noetherflow.symbolic.primitives import Add, Apply, Contract, Join, Normalize, Pin, Program, Turn
from noetherflow.symbolic.scalings import constant_along

ODD: Final = frozenset({"tanh", "sine", "error_function", "dropout", "negate", "scale", "identity", "divide"})
EVEN: Final = frozenset({"absolute", "cosine"})

Parity = Callable[[Apply], int | None]
"""1 for an odd function, 0 for an even one, None for one that is neither."""


def sign_equations(program: Program, wanted: frozenset[Atoms], graph: ArchitectureGraph) -> Systems:
    """All equations on signs of a program; only odd coefficients matter."""
    parities = {node: parity_of(data["operation"], data["attributes"]) for node, data in graph.nodes(data=True)}

    def parity(step: Apply) -> int | None:
        return 1 if step.odd or step.factor is not None else parities.get(step.node)

    rules: dict[type, Statement] = {
        Contract: _contract,
        Add: _add,
        Apply: _applying(parity),
        Normalize: _normalize,
        Turn: _turn,
        Join: equal_pieces,
        Pin: pinned,
    }
    return stated(program, wanted, rules)


def parity_of(operation: str, attributes: Mapping[str, Any]) -> int | None:
    """Whether an operation on elements is odd (1), even (0), or neither (None).

    Examples
    --------
    >>> parity_of("tanh", {}), parity_of("cosine", {}), parity_of("relu", {}), parity_of("power", {"exponent": 3.0})
    (1, 0, None, 1)
    >>> parity_of("clamp", {"min": -1.0, "max": 1.0}), parity_of("clamp", {"min": 0.0, "max": 1.0})
    (1, None)
    """
    if operation == "power":
        exponent = attributes.get("exponent", sp.S.Half)
        return int(exponent) % 2 if float(exponent).is_integer() else None
    if operation == "clamp":
        low, high = attributes.get("min"), attributes.get("max")
        return 1 if low is not None and high is not None and low == -high else None
    return 1 if operation in ODD else 0 if operation in EVEN else None


def _contract(systems: Systems, table: AxisTable, step: Contract) -> None:
    if not step.linear:
        unchanged(systems, table, step.out, *step.operands)
        return
    labels = {label for label in step.out.labels if label is not None}
    for key, chosen, (out, *operands) in each(systems, table, (step.out, *step.operands)):
        kept = all(label in labels for label, _ in chosen)
        systems.state(key, summed([*((u, 1) for u in operands), *([(out, 1)] if kept else [])]))


def _add(systems: Systems, table: AxisTable, step: Add) -> None:
    for key, _, (out, *operands) in each(systems, table, (step.out, *step.operands)):
        for operand in operands:
            systems.state(key, summed([(out, 1), (operand, 1)]))


def _applying(parity: Parity) -> Statement:
    def state(systems: Systems, table: AxisTable, step: Apply) -> None:
        kind = parity(step)
        for key, _, (out, x) in each(systems, table, (step.out, step.operand)):
            if kind == 1:
                systems.state(key, summed([(out, 1), (x, 1)]))
                continue
            systems.state(key, {out: 1})
            if kind is None:
                systems.state(key, {x: 1})

    return state


def _normalize(systems: Systems, table: AxisTable, step: Normalize) -> None:
    if not step.scale:
        unchanged(systems, table, step.out, step.operand)
        return
    for key, _, (out, x) in each(systems, table, (step.out, step.operand)):
        systems.state(key, summed([(out, 1), (x, 1)]))
    if step.shift:
        constant_along(systems, table, step, free=True)


def _turn(systems: Systems, table: AxisTable, step: Turn) -> None:
    for key, chosen, (out, x) in each(systems, table, (step.out, step.operand)):
        paired = any(label == step.pair for label, _ in chosen)
        if paired:
            systems.state(key, {x: 1})
            systems.state(key, {out: 1})
        else:
            systems.state(key, summed([(out, 1), (x, 1)]))
