"""Symmetries and laws as people read them: equal layers on one line, formulas in LaTeX, everything in JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sympy as sp

from noetherflow.symbolic.charges import charge_count, formula
from noetherflow.symbolic.graph import Size
from noetherflow.symbolic.laws import Law, Laws
from noetherflow.symbolic.momenta import MomentumLaw, momentum_formula
from noetherflow.symbolic.symmetries import Symmetry

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Line:
    """Families that differ only in the numbers of their layers.

    Attributes
    ----------
    kind : str
    parameters : tuple of str
        Names with ``*`` where the number of a layer stood.
    families : tuple of Symmetry
    generators, charges : size
        Of all of them together.
    formula : str
        The charge of the first, in LaTeX; empty if there is none.
    """

    kind: str
    parameters: tuple[str, ...]
    families: tuple[Symmetry, ...]
    generators: Size
    charges: Size
    formula: str

    @property
    def module(self) -> str:
        """The module that all its parameters lie in."""
        paths = [name.split(".")[:-1] for name in self.parameters]
        shared = [parts[0] for parts in zip(*paths, strict=False) if len(set(parts)) == 1]
        agree = next((i for i, part in enumerate(shared) if any(path[i] != part for path in paths)), len(shared))
        return ".".join(shared[:agree])


def lines(laws: Laws) -> list[Line]:
    """All symmetries of a network, equal layers joined, in the order of its modules.

    Examples
    --------
    >>> from noetherflow.symbolic.graph import ArchitectureGraph
    >>> from noetherflow.symbolic.laws import derive
    >>> graph = ArchitectureGraph()
    >>> names = [graph.add_parameter(f"layers.{i}.weight", (4, 4)) for i in range(4)]
    >>> node = graph.add_operation("x", "input", shape=(8, 4))
    >>> for i, name in enumerate(names):
    ...     node = graph.add_operation(f"h{i}", "linear", {"input": node}, {"weight": name}, shape=(8, 4))
    ...     node = graph.add_operation(f"a{i}", "relu", {"input": node}, shape=(8, 4))
    >>> [(line.kind, line.parameters, len(line.families), line.charges) for line in lines(derive(graph))]
    [('rescale', ('layers.*.weight', 'layers.*.weight'), 3, 12)]
    """
    groups: dict[tuple[str, tuple[str, ...]], list[Symmetry]] = {}
    for symmetry in laws.symmetries:
        groups.setdefault((symmetry.kind, tuple(map(pattern, symmetry.parameters))), []).append(symmetry)
    return [_line(kind, parameters, members) for (kind, parameters), members in groups.items()]


def pattern(name: str) -> str:
    """A parameter's name with every number of a layer replaced by a star."""
    return re.sub(r"(?<=\.)\d+(?=\.)|^\d+(?=\.)", "*", name)


def _line(kind: str, parameters: tuple[str, ...], members: Sequence[Symmetry]) -> Line:
    counts = [charge_count(s) for s in members]
    charges = sum(counts, start=0)
    text = formula(members[0]) if charges != 0 else ""
    return Line(kind, parameters, tuple(members), sum((s.dimension for s in members), start=0), charges, text)


def shortened(names: Sequence[str], most: int = 3) -> str:
    """Names in a row, equal ones once, those beyond a few as a number."""
    distinct = list(dict.fromkeys(names))
    return ", ".join(distinct[:most]) + (f" and {len(distinct) - most} more" if len(distinct) > most else "")


def to_json(laws: Laws, details: bool = True) -> str:
    """Families, charges and formulas as JSON text.

    Parameters
    ----------
    laws : Laws
    details : bool
        Generators, charges and balance laws as SymPy text and LaTeX besides the counts; they take their time on networks of hundreds of
        layers.
    """
    by_symmetry = {law.symmetry.number: law for law in laws}
    turning = {law.symmetry.number: law for law in laws.momenta}
    families = [_family(symmetry, by_symmetry.get(symmetry.number), turning.get(symmetry.number), details) for symmetry in laws.symmetries]
    found = laws.symmetries
    totals = {"generators": found.dimension, "directions": found.directions, "charges": laws.charges}
    return json.dumps(
        {"format": FORMAT} | {k: _size(v) for k, v in totals.items()} | {"families": families, "opaque": dict(laws.opaque)}, indent=1
    )


def _family(symmetry: Symmetry, law: Law | None, momenta: MomentumLaw | None, details: bool) -> dict[str, Any]:
    counts = {"generators": symmetry.dimension, "directions": symmetry.directions, "charges": law.count if law else 0}
    out: dict[str, Any] = {"kind": symmetry.kind, "parameters": list(symmetry.parameters)} | {k: _size(v) for k, v in counts.items()}
    out["indices"] = {name: _size(size) for name, size in symmetry.indices}
    out["broken_by_eps_at"] = sorted({site.module or site.node for site in symmetry.breaking})
    if details:
        out["generator"] = {sp.sstr(entry): sp.sstr(change) for entry, change in symmetry.generator.items()}
        out |= _motion(law) if law else {}
        out |= _turning(momenta) if momenta else {}
    return out


def _motion(law: Law) -> Mapping[str, Any]:
    equations = [sp.sstr(equation) for equation in law.balance.equations]
    return {"charge": sp.sstr(law.charge), "charge_latex": formula(law.symmetry), "balance": equations, "latex": law.latex()}


def _turning(law: MomentumLaw) -> Mapping[str, Any]:
    equations = [sp.sstr(equation) for equation in law.balance.equations]
    momenta = {"count": _size(law.count), "momentum": sp.sstr(law.momentum), "momentum_latex": momentum_formula(law), "balance": equations}
    return {"angular_momentum": momenta | {"latex": law.latex()}}


def _size(size: Size) -> int | str:
    return size if isinstance(size, int) else sp.sstr(size)
