"""A certificate of completeness computed again: from its graph and its seeds, never from its numbers.

Where the graph does not hold all that a module computes with, the module is run, and must be the one that the certificate is of: traced
anew it has the same graph, parameter by parameter and node by node.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, get_args

from torch import nn

from noetherflow.bridge.ball_proofs import BallProof, prove
from noetherflow.bridge.certificate import Certificate
from noetherflow.bridge.completeness import bare_of_eps, counted, known_laws
from noetherflow.bridge.counted_flows import dynamics_of
from noetherflow.bridge.law_counts import Count
from noetherflow.bridge.law_verdict import Completeness, best_of, verdict
from noetherflow.bridge.live_sampling import live_samplings
from noetherflow.bridge.sampling import Gates, Sampling
from noetherflow.bridge.trace import LOSS_NAMES, trace
from noetherflow.bridge.twins import Twin, check_twin
from noetherflow.errors import GraphError, ReportError
from noetherflow.numeric.balls import NotEnclosed
from noetherflow.numeric.modular import PRIMES
from noetherflow.symbolic.graph import ArchitectureGraph

LOOSE: Final = ("gap", "contraction")
# What a graph or a proof that nothing of noetherflow has written makes of the code that reads it.
BROKEN: Final = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
    RuntimeError,
    SystemError,
    TypeError,
    ValueError,
)


def check_certificate(
    certificate: Certificate, model: nn.Module | None = None, *example_inputs: Any, kwargs: Mapping[str, Any] | None = None
) -> Completeness:
    """Compute every number of a certificate again, from its graph and seeds.

    Parameters
    ----------
    certificate : Certificate
    model : nn.Module, optional
        Whose laws were counted. It is run where its graph does not hold enough (then it is needed); otherwise its graph is compared only.
    *example_inputs, kwargs
        As for `noetherflow.completeness`.

    Raises
    ------
    ReportError
        If a number differs, the certificate is of laws that were given by hand, it is of another module, or the module is missing.
    """
    data = certificate.data
    if data.get("laws_given"):
        raise ReportError("The certificate is of laws that were given by hand, so they cannot be derived again from its graph.")
    live = data.get("evaluated") != "graph"
    if live and model is None:
        raise ReportError(
            "The certificate is of a module whose graph does not hold all that it computes with, so the module itself must be run. "
            "Give it: --model FILE.py:FUNCTION, or check_certificate(certificate, model, *inputs)."
        )
    try:
        again = _computed(data, model if live else None, example_inputs, kwargs)
    except BROKEN as err:
        raise ReportError(f"The certificate is not whole, or its graph is none: {err!r}. Write it again with certificate.save.") from err
    if model is not None:
        _check_module(_original(data), model, example_inputs, kwargs)
    differs = [key for key, value in again.certificate.data.items() if key != "versions" and not _alike(key, again, value, data.get(key))]
    differs += sorted(data.keys() - again.certificate.data.keys() - {"versions"})
    if differs:
        raise ReportError(
            f"The certificate does not hold: computed again, {differs} differ(s). "
            f"It says {[data.get(k) for k in differs][:2]}, there is {[again.certificate.data.get(k) for k in differs][:2]}.",
            differs=differs,
        )
    return again


def _computed(data: Mapping[str, Any], live: nn.Module | None, inputs: Sequence[Any], kwargs: Mapping[str, Any] | None) -> Completeness:
    """Every number again; on a module, if it has to be run."""
    graph, points, dynamics = ArchitectureGraph.from_json(data["graph"]), [_place(p) for p in data["points"]], dynamics_of(data["flow"])
    if not points or len(set(points)) < len(points):
        raise ReportError(f"The certificate counts at {len(points)} points, {len(set(points))} of them different; one at least, each once.")
    twin, bare = _twin(data["twin"], graph) if "twin" in data else None, bool(data.get("without_eps"))
    standing, broken = known_laws(graph, dynamics)
    samplings: Sequence[Sampling] = [Sampling(graph, *point) for point in points]
    if live is not None:
        _check_module(graph, live, inputs, kwargs)
        samplings = [*live_samplings(graph, [seed for seed, _, _ in points], live, inputs, kwargs, without_eps=bare)]
    counts = [counted(s, standing, dynamics) for s in samplings]
    proof = _proved_again(counts, data["balls"]) if "balls" in data else None
    return verdict(graph, counts, broken, given=False, twin=twin, without_eps=bare, proof=proof)


def _original(data: Mapping[str, Any]) -> ArchitectureGraph:
    """The graph of the network that a certificate names: of a twin, not the twin's."""
    return ArchitectureGraph.from_json(data["twin"]["original"] if "twin" in data else data["graph"])


