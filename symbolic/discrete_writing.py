"""Writing classes of permutations and solutions for signs as factors of one group, nothing that is continuous counted twice."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from noetherflow.symbolic.actions import Index, Patch
from noetherflow.symbolic.algebras import Algebra, Carrier, algebras
from noetherflow.symbolic.axes import Axis, Identity, Segment
from noetherflow.symbolic.centring import centres
from noetherflow.symbolic.discrete_factors import Factor, Permutations, Placed, ShiftedSigns, Signs, Transpositions
from noetherflow.symbolic.gauge import parameter_unknowns
from noetherflow.symbolic.graph import ArchitectureGraph
from noetherflow.symbolic.interchanges import Interchange, interchanges
from noetherflow.symbolic.linear_systems import Atoms, Unknown, wanted_index_sets
from noetherflow.symbolic.parities import Span, kernel
from noetherflow.symbolic.primitives import Block, Normalize, Program
from noetherflow.symbolic.signs import sign_equations

Vector = frozenset[Unknown]
Where = tuple[int, Block]


@dataclass(frozen=True, slots=True)
class _Located:
    """Names of a tensor that is moved, the identities of its indices, and where they lie; `mean` names what changes sign."""

    names: tuple[str, ...]
    signed: tuple[str, ...]
    identities: tuple[Identity, ...]
    patch: Patch


class FactorWriter:
    """Writes the discrete group of one program."""

    def __init__(self, program: Program, graph: ArchitectureGraph) -> None:
        self.program, self.graph = program, graph
        self._order = {name: i for i, name in enumerate(graph.parameters)}
        self._parameters = {
            (value.root, block): _Located((name,), (name,), identities, patch)
            for name, value in program.parameters.items()
            for block, identities, patch in self._blocks(value.axes)
        }
        self._buffers = dict(self._statistics())
        self._centres = tuple(dict.fromkeys(centres(graph).values()))

    def factors(self) -> list[Factor]:
        """All factors: permutations, then reflections, then signs."""
        found = algebras(self.program)
        signs = _SignSpace(self.program, self.graph, frozenset(where[0] for where in self._buffers))
        signs.forget(found)
        rotated = [{(c.root, c.block, c.index) for c in a.members} for a in found]
        swaps = [(i, {(c.root, c.block, c.index) for c in i.members}) for i in interchanges(self.program)]
        free = [self._permutations(i) for i, places in swaps if not any(places & others for others in rotated)]
        reflections: list[Factor] = []
        for algebra, places in zip(found, rotated, strict=True):
            if algebra.centred and not algebra.pairs:
                reflections += [self._permutations(i, reflections=True) for i, own in swaps if own & places][:1]
            elif signs.reflects(algebra):
                reflections.append(self._reflection(algebra))
        return [*_sorted(free, self._order), *_sorted(reflections, self._order), *_sorted(self._signs(signs), self._order)]

    def _permutations(self, found: Interchange, *, reflections: bool = False) -> Permutations:
        atoms = (*found.spectators, found.atom)
        actions = [p for c in found.members for p in self._along(self._parameters, c, found.spectators)]
        buffers = [p for c in found.others for p in self._along(self._buffers, c, found.spectators)]
        kind = Transpositions if reflections else Permutations
        return kind(self._sizes(atoms), tuple(actions), tuple(dict.fromkeys(buffers)))

    def _reflection(self, algebra: Algebra) -> Signs:
        actions = [p for c in algebra.members for p in self._along(self._parameters, c, algebra.spectators)]
        return Signs(self._sizes(algebra.spectators), tuple(actions), reflected=True)

    def _signs(self, signs: _SignSpace) -> Iterator[Signs]:
        for atoms, based, vector in signs.families():
            actions = [p for u in vector for p in self._carrying(self._parameters, u, atoms, signed=True)]
            buffers = [p for u in vector for p in self._carrying(self._buffers, u, atoms, signed=True)]
            if actions:
                ordered = sorted(actions, key=lambda p: (self._order[p.parameter], p.patch.offsets, p.places))
                found = self._sizes(atoms), tuple(ordered), tuple(dict.fromkeys(buffers)), based
                shifting = tuple(centre for centre in self._centres if any(_reads(centre.weight, p) for p in ordered))
                yield ShiftedSigns(*found, centres=shifting) if shifting else Signs(*found)

    def _sizes(self, atoms: Iterable[int]) -> tuple[int, ...]:
        return tuple(int(self.program.table.atom_size(atom)) for atom in atoms)

    # --- places

    def _along(self, located: Mapping[Where, _Located], carrier: Carrier, spectators: Atoms) -> Iterator[Placed]:
        there = located.get((carrier.root, carrier.block))
        wanted = {*carrier.spectators, carrier.index}
        if there is not None and wanted <= set(there.identities):
            lead = _dims(there, carrier.spectators, spectators)
            for name in there.names:
                yield Placed(name, there.patch, (*lead, there.identities.index(carrier.index)))

    def _carrying(self, located: Mapping[Where, _Located], unknown: Unknown, atoms: Atoms, *, signed: bool) -> Iterator[Placed]:
        there = located.get((unknown.root, unknown.block))
        if there is not None and unknown.indices <= set(there.identities):
            for name in there.signed if signed else there.names:
                yield Placed(name, there.patch, _dims(there, unknown.indices, atoms))

    def _blocks(self, axes: Sequence[Axis]) -> Iterator[tuple[Block, tuple[Identity, ...], Patch]]:
        per_axis = [self.program.table.segments(axis) for axis in axes]
        for segment in self.program.table.segments(tuple(o for axis in axes for o in axis)):
            chosen = [next(s for s in parts if s.choices <= segment.choices) for parts in per_axis]
            yield (segment.choices, *_patch(chosen))

    def _statistics(self) -> Iterator[tuple[Where, _Located]]:
        """Running means and variances: along the channels of what a batch normalisation reads."""
        for step in self.program.steps:
            if isinstance(step, Normalize) and self.graph.nodes[step.node]["operation"] == "batch_norm":
                value, module = step.operand.value, self.graph.nodes[step.node]["module"]
                mean, variance = f"{module}.running_mean", f"{module}.running_var"
                for block, _, _ in self._blocks(value.axes):
                    channels = next(s for s in self.program.table.segments(value.axes[1]) if s.choices <= block)
                    identities, patch = _patch([channels])
                    yield (value.root, block), _Located((mean, variance), (mean,), identities, patch)


def _reads(weight: str, placed: Placed) -> bool:
    """Whether signs lie along what a weight sums over, its last axis."""
    return placed.parameter == weight and any(placed.patch.indices[place].axis == 1 for place in placed.places)


def _dims(there: _Located, chosen: frozenset[Identity], atoms: Atoms) -> tuple[int, ...]:
    """For each atom the dimension of a patch that carries it."""
    by_atom = {there.patch.indices[d].atom: d for d, identity in enumerate(there.identities) if identity in chosen}
    return tuple(by_atom[atom] for atom in atoms)


def _patch(chosen: Sequence[Segment]) -> tuple[tuple[Identity, ...], Patch]:
    indices = tuple(Index(a, leaf.size, leaf.stride, leaf.atom) for a, s in enumerate(chosen) for leaf in s.leaves)
    return tuple(leaf.identity for s in chosen for leaf in s.leaves), Patch(tuple(s.offset for s in chosen), indices)


def _sorted(factors: Iterable[Factor], order: Mapping[str, int]) -> list[Factor]:
    return sorted(factors, key=lambda f: (min(order[p.parameter] for p in f.actions), -len(f.sizes), f.sizes))


class _SignSpace:
    """Solutions for signs, by index set, modulo those that are taken."""

    def __init__(self, program: Program, graph: ArchitectureGraph, followed: frozenset[int]) -> None:
        wanted = wanted_index_sets(program)
        self._program = program
        self._systems = sign_equations(program, wanted, graph)
        targets = parameter_unknowns(program, self._systems)
        self._own = {key: frozenset(unknowns) for key, unknowns in targets.items()}
        self._bases = {key: self._basis(key, unknowns, followed) for key, unknowns in targets.items()}
        self._spaces: dict[Atoms, Span[Unknown]] = {key: Span() for key in targets}
        for key, basis in self._bases.items():
            for vector in basis:
                self._spaces[key].add(vector & self._own[key])
        self._taken: dict[Atoms, Span[Unknown]] = {key: Span() for key in targets}

    def _basis(self, key: Atoms, targets: Sequence[Unknown], followed: frozenset[int]) -> list[Vector]:
        equations = [{u for u, c in equation.items() if c.numerator % 2} for equation in self._systems.equations.get(key, [])]
        more = dict.fromkeys(u for equation in equations for u in equation if u.root in followed)
        return [v for v in kernel([e for e in equations if e], [*targets, *more]) if v & self._own[key]]

    def forget(self, found: Sequence[Algebra]) -> None:
        """Take out signs that are continuous: of the rows of an algebra of matrices, of both entries of a pair that is rotated."""
        for algebra in found:
            if algebra.centred and not algebra.pairs:
                continue
            atoms = algebra.spectators if algebra.pairs else (*algebra.spectators, algebra.atom)
            for key in _subsets(atoms):
                vector = self._restricted(algebra, key)
                if key in self._spaces and vector in self._spaces[key]:
                    self._taken[key].add(vector)

    def reflects(self, algebra: Algebra) -> bool:
        """Whether signs along the index of an algebra of matrices are symmetries."""
        key = tuple(sorted((*algebra.spectators, algebra.atom)))
        return not algebra.pairs and key in self._spaces and self._restricted(algebra, key) in self._spaces[key]

    def families(self) -> Iterator[tuple[Atoms, bool, Vector]]:
        """(indices, whether zero at the first values, unknowns) of independent families; parts that fit are put together."""
        for key in sorted(self._bases, key=lambda k: (-len(k), k)):
            for vector in self._bases[key]:
                if self._taken[key].add(vector & self._own[key]):
                    whole = self._fits(vector, key)
                    for part in _subsets(key) if whole else ():
                        self._taken[part].add(self._part(vector, part) & self._own[part])
                    yield key, bool(key) and not whole, vector

    def _fits(self, vector: Vector, key: Atoms) -> bool:
        """Whether the same tensors may change sign along every part of an index set, and none of it is taken."""
        for part in _subsets(key):
            own = self._part(vector, part) & self._own[part]
            if part != key and (own not in self._spaces[part] or own in self._taken[part]):
                return False
        return True

    def _part(self, vector: Vector, part: Atoms) -> Vector:
        out: set[Unknown] = set()
        for u in vector:
            out ^= {Unknown(u.root, u.block, frozenset(i for i in u.indices if self._systems.atoms[i] in part))}
        return frozenset(out)

    def _restricted(self, algebra: Algebra, key: Atoms) -> Vector:
        atoms, out = self._systems.atoms, set[Unknown]()
        for c in algebra.members:
            indices = frozenset(i for i in (*c.spectators, c.index) if atoms.get(i) in key)
            out ^= {Unknown(c.root, c.block, indices)}
        return frozenset(out)


def _subsets(atoms: Sequence[int]) -> list[Atoms]:
    """All parts of an index set, the empty one first."""
    ordered = sorted(atoms)
    return [chosen for size in range(len(ordered) + 1) for chosen in combinations(ordered, size)]
