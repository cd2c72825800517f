"""The drawing of an architecture graph: what it says, in which colours, and that it stands alone."""

import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import pytest
import sympy as sp
import torch

from noetherflow.bridge.trace import trace
from noetherflow.errors import GraphError
from noetherflow.numeric import models
from noetherflow.symbolic.drawing import draw_svg
from noetherflow.symbolic.drawing_colours import HUES, colour, ink_on, luminance
from noetherflow.symbolic.gauge import symmetries
from noetherflow.symbolic.graph import ArchitectureGraph
from noetherflow.symbolic.symmetries import Symmetries

SVG = "{http://www.w3.org/2000/svg}"
TALLEST_READABLE = 2500.0
LEAST_CONTRAST = 4.5  # WCAG 2, level AA


def perceptron() -> ArchitectureGraph:
    graph = ArchitectureGraph()
    for name, shape in (("w1", (5, 3)), ("b1", (5,)), ("w2", (2, 5)), ("b2", (2,))):
        graph.add_parameter(name, shape)
    graph.add_operation("x", "input", shape=(8, 3))
    graph.add_operation("h", "linear", {"input": "x"}, {"weight": "w1", "bias": "b1"}, shape=(8, 5), module="layers.0")
    graph.add_operation("a", "relu", {"input": "h"}, shape=(8, 5), module="layers.1")
    graph.add_operation("y", "linear", {"input": "a"}, {"weight": "w2", "bias": "b2"}, shape=(8, 2), module="layers.2")
    graph.add_operation("loss", "cross_entropy", {"input": "y"})
    return graph


def drawn(graph: ArchitectureGraph) -> ElementTree.Element:
    return ElementTree.fromstring(draw_svg(graph, symmetries(graph)))


def lines_of(element: ElementTree.Element) -> list[str]:
    """The lines of an element's tooltip."""
    return (element.findtext(SVG + "title") or "").splitlines()


def kinds(element: ElementTree.Element) -> list[str]:
    return element.get("class", "").split()


def of_class(root: ElementTree.Element, tag: str, kind: str) -> list[ElementTree.Element]:
    return [element for element in root.iter(SVG + tag) if kind in kinds(element)]


def box_of(root: ElementTree.Element, start: str) -> ElementTree.Element:
    """The box of the operation whose tooltip has a line that starts so."""
    found = [box for box in of_class(root, "g", "node") if any(line.startswith(start) for line in lines_of(box))]
    assert len(found) == 1, start
    return found[0]


def fills(box: ElementTree.Element) -> list[list[str]]:
    """Style classes of each cell of a box, slice by slice."""
    return [[rect.get("class", "") for rect in cell.iter(SVG + "rect")] for cell in of_class(box, "g", "cell")]


def words(root: ElementTree.Element) -> list[str]:
    return ["".join(element.itertext()) for element in root.iter(SVG + "text")]


def test_the_file_stands_alone_and_has_a_size() -> None:
    svg = draw_svg(graph := perceptron(), symmetries(graph))
    root = ElementTree.fromstring(svg)
    assert root.tag == SVG + "svg"
    assert root.get("viewBox") == f"0 0 {root.get('width')} {root.get('height')}"
    assert not re.search(r"<script|<image|<use|@import|href|\son\w+=", svg)
    assert re.findall(r"url\(([^)]*)\)", svg)
    assert all(place.startswith("#nf-") for place in re.findall(r"url\(([^)]*)\)", svg))
    assert re.findall(r"https?://[^\"]*", svg) == ["http://www.w3.org/2000/svg"]
    assert "prefers-color-scheme: dark" in svg


def test_axes_that_share_an_index_share_a_colour() -> None:
    root = drawn(perceptron())
    hidden, outer = fills(box_of(root, "weight: w1")), fills(box_of(root, "weight: w2"))
    assert hidden == [["k0"], ["none"], ["k0"]]
    assert outer == [["none"], ["k0"], ["none"]]


def test_another_wiring_has_other_colours() -> None:
    graph = ArchitectureGraph()
    for name, shape in (("w1", (5, 3)), ("w2", (5, 5)), ("w3", (2, 5))):
        graph.add_parameter(name, shape)
    graph.add_operation("x", "input", shape=(8, 3))
    for node, before, weight, width in (("h", "x", "w1", 5), ("k", "a", "w2", 5), ("y", "b", "w3", 2)):
        graph.add_operation(node, "linear", {"input": before}, {"weight": weight}, shape=(8, width))
        if node != "y":
            graph.add_operation({"h": "a", "k": "b"}[node], "relu", {"input": node}, shape=(8, width))
    root = drawn(graph)
    assert [fills(box_of(root, f"weight: w{i}")) for i in (1, 2, 3)] == [[["k0"], ["none"]], [["k1"], ["k0"]], [["none"], ["k1"]]]


