"""Work without Python's search for garbage cycles."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """Hold back the collector of reference cycles.

    A derivation makes some hundred thousand small objects that live until its end and form no cycles; every pass of the collector walks
    over all of them, again and again, which takes a third of the time of a deep network.
    """
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
