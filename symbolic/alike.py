"""Families that differ in names only: equal layers of a network ask the same question of SymPy, and are answered once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

from noetherflow.symbolic.actions import Action, Factor, Patch
from noetherflow.symbolic.symmetries import Reach, Symmetry

KEPT = 1024


def once_for_all_alike(question: Callable[[Symmetry], bool]) -> Callable[[Symmetry], bool]:
    """Keep the answers of a question about a family that names have no part in."""
    known = lru_cache(maxsize=KEPT)(question)

    def asked(symmetry: Symmetry) -> bool:
        return known(anonymous(symmetry))

    asked.__doc__ = question.__doc__
    return asked


def anonymous(symmetry: Symmetry) -> Symmetry:
    """The same family with its parameters and index classes numbered in the order in which they appear, and nothing of where it is felt.

    Examples
    --------
    >>> from noetherflow.symbolic.gauge import symmetries
    >>> from noetherflow.symbolic.graph import ArchitectureGraph
    >>> graph = ArchitectureGraph()
    >>> h = graph.add_operation("x", "input", shape=(8, 4))
    >>> for i in range(3):
    ...     w = graph.add_parameter(f"w{i}", (4, 4))
    ...     h = graph.add_operation(f"h{i}", "linear", {"input": h}, {"weight": w}, shape=(8, 4))
    >>> first, second = symmetries(graph)
    >>> first == second, anonymous(first) == anonymous(second)
    (False, True)
    """
    names: dict[str, str] = {}
    atoms: dict[int, int] = {}

    def patch(old: Patch) -> Patch:
        return replace(old, indices=tuple(replace(i, atom=atoms.setdefault(i.atom, len(atoms))) for i in old.indices))

    def name(old: str) -> str:
        return names.setdefault(old, f"p{len(names)}")

    def factor(old: Factor) -> Factor:
        return replace(old, parameter=name(old.parameter), patch=patch(old.patch))

    def action(old: Action) -> Action:
        image = None if old.image is None else replace(old.image, factors=tuple(map(factor, old.image.factors)))
        return replace(old, parameter=name(old.parameter), patch=patch(old.patch), factors=tuple(map(factor, old.factors)), image=image)

    return replace(symmetry, actions=tuple(map(action, symmetry.actions)), absorbers=(), number=0, reach=Reach())
