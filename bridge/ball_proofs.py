r"""Counts of laws of smooth networks, proved in ball arithmetic.

The fields and brackets that the float64 count found independent are evaluated again at the same point, which is made of float64 numbers
and so exactly known, in balls that hold their exact values (`noetherflow.numeric.ball_traces`). A minor of them that is regular for every
matrix in the balls (`noetherflow.numeric.minors`) proves the rank from below:

    dim Lie{χ}(θ) >= r,        so at most D − r laws hold for every data set, near θ, and hence everywhere.

The charges' gradients at the point, independent by the same argument, give the lower bound. What is proved is about the graph's function
over the real numbers; constants that are no short binary fractions (eps = 1e-5) stand for any number within 2^-50 of them, relatively.

Brackets of level 3 and more are not evaluated: what is recorded of one grows three- to fourfold by level. Radii grow with depth and level:
a whole transformer block needs more than the 53 bits of the midpoints, and then the result says that nothing was proved.

Source: own, by rump1999fast.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch.utils._pytree import tree_map

from noetherflow.bridge.conserved import gradient_rows
from noetherflow.bridge.law_counts import Count
from noetherflow.bridge.live_sampling import LiveSampling
from noetherflow.numeric import minors
from noetherflow.numeric.ball_functions import PRECISION
from noetherflow.numeric.ball_traces import enclosure
from noetherflow.numeric.balls import BITS, Ball, NotEnclosed, product

LEVELS: Final = 2
LARGEST: Final = 300
MANY: Final = 10**9
ARITHMETIC: Final = (
    "IEEE 754 double precision rounded to nearest, radii with the rounding of midpoints and their own; elementary functions by Arb. A row "
    "of the minor of fields is [level, number] of the brackets that the recipe draws, in the given columns of the coordinates in 'order'; "
    "of charges, the number of a gradient. Each is regular: the largest row sum of |I - C M| is below 1, with C the float64 inverse of M."
)


@dataclass(frozen=True, slots=True)
class Minor:
    """A square part of a matrix, and the bound that shows it to be regular.

    Attributes
    ----------
    rows : tuple
        Of fields (level, number); of charges, numbers.
    columns : tuple of int
    contraction : float
        Upper bound of ‖I − C M‖ over all matrices in the balls; infinite as long as it is not computed.
    """

    rows: tuple[Any, ...]
    columns: tuple[int, ...]
    contraction: float = torch.inf

    def described(self) -> dict[str, Any]:
        """For a certificate."""
        rows = [list(row) if isinstance(row, tuple) else row for row in self.rows]
        return {"size": len(rows), "rows": rows, "columns": list(self.columns), "contraction": float(f"{self.contraction:.1e}")}


@dataclass(frozen=True, slots=True)
class BallProof:
    """That fields and brackets have some rank at least, and charges too.

    Attributes
    ----------
    fields, charges : Minor
        Their sizes are the ranks.
    """

    fields: Minor
    charges: Minor

    def __str__(self) -> str:
        worst = max(self.fields.contraction, self.charges.contraction)
        sizes = " and ".join(f"{len(m.rows)} x {len(m.rows)}" for m in (self.fields, self.charges) if m.rows)
        return f"in ball arithmetic of {BITS} bits: minors {sizes}, contraction {worst:.0e}"

    def described(self, count: Count) -> dict[str, Any]:
        """For a certificate: the point as exact binary numbers in C's notation (0x1.8p+0 = 3/2), and the minors."""
        point = {name: [float(v).hex() for v in x.flatten().tolist()] for name, x in count.state.items()}
        minor = {"fields": self.fields.described(), "charges": self.charges.described()}
        return {"arithmetic": ARITHMETIC, "bits": BITS, "bits_of_functions": PRECISION, "point": point, **minor}


def prove(count: Count, stated: Mapping[str, Any] | None = None) -> BallProof:
    """The ranks of a float64 count, proved.

    Parameters
    ----------
    count : Count
        That has run, in float64.
    stated : mapping, optional
        What `BallProof.described` gave: the minors to take. They are chosen from the float64 count otherwise.

    Raises
    ------
    NotEnclosed
        If they cannot be: an operation without a rule in balls, a level or a size that costs too much, balls too wide; or because they are
        wrong.
    """
    rank, levels = count.growth.rank, [step[0] for step in _gaining(count)]
    if isinstance(count.sampling, LiveSampling):
        raise NotEnclosed("its graph does not hold all that it computes with")
    if count.sampling.prime:
        raise NotEnclosed(f"it is counted modulo {count.sampling.prime}, and so proved, without balls")
    if max(levels, default=0) > LEVELS or rank > LARGEST:
        raise NotEnclosed(
            f"rank {rank} with brackets of level {max(levels)} costs too much; up to {LARGEST} and level {LEVELS} are evaluated"
        )
    charges = _charges(count)
    if stated is None:
        fields, independent = _chosen_fields(count), _chosen_charges(charges, count.found)
    else:
        fields, independent = (_read(stated[part]) for part in ("fields", "charges"))
    if (len(fields.rows), len(independent.rows)) != (rank, count.found):
        raise NotEnclosed(
            f"minors of {rank} fields and {count.found} charges are needed, got {len(fields.rows)} and {len(independent.rows)}"
        )
    _check_drawn(count, fields.rows)
    rows = _enclosed(count, fields.rows)
    _check_conserved(rows, charges)
    return BallProof(_regular(fields, rows), _regular(independent, _picked(charges, list(independent.rows))))


