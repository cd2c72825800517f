"""A small-width twin of a network that is too large to count the laws of: the same operations, parameters and wiring, other sizes.

A law of a family holds at every width, so what is counted for the twin says of the original that each of its families is there and, in so
far as widths do not matter, that no other is. Nothing is proved of the original: the twin's count is a theorem (or a measurement) about the
twin, and every result says so. A twin is refused unless its derived families are those of the original, parameter by parameter.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from math import prod
from typing import Any, Final

from torch.func import vmap

from noetherflow.bridge.evaluation import Unevaluable
from noetherflow.bridge.sampling import Sampling
from noetherflow.bridge.twin_tables import fill
from noetherflow.errors import GraphError, ModelError
from noetherflow.numeric.modular import PRIMES, ContractionTooLong, Modulo, NotPolynomial
from noetherflow.symbolic.gauge import symmetries
from noetherflow.symbolic.graph import ArchitectureGraph
from noetherflow.symbolic.resized import resized
from noetherflow.symbolic.symmetries import Symmetries, Symmetry
from noetherflow.symbolic.twin_sizes import Sizes

LIMITS: Final = {"proved": 6000, "numerical": 1200}
COMFORTABLE: Final = {"proved": 1200, "numerical": 600}
"""The widest twin with at most so many parameters is taken, if there is one; larger ones take minutes."""
NARROWEST: Final = (4, 3, 2)
REFUSALS: Final = 4


@dataclass(frozen=True)
class Twin:
    """A smaller network with the same graph.

    Attributes
    ----------
    original, graph : ArchitectureGraph
        The network, and its twin.
    given : dict of str to str
        Constant that is not the original's own at the twin's sizes -> what the twin has in its place.
    """

    original: ArchitectureGraph
    graph: ArchitectureGraph
    given: Mapping[str, str]

    @cached_property
    def parameters(self) -> tuple[int, int]:
        """Trainable parameters of the original, and of the twin."""
        return trainable(self.original), trainable(self.graph)

    @cached_property
    def sizes(self) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
        """Parameter -> its shape in the original, and in the twin."""
        return {n: (_integers(p.shape), _integers(self.graph.parameters[n].shape)) for n, p in self.original.parameters.items()}

    @property
    def assumption(self) -> str:
        """What a count for the twin rests on."""
        tables = f"; with {', '.join(sorted(set(self.given.values())))}" if self.given else ""
        return "counted for a twin of smaller width ({:,} parameters become {:,}){}".format(*self.parameters, tables)

    def described(self) -> dict[str, Any]:
        """As JSON values: the original's graph with it, so that anybody can compare the two."""
        shapes = {name: [list(before), list(after)] for name, (before, after) in self.sizes.items()}
        return {"parameters": list(self.parameters), "shapes": shapes, "given": dict(self.given), "original": self.original.to_json()}

    @property
    def changes(self) -> str:
        """Sizes of parameters' axes, before and after."""
        changed: dict[str, None] = {}
        for before, after in self.sizes.values():
            changed |= {f"{a} -> {b}": None for a, b in zip(before, after, strict=True) if a != b}
        return ", ".join(changed)

    def __str__(self) -> str:
        return f"{self.assumption}\n  sizes: {self.changes}"


def twin(graph: ArchitectureGraph) -> Twin:
    """The same network with smaller widths, small enough for `noetherflow.completeness`.

    Parameters
    ----------
    graph : ArchitectureGraph
        With integer sizes. Depth, kernels and what kernels slide over stay; widths, heads, vocabularies and sequences shrink.

    Raises
    ------
    ModelError
        If even the narrowest twin is too large, it cannot be evaluated, or its families of symmetries are not those of the original.

    Examples
    --------
    >>> from torch import nn, zeros
    >>> from noetherflow.bridge.trace import trace
    >>> print(twin(trace(nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 10)), zeros(64, 784))))
    counted for a twin of smaller width (407,050 parameters become 59)
      sizes: 512 -> 5, 784 -> 6, 10 -> 4
    """
    found, why = symmetries(graph), ""
    for small in islice(_candidates(Sizes(graph)), REFUSALS):
        given = fill(small)
        why = difference(found, symmetries(small))
        if not why:
            return Twin(graph, small, given)
    raise ModelError(f"No twin of smaller width has the symmetries of this network: {why}. Build a smaller network of the kind by hand.")


def _candidates(sizes: Sizes) -> Iterator[ArchitectureGraph]:
    """Graphs of other sizes that can be evaluated and are small enough, the most comfortable first."""
    made = [resized(sizes, sizes.chosen(widths)) for widths in _ladder(len(sizes.widths))]
    mode = _mode_of_twin(made[-1])
    counts = [trainable(graph) for graph in made]
    if min(counts) > LIMITS[mode]:
        raise ModelError(
            f"The narrowest twin of this network, every width cut down to {NARROWEST[-1]}, still has {min(counts):,} trainable parameters; "
            f"laws are counted for up to {LIMITS[mode]:,}. Take fewer layers, or smaller kernels{_held(sizes)}.",
            parameters=min(counts),
        )
    fitting = sorted((i for i, count in enumerate(counts) if count <= LIMITS[mode]), key=lambda i: counts[i])
    comfortable = [i for i in range(len(made)) if counts[i] <= COMFORTABLE[mode]]
    yield from (made[i] for i in dict.fromkeys([*comfortable, *fitting]))


