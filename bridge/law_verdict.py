"""What a count of laws amounts to: the result that users see, and its certificate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from importlib import metadata
from typing import Any, Final, Literal

import torch
from torch import Tensor

from noetherflow.bridge.ball_proofs import BallProof
from noetherflow.bridge.certificate import FORMAT, Certificate
from noetherflow.bridge.law_counts import Count
from noetherflow.bridge.live_sampling import LiveSampling
from noetherflow.bridge.missing_laws import described, missing_directions
from noetherflow.bridge.twins import Twin
from noetherflow.symbolic.graph import ArchitectureGraph

Mode = Literal["proved", "numerical"]

GAP: Final = 1e10
RECIPE: Final = (
    "Word k of a label is bytes 4k to 4k+3 of its SHAKE-256, little-endian; a word u gives u mod 198, less 99, plus one if that is "
    "not negative, over 64 (modulo the prime: times the inverse of 64). Parameter P has the label SEED/P. Tensor T in place j of the "
    "brackets of level l has SEED/l.j/T for all samples one after the other, T an input node or w:NODE, the cotangent of what a loss "
    "sees. A level-l bracket is [V_0, [V_1, ... V_l]] with [X, Y] = DY.X - DX.Y and V_j the gradient of the sum of cotangent times "
    "output. Where the graph has ReLUs, maxima or dropout, a sample is a sum over six inputs, with the pieces that hold at the point "
    "(samples with an unclear sign are passed over) or, if gates are 'free', any. Under a cross-entropy the last cotangent along its "
    "axis is minus the sum of the others. In float64 a word gives v = u / 2^31 - 1, then the sign of v times (0.3 + |v|)."
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
        Coordinates (D under gradient flow) − lie_dimension: no network of this graph has more laws that hold for every data set.
    complete : bool
        The two are equal at a point, no derived law was refuted at any, and if measured in float64 the gap is clear.
    mode : 'proved' or 'numerical'
        By ranks modulo a prime or, if there is a ``proof``, of matrices of balls; or measured: ranks in float64.
    gap : float
        Spectral gap at that point (infinite if proved); 1e10 and more is demanded.
    assumption : str
        What the count rests on beyond the graph; empty if nothing.
    missing : tuple of dict of str to Tensor
        A basis of the directions that no charge accounts for, by parameter.
    refuted : tuple of str
        Laws whose charge some gradient field moves: they are wrong.
    broken : tuple of str
        Derived laws that an eps breaks.
    certificate : Certificate
    coordinates : int
        What the flow moves: D, or 2 D + 1 along a momentum flow.
    twin : Twin or None
        The network of smaller width that all of this is about, if the given one was too large.
    proof : BallProof or None
        In ball arithmetic, of a network that is no polynomial.
    unproved : str
        Why there is none, if one was asked for.
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
    coordinates: int = 0
    twin: Twin | None = field(default=None, repr=False)
    proof: BallProof | None = field(default=None, repr=False)
    unproved: str = ""

    def __str__(self) -> str:
        how = "proved" if self.mode == "proved" else f"measured in float64, gap {self.gap:.0e}"
        how += f" {self.proof}" if self.proof else ""
        verdict = "complete" if self.complete else "not complete"
        moving = "" if self.coordinates == self.parameters else f", {self.coordinates} coordinates with velocities and time"
        lines = [
            f"{self.laws_found} of {self.laws_possible} laws: {verdict} ({how})",
            f"  {self.parameters} parameters{moving}, Lie algebra of dimension {self.lie_dimension}"
            + ("" if self.complete else " or more"),
        ]
        lines += [f"  not proved in ball arithmetic: {self.unproved}"] if self.unproved else []
        lines += [f"  assumed: {self.assumption}"] if self.assumption else []
        lines += [f"  sizes: {self.twin.changes}"] if self.twin else []
        lines += [f"  missing: a law of {described(direction)}" for direction in self.missing[:4]]
        lines += [f"  ... and {len(self.missing) - 4} more"] if len(self.missing) > 4 else []
        lines += [f"  refuted: {name} is not conserved" for name in self.refuted]
        lines += [f"  broken by eps, not counted: {', '.join(self.broken)}"] if self.broken else []
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return f"<pre>{escape(str(self))}</pre>"


def verdict(
    graph: ArchitectureGraph,
    counts: Sequence[Count],
    broken: tuple[str, ...],
    *,
    given: bool,
    twin: Twin | None = None,
    without_eps: bool = False,
    proof: BallProof | None = None,
    unproved: str = "",
) -> Completeness:
    """Of several points (float64), the one that leaves room for the fewest laws speaks; a proof is one at that point.

    The rank at a point is a lower bound of the generic one: where a unit is dead there is room for laws that hold only there, which
    contradicts nothing. How a live module was changed stands beside it.
    """
    best = best_of(counts)
    refuted = sorted(set[int]().union(*(c.refuted for c in counts)))
    gap = torch.inf if proof else best.gap
    complete = best.found == best.possible and not refuted and gap >= GAP
    mode: Mode = "proved" if best.sampling.prime or proof else "numerical"
    free = best.sampling.prime is not None and best.sampling.gates == "free" and bool(best.sampling.pieces)
    path_lifting = "data reach every pattern of ReLUs and maxima (laws of the path-lifting are counted)" if free else ""
    shown = "no field moves them at this point" + (", as far as balls show" if proof else "")
    by_hand = f"the laws given by hand are laws ({shown})" if given and mode == "proved" else ""
    assumption = "; ".join(filter(None, (twin.assumption if twin else "", path_lifting, by_hand)))
    names = tuple(best.laws[i].name for i in refuted)
    missing = missing_directions(best) if not complete else ()
    data = {
        "format": FORMAT,
        "versions": {name: metadata.version(name) for name in ("noetherflow", "torch")},
        "claim": f"{best.found} independent conservation laws are {'given' if given else 'derived'}; "
        f"at most {best.possible} exist that hold for every data set."
        + (" This is claimed of the twin in 'graph', not of the original." if twin else ""),
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
        **({"evaluated": "module", "without_eps": without_eps} if isinstance(best.sampling, LiveSampling) else {"evaluated": "graph"}),
        "flow": best.dynamics.described(),
        "order": {name: list(x.shape) for name, x in best.state.items()},
        "points": [_point(c) for c in counts],
        "recipe": RECIPE,
        "graph": graph.to_json(),
        **({"missing": [{"parameters": sorted(d), "at": described(d)} for d in missing]} if missing else {}),
        **({"twin": twin.described()} if twin else {}),
        **({"balls": proof.described(best)} if proof else {}),
    }
    return Completeness(
        *(best.parameters, best.growth.rank, best.found, best.possible, complete, mode, gap, assumption),
        missing,
        names,
        broken,
        Certificate(data),
        best.coordinates,
        twin,
        proof,
        unproved,
    )


def best_of(counts: Sequence[Count]) -> Count:
    """The one that leaves room for the fewest laws; of several, that with the clearest gap."""
    return min(counts, key=lambda c: (c.possible, -c.gap))


def _point(count: Count) -> dict[str, Any]:
    sampling, steps = count.sampling, [list(step) for step in count.growth.steps]
    return {
        **{"seed": sampling.seed, "gates": sampling.gates, "prime": sampling.prime},
        **{"levels_first_rows_rank": steps, "charges": count.found, "gap": None if sampling.prime else float(f"{count.gap:.1e}")},
        "closed": count.growth.closed,
    }
