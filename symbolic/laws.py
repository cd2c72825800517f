"""Laws: a symmetry, its charge under a rule's metric, and the charge's exact equation of motion.

`derive` is the whole road from a graph and a rule to laws: symmetries, their parameter groups, balance laws (derived once for each distinct
combination of update equations), charges.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import sympy as sp

from noetherflow.errors import RuleError
from noetherflow.symbolic.angular import derive_momentum
from noetherflow.symbolic.balance import Balance, derive_balance
from noetherflow.symbolic.charges import charge, charge_count, formula, is_linear
from noetherflow.symbolic.flows import gradient_flow
from noetherflow.symbolic.gauge import symmetries
from noetherflow.symbolic.graph import ArchitectureGraph, Size
from noetherflow.symbolic.kinetic_balance import derive_kinetic_balance
from noetherflow.symbolic.metric_laws import MetricLaw, along_the_rule, check_weights, metric_law
from noetherflow.symbolic.metrics import Metric, Mirror
from noetherflow.symbolic.momenta import MomentumLaw, turning
from noetherflow.symbolic.noise import BATCH, Count, Drift, derive_drift
from noetherflow.symbolic.noise_limits import Stationary, stationary
from noetherflow.symbolic.nonlinear import is_linear as is_linear_form
from noetherflow.symbolic.pairings import NotLinear
from noetherflow.symbolic.rules import SGD, Rule
from noetherflow.symbolic.solutions import Solution, solve_homogeneous
from noetherflow.symbolic.symmetries import Symmetries, Symmetry


@dataclass(frozen=True)
class Law:
    """One family of charges and how a learning rule moves them.

    Attributes
    ----------
    symmetry : Symmetry
    rule : Rule
    group_of : mapping of str to int
        Parameter group of each parameter that the symmetry moves.
    balance : Balance
        The exact discrete law.
    """

    symmetry: Symmetry
    rule: Rule
    group_of: Mapping[str, int]
    balance: Balance

    @property
    def groups(self) -> tuple[int, ...]:
        """The parameter groups it crosses, in the order in which its balance law numbers them."""
        return tuple(dict.fromkeys(self.group_of[name] for name in self.symmetry.parameters))

    @property
    def name(self) -> str:
        """That of the symmetry."""
        return self.symmetry.name

    @cached_property
    def charge(self) -> sp.Expr:
        """The conserved combination under the rule's metric, as an indexed SymPy expression."""
        place = {group: i for i, group in enumerate(self.groups)}
        weights = {name: self.balance.weights[place[group]] for name, group in self.group_of.items()}
        return charge(self.symmetry, weights)

    @property
    def linear(self) -> bool:
        """Whether the charge is linear in the parameters."""
        return is_linear(self.symmetry)

    @cached_property
    def flow(self) -> sp.Eq:
        """Continuous-time limit."""
        return gradient_flow(self.balance)

    @property
    def terms(self) -> Mapping[str, sp.Expr]:
        """Mechanism -> its direct part of Q' - Q (what acts through K is in ``balance.momentum_terms``)."""
        return self.balance.charge_terms

    @cached_property
    def count(self) -> Size:
        """Number of independent charges."""
        return charge_count(self.symmetry)

    @property
    def source(self) -> tuple[str, ...]:
        """Citation keys of special cases that were published before; the law itself is derived here."""
        known = {"translation": ("kunin2021neural",), "scale": ("kunin2021neural",), "rescale": ("kunin2021neural",)}
        return (
            *known.get(self.symmetry.kind, ()),
            *(("marcotte2023abide",) if self.symmetry.kind == "linear" else ()),
            "tanaka2021noether",
        )

    def solution(self) -> Solution:
        """Closed form for constant hyper-parameters, as far as one exists: the homogeneous motion; sources enter by superposition."""
        return solve_homogeneous(self.balance)

    def drift(self, batch: Count = BATCH, population: Count | None = None) -> Drift:
        """The expected step under mini-batches of `batch` samples (drawn without replacement from `population`, if given): exact."""
        return derive_drift(self.balance, batch, population)

    def stationary(self, batch: Count = BATCH, population: Count | None = None) -> Stationary:
        """The condition that a stationary distribution of mini-batch training puts on the charge: exact in the step size."""
        return stationary(self.drift(batch, population))

    def latex(self) -> str:
        """Charge and balance law in LaTeX."""
        return rf"Q = {formula(self.symmetry)}\qquad {self.balance.latex()}"

    def _repr_latex_(self) -> str:
        return rf"$\displaystyle {self.latex()}$"


class Laws(Sequence[Law]):
    """All laws of a graph under a rule: a sequence of those that have charges.

    Attributes
    ----------
    symmetries : Symmetries
    momenta : tuple of MomentumLaw
        The laws of rotations, which have no charge. None under rules that keep no running average of gradients and whose step is not
        linear in them (RMSprop, Adagrad, signs without momentum).
    constraints : tuple of MetricLaw
        Under a metric: the laws of what has no charge there, ⟨ξ, ·⟩ of each step.
    """

    def __init__(
        self,
        members: Sequence[Law | MetricLaw],
        symmetries_found: Symmetries,
        momenta: Sequence[MomentumLaw] = (),
        constraints: Sequence[MetricLaw] = (),
    ) -> None:
        self._members = tuple(members)
        self.symmetries = symmetries_found
        self.momenta = tuple(momenta)
        self.constraints = tuple(constraints)

    def __getitem__(self, item: Any) -> Any:
        return self._members[item]

    def __len__(self) -> int:
        return len(self._members)

    @property
    def charges(self) -> Size:
        """Total number of independent charges."""
        return sum((law.count for law in self._members), start=0)

    @property
    def opaque(self) -> Mapping[str, str]:
        """Operations that nothing was allowed through."""
        return self.symmetries.opaque

    def __repr__(self) -> str:
        laws = [(law, law.balance.equations[0]) for law in self._members]
        rows = [f"  {law.name}: {law.count} charges, {sp.sstr(exact.lhs)} = {sp.sstr(exact.rhs)}" for law, exact in laws]
        return "\n".join([f"{len(self)} laws, {self.charges} charges", *rows])


