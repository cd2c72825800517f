"""Factors of a discrete symmetry group: permutations and signs along an index, and what they do to tensors.

They act with methods that torch tensors have, so nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import factorial, lgamma, log, prod
from random import Random
from typing import Any

from noetherflow.symbolic.actions import Patch, Tensors

Values = tuple[int, ...]
"""An element of one factor: permutations, one after another, or bits; in row-major order of the factor's sizes."""


@dataclass(frozen=True, slots=True)
class Placed:
    """A block of a parameter (or buffer), and for each index of a factor the dimension of the block that carries it."""

    parameter: str
    patch: Patch
    places: tuple[int, ...]


@dataclass(frozen=True)
class Permutations:
    """All permutations of an index, for each value of the other indices by itself: a symmetric group, or a power of it.

    Attributes
    ----------
    sizes : tuple of int
        Of the spectators and, last, of the permuted index.
    actions : tuple of Placed
        On parameters.
    buffers : tuple of Placed
        On running statistics that go along.
    """

    sizes: tuple[int, ...]
    actions: tuple[Placed, ...]
    buffers: tuple[Placed, ...] = ()
    kind = "permutation"

    @property
    def copies(self) -> int:
        """Number of symmetric groups."""
        return prod(self.sizes[:-1])

    @property
    def base(self) -> int:
        """N, of the N! whose power the order is."""
        return self.sizes[-1]

    @property
    def power(self) -> int:
        """The exponent of N!."""
        return self.copies

    @property
    def order(self) -> int:
        """N! to the power of the number of copies."""
        return int(factorial(self.sizes[-1]) ** self.copies)

    @property
    def log_order(self) -> float:
        """Natural logarithm of the order."""
        return self.copies * lgamma(self.sizes[-1] + 1)

    def random(self, random: Random) -> Values:
        """A uniformly drawn element."""
        return tuple(i for _ in range(self.copies) for i in random.sample(range(self.sizes[-1]), self.sizes[-1]))

    @property
    def identity(self) -> Values:
        """The element that moves nothing."""
        return tuple(range(self.sizes[-1])) * self.copies

    def moved(self, placed: Placed, block: Any, values: Any) -> Any:
        """Entry i of the result is entry values[i] of the block."""
        place = placed.places[-1]
        order = sorted(range(len(placed.places)), key=placed.places.__getitem__)
        shape = [1] * block.dim()
        for position, at in enumerate(placed.places):
            shape[at] = self.sizes[position]
        index = values.reshape(self.sizes).permute(order).reshape(shape).to(block.device)
        return block.gather(place, index.expand(block.shape))

    def __str__(self) -> str:
        return f"swap of neighbours {_described(self)}"


@dataclass(frozen=True)
class Signs:
    """Signs along some indices: a power of the group of two elements.

    Attributes
    ----------
    sizes : tuple of int
        Of the indices that the signs depend on.
    actions : tuple of Placed
    buffers : tuple of Placed
        Running means that go along.
    based : bool
        Only signs that are + where an index is zero: those that are the same for all values are in another factor, or no symmetry.
    reflected : bool
        The places have one more index, and only its first value changes sign: a reflection of a space in which rotations are continuous.
    """

    sizes: tuple[int, ...]
    actions: tuple[Placed, ...]
    buffers: tuple[Placed, ...] = ()
    based: bool = False
    reflected: bool = False

    @property
    def kind(self) -> str:
        """'sign', or 'reflection'."""
        return "reflection" if self.reflected else "sign"

    @property
    def bits(self) -> int:
        """Logarithm of the order to base two."""
        return prod(n - 1 for n in self.sizes) if self.based else prod(self.sizes)

    @property
    def base(self) -> int:
        """Two, which is its own factorial."""
        return 2

    @property
    def power(self) -> int:
        """The exponent of two."""
        return self.bits

    @property
    def order(self) -> int:
        """Two to the number of bits."""
        return int(2**self.bits)

    @property
    def log_order(self) -> float:
        """Natural logarithm of the order."""
        return self.bits * log(2)

    def random(self, random: Random) -> Values:
        """A uniformly drawn element."""
        return tuple(random.randrange(2) if free else 0 for free in self.free())

    @property
    def identity(self) -> Values:
        """The element that moves nothing."""
        return (0,) * prod(self.sizes)

    def free(self) -> list[bool]:
        """For each entry whether its sign may change."""
        free = []
        for flat in range(prod(self.sizes)):
            digits = []
            for n in reversed(self.sizes):
                flat, digit = divmod(flat, n)
                digits.append(digit)
            free.append(not self.based or all(digits))
        return free

    def moved(self, placed: Placed, block: Any, values: Any) -> Any:
        """The block with the signs of some entries changed."""
        places = placed.places[:-1] if self.reflected else placed.places
        order = sorted(range(len(places)), key=places.__getitem__)
        shape = [1] * block.dim()
        for position, at in enumerate(places):
            shape[at] = self.sizes[position]
        bits = values.reshape(self.sizes).permute(order).reshape(shape).to(block.device)
        if self.reflected:
            first = bits.new_zeros([block.shape[placed.places[-1]]])
            first[0] = 1
            bits = bits * first.reshape([-1 if d == placed.places[-1] else 1 for d in range(block.dim())])
        return block * (1 - 2 * bits).to(block.dtype)

    def __str__(self) -> str:
        return f"{'reflection' if self.reflected else 'change of sign'} {_described(self)}"


