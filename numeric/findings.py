"""What a finished verification found, as plain records: families, their verdicts, and what moved them.

Nothing here knows why a charge should move as predicted; it holds the figures, orders them, and puts them into words.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

__all__ = ["FamilyRecord", "Findings", "Verdict", "amount", "plural", "scientific"]

TABLE_FIGURES: Final = (
    "kind",
    "charges",
    "steps",
    "motion",
    "scale",
    "residual",
    "bound",
    "ratio",
    "verdict",
    "reason",
    "worst_step",
    "worst_charge",
)
QUANTITIES: Final = {"charges": ("{} charge{}", "", "s"), "momenta": ("{} angular moment{}", "um", "a")}
Verdict = Literal["exact", "failed", "not checked"]


@dataclass(frozen=True, slots=True)
class FamilyRecord:
    """One family of charges after a run.

    Parameters
    ----------
    name, kind : str
        Name, unique in its report, and kind of symmetry.
    parameters : tuple of str
        Parameters the symmetry moves.
    charges, steps : int
        How many charges were followed, over how many steps.
    motion : float
        Largest ``|Q_k - Q_0|`` over steps and charges.
    scale : float
        Scale of the charge: the sum of its absolute contributions.
    residual : float
        Largest ``|measured - predicted|``.
    bound : float
        Rounding bound at the worst place.
    ratio : float
        Largest residual over its bound; at most 1 where the law holds.
    verdict : {'exact', 'failed', 'not checked'}
        Judgement, with its `reason` in words.
    worst_step, worst_charge : int
        Where the ratio is largest.
    budget : mapping of str to float
        Mechanism to its largest absolute contribution over the charges.
    motion_parts : mapping of str to float
        Mechanism to its signed contribution summed over the charges; together they are `total_motion`.
    total_motion : float
        Signed motion summed over the charges.
    charge_latex, balance_latex : str
        The charge and its balance law.
    sources : tuple of str
        Citation keys.
    first_step, first_charge : int, optional
        Where the bound was first exceeded.
    quantity : str
        What was followed: "charges", or "momenta" of rotations, which have no charge.
    """

    name: str
    kind: str
    parameters: tuple[str, ...]
    charges: int
    steps: int
    motion: float
    scale: float
    residual: float
    bound: float
    ratio: float
    verdict: Verdict
    reason: str
    worst_step: int
    worst_charge: int
    budget: Mapping[str, float]
    motion_parts: Mapping[str, float]
    total_motion: float
    charge_latex: str
    balance_latex: str
    sources: tuple[str, ...]
    first_step: int | None = None
    first_charge: int | None = None
    quantity: str = "charges"

    @property
    def badness(self) -> tuple[bool, float]:
        """Sorting key: failed before the others, then the largest ratio; a ratio that is no number counts as infinite."""
        return self.verdict == "failed", math.inf if math.isnan(self.ratio) else self.ratio

    @property
    def relative_residual(self) -> float:
        """Largest residual as a part of the charge scale."""
        return self.residual / self.scale if self.scale > 0 else (0.0 if self.residual == 0 else math.inf)


@dataclass(frozen=True, slots=True)
class Findings:
    """All families of one verification.

    Parameters
    ----------
    title : str
        Heading.
    families : tuple of FamilyRecord
        One per law.
    settings : mapping of str to str
        Model, optimizer, dtype, steps, data, seconds, ...
    opaque : tuple of str
        Operations nothing was allowed through.
    directory : Path, optional
        Folder of the recorded trajectories.
    graph_svg : str
        Drawing of the architecture graph, or an empty string.
    notes : tuple of str
        Remarks for the reader.
    """

    title: str
    families: tuple[FamilyRecord, ...]
    settings: Mapping[str, str] = field(default_factory=dict)
    opaque: tuple[str, ...] = ()
    directory: Path | None = None
    graph_svg: str = ""
    notes: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        """Whether there is a law, every law was checked, and every one is exact."""
        return bool(self.families) and all(family.verdict == "exact" for family in self.families)

    @property
    def failed(self) -> tuple[FamilyRecord, ...]:
        """The families whose law failed, the worst first."""
        return tuple(family for family in self.by_badness if family.verdict == "failed")

    @property
    def by_badness(self) -> tuple[FamilyRecord, ...]:
        """All checked families, the failed ones first, each part by falling ratio; then those that were not checked."""
        checked = sorted((f for f in self.families if f.verdict != "not checked"), key=lambda f: f.badness, reverse=True)
        return (*checked, *(f for f in self.families if f.verdict == "not checked"))

    @property
    def worst(self) -> FamilyRecord | None:
        """The family with the largest residual over its bound, a failed one first; None when nothing was checked."""
        first = self.by_badness[:1]
        return first[0] if first and first[0].verdict != "not checked" else None

    @property
    def mechanisms(self) -> tuple[str, ...]:
        """Every mechanism of the budget, the one that moved most first."""
        moved: dict[str, float] = {}
        for family in self.families:
            for name in dict.fromkeys((*family.motion_parts, *family.budget)):
                moved[name] = moved.get(name, 0.0) + abs(family.motion_parts.get(name, 0.0))
        return tuple(sorted(moved, key=lambda name: -moved[name]))

    def table(self) -> list[dict[str, Any]]:
        """One row per family, ready for ``pandas.DataFrame``.

        Returns
        -------
        list of dict
            Keys family, kind, charges, steps, motion, scale, residual, bound, ratio, verdict, reason, worst_step, worst_charge, parameters.
        """
        return [
            {"family": family.name, **{name: getattr(family, name) for name in TABLE_FIGURES}, "parameters": ", ".join(family.parameters)}
            for family in self.families
        ]

    def budget(self) -> list[dict[str, Any]]:
        """One row per family and mechanism, ready for ``pandas.DataFrame``.

        Returns
        -------
        list of dict
            Keys family, mechanism, contribution (signed, summed over the charges), largest (absolute, over the charges) and share (of
            the sum of absolute contributions to the family, between 0 and 1). What was not recorded is nan.
        """
        rows = []
        for family in self.families:
            whole = math.fsum(abs(part) for part in family.motion_parts.values())
            for name in dict.fromkeys((*family.motion_parts, *family.budget)):
                part = family.motion_parts.get(name, math.nan)
                share = abs(part) / whole if whole > 0 else 0.0
                largest = family.budget.get(name, math.nan)
                rows.append({"family": family.name, "mechanism": name, "contribution": part, "largest": largest, "share": share})
        return rows

    def sentence(self) -> str:
        """The outcome in plain words."""
        if not self.families:
            return "There was no law to check."
        unchecked = sum(family.verdict == "not checked" for family in self.families)
        aside = f" {_laws(unchecked)} not checked." if unchecked else ""
        worst = self.worst
        if worst is None:
            return f"Nothing was checked: {_laws(unchecked)} left aside."
        return (self._failure(worst) if self.failed else self._success(worst)) + aside

    def _success(self, worst: FamilyRecord) -> str:
        checked = [family for family in self.families if family.verdict == "exact"]
        counts = [(sum(f.charges for f in checked if f.quantity == kind), noun) for kind, noun in QUANTITIES.items()]
        followed = " and ".join(noun.format(f"{count:,}", one if count == 1 else many) for count, (noun, one, many) in counts if count)
        steps = max(family.steps for family in checked)
        size = "exactly zero" if worst.residual == 0 else f"{amount(worst.relative_residual)} of the charge scale"
        bound = "" if worst.residual == 0 else f", {amount(worst.ratio)} of its rounding bound"
        return (
            f"{self._share(len(checked), 'hold')}: {followed or '0 charges'} over {plural(steps, 'step')}; "
            f"the largest residual is {size}{bound}."
        )

    def _failure(self, worst: FamilyRecord) -> str:
        failed = self.failed
        names = ", ".join(f"'{family.name}'" for family in failed[:3]) + (f" and {len(failed) - 3} more" if len(failed) > 3 else "")
        known = [family for family in failed if family.first_step is not None]
        if known:
            first = min(known, key=lambda family: family.first_step or 0)
            where = f"The first departure is at step {first.first_step} in charge {first.first_charge} of '{first.name}'; the largest"
        else:
            where = "The largest departure"
        verb = "" if known else " is"
        where += f", {amount(worst.ratio)} times its rounding bound,{verb} at step {worst.worst_step} in charge {worst.worst_charge} of "
        where += f"'{worst.name}'."
        return f"{self._share(len(failed), 'fail')}: {names}. {where}"

    def _share(self, count: int, verb: str) -> str:
        laws = "law" if len(self.families) == 1 else "laws"
        return f"{count} of {len(self.families)} {laws} {verb}" + ("s" if count == 1 else "")


def scientific(value: float, digits: int = 1) -> str:
    """A figure as it stands in a table: ``3.1e-14``, ``0``, ``nan``.

    Examples
    --------
    >>> scientific(3.14159e-14), scientific(0.0)
    ('3.1e-14', '0')
    """
    return "0" if value == 0 else f"{value:.{digits}e}"


def amount(value: float) -> str:
    """A figure as it stands in a sentence or a ratio: plain between 0.001 and 10,000, else scientific.

    Examples
    --------
    >>> amount(0.2134), amount(41.2), amount(3.1e-14)
    ('0.21', '41', '3.1e-14')
    """
    if value == 0:
        return "0"
    if not 1e-3 <= abs(value) < 1e4:
        return scientific(value)
    if abs(value) < 1:
        return f"{value:#.2g}"
    return f"{value:.1f}" if abs(value) < 10 else f"{value:,.0f}"


def plural(count: int, noun: str) -> str:
    """A number with its noun.

    Examples
    --------
    >>> plural(1, "charge"), plural(9089, "charge")
    ('1 charge', '9,089 charges')
    """
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def _laws(count: int) -> str:
    return "1 law was" if count == 1 else f"{count} laws were"
