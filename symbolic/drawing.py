"""The architecture graph as an SVG, parameters coloured by axis class: equal colours share an index, hence the same families.

1. choose    the operations that an input or a parameter reaches, and what those read; running statistics are left out
2. arrange   boxes and lines (`noetherflow.symbolic.drawing_layout`)
3. colour    axis classes (`noetherflow.symbolic.drawing_colours`)
4. write     one file that stands alone: no script, no font, no address; light or dark as its surroundings
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import networkx as nx

from noetherflow.errors import GraphError
from noetherflow.symbolic.drawing_colours import STYLE, ClassColours
from noetherflow.symbolic.drawing_layout import Box, Line, arrange
from noetherflow.symbolic.drawing_legend import Legend
from noetherflow.symbolic.drawing_marks import CELL_HEIGHT, CELL_WIDTH, cell, number, path, plain, shortened, tail, text, title
from noetherflow.symbolic.graph import ArchitectureGraph
from noetherflow.symbolic.symmetries import Symmetries

__all__ = ["draw_svg"]

WIDTH: Final = 204.0
HEAD: Final = 24.0
ROW: Final = CELL_HEIGHT + 5
PAD: Final = 8.0
MARGIN: Final = 18.0
BETWEEN: Final = 34.0  # graph and legend
NAME_WIDTH: Final = 6.6  # px of a letter of the operation's name, of its module path, of a slot's name: wide rather than narrow
PATH_WIDTH: Final = 5.5
SLOT_WIDTH: Final = 4.7
ENDS: Final = frozenset({"input", "output", "cross_entropy", "mean_square"})
DEFINITIONS: Final = (
    '<defs><marker id="nf-tip" viewBox="0 0 8 8" refX="7.4" refY="4" markerWidth="7" markerHeight="7" markerUnits="userSpaceOnUse" '
    'orient="auto"><path class="tip" d="M0 0.8L7.6 4L0 7.2z"/></marker><pattern id="nf-hatch" width="5" height="5" '
    'patternUnits="userSpaceOnUse" patternTransform="rotate(45)"><path class="hatch" d="M1.2 0V5"/></pattern></defs>'
)


def draw_svg(graph: ArchitectureGraph, symmetries: Symmetries) -> str:
    """Draw a graph with the families that move its parameters.

    Every operation is a box with a strip of cells for each parameter it holds, one cell per axis with the axis size in it, coloured by axis
    class; pale cells have an index that no symmetry acts on. Operations that nothing was let through have a hatched border. Pointing at a
    cell shows which families act on it, and every other cell of its class.

    Parameters
    ----------
    graph : ArchitectureGraph
        Five operations or five hundred; long ones are wrapped into columns.
    symmetries : Symmetries
        Of that graph.

    Returns
    -------
    str
        An ``<svg>`` element of fixed size; equal graphs give equal text.

    Raises
    ------
    GraphError
        If the graph has a cycle.

    Examples
    --------
    >>> graph = ArchitectureGraph()
    >>> _ = graph.add_parameter("w", (2, 3)), graph.add_operation("x", "input", shape=(8, 3))
    >>> _ = graph.add_operation("y", "linear", {"input": "x"}, {"weight": "w"}, shape=(8, 2))
    >>> draw_svg(graph, Symmetries([], {}, {"w": (0, 1)})).count('class="box"')
    2
    """
    if not nx.is_directed_acyclic_graph(graph):
        raise GraphError("A graph with a cycle cannot be drawn in layers. Unroll recurrent connections; graph.validate() shows the cycle.")
    return _Drawing(graph, symmetries).svg()


@dataclass(frozen=True, slots=True)
class _Strip:
    """The cells of one parameter in a box: slot, name, and where they start, from the box's corner."""

    slot: str
    parameter: str
    x: float
    y: float


