"""The marks an SVG drawing is made of, as text: escaped, rounded to a tenth of a pixel, the same each time."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from itertools import pairwise
from math import hypot
from typing import Final

from noetherflow.symbolic.drawing_layout import Point

__all__ = ["CELL_HEIGHT", "CELL_WIDTH", "cell", "number", "path", "plain", "shortened", "tail", "text", "title"]

CELL_WIDTH: Final = 23.0
CELL_HEIGHT: Final = 14.0
RADIUS: Final = 9.0
NOT_XML: Final = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def plain(value: object) -> str:
    """Any value as XML character data, also inside quotes.

    Examples
    --------
    >>> plain('<a & "b">')
    '&lt;a &amp; &quot;b&quot;&gt;'
    """
    return escape(NOT_XML.sub("\ufffd", str(value)))


def number(value: float) -> str:
    """A length in px, to a tenth."""
    return f"{round(value, 1) + 0.0:g}" if abs(value) < 1e5 else f"{value:.0f}"


def title(lines: Sequence[str]) -> str:
    """A tooltip."""
    return f"<title>{plain(chr(10).join(lines))}</title>"


def text(x: float, y: float, content: str, kind: str = "", anchor: str = "") -> str:
    """One line of text on its baseline."""
    style = (f' class="{kind}"' if kind else "") + (f' text-anchor="{anchor}"' if anchor else "")
    return f'<text x="{number(x)}" y="{number(y)}"{style}>{plain(content)}</text>'


def shortened(content: str, length: int) -> str:
    """The beginning, with an ellipsis where something was cut off."""
    return content if len(content) <= length else content[: max(length - 1, 0)].rstrip() + "…"


def tail(content: str, length: int) -> str:
    """The end of a dotted path, cut at a dot where one is near.

    Examples
    --------
    >>> tail("encoder.blocks.11.attention.query", 20)
    '…11.attention.query'
    """
    if len(content) <= length:
        return content
    kept = content[len(content) - max(length - 1, 0) :]
    head, dot, rest = kept.partition(".")
    return "…" + (rest if dot and len(head) <= length // 2 else kept)


def cell(x: float, y: float, fills: Sequence[str], size: object = "") -> str:
    """One axis of a parameter: a rectangle with a slice for each style class of fill, or with the axis size in it if there is one."""
    width, kinds = CELL_WIDTH - 1, fills or ["none"]
    step = width / len(kinds)
    slices = "".join(
        f'<rect class="{kind}" x="{number(x + i * step)}" y="{number(y)}" width="{number(step)}" height="{number(CELL_HEIGHT)}"/>'
        for i, kind in enumerate(kinds)
    )
    if size == "" or len(kinds) > 1:  # a number across several colours could not be read; it is in the tooltip
        return slices
    ink = "void" if kinds == ["none"] else kinds[0].replace("k", "on")
    return slices + text(x + width / 2, y + CELL_HEIGHT - 4, _size(size), ink)


def path(points: Sequence[Point]) -> str:
    """The data of a path through points: corners rounded, runs that are aslant as curves with upright ends."""
    kept = [p for p, before in zip(points, [None, *points], strict=False) if p != before]
    out = [f"M{_pair(kept[0])}"]
    for i, (a, b) in enumerate(pairwise(kept)):
        if a[0] != b[0] and a[1] != b[1]:
            middle = (a[1] + b[1]) / 2
            out.append(f"C{_pair((a[0], middle))} {_pair((b[0], middle))} {_pair(b)}")
        elif i + 2 < len(kept) and _turns(a, b, kept[i + 2]):
            r = min(RADIUS, _distance(a, b) / 2, _distance(b, kept[i + 2]) / 2)
            out.append(f"L{_pair(_towards(b, a, r))}Q{_pair(b)} {_pair(_towards(b, kept[i + 2], r))}")
        else:
            out.append(f"L{_pair(b)}")
    return "".join(out)


def _size(size: object) -> str:
    return f"{size // 1000}k" if isinstance(size, int) and size >= 10_000 else shortened(str(size), 4)


def _turns(a: Point, b: Point, c: Point) -> bool:
    """Whether an upright run meets a level one at b."""
    return (a[0] == b[0] and b[1] == c[1]) or (a[1] == b[1] and b[0] == c[0])


def _distance(a: Point, b: Point) -> float:
    return hypot(b[0] - a[0], b[1] - a[1])


def _towards(a: Point, b: Point, length: float) -> Point:
    share = length / (_distance(a, b) or 1.0)
    return a[0] + share * (b[0] - a[0]), a[1] + share * (b[1] - a[1])


def _pair(point: Point) -> str:
    return f"{number(point[0])} {number(point[1])}"
