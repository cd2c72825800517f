"""Where a drawing puts boxes and lines: apart, downwards, and lines never through boxes."""

import random
from collections.abc import Iterable, Iterator
from itertools import combinations, pairwise

import networkx as nx
import pytest

from noetherflow.symbolic.drawing_layout import Box, Layout, Line, arrange

WIDTH = 200.0
TALLEST_READABLE = 2500.0


def graph_of(edges: Iterable[tuple[object, object]]) -> nx.MultiDiGraph:
    """A graph whose nodes are named after what the edges join."""
    return nx.MultiDiGraph([(str(a), str(b)) for a, b in edges])


def long_chain(length: int) -> nx.MultiDiGraph:
    return graph_of(pairwise(range(length)))


def random_graph(seed: int) -> nx.MultiDiGraph:
    """Mostly a chain of blocks, as networks are, with side branches, skips, joins and late inputs."""
    rng = random.Random(seed)
    graph = nx.MultiDiGraph()
    count = rng.randrange(2, 90)
    for node in range(count):
        graph.add_node(str(node))
        if node and rng.random() < 0.95:
            graph.add_edge(str(max(0, node - rng.choice((1, 1, 1, 2, 3)))), str(node))
        for _ in range(rng.choice((0, 0, 0, 1, 1, 2))):
            if node:
                graph.add_edge(str(rng.randrange(node)), str(node))
    return graph


def laid_out(graph: nx.MultiDiGraph, seed: int = 0) -> Layout:
    rng = random.Random(seed)
    return arrange(graph, WIDTH, {node: rng.choice((24.0, 43.0, 62.0)) for node in graph})


def meets(box: Box, x: tuple[float, float], y: tuple[float, float], slack: float = 0.5) -> bool:
    inside_x = max(x) > box.x + slack and min(x) < box.x + box.width - slack
    return inside_x and max(y) > box.y + slack and min(y) < box.bottom - slack


def overlaps(layout: Layout) -> list[tuple[str, str]]:
    return [
        (a, b)
        for (a, one), (b, two) in combinations(layout.boxes.items(), 2)
        if meets(one, (two.x, two.x + two.width), (two.y, two.bottom), slack=0)
    ]


def hits(layout: Layout) -> Iterator[tuple[str, str, str]]:
    """(source, target, node) wherever a run of a line meets a box; a run that is aslant counts as its whole rectangle."""
    for line in layout.lines:
        for (x1, y1), (x2, y2) in pairwise(line.points):
            for node, box in layout.boxes.items():
                if meets(box, (x1, x2), (y1, y2)):
                    yield line.source, line.target, node


def shared(layout: Layout) -> Iterator[tuple[Line, Line]]:
    """Pairs of lines with different ends of which two upright or two level runs lie on one another."""
    for axis in (0, 1):
        runs = [
            (a[axis], *sorted((a[1 - axis], b[1 - axis])), line)
            for line in layout.lines
            for a, b in pairwise(line.points)
            if a[axis] == b[axis] and a != b
        ]
        for (at, start, end, one), (other, begin, stop, two) in combinations(runs, 2):
            apart = one.source != two.source and one.target != two.target
            if apart and abs(other - at) < 0.5 and min(end, stop) - max(start, begin) > 1:
                yield one, two


def on_edge(box: Box, point: tuple[float, float]) -> bool:
    x, y = point
    at_side = x in (box.x, box.x + box.width) and box.y < y < box.bottom
    return at_side or (y in (box.y, box.bottom) and box.x < x < box.x + box.width)


CASES = {
    "chain": long_chain(300),
    "one": nx.MultiDiGraph({"0": {}}),
    "apart": graph_of([(0, 1), (2, 3), (3, 4)]),
    "dense": graph_of((a, b) for b in range(24) for a in range(b)),
    "wide": graph_of(e for branch in range(1, 17) for e in ((0, branch), (branch, 17))),
    **{f"random {seed}": random_graph(seed) for seed in range(60)},
}


