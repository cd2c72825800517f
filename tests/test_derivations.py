"""Every derivation runs as a script, warnings as errors, and is what a derivation must be: sourced, asserted, able to fail."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import noetherflow
from noetherflow import sources

ROOT = Path(__file__).resolve().parents[1]
DERIVATIONS = sorted((ROOT / "derivations").glob("*.py"))
FEWEST = 2
# Far above what one takes alone on one core; a derivation that hangs must not hang the tests.
SECONDS = 300

SOUND = """# sources: own, kunin2021neural

# %% [markdown]
# # A claim
#
# **Claim** (own).

# %%
x = 2
assert x + x == 4

# %% [markdown]
# ## Verdict

# %%
failed = [] if x == 2 else ["x"]
if failed:
    raise AssertionError(failed)
"""


def cells(text: str) -> list[tuple[str, str]]:
    """(marker, body) of every cell of a py:percent script, in order."""
    parts = re.split(r"^# %%(.*)$", text, flags=re.MULTILINE)
    return [(marker.strip(), body) for marker, body in zip(parts[1::2], parts[2::2], strict=True)]


def cited(text: str) -> list[str]:
    """Keys of the line of sources, empty if there is none."""
    found = re.search(r"^# sources: *(.+)$", text, re.MULTILINE)
    return [key.strip() for key in found[1].split(",")] if found else []


def can_fail(body: str) -> bool:
    """Whether a cell raises or asserts at its top level, with a condition that is not a constant."""
    for node in ast.parse(body).body:
        if isinstance(node, ast.Assert) and not isinstance(node.test, ast.Constant):
            return True
        if (
            isinstance(node, ast.If)
            and not isinstance(node.test, ast.Constant)
            and any(isinstance(inner, ast.Raise) for inner in node.body)
        ):
            return True
    return False


def faults(text: str) -> list[str]:
    """What a script lacks to be a derivation; empty if nothing."""
    found = []
    keys = cited(text)
    unknown = [key for key in keys if key != "own" and key not in sources.references()]
    if not keys:
        found.append("no source key: add a line '# sources: key, own'")
    if unknown:
        found.append(f"unknown source keys {unknown}: see references.bib")
    if not any(isinstance(node, ast.Assert) for node in ast.walk(ast.parse(text))):
        found.append("no assertion")
    parts = cells(text)
    if not parts or parts[0][0] != "[markdown]" or not re.match(r"\s*# # \S", parts[0][1]):
        found.append("no title cell first")
    if not parts or parts[-1][0] or not can_fail(parts[-1][1]):
        found.append("no last cell that raises if the claim fails")
    return found


def run_script(path: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a script as a user would, apart from warnings, in a folder of its own."""
    package = Path(noetherflow.__file__).resolve().parents[1]
    environment = {name: value for name, value in os.environ.items() if name not in ("NOETHERFLOW_DATA", "PYTHONOPTIMIZE")}
    environment |= {
        "PYTHONPATH": os.pathsep.join(filter(None, (str(package), os.environ.get("PYTHONPATH")))),
        "NOETHERFLOW_FIGURES": str(folder),
    }
    return subprocess.run(
        [sys.executable, "-W", "error", str(path)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize("path", DERIVATIONS, ids=lambda path: path.stem)
def test_a_derivation_runs_and_draws_its_figure(path: Path, tmp_path: Path) -> None:
    done = run_script(path, tmp_path)
    assert done.returncode == 0, f"{path.name} fails:\n{done.stderr[-4000:]}"
    assert [figure.stem for figure in tmp_path.glob("*.png")] == [path.stem]
    assert (tmp_path / f"{path.stem}.png").stat().st_size > 10_000


@pytest.mark.parametrize("path", DERIVATIONS, ids=lambda path: path.stem)
def test_a_derivation_is_sourced_asserted_and_able_to_fail(path: Path) -> None:
    assert faults(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("path", DERIVATIONS, ids=lambda path: path.stem)
def test_outputs_are_not_committed(path: Path) -> None:
    assert not list(path.parent.glob("*.ipynb"))
    assert not list(path.parent.glob("*.png"))


def test_derivations_are_found() -> None:
    assert len(DERIVATIONS) >= FEWEST


def test_a_sound_example_passes() -> None:
    assert faults(SOUND) == []


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("# sources: own, kunin2021neural\n", "", "no source key"),
        ("kunin2021neural", "kunin2021neutral", "unknown source keys"),
        ("assert x + x == 4\n", "", "no assertion"),
        ("# # A claim\n", "# A claim\n", "no title cell"),
        ("if failed:\n    raise AssertionError(failed)\n", "print(failed)\n", "no last cell that raises"),
        ("if failed:\n", "if False:\n", "no last cell that raises"),
        ("# %%\nfailed", "# %% [markdown]\n# failed", "no last cell that raises"),
    ],
)
def test_a_bad_example_is_caught(old: str, new: str, fault: str) -> None:
    bad = SOUND.replace(old, new, 1)
    assert bad != SOUND
    assert any(fault in found for found in faults(bad))


def test_an_empty_script_has_every_fault_but_an_unknown_key() -> None:
    assert len(faults("")) == 4


def test_a_claim_that_fails_fails_the_run(tmp_path: Path) -> None:
    script = tmp_path / "wrong.py"
    script.write_text(SOUND.replace("x = 2", "x = 3"), encoding="utf-8")
    assert run_script(script, tmp_path).returncode == 1
    script.write_text("import warnings\nwarnings.warn('careless')\n", encoding="utf-8")
    assert "careless" in run_script(script, tmp_path).stderr