def test_an_axis_of_several_blocks_shows_them_all() -> None:
    graph = ArchitectureGraph()
    for name, shape in (("w1", (4, 3)), ("w2", (5, 3)), ("w3", (2, 9))):
        graph.add_parameter(name, shape)
    graph.add_operation("x", "input", shape=(8, 3))
    for i, width in ((1, 4), (2, 5)):
        graph.add_operation(f"h{i}", "linear", {"input": "x"}, {"weight": f"w{i}"}, shape=(8, width))
        graph.add_operation(f"a{i}", "relu", {"input": f"h{i}"}, shape=(8, width))
    graph.add_operation("c", "concatenate", {"0": "a1", "1": "a2"}, shape=(8, 9), dim=-1)
    graph.add_operation("y", "linear", {"input": "c"}, {"weight": "w3"}, shape=(8, 2))
    root = drawn(graph)
    assert fills(box_of(root, "weight: w3")) == [["none"], ["k0", "k1"]]


def test_the_legend_names_every_family_with_its_dimension() -> None:
    graph = perceptron()
    found = symmetries(graph)
    root = drawn(graph)
    shown = words(root)
    assert len(found) > 2
    for family in found:
        at = shown.index(family.name)
        assert shown[at + 1] == f"{family.dimension:,}"
    tips = "\n".join(element.text or "" for element in root.iter(SVG + "title"))
    assert all(f"{family.name}: {family.kind}, dimension {family.dimension}, moves " in tips for family in found)


def test_parameters_moved_as_a_whole_are_outlined() -> None:
    graph = perceptron()
    (whole,) = [s for s in symmetries(graph) if not s.indices]
    root = drawn(graph)
    assert whole.parameters == ("b2",)
    assert len(of_class(box_of(root, "weight: w2"), "rect", "all")) == 1
    assert not of_class(box_of(root, "weight: w1"), "rect", "all")


def test_a_tooltip_tells_shape_attributes_parameters_and_their_families() -> None:
    graph = perceptron()
    graph.nodes["a"]["attributes"]["slope"] = 0.25
    root = drawn(graph)
    told = lines_of(box_of(root, "node h"))
    assert told[:3] == ["linear", "node h, module layers.0", "shape 8 × 5 float32"]
    assert "weight: w1, 5 × 3, moved by rescale w1 +2 (5)" in told
    assert "slope = 0.25" in lines_of(box_of(root, "node a"))
    first, second, *_ = ("\n".join(lines_of(cell)) for cell in of_class(box_of(root, "node h"), "g", "cell"))
    assert first == "w1, axis 0 of size 5: index of\nrescale w1 +2 (dimension 5)\ntranslation w2 (dimension 5)"
    assert second == "w1, axis 1 of size 3: no family acts on this index"


def test_running_statistics_are_left_out_and_what_is_read_stays() -> None:
    graph = perceptron()
    graph.add_operation("running_mean", "constant", shape=(5,))
    graph.add_operation("tracked", "constant")
    graph.add_operation("one", "constant")
    graph.add_operation("counted", "add", {"input": "tracked", "other": "one"})
    graph.add_operation("offset", "constant", shape=(8, 2))
    graph.add_operation("shifted", "add", {"input": "y", "other": "offset"}, shape=(8, 2))
    root = drawn(graph)
    nodes = {lines_of(box)[1].removeprefix("node ").split(",")[0] for box in of_class(root, "g", "node")}
    assert nodes == {"x", "h", "a", "y", "loss", "offset", "shifted"}


def test_opaque_operations_are_hatched_and_say_why() -> None:
    graph = perceptron()
    graph.add_operation("odd", "aten.fft", {"0": "a"}, shape=(8, 5))
    graph.add_operation("out", "output", {"0": "odd"})
    root = drawn(graph)
    assert [lines_of(box)[0] for box in of_class(root, "g", "node") if "opaque" in kinds(box)] == ["aten.fft"]
    assert "opaque, nothing is let through: no gauge rule for 'aten.fft'" in lines_of(box_of(root, "node odd"))
    assert ".opaque .box { stroke: url(#nf-hatch)" in draw_svg(graph, symmetries(graph))


def test_names_are_text_whatever_they_hold() -> None:
    graph = ArchitectureGraph()
    nasty = '</text><script>alert("&\x01\x00")</script>'
    graph.add_parameter(nasty, (2, 3))
    graph.add_operation("x", "input", shape=(8, 3))
    graph.add_operation(nasty, nasty, {"input": "x"}, {nasty: nasty}, shape=(8, 2), module=nasty, **{"why": nasty})
    svg = draw_svg(graph, symmetries(graph))
    root = ElementTree.fromstring(svg)
    assert not list(root.iter(SVG + "script"))
    assert lines_of(box_of(root, "node </text>"))[0] == nasty.replace("\x01", "\ufffd").replace("\x00", "\ufffd")


