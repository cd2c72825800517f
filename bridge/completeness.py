r"""How many independent conservation laws gradient flow has on a network, whatever the data, and whether the derived ones are all.

Let χ_{x,w}(θ) = ∇_θ ⟨w, F(θ; x)⟩. A function h of the parameters is conserved for every data set exactly if ∇h is orthogonal to every χ, hence
to all their brackets: near a generic θ there are D − dim Lie{χ}(θ) independent ones (marcotte2023abide, section 2). Two numbers close in on it.

From above. At a point with integer entries every bracket has rational entries, so its residues modulo a prime p can be computed exactly.
A minor that is not zero modulo p is not zero, so the rank modulo p is at most dim Lie at that point: D − rank is an upper bound of the number
of laws on any open set around it, whatever the luck of point and prime. Laws that hold everywhere hold there.

From below. The gradients of the derived charges at the same point, independent by the same arithmetic. They must annihilate every bracket.

Where the two meet, the count is a theorem: no other law exists, of whatever form, that is not a function of these. Pieces (ReLU, maxima) are
those that the inputs give at the point, so nothing is assumed of the data but that any may occur. Where such pieces do not suffice, free ones
are taken, as in the path-lifting of marcotte2023abide: then the count is proved for laws of the path-lifting, hence for those of the network
if its data reach every pattern. Networks that are no polynomials are counted in float64, at two points, with the spectral gap reported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any, Final, Literal

from torch import Tensor, nn

import noetherflow
from noetherflow.bridge.certificate import FORMAT, Certificate
from noetherflow.bridge.evaluation import Unevaluable
from noetherflow.bridge.law_counts import Count
from noetherflow.bridge.lively_points import lively_seeds
from noetherflow.bridge.missing_laws import described, missing_directions
from noetherflow.bridge.sampling import Gates, Sampling
from noetherflow.bridge.trace import Loss, trace
from noetherflow.errors import ModelError, ReportError
from noetherflow.numeric.modular import PRIMES, ContractionTooLong, NotPolynomial
from noetherflow.symbolic.graph import ArchitectureGraph
from noetherflow.symbolic.laws import Law, derive

Mode = Literal["proved", "numerical"]

GAP: Final = 1e10
LARGEST: Final = {"proved": 6000, "numerical": 1200}
RECIPE: Final = (
    "Word k of a label is bytes 4k to 4k+3 of its SHAKE-256, little-endian; a word u gives u mod 198, less 99, plus one if that is not negative, "
    "over 64 (modulo the prime: times the inverse of 64). Parameter P has the label SEED/P. Tensor T in place j of the brackets of level l has "
    "SEED/l.j/T for all samples one after the other, T an input node or w:NODE, the cotangent of what a loss sees. A level-l bracket is "
    "[V_0, [V_1, ... V_l]] with [X, Y] = DY.X - DX.Y and V_j the gradient of the sum of cotangent times output; where the graph has ReLUs or "
    "maxima, a sample is a sum over six inputs, with the pieces that hold at the point (samples with an unclear sign are passed over) or, "
    "if gates are 'free', any. Under a cross-entropy the last cotangent along its axis is minus the sum of the others. In float64 a word gives "
    "v = u / 2^31 - 1, then the sign of v times (0.3 + |v|)."
)


@dataclass(frozen=True)
class Completeness:
    """How many laws there are, and how many are known.

    Attributes
    ----------
    parameters : int
        Trainable parameters, D; a shared one counts once.
    lie_dimension : int
        Rank of brackets of gradient fields at a point: a lower bound of the dimension of their Lie algebra, equal to it if `complete`.
    laws_found : int
        Independent derived charges at the point. A law that an eps breaks is no law and is not counted.
    laws_possible : int
        D − lie_dimension: no network of this graph has more laws that hold for every data set.
    complete : bool
        The two are equal, no derived law was refuted, and in float64 the gap is clear at every point.
    mode : 'proved' or 'numerical'
        Exact modulo a prime, or ranks in float64.
    gap : float
        Smallest spectral gap (infinite if proved); 1e10 and more is demanded.
    assumption : str
        What the count rests on beyond the graph; empty if nothing.
    missing : tuple of dict of str to Tensor
        A basis of the directions that no charge accounts for, by parameter.
    refuted : tuple of str
        Laws whose charge some gradient field moves: they are wrong.
    broken : tuple of str
        Derived laws that an eps breaks.
    certificate : Certificate
    """

    parameters: int
    lie_dimension: int
    laws_found: int
    laws_possible: int
    complete: bool
    mode: Mode
    gap: float
    assumption: str
    missing: tuple[dict[str, Tensor], ...]
    refuted: tuple[str, ...]
    broken: tuple[str, ...]
    certificate: Certificate = field(repr=False)

    def __str__(self) -> str:
        how = "proved" if self.mode == "proved" else f"numerical, gap {self.gap:.0e}"
        verdict = "complete" if self.complete else "not complete"
        lines = [
            f"{self.laws_found} of {self.laws_possible} laws: {verdict} ({how})",
            f"  {self.parameters} parameters, Lie algebra of dimension {self.lie_dimension}" + ("" if self.complete else " or more"),
        ]
        lines += [f"  assumed: {self.assumption}"] if self.assumption else []
        lines += [f"  missing: a law of {described(direction)}" for direction in self.missing[:4]]
        lines += [f"  ... and {len(self.missing) - 4} more"] if len(self.missing) > 4 else []
        lines += [f"  refuted: {name} is not conserved" for name in self.refuted]
        lines += [f"  broken by eps, not counted: {', '.join(self.broken)}"] if self.broken else []
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return f"<pre>{escape(str(self))}</pre>"


def completeness(
    model: nn.Module | ArchitectureGraph,
    *example_inputs: Any,
    loss: Loss = None,
    kwargs: Mapping[str, Any] | None = None,
    laws: Sequence[Law] | None = None,
    without_eps: bool = False,
    seed: int = 0,
) -> Completeness:
    """Count the conservation laws that hold for every data set, and compare with those derived.

    Parameters
    ----------
    model : nn.Module or ArchitectureGraph
        Small: D up to 6,000 where the count is exact, 1,200 where it is not. The graph is what is evaluated, at points of its own: the
        module's weights do not matter.
    *example_inputs, loss, kwargs
        As for `noetherflow.trace`, if a module is given. A cross-entropy sees logits up to a number common to all classes.
    laws : sequence of Law, optional
        To be checked in place of those that `noetherflow.derive` finds.
    without_eps : bool
        Count for eps = 0 in every normalisation; else eps is what the graph says, and laws that it breaks are none.
    seed : int

    Returns
    -------
    Completeness
        Its upper bound is proved if ``mode`` is 'proved', and ``complete`` then says that the count is a theorem (near the point, and so for
        laws that hold everywhere); otherwise sampled.

    Raises
    ------
    ModelError
        The network is too large.
    Unevaluable
        The graph does not hold what is needed to compute an operation.

    Examples
    --------
    >>> import torch
    >>> count = completeness(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.zeros(1, 3), loss="mse")
    >>> print(count)
    4 of 4 laws: complete (proved)
      26 parameters, Lie algebra of dimension 22
    """
    graph = model if isinstance(model, ArchitectureGraph) else trace(model, *example_inputs, loss=loss, kwargs=kwargs)
    graph = _without_eps(graph) if without_eps else graph
    _check_sizes(graph, "proved")
    every = list(derive(graph)) if laws is None else list(laws)
    counted = [law for law in every if not law.symmetry.breaking]
    broken = tuple(law.name for law in every if law.symmetry.breaking)
    attempts = _exact(graph, counted, seed) or _numerical(graph, counted, seed)
    return _result(graph, attempts, broken, given=laws is not None)


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
    try:
        graph = ArchitectureGraph.from_json(data["graph"])
        points = [(str(p["seed"]), p["gates"], p["prime"]) for p in data["points"]]
    except (KeyError, TypeError) as err:
        raise ReportError(f"The certificate is not whole: {err!r}. Write it again with certificate.save.") from err
    every = list(derive(graph))
    counted = [law for law in every if not law.symmetry.breaking]
    counts = [_counted(Sampling(graph, s, gates, prime), counted) for s, gates, prime in points]
    again = _result(graph, counts, tuple(law.name for law in every if law.symmetry.breaking), given=False)
    differs = [key for key, value in again.certificate.data.items() if key != "noetherflow" and not _same(value, data.get(key))]
    if differs or not points:
        raise ReportError(
            f"The certificate does not hold: computed again, {differs or 'its points'} differ(s). "
            f"It says {[data.get(k) for k in differs][:2]}, there is {[again.certificate.data[k] for k in differs][:2]}.",
            differs=differs,
        )
    return again


def _exact(graph: ArchitectureGraph, laws: Sequence[Law], seed: int) -> list[Count]:
    """The first point at which the counts meet, else the one that leaves room for the fewest laws; none for what is no polynomial."""
    found: list[Count] = []
    (lively,) = lively_seeds(graph, f"{seed}", PRIMES[0], 1)
    for gates, point in (("realised", lively), ("free", f"{seed}")):
        try:
            count = _modulo(graph, laws, point, gates)
        except NotPolynomial:
            return []
        except Unevaluable:
            if gates == "free":
                raise
            continue
        found.append(count)
        if count.growth.reached:
            break
    return [min(found, key=lambda c: c.possible)]


def _modulo(graph: ArchitectureGraph, laws: Sequence[Law], seed: str, gates: Gates) -> Count:
    """With the largest prime that the network's contractions allow."""
    for prime in PRIMES[:-1]:
        try:
            return _counted(Sampling(graph, seed, gates, prime), laws)
        except ContractionTooLong:
            continue
    return _counted(Sampling(graph, seed, gates, PRIMES[-1]), laws)