@dataclass
class _Drawing:
    graph: ArchitectureGraph
    symmetries: Symmetries

    @cached_property
    def shown(self) -> list[str]:
        """Nodes that an input or a parameter reaches, and all that they read, in topological order."""
        moving = {n for n, data in self.graph.nodes(data=True) if data["operation"] == "input" or data["parameters"]}
        for node in self.graph.topological_order():
            if any(producer in moving for producer in self.graph.predecessors(node)):
                moving.add(node)
        read = moving.union(*(nx.ancestors(self.graph, n) for n in moving if not moving.issuperset(self.graph.predecessors(n))))
        return [n for n in self.graph.topological_order() if n in read]

    def _seen(self) -> nx.MultiDiGraph:
        """The shown part, its nodes and edges in an order that does not depend on hashes, as that of a networkx subgraph would."""
        seen = nx.MultiDiGraph()
        seen.add_nodes_from(self.shown)
        seen.add_edges_from((producer, node) for node in self.shown for producer in self.graph.inputs_of(node).values())
        return seen

    @cached_property
    def colours(self) -> ClassColours:
        """Colours, numbered from the top of the drawing down."""
        held = (name for node in self.shown for name in self.graph.nodes[node]["parameters"].values())
        return ClassColours(self.symmetries, list(dict.fromkeys(held)))

    @cached_property
    def strips(self) -> dict[str, list[_Strip]]:
        """Cells of every node's parameters, wrapped within its box."""
        return {node: list(self._strips(self.graph.nodes[node]["parameters"])) for node in self.shown}

    def _strips(self, parameters: dict[str, str]) -> Iterator[_Strip]:
        x, y = PAD, HEAD
        for slot, name in parameters.items():
            width = SLOT_WIDTH * len(slot) + 4 + CELL_WIDTH * max(len(self.graph.parameters[name].shape), 1)
            if x > PAD and x + width > WIDTH - PAD + 2:
                x, y = PAD, y + ROW
            yield _Strip(slot, name, x, y)
            x += width + PAD

    def svg(self) -> str:
        """The whole."""
        legend = Legend(self.symmetries, self.colours)
        if self.shown:
            heights = {node: strips[-1].y + ROW if strips else HEAD for node, strips in self.strips.items()}
            plan = arrange(self._seen(), WIDTH, heights)
            boxes, lines, width, height = plan.boxes, plan.lines, plan.width, plan.height
        else:
            boxes, lines, width, height = {}, (), 0.0, 0.0
        side = legend.drawn(MARGIN + width + BETWEEN, MARGIN, height)
        whole = f"{number(side.right + MARGIN)} {number(MARGIN * 2 + max(height, side.bottom - MARGIN))}"
        across, down = whole.split()
        label = f"Architecture graph: {len(self.shown)} operations, {len(self.symmetries)} families of symmetries"
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" class="nf-graph" role="img" aria-label="{plain(label)}" width="{across}" '
            f'height="{down}" viewBox="0 0 {whole}"><style>{STYLE}{self.colours.rules()}</style>{DEFINITIONS}',
            f'<rect class="paper" width="{across}" height="{down}"/><g transform="translate({number(MARGIN)} {number(MARGIN)})">',
            *map(_line, sorted(lines, key=lambda line: line.past)),
            *(self._box(node, box) for node, box in boxes.items()),
            f"</g>{side.marks}</svg>",
        ]
        return "\n".join(parts)

    def _box(self, node: str, box: Box) -> str:
        data = self.graph.nodes[node]
        kind = "node opaque" if node in self.symmetries.opaque else "node end" if data["operation"] in ENDS else "node"
        name = shortened(data["operation"].replace("_", " "), int((WIDTH - 2 * PAD) / NAME_WIDTH))
        room = int((WIDTH - 2 * PAD - NAME_WIDTH * len(name) - 10) / PATH_WIDTH)
        where = tail(data["module"], room) if room > 3 else ""
        return (
            f'<g class="{kind}" transform="translate({number(box.x)} {number(box.y)})">{title(list(self._facts(node, data)))}'
            f'<rect class="box" width="{number(box.width)}" height="{number(box.height)}" rx="6"/>{text(PAD, 16, name, "op")}'
            + (text(WIDTH - PAD, 15.5, where, "path", "end") if where else "")
            + "".join(map(self._strip, self.strips[node]))
            + "</g>"
        )

    def _strip(self, strip: _Strip) -> str:
        x, shape = strip.x + SLOT_WIDTH * len(strip.slot) + 4, self.graph.parameters[strip.parameter].shape
        cells = [
            f'<g class="cell">{title([self._cell_fact(strip.parameter, axis)])}'
            + cell(x + axis * CELL_WIDTH, strip.y, [self.colours.css(c) for c in self.colours.acted(strip.parameter, axis)], size)
            + "</g>"
            for axis, size in enumerate(shape)
        ]
        if not shape:
            cells = [f'<g class="cell">{title([f"{strip.parameter}: one number"])}{cell(x, strip.y, [], "1")}</g>']
        if any(strip.parameter in s.parameters for s in self.colours.unindexed):
            width = CELL_WIDTH * max(len(shape), 1) - 1
            size = f'width="{number(width + 2)}" height="{number(CELL_HEIGHT + 2)}"'
            cells.append(f'<rect class="all" x="{number(x - 1)}" y="{number(strip.y - 1)}" {size}/>')
        return text(strip.x, strip.y + CELL_HEIGHT - 4, strip.slot, "slot") + "".join(cells)

    def _facts(self, node: str, data: dict[str, Any]) -> Iterator[str]:
        yield data["operation"]
        yield f"node {node}" + (f", module {data['module']}" if data["module"] else "")
        if data["shape"]:
            yield f"shape {_shape(data['shape'])} {data['dtype']}"
        yield from (f"{key} = {value}" for key, value in data["attributes"].items())
        if node in self.symmetries.opaque:
            yield f"opaque, nothing is let through: {self.symmetries.opaque[node]}"
        for slot, name in data["parameters"].items():
            parameter = self.graph.parameters[name]
            frozen = "" if parameter.trainable else ", frozen"
            moved = ", ".join(f"{s.name} ({s.dimension})" for s in self.symmetries.moving(name)) or "no family"
            yield f"{slot}: {name}, {_shape(parameter.shape)}{frozen}, moved by {moved}"

    def _cell_fact(self, parameter: str, axis: int) -> str:
        size = self.graph.parameters[parameter].shape[axis]
        families = {id(s): s for atom in self.colours.acted(parameter, axis) for s in self.colours.families[atom]}
        acting = "".join(f"\n{s.name} (dimension {s.dimension})" for s in families.values())
        return f"{parameter}, axis {axis} of size {size}: " + (f"index of{acting}" if acting else "no family acts on this index")


def _shape(shape: tuple[Any, ...]) -> str:
    return " × ".join(map(str, shape)) or "one number"


def _line(line: Line) -> str:
    return f'<path class="{"line past" if line.past else "line"}" marker-end="url(#nf-tip)" d="{path(line.points)}"/>'
