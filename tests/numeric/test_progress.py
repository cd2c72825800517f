"""A progress bar on what is slow, for somebody who watches."""

from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console

from noetherflow.numeric.progress import shown


@pytest.mark.parametrize(("terminal", "patience", "expected"), [(True, -1.0, True), (True, 1e9, False), (False, -1.0, False)])
def test_progress_is_shown_only_to_somebody_and_only_when_slow(
    monkeypatch: pytest.MonkeyPatch, terminal: bool, patience: float, expected: bool
) -> None:
    monkeypatch.setattr("noetherflow.numeric.progress.PATIENCE", patience)
    out = StringIO()
    console = Console(file=out, force_terminal=terminal, width=120)
    assert list(shown([1, 2, 3], "Drawing", 3, console)) == [1, 2, 3]
    assert ("Drawing" in out.getvalue()) is expected


def test_the_items_end_when_the_reader_stops() -> None:
    taken = []
    for item in shown(iter(range(10)), "counting"):
        taken.append(item)
        if item == 1:
            break
    assert taken == [0, 1]
