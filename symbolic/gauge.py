"""From an architecture graph to its symmetries.

1. lower    every operation to primitives, by its gauge rule; an operation without one is opaque and nothing passes it
2. solve    the scales and the shifts that leave every primitive, hence the network and its loss, unchanged for every batch
3. gather   solutions into independent families; extend a family to GL(n) where all operations are linear in its index, and add the
            rotations that a normalisation bears
4. write    each family as actions on parameters, with the normalisations whose eps breaks it (`noetherflow.symbolic.writing`)
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import networkx as nx

from noetherflow.errors import GraphError
from noetherflow.symbolic import gauge_blocks, gauge_rules  # noqa: F401  # they fill the table of rules
from noetherflow.symbolic.algebras import algebras, matrix_indices
from noetherflow.symbolic.annihilated import READ, Reader, Readers, readers
from noetherflow.symbolic.axes import Identity, Leaf, Misaligned
from noetherflow.symbolic.empty_columns import empty_columns
from noetherflow.symbolic.families import Family, forget, gather
from noetherflow.symbolic.gauge_table import RULES, Call, Rule
from noetherflow.symbolic.graph import ArchitectureGraph
from noetherflow.symbolic.ignored import Ignored, ignored_directions
from noetherflow.symbolic.images import Images, images_in, is_image
from noetherflow.symbolic.linear_systems import Atoms, Systems, Unknown, parameter_cells, solve, wanted_index_sets
from noetherflow.symbolic.picks import PICKED_BY, index_source
from noetherflow.symbolic.primitives import Block, Normalize, Program, Value, cells
from noetherflow.symbolic.scalings import scale_equations
from noetherflow.symbolic.shifts import Reads, shift_equations
from noetherflow.symbolic.sums import flatten_sums
from noetherflow.symbolic.symmetries import Symmetries, Symmetry
from noetherflow.symbolic.uncollected import uncollected
from noetherflow.symbolic.undone_means import undone_means
from noetherflow.symbolic.writing import Writer


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
    with uncollected():
        return symmetries_of(lower(graph), graph)


def symmetries_of(program: Program, graph: ArchitectureGraph) -> Symmetries:
    """The symmetries of a graph, given in primitives."""
    wanted, ignored = wanted_index_sets(program), ignored_directions(program)
    reading = readers(program, ignored)
    shifts = _shift_families(program, wanted, ignored, reading)
    writer = Writer(program, graph, shifts.images)
    members = [writer.shift(family, shifts.reads.get(family.atoms, {})) for family in shifts.families]
    members += [*_scales_and_rotations(program, wanted, writer), *(writer.reader(r) for r in reading.values() if not r.empty.biases)]
    members += [writer.columns(columns) for columns in empty_columns(program) if not columns.readers <= shifts.reading_alone(reading)]
    members += [writer.columns(columns) for columns in undone_means(program, ignored)]
    null = {(a.parameter, a.patch) for s in members if s.kind == "null" and not s.zero_mean for a in s.actions}
    new = (s for s in members if s.dimension != 0 and (s.kind == "null" or any((a.parameter, a.patch) not in null for a in s.actions)))
    order = {name: i for i, name in enumerate(graph.parameters)}
    found = sorted(new, key=lambda s: (order[s.parameters[0]], len(s.parameters), s.kind))
    return Symmetries([replace(s, number=i) for i, s in enumerate(found)], program.opaque, writer.axis_classes())


def _scales_and_rotations(program: Program, wanted: frozenset[Atoms], writer: Writer) -> list[Symmetry]:
    """Scales, each as the matrices whose diagonal it is where there are some, and rotations."""
    matrices = algebras(program)
    families = _families(program, scale_equations(program, wanted))
    larger = matrix_indices(program, matrices, families)
    scales = [writer.scale(family, algebra) for family, algebra in zip(families, larger, strict=True)]
    used = set(map(id, larger))
    rotations = [writer.rotation(algebra) for algebra in matrices if id(algebra) not in used]
    return scales + rotations


def lower(graph: ArchitectureGraph, replaced: Mapping[str, Rule] | None = None, *, discrete: bool = False) -> Program:
    """Write a graph in primitives; nodes that reach neither an output nor a loss are left out.

    Parameters
    ----------
    graph : ArchitectureGraph
    replaced : mapping of str to rule, optional
        Node -> the rule by which it is read instead of its operation's (`noetherflow.symbolic.broken`).
    discrete : bool
        Whether it is read for permutations, which pass where no scale does.
    """
    if not len(graph):
        raise GraphError("The graph is empty. Trace a model with noetherflow.trace, or add operations.")
    graph.validate()
    program = Program(alone=_picked_alone(graph), discrete=discrete)
    values = program.values
    sinks = [n for n in graph if graph.out_degree(n) == 0]
    ends = [n for n in sinks if graph.nodes[n]["operation"] in ("output", "cross_entropy", "mean_square")] or sinks
    alive = set(ends).union(*(nx.ancestors(graph, n) for n in ends))
    for node in graph.topological_order():
        if node in alive:
            values[node] = _lowered(program, graph, node, values, (replaced or {}).get(node))
            program.made[node] = values[node].root
    for node in ends:
        program.pin(node, values[node])
    flatten_sums(program)
    return program


def _picked_alone(graph: ArchitectureGraph) -> frozenset[str]:
    """Nodes that pick by a tensor of indices which no other node, looking through views, picks by."""
    sources: dict[str, list[str]] = defaultdict(list)
    for node, data in graph.nodes(data=True):
        if data["operation"] in PICKED_BY:
            sources[index_source(graph, node)[0] or node].append(node)
    return frozenset(nodes[0] for nodes in sources.values() if len(nodes) == 1)


def _lowered(program: Program, graph: ArchitectureGraph, node: str, values: dict[str, Value], replacing: Rule | None) -> Value:
    data = graph.nodes[node]
    slots = {slot: values[producer] for slot, producer in graph.inputs_of(node).items()}
    slots |= {slot: _parameter_value(program, graph, name) for slot, name in data["parameters"].items()}
    call = Call(node, data["operation"], slots, data["attributes"], data["shape"])
    rule = replacing or RULES.get(data["operation"])
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
    program.unread.add(call.node)
    return program.fresh(call.shape, fixed=True)


@dataclass(frozen=True, slots=True)
class _Shifts:
    """Families of shifts, the images through weights and the shifts by readers that they name."""

    families: list[Family]
    images: Images
    reads: Reads
    atoms: Mapping[Identity, int]

    def reading_alone(self, reading: Readers) -> set[tuple[int, Block]]:
        """The readers whose families need no other reader: all that each may shift is taken back by biases, or ignored."""
        solved = {
            (key, unknown)
            for family in self.families
            if sum(READ in unknown.indices for unknown in family.vector) == 1
            for key in ((family.atoms,) if family.zero_mean else self.reads)
            if set(key) <= set(family.atoms)
            for unknown in forget(family.vector, key, self.atoms)
        }
        held = {(u.root, u.block) for key, unknowns in self.reads.items() for u in unknowns if (key, u) not in solved}
        return reading.keys() - held


def _shift_families(program: Program, wanted: frozenset[Atoms], ignored: Ignored, reading: Readers) -> _Shifts:
    systems, images, reads = shift_equations(program, wanted, ignored, reading)
    # In a reduced basis what comes first is had from what comes last: weights that read, then shifts, then images, the longest first.
    last = {key: sorted(held, key=images.length, reverse=True) for key, held in images.targets.items()}
    families = _families(program, systems, last, reads)
    sound = [f for f in families if _begins(program, f) and not moves_what_it_passes(f, images, reads[f.atoms])]
    return _Shifts(sound, images, dict(reads), systems.atoms)


def _begins(program: Program, family: Family) -> bool:
    """Whether a constant is put in somewhere. Images alone that cancel are a shift of biases, which is a family already, by W v."""
    roots = {value.root for value in program.parameters.values()}
    return any(u.root in roots and c and not any(map(is_image, u.indices)) for u, c in family.vector.items())


def moves_what_it_passes(family: Family, images: Images, reads: Mapping[Unknown, Reader]) -> bool:
    """Whether a shift moves a weight that it passes, or a gain or bias that a reader's share depends on: a first-order change alone."""
    moved = {unknown.root for unknown, c in family.vector.items() if c}
    dressing = {root for u, c in family.vector.items() if c and u in reads for root, _, _ in reads[u].empty.dressing}
    return bool(moved & dressing) or any(images.known[tag].weights & moved for tag in images_in(family.vector))