def _place(point: Mapping[str, Any]) -> tuple[str, Gates, int | None]:
    """Seed, pieces and prime of a count. Of other numbers arithmetic would be neither exact nor in a field."""
    seed, gates, prime = point["seed"], point["gates"], point["prime"]
    if not isinstance(seed, str) or gates not in get_args(Gates) or not (prime is None or (type(prime) is int and prime in PRIMES)):
        raise ReportError(
            f"The certificate counts at seed {seed!r} with {gates!r} pieces modulo {prime!r}; a seed is text, pieces are one of "
            f"{', '.join(get_args(Gates))}, and the prime one of {', '.join(map(str, PRIMES))}, or null in float64."
        )
    return seed, gates, prime


def _proved_again(counts: Sequence[Count], stated: Any) -> BallProof:
    """The minors that a certificate names, evaluated anew: they need not be those that this machine's float64 would choose."""
    try:
        return prove(best_of(counts), stated)
    except BROKEN as err:
        raise ReportError(f"The certificate's proof in balls is not whole: {err!r}. Write it again with certificate.save.") from err
    except NotEnclosed as err:
        raise ReportError(f"The certificate does not hold: computed again, its proof in balls fails: {err}.") from err


def _check_module(graph: ArchitectureGraph, model: nn.Module, inputs: Sequence[Any], kwargs: Mapping[str, Any] | None) -> None:
    """Traced anew, with the loss at the graph's end or its own, the module has this graph, or has it but for its eps."""
    ends = {data["operation"] for node, data in graph.nodes(data=True) if not graph.out_degree(node)}
    losses = [name for name, operation in LOSS_NAMES.items() if operation in ends]
    traced = [trace(model, *inputs, loss=loss, kwargs=kwargs) for loss in (*losses, None)]
    if not any(graph.to_json() in (other.to_json(), bare_of_eps(other).to_json()) for other in traced):
        raise ReportError(f"The certificate is of another module than {type(model).__name__}: {_other(graph, traced[0])}.")


def _other(graph: ArchitectureGraph, traced: ArchitectureGraph) -> str:
    ours, theirs = ({name: p.shape for name, p in g.parameters.items()} for g in (traced, graph))
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            before, now = (shapes.get(name, "not there") for shapes in (theirs, ours))
            return f"its parameter '{name}' is {before} in the certificate, and {now} in the module"
    differing = [n for n in {**dict(graph.nodes), **dict(traced.nodes)} if graph.nodes.get(n) != traced.nodes.get(n)]
    return f"their graphs differ at {differing[:3] or 'their edges'} (inputs of other shapes make another graph too)"


def _twin(data: Mapping[str, Any], graph: ArchitectureGraph) -> Twin:
    found = Twin(ArchitectureGraph.from_json(data["original"]), graph, dict(data["given"]))
    try:
        check_twin(found)
    except GraphError as err:
        raise ReportError(f"The certificate is of a network that is no twin of the one it names: {err}") from err
    return found


def _alike(key: str, again: Completeness, value: Any, other: Any) -> bool:
    return (_same_places if key == "missing" and again.mode == "numerical" else _same)(value, other)


def _same_places(value: Any, other: Any) -> bool:
    """As many missing directions, in the same parameters; which entries a sparse basis has is not unique in float64."""
    if not isinstance(other, list) or len(value) != len(other) or not all(isinstance(one, dict) for one in other):
        return False
    first, second = ({str(name) for one in directions for name in one.get("parameters", ())} for directions in (value, other))
    return first == second


def _same(value: Any, other: Any) -> bool:
    """Equal, gaps and contractions up to a factor of a hundred: they come from rounding."""
    if isinstance(value, dict) and isinstance(other, dict):
        return value.keys() == other.keys() and all(
            _near(value[k], other[k]) if k in LOOSE and isinstance(value[k], float) else _same(value[k], other[k]) for k in value
        )
    if isinstance(value, list) and isinstance(other, list):
        return len(value) == len(other) and all(map(_same, value, other))
    return type(value) is type(other) and bool(value == other)


def _near(value: float, other: Any) -> bool:
    return isinstance(other, float) and (value == other or (other > 0 and 0.01 < value / other < 100))
