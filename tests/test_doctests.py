"""Every example in a docstring is run, in the package as it is installed: never by path, which would import modules twice."""

import doctest
import importlib
import pkgutil

import pytest

import noetherflow

# Running the entry point would end the test run, and it has no examples.
NAMES = [
    "noetherflow",
    *sorted(m.name for m in pkgutil.walk_packages(noetherflow.__path__, "noetherflow.") if m.name != "noetherflow.__main__"),
]
# A walk that finds too little is a broken walk, not a package without examples.
FEWEST_MODULES, FEWEST_EXAMPLES = 12, 25


def examples_in(name: str) -> int:
    """Number of examples in a module's docstrings."""
    return sum(len(test.examples) for test in doctest.DocTestFinder().find(importlib.import_module(name)))


@pytest.mark.parametrize("name", NAMES)
def test_examples(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0


def test_the_walk_reaches_every_folder_and_many_examples() -> None:
    assert len(NAMES) >= FEWEST_MODULES
    assert {name.split(".")[1] for name in NAMES[1:]} >= {"symbolic", "numeric", "bridge", "errors", "sources"}
    assert sum(map(examples_in, NAMES)) >= FEWEST_EXAMPLES
