"""Symmetries that a network would have if some functions passed a change that they do not, and the exact currents that this leaves.

At chosen nodes a function f of every element is read as if it were positively homogeneous (for scales) or linear with slope one (for
shifts). The families that exist only then are broken, each by a current with a closed form: with c a the change of z in front of f,

    ⟨ξ, ∇L⟩ = J = Σ over sites  c ⟨∂L/∂y, defect(z)⟩ ,

since by the chain rule all that separates ⟨ξ, ∇L⟩ from zero is what f does instead of what was expected of it (`defects`). That eps breaks
a scale at a normalisation is the same statement; those sites are the symmetry's own (`Symmetry.breaking`).

1. read     the graph with the chosen nodes replaced
2. solve    the same equations; solutions count only as far as they reach a site, so what is exact is not repeated
3. write    each family with its sites

Source: own (`derivations/broken_symmetries.py`); zhao2023symmetries for charges of such networks at identity input.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

import sympy as sp

from noetherflow.errors import GraphError
from noetherflow.symbolic.actions import Patch
from noetherflow.symbolic.defects import FUNCTIONS, Z, defect, function
from noetherflow.symbolic.equations import each
from noetherflow.symbolic.families import Family, gather
from noetherflow.symbolic.gauge import lower, moves_what_it_passes, parameter_unknowns
from noetherflow.symbolic.gauge_table import Call, Rule
from noetherflow.symbolic.graph import ArchitectureGraph, Size
from noetherflow.symbolic.ignored import ignored_directions
from noetherflow.symbolic.images import Images, is_image
from noetherflow.symbolic.linear_systems import Atoms, Systems, Unknown, Vector, solve, wanted_index_sets
from noetherflow.symbolic.picks import Chosen
from noetherflow.symbolic.primitives import Apply, Primitive, Program, Value
from noetherflow.symbolic.scalings import scale_equations
from noetherflow.symbolic.shifts import shift_equations
from noetherflow.symbolic.symmetries import Symmetry
from noetherflow.symbolic.writing import Writer

CURVED: Final = frozenset(FUNCTIONS) - {"relu", "absolute", "power"}
"""Functions that pass no scale: those that are looked at if none are named."""


@dataclass(frozen=True, slots=True)
class Site:
    """Where a function of every element breaks a family, and by how much.

    Parameters
    ----------
    node, operation : str
    coefficient : sympy.Rational
        Change of z per unit of the generator: of its logarithm for a scale, of itself for a shift.
    function, defect : sympy.Expr
        f(z), and what it does instead of what was expected, in `noetherflow.symbolic.defects.Z`.
    patch : Patch
        The part of z that the family acts on.
    places : tuple of int
        For each index of the family, the dimension of the patch that carries it.
    sizes : tuple of Size
        Of the axes of z, as traced.
    picked : tuple of Chosen
        The family tells apart what data chose, which z has no axis for: in `patch` and `sizes` an axis for each of these follows z's own.
    """

    node: str
    operation: str
    coefficient: sp.Rational
    function: sp.Expr
    defect: sp.Expr
    patch: Patch
    places: tuple[int, ...]
    sizes: tuple[Size, ...]
    picked: tuple[Chosen, ...] = ()


@dataclass(frozen=True)
class BrokenSymmetry:
    """A family that a network would have but for what happens at its sites.

    Attributes
    ----------
    symmetry : Symmetry
        The family; its own absorbers tell where an eps breaks it.
    sites : tuple of Site
    """

    symmetry: Symmetry
    sites: tuple[Site, ...]

    @property
    def current(self) -> sp.Expr:
        """⟨ξ, ∇L⟩ per unit of the generator, in δ = ∂L/∂y and z of each site.

        To be summed over all that the family's indices do not carry; currents of eps, where there are any, come in addition.
        """
        delta, z = ({site.node: sp.Symbol(f"{name}_{site.node}", real=True) for site in self.sites} for name in ("delta", "z"))
        return sp.Add(*(site.coefficient * delta[site.node] * site.defect.xreplace({Z: z[site.node]}) for site in self.sites))


def broken_symmetries(graph: ArchitectureGraph, at: Iterable[str] | None = None) -> tuple[BrokenSymmetry, ...]:
    """The families that exist but for the functions at some nodes, with their exact currents.

    Independent of one another and of the exact symmetries, as far as they reach a site. Left out: matrix families, and shifts that arrive
    at a site as anything but a constant.

    Parameters
    ----------
    graph : ArchitectureGraph
    at : iterable of str, optional
        Operations or nodes that are read as if they passed changes; all functions that pass no scale, if absent.

    Returns
    -------
    tuple of BrokenSymmetry
        Scales first, then shifts.

    Raises
    ------
    GraphError
        If a name in `at` is no operation or node of the graph, or not a function of every element.

    Examples
    --------
    >>> graph = ArchitectureGraph()
    >>> _ = graph.add_parameter("w1", (5, 3)), graph.add_parameter("w2", (2, 5))
    >>> _ = graph.add_operation("x", "input", shape=(8, 3))
    >>> _ = graph.add_operation("h", "linear", {"input": "x"}, {"weight": "w1"}, shape=(8, 5))
    >>> _ = graph.add_operation("a", "gelu", {"input": "h"}, shape=(8, 5))
    >>> _ = graph.add_operation("y", "linear", {"input": "a"}, {"weight": "w2"}, shape=(8, 2))
    >>> (found,) = broken_symmetries(graph)
    >>> found.symmetry.kind, found.symmetry.dimension, found.symmetry.parameters, found.current
    ('rescale', 5, ('w1', 'w2'), sqrt(2)*delta_a*z_a**2*exp(-z_a**2/2)/(2*sqrt(pi)))
    """
    functions = {node: function(graph.nodes[node]["operation"], graph.nodes[node]["attributes"]) for node in _chosen(graph, at)}
    found = [*_scales(graph, functions), *_shifts(graph, functions)]
    return tuple(replace(b, symmetry=replace(b.symmetry, number=i)) for i, b in enumerate(found))


def _chosen(graph: ArchitectureGraph, at: Iterable[str] | None) -> list[str]:
    names = CURVED if at is None else set(at)
    operations = {data["operation"] for _, data in graph.nodes(data=True)}
    unknown = sorted(names - operations - set(graph)) if at is not None else []
    if unknown:
        raise GraphError(f"No operation and no node of the graph is named {unknown}. Its operations are {sorted(operations)}.")
    return [node for node in graph.topological_order() if node in names or graph.nodes[node]["operation"] in names]


# --- 1. read

# As if f(e^s z) = e^s f(z)


def _homogeneous(program: Program, call: Call) -> Value:
    return program.apply(call.node, call["input"], sp.S.One)


# As if f(z + t) = f(z) + t


def _linear(program: Program, call: Call) -> Value:
    return program.apply(call.node, call["input"], None, sp.S.One)


def _read(graph: ArchitectureGraph, functions: Mapping[str, sp.Expr], change: str, rule: Rule) -> tuple[Program, list[Apply]]:
    """The program and its sites: nodes whose function passes the change as it is are left alone."""
    sites = {node: rule for node, f in functions.items() if defect(f, change) != 0 and not (change == "scale" and _is_power(f))}
    program = lower(graph, sites)
    steps = [s for s in program.steps if isinstance(s, Apply) and s.node in sites and not s.operand.value.fixed]
    return program, steps


def _is_power(f: sp.Expr) -> bool:
    return bool(f.as_base_exp()[0] == Z)


# --- 2. solve


def _scales(graph: ArchitectureGraph, functions: Mapping[str, sp.Expr]) -> Iterator[BrokenSymmetry]:
    program, sites = _read(graph, functions, "scale", _homogeneous)
    systems = scale_equations(program, wanted_index_sets(program))
    writer = Writer(program, graph, Images(program))
    for family in _families(program, systems, sites):
        yield _written(writer, functions, "scale", family, writer.scale(family, None), sites)


def _shifts(graph: ArchitectureGraph, functions: Mapping[str, sp.Expr]) -> Iterator[BrokenSymmetry]:
    program, sites = _read(graph, functions, "shift", _linear)
    # Only a constant arrives at a site as one: what is ignored behind a linear function may depend on the data in front of it.
    curved: dict[int, Primitive] = {id(step): replace(step, factor=None) for step in sites}
    true = replace(program, steps=[curved.get(id(s), s) for s in program.steps])
    systems, images, _ = shift_equations(program, wanted_index_sets(program), ignored_directions(true), {})
    _keep_images_out(systems, sites)
    writer = Writer(program, graph, images)
    for family in _families(program, systems, sites, images.targets):
        if not moves_what_it_passes(family, images, {}):
            yield _written(writer, functions, "shift", family, writer.shift(family, {}), sites)


def _keep_images_out(systems: Systems, sites: list[Apply]) -> None:
    roots = {step.operand.value.root for step in sites}
    for key, equations in systems.equations.items():
        images = {u: None for equation in equations for u in equation if u.root in roots and any(map(is_image, u.indices))}
        for unknown in images:
            systems.state(key, {unknown: 1})


def _families(program: Program, systems: Systems, sites: list[Apply], further: Mapping[Atoms, list[Unknown]] | None = None) -> list[Family]:
    """Solutions, as far as they reach a site: in reduced form with the sites' unknowns first, those that reach none come last."""
    first: dict[Atoms, list[Unknown]] = defaultdict(list)
    for step in sites:
        for key, _, (z,) in each(systems, program.table, (step.operand,)):
            if z is not None:
                first[key].append(z)
    targets = parameter_unknowns(program, systems)
    for key, unknowns in (further or {}).items():
        targets[key].extend(unknowns)
    solutions = {key: solve(systems.equations.get(key, []), [*unknowns, *targets[key]]) for key, unknowns in first.items()}
    reached = frozenset(step.operand.value.root for step in sites)
    return gather({key: _reaching(found, reached) for key, found in solutions.items()}, systems.equations, systems.atoms, reached)


def _reaching(solutions: Iterable[Vector], roots: frozenset[int]) -> list[Vector]:
    return [vector for vector in solutions if any(unknown.root in roots and c for unknown, c in vector.items())]


# --- 3. write


def _written(
    writer: Writer, functions: Mapping[str, sp.Expr], change: str, family: Family, symmetry: Symmetry, sites: list[Apply]
) -> BrokenSymmetry:
    found = []
    for step in sites:
        value, f = step.operand.value, functions[step.node]
        operation = writer.graph.nodes[step.node]["operation"]
        for coefficient, seen in writer.changes(value, value.axes, family.vector, family.atoms):
            placed = seen.patch, seen.places, seen.sizes, seen.picked
            found.append(Site(step.node, operation, coefficient, f, defect(f, change), *placed))
    return BrokenSymmetry(symmetry, tuple(found))
