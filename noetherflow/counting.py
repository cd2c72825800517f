"""What ``noetherflow completeness`` is told in words: along which flow laws are counted."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from noetherflow.errors import ModelError, RuleError
from noetherflow.symbolic.metrics import Mirror, Natural
from noetherflow.symbolic.potentials import read_potential

NATURAL = "natural"


def friction(text: str) -> int:
    """A friction, from the command line.

    >>> friction("3")
    3
    """
    if not text.strip().isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected an integer of at least 1, got '{text}'")
    return int(text)


def metric(texts: Sequence[str] | None, parameters: Sequence[str]) -> Mirror | Natural | None:
    """A metric, from what was given for ``--metric``.

    Parameters
    ----------
    texts : sequence of str or None
        'natural'; or a potential in x, and for single parameters others, as PARAMETER=POTENTIAL.
    parameters : sequence of str
        Names that the network has.

    Raises
    ------
    ModelError
        If a text is none of these, or names a parameter that is not there.

    Examples
    --------
    >>> metric(["x*log(x)"], ["w"]).potential
    x*log(x)
    >>> metric(["x**2/2", "w=x*log(x)"], ["w"]).elsewhere
    {'w': x*log(x)}
    """
    if not texts:
        return None
    if NATURAL in texts:
        if len(texts) > 1:
            raise ModelError(f"--metric {NATURAL} stands alone: it is of all parameters together; got {list(texts)}.")
        return Natural()
    pairs = [(name, potential) for name, _, potential in (text.rpartition("=") for text in texts)]
    unknown = sorted({name for name, _ in pairs if name} - set(parameters))
    if unknown:
        raise ModelError(f"--metric names {unknown}, which the network does not have; its parameters are {list(parameters)[:8]}.")
    everywhere = [potential for name, potential in pairs if not name]
    if len(everywhere) > 1 or len({name for name, _ in pairs}) < len(pairs):
        raise ModelError(f"--metric takes one potential for all parameters, and one for each that is named; got {list(texts)}.")
    try:
        elsewhere = {name: read_potential(potential) for name, potential in pairs if name}
        return Mirror(read_potential(everywhere[0] if everywhere else "x**2/2"), elsewhere)
    except RuleError as err:
        raise ModelError(f"--metric expects '{NATURAL}', a potential, or PARAMETER=POTENTIAL. {err}") from err
