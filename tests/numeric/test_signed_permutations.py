"""Fixed spaces of signed permutations, against averages over listed groups; and selectivity."""

from __future__ import annotations

import pytest
import torch

from noetherflow.errors import RunError
from noetherflow.numeric.selectivity import class_means, onset, selectivity
from noetherflow.numeric.signed_permutations import SignedPermutation, fixed_vectors


def listed(generators: list[SignedPermutation], size: int) -> list[torch.Tensor]:
    """All matrices of the group."""
    matrices = [g(torch.eye(size, dtype=torch.float64)).mT for g in generators]
    group = [torch.eye(size, dtype=torch.float64)]
    for element in group:
        for g in matrices:
            if not any(torch.equal(g @ element, other) for other in group):
                group.append(g @ element)
    return group


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [[2.0, 1, 3, 4, 5, 6]],
        [[2.0, 3, 1, 4, 5, 6], [1, 2, 3, 5, 4, -6]],
        [[-2.0, -1, 3, 4, 5, 6], [1, 2, 4, 5, 3, 6]],
        [[2.0, -1, 3, 4, 5, 6]],
        [[2.0, 3, 4, 5, 6, 1]],
    ],
)
def test_the_projection_is_the_average_over_the_group(rows: list[list[float]]) -> None:
    generators = [SignedPermutation.acting(torch.tensor(row, dtype=torch.float64)) for row in rows]
    found, group = fixed_vectors(generators, 6), listed(generators, 6)
    average = torch.stack(group).mean(0)
    x = torch.randn(6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.allclose(found.project(x), average @ x, rtol=0, atol=20 * 2.0**-53)  # six terms, of size about one
    assert found.dimension == round(float(average.trace()))
    fixed = found.project(x)
    assert found.fixes(fixed)
    assert torch.equal(found.project(fixed), fixed)
    assert found.fixes(x) == (not rows)
    across = found.transverse()
    assert across.shape == (6 - found.dimension, 6)
    assert torch.allclose(across @ across.mT, torch.eye(len(across), dtype=torch.float64), atol=1e-15)
    assert float((across @ average).abs().sum()) < 1e-14


def test_a_long_cycle_is_one_orbit() -> None:
    order = torch.randperm(5000, generator=torch.Generator().manual_seed(0))
    cycle = torch.empty(5000, dtype=torch.float64)
    cycle[order] = order.roll(1).double() + 1
    assert fixed_vectors([SignedPermutation.acting(cycle)], 5000).dimension == 1


def test_labels_that_tell_nothing_give_what_chance_gives() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(400) % 10
    noise = torch.randn(400, 2000, generator=generator, dtype=torch.float64)
    found = selectivity(noise, labels)
    # under chance a beta variable of mean 9/399 and variance below 2 · 9 / 399²; five standard errors of 2000
    assert abs(float(found.mean()) - 9 / 399) < 5 * (2 * 9) ** 0.5 / 399 / 2000**0.5
    told = selectivity(class_means(noise, labels)[labels], labels)
    assert torch.allclose(told, torch.ones_like(told))


def test_a_class_without_samples_is_refused_and_levels_that_are_never_reached_are_infinite() -> None:
    with pytest.raises(RunError, match="every class"):
        selectivity(torch.ones(2, 1), torch.tensor([0, 2]))
    assert onset([0, 1], [0.0, 0.1], 0.5) == float("inf")
    assert onset([3, 4], [0.7, 0.1], 0.5) == 3.0
