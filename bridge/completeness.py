r"""How many independent conservation laws gradient flow has on a network, whatever the data, and whether the derived ones are all.

Let χ_{x,w}(θ) = ∇_θ ⟨w, F(θ; x)⟩. A function h of the parameters is conserved for every data set exactly if ∇h is orthogonal to every χ,
hence to all their brackets: near a generic θ there are D − dim Lie{χ}(θ) independent ones (marcotte2023abide, section 2). Two numbers close
in on it.

From above. At a point with rational entries every bracket has rational entries, so its residues modulo a prime p can be computed exactly. A
minor that is not zero modulo p is not zero, so the rank modulo p is at most dim Lie at that point, and D − rank is an upper bound of the
number of laws on any open set around it, whatever the luck of point and prime. Laws that hold everywhere hold there.

From below. The gradients of the derived charges at the same point, independent by the same arithmetic. They must annihilate every bracket.

Where the two meet, the count is a theorem: every other law, of whatever form, is a function of these. Pieces (ReLU, maxima) are those that
inputs give at the point, so nothing is assumed but that any input may occur. Where such pieces do not suffice, free ones are taken, as in
the path-lifting of marcotte2023abide: then the count is proved for laws of the path-lifting, which are those of the network if its data
reach every pattern. Networks that are no polynomials are counted in float64, at two points, with the spectral gap reported; so are modules
whose graph does not hold all that they compute with (masks, tables), by running the module itself. Of a network that is too large, a twin
with the same graph and smaller widths is counted (`noetherflow.bridge.twins`), and the result says so. Small smooth networks are proved in
ball arithmetic if asked (`noetherflow.bridge.ball_proofs`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from torch import nn

from noetherflow.bridge.ball_proofs import BallProof, prove
from noetherflow.bridge.conserved import Conserved, CountedFlow
from noetherflow.bridge.counted_flows import Gradient, Momentum, under
from noetherflow.bridge.evaluation import Unevaluable
from noetherflow.bridge.law_counts import Count
from noetherflow.bridge.law_verdict import GAP, Completeness, Mode, best_of, verdict
from noetherflow.bridge.live_sampling import live_samplings
from noetherflow.bridge.lively_points import lively_seeds
from noetherflow.bridge.sampling import Gates, Sampling
from noetherflow.bridge.trace import Loss, trace
from noetherflow.bridge.twins import LIMITS, Twin, mode_of, trainable
from noetherflow.bridge.twins import twin as twin_of
from noetherflow.errors import ModelError
from noetherflow.numeric.ball_functions import flint
from noetherflow.numeric.balls import NotEnclosed
from noetherflow.numeric.lie_rank import NotFinite
from noetherflow.numeric.modular import PRIMES, ContractionTooLong, NotPolynomial
from noetherflow.symbolic.graph import ArchitectureGraph
from noetherflow.symbolic.laws import Law, Laws, derive
from noetherflow.symbolic.metrics import Mirror, Natural

POINTS: Final = 2  # in float64
TRIES: Final = 4
SEEDS: Final = 12
"""Points looked at, of which at most `TRIES` are counted at: at others a field may have no value."""
LARGEST: Final = LIMITS


def completeness(
    model: nn.Module | ArchitectureGraph,
    *example_inputs: Any,
    loss: Loss = None,
    kwargs: Mapping[str, Any] | None = None,
    laws: Sequence[Law] | None = None,
    metric: Mirror | Natural | None = None,
    friction: int | None = None,
    without_eps: bool = False,
    twin: bool | None = None,
    balls: bool = False,
    seed: int = 0,
) -> Completeness:
    """Count the conservation laws that hold for every data set, and compare with those derived.

    Parameters
    ----------
    model : nn.Module or ArchitectureGraph
        D up to 6,000 where the count is exact, 1,200 where it is not; of a larger one, a twin of smaller width is counted. The graph is
        what is evaluated, at points of its own (a module is run only where its graph does not hold enough): its weights do not matter.
    *example_inputs, loss, kwargs
        As for `noetherflow.trace`, if a module is given. A cross-entropy sees logits up to a number common to all classes; without a loss
        all outputs are seen (of a bare `nn.LSTM` the states, and every layer's last state and memory).
    laws : sequence of Law, optional
        To be checked in place of those that `noetherflow.derive` finds, under gradient flow.
    metric : Mirror or Natural, optional
        Count along the gradient flow of this metric (`noetherflow.metrics`: Mirror, Diagonal, Natural) instead of the Euclidean one.
    friction : int, optional
        Count along the momentum flow θ'' + γ θ' + ∇f = 0 with this γ: laws may depend on time and velocity, and there are 2 D + 1
        coordinates.
    without_eps : bool
        Count for eps = 0 in every normalisation (of a module that is run: in every layer with Norm in its name); else eps is what the
        graph says, and laws that it breaks are none.
    twin : bool, optional
        Count for a twin of smaller width (`noetherflow.twin`) always or never; by default, if the network is too large. Laws given by
        hand have the sizes of the network, so there is none for them.
    balls : bool
        Prove the count of a network that is no polynomial in ball arithmetic (`noetherflow.bridge.ball_proofs`), which needs python-flint
        (``pip install noetherflow[balls]``) and some seconds. Where that fails the result is measured, and says why.
    seed : int

    Returns
    -------
    Completeness
        If ``mode`` is 'proved', ``laws_possible`` is a proved bound, and ``complete`` says that the count is a theorem (near the point, and
        so for laws that hold everywhere); otherwise measured.

    Raises
    ------
    ModelError
        The network is too large, and has no twin that is not, or none was wanted; or python-flint is wanted and missing.
    Unevaluable
        The graph does not hold what is needed to compute an operation, and there is no module, or one that cannot be differentiated.

    Examples
    --------
    >>> import torch
    >>> count = completeness(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.zeros(1, 3), loss="mse")
    >>> print(count)
    4 of 4 laws: complete (proved)
      26 parameters, Lie algebra of dimension 22
    """
    if balls:
        flint()  # that it is missing is said at once
    graph = model if isinstance(model, ArchitectureGraph) else trace(model, *example_inputs, loss=loss, kwargs=kwargs)
    graph = bare_of_eps(graph) if without_eps else graph
    dynamics = dynamics_for(metric, friction, given=laws is not None)
    reduced = _reduced(graph, twin, given=laws is not None)
    graph = graph if reduced is None else reduced.graph
    _check_sizes(graph, "proved")
    standing, broken = known_laws(graph, dynamics, laws)
    try:
        counts = _of_graph(graph, standing, dynamics, seed)
    except Unevaluable:
        if isinstance(model, ArchitectureGraph) or reduced is not None or not (loss is None or isinstance(loss, str)):
            raise
        _check_sizes(graph, "numerical", ": its graph does not hold all that it computes with")
        seeds = [f"{seed}.{k}" if k else f"{seed}" for k in range(TRIES)]
        counts = _live(live_samplings(graph, seeds, model, example_inputs, kwargs, without_eps=without_eps), standing, dynamics)
    proof, unproved = _in_balls(counts) if balls else (None, "")
    return verdict(graph, counts, broken, given=laws is not None, twin=reduced, without_eps=without_eps, proof=proof, unproved=unproved)


def _in_balls(counts: Sequence[Count]) -> tuple[BallProof | None, str]:
    """A proof of what float64 found at the best point, or why there is none."""
    best = best_of(counts)
    if best.sampling.prime:
        return None, ""  # it is proved already
    try:
        return prove(best), ""
    except NotEnclosed as err:
        return None, str(err)


def _reduced(graph: ArchitectureGraph, wanted: bool | None, *, given: bool) -> Twin | None:
    """A twin, if one is asked for, or the graph is too large to do without."""
    if wanted and given:
        raise ModelError("Laws given by hand have the sizes of the network, so a twin of smaller width cannot have them. Leave one out.")
    if wanted is False or given:
        return None
    _check_integers(graph)
    return twin_of(graph) if wanted or _too_large(graph) else None


def _too_large(graph: ArchitectureGraph) -> bool:
    count = trainable(graph)
    if not LARGEST["numerical"] < count <= LARGEST["proved"]:
        return count > LARGEST["proved"]
    try:
        return mode_of(graph) == "numerical"
    except Unevaluable:
        return False  # the graph does not hold enough: the module itself is run


def dynamics_for(metric: Mirror | Natural | None, friction: int | None, *, given: bool) -> CountedFlow:
    """The flow that is asked for."""
    if metric is not None and friction is not None:
        raise ModelError("Give a metric or a friction: laws of a momentum flow are counted under the Euclidean metric.")
    if given and (metric is not None or friction is not None):
        raise ModelError("Laws given by hand are checked under gradient flow; leave metric and friction out.")
    if metric is not None:
        return under(metric)
    return Gradient() if friction is None else Momentum(friction)


def known_laws(
    graph: ArchitectureGraph, dynamics: CountedFlow, given: Sequence[Law] | None = None
) -> tuple[list[Conserved], tuple[str, ...]]:
    """What theory says is conserved along a flow, and the laws that an eps breaks."""
    laws = derive(graph)
    used = laws if given is None else Laws(given, laws.symmetries)
    return dynamics.conserved(used), tuple(law.name for law in used if law.symmetry.breaking)


def _of_graph(graph: ArchitectureGraph, laws: Sequence[Conserved], dynamics: CountedFlow, seed: int) -> list[Count]:
    """Exactly if the network is a polynomial on each of its pieces, else in float64 at two points."""
    try:
        return [_exact(graph, laws, dynamics, seed)]
    except NotPolynomial as err:
        _check_sizes(graph, "numerical", f": {err}")
    seeds = lively_seeds(graph, f"{seed}", None, SEEDS)
    return _twice((Sampling(graph, point, "realised", None) for point in seeds), laws, dynamics)


def _twice(samplings: Iterable[Sampling], laws: Sequence[Conserved], dynamics: CountedFlow) -> list[Count]:
    """At the first two points with a clear spectral gap, or at all if there are not two; where a field has no value is no such point."""
    found, nowhere = list[Count](), None
    for sampling in samplings:
        try:
            found.append(counted(sampling, laws, dynamics))
        except NotFinite as err:
            nowhere = err
            continue
        clear = [count for count in found if count.gap >= GAP]
        if len(clear) == POINTS:
            return clear
        if len(found) == TRIES:
            break
    if nowhere is not None and not found:
        raise nowhere
    return found


def _live(samplings: Iterable[Sampling], laws: Sequence[Conserved], dynamics: CountedFlow) -> list[Count]:
    try:
        return _twice(samplings, laws, dynamics)
    except (RuntimeError, NotImplementedError) as err:  # torch has no higher derivative of an operation, or cannot map it over samples
        raise Unevaluable(
            f"The graph does not hold all that the module computes with, and the module itself could not be differentiated often enough: "
            f"{err} Write the operation that torch names out in others."
        ) from err


def _exact(graph: ArchitectureGraph, laws: Sequence[Conserved], dynamics: CountedFlow, seed: int) -> Count:
    """The first point at which the counts meet, else the one that leaves room for the fewest laws."""
    found: list[Count] = []
    (lively,) = lively_seeds(graph, f"{seed}", PRIMES[0], 1)
    tries: tuple[tuple[Gates, str], ...] = (("realised", lively), ("free", f"{seed}"))
    for gates, point in tries:
        try:
            count = _modulo(graph, laws, dynamics, point, gates)
        except Unevaluable:
            if gates == "free":
                raise
            continue
        found.append(count)
        if count.growth.reached:
            break
    return min(found, key=lambda c: c.possible)


def _modulo(graph: ArchitectureGraph, laws: Sequence[Conserved], dynamics: CountedFlow, seed: str, gates: Gates) -> Count:
    """With the largest prime that the network's contractions allow."""
    for prime in PRIMES[:-1]:
        try:
            return counted(Sampling(graph, seed, gates, prime), laws, dynamics)
        except ContractionTooLong:
            continue
    return counted(Sampling(graph, seed, gates, PRIMES[-1]), laws, dynamics)


def counted(sampling: Sampling, laws: Sequence[Conserved], dynamics: CountedFlow) -> Count:
    """The count at one point."""
    count = Count(sampling, laws, dynamics)
    count.run()
    return count


def bare_of_eps(graph: ArchitectureGraph) -> ArchitectureGraph:
    """The same network with eps = 0."""
    bare = ArchitectureGraph.from_json(graph.to_json())
    for _, data in bare.nodes(data=True):
        if "eps" in data["attributes"]:
            data["attributes"]["eps"] = 0.0
    return bare


def _check_integers(graph: ArchitectureGraph) -> None:
    sizes = [size for p in graph.parameters.values() for size in p.shape] + [size for _, d in graph.nodes(data=True) for size in d["shape"]]
    if not all(isinstance(size, int) for size in sizes):
        raise ModelError("The graph has symbolic sizes; laws are counted for one with numbers. Substitute some.")


def _check_sizes(graph: ArchitectureGraph, mode: Mode, why: str = "") -> None:
    _check_integers(graph)
    count = trainable(graph)
    if not 0 < count <= LARGEST[mode]:
        raise ModelError(
            f"The graph has {count:,} trainable parameters; laws are counted for 1 to {LARGEST[mode]:,} "
            f"({'exactly' if mode == 'proved' else 'in float64'}{why}). Count those of the same network with smaller widths.",
            parameters=count,
        )
