"""The table of rules by families, thinned: what `benchmarks/rule_table.py` makes in full."""

from __future__ import annotations

from dataclasses import replace

import pytest
import sympy as sp
from support.rule_orders import SETTINGS, misses, orders
from support.rule_siblings import cells
from support.rule_table import CASES, FAMILIES, charges, from_rest, run

from noetherflow.numeric.order import fit_order
from noetherflow.symbolic import rules

# rule -> families that have no law under it
THIN: dict[str, set[str]] = {
    "Nesterov, gradient ahead": set(),
    "RMSprop": {"rotation"},
    "Signum": set(),
    "mirror descent, entropy": set(FAMILIES),
    "natural gradient": set(),
}


def test_every_rule_is_in_the_table() -> None:
    shown = {name.split(",")[0].replace(" ", "").lower() for name in CASES}
    own = {name.lower() for name in rules.__all__ if isinstance(getattr(rules, name), type(rules.SGD)) and name[0].isupper()}
    assert own - {"nesterovlookahead"} <= shown, own - shown
    assert "nesterov" in shown
    assert set(SETTINGS) == set(CASES)


@pytest.mark.parametrize("name", THIN)
def test_laws_hold_to_rounding_and_every_wrong_sibling_is_rejected(name: str) -> None:
    found = list(cells(run(name)))
    assert {c.family for c in found if c.metric == "Euclidean"} == set(FAMILIES) - THIN[name]
    assert {c.family for c in found} == set(FAMILIES)
    for c in found:
        assert c.holds, c
        assert c.rejected == len(c.siblings) >= 2, c
        assert c.finding.motion > 1e6 * c.finding.residual or c.family == "rotation", c


def test_orders_are_those_derived_and_a_law_without_its_source_has_another() -> None:
    found = orders("Adagrad")
    assert set(found) == set(FAMILIES) - {"rotation"}
    assert all(order == 2 and fitted is not None and abs(fitted.slope - 2) < 0.1 for order, fitted in found.values())
    setting = SETTINGS["Adagrad"]
    rates = [setting.time / (setting.first * 2**i) for i in range(4)]
    runs = [from_rest(setting.case, setting.steps, rate) for rate in rates]
    law = next(law for law in runs[0].laws if law.symmetry.kind == "linear")
    terms = {**law.balance.charge_terms, "kinetic_symmetry_breaking": sp.S.Zero}
    wrong = replace(law, balance=replace(law.balance, charge_terms=terms))
    (c,) = charges(law.symmetry, "symmetric", 1)
    assert abs(fit_order(rates, [abs(misses(r, wrong, c)) for r in runs]).slope - 1) < 0.1
