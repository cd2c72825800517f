"""From an architecture graph to its symmetries.

1. lower    every operation to primitives, by its gauge rule; an operation without one is opaque and nothing passes it
2. solve    the scales and the shifts that leave every primitive, hence the network and its loss, unchanged for every batch
3. gather   solutions into independent families; extend a family to GL(n) where all operations are linear in its index
4. write    each family as actions on parameters, with the normalisations whose eps breaks it
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import networkx as nx
import sympy as sp

from noetherflow.errors import GraphError
from noetherflow.symbolic.algebras import matrix_index
from noetherflow.symbolic.axes import Identity, Leaf, Misaligned, Segment
from noetherflow.symbolic.families import Family, gather
from noetherflow.symbolic.gauge_rules import RULES, Call
from noetherflow.symbolic.graph import ArchitectureGraph
from noetherflow.symbolic.linear_systems import Systems, Unknown, Vector, parameter_cells, solve, wanted_index_sets
from noetherflow.symbolic.primitives import Block, Normalize, Program, Value, cells
from noetherflow.symbolic.scalings import scale_equations
from noetherflow.symbolic.shifts import data_shifts, shift_equations
from noetherflow.symbolic.symmetries import INDEX_LETTERS, Absorber, Action, Index, Patch, Symmetries, Symmetry


def symmetries(graph: ArchitectureGraph) -> Symmetries:
    """Derive the continuous symmetries of a graph's parameters.

    Exact: every reported generator leaves the network's outputs (or its loss, when the graph ends in one) unchanged for every input, up to
    the explicit breaking by eps that it lists. Not claimed: that there are no others; `noetherflow.completeness` counts.

    Parameters
    ----------
    graph : ArchitectureGraph

    Returns
    -------
    Symmetries
        Independent of one another as fields on parameter space (at one point, a matrix group of a layer wider than its neighbours moves
        in fewer directions than it has generators); ``.opaque`` names operations that nothing was allowed through.

    Raises
    ------
    GraphError
        If the graph is empty, has a cycle, or its shapes do not agree.

    Examples
    --------
    >>> graph = ArchitectureGraph()
    >>> _ = graph.add_parameter("w1", (5, 3)), graph.add_parameter("w2", (2, 5))
    >>> _ = graph.add_operation("x", "input", shape=(8, 3))
    >>> _ = graph.add_operation("h", "linear", {"input": "x"}, {"weight": "w1"}, shape=(8, 5))
    >>> _ = graph.add_operation("a", "relu", {"input": "h"}, shape=(8, 5))
    >>> _ = graph.add_operation("y", "linear", {"input": "a"}, {"weight": "w2"}, shape=(8, 2))
    >>> found = symmetries(graph)
    >>> [(s.kind, s.dimension, s.parameters) for s in found]
    [('rescale', 5, ('w1', 'w2'))]
    """
    program = lower(graph)
    wanted = wanted_index_sets(program)
    writer = _Writer(program, graph)
    scales = _families(program, scale_equations(program, wanted))
    shifts = _families(program, shift_equations(program, wanted))
    by_data = [Family(atoms, vector) for atoms, vector in data_shifts(program)]
    by_shift = [writer.shift(f) for f in [*shifts, *by_data]]
    unseen = {(a.parameter, a.patch) for s in by_shift if s.kind == "null" for a in s.actions}
    by_scale = [s for s in map(writer.scale, scales) if not all((a.parameter, a.patch) in unseen for a in s.actions)]
    members = by_scale + by_shift
    order = {name: i for i, name in enumerate(graph.parameters)}
    members.sort(key=lambda s: (order[s.parameters[0]], len(s.parameters), s.kind))
    return Symmetries([replace(s, number=i) for i, s in enumerate(members)], program.opaque, writer.axis_classes())


def lower(graph: ArchitectureGraph) -> Program:
    """Write a graph in primitives; nodes that reach neither an output nor a loss are left out."""
    if not len(graph):
        raise GraphError("The graph is empty. Trace a model with noetherflow.trace, or add operations.")
    graph.validate()
    program = Program()
    values: dict[str, Value] = {}
    sinks = [n for n in graph if graph.out_degree(n) == 0]
    ends = [n for n in sinks if graph.nodes[n]["operation"] in ("output", "cross_entropy", "mean_square")] or sinks
    alive = set(ends).union(*(nx.ancestors(graph, n) for n in ends))
    for node in graph.topological_order():
        if node in alive:
            values[node] = _lowered(program, graph, node, values)
    for node in ends:
        program.pin(node, values[node])
    return program


def _lowered(program: Program, graph: ArchitectureGraph, node: str, values: dict[str, Value]) -> Value:
    data = graph.nodes[node]
    slots = {slot: values[producer] for slot, producer in graph.inputs_of(node).items()}
    slots |= {slot: _parameter_value(program, graph, name) for slot, name in data["parameters"].items()}
    call = Call(node, data["operation"], slots, data["attributes"], data["shape"])
    rule = RULES.get(data["operation"])
    if rule is None:
        return _opaque(program, call, data["attributes"].get("why") or f"no gauge rule for '{data['operation']}'")
    before, axes = len(program.steps), program.table.snapshot()
    try:
        value = rule(program, call)
        _check_cells(program, before)
    except Misaligned as err:
        del program.steps[before:]
        program.table.restore(axes)
        return _opaque(program, call, f"{data['operation']}: {err}")
    except (TypeError, ValueError, LookupError, AttributeError) as err:
        raise GraphError(
            f"The operation '{call.operation}' at '{node}' cannot be read: {err!r}. Its shape {call.shape}, its attributes "
            f"{dict(call.attributes)} or the shapes of its slots {sorted(slots)} do not fit it.",
            node=node,
        ) from err
    return value


def _check_cells(program: Program, start: int) -> None:
    """Make a rule fail here, where its node is known, rather than in a solver."""
    for step in program.steps[start:]:
        if isinstance(step, Normalize):
            list(cells(program.table, [step.operand]))


def _parameter_value(program: Program, graph: ArchitectureGraph, name: str) -> Value:
    if name not in program.parameters:
        parameter = graph.parameters[name]
        program.parameters[name] = program.fresh(parameter.shape, fixed=not parameter.trainable, parameter=name)
    return program.parameters[name]


def _opaque(program: Program, call: Call, why: str) -> Value:
    moving = [value for value in call.values.values() if not value.fixed]
    for value in moving:
        program.pin(call.node, value)
    if moving:
        program.opaque[call.node] = why
    return program.fresh(call.shape, fixed=True)


def _families(program: Program, systems: Systems) -> list[Family]:
    targets: dict[tuple[int, ...], list[Unknown]] = defaultdict(list)
    for _, root, block, leaves, _ in parameter_cells(program):
        for chosen in _distinct_subsets(leaves):
            key = tuple(sorted(leaf.atom for leaf in chosen))
            if key in systems.wanted:
                systems.atoms.update({leaf.identity: leaf.atom for leaf in chosen})
                targets[key].append(Unknown(root, block, frozenset(leaf.identity for leaf in chosen)))
    solutions = {key: solve(systems.equations.get(key, []), unknowns) for key, unknowns in targets.items()}
    roots = frozenset(value.root for value in program.parameters.values())
    return gather(solutions, systems.equations, systems.atoms, roots)


def _distinct_subsets(leaves: Sequence[Leaf]) -> Iterator[tuple[Leaf, ...]]:
    """Choices of at most three leaves with distinct atoms."""
    chosen: list[tuple[Leaf, ...]] = [()]
    for leaf in leaves:
        chosen += [(*c, leaf) for c in chosen if len(c) < 3 and all(leaf.atom != other.atom for other in c)]
    yield from chosen


@dataclass
class _Writer:
    """Writes families as symmetries: unknowns become actions on patches of parameters."""

    program: Program
    graph: ArchitectureGraph

    def __post_init__(self) -> None:
        self._names = {value.root: name for name, value in self.program.parameters.items()}
        self._patches = {(v.root, block): patch for v in self.program.parameters.values() for block, patch in self._blocks(v)}

    def scale(self, family: Family) -> Symmetry:
        """A family of scales: diagonal, or a matrix algebra where every operation allows it."""
        along = matrix_index(self.program, family)
        atoms = family.atoms if along is None else (*(a for a in family.atoms if a != along), along)
        actions = self._actions(family, atoms, "scale" if along is None else "matrix")
        signs = {action.weight > 0 for action in actions}
        kind = "linear" if along is not None else ("rescale" if len(signs) == 2 else "scale")
        return self._symmetry(kind, family, atoms, actions)

    def shift(self, family: Family) -> Symmetry:
        """A family of shifts."""
        actions = self._actions(family, family.atoms, "shift")
        whole = len(actions) == 1 and len(actions[0].patch.indices) == len(actions[0].places)
        return self._symmetry("null" if whole else "translation", family, family.atoms, actions)

    def axis_classes(self) -> dict[str, tuple[int, ...]]:
        """A class number for each axis of each parameter; an axis that is a product or a sum of indices counts as its first."""
        out = {}
        for name, value in self.program.parameters.items():
            firsts = [self.program.table.segments(axis)[0].leaves for axis in value.axes]
            out[name] = tuple(leaves[0].atom if leaves else -1 for leaves in firsts)
        return out

    def _symmetry(self, kind: str, family: Family, atoms: tuple[int, ...], actions: tuple[Action, ...]) -> Symmetry:
        sizes = [self.program.table.atom_size(a) for a in atoms]
        indices = tuple(zip(INDEX_LETTERS, sizes, strict=False))
        return Symmetry(kind, indices, actions, tuple(self._absorbers(family, atoms)), family.zero_mean)

    def _actions(self, family: Family, atoms: tuple[int, ...], form: str) -> tuple[Action, ...]:
        found = []
        for unknown, coefficient in family.vector.items():
            if unknown.root not in self._names or not coefficient:
                continue
            identities, patch = self._patches[unknown.root, unknown.block]
            where = _places([d for d, identity in enumerate(identities) if identity in unknown.indices], patch, atoms)
            found.append(Action(self._names[unknown.root], patch, where, _rational(coefficient), form))  # type: ignore[arg-type]
        order = list(self.graph.parameters)
        return tuple(sorted(found, key=lambda a: (order.index(a.parameter), str(a.patch.offsets), a.places)))

    def _blocks(self, value: Value) -> Iterator[tuple[Block, tuple[list[Identity], Patch]]]:
        per_axis = [self.program.table.segments(axis) for axis in value.axes]
        for segment in self.program.table.segments(tuple(o for axis in value.axes for o in axis)):
            chosen = [next(s for s in parts if s.choices <= segment.choices) for parts in per_axis]
            yield segment.choices, _patch(chosen)

    def _absorbers(self, family: Family, atoms: tuple[int, ...]) -> Iterator[Absorber]:
        for step in self.program.steps:
            if isinstance(step, Normalize) and not step.operand.value.fixed:
                yield from dict.fromkeys(self._absorbed_at(step, family.vector, atoms))  # summands along the batch absorb as one

    def _absorbed_at(self, step: Normalize, vector: Vector, atoms: tuple[int, ...]) -> Iterator[Absorber]:
        value, module = step.operand.value, self.graph.nodes[step.node]["module"]
        kept = [axis for axis, label in zip(value.axes, step.operand.labels, strict=True) if label is not None and label not in step.over]
        for unknown, coefficient in vector.items():
            if unknown.root == value.root and coefficient:
                chosen = [next(s for s in self.program.table.segments(axis) if s.choices <= unknown.block) for axis in kept]
                identities, patch = _patch(chosen)
                places = _places([d for d, identity in enumerate(identities) if identity in unknown.indices], patch, atoms)
                yield Absorber(step.node, module, _rational(coefficient), step.eps, patch, places)


def _patch(chosen: Sequence[Segment]) -> tuple[list[Identity], Patch]:
    """The block that one segment of each axis makes, with the identities of its indices."""
    indices = tuple(Index(a, leaf.size, leaf.stride, leaf.atom) for a, s in enumerate(chosen) for leaf in s.leaves)
    return [leaf.identity for s in chosen for leaf in s.leaves], Patch(tuple(s.offset for s in chosen), indices)


def _places(dims: list[int], patch: Patch, atoms: Sequence[int]) -> tuple[int, ...]:
    """For each atom of a family the dimension of a patch that carries it; where one atom occurs twice, in the patch's order."""
    free = list(dims)
    for atom in atoms:
        free.append(free.pop(next(i for i, d in enumerate(free) if patch.indices[d].atom == atom)))
    return tuple(free)


def _rational(value: Fraction) -> sp.Rational:
    return sp.Rational(value.numerator, value.denominator)
