"""Which colour an axis of a parameter gets, and the style sheet of a drawing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from noetherflow.symbolic.actions import Index
from noetherflow.symbolic.graph import Size
from noetherflow.symbolic.symmetries import Symmetries, Symmetry

__all__ = ["STYLE", "ClassColours"]

# after Okabe and Ito, and Tol: hues that stay apart for colour-blind readers, neighbours in the list far from one another
HUES: Final = (
    "#0072b2",
    "#e69f00",
    "#009e73",
    "#cc79a7",
    "#56b4e9",
    "#d55e00",
    "#f0e442",
    "#4b3fa0",
    "#88c57f",
    "#8c2d5e",
    "#8a8a2a",
    "#7b4f2a",
)
DARK_INK, LIGHT_INK = "#10141a", "#ffffff"

STYLE: Final = """
.nf-graph { font-family: system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; font-size: 11px; }
.nf-graph text { fill: #1b1f24; stroke: none; } .nf-graph .paper { fill: #fefefe; }
.nf-graph .box { fill: #ffffff; stroke: #8d96a0; stroke-width: 1; } .nf-graph .end .box { fill: #e9edf2; }
.nf-graph .opaque .box { stroke: url(#nf-hatch); stroke-width: 5; } .nf-graph .hatch { stroke: #c2410c; stroke-width: 2.4; }
.nf-graph .op { font-weight: 600; } .nf-graph .path, .nf-graph .slot, .nf-graph .muted { fill: #626a73; }
.nf-graph .path { font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size: 9px; }
.nf-graph .slot { font-size: 8.5px; } .nf-graph .line { fill: none; stroke: #7d8791; stroke-width: 1.4; }
.nf-graph .past { stroke: #4d5761; stroke-width: 1.8; } .nf-graph .tip { fill: #5b656f; } .nf-graph .head { font-weight: 600; }
.nf-graph .none { fill: #e6e9ed; } .nf-graph .cell text { font-size: 8.5px; text-anchor: middle; }
.nf-graph .all { fill: none; stroke: #1b1f24; stroke-width: 1.2; } .nf-graph .cell text.void { fill: #6b737c; }
@media (prefers-color-scheme: dark) {
.nf-graph text { fill: #e4e7eb; } .nf-graph .paper { fill: #1c2026; } .nf-graph .box { fill: #262b33; stroke: #6b747f; }
.nf-graph .end .box { fill: #343b45; } .nf-graph .hatch { stroke: #f0834a; }
.nf-graph .path, .nf-graph .slot, .nf-graph .muted { fill: #9aa4af; } .nf-graph .line { stroke: #87919c; }
.nf-graph .past { stroke: #b4bdc7; } .nf-graph .tip { fill: #a3acb6; } .nf-graph .none { fill: #3a414b; }
.nf-graph .all { stroke: #e4e7eb; } .nf-graph .cell text.void { fill: #9aa4af; } }
"""


@dataclass
class ClassColours:
    """The axis classes that a symmetry acts on, numbered in the order in which they are first drawn.

    Parameters
    ----------
    symmetries : Symmetries
    parameters : sequence of str
        In the order in which they are drawn.

    Attributes
    ----------
    families : dict
        Class -> the symmetries that act on it.
    number : dict
        Class -> its number.
    sizes : dict
        Class -> the size of its index.
    unindexed : tuple of Symmetry
        Families without an index: one generator that moves its parameters as a whole.
    """

    symmetries: Symmetries
    parameters: Sequence[str]
    families: dict[int, tuple[Symmetry, ...]] = field(init=False)
    number: dict[int, int] = field(init=False)

    def __post_init__(self) -> None:
        members: dict[int, dict[int, Symmetry]] = {}
        self.sizes: dict[int, Size] = {}
        self._on: dict[tuple[str, int], dict[int, None]] = {}
        for position, symmetry in enumerate(self.symmetries):
            for name, index in _touched(symmetry):
                members.setdefault(index.atom, {})[position] = symmetry
                self.sizes[index.atom] = index.size
                self._on.setdefault((name, index.axis), {})[index.atom] = None
        self.unindexed = tuple(s for s in self.symmetries if not any(_touched(s)))
        self.families = {atom: tuple(found.values()) for atom, found in members.items()}
        seen = [atom for name in self.parameters for axis in range(self.axes(name)) for atom in self.acted(name, axis)]
        self.number = {atom: n for n, atom in enumerate(dict.fromkeys([*seen, *self.families]))}

    def axes(self, parameter: str) -> int:
        """Number of axes of a parameter, as far as classes are known."""
        return len(self.symmetries.axis_classes.get(parameter, ()))

    def acted(self, parameter: str, axis: int) -> tuple[int, ...]:
        """Classes on an axis that a symmetry acts on: its own, then those of its further blocks."""
        classes = self.symmetries.axis_classes.get(parameter, ())
        own = [classes[axis]] if axis < len(classes) and classes[axis] in self.families else []
        return tuple(dict.fromkeys([*own, *self._on.get((parameter, axis), ())]))

    def css(self, atom: int) -> str:
        """The style class of an axis class; one that no symmetry acts on has none of its own."""
        return f"k{self.number[atom]}" if atom in self.number else "none"

    def rules(self) -> str:
        """Fills, and a highlight of every cell of a class while one of them is pointed at."""
        out = []
        for n in self.number.values():
            fill = colour(n)
            out.append(
                f".nf-graph .k{n} {{ fill: {fill}; }} .nf-graph text.on{n} {{ fill: {ink_on(fill)}; }} "
                f".nf-graph:has(.k{n}:hover) .cell rect:not(.k{n}) {{ opacity: .2; }}"
            )
        return "\n".join(out)


def _touched(symmetry: Symmetry) -> Iterator[tuple[str, Index]]:
    """(parameter, index) wherever the family's coefficients run over an index."""
    for action in symmetry.actions:
        for place in action.places:
            yield action.parameter, action.patch.indices[place]


def colour(number: int) -> str:
    """The colour of a class by its number: twelve hues, then the same ones lighter or darker, then from the start.

    Examples
    --------
    >>> colour(0), colour(24), colour(12) != colour(0)
    ('#0072b2', '#0072b2', True)
    """
    hue = HUES[number % len(HUES)]
    if number // len(HUES) % 2 == 0:
        return hue
    towards, share = (0.0, 0.4) if luminance(hue) > 0.3 else (255.0, 0.58)
    return "#" + "".join(f"{round(value + share * (towards - value)):02x}" for value in bytes.fromhex(hue[1:]))


def luminance(colour: str) -> float:
    """Relative luminance of '#rrggbb', between 0 and 1 (WCAG 2)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in bytes.fromhex(colour[1:]))]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def ink_on(fill: str) -> str:
    """The ink, dark or light, that reads better on a fill."""
    return DARK_INK if (luminance(fill) + 0.05) ** 2 > 0.05 * 1.05 else LIGHT_INK
