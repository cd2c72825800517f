"""Where the boxes and lines of a drawing go.

1. layers    and upright strips in them (`noetherflow.symbolic.drawing_layers`)
2. columns   a tall drawing is cut where the fewest lines cross
3. lines     orthogonal with corners; only in the gap between two layers does a line run aslant

No line runs through a box: a sideways run that would meet one takes the gap between two layers instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import ceil
from typing import Final

import networkx as nx

from noetherflow.symbolic.drawing_layers import Layers

__all__ = ["Box", "Layout", "Line", "Point", "arrange"]

Point = tuple[float, float]

TALLEST: Final = 1900.0  # a drawing taller than this is wrapped; its columns may differ in height by twice LEEWAY
LEEWAY: Final = 0.12
GAP: Final = 17.0
LANE: Final = 9.0
CHANNEL: Final = 20.0
NEAR, FAR = 1.5, 10.5  # px from the middle of a box's side where lines come in (above) and leave (below)


@dataclass(frozen=True, slots=True)
class Box:
    """A node's rectangle."""

    x: float
    y: float
    width: float
    height: float

    @property
    def centre(self) -> float:
        """Its x in the middle."""
        return self.x + self.width / 2

    @property
    def bottom(self) -> float:
        """Its lowest y."""
        return self.y + self.height


@dataclass(frozen=True, slots=True)
class Line:
    """The path of one edge: corners where two runs meet; a run that is neither upright nor level is a smooth transition.

    `past` is set where the line runs beside boxes of its producer's own chain, as a residual connection does.
    """

    source: str
    target: str
    points: tuple[Point, ...]
    past: bool


@dataclass(frozen=True, slots=True)
class Layout:
    """Boxes by node, lines, and the size of the whole."""

    boxes: Mapping[str, Box]
    lines: tuple[Line, ...]
    width: float
    height: float


def arrange(graph: nx.MultiDiGraph, width: float, heights: Mapping[str, float]) -> Layout:
    """Lay out an acyclic graph.

    Parameters
    ----------
    graph : networkx.MultiDiGraph
        Not empty; the order of its nodes settles ties, so equal graphs get equal layouts.
    width : float
        Of every box, in px.
    heights : mapping of node to float
        Of each box, in px; 24 or more leave room for lines at its sides.

    Returns
    -------
    Layout
        Its corner is at (0, 0).

    Examples
    --------
    >>> found = arrange(nx.MultiDiGraph([("x", "f"), ("f", "y"), ("x", "y")]), 100, dict.fromkeys("xfy", 24))
    >>> [found.boxes[n].y for n in "xfy"], len(found.lines)
    ([0.0, 41.0, 82.0], 3)
    """
    return _Placed(_Columns(Layers(graph, width), heights)).layout()


@dataclass
class _Columns:
    """Layers with their heights, and the column that each falls into."""

    of: Layers
    heights: Mapping[str, float]

    @cached_property
    def row_heights(self) -> list[float]:
        """Height of each layer."""
        return [max((self.heights[n] for n in nodes), default=0.0) for nodes in self.of.layers]

    @cached_property
    def column_of(self) -> list[int]:
        """Column of each layer."""
        ends = [sum(self.row_heights[: i + 1]) + GAP * i for i in range(len(self.of.layers))]
        count = ceil(ends[-1] / TALLEST)
        step = ends[-1] / count
        cuts = [self._cut(ends, i * step, LEEWAY * step) for i in range(1, count)]
        return [sum(row > cut for cut in cuts) for row in range(len(self.of.layers))]

    def _cut(self, ends: list[float], wanted: float, leeway: float) -> int:
        """The layer after which to cut: where the fewest lines cross, near a wanted height."""
        nearest = min(abs(end - wanted) for end in ends[:-1])
        near = [row for row, end in enumerate(ends[:-1]) if abs(end - wanted) <= max(leeway, nearest)]
        return min(near, key=lambda row: (len(self.crossing(row)), abs(ends[row] - wanted)))

    def crossing(self, row: int) -> list[tuple[str, float]]:
        """(producer, x) of every line from this layer or above to one below, from right to left."""
        found = {
            (a, self.of.down(a, b) if self.of.rank[a] < row else self.of.start(a, b))
            for a, b in self.of.graph.edges()
            if self.of.rank[a] <= row < self.of.rank[b]
        }
        return sorted(found, key=lambda item: (-item[1], self.of.rank[item[0]], item[0]))


