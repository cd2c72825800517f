"""No reported symmetry is wrong: random networks, random data, random directions, in double precision."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, seed, settings
from hypothesis import strategies as st
from support.assembled import BATCH, MAKERS, Assembled, Step
from support.assembled_blocks import BLOCKS, smallest_variance
from support.assembled_picks import PICKING
from support.block_cases import BLOCK_CASES
from support.cases import CASES, Case
from support.invariance import Probe, independent_directions, violations

from noetherflow.bridge.trace import trace
from noetherflow.symbolic.gauge import symmetries

LIKELY = ("linear", "linear", "activation", "pair")
VECTORS = ((3,), (4,), (1,), (4, 3), (2, 4), (1, 4))
IMAGES = ((2, 4, 4), (3, 4, 4), (4, 5, 4), (1, 4, 4), (2, 4, 1), (2, 3, 3, 3), (3, 5))
# A variance this small makes a norm amplify rounding: what is then unequal is arithmetic, not symmetry.
SMALLEST_VARIANCE = 1e-5

_small = st.integers(0, 23)
# Few kinds of steps in one network, so that each meets the others often: what is rare in one network is common in another.
_kinds = st.lists(st.sampled_from((*MAKERS, *BLOCKS, *PICKING)), min_size=1, max_size=4)


def _steps(kinds: list[str]) -> st.SearchStrategy[tuple[Step, ...]]:
    step = st.builds(Step, st.sampled_from((*kinds, *kinds, *LIKELY)), st.sampled_from((0, 0, 0, 1, 1, 2, 3)), _small, _small, _small)
    return st.lists(step, min_size=2, max_size=9).map(tuple)


_networks = st.fixed_dictionaries(
    {
        "steps": _kinds.flatmap(_steps),
        "frozen": st.sampled_from((0, 0, 0, 2, 3)),
        "outputs": st.sampled_from((1, 1, 1, 2)),
        "loss": st.sampled_from((None, None, "cross_entropy", "mse")),
        "number": st.integers(0, 10**6),
    }
)
EXAMPLES = {"deadline": None, "suppress_health_check": list(HealthCheck)}


def confront(shape: tuple[int, ...], spec: dict[str, Any]) -> None:
    """Assemble a network, derive its symmetries, and measure every one of them."""
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(spec["number"])
    model = Assembled(spec["steps"], shape, spec["frozen"], spec["outputs"])
    probe = Probe(model, torch.randn(BATCH, *shape), spec["loss"])
    assume(_is_well_conditioned(probe, spec["number"]))
    found = symmetries(trace(model, probe.inputs, loss=spec["loss"]))
    assert violations(probe, found, spec["number"]) == []
    assert independent_directions(probe, found) == found.dimension
    if not any(
        symmetry.matrix or symmetry.rotation for symmetry in found
    ):  # a matrix group may act with a stabiliser: see wide_linear in the case table
        assert independent_directions(probe, found, points=1) == found.dimension


def _is_well_conditioned(probe: Probe, number: int) -> bool:
    point = probe.point(number)
    try:
        gradient = probe.gradient(point)
    except RuntimeError:  # torch refuses: a value that a gradient needs was overwritten
        return False
    if not all(bool(g.isfinite().all()) for g in gradient.values()):
        return False
    return smallest_variance(probe.model, lambda: probe.terms(point)) > SMALLEST_VARIANCE


@pytest.mark.slow
@settings(max_examples=150, derandomize=True, **EXAMPLES)
@given(st.sampled_from(VECTORS), _networks)
def test_symmetries_of_random_networks_on_vectors_are_true_and_independent(shape: tuple[int, ...], spec: dict[str, Any]) -> None:
    confront(shape, spec)


@pytest.mark.slow
@settings(max_examples=150, derandomize=True, **EXAMPLES)
@given(st.sampled_from(IMAGES), _networks)
def test_symmetries_of_random_networks_on_images_are_true_and_independent(shape: tuple[int, ...], spec: dict[str, Any]) -> None:
    confront(shape, spec)


@pytest.mark.nightly
@seed(20260701)
@settings(max_examples=5000, **EXAMPLES)
@given(st.sampled_from((*VECTORS, *IMAGES)), _networks)
def test_symmetries_of_thousands_of_random_networks(shape: tuple[int, ...], spec: dict[str, Any]) -> None:
    confront(shape, spec)


@pytest.mark.parametrize("case", [*CASES, *BLOCK_CASES], ids=lambda case: case.name)
def test_symmetries_of_the_case_table_are_true(case: Case) -> None:
    torch.set_default_dtype(torch.float64)
    model = case.build()
    probe = Probe(model, case.inputs(), case.loss)
    found = symmetries(trace(model, probe.inputs, loss=case.loss))
    assert violations(probe, found) == []
    assert independent_directions(probe, found) == found.dimension
    assert independent_directions(probe, found, points=1) == found.dimension - case.excess


def test_a_wrong_symmetry_is_seen() -> None:
    """Negative control: the symmetries of ReLU, claimed of tanh, are rejected one and all."""
    torch.set_default_dtype(torch.float64)
    relu, tanh = (torch.nn.Sequential(torch.nn.Linear(3, 4), a, torch.nn.Linear(4, 2)) for a in (torch.nn.ReLU(), torch.nn.Tanh()))
    probe = Probe(tanh, torch.randn(6, 3))
    claimed = symmetries(trace(relu, probe.inputs))
    assert len(violations(probe, claimed)) == 2 * len(claimed) > 0
