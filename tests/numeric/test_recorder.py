"""Trajectories on disk: what is written is read back, and what a killed process leaves is whole."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from io import FileIO
from pathlib import Path

import numpy as np
import pytest

from noetherflow.errors import RunError
from noetherflow.numeric.recorder import RecordedRun, Recorder, open_run

COLUMNS = {"measured": 5, "predicted": 5}
FAMILIES = [{"name": "hidden", "start": 0, "count": 3, "kind": "rescale"}, {"name": "head", "start": 3, "count": 2}]


def values(step: int) -> dict[str, np.ndarray]:
    return {"measured": np.arange(5) + step, "predicted": np.arange(5) + step + 0.5}


def record_steps(folder: Path, steps: range) -> None:
    with Recorder(folder, COLUMNS, FAMILIES, settings={"dtype": "float32"}) as recorder:
        for step in steps:
            recorder.record(step, values(step))


def test_what_was_recorded_is_read_back_by_column_and_family(tmp_path: Path) -> None:
    record_steps(tmp_path / "new" / "run", range(0, 30, 3))
    run = open_run(tmp_path / "new" / "run")
    assert run.steps.tolist() == list(range(0, 30, 3))
    assert run.settings == {"dtype": "float32"}
    assert run.column("measured").shape == (10, 5)
    assert run.column("predicted", "head")[4].tolist() == [15.5, 16.5]
    assert [family.name for family in run.families] == ["hidden", "head"]
    assert not run.data.flags.writeable


def test_every_bit_of_a_float_survives(tmp_path: Path) -> None:
    hard = np.array([np.nan, np.inf, -0.0, 5e-324, 1 / 3])
    with Recorder(tmp_path, {"measured": 5}, FAMILIES) as recorder:
        recorder.record(0, {"measured": hard})
    assert open_run(tmp_path).column("measured")[0].tobytes() == hard.tobytes()


def test_the_file_is_what_its_description_says(tmp_path: Path) -> None:
    record_steps(tmp_path, range(4))
    meta = json.loads((tmp_path / "meta.json").read_text())
    assert (meta["format"], meta["dtype"], meta["byte_order"]) == (1, "float64", "little")
    assert meta["families"][0]["kind"] == "rescale"
    raw = np.fromfile(tmp_path / "rows.f64", dtype="<f8").reshape(4, 11)
    assert raw[:, 0].tolist() == [0, 1, 2, 3]


def test_reading_maps_the_file_and_copies_nothing(tmp_path: Path) -> None:
    record_steps(tmp_path, range(4))
    column = open_run(tmp_path).column("measured", "hidden")
    assert isinstance(column, np.memmap)
    assert not column.flags.owndata


def test_a_run_without_rows_can_be_opened(tmp_path: Path) -> None:
    record_steps(tmp_path, range(0))
    assert open_run(tmp_path).column("measured", "head").shape == (0, 2)


def test_rows_are_readable_while_the_run_goes_on(tmp_path: Path) -> None:
    with Recorder(tmp_path, COLUMNS, FAMILIES, flush_every=1e9) as recorder:
        recorder.record(0, values(0))
        assert open_run(tmp_path).rows == 1


@pytest.mark.parametrize("kept", [0, 1, 87, 88, 89])
def test_a_half_written_row_is_left_out_and_cut_off_on_resume(tmp_path: Path, kept: int) -> None:
    record_steps(tmp_path, range(6))
    os.truncate(tmp_path / "rows.f64", 5 * 88 + min(kept, 88))
    whole = 5 + kept // 88
    assert open_run(tmp_path).rows == whole
    with Recorder.resume(tmp_path, columns=COLUMNS) as recorder:
        recorder.record(100, values(100))
    run = open_run(tmp_path)
    assert run.steps.tolist() == [*range(whole), 100]
    assert run.column("measured")[-1].tolist() == values(100)["measured"].tolist()


def test_resuming_from_a_checkpoint_forgets_the_rows_after_it(tmp_path: Path) -> None:
    record_steps(tmp_path, range(10))
    with Recorder.resume(tmp_path, from_step=4) as recorder:
        recorder.record(4, values(1000))
    run = open_run(tmp_path)
    assert run.steps.tolist() == [0, 1, 2, 3, 4]
    assert run.column("measured")[4, 0] == 1000


WRITER = """
import sys
from pathlib import Path
import numpy as np
from noetherflow.numeric.recorder import Recorder
recorder = Recorder(Path(sys.argv[1]), {"measured": 1000}, [{"name": "all", "start": 0, "count": 1000}], flush_every=0.05)
for step in range(10**9):
    recorder.record(step, {"measured": np.full(1000, float(step))})
    if step == 50:
        print("going", flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_a_killed_process_leaves_whole_rows_and_the_run_can_go_on(tmp_path: Path) -> None:
    root = str(Path(__file__).parents[2])
    paths = os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": paths}
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"going\n"
        time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
    run = open_run(tmp_path)
    assert run.rows > 50
    assert np.array_equal(run.steps, np.arange(run.rows))
    assert np.array_equal(run.column("measured", "all")[:, 999], run.steps)
    with Recorder.resume(tmp_path) as recorder:
        recorder.record(run.rows, {"measured": np.zeros(1000)})
    assert open_run(tmp_path).rows == run.rows + 1


def test_flushing_is_bounded_by_time_and_certain_on_closing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (synced.append(file), real(file))[1])
    with Recorder(tmp_path / "slow", COLUMNS, FAMILIES, flush_every=1e9) as recorder:
        synced.clear()
        for step in range(20):
            recorder.record(step, values(step))
        assert synced == []
    assert len(synced) == 1
    with Recorder(tmp_path / "eager", COLUMNS, FAMILIES, flush_every=0.0) as recorder:
        synced.clear()
        recorder.record(0, values(0))
        assert len(synced) == 1