def _ladder(count: int) -> list[list[int]]:
    """New widths for `count` different ones in ascending order: all different where that is small enough, else fewer."""
    spreads = [s for s in dict.fromkeys((count - 1, 3, 2, 1, 0)) if 0 <= s < max(count, 1)]
    pairs = [(least, spread) for spread in spreads for least in NARROWEST]
    pairs.sort(key=lambda pair: pair[0] == NARROWEST[-1])  # two of anything is a last resort: pairs of ReLUs are dead or alive together
    return [[least + (i * spread) // max(count - 1, 1) for i in range(count)] for least, spread in pairs]


def _held(sizes: Sizes) -> str:
    unread = sorted(sizes.program.unread)
    return f"; sizes at {', '.join(unread[:3])}, whose operation is not known or does not fit, cannot change" if unread else ""


def _mode_of_twin(graph: ArchitectureGraph) -> str:
    try:
        return mode_of(graph)
    except Unevaluable as err:
        raise ModelError(
            f"A twin of smaller width is counted from its graph alone, for a live module cannot be made smaller. {err}"
        ) from err


def mode_of(graph: ArchitectureGraph) -> str:
    """How its laws are counted, 'proved' or 'numerical'; it is evaluated for this, with whatever tables it lacks.

    Raises
    ------
    Unevaluable
        If it cannot be.
    """
    whole = ArchitectureGraph.from_json(graph.to_json())
    fill(whole)
    sampling = Sampling(whole, "0", "free", PRIMES[-1])
    try:
        samples, _ = sampling.samples(0, 0, 1)
        theta, _ = sampling.theta, sampling.held  # made before arithmetic is modulo the prime
        with Modulo(PRIMES[-1]):
            vmap(sampling.scalar, in_dims=(None, 0))(theta, samples)
    except NotPolynomial:
        return "numerical"
    except ContractionTooLong:
        pass
    return "proved"


def difference(original: Symmetries, small: Symmetries) -> str:
    """What one has of families that the other has not, in words; empty if nothing."""
    ours, theirs = Counter(map(_signature, original)), Counter(map(_signature, small))
    lost, new = [*(ours - theirs)], [*(theirs - ours)]
    if original.opaque.keys() != small.opaque.keys():
        return f"nothing passes {sorted(original.opaque.keys() ^ small.opaque.keys())[:3]} in one of the two"
    said = [f"{len(lost)} families of the original are not in the twin, such as {_named(lost)}"] if lost else []
    said += [f"{len(new)} families of the twin are not in the original, such as {_named(new)}"] if new else []
    return "; ".join(said)


def _signature(symmetry: Symmetry) -> tuple[Any, ...]:
    """A family but for its sizes; of matrices also whether some of them meet nothing, which is so in wide layers only."""
    wide = tuple(symmetry.unseen(*signs) > 0 for signs in ((1,), (-1,))) if symmetry.matrix or symmetry.rotation else ()
    return symmetry.kind, symmetry.parameters, len(symmetry.indices), tuple(sorted(symmetry.zero_mean)), symmetry.centred, wide


def _named(signatures: Sequence[tuple[Any, ...]]) -> str:
    kind, parameters = signatures[0][:2]
    return f"{kind} of {', '.join(parameters[:3])}" + (", ..." if len(parameters) > 3 else "")


def check_twin(found: Twin) -> None:
    """Hold a twin against its original.

    Raises
    ------
    GraphError
        If operations, wiring or families differ.
    """
    large, small = found.original, found.graph
    for node, data in small.nodes(data=True):
        other = large.nodes.get(node)
        same = other is not None and (other["operation"], other["parameters"]) == (data["operation"], data["parameters"])
        if not same or large.inputs_of(node) != small.inputs_of(node):
            raise GraphError(f"'{node}' of the twin is not what it is in the original.", node=node)
    if large.parameters.keys() != small.parameters.keys():
        raise GraphError(f"The twin has other parameters: {sorted(large.parameters.keys() ^ small.parameters.keys())[:3]}.")
    _check_constants(found)
    why = difference(symmetries(large), symmetries(small))
    if why:
        raise GraphError(f"The twin has other symmetries: {why}.")


def _check_constants(found: Twin) -> None:
    """Masks and tables are the original's own at the twin's sizes, and what is not is said."""
    again = ArchitectureGraph.from_json(found.graph.to_json())
    constants = [n for n, d in again.nodes(data=True) if d["operation"] in ("constant", "masked")]
    for node in constants:
        data = found.original.nodes[node]
        again.nodes[node].update(attributes=dict(data["attributes"]), dtype=data["dtype"])
    given = fill(again)
    for node in constants:
        if again.nodes[node]["attributes"] != found.graph.nodes[node]["attributes"] or given.get(node) != found.given.get(node):
            raise GraphError(f"The constant at '{node}' of the twin is not what it is in the original, cut to size.", node=node)


def trainable(graph: ArchitectureGraph) -> int:
    """Entries of all trainable parameters."""
    return sum(prod(_integers(p.shape)) for p in graph.parameters.values() if p.trainable)


def _integers(shape: Sequence[Any]) -> tuple[int, ...]:
    return tuple(int(size) for size in shape)
