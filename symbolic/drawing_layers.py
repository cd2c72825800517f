"""The layers of a drawing, and upright strips in which everything goes down.

1. rank      longest-path layers; what the trunk does not feed is moved down to just above its first consumer
2. chains    the longest path is the trunk; the rest falls into chains, each straight down
3. strips    chains, and values that are needed again further down, get a strip each, short ones nearest to the trunk
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Final

import networkx as nx

__all__ = ["Key", "Layers", "Strip"]

Key = str | tuple[str, ...]  # a strip's owner: the producer of a kept value, or a chain

SIDE: Final = 10.0
KEPT_WIDTH: Final = 13.0


@dataclass(frozen=True, slots=True)
class Strip:
    """An upright strip: the half layers it takes up, first and last, and its width.

    Half layers are 2r, the upper half of layer r, where lines come in sideways, and 2r + 1, the lower, where they leave.
    """

    first: int
    last: int
    width: float


@dataclass
class Layers:
    """The layers of an acyclic graph, with the strips that its nodes and edges go down in.

    Parameters
    ----------
    graph : networkx.MultiDiGraph
        Not empty; the order of its nodes settles ties.
    width : float
        Of every node's box, in px.

    Examples
    --------
    >>> layers = Layers(nx.MultiDiGraph([("x", "f"), ("f", "y"), ("x", "y")]), 80)
    >>> layers.chains, layers.rank["y"], layers.keeps("x", "y")
    ([('x', 'f', 'y')], 2, True)
    """

    graph: nx.MultiDiGraph
    width: float

    @cached_property
    def order(self) -> list[str]:
        """Producers before consumers."""
        return list(nx.lexicographical_topological_sort(self.graph, key={n: i for i, n in enumerate(self.graph)}.__getitem__))

    @cached_property
    def reach(self) -> dict[str, int]:
        """Length of the longest path from each node down."""
        out: dict[str, int] = {}
        for node in reversed(self.order):
            out[node] = max((out[n] + 1 for n in self.graph.successors(node)), default=0)
        return out

    @cached_property
    def rank(self) -> dict[str, int]:
        """Layer of each node."""
        out: dict[str, int] = {}
        for node in self.order:
            out[node] = max((out[n] + 1 for n in self.graph.predecessors(node)), default=0)
        start = self.chains[0][0]
        fed = {start} | nx.descendants(self.graph, start)
        for node in reversed(self.order):
            if node not in fed and self.reach[node]:
                out[node] = min(out[n] for n in self.graph.successors(node)) - 1
        return out

    @cached_property
    def chains(self) -> list[tuple[str, ...]]:
        """Paths that hold every node once, the longest path first."""
        found, taken = [], set[str]()
        for start in [max(self.order, key=self.reach.__getitem__), *self.order]:
            chain, node = [], None if start in taken else start
            while node is not None:
                chain.append(node)
                taken.add(node)
                node = max((n for n in self.graph.successors(node) if n not in taken), key=self.reach.__getitem__, default=None)
            if chain:
                found.append(tuple(chain))
        return found

    @cached_property
    def chain_of(self) -> dict[str, tuple[str, ...]]:
        """The chain of each node."""
        return {node: chain for chain in self.chains for node in chain}

    @cached_property
    def follower(self) -> dict[str, str]:
        """The next node of the same chain."""
        return {a: b for chain in self.chains for a, b in pairwise(chain)}

    @cached_property
    def strips(self) -> dict[Key, Strip]:
        """Chains and kept values, by chain or by producer."""
        out: dict[Key, Strip] = {}
        for chain in self.chains:
            first, last = 2 * self.rank[chain[0]], 2 * self.rank[chain[-1]] + 1
            after = [2 * self.rank[n] for n in self.graph.successors(chain[-1])]
            before = bool(self.graph.pred[chain[0]])
            out[chain] = Strip(first - before, max([last, *after]), self.width + 2 * SIDE)
        for node in self.order:
            later = [self.rank[n] for n in self.graph.successors(node) if self.keeps(node, n)]
            if later:
                out[node] = Strip(2 * self.rank[node] + 1, 2 * max(later), KEPT_WIDTH)
        return out

    def keeps(self, source: str, target: str) -> bool:
        """Whether an edge needs a strip of its own beside its producer's chain."""
        return source in self.follower and self.follower[source] != target and self.rank[target] > self.rank[source] + 1

    @cached_property
    def place(self) -> dict[Key, float]:
        """Middle of every strip, as far left as is free: the trunk leftmost, then short strips before long ones."""
        placed: list[tuple[Strip, float]] = []
        found: dict[Key, float] = {}
        trunk, *rest = self.strips.items()
        for key, strip in [trunk, *sorted(rest, key=lambda item: item[1].last - item[1].first)]:
            beside = [(x, x + s.width) for s, x in placed if s.first <= strip.last and strip.first <= s.last]
            starts = [0.0, *sorted(right for _, right in beside)]
            left = next(x for x in starts if all(x >= b or x + strip.width <= a for a, b in beside))
            placed.append((strip, left))
            found[key] = left + strip.width / 2
        return found

    def x_of(self, node: str) -> float:
        """Middle of a node's chain."""
        return self.place[self.chain_of[node]]

    @cached_property
    def layers(self) -> list[list[str]]:
        """Nodes by layer."""
        out: list[list[str]] = [[] for _ in range(max(self.rank.values()) + 1)]
        for node in self.order:
            out[self.rank[node]].append(node)
        return out

    def down(self, source: str, target: str) -> float:
        """The x at which an edge runs down."""
        if self.keeps(source, target):
            return self.place[source]
        if source not in self.follower:  # the last of its chain: its own strip goes on
            return self.x_of(source)
        return self.x_of(target)

    def start(self, source: str, target: str) -> float:
        """The x at which an edge leaves its producer's layer."""
        return self.down(source, target) if self.side_exit(source, target) else self.x_of(source)

    def side_exit(self, source: str, target: str) -> bool:
        """Whether an edge leaves its producer sideways; the strip it goes down in must begin there and nothing be in between."""
        x = self.down(source, target)
        begins = self.keeps(source, target) or self.chain_of[target][0] == target
        return x != self.x_of(source) and begins and self.clear(self.rank[source], self.x_of(source), x)

    def side_entry(self, source: str, target: str) -> bool:
        """Whether an edge comes into its consumer sideways."""
        x = self.down(source, target)
        return x != self.x_of(target) and self.clear(self.rank[target], x, self.x_of(target))

    def clear(self, row: int, a: float, b: float) -> bool:
        """Whether no box of a layer has its middle strictly between, or its side at either end."""
        low, high, half = min(a, b), max(a, b), self.width / 2
        others = [self.x_of(n) for n in self.layers[row] if self.x_of(n) not in (a, b)]
        return all(x + half <= low or x - half >= high for x in others)
