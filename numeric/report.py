"""The report of a verification: in the terminal, as a page, as LaTeX, as figures, and as JSON that can be read back."""

import json
import math
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from io import StringIO
from pathlib import Path
from typing import Any, Final, Self

from matplotlib.figure import Figure
from rich.console import Console

from noetherflow.errors import ReportError
from noetherflow.numeric.figures import summary
from noetherflow.numeric.findings import FamilyRecord, Findings, Verdict
from noetherflow.numeric.page import fragment, page
from noetherflow.numeric.terminal import Listing

__all__ = ["FamilyRecord", "Report", "Verdict"]

FORMAT: Final = 1
PLAIN_WIDTH: Final = 120
FLOATS: Final = ("motion", "scale", "residual", "bound", "ratio", "total_motion")
TUPLES: Final = ("parameters", "sources")
LATEX_ESCAPES: Final = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}


@dataclass(frozen=True, slots=True, repr=False)
class Report(Findings):
    """What a verification found, and every way to show it.

    The fields are those of `Findings`.

    Examples
    --------
    >>> Report("nothing yet", ()).holds
    False
    """

    def __repr__(self) -> str:
        return f"<Report '{self.title}': {self.sentence()}>"

    def __str__(self) -> str:
        out = StringIO()
        Console(file=out, width=PLAIN_WIDTH, color_system=None, force_terminal=False, force_jupyter=False).print(Listing(self))
        return out.getvalue()

    def __rich__(self) -> Listing:
        return Listing(self)

    def _repr_html_(self) -> str:
        return fragment(self)

    def render(self, console: Console | None = None, *, verbose: bool = False) -> None:
        """Print the tables and the closing sentence.

        Parameters
        ----------
        console : rich.console.Console, optional
            Where to; standard output by default.
        verbose : bool
            One line per family, however many there are.
        """
        (console or Console()).print(Listing(self, verbose))

    def to_json(self, path: Path | str) -> Path:
        """Write everything, so that `from_json` gives an equal report back.

        Parameters
        ----------
        path : Path or str
            File to write; missing folders are made.

        Returns
        -------
        Path
            The file.

        Raises
        ------
        ReportError
            It cannot be written; the message names the fallback file that holds the report.
        """
        return self._write(Path(path), self._json)

    @classmethod
    def from_json(cls, path: Path | str) -> Self:
        """Read a report that `to_json` wrote.

        Parameters
        ----------
        path : Path or str
            The file.

        Returns
        -------
        Report
            Equal to the one that was written.

        Raises
        ------
        ReportError
            The file cannot be read or is not a report.
        """
        try:
            return cls(**_decoded(json.loads(Path(path).read_text(encoding="utf-8"))))
        except OSError as error:
            raise ReportError(f"The report '{path}' cannot be read: {error.strerror or error}.", path=Path(path)) from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ReportError(f"'{path}' is not a report written by to_json: {error!r}.", path=Path(path)) from error

    def to_html(self, path: Path | str) -> Path:
        """Write one HTML file that needs nothing else: graph, families, formulas, trajectories, budget.

        Parameters
        ----------
        path : Path or str
            File to write; missing folders are made.

        Returns
        -------
        Path
            The file.

        Raises
        ------
        ReportError
            It cannot be written; the message names the fallback file that holds the report as JSON.
        """
        return self._write(Path(path), lambda: page(self))

    def to_latex(self) -> str:
        r"""The table of families for a paper, with the rules of booktabs.

        Returns
        -------
        str
            A ``tabular`` with its caption in a ``table``; needs ``\usepackage{booktabs}``.
        """
        rows = [
            f"{_escaped(f.name)} & {_escaped(f.kind)} & {f.charges} & {_power(f.motion)} & {_power(f.residual)} & {_power(f.bound)} & "
            f"{_escaped(f.verdict)} \\\\"
            for f in (*self.failed, *(f for f in self.families if f.verdict != "failed"))
        ]
        head = r"family & kind & charges & motion & residual & bound & verdict \\"
        body = "\n".join((r"\begin{tabular}{llrrrrl}", r"\toprule", head, r"\midrule", *rows, r"\bottomrule", r"\end{tabular}"))
        return f"\\begin{{table}}\n\\centering\n\\caption{{{_escaped(self.title)}. {_escaped(self.sentence())}}}\n{body}\n\\end{{table}}\n"

    def plot(self, path: Path | str | None = None) -> Figure:
        """Draw each family's residual against its bound, beside its budget.

        Parameters
        ----------
        path : Path or str, optional
            Image file to write, its format from its ending (png, svg, pdf, ...).

        Returns
        -------
        matplotlib.figure.Figure
            For further work; it belongs to no window.

        Raises
        ------
        ReportError
            The image cannot be written.
        """
        figure = summary(self)
        if path is not None:
            try:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                figure.savefig(path, dpi=160)
            except (OSError, ValueError) as error:
                raise ReportError(f"The figure cannot be written to '{path}': {error}.", path=Path(path)) from error
        return figure

    def _json(self) -> str:
        record = {field.name: getattr(self, field.name) for field in fields(Findings)}
        record["families"] = [{field.name: getattr(family, field.name) for field in fields(family)} for family in self.families]
        record["directory"] = None if self.directory is None else str(self.directory)
        return json.dumps(_finite({"format": FORMAT, **record}), indent=1, allow_nan=False)

    def _write(self, path: Path, text: Callable[[], str]) -> Path:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.is_dir():
                raise IsADirectoryError(21, "it is a folder")
            path.write_text(text(), encoding="utf-8")
        except OSError as error:
            raise self._unwritten(path, error) from error
        return path

    def _unwritten(self, path: Path, error: OSError) -> ReportError:
        reason = error.strerror or str(error)
        message = f"The report cannot be written to '{path}': {reason}. "
        try:
            with tempfile.NamedTemporaryFile("w", prefix="report-", suffix=".json", delete=False, encoding="utf-8") as file:
                file.write(self._json())
        except OSError as second:
            return ReportError(f"{message}Nor could it be kept elsewhere: {second}.", path=path, reason=reason, fallback=None)
        kept = f"Nothing is lost: it is in '{file.name}'; read it with Report.from_json and write it where there is room and permission."
        return ReportError(message + kept, path=path, reason=reason, fallback=Path(file.name))


