"""Boundedness: what the derived charges say of the norms of weights.

The charges of a family of scales or of GL(n), added up (for matrices their trace), make one relation between squared norms,

    Σ_P weight_P ‖P‖² = 2 Q,      producers with positive weights, consumers with negative ones.

No term can be negative. So where all that stands on one side is bounded, each on the other side is:

    ‖P‖² ≤ (± 2 Q + Σ |weight| bound) / |weight|.

From one bounded parameter the bounds spread along the relations. For homogeneous activations of degree k without biases these are
‖W_l‖² - k ‖W_l+1‖² = 2 Q_l and reach every layer from any (gluch2021noether; du2018algorithmic). A bias stands beside its weight,
‖W_l‖² + |b_l|² - k ‖W_l+1‖² = 2 Q_l: a bounded W_l then bounds nothing behind it. Source: own for the general statement.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import sympy as sp

from noetherflow.errors import RuleError
from noetherflow.symbolic.actions import Patch
from noetherflow.symbolic.laws import Law, Laws


@dataclass(frozen=True, slots=True)
class Block:
    """A parameter, or the part of it that a family moves.

    Attributes
    ----------
    parameter : str
    patch : Patch
    name : str
        The parameter's; with the place of the part, ``weight[8:12, 0:4]``, where relations hold several parts of one parameter.
    """

    parameter: str
    patch: Patch
    name: str

    @property
    def norm(self) -> sp.Symbol:
        """‖P‖² as a symbol."""
        return sp.Symbol(f"|{self.name}|^2", nonnegative=True)

    def measured(self, tensors: Mapping[str, Any]) -> float:
        """‖P‖²."""
        return float((self.patch.view(tensors[self.parameter].detach()).double() ** 2).sum())


@dataclass(frozen=True, slots=True)
class NormRelation:
    """Σ weight ‖P‖² = 2 Q, of one family.

    Attributes
    ----------
    name : str
    charge : sympy.Symbol
        2 Q, twice the sum of the family's charges.
    weights : tuple of (Block, expression)
        In the conserved combination: those of the generator, times the metric's where parameter groups differ.
    """

    name: str
    charge: sp.Symbol
    weights: tuple[tuple[Block, sp.Expr], ...]

    @property
    def equation(self) -> sp.Eq:
        """The relation."""
        return sp.Eq(sp.Add(*(w * block.norm for block, w in self.weights)), self.charge)

    def side(self, sign: int) -> tuple[tuple[Block, sp.Expr], ...]:
        """Producers (+1) or consumers (-1), with the sizes of their weights."""
        return tuple((block, abs(w)) for block, w in self.weights if sign * w > 0)

    def measured(self, tensors: Mapping[str, Any]) -> float:
        """Σ weight ‖P‖² of parameters: 2 Q. Of gradients: what one step of gradient descent adds to 2 Q, over η²."""
        return sum(float(w) * block.measured(tensors) for block, w in self.weights)


@dataclass(frozen=True)
class NormBounds:
    """Bounds that charges put on squared norms.

    Attributes
    ----------
    relations : tuple of NormRelation
    known : tuple of Block
        Whose norms are given.
    bounds : mapping of Block to expression
        Upper bound of ‖P‖², in the known norms and the charges: an equality where the relations used have one term on either side.
    unreached : tuple of Block
        In relations, but bounded by none of them, taken one after the other.
    """

    relations: tuple[NormRelation, ...]
    known: tuple[Block, ...]
    bounds: Mapping[Block, sp.Expr]
    unreached: tuple[Block, ...]

    def evaluated(self, charges: Mapping[str, float], tensors: Mapping[str, Any]) -> dict[str, float]:
        """Bounds as numbers, by the names of blocks.

        Parameters
        ----------
        charges : mapping of str to float
            Relation -> 2 Q, measured or predicted.
        tensors : mapping of str to Tensor
            Of which only the known blocks are read.
        """
        values = {r.charge: charges[r.name] for r in self.relations} | {b.norm: b.measured(tensors) for b in self.known}
        return {block.name: float(sp.sympify(bound).xreplace(values)) for block, bound in self.bounds.items()}

    def __str__(self) -> str:
        lines = [f"{block.norm} ≤ {bound}" for block, bound in self.bounds.items() if block not in self.known]
        rest = [f"not bounded: {', '.join(block.name for block in self.unreached)}"] if self.unreached else []
        return "\n".join([f"given {', '.join(str(block.norm) for block in self.known)}:", *(f"  {line}" for line in [*lines, *rest])])


def norm_relations(laws: Laws, values: Mapping[str, float] | None = None) -> tuple[NormRelation, ...]:
    """The relation of every law with quadratic charges.

    Parameters
    ----------
    laws : Laws
        From ``nf.derive``, without a metric of their own.
    values : mapping of str to float, optional
        Hyper-parameters by the names of their symbols (``{"eta_0": 0.1, "eta_1": 0.4}``), where parameter groups differ in them: they weigh
        the norms, and their signs decide which side a norm stands on.

    Returns
    -------
    tuple of NormRelation
        Exact: constant under gradient flow, moved by the laws' balance otherwise.

    Raises
    ------
    RuleError
        If a weight depends on a hyper-parameter without a value.
    """
    numbered = [(k, law) for k, law in enumerate(laws) if _adds_up(law)]
    blocks = _blocks(law for _, law in numbered)
    return tuple(_relation(law, k, blocks, values or {}) for k, law in numbered)


def _blocks(laws: Iterable[Law]) -> dict[tuple[str, Patch], Block]:
    """All blocks, each under a name of its own: the query and key parts of one fused weight have norms of their own."""
    patches: dict[str, dict[Patch, None]] = {}
    for law in laws:
        for action in law.symmetry.actions:
            patches.setdefault(action.parameter, {})[action.patch] = None
    out: dict[tuple[str, Patch], Block] = {}
    for parameter, parts in patches.items():
        names = [parameter + _box(patch) if len(parts) > 1 else parameter for patch in parts]
        for k, (patch, name) in enumerate(zip(parts, names, strict=True)):  # parts may interleave in one box
            out[parameter, patch] = Block(parameter, patch, name if names.count(name) == 1 else f"{name}#{k}")
    return out


def _box(patch: Patch) -> str:
    """Where a part lies, as slices."""
    stops = [offset + 1 for offset in patch.offsets]
    for index in patch.indices:
        stops[index.axis] += (index.size - 1) * index.stride
    return f"[{', '.join(f'{start}:{stop}' for start, stop in zip(patch.offsets, stops, strict=True))}]"


def _adds_up(law: Law) -> bool:
    """Whether the sum over the family is itself a charge: not where generators have zero mean."""
    return not law.symmetry.zero_mean and all(a.form in ("scale", "matrix") for a in law.symmetry.actions)


def _relation(law: Law, number: int, blocks: Mapping[tuple[str, Patch], Block], values: Mapping[str, float]) -> NormRelation:
    place = {group: i for i, group in enumerate(law.groups)}
    weights: dict[Block, sp.Expr] = {}
    for action in law.symmetry.actions:
        block = blocks[action.parameter, action.patch]
        metric = _valued(law.balance.weights[place[law.group_of[action.parameter]]], values)
        weights[block] = weights.get(block, sp.S.Zero) + action.weight * metric
    charge = sp.Symbol(f"2Q_{number}", real=True)
    return NormRelation(law.name, charge, tuple((block, w) for block, w in weights.items() if w != 0))


def _valued(weight: sp.Expr, values: Mapping[str, float]) -> sp.Expr:
    out = sp.sympify(weight)
    out = out.xreplace({symbol: sp.Float(values[symbol.name], 17) for symbol in out.free_symbols if symbol.name in values})
    if out.free_symbols:
        raise RuleError(
            f"The groups' norms are weighed by {weight}, which has no value. Give values={{name: number}} for "
            f"{sorted(symbol.name for symbol in out.free_symbols)}.",
            missing=out.free_symbols,
        )
    return out


def norm_bounds(laws: Laws, known: str | Iterable[str], values: Mapping[str, float] | None = None) -> NormBounds:
    """Bound the norms of all parameters by those of some, through the charges that a network has.

    Parameters
    ----------
    laws : Laws
        From ``nf.derive``.
    known : str or iterable of str
        Parameters whose norms are given (of all parts of theirs that relations hold), or names of single parts.
    values : mapping of str to float, optional
        Hyper-parameters by name, where parameter groups differ in them; see `norm_relations`.

    Returns
    -------
    NormBounds
        Each bound is true wherever the charges have their values. Sufficient: relations are used one after the other, never summed.

    Raises
    ------
    RuleError
        If a parameter is in no relation: nothing follows from its norm. If a hyper-parameter that weighs the norms has no value.

    Examples
    --------
    >>> import torch, noetherflow as nf
    >>> model = nf.models.MLP([5, 4, 3, 2], bias=False)
    >>> print(norm_bounds(nf.derive(nf.trace(model, torch.zeros(2, 5))), "layers.2.weight"))
    given |layers.2.weight|^2:
      |layers.1.weight|^2 ≤ 2Q_1 + |layers.2.weight|^2
      |layers.0.weight|^2 ≤ 2Q_0 + 2Q_1 + |layers.2.weight|^2
    """
    relations, wanted = norm_relations(laws, values), {known} if isinstance(known, str) else set(known)
    blocks = dict.fromkeys(block for r in relations for block, _ in r.weights)
    given = tuple(block for block in blocks if wanted & {block.parameter, block.name})
    if strange := wanted - {name for block in given for name in (block.parameter, block.name)}:
        raise RuleError(
            f"No charge holds {sorted(strange)}: nothing follows from their norms. Parameters in relations are "
            f"{sorted({block.name for block in blocks})}.",
            parameters=sorted(strange),
        )
    bounds: dict[Block, sp.Expr] = {block: block.norm for block in given}
    while found := _next(relations, bounds):
        bounds |= found
    return NormBounds(relations, given, bounds, tuple(block for block in blocks if block not in bounds))


def _next(relations: Iterable[NormRelation], bounds: Mapping[Block, sp.Expr]) -> dict[Block, sp.Expr]:
    """What one relation says beyond the bounds there are."""
    for relation in relations:
        for sign in (1, -1):
            other = relation.side(-sign)
            new = [(block, w) for block, w in relation.side(sign) if block not in bounds]
            if new and all(block in bounds for block, _ in other):
                whole = sign * relation.charge + sp.Add(*(w * bounds[block] for block, w in other))
                return {block: sp.expand(whole / w) for block, w in new}
    return {}
