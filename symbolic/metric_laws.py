"""Laws under a metric that is not the Euclidean one: which generators keep a charge there, and how the rule moves it.

    Mirror          the metric ∇²φ of mirror descent                 `noetherflow.symbolic.mirror_balance`
    Held, Adaptive  the diagonal that the rule's own step divides by `noetherflow.symbolic.metric_balance`
    Diagonal        step sizes of parameter groups, Σ_p c_p Q_p      the rule's own law, if c_p is as 1/η_p
    Natural         damped Fisher matrix: the Euclidean charge       the rule's own law, for natural gradient

Which generators have a charge is decided by the curvature of Mξ (`noetherflow.symbolic.survival`); those that have none keep a constraint
on the step. A metric that the rule does not move along has no law: the motion of its charges would hold ⟨Mξ, M'⁻¹ g⟩, which nothing gives.

Source: own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import sympy as sp

from noetherflow.errors import RuleError
from noetherflow.symbolic.charges import is_linear
from noetherflow.symbolic.flows import TIME
from noetherflow.symbolic.forms import THETA, Form, Rule
from noetherflow.symbolic.graph import Size
from noetherflow.symbolic.metric_balance import MetricBalance, MetricConstraint, derive_metric_balance, derive_metric_constraint
from noetherflow.symbolic.metrics import ARGUMENT, Adaptive, Held, Metric, Mirror, Natural
from noetherflow.symbolic.mirror_balance import Kind, MirrorBalance, derive_mirror_balance
from noetherflow.symbolic.pairings import Along
from noetherflow.symbolic.survival import Charge, Constraint, survives
from noetherflow.symbolic.symmetries import Symmetry


@dataclass(frozen=True)
class MetricLaw:
    """One family under a metric: its charges, or the constraint that is left of them, and how the rule moves them.

    Attributes
    ----------
    symmetry : Symmetry
    rule : Rule
    group_of : mapping of str to int
        Parameter group of each parameter that the symmetry moves.
    metric : Metric
    outcome : Charge or Constraint
        What survives of the family under the metric.
    balance : MirrorBalance, MetricBalance or MetricConstraint
        The exact discrete law.
    """

    symmetry: Symmetry
    rule: Rule
    group_of: Mapping[str, int]
    metric: Metric
    outcome: Charge | Constraint
    balance: MirrorBalance | MetricBalance | MetricConstraint

    @property
    def groups(self) -> tuple[int, ...]:
        """The parameter group."""
        return tuple(dict.fromkeys(self.group_of[name] for name in self.symmetry.parameters))

    @property
    def name(self) -> str:
        """That of the symmetry, and the metric."""
        return f"{self.symmetry.name} under {self.metric.name}"

    @property
    def charge(self) -> sp.Expr | None:
        """Q in the family's indices; None for a constraint."""
        return self.outcome.expression if isinstance(self.outcome, Charge) else None

    @property
    def count(self) -> Size:
        """Number of independent charges; zero for a constraint."""
        return self.outcome.count if isinstance(self.outcome, Charge) else 0

    @property
    def linear(self) -> bool:
        """Whether the generator is a shift, ξ = a."""
        return is_linear(self.symmetry)

    @property
    def terms(self) -> Mapping[str, sp.Expr]:
        """Mechanism -> its part of Q' - Q (of the pairing with the step for a constraint)."""
        return self.balance.terms

    @property
    def flow(self) -> sp.Eq:
        """Continuous-time limit of a charge under a mirror metric, dQ/dt; exact as η → 0.

        Raises
        ------
        RuleError
            For a metric that is held within a step: it has no limit of its own, its drift is measured.
        """
        if not isinstance(self.balance, MirrorBalance) or self.balance.kind == "constraint":
            raise RuleError(f"'{self.name}' has no continuous-time limit without a measured drift; its exact step is `balance`.")
        rate = self.balance.form.rate
        moved = sp.Add(*(term for name, term in self.terms.items() if name != "discretization"))
        return sp.Eq(sp.Derivative(sp.Function("Q")(TIME), TIME), sp.expand(moved / rate), evaluate=False)

    @property
    def source(self) -> tuple[str, ...]:
        """Citation keys of special cases that were published before; the law itself is derived here."""
        return ("marcotte2024keep",)

    def latex(self) -> str:
        """Charge and law in LaTeX."""
        charge = "" if self.charge is None else rf"Q = {sp.latex(self.charge)}\qquad "
        return charge + self.balance.latex()

    def _repr_latex_(self) -> str:
        return rf"$\displaystyle {self.latex()}$"


def along_the_rule(rule: Rule, metric: Metric | None) -> Metric | None:
    """The metric whose laws are to be derived: the given one, or the mirror metric of mirror descent; None for the Euclidean laws.

    Raises
    ------
    RuleError
        If the rule does not move along the given metric.

    Examples
    --------
    >>> from noetherflow.symbolic.rules_mirror import MirrorDescent
    >>> along_the_rule(MirrorDescent(), None).name
    'mirror'
    """
    forms = [group.form for group in rule.groups]
    potentials = {form.potential for form in forms}
    if metric is None:
        if potentials == {None}:
            return None
        (potential, *others) = potentials
        if others or potential is None:
            raise RuleError("Parameter groups with different mirror potentials: give the metric, Mirror(φ, elsewhere={...}).")
        return Mirror(potential)
    if isinstance(metric, Held | Adaptive):
        return Held(metric.name)
    if isinstance(metric, Natural):
        return _if(all(form.invariant for form in forms) and metric.blocks is None, metric, forms, None)
    if isinstance(metric, Mirror):
        return _mirror(rule, metric, forms)
    raise RuleError(
        f"The metric '{metric.name}' is not known to any rule. Use a class of noetherflow.symbolic.metrics.", metric=metric.name
    )


