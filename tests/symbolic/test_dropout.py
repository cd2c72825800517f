"""What masks add to a loss, against enumeration of all of them."""

from __future__ import annotations

from itertools import product

import pytest
import sympy as sp

from noetherflow.symbolic.dropout import PROBABILITY, RATIO, mask_moment, masked_mean, penalty, shrinkage

Z = list(sp.symbols("z1:4"))
H = sp.symbols("h1:4")
PRODUCT = (1 - sum(h * z for h, z in zip(H, Z, strict=True))) ** 2


def enumerated(loss: sp.Expr) -> sp.Expr:
    """The mean over all masks, each with its probability."""
    total = sp.S.Zero
    for drawn in product((0, 1), repeat=len(Z)):
        weight = sp.Mul(*(1 - PROBABILITY if kept else PROBABILITY for kept in drawn))
        total += weight * loss.subs({z: kept / (1 - PROBABILITY) for z, kept in zip(Z, drawn, strict=True)}, simultaneous=True)
    return total


@pytest.mark.parametrize("loss", [PRODUCT, PRODUCT * Z[0], PRODUCT**2, sp.Integer(1) * Z[0] * Z[1] * Z[2]], ids=["2", "3", "4", "mixed"])
def test_the_mean_over_masks_is_the_enumerated_one(loss: sp.Expr) -> None:
    assert sp.simplify(masked_mean(loss, Z) - enumerated(loss)) == 0


def test_the_penalty_is_all_for_degree_two_and_the_leading_order_beyond() -> None:
    ones = dict.fromkeys(Z, 1)
    assert sp.simplify(enumerated(PRODUCT) - PRODUCT.subs(ones) - penalty(PRODUCT, Z)) == 0
    quartic = PRODUCT**2
    left = sp.simplify(enumerated(quartic) - quartic.subs(ones) - penalty(quartic, Z))
    assert left != 0
    # the third and fourth moments are of first order in p too: a small p does not make the penalty exact
    assert sp.limit(left / PROBABILITY, PROBABILITY, 0) != 0


def test_a_mask_has_the_variance_of_the_ratio() -> None:
    assert mask_moment(0) == 1
    assert mask_moment(1) == 0
    assert sp.simplify(mask_moment(2) - RATIO) == 0
    assert sp.simplify(mask_moment(2) - PROBABILITY) != 0


@pytest.mark.parametrize("kept", [1, 2, 3])
def test_shrinkage_is_stationary(kept: int) -> None:
    s, r = sp.symbols("s1:4", positive=True), sp.Symbol("r", positive=True)
    m = sp.symbols("m1:4", positive=True)
    objective = sum((a - b) ** 2 for a, b in zip(m[:kept], s, strict=False)) / 2 + RATIO / (2 * r) * sum(m[:kept]) ** 2
    at = dict(zip(m, shrinkage(list(s), kept, r), strict=False))
    assert all(sp.simplify(sp.diff(objective, x).subs(at)) == 0 for x in m[:kept])
    wrong = dict(zip(m, shrinkage(list(s), kept, sp.Integer(1)), strict=False))
    assert any(sp.simplify(sp.diff(objective, x).subs(wrong)) != 0 for x in m[:kept])
