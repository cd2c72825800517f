"""LaTeX formulas as small drawings that need no font and no network.

matplotlib's mathtext understands most one-line LaTeX; what it does not understand is shown as it was written.
"""

import re
from collections.abc import Iterator
from functools import lru_cache
from html import escape
from typing import Final

import numpy as np
from matplotlib.path import Path as Outline
from matplotlib.textpath import TextPath

__all__ = ["formula", "formula_lines"]

EM: Final = 100.0  # drawn at this size so that whole numbers are precise enough
SHOWN_EM: Final = 1.05  # em of the surrounding text
LINE_GAP: Final = 0.35
OPERATORS: Final = {Outline.MOVETO: "m", Outline.LINETO: "l", Outline.CURVE3: "q", Outline.CURVE4: "c"}
ENVIRONMENT: Final = re.compile(r"\\(?:begin|end)\{(?:aligned|align\*?|gathered|gather\*?|split|equation\*?)\}")
REWRITES: Final = (
    (re.compile(r"\\(?:left|right)\s*(?=\.)\."), ""),
    (re.compile(r"\\(?:tfrac|cfrac)(?![a-zA-Z])"), r"\\frac"),
    (re.compile(r"\\(?:operatorname\*?|mathop|text|textrm|textnormal)\s*\{"), r"\\mathrm{"),
    (re.compile(r"\\(?:lVert|rVert|Vert)(?![a-zA-Z])"), r"\\|"),
    (re.compile(r"\\(?:lvert|rvert|vert)(?![a-zA-Z])"), "|"),
    (re.compile(r"\\[bB]ig{1,2}[lrm]?(?![a-zA-Z])"), ""),
    (re.compile(r"\\(?:top|intercal)(?![a-zA-Z])"), r"\\mathsf{T}"),
    (re.compile(r"\\(?:displaystyle|textstyle|limits|nolimits)(?![a-zA-Z])"), ""),
    (re.compile(r"\\label\{[^}]*\}|\\(?:notag|nonumber)(?![a-zA-Z])"), ""),
)


def formula(latex: str) -> str:
    r"""A formula as HTML: inline SVG where it can be drawn, else the LaTeX as text.

    Parameters
    ----------
    latex : str
        Mathematics without dollar signs; ``\\`` separates lines.

    Returns
    -------
    str
        An element that takes the colour of the text around it; empty for an empty formula.
    """
    if not latex.strip():
        return ""
    try:
        drawn = _drawn(latex)
    except (ValueError, RuntimeError):
        drawn = ""
    return drawn or f'<pre class="latex">{escape(latex)}</pre>'


def formula_lines(latex: str) -> list[str]:
    r"""The lines of a formula in the part of LaTeX that mathtext knows.

    Examples
    --------
    >>> formula_lines(r"\begin{aligned} a &= \tfrac12 \\ b &= 2 \end{aligned}")
    ['a = \\frac{1}{2}', 'b = 2']
    """
    text = ENVIRONMENT.sub("", latex.replace("$", " "))
    for pattern, replacement in REWRITES:
        text = pattern.sub(replacement, text)
    text = re.sub(r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}", text).replace(r"\&", "\0").replace("&", " ").replace("\0", r"\&")
    return [" ".join(line.split()) for line in re.split(r"\\\\(?:\[[^\]]*\])?", text) if line.strip()]


@lru_cache(maxsize=512)
def _drawn(latex: str) -> str:
    top, width, paths = 0.0, 0.0, []
    for line in formula_lines(latex):
        outline = TextPath((0, 0), f"${line}$", size=EM)
        if not len(outline.vertices):
            continue
        box = outline.get_extents()
        # y grows downwards in SVG
        flipped = np.asarray(outline.vertices) * (1, -1) + (-box.x0, top + box.y1)
        paths.append(f'<path d="{"".join(_commands(flipped, np.asarray(outline.codes)))}"/>')
        top += box.height + LINE_GAP * EM
        width = max(width, box.width)
    if not paths:
        return ""
    height = top - LINE_GAP * EM
    size = f'width="{width / EM * SHOWN_EM:.2f}em" height="{height / EM * SHOWN_EM:.2f}em"'
    # a little air, or round letters are cut at the edge of the drawing
    box_text = f"-3 -3 {width + 6:.0f} {height + 6:.0f}"
    return f'<svg class="formula" role="img" aria-label="{escape(latex)}" viewBox="{box_text}" {size}>{"".join(paths)}</svg>'


def _commands(vertices: np.ndarray, codes: np.ndarray) -> Iterator[str]:
    """Commands of an SVG path with whole numbers, each relative to the point before."""
    points = np.rint(vertices).astype(int)
    here = start = np.zeros(2, dtype=int)
    place = 0
    while place < len(codes):
        code = int(codes[place])
        count = Outline.NUM_VERTICES_FOR_CODE.get(Outline.code_type(code), 1)
        if code == Outline.CLOSEPOLY:
            yield "z"
            here = start  # closing a path goes back to where it began
        else:
            steps = points[place : place + count] - here
            yield OPERATORS[Outline.code_type(code)] + " ".join(str(number) for number in steps.ravel()).replace(" -", "-")
            here = points[place + count - 1]
            start = here if code == Outline.MOVETO else start
        place += count