def _mirror(rule: Rule, metric: Mirror, forms: Sequence[Form]) -> Metric | None:
    curvatures = {sp.diff(metric.potential, ARGUMENT, 2), *(sp.diff(p, ARGUMENT, 2) for p in metric.elsewhere.values())}
    if all(form.potential is None for form in forms):  # gradient descent: one weight per group, checked family by family
        return _if(all(not c.free_symbols & {ARGUMENT} for c in curvatures), metric, forms, None if curvatures == {1} else metric)
    own = {sp.diff(form.potential, ARGUMENT, 2) for form in forms if form.potential is not None}
    alike = len(own) == 1 and all(sp.simplify(c / next(iter(own))).is_number for c in curvatures)
    return _if(alike, metric, forms, metric)


def _if(moves: bool, metric: Metric, forms: Sequence[Form], found: Metric | None) -> Metric | None:
    if not moves:
        raise RuleError(
            f"{forms[0].name} does not move along the metric '{metric.name}', so that no law of its charges follows. Give the rule that "
            "does, or ask noetherflow.symbolic.survival_table.what_survives which charges the metric has.",
            metric=metric.name,
        )
    return found


def metric_law(symmetry: Symmetry, rule: Rule, group_of: Mapping[str, int], metric: Metric) -> MetricLaw | None:
    """The law of one family under a metric that the rule moves along; None where the rule leaves the generator without one.

    Raises
    ------
    RuleError
        For a family that crosses parameter groups.
    """
    groups = tuple(dict.fromkeys(group_of.values()))
    forms = {rule.groups[g].form for g in groups}
    if len(groups) > 1:
        raise RuleError(f"'{symmetry.name}' crosses parameter groups; its law under '{metric.name}' is derived within one.", groups=groups)
    (form,) = forms
    outcome = survives(symmetry, metric)
    balance = _mirror_balance(form, symmetry, outcome) if form.potential is not None else _held_balance(form, symmetry, outcome)
    balance = _turned(balance) if symmetry.rotation else balance
    return None if balance is None else MetricLaw(symmetry, rule, dict(group_of), metric, outcome, balance)


def _turned(balance: MirrorBalance | MetricBalance | MetricConstraint | None) -> MirrorBalance | MetricBalance | MetricConstraint | None:
    """For an antisymmetric generator ⟨ξ(θ), θ⟩ = 0: weight decay does nothing to its constraint."""
    nothing = {Along(THETA): sp.S.Zero}
    if isinstance(balance, MetricConstraint):
        return replace(balance, along=balance.along.xreplace(nothing))
    if isinstance(balance, MirrorBalance):
        left = {name: term.xreplace(nothing) for name, term in balance.terms.items()}
        return replace(balance, terms={name: term for name, term in left.items() if term != 0})
    return balance


def check_weights(metric: Mirror, group_of: Mapping[str, int], weights: Mapping[int, sp.Expr], rule: Rule) -> None:
    """Refuse constant weights c_P that are not those of the conserved combination of parameter groups (c as 1/η).

    Parameters
    ----------
    metric : Mirror
        With constant second derivatives.
    group_of : mapping of str to int
    weights : mapping of int to expression
        Group -> its weight in the conserved combination, in symbols numbered by the order of the groups.
    rule : Rule

    Raises
    ------
    RuleError
        Naming both.
    """
    numbers: dict[sp.Expr, sp.Expr] = {}
    for p, g in enumerate(weights):
        form, values = rule.groups[g].form, rule.groups[g].values
        numbers |= {sp.Symbol(f"{symbol.name}_{p}", real=True): sp.sympify(values[name]) for name, symbol in form.hyperparameters}
    given = {name: metric.second_derivative(name) for name in group_of}
    own = {name: weights[g].xreplace(numbers) for name, g in group_of.items()}
    first = next(iter(group_of))
    if any(sp.simplify(given[n] * own[first] - given[first] * own[n]) != 0 for n in group_of):
        raise RuleError(
            f"The rule does not move along the metric '{metric.name}': it conserves weights {own}, in proportion, and the metric has "
            f"{given}. A parameter group's weight is as 1 over its step size.",
            given=given,
        )


def _mirror_balance(form: Form, symmetry: Symmetry, outcome: Charge | Constraint) -> MirrorBalance:
    kind: Kind = "constraint" if isinstance(outcome, Constraint) else "shift" if is_linear(symmetry) else "scaling"
    return derive_mirror_balance(form, kind)


def _held_balance(form: Form, symmetry: Symmetry, outcome: Charge | Constraint) -> MetricBalance | MetricConstraint | None:
    found = derive_metric_constraint(form) if isinstance(outcome, Constraint) else derive_metric_balance(form, is_linear(symmetry))
    if found is None and derive_metric_constraint(form) is None:
        raise RuleError(
            f"{form.name} shows no metric of its own: its step does not divide a linear vector entry by entry. Leave the metric out.",
            form=form.name,
        )
    return found
