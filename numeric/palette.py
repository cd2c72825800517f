"""One palette for every figure and page, after Okabe and Ito, whose colours stay apart for colour-blind readers."""

from collections.abc import Sequence
from typing import Any, Final

__all__ = ["ACCENTS", "BAD", "GOOD", "GRID", "INK", "MUTED", "PAPER", "STYLE", "UNSURE", "mechanism_colours"]

INK: Final = "#1b1f24"
MUTED: Final = "#626a73"
GRID: Final = "#dfe3e8"
PAPER: Final = "#fefefe"
GOOD: Final = "#00835f"
BAD: Final = "#d1500f"
UNSURE: Final = "#b07d00"
ACCENTS: Final = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#8c6d1f", "#7a5195", "#9aa0a6")

# a mechanism keeps its colour from figure to figure
KNOWN_MECHANISMS: Final = {
    "discretization": ACCENTS[0],
    "momentum": ACCENTS[1],
    "weight_decay": ACCENTS[2],
    "kinetic_symmetry_breaking": ACCENTS[3],
    "noise": ACCENTS[4],
    "explicit_breaking": ACCENTS[5],
}

# keys that matplotlib has had since 3.8; its own type for them is a list of literals that changes from version to version
STYLE: Final[dict[Any, Any]] = {
    "font.size": 9.0,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 8.5,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 8.0,
    "ytick.labelsize": 8.0,
    "text.color": INK,
    "axes.titlecolor": INK,
    "legend.frameon": False,
    "legend.fontsize": 8.0,
    "figure.facecolor": PAPER,
    "axes.facecolor": "none",
    "savefig.facecolor": "auto",
    "svg.fonttype": "path",
    "path.simplify": True,
    "path.simplify_threshold": 0.2,
}


def mechanism_colours(mechanisms: Sequence[str]) -> dict[str, str]:
    """A colour for each mechanism, the same in every figure for the ones known by name.

    Examples
    --------
    >>> mechanism_colours(["momentum"])
    {'momentum': '#e69f00'}
    """
    spare = [colour for colour in ACCENTS if colour not in {KNOWN_MECHANISMS.get(name) for name in mechanisms}] or list(ACCENTS)
    colours, unknown = {}, 0
    for name in mechanisms:
        if name in KNOWN_MECHANISMS:
            colours[name] = KNOWN_MECHANISMS[name]
        else:
            colours[name] = spare[unknown % len(spare)]
            unknown += 1
    return colours
