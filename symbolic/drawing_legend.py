"""The legend of a drawing: every family by the colour of the index that it acts on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from noetherflow.symbolic.drawing_colours import ClassColours
from noetherflow.symbolic.drawing_marks import CELL_HEIGHT, CELL_WIDTH, cell, number, plain, tail, text, title
from noetherflow.symbolic.symmetries import Symmetries, Symmetry

__all__ = ["Legend", "Side"]

WIDTH: Final = 318.0
COLUMN_GAP: Final = 26.0
LINE: Final = 15.0
ENTRY_GAP: Final = 4.0
LEAST_HEIGHT: Final = 520.0
HEAD: Final = 44.0
NAME_LETTERS: Final = 38


@dataclass(frozen=True, slots=True)
class Side:
    """A drawn legend and where it ends."""

    marks: str
    right: float
    bottom: float


@dataclass(frozen=True, slots=True)
class _Entry:
    """A swatch, the lines beside it, and what pointing at it tells."""

    fill: str
    size: object
    lines: tuple[str, ...]
    tip: str

    @property
    def height(self) -> float:
        return LINE * len(self.lines) + ENTRY_GAP


@dataclass(frozen=True, slots=True)
class Legend:
    """What the colours of a drawing mean."""

    symmetries: Symmetries
    colours: ClassColours

    def drawn(self, x: float, y: float, height: float) -> Side:
        """Draw it from a corner on, in as many columns as a height asks for.

        Parameters
        ----------
        x, y : float
            Upper left corner, in px.
        height : float
            Of the drawing beside it, in px.

        Returns
        -------
        Side
        """
        limit = y + max(height, LEAST_HEIGHT)
        marks, across, down, bottom = [self._head(x, y)], x, y + HEAD, y + HEAD
        for entry in self._entries():
            if down + entry.height > limit and down > y + HEAD:
                across, down = across + WIDTH + COLUMN_GAP, y + HEAD
            marks.append(_drawn(entry, across, down))
            down += entry.height
            bottom = max(bottom, down)
        return Side("\n".join(marks), across + WIDTH, bottom)

    def _head(self, x: float, y: float) -> str:
        families, generators = len(self.symmetries), self.symmetries.dimension
        count = f"{families} {'family' if families == 1 else 'families'}, dimension {_amount(generators)}"
        return text(x, y + 12, count, "head") + text(x, y + 29, "colour: axis class · family · dimension", "muted")

    def _entries(self) -> Iterator[_Entry]:
        for atom, families in sorted(self.colours.families.items(), key=lambda item: self.colours.number[item[0]]):
            yield _Entry(self.colours.css(atom), self.colours.sizes[atom], tuple(map(_family, families)), _told(families))
        unindexed = self.colours.unindexed
        if unindexed:
            yield _Entry("all", "", tuple(map(_family, unindexed)), "moves the outlined parameters as a whole\n" + _told(unindexed))
        plain_axes = "an index that no family acts on"
        yield _Entry("none", "", (_muted(plain_axes),), plain_axes)
        if self.symmetries.opaque:
            names = "\n".join(f"{node}: {why}" for node, why in self.symmetries.opaque.items())
            yield _Entry("opaque", "", (_muted(f"opaque: {len(self.symmetries.opaque)} let nothing through"),), names)


def _drawn(entry: _Entry, x: float, y: float) -> str:
    if entry.fill in ("all", "opaque"):
        kind = "all" if entry.fill == "all" else "box"
        swatch = f'<rect class="{kind}" x="{number(x + 1)}" y="{number(y + 1)}" width="{CELL_WIDTH - 3:g}" height="{CELL_HEIGHT - 2:g}"/>'
    else:
        swatch = cell(x, y, [entry.fill], entry.size)
    lines = "".join(_placed(line, x, y + LINE * i + 11) for i, line in enumerate(entry.lines))
    return f'<g class="{"opaque" if entry.fill == "opaque" else "cell"}">{title([entry.tip])}{swatch}</g>{lines}'


def _family(s: Symmetry) -> str:
    kind, name = plain(s.kind), plain(tail(s.name.removeprefix(s.kind).strip(), NAME_LETTERS - len(s.kind)))
    return f'<tspan class="muted">{kind}</tspan> {name}\0{plain(_amount(s.dimension))}'


def _muted(words: str) -> str:
    return f'<tspan class="muted">{plain(words)}</tspan>\0'


def _placed(line: str, x: float, y: float) -> str:
    words, _, dimension = line.partition("\0")
    left = f'<text x="{number(x + CELL_WIDTH + 7)}" y="{number(y)}">{words}</text>'
    return left + (f'<text x="{number(x + WIDTH)}" y="{number(y)}" text-anchor="end">{dimension}</text>' if dimension else "")


def _told(families: Sequence[Symmetry]) -> str:
    return "\n".join(f"{s.name}: {s.kind}, dimension {s.dimension}, moves {', '.join(s.parameters)}" for s in families)


def _amount(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)