def test_long_names_are_cut_to_fit_their_box() -> None:
    graph = ArchitectureGraph()
    graph.add_operation("x", "input", shape=(8, 3), module="a" * 300)
    graph.add_operation("y", "aten." + "b" * 300, {"input": "x"}, shape=(8, 3), module=".".join(["block"] * 60))
    graph.add_operation("z", "relu", {"input": "y"}, shape=(8, 3), module="encoder.stages.10.blocks.3.attention.query")
    shown = words(drawn(graph))
    assert max(map(len, shown)) < 50
    assert any(word.startswith("…") and word.endswith("attention.query") for word in shown)


def test_sizes_may_be_symbols_and_symmetries_may_be_missing() -> None:
    n = sp.Symbol("n", positive=True, integer=True)
    graph = ArchitectureGraph()
    graph.add_parameter("w1", (n, 3))
    graph.add_parameter("w2", (2, n))
    graph.add_operation("x", "input", shape=(8, 3))
    graph.add_operation("h", "linear", {"input": "x"}, {"weight": "w1"}, shape=(8, n))
    graph.add_operation("a", "relu", {"input": "h"}, shape=(8, n))
    graph.add_operation("y", "linear", {"input": "a"}, {"weight": "w2"}, shape=(8, 2))
    assert "n" in words(drawn(graph))
    bare = ElementTree.fromstring(draw_svg(graph, Symmetries([], {}, {})))
    assert fills(box_of(bare, "weight: w1")) == [["none"], ["none"]]


def test_a_graph_of_nothing_but_constants_is_an_empty_drawing() -> None:
    graph = ArchitectureGraph()
    graph.add_operation("c", "constant")
    root = ElementTree.fromstring(draw_svg(graph, Symmetries([], {}, {})))
    assert not of_class(root, "g", "node")


def test_a_cycle_is_refused() -> None:
    graph = perceptron()
    graph.add_edge("y", "h", key="again", shape=(8, 2), dtype="float32")
    with pytest.raises(GraphError, match="cycle"):
        draw_svg(graph, Symmetries([], {}, {}))


def test_residual_network_is_drawn_whole() -> None:
    with torch.device("meta"):
        graph = trace(models.build("resnet18"), torch.zeros(4, 1, 28, 28), loss="cross_entropy")
    root = drawn(graph)
    boxes = of_class(root, "g", "node")
    operations = [lines_of(box)[0] for box in boxes]
    assert len(graph) > 65
    assert [operations.count(name) for name in ("convolution", "batch_norm", "add", "constant")] == [20, 20, 8, 0]
    assert len(of_class(root, "path", "past")) == 5  # of eight blocks three have a convolution beside them instead
    assert float(root.get("height", "inf")) <= TALLEST_READABLE
    cells = {fill for box in boxes for cell in fills(box) for fill in cell}
    assert len(cells - {"none", "all"}) == len(re.findall(r"\.k\d+ \{ fill", root.findtext(SVG + "style") or ""))


def test_the_text_is_the_same_whatever_the_hash_seed() -> None:
    code = (
        "from noetherflow.symbolic.drawing_layout import arrange; import networkx as nx, random; r = random.Random(3);"
        "from noetherflow.symbolic.drawing import draw_svg; from noetherflow.symbolic.gauge import symmetries;"
        "from noetherflow.symbolic.graph import ArchitectureGraph; g = ArchitectureGraph();"
        "g.add_operation('n0', 'input', shape=(2, 4)); [g.add_parameter(f'w{i}', (4, 4)) for i in range(1, 40)];"
        "[g.add_operation(f'n{i}', 'linear', {'input': f'n{r.randrange(max(0, i - 4), i)}'}, {'weight': f'w{i}'}, shape=(2, 4))"
        " if i % 3 else g.add_operation(f'n{i}', 'add', {'input': f'n{i - 1}', 'other': f'n{r.randrange(i)}'}, shape=(2, 4))"
        " for i in range(1, 40)]; [g.add_operation(f'c{i}', 'constant') for i in range(60)]; print(draw_svg(g, symmetries(g)))"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2")
    ]
    assert runs[0] == runs[1]
    assert runs[0].count("<path") > 50


def test_numbers_can_be_read_on_every_colour() -> None:
    fills = [colour(number) for number in range(2 * len(HUES))]
    assert len(set(fills)) == len(fills)
    for fill in fills:
        high, low = sorted((luminance(fill), luminance(ink_on(fill))), reverse=True)
        assert (high + 0.05) / (low + 0.05) >= LEAST_CONTRAST