def _numerical(graph: ArchitectureGraph, laws: Sequence[Law], seed: int) -> list[Count]:
    _check_sizes(graph, "numerical")
    return [_counted(Sampling(graph, point, "realised", None), laws) for point in lively_seeds(graph, f"{seed}", None, 2)]


def _counted(sampling: Sampling, laws: Sequence[Law]) -> Count:
    count = Count(sampling, laws)
    count.run()
    return count


def _result(graph: ArchitectureGraph, counts: Sequence[Count], broken: tuple[str, ...], *, given: bool) -> Completeness:
    """Of several points (float64), the one that leaves room for the fewest laws speaks."""
    best = min(counts, key=lambda c: c.possible)
    refuted = sorted(set[int]().union(*(c.refuted for c in counts)))
    gap = min(c.gap for c in counts)
    agree = len({(c.found, c.possible) for c in counts}) == 1
    complete = agree and best.found == best.possible and not refuted and gap >= GAP
    mode: Mode = "proved" if best.sampling.prime else "numerical"
    free = best.sampling.prime is not None and best.sampling.gates == "free" and bool(best.sampling.pieces)
    assumption = "data reach every pattern of ReLUs and maxima (laws of the path-lifting are counted)" if free else ""
    names = tuple(best.laws[i].name for i in refuted)
    data = {
        "format": FORMAT,
        "noetherflow": noetherflow.__version__,
        "claim": f"{best.found} independent conservation laws are derived; at most {best.possible} exist that hold for every data set.",
        "mode": mode,
        "assumption": assumption,
        "parameters": best.parameters,
        "lie_dimension": best.growth.rank,
        "laws_found": best.found,
        "laws_possible": best.possible,
        "complete": complete,
        "refuted": list(names),
        "broken": list(broken),
        "laws": [law.name for law in best.laws],
        "laws_given": given,
        "order": {name: list(p.shape) for name, p in best.sampling.point.items()},
        "points": [_point(c) for c in counts],
        "recipe": RECIPE,
        "graph": graph.to_json(),
    }
    return Completeness(
        *(best.parameters, best.growth.rank, best.found, best.possible, complete, mode, gap, assumption),
        missing_directions(best) if not complete else (),
        names,
        broken,
        Certificate(data),
    )


