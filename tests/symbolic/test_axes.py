"""Axis classes: whatever was unified, split, cut and glued, an axis is tiled by its segments and every view names the same indices."""

from __future__ import annotations

from itertools import product

import pytest
import sympy as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from noetherflow.symbolic.axes import Axis, AxisTable, Misaligned, divide, multiply


def elements(table: AxisTable, axis: Axis) -> list[int]:
    """Every element of an axis, in the order of its segments."""
    out = []
    for segment in table.segments(axis):
        ranges = [range(leaf.size) for leaf in segment.leaves]
        strides = [leaf.stride for leaf in segment.leaves]
        out += [segment.offset + sum(i * s for i, s in zip(choice, strides, strict=True)) for choice in product(*ranges)]
    return out


def leaf_names(table: AxisTable, axis: Axis) -> list[tuple[object, object, object]]:
    return [(leaf.atom, leaf.identity, leaf.size) for segment in table.segments(axis) for leaf in segment.leaves]


SIZES = (1, 2, 3, 4, 6, 8, 12, 24)


@settings(max_examples=300, derandomize=True, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["unify", "regroup", "cut", "join", "like"]), *[st.integers(0, 40)] * 3), max_size=12))
def test_segments_tile_every_axis_and_views_agree_with_the_whole(steps: list[tuple[str, int, int, int]]) -> None:
    table = AxisTable()
    axes = [table.new(size) for size in (12, 24, 4, 6)]
    views: list[tuple[Axis, list[Axis]]] = []
    for kind, i, j, k in steps:
        x, y, saved = axes[i % len(axes)], axes[j % len(axes)], table.snapshot()
        try:
            if kind == "unify":
                table.unify(x, y)
            elif kind == "regroup":
                first = SIZES[k % len(SIZES)]
                rest = divide(table.size(x), first)
                if rest is not None:
                    views.append((x, table.regroup([x], [first, rest])))
            elif kind == "cut" and table.size(x) > 1:
                head = 1 + k % (table.size(x) - 1)
                axes += table.cut(x, [head, table.size(x) - head])
            elif kind == "join":
                axes.append(table.concatenated([x, y]))
            else:
                axes.append(table.like(x))
        except Misaligned:
            table.restore(saved)
    for axis in axes:
        assert sorted(elements(table, axis)) == list(range(table.size(axis)))
    for whole, parts in views:
        assert leaf_names(table, whole) == leaf_names(table, tuple(o for part in parts for o in part))


def test_unified_axes_have_the_same_atoms() -> None:
    table = AxisTable()
    x, y = table.new(12), table.new(12)
    table.unify(x, y)
    table.regroup([x], [3, 4])
    assert [leaf.atom for s in table.segments(x) for leaf in s.leaves] == [leaf.atom for s in table.segments(y) for leaf in s.leaves]
    assert [leaf.size for s in table.segments(y) for leaf in s.leaves] == [3, 4]


def test_an_atom_that_occurs_twice_is_split_once() -> None:
    table = AxisTable()
    row = table.new(4)
    column = table.like(row)
    flat = row + column
    pieces = table.regroup([flat], [2, 2, 2, 2])
    assert leaf_names(table, flat) == leaf_names(table, tuple(o for piece in pieces for o in piece))
    assert len({leaf.atom for s in table.segments(flat) for leaf in s.leaves}) == 2


def test_an_atom_that_occurs_twice_meets_an_axis_split_otherwise() -> None:
    table = AxisTable()
    row = table.new(4)
    flat, other = row + table.like(row), table.new(16)
    pieces = table.regroup([other], [2, 8])
    table.unify(flat, other)
    assert leaf_names(table, other) == leaf_names(table, tuple(o for piece in pieces for o in piece))
    assert [leaf.atom for s in table.segments(flat) for leaf in s.leaves] == [leaf.atom for s in table.segments(other) for leaf in s.leaves]


def test_overlapping_cuts_refine_each_other() -> None:
    table = AxisTable()
    axis = table.new(6)
    table.cut(axis, [4, 2])
    table.cut(axis, [2, 4])
    assert [(s.offset, multiply([leaf.size for leaf in s.leaves])) for s in table.segments(axis)] == [(0, 2), (2, 2), (4, 2)]


def test_a_failed_unification_leaves_no_trace() -> None:
    table = AxisTable()
    x, y = table.new(6), table.new(6)
    table.regroup([x], [2, 3])
    table.regroup([y], [3, 2])
    before = leaf_names(table, x), leaf_names(table, y)
    saved = table.snapshot()
    with pytest.raises(Misaligned, match="share no factor structure"):
        table.unify(x, y)
    table.restore(saved)
    assert (leaf_names(table, x), leaf_names(table, y)) == before


@pytest.mark.parametrize(
    ("sizes", "shape", "reason"),
    [
        ([6], [4, 2], "more elements|cuts an index"),
        ([6], [2, 2], "cuts an index|fewer"),
        ([2, 3], [2], "fewer elements"),
        ([2], [2, 2], "more"),
    ],
)
def test_a_reshape_that_cannot_be_is_refused(sizes: list[int], shape: list[int], reason: str) -> None:
    table = AxisTable()
    with pytest.raises(Misaligned, match=reason):
        table.regroup([table.new(size) for size in sizes], shape)


def test_a_product_is_not_cut_nor_a_sum_split() -> None:
    table = AxisTable()
    x, y = table.new(6), table.new(6)
    table.regroup([x], [2, 3])
    with pytest.raises(Misaligned):
        table.cut(x, [2, 4])
    table.cut(y, [2, 4])
    with pytest.raises(Misaligned, match="cannot be split into a product"):
        table.regroup([y], [2, 3])


def test_an_axis_of_size_one_is_the_empty_product_and_an_empty_piece_is_refused() -> None:
    table = AxisTable()
    assert table.new(1) == ()
    assert table.size(()) == 1
    assert table.concatenated([()]) == ()
    with pytest.raises(Misaligned, match="empty piece"):
        table.concatenated([table.new(3), table.new(0)])


def test_symbolic_sizes_divide_exactly_or_not_at_all() -> None:
    n, m = sp.symbols("n m", integer=True, positive=True)
    table = AxisTable()
    axis = table.new(n * m)
    rows, columns = table.regroup([axis], [n, m])
    assert (table.size(rows), table.size(columns)) == (n, m)
    assert divide(n * m, n) == m
    assert divide(n, m) is None
    assert divide(7, 2) is None
