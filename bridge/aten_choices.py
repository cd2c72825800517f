"""What is kept of an operation that chooses entries by their size: along which axis, and whether it gives the entries or their indices.

No scale and no shift is carried through a choice, so these operations have no name in the vocabulary; permutations are
(`noetherflow.symbolic.choosing`).
"""

from __future__ import annotations

from typing import Any, Final

from noetherflow.bridge.reading import Arguments, shape_of

# Name with overload -> whether the largest comes first, where the call does not say.
CHOOSING: Final = {
    "topk.default": True,
    "sort.default": False,
    "sort.stable": False,
    "argsort.default": False,
    "argmax.default": True,
    "argmin.default": False,
    "max.dim": True,
    "min.dim": False,
}
# What gives indices alone.
INDICES: Final = frozenset({"argsort", "argmax", "argmin"})


def choosing(a: Arguments) -> dict[str, Any]:
    """The attributes of a choice by size, in which order it gives what it chose; none for any other operation.

    A choice over all entries, or one whose order is not said, has none either.
    """
    largest = CHOOSING.get(f"{a.name}.{a.overload}")
    shape = shape_of(a.get("self"))
    if largest is None or a.get("dim") is None or not shape or a.get("sorted") is False:
        return {}
    gives = "indices" if a.name in INDICES or a.index == 1 else "values"
    return {"dim": a["dim"] % len(shape), "largest": bool(a.get("largest", a.get("descending", largest))), "gives": gives}