@dataclass
class _Placed:
    """Columns set side by side, and what is drawn in them."""

    columns: _Columns

    def __post_init__(self) -> None:
        self.of, column_of, heights = self.columns.of, self.columns.column_of, self.columns.row_heights
        self.cuts = {row: self.columns.crossing(row) for row in range(len(heights) - 1) if column_of[row] != column_of[row + 1]}
        most = max(map(len, self.cuts.values()), default=0)
        self.turn = most * LANE + (GAP if most else 0)  # room above and below for lines from column to column
        self.tops: list[float] = []
        for row in range(len(heights)):
            fresh = row == 0 or row - 1 in self.cuts
            self.tops.append(self.turn if fresh else self.tops[-1] + heights[row - 1] + GAP)
        self._shift()
        self.boxes = {node: self._box(node) for node in self.of.order}

    def _shift(self) -> None:
        """What is added to x in each column, where each begins, and where the last one ends."""
        self.shift: list[float] = []
        self.left: list[float] = []
        self.right = 0.0
        after = {self.columns.column_of[row]: len(lines) for row, lines in self.cuts.items()}
        for column in range(self.columns.column_of[-1] + 1):
            rows = [row for row, c in enumerate(self.columns.column_of) if c == column]
            inside = [(self.of.place[k], s) for k, s in self.of.strips.items() if s.first <= 2 * rows[-1] + 1 and s.last >= 2 * rows[0]]
            low, high = min(x - s.width / 2 for x, s in inside), max(x + s.width / 2 for x, s in inside)
            self.left.append(self.right + (2 * CHANNEL + LANE * after[column - 1] if column else 0))
            self.shift.append(self.left[-1] - low)
            self.right = self.left[-1] + high - low

    def _x(self, x: float, row: int) -> float:
        return x + self.shift[self.columns.column_of[row]]

    def _end(self, row: int) -> float:
        return self.tops[row] + self.columns.row_heights[row]

    def _box(self, node: str) -> Box:
        row, height = self.of.rank[node], self.columns.heights[node]
        y = self.tops[row] + (self.columns.row_heights[row] - height) / 2
        return Box(self._x(self.of.x_of(node), row) - self.of.width / 2, y, self.of.width, height)

    def layout(self) -> Layout:
        """Boxes and lines."""
        lines = tuple(Line(a, b, tuple(self._points(a, b)), self.of.keeps(a, b)) for a, b in dict.fromkeys(self.of.graph.edges()))
        return Layout(self.boxes, lines, self.right, max(box.bottom for box in self.boxes.values()) + self.turn)

    def _points(self, source: str, target: str) -> Iterator[Point]:
        of, a, b = self.of, self.boxes[source], self.boxes[target]
        first, last = of.rank[source], of.rank[target]
        x = of.start(source, target)
        if of.side_exit(source, target):
            y = (a.y + a.bottom) / 2 + self._aside(source)
            yield (a.x + a.width if self._x(x, first) > a.centre else a.x), y
            yield self._x(x, first), y
        else:
            yield a.centre, a.bottom
        for row in range(first, last):
            ahead = of.down(source, target)
            if row == last - 1 and not of.side_entry(source, target):
                ahead = of.x_of(target)
            yield from self._across(source, row, x, ahead)
            x = ahead
        if of.side_entry(source, target):
            y = (b.y + b.bottom) / 2 - self._aside(target)
            yield self._x(x, last), y
            yield (b.x + b.width if self._x(x, last) > b.centre else b.x), y
        else:
            yield b.centre, b.y

    def _aside(self, node: str) -> float:
        """Distance of a node's level runs from the middle of its layer, different for each node there, so that no two coincide."""
        nodes = self.of.layers[self.of.rank[node]]
        return NEAR + (FAR - NEAR) * (nodes.index(node) + 1) / (len(nodes) + 1)

    def _across(self, source: str, row: int, x: float, ahead: float) -> Iterator[Point]:
        """Past the gap below a layer, aslant when x changes, through the channel where a column ends."""
        here, there = self._x(x, row), self._x(ahead, row + 1)
        if row in self.cuts:
            i, count, column = self.cuts[row].index((source, x)), len(self.cuts[row]), self.columns.column_of[row]
            outer = LANE * (count - 1 - i)  # lines are nested in one another and do not cross
            bottom, top = self._end(row) + GAP * 0.6 + LANE * i, self.turn - GAP * 0.9 - outer
            channel = self.left[column + 1] - CHANNEL - outer
            yield from [(here, bottom), (channel, bottom), (channel, top), (there, top)]
        elif x != ahead:
            yield from [(here, self._end(row)), (there, self.tops[row + 1])]