def _finite(value: Any) -> Any:
    """The same with nan and infinity as strings, which JSON has no numbers for, and numpy's scalars as Python's."""
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if hasattr(value, "item"):
        return _finite(value.item())
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _decoded(record: dict[str, Any]) -> dict[str, Any]:
    if record.pop("format") != FORMAT:
        raise ValueError(f"the format is not {FORMAT}")
    record["families"] = tuple(_family(family) for family in record["families"])
    record["directory"] = None if record["directory"] is None else Path(record["directory"])
    return record | {name: tuple(record[name]) for name in ("opaque", "notes")}


def _family(record: dict[str, Any]) -> FamilyRecord:
    parts = {name: {key: float(part) for key, part in record[name].items()} for name in ("budget", "motion_parts")}
    figures = {name: float(record[name]) for name in FLOATS}
    whole: dict[str, Any] = record | parts | figures | {name: tuple(record[name]) for name in TUPLES}
    return FamilyRecord(**whole)


def _escaped(text: str) -> str:
    return "".join(LATEX_ESCAPES.get(letter, letter) for letter in text)


def _power(value: float) -> str:
    if value == 0:
        return "$0$"
    if not math.isfinite(value):
        return r"$\infty$" if value > 0 else "--"
    mantissa, _, exponent = f"{value:.1e}".partition("e")
    return f"${mantissa} \\times 10^{{{int(exponent)}}}$"