def test_an_occupied_folder_is_refused_unless_told_otherwise(tmp_path: Path) -> None:
    record_steps(tmp_path, range(3))
    with pytest.raises(RunError, match=r"already holds a recorded run.*resume.*overwrite=True") as caught:
        Recorder(tmp_path, COLUMNS, FAMILIES)
    assert str(tmp_path) in str(caught.value)
    assert open_run(tmp_path).rows == 3
    Recorder(tmp_path, COLUMNS, FAMILIES, overwrite=True).close()
    assert open_run(tmp_path).rows == 0


def test_other_files_in_the_folder_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_text("weights")
    Recorder(tmp_path, COLUMNS, FAMILIES, overwrite=True).close()
    assert (tmp_path / "model.pt").read_text() == "weights"


def test_a_folder_that_cannot_be_made_is_told_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"Cannot record into .*file/run.*: Not a directory.*disk"):
        Recorder(tmp_path / "file" / "run", COLUMNS, FAMILIES)


def test_a_full_disk_keeps_the_whole_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder(tmp_path, COLUMNS, FAMILIES)
    recorder.record(0, values(0))
    assert recorder._file is not None
    recorder._file.close()

    class FullDisk(FileIO):
        def write(self, data: object) -> int:
            if room:
                return super().write(memoryview(data)[: room.pop()])  # type: ignore[call-overload]
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    room = [20]
    monkeypatch.setattr(recorder, "_file", FullDisk(tmp_path / "rows.f64", "r+"))
    recorder._file.seek(0, os.SEEK_END)  # type: ignore[union-attr]
    with pytest.raises(RunError, match=r"No space left.*What was recorded before \(1 rows\) is whole") as caught:
        recorder.record(1, values(1))
    assert caught.value.data["errno"] == errno.ENOSPC
    assert (tmp_path / "rows.f64").stat().st_size == 88
    room.append(88)  # somebody made room
    recorder.record(1, values(1))
    recorder.close()
    assert open_run(tmp_path).steps.tolist() == [0, 1]


@pytest.mark.parametrize("make", [open_run, Recorder.resume])
def test_a_folder_without_a_run_is_told(tmp_path: Path, make: object) -> None:
    with pytest.raises(RunError, match=r"No recorded run could be opened.*gone.*No such file.*meta\.json"):
        make(tmp_path / "gone")  # type: ignore[operator]


def test_a_description_that_is_none_is_told(tmp_path: Path) -> None:
    record_steps(tmp_path, range(1))
    (tmp_path / "meta.json").write_text("{}")
    with pytest.raises(RunError, match="not the description of a run"):
        open_run(tmp_path)


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    record_steps(tmp_path, range(1))
    meta = json.loads((tmp_path / "meta.json").read_text())
    (tmp_path / "meta.json").write_text(json.dumps(meta | {"format": 2}))
    with pytest.raises(RunError, match="format 2; this version reads 1"):
        open_run(tmp_path)


def test_resuming_with_other_columns_is_refused(tmp_path: Path) -> None:
    record_steps(tmp_path, range(2))
    with pytest.raises(RunError, match="cannot be resumed: it holds the columns"):
        Recorder.resume(tmp_path, columns={"measured": 6, "predicted": 6})


@pytest.mark.parametrize(
    ("step", "row", "message"),
    [
        (3, {"measured": np.zeros(5), "predicted": np.zeros(5)}, "Step 3 cannot follow step 3"),
        (2**53, {"measured": np.zeros(5), "predicted": np.zeros(5)}, "cannot follow"),
        (4, {"measured": np.zeros(5)}, r"brings the columns \['measured'\]"),
        (4, {"measured": np.zeros(5), "predicted": np.zeros(4)}, r"shape \(4,\), expected \(5,\)"),
    ],
)
def test_a_row_that_does_not_fit_is_refused_and_the_run_stays_whole(
    tmp_path: Path, step: int, row: dict[str, np.ndarray], message: str
) -> None:
    with Recorder(tmp_path, COLUMNS, FAMILIES) as recorder:
        recorder.record(3, values(3))
        with pytest.raises(RunError, match=message):
            recorder.record(step, row)
        recorder.record(5, values(5))
    assert open_run(tmp_path).steps.tolist() == [3, 5]


def test_a_closed_recorder_says_so(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, COLUMNS, FAMILIES)
    recorder.close()
    recorder.close()
    with pytest.raises(RunError, match="is closed"):
        recorder.record(0, values(0))


@pytest.mark.parametrize(
    ("families", "settings", "message"),
    [
        ([{"name": "a", "start": 0, "count": 2}, {"name": "a", "start": 2, "count": 2}], {}, "Two families are called 'a'"),
        ([{"name": "a", "start": 4, "count": 2}], {}, "'a' takes the charges 4 to 6, but column 'measured' has 5"),
        ([{"name": "a", "start": 0, "count": 5}], {"model": object()}, "cannot be written as JSON"),
    ],
)
def test_a_layout_that_does_not_fit_is_refused_before_anything_is_written(
    tmp_path: Path, families: list[dict[str, object]], settings: dict[str, object], message: str
) -> None:
    with pytest.raises(RunError, match=message):
        Recorder(tmp_path / "run", COLUMNS, families, settings=settings)
    assert not (tmp_path / "run").exists()


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    record_steps(tmp_path, range(2))
    run = open_run(tmp_path)
    assert isinstance(run, RecordedRun)
    with pytest.raises(RunError, match=r"No column 'bound'.*measured"):
        run.column("bound")
    with pytest.raises(RunError, match=r"No family 'tail'.*'hidden'"):
        run.column("measured", "tail")