def derive(graph: ArchitectureGraph, rule: Rule | None = None, *, metric: Metric | None = None, found: Symmetries | None = None) -> Laws:
    """Derive every law of a graph's parameters under a learning rule.

    Parameters
    ----------
    graph : ArchitectureGraph
    rule : Rule, optional
        From `noetherflow.rule_of`, or written (`noetherflow.rules.SGD(lr=...)`); gradient descent with symbolic step size if absent.
    metric : Metric, optional
        Whose charges are wanted: one that the rule moves along, from `noetherflow.metrics` (`Held()` is the diagonal that Adam and the like
        divide by). If absent the Euclidean one, with step sizes of groups as weights; for mirror descent that of its potential.
    found : Symmetries, optional
        The graph's symmetries, if they are at hand.

    Returns
    -------
    Laws
        Exact balance laws of charges, and those of angular momenta in ``laws.momenta``; under a metric `MetricLaw`s, and
        ``laws.constraints``. ``laws.symmetries`` lists all symmetries, also those without a law.

    Raises
    ------
    RuleError
        If the rule leaves a trainable parameter alone that a symmetry moves, or does not move along the metric.

    Examples
    --------
    >>> graph = ArchitectureGraph()
    >>> _ = graph.add_parameter("w1", (5, 3)), graph.add_parameter("w2", (2, 5))
    >>> _ = graph.add_operation("x", "input", shape=(8, 3))
    >>> _ = graph.add_operation("h", "linear", {"input": "x"}, {"weight": "w1"}, shape=(8, 5))
    >>> _ = graph.add_operation("a", "relu", {"input": "h"}, shape=(8, 5))
    >>> _ = graph.add_operation("y", "linear", {"input": "a"}, {"weight": "w2"}, shape=(8, 2))
    >>> law, = derive(graph, SGD(weight_decay=sp.Symbol("lambda")))
    >>> law.count, law.flow
    (5, Eq(Derivative(Q(t), t), -J - 2*lambda*Q(t)))
    """
    found = symmetries(graph) if found is None else found
    used = rule or SGD()
    other = along_the_rule(used, metric)
    constant = other if isinstance(other, Mirror) and all(group.form.potential is None for group in used.groups) else None
    if other is not None and constant is None:
        return _under(graph, found, used, other)
    laws = [law for s in found if (law := _law(graph, s, used)).count != 0]
    if constant is not None:
        for law in laws:
            check_weights(constant, law.group_of, dict(zip(law.groups, law.balance.weights, strict=True)), used)
    momenta = [turned for s in turning(found) if (turned := _momentum_law(graph, s, used)) is not None]
    return Laws(laws, found, momenta)


def _under(graph: ArchitectureGraph, found: Symmetries, rule: Rule, metric: Metric) -> Laws:
    """Laws under a metric that is not constant, and the momenta that do not ask for one."""
    made = [metric_law(s, rule, _groups(graph, s, rule)[0], metric) for s in found]
    laws = [law for law in made if law is not None]
    momenta = [law for s in turning(found) if (law := _momentum_law(graph, s, rule)) is not None]
    return Laws([x for x in laws if x.charge is not None], found, momenta, [x for x in laws if x.charge is None])


def _law(graph: ArchitectureGraph, symmetry: Symmetry, rule: Rule) -> Law:
    group_of, groups = _groups(graph, symmetry, rule)
    forms = tuple(rule.groups[g].form for g in groups)
    if all(is_linear_form(form) for form in forms):
        balance = derive_balance(forms, is_linear(symmetry), _same_momentum(rule, groups))
    else:
        balance = derive_kinetic_balance(forms, is_linear(symmetry))
    return Law(symmetry, rule, group_of, balance)


def _momentum_law(graph: ArchitectureGraph, symmetry: Symmetry, rule: Rule) -> MomentumLaw | None:
    """None where the rule leaves angular momenta without a law."""
    group_of, groups = _groups(graph, symmetry, rule)
    try:
        balance = derive_momentum(tuple(rule.groups[g].form for g in groups), _same_momentum(rule, groups))
    except NotLinear:
        return None
    return MomentumLaw(symmetry, rule, group_of, balance)


def _groups(graph: ArchitectureGraph, symmetry: Symmetry, rule: Rule) -> tuple[dict[str, int], tuple[int, ...]]:
    """The parameter group of each parameter that a symmetry moves, and the groups in order."""
    identities = {name: identity for identity, name in graph.graph.get("identities", {}).items()}
    group_of = {name: rule.group_of(identities.get(name)) for name in symmetry.parameters}
    outside = [name for name, group in group_of.items() if group is None]
    if outside:
        raise RuleError(
            f"The rule does not move {outside}, which the graph says is trainable and '{symmetry.name}' moves. "
            "Freeze it before tracing (requires_grad_(False)), or give it to the optimizer.",
            parameters=outside,
        )
    known = {name: g for name, g in group_of.items() if g is not None}
    return known, tuple(dict.fromkeys(known.values()))


def _same_momentum(rule: Rule, groups: Sequence[int]) -> bool:
    def momentum(group: int) -> list[Any]:
        return [v for name, v in sorted(rule.groups[group].values.items()) if name not in ("lr", "weight_decay")]

    return all(rule.groups[g].form == rule.groups[groups[0]].form and momentum(g) == momentum(groups[0]) for g in groups)
