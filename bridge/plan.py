"""The plan: which reductions of which tensor all laws need, each tensor read once per evaluation.

1. collect   for every parameter block, the reductions that any law asks of it (equal ones once)
2. evaluate  one pass over the tensors of each block (`kernels_torch.reduce`)
3. scatter   all results at once into flat vectors of charges, signed and in absolute value, by a precomputed index
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from noetherflow.bridge.bundles import Bundle, entries
from noetherflow.bridge.kernels_heads import reduce_all
from noetherflow.bridge.kernels_torch import Reducer, Request, reduce
from noetherflow.bridge.momentum_bundles import MomentumBundle
from noetherflow.symbolic.actions import Action, Patch
from noetherflow.symbolic.laws import Law
from noetherflow.symbolic.momenta import MomentumLaw

Slot = tuple[int, int, str]  # bundle, position of the group, quantity
Tensors = Mapping[str, Tensor]
BlockKey = tuple[str, Patch]


@dataclass(frozen=True)
class Sink:
    """Where one result goes: `length` charges from `target` on, with a weight; a matrix may go there transposed (its size is given)."""

    block: BlockKey
    request: int
    target: int
    length: int
    weight: float
    transposed: int = 0

    def sources(self) -> Tensor:
        """Entries of the result, in the order in which they go to their targets."""
        order = torch.arange(self.length)
        return order.reshape(-1, self.transposed, self.transposed).mT.reshape(-1) if self.transposed else order


@dataclass(frozen=True)
class Wanted:
    """A quantity to evaluate for every charge of a bundle: a reduction of two vectors.

    `power` "pairing" is Σ ξ-weighted x y (Σ x for linear charges), "variance" is Σ x², "fourth" is Σ x² y². For momenta "wedge" is the
    antisymmetric matrix X Yᵀ - Y Xᵀ, and "rows" are the squared lengths of the rows of x, from the start of each law's place on.
    """

    quantity: str
    x: str
    y: str
    power: str = "pairing"


@dataclass
class Plan:
    """A compiled set of reductions.

    Attributes
    ----------
    slots : mapping
        (bundle, group, quantity) -> where its flat vector starts in the results.
    """

    blocks: dict[BlockKey, list[Request]] = field(default_factory=dict)
    slots: dict[Slot, int] = field(default_factory=dict)
    size: int = 0
    backend: Reducer = reduce
    _source: Tensor | None = None
    _target: Tensor | None = None
    _weight: Tensor | None = None

    def evaluate(
        self, vectors: Mapping[str, Tensors], combinations: Mapping[str, Mapping[str, Mapping[str, float]]], device: torch.device
    ) -> Values:
        """Evaluate everything.

        Parameters
        ----------
        vectors : mapping
            Parameter name -> its tensors by vector name ("theta", "gradient", "buffer").
        combinations : mapping
            Parameter name -> further vectors as linear combinations of these.
        device : torch.device
            Where the charges live.
        """
        results: list[Tensor] = []
        for (name, patch), requests in self.blocks.items():
            tensors = {vector: patch.view(tensor) for vector, tensor in vectors[name].items()}
            results.extend(r.reshape(-1) for r in reduce_all(self.backend, tensors, combinations.get(name, {}), requests))
        flat = torch.cat(results).to(device) if results else torch.zeros(0, dtype=torch.float64, device=device)
        signed = torch.zeros(self.size, dtype=torch.float64, device=device)
        absolute = torch.zeros_like(signed)
        if self._source is not None and self._target is not None and self._weight is not None:
            if self._source.device != device:
                self._source, self._target, self._weight = (t.to(device) for t in (self._source, self._target, self._weight))
            taken = flat[self._source] * self._weight
            signed.index_add_(0, self._target, taken)
            absolute.index_add_(0, self._target, taken.abs())
        return Values(self.slots, signed, absolute)


@dataclass(frozen=True)
class Values:
    """Results of one evaluation."""

    slots: Mapping[Slot, int]
    signed: Tensor
    absolute: Tensor

    def of(self, bundle_number: int, position: int, quantity: str, size: int, *, absolute: bool = False) -> Tensor:
        """A flat vector of charges; zeros for what no parameter of the group contributes to."""
        start = self.slots.get((bundle_number, position, quantity))
        source = self.absolute if absolute else self.signed
        return source[start : start + size] if start is not None else source.new_zeros(size)


def compile_plan(
    bundles: Sequence[Bundle | MomentumBundle], wanted: Mapping[int, Sequence[tuple[int, Wanted]]], backend: Reducer = reduce
) -> Plan:
    """Collect the reductions of all bundles.

    Parameters
    ----------
    bundles : sequence of Bundle or of MomentumBundle
    wanted : mapping
        Bundle number -> (position of the group, what) for each quantity.
    backend : Reducer
        What evaluates the reductions of one block.
    """
    plan = Plan(backend=backend)
    sinks: list[Sink] = []
    for number, own in enumerate(bundles):
        for position, what in wanted.get(number, ()):
            slot = plan.slots.setdefault((number, position, what.quantity), plan.size)
            plan.size = max(plan.size, slot + own.size)
            laws: Sequence[Law | MomentumLaw] = own.laws
            for law, start in zip(laws, own.starts, strict=False):
                for action in law.symmetry.actions:
                    if law.groups[position] == law.group_of[action.parameter]:
                        sinks.extend(_collect(plan, law, action, what, slot + start))
    _index(plan, sinks)
    return plan


def _collect(plan: Plan, law: Law | MomentumLaw, action: Action, what: Wanted, target: int) -> list[Sink]:
    block = (action.parameter, action.patch)
    request, weight = _request(law, action, what)
    requests = plan.blocks.setdefault(block, [])
    if request not in requests:
        requests.append(request)
    length = entries(law) if what.power != "rows" else entries(law) // int(law.symmetry.sizes[-1])
    sink = Sink(block, requests.index(request), target, length, weight)
    if what.power == "wedge":
        return [sink, replace(sink, weight=-weight, transposed=int(law.symmetry.sizes[-1]))]
    if request.kind != "gram" or request.x == request.y:
        return [sink]
    # the pairing of two vectors under the symmetric generators is the symmetric part of X Y^T
    half = replace(sink, weight=weight / 2)
    return [half, replace(half, transposed=int(law.symmetry.sizes[-1]))]


def _request(law: Law | MomentumLaw, action: Action, what: Wanted) -> tuple[Request, float]:
    """How one action contributes: ½ weight ⟨x, y⟩ for the charge itself, weight ⟨x, y⟩ for pairings."""
    weight = float(action.weight)
    if isinstance(law, MomentumLaw):
        return _turning(action, what, weight)
    half = 0.5 if what.quantity == "charge" and not law.linear else 1.0
    if what.power == "fourth":
        return Request("fourth", what.x, what.y, action.places), weight**2
    if what.power == "variance":
        return Request("pairing", what.x, what.y, action.places), weight**2
    if action.form == "shift":
        return Request("sum", what.x if what.quantity == "charge" else what.y, None, action.places), weight
    if action.form == "matrix":
        return Request("gram", what.x, what.y, action.places), half * weight
    return Request("pairing", what.x, what.y, action.places), half * weight


def _turning(action: Action, what: Wanted, weight: float) -> tuple[Request, float]:
    """A rotation X P, or -Xᵀ P = X P of a consumer."""
    if what.power == "rows":
        return Request("pairing", what.x, what.x, action.places), weight**2
    return Request("gram", what.x, what.y, action.places), weight if action.form == "rotation" else abs(weight)


def _index(plan: Plan, sinks: Sequence[Sink]) -> None:
    """Where each entry of the concatenated results goes, and with which weight."""
    starts: dict[tuple[BlockKey, int], int] = {}
    lengths = {(sink.block, sink.request): sink.length for sink in sinks}
    offset = 0
    for block, requests in plan.blocks.items():
        for number in range(len(requests)):
            starts[block, number] = offset
            offset += lengths[block, number]
    if sinks:
        plan._source = torch.cat([sink.sources() + starts[sink.block, sink.request] for sink in sinks])
        plan._target = torch.cat([torch.arange(sink.length) + sink.target for sink in sinks])
        plan._weight = torch.cat([torch.full((sink.length,), sink.weight, dtype=torch.float64) for sink in sinks])
