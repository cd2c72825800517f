"""A stand-in for torchvision, so that timm can be imported where torchvision is not installed.

timm reads names from torchvision when it is imported (image transforms, data sets, frozen batch normalisation); its models do not use them.
The stand-in is there only while timm is being imported, so that no other package takes it for the real one.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

MODULES: Final = (
    "torchvision",
    "torchvision.transforms",
    "torchvision.transforms.functional",
    "torchvision.datasets",
    "torchvision.ops",
    "torchvision.ops.misc",
)


class _Members(type):
    def __getattr__(cls, name: str) -> str:
        if name.startswith("__"):
            raise AttributeError(name)
        return name


class _Unused(metaclass=_Members):
    """Any class or enumeration that timm takes from torchvision."""

    def __init__(self, *args: Any, **options: Any) -> None:
        raise NotImplementedError("This is a stand-in for torchvision; install torchvision to use it.")


class _Package(types.ModuleType):
    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__ = []  # what marks a module as a package

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Unused


@contextmanager
def torchvision_or_stub() -> Iterator[None]:
    """Torchvision where it is installed, else the stand-in for as long as the context lasts."""
    if "torchvision" in sys.modules or importlib.util.find_spec("torchvision") is not None:
        yield
        return
    made = {name: _Package(name) for name in MODULES}
    for name, module in made.items():
        parent, _, last = name.rpartition(".")
        if parent:
            setattr(made[parent], last, module)
    sys.modules.update(made)
    try:
        yield
    finally:
        for name in made:
            del sys.modules[name]