def _point(count: Count) -> dict[str, Any]:
    sampling, steps = count.sampling, [list(step) for step in count.growth.steps]
    return {
        **{"seed": sampling.seed, "gates": sampling.gates, "prime": sampling.prime},
        **{"levels_first_rows_rank": steps, "charges": count.found, "gap": None if sampling.prime else float(f"{count.gap:.1e}")},
        "closed": count.growth.closed,
    }


def _same(value: Any, other: Any) -> bool:
    """Equal, gaps up to a factor of a hundred: they come from rounding."""
    if isinstance(value, dict) and isinstance(other, dict):
        return value.keys() == other.keys() and all(
            0.01 < value[k] / other[k] < 100 if k == "gap" and value[k] and other[k] else _same(value[k], other[k]) for k in value
        )
    if isinstance(value, list) and isinstance(other, list):
        return len(value) == len(other) and all(map(_same, value, other))
    return bool(value == other)


def _without_eps(graph: ArchitectureGraph) -> ArchitectureGraph:
    """The same network with eps = 0."""
    bare = ArchitectureGraph.from_json(graph.to_json())
    for _, data in bare.nodes(data=True):
        if "eps" in data["attributes"]:
            data["attributes"]["eps"] = 0.0
    return bare


def _check_sizes(graph: ArchitectureGraph, mode: Mode) -> None:
    sizes = [size for p in graph.parameters.values() for size in p.shape] + [size for _, d in graph.nodes(data=True) for size in d["shape"]]
    if not all(isinstance(size, int) for size in sizes):
        raise ModelError("The graph has symbolic sizes; laws are counted for one with numbers. Substitute some.")
    count = 0
    for p in graph.parameters.values():
        size = 1
        for s in p.shape:
            size *= int(s)
        count += size if p.trainable else 0
    if not 0 < count <= LARGEST[mode]:
        raise ModelError(
            f"The graph has {count:,} trainable parameters; laws are counted for 1 to {LARGEST[mode]:,} "
            f"({'exact' if mode == 'proved' else 'in float64, as it is no polynomial'}). Count those of the same network with smaller widths.",
            parameters=count,
        )