def _families(
    program: Program,
    systems: Systems,
    last: Mapping[Atoms, Sequence[Unknown]] | None = None,
    first: Mapping[Atoms, Iterable[Unknown]] | None = None,
) -> list[Family]:
    targets = parameter_unknowns(program, systems)
    for key, unknowns in (last or {}).items():
        targets[key].extend(unknowns)
    for key, beginning in (first or {}).items():
        targets[key][:0] = beginning
    solutions = {key: solve(systems.equations.get(key, []), unknowns) for key, unknowns in targets.items()}
    roots = frozenset(value.root for value in program.parameters.values())
    return gather(solutions, systems.equations, systems.atoms, roots)


def parameter_unknowns(program: Program, systems: Systems) -> dict[Atoms, list[Unknown]]:
    """What trainable parameters may change, by index set."""
    targets: dict[Atoms, list[Unknown]] = defaultdict(list)
    for _, root, block, leaves, _ in parameter_cells(program):
        for chosen in _distinct_subsets(leaves):
            key = tuple(sorted(leaf.atom for leaf in chosen))
            if key in systems.wanted:
                systems.atoms.update({leaf.identity: leaf.atom for leaf in chosen})
                targets[key].append(Unknown(root, block, frozenset(leaf.identity for leaf in chosen)))
    return targets


def _distinct_subsets(leaves: Sequence[Leaf]) -> Iterator[tuple[Leaf, ...]]:
    """Choices of at most three leaves with distinct atoms."""
    chosen: list[tuple[Leaf, ...]] = [()]
    for leaf in leaves:
        chosen += [(*c, leaf) for c in chosen if len(c) < 3 and all(leaf.atom != other.atom for other in c)]
    yield from chosen
