"""Rotary position embedding as models write it: chains that turn pairs of entries of a head by angles that only depend on data.

A pair (a, b) is an entry of the first half of the last axis with the same one of the second ("halves"), or two neighbours ("interleaved").
It is turned if (a, b) becomes (p a + q b, p b - q a) with data p and q: the same p for both, and opposite q.

whole       x * cos + t * sin, where t is x with every pair (a, b) replaced by (-b, a), and both tables repeat over the pair
split       the two parts of the pair computed apart, with one table each, and put together
complex     pairs as complex numbers, times complex data
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import torch

from noetherflow.bridge.matching import DEPTH, Matcher

Buffers = Mapping[str, torch.Tensor]
ELEMENTWISE: Final = frozenset({"cosine", "sine", "scale", "negate", "add", "subtract", "multiply", "divide", "power", "exponential"})


def gather_rotation(m: Matcher, node: str, buffers: Buffers) -> None:
    """Make a node a rotation if it is the end of such a chain."""
    if node not in m.moving:
        return
    for found in (_whole(m, node, buffers), _split(m, node), _complex(m, node)):
        if found:
            x, pairing, tables = found
            m.replace(node, "rotary", {"input": x, **tables}, pairing=pairing)
            return


Found = tuple[str, str, dict[str, str]]  # what is turned, the pairing, the tables by slot


# --- the whole head at once


def _whole(m: Matcher, node: str, buffers: Buffers) -> Found | None:
    terms = _terms(m, node)
    for (_, x, cosine), (_, turned, sine) in (terms, terms[::-1]) if len(terms) == 2 else ():
        pairing = _quarter_turn(m, turned, x)
        if pairing and m.shape(node) == m.shape(x) and all(_repeats(m, table, pairing, buffers) for table in (cosine, sine)):
            return x, pairing, {"cosine": cosine, "sine": sine}
    return None


def _terms(m: Matcher, node: str) -> list[tuple[int, str, str]]:
    """(sign, value, table) of each term of a sum of two products of a value with data; empty if it is no such sum."""
    for operation, sign in (("add", 1), ("subtract", -1)):
        for first, second in m.pairs(node, operation):
            products = [_by_data(m, first, 1), _by_data(m, second, sign)]
            return [found for found in products if found] if all(products) else []
    return []


def _by_data(m: Matcher, node: str, sign: int) -> tuple[int, str, str] | None:
    outer, node = _signed(m, node)
    for value, table in m.pairs(node, "multiply"):
        if value in m.moving and table not in m.moving:
            inner, value = _signed(m, value)
            return sign * outer * inner, value, table
    return None


def _signed(m: Matcher, node: str) -> tuple[int, str]:
    """A value without its minus sign, and the sign."""
    behind = m.made_by(node, "negate") or m.made_by(node, "scale", factor=-1)
    return (-1, behind["input"]) if behind else (1, m.source(node))


def _quarter_turn(m: Matcher, node: str, x: str) -> str:
    """The pairing in which a value is x with every pair (a, b) replaced by (-b, a) or by (b, -a); empty if it is not."""
    for first, second, pairing in _parts(m, node):
        (one, b), (other, a) = _signed(m, first), _signed(m, second)
        if one * other == -1 and _is_part(m, a, x, 0, pairing) and _is_part(m, b, x, 1, pairing):
            return pairing
    return ""


# --- the two parts of the pair apart


def _split(m: Matcher, node: str) -> Found | None:
    for first, second, pairing in _parts(m, node):
        for (p, a, cosine), (q, b, sine) in _both_orders(_terms(m, first)):
            for (r, b_again, cosine_again), (s, a_again, sine_again) in _both_orders(_terms(m, second)):
                x = _whole_of(m, a, 0, pairing)
                same = m.same(a, a_again) and m.same(b, b_again) and m.same(cosine, cosine_again) and m.same(sine, sine_again)
                if x and same and p == r and q == -s and _is_part(m, b, x, 1, pairing) and m.shape(node) == m.shape(x):
                    return x, pairing, {"cosine": cosine, "sine": sine}
    return None


def _both_orders(terms: list[Any]) -> Iterator[tuple[Any, Any]]:
    if len(terms) == 2:
        yield terms[0], terms[1]
        yield terms[1], terms[0]


# --- pairs as complex numbers


def _complex(m: Matcher, node: str) -> Found | None:
    real = (m.made_by(node, "reshape") or {}).get("input", "")
    product = (m.made_by(real, "aten.view_as_real") or {}).get("0", "") if real else ""
    if not product or m.operation(product) != "aten.mul":
        return None
    operands = list(m.graph.inputs_of(product).values())
    moving = [value for value in operands if value in m.moving]
    numbers = m.made_by(moving[0], "aten.view_as_complex") if len(moving) == 1 and len(operands) == 2 else None
    pairs = m.made_by(numbers["0"], "reshape") if numbers else None
    if not numbers or not pairs or m.shape(product) != m.shape(moving[0]):
        return None
    x = pairs["input"]
    paired = m.shape(numbers["0"]) == _apart(m.shape(x), "interleaved")
    return (x, "interleaved", {}) if paired and m.shape(node) == m.shape(x) else None


# --- parts of pairs


def _apart(shape: tuple[Any, ...], pairing: str) -> tuple[Any, ...]:
    """A shape with its last axis split into pairs."""
    half = shape[-1] // 2 if shape else 0
    return (*shape[:-1], 2, half) if pairing == "halves" else (*shape[:-1], half, 2)


def _parts(m: Matcher, node: str) -> list[tuple[str, str, str]]:
    """(first, second, pairing) of a value put together from the two parts of its pairs."""
    shape, found = m.shape(node), []
    glued = m.made_by(node, "concatenate", dim=len(shape) - 1)
    if glued and len(glued) == 2 and m.shape(glued["0"]) == m.shape(glued["1"]):
        found.append((glued["0"], glued["1"], "halves"))
    behind = (m.made_by(node, "reshape") or {}).get("input", "")
    for pairing, dim in (("halves", len(shape) - 1), ("interleaved", len(shape))):
        stacked = m.made_by(behind, "concatenate", dim=dim) if behind else None
        if stacked and len(stacked) == 2 and m.shape(behind) == _apart(shape, pairing):
            flat = [_without_axis(m, piece, dim) for piece in (stacked["0"], stacked["1"])]
            found += [(flat[0], flat[1], pairing)] if all(flat) else []
    return found


def _without_axis(m: Matcher, node: str, dim: int) -> str:
    """A value before an axis of size one was put into it; empty if it was not."""
    behind, shape = (m.made_by(node, "reshape") or {}).get("input", ""), m.shape(node)
    return behind if behind and shape[dim] == 1 and m.shape(behind) == (*shape[:dim], *shape[dim + 1 :]) else ""


def _is_part(m: Matcher, node: str, x: str, which: int, pairing: str) -> bool:
    whole = _whole_of(m, node, which, pairing)
    return bool(whole) and m.same(whole, x)


def _whole_of(m: Matcher, node: str, which: int, pairing: str) -> str:
    """What a value is the first (0) or the second (1) part of every pair of; empty if it is not."""
    node, shape = m.source(node), m.shape(node)
    if not shape:
        return ""
    last, size = len(shape) - 1, 2 * shape[-1]
    if pairing == "halves":
        taken = m.made_by(node, "slice", dim=last, start=which * shape[-1])
    else:
        taken = m.made_by(node, "rearrange", dims=[last], start=which, step=2)
    if taken and "input" in taken and m.shape(taken["input"]) == (*shape[:-1], size):
        return taken["input"]
    return _taken_from_pairs(m, node, which, pairing, (*shape[:-1], size))


def _taken_from_pairs(m: Matcher, node: str, which: int, pairing: str, whole: tuple[Any, ...]) -> str:
    dim = len(whole) if pairing == "interleaved" else len(whole) - 1
    cut = (m.made_by(node, "reshape") or {}).get("input", "")
    pairs = (m.made_by(cut, "slice", dim=dim, start=which, length=1) or {}).get("input", "") if cut else ""
    x = (m.made_by(pairs, "reshape") or {}).get("input", "") if pairs else ""
    return x if x and m.shape(pairs) == _apart(whole, pairing) and m.shape(x) == whole else ""


# --- tables


def _repeats(m: Matcher, node: str, pairing: str, buffers: Buffers, depth: int = DEPTH) -> bool:
    """Whether a table of data has, by how it is computed or by its known numbers, the same entry for both parts of every pair."""
    node = m.source(node)
    shape, operation = m.shape(node), m.operation(node)
    if not shape or shape[-1] == 1:
        return True
    known = _known(m, node, buffers)
    if known is not None:
        pairs = known.reshape(_apart(tuple(known.shape), pairing)).movedim(-2 if pairing == "halves" else -1, 0)
        return bool(torch.equal(pairs[0], pairs[1]))
    sources = [m.source(value) for value in m.graph.inputs_of(node).values()]
    if not depth or m.graph.nodes[node]["parameters"] or not sources:
        return False
    if any(m.same(first, second) and kind == pairing for first, second, kind in _parts(m, node)):
        return True
    if operation == "rearrange" and m.attribute(node, "dims") == [len(shape) - 1]:
        doubled = 2 * m.shape(sources[0])[-1] == shape[-1]
        return doubled and bool(m.attribute(node, "tiled") if pairing == "halves" else m.attribute(node, "repeats") == 2)
    passes = operation in ELEMENTWISE or _keeps_last(m, node, sources[0])
    return passes and all(_repeats(m, source, pairing, buffers, depth - 1) for source in sources)


def _keeps_last(m: Matcher, node: str, source: str) -> bool:
    """Whether the entries along the last axis of a value are those of its source, in order."""
    operation, last = m.operation(node), len(m.shape(node)) - 1
    before = m.shape(source)
    match operation:
        case "reshape":
            return bool(before) and before[-1] == m.shape(node)[-1]
        case "expand":
            return not before or before[-1] in (m.shape(node)[-1], 1)
        case "permute":
            return bool(m.attribute(node, "dims")[-1] == last)
        case "slice" | "concatenate":
            return bool(m.attribute(node, "dim") != last)
        case "rearrange":
            return last not in m.attribute(node, "dims")
    return False


def _known(m: Matcher, node: str, buffers: Buffers) -> torch.Tensor | None:
    """The numbers of a buffer, or of a view or a piece of one."""
    node = m.source(node)
    if node in buffers:
        return None if buffers[node].device.type == "meta" else buffers[node]
    behind = (m.made_by(node, "reshape") or m.made_by(node, "slice") or {}).get("input", "")
    table = _known(m, behind, buffers) if behind else None
    if table is None:
        return None
    if m.operation(node) == "reshape":
        return table.reshape(m.shape(node))
    return table.narrow(m.attribute(node, "dim"), m.attribute(node, "start"), m.attribute(node, "length"))
