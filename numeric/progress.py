"""A progress bar on anything that takes longer than two seconds, and silence on everything else."""

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

__all__ = ["PATIENCE", "activity", "shown"]

PATIENCE: Final = 2.0
"""Seconds before a bar appears."""

T = TypeVar("T")


def shown(items: Iterable[T], text: str, total: int | None = None, console: Console | None = None) -> Iterator[T]:
    """The items, with a bar on standard error once they have taken longer than `PATIENCE` and somebody is watching.

    Parameters
    ----------
    items : iterable
    text : str
        What is being done.
    total : int, optional
        How many items there are, if known.
    console : rich.console.Console, optional
        Where the bar goes; standard error by default.

    Examples
    --------
    >>> list(shown([1, 2, 3], "counting", total=3))
    [1, 2, 3]
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    console = console or Console(file=sys.stderr)
    watched = console.is_terminal or console.is_jupyter
    progress = Progress(*columns, console=console, transient=True)
    task, begun, started = progress.add_task(text, total=total), time.monotonic(), False
    try:
        for item in items:
            yield item
            progress.advance(task)
            if watched and not started and time.monotonic() - begun > PATIENCE:
                progress.start()
                started = True
    finally:
        if started:
            progress.stop()


@contextmanager
def activity(text: str) -> Iterator[None]:
    """A moving sign on standard error while something without steps to count goes on; it is gone afterwards.

    Examples
    --------
    >>> with activity("thinking"):
    ...     6 * 7
    42
    """
    with Console(file=sys.stderr).status(text):
        yield
