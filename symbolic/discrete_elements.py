"""Single elements of a discrete group: the swap of two units, a change of sign, and what generates all permutations of some units."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from noetherflow.errors import GraphError
from noetherflow.symbolic.discrete import DiscreteSymmetries, GroupElement
from noetherflow.symbolic.discrete_factors import Permutations, Signs, Values


def swap(group: DiscreteSymmetries, factor: int, first: int, second: int, *, copy: int = 0) -> GroupElement:
    """The element that exchanges two values of a permuted index.

    Parameters
    ----------
    group : DiscreteSymmetries
    factor : int
        Number of a factor of permutations.
    first, second : int
        Units, channels or heads.
    copy : int
        Which symmetric group, where a factor is a power of one.

    Raises
    ------
    GraphError
        If the factor is none of permutations, or has no such values.

    Examples
    --------
    >>> from noetherflow.symbolic.discrete_factors import Permutations
    >>> swap(DiscreteSymmetries([Permutations((3,), ())], {}), 0, 0, 2).values
    ((2, 1, 0),)
    """
    chosen = group[factor]
    if not isinstance(chosen, Permutations) or not {first, second} <= set(range(chosen.sizes[-1])) or not 0 <= copy < chosen.copies:
        raise GraphError(
            f"Factor {factor} ({chosen}) cannot exchange {first} and {second} in copy {copy}. Name a factor of permutations and two of "
            "its values.",
            factor=factor,
        )
    values, start = list(chosen.identity), copy * chosen.sizes[-1]
    values[start + first], values[start + second] = second, first
    return _alone(group, factor, tuple(values))


def flip(group: DiscreteSymmetries, factor: int, position: int) -> GroupElement:
    """The element that changes one sign.

    Parameters
    ----------
    group : DiscreteSymmetries
    factor : int
        Number of a factor of signs.
    position : int
        Row-major among the factor's sizes.

    Raises
    ------
    GraphError
        If the factor has no such sign.

    Examples
    --------
    >>> from noetherflow.symbolic.discrete_factors import Signs
    >>> flip(DiscreteSymmetries([Signs((3,), ())], {}), 0, 1).values
    ((0, 1, 0),)
    """
    chosen = group[factor]
    if not isinstance(chosen, Signs) or not 0 <= position < len(chosen.identity) or not chosen.free()[position]:
        raise GraphError(f"Factor {factor} ({chosen}) has no sign at {position}. Name a factor of signs, and a free one.", factor=factor)
    return _alone(group, factor, tuple(int(i == position) for i in range(len(chosen.identity))))


def swaps(group: DiscreteSymmetries, factor: int, units: Sequence[int] | None = None, *, copy: int = 0) -> tuple[GroupElement, ...]:
    """Swaps of neighbours in a list of units (all of them by default): they generate all permutations of these units."""
    listed = range(group[factor].sizes[-1]) if units is None else units
    return tuple(swap(group, factor, a, b, copy=copy) for a, b in pairwise(listed))


def _alone(group: DiscreteSymmetries, factor: int, values: Values) -> GroupElement:
    at = range(len(group))[factor]
    return GroupElement(tuple(values if number == at else other.identity for number, other in enumerate(group)))
