"""Reading a recorded run: the description of its rows, and the rows mapped into memory.

A run is a folder with two files. ``meta.json`` says what the numbers are; ``rows.f64`` holds one row of little-endian float64 per
recorded step: the step number, then every column in order. Rows have one length, so nothing but the length of the file says how many
there are, and a row cut short by a killed process is recognised by its remainder.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from noetherflow.errors import RunError

__all__ = ["BYTES", "FORMAT", "META", "ROWS", "FamilySlice", "Layout", "RecordedRun", "describe", "open_run"]

FORMAT: Final = 1
META: Final = "meta.json"
ROWS: Final = "rows.f64"
BYTES: Final = 8  # of one float64


@dataclass(frozen=True, slots=True)
class FamilySlice:
    """Where the charges of one family lie in every column of a row.

    Parameters
    ----------
    name : str
        Name of the family, unique in its run.
    start : int
        Index of its first charge in a column.
    count : int
        Number of its charges.
    """

    name: str
    start: int
    count: int


@dataclass(frozen=True, slots=True)
class Layout:
    """What one row holds: the step, then the columns, each cut into the same families."""

    columns: dict[str, int]
    families: tuple[FamilySlice, ...]
    details: tuple[dict[str, Any], ...]
    settings: dict[str, Any]

    @property
    def length(self) -> int:
        """Numbers in one row, the step included."""
        return 1 + sum(self.columns.values())

    @property
    def starts(self) -> dict[str, int]:
        """Position of each column's first number in a row."""
        starts, place = {}, 1
        for name, width in self.columns.items():
            starts[name] = place
            place += width
        return starts

    def to_json(self) -> str:
        """The description as the text of ``meta.json``."""
        meta = {
            "format": FORMAT,
            "columns": self.columns,
            "families": list(self.details),
            "dtype": "float64",
            "byte_order": "little",
            "row": "step number, then the columns in order",
            "settings": self.settings,
        }
        return json.dumps(meta, indent=1)


@dataclass(frozen=True, slots=True, repr=False)
class RecordedRun:
    """A run on disk, mapped into memory; what is not looked at is not read.

    Parameters
    ----------
    directory : Path
        Folder of the run.
    layout : Layout
        Columns, families and settings.
    data : array, shape (rows, 1 + sum of columns)
        The rows as they were when the run was opened.
    """

    directory: Path
    layout: Layout
    data: NDArray[np.float64]

    def __repr__(self) -> str:
        return f"RecordedRun('{self.directory}', {self.rows} rows, {len(self.families)} families, columns {sorted(self.layout.columns)})"

    @property
    def rows(self) -> int:
        """Number of whole rows."""
        return int(self.data.shape[0])

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns, in order."""
        return tuple(self.layout.columns)

    @property
    def families(self) -> tuple[FamilySlice, ...]:
        """The families, in order."""
        return self.layout.families

    @property
    def settings(self) -> dict[str, Any]:
        """What was remembered about the run."""
        return self.layout.settings

    @property
    def steps(self) -> NDArray[np.int64]:
        """Step number of every row, shape (rows,)."""
        return self.data[:, 0].astype(np.int64)

    def family(self, name: str) -> FamilySlice:
        """The family of this name; RunError when there is none."""
        for family in self.families:
            if family.name == name:
                return family
        known = ", ".join(f"'{family.name}'" for family in self.families[:8])
        raise RunError(f"No family '{name}' in the run '{self.directory}', which holds {known}.", directory=self.directory, family=name)

    def column(self, name: str, family: str | None = None) -> NDArray[np.float64]:
        """One column over the whole run, a view into the file.

        Parameters
        ----------
        name : str
            Name of the column.
        family : str, optional
            Only the charges of this family.

        Returns
        -------
        array, shape (rows, count)
            Read-only; exact float64 values as recorded.

        Raises
        ------
        RunError
            The run has no such column or family.
        """
        if name not in self.layout.columns:
            raise RunError(
                f"No column '{name}' in the run '{self.directory}', which holds {list(self.columns)}.",
                directory=self.directory,
                column=name,
            )
        start = self.layout.starts[name]
        if family is None:
            return self.data[:, start : start + self.layout.columns[name]]
        piece = self.family(family)
        return self.data[:, start + piece.start : start + piece.start + piece.count]


def open_run(directory: Path) -> RecordedRun:
    """Open a recorded run for reading, also while it is being written or after its process was killed.

    Parameters
    ----------
    directory : Path
        Folder of the run.

    Returns
    -------
    RecordedRun
        Its whole rows; a half-written last row is left out.

    Raises
    ------
    RunError
        There is no run in the folder, or it cannot be read.
    """
    directory = Path(directory)
    try:
        layout = _decoded((directory / META).read_text(encoding="utf-8"), directory)
        file = directory / ROWS
        rows = file.stat().st_size // (layout.length * BYTES)
        shape = (rows, layout.length)
        data: NDArray[np.float64] = np.memmap(file, dtype="<f8", mode="r", shape=shape) if rows else np.empty(shape)
    except OSError as error:
        raise RunError(
            f"No recorded run could be opened in '{directory}': {error.strerror or error}. Expected the files {META} and {ROWS} there; "
            "give the folder that was passed to the recorder.",
            directory=directory,
        ) from error
    return RecordedRun(directory, layout, data)


def describe(columns: Mapping[str, int], families: Sequence[Mapping[str, object]], settings: Mapping[str, object]) -> Layout:
    """The layout, once columns and families are seen to fit together."""
    slices = tuple(FamilySlice(str(f["name"]), int(str(f["start"])), int(str(f["count"]))) for f in families)
    names = [family.name for family in slices]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise RunError(f"Two families are called '{twice}'; names must differ, since trajectories are found by them.", family=twice)
    for family in slices:
        end = family.start + family.count
        short = [name for name, width in columns.items() if family.start < 0 or family.count < 0 or end > width]
        if short:
            raise RunError(
                f"Family '{family.name}' takes the charges {family.start} to {end}, but column '{short[0]}' has {columns[short[0]]}.",
                family=family.name,
                column=short[0],
            )
    return Layout(dict(columns), slices, tuple(dict(family) for family in families), dict(settings))


def _decoded(text: str, directory: Path) -> Layout:
    try:
        meta = json.loads(text)
        version = meta["format"]
        layout = describe(meta["columns"], meta["families"], meta["settings"])
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"'{directory / META}' is not the description of a run: {error!r}. Record it again.", directory=directory) from error
    if version != FORMAT:
        raise RunError(f"The run in '{directory}' has format {version}; this version reads {FORMAT}.", directory=directory, got=version)
    return layout
