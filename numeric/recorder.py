"""Trajectories on disk, written as the run goes.

Each row goes to the operating system at once (a killed process loses at most the row in flight) and to the disk every `flush_every`
seconds (a dead machine loses no more than that). The format is described in `noetherflow.numeric.recorded`, which reads it.
"""

import os
import time
from collections.abc import Mapping, Sequence
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from noetherflow.errors import RunError
from noetherflow.numeric.recorded import BYTES, META, ROWS, FamilySlice, Layout, RecordedRun, describe, open_run

__all__ = ["FamilySlice", "RecordedRun", "Recorder", "open_run"]

LAST_EXACT_STEP: Final = 2**53  # step numbers are stored as float64, exact up to here


class Recorder:
    """Append the charges of a running training to a folder, one row per recorded step.

    Memory is one row, whatever the length of the run.

    Parameters
    ----------
    directory : Path
        Folder of the run; made when it is not there. One that already holds a run is refused.
    columns : mapping of str to int
        Name and number of charges of each column, in order; for instance ``{"measured": 9089, "predicted": 9089}``.
    families : sequence of mappings
        ``name``, ``start`` and ``count`` of each family in a column, and anything else about it that JSON can hold.
    flush_every : float
        Seconds between two calls of ``fsync``.
    settings : mapping, optional
        What to remember about the run (model, optimizer, dtype, ...), as JSON can hold it.
    overwrite : bool
        Replace a run that is already in the folder.

    Raises
    ------
    RunError
        The folder cannot be written or holds a run, or the columns and families do not fit together.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> with Recorder(folder, {"measured": 2}, [{"name": "fc1", "start": 0, "count": 2}]) as recorder:
    ...     recorder.record(0, {"measured": [1.0, 2.0]})
    ...     recorder.record(1, {"measured": [1.5, 2.0]})
    >>> open_run(folder).column("measured", "fc1")[:, 0].tolist()
    [1.0, 1.5]
    """

    def __init__(
        self,
        directory: Path,
        columns: Mapping[str, int],
        families: Sequence[Mapping[str, object]],
        flush_every: float = 2.0,
        *,
        settings: Mapping[str, object] | None = None,
        overwrite: bool = False,
    ) -> None:
        layout = describe(columns, families, settings or {})
        directory = Path(directory)
        text = _encoded(layout, directory)
        try:
            _occupy(directory, overwrite=overwrite)
            _write_durably(directory / META, text)
            file = FileIO(directory / ROWS, "w")
        except OSError as error:
            raise _unwritable(directory, error) from error
        self._begin(directory, layout, file, rows=0, last_step=None, flush_every=flush_every)

    @classmethod
    def resume(
        cls,
        directory: Path,
        *,
        columns: Mapping[str, int] | None = None,
        from_step: int | None = None,
        flush_every: float = 2.0,
    ) -> Self:
        """Go on with a run that was interrupted.

        Parameters
        ----------
        directory : Path
            Folder of the run.
        columns : mapping of str to int, optional
            The columns that will be recorded; they must be those of the run.
        from_step : int, optional
            Forget the rows at this step and after it: training restarts from an older checkpoint and will pass there again.
        flush_every : float
            Seconds between two calls of ``fsync``.

        Returns
        -------
        Recorder
            Appends after the last whole row; a half-written one is cut off.

        Raises
        ------
        RunError
            There is no run in the folder, its columns differ, or it cannot be written.
        """
        run = open_run(directory)
        if columns is not None and dict(columns) != run.layout.columns:
            raise RunError(
                f"The run in '{run.directory}' cannot be resumed: it holds the columns {run.layout.columns}, but {dict(columns)} are to "
                "be recorded. The model or the set of laws has changed; record into another folder, or pass overwrite=True.",
                directory=run.directory,
                expected=run.layout.columns,
                got=dict(columns),
            )
        rows = run.rows if from_step is None else int(np.searchsorted(run.steps, from_step))
        last_step = int(run.steps[rows - 1]) if rows else None
        self = cls.__new__(cls)
        try:
            file = FileIO(run.directory / ROWS, "r+")
            file.truncate(rows * run.layout.length * BYTES)
            file.seek(0, os.SEEK_END)
        except OSError as error:
            raise _unwritable(run.directory, error) from error
        self._begin(run.directory, run.layout, file, rows=rows, last_step=last_step, flush_every=flush_every)
        return self

    def _begin(self, directory: Path, layout: Layout, file: FileIO, *, rows: int, last_step: int | None, flush_every: float) -> None:
        self.directory = directory
        self.layout = layout
        self.rows = rows
        self.last_step = last_step
        self.flush_every = flush_every
        self._file: FileIO | None = file
        self._row: NDArray[np.float64] = np.empty(layout.length, dtype="<f8")
        self._slices = {name: slice(start, start + layout.columns[name]) for name, start in layout.starts.items()}
        self._flushed = time.monotonic()

    def record(self, step: int, values: Mapping[str, ArrayLike]) -> None:
        """Append one row.

        Parameters
        ----------
        step : int
            Number of the step, larger than the one before.
        values : mapping of str to array
            One vector per column, shape (number of charges,); any float dtype, stored as float64.

        Raises
        ------
        RunError
            The recorder is closed, the step or the values do not fit, or the disk refuses the row.
        """
        if self._file is None:
            raise RunError(f"The recorder of '{self.directory}' is closed. Use Recorder.resume to go on.", directory=self.directory)
        self._check(step, values)
        self._row[0] = step
        for name, place in self._slices.items():
            vector = np.asarray(values[name], dtype=np.float64)
            if vector.shape != (place.stop - place.start,):
                raise RunError(
                    f"Column '{name}' of step {step} has shape {vector.shape}, expected ({place.stop - place.start},).",
                    column=name,
                    step=step,
                )
            self._row[place] = vector
        self._append(self._file)
        self.last_step = step
        if time.monotonic() - self._flushed >= self.flush_every:
            self.flush()

    def _check(self, step: int, values: Mapping[str, ArrayLike]) -> None:
        if set(values) != set(self._slices):
            raise RunError(
                f"Step {step} brings the columns {sorted(values)}, but the run in '{self.directory}' holds {sorted(self._slices)}.",
                directory=self.directory,
                step=step,
            )
        first = -1 if self.last_step is None else self.last_step
        if not first < step < LAST_EXACT_STEP:
            raise RunError(
                f"Step {step} cannot follow step {self.last_step} in '{self.directory}': steps must grow. "
                "To go back to an older checkpoint use Recorder.resume(directory, from_step=...).",
                directory=self.directory,
                step=step,
            )

    def _append(self, file: FileIO) -> None:
        left = self._row.data.cast("B")
        try:
            while left:
                left = left[file.write(left) or 0 :]
        except BaseException as error:
            # also when interrupted from the keyboard: a part of a row would shift every row after it
            file.truncate(self.rows * self.layout.length * BYTES)
            file.seek(0, os.SEEK_END)
            if isinstance(error, OSError):
                raise _unwritable(self.directory, error, kept=self.rows) from error
            raise
        self.rows += 1

    def flush(self) -> None:
        """Have everything recorded so far on the disk itself before returning."""
        if self._file is None:
            return
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise _unwritable(self.directory, error, kept=self.rows) from error
        self._flushed = time.monotonic()

    def close(self) -> None:
        """Flush and close; a second call does nothing."""
        if self._file is None:
            return
        try:
            self.flush()
        finally:
            self._file.close()
            self._file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _encoded(layout: Layout, directory: Path) -> str:
    try:
        return layout.to_json()
    except (TypeError, ValueError) as error:
        raise RunError(f"The families or settings of '{directory}' cannot be written as JSON: {error}.", directory=directory) from error


def _occupy(directory: Path, *, overwrite: bool) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    held = [name for name in (META, ROWS) if (directory / name).exists()]
    if held and not overwrite:
        raise RunError(
            f"'{directory}' already holds a recorded run ({', '.join(held)}). Use Recorder.resume to continue it, another folder to keep "
            "it, or overwrite=True to replace it.",
            directory=directory,
        )
    for name in held:
        (directory / name).unlink()


def _write_durably(path: Path, text: str) -> None:
    # exclusive creation: of two processes that start in one folder, the second is told
    with path.open("x", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _unwritable(directory: Path, error: OSError, *, kept: int | None = None) -> RunError:
    saved = "" if kept is None else f" What was recorded before ({kept} rows) is whole; once there is room, go on with Recorder.resume."
    return RunError(
        f"Cannot record into '{directory}': {error.strerror or error}. Give a folder on a disk that can be written and has room.{saved}",
        directory=directory,
        reason=error.strerror,
        errno=error.errno,
    )