@pytest.mark.parametrize("graph", CASES.values(), ids=CASES)
def test_boxes_stay_apart_and_no_line_runs_through_one(graph: nx.MultiDiGraph) -> None:
    layout = laid_out(graph)
    assert set(layout.boxes) == set(graph)
    assert not overlaps(layout)
    assert not list(hits(layout))


@pytest.mark.parametrize("graph", CASES.values(), ids=CASES)
def test_every_edge_is_a_line_from_the_border_of_one_box_to_that_of_the_other(graph: nx.MultiDiGraph) -> None:
    layout = laid_out(graph)
    assert {(line.source, line.target) for line in layout.lines} == set(graph.edges())
    for line in layout.lines:
        assert on_edge(layout.boxes[line.source], line.points[0])
        assert on_edge(layout.boxes[line.target], line.points[-1])
        xs, ys = zip(*line.points, strict=True)
        assert 0 <= min(xs) <= max(xs) <= layout.width
        assert 0 <= min(ys) <= max(ys) <= layout.height


@pytest.mark.parametrize("graph", CASES.values(), ids=CASES)
def test_within_a_column_everything_runs_down(graph: nx.MultiDiGraph) -> None:
    layout = laid_out(graph)
    for source, target in graph.edges():
        a, b = layout.boxes[source], layout.boxes[target]
        assert a.bottom < b.y or a.x + a.width < b.x


@pytest.mark.parametrize("graph", CASES.values(), ids=CASES)
def test_lines_with_neither_end_in_common_never_run_along_one_another(graph: nx.MultiDiGraph) -> None:
    assert not list(shared(laid_out(graph)))


def test_the_checks_for_overlaps_can_fail() -> None:
    layout = laid_out(graph_of([(0, 1), (1, 2), (0, 2)]))
    a, b = layout.boxes["0"], layout.boxes["2"]
    straight = Line("0", "2", ((a.centre, a.bottom), (b.centre, b.y)), past=True)
    assert list(hits(Layout(layout.boxes, (straight,), layout.width, layout.height))) == [("0", "2", "1")]
    beside = Line("a", "b", ((0, 5), (0, 90)), past=False), Line("c", "d", ((0.1, 60), (0.1, 200)), past=False)
    assert len(list(shared(Layout({}, beside, 0, 0)))) == 1
    assert overlaps(Layout({"0": a, "1": a}, (), 0, 0)) == [("0", "1")]


def test_a_residual_connection_goes_around() -> None:
    layout = laid_out(graph_of([(0, 1), (1, 2), (2, 3), (0, 3)]))
    around = next(line for line in layout.lines if (line.source, line.target) == ("0", "3"))
    assert around.past
    assert max(x for x, _ in around.points) > max(box.x + box.width for box in layout.boxes.values())
    assert not any(line.past for line in layout.lines if line is not around)


def test_the_longest_path_is_straight_and_a_late_input_stands_beside_its_consumer() -> None:
    layout = laid_out(graph_of([(0, 1), (1, 2), (2, 3), (3, 4), ("mask", 4), (1, "side"), ("side", 4)]))
    assert len({layout.boxes[node].x for node in "01234"}) == 1
    assert layout.boxes["mask"].y + layout.boxes["mask"].height / 2 == layout.boxes["3"].y + layout.boxes["3"].height / 2


@pytest.mark.parametrize("length", [30, 100, 400])
def test_a_long_graph_is_wrapped_into_columns(length: int) -> None:
    layout = laid_out(long_chain(length))
    columns = {box.x for box in layout.boxes.values()}
    assert layout.height <= TALLEST_READABLE
    assert (len(columns) > 1) == (length > 30)
    assert layout.width < TALLEST_READABLE * len(columns) / 2


def test_a_column_ends_where_few_lines_cross() -> None:
    blocks = [e for k in range(0, 80, 4) for e in [*pairwise(range(k, k + 5)), (k, k + 2), (k, k + 4), (k + 1, k + 4)]]
    layout = laid_out(graph_of(blocks))
    left = min(box.x for box in layout.boxes.values())
    last = max(int(node) for node, box in layout.boxes.items() if box.x == left)
    assert last < 80
    assert last % 4 == 0