def _gaining(count: Count) -> list[tuple[int, int, int, int]]:
    """Steps of the float64 count that found something: level, first number, rows, dimensions that they brought."""
    before, found = 0, []
    for level, first, rows, rank in count.growth.steps:
        if rank > before:
            found.append((level, first, rows, rank - before))
        before = rank
    return found


def _chosen_fields(count: Count) -> Minor:
    steps = _gaining(count)
    if not steps:
        return Minor((), ())
    picked, columns = minors.chosen([(count.draw(level, first, rows)[0], gained) for level, first, rows, gained in steps])
    places = [(level, first + row) for (level, first, _, _), rows in zip(steps, picked, strict=True) for row in rows]
    return Minor(tuple(places), tuple(columns))


def _chosen_charges(charges: Ball, rank: int) -> Minor:
    if not rank:
        return Minor((), ())
    (picked,), columns = minors.chosen([(charges.middle, rank)])
    return Minor(tuple(picked), tuple(columns))


def _read(stated: Mapping[str, Any]) -> Minor:
    rows = tuple(tuple(map(_whole, row)) if isinstance(row, list) else _whole(row) for row in stated["rows"])
    return Minor(rows, tuple(map(_whole, stated["columns"])))


def _whole(number: Any) -> int:
    if type(number) is not int or not 0 <= number < MANY:
        raise ValueError(f"rows and columns are numbered from 0, got {str(number)[:40]!r}")
    return number


def _check_drawn(count: Count, places: Sequence[Any]) -> None:
    drawn: dict[int, int] = {}
    for level, first, rows, _ in count.growth.steps:
        drawn[level] = max(drawn.get(level, 0), first + rows)
    if not all(isinstance(place, tuple) and len(place) == 2 and place[1] < drawn.get(place[0], 0) for place in places):
        raise NotEnclosed("a row of the minor of fields is [level, number] of a bracket that the count has drawn")


def _enclosed(count: Count, places: Sequence[tuple[int, int]]) -> Ball:
    """The exact values of brackets, each given as (level, number), in balls."""
    parts, order = [], []
    for level in sorted({level for level, _ in places}):
        here = [i for i, (other, _) in enumerate(places) if other == level]
        numbers = [places[i][1] for i in here]
        drawn = count.sampling.samples(level, 0, max(numbers) + 1)[0]
        samples = tree_map(lambda x, numbers=numbers: x[numbers], drawn)
        parts.append(
            enclosure(lambda state, s, level=level: count.rows(level, state, s), count.state, samples, constants=count.sampling.constants)
        )
        order += here
    if not parts:
        return Ball.exact(torch.zeros(0, count.coordinates, dtype=torch.float64))
    back = torch.tensor(order).argsort().tolist()
    return _picked(Ball(torch.cat([p.middle for p in parts]), torch.cat([p.radius for p in parts])), back)


def _charges(count: Count) -> Ball:
    """The exact gradients of the charges that no field refutes, in balls."""
    standing = [law for i, law in enumerate(count.laws) if i not in count.refuted]
    if not standing:
        return Ball.exact(torch.zeros(0, count.coordinates, dtype=torch.float64))
    return enclosure(lambda state: gradient_rows(standing, state, None)[0], count.state)


def _picked(matrix: Ball, rows: Sequence[int]) -> Ball:
    return Ball(matrix.middle[list(rows)], matrix.radius[list(rows)])


def _check_conserved(rows: Ball, charges: Ball) -> None:
    """⟨∇Q, V⟩ is zero if Q is conserved: a ball without zero proves that it is not."""
    if not len(charges.middle) or not len(rows.middle):
        return
    moved = product(rows, Ball(charges.middle.T, charges.radius.T))
    if bool((moved.middle.abs() > moved.radius).any()):
        raise NotEnclosed("a charge is not conserved along an exact field: its ball leaves out zero")


def _regular(minor: Minor, rows: Ball) -> Minor:
    columns = list(minor.columns)
    if len(columns) != len(minor.rows) or any(not 0 <= c < rows.middle.shape[1] for c in columns):
        raise NotEnclosed("a minor has as many columns as rows, all of them coordinates")
    bound = minors.contraction(Ball(rows.middle[:, columns], rows.radius[:, columns]))
    if not bound < 1:
        raise NotEnclosed(f"the contraction of a minor of {len(columns)} rows is {bound:.1e}, which is not below 1")
    return Minor(minor.rows, minor.columns, bound)
