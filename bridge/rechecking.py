"""A certificate of completeness computed again: from its graph and its seeds, never from its numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, get_args

from noetherflow.bridge.ball_proofs import BallProof, prove
from noetherflow.bridge.certificate import Certificate
from noetherflow.bridge.completeness import counted, known_laws
from noetherflow.bridge.counted_flows import dynamics_of
from noetherflow.bridge.law_counts import Count
from noetherflow.bridge.law_verdict import Completeness, best_of, verdict
from noetherflow.bridge.sampling import Gates, Sampling
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


def check_certificate(certificate: Certificate) -> Completeness:
    """Compute every number of a certificate again, from its graph and seeds.

    Raises
    ------
    ReportError
        If a number differs, or the certificate is of laws that were given by hand.
    """
    data = certificate.data
    if data.get("laws_given"):
        raise ReportError("The certificate is of laws that were given by hand, so they cannot be derived again from its graph.")
    if data.get("evaluated") != "graph":
        raise ReportError("The certificate is of a module whose graph does not hold all that it computes with; count its laws again.")
    try:
        again = _computed(data)
    except BROKEN as err:
        raise ReportError(f"The certificate is not whole, or its graph is none: {err!r}. Write it again with certificate.save.") from err
    differs = [key for key, value in again.certificate.data.items() if key != "versions" and not _same(value, data.get(key))]
    differs += sorted(data.keys() - again.certificate.data.keys() - {"versions"})
    if differs:
        raise ReportError(
            f"The certificate does not hold: computed again, {differs} differ(s). "
            f"It says {[data.get(k) for k in differs][:2]}, there is {[again.certificate.data.get(k) for k in differs][:2]}.",
            differs=differs,
        )
    return again


def _computed(data: Mapping[str, Any]) -> Completeness:
    graph, points, dynamics = ArchitectureGraph.from_json(data["graph"]), [_place(p) for p in data["points"]], dynamics_of(data["flow"])
    if not points or len(set(points)) < len(points):
        raise ReportError(f"The certificate counts at {len(points)} points, {len(set(points))} of them different; one at least, each once.")
    twin = _twin(data["twin"], graph) if "twin" in data else None
    standing, broken = known_laws(graph, dynamics)
    counts = [counted(Sampling(graph, s, gates, prime), standing, dynamics) for s, gates, prime in points]
    proof = _proved_again(counts, data["balls"]) if "balls" in data else None
    return verdict(graph, counts, broken, given=False, twin=twin, proof=proof)


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


def _twin(data: Mapping[str, Any], graph: ArchitectureGraph) -> Twin:
    found = Twin(ArchitectureGraph.from_json(data["original"]), graph, dict(data["given"]))
    try:
        check_twin(found)
    except GraphError as err:
        raise ReportError(f"The certificate is of a network that is no twin of the one it names: {err}") from err
    return found


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
