"""The house around the code: layout, metadata, front door, errors and sources."""

import configparser
import importlib
import importlib.metadata
import pickle
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import noetherflow as nf
from noetherflow import errors, sources

ROOT = Path(__file__).resolve().parents[1]
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg", encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
ERRORS = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, errors.NoetherflowError)]


def listed(option: str) -> list[str]:
    return SETUP["options"][option].split("\n")[1:]


def folders() -> dict[str, str]:
    """Package -> folder, as setup.cfg maps them."""
    return dict(line.split(" = ") for line in listed("package_dir"))


def test_setup_lists_exactly_the_folders_that_hold_modules() -> None:
    assert sorted(folders()) == sorted(listed("packages"))
    for package, folder in folders().items():
        assert (ROOT / folder / "__init__.py").is_file(), package
        # Flat: a subfolder with modules would be missing from wheels unless setup.cfg lists it.
        inner = [path for path in (ROOT / folder).iterdir() if path.is_dir() and not path.is_symlink()]
        assert [path for path in inner if any(path.rglob("*.py"))] == []


def test_no_folder_with_modules_is_forgotten() -> None:
    tops = {path.parent.name for path in ROOT.glob("*/__init__.py") if not path.parent.name.startswith(".")}
    assert tops - {"tests"} == set(folders().values())


@pytest.mark.parametrize("name", ["symbolic", "numeric", "bridge"])
def test_links_are_relative_or_what_git_writes_without_links(name: str) -> None:
    link = ROOT / "noetherflow" / name
    target = str(link.readlink()) if link.is_symlink() else link.read_text()
    assert target == f"../{name}"


def test_folders_are_imported_from_where_the_face_is() -> None:
    face = Path(nf.__file__).resolve()
    numeric = Path(importlib.import_module("noetherflow.numeric").__file__ or "").resolve()
    assert numeric.parent in (face.parents[1] / "numeric", face.parent / "numeric")


def test_one_version_everywhere() -> None:
    cited = re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert cited is not None
    assert nf.__version__ == PROJECT["project"]["version"] == importlib.metadata.version("noetherflow") == cited[1]


def test_marked_as_typed() -> None:
    assert Path(nf.__file__).with_name("py.typed").is_file()


def test_every_dependency_is_pinned() -> None:
    def key(requirement: str) -> str:
        return re.split(r"[\[<>=!~ ]", requirement)[0].lower()

    pins = {key(line) for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")}
    wanted = [*PROJECT["project"]["dependencies"], *PROJECT["project"]["optional-dependencies"]["dev"]]
    assert {key(requirement) for requirement in wanted} <= pins


def test_the_front_door_lists_its_names_before_they_are_loaded() -> None:
    program = "import noetherflow as nf; print(set(nf.__all__) <= set(dir(nf)), 'trace' in vars(nf))"
    assert subprocess.check_output([sys.executable, "-c", program], text=True).split() == ["True", "False"]


@pytest.mark.parametrize("name", nf.__all__)
def test_every_public_name_opens(name: str) -> None:
    assert getattr(nf, name) is getattr(nf, name)


def test_the_table_and_all_agree() -> None:
    assert set(nf.__all__) == {*nf._FRONT_DOOR, "__version__"}


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'trance'.*symmetries.*watch"):
        nf.trance  # noqa: B018 - the access itself is under test


@pytest.mark.parametrize("kind", ERRORS)
def test_errors_keep_their_data_also_when_pickled(kind: type[errors.NoetherflowError]) -> None:
    error = kind("No rule for 'x'.", operation="x", sizes=(2, 3))
    for copy in (error, pickle.loads(pickle.dumps(error))):
        assert type(copy) is kind
        assert str(copy) == "No rule for 'x'."
        assert (copy.operation, copy.sizes, copy.data) == ("x", (2, 3), {"operation": "x", "sizes": (2, 3)})  # type: ignore[attr-defined]


def test_errors_share_one_base() -> None:
    assert len(ERRORS) >= 7
    assert all(issubclass(kind, errors.NoetherflowError) for kind in ERRORS)


def field(entry: str, name: str) -> str | None:
    found = re.search(rf"^  {name} = \{{(.*)\}},?$", entry, re.MULTILINE)
    return found[1] if found else None


@pytest.mark.parametrize(("key", "entry"), list(sources.references().items()))
def test_an_entry_has_title_author_and_year_and_balanced_braces(key: str, entry: str) -> None:
    year = field(entry, "year")
    assert field(entry, "title")
    assert field(entry, "author")
    assert year is not None
    assert re.fullmatch(rf"[a-z]+{year}[a-z]+", key)
    assert entry.count("{") == entry.count("}")
    assert re.fullmatch(r"\d{4}\.\d{4,5}", field(entry, "eprint") or "2105.02716")


def test_no_preprint_is_listed_under_two_keys() -> None:
    numbers = [number for entry in sources.references().values() if (number := field(entry, "eprint"))]
    assert len(numbers) == len(set(numbers))


def test_cite_prints_what_was_asked_once_and_in_order() -> None:
    text = sources.cite("saxe2014exact", "own", "kunin2021neural", "saxe2014exact")
    assert re.findall(r"^@\w+\{(\w+),", text, re.MULTILINE) == ["saxe2014exact", "kunin2021neural"]
    assert sources.cite() == ""


def test_an_unknown_key_is_refused_with_near_ones() -> None:
    with pytest.raises(errors.SourceError, match="'tanaka2021noether'") as caught:
        sources.cite("tanaka2021noethers")
    assert caught.value.data["key"] == "tanaka2021noethers"


@pytest.mark.parametrize("text", ["@misc{a1,\n  year = {1}\n}\n@misc{a1,\n  year = {1}\n}\n", "@misc{a1,\n  year = {1}}\n"])
def test_a_malformed_bibliography_is_refused(text: str) -> None:
    with pytest.raises(errors.SourceError):
        sources.parse_bibtex(text)