@dataclass(frozen=True, slots=True)
class Centre:
    """A bias that stands for itself and for what a weight reads of a constant: c + u v, summed over the last axis of u."""

    bias: str
    weight: str
    value: float


@dataclass(frozen=True)
class ShiftedSigns(Signs):
    """Signs of functions that are odd about a value other than zero: centred biases stay, biases are shifted by columns of weights.

    Attributes
    ----------
    centres : tuple of Centre
        Where signs are changed by the actions alone once biases are centred.
    """

    centres: tuple[Centre, ...] = ()

    @property
    def kind(self) -> str:
        """'shifted sign'."""
        return "shifted sign"

    def __str__(self) -> str:
        biases = ", ".join(dict.fromkeys(centre.bias for centre in self.centres))
        return f"change of sign {_described(self)}, and a shift of {biases}"


@dataclass(frozen=True)
class Transpositions(Permutations):
    """The interchange of the first two values of an index, for each value of the others: a reflection among continuous rotations."""

    kind = "reflection"

    @property
    def base(self) -> int:
        """Two."""
        return 2

    @property
    def order(self) -> int:
        """Two to the number of copies."""
        return int(2**self.copies)

    @property
    def log_order(self) -> float:
        """Natural logarithm of the order."""
        return self.copies * log(2)

    def random(self, random: Random) -> Values:
        """A uniformly drawn element."""
        rest = range(2, self.sizes[-1])
        return tuple(i for _ in range(self.copies) for i in (*random.sample(range(2), 2), *rest))

    def __str__(self) -> str:
        return f"reflection (a swap of the first two) {_described(self)}"


Factor = Permutations | Signs


def acted(factor: Factor, values: Values, params: Tensors, *, buffers: bool = False) -> dict[str, Any]:
    """What an element of one factor makes of tensors; those that move are new.

    Parameters
    ----------
    factor : Permutations or Signs
    values : tuple of int
    params : mapping of str to tensor
    buffers : bool
        Of running statistics, instead of parameters.
    """
    if isinstance(factor, ShiftedSigns) and not buffers:
        (plain,) = about_zero([factor])
        return centred([factor], acted(plain, values, centred([factor], params)), back=True)
    out: dict[str, Any] = dict(params)
    placed = factor.buffers if buffers else factor.actions
    for name in dict.fromkeys(p.parameter for p in placed if p.parameter in out):
        out[name] = out[name].detach().clone()
    for p in placed:
        if p.parameter in out:
            block = p.patch.view(out[p.parameter])
            block.copy_(factor.moved(p, block.clone(), block.new_tensor(values).long()))
    return out


def about_zero(factors: Sequence[Factor]) -> tuple[Factor, ...]:
    """What factors are for parameters whose biases are `centred`: signs without shifts."""
    return tuple(Signs(f.sizes, f.actions, f.buffers, f.based) if isinstance(f, ShiftedSigns) else f for f in factors)


def centred(factors: Sequence[Factor], params: Tensors, *, back: bool = False) -> dict[str, Any]:
    """Tensors with the biases of all factors' centres centred, or made biases again."""
    out: dict[str, Any] = dict(params)
    for centre in dict.fromkeys(centre for f in factors if isinstance(f, ShiftedSigns) for centre in f.centres):
        shift = centre.value * out[centre.weight].detach().sum(-1)
        out[centre.bias] = out[centre.bias].detach() - shift if back else out[centre.bias].detach() + shift
    return out


def _described(factor: Factor) -> str:
    names = list(dict.fromkeys(placed.parameter for placed in factor.actions))
    sizes = " x ".join(map(str, factor.sizes))
    where = f"along an index of size {sizes} of" if sizes else "of all of"
    return f"{where} {', '.join(names[:4])}" + (f" and {len(names) - 4} others" if len(names) > 4 else "")
